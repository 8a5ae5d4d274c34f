"""Figures of drift: how unlike real states grafted ones are, whether that heals, and what it says about accuracy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.plots.tables import layers_in, records, seen, split_by
from latentcomm.sheets import (
    GRID,
    INK,
    LETTER,
    LINE,
    MUTED,
    TEXT_SIZE,
    TICK_SIZE,
    bare,
    blank_sheet,
    colour_axis,
    names_axis,
    styles,
)

COMBINED = "combined"
RARE = 0.95
"""One real state in twenty is at least this rare."""
RARE_ENTRY = "one real state in twenty lies above"
MOST_VIOLINS = 6
"""Write layers a panel of violins shows, spread over those of the table."""
MOST_CURVES = 3
"""Write layers that the healing curves show."""
FALLS = ("#276419", "#7FBC41", "#F7F7F7", "#DE77AE", "#8E0152")
"""Green below, white at and pink above the middle (ColorBrewer PiYG): told apart with every kind of colour vision."""


def drift_violins(
    table: pd.DataFrame,
    *,
    title: str,
    detector: str = COMBINED,
    note: str = "",
    write_layers: Sequence[int] | None = None,
) -> go.Figure:
    """How rare fused states are among real ones: a violin a write layer, a panel a fusion, a row of panels a message.

    The table has columns `fusion`, `message`, `write_layer`, `detector` and `percentile` (two-sided, from 0 to 1), a
    row an item. The dot is the median; the dashed line is the percentile that one real state in twenty exceeds. A set
    of real states fills the panel evenly, from 0 to 1. At most `MOST_VIOLINS` write layers are drawn, spread evenly,
    unless `write_layers` says which.

    Raises:
        ValueError: the table is empty, lacks a column, has no row of the detector or of a write layer, a percentile
            that is not between 0 and 1, or a layer that is no whole number from 0.

    >>> row = {"fusion": "sum", "message": "other text", "write_layer": 3, "detector": "combined"}
    >>> table = pd.DataFrame([row | {"percentile": 0.5}, row | {"percentile": 0.9}])
    >>> drift_violins(table, title="Two states").data[0].y
    (0.5, 0.9)
    """
    names = ["fusion", "message", "write_layer", "detector"]
    rows = [row for row in records(table, names, ["percentile"]) if row["detector"] == detector]
    if not rows:
        known = ", ".join(map(str, table["detector"].unique()))
        raise ValueError(f"the table has no row of the detector {detector!r}; it has {known}")
    if wrong := [row["percentile"] for row in rows if not 0 <= row["percentile"] <= 1]:
        raise ValueError(f"a percentile is {wrong[0]}; it must lie between 0 and 1")
    shown = _chosen(layers_in(rows, "write_layer"), write_layers, MOST_VIOLINS)
    fusions, messages = seen(rows, "fusion"), seen(rows, "message")
    looks = styles(fusions)
    width, height, gap = max(112, 840 // len(fusions) - 12), 132, 12
    across, down = len(fusions) * (width + gap) - gap, len(messages) * (height + gap) - gap
    entries = ["median", RARE_ENTRY]
    heads = 2 if any(LETTER[TEXT_SIZE] * len(name) > width for name in fusions) else 1
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=62, right=32, head=10 + LINE * heads)
    x_axis = names_axis([str(layer) for layer in shown], "write layer <i>j</i>") | {"range": [-0.6, len(shown) - 0.4]}
    y_axis = {"title": {"text": "percentile"}, "range": [-0.03, 1.03], "dtick": 0.5, "tick0": 0}
    for line, message in enumerate(messages):
        bottom = down - height - line * (height + gap)
        sheet.write_aside(message, bottom + height / 2)
        for place, fusion in enumerate(fusions):
            axes = sheet.panel(
                line * len(fusions) + place,
                (place * (width + gap), bottom, width, height),
                x_axis if line == len(messages) - 1 else bare(x_axis),
                bare(y_axis) if place else y_axis,
                "" if line else _broken(fusion, heads),
            )
            part = [row for row in rows if row["fusion"] == fusion and row["message"] == message]
            for at, layer in enumerate(shown):
                values = [float(row["percentile"]) for row in part if row["write_layer"] == layer]
                if values:
                    sheet.figure.add_trace(_violin(values, at, looks[fusion].colour, axes))
            found = split_by(part, "write_layer")
            medians = [
                _quantile([row["percentile"] for row in found[str(layer)]], 0.5) if str(layer) in found else None
                for layer in shown
            ]
            dot = {"color": "white", "size": 6, "line": {"color": INK, "width": 1.5}}
            marks = {"x": list(range(len(shown))), "y": medians, "mode": "markers", "marker": dot}
            first = not line and not place
            sheet.figure.add_trace(
                go.Scatter(marks | axes, name="median", legendgroup="median", showlegend=first, hoverinfo="y")
            )
            sheet.figure.add_trace(_rare_line([-0.6, len(shown) - 0.4], axes, named=first))
    return sheet.figure


def healing_curves(
    table: pd.DataFrame,
    *,
    title: str,
    effects: pd.DataFrame | None = None,
    message: str | None = None,
    note: str = "",
    write_layers: Sequence[int] | None = None,
) -> go.Figure:
    """What is left of a graft at each later layer: its deviation, how rare the state is there, and the harm beside it.

    The table has columns `fusion`, `message`, `write_layer`, `layer`, and `_median`, `_low` and `_high` (quartiles over
    items) of `deviation` and `percentile`. A column of panels a write layer, a line a fusion, a band between the
    quartiles. With `effects`, a table of `fusion`, `message`, `write_layer`, `item` and `kl`, a third row shows the
    median and quartiles of the KL at the end: a state that looks real again may still have changed what is said.

    Args:
        message: which message is shown; "other text" where the table has it, else its first.
        write_layers: which are shown; by default at most `MOST_CURVES`, spread evenly below the last layer.

    Raises:
        ValueError: a table is empty or lacks a column, or there is no row of a message or write layer.
    """
    bands = [f"{what}_{end}" for what in ("deviation", "percentile") for end in ("median", "low", "high")]
    rows = records(table, ["fusion", "message", "write_layer", "layer"], bands)
    messages = seen(rows, "message")
    message = message or ("other text" if "other text" in messages else messages[0])
    rows = [row for row in rows if row["message"] == message]
    if not rows:
        raise ValueError(f"the table has no row of the message {message!r}; it has {', '.join(messages)}")
    last = max(layers_in(rows, "layer"))
    below = [layer for layer in layers_in(rows, "write_layer") if layer < last] or [last]
    inner = [below[(2 * at + 1) * len(below) // (2 * MOST_CURVES)] for at in range(MOST_CURVES)]
    shown = _chosen(layers_in(rows, "write_layer"), write_layers or sorted(set(inner)), MOST_CURVES)
    fusions = seen(rows, "fusion")
    looks = styles(fusions)
    harm = _harm(effects, message)
    width, height, gap = 840 // len(shown) - 34, 168, 34
    strip = 22 * len(fusions) + 10 if effects is not None else 0
    lift = strip + 66 if strip else 0
    across, down = len(shown) * (width + gap) - gap, 2 * height + 14 + lift
    sheet = blank_sheet(
        f"{title}; message: {message}",
        note,
        [*fusions, RARE_ENTRY],
        across=across,
        down=down,
        left=66 if not strip else max(66, 20 + round(LETTER[TICK_SIZE] * max(map(len, fusions)))),
        right=16,
        head=28,
    )
    top = max([1.0, *(row["deviation_high"] for row in rows if not math.isnan(row["deviation_high"]))])
    deviation = {"title": {"text": "deviation |x′ − x| / |x|"}, "range": [0, 1.05 * min(top, 3.0)]}
    percentile = {"title": {"text": "percentile"}, "range": [-0.03, 1.03], "dtick": 0.5, "tick0": 0}
    for place, write in enumerate(shown):
        left = place * (width + gap)
        step = next(size for size in (1, 2, 5, 10, 20, 50) if last - write <= 6 * size or size == 50)
        x_axis = {"title": {"text": "layer"}, "range": [write - 0.5, last + 0.5], "tick0": 0, "dtick": step}
        part = [row for row in rows if row["write_layer"] == write]
        upper = sheet.panel(
            place,
            (left, lift + height + 14, width, height),
            bare(x_axis),
            bare(deviation) if place else deviation,
            f"written after layer {write}",
        )
        lower = sheet.panel(
            len(shown) + place, (left, lift, width, height), x_axis, bare(percentile) if place else percentile, ""
        )
        for fusion in fusions:
            here = sorted((row for row in part if row["fusion"] == fusion), key=lambda row: row["layer"])
            for what, axes in (("deviation", upper), ("percentile", lower)):
                named = not place and what == "deviation"
                sheet.figure.add_traces(_curve(here, what, looks[fusion], axes, fusion, named=named))
        sheet.figure.add_trace(_rare_line([write - 0.5, last + 0.5], lower, named=not place))
        if strip:
            names = names_axis(fusions, "")
            kl_axis = {"title": {"text": "KL of the next token, nats"}, "type": "log", "gridcolor": GRID}
            kl_axis |= {"showgrid": True, "range": _log_range(harm), "dtick": 1}
            ends = sheet.panel(
                2 * len(shown) + place, (left, 0, width, strip), kl_axis, bare(names) if place else names, ""
            )
            sheet.figure.add_traces(
                [
                    _harm_dot(harm[fusion, write], fusions.index(fusion), looks[fusion], ends)
                    for fusion in fusions
                    if (fusion, write) in harm
                ]
            )
    return sheet.figure


def drift_against_accuracy(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    accuracy: str = "accuracy",
    drift: str = "drift",
    depth: str = "write_layer",
    columns: int = 4,
) -> go.Figure:
    """Accuracy of cells against how far their fused states drift: a dot a cell, a panel a detector, coloured by depth.

    The table has columns `detector`, the accuracy, the drift and the depth, a row a cell and detector; where it has
    `rho`, `rho_low` and `rho_high` (and `partial`, `partial_low`, `partial_high`, the correlation given depth), the
    same in all rows of a detector, they stand above its panel.

    Raises:
        ValueError: the table is empty, lacks a column, or has a correlation that is not one a detector.

    >>> table = pd.DataFrame({"detector": ["knn"] * 2, "drift": [0.1, 0.9], "accuracy": [0.5, 0.2]})
    >>> table["write_layer"] = [3, 9]
    >>> drift_against_accuracy(table, title="Two cells").data[0].x
    (0.1, 0.9)
    """
    told = [name for name in ("rho", "partial") if name in table.columns]
    ends = [f"{name}{end}" for name in told for end in ("", "_low", "_high")]
    rows = records(table, ["detector"], [accuracy, drift, depth, *ends])
    panels = split_by(rows, "detector")
    across_n = min(columns, len(panels))
    n_lines = math.ceil(len(panels) / across_n)
    width, height, gap, head = 840 // across_n - 18, 168, 18, 8 + LINE * (1 + len(told))
    across = across_n * (width + gap) - gap + 84
    down = n_lines * (height + head + 44) - head - 44
    sheet = blank_sheet(title, note, [], across=across, down=down, left=62, right=8, head=head)
    depths = [float(row[depth]) for row in rows]
    bar = colour_axis((min(depths), max(depths)), depth.replace("_", " "), (across - 84 + 14) / across)
    sheet.figure.update_layout(coloraxis=bar)
    best = max(float(row[accuracy]) for row in rows)
    y_axis = {"title": {"text": accuracy.replace("_", " ")}, "range": [-0.03, 1.08 * max(best, 0.1)]}
    for place, (name, part) in enumerate(panels.items()):
        line, column = divmod(place, across_n)
        bottom = down - height - line * (height + head + 44)
        x_axis = {"title": {"text": drift.replace("_", " ")}, "nticks": 4}
        lowest = place + across_n >= len(panels)
        axes = sheet.panel(
            place,
            (column * (width + gap), bottom, width, height),
            x_axis if lowest else {name: what for name, what in x_axis.items() if name != "title"},
            bare(y_axis) if column else y_axis,
            "<br>".join([str(name).replace("_", " "), *(_correlation(part, what) for what in told)]),
        )
        marker = {"color": [row[depth] for row in part], "coloraxis": "coloraxis", "size": 5, "opacity": 0.8}
        spots = {"x": [row[drift] for row in part], "y": [row[accuracy] for row in part], "mode": "markers"}
        sheet.figure.add_trace(go.Scatter(spots | axes, marker=marker, name=str(name), showlegend=False))
    return sheet.figure


def detector_table(
    table: pd.DataFrame, *, title: str, value: str = "two_sided", note: str = "", panels: str = "layer"
) -> go.Figure:
    """How well each detector tells each known-off family from real states: AUROC in a table of colours, 0.5 in white.

    The table has columns `family`, `detector`, the value's (AUROC, from 0 to 1) and that of `panels`, each of whose
    values gets its panel, one below the other.

    Raises:
        ValueError: the table is empty, lacks a column, has an entry twice, or a value that is not between 0 and 1.

    >>> table = pd.DataFrame({"layer": [3], "family": ["sum"], "detector": ["knn"], "two_sided": [0.75]})
    >>> detector_table(table, title="One number").data[0].z
    ([0.75],)
    """
    rows = records(table, ["family", "detector", panels], [value])
    if wrong := [row[value] for row in rows if not 0 <= row[value] <= 1]:
        raise ValueError(f"column {value} has {wrong[0]}; an AUROC lies between 0 and 1")
    families, detectors = (seen(rows, column) for column in ("family", "detector"))
    cell_width, cell_height = 84, 24
    across, high = cell_width * len(detectors) + 84, cell_height * len(families)
    parts = split_by(rows, panels)
    gap = LINE + 12
    down = len(parts) * (high + gap) - gap
    left = 40 + round(LETTER[TICK_SIZE] * max(map(len, families)))
    sheet = blank_sheet(title, note, [], across=across, down=down, left=left, right=8, head=LINE + 10)
    bar = colour_axis((0.0, 1.0), "AUROC", (across - 84 + 14) / across)
    sheet.figure.update_layout(coloraxis=bar | {"colorscale": [[at / 4, colour] for at, colour in enumerate(FALLS)]})
    x_axis = {"tickvals": list(range(len(detectors))), "ticktext": [_broken(name, 3) for name in detectors]}
    x_axis |= {"range": [-0.5, len(detectors) - 0.5], "ticks": "", "tickangle": 0}
    for place, (name, part) in enumerate(parts.items()):
        cells: dict[tuple[str, str], float] = {}
        for row in part:
            key = row["family"], row["detector"]
            if key in cells:
                raise ValueError(f"{key[0]}, {key[1]} is in panel {name!r} more than once; give it one row")
            cells[key] = float(row[value])
        spot = (0, down - high - place * (high + gap), across - 84, high)
        lowest = place == len(parts) - 1
        head = f"{panels} {name}"
        axes = sheet.panel(place, spot, x_axis if lowest else bare(x_axis), names_axis(families, ""), head)
        z = [[cells.get((family, detector)) for detector in detectors] for family in families]
        text = [["" if cell is None else f"{cell:.2f}" for cell in line] for line in z]
        heat = {"x": list(range(len(detectors))), "y": list(range(len(families))), "z": z, "text": text}
        heat |= {"texttemplate": "%{text}", "textfont": {"size": TICK_SIZE}, "coloraxis": "coloraxis"}
        sheet.figure.add_trace(go.Heatmap(heat | axes, xgap=1, ygap=1, hoverinfo="z"))
    return sheet.figure


def _chosen(layers: Sequence[int], asked: Sequence[int] | None, most: int) -> list[int]:
    """The layers asked for, or at most so many of those there are, from the first to the last in even steps."""
    if asked is not None:
        if missing := sorted(set(asked) - set(layers)):
            raise ValueError(f"write layer {missing[0]} is not in the table; it has {list(layers)}")
        return list(asked)
    if len(layers) <= most:
        return list(layers)
    return [layers[round(at * (len(layers) - 1) / (most - 1))] for at in range(most)]


def _violin(values: Sequence[float], at: int, colour: str, axes: dict[str, str]) -> go.Violin:
    """A violin on [0, 1], and no further: a density over the ends would show states that cannot be."""
    look = {"line": {"color": colour, "width": 1}, "fillcolor": colour, "opacity": 0.55, "points": False}
    look |= {"spanmode": "manual", "span": [0, 1], "width": 0.9, "scalemode": "width", "hoverinfo": "skip"}
    return go.Violin(look | axes, x0=at, y=list(values), showlegend=False)


def _rare_line(ends: Sequence[float], axes: dict[str, str], *, named: bool) -> go.Scatter:
    line = {"x": list(ends), "y": [RARE, RARE], "mode": "lines", "line": {"color": MUTED, "dash": "dash", "width": 1.2}}
    look = {"hoverinfo": "skip", "name": RARE_ENTRY, "legendgroup": RARE_ENTRY, "showlegend": named}
    return go.Scatter(line | look | axes)


def _curve(
    rows: Sequence[Mapping[str, Any]], what: str, style: Any, axes: dict[str, str], name: str, *, named: bool
) -> list[go.Scatter]:
    """A line of medians in a band between the quartiles; layers without a number are left out."""
    rows = [row for row in rows if not math.isnan(row[f"{what}_median"])]
    if not rows:
        return []
    layers = [row["layer"] for row in rows]
    edge = [float(row[f"{what}_high"]) for row in rows] + [float(row[f"{what}_low"]) for row in reversed(rows)]
    red, green, blue = (int(style.colour[at : at + 2], 16) for at in (1, 3, 5))
    band = {"x": layers + layers[::-1], "y": edge, "fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.13)"}
    band |= {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
    every = max(1, len(layers) // 6)
    marker = {"symbol": style.symbol, "size": 8, "color": style.colour, "maxdisplayed": 2 + len(layers) // every}
    line = {"x": layers, "y": [float(row[f"{what}_median"]) for row in rows], "mode": "lines+markers"}
    line |= {"line": {"color": style.colour, "width": 2}, "marker": marker, "name": name, "legendgroup": name}
    return [go.Scatter(band | axes), go.Scatter(line | axes, showlegend=named)]


def _harm(effects: pd.DataFrame | None, message: str) -> dict[tuple[str, int], list[float]]:
    """Quartiles (low, median, high) of the KL by fusion and write layer."""
    if effects is None:
        return {}
    rows = records(effects, ["fusion", "message", "write_layer"], ["kl"])
    values: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["message"] == message:
            values.setdefault((row["fusion"], row["write_layer"]), []).append(float(row["kl"]))
    if not values:
        raise ValueError(f"the table of effects has no row of the message {message!r}")
    return {key: [_quantile(found, share) for share in (0.25, 0.5, 0.75)] for key, found in values.items()}


def _harm_dot(quartiles: Sequence[float], at: int, style: Any, axes: dict[str, str]) -> go.Scatter:
    low, middle, high = (max(value, 1e-6) for value in quartiles)
    bar = {"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low], "width": 0}
    marker = {"symbol": style.symbol, "size": 9, "color": style.colour}
    dot = {"x": [middle], "y": [at], "mode": "markers", "marker": marker, "showlegend": False}
    return go.Scatter(dot | axes, error_x=bar | {"color": style.colour, "thickness": 2})


def _log_range(harm: Mapping[tuple[str, int], Sequence[float]]) -> list[float]:
    """Decades that hold every quartile; a KL of 0 stands at a millionth."""
    values = [max(value, 1e-6) for quartiles in harm.values() for value in quartiles]
    return [float(math.floor(math.log10(min(values)) - 0.1)), float(math.ceil(math.log10(max(values)) + 0.1))]


def _correlation(rows: Sequence[Mapping[str, Any]], what: str) -> str:
    """A rank correlation with its interval, in the words of a panel's head."""
    found = {tuple(row[f"{what}{end}"] for end in ("", "_low", "_high")) for row in rows}
    if len(found) != 1:
        raise ValueError(f"the detector {rows[0]['detector']} has {len(found)} values of {what}; give it one")
    ((middle, low, high),) = found
    words = "ρ" if what == "rho" else "ρ given depth"
    return f'<span style="font-size:{TICK_SIZE}px">{words} {middle:.2f} [{low:.2f}, {high:.2f}]</span>'


def _quantile(values: Sequence[float], share: float) -> float:
    return float(pd.Series(list(values), dtype=float).quantile(share))


def _broken(name: str, most: int) -> str:
    """A name of several words on as many lines, at most."""
    words = str(name).replace("_", " ").split(" ")
    return "<br>".join(words) if len(words) <= most else "<br>".join([*words[: most - 1], " ".join(words[most - 1 :])])
