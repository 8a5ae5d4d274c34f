"""What a receiver's state becomes when a message reaches it: f(own, incoming)."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any, cast

from latentcomm.fusion import fitted, fixed
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
        "replace": fixed.Replace,
        "mean": fixed.Mean,
        "sum": fixed.Sum,
        "weighted": fixed.Weighted,
        "gated": fitted.Gated,
        "norm_matched": fixed.NormMatched,
        "linear": fitted.Linear,
        "concat": fitted.Concat,
        "orthogonal_residual": fixed.OrthogonalResidual,
        "predictability_residual": fitted.PredictabilityResidual,
        "task_arithmetic": fixed.TaskArithmetic,
        "ties": fixed.Ties,
        "right_aligned": fixed.RightAligned,
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
