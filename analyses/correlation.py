"""Accuracy against drift: a dot a cell of a sweep, coloured by depth, with their rank correlation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import full_records, split_by, spoken
from latentcomm.reporting.style import (
    DEPTH,
    FOOT,
    LETTER,
    LINE,
    MINUS,
    MUTED,
    PAGE,
    TICK_SIZE,
    bare,
    blank_sheet,
    colour_axis,
)

BAR = 84
"""px right of the panels for the colour bar."""
ENDS = ("", "_low", "_high")


def drift_against_accuracy(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    accuracy: str = "accuracy",
    drift: str = "drift",
    depth: str = "write_layer",
    panels: str = "detector",
    correlations: Mapping[str, str] | None = None,
    chance: float | int | None = None,
    unit: str = "",
    columns: int = 3,
) -> go.Figure:
    """Accuracy of cells against how far their fused states drift: a dot a cell, a panel a detector, coloured by depth.

    The correlation is not computed here: where the table has `rho`, `rho_low` and `rho_high` (and `partial`, the
    correlation given depth, with its ends), the same in all rows of a panel, it is printed above the panel. Each panel
    has a drift axis of its own, as detectors have units of their own. Depth runs from dark to bright (Plasma without
    its brightest part), in even steps of lightness for every kind of colour vision.

    Args:
        table: a row a cell and detector, with columns for accuracy, drift, depth and panel.
        title: what the figure shows.
        note: what else a caption must state: the task, the items, what was resampled for the interval.
        accuracy, drift, depth: the columns shown to the right, upwards and as colour.
        panels: a column each of whose values gets its panel.
        correlations: the label above a panel and the column it comes from; by default `{"ρ": "rho"}` and
            `{"ρ given depth": "partial"}` where the table has them.
        chance: the accuracy of guessing, drawn as a dotted line.
        unit: the drift axis's title; the column's name by default.
        columns: panels in a line, at most.

    Raises:
        ValueError: the table is empty, lacks a column or a number, or has a correlation that is not one a panel or
            is outside its interval.

    >>> table = pd.DataFrame({"drift": [0.1, 0.9], "accuracy": [0.5, 0.2], "write_layer": [3, 9]}).assign(detector="k")
    >>> drift_against_accuracy(table, title="Two cells").data[0].x
    (0.1, 0.9)
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}; a line of panels needs at least 1")
    present = {label: name for label, name in USUAL.items() if name in table.columns}
    shown = present if correlations is None else dict(correlations)
    numbers = [accuracy, drift, depth, *(f"{name}{end}" for name in shown.values() for end in ENDS)]
    rows = full_records(table, [panels], numbers)
    parts = split_by(rows, panels)
    heads = [
        "<br>".join([spoken(name), *(_correlation(name, part, label, column) for label, column in shown.items())])
        for name, part in parts.items()
    ]
    in_line, gap, height, left = min(columns, len(parts)), 22, 176, 66
    needs = round(LETTER[TICK_SIZE] * max([0, *(len(label) + 22 for label in shown)]))
    width = min(360, max(needs, (PAGE - left - 8 - BAR + gap) // in_line - gap))
    n_lines = math.ceil(len(parts) / in_line)
    head, foot = 8 + LINE * (1 + len(shown)), 36
    across = in_line * (width + gap) - gap + BAR
    down = n_lines * (height + head + foot) - head - foot
    entries = ["chance"] if chance is not None else []
    right = 8 + max(0, 480 - left - across)
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=right, head=head, foot=FOOT)
    depths = [float(row[depth]) for row in rows]
    ends = (min(depths), max(depths)) if min(depths) < max(depths) else (depths[0] - 0.5, depths[0] + 0.5)
    bar = colour_axis(ends, spoken(depth), (across - BAR + 14) / across)
    bar["colorbar"] |= {"lenmode": "pixels", "len": height, "y": 1, "yanchor": "top"}
    sheet.figure.update_layout(coloraxis=bar | {"colorscale": DEPTH})
    values = [float(row[accuracy]) for row in rows]
    y_axis = {"title": {"text": spoken(accuracy)}, "range": _room(min(0.0, *values), max(0.1, *values))}
    x_axis = {"title": {"text": unit or spoken(drift)}, "nticks": 6}
    for index, part in enumerate(parts.values()):
        line, column = divmod(index, in_line)
        lowest = index + in_line >= len(parts)
        x = [float(row[drift]) for row in part]
        here = x_axis | {"range": _room(min(x), max(x))}
        axes = sheet.panel(
            index,
            (column * (width + gap), down - height - line * (height + head + foot), width, height),
            here if lowest else {name: what for name, what in here.items() if name != "title"},
            bare(y_axis) if column else y_axis,
            heads[index],
        )
        if chance is not None:
            dotted = {"color": MUTED, "dash": "dot", "width": 1.5}
            ruled = {"x": here["range"], "y": [chance] * 2, "mode": "lines", "line": dotted, "hoverinfo": "skip"}
            sheet.figure.add_trace(go.Scatter(ruled | axes, name="chance", showlegend=not index))
        marker = {"color": [float(row[depth]) for row in part], "coloraxis": "coloraxis", "size": 5, "opacity": 0.8}
        spots = {"x": x, "y": [float(row[accuracy]) for row in part], "mode": "markers", "marker": marker}
        sheet.figure.add_trace(go.Scatter(spots | axes, name=spoken(str(part[0][panels])), showlegend=False))
    return sheet.figure


def _correlation(name: str, rows: Sequence[Mapping[str, Any]], label: str, column: str) -> str:
    """A rank correlation with its interval, as text for a panel's head."""
    found = {tuple(float(row[f"{column}{end}"]) for end in ENDS) for row in rows}
    if len(found) != 1:
        raise ValueError(f"{name} has {len(found)} values of {column}; give it one, in all its rows")
    ((middle, low, high),) = found
    if not -1 <= low <= middle <= high <= 1:
        raise ValueError(f"{name} has {column} {middle} from {low} to {high}; they must rise, between -1 and 1")
    middle_text, low_text, high_text = (f"{number:.2f}".replace("-", MINUS) for number in (middle, low, high))
    return f'<span style="font-size:{TICK_SIZE}px">{label} {middle_text} [{low_text}, {high_text}]</span>'


def _room(low: float, high: float) -> list[float]:
    """The ends of an axis, a little beyond the outermost dots."""
    pad = 0.04 * (high - low) or 0.5
    return [low - pad, high + pad]


USUAL = {"ρ": "rho", "ρ given depth": "partial"}
