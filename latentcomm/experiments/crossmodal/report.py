"""The report of a cross-modal run: a table in the terminal, and accuracy by question."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.experiments.crossmodal.run import CrossModal
from latentcomm.experiments.crossmodal.splits import held_out
from latentcomm.experiments.crossmodal.table import CAPTIONS
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.models.vision import VisionSender
from latentcomm.reporting.plots import accuracy_by_question
from latentcomm.reporting.plots.tables import spoken
from latentcomm.reporting.terminal import Console, accuracy, interval, p_value, print_table


def crossmodal_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Accuracy by question and channel, alongside the same channel with the message of another picture."""
    return accuracy_by_question(
        table,
        title=f"What does a text-only model know of pictures? {settings['vision']} to {settings['receiver']}",
        note=f"Choices; 95 % Wilson intervals over pictures. {held_out(table['part'].unique())}",
    )


def describe_vision(vision: VisionSender) -> dict[str, Any]:
    """The metadata of an encoder."""
    facts = {name: getattr(vision, name) for name in ("name", "fingerprint", "n_blocks", "d_model")}
    return facts | {"dtype": str(vision.dtype).removeprefix("torch.")}


def print_crossmodal(found: CrossModal, console: Console) -> None:
    """One table per question: of every channel both accuracies with intervals, the shuffled ones, and tests."""
    table = found.table
    metrics = list(dict.fromkeys(table["metric"]))
    for _, rows in table.groupby(["part", "question"], sort=False):
        records = rows.to_dict("records")
        part, question = records[0]["part"], records[0]["question"]
        guess = next((row["chance"] for row in records if not math.isnan(row["chance"])), math.nan)
        chance = "" if math.isnan(guess) else f"; guessing {guess:.2f}"
        cells = {(row["channel"], row["condition"], row["metric"]): row for row in records}
        channels = list(dict.fromkeys(rows["channel"]))
        far = {channel: cells[channel, MESSAGE, metrics[0]]["drift"] for channel in channels}
        measured = [f"{spoken(channel)} {each:.2f}" for channel, each in far.items() if not math.isnan(each)]
        print_table(
            [_printed(channel, cells, metrics) for channel in channels],
            console,
            title=f"{part}: {question} ({records[0]['type']}), {records[0]['n']} pictures{chance}",
            caption=f"drift: {', '.join(measured)}" if measured else None,
        )
    console.print(
        "95 % Wilson intervals. p: exact McNemar of the choices against silence, against words (the caption "
        "that got most of these pictures right, which favours words), against the random encoder, and against the "
        "channel's own message of another picture; not corrected for multiple tests. Drift: the median percentile of "
        "a map's output among the receiver's own states; 0.5 is typical of them, 1 further off than all. Probe: a "
        "linear classifier of the same latents that has seen the answers; it has no receiver.",
        highlight=False,
    )


def _printed(
    channel: str, cells: Mapping[tuple[str, str, str], Mapping[Any, Any]], metrics: Sequence[str]
) -> dict[str, str]:
    """The row of a channel, from the table's rows by channel, condition and metric."""
    own = [cells[channel, MESSAGE, metric] for metric in metrics]
    last = cells.get((channel, MESSAGE, "choices"), own[-1])
    keys = [(name, MESSAGE, last["metric"]) for name in CAPTIONS if name != channel]
    captions = [cells[key] for key in keys if key in cells]
    words = max(captions, key=lambda row: row["accuracy"], default=None)
    return (
        {"channel": spoken(channel)}
        | {metric: interval(row) for metric, row in zip(metrics, own, strict=True)}
        | {
            "shuffled": "/".join(accuracy(cells.get((channel, "shuffled", metric))) for metric in metrics).strip("/"),
            "p silent": p_value(last["p_silent"]),
            "p words": "-" if words is None else p_value(last[f"p_{words['channel']}"]),
            "p random": p_value(last["p_random_encoder"]),
            "p other": p_value(last["p_shuffled"]),
        }
    )
