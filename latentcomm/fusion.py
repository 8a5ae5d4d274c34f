"""What a receiver's state becomes when a message reaches it: f(own, incoming)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.linalg import in_float64, mapped, remove_component, require_finite

__all__ = [
    "FUSIONS",
    "Concat",
    "Fusion",
    "Gated",
    "Linear",
    "Mean",
    "NormMatched",
    "OrthogonalResidual",
    "PredictabilityResidual",
    "Replace",
    "RightAligned",
    "Sum",
    "TaskArithmetic",
    "Ties",
    "VectorMap",
    "Weighted",
    "fuse",
]

State = Float[Tensor, "*batch d_receiver"]
"""The receiver's own states, and what a fusion makes of them: any leading axes, the receiver's width last."""
Message = Float[Tensor, "*batch d_sender"]
Messages = Message | Float[Tensor, "sender *batch d_sender"]
"""One sender's states for the same rows, or several senders' along one more leading axis."""


@runtime_checkable
class Fusion(Protocol):
    """A rule that combines the receiver's own states and the incoming ones into the states it continues with.

    What comes back has the shape and dtype of `own`, is new memory, and treats every row by itself. TaskArithmetic,
    Ties and what wraps one of them also take several senders' messages. Replace, Sum, Mean and all maps compute in the
    dtype given, everything else in float64, rounded once.

    Raises:
        ValueError: at the call, the widths do not fit the rule, the dtypes or devices of `own` and `incoming` differ,
            `incoming` holds NaN or infinity, or no sender; at construction, a number is not finite.
    """

    def __call__(self, own: State, incoming: Messages) -> State: ...


@runtime_checkable
class VectorMap(Protocol):
    """A map from vectors `d_in` wide to vectors `d_out` wide of the same dtype, such as an AffineMap."""

    @property
    def d_in(self) -> int: ...

    @property
    def d_out(self) -> int: ...

    def __call__(self, rows: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]: ...


def fuse(fusion: Callable[..., Any], own: State, incoming: Messages, *, at: str) -> State:
    """Return `fusion(own, incoming)`, checked: every state that is written into a receiver comes from here.

    A result in another floating-point dtype is rounded to that of `own`, once.

    Args:
        fusion: a fusion of this module, or any callable of the two states.
        own: the receiver's states.
        incoming: the senders' states for the same rows.
        at: where the result is written, such as a hook point, for the error.

    Raises:
        ValueError: the fusion is a class, wrote into what it was given, or returned no tensor, or one of another shape
            or device than `own`, of integers, booleans or complex numbers, or with NaN or infinity.

    >>> fuse(lambda own, incoming: own[..., :1], torch.zeros(3, 2), torch.ones(3, 2), at="blocks.0.hook_resid_post")
    Traceback (most recent call last):
        ...
    ValueError: fusion <lambda> returned the shape (3, 1) at blocks.0.hook_resid_post; it must be that of own, (3, 2)
    """
    _require_instance(fusion)
    name = getattr(fusion, "__name__", None) or repr(fusion)
    wrote = f"fusion {name} wrote into the states that it was given; let it return new ones"
    before = _versions(own, incoming)
    try:
        fused = fusion(own, incoming)
    except RuntimeError as error:
        if "single memory location" in str(error):  # one state for all rows, which torch does not let be written to
            raise ValueError(wrote) from error
        raise
    if _versions(own, incoming) != before:
        raise ValueError(wrote)
    if not isinstance(fused, Tensor):
        raise ValueError(f"fusion {name} returned {type(fused).__name__} at {at}; it must return a tensor like own")
    if fused.shape != own.shape:
        raise ValueError(
            f"fusion {name} returned the shape {tuple(fused.shape)} at {at}; it must be that of own, {tuple(own.shape)}"
        )
    if not fused.is_floating_point() or fused.device != own.device:
        raise ValueError(
            f"fusion {name} returned {fused.dtype} on {fused.device} at {at}; it must be {own.dtype} on {own.device}"
        )
    fused = fused.to(own.dtype)
    if not torch.isfinite(fused).all():
        raise ValueError(f"the fused state at {at} is not finite; fusion {name} does not fit it in {own.dtype}")
    return fused


@dataclass(frozen=True)
class Replace:
    """incoming: the receiver continues with the sender's state instead of its own (Ramesh & Li 2025, arXiv:2501.14082).

    >>> Replace()(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    tensor([5., 6.])
    """

    def __call__(self, own: State, incoming: Message) -> State:
        _require_one_space(own, incoming)
        return incoming.clone()


@dataclass(frozen=True)
class Sum:
    """own + incoming (Ramesh & Li 2025, arXiv:2501.14082).

    >>> Sum()(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    tensor([6., 8.])
    """

    def __call__(self, own: State, incoming: Message) -> State:
        _require_one_space(own, incoming)
        return own + incoming


@dataclass(frozen=True)
class Mean:
    """(own + incoming) / 2 (Ramesh & Li 2025, arXiv:2501.14082).

    >>> Mean()(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    tensor([3., 4.])
    """

    def __call__(self, own: State, incoming: Message) -> State:
        _require_one_space(own, incoming)
        return (own + incoming) / 2


@dataclass(frozen=True)
class Weighted:
    """(1 - alpha) * own + alpha * incoming: own at 0, Mean at 1/2, Replace at 1; beyond 0..1 it extrapolates.

    >>> Weighted(0.25)(torch.tensor([0.0, 4.0]), torch.tensor([4.0, 0.0]))
    tensor([1., 3.])
    """

    alpha: float | int

    def __post_init__(self) -> None:
        _require_number(self, "alpha")

    def __call__(self, own: State, incoming: Message) -> State:
        _require_one_space(own, incoming)
        return ((1 - self.alpha) * in_float64(own) + self.alpha * in_float64(incoming)).to(own)


@dataclass(frozen=True)
class Gated:
    """g * incoming + (1 - g) * own with g = sigmoid(gate([own; incoming])), a weight of its own for each coordinate.

    The gate maps 2 * d_receiver to d_receiver. Source: the highway gate (Srivastava et al. 2015, arXiv:1505.00387).

    >>> from latentcomm.alignment import AffineMap
    >>> always_half = AffineMap(torch.zeros(2, 4), torch.zeros(2))
    >>> Gated(always_half)(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    tensor([3., 4.])
    """

    gate: VectorMap

    def __call__(self, own: State, incoming: Message) -> State:
        _require_one_space(own, incoming)
        _require_map(self.gate, 2 * own.shape[-1], own.shape[-1])
        gate = torch.sigmoid(in_float64(mapped(self.gate, torch.cat((own, incoming), dim=-1))))
        return (gate * in_float64(incoming) + (1 - gate) * in_float64(own)).to(own)


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
        _require_instance(self.fusion)

    def __call__(self, own: State, incoming: Messages) -> State:
        fused = in_float64(self.fusion(own, incoming))
        length = torch.linalg.vector_norm(fused, dim=-1, keepdim=True)
        if bool(((length == 0) | ~length.isfinite()).any()):
            raise ValueError(f"{self.fusion!r} gave a row that is zero or not finite; it cannot be given own's norm")
        return (fused * (torch.linalg.vector_norm(in_float64(own), dim=-1, keepdim=True) / length)).to(own)


@dataclass(frozen=True)
class Linear:
    """fusion(own, map(incoming)): the message enters through a map from the sender's space to the receiver's.

    Source: the mapping matrix W of Ramesh & Li 2025 (arXiv:2501.14082).

    >>> from latentcomm.alignment import AffineMap
    >>> Linear(AffineMap(torch.ones(2, 3), torch.zeros(2)))(torch.zeros(2), torch.tensor([1.0, 2.0, 3.0]))
    tensor([6., 6.])
    """

    map: VectorMap
    fusion: Fusion = Replace()

    def __post_init__(self) -> None:
        _require_instance(self.fusion)

    def __call__(self, own: State, incoming: Messages) -> State:
        _require_message(own, incoming)
        _require_map(self.map, incoming.shape[-1], self.map.d_out)
        return self.fusion(own, mapped(self.map, incoming))


@dataclass(frozen=True)
class Concat:
    """map([own; incoming]): one map of both states, own first, from d_receiver + d_sender to d_receiver.

    >>> from latentcomm.alignment import AffineMap
    >>> add_up = AffineMap(torch.ones(2, 5), torch.zeros(2))
    >>> Concat(add_up)(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor([36., 36.])
    """

    map: VectorMap

    def __call__(self, own: State, incoming: Message) -> State:
        _require_message(own, incoming)
        _require_map(self.map, own.shape[-1] + incoming.shape[-1], own.shape[-1])
        return mapped(self.map, torch.cat((own, incoming), dim=-1))


@dataclass(frozen=True)
class OrthogonalResidual:
    """own + scale * (a - (a.b / b.b) b), a incoming and b own: only what the message has beyond own's direction.

    A zero own has no direction: the residual is then the whole message (`latentcomm.redundancy.orthogonal_residual`).

    >>> OrthogonalResidual()(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0]))
    tensor([2., 4.])
    """

    scale: float | int = 1.0

    def __post_init__(self) -> None:
        _require_number(self, "scale")

    def __call__(self, own: State, incoming: Message) -> State:
        _require_one_space(own, incoming)
        return (in_float64(own) + self.scale * remove_component(incoming, own)).to(own)


@dataclass(frozen=True)
class PredictabilityResidual:
    """own + scale * (incoming - map(own)): only what the receiver's own state does not predict of the message.

    The map goes from the receiver's states to the sender's, both d_receiver wide
    (`latentcomm.redundancy.fit_predictable`). For a sender of another width, fit it to mapped messages and use Linear.

    >>> from latentcomm.alignment import AffineMap
    >>> PredictabilityResidual(AffineMap.identity(2))(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
    tensor([1., 5.])
    """

    map: VectorMap
    scale: float | int = 1.0

    def __post_init__(self) -> None:
        _require_number(self, "scale")

    def __call__(self, own: State, incoming: Message) -> State:
        _require_one_space(own, incoming)
        _require_map(self.map, own.shape[-1], own.shape[-1])
        residual = in_float64(incoming) - in_float64(mapped(self.map, own))
        return (in_float64(own) + self.scale * residual).to(own)


@dataclass(frozen=True)
class TaskArithmetic:
    """own + scale * sum_i (a_i - own) over the senders' states a_i; takes one sender or a leading axis of several.

    Source: Ilharco et al. 2022 (arXiv:2212.04089), there for weights.

    >>> TaskArithmetic(0.5)(torch.tensor([1.0, 1.0]), torch.tensor([[3.0, 1.0], [1.0, 5.0]]))
    tensor([2., 3.])
    """

    scale: float | int = 1.0

    def __post_init__(self) -> None:
        _require_number(self, "scale")

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
        _require_number(self, "density")
        _require_number(self, "scale")
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}; it is the share of entries kept, above 0 and at most 1")

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
        _require_instance(self.fusion)

    def __call__(self, own: State, incoming: Messages) -> State:
        _require_message(own, incoming)
        shared = min(own.shape[-1], incoming.shape[-1])
        rest, fused_own = own[..., : own.shape[-1] - shared], own[..., own.shape[-1] - shared :]
        return torch.cat((rest, self.fusion(fused_own, incoming[..., incoming.shape[-1] - shared :])), dim=-1)


def _versions(*states: Tensor) -> list[int | None]:
    """How often each was written in place; torch does not count it for tensors made in inference mode."""
    return [None if state.is_inference() else state._version for state in states]


def _require_message(own: Tensor, incoming: Tensor) -> None:
    """Refuse a message in another dtype or on another device than the receiver's state, or one that is not finite."""
    if (own.dtype, own.device) != (incoming.dtype, incoming.device):
        kinds = f"own is {own.dtype} on {own.device} but incoming {incoming.dtype} on {incoming.device}"
        raise ValueError(f"{kinds}; convert the message first")
    require_finite(incoming, "incoming")


def _require_one_space(own: Tensor, incoming: Tensor) -> None:
    """Refuse a message that is not as wide as the receiver's state."""
    _require_message(own, incoming)
    if own.shape[-1] != incoming.shape[-1]:
        raise ValueError(
            f"own is {own.shape[-1]} wide but incoming {incoming.shape[-1]};"
            " wrap the fusion in RightAligned, or map the message with Linear"
        )


def _require_map(map: VectorMap, d_in: int, d_out: int) -> None:
    """Refuse a map of other widths than the states at hand."""
    if (map.d_in, map.d_out) != (d_in, d_out):
        raise ValueError(f"the map goes {map.d_in}->{map.d_out} where {d_in}->{d_out} is needed; fit it to this pair")


def _require_instance(fusion: Callable[..., Any]) -> None:
    """Refuse a class, which is callable too and would only fail at the first graft."""
    if isinstance(fusion, type):
        raise ValueError(f"{fusion.__name__} is a class; pass an instance, such as {fusion.__name__}()")


def _require_number(fusion: object, field: str) -> None:
    """Refuse a field that is not finite, and store it as a float, so that 1 and 1.0 have one repr."""
    number = float(getattr(fusion, field))
    if not math.isfinite(number):
        raise ValueError(f"{field} is {number}; it must be a finite number")
    object.__setattr__(fusion, field, number)


def _changes(own: Tensor, incoming: Tensor) -> Float[Tensor, "sender *batch d_receiver"]:
    """Return each sender's change a_i - own in float64, with a sender axis also for a single sender."""
    _require_one_space(own, incoming)
    senders = incoming if incoming.ndim > own.ndim else incoming[None]
    if senders.shape[0] == 0:
        raise ValueError("incoming has a sender axis of length 0; merge at least one sender")
    return in_float64(senders) - in_float64(own)


FUSIONS: Mapping[str, type[Fusion]] = MappingProxyType(
    {
        "replace": Replace,
        "mean": Mean,
        "sum": Sum,
        "weighted": Weighted,
        "gated": Gated,
        "norm_matched": NormMatched,
        "linear": Linear,
        "concat": Concat,
        "orthogonal_residual": OrthogonalResidual,
        "predictability_residual": PredictabilityResidual,
        "task_arithmetic": TaskArithmetic,
        "ties": Ties,
        "right_aligned": RightAligned,
    }
)
"""Every fusion, by the name of its class."""

BY_NAME: Mapping[str, Fusion] = MappingProxyType(
    {
        name: fusion()
        for name, fusion in FUSIONS.items()
        if all(field.default is not MISSING for field in fields(cast(Any, fusion)))
    }
)
"""The fusions that need neither a fitted map nor a choice, as commands and figures name them. Sum and mean point
the same way, so that `norm_matched` is either of them at the norm of the receiver's own state."""
