"""Orthogonal Procrustes similarity: how far one cloud of rows can be turned onto the other."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import centred
from latentcomm.similarity.checks import require_pair

__all__ = ["procrustes"]


@takes_arrays
def procrustes(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"]) -> float:
    """Return the nuclear norm of X_n'Y_n, both sides centred and divided by their Frobenius norm, in [0, 1].

    1 - p is half the smallest squared distance |X_n Q - Y_n|_F^2 over orthogonal Q, the narrower side filled up with
    zero columns, which adds nothing to the norm. As biased CKA it rises with width over rows: report it with its null.

    Source: Schoenemann 1966; as a similarity of representations, Williams et al. 2021, arXiv:2110.14739.

    Raises:
        ValueError: fewer than 3 rows (2 always give 1), a width below 2, NaN or infinite rows, or constant columns.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(procrustes(rows, 3 * rows + 1), 6)
    1.0
    """
    require_pair(x, y, least_rows=3, why="(2 rows always give 1)")
    x, y = centred(x)[0], centred(y)[0]
    return float(torch.linalg.svdvals(_narrow(x).T @ _narrow(y)).sum() / (x.norm() * y.norm()))


def _narrow(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row rank"]:
    """Return the rows turned so that no column is more than there are rows: an isometry that spares a large product."""
    if rows.shape[1] <= rows.shape[0]:
        return rows
    return torch.linalg.qr(rows.T).R.T
