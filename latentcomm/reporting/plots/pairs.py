"""Maps over pairs of layers of two models, with the null of each."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import layers_in, records, split_by, spoken
from latentcomm.reporting.style import (
    BLANK,
    FOOT,
    INK,
    LETTER,
    LINE,
    MINUS,
    MUTED,
    TEXT_SIZE,
    TICK_SIZE,
    TIGHT_LEGEND,
    Sheet,
    bare,
    blank_sheet,
    colour_axis,
    layer_axis,
    layer_positions,
    rings,
)

LAYERS = ("sender_layer", "receiver_layer")
CELL = 40
"""px of a cell at most, so that a few layers do not fill a page."""
SHORTEST = 120
"""px of a map's side at least, so that its colour bar can be read; below it cells are not square."""
BAR = 96
"""px right of the maps for the colour bar."""
NARROWEST = 480
"""px across a sheet at least, so that titles and notes are not broken into very short lines."""


def pair_map(
    table: pd.DataFrame,
    *,
    value: str | Mapping[str, str],
    title: str,
    null: str | Mapping[str, str] | None = None,
    note: str = "",
    panels: str | None = None,
    sender: str = "",
    receiver: str = "",
    unit: str = "",
    bounds: Sequence[float | int] | None = None,
    chosen: Sequence[Sequence[int]] = (),
) -> go.Figure:
    """A map over all pairs of layers, receiver to the right and sender upwards, its null marked in it.

    Cells that do not exceed their null carry a white dot; each panel's head states its null's level, and a black
    triangle at the colour bar the highest one. Pairs that are not in the table, or have no value, stay grey. All panels
    share one scale (Cividis, even in lightness for every kind of colour vision).

    Args:
        table: a row a pair (and panel), with columns `sender_layer`, `receiver_layer` and the value's.
        value: the column shown, or several and the title of each one's panel: `{"forward": "sender to receiver"}`.
        title: what the figure shows.
        null: a column with what each cell must exceed, for instance `null_max`; for several values, one for each.
        note: what else a caption must state: the view, the rows, what the null is.
        panels: a column each of whose values gets its panel.
        sender, receiver: the models' names, for the axes.
        unit: what the colours mean; the column's name by default.
        bounds: the ends of the colour scale; by default from 0 (or the lowest value) to the next tenth above the
            highest. Values beyond them are drawn at the ends, and the figure states it.
        chosen: cells (sender layer, receiver layer) that get a ring.

    Raises:
        ValueError: the table is empty, lacks a column, has a pair twice, a layer that is no whole number from 0, no
            value at all, or a value without its null; nulls that do not match the values; bounds that do not rise; a
            chosen cell that is not in the table.

    >>> table = pd.DataFrame({"sender_layer": [0, 1], "receiver_layer": [0, 0], "cka": [0.25, 0.5], "null": [0.3, 0.3]})
    >>> figure = pair_map(table, value="cka", null="null", title="Two pairs")
    >>> figure.data[0].z, figure.data[1].y
    (([0.25], [0.5]), (0,))
    """
    values = {value: ""} if isinstance(value, str) else dict(value)
    nulls = dict.fromkeys(values, null) if isinstance(null, str) else dict(null or {})
    if nulls and set(nulls) != set(values):
        raise ValueError(f"nulls are given for {sorted(nulls)} and the values are {sorted(values)}; pair them")
    rows = records(table, [*LAYERS, *([panels] if panels else [])], [*values, *nulls.values()])
    up, right = (layers_in(rows, column) for column in LAYERS)
    maps = [
        _map(part, column, ", ".join(filter(None, (name, values[column]))), nulls.get(column))
        for name, part in split_by(rows, panels).items()
        for column in values
    ]
    if not any(each.cells for each in maps):
        raise ValueError(f"no pair of layers has a value in {', '.join(values)}; a map needs one")
    if wrong := [tuple(cell) for cell in chosen if tuple(cell) not in maps[0].cells]:
        raise ValueError(f"the chosen cell {wrong[0]} is not in the table; give a (sender layer, receiver layer) of it")
    low, high = (float(end) for end in bounds or _bounds(maps))
    if not low < high:
        raise ValueError(f"bounds are {low} and {high}; the first must be the lower")
    note = " ".join(filter(None, (note, _beyond(maps, low, high))))
    return _drawn(
        maps, up, right, chosen, title=title, note=note, names=(sender, receiver), scale=(low, high),
        unit=unit or " or ".join(map(spoken, values)),
    )  # fmt: skip


class _Map(NamedTuple):
    name: str
    cells: dict[tuple[int, int], float]
    null: dict[tuple[int, int], float]

    @property
    def at_chance(self) -> list[tuple[int, int]]:
        """The cells that do not exceed their null."""
        return sorted(cell for cell, level in self.null.items() if self.cells[cell] <= level)


def _map(rows: Sequence[Mapping[str, Any]], column: str, name: str, null: str | None) -> _Map:
    cells: dict[tuple[int, int], float] = {}
    levels: dict[tuple[int, int], float] = {}
    for row in rows:
        cell = row[LAYERS[0]], row[LAYERS[1]]
        if cell in cells:
            raise ValueError(f"the pair of layers {cell} is in the table more than once; give it one row, or `panels`")
        cells[cell] = float(row[column])
        if null:
            levels[cell] = float(row[null])
    cells = {cell: value for cell, value in cells.items() if not math.isnan(value)}
    if gaps := [cell for cell in cells if math.isnan(levels.get(cell, 0.0))]:
        raise ValueError(
            f"column {null} has no number at {len(gaps)} pairs, first {gaps[0]}; leave `null` out, or fill it"
        )
    return _Map(name, cells, {cell: level for cell, level in levels.items() if cell in cells})


def _drawn(
    maps: Sequence[_Map],
    up: Sequence[int],
    right: Sequence[int],
    chosen: Sequence[Sequence[int]],
    *,
    title: str,
    note: str,
    names: Sequence[str],
    scale: tuple[float, float],
    unit: str,
) -> go.Figure:
    in_line = min(2, len(maps))
    n_lines = math.ceil(len(maps) / in_line)
    cell = min(CELL, ((380, 620)[in_line - 1] // in_line) // max(len(up), len(right)))
    wide, high = max(SHORTEST, cell * len(right)), max(SHORTEST, cell * len(up))
    up_title, right_title = (
        _axis_title(role, name, length)
        for role, name, length in zip(("sender layer", "receiver layer"), names, (high, wide), strict=True)
    )
    gap = 22
    heads = [_head(each, wide + gap - 8) for each in maps]
    head = 10 + LINE * max(text.count("<br>") + bool(text) for text in heads)
    foot = FOOT + LINE * right_title.count("<br>")
    across = in_line * (wide + gap) - gap + BAR
    step = high + head + (foot if len(maps) <= in_line else 34)
    down = (n_lines - 1) * step + high
    levels = [level for each in maps for level in each.null.values()]
    n_below, n_cells = sum(len(each.at_chance) for each in maps), sum(len(each.cells) for each in maps)
    below = f"not above its null ({n_below:,} of {n_cells:,} cells)" if levels else ""
    highest = f"highest null, {_level(max(levels))}" if levels else ""
    ring = ("chosen cell", "chosen cells")[len(chosen) > 1] if chosen else ""
    left = 39 + LINE * (1 + up_title.count("<br>"))
    sheet = blank_sheet(
        title, note, [entry for entry in (below, highest, ring) if entry], across=across, down=down, left=left,
        right=20 + max(0, NARROWEST - across - left - 20), head=head, foot=foot,
    )  # fmt: skip
    bar_at = (across - BAR + 20) / across
    bar = colour_axis(scale, unit, bar_at)
    bar["colorbar"] |= {"lenmode": "pixels", "len": high, "y": 1, "yanchor": "top"}
    sheet.figure.update_layout(coloraxis=bar, legend=TIGHT_LEGEND)
    up_axis, right_axis = layer_axis(up, up_title), layer_axis(right, right_title)
    x_positions, y_positions = layer_positions(right), layer_positions(up)
    spots = {(k, j): (x_positions[b], y_positions[a]) for a, k in enumerate(up) for b, j in enumerate(right)}
    for index, each in enumerate(maps):
        line, column = divmod(index, in_line)
        lowest = index + in_line >= len(maps)
        spot = (column * (wide + gap), down - high - line * step, wide, high)
        x_axis, y_axis = right_axis if lowest else bare(right_axis), bare(up_axis) if column else up_axis
        axes = sheet.panel(index, spot, x_axis, y_axis, heads[index])
        sheet.shade(axes, up_axis["range"][0], up_axis["range"][1], BLANK)
        z = [[each.cells.get((k, j)) for j in right] for k in up]
        hover = f"{each.name}<br>sender layer %{{y}}, receiver layer %{{x}}: %{{z:.3f}}<extra></extra>"
        heat = {"x": x_positions, "y": y_positions, "z": z, "coloraxis": "coloraxis", "hovertemplate": hover}
        sheet.figure.add_trace(go.Heatmap(heat | axes))
        if levels:
            marks = [spots[pair] for pair in each.at_chance]
            sheet.figure.add_trace(_dots(marks, max(3, min(8, cell // 3)), axes))
        if chosen:
            marks = [spots[k, j] for k, j in chosen]
            sheet.figure.add_traces(rings(marks, max(9, min(16, cell + 6)), axes, "" if index else ring))
    if levels:
        white = {"symbol": "circle", "size": 8, "color": "white", "line": {"color": INK, "width": 1}}
        sheet.figure.add_trace(_entry(below, white))
        sheet.figure.add_trace(_entry(highest, {"symbol": "triangle-right", "size": 10, "color": INK}))
        _point(sheet, bar_at, 1 - (high / down) * (1 - _share(max(levels), scale)))
    return sheet.figure


def _axis_title(role: str, name: str, length: int) -> str:
    """What an axis counts, and below it whose layers these are, in lines as long as the axis."""
    if not name:
        return role
    return "<br>".join([role, *textwrap.wrap(name, max(12, int(length / LETTER[TEXT_SIZE])))])


def _head(each: _Map, width: int) -> str:
    """A panel's name, broken where it is longer than the panel, and below it the level of its null."""
    lines = textwrap.wrap(each.name, int(width / LETTER[TEXT_SIZE]))
    levels = sorted(each.null.values())
    if not levels:
        return "<br>".join(lines)
    low, high = _level(levels[0]), _level(levels[-1])
    level = f"null {low}" if low == high else f"null {low} to {high}"
    small = f'<span style="font-size:{TICK_SIZE}px;color:{MUTED}">{level}</span>'
    return "<br>".join([*lines, small])


def _level(level: float) -> str:
    text = f"{level:.3f}"
    return text.replace("-", MINUS) if float(text) else "0.000"


def _dots(spots: Sequence[tuple[int | str, int | str]], size: int, axes: dict[str, str]) -> go.Scatter:
    """White dots with a dark rim: seen on every colour of the scale."""
    marker = {"symbol": "circle", "size": size, "color": "white", "line": {"color": INK, "width": 1}}
    dots = {"x": [x for x, _ in spots] or [None], "y": [y for _, y in spots] or [None], "marker": marker}
    return go.Scatter(dots | axes, mode="markers", hoverinfo="skip", showlegend=False)


def _entry(name: str, marker: dict[str, Any]) -> go.Scatter:
    """The legend entry of a mark of the map, in a size of its own."""
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, hoverinfo="skip", name=name, showlegend=True)


def _point(sheet: Sheet, x: float, y: float) -> None:
    """A triangle left of the colour bar that points at a height of it."""
    spot = {"xref": "paper", "yref": "paper", "xanchor": x, "yanchor": y, "xsizemode": "pixel", "ysizemode": "pixel"}
    triangle = {"type": "path", "path": "M -2 0 L -11 5 L -11 -5 Z", "fillcolor": INK, "line": {"width": 0}}
    sheet.figure.add_shape(spot | triangle)


def _share(level: float, scale: tuple[float, float]) -> float:
    return min(1.0, max(0.0, (level - scale[0]) / (scale[1] - scale[0])))


def _bounds(maps: Sequence[_Map]) -> tuple[float, float]:
    values = [value for each in maps for value in each.cells.values()]
    low = min(0.0, *values)
    return low, max(math.ceil(round(10 * max(values), 2)) / 10, low + 0.1)  # 1.0002 is a 1 that was rounded


def _beyond(maps: Sequence[_Map], low: float, high: float) -> str:
    """A sentence where the colour scale ends before the values do, by more than the digits of the sentence show."""
    values = [value for each in maps for value in each.cells.values()]
    lowest, highest, sentences = min(values), max(values), []
    if lowest < low and _level(lowest) != _level(low):
        sentences.append(f"Values below {_level(low)} have its colour (lowest {_level(lowest)}).")
    if highest > high and _level(highest) != _level(high):
        sentences.append(f"Values above {_level(high)} have its colour (highest {_level(highest)}).")
    return " ".join(sentences)
