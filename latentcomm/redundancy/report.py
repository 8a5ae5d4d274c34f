"""How much of a sender's messages a receiver's states hold, measured on rows that no fit saw."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.alignment import row_folds
from latentcomm.linalg import centred, require_finite, squared_size, thin_svd
from latentcomm.redundancy.residuals import Groups, fit_predictable, group_codes, orthogonal_residual

__all__ = ["Redundancy", "measure_redundancy"]


@dataclass(frozen=True, eq=False)
class Redundancy:
    """How much of a message the receiver's state holds, on rows that no fit saw, and what is left.

    Attributes:
        r_squared: 1 - sum |a - (M b + c)|^2 / sum |a - mean|^2, the mean that of the fitted rows.
        explained_energy: 1 - sum |a - (M b + c)|^2 / sum |a|^2: as above with the mean counted as known.
        along_state: the share of sum |a|^2 along the receiver's own state of the same row; None for unequal widths.
        spectrum: eigenvalues of the covariance of the residual, largest first (variance a direction).
        n_rows, n_groups: how many rows, of how many documents (of rows where no groups were given).
    """

    r_squared: float
    explained_energy: float
    along_state: float | None
    spectrum: Float[Tensor, " rank"]
    n_rows: int
    n_groups: int

    @property
    def effective_rank(self) -> float:
        """How many directions the residual fills: (sum of the spectrum)^2 / sum of its squares; 0 for no residual."""
        total, squares = float(self.spectrum.sum()), float(self.spectrum.square().sum())
        return total * total / squares if squares else 0.0


def measure_redundancy(
    a_rows: Float[Tensor, "row d_sender"],
    b_rows: Float[Tensor, "row d_receiver"],
    *,
    folds: int = 5,
    groups: Groups | None = None,
    seed: int = 0,
) -> Redundancy:
    """Return how much of the messages `a_rows` the receiver's states `b_rows` predict, held-out, and what is left.

    Every row is predicted once by a `fit_predictable` on the other folds, its penalty chosen inside these. Pass
    `groups`, one document label a row, whenever several rows come from one document.

    Raises:
        ValueError: too few rows or groups for the folds, a row that is not finite, or rows that are all equal.

    >>> b_rows = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    >>> round(measure_redundancy(b_rows @ torch.ones(3, 2), b_rows).r_squared, 6)
    1.0
    """
    for rows, name in ((a_rows, "a_rows"), (b_rows, "b_rows")):
        require_finite(rows, name)
    codes = group_codes(groups, a_rows.shape[0])
    a, b = a_rows.detach().to(torch.float64), b_rows.detach().to(torch.float64)
    residual, total = torch.empty_like(a), 0.0
    for held_out in row_folds(a.shape[0], folds=folds, groups=codes, seed=seed):
        training = torch.ones(a.shape[0], dtype=torch.bool)
        training[held_out] = False
        fitted = fit_predictable(b[training], a[training], folds=folds, groups=codes[training], seed=seed)
        residual[held_out] = a[held_out] - fitted(b[held_out])
        total += squared_size(a[held_out] - a[training].mean(0))
    left, energy = squared_size(residual), squared_size(a)
    _, sizes, _ = thin_svd(centred(residual)[0])
    same_width = a.shape[1] == b.shape[1]
    return Redundancy(
        r_squared=1.0 - left / total,
        explained_energy=1.0 - left / energy,
        along_state=1.0 - squared_size(orthogonal_residual(a, b)) / energy if same_width else None,
        spectrum=sizes.square() / (a.shape[0] - 1),
        n_rows=a.shape[0],
        n_groups=int(codes.max()) + 1,
    )
