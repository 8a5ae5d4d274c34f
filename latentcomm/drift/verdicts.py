"""What a reference finds: the verdict on some states, and how well each detector separates two sets of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentcomm.drift.detectors import DETECTORS, PANEL
from latentcomm.drift.rarity import auroc, combined_surprise

__all__ = ["COMBINED", "Auroc", "Drift", "Scores", "separation", "those"]

COMBINED = "combined"
"""The name of the panel's joint verdict among those of the detectors."""
Scores = Mapping[str, Float[Tensor, "_"]]
"""Each detector's numbers for some states."""


@dataclass(frozen=True)
class Auroc:
    """How well one detector separates off-manifold states from real ones, 0.5 being not at all.

    Attributes:
        one_sided: by the raw distance, where only the far side counts (for the cosine the low side).
        two_sided: by the rarity among held-out states, where too typical states count as well.
    """

    one_sided: float
    two_sided: float


@dataclass(frozen=True, eq=False)
class Drift:
    """A reference's verdict on some states. Far from typical is not the same as harmful: report it with the effects.

    Attributes:
        scores: each detector's raw number, by the names of DETECTORS.
        percentiles: each detector's two-sided percentile: the share of held-out real states that are less atypical.
            A real state's is uniform (median 0.5); 0 is the middle of the real states, near 1 is beyond them.
        ranks: the one-sided rank of the raw number among the held-out ones: near 1 is larger, near 0 smaller than all.
        p_value: of the panel's joint verdict: a real state's is at most alpha with probability alpha.
    """

    scores: dict[str, Float[Tensor, " row"]]
    percentiles: dict[str, Float[Tensor, " row"]]
    ranks: dict[str, Float[Tensor, " row"]]
    p_value: Float[Tensor, " row"]


def separation(on: Scores, off: Scores, rare_on: Scores, rare_off: Scores) -> dict[str, Auroc]:
    """How well each detector and the panel separate states with some scores and surprises from others."""
    out = {}
    for name, detector in DETECTORS.items():
        one_sided = auroc(detector.sign * on[name], detector.sign * off[name])
        out[name] = Auroc(one_sided, auroc(rare_on[name], rare_off[name]))
    joint = auroc(*(combined_surprise(torch.stack([rare[name] for name in PANEL], 1)) for rare in (rare_on, rare_off)))
    return out | {COMBINED: Auroc(joint, joint)}


def those(scores: Scores, rows: Bool[Tensor, " real"]) -> dict[str, Float[Tensor, " some"]]:
    """Every detector's numbers for some of the held-out states."""
    return {name: values[rows] for name, values in scores.items()}
