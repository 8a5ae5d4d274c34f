"""Losses of trained channels against the updates: on the examples that are trained on, and on held-out ones."""

import math

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import records, require_once, seen, spoken
from latentcomm.reporting.style import MUTED, blank_sheet, styles

TRAINED, HELD_OUT = "training examples", "held-out examples"
WIDTH, HEIGHT, GAP = 560, 130, 40
"""px across and down a panel, and between two."""


def loss_curves(table: pd.DataFrame, *, title: str, note: str = "") -> go.Figure:
    """A panel a channel: the mean loss since the last mark, and the loss on held-out examples at the mark.

    The table has a row a `channel` and `update`, with `loss` and `held_out_loss`; either may be NaN.

    Raises:
        ValueError: the table is empty, lacks a column, or has an update of a channel twice.

    >>> rows = [{"channel": "gated", "update": 20, "loss": 2.0, "held_out_loss": 2.5}]
    >>> loss_curves(pd.DataFrame(rows), title="A training").data[0].y
    (2.0,)
    """
    rows = records(table, ["channel"], ["update", "loss", "held_out_loss"])
    require_once(rows, ["channel", "update"])
    channels = seen(rows, "channel")
    down = len(channels) * (HEIGHT + GAP) - GAP
    sheet = blank_sheet(title, note, [TRAINED, HELD_OUT], across=WIDTH, down=down, left=76, right=32, head=24)
    style_of = styles(channels)
    for panel, channel in enumerate(channels):
        last = panel == len(channels) - 1
        x_axis = {"rangemode": "tozero"} | ({"title": {"text": "updates"}} if last else {"title": {"text": ""}})
        y_axis = {"title": {"text": "loss"}, "rangemode": "tozero"}
        bottom = down - HEIGHT - panel * (HEIGHT + GAP)
        axes = sheet.panel(panel, (0, bottom, WIDTH, HEIGHT), x_axis, y_axis, spoken(channel))
        for column, name, colour, dash in (
            ("loss", TRAINED, MUTED, "dot"),
            ("held_out_loss", HELD_OUT, style_of[channel].colour, "solid"),
        ):
            part = [row for row in rows if row["channel"] == channel and not math.isnan(row[column])]
            curve = {"x": [row["update"] for row in part], "y": [row[column] for row in part], "mode": "lines+markers"}
            line = {"color": colour, "width": 2, "dash": dash}
            legend = {"name": name, "legendgroup": name, "showlegend": not panel and bool(part)}
            sheet.figure.add_trace(go.Scatter(curve | axes | legend, line=line))
    return sheet.figure
