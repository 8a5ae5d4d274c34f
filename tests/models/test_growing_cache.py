"""A cache that grows in place against transformers' own, which is copied at every step."""

import pytest
import torch
from numerics import assert_same_bits
from tiny import build, ids
from torch import Tensor
from transformers import DynamicCache

from latentcomm.models._growing_cache import ROOM, growing_cache

BATCH, HEADS, WIDTH = 3, 2, 4


def states(n: int, seed: int = 0) -> Tensor:
    """Keys or values of n positions."""
    return torch.randn(BATCH, HEADS, n, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lengths", [[5, 1, 1, 1], [1, 1, 4, 1], [7, 2, 1, *[1] * (2 * ROOM)]])
def test_it_holds_what_transformers_cache_holds(lengths: list[int]) -> None:
    ours, theirs = growing_cache(), DynamicCache()
    for step, n in enumerate(lengths):
        keys, values = states(n, seed=step), states(n, seed=step + 1000)
        with torch.no_grad():
            found = ours.update(keys, values, 0)
        for mine, other in zip(found, theirs.update(keys, values, 0), strict=True):
            assert_same_bits(mine, other)
        assert ours.get_seq_length() == theirs.get_seq_length()


@torch.no_grad()
def test_steps_write_into_the_same_memory() -> None:
    cache = growing_cache()
    cache.update(states(5), states(5), 0)
    places = []
    for _ in range(ROOM + 1):
        keys, _ = cache.update(states(1), states(1), 0)
        places.append(keys.data_ptr())
    assert len(set(places[:ROOM])) == 1
    assert places[ROOM] != places[0]  # the room was used up


@torch.no_grad()
def test_what_was_read_from_it_is_not_written_to() -> None:
    given = states(5)
    cache, other = growing_cache(), growing_cache()
    cache.update(given, given, 0)
    cache.update(states(1, seed=1), states(1, seed=1), 0)
    read = cache.layers[0].keys
    before = read.clone()
    other.update(read, read, 0)
    for each in (cache, other):
        each.update(states(1, seed=2), states(1, seed=2), 0)
    assert_same_bits(read, before)
    assert_same_bits(given, states(5))


@torch.no_grad()
def test_rows_that_leave_take_nothing_from_the_others() -> None:
    cache, theirs = growing_cache(), DynamicCache()
    for each in (cache, theirs):
        each.update(states(5), states(5), 0)
        each.update(states(1, seed=1), states(1, seed=1), 0)
        each.batch_select_indices(torch.tensor([2, 0]))
        each.update(states(1, seed=2)[:2], states(1, seed=2)[:2], 0)
        each.crop(-1)
        each.update(states(1, seed=3)[:2], states(1, seed=3)[:2], 0)
    assert_same_bits(cache.layers[0].keys, theirs.layers[0].keys)


def test_gradients_flow_through_steps() -> None:
    model = build("llama")
    cache = model.new_cache(1)
    tokens = ids(6, seed=1)[0][None]
    for part in (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:]):
        logits = model.forward(part, cache=cache, with_grad=True)
    logits.sum().backward()
    assert model.hooked.blocks[0].attn.k.weight.grad.abs().sum() > 0
