"""Affine maps from one model's activations to another's: Procrustes, ridge, canonical correlation."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core import files
from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import canonical_pairs, centred, fitted_dtype, require_finite, squared_size, thin_svd

__all__ = [
    "ALIGNERS",
    "PENALTY_RATIOS",
    "AffineMap",
    "choose_penalty",
    "fit_cca",
    "fit_procrustes",
    "fit_ridge",
    "row_folds",
]

FILE_KIND = "latentcomm.AffineMap/1"
"""Written into a saved map and required on loading, so that no other safetensors file passes for one."""

PENALTY_RATIOS: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(8, -17, -1))
"""Penalties tried, as multiples of the source's mean eigenvalue: 1e4 leaves only the mean, 1e-8 is least squares to
eight digits, half a decade apart. Largest first, so that equal errors choose the stronger penalty."""


@dataclass(frozen=True, repr=False, eq=False)
class AffineMap:
    """The map x -> W x + c from activations `d_in` wide to activations `d_out` wide.

    Raises:
        ValueError: weight or bias holds NaN or infinity, or they differ in dtype or device.

    >>> double = AffineMap(2 * torch.eye(3), torch.ones(3))
    >>> double, double(torch.tensor([1.0, 2.0, 3.0]))
    (AffineMap(3->3), tensor([3., 5., 7.]))
    """

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"]

    def __post_init__(self) -> None:
        if (self.weight.dtype, self.weight.device) != (self.bias.dtype, self.bias.device):
            kinds = f"{self.weight.dtype} on {self.weight.device} and {self.bias.dtype} on {self.bias.device}"
            raise ValueError(f"weight and bias are {kinds}; give both the same")
        for name in ("weight", "bias"):
            require_finite(getattr(self, name), name)
            object.__setattr__(self, name, files.laid_out(getattr(self, name)))

    @takes_arrays
    def __call__(self, rows: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return W x + c for each row, computed in the longer of the two dtypes and returned in that of `rows`.

        Raises:
            ValueError: the rows are not `d_in` wide, or are on another device than the map.
        """
        if rows.shape[-1] != self.d_in:
            raise ValueError(f"the rows are {rows.shape[-1]} wide but {self!r} takes {self.d_in}; fit it to this pair")
        if rows.device != self.weight.device:
            raise ValueError(f"the rows are on {rows.device} but the map on {self.weight.device}; move the rows")
        dtype = torch.promote_types(rows.dtype, self.weight.dtype)
        return (rows.to(dtype) @ self.weight.to(dtype).T + self.bias.to(dtype)).to(rows.dtype)

    def __repr__(self) -> str:
        return f"AffineMap({self.d_in}->{self.d_out})"

    @property
    def d_in(self) -> int:
        """Width of what goes in."""
        return self.weight.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what comes out."""
        return self.weight.shape[0]

    @classmethod
    def identity(cls, width: int, *, dtype: torch.dtype = torch.float32) -> "AffineMap":
        """Return the map that changes nothing.

        Raises:
            ValueError: the width is not positive.

        >>> AffineMap.identity(2)(torch.tensor([5.0, 6.0]))
        tensor([5., 6.])
        """
        if width < 1:
            raise ValueError(f"an identity map needs a width of at least 1, not {width}")
        return cls(torch.eye(width, dtype=dtype), torch.zeros(width, dtype=dtype))

    @takes_arrays
    def r_squared(self, source: Float[Tensor, "row d_in"], target: Float[Tensor, "row d_out"]) -> float:
        """Return 1 - SSE / TSS over all rows and outputs together, TSS about the mean of the target rows given.

        1 is a perfect prediction, 0 no better than these rows' own mean; worse than that is negative. In float64.

        Raises:
            ValueError: the target rows are all equal, so that TSS is 0; or a row is not finite.

        >>> AffineMap.identity(2).r_squared(torch.eye(2), torch.eye(2))
        1.0
        """
        require_finite(source, "source")
        require_finite(target, "target")
        _require_variance(target, "target")
        wide = target.detach().to(torch.float64)
        return 1.0 - squared_size(wide - self(source.detach().to(torch.float64))) / squared_size(centred(target)[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as one safetensors file, whole or not at all; what `load` reads back is bit-identical.

        Raises:
            RuntimeError: the disk is full or the folder cannot be written; an earlier file at `path` remains.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     AffineMap.identity(2).save(f"{folder}/map.safetensors")
        ...     AffineMap.load(f"{folder}/map.safetensors")
        AffineMap(2->2)
        """
        tensors = {"weight": self.weight, "bias": self.bias}
        files.write_tensors(path, tensors, {"kind": FILE_KIND})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "cpu") -> "AffineMap":
        """Return the map that `save` wrote.

        Raises:
            ValueError: the file is not a saved AffineMap.
            FileNotFoundError: there is no such file.
        """
        try:
            facts, tensors = files.read_tensors(path, device=device)
        except files.UnreadableError as error:
            raise ValueError(f"{error}; give a file of AffineMap.save") from error
        if (kind := facts.get("kind", "no kind at all")) != FILE_KIND:
            raise ValueError(f"{path} is marked {kind}, not {FILE_KIND}; give a file of AffineMap.save")
        weight, bias = tensors.get("weight"), tensors.get("bias")
        if (
            weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]
            or not weight.is_floating_point() or not bias.is_floating_point()
        ):  # fmt: skip
            raise ValueError(f"{path} holds no weight and bias of a map; give a file of AffineMap.save")
        return cls(weight, bias)


@takes_arrays
def fit_procrustes(
    source: Float[Tensor, "row d_sender"], target: Float[Tensor, "row d_receiver"], *, centre: bool = True
) -> AffineMap:
    """Return the orthogonal map that best rotates the source onto the target; it neither stretches nor shrinks.

    With Y'X = U S V' (X, Y the centred rows, thin decomposition), W = U V' and c = mean(Y) - W mean(X), so that the
    means map; `centre=False` leaves the means in and sets c = 0. Reflections are allowed. W maximises tr(W'Y'X).
    Widths may differ: into a wider space W has orthonormal columns (W'W = I, an isometry) and, as at equal widths, is
    the least-squares choice; into a narrower one it has orthonormal rows (WW' = I, a projection) and is the transpose
    of the best isometry from target to source. Directions no row visits are mapped orthonormally but arbitrarily.

    Source: Schoenemann 1966, "A generalized solution of the orthogonal Procrustes problem".

    Raises:
        ValueError: fewer rows than the map needs (the smaller width, and one more when centred), a row that is not
            finite, or a source or target whose rows are all equal.

    >>> source = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    >>> rotation = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> fit_procrustes(source, source @ rotation.T + 1).weight.round(decimals=3).abs()
    tensor([[0., 1., 0.],
            [1., 0., 0.],
            [0., 0., 1.]])
    """
    _require_rows(source, target)
    rows, needed = source.shape[0], min(source.shape[1], target.shape[1]) + int(centre)
    if rows < needed:
        raise ValueError(
            f"{rows} rows cannot fix an orthogonal map {source.shape[1]}->{target.shape[1]}; capture at least {needed}"
        )
    if centre:
        (x, x_mean), (y, y_mean) = centred(source), centred(target)
    else:
        x, y = source.detach().to(torch.float64), target.detach().to(torch.float64)
        x_mean, y_mean = torch.zeros_like(x[0]), torch.zeros_like(y[0])
    left, _, right = torch.linalg.svd(y.T @ x, full_matrices=False)
    return _through_means(left @ right, x_mean, y_mean, fitted_dtype(target))


@takes_arrays
def fit_ridge(
    source: Float[Tensor, "row d_sender"],
    target: Float[Tensor, "row d_receiver"],
    *,
    penalty: float | int | None = None,
    folds: int = 5,
    groups: Int[Tensor, " row"] | Sequence[int] | Sequence[str] | None = None,
    seed: int = 0,
) -> AffineMap:
    """Return the ridge regression of the target on the source, the penalty chosen held-out unless it is given.

    W, c minimise sum_i |y_i - W x_i - c|^2 + penalty * |W|_F^2; the intercept c is never penalised. With the centred
    source U S V', W' = V diag(s / (s^2 + penalty)) U'Y. `penalty=None` takes `choose_penalty(...)`, to which `folds`,
    `groups` (one document label a row) and `seed` belong, and refits on all rows.

    Source: Hoerl & Kennard 1970, "Ridge regression"; instead of the map that Ramesh & Li 2025 (arXiv:2501.14082) train.

    Raises:
        ValueError: a penalty that is negative or not finite, or 0 where the rows do not fix least squares; too few rows
            or groups for the folds; a row that is not finite; or a source or target whose rows are all equal.

    >>> source = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> fit_ridge(source, source @ torch.ones(3, 2) + 5).bias.round(decimals=3)
    tensor([5., 5.])
    """
    _require_rows(source, target)
    if penalty is None:
        penalty = choose_penalty(source, target, folds=folds, groups=groups, seed=seed)
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"penalty is {penalty}; it must be finite and at least 0, or None to choose it held-out")
    (x, x_mean), (y, y_mean) = centred(source), centred(target)
    left, sizes, right = thin_svd(x)
    rank, width = sizes.shape[0], x.shape[1]
    if penalty == 0 and rank < width:
        raise ValueError(
            f"penalty 0 needs a source of full rank, but these {x.shape[0]} rows have rank {rank} of {width};"
            " capture more rows or pass a positive penalty"
        )
    weight = (y.T @ left) * (sizes / (sizes.square() + penalty)) @ right
    return _through_means(weight, x_mean, y_mean, fitted_dtype(target))


@takes_arrays
def choose_penalty(
    source: Float[Tensor, "row d_sender"],
    target: Float[Tensor, "row d_receiver"],
    *,
    folds: int = 5,
    groups: Int[Tensor, " row"] | Sequence[int] | Sequence[str] | None = None,
    seed: int = 0,
) -> float:
    """Return the ridge penalty with the smallest summed squared error on held-out folds.

    Each of `PENALTY_RATIOS` times the training rows' mean eigenvalue |X_c|_F^2 / d_sender is tried in every fold; the
    winning ratio comes back times the mean eigenvalue of all rows, ready for `fit_ridge(penalty=...)`. One factoring
    X_c = U S V' a fold serves all penalties: with f_i = s_i / (s_i^2 + penalty), A = X_held V and B = U'Y_c (held-out
    rows less the training means), |Y_held - A diag(f) B|^2 = |Y_held|^2 - 2 f.diag(A'Y_held B') + f'(A'A * BB')f.

    Raises:
        ValueError: too few rows or groups for the folds, a row that is not finite, or rows that are all equal.

    >>> rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    >>> noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    >>> choose_penalty(rows, rows[:, :2]) < choose_penalty(rows, noise)
    True
    """
    _require_rows(source, target)
    errors = torch.zeros(len(PENALTY_RATIOS), dtype=torch.float64, device=source.device)
    for held_out in row_folds(source.shape[0], folds=folds, groups=groups, seed=seed):
        training = torch.ones(source.shape[0], dtype=torch.bool)
        training[held_out] = False
        errors += _held_out_errors(source, target, training.to(source.device))
    return PENALTY_RATIOS[int(errors.argmin())] * _mean_eigenvalue(centred(source)[0])


@takes_arrays
def fit_cca(source: Float[Tensor, "row d_sender"], target: Float[Tensor, "row d_receiver"], *, rank: int) -> AffineMap:
    """Return the map that predicts the target from the source's top `rank` canonical variates.

    With Z the source's orthonormal canonical variates, Z = X_c D, the prediction is mean(Y) + Z Z'Y_c, so W = Y_c'Z D'
    cut at `rank`: least squares through the directions both models share most. At full rank it is least squares itself
    when the source is not the wider one. There is no regularisation. An invertible affine change of the source leaves
    the predictions as they are, and one of the target changes them equally.

    Source: Hotelling 1936, "Relations between two sets of variates"; Bjoerck & Golub 1973 for the computation.

    Raises:
        ValueError: no more rows than d_sender + d_receiver (some correlations would then be 1 for any data), a
            rank outside 1..min of the two numerical ranks, a row that is not finite, or rows that are all equal.

    >>> source = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> fit_cca(source, source[:, :2], rank=2).weight.round(decimals=3).abs()
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    _require_rows(source, target)
    rows, widths = source.shape[0], source.shape[1] + target.shape[1]
    if rows <= widths:
        raise ValueError(
            f"{rows} rows give perfect correlations by chance for widths {source.shape[1]} and {target.shape[1]};"
            f" capture more than {widths}"
        )
    pairs = canonical_pairs(source, target)
    available = pairs.correlations.shape[0]
    if not 1 <= rank <= available:
        raise ValueError(f"rank is {rank} but these rows have {available} canonical pairs; choose 1 to {available}")
    (_, x_mean), (y, y_mean) = centred(source), centred(target)
    weight = (y.T @ pairs.variates[:, :rank]) @ pairs.directions[:, :rank].T
    return _through_means(weight, x_mean, y_mean, fitted_dtype(target))


def row_folds(
    n_rows: int,
    *,
    folds: int,
    groups: Int[Tensor, " row"] | Sequence[int] | Sequence[str] | None = None,
    seed: int = 0,
) -> list[Int[Tensor, " held_out"]]:
    """Return each fold's held-out row numbers, ascending; every row is held out once, and a group never splits.

    Without groups the folds differ by at most one row. With them, groups go largest first (equal ones in seeded order)
    to the fold that has fewest rows so far.

    Raises:
        ValueError: fewer than 2 folds, not one label a row, or fewer rows or groups than folds.

    >>> [fold.tolist() for fold in row_folds(4, folds=2, groups=["a", "a", "b", "b"])]
    [[0, 1], [2, 3]]
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}; at least 2 are needed to hold one out")
    labels = list(range(n_rows)) if groups is None else groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if len(labels) != n_rows:
        raise ValueError(f"{len(labels)} group labels for {n_rows} rows; give one label a row")
    members: dict[int | str, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    if len(members) < folds:
        what = "rows" if groups is None else "groups"
        raise ValueError(f"{len(members)} {what} cannot make {folds} folds; give more {what} or fewer folds")
    shuffled = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)).tolist()
    gathered = list(members.values())
    held_out: list[list[int]] = [[] for _ in range(folds)]
    for group in sorted((gathered[position] for position in shuffled), key=len, reverse=True):
        min(held_out, key=len).extend(group)
    return [torch.tensor(sorted(rows)) for rows in held_out]


def _held_out_errors(
    source: Float[Tensor, "row d_sender"], target: Float[Tensor, "row d_receiver"], training: Tensor
) -> Float[Tensor, " penalty"]:
    """Return the squared error on the rows outside `training`, one for each of PENALTY_RATIOS."""
    _require_variance(source[training], "training fold's source")
    (x, x_mean), (y, y_mean) = centred(source[training]), centred(target[training])
    left, sizes, right = thin_svd(x)
    penalties = torch.tensor(PENALTY_RATIOS, dtype=torch.float64, device=x.device) * _mean_eigenvalue(x)
    shrinkage = sizes / (sizes.square() + penalties[:, None])
    held_x = (source[~training].detach().to(torch.float64) - x_mean) @ right.T
    held_y = target[~training].detach().to(torch.float64) - y_mean
    responses = left.T @ y
    linear = ((held_x.T @ held_y) * responses).sum(1)
    quadratic = (held_x.T @ held_x) * (responses @ responses.T)
    return squared_size(held_y) - 2 * shrinkage @ linear + ((shrinkage @ quadratic) * shrinkage).sum(1)


def _mean_eigenvalue(x: Float[Tensor, "row d_sender"]) -> float:
    """Return the mean eigenvalue of X'X of centred rows."""
    return squared_size(x) / x.shape[1]


def _through_means(
    weight: Float[Tensor, "d_out d_in"],
    x_mean: Float[Tensor, " d_in"],
    y_mean: Float[Tensor, " d_out"],
    dtype: torch.dtype,
) -> AffineMap:
    """Return the map with this weight that takes one mean to the other."""
    return AffineMap(weight.to(dtype), (y_mean - weight @ x_mean).to(dtype))


def _require_rows(source: Float[Tensor, "row d_sender"], target: Float[Tensor, "row d_receiver"]) -> None:
    """Refuse rows from which nothing can be fitted."""
    if source.shape[0] < 2:
        raise ValueError(f"{source.shape[0]} rows fix no map; capture at least 2")
    for rows, name in ((source, "source"), (target, "target")):
        require_finite(rows, name)
        _require_variance(rows, name)


def _require_variance(rows: Float[Tensor, "row d_model"], name: str) -> None:
    """Refuse rows that are all equal."""
    if bool((rows == rows[:1]).all()):
        raise ValueError(
            f"all {rows.shape[0]} {name} rows are equal; give rows that differ, or nothing can be explained"
        )


ALIGNERS: Mapping[str, Callable[..., AffineMap]] = MappingProxyType(
    {"procrustes": fit_procrustes, "ridge": fit_ridge, "cca": fit_cca}
)
