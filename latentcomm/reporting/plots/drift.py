"""How rare fused states are among real ones: violins of percentiles by write layer, fusion and message."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import full_records, layers_in, require_once, rows_of, seen, some_layers, spoken
from latentcomm.reporting.style import (
    FOOT,
    INK,
    LETTER,
    LINE,
    PAGE,
    TEXT_SIZE,
    TIGHT_LEGEND,
    bare,
    blank_sheet,
    names_axis,
    styles,
)

COMBINED = "combined"
RARE = 0.95
"""The percentile that one real state in twenty exceeds."""
RARE_ENTRY = "0.95: one real state in twenty lies above"
VIOLIN = 24
"""px that a violin with its label needs; a panel shows as many write layers as fit."""
AFTER = 1001
"""The rank in a legend of what is no method: after the methods."""
BANDWIDTH = 0.05
"""Of every violin's density, so that shapes can be compared; from plotly it would depend on the sample."""


def drift_violins(
    table: pd.DataFrame,
    *,
    title: str,
    detector: str = COMBINED,
    note: str = "",
    write_layers: Sequence[int] | None = None,
) -> go.Figure:
    """How rare fused states are among real ones: a violin a write layer, a panel a fusion, a row of panels a message.

    The table has columns `fusion`, `message`, `write_layer`, `item`, `detector` and `percentile` (two-sided, from 0 to
    1). The white dot is the median; the line at 0.95 is what one real state in twenty exceeds: real states would fill
    the panel evenly from 0 to 1. As many write layers are drawn as fit, spread evenly, unless `write_layers` names
    them. Fusions have their colours of every figure (after Okabe & Ito 2008 and Tol 2021).

    Raises:
        ValueError: the table is empty, lacks a column or a number, has an item twice in a violin, has no row of the
            detector or of a write layer, a percentile that is not between 0 and 1, or a layer that is no whole number
            from 0.

    >>> row = {"fusion": "sum", "message": "other text", "write_layer": 3, "detector": "combined"}
    >>> table = pd.DataFrame([row | {"item": 0, "percentile": 0.5}, row | {"item": 1, "percentile": 0.9}])
    >>> drift_violins(table, title="Two states").data[0].y
    (0.5, 0.9)
    """
    names = ["fusion", "message", "write_layer", "item"]
    rows = rows_of(full_records(table, [*names, "detector"], ["percentile"]), "detector", detector)
    layers = layers_in(rows, "write_layer")
    require_once(rows, names)
    if wrong := [row["percentile"] for row in rows if not 0 <= row["percentile"] <= 1]:
        raise ValueError(f"a percentile is {wrong[0]}; it must be between 0 and 1")
    fusions, messages = seen(rows, "fusion"), seen(rows, "message")
    style_of = styles(fusions)
    left, right, gap, height = 70, 34, 12, 132
    width = max(92, (PAGE - left - right + gap) // len(fusions) - gap)
    shown = some_layers(layers, write_layers, width // VIOLIN)
    width = min(width, max(200, 52 * len(shown)))
    across, down = len(fusions) * (width + gap) - gap, len(messages) * (height + gap) - gap
    heads = [_broken(spoken(fusion), width) for fusion in fusions]
    head = 10 + LINE * max(text.count("<br>") + 1 for text in heads)
    right += max(0, 480 - left - right - across)
    sheet = blank_sheet(
        title, note, ["median", RARE_ENTRY], across=across, down=down, left=left, right=right, head=head, foot=FOOT
    )
    sheet.figure.update_layout(legend=TIGHT_LEGEND)
    ends = [-0.6, len(shown) - 0.4]
    x_axis = names_axis([str(layer) for layer in shown], "write layer <i>j</i>") | {"range": ends, "tickangle": 0}
    y_axis = {"title": {"text": "percentile"}, "range": [-0.03, 1.03], "tickvals": [0, 0.5, RARE]}
    for line, message in enumerate(messages):
        bottom = down - height - line * (height + gap)
        sheet.write_aside(message, bottom + height / 2)
        for index, fusion in enumerate(fusions):
            axes = sheet.panel(
                line * len(fusions) + index,
                (index * (width + gap), bottom, width, height),
                x_axis if line == len(messages) - 1 else bare(x_axis),
                bare(y_axis) if index else y_axis,
                "" if line else heads[index],
            )
            part = [row for row in rows if row["fusion"] == fusion and row["message"] == message]
            by_layer = [_percentiles(part, layer) for layer in shown]
            for at, values in enumerate(by_layer):
                if values:
                    sheet.figure.add_trace(_violin(values, at, style_of[fusion].colour, axes))
            named = not line and not index
            sheet.figure.add_trace(rare_line(ends, axes, RARE_ENTRY, named=named))
            sheet.figure.add_trace(_medians(by_layer, axes, named=named))
    return sheet.figure


def rare_line(ends: Sequence[float], axes: dict[str, str], name: str, *, named: bool) -> go.Scatter:
    """The line at the percentile that one real state in twenty exceeds."""
    line = {
        "x": list(ends),
        "y": [RARE, RARE],
        "mode": "lines",
        "line": {"color": INK, "dash": "2px,3px", "width": 1.5},
    }
    drawn = {"hoverinfo": "skip", "name": name, "legendgroup": name, "showlegend": named}
    return go.Scatter(line | drawn | axes, legendrank=AFTER)


def _percentiles(rows: Sequence[Mapping[str, Any]], layer: int) -> list[float]:
    return [float(row["percentile"]) for row in rows if row["write_layer"] == layer]


def _violin(values: Sequence[float], at: int, colour: str, axes: dict[str, str]) -> go.Violin:
    """A violin on [0, 1], and no further: a density over the ends would show states that cannot be."""
    drawn = {"line": {"color": colour, "width": 1}, "fillcolor": colour, "opacity": 0.55, "points": False}
    span = [max(0.0, min(values) - 3 * BANDWIDTH), min(1.0, max(values) + 3 * BANDWIDTH)]
    drawn |= {"spanmode": "manual", "span": span, "width": 0.9, "scalemode": "width", "bandwidth": BANDWIDTH}
    return go.Violin(drawn | axes, x0=at, y=list(values), hoverinfo="skip", showlegend=False)


def _medians(by_layer: Sequence[Sequence[float]], axes: dict[str, str], *, named: bool) -> go.Scatter:
    medians = [(at, float(pd.Series(values).median())) for at, values in enumerate(by_layer) if values]
    dot = {"color": "white", "size": 7, "line": {"color": INK, "width": 1.5}}
    marks = {"x": [at for at, _ in medians] or [None], "y": [median for _, median in medians] or [None], "marker": dot}
    marks |= {"mode": "markers", "hoverinfo": "y", "name": "median", "legendgroup": "median", "showlegend": named}
    return go.Scatter(marks | axes, cliponaxis=False)


def _broken(name: str, width: int) -> str:
    """A name on as many lines as its words need in a panel's width."""
    lines: list[str] = []
    for word in name.split(" "):
        if lines and LETTER[TEXT_SIZE] * len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "<br>".join(lines)
