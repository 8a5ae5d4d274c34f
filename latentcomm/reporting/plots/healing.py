"""What is left of a graft at the later layers: deviation and rarity at each, and the harm to the next token."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.drift import AFTER, RARE_ENTRY, rare_line
from latentcomm.reporting.plots.tables import (
    full_records,
    layers_in,
    records,
    require_numbers,
    require_once,
    rows_of,
    seen,
    some_layers,
    spoken,
)
from latentcomm.reporting.style import (
    FOOT,
    GRID,
    LETTER,
    MUTED,
    PAGE,
    TICK_SIZE,
    TIGHT_LEGEND,
    Sheet,
    Style,
    bare,
    blank_sheet,
    names_axis,
    styles,
)

TWINS = 0.01
"""Share of an axis within which the curves of two fusions coincide: one would hide the other."""
ROUNDING = 1e-9
"""Nats below 0 that a KL of nothing may come out at."""
MOST_CURVES = 3
"""Write layers that the healing curves show."""
LEAST_KL = 1e-4
"""Nats at which the axis of the KL begins: less changes no output visibly, and 0 has no logarithm."""
OWN, OWN_ENTRY = "own_percentile_median", "ungrafted run"
QUARTILES = ("median", "low", "high")
KL = tuple(f"kl_{end}" for end in QUARTILES)


def healing_curves(
    table: pd.DataFrame,
    *,
    title: str,
    effects: pd.DataFrame | None = None,
    message: str | None = None,
    note: str = "",
    write_layers: Sequence[int] | None = None,
) -> go.Figure:
    """What is left of a graft at each later layer: its deviation, how rare the state is there, and the harm it does.

    The table has columns `fusion`, `message`, `write_layer`, `layer`, and `_median`, `_low` and `_high` (quartiles over
    items) of `deviation` and `percentile`; rows below the write layer are left out, and percentiles may be missing at
    layers without a reference. A column of panels a write layer, a line a fusion, a band between the quartiles; where
    there is `own_percentile_median`, a dashed grey line is the ungrafted run, whose states are real. With `effects` (or
    the columns of `with_kl`) a third row shows the KL of the next token: a state that is no longer rare may still have
    changed the output. Its axis begins at LEAST_KL, where smaller values are drawn.

    Args:
        effects: a row an item, with columns `fusion`, `message`, `write_layer` and `kl` in nats.
        message: which message is shown; "other text" where the table has it, else its first.
        write_layers: which are shown; by default at most `MOST_CURVES`, spread evenly, none near the last layer.

    Raises:
        ValueError: a table is empty, lacks a column or a number, or has a layer twice; quartiles that do not rise; no
            row of a message or write layer.
    """
    table = table if effects is None else with_kl(table, effects)
    rows = _rows(table, message)
    last = max(layers_in(rows, "layer"))
    writes = layers_in(rows, "write_layer")
    shown = _with_room(writes, last) if write_layers is None else some_layers(writes, write_layers, MOST_CURVES)
    fusions = seen(rows, "fusion")
    style_of = styles(fusions)
    harm = _harm(rows, shown) if KL[0] in table.columns else {}
    left = max(70, 40 + round(LETTER[TICK_SIZE] * max(len(spoken(name)) for name in fusions))) if harm else 70
    gap, height, right = 30, 168, 24
    width = min(400, (PAGE - left - right + gap) // len(shown) - gap)
    strip, foot = (22 * len(fusions) + 10, 62) if harm else (0, 0)
    lift = strip + foot
    across, down = len(shown) * (width + gap) - gap, 2 * height + 14 + lift
    own = any(not math.isnan(row[OWN]) for row in rows if OWN in row)
    entries = [*map(spoken, fusions), RARE_ENTRY, *([OWN_ENTRY] if own else [])]
    right += max(0, 480 - left - right - across)
    title = f"{title}; message: {rows[0]['message']}"
    top = max(row["deviation_high"] for row in rows if row["write_layer"] in shown)
    twins = _twins([row for row in rows if row["write_layer"] in shown], fusions, top)
    sentences = [f"Dashed: {spoken(later)} deviates as {spoken(first)} does." for later, first in twins.items()]
    note = " ".join(filter(None, (note, *sentences)))
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=right, head=28, foot=FOOT)
    sheet.figure.update_layout(legend=TIGHT_LEGEND)
    deviation = {"title": {"text": "deviation |x′ − x| / |x|"}, "range": [0, 1.05 * top or 1.0]}
    percentile = {"title": {"text": "percentile"}, "range": [-0.03, 1.03], "tickvals": [0, 0.5, 0.95]}
    for index, write in enumerate(shown):
        ends = [write - 0.5, max(last, write + 1) + 0.5]
        x_axis = {"title": {"text": "layer"}, "range": ends}
        x_axis |= _ticks(sorted({row["layer"] for row in rows if row["write_layer"] == write}))
        at = index * (width + gap)
        upper = sheet.panel(
            index,
            (at, lift + height + 14, width, height),
            bare(x_axis),
            bare(deviation) if index else deviation,
            f"written after layer {write}",
        )
        spot = (at, lift, width, height)
        lower = sheet.panel(len(shown) + index, spot, x_axis, bare(percentile) if index else percentile, "")
        part = sorted((row for row in rows if row["write_layer"] == write), key=lambda row: row["layer"])
        sheet.figure.add_trace(rare_line(ends, lower, RARE_ENTRY, named=not index))
        for fusion in fusions:
            here = [row for row in part if row["fusion"] == fusion]
            for what, axes in (("deviation", upper), ("percentile", lower)):
                named = not index and what == "deviation"
                style, name, dashed = style_of[fusion], spoken(fusion), fusion in twins
                sheet.figure.add_traces(_curve(here, what, style, axes, name, named=named, dashed=dashed))
        if own:
            sheet.figure.add_trace(_own(part, lower, named=not index))
    if harm:
        _strips(sheet, harm, fusions, shown, (width, gap, strip))
    return sheet.figure


def _with_room(writes: Sequence[int], last: int) -> list[int]:
    """At most MOST_CURVES write layers from the lowest up in even steps, none of them near the last layer."""
    below = [layer for layer in writes if layer < last] or list(writes)
    if len(below) <= MOST_CURVES:
        return below
    return [below[round(at * len(below) / MOST_CURVES)] for at in range(MOST_CURVES)]


def with_kl(table: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """The healing table with `kl_median`, `kl_low` and `kl_high` of each row's graft: quartiles of the KL over items.

    So that one table holds all that `healing_curves` shows, as publishing a figure requires.

    Raises:
        ValueError: a table lacks a column or a number, or a graft of the healing table is not in that of the effects.

    >>> healing = pd.DataFrame({"fusion": ["sum"], "message": ["random"], "write_layer": [3]})
    >>> effects = pd.concat([healing] * 3).assign(kl=[0.5, 1.0, 2.0])
    >>> with_kl(healing, effects)[["kl_low", "kl_median", "kl_high"]].values.tolist()
    [[0.75, 1.0, 1.5]]
    """
    graft = ["fusion", "message", "write_layer"]
    values: dict[tuple[Any, ...], list[float]] = {}
    for row in full_records(effects, graft, ["kl"]):
        values.setdefault(tuple(row[name] for name in graft), []).append(float(row["kl"]))
    found = []
    for row in records(table, graft, []):
        key = tuple(row[name] for name in graft)
        if key not in values:
            raise ValueError(
                f"the table of effects has no row of {', '.join(map(str, key))}; give it those of the table"
            )
        quartiles = pd.Series(values[key]).quantile([0.5, 0.25, 0.75]).tolist()
        found.append(dict(zip(KL, quartiles, strict=True)))
    return table.reset_index(drop=True).assign(**pd.DataFrame(found).to_dict("list"))


def _rows(table: pd.DataFrame, message: str | None) -> list[dict[str, Any]]:
    """The rows of a message, once their numbers are known to be quartiles."""
    names = ["fusion", "message", "write_layer", "layer"]
    kl = list(KL) if KL[0] in table.columns else []
    deviation, percentile = ([f"{what}_{end}" for end in QUARTILES] for what in ("deviation", "percentile"))
    rows = records(table, names, [*deviation, *percentile, *kl, *([OWN] if OWN in table.columns else [])])
    for column in ("write_layer", "layer"):
        layers_in(rows, column)
    rows = [row for row in rows if row["layer"] >= row["write_layer"]]
    require_numbers(rows, [*deviation, *kl])
    messages = seen(rows, "message")
    rows = rows_of(rows, "message", message or ("other text" if "other text" in messages else messages[0]))
    require_once(rows, ["fusion", "write_layer", "layer"])
    for row in rows:
        for columns in (deviation, percentile, kl):
            middle, low, high = (row[column] for column in columns) if columns else (0, 0, 0)
            gap = columns == percentile and all(math.isnan(number) for number in (middle, low, high))
            if not gap and not -ROUNDING <= low <= middle <= high:
                raise ValueError(
                    f"{row['fusion']}, write layer {row['write_layer']}, layer {row['layer']} has {columns[1]} {low}, "
                    f"{columns[0]} {middle}, {columns[2]} {high}; they must rise from 0 on"
                )
    return rows


def _curve(
    rows: Sequence[Mapping[str, Any]],
    what: str,
    style: Style,
    axes: dict[str, str],
    name: str,
    *,
    named: bool,
    dashed: bool,
) -> list[go.Scatter]:
    """A line of medians in a band between the quartiles; layers without a number are left out."""
    rows = [row for row in rows if not math.isnan(row[f"{what}_median"])]
    if not rows:
        return []
    layers = [row["layer"] for row in rows]
    edge = [float(row[f"{what}_high"]) for row in rows] + [float(row[f"{what}_low"]) for row in reversed(rows)]
    red, green, blue = (int(style.colour[at : at + 2], 16) for at in (1, 3, 5))
    band = {"x": layers + layers[::-1], "y": edge, "fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.12)"}
    band |= {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
    marker = {"symbol": style.symbol, "size": 8, "color": style.colour, "maxdisplayed": 8}
    line = {"x": layers, "y": [float(row[f"{what}_median"]) for row in rows], "mode": "lines+markers"}
    line |= {"line": {"color": style.colour, "width": 2} | ({"dash": "8px,8px"} if dashed else {})}
    line |= {"marker": marker, "name": name, "legendgroup": name}
    return [go.Scatter(band | axes), go.Scatter(line | axes, showlegend=named)]


def _twins(rows: Sequence[Mapping[str, Any]], fusions: Sequence[str], top: float) -> dict[str, str]:
    """Each fusion whose median deviations equal those of an earlier one in all panels, with that one."""
    medians = {
        fusion: {(row["write_layer"], row["layer"]): row["deviation_median"] for row in rows if row["fusion"] == fusion}
        for fusion in fusions
    }
    found: dict[str, str] = {}
    for later, mine in medians.items():
        for first, theirs in medians.items():
            if first == later:
                break
            equal = mine.keys() == theirs.keys() and all(abs(mine[at] - theirs[at]) <= TWINS * top for at in mine)
            if equal and first not in found:
                found[later] = first
                break
    return found


def _own(rows: Sequence[Mapping[str, Any]], axes: dict[str, str], *, named: bool) -> go.Scatter:
    """The medians of the ungrafted run; they are the same for every fusion."""
    found = {row["layer"]: float(row[OWN]) for row in rows}
    found = {layer: median for layer, median in found.items() if not math.isnan(median)}
    line = {"x": list(found) or [None], "y": list(found.values()) or [None], "mode": "lines"}
    drawn = {"line": {"color": MUTED, "width": 2, "dash": "dash"}, "hoverinfo": "y", "name": OWN_ENTRY}
    return go.Scatter(line | drawn | axes, legendgroup=OWN_ENTRY, legendrank=AFTER, showlegend=named)


def _harm(rows: Sequence[Mapping[str, Any]], shown: Sequence[int]) -> dict[tuple[str, int], tuple[float, ...]]:
    """Median and quartiles of the KL by fusion and write layer."""
    found: dict[tuple[str, int], tuple[float, ...]] = {}
    for row in rows:
        key, kl = (row["fusion"], row["write_layer"]), tuple(float(row[column]) for column in KL)
        if found.setdefault(key, kl) != kl:
            raise ValueError(f"{key[0]}, write layer {key[1]} has the KL {found[key]} and {kl}; give each graft one")
    return {key: kl for key, kl in found.items() if key[1] in shown}


def _strips(
    sheet: Sheet,
    harm: Mapping[tuple[str, int], Sequence[float]],
    fusions: Sequence[str],
    shown: Sequence[int],
    sizes: tuple[int, int, int],
) -> None:
    """Below the curves, the effect of each graft on the next token."""
    width, gap, strip = sizes
    style_of = styles(fusions)
    names = names_axis([spoken(name) for name in fusions], "fusion")
    kl_axis = {"title": {"text": "KL of the next token (nats)"}, "type": "log", "gridcolor": GRID, "showgrid": True}
    kl_axis |= _decades([kl for quartiles in harm.values() for kl in quartiles])
    for index, write in enumerate(shown):
        number = 2 * len(shown) + index
        axes = sheet.panel(
            number, (index * (width + gap), 0, width, strip), kl_axis, bare(names) if index else names, ""
        )
        for row, fusion in enumerate(fusions):
            if (fusion, write) not in harm:
                continue
            middle, low, high = (max(kl, LEAST_KL) for kl in harm[fusion, write])
            bar = {"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low]}
            bar |= {"color": style_of[fusion].colour, "thickness": 2, "width": 0}
            marker = {"symbol": style_of[fusion].symbol, "size": 9, "color": style_of[fusion].colour}
            dot = {"x": [middle], "y": [row], "mode": "markers", "marker": marker, "showlegend": False}
            sheet.figure.add_trace(go.Scatter(dot | axes, error_x=bar, name=spoken(fusion)))


def _decades(values: Sequence[float]) -> dict[str, Any]:
    """The range of an axis of powers of ten, and labels at every one or every second of them."""
    held = [max(value, LEAST_KL) for value in values]
    low, high = math.floor(math.log10(min(held)) + 1e-9), math.ceil(math.log10(max(held)) - 1e-9)
    powers = range(low, max(high, low + 1) + 1)
    every = 1 + (len(powers) > 4)
    ticks = [10.0**power for power in powers if (power - powers[0]) % every == 0]
    text = [f"{tick:g}" for tick in ticks]
    if min(values) < LEAST_KL:
        text[0] = f"≤ {text[0]}"
    return {"range": [powers[0] - 0.2, powers[-1] + 0.2], "tickvals": ticks, "ticktext": text}


def _ticks(layers: Sequence[int]) -> dict[str, Any]:
    """Labels at every layer of a few, else in steps that do not crowd."""
    length = layers[-1] - layers[0]
    if len(layers) <= 8:
        return {"tickvals": list(layers)}
    return {
        "tick0": layers[0],
        "dtick": next(step for step in (1, 2, 5, 10, 20, 50) if length <= 7 * step or step == 50),
    }
