"""Figures from tables alone: the same table gives the same figure, byte for byte, in every process."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from latentcomm.sheets import (
    GRID,
    INK,
    LETTER,
    LINE,
    MUTED,
    TEXT_SIZE,
    TICK_SIZE,
    Sheet,
    Style,
    bare,
    blank_sheet,
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
    chosen: tuple[int, int] | None = None,
    lens: str | Mapping[str, str] | None = None,
    unit: str = SHARE,
    bounds: tuple[float | int, float | int] | None = None,
) -> go.Figure:
    """A heat-map over pairs of layers: receiver write layer j to the right, sender read layer k upwards, from 0.

    The table has a row a cell, with columns `read_layer`, `write_layer` and a column for each value. Cells that are not
    in it, or have no value, stay grey. All panels share one colour scale.

    Args:
        table: a row a cell; a row a cell and panel with `panels`.
        value: the column shown, or several and the title of each one's panel: `{"free_accuracy": "free"}`.
        title: what the figure shows.
        note: what a reader must know beside it: the models, the task, the number of items.
        panels: a column each of whose values gets its panel, such as `metric`.
        chosen: the cell (read layer, write layer) that gets a ring.
        lens: a column with the share of items whose sender state at the read layer already names the answer (the logit
            lens of the message), or such a column for each value: `{"free_accuracy": "lens_free"}`. It is drawn by read
            layer beside the grids; with `chosen`, beside their column at that write layer.
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
    grids = _grids(table, {value: ""} if isinstance(value, str) else value, panels, lens)
    reads, writes = grids[0].cells.index.tolist(), grids[0].cells.columns.tolist()
    if chosen is not None and (chosen[0] not in reads or chosen[1] not in writes):
        raise ValueError(f"the chosen cell {chosen} is not in the grid; give a (read layer, write layer) of the table")
    side, gap = (320, 0) if len(grids) == 1 else (236, 18)
    grids_end = len(grids) * (side + gap) - gap
    across = grids_end + (336 if lens else 76)
    ring = f"chosen cell: k = {chosen[0]}, j = {chosen[1]}" if chosen else ""
    lines = _lines(grids, chosen) if lens else []
    entries = [line["name"] for line in lines] + [ring] * bool(ring)
    sheet = blank_sheet(title, note, entries, across=across, down=side, left=58, right=20, head=28)
    colours = _colour_axis(bounds or _bounds(grids), unit, (grids_end + 14) / across)
    sheet.figure.update_layout(coloraxis=colours)

    read_axis = _layer_axis(reads, "sender read layer <i>k</i>")
    write_axis = _layer_axis(writes, "receiver write layer <i>j</i>")
    for place, grid in enumerate(grids):
        y_axis = bare(read_axis) if place else read_axis
        axes = sheet.panel(place, (place * (side + gap), 0, side, side), write_axis, y_axis, grid.name)
        sheet.shade(axes, *read_axis["range"])
        cells = [[None if math.isnan(cell) else cell for cell in row] for row in grid.cells.to_numpy(float).tolist()]
        hover = f"{grid.name}<br>read layer %{{y}}, write layer %{{x}}: %{{z:.3f}}<extra></extra>"
        heat = {"x": _places(writes), "y": _places(reads), "z": cells, "coloraxis": "coloraxis", "hovertemplate": hover}
        sheet.figure.add_trace(go.Heatmap(heat | axes))
        if chosen is not None:
            at = _places(writes)[writes.index(chosen[1])], _places(reads)[reads.index(chosen[0])]
            sheet.figure.add_traces(_ring(at, axes, "" if place else ring))
    if lens is not None:
        share_axis = _SHARE_AXIS | {"title": {"text": "share of items"}, "dtick": 0.5}
        axes = sheet.panel(len(grids), (grids_end + 160, 0, 176, side), share_axis, read_axis, "by read layer")
        if chosen is not None:
            sheet.rule(axes, _places(reads)[reads.index(chosen[0])])
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
    With `group`, a column such as `channel`, each group's condition `message` stands under the group's name alone and
    its other conditions below it. `chance` gives, by metric, the accuracy of guessing, drawn as a dotted line.

    Raises:
        ValueError: the table is empty, lacks a column, has a condition twice in a metric, or shares that are not
            0 <= low <= accuracy <= high <= 1; `chance` names a metric that is not in it.

    >>> row = {"condition": "replace", "metric": "free", "accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 12}
    >>> condition_bars(pd.DataFrame([row]), title="One dot").data[0].x
    (0.5,)
    """
    table = _shares(table, ([group] if group else []) + ["condition", "metric"], chance)
    rows = _rows(table, group)
    looks = styles(row.style for row in rows)
    metrics = _seen(table, "metric")
    same_n = int(table.groupby("metric")["n"].nunique().max()) == 1
    width, numbers = (236 if len(metrics) > 1 else 400), (58 if same_n else 112)
    down, across = 26 * len(rows), len(metrics) * (width + numbers)
    left = 48 + round(LETTER[TICK_SIZE] * max(len(row.text) for row in rows))
    entries = ["chance"] if chance else []
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=0, head=28)
    share_axis = _SHARE_AXIS | {"title": {"text": unit}}
    names_axis = _names_axis([row.label for row in rows], "condition") | {"showgrid": True, "gridcolor": GRID}
    bands = _bands(rows)
    for place, metric in enumerate(metrics):
        part = table[table["metric"] == metric]
        head = f"{metric} ({_items(part)})" if same_n else metric
        spot = (place * (width + numbers), 0, width, down)
        axes = sheet.panel(place, spot, share_axis, bare(names_axis) if place else names_axis, head)
        for low, high in bands:
            sheet.shade(axes, low, high)
        if chance and metric in chance:
            named = metric == next(iter(chance))
            sheet.figure.add_trace(_chance_line(chance[metric], len(rows), axes, named=named))
        for at, row in enumerate(rows):
            for dot in part[row.where(part)].to_dict("records"):
                sheet.figure.add_trace(_dots([dot], [at], looks[row.style], axes, row.style))
                sheet.write(f"{dot['accuracy']:.2f}" + ("" if same_n else f" (n = {dot['n']})"), axes, at)
    return sheet.figure


def factor_grid(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    columns: tuple[str, ...] = ("template", "fame"),
    group: str = "sender_form",
    chance: Mapping[str, float | int] | None = None,
    unit: str = SHARE,
) -> go.Figure:
    """Accuracy with its interval over several factors: a column of panels for each combination of the factors
    `columns`, a row of panels a metric; in a panel a band for each value of `group`, in a band a dot a condition.

    The table has those columns and `condition`, `metric`, `accuracy`, `low`, `high` and `n`. All orders are the table's.

    Raises:
        ValueError: as in `condition_bars`.

    >>> row = {"template": "raw", "fame": "famous", "sender_form": "primed", "condition": "sum", "metric": "free"}
    >>> table = pd.DataFrame([row | {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 12}])
    >>> factor_grid(table, title="One dot").layout.xaxis.title.text
    'accuracy (share of items)'
    """
    table = _shares(table, [*columns, group, "condition", "metric"], chance)
    metrics, groups, conditions = (_seen(table, column) for column in ("metric", group, "condition"))
    looks = styles(conditions)
    combinations = list(dict.fromkeys(zip(*(table[column] for column in columns), strict=True)))
    width, height, gap = max(150, 640 // len(combinations) - 16), (15 * len(conditions) + 12) * len(groups), 16
    across, down = len(combinations) * (width + gap) - gap, len(metrics) * (height + gap) - gap
    left = 48 + round(LETTER[TICK_SIZE] * max(map(len, groups)))
    entries = [*conditions, *(["chance"] if chance else [])]
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=32, head=28 + LINE)
    share_axis = _SHARE_AXIS | {"title": {"text": unit, "font": {"size": TICK_SIZE}}, "dtick": 0.5}
    names_axis = _names_axis(groups, group.replace("_", " "))
    for line, metric in enumerate(metrics):
        bottom = down - height - line * (height + gap)
        sheet.write_aside(metric, bottom + height / 2)
        for place, combination in enumerate(combinations):
            part = table[table["metric"] == metric]
            for column, level in zip(columns, combination, strict=True):
                part = part[part[column] == level]
            axes = sheet.panel(
                line * len(combinations) + place,
                (place * (width + gap), bottom, width, height),
                share_axis if line == len(metrics) - 1 else bare(share_axis),
                bare(names_axis) if place else names_axis,
                "" if line else f"{', '.join(combination)}<br>{_items(part)}",
            )
            if not line and not place:
                sheet.figure.add_traces([_dots([], [], looks[name], axes, name, named=True) for name in conditions])
            for band in range(1, len(groups), 2):
                sheet.shade(axes, band - 0.5, band + 0.5)
            if chance and metric in chance:
                named = not place and metric == next(iter(chance))
                sheet.figure.add_trace(_chance_line(chance[metric], len(groups), axes, named=named))
            for rank, condition in enumerate(conditions):
                dots = part[part["condition"] == condition].to_dict("records")
                heights = [groups.index(dot[group]) + 0.86 * ((rank + 0.5) / len(conditions) - 0.5) for dot in dots]
                if dots:
                    sheet.figure.add_trace(_dots(dots, heights, looks[condition], axes, condition))
    return sheet.figure


class _Grid(NamedTuple):
    name: str
    cells: pd.DataFrame
    lens: list[float]


def _grids(
    table: pd.DataFrame, values: Mapping[str, str], panels: str | None, lens: str | Mapping[str, str] | None
) -> list[_Grid]:
    """A grid [read write] a panel, all over the same layers, each with its lens by read layer."""
    lenses = dict.fromkeys(values, lens) if lens is None or isinstance(lens, str) else lens
    if set(lenses) != set(values):
        raise ValueError(f"the lens has columns for {sorted(lenses)} and the values are {sorted(values)}; pair them")
    layers = ["read_layer", "write_layer"]
    lens_columns = [column for column in lenses.values() if column]
    _check_columns(table, [*layers, *([panels] if panels else []), *values, *lens_columns])
    for layer in layers:
        if not pd.api.types.is_integer_dtype(table[layer]) or table[layer].min() < 0:
            raise ValueError(
                f"column {layer} holds {table[layer].iloc[0]!r} ({table[layer].dtype}); count layers from 0"
            )
    reads, writes = (sorted(set(table[layer].tolist())) for layer in layers)
    grids = []
    for part_name, part in [("", table)] if panels is None else table.groupby(panels, sort=False):
        if part.duplicated(layers).any():
            cell = tuple(part[part.duplicated(layers)][layers].iloc[0].tolist())
            raise ValueError(f"the cell {cell} is in the table more than once; give it a row a cell, or name `panels`")
        for column, name in values.items():
            grid = part.pivot(index=layers[0], columns=layers[1], values=column).reindex(index=reads, columns=writes)
            by_layer = _by_read_layer(part, lenses[column], reads) if lenses[column] else []
            grids.append(_Grid(", ".join(filter(None, (str(part_name), name))), grid, by_layer))
    return grids


def _by_read_layer(table: pd.DataFrame, column: str, reads: Sequence[int]) -> list[float]:
    by_layer = table.groupby("read_layer")[column]
    if (by_layer.nunique(dropna=False) != 1).any() or not table[column].between(0, 1).all():
        raise ValueError(f"column {column} is not one share a read layer; a lens does not depend on the write layer")
    return by_layer.first().reindex(reads).tolist()


def _lines(grids: Sequence[_Grid], chosen: tuple[int, int] | None) -> list[dict[str, Any]]:
    """A pair of lines a grid: its column at the chosen write layer, and the lens of its message."""
    lines = []
    for grid, colour in zip(grids, _LINE_COLOURS, strict=False):
        y, prefix = _places(grid.cells.index.tolist()), f"{grid.name}: " if grid.name else ""
        both = {"y": y, "mode": "lines"}
        if chosen is not None:
            cells = [None if math.isnan(cell) else cell for cell in grid.cells[chosen[1]].tolist()]
            name = f"{prefix}graft, j = {chosen[1]}"
            lines.append(both | {"x": cells, "name": name, "line": {"color": colour, "width": 2}})
        name = f"{prefix}logit lens"
        lines.append(both | {"x": grid.lens, "name": name, "line": {"color": colour, "width": 2, "dash": "2px,3px"}})
    return lines


def _bounds(grids: Sequence[_Grid]) -> tuple[float, float]:
    values = [
        cell for grid in grids for row in grid.cells.to_numpy(float).tolist() for cell in row if math.isfinite(cell)
    ]
    if not values:
        raise ValueError("no cell of the table has a value; run the sweep first")
    low = min(0.0, *values)
    return low, max(math.ceil(round(10 * max(values), 6)) / 10, low + 0.1)


def _colour_axis(bounds: tuple[float | int, float | int], unit: str, x: float) -> dict[str, Any]:
    bar = {"len": 1, "lenmode": "fraction", "outlinewidth": 0, "thickness": 12, "x": x, "xanchor": "left", "xpad": 0}
    bar |= {
        "tickfont": {"size": TICK_SIZE},
        "ticks": "outside",
        "ticklen": 4,
        "title": {"text": unit, "side": "right", "font": {"size": TEXT_SIZE}},
    }
    return {"cmin": bounds[0], "cmax": bounds[1], "colorscale": "Cividis", "colorbar": bar | {"ypad": 0}}


def _ring(at: tuple[int | str, int | str], axes: dict[str, str], name: str) -> list[go.Scatter]:
    """A black ring in a white one: seen on every colour of the scale, and the cell inside stays in sight."""
    rings = [(16, "white", 5), (16, INK, 2)]
    traces = []
    for size, colour, width in rings:
        marker = {"symbol": "circle-open", "size": size, "color": colour, "line": {"width": width}}
        ring = {"x": [at[0]], "y": [at[1]], "mode": "markers", "hoverinfo": "skip", "marker": marker} | axes
        traces.append(go.Scatter(ring, name=name, showlegend=bool(name) and colour == INK))
    return traces


def _layer_axis(layers: Sequence[int], title: str) -> dict[str, Any]:
    """A numeric axis for layers in even steps, else a place a layer, so that all cells are of one size."""
    if not _even(layers):
        return {"title": {"text": title}, "type": "category", "range": [-0.5, len(layers) - 0.5]}
    step = layers[1] - layers[0] if len(layers) > 1 else 1
    tick = step * next(size for size in (1, 2, 5, 10, 20, 50) if len(layers) <= 8 * size)
    ends = [layers[0] - step / 2, layers[-1] + step / 2]
    return {"title": {"text": title}, "range": ends, "tick0": layers[0] - layers[0] % tick, "dtick": tick}


def _even(layers: Sequence[int]) -> bool:
    return len({after - before for before, after in zip(layers, layers[1:], strict=False)}) <= 1


def _places(layers: Sequence[int]) -> list[int] | list[str]:
    return list(layers) if _even(layers) else [str(layer) for layer in layers]


class _Row(NamedTuple):
    text: str
    style: str
    condition: str
    group: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """The text as it is set: controls of a group in grey below its name."""
        inside = self.group is not None and self.text == self.condition
        return f'<span style="color:{MUTED}">{self.text}</span>' if inside else self.text

    def where(self, table: pd.DataFrame) -> pd.Series:
        """Which rows of the table are drawn in this one."""
        mine = table["condition"] == self.condition
        return mine if self.group is None else mine & (table[self.group[0]] == self.group[1])


def _rows(table: pd.DataFrame, group: str | None) -> list[_Row]:
    if group is None:
        return [_Row(name, name, name) for name in _seen(table, "condition")]
    rows = []
    for name in _seen(table, group):
        inside = _seen(table[table[group] == name], "condition")
        for condition in inside:
            if condition == MESSAGE:
                rows.append(_Row(name, name, condition, (group, name)))
            elif MESSAGE in inside:
                rows.append(_Row(condition, condition, condition, (group, name)))
            else:
                rows.append(_Row(f"{name}, {condition}", name, condition, (group, name)))
    return rows


def _bands(rows: Sequence[_Row]) -> list[tuple[float, float]]:
    """The ends of every second group of rows."""
    groups = [row.group for row in rows]
    starts = [at for at in range(len(rows)) if at and groups[at] is not None and groups[at] != groups[at - 1]]
    edges = [edge - 0.5 for edge in [*starts, len(rows)]]
    return list(zip(edges[:-1:2], edges[1::2], strict=False))


def _names_axis(names: Sequence[str], title: str) -> dict[str, Any]:
    """An axis with a name at 0, 1, 2, ... from the top."""
    places = {"range": [len(names) - 0.5, -0.5], "tickvals": list(range(len(names))), "ticktext": list(names)}
    return places | {"title": {"text": title}, "ticks": ""}


def _dots(
    dots: Sequence[Mapping[str, Any]],
    heights: Sequence[float | int],
    style: Style,
    axes: dict[str, str],
    name: str,
    *,
    named: bool = False,
) -> go.Scatter:
    """Dots with their intervals; without any, what stands for them in the legend."""
    interval = {
        "array": [dot["high"] - dot["accuracy"] for dot in dots],
        "arrayminus": [dot["accuracy"] - dot["low"] for dot in dots],
        "color": style.colour,
        "symmetric": False,
        "thickness": 2,
        "type": "data",
        "width": 0,
    }
    return go.Scatter(
        axes,
        x=[dot["accuracy"] for dot in dots] or [None],
        y=list(heights) or [None],
        customdata=[[dot["low"], dot["high"], dot["n"]] for dot in dots],
        error_x=interval,
        hovertemplate="%{x:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f}), n = %{customdata[2]}",
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "size": 10,
            "line": {"width": 2 if "open" in style.symbol else 0},
        },
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=named,
    )


def _chance_line(share: float | int, n_rows: int, axes: dict[str, str], *, named: bool) -> go.Scatter:
    line = {"color": MUTED, "dash": "dot", "width": 1.5}
    ends = {"x": [share, share], "y": [-0.5, n_rows - 0.5], "mode": "lines", "line": line, "hoverinfo": "skip"}
    return go.Scatter(ends | axes, name="chance", legendgroup="chance", showlegend=named)


def _items(table: pd.DataFrame) -> str:
    """How many items each row is over, or from how many to how many."""
    low, high = table["n"].min(), table["n"].max()
    return "" if table.empty else f"n = {low}" if low == high else f"n = {low} to {high}"


def _seen(table: pd.DataFrame, column: str) -> list[str]:
    return list(dict.fromkeys(table[column].tolist()))


def _shares(table: pd.DataFrame, names: Sequence[str], chance: Mapping[str, float | int] | None) -> pd.DataFrame:
    """The table with its names as text, once it is known to hold one share with its interval a combination of names."""
    _check_columns(table, [*names, "accuracy", "low", "high", "n"])
    table = table.assign(**{name: table[name].astype(str) for name in names})
    if table.duplicated(list(names)).any():
        row = table[table.duplicated(list(names))].iloc[0]
        raise ValueError(
            f"{', '.join(row[name] for name in names)} is in the table more than once; give it one row each"
        )
    ordered = [0, table["low"], table["accuracy"], table["high"], 1]
    for below, above in zip(ordered, ordered[1:], strict=False):
        if not (below <= above).all():
            row = table[~(below <= above)].iloc[0]
            shares = ", ".join(f"{column} {row[column]}" for column in ("low", "accuracy", "high"))
            raise ValueError(f"{', '.join(row[name] for name in names)} has {shares}; they must rise from 0 to 1")
    if unknown := sorted(set(chance or {}) - set(table["metric"])):
        raise ValueError(
            f"chance is given for {unknown[0]!r}, which is no metric of the table; it has {_seen(table, 'metric')}"
        )
    return table


def _check_columns(table: pd.DataFrame, columns: Iterable[str]) -> None:
    if missing := [column for column in dict.fromkeys(columns) if column not in table.columns]:
        raise ValueError(
            f"the table lacks the column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise ValueError("the table is empty; a figure needs at least one row")


_SHARE_AXIS = {"range": [-0.03, 1.03], "tick0": 0, "dtick": 0.25, "showgrid": True, "gridcolor": GRID}
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
