"""How much of one space a linear map predicts from the other, on documents it was not fitted on."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.linalg import centred
from latentcomm.alignment import row_folds
from latentcomm.similarity.checks import require_pair
from latentcomm.similarity.layer_maps.ridge import (
    check_penalty,
    cross_sums,
    factor_source,
    fold_sums,
    r_squared_at,
    r_squared_chosen,
    target_sums,
)

__all__ = ["linear_predictability"]


def linear_predictability(
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row_y d_receiver"],
    *,
    folds: int = 5,
    penalty: float | int | None = None,
    seed: int = 0,
    groups: Int[Tensor, " row"] | Sequence[int] | Sequence[str] | None = None,
) -> float:
    """Return the held-out R^2 of predicting y from x by ridge regression: 1 - sum SSE / sum TSS over the folds.

    SSE and TSS are summed over folds, rows and outputs, TSS about the mean of the TRAINING rows: 0 is what that mean
    alone predicts, and worse is negative. The other direction is `linear_predictability(y, x)`. `penalty` is a multiple
    of the mean eigenvalue of the training rows' X_c'X_c, so that scale does not matter (`fit_ridge` takes it absolute).
    With None each fold chooses among `latentcomm.alignment.PENALTY_RATIOS` without its held-out rows: it fits on all
    other folds but one and takes the penalty with the smallest error on that one.

    Give `groups`, one document label a row, whenever rows share documents: neighbouring tokens otherwise leak between
    the folds (0.33 instead of 0.28 for two layers of SmolLM2; in sample it is 0.37).

    Source: Hoerl & Kennard 1970, "Ridge regression"; nested folds as in Varma & Simon 2006.

    Raises:
        ValueError: a penalty that is negative or not finite, or 0 where the rows do not fix least squares; fewer than 3
            folds to choose a penalty in, or 2 to hold one out; fewer than 2 rows a fold, fewer groups than folds; a
            width below 2, NaN or infinite rows, or constant columns.

    >>> rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    >>> noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    >>> round(linear_predictability(rows, rows[:, :2]), 6), round(linear_predictability(rows, noise), 2)
    (1.0, -0.02)
    """
    check_penalty(penalty, folds)
    require_pair(x, y, least_rows=2 * folds, why=f"for {folds} folds")
    fold = torch.empty(x.shape[0], dtype=torch.int64)
    for number, held_out in enumerate(row_folds(x.shape[0], folds=folds, groups=groups, seed=seed)):
        fold[held_out] = number
    x, y, fold = centred(x)[0], centred(y)[0], fold.to(x.device)
    source = factor_source(fold_sums(x, fold, folds), choosing=penalty is None)
    target, cross = target_sums(y, fold, folds), cross_sums(x, y, fold, folds)
    if penalty is None:
        return float(r_squared_chosen(source, target, cross))
    return float(r_squared_at(source, target, cross, [float(penalty)])[0])
