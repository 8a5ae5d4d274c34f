"""A model's entry in the metadata of results."""

from typing import Any

from latentcomm.models.base import Model

__all__ = ["describe"]


def describe(model: Model) -> dict[str, Any]:
    """A model's entry in the metadata of results."""
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": "TransformerBridge" if model.is_bridge else "HookedTransformer",
        "processed_weights": model.processed,
    }
