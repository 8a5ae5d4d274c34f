"""A text-only receiver on pictures: accuracy by question and channel, and against the number of training pairs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.reporting.plots.tables import records, require_numbers, require_once, rows_of, seen, spoken
from latentcomm.reporting.style import (
    FOOT,
    GRID,
    LETTER,
    LINE,
    MUTED,
    TICK_SIZE,
    Style,
    bare,
    blank_sheet,
    chance_line,
    dots,
    names_axis,
    styles,
)

NUMBERS = ["accuracy", "low", "high", "n"]
QUESTION = ["part", "question", "channel", "condition", "metric"]
SHARE = {"range": [-0.05, 1.05], "dtick": 0.5, "showgrid": True, "gridcolor": GRID}
ACROSS, GAP, HEAD = 3, 24, 28 + LINE
"""Panels in a row, px between two, and of the two lines above each."""
WIDTH, STEP = 200, 20
"""px across a panel, and from one channel to the next."""
LABEL = 30
"""px that a number of three digits takes below an axis."""
OTHER = Style(MUTED, "circle-open")
"""The style of the same channel with another picture's message."""
PICTURE_STYLES = {
    "soft_prompt": Style("#0072B2", "circle"),
    "soft_prompt_trained": Style("#56B4E9", "hexagon2"),
    "graft": Style("#009E73", "triangle-up"),
    "caption": Style("#661100", "star"),
    "caption_by_map": Style("#D55E00", "square"),
    "caption_by_word": Style("#999933", "pentagon"),
    "random_encoder": Style("#E69F00", "cross"),
    "graft_random_encoder": Style("#117733", "hourglass"),
    "shuffled_names": Style("#CC79A7", "x"),
    "graft_shuffled_names": Style("#882255", "bowtie"),
    "trained_other_pictures": Style("#AA4499", "triangle-down"),
    "probe": Style("#222222", "diamond-wide"),
}
"""Channels of pictures; others have their style of every figure."""


def accuracy_by_question(
    table: pd.DataFrame, *, title: str, note: str = "", metric: str = "choices", control: str = "shuffled"
) -> go.Figure:
    """Accuracy with its interval: a panel a question, in it a row a channel; small open dots are the `control`.

    The table is that of `crossmodal.table.picture_table`. The dotted line is guessing among the choices.

    Raises:
        ValueError: the table is empty, lacks a column or a number, has no row of the metric, a row twice, or an
            accuracy outside its interval.

    >>> row = {"part": "digits", "question": "colour", "channel": "silent", "condition": "message", "metric": "choices"}
    >>> row |= {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 12, "chance": 0.25}
    >>> accuracy_by_question(pd.DataFrame([row]), title="One dot").data[1].x
    (0.5,)
    """
    rows = rows_of(records(table, QUESTION, [*NUMBERS, "chance"]), "metric", metric)
    rows = [row for row in rows if row["condition"] in ("message", control)]
    require_numbers(rows, NUMBERS)
    require_once(rows, QUESTION)
    for row in rows:
        _require_share(row)
    channels = seen(rows, "channel")
    questions = list(dict.fromkeys((row["part"], row["question"]) for row in rows))
    style_of = _styles(channels)
    n_across, n_down = min(ACROSS, len(questions)), math.ceil(len(questions) / ACROSS)
    height, between = STEP * len(channels), HEAD + 16
    across, down = n_across * (WIDTH + GAP) - GAP, n_down * (height + between) - between
    left = 48 + round(LETTER[TICK_SIZE] * max(len(spoken(name)) for name in channels))
    other = f"the same, {control} picture"
    has_chance = any(not math.isnan(row["chance"]) for row in rows)
    entries = ["its own picture", other, *(["chance"] if has_chance else [])]
    right = max(24, 480 - left - across)
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=left, right=right, head=HEAD, foot=FOOT)
    share_axis = SHARE | {"title": {"text": "accuracy"}}
    name_axis = names_axis([spoken(name) for name in channels], "channel")
    sheet_axes: dict[str, str] = {}
    for index, (part, question) in enumerate(questions):
        here = [row for row in rows if (row["part"], row["question"]) == (part, question)]
        column, line = index % ACROSS, index // ACROSS
        lowest = index + ACROSS >= len(questions)
        spot = (column * (WIDTH + GAP), down - height - line * (height + between), WIDTH, height)
        head = f"{part}<br>{question} (n = {here[0]['n']})"
        axes = sheet.panel(
            index, spot, share_axis if lowest else bare(share_axis), bare(name_axis) if column else name_axis, head
        )
        sheet_axes = sheet_axes or axes
        for at in range(1, len(channels), 2):
            sheet.shade(axes, at - 0.5, at + 0.5)
        chance = [row["chance"] for row in here if not math.isnan(row["chance"])]
        if chance:
            guess = chance_line({question: sum(chance) / len(chance)}, question, len(channels), axes, named=not index)
            sheet.figure.add_traces(guess)
        for at, channel in enumerate(channels):
            for row in here:
                if row["channel"] != channel:
                    continue
                own = row["condition"] == "message"
                sheet.figure.add_trace(
                    dots([row], [at if own else at + 0.28], style_of[channel] if own else OTHER, axes, channel)
                )
                if not own:
                    sheet.figure.data[-1].update({"marker": {"size": 6, "line": {"width": 1}}})
    for name, style in (("its own picture", Style(MUTED, "circle")), (other, OTHER)):
        sheet.figure.add_trace(dots([], [], style, sheet_axes, name, named=True))
    return sheet.figure


def accuracy_against_pairs(
    table: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    metric: str = "choices",
    control: str = "shuffled",
    over: str = "pairs",
) -> go.Figure:
    """Accuracy with its interval against the number of pictures that maps were fitted on: a panel a question.

    The table is that of `crossmodal.table.picture_table` with a column `over`: "pairs", or "names" of which there may
    be several pictures each. A line a channel, a thin dashed one in its colour for the `control`; the dotted line is
    guessing among the choices.

    Raises:
        ValueError: as in `accuracy_by_question`, and where a number of pairs is not above 0.

    >>> row = {"part": "digits", "question": "colour", "channel": "silent", "condition": "message", "metric": "choices"}
    >>> row |= {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 12, "chance": 0.25, "pairs": 30}
    >>> accuracy_against_pairs(pd.DataFrame([row]), title="One dot").data[1].y
    (0.5,)
    """
    rows = rows_of(records(table, QUESTION, [*NUMBERS, "chance", over]), "metric", metric)
    rows = [row for row in rows if row["condition"] in ("message", control)]
    require_numbers(rows, [*NUMBERS, over])
    require_once(rows, [*QUESTION, over])
    for row in rows:
        _require_share(row)
        if not row[over] > 0:
            raise ValueError(f"{row['channel']} has {row[over]} {over}; a logarithmic axis needs numbers above 0")
    channels = seen(rows, "channel")
    questions = list(dict.fromkeys((row["part"], row["question"]) for row in rows))
    style_of = _styles(channels)
    n_across, n_down = min(ACROSS, len(questions)), math.ceil(len(questions) / ACROSS)
    height, between = 190, HEAD + 16
    across, down = n_across * (WIDTH + GAP) - GAP, n_down * (height + between) - between
    other = f"the same, {control} picture"
    entries = [*map(spoken, channels), "chance", other]
    right = max(24, 480 - 66 - across)
    sheet = blank_sheet(title, note, entries, across=across, down=down, left=66, right=right, head=HEAD, foot=FOOT)
    pairs = sorted({int(row[over]) for row in rows})
    ends = [math.log10(pairs[0]) - 0.08, math.log10(pairs[-1]) + 0.08]
    named = _with_room(pairs, WIDTH / (ends[1] - ends[0]))
    ticks = {"tickvals": pairs, "ticktext": [str(each) if each in named else "" for each in pairs], "tickangle": 0}
    pairs_axis = {"type": "log", "range": ends, **ticks, "title": {"text": f"training {over}"}}
    share_axis = SHARE | {"title": {"text": "accuracy"}}
    for index, (part, question) in enumerate(questions):
        here = [row for row in rows if (row["part"], row["question"]) == (part, question)]
        column, line = index % ACROSS, index // ACROSS
        lowest = index + ACROSS >= len(questions)
        spot = (column * (WIDTH + GAP), down - height - line * (height + between), WIDTH, height)
        axes = sheet.panel(
            index, spot, pairs_axis if lowest else bare(pairs_axis), bare(share_axis) if column else share_axis,
            f"{part}<br>{question} (n = {here[0]['n']})",
        )  # fmt: skip
        guess = next((row["chance"] for row in here if not math.isnan(row["chance"])), None)
        line_of = {"color": MUTED, "dash": "dot", "width": 1.5}
        flat = {"x": [pairs[0], pairs[-1]], "y": [guess, guess], "mode": "lines", "line": line_of, "name": "chance"}
        sheet.figure.add_trace(go.Scatter(flat | axes, showlegend=not index, hoverinfo="skip", legendgroup="chance"))
        for channel in channels:
            found = sorted((row for row in here if row["channel"] == channel), key=lambda row: row[over])
            own = [row for row in found if row["condition"] == "message"]
            sheet.figure.add_trace(_line(own, over, style_of[channel], axes, channel, named=not index))
            if len(own) < len(found):
                controls = [row for row in found if row["condition"] != "message"]
                sheet.figure.add_trace(_thin(controls, over, axes, other, style_of[channel].colour))
        if not index:
            sheet.figure.add_trace(_thin([], over, axes, other, MUTED, named=True))
    return sheet.figure


def _with_room(values: Sequence[int], per_decade: float) -> list[int]:
    """The values whose labels do not overlap on a logarithmic axis, the largest first, given its px per decade.

    >>> _with_room([15, 30, 60, 120, 166, 237], 147.0)
    [237, 120, 60, 30, 15]
    """
    labelled: list[int] = []
    for value in sorted(values, reverse=True):
        if not labelled or math.log10(labelled[-1] / value) * per_decade >= LABEL:
            labelled.append(value)
    return labelled


def _thin(
    rows: Sequence[Mapping[str, Any]],
    over: str,
    axes: Mapping[str, str],
    name: str,
    colour: str,
    *,
    named: bool = False,
) -> go.Scatter:
    """A thin line next to a channel's own; without rows, its legend entry."""
    drawn = {"x": [row[over] for row in rows] or [None], "y": [row["accuracy"] for row in rows] or [None]}
    drawn |= {"mode": "lines+markers", "line": {"color": colour, "width": 1, "dash": "dash"}, "name": name}
    drawn |= {"marker": {"color": colour, "symbol": "circle-open", "size": 5}, "legendgroup": name}
    return go.Scatter(drawn | dict(axes), showlegend=named)


def _line(
    rows: Sequence[Mapping[str, Any]], over: str, style: Style, axes: Mapping[str, str], channel: str, *, named: bool
) -> go.Scatter:
    bar = {"type": "data", "symmetric": False, "array": [row["high"] - row["accuracy"] for row in rows]}
    bar |= {"arrayminus": [row["accuracy"] - row["low"] for row in rows], "thickness": 1, "width": 0}
    drawn = {"x": [row[over] for row in rows] or [None], "y": [row["accuracy"] for row in rows] or [None]}
    drawn |= {"mode": "lines+markers", "line": {"color": style.colour, "width": 2}, "name": spoken(channel)}
    drawn |= {"marker": {"color": style.colour, "symbol": style.symbol, "size": 8}, "legendgroup": channel}
    return go.Scatter(drawn | dict(axes), error_y=bar | {"color": style.colour}, showlegend=named)


def _styles(channels: Sequence[str]) -> dict[str, Style]:
    return styles(channels) | {name: PICTURE_STYLES[name] for name in channels if name in PICTURE_STYLES}


def _require_share(row: Mapping[str, Any]) -> None:
    if not 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1:
        raise ValueError(f"{row['channel']}: accuracy {row['accuracy']} is outside {row['low']} to {row['high']}")
