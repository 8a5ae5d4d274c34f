"""Evaluate a channel on a task: one judged trial with its cost for each item and condition, controls included."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from latentcomm._core.budget import at_most, budget
from latentcomm._core.files import digest, expanded
from latentcomm._core.names import check_name
from latentcomm._core.records import Records, ordered, tracked
from latentcomm.channels.base import Channel, Deciding, Sharing, label, receiver_prompts, sender_prompts
from latentcomm.channels.message import Message, join
from latentcomm.experiments._sent import SENT, check_sent, sending_of
from latentcomm.experiments.controls import (
    CONTROLS,
    FILLER,
    SELF,
    SHUFFLED,
    USUAL,
    Sending,
    applies,
    deranged,
    true_message,
    with_filler_texts,
)
from latentcomm.experiments.cost import flops
from latentcomm.experiments.folder import note_large
from latentcomm.hooks.decode import Known, decode
from latentcomm.hooks.shared_prefix import numbers_cached
from latentcomm.models import Model, check_pair, recorded_passes
from latentcomm.models.chat import PINNED_DATE
from latentcomm.models.in_turn import ModelInTurn
from latentcomm.tasks.base import Item, Task, draw_choices
from latentcomm.tasks.judging import Judge

MESSAGE = "message"
"""The condition in which the true message is sent."""
ITEMS_AT_ONCE = 32
"""Items between two writes of a checkpoint at most: what an interrupted run loses."""
TRIALS = 2
"""The version of what a trial states and of how its prompt is read."""
METRICS = ("free", "choices")
"""Free: the reply is judged right. Choices: the right choice has the highest logit."""


@dataclass(frozen=True)
class Trial:
    """One item under one condition.

    Attributes:
        item, label, channel, condition: the item's id, its canonical answer, the channel, and which message was sent.
        reply, free: the reply (after a vote, where the channel holds one), and whether it is judged right.
        parsed: whether the judge found an answer in the reply; a reply without one is not right, and counted apart.
        pick, choices, n_choices: the highest-scored choice, whether it is right, and the number of choices; "", None
            and 0 where the task has no choices.
        message_bytes, reply_tokens: the sizes of the message and of the reply.
        sender_flops, receiver_flops, seconds: the cost of sending and receiving as run, the mean of the items that ran
            together. Under the self control the receiver sends. Seconds are measured, and equality of trials ignores
            them. What all conditions share counts for each.
        follows_free, follows_choices: with the message of another item, whether the reply gives the answer of that
            item, and whether the pick is that answer; None under other conditions.
        chance_free, chance_choices: the share of all items of other answers whose answer it would be.
    """

    item: str
    label: str
    channel: str
    condition: str
    reply: str
    free: bool
    pick: str
    choices: bool | None
    n_choices: int
    parsed: bool = True
    message_bytes: int = 0
    reply_tokens: int = 0
    sender_flops: float = 0.0
    receiver_flops: float = 0.0
    seconds: float = field(default=0.0, compare=False)
    follows_free: bool | None = None
    follows_choices: bool | None = None
    chance_free: float | None = None
    chance_choices: float | None = None


def evaluate(
    channel: Channel,
    sender: Model | Message,
    receiver: Model,
    task: Task,
    *,
    n: int | None = None,
    seed: int = 0,
    controls: Sequence[str] = USUAL,
    reply_tokens: int | None = None,
    temperature: float | int = 0.0,
    top_p: float | int = 1.0,
    checkpoint: str | os.PathLike[str] | None = None,
    told: MutableMapping[str, tuple[Message, "Cost"]] | None = None,
    progress: bool = False,
) -> list[Trial]:
    """The trials of a channel on n items of a task (all by default), under its true message and under each control.

    A channel without a message (silent, skyline) has no controls and is run once; controls that do not apply to a
    message are left out (a text has no direction to randomise), and so is the self control where a fusion takes the
    sender's width alone. The same seed gives the same items, choices, shuffles and random vectors. `reply_tokens`
    overrides the task's reply length; replies are greedy unless there is a temperature. With `checkpoint`, finished
    items are saved and not run again. Channels that send the same message (`channels.base.Sharing`) share it through
    the checkpoint, and through `told`, a dict that is passed to the evaluation of each with the same two models.

    A message of `send` in place of the sender gives the trials that the sender would, all controls included, and has
    the same records in a checkpoint; only the filler, which the sender must read, is left out.

    Raises:
        ValueError: an unknown control, a processed model with a raw one, a message of other items or of another number
            than the task's, of another channel or without a sender, or what the task or the channel refuses.
    """
    for name in controls:
        check_name("control", name, CONTROLS)
    task = task if n is None else task.take(n, seed=seed)
    if isinstance(sender, Message):
        with keyed(channel=channel, task=task):
            check_sent(sender, channel, receiver, task, print_of)
    else:
        check_pair(sender, receiver)
    decoding = (task.reply_tokens if reply_tokens is None else reply_tokens, temperature, top_p)
    work = _Work.of(channel, sender, receiver, task, seed, controls, decoding, checkpoint, {} if told is None else told)
    for folder in work.folders if checkpoint is not None else ():
        note_large(folder)
    names = work.conditions.values("names", partial(_conditions, work.messages, work.controls))
    message = lru_cache(work.messages.under)  # made where a trial is not saved yet, and once
    parts = [(name, work.trials(name), rows) for rows in work.messages.chunks for name in names]
    pieces = [(records, f"{rows.start:05d}") for _, records, rows in parts]
    found: dict[str, list[Trial]] = {name: [] for name in names}
    trials: dict[int, list[Trial]] = {}
    known: dict[int, dict[str, Known]] = {}
    shown = progress and len(pieces) > 1
    for number in tracked(pieces, channel.name, needed=False, together=len(names), shown=shown):
        condition, records, rows = parts[number]
        if rows.start not in known:  # prompts of these items, whose conditions come next
            known = {rows.start: {}}
        sent, shared = partial(message, condition), known[rows.start]
        run = partial(_trials, channel, receiver, task, sent, rows, work.choices, condition, *decoding, seed, shared)
        trials[number] = [Trial(**each) for each in records.values(pieces[number][1], run)]
    for number in sorted(trials):
        found[parts[number][0]] += trials[number]
    return [trial for name in names for trial in found[name]]


def send(
    channel: Channel,
    sender: Model,
    task: Task,
    *,
    receiver: Model | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Message:
    """The message of a channel for n items of a task (all by default), which `evaluate` takes in place of the sender.

    It states its sender, channel, task and cost, so that it may be saved and evaluated where the sender is not in
    memory. Without `receiver` it is for any receiver; a channel that sends to one alone needs it.

    Raises:
        ValueError: a processed model with a raw one, a channel or a task without stable content, hooks that are
            attached to a model, or what the channel refuses.
    """
    task = task if n is None else task.take(n, seed=seed)
    if receiver is not None:
        check_pair(sender, receiver)
    to = None if receiver is None else print_of(receiver)
    with keyed(channel=channel, task=task):
        facts = sending_of(channel, task, by=print_of(sender), to=to, processed=sender.processed)
    message, cost = _sent(
        partial(channel.send, sender, receiver=receiver), task, Records(None), chunks(len(task.items), ITEMS_AT_ONCE)
    )
    made_by = {name: value for name, value in message.made_by.items() if name not in ("flops", "seconds")}
    return replace(message, made_by=made_by | {SENT: facts | {"cost": asdict(cost)}})


def send_first(
    channels: Sequence[Channel],
    sender: Model,
    receiver: Model,
    task: Task,
    *,
    seed: int = 0,
    controls: Mapping[str, Sequence[str]] | Sequence[str] = USUAL,
    checkpoint: str | os.PathLike[str] | None,
) -> None:
    """Of models that share one place in memory: save what the sender sends, so that the receiver then runs alone.

    Of channels that have all their trials in the checkpoint nothing is sent. `controls` are those of `evaluate`, of
    each channel by name or of all.
    """
    if not isinstance(sender, ModelInTurn) or checkpoint is None or sender is receiver:
        return
    for channel in channels:
        mine = controls[channel.name] if isinstance(controls, Mapping) else controls
        options: dict[str, Any] = {"seed": seed, "controls": mine, "checkpoint": checkpoint}
        if not n_evaluated([channel], sender, receiver, task, **options):
            decoding = (task.reply_tokens, 0.0, 1.0)
            work = _Work.of(channel, sender, receiver, task, seed, mine, decoding, checkpoint, {})
            for folder in work.folders:
                note_large(folder)
            message, _ = work.messages.sent
            if FILLER in work.controls and applies(FILLER, channel, receiver, message):
                work.messages.under(FILLER)


def n_evaluated(
    channels: Sequence[Channel],
    sender: Model,
    receiver: Model,
    task: Task,
    *,
    seed: int = 0,
    controls: Sequence[str] = USUAL,
    reply_tokens: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> int:
    """How many of these channels have all their trials in a checkpoint, for `evaluate` with the same options."""
    if checkpoint is None or not expanded(checkpoint).is_dir():
        return 0
    decoding = (task.reply_tokens if reply_tokens is None else reply_tokens, 0.0, 1.0)
    works = [_Work.of(each, sender, receiver, task, seed, controls, decoding, checkpoint, {}) for each in channels]
    return sum(
        (found := work.conditions.found("names")) is not None and all(work.is_saved(name) for name in found[0])
        for work in works
    )


@dataclass(frozen=True)
class Cost:
    """The mean cost of an item's message."""

    flops: float
    seconds: float


@dataclass(frozen=True, eq=False)
class _Messages:
    """The messages of a channel on a task, made when they are first needed.

    Attributes:
        sender: a model, or the message that one has sent.
        prints: what both models are saved under, None without a checkpoint.
        told: the messages sent so far, by what was sent; channels that send the same share them.
    """

    channel: Channel
    sender: Model | Message
    receiver: Model
    task: Task
    seed: int
    checkpoint: str | os.PathLike[str] | None
    prints: list[list[Any]] | None
    told: MutableMapping[str, tuple[Message, Cost]]

    def under(self, condition: str) -> tuple[Message, Cost]:
        """The message of a condition: the true one, or what a control makes of it."""
        if condition == SELF:  # the receiver runs to make it: it is saved and has a cost of its own
            return _sent(partial(self.channel.own, self.receiver), self.task, self.own, self.chunks)
        if condition == FILLER:
            return self._filler()
        message, cost = self.sent
        make = true_message if condition == MESSAGE else CONTROLS[condition]
        sender = None if isinstance(self.sender, Message) else self.sender
        return make(Sending(self.channel, sender, self.receiver, self.task, message, self.seed)), cost

    @cached_property
    def sent(self) -> tuple[Message, Cost]:
        """The message that the sender sends, or has sent."""
        if isinstance(self.sender, Message):
            return self.sender, Cost(**self.sender.made_by[SENT]["cost"])
        return self._said("message", self.task)

    def _said(self, kind: str, task: Task) -> tuple[Message, Cost]:
        """What the sender sends for the texts of a task, once for all channels that share it."""
        if isinstance(self.sender, Message):
            raise TypeError("a message that was sent has no sender to send again")
        send = partial(self.channel.send, self.sender, receiver=self.receiver)
        key, records = self._shared_key(task), self.sent_records(kind, task)
        if key is None:
            return _sent(send, task, records, self.chunks)
        if key not in self.told:
            n = len(task.items)
            self.told[key] = _sent(
                send, task, records, [rows[: n - rows.start] for rows in self.chunks if rows.start < n]
            )
        return self.told[key]

    def _filler(self) -> tuple[Message, Cost]:
        """What the sender sends about nothing; a channel whose message its text decides reads each text once."""
        task, rows = self._filler_task
        message, cost = self._said("filler", task)
        share = len(task.items) / len(rows)
        return message.select(rows).addressed(self.task), Cost(cost.flops * share, cost.seconds * share)

    @cached_property
    def _filler_task(self) -> tuple[Task, list[int]]:
        """The items whose fillers are sent, and the row of each item's filler among them."""
        task = with_filler_texts(self.task)
        if not isinstance(self.channel, Sharing):
            return task, list(range(len(task.items)))
        first: dict[Any, int] = {}
        rows = [first.setdefault((item.sender, item.more_senders), len(first)) for item in task.items]
        return replace(task, items=tuple(task.items[rows.index(number)] for number in range(len(first)))), rows

    @property
    def fillers(self) -> Records:
        """Where the fillers are saved."""
        return self.sent_records("filler", self._filler_task[0])

    @property
    def own(self) -> Records:
        """Where the receiver's own message is saved."""
        return self.records("own")

    @property
    def true(self) -> Records:
        """Where the message that the sender sends is saved."""
        return self.sent_records("message", self.task)

    def sent_records(self, kind: str, task: Task) -> Records:
        """Where what the sender sends for the texts of a task is saved."""
        key = self._shared_key(task)
        if key is None:
            return self.records(kind, *([] if task is self.task else [task]))
        return Records.of(self.checkpoint, kind, 1, self.prints, key, self._plan)

    def _shared_key(self, task: Task) -> str | None:
        """The key of a message that channels may share."""
        if not isinstance(self.channel, Sharing):
            return None
        with keyed(message_key=self.channel.message_key, task=task):
            return digest("said", self.channel.message_key, task, self.seed)

    def records(self, kind: str, *decisive: Any) -> Records:
        """The saved pieces of a kind."""
        return Records.of(self.checkpoint, kind, 1, self._inputs, *decisive)

    @cached_property
    def chunks(self) -> list[range]:
        """The items that run together and are saved in one piece: of a stated budget as many as it holds.

        An item is counted with the keys and values of both prompts, as where one is sent, and of the task's reply.
        """
        if budget() is None:
            return chunks(len(self.task.items), ITEMS_AT_ONCE)
        prompts, models = [receiver_prompts(self.receiver, self.task)], [self.receiver]
        if isinstance(self.sender, Model):
            prompts, models = [sender_prompts(self.sender, self.task), *prompts], [self.sender, *models]
        n_tokens = sum(int(each.lengths.max()) for each in prompts) + self.task.reply_tokens
        of_token = max(numbers_cached(each) * torch.finfo(each.dtype).bits // 8 for each in models)
        return chunks(len(self.task.items), at_most(ITEMS_AT_ONCE, n_tokens * of_token))

    @property
    def _plan(self) -> Any:
        """What decides which items run together, and how their passes are split."""
        return ITEMS_AT_ONCE if budget() is None else [len(self.chunks[0]), budget()]

    @cached_property
    def _inputs(self) -> str | None:
        if self.checkpoint is None:
            return None
        with keyed(channel=self.channel, task=self.task):
            return digest(self.prints, self.channel, self.task, self.seed, self._plan)


@dataclass(frozen=True, eq=False)
class _Work:
    """An evaluation, and where its trials are saved."""

    messages: _Messages
    choices: Sequence[tuple[str, ...]]
    controls: Sequence[str]
    decoding: tuple[int, float | int, float | int]

    @classmethod
    def of(
        cls,
        channel: Channel,
        sender: Model | Message,
        receiver: Model,
        task: Task,
        seed: int,
        controls: Sequence[str],
        decoding: tuple[int, float | int, float | int],
        checkpoint: str | os.PathLike[str] | None,
        told: MutableMapping[str, tuple[Message, Cost]],
    ) -> "_Work":
        """The evaluation of a channel."""
        choices = draw_choices(task, receiver.first_token, seed=seed) if task.has_choices else [()] * len(task.items)
        prints = None
        if checkpoint is not None:
            by = sender.made_by[SENT]["by"] if isinstance(sender, Message) else print_of(sender)
            prints = [by, print_of(receiver)]
        messages = _Messages(channel, sender, receiver, task, seed, checkpoint, prints, told)
        if isinstance(sender, Message):  # a filler must be read by the sender
            controls = [name for name in controls if name != FILLER]
        return cls(messages, choices, list(controls), decoding)

    @property
    def folders(self) -> list[Path]:
        """Where messages are saved: finished trials load without them."""
        records = [self.messages.true, self.messages.own]
        records += [self.messages.fillers] if FILLER in self.controls else []
        return [each.folder for each in records if each.folder is not None]

    @property
    def conditions(self) -> Records:
        """The record of the conditions that apply."""
        return self.messages.records("conditions", self.choices, self.controls, *self.decoding)

    def trials(self, name: str) -> Records:
        """The records of the trials of a condition."""
        return self.messages.records("trials", TRIALS, self.choices, name, *self.decoding)

    def is_saved(self, name: str) -> bool:
        """Whether all trials of a condition are there."""
        parts = [f"{rows.start:05d}" for rows in self.messages.chunks]
        return self.trials(name).n_saved(parts) == len(parts)


def _conditions(messages: _Messages, controls: Sequence[str]) -> list[str]:
    """The true message, and the controls that apply to it."""
    message, _ = messages.sent
    return [MESSAGE, *(name for name in controls if applies(name, messages.channel, messages.receiver, message))]


def chunks(n: int, size: int) -> list[range]:
    """The rows 0 to n - 1 in ranges of `size`, the last one shorter: what runs together and is saved in one piece."""
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def _sent(
    send: Callable[[Task], Message], task: Task, records: Records, chunked: Sequence[range]
) -> tuple[Message, Cost]:
    """The message of all items and its mean cost, computed in parts that are saved."""
    made: dict[int, Message] = {}
    pieces = [(records, f"{rows.start:05d}") for rows in chunked]
    for number in ordered(pieces):
        make = partial(_timed, send, _only(task, chunked[number]))
        made[number] = records.saved(pieces[number][1], make, Message.load)
    parts = [made[number] for number in range(len(pieces))]
    total, seconds = (sum(float(part.made_by[name]) for part in parts) for name in ("flops", "seconds"))
    return join(parts), Cost(total / len(task.items), seconds / len(task.items))


def _timed(send: Callable[[Task], Message], part: Task) -> Message:
    """A message for the items of a task, with its cost in `made_by`."""
    with recorded_passes() as passes:
        start = time.perf_counter()
        message = send(part)
        if message.items is not None:
            message.check_items(part)
        message = message.addressed(part)
        seconds = time.perf_counter() - start
    return replace(message, made_by={**message.made_by, "flops": flops(passes), "seconds": seconds})


def _only(task: Task, rows: Sequence[int]) -> Task:
    return replace(task, items=tuple(task.items[row] for row in rows))


def _trials(
    channel: Channel,
    receiver: Model,
    task: Task,
    sent: Callable[[], tuple[Message, Cost]],
    rows: Sequence[int],
    choices: Sequence[tuple[str, ...]],
    condition: str,
    reply_tokens: int,
    temperature: float | int,
    top_p: float | int,
    seed: int,
    known: MutableMapping[str, Known],
) -> list[dict[str, Any]]:
    """The trials of some items of a condition, as they are saved."""
    message, cost = sent()
    part_task = _only(task, rows)
    message.check_items(task)
    part_message = message.select(list(rows))
    with recorded_passes() as passes:
        start = time.perf_counter()
        entering = channel.receive(receiver, part_task, part_message)
        decoded = decode(
            receiver, entering, max_new_tokens=reply_tokens, temperature=temperature, top_p=top_p, seed=seed,
            first_row=rows[0], known=known,
        )  # fmt: skip
        replies = (
            channel.decide(part_task, part_message, decoded.texts) if isinstance(channel, Deciding) else decoded.texts
        )
        seconds = time.perf_counter() - start
    sizes = part_message.nbytes() or [0] * len(part_task.items)
    sources = deranged(task, seed=seed) if condition == SHUFFLED else None
    answers = Counter((label(each), each.answers, each.choice) for each in task.items)
    trials = []
    for position, (item, reply) in enumerate(zip(part_task.items, replies, strict=True)):
        verdict, options = task.judge(reply, item.answers), choices[rows[position]]
        pick = _best(receiver, options, decoded.first_logits[position]) if options else ""
        source = None if sources is None else task.items[sources[rows[position]]]
        follows = {} if source is None else _follows(task.judge, item, source, answers, reply, pick)
        trials.append(
            Trial(
                item=item.id,
                label=label(item),
                channel=channel.name,
                condition=condition,
                reply=reply,
                free=verdict.is_right,
                pick=pick,
                choices=pick == item.choice if options else None,
                n_choices=len(options),
                parsed=verdict.is_parsed,
                message_bytes=sizes[position],
                reply_tokens=decoded.n_tokens[position],
                sender_flops=cost.flops,
                receiver_flops=flops(passes) / len(part_task.items),
                seconds=cost.seconds + seconds / len(part_task.items),
                **follows,
            )
        )
    return [asdict(trial) for trial in trials]


def _follows(
    judge: Judge, item: Item, source: Item, answers: Counter[tuple[str, tuple[str, ...], str]], reply: str, pick: str
) -> dict[str, Any]:
    """Whether a reply and a pick give the answer of the item whose message came, and how many others' they would.

    `answers` counts the items of the task by their label, accepted answers and choice.
    """
    others = [(accepted, choice, n) for (name, accepted, choice), n in answers.items() if name != label(item)]
    n_others = sum(n for *_, n in others)
    found: dict[str, Any] = {"follows_free": judge(reply, source.answers).is_right}
    if not hasattr(judge, "model"):  # whose every judgement is a pass of a model
        found["chance_free"] = sum(n for accepted, _, n in others if judge(reply, accepted).is_right) / n_others
    if pick:
        found["follows_choices"] = pick == source.choice
        found["chance_choices"] = sum(n for _, choice, n in others if choice == pick) / n_others
    return found


def _best(receiver: Model, options: Sequence[str], logits: torch.Tensor) -> str:
    tokens = torch.tensor([receiver.first_token(option) for option in options], device=logits.device)
    return options[int(logits[tokens].argmax())]


@contextlib.contextmanager
def keyed(**given: Any) -> Iterator[None]:
    """A block in which the key of saved work is made from these arguments, among others.

    Raises:
        ValueError: one of them has no stable content.
    """
    try:
        yield
    except TypeError as error:
        for name, value in given.items():
            try:
                digest(value)
            except TypeError as why:
                raise ValueError(
                    f"{name} cannot be part of a checkpoint's key, since {why.args[0].partition(';')[0]}; make it a "
                    "frozen dataclass of plain values and tensors, or leave the checkpoint out"
                ) from error
        raise


def print_of(model: Model) -> list[Any]:
    """What a model's work is saved under: its weights, and how it reads and ends a text, which is not in them.

    Raises:
        ValueError: hooks are attached to it.
    """
    if model.has_hooks:
        raise ValueError(
            f"work of {model.name} with hooks attached cannot be saved, since the checkpoint's name does not cover "
            "hooks; remove them, or leave the checkpoint out"
        )
    attention = [] if model.attention == "eager" else [model.attention]
    if model.tokenizer is None:
        return [model.fingerprint, *attention]
    template = getattr(model.tokenizer, "chat_template", None)
    pinned = [PINNED_DATE] if "strftime_now" in str(template) else []  # else the prompts of two days differed
    return [model.fingerprint, model.vocabulary, template, sorted(model.stop_ids), *attention, *pinned]
