"""How much of one space a linear map predicts from the other, on documents it was not fitted on."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
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

__all__ = ["linear_predictability", "predictability_of_each"]

Documents = Int[Tensor, " row"] | Sequence[int] | Sequence[str]
"""One document label a row."""


@takes_arrays
def linear_predictability(
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row_y d_receiver"],
    *,
    folds: int = 5,
    penalty: float | int | None = None,
    seed: int = 0,
    groups: Documents | None = None,
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
    each = predictability_of_each(x, [y], folds=folds, penalty=penalty, seed=seed, groups=groups)
    return float(each)


def predictability_of_each(
    x: Float[Tensor, "row d_sender"],
    y_layers: Iterable[Float[Tensor, "_ _"]],
    *,
    folds: int = 5,
    penalty: float | int | None = None,
    seed: int = 0,
    groups: Documents | None = None,
) -> Float[Tensor, " layer_y"]:
    """Return `linear_predictability` of every layer of y from x, which is factored once for all of them.

    The layers of y may come one at a time from an iterator: one is in memory then.

    Raises:
        ValueError: as `linear_predictability`, or no layer of y.

    >>> rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    >>> predictability_of_each(rows, (rows[:, :2], rows + 1)).round(decimals=6)
    tensor([1., 1.], dtype=torch.float64)
    """
    check_penalty(penalty, folds)
    why = f"for {folds} folds"
    require_pair(x, x, least_rows=2 * folds, why=why)
    fold = torch.empty(x.shape[0], dtype=torch.int64)
    for number, held_out in enumerate(row_folds(x.shape[0], folds=folds, groups=groups, seed=seed)):
        fold[held_out] = number
    rows, fold = centred(x)[0], fold.to(x.device)
    source = factor_source(fold_sums(rows, fold, folds), choosing=penalty is None)
    found = []
    for y in y_layers:
        require_pair(x, y, least_rows=2 * folds, why=why)
        targets = centred(y)[0]
        target, cross = target_sums(targets, fold, folds), cross_sums(rows, targets, fold, folds)
        if penalty is None:
            found.append(r_squared_chosen(source, target, cross))
        else:
            found.append(r_squared_at(source, target, cross, [float(penalty)])[0])
    if not found:
        raise ValueError("there is no layer of y to predict; give at least 1")
    return torch.stack(found)
