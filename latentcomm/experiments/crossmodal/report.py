"""The report of a cross-modal run: a table in the terminal, and accuracy by question."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from latentcomm.experiments.crossmodal.run import CrossModal
from latentcomm.experiments.crossmodal.splits import held_out
from latentcomm.experiments.crossmodal.table import CAPTIONS
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.models.vision import VisionSender
from latentcomm.reporting.plots import accuracy_by_question
from latentcomm.reporting.plots.tables import p_value, spoken

P_COLUMNS = ("silent", "words", "random", "shuffled")
"""Comparisons whose p-values are printed; the table has more."""


def crossmodal_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Accuracy by question and channel, alongside the same channel with the message of another picture."""
    return accuracy_by_question(
        table,
        title=f"What does a reader know of pictures? {settings['vision']} to {settings['receiver']}",
        note=f"Choices; 95 % Wilson intervals over pictures. {held_out(table['part'].unique())}",
    )


def describe_vision(vision: VisionSender) -> dict[str, Any]:
    """The metadata of an encoder."""
    return {
        "name": vision.name,
        "fingerprint": vision.fingerprint,
        "n_blocks": vision.n_blocks,
        "d_model": vision.d_model,
        "dtype": str(vision.dtype).removeprefix("torch."),
    }


def print_crossmodal(found: CrossModal, console: Console) -> None:
    """One table per question: of every channel both accuracies with intervals, the shuffled ones, and tests."""
    table = found.table
    metrics = list(dict.fromkeys(table["metric"]))
    for _, rows in table.groupby(["part", "question"], sort=False):
        records = rows.to_dict("records")
        part, question = records[0]["part"], records[0]["question"]
        guess = next((row["chance"] for row in records if not math.isnan(row["chance"])), math.nan)
        chance = "" if math.isnan(guess) else f"; guessing {guess:.2f}"
        shown = Table(title=f"{part}: {question} ({records[0]['type']}), {records[0]['n']} pictures{chance}")
        for head in ("channel", *metrics, "shuffled", *(f"p {name}" for name in P_COLUMNS)):
            shown.add_column(head, justify="left" if head == "channel" else "right", no_wrap=True)
        cells = {(row["channel"], row["condition"], row["metric"]): row for row in records}
        for channel in dict.fromkeys(rows["channel"]):
            own = [cells[channel, MESSAGE, metric] for metric in metrics]
            other = [cells.get((channel, "shuffled", metric)) for metric in metrics]
            last = cells.get((channel, MESSAGE, "choices"), own[-1])
            captions = [
                cells[name, MESSAGE, last["metric"]] for name in CAPTIONS if (name, MESSAGE, last["metric"]) in cells
            ]
            words = max((row for row in captions if row is not last), key=lambda row: row["accuracy"], default=None)
            shown.add_row(
                spoken(channel),
                *(f"{row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in own),
                "/".join("" if row is None else f"{row['accuracy']:.2f}" for row in other).strip("/"),
                p_value(last["p_silent"]),
                "-" if words is None else p_value(last[f"p_{words['channel']}"]),
                p_value(last["p_random_encoder"]),
                p_value(last["p_shuffled"]),
            )
        far = {channel: cells[channel, MESSAGE, metrics[0]]["drift"] for channel in dict.fromkeys(rows["channel"])}
        measured = [f"{spoken(channel)} {each:.2f}" for channel, each in far.items() if not math.isnan(each)]
        shown.caption = f"drift: {', '.join(measured)}" if measured else None
        console.print(shown)
    console.print(
        "95 % Wilson intervals. p: exact McNemar of the choices against silence, against words (the caption "
        "that got most of these pictures right, which favours words), against the random encoder, and against the "
        "channel's own message of another picture; not corrected for multiple tests. Drift: the median percentile of "
        "a map's output among the receiver's own states; 0.5 is typical of them, 1 further off than all. Probe: a "
        "linear classifier of the same latents that has seen the answers; it has no receiver.",
        highlight=False,
    )
