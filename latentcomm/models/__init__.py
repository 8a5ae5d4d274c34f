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
    record_passes,
    record_products,
    recorded_passes,
    weights_stay,
)
from latentcomm.models.chat import AnyTemplate, ChatFormat
from latentcomm.models.devices import resolve_device
from latentcomm.models.encoding import Halves, around_gap, encode, scaffold
from latentcomm.models.finite import not_finite, why_not_finite
from latentcomm.models.halves import in_halves
from latentcomm.models.loading import load_model, wrap_model
from latentcomm.models.prompts import Template
from latentcomm.models.shapes import ModelShape, shape_of, tokenizer_of

__all__ = [
    "AnyTemplate",
    "ChatFormat",
    "Halves",
    "Hook",
    "Model",
    "ModelShape",
    "Pass",
    "PassEnded",
    "Template",
    "around_gap",
    "check_pair",
    "encode",
    "fingerprints",
    "in_halves",
    "load_model",
    "not_finite",
    "one_model",
    "one_vocabulary",
    "record_passes",
    "record_products",
    "recorded_passes",
    "resolve_device",
    "scaffold",
    "shape_of",
    "tokenizer_of",
    "weights_stay",
    "why_not_finite",
    "wrap_model",
]
