"""How well each drift detector separates states that are known to be off: a table of AUROC in colours."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import full_records, seen, split_by, spoken
from latentcomm.reporting.style import (
    DIVERGING,
    INK,
    LETTER,
    LINE,
    PAGE,
    TICK_SIZE,
    bare,
    blank_sheet,
    colour_axis,
    names_axis,
)

BAR = 84
"""px right of the panels for the colour bar."""
HEAD_SIZE = 12
"""px of the families' names, so that ten of them fit upright on a page."""


def detector_table(
    table: pd.DataFrame,
    *,
    title: str,
    value: str | Mapping[str, str] = "two_sided",
    note: str = "",
    panels: str = "layer",
) -> go.Figure:
    """How well each detector (a line) separates each known-off family (a column) from real states: AUROC, 0.5 in white.

    The table has columns `family`, `detector`, the value's (AUROC, from 0 to 1) and that of `panels`, each of whose
    values gets its panel, one below the other; `value` may name several columns, and what each one's panel is called.
    Orange is above 0.5 (separated), blue below (ranked as more real than real ones); the scale runs between the sky
    blue and the orange of Okabe & Ito 2008, which every kind of colour vision distinguishes.

    Raises:
        ValueError: the table is empty, lacks a column or a number, has an entry twice, or a value that is not between
            0 and 1.

    >>> table = pd.DataFrame({"layer": [3], "family": ["sum"], "detector": ["knn"], "two_sided": [0.75]})
    >>> detector_table(table, title="One number").data[0].z
    ([0.75],)
    """
    values = {value: ""} if isinstance(value, str) else dict(value)
    rows = full_records(table, ["family", "detector", panels], list(values))
    for column in values:
        if wrong := [row[column] for row in rows if not 0 <= row[column] <= 1]:
            raise ValueError(f"column {column} has {wrong[0]}; an AUROC is between 0 and 1")
    families, detectors = (seen(rows, column) for column in ("family", "detector"))
    left = 40 + round(LETTER[TICK_SIZE] * max(len(spoken(name)) for name in detectors))
    heads, cell, lines, angle = _heads(families, PAGE - left - BAR - 8)
    wide, high, gap = cell * len(families), max(24, 120 // len(detectors)) * len(detectors), LINE + 18
    parts = [
        (", ".join(filter(None, (f"{spoken(panels)} {name}", title))), part, column)
        for name, part in split_by(rows, panels).items()
        for column, title in values.items()
    ]
    across, down = wide + BAR, len(parts) * (high + gap) - gap
    foot = 44 + LINE * lines
    room = 8 + max(0, 480 - left - across)
    sheet = blank_sheet(title, note, [], across=across, down=down, left=left, right=room, head=LINE + 10, foot=foot)
    bar = colour_axis((0.0, 1.0), "AUROC", (wide + 14) / across)
    bar["colorbar"] |= {"lenmode": "pixels", "len": high, "y": 1, "yanchor": "top", "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    sheet.figure.update_layout(coloraxis=bar | {"colorscale": DIVERGING})
    x_axis = {"title": {"text": "states known to be off"}, "tickvals": list(range(len(families))), "ticktext": heads}
    x_axis |= {"range": [-0.5, len(families) - 0.5], "ticks": "", "tickangle": angle, "tickfont": {"size": HEAD_SIZE}}
    y_axis = names_axis([spoken(name) for name in detectors], "detector")
    for index, (name, part, column) in enumerate(parts):
        cells: dict[tuple[str, str], float] = {}
        for row in part:
            key = row["family"], row["detector"]
            if key in cells:
                raise ValueError(f"{key[0]}, {key[1]} is in panel {name!r} more than once; give it one row")
            cells[key] = float(row[column])
        spot = (0, down - high - index * (high + gap), wide, high)
        axes = sheet.panel(index, spot, x_axis if index == len(parts) - 1 else bare(x_axis), y_axis, name)
        z = [[cells.get((family, detector)) for family in families] for detector in detectors]
        text = [["" if cell is None else f"{cell:.2f}" for cell in line] for line in z]
        heat = {"x": list(range(len(families))), "y": list(range(len(detectors))), "z": z, "text": text}
        heat |= {"texttemplate": "%{text}", "textfont": {"size": TICK_SIZE, "color": INK}, "coloraxis": "coloraxis"}
        sheet.figure.add_trace(go.Heatmap(heat | axes, xgap=1, ygap=1, hoverinfo="z"))
    return sheet.figure


def _heads(names: Sequence[str], room: int) -> tuple[list[str], int, int, int]:
    """The columns' names, px a column, lines the names take and their angle: turned where a word a line is too wide."""
    words = [spoken(name).split(" ") for name in names]
    letter = LETTER[TICK_SIZE] * HEAD_SIZE / TICK_SIZE
    cell = 4 + round(letter * max(len(word) for each in words for word in each))
    if cell * len(names) <= room:
        return ["<br>".join(each) for each in words], max(cell, min(72, room // len(names))), max(map(len, words)), 0
    longest = letter * max(len(" ".join(each)) for each in words)
    return [" ".join(each) for each in words], max(40, room // len(names)), math.ceil(longest / LINE), -90
