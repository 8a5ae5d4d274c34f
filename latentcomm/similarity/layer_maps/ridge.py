"""Cross-validated ridge from sums over folds: one eigendecomposition a split serves every target and penalty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.linalg import numerical_rank
from latentcomm.alignment import PENALTY_RATIOS

__all__ = [
    "FoldSums",
    "SourceFactors",
    "TargetSums",
    "check_penalty",
    "cross_sums",
    "factor_source",
    "fold_sums",
    "r_squared_at",
    "r_squared_chosen",
    "target_sums",
]

LEAST_FOLDS_TO_CHOOSE = 3
"""One fold is held out, one judges the penalties, and one at least is left to fit on."""


@dataclass(frozen=True)
class FoldSums:
    """Sums over each fold's rows of one layer, at one origin: how many, their sum, their products X'X."""

    n: Int[Tensor, " fold"]
    total: Float[Tensor, "fold d_model"]
    square: Float[Tensor, "fold d_model d_model"]

    def as_target(self) -> "TargetSums":
        """Return what of these sums a target needs; `target_sums` spares the products where nothing else needs them."""
        return TargetSums(self.total, self.square.diagonal(dim1=1, dim2=2).sum(1))


@dataclass(frozen=True)
class TargetSums:
    """Sums over each fold's rows of a layer to predict: of the rows, and of their squared norms."""

    total: Float[Tensor, "fold d_model"]
    size: Float[Tensor, " fold"]


@dataclass(frozen=True)
class Split:
    """A source fitted on the folds `training` and judged on the fold `test`, in the eigenbasis of its training rows."""

    training: Int[Tensor, " training"]
    test: int
    mean: Float[Tensor, " d_model"]
    eigenvalues: Float[Tensor, " d_model"]
    vectors: Float[Tensor, "d_model d_model"]
    tested: Float[Tensor, "d_model d_model"]


@dataclass(frozen=True)
class SourceFactors:
    """One layer as a source: a split for each held-out fold and, to choose penalties, one within its training rows."""

    sums: FoldSums
    outer: tuple[Split, ...]
    inner: tuple[Split, ...]


def check_penalty(penalty: float | int | None, folds: int) -> None:
    """Refuse a penalty that is none, and folds too few to choose one in.

    Raises:
        ValueError: a penalty that is negative or not finite, or fewer folds than 2, or than 3 to choose in.

    >>> check_penalty(None, 3)
    """
    if penalty is not None and not (math.isfinite(penalty) and penalty >= 0):
        raise ValueError(
            f"penalty is {penalty}; give a multiple of the mean eigenvalue, 0 or more, or None to choose it"
        )
    if folds < 2:
        raise ValueError(f"folds is {folds}; at least 2 are needed to hold one out")
    if penalty is None and folds < LEAST_FOLDS_TO_CHOOSE:
        raise ValueError(f"folds is {folds}; choosing a penalty inside the training folds needs 3, or pass a penalty")


def fold_sums(rows: Float[Tensor, "row d_model"], fold: Int[Tensor, " row"], folds: int) -> FoldSums:
    """Return the sums of one layer's rows over each fold, in the dtype of the rows.

    >>> fold_sums(torch.eye(3), torch.tensor([0, 0, 1]), 2).n.tolist()
    [2, 1]
    """
    parts = _parts(rows, fold, folds)
    return FoldSums(
        torch.tensor([len(part) for part in parts], device=rows.device),
        torch.stack([part.sum(0) for part in parts]),
        torch.stack([part.T @ part for part in parts]),
    )


def target_sums(rows: Float[Tensor, "row d_model"], fold: Int[Tensor, " row"], folds: int) -> TargetSums:
    """Return the sums of one layer's rows to predict over each fold.

    >>> target_sums(torch.eye(3), torch.tensor([0, 0, 1]), 2).size.tolist()
    [2.0, 1.0]
    """
    parts = _parts(rows, fold, folds)
    return TargetSums(
        torch.stack([part.sum(0) for part in parts]), torch.stack([part.square().sum() for part in parts])
    )


def cross_sums(
    x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row d_receiver"], fold: Int[Tensor, " row"], folds: int
) -> Float[Tensor, "fold d_sender d_receiver"]:
    """Return X'Y over each fold's rows.

    >>> cross_sums(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 2).sum(0)
    tensor([[1., 0.],
            [0., 1.]])
    """
    pairs = zip(_parts(x, fold, folds), _parts(y, fold, folds), strict=True)
    return torch.stack([one.T @ other for one, other in pairs])


def factor_source(sums: FoldSums, *, choosing: bool) -> SourceFactors:
    """Return the eigendecompositions that every target of this source shares; with `choosing` those to choose in too.

    Raises:
        ValueError: a fold without rows, or training rows that are all equal.

    >>> sums = fold_sums(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3, 3)
    >>> len(factor_source(sums, choosing=False).outer)
    3
    """
    folds = len(sums.n)
    for number, n_rows in enumerate(sums.n.tolist()):
        if n_rows == 0:
            raise ValueError(f"fold {number} of {folds} holds no rows; give more rows or documents, or fewer folds")
    outer = tuple(_split(sums, test, {test}) for test in range(folds))
    if not choosing:
        return SourceFactors(sums, outer, ())
    judges = [(held_out + 1) % folds for held_out in range(folds)]
    return SourceFactors(sums, outer, tuple(_split(sums, j, {held_out, j}) for held_out, j in enumerate(judges)))


def r_squared_at(
    source: SourceFactors,
    target: TargetSums,
    cross: Float[Tensor, "fold d_sender d_receiver"],
    ratios: Sequence[float],
) -> Float[Tensor, " penalty"]:
    """Return the held-out R^2 at each penalty, a multiple of the mean eigenvalue of the training rows.

    >>> rows, fold = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double(), torch.arange(9) % 3
    >>> sums, cross = fold_sums(rows, fold, 3), cross_sums(rows, rows, fold, 3)
    >>> r_squared_at(factor_source(sums, choosing=False), target_sums(rows, fold, 3), cross, [1e-8]).round(decimals=6)
    tensor([1.], dtype=torch.float64)
    """
    judged = [_errors(source, split, target, cross, ratios) for split in source.outer]
    return 1 - torch.stack([sse for sse, _ in judged]).sum(0) / torch.stack([tss for _, tss in judged]).sum()


def r_squared_chosen(
    source: SourceFactors, target: TargetSums, cross: Float[Tensor, "fold d_sender d_receiver"]
) -> Float[Tensor, ""]:
    """Return the held-out R^2 with the penalty that each fold's own training rows choose among PENALTY_RATIOS.

    >>> rows, fold = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double(), torch.arange(9) % 3
    >>> sums, cross = fold_sums(rows, fold, 3), cross_sums(rows, rows, fold, 3)
    >>> r_squared_chosen(factor_source(sums, choosing=True), target_sums(rows, fold, 3), cross).round(decimals=6)
    tensor(1., dtype=torch.float64)
    """
    sse, tss = [], []
    for outer, inner in zip(source.outer, source.inner, strict=True):
        best = int(_errors(source, inner, target, cross, PENALTY_RATIOS)[0].argmin())
        error, size = _errors(source, outer, target, cross, PENALTY_RATIOS[best : best + 1])
        sse.append(error[0])
        tss.append(size)
    return 1 - torch.stack(sse).sum() / torch.stack(tss).sum()


def _parts(rows: Float[Tensor, "row d_model"], fold: Int[Tensor, " row"], folds: int) -> list[Tensor]:
    """Return the rows of each fold: views where the folds are contiguous, copies else."""
    if bool((fold[1:] >= fold[:-1]).all()):
        return list(rows.split(torch.bincount(fold, minlength=folds).tolist()))
    return [rows[fold == number] for number in range(folds)]


def _split(sums: FoldSums, test: int, left_out: set[int]) -> Split:
    """Return the eigendecomposition of the training rows' covariance and the test rows' products in its basis."""
    training = torch.tensor([f for f in range(len(sums.n)) if f not in left_out], device=sums.n.device)
    n, total = sums.n[training].sum(), sums.total[training].sum(0)
    mean = total / n
    covariance = sums.square[training].sum(0) - torch.outer(total, mean)
    if float(covariance.diagonal().sum()) <= 0:
        raise ValueError("the training rows of some fold are all equal; give more rows or documents, or fewer folds")
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    shifted = torch.outer(sums.total[test], mean)
    tested = sums.square[test] - shifted - shifted.T + sums.n[test] * torch.outer(mean, mean)
    return Split(training, test, mean, eigenvalues, vectors, vectors.T @ tested @ vectors)


def _errors(
    source: SourceFactors,
    split: Split,
    target: TargetSums,
    cross: Float[Tensor, "fold d_sender d_receiver"],
    ratios: Sequence[float],
) -> tuple[Float[Tensor, " penalty"], Float[Tensor, ""]]:
    """Return the squared error on the test fold at each penalty, and the squared size about the training mean.

    With e, V the eigendecomposition of the training C_xx, A = V'T_xx V, B = V'C_xy, D = V'T_xy (T: test products about
    the training means) and q = 1 / (e + penalty): SSE = tr T_yy - 2 q.diag(BD') + q'(A o BB')q.
    """
    mean_eigenvalue = split.eigenvalues.mean()
    if 0 in ratios and _rank(split.eigenvalues) < len(split.eigenvalues):
        raise ValueError("penalty 0 needs training rows of full rank; give more rows or a positive penalty")
    training, test, mean = split.training, split.test, split.mean
    n = source.sums.n[training].sum()
    y_mean, n_test = target.total[training].sum(0) / n, source.sums.n[test]
    trained = cross[training].sum(0) - n * torch.outer(mean, y_mean)
    tested = (
        cross[test]
        - torch.outer(source.sums.total[test], y_mean)
        - torch.outer(mean, target.total[test])
        + n_test * torch.outer(mean, y_mean)
    )
    size = target.size[test] - 2 * y_mean @ target.total[test] + n_test * y_mean.square().sum()
    responses, wanted = split.vectors.T @ trained, split.vectors.T @ tested
    penalties = torch.tensor(list(ratios), dtype=cross.dtype, device=cross.device) * mean_eigenvalue
    shrinkage = 1 / (split.eigenvalues + penalties[:, None])
    quadratic = split.tested * (responses @ responses.T)
    return size - 2 * shrinkage @ (responses * wanted).sum(1) + ((shrinkage @ quadratic) * shrinkage).sum(1), size


def _rank(eigenvalues: Float[Tensor, " d_model"]) -> int:
    """Return the numerical rank of a covariance with these eigenvalues."""
    return numerical_rank(eigenvalues, (len(eigenvalues), len(eigenvalues)))
