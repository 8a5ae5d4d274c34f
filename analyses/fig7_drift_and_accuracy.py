"""Figure 7: does the drift of a fused state predict the accuracy of a cell?

    python analyses/fig7_drift_and_accuracy.py [--smoke] [--replot] [--out DIR] [--sender NAME] [--receiver NAME]

Over all cells of the layer sweep on Countries but those that write after the last block: the accuracy by choices, and
the median over items of how rare the fused state is among the receiver's own states at that write layer, by each
detector. Spearman's rho over cells, plain, with accuracy on other items than the drift was measured on, given depth,
given the logit lens, and within one write layer, with what the logit lens of the message (the log-probability that it
gives the right choice among the choices) and the layer indices alone predict. Of the sender with itself or, where a
receiver is named, with that, through maps fitted on a corpus. It resumes where it was stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from common import CorpusSettings, corpus_rows, run_pair
from correlation import drift_against_accuracy
from jaxtyping import Float
from torch import Tensor

import latentcomm as lc
from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm._core.stats import cell_rank_correlation
from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.channels.base import receiver_prompts, sender_prompts
from latentcomm.drift import COMBINED, DETECTORS, PANEL, DriftReference, fit_drift_reference
from latentcomm.drift.rarity import combined_surprise, surprise
from latentcomm.experiments.diagnosis.cells import fit_references
from latentcomm.experiments.diagnosis.rows import Rows
from latentcomm.fusion import Fusion, Mean, Replace, Sum
from latentcomm.hooks.capture import capture_positions
from latentcomm.hooks.graft import LAST
from latentcomm.models import encode
from latentcomm.models.prompts import Prompts
from latentcomm.reporting.style import GRID, INK, LETTER, LINE, TICK_SIZE, bare, blank_sheet, dots, names_axis, styles
from latentcomm.tasks import Task, countries, draw_choices

NAME = "fig7_drift_and_accuracy"
FUSIONS: Mapping[str, Fusion] = {"replace": Replace(), "mean": Mean(), "sum": Sum()}
LAST_TOKENS, ANY_TOKENS = "last tokens of the task", "any token of the corpus"
PREDICTORS = (COMBINED, *DETECTORS)
LENS = "logit_lens"
"""How near the message is to the answer before any receiver reads it: nats, the same for all cells of a read layer."""
LAYERS = ("read layer", "write layer", "|read - write|")
"""What a cell's layer indices alone predict, measured with the detectors."""
FLAGGED, RATE = "flagged", 0.05
"""A state that the panel calls drifted; of real states it is one in twenty."""
STATISTICS = {
    "all cells": "all cells",
    "all cells, held-out items": "all cells,<br>held-out items",
    "given the lens": "given the<br>logit lens",
    "given both layers": "given read and<br>write layer",
    "given both and their distance": "given these and<br>their distance",
    "within a write layer": "within a<br>write layer",
}
"""The statistics shown, and the heads of their panels; those that a table lacks have none."""
OF_LAYERS = ("given both layers", "given both and their distance")
ACCURACY, LOG_P = "accuracy", "log_p"
"""By choices; and the log-probability of the right choice among them, which sees what chance hides."""
MAP_FOLDS = 3
Cells = Float[Tensor, "item read write"]


@dataclass(frozen=True)
class Settings(CorpusSettings):
    """All that decides the figure."""

    read_layers: tuple[int, ...] | None = None
    write_layers: tuple[int, ...] | None = None
    stride: int = 2
    """Every which layer of either model, where a receiver is named."""
    n_items: int = 60
    names: tuple[str, ...] = ("Alice", "Ben", "Clara")
    block: int = 3
    """Neighbouring layers that are resampled together."""
    n_resamples: int = 500


SETTINGS = Settings()
SMOKE = replace(
    SETTINGS, names=("Alice",), read_layers=(19, 22, 25, 28), write_layers=(20, 23, 26, 28), stride=1, n_items=6,
    max_tokens=24, block=1, n_resamples=20,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Grid:
    """The cells of a pair, the task, and how a message enters each."""

    sender: lc.Model
    receiver: lc.Model
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    task: Task
    maps: Mapping[tuple[int, int], AffineMap] | None
    records: Records

    @property
    def frame(self) -> pd.DataFrame:
        """A row a cell, in the order of `[read write]`."""
        cells = [(read, write, abs(read - write)) for read in self.reads for write in self.writes]
        return pd.DataFrame(cells, columns=list(LAYERS))


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The correlations, and beneath them a row a fusion, cell and kind of reference."""
    records, one_model = Records(checkpoint), sender is receiver
    step = 1 if one_model else settings.stride
    reads = settings.read_layers or tuple(range(0, sender.n_layers, step))
    writes = settings.write_layers or tuple(range(0, receiver.n_layers - 1, step))
    _, rows = corpus_rows(settings, sender, receiver, checkpoint)
    maps = None if one_model else _maps(rows, reads, writes, settings.seed, records)
    task = countries().split(seed=settings.seed)[0].take(settings.n_items, seed=settings.seed)
    grid = Grid(sender, receiver, reads, writes, task, maps, records)
    options = {"seed": settings.seed, "records": records, "progress": True}
    references = {
        LAST_TOKENS: _task_references(settings, grid),
        ANY_TOKENS: fit_references(rows, writes, model=receiver.fingerprint, **options),
    }
    correlations, cells = [], []
    for fusion in FUSIONS:
        outcomes, lens = _outcomes(settings, grid, fusion)
        for kind, layers in references.items():
            rare = _drift(grid, fusion, kind, layers) | {LENS: lens}
            correlations.append(_correlations(settings, grid, outcomes, rare))
            cells.append(_cells(grid, outcomes, rare))
            for table in (correlations[-1], cells[-1]):
                table.insert(0, "reference", kind)
                table.insert(0, "fusion", fusion)
    return pd.concat(correlations, ignore_index=True), pd.concat(cells, ignore_index=True)


def _maps(
    rows: Rows, reads: tuple[int, ...], writes: tuple[int, ...], seed: int, records: Records
) -> dict[tuple[int, int], AffineMap]:
    """Of every cell the ridge map from the sender's states to the receiver's, fitted on half of the documents."""
    cells = [(read, write) for read in reads for write in writes]
    options = {"folds": MAP_FOLDS, "groups": rows.document[rows.fit], "seed": seed}
    found = {}
    for read, write in track(cells, "maps", total=len(cells)):
        found[read, write] = records.saved(
            f"map-{read:03d}-{write:03d}",
            lambda k=read, j=write: fit_ridge(rows.x[k, rows.fit], rows.y[j, rows.fit], **options),
            AffineMap.load,
        )
    return found


def _task_references(settings: Settings, grid: Grid) -> dict[int, DriftReference]:
    """Of the receiver's own states at the last token of the other items' sentence and question, item by item.

    It is what the receiver would hold had it read what the sender reads; some other persons' names make more of them.
    """
    taken = {item.id for item in grid.task.items}
    others = [
        (item.skyline.replace("Alice", name), item.id)
        for item in countries().items
        if item.id not in taken
        for name in settings.names
    ]
    states = _last_states(grid.receiver, encode(grid.receiver, [text for text, _ in others]), grid.writes)

    def fitted(layer: int) -> DriftReference:
        options = {"seed": settings.seed, "model": grid.receiver.fingerprint, "groups": [item for _, item in others]}
        return fit_drift_reference(states[layer], site=lc.Site(layer), kind="last token", **options)

    return {
        layer: grid.records.saved(f"task-reference-{layer:03d}", lambda layer=layer: fitted(layer), DriftReference.load)
        for layer in track(grid.writes, LAST_TOKENS, total=len(grid.writes))
    }


def _last_states(model: lc.Model, prompts: Prompts, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """The states at each prompt's last token after these layers."""
    found = capture_positions(model, prompts, [lc.Site(layer) for layer in layers], LAST)
    return {site.layer: states for site, states in found.items()}


def _outcomes(settings: Settings, grid: Grid, fusion: str) -> tuple[dict[str, Cells], Cells]:
    """Whether each item was answered right in each cell, and the log-probability of the right choice among all.

    Then the log-probability that the logit lens of the message gives it.
    """
    choices = draw_choices(grid.task, grid.receiver.first_token, seed=settings.seed)
    right = [item.choice for item in grid.task.items]
    sweep = lc.sweep_layers(
        grid.sender,
        grid.receiver,
        sender_prompts(grid.sender, grid.task),
        receiver_prompts(grid.receiver, grid.task),
        fusion=FUSIONS[fusion],
        alignment=grid.maps,
        read_layers=grid.reads,
        write_layers=grid.writes,
        choices=choices,
        top_token=False,
        checkpoint=None if grid.records.folder is None else grid.records.folder / "sweep",
        progress=True,
    )
    if sweep.logits is None:
        raise RuntimeError("the sweep gave no logits of the choices")
    own = torch.tensor([row.index(choice) for row, choice in zip(choices, right, strict=True)])
    likely = sweep.logits.double().log_softmax(-1)[torch.arange(len(own)), :, :, own]
    lens = _lens(grid.sender, sweep.messages, choices, own)[:, :, None].expand_as(likely)
    return {ACCURACY: sweep.correct(right), LOG_P: likely}, lens


def _lens(
    sender: lc.Model, states: Float[Tensor, "item read d_sender"], choices: Sequence[Sequence[str]], own: Tensor
) -> Float[Tensor, "item read"]:
    """The log-probability of the right choice among the choices, of each message unembedded by the sender."""
    columns = torch.tensor([[sender.first_token(choice) for choice in row] for row in choices])
    read = [sender.unembed(sender.final_norm(layer)).cpu().gather(1, columns) for layer in states.unbind(1)]
    return torch.stack(read, 1).double().log_softmax(-1)[torch.arange(len(own)), :, own]


def _drift(grid: Grid, fusion: str, kind: str, references: Mapping[int, DriftReference]) -> dict[str, Cells]:
    """How rare each fused state is among the receiver's own: -log p in nats of the two-sided p-value, by detector."""
    sent = _last_states(grid.sender, sender_prompts(grid.sender, grid.task), grid.reads)
    own = _last_states(grid.receiver, receiver_prompts(grid.receiver, grid.task), grid.writes)

    def measured(write: int) -> dict[str, Tensor]:
        messages = [sent[read] if grid.maps is None else grid.maps[read, write](sent[read]) for read in grid.reads]
        fused = torch.stack([FUSIONS[fusion](own[write], message) for message in messages], 1)
        drift = references[write].measure(fused.flatten(0, 1).double())
        real = dict(zip(DETECTORS, references[write].held_out_scores.T, strict=True))
        rare = {name: surprise(drift.scores[name], real[name]) for name in DETECTORS}
        rare[COMBINED] = combined_surprise(torch.stack([rare[name] for name in PANEL], 1))
        rare[FLAGGED] = (drift.p_value <= RATE).double()
        return {name: values.reshape(fused.shape[:2]) for name, values in rare.items()}

    name = f"drift-{fusion}-{kind.replace(' ', '-')}"
    steps = track(grid.writes, f"drift, {fusion}, {kind}", total=len(grid.writes))
    parts = [grid.records.tensors(f"{name}-{write:03d}", lambda j=write: measured(j)) for write in steps]
    return {name: torch.stack([part[name] for part in parts], 2) for name in (*PREDICTORS, FLAGGED)}


def _correlations(
    settings: Settings, grid: Grid, outcomes: Mapping[str, Cells], rare: Mapping[str, Cells]
) -> pd.DataFrame:
    """Spearman's rho of each predictor with both outcomes: over all cells, given depth, within a write layer."""
    read, write, distance = (grid.frame[name].astype(float).to_numpy() for name in LAYERS)
    axes = ((grid.reads, read), (grid.writes, write))
    blocks = [[layers.index(at) // settings.block for at in column] for layers, column in axes]
    blocks = [block for block in blocks if len(set(block)) > 1]
    statistics: dict[str, dict[str, Any]] = {
        "all cells": {"factors": blocks},
        "all cells, items alone": {},
        "all cells, held-out items": {"factors": blocks},
        "given the lens": {"factors": blocks, "given": [rare[LENS].quantile(0.5, 0).flatten().numpy()]},
        "given both layers": {"factors": blocks, "given": [read, write]},
        "given both and their distance": {"factors": blocks, "given": [read, write, distance]},
        "within a write layer": {"factors": blocks, "within": write},
    }
    predictors = {name: rare[name].flatten(1).numpy() for name in (*PREDICTORS, LENS)}
    predictors |= {name: np.tile(grid.frame[name].astype(float), (settings.n_items, 1)) for name in LAYERS}
    records = []
    for name, x in track(predictors.items(), "correlations", total=len(predictors)):
        for outcome, y in outcomes.items():
            for statistic, options in statistics.items():
                if statistic == "given the lens" if name == LENS else name in LAYERS and statistic in OF_LAYERS:
                    continue  # what is given leaves nothing of itself
                if outcome == LOG_P and statistic not in ("all cells", "given both layers"):
                    continue
                measured, judged = x, y.flatten(1).numpy()
                if statistic == "all cells, held-out items":  # drawn in pairs, of which one is in either half
                    measured, judged = (each[: len(each) // 2 * 2] for each in (measured, judged))
                    measured, judged = measured[::2], judged[1::2]
                found = cell_rank_correlation(
                    measured, judged, n_resamples=settings.n_resamples, seed=settings.seed, **options
                )
                records.append({"outcome": outcome, "statistic": statistic, "predictor": name} | asdict(found))
    return pd.DataFrame(records)


def _cells(grid: Grid, outcomes: Mapping[str, Cells], rare: Mapping[str, Cells]) -> pd.DataFrame:
    """A row a cell: outcomes, accuracy on either half of the items, and the median drift by each detector."""
    right = outcomes[ACCURACY]
    means = dict(outcomes) | {"even_items": right[::2], "odd_items": right[1::2], FLAGGED: rare[FLAGGED]}
    columns = {name: values.mean(0).flatten().tolist() for name, values in means.items()}
    columns |= {name: rare[name].quantile(0.5, 0).flatten().tolist() for name in (*PREDICTORS, LENS)}
    frame = grid.frame.rename(columns={name: name.replace(" ", "_") for name in LAYERS[:2]})
    return frame.drop(columns=LAYERS[2]).assign(n=len(right), **columns)


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A column of panels a statistic, a row of panels a kind of reference, a dot a fusion and predictor."""
    rows = [row for row in table.to_dict("records") if row["outcome"] == ACCURACY and row["rho"] == row["rho"]]
    names, fusions = list(dict.fromkeys(table["predictor"])), list(FUSIONS)
    style_of, kinds = styles(fusions), list(dict.fromkeys(table["reference"]))
    statistics = {name: head for name, head in STATISTICS.items() if name in set(table["statistic"])}
    width, height, gap = 156 if len(statistics) < 5 else 104, 20 * len(names), 14
    across, down = len(statistics) * (width + gap) - gap, len(kinds) * (height + gap) - gap
    sheet = blank_sheet(
        f"Does drift predict accuracy? {settings['sender']} to {settings['receiver']}, Countries",
        f"Spearman's rho over {int(table['n'].iloc[0])} cells of accuracy by choices and median drift: below 0 where "
        "more drift goes with fewer right answers. 95 % intervals by the pigeonhole bootstrap: "
        f"{settings['n_items']} items, blocks of {settings['block']} read layers and of {settings['block']} write "
        "layers are resampled. Shaded: what the layer indices alone predict.",
        fusions,
        across=across,
        down=down,
        left=40 + round(LETTER[TICK_SIZE] * max(map(len, names))),
        right=48,
        head=28 + LINE,
    )
    rho_axis = {"range": [-1.05, 1.05], "tick0": 0, "dtick": 0.5 if len(statistics) < 5 else 1}
    rho_axis |= {"showgrid": True, "gridcolor": GRID, "title": {"text": "rho"}}
    name_axis = names_axis([name.replace("_", " ") for name in names], "")
    for line, kind in enumerate(kinds):
        bottom = down - height - line * (height + gap)
        sheet.write_aside(f"real: {kind}", bottom + height / 2)
        for column, (statistic, head) in enumerate(statistics.items()):
            axes = sheet.panel(
                line * len(statistics) + column,
                (column * (width + gap), bottom, width, height),
                rho_axis if line == len(kinds) - 1 else bare(rho_axis),
                bare(name_axis) if column else name_axis,
                "" if line else head,
            )
            sheet.shade(axes, names.index(LAYERS[0]) - 0.5, len(names) - 0.5)
            nought = {"x": [0, 0], "y": [-0.5, len(names) - 0.5], "mode": "lines", "hoverinfo": "skip"}
            sheet.figure.add_trace(go.Scatter(nought | axes, line={"color": INK, "width": 1}, showlegend=False))
            for rank, fusion in enumerate(fusions):
                wanted = {"reference": kind, "statistic": statistic, "fusion": fusion}
                here = [row | {"accuracy": row["rho"]} for row in rows if wanted.items() <= row.items()]
                heights = [names.index(row["predictor"]) + 0.27 * (rank - 1) for row in here]
                dot = dots(here, heights, style_of[fusion], axes, fusion, named=not line and not column)
                sheet.figure.add_trace(dot.update(marker={"size": 6}, error_x={"thickness": 1.3}))
    return sheet.figure


def cells_plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """Accuracy against drift by each detector: a dot a cell of replace, against the last tokens of the task."""
    wanted = {"fusion": "replace", "reference": LAST_TOKENS}
    cells = [row for row in table.to_dict("records") if wanted.items() <= row.items()]
    shown = [
        {"detector": name, "drift": row[name]} | {column: row[column] for column in (ACCURACY, "read_layer")}
        for name in PREDICTORS
        for row in cells
    ]
    return drift_against_accuracy(
        pd.DataFrame(shown),
        depth="read_layer",
        title=f"Accuracy and drift of every cell: {settings['sender']} to {settings['receiver']}, replace",
        note=f"Drift: median over {settings['n_items']} items of -log p (two-sided, nats) among the receiver's own "
        "states at the write layer, last tokens of other items; 3 is one real state in twenty.",
    )


FIGURES = {NAME: plot, f"{NAME}_cells": cells_plot, f"{NAME}_pair": plot, f"{NAME}_pair_cells": cells_plot}
"""The sender with itself; and, ending in _pair, with a receiver that was named."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run_pair(__doc__, FIGURES, SETTINGS, SMOKE, compute, smoke="a few cells and items")


if __name__ == "__main__":
    main()
