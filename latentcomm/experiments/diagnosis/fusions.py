"""The fusions of a diagnosis, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from latentcomm.alignment import AffineMap
from latentcomm.channels.catalogue import FUSED
from latentcomm.fusion import Fusion, PredictabilityResidual

__all__ = ["FUSIONS", "Fitted"]


@dataclass(frozen=True)
class Fitted:
    """A fusion that needs a map from the receiver's own states to the messages, fitted anew at each write layer.

    >>> Fitted(PredictabilityResidual).make(AffineMap.identity(2))
    PredictabilityResidual(map=AffineMap(2->2), scale=1.0)
    """

    make: Callable[[AffineMap], Fusion]


FUSIONS: Mapping[str, Fusion | Fitted] = MappingProxyType(
    {
        **FUSED,
        "predictability_residual": Fitted(PredictabilityResidual),
    }
)
"""The fusions of a diagnosis unless others are named."""
