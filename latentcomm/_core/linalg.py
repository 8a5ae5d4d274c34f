"""Float64 helpers for the maps and residuals: checks on rows, centring, rank, canonical pairs, Gram-Schmidt."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "CanonicalPairs",
    "canonical_pairs",
    "centred",
    "fitted_dtype",
    "in_float64",
    "mapped",
    "numerical_rank",
    "remove_component",
    "require_finite",
    "squared_size",
    "thin_svd",
    "with_float64",
]

WITHOUT_FLOAT64 = {"mps"}
"""Kinds of devices that have no float64."""
ROWS_NAMED = 5
"""How many offending rows an error lists before it only counts them: a sentence must stay readable."""


@dataclass(frozen=True)
class CanonicalPairs:
    """Canonical directions of a source and how strongly each pair is correlated, strongest first.

    The centred source times `directions` gives `variates`, orthonormal columns; `correlations[i]` is the correlation of
    variate i with its partner in the target.
    """

    correlations: Float[Tensor, " rank"]
    directions: Float[Tensor, "d_sender rank"]
    variates: Float[Tensor, "row rank"]


def require_finite(rows: Float[Tensor, "*batch d_model"], name: str) -> None:
    """Refuse rows that hold NaN or infinity, naming them (leading axes counted as one, from 0).

    Raises:
        ValueError: some row is not finite.

    >>> require_finite(torch.tensor([[1.0], [float("nan")]]), "source")
    Traceback (most recent call last):
        ...
    ValueError: source holds NaN or infinity in row 1; find the cause, or leave such rows out
    """
    if rows.numel() == 0:
        return
    lowest, highest = torch.aminmax(rows)  # both are NaN if any entry is; fifteen times faster than isfinite on all
    if bool(lowest.isfinite() & highest.isfinite()):
        return
    width = rows.shape[-1]
    bad = (~torch.isfinite(rows.reshape(-1, width))).any(-1).nonzero().flatten().tolist()
    where = ("row " if len(bad) == 1 else "rows ") + ", ".join(str(row) for row in bad[:ROWS_NAMED])
    more = f" and {len(bad) - ROWS_NAMED} more" if len(bad) > ROWS_NAMED else ""
    raise ValueError(f"{name} holds NaN or infinity in {where}{more}; find the cause, or leave such rows out")


def in_float64(x: Tensor) -> Tensor:
    """Return x in float64: where it is, or on the CPU where its device has no float64 (Apple's MPS).

    What is computed from it goes back by `.to(x)`, which is that of a device and of a dtype.

    >>> in_float64(torch.tensor([1.0])).dtype
    torch.float64
    """
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).to(torch.float64)


def with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU where it has no float64 (Apple's MPS).

    >>> with_float64(torch.device("mps")), with_float64(torch.device("cuda", 1))
    (device(type='cpu'), device(type='cuda', index=1))
    """
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def mapped(map: Callable[[Tensor], Tensor], rows: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
    """Rows through a map on the device of its weights, where it has any, and back on their own.

    >>> mapped(torch.nn.Linear(2, 3), torch.ones(4, 2)).shape
    torch.Size([4, 3])
    """
    weight = getattr(map, "weight", None)
    return map(rows.to(weight.device) if isinstance(weight, Tensor) else rows).to(rows.device)


def centred(rows: Float[Tensor, "row d_model"]) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " d_model"]]:
    """Return the rows less their mean, and the mean, both in float64 and outside the autograd graph.

    >>> centred(torch.tensor([[1.0], [3.0]]))[0].flatten().tolist()
    [-1.0, 1.0]
    """
    wide = in_float64(rows.detach())
    mean = wide.mean(0)
    return wide - mean, mean


def squared_size(rows: Float[Tensor, "*batch d_model"]) -> float:
    """Return the sum of all squared entries, accumulated in float64.

    >>> squared_size(torch.tensor([[3.0, 4.0]]))
    25.0
    """
    return float(in_float64(rows.detach()).square().sum())


def fitted_dtype(rows: Float[Tensor, "row d_model"]) -> torch.dtype:
    """Return the dtype in which a map fitted to these rows is stored: theirs, and float32 where theirs is shorter.

    A map's entries in bfloat16 would be off by up to 0.4 % each, and errors of ill-conditioned maps do not average out.

    >>> fitted_dtype(torch.zeros(2, 3, dtype=torch.bfloat16))
    torch.float32
    """
    return torch.promote_types(rows.dtype, torch.float32)


def numerical_rank(singular_values: Float[Tensor, " rank"], shape: tuple[int, int]) -> int:
    """Count the singular values of a float64 matrix of this shape that exceed its rounding error.

    The tolerance is max(shape) * 2.2e-16 times the largest singular value, as in numpy.linalg.matrix_rank.

    >>> numerical_rank(torch.tensor([1.0, 1e-3, 1e-20], dtype=torch.float64), (10, 3))
    2
    """
    if singular_values.numel() == 0:
        return 0
    tolerance = max(shape) * torch.finfo(torch.float64).eps * float(singular_values.max())
    return int((singular_values > tolerance).sum())


def thin_svd(
    matrix: Float[Tensor, "row d_model"],
) -> tuple[Float[Tensor, "row rank"], Float[Tensor, " rank"], Float[Tensor, "rank d_model"]]:
    """Return U, the diagonal of S, and V' with matrix = U S V', in float64, cut at the numerical rank.

    >>> thin_svd(torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))[1].tolist()
    [3.0]
    """
    left, sizes, right = torch.linalg.svd(in_float64(matrix), full_matrices=False)
    rank = numerical_rank(sizes, (matrix.shape[0], matrix.shape[1]))
    return left[:, :rank], sizes[:rank], right[:rank]


def canonical_pairs(source: Float[Tensor, "row d_sender"], target: Float[Tensor, "row d_receiver"]) -> CanonicalPairs:
    """Return all canonical pairs of two row-paired sets, in float64, without regularisation.

    With the centred source U_x S_x V_x' and target U_y S_y V_y' (each cut at its numerical rank) and the decomposition
    U_x'U_y = P C Q', the correlations are diag(C), the source's directions V_x S_x^-1 P, its variates U_x P.
    There are as many pairs as the smaller of the two ranks.

    Source: Hotelling 1936, "Relations between two sets of variates"; computed as in Bjoerck & Golub 1973.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0], [4.0, 1.0]])
    >>> canonical_pairs(rows, 3 * rows + 1).correlations.round(decimals=6).tolist()
    [1.0, 1.0]
    """
    source_basis, source_sizes, source_axes = thin_svd(centred(source)[0])
    target_basis, _, _ = thin_svd(centred(target)[0])
    rotation, correlations, _ = torch.linalg.svd(source_basis.T @ target_basis, full_matrices=False)
    return CanonicalPairs(
        correlations=correlations,
        directions=(source_axes.T / source_sizes) @ rotation,
        variates=source_basis @ rotation,
    )


def remove_component(
    a: Float[Tensor, "*batch d_model"], b: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Return a - (a.b / b.b) b row by row, in float64: what of `a` is orthogonal to `b`.

    A row of `b` that is zero takes nothing away: that row of `a` comes back whole. Zero is b.b == 0 in float64, so a
    norm below about 1e-162, which float32 cannot hold. Where a equals b the result is exactly zero.

    >>> remove_component(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])).tolist()
    [0.0, 4.0]
    """
    a, b = in_float64(a), in_float64(b)
    squared_norm = (b * b).sum(-1, keepdim=True)
    divisor = torch.where(squared_norm == 0, 1.0, squared_norm)
    return a - (a * b).sum(-1, keepdim=True) / divisor * b
