"""A state against its nearest real neighbours: distance, local outlier factor, residual of a local PCA."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "Bank",
    "LocalDensity",
    "Neighbours",
    "fit_local_density",
    "local_outlier_factor",
    "local_residual",
    "nearest",
]

QUERIES_AT_ONCE = 256
"""Queries whose distances to the whole bank are held together: 16 MB for a bank of 8,192 rows, at full speed."""
GATHERED = 2**19
"""Entries of gathered neighbours held together: 4 MB in float64, which stay in the cache (twice as fast as 128 MB)."""


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


@dataclass(frozen=True, eq=False)
class Bank:
    """Rows among which neighbours are sought, in float64, with all of the search that does not depend on the query.

    Attributes:
        origin: the rows' mean.
        shifted: the rows less it.
        sizes: the squared norms of these.
    """

    origin: Float[Tensor, " d_model"]
    shifted: Float[Tensor, "bank d_model"]
    sizes: Float[Tensor, " bank"]

    @classmethod
    def of(cls, rows: Float[Tensor, "bank d_model"]) -> "Bank":
        """The bank of these rows."""
        wide = rows.to(torch.float64)
        origin = wide.mean(0)
        shifted = wide - origin
        return cls(origin, shifted, shifted.square().sum(1))

    def nearest(self, queries: Float[Tensor, "row d_model"], *, k: int) -> Neighbours:
        """`latentcomm.drift.neighbours.nearest`, without preparing the bank anew."""
        n_rows = self.shifted.shape[0]
        if not 1 <= k <= n_rows:
            raise ValueError(f"k is {k} but the bank holds {n_rows} rows; choose 1 to {n_rows}")
        found = [self._nearest(part, k) for part in (queries.to(torch.float64) - self.origin).split(QUERIES_AT_ONCE)]
        return Neighbours(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _nearest(
        self, shifted: Float[Tensor, "row d_model"], k: int
    ) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
        """Distance and number of the k nearest rows, for queries less the origin."""
        near = torch.addmm(self.sizes, shifted, self.shifted.T, alpha=-2).topk(k, dim=1, largest=False)
        own = shifted.square().sum(1, keepdim=True)
        squared, index = near.values + own, near.indices
        row, rank = (squared < CANCELLATION * (own + self.sizes[index])).nonzero(as_tuple=True)
        step = max(1, GATHERED // shifted.shape[1])
        for some, ranks in zip(row.split(step), rank.split(step), strict=True):
            squared[some, ranks] = (self.shifted[index[some, ranks]] - shifted[some]).square().sum(1)
        squared, order = squared.sort(dim=1)
        return squared.sqrt(), index.gather(1, order)


def nearest(queries: Float[Tensor, "row d_model"], bank: Float[Tensor, "bank d_model"], *, k: int) -> Neighbours:
    """Return each query's k nearest rows of the bank by Euclidean distance, in float64.

    Distances come from |q|^2 - 2 q.b + |b|^2 about the bank's mean, and anew from the differences where that is less
    than a CANCELLATION of its terms, so that small ones lose nothing.

    Raises:
        ValueError: k is not within 1..the rows of the bank.

    >>> nearest(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [5.0]]), k=2).index.tolist()
    [[1, 0]]
    """
    return Bank.of(bank).nearest(queries, k=k)


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
        raise ValueError("rows of the bank are equal; a local density needs rows that differ, so give one of each")
    others = Neighbours(found.distance[:, 1:], found.index[:, 1:])  # the nearest, at distance 0, is the row itself
    reach = others.distance[:, -1].contiguous()
    return LocalDensity(reach, _density(others, reach))


def local_outlier_factor(found: Neighbours, local: LocalDensity) -> Float[Tensor, " row"]:
    """Return the mean local density of a query's neighbours over its own: about 1 inside, more where they are sparse.

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
    With N the centred neighbours and N N' = U S U', x - c has along axis i the coordinate a_i = u_i.N (x - c) /
    sqrt(s_i), and |r|^2 = |x - c|^2 - |a|^2: only products of x and its neighbours are needed. Where that is less than
    a CANCELLATION of |x - c|^2, r itself is computed.

    Raises:
        ValueError: the neighbours' span is smaller than `rank`, so that the plane is not fixed.
    """
    k, states, wide = found.index.shape[1], queries.to(torch.float64), bank.to(torch.float64)
    if not 1 <= rank < k:
        raise ValueError(f"rank is {rank} but {k} neighbours span {k - 1} directions at most; choose 1 to {k - 1}")
    if len(states) == 0:
        return torch.zeros(0, dtype=torch.float64, device=states.device)
    products = []
    for part, index in _in_chunks(states, found.index):
        around = _about(part, wide, index)
        products.append(torch.bmm(around, around.transpose(1, 2)))
    gram = torch.cat(products)
    to_mean = gram.mean(2)  # each neighbour's product with c, the query being the origin
    size = to_mean.mean(1)  # |x - c|^2
    sizes, axes = torch.linalg.eigh(gram - to_mean[:, :, None] - to_mean[:, None] + size[:, None, None])
    sizes, axes = sizes[:, -rank:], axes[:, :, -rank:]
    if bool((sizes[:, 0] <= sizes[:, -1] * RANK_TOLERANCE).any()):
        raise ValueError(f"{k} neighbours span fewer than {rank} directions; lower the rank or capture more rows")
    along = (axes.transpose(1, 2) @ (size[:, None] - to_mean)[:, :, None])[:, :, 0] / sizes.sqrt()
    squared = size - along.square().sum(1)
    for some in (squared < CANCELLATION * size).nonzero().flatten().split(QUERIES_AT_ONCE):
        squared[some] = _squared_residual(_about(states[some], wide, found.index[some]), sizes[some], axes[some])
    return squared.sqrt()


def _about(
    queries: Float[Tensor, "row d_model"], bank: Float[Tensor, "bank d_model"], index: Int[Tensor, "row k"]
) -> Float[Tensor, "row k d_model"]:
    """Each query's neighbours less the query."""
    around = bank[index.flatten()].view(*index.shape, bank.shape[1])
    around -= queries[:, None]
    return around


def _squared_residual(
    around: Float[Tensor, "row k d_model"], sizes: Float[Tensor, "row rank"], axes: Float[Tensor, "row k rank"]
) -> Float[Tensor, " row"]:
    """|r|^2 from r itself, for neighbours about the query and the leading eigenpairs of their centred Gram matrix."""
    centre = around.mean(1)
    basis = axes.transpose(1, 2) @ (around - centre[:, None]) / sizes.sqrt()[:, :, None]
    along = (basis @ centre[:, :, None])[:, :, 0]
    return (centre - (along[:, None] @ basis)[:, 0]).square().sum(1)


def _density(found: Neighbours, reach: Float[Tensor, " bank"]) -> Float[Tensor, " row"]:
    """The local reachability density of points with these neighbours."""
    return 1 / torch.maximum(reach[found.index], found.distance).mean(1)


def _in_chunks(rows: Float[Tensor, "row d_model"], index: Int[Tensor, "row k"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their neighbours' numbers, so many at a time that the gathered neighbours stay within GATHERED."""
    step = max(1, GATHERED // (index.shape[1] * rows.shape[1]))
    yield from zip(rows.split(step), index.split(step), strict=True)


CANCELLATION = 1e-4
"""A difference smaller than this share of its terms is computed anew: above it eleven digits and more are exact."""
RANK_TOLERANCE = 1e-12
"""A direction of the neighbours with less than this share of the largest variance is rounding of their Gram matrix."""
