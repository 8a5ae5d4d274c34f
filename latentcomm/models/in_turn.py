"""One model at a time: models that share one place in memory, each loaded when it is used and another leaves."""

import ctypes
import gc
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from latentcomm.models.base import Model
from latentcomm.models.loading import Outline

__all__ = ["ModelInTurn", "Place", "in_turn"]


class Place:
    """Room for the weights of one model: what is in it leaves before another is loaded.

    Attributes:
        n_loads: how often a model was loaded into it.
    """

    def __init__(self) -> None:
        self.n_loads = 0
        self._inside: tuple[_Lazy, Model] | None = None

    def holds(self, hooked: "_Lazy") -> bool:
        """Whether this model's weights are in memory."""
        return self._inside is not None and self._inside[0] is hooked

    def model(self, hooked: "_Lazy", load: Callable[[], Model]) -> Model:
        """The model with its weights."""
        if self._inside is None or self._inside[0] is not hooked:
            self.clear()
            self._inside = hooked, load()
            self.n_loads += 1
        return self._inside[1]

    def clear(self) -> None:
        """Take the weights that are in it out of memory, back to the system."""
        self._inside = None
        gc.collect()  # a bridge and what it wraps refer to one another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)


class _Original:
    """The transformers model of a bridge that is not in memory: its configuration, and all else once it is loaded."""

    def __init__(self, of: "_Lazy", config: Any, generation_config: Any) -> None:
        self._of, self.config, self.generation_config = of, config, generation_config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of.model().hooked.original_model, name)


class _Lazy:
    """A TransformerLens model that is loaded when something of it is used that is no fact.

    Attributes:
        facts: what is known of the model while its weights are not in memory.
    """

    def __init__(self, load: Callable[[], Model], place: Place, outline: Outline | None) -> None:
        self._load, self._place, self.facts = load, place, {}
        model = self.model() if outline is None else outline.model
        known = {} if outline is None else {"device": outline.device, "fingerprint": outline.fingerprint}
        self.facts = {name: known[name] if name in known else getattr(model, name) for name in FACTS}
        self.cfg = model.hooked.cfg
        original = getattr(model.hooked, "original_model", None)
        self._original = None
        if original is not None:
            self._original = _Original(self, original.config, getattr(original, "generation_config", None))

    def model(self) -> Model:
        """The model with its weights in memory.

        Raises:
            RuntimeError: they are not those that its fingerprint is of.
        """
        return self._place.model(self, self._as_known)

    def _as_known(self) -> Model:
        model = self._load()
        if self.facts and model.fingerprint != self.facts["fingerprint"]:
            raise RuntimeError(
                f"the files of {model.name} are not those that they were when the run began; run it again"
            )
        return model

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._place.holds(self)

    @property
    def original_model(self) -> Any:
        """The transformers model of a bridge.

        Raises:
            AttributeError: it is no bridge.
        """
        if self._original is None:
            raise AttributeError("original_model")
        return self.model().hooked.original_model if self.is_loaded else self._original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model().hooked, name)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """A forward pass."""
        return self.model().hooked(*inputs, **options)


class ModelInTurn(Model):
    """A model whose weights are in memory while it is used and no other of the same place is.

    Its facts (sizes, dtype, fingerprint, hook points) are those of its outline, or are taken when it is first loaded,
    and known from then on.
    """

    def _fact(self, name: str) -> Any:
        return self.hooked.facts[name]

    @property
    def processed(self) -> bool:
        """See `Model.processed`."""
        return self._fact("processed")

    @property
    def dtype(self) -> torch.dtype:
        """See `Model.dtype`."""
        return self._fact("dtype")

    @property
    def device(self) -> torch.device:
        """See `Model.device`."""
        return self._fact("device")

    @cached_property
    def hook_names(self) -> frozenset[str]:
        """See `Model.hook_names`."""
        return self._fact("hook_names")

    @cached_property
    def joins_lengths(self) -> bool:
        """See `Model.joins_lengths`."""
        return self._fact("joins_lengths")

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """See `Model.stop_ids`."""
        return self._fact("stop_ids")

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the weights as they were loaded, which are loaded from the same files each time."""
        return self._fact("fingerprint")

    @property
    def has_hooks(self) -> bool:
        """Whether hooks are attached; none are to what is not in memory."""
        return self.hooked.is_loaded and self.hooked.model().has_hooks

    @property
    def _plain(self) -> Any:
        return self.hooked.model()._plain


FACTS = ("processed", "dtype", "device", "hook_names", "joins_lengths", "stop_ids", "fingerprint")
"""Attributes of a model that are known while its weights are not in memory."""


def in_turn(
    load: Callable[[], Model], place: Place, *, outline: Outline | None = None, attention: str = "eager"
) -> ModelInTurn:
    """A model of a place, loaded once for its facts unless there is an outline of it (`models.loading.outlined`).

    >>> place = Place()
    >>> sender, receiver = (in_turn(lambda: load_model(name), place) for name in names)  # doctest: +SKIP
    """
    hooked = _Lazy(load, place, outline)
    model = hooked.model() if outline is None else outline.model
    return ModelInTurn(hooked, model.tokenizer, model.name, model.is_bridge, attention=attention)
