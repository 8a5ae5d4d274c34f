"""What of a message the receiver already has: the part along its own state, and the part predictable from it."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.linalg import remove_component, require_finite

__all__ = ["fit_predictable", "orthogonal_residual"]


def orthogonal_residual(
    a: Float[Tensor, "*batch d_sender"], b: Float[Tensor, "*batch d_receiver"]
) -> Float[Tensor, "*batch d_sender"]:
    """Return a - (a.b / b.b) b row by row: the message less its component along the receiver's state.

    Computed in float64 and returned in the dtype of `a`. Where `b` is zero it holds nothing, and `a` comes back whole
    (as a copy). Where a equals b the result is exactly zero. This is one Gram-Schmidt step; both must be in one space,
    so map `a` first where the models differ.

    Raises:
        ValueError: the widths differ, or `a` or `b` holds NaN or infinity.

    >>> import torch
    >>> orthogonal_residual(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))
    tensor([0., 4.])
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"a is {a.shape[-1]} wide but b {b.shape[-1]}; map a into b's space first (latentcomm.alignment)"
        )
    require_finite(a, "a")
    require_finite(b, "b")
    return remove_component(a, b).to(a.dtype)


def fit_predictable(
    b_rows: Float[Tensor, "row d_receiver"],
    a_rows: Float[Tensor, "row d_sender"],
    *,
    folds: int = 5,
    groups: Int[Tensor, " row"] | Sequence[int] | Sequence[str] | None = None,
    seed: int = 0,
) -> AffineMap:
    """Return the map b -> M b + c that predicts the sender's states from the receiver's, over a corpus.

    M and c are the ridge regression of `a_rows` on `b_rows` with the penalty of the best held-out error
    (`latentcomm.alignment.fit_ridge`). `PredictabilityResidual(fit_predictable(b_rows, a_rows))` then grafts only
    a - (M b + c). Pass `groups`, one document label a row, whenever several rows come from one document: neighbouring
    tokens otherwise leak between the folds. Report `.r_squared(b_rows, a_rows)` on rows that were not used here.

    Raises:
        ValueError: as `latentcomm.alignment.fit_ridge`.

    >>> import torch
    >>> b_rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> fit_predictable(b_rows, b_rows @ torch.ones(3, 2))
    AffineMap(3->2)
    """
    return fit_ridge(b_rows, a_rows, folds=folds, groups=groups, seed=seed)
