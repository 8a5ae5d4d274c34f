"""A key-value cache of transformers that decoding extends in place, where its own copies all positions a step."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Positions that a layer makes room for at least, or a quarter of those it holds: copies stay in proportion."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer as views of buffers with room for more positions; never of tensors it was given."""

    _buffers: tuple[Tensor, Tensor] | None = None
    _views: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new positions; the whole keys and values.

        One position at a time goes into the buffers. Longer passes are concatenated, as before decoding and where
        gradients flow.
        """
        if not self.is_initialized or key_states.shape[-2] > 1 or torch.is_grad_enabled():
            return super().update(key_states, value_states, *options, **named)
        n = self.keys.shape[-2]
        if not self._has_room(n):
            self._buffers = _with_room(self.keys), _with_room(self.values)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., n : n + 1, :] = states
        self._views = tuple(buffer[..., : n + 1, :] for buffer in self._buffers)
        self.keys, self.values = self._views
        return self._views

    def _has_room(self, n: int) -> bool:
        """Whether the buffers hold these keys and values, which others may have replaced, and one more position."""
        if self._buffers is None or self._views is None or n == self._buffers[0].shape[-2]:
            return False
        return self._views[0] is self.keys and self._views[1] is self.values


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
