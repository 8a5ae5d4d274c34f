"""The one seam to TransformerLens: load or wrap a model, encode its prompts, run it with hooks and with a cache."""

from latentcomm.models.base import (
    Hook,
    Model,
    Pass,
    PassEnded,
    check_pair,
    fingerprints,
    one_model,
    one_vocabulary,
    record_products,
    recorded_passes,
)
from latentcomm.models.encoding import Halves, around_gap, encode
from latentcomm.models.finite import not_finite, why_not_finite
from latentcomm.models.loading import load_model, wrap_model
from latentcomm.models.prompts import Template

__all__ = [
    "Halves",
    "Hook",
    "Model",
    "Pass",
    "PassEnded",
    "Template",
    "around_gap",
    "check_pair",
    "encode",
    "fingerprints",
    "load_model",
    "not_finite",
    "one_model",
    "one_vocabulary",
    "record_products",
    "recorded_passes",
    "why_not_finite",
    "wrap_model",
]
