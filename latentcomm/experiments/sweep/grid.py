"""The layer sweep: every cell of the k x j grid, at the cost of one-token steps over a cached prefix."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.budget import budget
from latentcomm._core.linalg import mapped
from latentcomm._core.records import Records, tracked
from latentcomm.experiments.evaluation import keyed
from latentcomm.fusion import Fusion, fuse
from latentcomm.hooks.capture import capture_positions
from latentcomm.hooks.graft import LAST, Graft
from latentcomm.hooks.shared_prefix import TOLERANCE, Prefix, can_pack, columns_per_pass, read_prefix, run_staircase
from latentcomm.models import Model, check_pair, fingerprints, in_halves, not_finite
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

UNEMBED_BYTES = 256 * 2**20
"""Bytes of full-vocabulary logits in memory at once."""

Cell = tuple[int, int]
"""Read layer k of the sender, write layer j of the receiver, both counted from 0, both resid_post."""


@dataclass(frozen=True, eq=False)
class LayerSweep:
    """The receiver's output in every cell of the grid.

    Attributes:
        read_layers, write_layers: the axes, counted from 0, both resid_post.
        messages: the sender's state at each read layer, before any alignment.
        logits: of each choice's first token, or None without choices.
        top_token: the receiver's most likely next token; None when it was not requested.
        choices: the answer strings of each item, or None.
    """

    read_layers: tuple[int, ...]
    write_layers: tuple[int, ...]
    messages: Float[Tensor, "item read d_sender"]
    logits: Float[Tensor, "item read write choice"] | None
    top_token: Int[Tensor, "item read write"] | None
    choices: tuple[tuple[str, ...], ...] | None
    first_token: Callable[[str], int] = field(repr=False)

    def accuracy(self, answers: Sequence[str | Sequence[str]]) -> Float[Tensor, "read write"]:
        """The share of items answered right in each cell.

        An answer is one accepted string an item, or several. With choices, the highest-scored choice must be one of
        them; without, the top token must be the first token of one of them.

        Raises:
            ValueError: another number of answers than items, or none of an item's answers among its choices.
        """
        return self.correct(answers).double().mean(0)

    def correct(self, answers: Sequence[str | Sequence[str]]) -> Float[Tensor, "item read write"]:
        """1 where the item was answered right in the cell, 0 elsewhere; see `accuracy`."""
        if self.logits is None or self.choices is None:
            return self.top_token_correct(answers)
        accepted = _accepted(answers, len(self.logits))
        right = torch.zeros(self.logits.shape[0], self.logits.shape[-1], dtype=torch.bool)
        for item, (choices, names) in enumerate(zip(self.choices, accepted, strict=True)):
            right[item] = torch.tensor([choice in names for choice in choices])
            if not right[item].any():
                raise ValueError(f"item {item} has the answers {sorted(names)}, none of which is among its choices")
        picked = self.logits.argmax(-1)
        return right[:, None, None].expand(*self.logits.shape).gather(-1, picked[..., None])[..., 0].double()

    def top_token_correct(self, answers: Sequence[str | Sequence[str]]) -> Float[Tensor, "item read write"]:
        """1 where the receiver's top token is the first token of an accepted answer: free, but of one token.

        Raises:
            ValueError: the sweep ran with `top_token=False`.
        """
        if self.top_token is None:
            raise ValueError("this sweep saved no top tokens; run it with top_token=True")
        accepted = _accepted(answers, len(self.top_token))
        rows = [
            torch.isin(tokens, torch.tensor(sorted({self.first_token(name) for name in names})))
            for tokens, names in zip(self.top_token, accepted, strict=True)
        ]
        return torch.stack(rows).double()


def sweep_layers(
    sender: Model,
    receiver: Model,
    sender_prompts: Prompts,
    receiver_prompts: Prompts,
    *,
    fusion: Fusion | Mapping[Cell, Fusion],
    alignment: Callable[..., Any] | Mapping[Cell, Callable[..., Any]] | None = None,
    read_layers: Sequence[int] | None = None,
    write_layers: Sequence[int] | None = None,
    choices: Sequence[Sequence[str]] | None = None,
    top_token: bool = True,
    read_position: int = LAST,
    write_position: int | Sequence[int] = LAST,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> LayerSweep:
    """Graft the sender's state after block k into the receiver after block j, for every item and every (k, j).

    The sender runs once and stops at its deepest read layer. The receiver's prompt is read once up to the write
    position (once for all items with the same prompt); every cell is then a row of a pass over the remaining tokens,
    and joins it at its own write layer. Only the choices' columns of the unembedding are computed, and all of it for
    `top_token`. Equal to a `run_with_hooks` of the whole prompt in each cell; every first pass over a prompt is checked
    against a plain run, and the sweep's first cell against a grafted one.

    Args:
        sender_prompts, receiver_prompts: one of each an item.
        fusion: combines the own and the incoming state; a mapping gives each cell (k, j) its own.
        alignment: maps the sender's rows before the fusion; a mapping gives each cell its own.
        read_layers, write_layers: all by default.
        choices: a list of answer strings for each item, taken literally (" Greece" has its space); the same number
            each.
        top_token: whether to record the most likely next token, which costs a full unembedding of every row.
        read_position, write_position: the last token by default; from the front when not negative. Write
            positions may be a list, one an item.
        checkpoint: a folder in which finished passes are saved, so that the same call resumes after an interruption.

    Source: Ramesh & Li 2025, arXiv:2501.14082 (the grid); the staircase of rows is this package's.

    Raises:
        ValueError: widths that differ without a rule, a layer outside a model, a processed model with a raw one,
            numbers of prompts or choices that differ, a choice without a first token of its own, a message that is not
            finite, a fusion or alignment without stable content where there is a checkpoint.
        RuntimeError: the shared passes differ from a plain run; the disk is full (finished passes are saved).
    """
    check_pair(sender, receiver)
    n_items = len(receiver_prompts)
    if len(sender_prompts) != n_items:
        raise ValueError(
            f"{len(sender_prompts)} sender prompts for {n_items} receiver prompts; give one of each an item"
        )
    reads = _layers(sender, read_layers)
    writes = _layers(receiver, write_layers)
    columns = _choice_tokens(receiver, choices, n_items)
    if columns is None and not top_token:
        raise ValueError("nothing to record: give choices, or leave top_token on")
    plan = _Plan(receiver, reads, writes, fusion, alignment, columns, top_token)
    plan.check_widths(sender)
    positions = _write_positions(receiver_prompts, write_position)

    groups: dict[tuple[int, ...], list[int]] = {}
    for item in range(n_items):
        groups.setdefault((positions[item], *receiver_prompts.ids(item).tolist()), []).append(item)
    passes = [
        (items, messages)
        for items in groups.values()
        for messages in _split(receiver, items, plan, positions[items[0]], int(receiver_prompts.lengths[items[0]]))
    ]
    settings = [positions, read_position, passes, *([] if budget() is None else [budget()])]
    records = _records(checkpoint, sender, receiver, sender_prompts, receiver_prompts, plan, settings)
    states = _messages(sender, sender_prompts, reads, read_position)
    run_pass = _Passes(plan, states, receiver_prompts, positions)
    shape = (n_items, len(reads), len(writes))
    logits = None if columns is None else torch.zeros(*shape, columns.shape[1], dtype=receiver.dtype)
    tokens = torch.zeros(shape, dtype=torch.long) if top_token else None
    pieces = [(records, f"pass-{number:06d}") for number in range(len(passes))]
    for number in tracked(pieces, "layer sweep", shown=progress):
        items, messages = passes[number]
        part = records.tensors(pieces[number][1], partial(run_pass, items[0], messages))
        for row, (item, read) in enumerate(messages):
            if logits is not None:
                logits[item, read] = part["logits"][:, row]
            if tokens is not None:
                tokens[item, read] = part["top_token"][:, row]
    named = None if choices is None else tuple(tuple(row) for row in choices)
    return LayerSweep(reads, writes, states, logits, tokens, named, receiver.first_token)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The settings of a pass, the same for every pass of a sweep."""

    receiver: Model
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    fusion: Fusion | Mapping[Cell, Fusion]
    alignment: Callable[..., Any] | Mapping[Cell, Callable[..., Any]] | None
    columns: Int[Tensor, "item choice"] | None
    top_token: bool

    def fused(self, read: int, write: int, own: Float[Tensor, "row d_receiver"], incoming: Tensor) -> Tensor:
        """The states of one cell, from messages of the sender's width."""
        cell = (read, write)
        alignment = _of_cell(self.alignment, cell, "alignment")
        fusion = _of_cell(self.fusion, cell, "fusion")
        incoming = incoming if alignment is None else mapped(alignment, incoming)
        return fuse(fusion, own, incoming, at=Site(write).hook_name)

    def check_widths(self, sender: Model) -> None:
        """Refuse a pair of unequal widths without a rule for them, before anything runs."""
        own = torch.linspace(1, 2, self.receiver.d_model, dtype=self.receiver.dtype, device=self.receiver.device)[None]
        incoming = torch.linspace(2, 1, sender.d_model, dtype=self.receiver.dtype, device=self.receiver.device)[None]
        for read in self.reads:
            for write in self.writes:
                self.fused(read, write, own, incoming)
            if not isinstance(self.fusion, Mapping) and not isinstance(self.alignment, Mapping):
                return

    def run(self, prefix: Prefix, messages: Sequence[tuple[int, int]], states: Tensor) -> dict[str, Tensor]:
        """The receiver's output for some messages (item, index of the read layer) at every write layer."""
        model = self.receiver
        items = torch.tensor([item for item, _ in messages])
        reads = torch.tensor([read for _, read in messages])
        sent = incoming = states[items, reads].to(model.dtype)
        if self.alignment is not None and not isinstance(self.alignment, Mapping):
            incoming = mapped(self.alignment, incoming)
        shared = None if isinstance(self.fusion, Mapping) or isinstance(self.alignment, Mapping) else self.fusion

        def join(layer: int, own: Tensor) -> Tensor:
            rows = own.expand(len(messages), -1)
            if shared is None:
                return per_cell(layer, rows)
            return fuse(shared, rows, incoming.to(own.device), at=Site(layer).hook_name)

        def per_cell(layer: int, rows: Tensor) -> Tensor:
            out = torch.empty_like(rows)
            for index, read in enumerate(self.reads):
                chosen = (reads == index).nonzero()[:, 0].to(rows.device)
                if len(chosen):
                    out[chosen] = self.fused(read, layer, rows[chosen], sent.to(rows.device)[chosen])
            return out

        packed = can_pack(model, prefix.n_cached, prefix.tail.shape[1])
        final = run_staircase(model, prefix, self.writes, join, n_rows=len(messages), packed=packed)
        normed = model.final_norm(rearrange(final, "write row d_model -> (write row) d_model"))
        part: dict[str, Tensor] = {}
        is_finite = torch.ones((), dtype=torch.bool)
        if self.columns is not None:
            part["logits"] = self._choice_logits(normed, self.columns[items]).cpu()
            is_finite &= part["logits"].amax(-1).isfinite().all()
        if self.top_token:
            step = max(1, UNEMBED_BYTES // (4 * int(model.hooked.cfg.d_vocab)))
            tops = [_top(model.unembed(rows)) for rows in normed.split(step)]
            tokens, largest = (torch.cat(parts).cpu() for parts in zip(*tops, strict=True))
            part["top_token"] = rearrange(tokens, "(write row) -> write row", row=len(messages))
            is_finite &= largest.isfinite().all()
        if not is_finite:  # the states that are unembedded are finite
            raise not_finite(model, lambda: None, what=f"the logits of {model.name} after a graft are")
        return part

    def _choice_logits(
        self, normed: Float[Tensor, "cell d_model"], tokens: Int[Tensor, "row choice"]
    ) -> Float[Tensor, "write row choice"]:
        """Logits of each row's own item's choices."""
        columns, index = tokens.unique(return_inverse=True)
        logits = self.receiver.unembed_columns(normed, columns)
        if cap := self.receiver.softcap:
            logits = cap * torch.tanh(logits / cap)
        logits = rearrange(logits, "(write row) column -> write row column", row=len(tokens))
        return logits.gather(2, index.to(logits.device)[None].expand(len(logits), -1, -1))

    def check_cell(self, prefix: Prefix, message: tuple[int, int], states: Tensor) -> None:
        """Compare the first cell with a grafted run of the prompt's remaining tokens.

        Raises:
            RuntimeError: they differ.
        """
        model, (item, read), write = self.receiver, message, self.writes[0]
        part = replace(self, writes=(write,)).run(prefix, [message], states)

        def of_cell(own: Tensor, incoming: Tensor) -> Tensor:
            return self.fused(self.reads[read], write, own[0], incoming[0])[None]

        vector = states[item, read].to(model.dtype)
        hooks = Graft(Site(write), 0, vector, of_cell).fwd_hooks()  # the tail begins at the write position
        cache = model.cache_from_layers(prefix.layers) if prefix.n_cached else model.new_cache(1)
        plain = model.forward(prefix.tail, hooks=hooks, cache=cache, last_only=True)[0, -1].cpu()
        spread = TOLERANCE[model.rounding] * float(plain.double().std())
        if self.columns is not None:
            off = float((part["logits"][0, 0] - plain[self.columns[item]]).abs().max())
        else:
            off = float(plain.max() - plain[part["top_token"][0, 0]])
        if not off <= spread:
            raise RuntimeError(
                f"the cell k={self.reads[read]}, j={write} differs from a grafted run of its own by {off:.1e} "
                f"in a logit; the architecture of {model.name} needs more than the sweep knows of it"
            )


def _top(logits: Float[Tensor, "row d_vocab"]) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """The most likely token of each row, and its logit, which is not finite where there are NaN or infinity."""
    top = logits.argmax(-1)
    return top, logits.gather(-1, top[:, None])[:, 0]


def _of_cell(rule: Any, cell: Cell, what: str) -> Any:
    if not isinstance(rule, Mapping):
        return rule
    if cell not in rule:
        raise ValueError(f"there is no {what} for the cell k={cell[0]}, j={cell[1]}")
    return rule[cell]


def _layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"layers {list(chosen)} must be at least one, each once")
    for layer in chosen:
        model.check_site(Site(layer))
    return chosen


def _messages(
    sender: Model, prompts: Prompts, reads: Sequence[int], position: int
) -> Float[Tensor, "item read d_sender"]:
    """The sender's states at every read layer."""
    again = partial(capture_positions, sender, prompts, [Site(layer) for layer in reads], position)
    at = again()
    states = torch.stack([at[Site(layer)] for layer in reads], 1)
    if not torch.isfinite(states).all():
        item, read = (~torch.isfinite(states)).nonzero()[0].tolist()[:2]
        raise not_finite(sender, again, what=f"the message of item {item} at layer {reads[read]} of {sender.name} is")
    return states


def _write_positions(prompts: Prompts, position: int | Sequence[int]) -> list[int]:
    wanted = [position] * len(prompts) if isinstance(position, int) else list(position)
    if len(wanted) != len(prompts):
        raise ValueError(f"{len(wanted)} write positions for {len(prompts)} prompts; give one each, or one for all")
    out = []
    for row, (at, length) in enumerate(zip(wanted, prompts.lengths.tolist(), strict=True)):
        if not -length <= at < length:
            raise ValueError(f"write position {at} is outside prompt {row}, which has {length} tokens")
        out.append(at % length)
    return out


def _choice_tokens(
    model: Model, choices: Sequence[Sequence[str]] | None, n_items: int
) -> Int[Tensor, "item choice"] | None:
    """The first token of every choice; refuses choices with the same first token."""
    if choices is None:
        return None
    if len(choices) != n_items:
        raise ValueError(f"{len(choices)} lists of choices for {n_items} items; give one list an item")
    if len({len(row) for row in choices}) != 1 or len(choices[0]) < 2:
        raise ValueError(
            f"items have {sorted({len(row) for row in choices})} choices; give each the same number, at least 2"
        )
    rows = []
    for item, names in enumerate(choices):
        first_tokens = [model.first_token(name) for name in names]
        for index, token in enumerate(first_tokens):
            if token in first_tokens[:index]:
                other = names[first_tokens.index(token)]
                raise ValueError(
                    f"the choices {other!r} and {names[index]!r} of item {item} begin with the same token in "
                    f"{model.name}; choice scoring reads the first token alone, so drop one of them"
                )
        rows.append(first_tokens)
    return torch.tensor(rows)


def _split(model: Model, items: Sequence[int], plan: _Plan, position: int, length: int) -> list[list[tuple[int, int]]]:
    """The messages (item, index of the read layer) of one receiver prompt, pass by pass."""
    messages = [(item, read) for item in items for read in range(len(plan.reads))]
    step = columns_per_pass(model, position, length - position, len(plan.writes))
    return [messages[start : start + step] for start in range(0, len(messages), step)]


class _Passes:
    """Runs the passes in order, and reuses the prefix of the last one while the prompt is the same."""

    def __init__(self, plan: _Plan, states: Tensor, prompts: Prompts, positions: Sequence[int]) -> None:
        self.plan, self.states, self.prompts, self.positions = plan, states, prompts, positions
        self.prefix_of, self.prefix = -1, None

    def __call__(self, item: int, messages: list[tuple[int, int]]) -> dict[str, Tensor]:
        """The results of the messages written into this item's prompt; the very first cell is checked."""
        is_first = self.prefix is None
        if self.prefix is None or self.prefix_of != item:
            self.prefix = read_prefix(self.plan.receiver, self.prompts.ids(item), self.positions[item])
            self.prefix_of = item
        run = partial(self.plan.run, self.prefix, states=self.states)
        halves = in_halves(run, messages, "a pass of the sweep")
        part = (
            halves[0]
            if len(halves) == 1
            else {name: torch.cat([each[name] for each in halves], 1) for name in halves[0]}
        )
        if is_first:
            self.plan.check_cell(self.prefix, messages[0], self.states)
        return part


def _records(
    folder: str | os.PathLike[str] | None,
    sender: Model,
    receiver: Model,
    sender_prompts: Prompts,
    receiver_prompts: Prompts,
    plan: _Plan,
    settings: list[Any],
) -> Records:
    """The saved passes of this sweep."""
    if folder is None:
        return Records(None)
    if sender.has_hooks or receiver.has_hooks:
        raise ValueError(
            "a sweep of a model with hooks attached cannot be saved, since its checkpoint's name does not cover "
            "hooks; remove them, or leave the checkpoint out"
        )
    with keyed(fusion=plan.fusion, alignment=plan.alignment):
        return Records.of(
            folder,
            "sweep",
            2,
            [*fingerprints(sender, receiver), str(receiver.dtype)],
            *[each.attention for each in (sender, receiver) if each.attention != "eager"],
            [sender_prompts.ids(row) for row in range(len(sender_prompts))],
            [receiver_prompts.ids(row) for row in range(len(receiver_prompts))],
            [plan.reads, plan.writes, plan.fusion, plan.alignment, plan.columns, plan.top_token],
            settings,
        )


def _accepted(answers: Sequence[str | Sequence[str]], n_items: int) -> list[set[str]]:
    if len(answers) != n_items:
        raise ValueError(f"{len(answers)} answers for {n_items} items; give one an item")
    return [{answer} if isinstance(answer, str) else set(answer) for answer in answers]
