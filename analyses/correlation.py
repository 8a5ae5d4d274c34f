"""Accuracy against drift: a dot a cell of a sweep, coloured by depth."""

import math

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import full_records, split_by, spoken
from latentcomm.reporting.style import (
    DEPTH,
    FOOT,
    LINE,
    PAGE,
    bare,
    blank_sheet,
    colour_axis,
)

BAR = 84
"""px right of the panels for the colour bar."""
COLUMNS = 3
"""Panels in a line, at most."""


def drift_against_accuracy(table: pd.DataFrame, *, title: str, note: str = "", depth: str = "write_layer") -> go.Figure:
    """Accuracy of cells against how far their fused states drift: a dot a cell, a panel a detector, coloured by depth.

    Each panel has a drift axis of its own, as detectors have units of their own. Depth runs from dark to bright (Plasma
    without its brightest part), in even steps of lightness for every kind of colour vision.

    Args:
        table: a row a cell and detector, with the columns `detector`, `drift` and `accuracy`, and that of the depth.
        title: what the figure shows.
        note: what else a caption must state: the task, the items, the unit of the drift.
        depth: the column shown as colour.

    Raises:
        ValueError: the table is empty, or lacks a column or a number.

    >>> table = pd.DataFrame({"drift": [0.1, 0.9], "accuracy": [0.5, 0.2], "write_layer": [3, 9]}).assign(detector="k")
    >>> drift_against_accuracy(table, title="Two cells").data[0].x
    (0.1, 0.9)
    """
    rows = full_records(table, ["detector"], ["accuracy", "drift", depth])
    parts = split_by(rows, "detector")
    in_line, gap, height, left = min(COLUMNS, len(parts)), 22, 176, 66
    width = min(360, (PAGE - left - 8 - BAR + gap) // in_line - gap)
    n_lines = math.ceil(len(parts) / in_line)
    head, foot = 8 + LINE, 36
    across = in_line * (width + gap) - gap + BAR
    down = n_lines * (height + head + foot) - head - foot
    right = 8 + max(0, 480 - left - across)
    sheet = blank_sheet(title, note, [], across=across, down=down, left=left, right=right, head=head, foot=FOOT)
    depths = [float(row[depth]) for row in rows]
    ends = (min(depths), max(depths)) if min(depths) < max(depths) else (depths[0] - 0.5, depths[0] + 0.5)
    bar = colour_axis(ends, spoken(depth), (across - BAR + 14) / across)
    bar["colorbar"] |= {"lenmode": "pixels", "len": height, "y": 1, "yanchor": "top"}
    sheet.figure.update_layout(coloraxis=bar | {"colorscale": DEPTH})
    values = [float(row["accuracy"]) for row in rows]
    y_axis = {"title": {"text": "accuracy"}, "range": _room(min(0.0, *values), max(0.1, *values))}
    x_axis = {"title": {"text": "drift"}, "nticks": 6}
    for index, (name, part) in enumerate(parts.items()):
        line, column = divmod(index, in_line)
        lowest = index + in_line >= len(parts)
        x = [float(row["drift"]) for row in part]
        here = x_axis | {"range": _room(min(x), max(x))}
        axes = sheet.panel(
            index,
            (column * (width + gap), down - height - line * (height + head + foot), width, height),
            here if lowest else {name: what for name, what in here.items() if name != "title"},
            bare(y_axis) if column else y_axis,
            spoken(name),
        )
        marker = {"color": [float(row[depth]) for row in part], "coloraxis": "coloraxis", "size": 5, "opacity": 0.8}
        spots = {"x": x, "y": [float(row["accuracy"]) for row in part], "mode": "markers", "marker": marker}
        sheet.figure.add_trace(go.Scatter(spots | axes, name=spoken(name), showlegend=False))
    return sheet.figure


def _room(low: float, high: float) -> list[float]:
    """The ends of an axis, a little beyond the outermost dots."""
    pad = 0.04 * (high - low) or 0.5
    return [low - pad, high + pad]
