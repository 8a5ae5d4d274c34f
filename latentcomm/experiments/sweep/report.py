"""The report of a sweep: a table in the terminal, and two figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.experiments.evaluation import MESSAGE, METRICS
from latentcomm.experiments.job import Drawing
from latentcomm.experiments.sweep.run import LENS, UNEMBEDDED, SweepReport
from latentcomm.reporting.plots import condition_bars, layer_heatmap
from latentcomm.reporting.terminal import Console, interval, p_value, parts, print_table


def heatmap(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Accuracy by choices and by the first free token over all cells, alongside the message's logit
    lens.
    """
    return layer_heatmap(
        table,
        value={"choices_accuracy": "choices", "first_token_accuracy": "free, first token"},
        lens={"choices_accuracy": "lens_choices_accuracy", "first_token_accuracy": "lens_first_token_accuracy"},
        title=f"{settings['fusion']}: {settings['sender']} to {settings['receiver']}, {settings['task']}",
        note=(
            f"Tuning half, {int(table['n'].iloc[0])} items a cell, {len(table)} cells; "
            f"{settings['template']} prompts, sender form: {settings['sender_form']}."
        ),
        chosen=(settings["chosen_read_layer"], settings["chosen_write_layer"]),
    )


def conditions_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Accuracy with its interval of every channel and control, on the items that the cell was not chosen on."""
    read, write = settings["chosen_read_layer"], settings["chosen_write_layer"]
    return condition_bars(
        table.replace({"condition": {UNEMBEDDED: f"layer {read}"}}),
        group="channel",
        title=f"Is it the message? {settings['sender']} to {settings['receiver']}, {settings['task']}",
        note=(f"Test half, cell k = {read}, j = {write} {_choice(settings)}; 95 % Wilson intervals over items."),
        chance={"choices": 1 / settings["n_choices"]} if settings["n_choices"] else None,
    )


def _choice(settings: Mapping[str, Any]) -> str:
    n_cells = settings["n_cells"]
    return f"chosen on the tuning half among {n_cells} cells" if n_cells else "given"


def choice_of(report: SweepReport) -> dict[str, int]:
    """What the figures and the metadata record of the chosen cell, besides the settings."""
    return {
        "chosen_read_layer": report.chosen[0],
        "chosen_write_layer": report.chosen[1],
        "n_cells": report.n_cells,
        "n_choices": report.trials[0].n_choices,
    }


def sweep_drawings(report: SweepReport, settings: Mapping[str, Any]) -> dict[str, Drawing]:
    """Both figures by their suffix, of a given cell the conditions alone; `settings` hold those of `choice_of`."""
    conditions = Drawing(conditions_figure(report.conditions, settings), report.conditions)
    if report.cells.empty:
        return {"": conditions}
    return {"": Drawing(heatmap(report.cells, settings), report.cells), "_conditions": conditions}


def print_report(report: SweepReport, console: Console) -> None:
    """Print the table of the test half, and the sentences that explain it."""
    read, write = report.chosen
    by_row: dict[tuple[str, str], dict[str, dict[Any, Any]]] = {}
    for row in report.conditions.to_dict("records"):
        by_row.setdefault((row["channel"], row["condition"]), {})[row["metric"]] = row
    metrics = [metric for metric in METRICS if metric in set(report.conditions["metric"])]
    how = f"best of {report.n_cells} on the tuning half" if report.n_cells else "given"
    shown = []
    for (channel, condition), rows in by_row.items():
        message = {MESSAGE: "-" if channel in ("silent", "skyline") else "true", UNEMBEDDED: f"layer {read}"}
        shown.append(
            {"channel": channel, "message": message.get(condition, condition)}
            | {metric: interval(rows[metric]) for metric in metrics}
            | {f"p {name}": _p_values(rows, f"p_{name}", metrics) for name in ("silent", "shuffled")}
        )
    print_table(
        shown,
        console,
        text=("channel", "message"),
        title=f"cell k = {read} (sender), j = {write} (receiver): {how}",
        caption=f"test half, n = {int(report.conditions['n'].iloc[0])} other items; 95 % Wilson intervals; "
        "exact McNemar p",
    )
    for lens in [rows["free"]["accuracy"] for (channel, _), rows in by_row.items() if channel == LENS]:
        console.print(
            f"Logit lens of the message: in {lens:.0%} of the items the sender's own state after layer {read} already "
            "has the answer's first token on top (the criterion of its 'free'); to that extent the graft sends the "
            "answer.",
            highlight=False,
        )
    console.print(
        f"p: {' / '.join(metrics)}, against silence and against another item's message; "
        "not corrected for multiple tests.",
        highlight=False,
    )


def _p_values(rows: Mapping[str, Mapping[Any, Any]], column: str, metrics: Sequence[str]) -> str:
    values = [float(rows[metric][column]) for metric in metrics]
    return "" if any(math.isnan(value) for value in values) else parts([p_value(value) for value in values])
