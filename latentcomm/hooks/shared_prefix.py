"""One-token continuations of a cached prefix as a staircase: rows join the pass at the layer where they differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.budget import budget
from latentcomm._core.linalg import in_float64
from latentcomm.hooks.capture import numbers_of_a_row
from latentcomm.models import Hook, Model, not_finite

MEMORY_BUDGET = 512 * 2**20
"""Bytes that the rows of one pass may take, besides the model's weights and the prefix, where no budget is stated."""
MOST_ROWS = 1024
"""Rows of one pass at most: matrix products are at full speed well below."""
MOST_PACKED = 64
"""Packed rows at most: their attention scores are as many as the square of their number."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.2}
"""The largest difference of the ungrafted row from a plain run, in standard deviations of its logits."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """A receiver prompt that was read up to the write position.

    Attributes:
        layers: keys and values of each layer, for the tokens before the write position (empty where there are none).
        n_cached: the number of these tokens.
        tail: the tokens from the write position on.
        logits: those of the ungrafted prompt after its last token.
    """

    layers: list[tuple[Tensor, Tensor]]
    n_cached: int
    tail: Int[Tensor, "1 pos"]
    logits: Float[Tensor, " d_vocab"]


def read_prefix(model: Model, ids: Int[Tensor, " pos"], write_position: int) -> Prefix:
    """Read a prompt once: its logits, and the cache of the tokens before its write position (from 0).

    Raises:
        ValueError: the logits are NaN or infinite.
    """
    cache = model.new_cache(1)
    plain = model.forward(ids[None], cache=cache, last_only=True)[0, -1]
    if not plain.amax().isfinite():
        raise not_finite(model, lambda: model.forward(ids[None], last_only=True))
    layers = model.cache_layers(cache, n_positions=write_position)
    return Prefix(layers, write_position, ids[None, write_position:].to(model.device), plain)


def can_pack(model: Model, n_cached: int, n_tail: int) -> bool:
    """Whether rows can be packed as positions of one prompt, each attending to the prefix and itself alone.

    That needs a one-token tail, a bridge (its position ids can be given), scores that a hook can mask in every layer,
    positions that act through the embedding or by rotation, and no sliding window shorter than the prefix. Everything
    else runs with rows in the batch: the same numbers, more memory traffic.
    """
    config = model.hooked.cfg
    hf_config = getattr(getattr(model.hooked, "original_model", None), "config", None)
    window = getattr(hf_config, "sliding_window", None) if getattr(hf_config, "use_sliding_window", True) else None
    return (
        model.is_bridge
        and n_tail == 1
        and getattr(config, "positional_embedding_type", None) in ("rotary", "standard")
        and (window is None or window > n_cached)
        and all({_scores(layer), _pattern(layer)} <= model.hook_names for layer in range(model.n_layers))
    )


def columns_per_pass(model: Model, n_cached: int, n_tail: int, n_writes: int) -> int:
    """How many messages one pass carries to all write layers within the budget and `MOST_ROWS`."""
    packed = can_pack(model, n_cached, n_tail)
    return columns_of(model.hooked.cfg, _itemsize(model), n_cached, n_tail, n_writes, packed=packed)


def columns_of(sizes: Any, itemsize: int, n_cached: int, n_tail: int, n_writes: int, *, packed: bool) -> int:
    """`columns_per_pass` of a model of these sizes (`n_layers`, `d_model` and so on), of numbers of `itemsize` bytes.

    A row takes its attention scores (a packed row sees the columns of all that it is packed with, masked), about eight
    vectors of d_model and three of d_mlp; a row that is not packed takes its own copy of the prefix's keys and values
    in every layer as well, and a pack one in every layer above its write layer.
    """
    width, most = numbers_of_a_row(sizes), budget() or MEMORY_BUDGET
    cached = _per_token(sizes) * (n_tail if packed else n_cached + n_tail)
    columns = max(1, (MOST_ROWS - 1) // n_writes)
    together = writes_together(sizes, itemsize, n_cached, n_writes) if packed else 0
    copies = _copies_of_a_pack(sizes, itemsize, n_cached, together)
    while columns > 1:
        rows = 1 + columns * n_writes
        seen = n_cached + (min(MOST_PACKED, columns) + 1 if packed else n_tail)
        scores = 3 * int(sizes.n_heads) * max(itemsize, 4) * n_tail * seen
        if rows * (scores + (n_tail * width + cached) * itemsize) + -(-columns // MOST_PACKED) * copies <= most:
            break
        columns -= 1
    return columns


def run_staircase(
    model: Model,
    prefix: Prefix,
    write_layers: Sequence[int],
    join: Callable[[int, Float[Tensor, " d_model"]], Float[Tensor, "row d_model"]],
    *,
    n_rows: int,
    packed: bool,
    observe: Callable[[int, Float[Tensor, " d_model"], Float[Tensor, "joined d_model"]], None] | None = None,
) -> Float[Tensor, "write row d_model"]:
    """The residual stream after the last block, at the last token, of every row that joined at every write layer.

    `join(layer, own)` gives the `n_rows` states that join after block `layer` instead of the ungrafted `own` at the
    write position; below that layer such a row would be the ungrafted one and is not computed. `observe(layer, own,
    rows)` is called with the states at the write position after every block from the first write layer on: the
    ungrafted state, and the rows that joined so far, by write layer (ascending) and then by row. Without it, packed
    rows of a long prefix run some write layers at a time, since each pack holds a copy of the prefix.

    Raises:
        ValueError: a row's states are not finite at a later layer.
        RuntimeError: the logits of the ungrafted row, which runs in the same pass, differ from those of a plain run.
    """
    writes = sorted(set(write_layers))
    step = len(writes)
    if packed and observe is None:
        step = writes_together(model.hooked.cfg, _itemsize(model), prefix.n_cached, step)
    parts = [
        _run_together(model, prefix, writes[start : start + step], join, n_rows=n_rows, packed=packed, observe=observe)
        for start in range(0, len(writes), step)
    ]
    return torch.cat(parts)[[writes.index(layer) for layer in write_layers]]


def _run_together(
    model: Model,
    prefix: Prefix,
    writes: Sequence[int],
    join: Callable[[int, Float[Tensor, " d_model"]], Float[Tensor, "row d_model"]],
    *,
    n_rows: int,
    packed: bool,
    observe: Callable[[int, Float[Tensor, " d_model"], Float[Tensor, "joined d_model"]], None] | None,
) -> Float[Tensor, "write row d_model"]:
    """One pass of `run_staircase`: ascending write layers, each once."""
    last = model.n_layers - 1
    final: list[Tensor] = []
    masked: list[int] = []
    n_packs = -(-n_rows // MOST_PACKED)  # of the rows of one write layer, of equal length
    width = -(-n_rows // n_packs)

    def joined(layer: int, value: Tensor) -> Tensor:
        states = join(layer, value[0, 0]).to(value.dtype)
        if packed:
            states = torch.cat([states, states[-1:].expand(n_packs * width - n_rows, -1)])
            states = rearrange(states, "(pack pos) d_model -> pack pos d_model", pack=n_packs)
            packs = torch.cat([value[:1, :1].expand(n_packs, -1, -1), states], 1)
            return packs if value.shape[1] == 1 else torch.cat([value, packs])
        rows = value[:1].repeat(len(states), 1, 1)
        rows[:, 0] = states
        return torch.cat([value, rows])

    def rows_of(value: Tensor, position: int) -> Float[Tensor, "joined d_model"]:
        """The states of the rows that joined, by write layer and then by row; `position` is that of unpacked rows."""
        if not packed:
            return value[1:, position]
        if value.shape[1] == 1:
            return value[0, 1:]
        rows = rearrange(value[:, 1:], "(write pack) pos d_model -> write (pack pos) d_model", pack=n_packs)
        return rearrange(rows[:, :n_rows], "write row d_model -> (write row) d_model")

    def write(layer: int) -> Hook:
        def at_layer(value: Tensor, hook: Any) -> Tensor | None:
            grown = joined(layer, value) if layer in writes else value
            if observe is not None:
                observe(layer, grown[0, 0], rows_of(grown, 0))
            if layer != last:
                return grown
            final.append(rows_of(grown, -1).clone())
            return grown[:1, :1] if packed else grown[:1]  # only the ungrafted row goes through the unembedding

        return f"blocks.{layer}.hook_resid_post", at_layer

    def mask(layer: int) -> Hook:
        def at_scores(scores: Tensor, hook: Any) -> Tensor:
            masked.append(layer)
            return _prefix_and_self(scores)

        return _scores(layer), at_scores

    hooked = {*writes, last} if observe is None else range(writes[0], last + 1)
    hooks = [write(layer) for layer in sorted(hooked)]
    above = [layer for layer in range(model.n_layers) if layer > writes[0]]  # below, the ungrafted row runs alone
    if packed:
        hooks += [mask(layer) for layer in above] + [(_pattern(layer), _among_rows) for layer in above]
    below = [sum(write < layer for write in writes) for layer in range(model.n_layers)]
    rows_at = [max(1, n_packs * n) if packed else 1 + n_rows * n for n in below]
    n_positions = prefix.n_cached + 1 + width if packed else 0

    def run() -> Tensor:
        cache = _batched_cache(model, prefix, rows_at)
        return model.forward_growing(prefix.tail, hooks=hooks, cache=cache, n_positions=n_positions)[0, -1]

    logits = run()
    if not torch.isfinite(final[0]).all():  # a packed row's NaN reaches the others through their zero weights
        raise not_finite(model, run, what=f"the states of {model.name} after a graft are")
    if packed and masked != above:
        raise RuntimeError(f"the attention scores of {model.name} fired at {masked} and not at {above}")
    _check_same(model, logits, prefix.logits)
    return rearrange(final[0], "(write row) d_model -> write row d_model", row=n_rows)


def _prefix_and_self(scores: Float[Tensor, "pack head row pos"]) -> Float[Tensor, "pack head row seen"]:
    """The scores of each packed row for the prefix and for itself alone: those that a plain run has, in the same order.

    A softmax over all rows with the others masked would add its terms in another order: transformers computes it in
    float32 for any dtype of the model, so that would show in the eighth digit.
    """
    prefix, rows = scores[..., : -scores.shape[-2]], scores[..., -scores.shape[-2] :]
    return torch.cat([prefix, rows.diagonal(dim1=-2, dim2=-1)[..., None]], -1)


def _among_rows(pattern: Float[Tensor, "pack head row seen"], hook: Any) -> Float[Tensor, "pack head row pos"]:
    """The pattern of `_prefix_and_self` over the prefix and all rows, 0 where a row does not attend to another."""
    rows, n_cached = pattern.shape[-2], pattern.shape[-1] - 1
    out = pattern.new_zeros(*pattern.shape[:-1], n_cached + rows)
    out[..., :n_cached] = pattern[..., :-1]
    out[..., n_cached:].diagonal(dim1=-2, dim2=-1).copy_(pattern[..., -1])
    return out


def _batched_cache(model: Model, prefix: Prefix, rows_at: Sequence[int]) -> Any:
    """The prefix's cache with as many rows in each layer as that layer will see."""
    if not prefix.n_cached and model.is_bridge:
        return model.new_cache(1)
    layers = [
        (keys.expand(rows, *keys.shape[1:]), values.expand(rows, *values.shape[1:]))
        for rows, (keys, values) in zip(rows_at, prefix.layers, strict=True)
    ]
    return model.cache_from_layers(layers)


def writes_together(sizes: Any, itemsize: int, n_cached: int, n_writes: int) -> int:
    """How many write layers of one pack run in one pass, so that its copies of the prefix fit in half the budget."""
    together, most = n_writes, budget() or MEMORY_BUDGET
    while together > 1 and _copies_of_a_pack(sizes, itemsize, n_cached, together) > most // 2:
        together -= 1
    return together


def _copies_of_a_pack(sizes: Any, itemsize: int, n_cached: int, n_writes: int) -> int:
    """Bytes of the prefix's keys and values for one pack a write layer, at most: with the lowest write layers.

    Each layer holds a copy for every write layer below it, and the attention of the last repeats its copies for all
    heads that share them.
    """
    held = sum(min(layer, n_writes) for layer in range(sizes.n_layers))
    repeated = n_writes * 2 * int(sizes.n_heads) * int(sizes.d_head)
    return n_cached * itemsize * (held * _per_token(sizes) // sizes.n_layers + repeated)


def numbers_cached(model: Model) -> int:
    """The numbers that one token adds to the key-value cache of all layers."""
    return _per_token(model.hooked.cfg)


def _per_token(sizes: Any) -> int:
    """The numbers that one token adds to the key-value cache of all layers."""
    heads = int(getattr(sizes, "n_key_value_heads", None) or sizes.n_heads)
    return 2 * sizes.n_layers * heads * int(sizes.d_head)


def _itemsize(model: Model) -> int:
    return torch.finfo(model.dtype).bits // 8


def _scores(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_attn_scores"


def _pattern(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_pattern"


def _check_same(model: Model, found: Float[Tensor, " d_vocab"], expected: Float[Tensor, " d_vocab"]) -> None:
    off = float((found - expected).abs().max()) / float(in_float64(expected).std())
    if not off <= TOLERANCE[model.rounding]:
        raise RuntimeError(
            f"a cached one-token step of {model.name} differs from a plain run by {off:.1e} standard deviations of the "
            "logits; its architecture needs more than keys and values of the prefix, so its cells cannot be shared"
        )
