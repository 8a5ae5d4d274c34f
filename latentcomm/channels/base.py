"""What a channel is: how a sender's message for each item is made, and what the receiver gets with it."""

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from latentcomm.channels.message import Message
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode
from latentcomm.models.prompts import Prompts
from latentcomm.tasks.base import Item, Task


@runtime_checkable
class Channel(Protocol):
    """A way from a sender to a receiver: `send` runs the sender, `receive` only prepares the receiver's input."""

    @property
    def name(self) -> str:
        """The name in tables and figures."""
        ...

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The message of every item; `receiver` is who it is for, where a channel must know."""
        ...

    def carries_own(self, receiver: Model) -> bool:
        """Whether the receiver's own state could be sent back to it by this channel: what the self control does."""
        ...

    def own(self, receiver: Model, task: Task) -> Message:
        """What the receiver itself says of its own prompt, as a message."""
        ...

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """What the receiver is run on: prompts, and the message in some form."""
        ...


@runtime_checkable
class Deciding(Protocol):
    """A channel whose answer is not the receiver's reply alone, such as a vote."""

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The answer to every item, given the receiver's replies."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """A channel whose message other channels may send as well: it is then told once, and its cost counted for each."""

    @property
    def said(self) -> Any:
        """All that decides the message beside sender, receiver and task, in values that `files.digest` takes."""
        ...


def sender_prompts(sender: Model, task: Task) -> Prompts:
    """What the sender reads of each item."""
    return encode(sender, [item.sender for item in task.items], template=task.template)


def receiver_prompts(receiver: Model, task: Task) -> Prompts:
    """What the receiver reads of each item."""
    return encode(receiver, [item.receiver for item in task.items], template=task.template)


def asked_itself(task: Task) -> Task:
    """The task whose sender reads what the receiver reads: what a receiver says to itself knows nothing new."""
    return replace(task, items=tuple(replace(item, sender=item.receiver) for item in task.items))


def label(item: Item) -> str:
    """The canonical answer of an item."""
    return item.answers[0]
