"""Control messages, which should not help: the effect of a channel without the content of its message."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from latentcomm._core.linalg import in_float64
from latentcomm.channels.base import Channel, label
from latentcomm.channels.message import Message
from latentcomm.models import Model
from latentcomm.tasks.base import Task

TRIES = 100
"""Swaps an item, after which the search for an order ends."""
SHUFFLED, ZERO, RANDOM, SAME_LABEL = "shuffled", "zero", "random", "same-label"
SELF = "self"
"""The control whose message comes from the receiver, so that it costs a run of its own."""
FILLER = "filler"
"""The control whose message the sender makes from `NEUTRAL`, so that it costs a run of its own."""
NEUTRAL = (
    "This text says nothing in particular. It is here because something has to be read, and it goes on for as long as "
    "is needed. One sentence follows another, each as plain as the last, and none of them asks or answers anything. "
    "Whoever reads it learns no fact from it, and nothing in it will be asked about later. It could end here, or a "
    "little further on, and would mean the same."
)
"""The text of fillers."""


@dataclass(frozen=True, eq=False)
class Sending:
    """The inputs of a control: the channel, both models, the task, the true message, and a seed.

    Without a sender there is the message that one has sent.
    """

    channel: Channel
    sender: Model | None
    receiver: Model
    task: Task
    message: Message
    seed: int


def true_message(sending: Sending) -> Message:
    """The message itself: no control."""
    return sending.message


def shuffled(sending: Sending) -> Message:
    """Every item gets the message of another item with another answer and another sender's text: a
    message of the right kind with the wrong content.

    Raises:
        ValueError: the message is silent.
    """
    if sending.message.is_silent:
        raise ValueError(f"a message of {sending.message.origin} has no content to shuffle between items")
    return sending.message.select(deranged(sending.task, seed=sending.seed)).addressed(sending.task)


def same_label(sending: Sending) -> Message:
    """Every item gets the message of another item with the same answer and another sender's text: the effect
    of a message that carries the answer alone.

    Raises:
        ValueError: the message is silent, or an item is the only one with its answer.
    """
    if sending.message.is_silent:
        raise ValueError(f"a message of {sending.message.origin} has no content to shuffle between items")
    return sending.message.select(deranged_within_label(sending.task, seed=sending.seed)).addressed(sending.task)


def zero(sending: Sending) -> Message:
    """The zero vector: the effect of the intervention itself.

    Raises:
        ValueError: the message has no states to replace.
    """
    return _with(ZERO, sending, torch.zeros_like)


def random_message(sending: Sending) -> Message:
    """A random direction with each vector's own norm: the effect of the norm alone.

    Raises:
        ValueError: the message has no states to replace.
    """
    generator = torch.Generator().manual_seed(sending.seed)
    return _with(RANDOM, sending, lambda vectors: random_directions(vectors, generator))


def random_directions(vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random directions, uniform on the sphere, each of the norm of the vector `[... d]` that it replaces."""
    wide = in_float64(vectors)
    noise = torch.randn(vectors.shape, generator=generator, dtype=torch.float64).to(wide.device)
    noise = noise / noise.norm(dim=-1, keepdim=True) * wide.norm(dim=-1, keepdim=True)
    return noise.to(vectors)


def self_message(sending: Sending) -> Message:
    """The receiver's own state of its own prompt, sent by the same channel: no new information.

    Raises:
        ValueError: the channel cannot carry it; `evaluate` leaves the control out where `Channel.carries_own` is false.
    """
    if not sending.channel.carries_own(sending.receiver):
        raise ValueError(f"the channel {sending.channel.name} cannot carry the receiver's own state")
    return sending.channel.own(sending.receiver, sending.task)


def filler(sending: Sending) -> Message:
    """The sender's message about a text that says nothing, of as many words as each item's: a message of the right
    kind and shape without content.

    Raises:
        ValueError: the message is silent, or the sender is not there.
    """
    if sending.message.is_silent or sending.sender is None:
        raise ValueError(f"a filler for a message of {sending.message.origin} needs a sender that reads it; give one")
    task = with_filler_texts(sending.task)
    return sending.channel.send(sending.sender, task, receiver=sending.receiver).addressed(task)


def with_filler_texts(task: Task) -> Task:
    """The task whose senders read the first words of `NEUTRAL`, from its beginning again where a text has more.

    >>> from latentcomm.tasks.base import Item
    >>> item = Item("1", "Alice is at Petra.", "Alice is in", "Alice is at Petra. Alice is in", ("Jordan",))
    >>> with_filler_texts(Task("toy", (item,), (), "raw")).items[0].sender
    'This text says nothing'
    """
    words = NEUTRAL.split()

    def instead_of(text: str) -> str:
        n = len(text.split())
        return " ".join((words * (n // len(words) + 1))[:n])

    return replace(
        task,
        items=tuple(
            replace(item, sender=instead_of(item.sender), more_senders=tuple(map(instead_of, item.more_senders)))
            for item in task.items
        ),
    )


def deranged(task: Task, *, seed: int) -> list[int]:
    """For each item another one with another answer and another sender's text; every item is used once.

    Raises:
        ValueError: there is no such order, as where most items share an answer.
    """
    return derangement([label(item) for item in task.items], texts=[item.sender for item in task.items], seed=seed)


def deranged_within_label(task: Task, *, seed: int) -> list[int]:
    """For each item another one with the same answer and another sender's text; every item is used once.

    Raises:
        ValueError: an item is the only one with its answer, or most items of an answer share one text.
    """
    groups: dict[str, list[int]] = {}
    for row, item in enumerate(task.items):
        groups.setdefault(label(item), []).append(row)
    if alone := [name for name, rows in groups.items() if len(rows) == 1]:
        raise ValueError(
            f"{len(alone)} of {len(task.items)} items are alone with their answer, such as {alone[0]!r}, so no other "
            "message has it; give more items an answer, or leave out the same-label control"
        )
    order = list(range(len(task.items)))
    for name, rows in groups.items():
        sources = derangement(
            [task.items[row].sender for row in rows], seed=seed, what=f"text, for the answer {name!r},"
        )
        for row, source in zip(rows, sources, strict=True):
            order[row] = rows[source]
    return order


def derangement(
    labels: Sequence[str], *, seed: int, texts: Sequence[str] | None = None, what: str = "answer"
) -> list[int]:
    """A random order in which no item gets an item of its own label, or of its own text; every item is used once.

    Raises:
        ValueError: more than half of the items share one label, so that there is none; or none was found.

    >>> order = derangement(["a", "a", "b", "c"], seed=0)
    >>> [("aabc"[i], "aabc"[j]) for i, j in enumerate(order) if "aabc"[i] == "aabc"[j]]
    []
    """
    commonest = max(set(labels), key=list(labels).count)
    if 2 * list(labels).count(commonest) > len(labels):
        raise ValueError(
            f"{list(labels).count(commonest)} of {len(labels)} items share the {what} {commonest!r}, "
            "so their messages cannot all be shuffled; give other items"
        )

    def alike(i: int, j: int) -> bool:
        return labels[i] == labels[j] or (texts is not None and texts[i] == texts[j])

    rng = random.Random(f"derangement:{seed}")
    order = list(range(len(labels)))
    rng.shuffle(order)
    tries = 0
    while clashes := [i for i in range(len(labels)) if alike(i, order[i])]:
        i = rng.choice(clashes)
        fits = [j for j in range(len(labels)) if not alike(i, order[j]) and not alike(j, order[i])]
        j = rng.choice(fits or range(len(labels)))
        order[i], order[j] = order[j], order[i]
        tries += 1
        if tries > TRIES * len(labels):
            raise ValueError(
                "no order was found in which every item gets another's message with another answer and another text; "
                "give items with other answers"
            )
    return order


def _with(name: str, sending: Sending, change: Callable[[torch.Tensor], torch.Tensor]) -> Message:
    if not sending.message.has_tensors:
        raise ValueError(f"a message of {sending.message.origin} has no vectors to control for")
    if _passes_the_problem(sending.channel):
        raise ValueError(
            f"the control {name} would take the problem from the hand-off {sending.channel.name}, which passes keys "
            "and values of it with the opening's; leave the control out"
        )
    return sending.message.map_tensors(change)


def _passes_the_problem(channel: Channel) -> bool:
    """Whether a hand-off passes keys and values of the problem itself, without which no trace of it would be left."""
    return bool(getattr(channel, "needs_cache", False))


def applies(name: str, channel: Channel, receiver: Model, message: Message) -> bool:
    """Whether a control of this name applies to this message: silence has none, a text has nothing to randomise."""
    if name in (ZERO, RANDOM):
        return message.has_tensors and not _passes_the_problem(channel)
    if name == SELF:
        return not message.is_silent and channel.carries_own(receiver)
    return not message.is_silent


CONTROLS: dict[str, Callable[[Sending], Message]] = {
    SHUFFLED: shuffled,
    ZERO: zero,
    RANDOM: random_message,
    SELF: self_message,
    FILLER: filler,
    SAME_LABEL: same_label,
}
"""The controls of a channel with a message, in the order of tables."""
USUAL = (SHUFFLED, ZERO, RANDOM, SELF)
"""The controls that every task allows; "same-label" needs two items of every answer, and is run on request."""
AUDIT = (SHUFFLED, SELF, FILLER)
"""The controls by which an audit tells content from presence."""
