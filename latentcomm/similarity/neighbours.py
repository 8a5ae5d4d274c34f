"""Whether rows have the same neighbours in both spaces: mutual nearest neighbours, and CKA among them (CKNNA)."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm.similarity.checks import require_pair

__all__ = ["cknna", "mutual_knn"]

TIED = 1e-12
"""Cosines closer than this are equal: a dot product of unit vectors in float64 rounds at about 1e-15."""
BLOCK_ENTRIES = 2**23
"""Similarities held at a time for each side, 64 MB: memory grows with the rows, not with their square."""


@takes_arrays
def mutual_knn(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"], *, k: int = 10) -> float:
    """Return the mean share of a row's k nearest neighbours that it has in both spaces, in [0, 1].

    Nearest by cosine, the row itself left out, nothing centred. Unrelated spaces give k / (n - 1). Rows that tie at
    rank k share what is left of the k ranks equally, and an overlap counts a neighbour by the smaller of its two
    shares; without ties that is the plain overlap. So copies of a row (the same token twice at the embeddings) do not
    make the answer depend on the order of the rows.

    Source: Huh et al. 2024, arXiv:2405.07987.

    Raises:
        ValueError: k below 1, or above n - 2 (all others would be neighbours); a row of zeros, which has no cosine; a
            width below 2, NaN or infinite rows, or constant columns.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    >>> mutual_knn(rows, 3 * rows), round(mutual_knn(rows, noise), 3), round(10 / 49, 3)
    (1.0, 0.204, 0.204)
    """
    x, y = _unit_pair(x, y, k)
    overlap = 0.0
    for block in _blocks(x.shape[0]):
        shares = [_neighbour_shares(_cosines(side, block), block, k) for side in (x, y)]
        overlap += float(torch.minimum(*shares).sum())
    return overlap / (x.shape[0] * k)


@takes_arrays
def cknna(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"], *, k: int = 10) -> float:
    """Return CKA restricted to pairs of rows that are mutual neighbours, as its paper defines it.

    With K the cosines of x, L those of y, each less its row's mean over all columns, and A(K, L) the sum of K_ij L_ij
    over the i != j where j is among the k nearest of i in x AND in y: A(K, L) / sqrt(A(K, K) A(L, L)). The definition
    is that of the paper's appendix; the published code takes an unbiased HSIC of the masked Gram matrices instead and
    adds 1e-6 to the denominator, which gives other numbers. Ties at rank k count as in `mutual_knn`.

    Source: Huh et al. 2024, arXiv:2405.07987, appendix on CKNNA.

    Raises:
        ValueError: as `mutual_knn`, or all rows of a side point the same way.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(cknna(rows, 3 * rows), 6)
    1.0
    """
    x, y = _unit_pair(x, y, k)
    xy = xx = yy = 0.0
    for block in _blocks(x.shape[0]):
        similar_x, similar_y = _cosines(x, block), _cosines(y, block)
        near_x, near_y = _neighbour_shares(similar_x, block, k), _neighbour_shares(similar_y, block, k)
        similar_x, similar_y = similar_x - similar_x.mean(1, keepdim=True), similar_y - similar_y.mean(1, keepdim=True)
        xy += float((torch.minimum(near_x, near_y) * similar_x * similar_y).sum())
        xx += float((near_x * similar_x.square()).sum())
        yy += float((near_y * similar_y.square()).sum())
    for own, name in ((xx, "x"), (yy, "y")):
        if own <= TIED**2 * x.shape[0] * k:
            raise ValueError(f"all rows of {name} point the same way, and none is nearest; centre them first")
    return xy / math.sqrt(xx * yy)


def _unit_pair(
    x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"], k: int
) -> tuple[Float[Tensor, "row d_sender"], Float[Tensor, "row d_receiver"]]:
    """Return both sides with rows of length 1 in float64, refusing what has no neighbours."""
    if k < 1:
        raise ValueError(f"k is {k}; a row needs at least 1 neighbour")
    require_pair(x, y, least_rows=k + 2, why=f"(with fewer, every other row is one of the {k} nearest), or a smaller k")
    units = []
    for rows, name in ((x, "x"), (y, "y")):
        wide = rows.detach().to(torch.float64)
        lengths = wide.norm(dim=1, keepdim=True)
        if zeros := (lengths[:, 0] == 0).nonzero().flatten().tolist():
            raise ValueError(f"row {zeros[0]} of {name} is zero ({len(zeros)} such), and has no cosine; leave it out")
        units.append(wide / lengths)
    return units[0], units[1]


def _blocks(n_rows: int) -> Iterator[slice]:
    """Yield ranges of rows whose cosines to all rows are held at once."""
    step = max(1, BLOCK_ENTRIES // n_rows)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _cosines(units: Float[Tensor, "row d_model"], block: slice) -> Float[Tensor, "block row"]:
    """Return the cosines of a block of rows to all rows."""
    return units[block] @ units.T


def _neighbour_shares(cosines: Float[Tensor, "block row"], block: slice, k: int) -> Float[Tensor, "block row"]:
    """Return 1 for each of a row's k nearest and 0 for the others, the ranks left shared by those that tie."""
    others = cosines.clone()
    others[torch.arange(others.shape[0]), torch.arange(block.start, block.stop)] = -torch.inf
    last = others.topk(k, dim=1).values[:, -1:]
    above, tied = others > last + TIED, (others - last).abs() <= TIED
    share = (k - above.sum(1, keepdim=True)).to(torch.float64) / tied.sum(1, keepdim=True)
    return above + tied * share
