"""Maps over pairs of layers of two models, beside what chance gives."""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from latentcomm.plots.tables import layers_in, records, split_by
from latentcomm.sheets import BLANK, bare, blank_sheet, colour_axis, layer_axis, places

CHANCE_DOT = "#FFFFFF"


def pair_map(
    table: pd.DataFrame,
    *,
    value: str,
    title: str,
    null: str | None = None,
    note: str = "",
    panels: str | None = None,
    sender: str = "sender",
    receiver: str = "receiver",
    unit: str = "",
    bounds: Sequence[float | int] | None = None,
) -> go.Figure:
    """A map over all pairs of layers, receiver to the right and sender upwards, its null marked in it.

    Cells that do not exceed their null carry a white dot on the map, and the legend says what the null is. Pairs that
    are not in the table, or have no value, stay grey. All panels share one colour scale.

    Args:
        table: a row a pair (and panel), with columns `sender_layer`, `receiver_layer` and the value's.
        value: the column shown, for instance `debiased_cka`.
        null: a column with what each cell must exceed, for instance `null_max`.
        panels: a column each of whose values gets its panel.
        sender, receiver: what the axes call the two.
        unit: what the colours mean; the column's name by default.
        bounds: the ends of the colour scale; by default from 0 (or the lowest value) to the next tenth above the
            highest.

    Raises:
        ValueError: the table is empty, lacks a column, has a pair twice, a layer that is no whole number from 0, or no
            value at all.

    >>> table = pd.DataFrame({"sender_layer": [0, 1], "receiver_layer": [0, 0], "cka": [0.25, 0.5], "null": [0.3, 0.3]})
    >>> figure = pair_map(table, value="cka", null="null", title="Two pairs")
    >>> figure.data[0].z, figure.data[1].y
    (([0.25], [0.5]), (0,))
    """
    columns = ("sender_layer", "receiver_layer")
    rows = records(table, [*columns, *([panels] if panels else [])], [value, *([null] if null else [])])
    up, right = layers_in(rows, columns[0]), layers_in(rows, columns[1])
    grids = {}
    for name, part in split_by(rows, panels).items():
        cells = {(row[columns[0]], row[columns[1]]): row for row in part}
        if len(cells) < len(part):
            raise ValueError(f"panel {name!r} has a pair of layers more than once; give it one row, or name `panels`")
        grids[name] = cells
    shown = [float(row[value]) for row in rows if not math.isnan(row[value])]
    if not shown:
        raise ValueError(f"column {value} has no value at all; a map needs one")
    low = min(0.0, *shown)
    scale = bounds or (low, max(math.ceil(round(10 * max(shown), 6)) / 10, low + 0.1))

    cell = max(4, min(24, (360 if len(grids) == 1 else 300) // max(len(up), len(right))))
    wide, high, gap = cell * len(right), cell * len(up), 22
    across = len(grids) * (wide + gap) - gap + 92
    entry = "" if null is None else _null_words(rows, null)
    sheet = blank_sheet(
        title, note, [entry] * bool(entry), across=max(across, 420), down=high, left=58, right=20, head=28
    )
    end = (across - 92 + 14) / sheet.across
    sheet.figure.update_layout(coloraxis=colour_axis(scale, unit or value.replace("_", " "), end))
    up_axis = layer_axis(up, f"layer of {sender}")
    right_axis = layer_axis(right, f"layer of {receiver}")
    x_places, y_places = places(right), places(up)
    for place, (name, cells) in enumerate(grids.items()):
        spot = (place * (wide + gap), 0, wide, high)
        axes = sheet.panel(place, spot, right_axis, bare(up_axis) if place else up_axis, name)
        sheet.shade(axes, up_axis["range"][0], up_axis["range"][1], BLANK)
        z = [[_number(cells.get((layer, other)), value) for other in right] for layer in up]
        said = f"{name}<br>" if name else ""
        hover = said + f"{sender} %{{y}}, {receiver} %{{x}}: %{{z:.3f}}<extra></extra>"
        heat = {"x": x_places, "y": y_places, "z": z, "coloraxis": "coloraxis", "hovertemplate": hover}
        sheet.figure.add_trace(go.Heatmap(heat | axes))
        if null is not None:
            low_cells = [
                (x_places[right.index(other)], y_places[up.index(layer)])
                for (layer, other), row in sorted(cells.items())
                if row[value] <= row[null]
            ]
            dot = {"symbol": "circle", "size": max(3, cell // 3), "color": CHANCE_DOT}
            dot |= {"line": {"color": "#1A1A1A", "width": 1}}
            spots = {"x": [x for x, _ in low_cells] or [None], "y": [y for _, y in low_cells] or [None]}
            marks = spots | {"mode": "markers", "marker": dot, "hoverinfo": "skip", "name": entry}
            sheet.figure.add_trace(go.Scatter(marks | axes, legendgroup=entry, showlegend=not place))
    return sheet.figure


def _number(row: dict | None, column: str) -> float | None:
    return None if row is None or math.isnan(row[column]) else float(row[column])


def _null_words(rows: Sequence[dict], null: str) -> str:
    """The legend's words for a null of one level, or of many."""
    levels = sorted({float(row[null]) for row in rows if not math.isnan(row[null])})
    if not levels:
        raise ValueError(f"column {null} has no value at all; leave `null` out")
    span = f"{levels[0]:.3f}" if levels[-1] - levels[0] < 5e-4 else f"{levels[0]:.3f} to {levels[-1]:.3f}"
    return f"not above the null ({span})"
