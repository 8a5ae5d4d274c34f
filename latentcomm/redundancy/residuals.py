"""What of a message the receiver already has along its own state, or predicts from it, and the rest as a map."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import remove_component, require_finite
from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.fusion import Concat

__all__ = ["Groups", "group_codes", "fit_predictable", "orthogonal_residual", "residual_fusion", "residual_map"]

Groups = Int[Tensor, " row"] | Sequence[int] | Sequence[str]
"""One document label a row."""


def group_codes(groups: Groups | None, n_rows: int) -> Int[Tensor, " row"]:
    """Return each row's group as a number, in order of first appearance; every row its own without groups.

    Raises:
        ValueError: not one label a row.

    >>> group_codes(["b", "a", "b"], 3)
    tensor([0, 1, 0])
    """
    if groups is None:
        return torch.arange(n_rows)
    labels = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if len(labels) != n_rows:
        raise ValueError(f"{len(labels)} group labels for {n_rows} rows; give one label a row")
    numbers: dict[str | int, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels])


@takes_arrays
def orthogonal_residual(
    a: Float[Tensor, "*batch d_sender"], b: Float[Tensor, "*batch d_receiver"]
) -> Float[Tensor, "*batch d_sender"]:
    """Return a - (a.b / b.b) b row by row: the message less its component along the receiver's state.

    Computed in float64 and returned in the dtype of `a`. Where `b` is zero it holds nothing, and `a` comes back whole
    (as a copy). Where a equals b the result is exactly zero. This is one Gram-Schmidt step; both must be in one space,
    so map `a` first where the models differ.

    Raises:
        ValueError: the widths differ, or `a` or `b` holds NaN or infinity.

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


@takes_arrays
def fit_predictable(
    b_rows: Float[Tensor, "row d_receiver"],
    a_rows: Float[Tensor, "row_a d_sender"],
    *,
    penalty: float | int | None = None,
    folds: int = 5,
    groups: Groups | None = None,
    seed: int = 0,
) -> AffineMap:
    """Return the map b -> M b + c that predicts the sender's states from the receiver's, over a corpus.

    M and c are the ridge regression of `a_rows` on `b_rows`, with the penalty of the best held-out error unless it is
    given (`latentcomm.alignment.fit_ridge`). `PredictabilityResidual(fit_predictable(b_rows, a_rows))` then grafts only
    a - (M b + c). On the rows given, the residual's covariance with b is penalty * M / n: exactly 0 at penalty 0, which
    needs many more rows than d_receiver. Pass `groups`, one document label a row, whenever several rows come from
    one document: neighbouring tokens otherwise leak between the folds. Report `.r_squared(b_rows, a_rows)` on rows that
    were not used here, or `measure_redundancy`.

    Raises:
        ValueError: row counts that differ, or as `latentcomm.alignment.fit_ridge`.

    >>> b_rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> fit_predictable(b_rows, b_rows @ torch.ones(3, 2))
    AffineMap(3->2)
    """
    if a_rows.shape[0] != b_rows.shape[0]:
        raise ValueError(f"b_rows has {b_rows.shape[0]} rows but a_rows {a_rows.shape[0]}; pair them row by row")
    return fit_ridge(b_rows, a_rows, penalty=penalty, folds=folds, groups=groups, seed=seed)


def residual_map(predictable: AffineMap, *, into: AffineMap | None = None) -> AffineMap:
    """Return the map [b; a] -> W (a - M b - c): what the receiver's state b does not predict of the message a.

    `predictable` is b -> M b + c. Without `into` the residual stays in the sender's space (W = I, d_sender wide); with
    `into`, an alignment a -> W a + e from the sender's to the receiver's space, it is read there. The offset e is left
    out: a residual is a difference, and the difference of two mapped states has none.

    Raises:
        ValueError: `into` does not take what `predictable` gives, or has another dtype or device.

    >>> residual = residual_map(AffineMap(torch.tensor([[2.0, 0.0]]), torch.tensor([1.0])))
    >>> residual, residual(torch.tensor([3.0, 9.0, 10.0]))
    (AffineMap(3->1), tensor([3.]))
    """
    weight, bias = predictable.weight, predictable.bias
    if into is None:
        reading = torch.eye(predictable.d_out, dtype=weight.dtype, device=weight.device)
    elif into.d_in != predictable.d_out:
        raise ValueError(
            f"into is {into!r} but the residual is {predictable.d_out} wide; fit it from the sender's space"
        )
    elif (into.weight.dtype, into.weight.device) != (weight.dtype, weight.device):
        kinds = f"{into.weight.dtype} on {into.weight.device} but predictable {weight.dtype} on {weight.device}"
        raise ValueError(f"into is {kinds}; give both the same")
    else:
        reading = into.weight
    wide = reading.to(torch.float64)
    both = torch.cat((-wide @ weight.to(torch.float64), wide), dim=1)
    return AffineMap(both.to(weight.dtype), (-wide @ bias.to(torch.float64)).to(bias.dtype))


def residual_fusion(predictable: AffineMap, *, into: AffineMap | None = None, scale: float | int = 1.0) -> Concat:
    """Return the fusion own + scale * W (incoming - M own - c), for a sender of any width, as one map.

    W is the linear part of `into` (`residual_map`); without it sender and receiver must be equally wide, and the fusion
    is `PredictabilityResidual(predictable, scale)`.

    Raises:
        ValueError: the residual is not as wide as the receiver's state, the scale is not finite, or as `residual_map`.

    >>> fusion = residual_fusion(AffineMap(torch.tensor([[2.0]]), torch.tensor([1.0])), scale=0.5)
    >>> fusion(torch.tensor([3.0]), torch.tensor([10.0]))
    tensor([4.5000])
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be a finite number")
    residual = residual_map(predictable, into=into)
    width = predictable.d_in
    if residual.d_out != width:
        raise ValueError(
            f"the residual is {residual.d_out} wide but the receiver's state {width}; pass into, a map from"
            f" {predictable.d_out} to {width}"
        )
    weight = scale * residual.weight.to(torch.float64)
    weight[:, :width] += torch.eye(width, dtype=torch.float64, device=weight.device)
    return Concat(AffineMap(weight.to(residual.weight.dtype), (scale * residual.bias).to(residual.bias.dtype)))
