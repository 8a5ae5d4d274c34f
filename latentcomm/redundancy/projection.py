"""A subspace of few directions that splits a state in two, and the maps of its parts that fusions take."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import laid_out
from latentcomm._core.linalg import require_finite, squared_size

__all__ = ["Drop", "Keep", "Projection"]


@dataclass(frozen=True, repr=False, eq=False)
class Projection:
    """A split of states in two, x = keep(x) + drop(x), by a subspace of few directions that is never multiplied out.

    keep(x) = m + L D'(x - m) is the part in the subspace, the mean m with it; drop(x) = (x - m) - L D'(x - m) is the
    rest, of mean 0. D'L = I, so both are idempotent about m. L = D (orthonormal) for principal components; for
    canonical directions L holds the loadings, and drop(x) is uncorrelated with D'x instead of orthogonal to L.

    Attributes:
        mean: m.
        directions: D, what is read from a state.
        loadings: L, the direction in the state of each reading.

    Raises:
        ValueError: a part holds NaN or infinity, or they differ in dtype or device.

    >>> first = Projection(torch.zeros(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]]))
    >>> first, first.keep(torch.tensor([3.0, 4.0])), first.drop(torch.tensor([3.0, 4.0]))
    (Projection(1 of 2), tensor([3., 0.]), tensor([0., 4.]))
    """

    mean: Float[Tensor, " d_model"]
    directions: Float[Tensor, "d_model rank"]
    loadings: Float[Tensor, "d_model rank"]

    def __post_init__(self) -> None:
        parts = {"mean": self.mean, "directions": self.directions, "loadings": self.loadings}
        if len({(part.dtype, part.device) for part in parts.values()}) > 1:
            raise ValueError(
                "mean, directions and loadings are "
                + ", ".join(f"{part.dtype} on {part.device}" for part in parts.values())
            )
        for name, part in parts.items():
            require_finite(part, name)
            object.__setattr__(self, name, laid_out(part))

    def keep(self, rows: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The part of each row in the subspace, with the mean; computed in float64, in the dtype of `rows`.

        Raises:
            ValueError: the rows are not `d_model` wide, or are on another device.
        """
        return (self.mean.to(torch.float64) + self._inside(rows)).to(rows.dtype)

    def drop(self, rows: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The rest of each row: what the subspace and the mean do not hold.

        Raises:
            ValueError: the rows are not `d_model` wide, or are on another device.
        """
        inside = self._inside(rows)
        return (rows.to(torch.float64) - self.mean.to(torch.float64) - inside).to(rows.dtype)

    def explained(self, rows: Float[Tensor, "row d_model"]) -> float:
        """The share of the rows' energy about the mean that the subspace holds: 1 - sum |drop(x)|^2 / sum |x - m|^2.

        Below 0 is possible on rows that the subspace was not fitted to, where L is not orthonormal.

        Raises:
            ValueError: every row equals the mean; a row is not finite; or the width is another.
        """
        require_finite(rows, "rows")
        wide = rows.detach().to(torch.float64)
        left = squared_size(self.drop(wide))
        energy = squared_size(wide - self.mean.to(torch.float64))
        if energy == 0:
            raise ValueError(f"all {rows.shape[0]} rows equal the projection's mean; give rows that differ from it")
        return 1.0 - left / energy

    def __repr__(self) -> str:
        return f"Projection({self.rank} of {self.d_model})"

    @property
    def d_model(self) -> int:
        """Width of the states."""
        return self.directions.shape[0]

    @property
    def rank(self) -> int:
        """How many directions the subspace has."""
        return self.directions.shape[1]

    def _inside(self, rows: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """L D'(x - m) in float64."""
        if rows.shape[-1] != self.d_model:
            raise ValueError(
                f"the rows are {rows.shape[-1]} wide but {self!r} takes {self.d_model}; fit it to this site"
            )
        if rows.device != self.mean.device:
            raise ValueError(f"the rows are on {rows.device} but {self!r} on {self.mean.device}; move the rows")
        read = (rows.to(torch.float64) - self.mean.to(torch.float64)) @ self.directions.to(torch.float64)
        return read @ self.loadings.to(torch.float64).T


class _OfProjection:
    """What the maps made of a projection share: they stay in its space."""

    projection: Projection

    @property
    def d_in(self) -> int:
        """Width of what goes in."""
        return self.projection.d_model

    @property
    def d_out(self) -> int:
        """Width of what comes out."""
        return self.projection.d_model


@dataclass(frozen=True)
class Keep(_OfProjection):
    """`projection.keep` as a map that the fusions take: `Linear(Keep(p))` grafts the part in the subspace alone.

    >>> from latentcomm.redundancy import principal_subspace
    >>> Keep(principal_subspace(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), rank=1))(torch.tensor([5.0, 7.0]))
    tensor([5., 0.])
    """

    projection: Projection

    def __call__(self, rows: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The part in the subspace, row by row."""
        return self.projection.keep(rows)


@dataclass(frozen=True)
class Drop(_OfProjection):
    """`scale * projection.drop` as a map that the fusions take: `Linear(Drop(p), Sum())` grafts own + scale * residual.

    Raises:
        ValueError: the scale is not finite.

    >>> from latentcomm.fusion import Linear, Sum
    >>> from latentcomm.redundancy import principal_subspace
    >>> redundant = principal_subspace(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), rank=1)
    >>> Linear(Drop(redundant), Sum())(torch.tensor([1.0, 1.0]), torch.tensor([5.0, 7.0]))
    tensor([1., 8.])
    """

    projection: Projection
    scale: float | int = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}; it must be a finite number")

    def __call__(self, rows: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The scaled rest, row by row."""
        return self.scale * self.projection.drop(rows)
