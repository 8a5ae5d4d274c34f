"""The effects of an audit: what the content of a message does, what its presence, and what both."""

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import records, split_by, spoken
from latentcomm.reporting.style import GRID, LETTER, MUTED, TICK_SIZE, Style, bare, blank_sheet, dots, names_axis

EFFECTS = {
    "content": Style("#0072B2", "circle"),
    "presence": Style("#D55E00", "square-open"),
    "total": Style("#000000", "line-ns-open"),
}
"""The effects that are drawn, each with its style."""
ROW = 36
"""px from one channel to the next."""


def audit_effects(table: pd.DataFrame, *, title: str, note: str = "") -> go.Figure:
    """Content, presence and their sum: three dots with intervals a channel, a panel a metric.

    The table is that of `audit`; a dot right of the line helps the receiver, and effects that are NaN are left out.

    Raises:
        ValueError: the table is empty or lacks a column.

    >>> row = {"channel": "replace", "metric": "free", "n": 12}
    >>> row |= {"content": 0.5, "content_low": 0.25, "content_high": 0.7}
    >>> row |= {f"{name}{end}": 0.0 for name in ("presence", "total") for end in ("", "_low", "_high")}
    >>> audit_effects(pd.DataFrame([row]), title="One channel").data[0].x
    (0.5,)
    """
    ends = [f"{name}{end}" for name in EFFECTS for end in ("", "_low", "_high")]
    rows = records(table, ["channel", "metric"], [*ends, "n"])
    parts = split_by(rows, "metric")
    names = list(dict.fromkeys(str(row["channel"]) for row in rows))
    width, gap = 640 // len(parts), 16
    across, down = len(parts) * (width + gap) - gap, ROW * len(names)
    left = 48 + round(LETTER[TICK_SIZE] * max(len(spoken(name)) for name in names))
    sheet = blank_sheet(title, note, list(EFFECTS), across=across, down=down, left=left, right=16, head=28)
    share_axis = {"range": [-1.03, 1.03], "dtick": 0.5, "title": {"text": "difference in accuracy"}}
    share_axis |= {"showgrid": True, "gridcolor": GRID, "zeroline": True, "zerolinecolor": MUTED, "zerolinewidth": 1.5}
    name_axis = names_axis([spoken(name) for name in names], "channel") | {"showgrid": True, "gridcolor": GRID}
    for index, (metric, part) in enumerate(parts.items()):
        spot = (index * (width + gap), 0, width, down)
        head = f"{metric} (n = {part[0]['n']})"
        axes = sheet.panel(index, spot, share_axis, bare(name_axis) if index else name_axis, head)
        for number, (name, style) in enumerate(EFFECTS.items()):
            shown = [row for row in part if not pd.isna(row[name])]
            dotted = [
                {"accuracy": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"], "n": row["n"]}
                for row in shown
            ]
            heights = [names.index(str(row["channel"])) + (number - 1) * 0.27 for row in shown]
            sheet.figure.add_trace(dots(dotted, heights, style, axes, name, named=not index))
    return sheet.figure
