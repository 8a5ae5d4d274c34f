"""How far a set of states is from real ones, as an excess over real against real on different documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import require_finite
from latentcomm.alignment import row_folds
from latentcomm.drift.gaussian import ledoit_wolf
from latentcomm.drift.rarity import auroc
from latentcomm.redundancy.residuals import group_codes

__all__ = ["Excess", "SetDrift", "classifier_auroc", "energy_distance", "set_drift"]

MOST_ROWS_A_SET = 1024
"""Rows of each set in one comparison at most: its cost grows with their square."""
FEWEST_ROWS_A_SET = 20
"""Rows of each set at least: five folds of four rows a class."""
FOLDS = 5
"""Folds of the classifier."""

Labels = Int[Tensor, "_"] | Sequence[int] | Sequence[str]
"""One document label a row, of either set."""


@dataclass(frozen=True)
class Excess:
    """A statistic of a set against real states, less the same of real against real.

    Attributes:
        observed: mean over the splits of the real documents.
        baseline: the mean of real against real, on different documents and as many rows.
        excess: observed - baseline.
        lowest, highest: the smallest and largest baseline of a split.
        p_value: (1 + splits whose baseline is at least `observed`) / (n_splits + 1).
    """

    observed: float
    baseline: float
    excess: float
    lowest: float
    highest: float
    p_value: float


@dataclass(frozen=True)
class SetDrift:
    """Both set statistics: `energy` sees any difference of distributions, `classifier` differences of means.

    `n_rows` rows of each set were compared in each of `n_splits` splits.
    """

    energy: Excess
    classifier: Excess
    n_rows: int
    n_splits: int


@takes_arrays
def energy_distance(x: Float[Tensor, "row d_model"], y: Float[Tensor, "other d_model"]) -> float:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'|, each mean over different rows: unbiased, and so sometimes below 0.

    Source: Szekely & Rizzo 2013, "Energy statistics: a class of statistics based on distances".

    Raises:
        ValueError: fewer than 2 rows in a set, or a row that is not finite.

    >>> energy_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]]))
    2.0
    """
    for rows, name in ((x, "x"), (y, "y")):
        require_finite(rows, name)
        if rows.shape[0] < 2:
            raise ValueError(f"{name} has {rows.shape[0]} rows; an energy distance needs at least 2")
    x, y = x.detach().to(torch.float64), y.detach().to(torch.float64)
    n, m = x.shape[0], y.shape[0]
    within_x = _distances(x, x).sum() / (n * (n - 1))
    within_y = _distances(y, y).sum() / (m * (m - 1))
    return float(2 * _distances(x, y).mean() - within_x - within_y)


@takes_arrays
def classifier_auroc(
    x: Float[Tensor, "row d_model"],
    y: Float[Tensor, "other d_model"],
    *,
    folds: int = FOLDS,
    x_groups: Labels | None = None,
    y_groups: Labels | None = None,
    seed: int = 0,
) -> float:
    """Return the held-out AUROC of a linear classifier that separates x from y, a mean over folds.

    The classifier is Fisher's, w = C^-1 (mean x - mean y), C the Ledoit-Wolf covariance within the two sets. Pass one
    document label a row wherever rows share documents. Near 0.5 for two samples of one distribution, but not for real
    states of different documents (`set_drift`).

    Source: Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests", arXiv:1610.06545.

    Raises:
        ValueError: fewer rows or groups than folds, or a row that is not finite.

    >>> draw = torch.Generator().manual_seed(0)
    >>> classifier_auroc(torch.randn(40, 2, generator=draw) + 9, torch.randn(40, 2, generator=draw))
    1.0
    """
    require_finite(x, "x")
    require_finite(y, "y")
    x, y = x.detach().to(torch.float64), y.detach().to(torch.float64)
    folds_x = row_folds(x.shape[0], folds=folds, groups=x_groups, seed=seed)
    folds_y = row_folds(y.shape[0], folds=folds, groups=y_groups, seed=seed)
    found = []
    for held_x, held_y in zip(folds_x, folds_y, strict=True):
        rest_x, rest_y = _without(x, held_x), _without(y, held_y)
        mean_x, mean_y = rest_x.mean(0), rest_y.mean(0)
        covariance, _ = ledoit_wolf(torch.cat((rest_x - mean_x, rest_y - mean_y)))
        direction = torch.linalg.solve(covariance, mean_x - mean_y)
        found.append(auroc(y[held_y] @ direction, x[held_x] @ direction))
    return sum(found) / len(found)


@takes_arrays
def set_drift(
    x: Float[Tensor, "row d_model"],
    real: Float[Tensor, "other d_model"],
    *,
    real_groups: Labels | None = None,
    x_groups: Labels | None = None,
    n_splits: int = 10,
    seed: int = 0,
) -> SetDrift:
    """Return energy distance and classifier AUROC of x against real states, as an excess over real against real.

    Real states of different documents already differ, so 0 and 0.5 are not the values without drift. In each of
    `n_splits` splits the real documents are halved; one half is held against x and against the other half, with equally
    many rows. Documents of `x` should be others than those of `real`. Splits overlap: the p-value is the rank of
    `observed` among the baselines and no more exact than that.

    Raises:
        ValueError: fewer than 20 rows of x or in half of the real documents; fewer than 10 documents (or than 5 of x);
            fewer than 1 split; or a row that is not finite.

    >>> draw = torch.Generator().manual_seed(0)
    >>> drift = set_drift(torch.randn(60, 3, generator=draw) + 1, torch.randn(200, 3, generator=draw))
    >>> drift.energy.excess > 0.2, drift.classifier.baseline < 0.6, drift.classifier.observed > 0.7
    (True, True, True)
    """
    require_finite(x, "x")
    require_finite(real, "real")
    if n_splits < 1:
        raise ValueError(f"n_splits is {n_splits}; at least 1 is needed, and 10 for a baseline with a range")
    codes_x, codes = group_codes(x_groups, x.shape[0]), group_codes(real_groups, real.shape[0])
    halves = [_halves(codes, seed + split) for split in range(n_splits)]
    n_rows = min(MOST_ROWS_A_SET, x.shape[0], *(len(half) for pair in halves for half in pair))
    if n_rows < FEWEST_ROWS_A_SET:
        raise ValueError(
            f"{x.shape[0]} rows against {real.shape[0]} real ones leave {n_rows} a set;"
            f" give at least {FEWEST_ROWS_A_SET} and {2 * FEWEST_ROWS_A_SET}"
        )
    observed, baseline = [], []
    for split, (first, second) in enumerate(halves):
        ours = _drawn(torch.arange(x.shape[0]), n_rows, seed + split)
        theirs, others = _drawn(first, n_rows, seed + split), _drawn(second, n_rows, seed + split)
        observed.append(_both(x[ours], codes_x[ours], real[theirs], codes[theirs], seed))
        baseline.append(_both(real[others], codes[others], real[theirs], codes[theirs], seed))
    energy, classifier = (
        _excess([pair[which] for pair in observed], [pair[which] for pair in baseline]) for which in (0, 1)
    )
    return SetDrift(energy, classifier, n_rows, n_splits)


def _both(x: Tensor, x_groups: Tensor, y: Tensor, y_groups: Tensor, seed: int) -> tuple[float, float]:
    """Energy distance and classifier AUROC."""
    separation = classifier_auroc(x, y, x_groups=x_groups, y_groups=y_groups, seed=seed)
    return energy_distance(x, y), separation


def _halves(groups: Int[Tensor, " row"], seed: int) -> tuple[Int[Tensor, " half"], Int[Tensor, " other_half"]]:
    """The rows of two random halves of the documents, as near to equal numbers of rows as their order allows."""
    sizes = groups.bincount()
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    before = sizes[order].cumsum(0) - sizes[order] / 2
    first = torch.zeros(len(sizes), dtype=torch.bool)
    first[order[before <= len(groups) / 2]] = True
    chosen = first[groups]
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def _excess(observed: list[float], baseline: list[float]) -> Excess:
    mean, base = sum(observed) / len(observed), sum(baseline) / len(baseline)
    reached = sum(value >= mean for value in baseline)
    p_value = (1 + reached) / (len(baseline) + 1)
    return Excess(mean, base, mean - base, min(baseline), max(baseline), p_value)


def _drawn(rows: Int[Tensor, " row"], n_rows: int, seed: int) -> Int[Tensor, " drawn"]:
    """So many of the rows, drawn without replacement."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n_rows]]


def _without(rows: Float[Tensor, "row d_model"], left_out: Int[Tensor, " out"]) -> Float[Tensor, "rest d_model"]:
    rest = torch.ones(rows.shape[0], dtype=torch.bool)
    rest[left_out] = False
    return rows[rest]


def _distances(x: Float[Tensor, "row d_model"], y: Float[Tensor, "other d_model"]) -> Float[Tensor, "row other"]:
    """Euclidean distances from differences, without the cancellation of the expanded square."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
