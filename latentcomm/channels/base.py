"""The interface of a channel: it makes a sender's message for each item, and the receiver's input from it."""

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
        """The message of every item; `receiver` is the model that reads it, for channels that need it."""
        ...

    def carries_own(self, receiver: Model) -> bool:
        """Whether the channel can send the receiver's own state back to it, as the self control does."""
        ...

    def own(self, receiver: Model, task: Task) -> Message:
        """The receiver's own message from its own prompt."""
        ...

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's input: prompts, and the message in some form."""
        ...


class NothingOfItsOwn:
    """What channels share whose receiver has nothing to send to itself: there is no self control."""

    def carries_own(self, receiver: Model) -> bool:
        """No: the receiver has nothing to send."""
        return False

    def own(self, receiver: Model, task: Task) -> Message:
        """Nothing."""
        return Message(None, "nothing", is_own=True)


class ReadsOwnText:
    """What channels share whose self control is the message that the receiver makes from its own text."""

    def carries_own(self: Channel, receiver: Model) -> bool:
        """Yes: a model can read its own message."""
        return True

    def own(self: Channel, receiver: Model, task: Task) -> Message:
        """The receiver's message to itself: `send`, with the receiver as the sender and its text as the sender's."""
        return replace(self.send(receiver, with_own_texts(task), receiver=receiver), is_own=True)


@runtime_checkable
class Deciding(Protocol):
    """A channel whose answer is not the receiver's reply alone, such as a vote."""

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The answer to every item, given the receiver's replies."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """A channel whose message other channels may share: it is computed once, and its cost counted for each."""

    @property
    def message_key(self) -> Any:
        """The values that determine the message, besides sender, receiver and task, as `files.digest` takes them."""
        ...


def sender_prompts(sender: Model, task: Task) -> Prompts:
    """The sender's prompt of each item."""
    return encode(sender, [item.sender for item in task.items], template=task.template)


def receiver_prompts(receiver: Model, task: Task) -> Prompts:
    """The receiver's prompt of each item."""
    return encode(receiver, [item.receiver for item in task.items], template=task.template)


def with_own_texts(task: Task) -> Task:
    """The task whose sender reads the receiver's text: the receiver's message to itself has no new information."""
    return replace(task, items=tuple(replace(item, sender=item.receiver) for item in task.items))


def label(item: Item) -> str:
    """The canonical answer of an item."""
    return item.answers[0]
