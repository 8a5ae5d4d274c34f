"""The interface of a hand-off, and what all hand-offs share: their message is an opening."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from latentcomm.channels.base import Channel, receiver_prompts, with_own_texts
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.cascade.openings import opened
from latentcomm.hooks.decode import ReceiverInput
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts
from latentcomm.tasks.base import Task

PASSED = ("ids", "ends", "whole", "ended")
"""The parts of an opening that every hand-off passes: its tokens, and where they and it end. Signals do not pass."""


@dataclass(frozen=True, eq=False)
class Received:
    """The small model's input for some openings, a row each.

    Attributes:
        given: the input that it is run on.
        opening: for each row the opening in the small model's tokens, or None where no text passes.
        multiply_adds: for each row, multiply-adds of the maps.
        drift: for each row, how far the states that enter are from the small model's own: the mean over them of the
            percentile of `DriftReference`, 0.5 for real states and 1 for states unlike any; None without a reference,
            and for zeros, which have no direction.
    """

    given: ReceiverInput
    opening: tuple[tuple[int, ...] | None, ...]
    multiply_adds: tuple[int, ...]
    drift: tuple[float | None, ...]


@runtime_checkable
class HandOff(Channel, Protocol):
    """A channel whose message is an opening; a frozen dataclass that `files.digest` accepts.

    As a channel it is evaluated like any other: `send` generates openings of at most `longest` tokens, `receive` reads
    each to its end, and `decide` puts the opening before the reply (a tokenizer that strips the space before a text, as
    that of Llama 2, loses one there). A cascade generates the openings once, for all hand-offs, numbers of tokens and
    stops, and calls `content` and `enter` instead.
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the large model whose states it needs (-1: the embedding), ascending."""
        ...

    @property
    def needs_cache(self) -> bool:
        """Whether it needs the large model's keys and values."""
        ...

    def check(self, large: Model, small: Model, task: Task) -> None:
        """Refuse two models, or a task, that it cannot connect, before anything is run."""
        ...

    def content(self, openings: Message) -> Message:
        """The message: what passes of openings of `write_openings`, in the small model's space."""
        ...

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The first `ns[i]` tokens, at least 1, of the opening of item i."""
        ...

    def to_itself(self) -> "HandOff | None":
        """The hand-off of the small model's own opening to itself; None where no map was fitted for it."""
        ...

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The opening and its continuation; the opening alone where it was the whole reply."""
        ...


class Opened:
    """What hand-offs share: their openings are generated, read to the end, and put before the reply."""

    @property
    def layers(self) -> tuple[int, ...]:
        """None: no states are needed."""
        return ()

    @property
    def needs_cache(self) -> bool:
        """No: no keys and values are needed."""
        return False

    def carries_own(self: HandOff, receiver: Model) -> bool:  # noqa: ARG002
        """Whether there is a hand-off of the receiver's own opening to itself."""
        return self.to_itself() is not None

    def own(self: HandOff, receiver: Model, task: Task) -> Message:
        """The message of the receiver's own opening, through `to_itself`.

        Raises:
            ValueError: the hand-off has no map for it.
        """
        itself = self.to_itself()
        if itself is None:
            raise ValueError(f"the hand-off {self.name} has no map of the small model's own states; fit one")
        return replace(itself.send(receiver, with_own_texts(task), receiver=receiver), is_own=True)

    def receive(self: HandOff, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's input at the end of each opening."""
        return self.enter(receiver, task, message, _lengths(message)).given

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The text of each opening and its continuation; of one that had ended, or is as long as a reply, its own."""
        texts, parts = opened(message)
        return [
            text if bool(part["ended"]) or len(part["ids"]) >= task.reply_tokens else text + reply
            for text, part, reply in zip(texts, parts, replies, strict=True)
        ]


def sent(hand_off: HandOff, sender: Model, task: Task, receiver: Model | None, longest: int | None) -> Message:
    """The message of every item, from openings that are generated for it."""
    if receiver is not None:
        hand_off.check(sender, receiver, task)
    return hand_off.content(
        write_openings(sender, task, longest=longest, layers=hand_off.layers, keep_cache=hand_off.needs_cache)
    )


def passed(openings: Message, **more: Sequence[Tensor]) -> Message:
    """The tokens and texts of openings, and further tensors an item."""
    texts, parts = opened(openings)
    passed = [
        {name: part[name] for name in PASSED} | {name: tensors[row] for name, tensors in more.items()}
        for row, part in enumerate(parts)
    ]
    return replace(openings, texts=texts, parts=tuple(passed))


def after_prompts(small: Model, task: Task, opening: Sequence[tuple[int, ...]]) -> ReceiverInput:
    """Each item's prompt, followed by its opening in the small model's tokens."""
    prompts = receiver_prompts(small, task)
    whole = [[*prompts.ids(row).tolist(), *ids] for row, ids in enumerate(opening)]
    return ReceiverInput(Prompts.from_ids(whole))


def _lengths(message: Message) -> list[int]:
    """The number of tokens of each opening."""
    return [len(part["ids"]) for part in opened(message)[1]]
