"""Subspaces fitted to states: the principal components of one set, and what two sets share."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import canonical_pairs, centred, fitted_dtype, require_finite, thin_svd
from latentcomm.redundancy.projection import Projection

__all__ = ["principal_subspace", "shared_subspace"]

SHARE_ROUNDING = 1e-12
"""A share of the variance this close below the energy requested has reached it: sums of squares round by less."""


@takes_arrays
def principal_subspace(
    rows: Float[Tensor, "row d_model"], *, rank: int | None = None, energy: float | None = None
) -> Projection:
    """Return the projection on the rows' leading principal components: `rank` of them, or as many as hold `energy`.

    The components are the right singular vectors of the centred rows; `energy` is the share of their variance that the
    subspace holds at least, with as few components as that takes.

    Raises:
        ValueError: both or neither of rank and energy; a rank outside 1..the rows' numerical rank; an energy outside
            0..1; a row that is not finite; rows that are all equal, or fewer than 2.

    >>> rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> principal_subspace(rows, energy=0.9), round(principal_subspace(rows, rank=1).explained(rows), 3)
    (Projection(1 of 2), 0.9)
    """
    if (rank is None) == (energy is None):
        raise ValueError(f"rank is {rank} and energy {energy}; give one of them")
    if rows.shape[0] < 2:
        raise ValueError(f"{rows.shape[0]} rows have no principal components; capture at least 2")
    require_finite(rows, "rows")
    x, mean = centred(rows)
    tall = torch.linalg.qr(x, mode="r").R if x.shape[0] > x.shape[1] else x  # the same right singular vectors
    _, sizes, axes = thin_svd(tall)
    available = sizes.shape[0]
    if available == 0:
        raise ValueError(f"all {rows.shape[0]} rows are equal; give rows that differ, or there is no subspace")
    if energy is not None:
        if not 0 < energy <= 1:
            raise ValueError(f"energy is {energy}; it is a share of the variance, above 0 and at most 1")
        shares = sizes.square().cumsum(0) / sizes.square().sum()
        rank = min(available, int((shares < energy - SHARE_ROUNDING).sum()) + 1)
    elif rank is None or not 1 <= rank <= available:
        raise ValueError(
            f"rank is {rank} but these {rows.shape[0]} rows span {available} directions; choose 1 to {available}"
        )
    basis = axes[:rank].T.to(fitted_dtype(rows)).contiguous()
    return Projection(mean.to(basis.dtype), basis, basis)


@takes_arrays
def shared_subspace(
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row_y d_receiver"],
    *,
    rank: int | None = None,
    energy: float | None = None,
    correlation: float | None = None,
) -> Projection:
    """Return the projection of x on the canonical directions that it shares most with y, strongest first.

    Their number is given in one of three ways: `rank` of them; as few as hold the share `energy` of x's variance; or
    all whose canonical correlation is at least `correlation`. With D the canonical directions of x (variates Z = X_c D,
    Z'Z = I) and loadings L = X_c'Z, keep(x) is the regression of x on its variates, which hold |l_i|^2 of its variance
    each, and drop(x) has on these rows no covariance with them: its strongest canonical correlation with y is the next
    one. The projection lives in x's space; swap the arguments for y's.

    Source: Hotelling 1936, "Relations between two sets of variates".

    Raises:
        ValueError: no more rows than d_sender + d_receiver (some correlations would be 1 for any data); not
            exactly one of rank, energy and correlation; a rank outside 1..the number of canonical pairs; an energy or
            correlation outside 0..1, or that no or not all pairs together reach; or a row that is not finite.

    >>> draw = torch.Generator().manual_seed(0)
    >>> shared, own, other = torch.randn(3, 90, 1, generator=draw)
    >>> x, y = torch.cat((shared, own), 1), torch.cat((other, shared), 1)
    >>> left = shared_subspace(x, y, rank=1).drop(x)
    >>> bool((left.T @ (shared - shared.mean())).abs().max() < 1e-3)
    True
    >>> shared_subspace(x, y, correlation=0.9)
    Projection(1 of 2)
    """
    for rows, name in ((x, "x"), (y, "y")):
        require_finite(rows, name)
    if sum(given is not None for given in (rank, energy, correlation)) != 1:
        raise ValueError(f"rank is {rank}, energy {energy} and correlation {correlation}; give one of them")
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"x has {x.shape[0]} rows but y {y.shape[0]}; pair them row by row")
    widths = x.shape[1] + y.shape[1]
    if x.shape[0] <= widths:
        raise ValueError(
            f"{x.shape[0]} rows give perfect correlations by chance for widths {x.shape[1]} and {y.shape[1]};"
            f" capture more than {widths}"
        )
    pairs = canonical_pairs(x, y)
    centred_x, mean = centred(x)
    loadings = centred_x.T @ pairs.variates
    if energy is not None:
        rank = _pairs_with_energy(loadings.square().sum(0) / centred_x.square().sum(), energy)
    elif correlation is not None:
        rank = _pairs_with_correlation(pairs.correlations, correlation)
    available = pairs.correlations.shape[0]
    if rank is None or not 1 <= rank <= available:
        raise ValueError(f"rank is {rank} but these rows have {available} canonical pairs; choose 1 to {available}")
    dtype = fitted_dtype(x)
    return Projection(mean.to(dtype), pairs.directions[:, :rank].to(dtype), loadings[:, :rank].to(dtype))


def _pairs_with_energy(shares: Float[Tensor, " rank"], energy: float) -> int:
    """How many of the first pairs hold this share of the variance."""
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; it is a share of the variance, above 0 and at most 1")
    held = shares.cumsum(0)
    if len(held) == 0 or float(held[-1]) < energy - SHARE_ROUNDING:
        most = float(held[-1]) if len(held) else 0.0
        raise ValueError(f"energy is {energy} but all {len(held)} canonical pairs hold {most:.4g}; lower it")
    return int((held < energy - SHARE_ROUNDING).sum()) + 1


def _pairs_with_correlation(correlations: Float[Tensor, " rank"], least: float) -> int:
    """How many pairs are correlated at least so strongly."""
    if not 0 < least <= 1:
        raise ValueError(f"correlation is {least}; canonical correlations are between 0 and 1")
    found = int((correlations >= least).sum())
    if found == 0:
        strongest = float(correlations[0]) if len(correlations) else 0.0
        raise ValueError(f"correlation is {least} but the strongest pair has {strongest:.4g}; lower it")
    return found
