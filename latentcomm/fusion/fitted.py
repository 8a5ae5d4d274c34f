"""Fusions through a map that is fitted or trained: the sender's state is mapped, or both states decide."""

from dataclasses import dataclass, field

import torch

from latentcomm._core.linalg import in_float64, mapped
from latentcomm.fusion.base import (
    Fusion,
    Message,
    Messages,
    State,
    VectorMap,
    require_instance,
    require_map,
    require_message,
    require_number,
    require_one_space,
)
from latentcomm.fusion.fixed import Replace

__all__ = ["Concat", "Gated", "Linear", "PredictabilityResidual"]


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
        require_one_space(own, incoming)
        require_map(self.gate, 2 * own.shape[-1], own.shape[-1])
        gate = torch.sigmoid(in_float64(mapped(self.gate, torch.cat((own, incoming), dim=-1))))
        return (gate * in_float64(incoming) + (1 - gate) * in_float64(own)).to(own)


@dataclass(frozen=True)
class Linear:
    """fusion(own, map(incoming)): the message enters through a map from the sender's space to the receiver's.

    Source: the mapping matrix W of Ramesh & Li 2025 (arXiv:2501.14082).

    >>> from latentcomm.alignment import AffineMap
    >>> Linear(AffineMap(torch.ones(2, 3), torch.zeros(2)))(torch.zeros(2), torch.tensor([1.0, 2.0, 3.0]))
    tensor([6., 6.])
    """

    map: VectorMap
    fusion: Fusion = field(default_factory=Replace)

    def __post_init__(self) -> None:
        require_instance(self.fusion)

    def __call__(self, own: State, incoming: Messages) -> State:
        require_message(own, incoming)
        require_map(self.map, incoming.shape[-1], self.map.d_out)
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
        require_message(own, incoming)
        require_map(self.map, own.shape[-1] + incoming.shape[-1], own.shape[-1])
        return mapped(self.map, torch.cat((own, incoming), dim=-1))


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
        require_number(self, "scale")

    def __call__(self, own: State, incoming: Message) -> State:
        require_one_space(own, incoming)
        require_map(self.map, own.shape[-1], own.shape[-1])
        residual = in_float64(incoming) - in_float64(mapped(self.map, own))
        return (in_float64(own) + self.scale * residual).to(own)
