"""Figures of sweeps and comparisons: accuracy over pairs of layers, over conditions, over factors."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import layers_in, records, seen, split_by, spoken
from latentcomm.reporting.style import (
    BLANK,
    GRID,
    LETTER,
    LINE,
    MUTED,
    SHARE_AXIS,
    TICK_SIZE,
    bare,
    blank_sheet,
    chance_line,
    colour_axis,
    dots,
    layer_axis,
    layer_positions,
    names_axis,
    rings,
    styles,
)

SHARE = "accuracy (share of items)"
MESSAGE = "message"
"""The condition whose row carries the name of its group alone: the true message was sent."""


def layer_heatmap(
    table: pd.DataFrame,
    *,
    value: str | Mapping[str, str],
    title: str,
    note: str = "",
    panels: str | None = None,
    chosen: Sequence[int] | None = None,
    lens: str | Mapping[str, str] | None = None,
    unit: str = SHARE,
    bounds: Sequence[float | int] | None = None,
) -> go.Figure:
    """A heat-map over pairs of layers: receiver write layer j to the right, sender read layer k upwards, from 0.

    The table has a row a cell, with columns `read_layer`, `write_layer` and a column for each value. Cells that are not
    in it, or have no value, stay grey. All panels share one colour scale.

    Args:
        table: a row a cell; a row a cell and panel with `panels`.
        value: the column shown, or several and the title of each one's panel: `{"free_accuracy": "free"}`.
        title: what the figure shows.
        note: what else a caption must state: the models, the task, the number of items.
        panels: a column each of whose values gets its panel, such as `metric`.
        chosen: the cell (read layer, write layer) that gets a ring.
        lens: a column with the share of items whose sender state at the read layer already names the answer (the logit
            lens of the message), or such a column for each value: `{"free_accuracy": "lens_free"}`. It is drawn by read
            layer next to the grids; with `chosen`, next to their column at that write layer.
        unit: what the colours mean, for the colour bar.
        bounds: the ends of the colour scale; by default from 0 (or the lowest value, if that is below) to the next
            tenth above the highest value.

    Raises:
        ValueError: the table is empty, lacks a column, has a cell twice, a layer that is no whole number from 0, no
            value at all, a lens that is not one share a read layer, or no such cell as `chosen`.

    >>> table = pd.DataFrame({"read_layer": [0, 1], "write_layer": [0, 0], "accuracy": [0.25, 0.5]})
    >>> layer_heatmap(table, value="accuracy", title="Two cells").data[0].z
    ([0.25], [0.5])
    """
    values = {value: ""} if isinstance(value, str) else dict(value)
    lenses = dict.fromkeys(values, lens) if isinstance(lens, str) else dict(lens or {})
    if lenses and set(lenses) != set(values):
        raise ValueError(f"the lens is given for {sorted(lenses)} and the values are {sorted(values)}; pair them")
    layers = ("read_layer", "write_layer")
    rows = records(table, [*layers, *([panels] if panels else [])], [*values, *lenses.values()])
    reads, writes = (layers_in(rows, column) for column in layers)
    grids = [
        _grid(part, column, ", ".join(filter(None, (name, values[column]))), lenses.get(column), reads, writes)
        for name, part in split_by(rows, panels).items()
        for column in values
    ]
    if chosen is not None and (len(chosen) != 2 or chosen[0] not in reads or chosen[1] not in writes):
        cell = tuple(chosen)
        raise ValueError(f"the chosen cell {cell} is not in the grid; give a (read layer, write layer) of the table")
    side, gap = (320, 0) if len(grids) == 1 else (236, 18)
    grids_end = len(grids) * (side + gap) - gap
    across = grids_end + (336 if lenses else 76)
    ring = f"chosen cell: k = {chosen[0]}, j = {chosen[1]}" if chosen else ""
    lines = _lines(grids, reads, writes, chosen) if lenses else []
    entries = [line["name"] for line in lines] + [ring] * bool(ring)
    sheet = blank_sheet(title, note, entries, across=across, down=side, left=58, right=20, head=28)
    sheet.figure.update_layout(coloraxis=colour_axis(bounds or _bounds(grids), unit, (grids_end + 14) / across))

    x_positions, y_positions = layer_positions(writes), layer_positions(reads)
    read_axis = layer_axis(reads, "sender read layer <i>k</i>")
    write_axis = layer_axis(writes, "receiver write layer <i>j</i>")
    for index, grid in enumerate(grids):
        spot = (index * (side + gap), 0, side, side)
        axes = sheet.panel(index, spot, write_axis, bare(read_axis) if index else read_axis, grid.name)
        sheet.shade(axes, read_axis["range"][0], read_axis["range"][1], BLANK)
        hover = f"{grid.name}<br>read layer %{{y}}, write layer %{{x}}: %{{z:.3f}}<extra></extra>"
        heat = {"x": x_positions, "y": y_positions, "z": grid.cells, "coloraxis": "coloraxis", "hovertemplate": hover}
        sheet.figure.add_trace(go.Heatmap(heat | axes))
        if chosen is not None:
            at = x_positions[writes.index(chosen[1])], y_positions[reads.index(chosen[0])]
            sheet.figure.add_traces(rings([at], 16, axes, "" if index else ring))
    if lenses:
        share_axis = SHARE_AXIS | {"title": {"text": "share of items"}, "dtick": 0.5}
        spot = (grids_end + 160, 0, 176, side)
        axes = sheet.panel(len(grids), spot, share_axis, read_axis, "by read layer")
        if chosen is not None:
            sheet.rule(axes, chosen[0] if y_positions == reads else reads.index(chosen[0]))
        sheet.figure.add_traces([go.Scatter(line | axes) for line in lines])
    return sheet.figure


def condition_bars(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    group: str | None = None,
    chance: Mapping[str, float | int] | None = None,
    unit: str = SHARE,
) -> go.Figure:
    """Accuracy with its interval: a dot and a line, a row a condition and a panel a metric, in the order of the table.

    The table has columns `condition`, `metric`, `accuracy`, `low`, `high` (the ends of the interval) and `n` (items).
    With `group`, a column such as `channel`, each group's condition `message` is labelled by the group's name alone and
    its other conditions below it. `chance` gives, by metric, the accuracy of guessing, drawn as a dotted line.

    Raises:
        ValueError: the table is empty, lacks a column, has a condition twice in a metric, or shares that are not
            0 <= low <= accuracy <= high <= 1; `chance` names a metric that is not in it.

    >>> row = {"condition": "replace", "metric": "free", "accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 12}
    >>> condition_bars(pd.DataFrame([row]), title="One dot").data[0].x
    (0.5,)
    """
    rows = _shares(table, [*([group] if group else []), "condition", "metric"], chance)
    lines = _bar_lines(rows, group)
    style_of = styles(line.style for line in lines)
    parts = split_by(rows, "metric")
    same_n = all(len({row["n"] for row in part}) == 1 for part in parts.values())
    width, numbers = {1: 400, 2: 236}.get(len(parts), max(140, 560 // len(parts))), (58 if same_n else 112)
    down, across = 26 * len(lines), len(parts) * (width + numbers)
    left = 48 + round(LETTER[TICK_SIZE] * max(len(line.text) for line in lines))
    entries = ["chance"] if chance else []
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=0, head=28)
    share_axis = SHARE_AXIS | {"title": {"text": unit}} | ({"dtick": 0.5} if len(parts) > 2 else {})
    name_axis = names_axis([line.label for line in lines], "condition") | {"showgrid": True, "gridcolor": GRID}
    for index, (metric, part) in enumerate(parts.items()):
        head = f"{metric} ({_items(part)})" if same_n else metric
        spot = (index * (width + numbers), 0, width, down)
        axes = sheet.panel(index, spot, share_axis, bare(name_axis) if index else name_axis, head)
        for low, high in _bands(lines):
            sheet.shade(axes, low, high)
        sheet.figure.add_traces(chance_line(chance, metric, len(lines), axes, named=True))
        for at, line in enumerate(lines):
            for row in part:
                if line.shows(row, group):
                    sheet.figure.add_trace(dots([row], [at], style_of[line.style], axes, line.style))
                    sheet.write(f"{row['accuracy']:.2f}" + ("" if same_n else f" (n = {row['n']})"), axes, at)
    return sheet.figure


def factor_grid(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    columns: Sequence[str] = ("template", "fame"),
    group: str = "sender_form",
    chance: Mapping[str, float | int] | None = None,
    unit: str = SHARE,
) -> go.Figure:
    """Accuracy with its interval over several factors: a column of panels for each combination of the factors
    `columns`, a row of panels a metric; in a panel a band for each value of `group`, in a band a dot for each
    condition.

    The table has those columns and `condition`, `metric`, `accuracy`, `low`, `high` and `n`; all orders are its own.

    Raises:
        ValueError: as in `condition_bars`.

    >>> row = {"template": "raw", "fame": "famous", "sender_form": "primed", "condition": "sum", "metric": "free"}
    >>> table = pd.DataFrame([row | {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 12}])
    >>> factor_grid(table, title="One dot").layout.xaxis.title.text
    'accuracy (share of items)'
    """
    rows = _shares(table, [*columns, group, "condition", "metric"], chance)
    metrics, groups, conditions = (seen(rows, column) for column in ("metric", group, "condition"))
    style_of = styles(conditions)
    combinations = list(dict.fromkeys(tuple(row[column] for column in columns) for row in rows))
    width, height, gap = max(150, 640 // len(combinations) - 16), (15 * len(conditions) + 12) * len(groups), 16
    across, down = len(combinations) * (width + gap) - gap, len(metrics) * (height + gap) - gap
    left = 48 + round(LETTER[TICK_SIZE] * max(map(len, groups)))
    entries = [*conditions, *(["chance"] if chance else [])]
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=32, head=28 + LINE)
    share_axis = SHARE_AXIS | {"title": {"text": unit, "font": {"size": TICK_SIZE}}, "dtick": 0.5}
    name_axis = names_axis(groups, group.replace("_", " "))
    for line, metric in enumerate(metrics):
        bottom = down - height - line * (height + gap)
        sheet.write_aside(metric, bottom + height / 2)
        for index, levels in enumerate(combinations):
            part = [row for row in rows if (row["metric"], *(row[column] for column in columns)) == (metric, *levels)]
            axes = sheet.panel(
                line * len(combinations) + index,
                (index * (width + gap), bottom, width, height),
                share_axis if line == len(metrics) - 1 else bare(share_axis),
                bare(name_axis) if index else name_axis,
                "" if line else f"{', '.join(levels)}<br>{_items(part)}",
            )
            if not line and not index:
                sheet.figure.add_traces([dots([], [], style_of[name], axes, name, named=True) for name in conditions])
            for band in range(1, len(groups), 2):
                sheet.shade(axes, band - 0.5, band + 0.5)
            sheet.figure.add_traces(chance_line(chance, metric, len(groups), axes, named=not index))
            for rank, condition in enumerate(conditions):
                offset = 0.86 * ((rank + 0.5) / len(conditions) - 0.5)
                if here := [row for row in part if row["condition"] == condition]:
                    heights = [groups.index(row[group]) + offset for row in here]
                    sheet.figure.add_trace(dots(here, heights, style_of[condition], axes, condition))
    return sheet.figure


class _Grid(NamedTuple):
    name: str
    cells: list[list[float | None]]
    lens: list[float | None]


def _grid(
    rows: Sequence[Mapping[str, Any]],
    column: str,
    name: str,
    lens: str | None,
    reads: Sequence[int],
    writes: Sequence[int],
) -> _Grid:
    """The values [read write] of a column, None where there is none, and the lens of each read layer."""
    cells: dict[tuple[int, int], float] = {}
    shares: dict[int, float] = {}
    for row in rows:
        cell = row["read_layer"], row["write_layer"]
        if cell in cells:
            raise ValueError(f"the cell {cell} is in the table more than once; give it a row a cell, or name `panels`")
        cells[cell] = row[column]
        if lens and not (0 <= row[lens] <= 1 and shares.setdefault(cell[0], row[lens]) == row[lens]):
            raise ValueError(
                f"column {lens} has {row[lens]} at {cell}; it must be one share for all cells of a read layer"
            )
    found = [[cells.get((read, write), math.nan) for write in writes] for read in reads]
    shown = [[None if math.isnan(cell) else float(cell) for cell in row] for row in found]
    return _Grid(name, shown, [shares.get(read) for read in reads] if lens else [])


def _lines(
    grids: Sequence[_Grid], reads: Sequence[int], writes: Sequence[int], chosen: Sequence[int] | None
) -> list[dict[str, Any]]:
    """A pair of lines a grid: its column at the chosen write layer, and the lens of its message."""
    lines = []
    for grid, colour in zip(grids, cycle(_LINE_COLOURS), strict=False):
        line = {"y": layer_positions(reads), "mode": "lines", "line": {"color": colour, "width": 2}}
        prefix = f"{grid.name}: " if grid.name else ""
        if chosen is not None:
            column = [row[writes.index(chosen[1])] for row in grid.cells]
            lines.append(line | {"x": column, "name": f"{prefix}graft, j = {chosen[1]}"})
        dotted = {"color": colour, "width": 2, "dash": "2px,3px"}
        lines.append(line | {"x": grid.lens, "name": f"{prefix}logit lens", "line": dotted})
    return lines


def _bounds(grids: Sequence[_Grid]) -> tuple[float, float]:
    values = [cell for grid in grids for row in grid.cells for cell in row if cell is not None]
    if not values:
        raise ValueError("no cell of the table has a value; run the sweep first")
    low = min(0.0, *values)
    return low, max(math.ceil(round(10 * max(values), 6)) / 10, low + 0.1)


class _BarLine(NamedTuple):
    text: str
    style: str
    condition: str
    group: str = ""

    @property
    def label(self) -> str:
        """The text as it is set: controls of a group in grey below its name."""
        inside = self.group and self.text == self.condition
        return f'<span style="color:{MUTED}">{spoken(self.text)}</span>' if inside else spoken(self.text)

    def shows(self, row: Mapping[str, Any], group: str | None) -> bool:
        """Whether a row of the table is drawn in this line."""
        return row["condition"] == self.condition and (group is None or row[group] == self.group)


def _bar_lines(rows: Sequence[Mapping[str, Any]], group: str | None) -> list[_BarLine]:
    if group is None:
        return [_BarLine(name, name, name) for name in seen(rows, "condition")]
    lines = []
    for name, part in split_by(rows, group).items():
        inside = seen(part, "condition")
        for condition in inside:
            text = name if condition == MESSAGE else condition if MESSAGE in inside else f"{name}, {condition}"
            lines.append(_BarLine(text, condition if text == condition else name, condition, name))
    return lines


def _bands(lines: Sequence[_BarLine]) -> list[tuple[float, float]]:
    """The ends of every second group of lines."""
    starts = [at for at in range(1, len(lines)) if lines[at].group != lines[at - 1].group]
    edges = [edge - 0.5 for edge in [*starts, len(lines)]]
    return list(zip(edges[:-1:2], edges[1::2], strict=False))


def _items(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many items each row is over, or from how many to how many."""
    counts = sorted({row["n"] for row in rows})
    return "".join(["n = ", str(counts[0]), *([f" to {counts[-1]}"] if len(counts) > 1 else [])]) if counts else ""


def _shares(
    table: pd.DataFrame, names: Sequence[str], chance: Mapping[str, float | int] | None
) -> list[dict[str, Any]]:
    """The rows with their names as text, once they are known to hold one share and interval a combination of names."""
    rows: list[dict[str, Any]] = [
        {**row, **{name: str(row[name]) for name in names}}
        for row in records(table, names, ["accuracy", "low", "high", "n"])
    ]
    met: set[tuple[str, ...]] = set()
    for row in rows:
        who = tuple(row[name] for name in names)
        if who in met:
            raise ValueError(f"{', '.join(who)} is in the table more than once; give it one row")
        met.add(who)
        if not 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1:
            shares = ", ".join(f"{column} {row[column]}" for column in ("low", "accuracy", "high"))
            raise ValueError(f"{', '.join(who)} has {shares}; they must rise, between 0 and 1")
    if unknown := sorted(set(chance or {}) - {row["metric"] for row in rows}):
        raise ValueError(f"chance is given for {unknown[0]!r}; the metrics of the table are {seen(rows, 'metric')}")
    if wrong := [metric for metric, share in (chance or {}).items() if not 0 <= share <= 1]:
        raise ValueError(f"the chance of {wrong[0]!r} is given as {chance}; it is a share, between 0 and 1")
    return rows


_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
