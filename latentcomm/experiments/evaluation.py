"""Evaluate a channel on a task: one judged trial with its cost for each item and condition, controls included."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from latentcomm._core.files import digest
from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.channels.base import Channel, Deciding, Sharing, label
from latentcomm.channels.message import Message, join
from latentcomm.experiments.controls import CONTROLS, SELF, USUAL, Exchange, applies, true_message
from latentcomm.experiments.cost import flops
from latentcomm.hooks.decode import decode
from latentcomm.models import Model, check_pair, recorded_passes
from latentcomm.tasks.base import Task, draw_choices

MESSAGE = "message"
"""The condition in which the true message is sent."""
ITEMS_AT_ONCE = 32
"""Items between two writes of a checkpoint: what an interrupted run loses at most."""
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
            them.
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


def evaluate(
    channel: Channel,
    sender: Model,
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

    Raises:
        ValueError: an unknown control, a processed model with a raw one, or what the task or the channel refuses.
    """
    check_pair(sender, receiver)
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise ValueError(f"there is no control {unknown[0]!r}; choose among {', '.join(CONTROLS)}")
    task = task if n is None else task.take(n, seed=seed)
    choices = draw_choices(task, receiver.first_token, seed=seed) if task.has_choices else [()] * len(task.items)
    reply_tokens = task.reply_tokens if reply_tokens is None else reply_tokens
    decoding = (reply_tokens, temperature, top_p)
    models = None if checkpoint is None else _checkpoint_fingerprints(sender, receiver)
    inputs = None if checkpoint is None else digest(models, channel, task, seed, ITEMS_AT_ONCE)

    def records(kind: str, *decisive: Any) -> Records:
        return Records.of(checkpoint, kind, 1, inputs, *decisive)

    key = digest("said", channel.said, task, seed) if isinstance(channel, Sharing) else None

    @cache
    def sent() -> tuple[Message, Cost]:
        if key is not None and told is not None and key in told:
            return told[key]
        shared = records("message") if key is None else Records.of(checkpoint, "message", 1, models, key, ITEMS_AT_ONCE)
        result = _sent(lambda part: channel.send(sender, part, receiver=receiver), task, shared)
        if key is not None and told is not None:
            told[key] = result
        return result

    @lru_cache(maxsize=1)  # the conditions run one after another, and a message may be large
    def message_under(name: str) -> tuple[Message, Cost]:
        if name == SELF:  # the receiver runs to make it: it is saved and has a cost of its own
            return _sent(lambda part: channel.own(receiver, part), task, records("own"))
        message, cost = sent()
        made = true_message if name == MESSAGE else CONTROLS[name]
        return made(Exchange(channel, sender, receiver, task, message, seed)), cost

    def conditions() -> list[str]:
        return [MESSAGE, *(name for name in controls if applies(name, channel, receiver, sent()[0]))]

    def trials_of(name: str, rows: range) -> list[dict[str, Any]]:
        message, cost = message_under(name)
        done = _trials(
            channel, receiver, task, message, rows, choices, cost,
            name=name, reply_tokens=reply_tokens, temperature=temperature, top_p=top_p, seed=seed,
        )  # fmt: skip
        return [asdict(trial) for trial in done]

    trials: list[Trial] = []
    names = records("conditions", choices, list(controls), *decoding).values("names", conditions)
    for name in track(names, channel.name, total=len(names), shown=progress and len(names) > 1):
        saved = records("trials", choices, name, *decoding)
        for rows in _chunks(len(task.items)):
            trials += [Trial(**each) for each in saved.values(f"{rows.start:05d}", partial(trials_of, name, rows))]
    return trials


@dataclass(frozen=True)
class Cost:
    """The mean cost of an item's message."""

    flops: float
    seconds: float


def forget_messages(checkpoint: str | os.PathLike[str]) -> None:
    """Delete the messages of a checkpoint; finished evaluations load without them."""
    for folder in Path(checkpoint).glob("*/"):
        if folder.name.startswith(("message-", "own-")):
            shutil.rmtree(folder)


def _chunks(n: int) -> Iterator[range]:
    return (range(first, min(first + ITEMS_AT_ONCE, n)) for first in range(0, n, ITEMS_AT_ONCE))


def _sent(send: Callable[[Task], Message], task: Task, records: Records) -> tuple[Message, Cost]:
    """The message of all items and its mean cost, computed in parts that are saved."""
    parts = []
    for rows in _chunks(len(task.items)):
        make = partial(_timed, send, _only(task, rows))
        parts.append(records.saved(f"{rows.start:05d}", make, Message.load))
    total, seconds = (sum(float(part.made_by[name]) for part in parts) for name in ("flops", "seconds"))
    return join(parts), Cost(total / len(task.items), seconds / len(task.items))


def _timed(send: Callable[[Task], Message], part: Task) -> Message:
    """A message with its cost in `made_by`."""
    with recorded_passes() as passes:
        start = time.perf_counter()
        message = send(part)
        seconds = time.perf_counter() - start
    return replace(message, made_by={**message.made_by, "flops": flops(passes), "seconds": seconds})


def _only(task: Task, rows: Sequence[int]) -> Task:
    return replace(task, items=tuple(task.items[row] for row in rows))


def _trials(
    channel: Channel,
    receiver: Model,
    task: Task,
    message: Message,
    rows: Sequence[int],
    choices: Sequence[tuple[str, ...]],
    sent: Cost,
    *,
    name: str,
    reply_tokens: int,
    temperature: float | int,
    top_p: float | int,
    seed: int,
) -> list[Trial]:
    """The trials of some items of a condition."""
    part_task = _only(task, rows)
    part_message = message if message.is_silent else message.select(list(rows))
    with recorded_passes() as passes:
        start = time.perf_counter()
        entering = channel.receive(receiver, part_task, part_message)
        decoded = decode(
            receiver, entering, max_new_tokens=reply_tokens, temperature=temperature, top_p=top_p, seed=seed,
            first_row=rows[0],
        )  # fmt: skip
        replies = (
            channel.decide(part_task, part_message, decoded.texts) if isinstance(channel, Deciding) else decoded.texts
        )
        seconds = time.perf_counter() - start
    sizes = part_message.nbytes() or [0] * len(part_task.items)
    trials = []
    for position, (item, reply) in enumerate(zip(part_task.items, replies, strict=True)):
        verdict, options = task.judge(reply, item.answers), choices[rows[position]]
        pick = _best(receiver, options, decoded.first_logits[position]) if options else ""
        trials.append(
            Trial(
                item=item.id,
                label=label(item),
                channel=channel.name,
                condition=name,
                reply=reply,
                free=verdict.is_right,
                pick=pick,
                choices=pick == item.choice if options else None,
                n_choices=len(options),
                parsed=verdict.is_parsed,
                message_bytes=sizes[position],
                reply_tokens=decoded.n_tokens[position],
                sender_flops=sent.flops,
                receiver_flops=flops(passes) / len(part_task.items),
                seconds=sent.seconds + seconds / len(part_task.items),
            )
        )
    return trials


def _best(receiver: Model, options: Sequence[str], logits: torch.Tensor) -> str:
    tokens = torch.tensor([receiver.first_token(option) for option in options], device=logits.device)
    return options[int(logits[tokens].argmax())]


def _checkpoint_fingerprints(sender: Model, receiver: Model) -> list[list[Any]]:
    if sender.has_hooks or receiver.has_hooks:
        raise ValueError(
            "trials of a model with hooks attached cannot be saved, since the checkpoint's name does not "
            "cover hooks; remove them, or leave the checkpoint out"
        )
    return [[model.fingerprint, *_reading(model)] for model in (sender, receiver)]


def _reading(model: Model) -> tuple[Any, ...]:
    """How a model reads and ends a text, which is not in its weights."""
    if model.tokenizer is None:
        return ()
    return model.vocabulary, getattr(model.tokenizer, "chat_template", None), sorted(model.stop_ids)
