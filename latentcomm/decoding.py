"""Every way of running a receiver: next-token logits and generated text, under grafts, from a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.grafting import LAST, Graft, check_fired, is_grafted
from latentcomm.models import Hook, Model
from latentcomm.prompts import Prompts

TOKENS_PER_BATCH = 8192
"""Prompt and reply tokens that run together at most: bounds the cache, whatever the number of prompts."""


@dataclass(frozen=True, eq=False)
class ReceiverInput:
    """All that a receiver is given: the prompts it reads and what is written into it while it reads them."""

    prompts: Prompts
    grafts: tuple[Graft, ...] = ()

    def select(self, rows: Sequence[int]) -> "ReceiverInput":
        """The input of some of the rows, padded on the right, and not at all when they are of one length.

        Positions given as a tensor are indices into `prompts.tokens` and move along when padding on the left goes.
        """
        shift = self.prompts.first[torch.as_tensor(rows)]
        grafts = (graft.select(rows).moved(shift) for graft in self.grafts)
        return ReceiverInput(self.prompts.select(rows), tuple(grafts))


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a receiver said.

    Attributes:
        texts: the reply of each row, special tokens left out.
        first_logits: the logits of the first reply token.
    """

    texts: list[str]
    first_logits: Float[Tensor, "batch d_vocab"]


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

    The prompt is read once, under its grafts; decoding goes on from the cache. A reply is what the prompt alone would
    get: rows of one length run together, so nothing is padded. Where it samples, each row draws from its own stream of
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
) -> Decoded:
    """The replies of `generate` together with the logits of their first token, at the price of the replies alone."""
    given = prompts if isinstance(prompts, ReceiverInput) else ReceiverInput(prompts)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
    if not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be at least 0 and finite, and top_p {top_p} in (0, 1]")
    longest = int(given.prompts.lengths.max())
    if longest + max_new_tokens - 1 > model.n_ctx:
        raise ValueError(
            f"{longest} prompt tokens and {max_new_tokens} new ones exceed the {model.n_ctx} of {model.name}"
        )
    for graft in given.grafts:
        model.check_site(graft.site)
    groups = given.prompts.groups_of_equal_length()
    if len(groups) > 1 and is_grafted(model):
        raise ValueError(
            f"prompts of {len(groups)} lengths cannot run in one `grafted` block; give the grafts in a ReceiverInput"
        )
    if is_grafted(model, already_fired=True):
        raise ValueError("a prompt has run in this `grafted` block already; open another block for the next one")
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + row) for row in range(len(given.prompts))]
    texts = [""] * len(given.prompts)
    logits: list[Tensor | None] = [None] * len(given.prompts)
    for rows in (part for group in groups for part in _batches(group, longest + max_new_tokens)):
        first, replies = _decode_group(
            model, given.select(rows), max_new_tokens, temperature, top_p, [generators[row] for row in rows]
        )
        for row, row_logits, reply in zip(rows, first, replies, strict=True):
            texts[row], logits[row] = model.decode(reply) if model.tokenizer is not None else "", row_logits
    return Decoded(texts, torch.stack([row for row in logits if row is not None]))


def _batches(rows: Sequence[int], length: int) -> list[Sequence[int]]:
    """Rows of one length, so many at a time that a batch holds `TOKENS_PER_BATCH` at most."""
    step = max(1, TOKENS_PER_BATCH // length)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _decode_group(
    model: Model,
    given: ReceiverInput,
    max_new_tokens: int,
    temperature: float | int,
    top_p: float | int,
    generators: Sequence[torch.Generator],
) -> tuple[Float[Tensor, "batch d_vocab"], list[list[int]]]:
    """First logits and reply ids of rows of one length."""
    batch = len(given.prompts)
    hooks, fired = _counting_hooks(given.grafts)
    cache, tokens = _shared_prefix(model, given)
    logits = model.forward(tokens, hooks=hooks, cache=cache, last_only=True)[:, -1]
    check_fired(given.grafts, fired)
    first, replies, live = logits, [[] for _ in range(batch)], [True] * batch
    for step in range(max_new_tokens):
        tokens = _choose(logits, temperature, top_p, generators)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token not in model.stop_ids
            if live[row]:
                replies[row].append(token)
        if step == max_new_tokens - 1 or not any(live):
            break
        logits = model.forward(tokens[:, None], cache=cache, last_only=True)[:, -1]
    return first, replies


def _shared_prefix(model: Model, given: ReceiverInput) -> tuple[Any, Int[Tensor, "batch pos"]]:
    """A cache of what all rows have in common, read once, and the tokens that remain.

    Only equal prompts that are grafted at their very last token alone share anything, and only while nobody else's
    hooks are attached: hooks then see that one token.
    """
    tokens = given.prompts.tokens
    batch, length = tokens.shape
    last_only = all(isinstance(graft.position, int) and graft.position == LAST for graft in given.grafts)
    if batch == 1 or length == 1 or not last_only or model.has_hooks or (tokens != tokens[:1]).any():
        return model.new_cache(batch), tokens
    cache = model.new_cache(1)
    model.forward(tokens[:1, :-1], cache=cache, last_only=True)
    return model.cache_from_layers(model.cache_layers(cache), batch=batch), tokens[:, -1:]


def _counting_hooks(grafts: Sequence[Graft]) -> tuple[list[Hook], list[int]]:
    """The hooks of the grafts, in order, and how often each has fired."""
    fired = [0] * len(grafts)

    def counted(number: int) -> Hook:
        ((name, write),) = grafts[number].fwd_hooks()

        def fire(value: Tensor, hook: object) -> Tensor:
            fired[number] += 1
            return write(value, hook)

        return name, fire

    return [counted(number) for number in range(len(grafts))], fired


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
    before = ordered.cumsum(-1) - ordered  # mass of the tokens that come before: the first is always kept
    ordered = ordered.masked_fill(before >= top_p, 0)
    picks = [torch.multinomial(row, 1, generator=g) for row, g in zip(ordered, generators, strict=True)]
    return order.gather(1, torch.stack(picks))[:, 0].to(logits.device)
