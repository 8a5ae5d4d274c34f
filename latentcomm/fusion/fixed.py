"""Fusions by a formula alone, and those that wrap another fusion: nothing is fitted."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.linalg import in_float64, remove_component
from latentcomm.fusion.base import (
    Fusion,
    Message,
    Messages,
    State,
    require_instance,
    require_message,
    require_number,
    require_one_space,
)

__all__ = [
    "Mean",
    "NormMatched",
    "OrthogonalResidual",
    "Replace",
    "RightAligned",
    "Sum",
    "TaskArithmetic",
    "Ties",
    "Weighted",
]


@dataclass(frozen=True)
class Replace:
    """incoming: the receiver continues with the sender's state instead of its own (Ramesh & Li 2025, arXiv:2501.14082).

    >>> Replace()(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    tensor([5., 6.])
    """

    def __call__(self, own: State, incoming: Message) -> State:
        require_one_space(own, incoming)
        return incoming.clone()


@dataclass(frozen=True)
class Sum:
    """own + incoming (Ramesh & Li 2025, arXiv:2501.14082).

    >>> Sum()(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    tensor([6., 8.])
    """

    def __call__(self, own: State, incoming: Message) -> State:
        require_one_space(own, incoming)
        return own + incoming


@dataclass(frozen=True)
class Mean:
    """(own + incoming) / 2 (Ramesh & Li 2025, arXiv:2501.14082).

    >>> Mean()(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    tensor([3., 4.])
    """

    def __call__(self, own: State, incoming: Message) -> State:
        require_one_space(own, incoming)
        return (own + incoming) / 2


@dataclass(frozen=True)
class Weighted:
    """(1 - alpha) * own + alpha * incoming: own at 0, Mean at 1/2, Replace at 1; beyond 0..1 it extrapolates.

    >>> Weighted(0.25)(torch.tensor([0.0, 4.0]), torch.tensor([4.0, 0.0]))
    tensor([1., 3.])
    """

    alpha: float | int

    def __post_init__(self) -> None:
        require_number(self, "alpha")

    def __call__(self, own: State, incoming: Message) -> State:
        require_one_space(own, incoming)
        return ((1 - self.alpha) * in_float64(own) + self.alpha * in_float64(incoming)).to(own)


@dataclass(frozen=True)
class NormMatched:
    """What another fusion gives, rescaled row by row to the length of `own`: fused * |own| / |fused|.

    Raises:
        ValueError: a fused row is zero or overflowed, so that it has no direction to rescale.

    >>> NormMatched(Replace())(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 9.0]))
    tensor([0., 5.])
    """

    fusion: Fusion = Sum()

    def __post_init__(self) -> None:
        require_instance(self.fusion)

    def __call__(self, own: State, incoming: Messages) -> State:
        fused = in_float64(self.fusion(own, incoming))
        length = torch.linalg.vector_norm(fused, dim=-1, keepdim=True)
        if bool(((length == 0) | ~length.isfinite()).any()):
            raise ValueError(f"{self.fusion!r} gave a row that is zero or not finite; it cannot be given own's norm")
        return (fused * (torch.linalg.vector_norm(in_float64(own), dim=-1, keepdim=True) / length)).to(own)


@dataclass(frozen=True)
class OrthogonalResidual:
    """own + scale * (a - (a.b / b.b) b), a incoming and b own: only what the message has beyond own's direction.

    A zero own has no direction: the residual is then the whole message (`latentcomm.redundancy.orthogonal_residual`).

    >>> OrthogonalResidual()(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0]))
    tensor([2., 4.])
    """

    scale: float | int = 1.0

    def __post_init__(self) -> None:
        require_number(self, "scale")

    def __call__(self, own: State, incoming: Message) -> State:
        require_one_space(own, incoming)
        return (in_float64(own) + self.scale * remove_component(incoming, own)).to(own)


@dataclass(frozen=True)
class TaskArithmetic:
    """own + scale * sum_i (a_i - own) over the senders' states a_i; takes one sender or a leading axis of several.

    Source: Ilharco et al. 2022 (arXiv:2212.04089), there for weights.

    >>> TaskArithmetic(0.5)(torch.tensor([1.0, 1.0]), torch.tensor([[3.0, 1.0], [1.0, 5.0]]))
    tensor([2., 3.])
    """

    scale: float | int = 1.0

    def __post_init__(self) -> None:
        require_number(self, "scale")

    def __call__(self, own: State, incoming: Messages) -> State:
        return (in_float64(own) + self.scale * _changes(own, incoming).sum(0)).to(own)


@dataclass(frozen=True)
class Ties:
    """own + scale * merged: the senders' changes m_i = a_i - own, trimmed, with one sign a coordinate, and averaged.

    Of each m_i the ceil(density * d_receiver) entries of largest size stay (and any as large as the least of them), the
    rest become 0. A coordinate's sign is that of its sum over senders; merged is the mean of the entries that have it,
    and 0 where the sum is 0. At density 1 one sender gives TaskArithmetic. Source: Yadav et al. 2023
    (arXiv:2306.01708), there for weights.

    Raises:
        ValueError: the density is not above 0 and at most 1.

    >>> Ties(density=1)(torch.zeros(3), torch.tensor([[4.0, -1.0, 2.0], [2.0, 3.0, -2.0]]))
    tensor([3., 3., 0.])
    """

    density: float | int = 0.2
    scale: float | int = 1.0

    def __post_init__(self) -> None:
        require_number(self, "density")
        require_number(self, "scale")
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}; it is the share of entries retained, above 0 and at most 1")

    def __call__(self, own: State, incoming: Messages) -> State:
        changes = _changes(own, incoming)
        # The decimal as written: 0.07 * 100 in binary is above 7, and its ceiling would be 8.
        n_kept = math.ceil(Fraction(str(self.density)) * own.shape[-1])
        least_kept = changes.abs().topk(n_kept, dim=-1).values[..., -1:]
        trimmed = torch.where(changes.abs() >= least_kept, changes, 0.0)
        agreeing = trimmed.sign() * trimmed.sum(0).sign() > 0
        merged = torch.where(agreeing, trimmed, 0.0).sum(0) / agreeing.sum(0).clamp(min=1)
        return (in_float64(own) + self.scale * merged).to(own)


@dataclass(frozen=True)
class RightAligned:
    """Another fusion on the last d = min(d_sender, d_receiver) entries of both; own's first d_receiver - d stay.

    A wider message loses its first entries; equal widths change nothing. Source: Ramesh & Li 2025 (arXiv:2501.14082).

    >>> RightAligned(Replace())(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([8.0, 9.0]))
    tensor([1., 8., 9.])
    """

    fusion: Fusion

    def __post_init__(self) -> None:
        require_instance(self.fusion)

    def __call__(self, own: State, incoming: Messages) -> State:
        require_message(own, incoming)
        shared = min(own.shape[-1], incoming.shape[-1])
        rest, fused_own = own[..., : own.shape[-1] - shared], own[..., own.shape[-1] - shared :]
        return torch.cat((rest, self.fusion(fused_own, incoming[..., incoming.shape[-1] - shared :])), dim=-1)


def _changes(own: Tensor, incoming: Tensor) -> Float[Tensor, "sender *batch d_receiver"]:
    """Return each sender's change a_i - own in float64, with a sender axis also for a single sender."""
    require_one_space(own, incoming)
    senders = incoming if incoming.ndim > own.ndim else incoming[None]
    if senders.shape[0] == 0:
        raise ValueError("incoming has a sender axis of length 0; merge at least one sender")
    return in_float64(senders) - in_float64(own)
