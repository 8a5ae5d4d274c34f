"""A key-value cache of transformers that decoding extends in place, where its own copies all positions a step."""

from typing import Any, no_type_check

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Positions that a layer makes room for at least, or a quarter of those it holds: copies stay in proportion."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer as views of buffers with room for more positions; never of tensors it was given."""

    _owner: int = 0  # a shallow copy has the buffers of another layer
    _buffers: tuple[Tensor, Tensor] | None = None
    _views: tuple[Tensor, Tensor] | None = None

    @no_type_check  # which would take as long as the rest, at every layer of every token
    def update(self, key_states: Tensor, value_states: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new positions; the whole keys and values.

        One position at a time goes into the buffers, which are made anew once they are full or others have replaced
        keys or values. Longer passes, and those through which gradients flow, are concatenated.
        """
        if not self.is_initialized or key_states.shape[-2] > 1 or torch.is_grad_enabled():
            return super().update(key_states, value_states, *options, **named)
        if key_states.dtype != self.keys.dtype or key_states.shape[:2] != self.keys.shape[:2]:
            return super().update(key_states, value_states, *options, **named)  # which refuses them
        n = self.keys.shape[-2]
        own = self._owner == id(self) and self._views[0] is self.keys and self._views[1] is self.values
        frozen = own and self._buffers[0].is_inference() and not torch.is_inference_mode_enabled()
        if not own or frozen or n == self._buffers[0].shape[-2]:
            self._owner, self._buffers = id(self), (_with_room(self.keys), _with_room(self.values))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., n : n + 1, :] = states
        self._views = self.keys, self.values = tuple(buffer[..., : n + 1, :] for buffer in self._buffers)
        return self._views


def growing_cache() -> Any:
    """An empty cache of such layers."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


def _with_room(states: Tensor) -> Tensor:
    """A buffer that begins with these states `[batch head pos d_head]`."""
    n = states.shape[-2]
    buffer = states.new_empty(*states.shape[:-2], n + max(ROOM, n // 4), states.shape[-1])
    buffer[..., :n, :] = states
    return buffer
