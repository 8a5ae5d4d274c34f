"""Run a receiver on any input: replies, the logits of their first token, rows of unequal length in one batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm.hooks.graft import LAST, check_fired, counting_hooks, is_grafted
from latentcomm.hooks.receiver_input import EMBEDDED, Joining, Past, ReceiverInput, SoftTokens, Standing  # noqa: F401
from latentcomm.models import Hook, Model
from latentcomm.models.prompts import Prompts

TOKENS_PER_BATCH = 8192
"""The largest number of prompt and reply tokens in one batch: bounds the cache, for any number of prompts."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The output of a receiver.

    Attributes:
        texts: the reply of each row, special tokens left out.
        first_logits: the logits of the first reply token.
        n_tokens: the number of tokens of each reply; a reply that ended by itself took one more, the stop token.
        ids: the token ids of each reply.
    """

    texts: list[str]
    first_logits: Float[Tensor, "batch d_vocab"]
    n_tokens: list[int]
    ids: list[list[int]]


def generate(
    model: Model,
    prompts: Prompts | ReceiverInput,
    *,
    max_new_tokens: int,
    temperature: float | int = 0.0,
    top_p: float | int = 1.0,
    seed: int = 0,
) -> list[str]:
    """The reply to each prompt: greedy at temperature 0, else sampled from the smallest set of tokens of mass `top_p`.

    The prompt is read once, under its grafts; decoding continues from the cache. A reply is that of the prompt run
    alone: rows of one length run together, so nothing is padded. When sampling, each row draws from its own stream of
    random numbers, fixed by the seed and the row's number.

    Raises:
        ValueError: an option out of range, prompt and reply exceed the context, or the model has no tokenizer.
        RuntimeError: a graft never fired.
    """
    model.require_tokenizer()
    return decode(model, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed).texts


def next_token_logits(model: Model, prompts: Prompts | ReceiverInput) -> Float[Tensor, "batch d_vocab"]:
    """The logits after each prompt's last token, under its grafts."""
    return decode(model, prompts, max_new_tokens=1).first_logits


def decode(
    model: Model,
    prompts: Prompts | ReceiverInput,
    *,
    max_new_tokens: int,
    temperature: float | int = 0.0,
    top_p: float | int = 1.0,
    seed: int = 0,
    first_row: int = 0,
    seeds: Sequence[int] | None = None,
) -> Decoded:
    """The replies of `generate` together with the logits of their first token, at the cost of the replies alone.

    `first_row` is the number of the first row where the rows are part of a larger set: it fixes their random streams.
    `seeds` gives each row its own seed instead, whatever its number.
    """
    given = prompts if isinstance(prompts, ReceiverInput) else ReceiverInput(prompts)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; give at least 1")
    if not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be at least 0 and finite, and top_p {top_p} in (0, 1]")
    longest = int(given.lengths.max())
    if longest + max_new_tokens - 1 > model.n_ctx:
        raise ValueError(
            f"{longest} prompt tokens and {max_new_tokens} new ones exceed the {model.n_ctx} of {model.name}"
        )
    for graft in given.grafts:
        model.check_site(graft.site)
    groups = given.groups_of_equal_length()
    if len(groups) > 1 and is_grafted(model):
        raise ValueError(
            f"prompts of {len(groups)} lengths cannot run in one `grafted` block; give the grafts in a ReceiverInput"
        )
    if is_grafted(model, already_fired=True):
        raise ValueError("a prompt has run in this `grafted` block already; open another block for the next one")
    if seeds is None:
        seeds = range(seed * 1_000_003 + first_row, seed * 1_000_003 + first_row + len(given.prompts))
    if len(seeds) != len(given.prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(given.prompts)} prompts; give one a prompt")
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    texts, ids = [""] * len(given.prompts), [[] for _ in range(len(given.prompts))]
    logits: dict[int, Tensor] = {}
    for run in runs(model, given, max_new_tokens, read_prompts):
        replies = _replies(model, run, max_new_tokens, temperature, top_p, [generators[row] for row in run.rows])
        for row, row_logits, reply in zip(run.rows, run.logits, replies, strict=True):
            texts[row], logits[row] = model.decode(reply) if model.tokenizer is not None else "", row_logits
            ids[row] = reply
    first_logits = torch.stack([logits[row] for row in range(len(given.prompts))])
    return Decoded(texts, first_logits, [len(reply) for reply in ids], ids)


@dataclass(eq=False)
class Run:
    """Rows that have read their prompts and are decoded together, one token each a step.

    Attributes:
        rows: their numbers.
        logits: after their prompts.
    """

    model: Model
    rows: list[int]
    logits: Float[Tensor, "batch d_vocab"]
    cache: Any
    hooks: Sequence[Hook]
    past_mask: Bool[Tensor, "batch past"] | None

    def step(self, tokens: Int[Tensor, " batch"], hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch d_vocab"]:
        """The logits after one more token of each row, under further hooks."""
        logits = self.model.forward(
            tokens[:, None], hooks=[*hooks, *self.hooks], cache=self.cache, last_only=True, past_mask=self.past_mask
        )
        if self.past_mask is not None:
            self.past_mask = F.pad(self.past_mask, (0, 1), value=True)
        return logits[:, -1]


Read = tuple[Float[Tensor, "_ d_vocab"], Any, list[Hook]]
"""Logits after prompts of one length, their cache, and the hooks for the passes of their replies."""


def runs(
    model: Model, given: ReceiverInput, max_new_tokens: int, read: Callable[[Model, ReceiverInput], Read]
) -> Iterator[Run]:
    """The rows of an input in batches: prompts of one length are read together, all replies are decoded together.

    A prompt is read as it would be alone, without padding. Where the model and all persistent hooks allow it, caches of
    unequal lengths are then joined, so that one pass decodes a token for a whole batch.
    """
    step = max(1, TOKENS_PER_BATCH // (int(given.lengths.max()) + max_new_tokens))
    joins = model.joins_lengths and not model.has_hooks and all(isinstance(each, Joining) for each in given.standing)
    pending: list[tuple[list[int], Read]] = []
    for group in given.groups_of_equal_length():
        for rows in (group[start : start + step] for start in range(0, len(group), step)):
            if pending and (not joins or len(rows) + sum(len(before) for before, _ in pending) > step):
                yield _joined(model, given, pending)
                pending = []
            pending.append((rows, read(model, given.select(rows))))
    yield _joined(model, given, pending)


def _joined(model: Model, given: ReceiverInput, parts: Sequence[tuple[list[int], Read]]) -> Run:
    """The rows of some groups, with their caches in one batch."""
    if len(parts) == 1:
        rows, (logits, cache, hooks) = parts[0]
        return Run(model, rows, logits, cache, hooks, None)
    rows = [row for group, _ in parts for row in group]
    caches = [cache for _, (_, cache, _) in parts]
    lengths = [model.cache_length(cache) for cache in caches]
    width = max(lengths)

    def concatenated(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(each, (0, 0, 0, width - each.shape[2])) for each in tensors])

    layers = zip(*(model.cache_layers(cache) for cache in caches), strict=True)
    joined = [
        (concatenated([keys for keys, _ in each]), concatenated([values for _, values in each])) for each in layers
    ]
    real = torch.tensor([n for n, (group, _) in zip(lengths, parts, strict=True) for _ in group])
    hooks = [
        hook
        for each in given.standing
        for selected in [each.select(rows)]
        if isinstance(selected, Joining)
        for hook in selected.reply_hooks()
    ]
    logits = torch.cat([logits for _, (logits, _, _) in parts])
    past_mask = None if len(set(lengths)) == 1 else torch.arange(width)[None] < real[:, None]
    return Run(model, rows, logits, model.cache_from_layers(joined), hooks, past_mask)


def read_prompts(model: Model, given: ReceiverInput) -> Read:
    """The prompt pass of rows of one length, with their whole input."""
    hooks, fired = counting_hooks(given.grafts)
    persistent = [hook for each in given.standing for hook in each.fwd_hooks()]
    cache, tokens = _prefix(model, given)
    embedded = [0]
    soft = [] if given.soft is None else [given.soft.hook(embedded)]
    logits = model.forward(tokens, hooks=[*soft, *hooks, *persistent], cache=cache, last_only=True)[:, -1]
    check_fired(given.grafts, fired)
    if soft and embedded[0] != 1:
        raise RuntimeError(f"the soft tokens entered {model.name} {embedded[0]} times instead of once")
    return logits, cache, persistent


def _replies(
    model: Model,
    run: Run,
    max_new_tokens: int,
    temperature: float | int,
    top_p: float | int,
    generators: Sequence[torch.Generator],
) -> list[list[int]]:
    """Reply ids of rows that are decoded together."""
    logits, replies = run.logits, [[] for _ in run.rows]
    live = [True] * len(run.rows)
    for step in range(max_new_tokens):
        tokens = _choose(logits, temperature, top_p, generators)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token not in model.stop_ids
            if live[row]:
                replies[row].append(token)
        if step == max_new_tokens - 1 or not any(live):
            break
        logits = run.step(tokens)
    return replies


def _prefix(model: Model, given: ReceiverInput) -> tuple[Any, Int[Tensor, "batch pos"]]:
    """A cache of the rows' prefix, and the tokens that they still have to read.

    The prefix is the past of the input if it has one. Else it is the prefix that all rows share, read once: only equal
    prompts whose grafts are all at the last token share one, and only while no other hooks are attached, since those
    would see the last token alone.
    """
    if given.past is not None:
        rows = zip(*given.past.layers, strict=True)
        joined = [
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer])) for layer in rows
        ]
        return model.cache_from_layers(joined, batch=len(given.prompts)), given.prompts.tokens
    tokens = given.prompts.tokens
    batch, length = tokens.shape
    last_only = all(isinstance(graft.position, int) and graft.position == LAST for graft in given.grafts)
    alone = given.soft is not None or given.standing or batch == 1 or length == 1 or not last_only or model.has_hooks
    if alone or (tokens != tokens[:1]).any():
        return model.new_cache(batch), tokens
    cache = model.new_cache(1)
    model.forward(tokens[:1, :-1], cache=cache, last_only=True)
    return model.cache_from_layers(model.cache_layers(cache), batch=batch), tokens[:, -1:]


def _choose(
    logits: Float[Tensor, "batch d_vocab"],
    temperature: float | int,
    top_p: float | int,
    generators: Sequence[torch.Generator],
) -> Int[Tensor, " batch"]:
    """The next token of each row."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.double() / temperature).softmax(-1).cpu()
    ordered, order = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens: the first is always included
    ordered = ordered.masked_fill(before >= top_p, 0)
    picks = [torch.multinomial(row, 1, generator=g) for row, g in zip(ordered, generators, strict=True)]
    return order.gather(1, torch.stack(picks))[:, 0].to(logits.device)
