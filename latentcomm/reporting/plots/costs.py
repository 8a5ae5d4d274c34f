"""Accuracy against cost: a dot with its interval a channel, the Pareto front, and the silent baseline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import records, require_numbers, split_by, spoken
from latentcomm.reporting.style import FOOT, GRID, LETTER, MUTED, TICK_SIZE, bare, blank_sheet, styles

NUMBERS = ["accuracy", "low", "high", "n"]
PANEL = (640, 200)
"""px across and down a panel."""
STEP, EDGE, STRIP, GAP = 19, 18, 26, 16
"""px from one channel to the next at least; outside the outermost; of the strip that leads to the costs; of panels."""


def accuracy_against_cost(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    cost: str = "flops",
    unit: str = "",
    panels: str = "metric",
    chance: Mapping[str, float | int] | None = None,
    control: str = "shuffled",
) -> go.Figure:
    """Accuracy of channels against what an item costs: a dot and its interval a channel, a panel a metric.

    The table is that of `compare_trials`. Channels are ordered by cost and labelled by name; those of nearly equal cost
    are set apart, and lines below the panels lead each to its cost on the logarithmic axis. A small open dot, joined to
    its channel by a thin line, is the same channel with the `control` message: the part of the accuracy that is not due
    to the message's content. The stepped line is the front: no channel left of it is as accurate. Costs of 0 cannot be
    drawn on the axis and are refused.

    Raises:
        ValueError: the table is empty, lacks a column or a number, a cost is not above 0, or an accuracy is outside
            its interval.

    >>> row = {"channel": "silent", "condition": "message", "metric": "free", "accuracy": 0.1, "low": 0.0, "high": 0.2}
    >>> table = pd.DataFrame([row | {"n": 10, "flops": 1e9, "on_front": True}])
    >>> accuracy_against_cost(table, title="One channel").data[-1].x
    (1000000000.0,)
    """
    every = records(table, ["channel", "condition", panels], [*NUMBERS, cost])
    rows = [row for row in every if row["condition"] in ("message", control)]
    require_numbers(rows, [*NUMBERS, cost])
    for row in rows:
        if not float(row[cost]) > 0:
            raise ValueError(f"{row['channel']} has {cost} {row[cost]}; a logarithmic axis needs costs above 0")
        if not 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1:
            raise ValueError(f"{row['channel']}: accuracy {row['accuracy']} is outside {row['low']} to {row['high']}")
    costs = {str(row["channel"]): float(row[cost]) for row in reversed(rows) if row["condition"] == "message"}
    rows = [row for row in rows if row["channel"] in costs]
    parts = split_by(rows, panels)
    names = list(dict.fromkeys(str(row["channel"]) for row in rows))
    style_of = styles(names)
    shown = set_apart({name: costs[name] for name in names}, width=PANEL[0] - 2 * EDGE, step=STEP)
    logs = [math.log10(at) for at in (*shown.values(), *costs.values())]
    aside = EDGE * max(max(logs) - min(logs), 0.2) / (PANEL[0] - 2 * EDGE)
    ends = [min(logs) - aside, max(logs) + aside]
    width, height = PANEL
    down = len(parts) * (height + GAP) - GAP + STRIP
    entries = ["front", f"the same, {control}", *(["chance"] if chance else [])]
    head = 14 + round(LETTER[TICK_SIZE] * max(len(name) for name in names))
    sheet = blank_sheet(title, note, entries, across=width, down=down, left=66, right=32, head=head, foot=FOOT)
    y_axis = {"title": {"text": "accuracy"}, "range": [-0.03, 1.03], "dtick": 0.25, "showgrid": True, "gridcolor": GRID}
    x_axis = {"type": "log", "range": ends, "title": {"text": unit or spoken(cost)}, "tickformat": "~s", "dtick": "D2"}
    hidden = {"range": [0, 1], "fixedrange": True, "showline": False, "showticklabels": False, "ticks": ""}
    strip = sheet.panel(len(parts), (0, 0, width, STRIP), x_axis, hidden, "")
    for name, at in shown.items():
        ends_of = {"x": [costs[name], at], "y": [0, 1], "mode": "lines", "line": {"color": MUTED, "width": 1}}
        sheet.figure.add_trace(go.Scatter(ends_of | strip, showlegend=False, hoverinfo="skip"))
    for index, (metric, part) in enumerate(parts.items()):
        bottom = down - height - index * (height + GAP)
        axes = sheet.panel(index, (0, bottom, width, height), bare(x_axis) | {"ticks": ""}, y_axis, "")
        sheet.write_aside(f"{spoken(metric)} (n = {part[0]['n']})", bottom + height / 2)
        for name, at in shown.items():
            up = {"x0": at, "x1": at, "xref": axes["xaxis"], "y0": 0, "y1": 1, "yref": f"{axes['yaxis']} domain"}
            sheet.figure.add_shape(up, line={"color": GRID, "width": 1}, layer="below")
            if not index:
                spot = {"x": math.log10(at), "xref": axes["xaxis"], "y": 1, "yref": f"{axes['yaxis']} domain"}
                spot |= {"yanchor": "bottom", "yshift": 3, "textangle": -90, "font": {"size": TICK_SIZE}}
                sheet.figure.add_annotation(spot, text=spoken(name), showarrow=False)
        for trace in _traces(part, names, style_of, shown, control, ends, first=not index):
            sheet.figure.add_trace(go.Scatter(trace | axes))
        if chance and metric in chance:
            line = {"color": MUTED, "dash": "dot", "width": 1.5}
            ruled = {"x": [10**end for end in ends], "y": [chance[metric]] * 2, "mode": "lines", "line": line}
            sheet.figure.add_trace(go.Scatter(ruled | axes, name="chance", showlegend=not index, hoverinfo="skip"))
    return sheet.figure


def set_apart(costs: Mapping[str, float], *, width: float | int, step: float | int) -> dict[str, float]:
    """Where each cost is shown on a logarithmic axis `width` pixels long, so that no two are closer than `step`.

    The order is that of the costs, and of the names as given where those are equal. Costs that are far enough from all
    others stay exactly where they are; the rest move as little as they can (least squares, by pooling neighbours).

    >>> set_apart({"a": 1.0, "b": 100.0}, width=100, step=10)
    {'a': 1.0, 'b': 100.0}
    >>> {name: round(at, 3) for name, at in set_apart({"a": 1.0, "b": 1.0, "c": 100.0}, width=100, step=10).items()}
    {'a': 0.794, 'b': 1.259, 'c': 100.0}
    """
    order = sorted(costs, key=lambda name: costs[name])
    logs = [math.log10(costs[name]) for name in order]
    to_log = max(logs[-1] - logs[0], 0.2) / width
    pools: list[list[float]] = []  # of each pool its members' positions, less the room of those before them
    for number, at in enumerate(logs):
        pools.append([at / to_log - number * step])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    found: dict[str, float] = {}
    for pool in pools:
        for _ in pool:
            name, number = order[len(found)], len(found)
            alone = len(pool) == 1
            found[name] = costs[name] if alone else 10 ** ((_mean(pool) + number * step) * to_log)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _traces(
    rows: Sequence[Mapping[str, Any]],
    names: list[str],
    style_of: Mapping[str, Any],
    shown: Mapping[str, float],
    control: str,
    ends: list[float],
    *,
    first: bool,
) -> list[dict[str, Any]]:
    """The front, the controls, and above both the channels."""
    true = {row["channel"]: row for row in rows if row["condition"] == "message"}
    other = {row["channel"]: row for row in rows if row["condition"] == control}
    front = sorted((shown[row["channel"]], row["accuracy"]) for row in true.values() if row.get("on_front"))
    steps = {"x": [at for at, _ in front] + [10 ** ends[1]], "y": [share for _, share in front]}
    steps["y"] = steps["y"] + steps["y"][-1:]
    line = {"color": MUTED, "width": 1.5, "shape": "hv"}
    traces = []
    if front:
        traces.append(
            steps | {"mode": "lines", "line": line, "name": "front", "showlegend": first, "hoverinfo": "skip"}
        )
    labelled = False
    for name, row in other.items():
        ends_of = {"x": [shown[name]] * 2, "y": [row["accuracy"], true[name]["accuracy"]], "mode": "lines"}
        thin = {"line": {"color": style_of[name].colour, "width": 1, "dash": "dot"}, "showlegend": False}
        traces.append(ends_of | thin | {"hoverinfo": "skip"})
        marker = {"color": style_of[name].colour, "symbol": "circle-open", "size": 7, "line": {"width": 1.5}}
        spot = {"x": [shown[name]], "y": [row["accuracy"]], "mode": "markers", "marker": marker}
        named = {"name": f"the same, {control}", "showlegend": first and not labelled}
        traces.append(spot | named | {"hovertemplate": f"{spoken(name)}, {control}: %{{y:.3f}}"})
        labelled = True
    for name in names:
        if name not in true:
            continue
        row, style = true[name], style_of[name]
        bar = {"type": "data", "symmetric": False, "array": [row["high"] - row["accuracy"]], "thickness": 1.5}
        bar |= {"arrayminus": [row["accuracy"] - row["low"]], "color": style.colour, "width": 0}
        marker = {
            "color": style.colour,
            "symbol": style.symbol,
            "size": 10,
            "line": {"width": 2 if "open" in style.symbol else 0},
        }
        spot = {"x": [shown[name]], "y": [row["accuracy"]], "error_y": bar, "mode": "markers", "marker": marker}
        hover = f"{spoken(name)}: %{{y:.3f}} ({row['low']:.3f} to {row['high']:.3f})"
        traces.append(spot | {"name": spoken(name), "showlegend": False, "hovertemplate": hover})
    return traces
