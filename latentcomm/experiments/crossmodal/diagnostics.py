"""Similarity of an encoder's blocks and a receiver's layers over the same names, and drift of mapped latents."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.drift import COMBINED, DriftReference, fit_drift_reference
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.questions import BEFORE
from latentcomm.hooks.capture import capture_positions
from latentcomm.hooks.graft import LAST
from latentcomm.models import Model, encode
from latentcomm.models.sites import Site
from latentcomm.models.vision import VisionSender
from latentcomm.similarity import cknna, debiased_cka, mutual_knn, shuffled_rows

K = 10
"""Neighbours, as in Huh et al. 2024."""
DRAWS = 50
"""Shuffles of the names for each null."""


@dataclass(frozen=True, eq=False)
class NameStates:
    """States of the same names in both models.

    Attributes:
        names: the captions, each once, in the order of first appearance.
        seen: the encoder's after every block, the mean over a name's pictures.
        read: the receiver's after every layer, at the last token of the name within a caption's prompt.
    """

    names: tuple[str, ...]
    seen: Float[Tensor, "layer_x row d_sender"]
    read: Float[Tensor, "layer_y row d_receiver"]


def name_states(
    vision: VisionSender,
    receiver: Model,
    pictures: PictureSet,
    *,
    pooling: Literal["class", "patches"] = "class",
    grid: int = 1,
) -> NameStates:
    """The states of every caption of a set in both models, in float64."""
    names = tuple(dict.fromkeys(picture.caption for picture in pictures))
    each = vision.pooled([picture.image for picture in pictures], pooling=pooling, grid=grid).double()
    rows = torch.tensor([names.index(picture.caption) for picture in pictures])
    seen = torch.stack([each[:, rows == index].mean(1) for index in range(len(names))], 1)
    sites = [Site(layer) for layer in range(receiver.n_layers)]
    prompts = encode(receiver, [f"{BEFORE} {name}" for name in names])
    states = capture_positions(receiver, prompts, sites, LAST)
    return NameStates(names, seen, torch.stack([states[site].double() for site in sites]))


def alignment_map(states: NameStates, *, k: int = K, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Every block against every layer: mutual_knn, CKNNA and debiased CKA, on two halves of the names.

    One row a measure, block and layer: `choosing` on one half of the names and `held_out` on the other; `chosen` marks
    the largest of a measure on the choosing half, and only its held-out value is free of the choice. For it the null
    of shuffled names on the held-out half: its mean and 95 % quantile (null_mean, null_95) and p, the share of draws,
    with one added to both counts, that reach it. Elsewhere these are NaN.

    Source: Huh et al. 2024, "The Platonic representation hypothesis", arXiv:2405.07987, there without a null and with
    the largest cell reported.

    Raises:
        ValueError: not more than `k` names in a half, or fewer than the measures need.
    """
    n = len(states.names)
    if n // 2 <= k:
        raise ValueError(f"{n} names make halves of {n // 2}, and {k} neighbours need more; give more names or lower k")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    halves = order[: n // 2], order[n // 2 :]
    rows: list[dict[str, object]] = []
    for name, measure in _measures(k).items():
        found: list[dict[str, Any]] = [
            {
                "measure": name, "block": block, "layer": layer,
                "choosing": measure(states.seen[block, halves[0]], states.read[layer, halves[0]]),
                "held_out": measure(states.seen[block, halves[1]], states.read[layer, halves[1]]),
                "names": len(halves[1]),
            }
            for block in range(len(states.seen))
            for layer in range(len(states.read))
        ]  # fmt: skip
        best = max(found, key=lambda row: row["choosing"])
        x, y = states.seen[best["block"], halves[1]], states.read[best["layer"], halves[1]]
        drawn = torch.tensor([measure(x, y[each.partners]) for each in shuffled_rows(len(x), draws=draws, seed=seed)])
        null = {"null_mean": float(drawn.mean()), "null_95": float(drawn.quantile(0.95))}
        null["p"] = (1 + int((drawn >= best["held_out"]).sum())) / (1 + draws)
        nothing = dict.fromkeys(("null_mean", "null_95", "p"), float("nan"))
        for row in found:
            rows.append({**row, "chosen": row is best, **nothing})
            if row is best:
                rows[-1].update(null)
    return pd.DataFrame(rows)


def mapped_drift(
    mapped: Float[Tensor, "row d_receiver"], own: Float[Tensor, "state d_receiver"], *, seed: int = 0
) -> pd.DataFrame:
    """How far mapped latents lie from the receiver's own states of the same kind, one row per drift measure.

    Columns: measure, n, the median two-sided percentile (0 to 1) among held-out own states, and the share of rows
    above 0.95, which is 0.05 for own states.

    Raises:
        ValueError: too few own states for `drift.fit_drift_reference`.
    """
    reference = fit_drift_reference(own, seed=seed)
    found = reference.percentile(mapped)
    return pd.DataFrame(
        [
            {"measure": name, "n": len(each), "median_percentile": float(each.median()),
             "above_95": float((each > 0.95).double().mean())}
            for name, each in found.items()
        ]
    )  # fmt: skip


def combined_drift(mapped: Float[Tensor, "row d_receiver"], reference: DriftReference | None) -> dict[str, float]:
    """The drift of mapped latents by all detectors together: its median percentile, and the share of rows above 0.95.

    `drift` runs from 0 to 1, `drift_above_95` is 0.05 for own states. Without a reference both are NaN.
    """
    if reference is None:
        return {"drift": float("nan"), "drift_above_95": float("nan")}
    found = reference.percentile(mapped.float().cpu())[COMBINED]
    return {"drift": float(found.median()), "drift_above_95": float((found > 0.95).double().mean())}


def _measures(k: int) -> dict[str, Callable[..., float]]:
    return {"mutual_knn": partial(mutual_knn, k=k), "cknna": partial(cknna, k=k), "debiased_cka": debiased_cka}
