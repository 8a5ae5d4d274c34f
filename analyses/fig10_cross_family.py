"""Figure 10: can two models of different families communicate through states, and does the alignment carry it?

    python analyses/fig10_cross_family.py [--smoke] [--replot] [--out DIR] [--sender NAME] --receiver NAME

Both directions on Countries. A state replaces the receiver's without alignment (right-aligned), through a ridge map, an
orthogonal map and canonical correlation, and as what the receiver's state does not predict of it. The cell is chosen
for each of these by itself, among the same 25 cells on the same tuning items, so that going without alignment has its
own best chance; all are judged on the same held-out items, with the shuffled message, the zero vector and a
norm-matched random one. One control is of the map: ridge, at the same penalty, fitted on rows paired at random; it has
the shuffled message alone. Maps are fitted on the packaged corpus, which holds no item. It resumes where it was
stopped.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import torch
from common import Maps, arguments, paired_gain, publish_pair, replot_found, unfinished
from torch import Tensor

import latentcomm as lc
from latentcomm._core.files import digest, without_folder
from latentcomm._core.linalg import centred, squared_size, thin_svd
from latentcomm._core.progress import say, track
from latentcomm._core.records import Records
from latentcomm.alignment import AffineMap, choose_penalty, fit_procrustes, fit_ridge
from latentcomm.channels import Activation, Silent, Skyline, Text
from latentcomm.channels.base import receiver_prompts, sender_prompts
from latentcomm.experiments.compare.channels import compare_trials
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.experiments.maps import MAP_FOLDS, MAP_TOKENS, map_documents, map_tokens
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.experiments.sweep.run import best_cell, cell_table
from latentcomm.fusion import Fusion, PredictabilityResidual, Replace, RightAligned
from latentcomm.hooks.paired_text import PairedStates, capture_paired, pair_tokens
from latentcomm.models.sites import Site
from latentcomm.reporting.plots import condition_bars
from latentcomm.reporting.publish import plain
from latentcomm.tasks import Task, countries, draw_choices

NAME = "fig10_cross_family"
UNALIGNED, RESIDUAL, BY_CHANCE = "unaligned", "predictability residual", "ridge of random pairs"
MAPS = ("ridge", "procrustes", "cca", BY_CHANCE)
"""Alignments of which the receiver's state is replaced by the mapped one."""
CONTROLS = ("shuffled", "zero", "random")
AGAINST = (UNALIGNED, BY_CHANCE)
"""Channels that every graft is compared with, item by item, as well as silence, text and its own shuffled message."""


@dataclass(frozen=True)
class Settings:
    """All that decides the figure."""

    first: str = "smollm2-135m-instruct"
    depths: tuple[float, ...] = (0.5, 0.65, 0.8, 0.9, 0.97)
    """Relative depths of the blocks that are read and written, of either model."""
    documents: int | None = None
    max_tokens: int = MAP_TOKENS
    cca_rank: int = 256
    message_tokens: int = 16
    n_tune: int = 40
    n_test: int = 100
    seed: int = 0


SETTINGS = Settings()
SMOKE = replace(
    SETTINGS, depths=(0.5, 0.97), documents=32, max_tokens=48, cca_rank=4, message_tokens=2, n_tune=4, n_test=8
)


@dataclass(frozen=True, eq=False)
class Way:
    """One direction: the sender, the receiver, the cells, and every map of every cell."""

    sender: lc.Model
    receiver: lc.Model
    cells: Sequence[Cell]
    maps: Mapping[str, Maps]
    predicted: Maps
    """Of every cell what the receiver's state predicts of the message that the ridge map makes."""

    def alignment(self, channel: str) -> Maps | None:
        """The maps of a channel; None where it goes without."""
        return None if channel == UNALIGNED else self.maps["ridge" if channel == RESIDUAL else channel]

    def fusion(self, channel: str) -> Mapping[Cell, Fusion]:
        """The fusion of a channel in every cell."""
        if channel == RESIDUAL:
            return {cell: PredictabilityResidual(self.predicted[cell], 1.0) for cell in self.cells}
        return dict.fromkeys(self.cells, RightAligned(Replace()) if channel == UNALIGNED else Replace())


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, states: PairedStates, *, checkpoint: Path | None = None
) -> pd.DataFrame:
    """A row a channel, condition and metric of one direction, with the chosen cell and the paired differences."""
    return _judged(settings, _fitted(settings, sender, receiver, states, checkpoint), checkpoint)


def captured(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> PairedStates:
    """Both models' states after every block where both have read the same text of the packaged corpus.

    Raises:
        ValueError: both models are equally wide, so that no state needs an alignment to replace another.
    """
    if sender.d_model == receiver.d_model:
        raise ValueError(f"{sender.name} and {receiver.name} are both {sender.d_model} wide; choose unequal models")
    texts = map_documents()[: settings.documents]
    tokens = pair_tokens(sender, receiver, texts, max_tokens=min(settings.max_tokens, map_tokens(sender, receiver)))
    return capture_paired(sender, receiver, tokens, checkpoint=None if checkpoint is None else checkpoint / "states")


def turned(states: PairedStates) -> PairedStates:
    """The same states with the receiver as sender."""
    return PairedStates(states.y, states.x, states.document, states.receiver_position, states.sender_position)


def _fitted(
    settings: Settings,
    sender: lc.Model,
    receiver: lc.Model,
    states: PairedStates,
    checkpoint: Path | None,
) -> Way:
    """Every map of every cell of one direction."""
    reads, writes = (_layers(model.n_layers, settings.depths) for model in (sender, receiver))
    rows = states.after_first
    documents, seed = states.document[rows], settings.seed
    sources = {read: states.x[read, rows] for read in reads}
    targets = {write: states.y[write, rows] for write in writes}
    order = torch.randperm(int(rows.sum()), generator=torch.Generator().manual_seed(seed))
    decisive = [settings, sender.fingerprint, receiver.fingerprint]
    records = Records(None if checkpoint is None else checkpoint / f"maps-{digest(*decisive)[:16]}")

    @cache
    def factored(side: str, layer: int) -> _Factored:
        return _factored(sources[layer] if side == "x" else targets[layer])

    maps: dict[str, dict[Cell, AffineMap]] = {name: {} for name in MAPS}
    for read in track(reads, f"maps from {sender.name}", total=len(reads)):
        found = records.tensors(
            f"ridge-{read:03d}",
            lambda k=read: _jointly(sources[k], targets, groups=documents, seed=seed, order=order),
        )
        for write in writes:
            for name in ("ridge", BY_CHANCE):
                maps[name][read, write] = AffineMap(found[f"{name} {write} weight"], found[f"{name} {write} bias"])
            maps["procrustes"][read, write] = records.saved(
                f"procrustes-{read:03d}-{write:03d}",
                lambda k=read, j=write: fit_procrustes(sources[k], targets[j]),
                AffineMap.load,
            )
            maps["cca"][read, write] = records.saved(
                f"cca-{read:03d}-{write:03d}",
                lambda k=read, j=write: _cca(factored("x", k), factored("y", j), settings.cca_rank),
                AffineMap.load,
            )
    predicted: dict[Cell, AffineMap] = {}
    for write in track(writes, "maps of what is predictable", total=len(writes)):
        messages = {read: maps["ridge"][read, write](sources[read]) for read in reads}
        found = records.tensors(
            f"predicted-{write:03d}",
            lambda j=write, sent=messages: _jointly(targets[j], sent, groups=documents, seed=seed),
        )
        for read in reads:
            predicted[read, write] = AffineMap(found[f"ridge {read} weight"], found[f"ridge {read} bias"])
    return Way(sender, receiver, [(read, write) for read in reads for write in writes], maps, predicted)


def _layers(n_layers: int, depths: Sequence[float]) -> list[int]:
    """Blocks at these relative depths, none twice and the last one left out."""
    return sorted({min(n_layers - 2, int(depth * n_layers)) for depth in depths} - {-1}) or [0]


def _jointly(
    source: Tensor, targets: Mapping[int, Tensor], *, groups: Tensor, seed: int, order: Tensor | None = None
) -> dict[str, Tensor]:
    """Ridge maps from one source to several targets, with one penalty: that of the least relative error held out.

    Each target is scaled to a total variance of 1 before, so that none outweighs the others, and the map scaled back.
    With `order`, also the maps of the same penalty to the targets' rows in that order: pairs made at random.
    """
    scales = {layer: math.sqrt(squared_size(centred(rows)[0]) / len(rows)) for layer, rows in targets.items()}
    joined = torch.cat([rows / scales[layer] for layer, rows in targets.items()], 1)
    penalty = choose_penalty(source, joined, folds=MAP_FOLDS, groups=groups, seed=seed)
    names = ("ridge",) if order is None else ("ridge", BY_CHANCE)
    fitted = fit_ridge(source, joined if order is None else torch.cat([joined, joined[order]], 1), penalty=penalty)
    widths = [rows.shape[1] for rows in targets.values()] * len(names)
    maps = zip(fitted.weight.split(widths), fitted.bias.split(widths), strict=True)
    found = {"penalty": torch.tensor(penalty, dtype=torch.float64)}
    for (name, layer), (weight, bias) in zip(product(names, targets), maps, strict=True):
        found |= {f"{name} {layer} weight": weight * scales[layer], f"{name} {layer} bias": bias * scales[layer]}
    return found


class _Factored(NamedTuple):
    """Rows less their mean as left * sizes @ axes."""

    left: Tensor
    sizes: Tensor
    axes: Tensor
    mean: Tensor


def _factored(rows: Tensor) -> _Factored:
    middle, mean = centred(rows)
    return _Factored(*thin_svd(middle), mean)


def _cca(x: _Factored, y: _Factored, rank: int) -> AffineMap:
    """`fit_cca` of rows that were factored before: a layer once, and not once a cell."""
    rotation = torch.linalg.svd(x.left.T @ y.left, full_matrices=False)[0][:, :rank]
    weight = (y.axes.T * y.sizes) @ (y.left.T @ x.left @ rotation) @ (rotation.T / x.sizes @ x.axes)
    return AffineMap(weight.float(), (y.mean - weight @ x.mean).float())


def _judged(settings: Settings, way: Way, checkpoint: Path | None) -> pd.DataFrame:
    """Every channel of one direction on the same held-out items, each in the cell that was chosen for it."""
    sender, receiver, seed = way.sender, way.receiver, settings.seed
    tune, test = countries().split(seed=seed)
    tune, test = (
        part.take(min(n, len(part.items)), seed=seed) for part, n in ((tune, settings.n_tune), (test, settings.n_test))
    )
    grafts = (UNALIGNED, *MAPS, RESIDUAL)
    chosen = {
        name: _chosen(settings, way, tune, name, checkpoint)
        for name in track(grafts, f"choosing cells, {sender.name} to {receiver.name}", total=len(grafts))
    }
    channels: list[lc.channels.Channel] = [
        Silent(),
        Skyline(),
        Text(max_tokens=settings.message_tokens, allow_empty=True),
    ]
    for name, (cell, _) in chosen.items():
        maps = way.alignment(name)
        fusion = way.fusion(name)[cell]
        channels.append(Activation(name, Site(cell[0]), Site(cell[1]), fusion, None if maps is None else maps[cell]))
    trials: list[lc.Trial] = []
    for channel in track(channels, f"judging {sender.name} to {receiver.name}", total=len(channels)):
        controls = CONTROLS[:1] if channel.name == BY_CHANCE else CONTROLS
        trials += lc.evaluate(channel, sender, receiver, test, seed=seed, controls=controls, checkpoint=checkpoint)
    table = compare_trials(trials, seed=seed)
    for other in AGAINST:
        for row, record in enumerate(table.to_dict("records")):
            if record["condition"] == MESSAGE and record["channel"] in chosen and record["channel"] != other:
                gain = paired_gain(trials, str(record["channel"]), other, str(record["metric"]), seed)
                for part, value in gain.items():
                    table.loc[row, f"{part}_{other.replace(' ', '_')}"] = value
    nowhere = ((-1, -1), float("nan"))
    picks = [chosen.get(str(name), nowhere) for name in table["channel"]]
    table["read_layer"], table["write_layer"] = ([cell[end] for cell, _ in picks] for end in (0, 1))
    table["tune_accuracy"] = [reached for _, reached in picks]
    table["n_cells"] = len(way.cells)
    table.insert(0, "receiver", without_folder(receiver.name))
    table.insert(0, "sender", without_folder(sender.name))
    return table


def _chosen(settings: Settings, way: Way, tune: Task, channel: str, checkpoint: Path | None) -> tuple[Cell, float]:
    """The cell in which a channel does best on the tuning items, and its accuracy by choices there."""
    sweep = lc.sweep_layers(
        way.sender,
        way.receiver,
        sender_prompts(way.sender, tune),
        receiver_prompts(way.receiver, tune),
        fusion=way.fusion(channel),
        alignment=way.alignment(channel),
        read_layers=sorted({read for read, _ in way.cells}),
        write_layers=sorted({write for _, write in way.cells}),
        choices=draw_choices(tune, way.receiver.first_token, seed=settings.seed),
        checkpoint=None if checkpoint is None else checkpoint / "sweeps",
    )
    cells = cell_table(sweep, way.sender, tune)
    cell = best_cell(cells, n_layers=way.receiver.n_layers)
    there = (cells["read_layer"] == cell[0]) & (cells["write_layer"] == cell[1])
    return cell, float(cells.loc[there, "choices_accuracy"].iloc[0])


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A row a channel and condition, a panel a metric."""
    sender, receiver = (table[role].iloc[0] for role in ("sender", "receiver"))
    return condition_bars(
        table,
        group="channel",
        title=f"Between families: {sender} to {receiver}, Countries",
        note=f"Cell chosen for each channel by itself among {int(table['n_cells'].iloc[0])} on {settings['n_tune']} "
        "other items; 95 % Wilson intervals over items. Zero and random replace the sender's state, before the map.",
    )


FIGURES = {NAME: plot, f"{NAME}_back": plot}
"""From the first model to the second, and back."""


def main() -> None:
    """Compute and publish both directions, or rebuild the figures from their CSVs."""
    options = arguments(
        __doc__,
        smoke="a few cells and items",
        sender=SETTINGS.first,
        receiver="a model of another family; without one there is nothing to do",
    ).parse_args()
    if options.replot:
        replot_found(FIGURES, options.out)
        return
    if options.receiver is None:
        say(f"{NAME} needs two models; name one of another family with --receiver")
        return
    settings = replace(SMOKE if options.smoke else SETTINGS, first=options.sender)
    first, second = lc.load_model(options.sender), lc.load_model(options.receiver)
    known = plain(asdict(settings) | {"first": first.name, "second": second.name})
    with unfinished(NAME, options) as checkpoint:
        states = captured(settings, first, second, checkpoint=checkpoint)
        for name, sender, receiver, seen in (
            (f"{NAME}_back", second, first, turned(states)),
            (NAME, first, second, states),
        ):
            began, pair = time.monotonic(), {"sender": sender, "receiver": receiver}
            table = compute(settings, **pair, states=seen, checkpoint=checkpoint)
            publish_pair(plot, table, name=name, folder=options.out, settings=known, began=began, **pair)


if __name__ == "__main__":
    main()
