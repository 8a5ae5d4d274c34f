"""What a receiver's state becomes when a message reaches it: f(own, incoming)."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any, cast

from latentcomm.fusion.base import Fusion, VectorMap, fuse
from latentcomm.fusion.fitted import Concat, Gated, Linear, PredictabilityResidual
from latentcomm.fusion.fixed import (
    Mean,
    NormMatched,
    OrthogonalResidual,
    Replace,
    RightAligned,
    Sum,
    TaskArithmetic,
    Ties,
    Weighted,
)

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
