"""Run a receiver on any input: replies, the logits of their first token, rows of unequal length in one batch."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm._core.linalg import in_float64
from latentcomm.hooks.capture import recorder, run_to_deepest
from latentcomm.hooks.graft import LAST, check_fired, counting_hooks, is_grafted
from latentcomm.hooks.receiver_input import EMBEDDED, Joining, Past, PersistentHooks, ReceiverInput, SoftTokens  # noqa: F401
from latentcomm.models import Hook, Model, Pass, in_halves, not_finite, record_passes, recorded_passes
from latentcomm.models.prompts import Prompts

TOKENS_PER_BATCH = 8192
"""The largest number of prompt and reply tokens in one batch: bounds the cache, for any number of prompts."""
Layers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of every layer."""
Known = tuple[Layers, list[Pass]]
"""Keys and values of tokens that were read, and the passes that read them."""


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
        ValueError: an option out of range, prompt and reply exceed the context, the model has no tokenizer, or logits
            that are NaN or infinite, with the block where the stream stops being finite.
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
    known: MutableMapping[str, "Known"] | None = None,
) -> Decoded:
    """The replies of `generate` together with the logits of their first token, at the cost of the replies alone.

    `first_row` is the number of the first row where the rows are part of a larger set: it fixes their random streams.
    `seeds` gives each row its own seed instead, whatever its number. With `known`, a dict that is passed with several
    messages for the same prompts, what comes before grafts at the last token is read once for all of them; its
    operations count for each.
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
    found: dict[int, tuple[Tensor, Reply]] = {}
    for parts in _batches(model, given, max_new_tokens):
        begun = [(part, _shared_prefix(model, given.select(part), known)) for part in parts]
        write = partial(_written, model, given, begun, max_new_tokens, partial(_sampled, temperature, top_p), seeds)
        rows = [row for part in parts for row in part]  # in halves only where it is known how hooks follow the rows
        halves = in_halves(write, rows, "a batch of replies") if _can_leave(model, given) else [write(rows)]
        for half in halves:
            found |= half
    first_logits, replies = zip(*(found[row] for row in range(len(given.prompts))), strict=True)
    ids = [reply.ids for reply in replies]
    texts = [model.decode(reply) if model.tokenizer is not None else "" for reply in ids]
    return Decoded(texts, torch.stack(first_logits), [len(reply) for reply in ids], ids)


@dataclass(eq=False)
class Run:
    """Rows that have read their prompts and are decoded together, one token each a step.

    Attributes:
        given: the input of all rows.
        rows: the numbers of those in the batch.
        logits: after the last token that each has read.
        cache: their keys and values.
        hooks: persistent hooks, for the passes of replies.
        past_mask: which positions of the cache each row has; None where each has all of them.
        can_leave: whether rows may leave the batch before the others, since all hooks follow them.
    """

    model: Model
    given: ReceiverInput
    rows: list[int]
    logits: Float[Tensor, "batch d_vocab"]
    cache: Any
    hooks: Sequence[Hook]
    past_mask: Bool[Tensor, "batch past"] | None
    can_leave: bool

    def step(self, tokens: Int[Tensor, " batch"], hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch d_vocab"]:
        """The logits after one more token of each row, under further hooks."""
        logits = self.model.forward(
            tokens[:, None], hooks=[*hooks, *self.hooks], cache=self.cache, last_only=True, past_mask=self.past_mask
        )
        if self.past_mask is not None:
            self.past_mask = F.pad(self.past_mask, (0, 1), value=True)
        self.logits = logits[:, -1]
        return self.logits

    def past(self, row: int) -> list[tuple[Float[Tensor, "1 _ _ d_head"], Float[Tensor, "1 _ _ d_head"]]]:
        """Keys and values of one row of the batch at its own positions, as `Model.cache_layers` gives them."""
        at = self.rows.index(row)
        layers = self.model.cache_layers(self.cache)
        if self.past_mask is None:
            return [(keys[at : at + 1], values[at : at + 1]) for keys, values in layers]
        own = self.past_mask[at].nonzero()[:, 0]  # of a bridge: positions are the third axis
        owns = [own.to(keys.device) for keys, _ in layers]
        rows = zip(layers, owns, strict=True)
        return [(keys[at : at + 1, :, own], values[at : at + 1, :, own]) for (keys, values), own in rows]

    def keep(self, places: Sequence[int]) -> None:
        """Only the rows at these places of the batch stay in it."""
        index = torch.tensor(places)
        self.rows = [self.rows[at] for at in places]
        self.logits = self.logits[index.to(self.logits.device)]
        self.model.keep_rows(self.cache, index)
        self.past_mask = None if self.past_mask is None else self.past_mask[index]
        self.hooks = _reply_hooks(self.given, self.rows)


@dataclass(frozen=True, eq=False)
class Choice:
    """The next token of each row of a batch.

    Attributes:
        ids: the tokens; one of the model's `stop_ids` ends a reply.
        vectors: embeddings that are read in place of the tokens' own; None reads those of the tokens.
        values: named values of each row, recorded with its token.
    """

    ids: Int[Tensor, " batch"]
    vectors: Float[Tensor, "batch d_model"] | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def select(self, places: Sequence[int]) -> "Choice":
        """The choice of the rows at these places."""
        vectors = None if self.vectors is None else self.vectors[places]
        return Choice(self.ids[places], vectors, {name: value[places] for name, value in self.values.items()})


@dataclass(eq=False)
class Reply:
    """The reply of a row.

    Attributes:
        ids: its tokens.
        ended: whether a stop token followed; else it was cut at its limit.
        values: what was chosen along with each token, by name.
        states: the states in the pass that read each token, by hook point, on the CPU.
    """

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    states: dict[str, list[Tensor]] = field(default_factory=dict)


def write_replies(
    run: Run,
    choose: Callable[[Tensor, Sequence[int]], Choice],
    limits: Sequence[int],
    *,
    points: Sequence[str] = (),
    leave: Callable[[Run, int], None] | None = None,
) -> dict[int, Reply]:
    """The reply of each row of a run, by its number: the one loop that decodes.

    `choose(logits, rows)` makes the next token of every row of the batch. A reply ends before a stop token or at its
    limit, of which there is one for each row of the input, and its row then leaves the batch, after a call of
    `leave(run, row)`. With `points` the states at these hook points are recorded as each token is read, the last one
    too, which is read for that alone.

    Raises:
        ValueError: the logits of a row are NaN or infinite (-inf alone is a token that a hook has banned).
    """
    replies = {row: Reply() for row in run.rows}
    writing, read = set(run.rows), None
    while writing:
        is_finite = run.logits.amax(-1).isfinite()  # of NaN and infinity the largest, too, is none
        choice = choose(run.logits, run.rows)
        reading, ending = set[int](), set[int]()
        chosen = torch.stack([choice.ids, is_finite.to(choice.ids)], 1).tolist()  # in one transfer
        for at, (row, (token, fine)) in enumerate(zip(run.rows, chosen, strict=True)):
            if row not in writing:
                continue
            if not fine:
                raise not_finite(run.model, partial(_last_pass, run, row, read))
            reply = replies[row]
            reply.ended = token in run.model.stop_ids
            if reply.ended:
                continue
            reply.ids.append(token)
            for name, value in choice.values.items():
                reply.values.setdefault(name, []).append(value[at])
            reading.add(row)
            if len(reply.ids) == limits[row]:
                ending.add(row)
        if not points:
            reading -= ending
        choice = _without(run, writing - reading, choice, leave)
        if reading:
            for point, states in _read(run, choice, points, ends=reading == ending).items():
                for row, state in zip(run.rows, states, strict=True):
                    if row in reading:
                        replies[row].states.setdefault(point, []).append(state)
            read = _without(run, reading & ending, choice, leave)
        writing = reading - ending
    return replies


def _last_pass(run: Run, row: int, read: Choice | None) -> None:
    """Run the pass again that gave the last logits: the prompt of a row, or the tokens of the batch that it read."""
    if read is None:
        read_prompts(run.model, run.given.select([row]))
        return
    n_past = run.model.cache_length(run.cache) - 1
    before = run.model.cache_layers(run.cache, n_positions=n_past)
    past_mask = None if run.past_mask is None else run.past_mask[:, :n_past]
    cache = run.model.cache_from_layers(before, batch=len(run.rows))
    replace(run, cache=cache, past_mask=past_mask).step(read.ids, _entered(read))


def _entered(choice: Choice) -> list[Hook]:
    """The hook that puts the vectors of a choice, if it has any, in place of embeddings."""
    return [] if choice.vectors is None else [(EMBEDDED, partial(_entering, choice.vectors))]


def _read(run: Run, choice: Choice, points: Sequence[str], *, ends: bool) -> dict[str, Float[Tensor, "batch d_model"]]:
    """The states at hook points as the chosen tokens are read, in a pass that goes no further if `ends`."""
    hooks = _entered(choice)
    if ends:
        seen = run_to_deepest(
            run.model, choice.ids[:, None], points, hooks=[*hooks, *run.hooks], cache=run.cache, past_mask=run.past_mask
        )
        return {point: states[:, -1].cpu() for point, states in seen.items()}
    states: dict[str, Tensor] = {}
    run.step(choice.ids, [*hooks, *(recorder(point, partial(_record_last, states, point)) for point in points)])
    return states


def _record_last(states: dict[str, Tensor], point: str, value: Float[Tensor, "batch pos d_model"]) -> None:
    states[point] = value[:, -1].detach().cpu().clone()


def _entering(vectors: Float[Tensor, "batch d_model"], value: Tensor, hook: Any) -> Tensor:
    """The embeddings of every row's one token, replaced by its vector."""
    return vectors[:, None].to(value.device, value.dtype)


def _without(run: Run, rows: set[int], choice: Choice, leave: Callable[[Run, int], None] | None) -> Choice:
    """The choice of the rows that stay in the batch, if rows may leave it, once these have left."""
    if leave is not None:
        for row in [row for row in run.rows if row in rows]:
            leave(run, row)
    places = [at for at, row in enumerate(run.rows) if row not in rows]
    if not run.can_leave or len(places) in (0, len(run.rows)):
        return choice
    run.keep(places)
    return choice.select(places)


def _written(
    model: Model,
    given: ReceiverInput,
    begun: Sequence[tuple[list[int], Layers | None]],
    max_new_tokens: int,
    choose: Callable[..., Choice],
    seeds: Sequence[int],
    rows: Sequence[int],
) -> dict[int, tuple[Float[Tensor, " d_vocab"], Reply]]:
    """First logits and replies of rows that are decoded together, parts of which have read a prefix already."""
    generators = {row: torch.Generator().manual_seed(seeds[row]) for row in rows}
    reads = []
    for part, prefix in begun:
        places = [at for at, row in enumerate(part) if row in generators]
        if places:
            mine = [part[at] for at in places]
            reads.append((mine, _read_after(model, given.select(mine), _rows_of(prefix, places))))
    run = _joined(model, given, reads)
    first_logits = dict(zip(run.rows, run.logits, strict=True))
    replies = write_replies(run, partial(choose, generators), [max_new_tokens] * len(given.prompts))
    return {row: (first_logits[row], replies[row]) for row in rows}


Read = tuple[Float[Tensor, "_ d_vocab"], Any, list[Hook]]
"""Logits after prompts of one length, their cache, and the hooks for the passes of their replies."""


def runs(
    model: Model, given: ReceiverInput, max_new_tokens: int, read: Callable[[Model, ReceiverInput], Read]
) -> Iterator[Run]:
    """The rows of an input in batches: prompts of one length are read together, all replies are decoded together.

    A prompt is read as it would be alone, without padding. Where the model and all persistent hooks allow it, caches of
    unequal lengths are then joined, so that one pass decodes a token for a whole batch.
    """
    for parts in _batches(model, given, max_new_tokens):
        yield _joined(model, given, [(rows, read(model, given.select(rows))) for rows in parts])


def _batches(model: Model, given: ReceiverInput, max_new_tokens: int) -> Iterator[list[list[int]]]:
    """The rows of each batch, in parts of one length that are read together."""
    step = max(1, TOKENS_PER_BATCH // (int(given.lengths.max()) + max_new_tokens))
    joins = _can_leave(model, given) and model.joins_lengths
    batch: list[list[int]] = []
    for group in given.groups_of_equal_length():
        for rows in (group[start : start + step] for start in range(0, len(group), step)):
            if batch and (not joins or len(rows) + sum(map(len, batch)) > step):
                yield batch
                batch = []
            batch.append(rows)
    yield batch


def _can_leave(model: Model, given: ReceiverInput) -> bool:
    """Whether all hooks follow the rows of a batch, so that some may leave it."""
    return not model.has_hooks and all(isinstance(each, Joining) for each in given.persistent)


def _joined(model: Model, given: ReceiverInput, parts: Sequence[tuple[list[int], Read]]) -> Run:
    """The rows of some groups, with their caches in one batch."""
    can_leave = _can_leave(model, given)
    if len(parts) == 1:
        rows, (logits, cache, hooks) = parts[0]
        return Run(model, given, rows, logits, cache, hooks, None, can_leave)
    rows = [row for group, _ in parts for row in group]
    caches = [cache for _, (_, cache, _) in parts]
    lengths = [model.cache_length(cache) for cache in caches]
    width = max(lengths)

    def concatenated(tensors: Sequence[Float[Tensor, "_ head _ d_head"]]) -> Float[Tensor, "batch head past d_head"]:
        return torch.cat([F.pad(each, (0, 0, 0, width - each.shape[2])) for each in tensors])

    layers = zip(*(model.cache_layers(cache) for cache in caches), strict=True)
    joined = [
        (concatenated([keys for keys, _ in each]), concatenated([values for _, values in each])) for each in layers
    ]
    real = torch.tensor([n for n, (group, _) in zip(lengths, parts, strict=True) for _ in group])
    logits = torch.cat([logits for _, (logits, _, _) in parts])
    past_mask = None if len(set(lengths)) == 1 else torch.arange(width)[None] < real[:, None]
    cache = model.cache_from_layers(joined)
    return Run(model, given, rows, logits, cache, _reply_hooks(given, rows), past_mask, can_leave)


def _reply_hooks(given: ReceiverInput, rows: Sequence[int]) -> list[Hook]:
    """The persistent hooks of some rows for the passes of their replies."""
    selected = [each.select(rows) for each in given.persistent]
    return [hook for each in selected if isinstance(each, Joining) for hook in each.reply_hooks()]


def read_prompts(model: Model, given: ReceiverInput) -> Read:
    """The prompt pass of rows of one length, with their whole input."""
    return _read_after(model, given, _shared_prefix(model, given))


def _read_after(model: Model, given: ReceiverInput, prefix: Layers | None) -> Read:
    """The prompt pass of rows that continue a prefix, if they share one."""
    hooks, fired = counting_hooks(given.grafts)
    persistent = [hook for each in given.persistent for hook in each.fwd_hooks()]
    batch, tokens = len(given.prompts), given.prompts.tokens
    if given.past is not None:
        rows = zip(*given.past.layers, strict=True)
        prefix = [
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer])) for layer in rows
        ]
    elif prefix is not None:
        tokens = tokens[:, -1:]
    cache = model.new_cache(batch) if prefix is None else model.cache_from_layers(prefix, batch=batch)
    embedded = [0]
    soft = [] if given.soft is None else [given.soft.hook(embedded)]
    logits = model.forward(tokens, hooks=[*soft, *hooks, *persistent], cache=cache, last_only=True)[:, -1]
    check_fired(given.grafts, fired)
    if soft and embedded[0] != 1:
        raise RuntimeError(f"the soft tokens entered {model.name} {embedded[0]} times instead of once")
    return logits, cache, persistent


def _shared_prefix(
    model: Model, given: ReceiverInput, known: MutableMapping[str, Known] | None = None
) -> Layers | None:
    """Keys and values of the tokens before the last one, in one row for all prompts or one for each, or None.

    Only prompts whose grafts are all at the last token have them read apart, and only while no other hooks are
    attached, since those would see the last token alone; and among these equal prompts, or those that are `known` or
    will be.
    """
    tokens = given.prompts.tokens
    batch, length = tokens.shape
    last_only = all(isinstance(graft.position, int) and graft.position == LAST for graft in given.grafts)
    own = given.past is not None or given.soft is not None or given.persistent or not last_only or model.has_hooks
    alike = batch > 1 and bool((tokens == tokens[:1]).all())
    again = known is not None and bool(given.grafts)
    if own or length == 1 or not (alike or again):
        return None
    before = tokens[: 1 if alike else batch, :-1]
    if known is None:
        return _read_prefix(model, before)
    key = digest(before.cpu())
    if key in known:
        record_passes(known[key][1])
    else:
        with recorded_passes() as passes:
            known[key] = _read_prefix(model, before), passes
    return known[key][0]


def _read_prefix(model: Model, tokens: Int[Tensor, "batch pos"]) -> Layers:
    """Keys and values of the tokens of all rows, in every layer; in halves where they do not fit."""
    halves = in_halves(partial(_layers_of, model, tokens), range(len(tokens)), "a batch of prompts")
    parts = zip(*halves, strict=True)
    return [(torch.cat([keys for keys, _ in each]), torch.cat([values for _, values in each])) for each in parts]


def _layers_of(model: Model, tokens: Int[Tensor, "batch pos"], rows: Sequence[int]) -> Layers:
    """Keys and values of the tokens of some rows, in every layer."""
    cache = model.new_cache(len(rows))
    model.forward(tokens[list(rows)], cache=cache, last_only=True)
    return model.cache_layers(cache)


def _rows_of(layers: Layers | None, rows: Sequence[int]) -> Layers | None:
    """Keys and values of some rows; those of one row for all stay."""
    if layers is None or layers[0][0].shape[0] == 1:
        return layers
    return [(keys[list(rows)], values[list(rows)]) for keys, values in layers]


def _sampled(
    temperature: float | int,
    top_p: float | int,
    generators: Mapping[int, torch.Generator],
    logits: Float[Tensor, "batch d_vocab"],
    rows: Sequence[int],
) -> Choice:
    """The next token of each row, which draws from its own generator."""
    return Choice(_choose(logits, temperature, top_p, [generators[row] for row in rows]))


def _choose(
    logits: Float[Tensor, "batch d_vocab"],
    temperature: float | int,
    top_p: float | int,
    generators: Sequence[torch.Generator],
) -> Int[Tensor, " batch"]:
    """The next token of each row."""
    if temperature == 0:
        return logits.argmax(-1)
    # a row of NaN, from which nothing can be drawn, is refused with the token that it gets here
    probabilities = (in_float64(logits) / temperature).softmax(-1).cpu().nan_to_num(nan=1.0)
    ordered, order = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens: the first is always included
    ordered = ordered.masked_fill(before >= top_p, 0)
    picks = [torch.multinomial(row, 1, generator=g) for row, g in zip(ordered, generators, strict=True)]
    return order.gather(1, torch.stack(picks))[:, 0].to(logits.device)
