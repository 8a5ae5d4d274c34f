"""The reverse cascade: accuracy against the opening's tokens, accuracy against cost, signals along the opening."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm._core.stats import cost_front
from latentcomm.reporting.plots.tables import full_records, records, require_numbers, require_once, seen, spoken
from latentcomm.reporting.style import (
    FOOT,
    GRID,
    LETTER,
    MUTED,
    PAGE,
    SHARE_AXIS,
    TICK_SIZE,
    TIGHT_LEGEND,
    Sheet,
    Style,
    bare,
    blank_sheet,
    styles,
)

MESSAGE, SHUFFLED, SELF, VOTE = "message", "shuffled", "self", "self-consistency"
ZERO, RANDOM = "zero", "random"
SILENT, LARGE = "silent", "large"
STYLED_AS = {"none": "silent", SILENT: "silent", LARGE: "skyline", SHUFFLED: "shuffled", SELF: "self", VOTE: "random"}
STYLED_AS |= {ZERO: "zero", RANDOM: "delta"}
"""The channel of other figures whose colour and shape each has; a hand-off has its own."""
ALONE = {SILENT: "small alone", LARGE: "large alone"}
"""Legend entries of the two models alone."""
ENTRIES = {
    SHUFFLED: "other item's opening",
    ZERO: "zeros, where it continued",
    RANDOM: "random states, where it continued",
}
ENTRIES |= {SELF: "small model's own", VOTE: "vote at equal cost"}
"""Legend entries of the controls."""
CONTINUED = "where the small model continued"
SHARES_TITLE = "shares of items"
IN_OPENING, FINISHED, FIRED = "answer in opening", "large model had finished", "stop fired"
NUMBERS = ("accuracy", "low", "high", "n", "tokens")
SHARES = ("fired", "in_opening", "finished", "handed_accuracy", "handed_n")
LINES = (("in_opening", IN_OPENING, "solid"), ("finished", FINISHED, "dash"), ("fired", FIRED, "dot"))
STEP, ROOM = 50, 10
"""px from one n to the next at most, and left and right of the outermost."""


def cascade_curves(table: pd.DataFrame, *, title: str, note: str = "") -> go.Figure:
    """Accuracy against the number of tokens that the large model writes before the small one continues.

    The table is that of `CascadeSweep.table`: a row a hand-off, stop and condition. A column of panels a hand-off; its
    x axis has the fixed numbers of tokens in even steps, then the other stops with the mean number that each stop
    allows. Dots with 95 % intervals are the cascade, the bands across the two models alone; small shapes the controls:
    another item's opening, zeros and random states instead of states, the small model's own, and its vote at equal
    cost. Open dots, and zeros and random states, count only the items whose reply the large model had not finished.
    Below: the shares of items whose reply it had finished, whose opening contains an accepted answer, and whose stop
    fired.

    Raises:
        ValueError: the table is empty, lacks a column, a number, or the two models alone; an accuracy outside its
            interval; a row twice.

    >>> row = {"hand_off": "none", "stop": "0", "condition": "silent", "accuracy": 0.1, "low": 0.0, "high": 0.3}
    >>> row |= {"n": 9, "tokens": 0.0, "fired": 1.0, "in_opening": 0.0, "finished": 0.0, "handed_n": 9}
    >>> row |= {"handed_accuracy": 0.1}
    >>> rows = [row, row | {"condition": "large", "high": 1.0}]
    >>> rows += [row | {"hand_off": "text", "condition": "message", "stop": stop} for stop in ("0", "8")]
    >>> cascade_curves(pd.DataFrame(rows), title="Two numbers").layout.xaxis.ticktext
    ('0', '8')
    """
    rows = _rows(table, SHARES)
    offs = _hand_offs(rows)
    stops = _stops(rows)
    style_of = _styles(offs)
    gap, left, right, height, strip = 26, 66, 24, 220, 80
    step = min(STEP, (PAGE - left - right - (len(offs) - 1) * gap) // len(offs) // max(1, len(stops)))
    width = max(150, step * len(stops) + 2 * ROOM)
    across = len(offs) * (width + gap) - gap
    right += max(0, 520 - left - right - across)
    shown = [condition for condition in ENTRIES if any(row["condition"] == condition for row in rows)]
    entries = [*map(spoken, offs), CONTINUED, *ALONE.values(), *(ENTRIES[each] for each in shown)]
    entries += [IN_OPENING, FINISHED, FIRED]
    labels = {stop: _label(stop, rows) for stop in stops}
    foot = 30 + round(0.9 * LETTER[TICK_SIZE] * max(map(len, labels.values())))
    down = height + strip + 16
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=right, head=28, foot=foot)
    sheet.figure.update_layout(legend=TIGHT_LEGEND)
    positions = {stop: position for position, stop in enumerate(stops)}
    ticks = {"tickvals": list(positions.values()), "ticktext": [labels[stop] for stop in stops], "tickangle": -90}
    x_axis = ticks | {"range": [-0.6, len(stops) - 0.4], "title": {"text": "tokens by the large model"}}
    y_axis = SHARE_AXIS | {"title": {"text": "accuracy"}}
    share = SHARE_AXIS | {"title": {"text": SHARES_TITLE}, "dtick": 0.5}
    in_legend: set[str] = set()
    for number, off in enumerate(offs):
        at = number * (width + gap)
        upper = sheet.panel(
            number, (at, strip + 16, width, height), bare(x_axis), bare(y_axis) if number else y_axis, spoken(off)
        )
        lower = sheet.panel(len(offs) + number, (at, 0, width, strip), x_axis, bare(share) if number else share, "")
        for alone in ALONE:
            _alone(sheet, _one(rows, alone), upper, style_of[alone], len(stops), named=not number)
        mine = [row for row in rows if row["hand_off"] == off]
        for condition in (*shown, MESSAGE):
            part = {row["stop"]: _continued(row) for row in mine if row["condition"] == condition}
            if not part:
                continue
            name = spoken(off) if condition == MESSAGE else ENTRIES[condition]
            style = style_of[off if condition == MESSAGE else condition]
            named = condition == MESSAGE or condition not in in_legend
            in_legend.add(condition)
            _series(sheet, part, positions, upper, style, name, small=condition != MESSAGE, named=named)
        _shares(sheet, mine, positions, upper, lower, style_of[off], named=not number)
    return sheet.figure


def cascade_front(table: pd.DataFrame, *, title: str, note: str = "") -> go.Figure:
    """Accuracy against the cost of an item for both models: a line a hand-off along the fixed numbers of tokens.

    The table is that of `CascadeSweep.table`. Larger shapes are the two models alone, open ones the other stops, and
    the dotted line is the small model's vote at the cost of the cascade of the first hand-off. The stepped line is the
    front of everything but the oracle, which is no policy.

    Raises:
        ValueError: the table is empty, lacks a column, a number, or the two models alone; a cost that is not above 0.

    >>> row = {"hand_off": "none", "stop": "0", "condition": "silent", "accuracy": 0.1, "low": 0.0, "high": 0.3}
    >>> row |= {"n": 9, "tokens": 0.0, "flops": 1e6}
    >>> rows = [row, row | {"condition": "large", "flops": 1e7, "high": 1.0}]
    >>> rows += [row | {"hand_off": "text", "condition": "message", "stop": "8", "flops": 5e6}]
    >>> cascade_front(pd.DataFrame(rows), title="Three costs").layout.xaxis.type
    'log'
    """
    rows = _rows(table, ("flops",))
    require_numbers(rows, ["flops"])
    if wrong := [row for row in rows if not row["flops"] > 0]:
        raise ValueError(
            f"{wrong[0]['condition']} has flops {wrong[0]['flops']}; a logarithmic axis needs costs above 0"
        )
    offs = _hand_offs(rows)
    style_of = _styles(offs)
    stops = [stop for stop in _stops(rows) if not stop.isdigit()]
    shapes = dict(zip(stops, STOP_SHAPES * len(stops), strict=False))
    across, down = 640, 380
    votes = any(row["condition"] == VOTE for row in rows)
    entries = [*map(spoken, offs), *map(spoken, stops), *ALONE.values(), *([ENTRIES[VOTE]] if votes else []), "front"]
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=66, right=40, head=12, foot=FOOT)
    ends = [math.log10(bound(row["flops"] for row in rows)) for bound in (min, max)]
    ends = [ends[0] - 0.1, ends[1] + 0.1]
    x_axis = {"type": "log", "range": ends, "title": {"text": "floating-point operations an item, both models"}}
    x_axis |= {"tickformat": "~s", "dtick": "D2" if ends[1] - ends[0] < 2 else 1}
    y_axis = SHARE_AXIS | {"title": {"text": "accuracy"}}
    axes = sheet.panel(0, (0, 0, across, down), x_axis, y_axis, "")
    real = [row for row in rows if row["stop"] != "oracle" and row["condition"] in (*ALONE, MESSAGE, VOTE)]
    front = cost_front(pd.DataFrame(real))
    corners = {"x": [*front["flops"], 10 ** ends[1]], "y": [*front["accuracy"], front["accuracy"].iloc[-1]]}
    line = {"mode": "lines", "line": {"color": MUTED, "width": 1.5, "shape": "hv"}, "hoverinfo": "skip"}
    sheet.figure.add_trace(go.Scatter(corners | line | axes, name="front"))
    for alone, entry in ALONE.items():
        sheet.figure.add_trace(_dots([_one(rows, alone)], axes, style_of[alone], entry, size=13))
    for off in offs:
        mine = [row for row in rows if row["hand_off"] == off and row["condition"] == MESSAGE]
        fixed = sorted((row for row in mine if row["stop"].isdigit()), key=lambda row: int(row["stop"]))
        style = style_of[off]
        trace = _dots(fixed, axes, style, spoken(off), size=9)
        trace.update(mode="lines+markers+text", line={"color": style.colour, "width": 1.5})
        written = {"textposition": "top left", "textfont": {"size": TICK_SIZE, "color": style.colour}}
        sheet.figure.add_trace(trace.update(text=[row["stop"] for row in fixed], **written))
        for row in (row for row in mine if row["stop"] in shapes):
            marked = Style(style_of[off].colour, shapes[row["stop"]])
            sheet.figure.add_trace(_dots([row], axes, marked, spoken(row["stop"]), size=12).update(showlegend=False))
    for stop, shape in shapes.items():
        key = {"x": [None], "y": [None], "mode": "markers", "name": spoken(stop), "showlegend": True}
        drawn = {"marker": {"symbol": shape, "size": 12, "color": MUTED, "line": {"width": 2}}}
        sheet.figure.add_trace(go.Scatter(key | drawn | axes))
    if votes:
        mine = [
            row for row in rows if row["condition"] == VOTE and row["hand_off"] == offs[0] and row["stop"].isdigit()
        ]
        mine.sort(key=lambda row: row["flops"])
        trace = _dots(mine, axes, style_of[VOTE], ENTRIES[VOTE], size=7)
        dotted = {"color": style_of[VOTE].colour, "width": 1.5, "dash": "dot"}
        sheet.figure.add_trace(trace.update(mode="lines+markers", line=dotted))
    return sheet.figure


def opening_signals(table: pd.DataFrame, *, title: str, note: str = "") -> go.Figure:
    """Signals along the openings: entropy and other signals by token, and where each stop ends the opening.

    The table has columns `signal`, `token`, `median`, `low`, `high` and `n`: for a signal the median over the n
    openings of at least that length and its quartiles, and for a stop, whose signal is "handed over by " and its name,
    the share of all openings that it has ended by that token (median, low and high are equal). A panel a signal, bands
    between the quartiles, and one for all stops; vertical lines mark the token by which a stop has ended half of the
    openings.

    Raises:
        ValueError: the table is empty, lacks a column or a number, or has a token twice.

    >>> rows = [{"signal": "entropy", "token": 1, "median": 2.0, "low": 1.0, "high": 3.0, "n": 9}]
    >>> rows += [{"signal": "handed over by sentence-end", "token": 1, "median": 0.5, "low": 0.5, "high": 0.5, "n": 9}]
    >>> opening_signals(pd.DataFrame(rows), title="A token").layout.yaxis.title.text
    'entropy (nats)'
    """
    rows = full_records(table, ["signal"], ["token", "median", "low", "high", "n"])
    require_once(rows, ["signal", "token"])
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["token"]):
        parts.setdefault(row["signal"], []).append(row)
    signals = [name for name in seen(rows, "signal") if not name.startswith(OF_STOP)]
    stops = {name.removeprefix(OF_STOP): parts[name] for name in parts if name.startswith(OF_STOP)}
    style_of = styles([*(f"stop {name}" for name in stops)])
    n_panels = len(signals) + bool(stops)
    width, height, gap = 640, 150, 16
    down = n_panels * (height + gap) - gap
    entries = [MEDIAN, *(spoken(name) for name in stops)]
    sheet = blank_sheet(title, note, entries, across=width, down=down, left=76, right=32, head=12, foot=FOOT)
    last = max(row["token"] for row in rows)
    x_axis = {"range": [0, last + 1], "title": {"text": "token of the opening"}}
    halves = {name: next((row["token"] for row in part if row["median"] >= 0.5), None) for name, part in stops.items()}
    panels: list[str] = [*signals, *([OF_STOP] if stops else [])]
    for panel, name in enumerate(panels):
        bottom = down - height - panel * (height + gap)
        title_of = {"title": {"text": UNITS.get(name, spoken(name))}, "rangemode": "tozero"}
        y_axis = title_of if name != OF_STOP else SHARE_AXIS | {"title": {"text": "share handed off"}}
        axis = x_axis if panel == n_panels - 1 else bare(x_axis)
        axes = sheet.panel(panel, (0, bottom, width, height), axis, y_axis, "")
        if name == OF_STOP:
            for stop, part in stops.items():
                curve = {"x": [row["token"] for row in part], "y": [row["median"] for row in part], "mode": "lines"}
                line = {"color": style_of[f"stop {stop}"].colour, "width": 2, "shape": "hv"}
                sheet.figure.add_trace(go.Scatter(curve | axes, line=line, name=spoken(stop)))
            continue
        _band(sheet, parts[name], axes, named=not panel)
        for stop, half in halves.items():
            if half is not None:
                spot = {"x0": half, "x1": half, "xref": axes["xaxis"], "y0": 0, "y1": 1}
                line = {"color": style_of[f"stop {stop}"].colour, "width": 2, "dash": "dash"}
                sheet.figure.add_shape(spot, yref=f"{axes['yaxis']} domain", line=line)
    return sheet.figure


OF_STOP = "handed over by "
"""Prefix of the rows of a stop in a table of signals."""
MEDIAN = "median and quartiles over openings"
UNITS = {"entropy": "entropy (nats)", "margin": "margin p₁ − p₂", "surprise": "surprise (nats)",
         "drift_latent": "drift, latent", "drift_graft": "drift, graft"}  # fmt: skip
STOP_SHAPES = ["star-open", "diamond-tall-open", "hexagram-open", "pentagon-open", "bowtie-open"]


def _rows(table: pd.DataFrame, more: Sequence[str]) -> list[dict[str, Any]]:
    rows = records(table.assign(**_as_text(table)), ["hand_off", "stop", "condition"], [*NUMBERS, *more])
    require_numbers(rows, ["accuracy", "low", "high", "n"])
    require_once(rows, ["hand_off", "stop", "condition"])
    for row in rows:
        if not 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1:
            where = f"{row['hand_off']}, stop {row['stop']}, {row['condition']}"
            raise ValueError(f"{where}: accuracy {row['accuracy']} is outside {row['low']} to {row['high']}")
    for alone in ALONE:
        _one(rows, alone)
    return rows


def _as_text(table: pd.DataFrame) -> dict[str, Any]:
    """The stops as text: a table of fixed numbers alone is read from its CSV as numbers."""
    return {"stop": [str(stop) for stop in table["stop"]]} if "stop" in table else {}


def _one(rows: Sequence[Mapping[str, Any]], condition: str) -> Mapping[str, Any]:
    found = [row for row in rows if row["condition"] == condition]
    if len(found) != 1:
        raise ValueError(f"the table has {len(found)} rows of {condition!r}; give one, the baseline of every cascade")
    return found[0]


def _hand_offs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = seen([row for row in rows if row["condition"] == MESSAGE], "hand_off")
    if not found:
        raise ValueError(f"no row of the table has the condition {MESSAGE!r}; give the table of CascadeSweep.table")
    return found


def _stops(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Numbers of tokens, ascending, then the other stops."""
    found = seen([row for row in rows if row["condition"] == MESSAGE], "stop")
    return sorted((stop for stop in found if stop.isdigit()), key=int) + [stop for stop in found if not stop.isdigit()]


def _label(stop: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if stop.isdigit():
        return stop
    means = [row["tokens"] for row in rows if row["stop"] == stop and row["condition"] == MESSAGE]
    low, high = (f"{bound(means):.0f}" for bound in (min, max))
    return f"{spoken(stop.replace('-', ' '))} ({low if low == high else f'{low} to {high}'})"


def _styles(offs: Sequence[str]) -> dict[str, Style]:
    own = styles(offs)
    return own | {name: styles([alias])[alias] for name, alias in STYLED_AS.items() if name not in own}


def _alone(
    sheet: Sheet, row: Mapping[str, Any], axes: dict[str, str], style: Style, n_stops: int, *, named: bool
) -> None:
    """A model alone: a horizontal line in the band of its interval."""
    red, green, blue = (int(style.colour[at : at + 2], 16) for at in (1, 3, 5))
    sheet.shade(axes, row["low"], row["high"], f"rgba({red},{green},{blue},0.10)")
    line = {"x": [-0.6, n_stops - 0.4], "y": [row["accuracy"]] * 2, "mode": "lines", "name": ALONE[row["condition"]]}
    dash = "dash" if row["condition"] == SILENT else "solid"
    drawn = {"line": {"color": style.colour, "width": 1.5, "dash": dash}, "hoverinfo": "y"}
    sheet.figure.add_trace(go.Scatter(line | drawn | axes, legendgroup=line["name"], showlegend=named))


def _continued(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """For zero and random states the accuracy where the small model continued, since finished openings use no states.

    Without interval, which is not drawn for controls.
    """
    if row["condition"] not in (ZERO, RANDOM):
        return row
    value = math.nan if row["handed_n"] == 0 else row["handed_accuracy"]
    return {**row, **dict.fromkeys(("accuracy", "low", "high"), value), "n": row["handed_n"]}


def _series(
    sheet: Sheet,
    part: Mapping[str, Mapping[str, Any]],
    positions: Mapping[str, int],
    axes: dict[str, str],
    style: Style,
    name: str,
    *,
    small: bool,
    named: bool,
) -> None:
    """The fixed numbers of tokens joined by a line, the other stops as single dots."""
    fixed = [part[stop] for stop in positions if stop in part and stop.isdigit()]
    others = [part[stop] for stop in positions if stop in part and not stop.isdigit()]
    for rows, joined in ((fixed, True), (others, False)):
        if not rows:
            continue
        bar = {"type": "data", "symmetric": False, "array": [row["high"] - row["accuracy"] for row in rows]}
        bar |= {"arrayminus": [row["accuracy"] - row["low"] for row in rows], "color": style.colour, "width": 0}
        marker = {"color": style.colour, "symbol": style.symbol, "size": 6 if small else 9}
        dots = {"x": [positions[row["stop"]] for row in rows], "y": [row["accuracy"] for row in rows]}
        dots |= {"mode": "lines+markers" if joined else "markers", "marker": marker, "name": name}
        dots |= {"customdata": [[row["low"], row["high"], row["n"]] for row in rows]}
        line = {"color": style.colour, "width": 1 if small else 2}
        hover = "%{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f}), n = %{customdata[2]}"
        trace = go.Scatter(dots | axes, line=line, legendgroup=name, hovertemplate=hover)
        sheet.figure.add_trace(trace.update(showlegend=named and (joined or not fixed)))
        if not small:
            sheet.figure.data[-1].update(error_y=bar | {"thickness": 1.5})


def _shares(
    sheet: Sheet,
    rows: Sequence[Mapping[str, Any]],
    positions: Mapping[str, int],
    upper: dict[str, str],
    lower: dict[str, str],
    style: Style,
    *,
    named: bool,
) -> None:
    """Accuracy where the small model continued; below, the shares of items of `LINES`."""
    mine = {row["stop"]: row for row in rows if row["condition"] == MESSAGE}
    mine = {stop: mine[stop] for stop in positions if stop in mine}
    unfinished = [row for row in mine.values() if row["handed_n"] > 0 and not math.isnan(row["handed_accuracy"])]
    marker = {"color": style.colour, "symbol": "circle-open", "size": 7, "line": {"width": 1.5}}
    open_dots = {"x": [positions[row["stop"]] for row in unfinished] or [None], "mode": "markers", "marker": marker}
    open_dots |= {"y": [row["handed_accuracy"] for row in unfinished] or [None], "name": CONTINUED}
    counts = {
        "customdata": [[row["handed_n"]] for row in unfinished],
        "hovertemplate": "%{y:.3f}, n = %{customdata[0]}",
    }
    sheet.figure.add_trace(go.Scatter(open_dots | counts | upper, legendgroup=CONTINUED, showlegend=named))
    for column, name, dash in LINES:
        known = [row for row in mine.values() if not math.isnan(row[column])]
        line = {"x": [positions[row["stop"]] for row in known], "y": [row[column] for row in known], "name": name}
        line |= {"mode": "lines+markers", "line": {"color": MUTED, "width": 1.5, "dash": dash}}
        symbol = {"solid": "square", "dash": "diamond", "dot": "circle-open"}[dash]
        line |= {"marker": {"color": MUTED, "size": 5, "symbol": symbol}}
        sheet.figure.add_trace(go.Scatter(line | lower, legendgroup=name, showlegend=named))


def _dots(rows: Sequence[Mapping[str, Any]], axes: dict[str, str], style: Style, name: str, *, size: int) -> go.Scatter:
    bar = {"type": "data", "symmetric": False, "array": [row["high"] - row["accuracy"] for row in rows]}
    bar |= {"arrayminus": [row["accuracy"] - row["low"] for row in rows], "color": style.colour, "width": 0}
    marker = {
        "color": style.colour,
        "symbol": style.symbol,
        "size": size,
        "line": {"width": 2 * ("open" in style.symbol)},
    }
    spots = {"x": [row["flops"] for row in rows], "y": [row["accuracy"] for row in rows], "mode": "markers"}
    labels = {"customdata": [[row["stop"], row["n"]] for row in rows]}
    hover = "%{customdata[0]}: %{y:.3f} at %{x:.3s}, n = %{customdata[1]}"
    spots |= labels | {"marker": marker, "name": name, "hovertemplate": hover}
    return go.Scatter(spots | axes, error_y=bar | {"thickness": 1})


def _band(sheet: Sheet, rows: Sequence[Mapping[str, Any]], axes: dict[str, str], *, named: bool) -> None:
    tokens = [row["token"] for row in rows]
    edge = [float(row["high"]) for row in rows] + [float(row["low"]) for row in reversed(rows)]
    band = {"x": tokens + tokens[::-1], "y": edge, "fill": "toself", "fillcolor": GRID, "mode": "lines"}
    band |= {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": MEDIAN}
    line = {"x": tokens, "y": [float(row["median"]) for row in rows], "mode": "lines", "name": MEDIAN}
    line |= {"line": {"color": MUTED, "width": 2}, "legendgroup": MEDIAN, "showlegend": named}
    sheet.figure.add_traces([go.Scatter(band | axes), go.Scatter(line | axes)])
