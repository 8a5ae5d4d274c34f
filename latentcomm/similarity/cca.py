"""Canonical correlation between two spaces, averaged: SVCCA and PWCCA."""

from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import canonical_pairs, centred, thin_svd
from latentcomm.similarity.checks import require_pair, require_rows

__all__ = ["pwcca", "svcca"]

LEAST_ROWS = 4
"""Two centred rows are collinear, and three correlate perfectly with any other three at widths of 2."""


@takes_arrays
def svcca(
    x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"], *, energy: float | int = 0.99
) -> float:
    """Return the mean canonical correlation of each side's leading principal components, in [0, 1].

    Each side is reduced to the fewest principal components that hold a share `energy` of its variance; the mean is over
    as many correlations as the side with fewer has. `energy=1` is the plain mean canonical correlation, invariant to
    every invertible linear map, and needs the most rows. Compare only at equal rows: with n near the sum of the two
    ranks canonical correlations are high by chance.

    Source: Raghu et al. 2017, arXiv:1706.05806.

    Raises:
        ValueError: an energy outside (0, 1], no more rows than the two numbers of components together, a width below
            2, NaN or infinite rows, or constant columns.

    >>> import torch
    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(svcca(rows, 3 * rows + 1), 6)
    1.0
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; it is the share of variance retained, above 0 and at most 1")
    require_pair(x, y, least_rows=LEAST_ROWS)
    leading_x, leading_y = _leading_components(x, energy), _leading_components(y, energy)
    _require_rows_for(x, leading_x.shape[1], y, leading_y.shape[1])
    return float(canonical_pairs(leading_x, leading_y).correlations.mean())


@takes_arrays
def pwcca(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"]) -> float:
    """Return the canonical correlations averaged with the weight that each direction has in x, in [0, 1].

    With h_i the orthonormal canonical variates of x and x_j its centred columns, sum_i alpha_i rho_i / sum_i alpha_i,
    alpha_i = sum_j |<h_i, x_j>|. Not symmetric: the weights are those of x, whichever is the wider. They depend on
    the basis in which x is written, so that a rotation of x changes them; any invertible linear map of y does not.

    Source: Morcos et al. 2018, arXiv:1806.05759.

    Raises:
        ValueError: no more rows than the two ranks together, a width below 2, NaN or infinite rows, or constant
            columns.

    >>> import torch
    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(pwcca(rows, rows @ torch.randn(4, 4, generator=torch.Generator().manual_seed(1))), 6)
    1.0
    """
    require_pair(x, y, least_rows=LEAST_ROWS)
    centred_x = centred(x)[0]
    _require_rows_for(x, thin_svd(centred_x)[1].shape[0], y, thin_svd(centred(y)[0])[1].shape[0])
    pairs = canonical_pairs(x, y)
    weights = (pairs.variates.T @ centred_x).abs().sum(1)
    return float(weights @ pairs.correlations / weights.sum())


def _leading_components(rows: Float[Tensor, "row d_model"], energy: float | int) -> Float[Tensor, "row rank"]:
    """Return the scores of the fewest principal components that hold this share of the variance."""
    left, sizes, _ = thin_svd(centred(rows)[0])
    held = sizes.square().cumsum(0) / sizes.square().sum()
    rank = int((held < energy).sum()) + 1 if energy < 1 else sizes.shape[0]
    return left[:, :rank] * sizes[:rank]


def _require_rows_for(
    x: Float[Tensor, "row d_sender"], rank_x: int, y: Float[Tensor, "row d_receiver"], rank_y: int
) -> None:
    """Refuse rows so few that some canonical correlation is 1 for any data; more rows may also raise a rank."""
    n_rows = x.shape[0]
    needed = [rank if rank < n_rows - 1 else rows.shape[1] for rows, rank in ((x, rank_x), (y, rank_y))]
    if n_rows <= rank_x + rank_y:
        require_rows(n_rows, max(sum(needed), n_rows) + 1, "(fewer correlate perfectly by chance)")
