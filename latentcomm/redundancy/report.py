"""How much of a sender's messages a receiver's states hold, measured on rows that no fit saw."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.linalg import centred, require_finite, squared_size, thin_svd
from latentcomm.alignment import row_folds
from latentcomm.redundancy.intervals import RESAMPLES, Interval, ratio_intervals, sums_by_group
from latentcomm.redundancy.residuals import Groups, fit_predictable, group_codes, orthogonal_residual

__all__ = ["Redundancy", "effective_rank", "measure_redundancy"]


@dataclass(frozen=True, eq=False)
class Redundancy:
    """How much of a message the receiver's state holds, on rows that no fit saw, and what is left.

    The intervals are those of a bootstrap over whole documents (over rows where no groups were given); the maps are not
    fitted anew in it, so they speak of other documents under the same maps.

    Attributes:
        r_squared: 1 - sum |a - p|^2 / sum |a - mean|^2, p = M b + c and the mean that of the fitted rows.
        r_squared_interval: its interval.
        residual_covariance: sum (a - p).(p - mean) / sum |a - mean|^2, what covariance with b the residual still has
            along the prediction. 0 is none; below 0 the map claims more than is there, above 0 less.
        residual_covariance_interval: its interval.
        explained_energy: 1 - sum |a - (M b + c)|^2 / sum |a|^2: as above with the mean counted as known.
        along_state: the share of sum |a|^2 along the receiver's own state of the same row; None for unequal widths.
        spectrum: eigenvalues of the covariance of the residual, largest first (variance a direction).
        n_rows, n_groups: how many rows, of how many documents (of rows where no groups were given).
    """

    r_squared: float
    r_squared_interval: Interval
    residual_covariance: float
    residual_covariance_interval: Interval
    explained_energy: float
    along_state: float | None
    spectrum: Float[Tensor, " rank"]
    n_rows: int
    n_groups: int

    @property
    def effective_rank(self) -> float:
        """How many directions the residual fills: `effective_rank` of its spectrum."""
        return effective_rank(self.spectrum)


def effective_rank(spectrum: Float[Tensor, " rank"]) -> float:
    """Return how many directions a spectrum fills: its participation ratio, (sum)^2 / sum of squares; 0 where it is 0.

    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    total, squares = float(spectrum.sum()), float(spectrum.square().sum())
    return total * total / squares if squares else 0.0


def measure_redundancy(
    a_rows: Float[Tensor, "row d_sender"],
    b_rows: Float[Tensor, "row_b d_receiver"],
    *,
    penalty: float | int | None = None,
    folds: int = 5,
    groups: Groups | None = None,
    level: float = 0.95,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Redundancy:
    """Return how much of the messages `a_rows` the receiver's states `b_rows` predict, held-out, and what is left.

    Every row is predicted once by a `fit_predictable` on the other folds, its penalty chosen inside these unless it is
    given. Pass `groups`, one document label a row, whenever several rows come from one document: the folds, and the
    draws of the intervals, are then of documents. R^2 alone, of all pairs of layers:
    `latentcomm.similarity.LayerPairs.linear_predictability`.

    Raises:
        ValueError: row counts that differ, too few rows or groups for the folds, a row that is not finite, or rows that
            are all equal; a level or number of resamples that makes no interval.

    >>> b_rows = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    >>> round(measure_redundancy(b_rows @ torch.ones(3, 2), b_rows).r_squared, 6)
    1.0
    """
    for rows, name in ((a_rows, "a_rows"), (b_rows, "b_rows")):
        require_finite(rows, name)
        if bool((rows == rows[:1]).all()):
            raise ValueError(f"all {rows.shape[0]} rows of {name} are equal; give other texts")
    if a_rows.shape[0] != b_rows.shape[0]:
        raise ValueError(f"a_rows has {a_rows.shape[0]} rows but b_rows {b_rows.shape[0]}; pair them row by row")
    codes = group_codes(groups, a_rows.shape[0])
    a, b = a_rows.detach().to(torch.float64), b_rows.detach().to(torch.float64)
    residual, predicted, spread = torch.empty_like(a), torch.empty_like(a), torch.empty_like(a)
    for held_out in row_folds(a.shape[0], folds=folds, groups=codes, seed=seed):
        training = torch.ones(a.shape[0], dtype=torch.bool)
        training[held_out] = False
        fitted = fit_predictable(
            b[training], a[training], penalty=penalty, folds=folds, groups=codes[training], seed=seed
        )
        mean, guess = a[training].mean(0), fitted(b[held_out])
        residual[held_out], predicted[held_out], spread[held_out] = (
            a[held_out] - guess,
            guess - mean,
            a[held_out] - mean,
        )
    parts = torch.stack([(residual * other).sum(1) for other in (residual, predicted)])
    sums, totals = sums_by_group(parts, codes), sums_by_group(spread.square().sum(1)[None], codes)[0]
    unexplained, covariance = (sums.sum(1) / totals.sum()).tolist()
    unexplained_interval, covariance_interval = ratio_intervals(
        sums, totals, level=level, n_resamples=n_resamples, seed=seed
    )
    left, energy = squared_size(residual), squared_size(a)
    _, sizes, _ = thin_svd(centred(residual)[0])
    same_width = a.shape[1] == b.shape[1]
    return Redundancy(
        r_squared=1.0 - unexplained,
        r_squared_interval=(1.0 - unexplained_interval[1], 1.0 - unexplained_interval[0]),
        residual_covariance=covariance,
        residual_covariance_interval=covariance_interval,
        explained_energy=1.0 - left / energy,
        along_state=1.0 - squared_size(orthogonal_residual(a, b)) / energy if same_width else None,
        spectrum=sizes.square() / (a.shape[0] - 1),
        n_rows=a.shape[0],
        n_groups=int(codes.max()) + 1,
    )
