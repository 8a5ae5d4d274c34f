"""Figure 16: is it better to send only what the receiver lacks? Residual merging against replace with a free scale.

    python analyses/fig16_merging_cross_fitted.py [--smoke] [--replot] [--out DIR] [--sender NAME] [--receiver NAME]
                                                  [--task TASK] [--n ITEMS] [--dtype TYPE]

Figure 9 with more items and with the control that it lacks: the residuals choose a scale s, so that replace has to get
one as well. *Scaled replace* writes s times the message, *extrapolated replace* the receiver's state moved s times the
way to the message (at 1 both are replace). With one model and equal layers the predictability residual is the latter.

Cell, scale and fusion are cross-fitted: the items are cut in two halves, each half chooses by choices among the same
cells (and scales) on some of its items, and all items of the other half are judged at what it chose. Pooled, every item
is judged once a fusion and condition, at a cell that it had no part in choosing. In Countries the halves share no
country, and differences resample countries; the items of the bindings are units of their own. In `bindings_keyed` the
receiver needs its own text as well: the message names a town, the receiver has read what is there.

The best residual is the one with the higher accuracy on the tuning items. It resumes where it was stopped.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from common import Maps, arguments, loaded, publish_pair, replot_found, unfinished

import latentcomm as lc
from latentcomm._core.progress import track
from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation, Channel, Silent, Skyline
from latentcomm.channels.base import receiver_prompts, sender_prompts
from latentcomm.experiments.accuracy import accuracy_table, in_pairs, mean, to_table
from latentcomm.experiments.audit import effect
from latentcomm.experiments.controls import SHUFFLED
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.experiments.maps import fit_maps, is_mapped
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.experiments.sweep.run import cell_table
from latentcomm.fusion import Fusion, Linear, Mean, OrthogonalResidual, PredictabilityResidual, Replace, Sum, Weighted
from latentcomm.reporting.plots import condition_bars
from latentcomm.reporting.publish import plain
from latentcomm.tasks import Task, countries, draw_choices
from latentcomm.tasks.bindings import bindings, bindings_keyed

NAME = "fig16_merging_cross_fitted"
TASKS: Mapping[str, Callable[..., Task]] = {
    "countries": countries,
    "bindings": bindings,
    "bindings_keyed": bindings_keyed,
}
PLAIN = ("replace", "mean", "sum")
SCALED, EXTRAPOLATED = "scaled_replace", "extrapolated_replace"
RESIDUALS = ("orthogonal_residual", "predictability_residual")
FUSED = (*PLAIN, SCALED, EXTRAPOLATED, *RESIDUALS)
AGAINST = ("replace", SCALED, EXTRAPOLATED)
"""Fusions that every other is compared with, item by item."""
ORDER = {"choices_accuracy": -1, "first_token_accuracy": -1, "scale": 1, "write_layer": 1, "read_layer": 1}
"""What is best, and what decides among equals: more first tokens, then the smaller scale and shallower layers."""


@dataclass(frozen=True)
class Settings:
    """All that decides the figure."""

    sender: str = "smollm2-135m-instruct"
    dtype: str = "float32"
    task: str = "countries"
    n: int | None = None
    """Items; all 325 landmarks of Countries, or 200 of the bindings where None."""
    depths: tuple[float, ...] = (0.6, 0.72, 0.8, 0.88)
    """Relative depths of the blocks that are read and written, of either model."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    n_tune: int = 24
    """Items of each half that choose."""
    seed: int = 0


SETTINGS = Settings()
SMOKE = replace(SETTINGS, depths=(0.6, 0.88), scales=(1.0, 2.0), n=16, n_tune=4)


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> pd.DataFrame:
    """A row a fusion, condition and metric, of all items, with what each half chose and the paired differences."""
    if settings.task == "countries":
        task = countries() if settings.n is None else countries().take(settings.n, seed=settings.seed)
    else:
        task = TASKS[settings.task](n=settings.n or 200, seed=settings.seed)
    reads, writes = ([int(depth * model.n_layers) for depth in settings.depths] for model in (sender, receiver))
    cells = [(read, write) for read in sorted(set(reads)) for write in sorted(set(writes))]
    saved: dict[str, Any] = {"seed": settings.seed, "checkpoint": checkpoint, "progress": True}
    aligned = fit_maps(sender, receiver, cells, **saved) if is_mapped(sender, receiver, "ridge") else None
    back = fit_maps(receiver, sender, [(write, read) for read, write in cells], **saved)
    predicted = {
        (read, write): back[write, read] if aligned is None else _after(aligned[read, write], back[write, read])
        for read, write in cells
    }
    return judged(settings, sender, receiver, task, cells, predicted, aligned=aligned, checkpoint=checkpoint)


def _after(outer: AffineMap, inner: AffineMap) -> AffineMap:
    """The map of x to outer(inner(x))."""
    return AffineMap(outer.weight @ inner.weight, outer.weight @ inner.bias + outer.bias)


def judged(
    settings: Settings,
    sender: lc.Model,
    receiver: lc.Model,
    task: Task,
    cells: Sequence[Cell],
    predicted: Maps,
    *,
    aligned: Maps | None = None,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """The table of any task with choices; `predicted` maps the receiver's states to the messages, of every cell."""
    units = {item.id: item.tags.get("country", item.id) for item in task.items}
    halves = task.split(seed=settings.seed, group=lambda item: units[item.id])
    trials: list[lc.Trial] = []
    chosen: list[dict[str, dict[Any, Any]]] = []
    for tune, test in (halves, halves[::-1]):
        tune = tune.take(min(settings.n_tune, len(tune.items)), seed=settings.seed)
        sweep = partial(
            lc.sweep_layers,
            sender,
            receiver,
            sender_prompts(sender, tune),
            receiver_prompts(receiver, tune),
            alignment=aligned,
            read_layers=sorted({read for read, _ in cells}),
            write_layers=sorted({write for _, write in cells}),
            choices=draw_choices(tune, receiver.first_token, seed=settings.seed),
            checkpoint=None if checkpoint is None else checkpoint / "sweeps",
        )
        channels: list[Channel] = [Silent(), Skyline()]
        chosen.append({})
        for name in track(FUSED, f"choosing cells of {task.name}", total=len(FUSED)):
            rows = []
            for scale in (1.0,) if name in PLAIN else settings.scales:
                swept = sweep(fusion={cell: fusion(name, scale, predicted[cell]) for cell in cells})
                rows += [row | {"scale": scale} for row in cell_table(swept, sender, tune).to_dict("records")]
            best = min(rows, key=lambda row: tuple(sign * row[column] for column, sign in ORDER.items()))
            cell = (best["read_layer"], best["write_layer"])
            alignment = None if aligned is None else aligned[cell]
            made = fusion(name, best["scale"], predicted[cell])
            channels.append(Activation(name, lc.Site(cell[0]), lc.Site(cell[1]), made, alignment))
            chosen[-1][name] = best | {"cell": f"{cell[0]}-{cell[1]}"}
        options: dict[str, Any] = {"seed": settings.seed, "controls": (SHUFFLED,), "checkpoint": checkpoint}
        for channel in track(channels, f"judging {task.name}", total=len(channels)):
            trials += lc.evaluate(channel, sender, receiver, test, **options)
    by = ("channel", "condition")
    options = {"against": (*AGAINST, SHUFFLED), "baselines": _baselines, "units": units, "seed": settings.seed}
    table = accuracy_table(in_pairs(to_table(trials), by), by, **options)
    for column in ("cell", "scale"):  # of the half that chose for the second half, then the first
        table[f"chosen_{column}"] = [
            "; ".join(str(half[name][column]) for half in chosen if name in half) or "none" for name in table["channel"]
        ]
    table["tune_accuracy"] = [
        mean(half[name]["choices_accuracy"] for half in chosen if name in half) for name in table["channel"]
    ]
    return table


def _baselines(channel: str, condition: str) -> dict[str, tuple[str, str]]:
    """What a fusion's true message is compared with."""
    if condition != MESSAGE or channel not in FUSED:
        return {}
    return {name: (name, MESSAGE) for name in AGAINST if name != channel} | {SHUFFLED: (channel, SHUFFLED)}


def fusion(name: str, scale: float, predicted: AffineMap) -> Fusion:
    """A fusion at a scale, which those of `PLAIN` do not have; `predicted` maps own to the message it predicts."""
    width, dtype = predicted.d_out, predicted.weight.dtype
    table: dict[str, Callable[[], Fusion]] = {
        "replace": Replace,
        "mean": Mean,
        "sum": Sum,
        SCALED: lambda: Linear(AffineMap(scale * torch.eye(width, dtype=dtype), torch.zeros(width, dtype=dtype))),
        EXTRAPOLATED: lambda: Weighted(scale),
        "orthogonal_residual": lambda: OrthogonalResidual(scale),
        "predictability_residual": lambda: PredictabilityResidual(predicted, scale),
    }
    return table["replace" if name in (SCALED, EXTRAPOLATED) and scale == 1 else name]()


def answer(table: pd.DataFrame) -> str:
    """One sentence: the residual that is better on the tuning items against the replace that has a scale too.

    >>> gain = {"over_scaled_replace": 0.01, "over_scaled_replace_low": -0.03, "over_scaled_replace_high": 0.05}
    >>> row = {"channel": "orthogonal_residual", "condition": "message", "metric": "choices", "tune_accuracy": 0.5}
    >>> answer(pd.DataFrame([row | gain]))
    'orthogonal residual less scaled replace: +.01 [-.03, .05] (choices): no difference is shown'
    """
    rows: list[dict[str, Any]] = [dict(row) for row in table.to_dict("records")]
    true = [row for row in rows if row["condition"] == MESSAGE and row["channel"] in RESIDUALS]
    best = max(true, key=lambda row: row["tune_accuracy"])["channel"]
    gains, over = [], f"over_{SCALED}"
    for row in (row for row in true if row["channel"] == best):
        sign = (row[f"{over}_low"] > 0) - (row[f"{over}_high"] < 0)
        shown = {1: "the residual is better", 0: "no difference is shown", -1: "the residual is worse"}[sign]
        gains.append(f"{effect(row, over)} ({row['metric']}): {shown}")
    return f"{best.replace('_', ' ')} less {SCALED.replace('_', ' ')}: {'; '.join(gains)}"


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A row a fusion and condition, a panel a metric, and the answer above."""
    return condition_bars(
        table,
        group="channel",
        title=f"Only what the receiver lacks? {settings['task'].replace('_', ' ')}",
        note=f"{settings['sender']} to {settings['receiver']}, each half of the items judged at the cell and scale "
        f"that the other chose; 95 % Wilson intervals. {answer(table)}",
    )


FIGURES = {f"{NAME}_{task}": plot for task in TASKS}
"""A figure a task."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    receiver = "another model to send to, instead of the sender itself"
    parser = arguments(__doc__, smoke="a few cells and items", sender=SETTINGS.sender, receiver=receiver)
    parser.add_argument("--task", default=SETTINGS.task, choices=TASKS)
    parser.add_argument("--n", type=int, help="items; all of Countries, or 200 of the bindings by default")
    parser.add_argument("--dtype", default=SETTINGS.dtype, help="of both models: float32, bfloat16 or float16")
    options = parser.parse_args()
    if options.replot:
        replot_found(FIGURES, options.out)
        return
    given = {name: getattr(options, name) for name in ("sender", "dtype", "task", "n")}
    small = SMOKE if options.smoke else SETTINGS
    settings = replace(small, **{name: value for name, value in given.items() if value is not None})
    began, to, name = time.monotonic(), options.receiver or options.sender, f"{NAME}_{options.task}"
    models = loaded(options.sender, to, settings.dtype)
    with unfinished(name, options) as checkpoint:
        table = compute(settings, **models, checkpoint=checkpoint)
        known = plain(asdict(settings) | {"receiver": to})
        publish_pair(plot, table, name=name, folder=options.out, settings=known, began=began, **models)
    print(answer(table))


if __name__ == "__main__":
    main()
