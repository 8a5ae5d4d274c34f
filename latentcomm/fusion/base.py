"""The interface of a fusion, what it refuses, and the check of all that is written into a receiver."""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.linalg import require_finite

__all__ = ["Fusion", "Message", "Messages", "State", "VectorMap", "fuse"]

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
        fusion: a fusion of this package, or any callable of the two states.
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
    require_instance(fusion)
    name = getattr(fusion, "__name__", None) or repr(fusion)
    wrote = f"fusion {name} wrote into the states that it was given; let it return new ones"
    before = [_version(state) for state in (own, incoming)]
    try:
        fused = fusion(own, incoming)
    except RuntimeError as error:
        if "single memory location" in str(error):  # one state for all rows, which torch does not let be written to
            raise ValueError(wrote) from error
        raise
    if any(_is_written(state, version) for state, version in zip((own, incoming), before, strict=True)):
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


def _version(state: Tensor) -> int | Tensor:
    """How often it was written in place; a copy where torch does not count it, of a tensor made in inference mode."""
    return state.clone() if state.is_inference() else state._version


def _is_written(state: Tensor, version: int | Tensor) -> bool:
    """Whether it was written in place since `_version`."""
    if isinstance(version, int):
        return state._version != version
    return not torch.allclose(state, version, rtol=0, atol=0, equal_nan=True)


def require_message(own: Tensor, incoming: Tensor) -> None:
    """Refuse a message in another dtype or on another device than the receiver's state, or one that is not finite."""
    if (own.dtype, own.device) != (incoming.dtype, incoming.device):
        kinds = f"own is {own.dtype} on {own.device} but incoming {incoming.dtype} on {incoming.device}"
        raise ValueError(f"{kinds}; convert the message first")
    require_finite(incoming, "incoming")


def require_one_space(own: Tensor, incoming: Tensor) -> None:
    """Refuse a message that is not as wide as the receiver's state."""
    require_message(own, incoming)
    if own.shape[-1] != incoming.shape[-1]:
        raise ValueError(
            f"own is {own.shape[-1]} wide but incoming {incoming.shape[-1]};"
            " wrap the fusion in RightAligned, or map the message with Linear"
        )


def require_map(map: VectorMap, d_in: int, d_out: int) -> None:
    """Refuse a map of other widths than the states at hand."""
    if (map.d_in, map.d_out) != (d_in, d_out):
        raise ValueError(f"the map goes {map.d_in}->{map.d_out} where {d_in}->{d_out} is needed; fit it to this pair")


def require_instance(fusion: Callable[..., Any]) -> None:
    """Refuse a class, which is callable too and would only fail at the first graft."""
    if isinstance(fusion, type):
        raise ValueError(f"{fusion.__name__} is a class; pass an instance, such as {fusion.__name__}()")


def require_number(fusion: object, field: str) -> None:
    """Refuse a field that is not finite, and store it as a float, so that 1 and 1.0 have one repr."""
    number = float(getattr(fusion, field))
    if not math.isfinite(number):
        raise ValueError(f"{field} is {number}; it must be a finite number")
    object.__setattr__(fusion, field, number)
