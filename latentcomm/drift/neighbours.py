"""What a state's nearest real neighbours say of it: distance, local outlier factor, residual of a local PCA."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["LocalDensity", "Neighbours", "fit_local_density", "local_outlier_factor", "local_residual", "nearest"]

QUERIES_AT_ONCE = 1024
"""Queries whose distances to the whole bank are held together: 64 MB for a bank of 8,192 rows."""
GATHERED = 2**24
"""Entries of gathered neighbours held together, 128 MB in float64."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest rows of a bank for each query, nearest first."""

    distance: Float[Tensor, "row k"]
    index: Int[Tensor, "row k"]


@dataclass(frozen=True, eq=False)
class LocalDensity:
    """Of each row of a bank: the distance to its k-th other row, and its local reachability density."""

    reach: Float[Tensor, " bank"]
    density: Float[Tensor, " bank"]


def nearest(queries: Float[Tensor, "row d_model"], bank: Float[Tensor, "bank d_model"], *, k: int) -> Neighbours:
    """Return each query's k nearest rows of the bank by Euclidean distance, in float64.

    Candidates come from |q|^2 - 2 q.b + |b|^2; their distances are then computed from the differences, so that small
    ones lose nothing to cancellation.

    Raises:
        ValueError: k is not within 1..the rows of the bank.

    >>> nearest(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [5.0]]), k=2).index.tolist()
    [[1, 0]]
    """
    if not 1 <= k <= bank.shape[0]:
        raise ValueError(f"k is {k} but the bank holds {bank.shape[0]} rows; choose 1 to {bank.shape[0]}")
    bank = bank.to(torch.float64)
    sizes = bank.square().sum(1)
    distances, indices = [], []
    for part in queries.to(torch.float64).split(QUERIES_AT_ONCE):
        near = (sizes - 2 * part @ bank.T).topk(k, dim=1, largest=False).indices
        exact = torch.cat(
            [
                torch.linalg.vector_norm(bank[index] - some[:, None], dim=2)
                for some, index in zip(*_in_pieces(part, near), strict=True)
            ]
        )
        exact, order = exact.sort(dim=1)
        distances.append(exact)
        indices.append(near.gather(1, order))
    if not distances:
        return Neighbours(torch.zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.long))
    return Neighbours(torch.cat(distances), torch.cat(indices))


def fit_local_density(bank: Float[Tensor, "bank d_model"], *, k: int) -> LocalDensity:
    """Return each bank row's reach and local reachability density 1 / mean_o max(reach(o), |x - o|) over its k nearest.

    A row is not its own neighbour. The rows must differ: k equal ones have no finite density.

    Source: Breunig et al. 2000, "LOF: identifying density-based local outliers".

    Raises:
        ValueError: k is not below the rows of the bank, or two of its rows are equal.

    >>> fit_local_density(torch.tensor([[0.0], [1.0], [3.0]]), k=1).density.tolist()
    [1.0, 1.0, 0.5]
    """
    if not 1 <= k < bank.shape[0]:
        raise ValueError(f"k is {k} but the bank holds {bank.shape[0]} rows; choose 1 to {bank.shape[0] - 1}")
    found = nearest(bank, bank, k=k + 1)
    if bool((found.distance[:, 1] == 0).any()):
        raise ValueError("rows of the bank are equal; a local density needs rows that differ, so keep one of each")
    others = Neighbours(found.distance[:, 1:], found.index[:, 1:])  # the nearest, at distance 0, is the row itself
    reach = others.distance[:, -1].contiguous()
    return LocalDensity(reach, _density(others, reach))


def local_outlier_factor(found: Neighbours, local: LocalDensity) -> Float[Tensor, " row"]:
    """Return the mean local density of a query's neighbours over its own: about 1 inside, larger in thin places.

    Source: Breunig et al. 2000; for states that are not in the bank, as scikit-learn's `novelty=True`.
    """
    return local.density[found.index].mean(1) / _density(found, local.reach)


def local_residual(
    queries: Float[Tensor, "row d_model"],
    bank: Float[Tensor, "bank d_model"],
    found: Neighbours,
    *,
    rank: int,
) -> Float[Tensor, " row"]:
    """Return each query's distance to the `rank`-dimensional plane through its neighbours: |r|, in float64.

    The plane goes through the neighbours' mean c along their leading principal axes V: r = (x - c) - V V'(x - c).
    With N the centred neighbours and N N' = U S U', x - c has along axis i the coordinate (u_i.N (x - c)) / sqrt(s_i).

    Raises:
        ValueError: the neighbours' span is smaller than `rank`, so that the plane is not fixed.
    """
    k, parts = found.index.shape[1], []
    if not 1 <= rank < k:
        raise ValueError(f"rank is {rank} but {k} neighbours span {k - 1} directions at most; choose 1 to {k - 1}")
    for part, index in zip(*_in_pieces(queries.to(torch.float64), found.index), strict=True):
        around = bank.to(torch.float64)[index]
        centre = around.mean(1)
        around = around - centre[:, None]
        offset = part - centre
        sizes, axes = torch.linalg.eigh(around @ around.transpose(1, 2))
        sizes, axes = sizes[:, -rank:], axes[:, :, -rank:]
        basis = axes.transpose(1, 2) @ around
        if bool((sizes[:, 0] <= sizes[:, -1] * RANK_TOLERANCE).any()):
            raise ValueError(f"{k} neighbours span fewer than {rank} directions; lower the rank or capture more rows")
        basis = basis / sizes.sqrt()[:, :, None]
        along = (basis @ offset[:, :, None])[:, :, 0]
        parts.append(torch.linalg.vector_norm(offset - (along[:, None] @ basis)[:, 0], dim=1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _density(found: Neighbours, reach: Float[Tensor, " bank"]) -> Float[Tensor, " row"]:
    """The local reachability density of points with these neighbours."""
    return 1 / torch.maximum(reach[found.index], found.distance).mean(1)


def _in_pieces(
    rows: Float[Tensor, "row d_model"], index: Int[Tensor, "row k"]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Rows and their neighbours' numbers, so many at a time that the gathered neighbours stay within GATHERED."""
    step = max(1, GATHERED // (index.shape[1] * rows.shape[1]))
    return rows.split(step), index.split(step)


RANK_TOLERANCE = 1e-12
"""A direction of the neighbours with less than this share of the largest variance is rounding of their Gram matrix."""
