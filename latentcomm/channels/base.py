"""What a channel is: how a sender's message for each item is made, and what the receiver gets with it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from latentcomm.decoding import ReceiverInput
from latentcomm.models import Model, encode
from latentcomm.prompts import Prompts
from latentcomm.tasks.base import Item, Task


@dataclass(frozen=True, eq=False)
class Message:
    """One vector an item, from one place of one model; no vectors at all for a channel that says nothing.

    Attributes:
        vectors: the states, in the sender's width, or None.
        origin: what they are: model and hook point.
        is_own: they are the receiver's own, in its own width already, so that no alignment applies.
    """

    vectors: Float[Tensor, "item d_sender"] | None
    origin: str
    is_own: bool = False


@runtime_checkable
class Channel(Protocol):
    """A way from a sender to a receiver: `send` runs the sender, `receive` only prepares the receiver's input."""

    @property
    def name(self) -> str:
        """The name in tables and figures."""
        ...

    def send(self, sender: Model, task: Task) -> Message:
        """The message of every item."""
        ...

    def carries_own(self, receiver: Model) -> bool:
        """Whether the receiver's own state could be sent back to it by this channel: what the self control does."""
        ...

    def own(self, receiver: Model, task: Task) -> Message:
        """The receiver's own state of its own prompt as a message."""
        ...

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """What the receiver is run on: prompts, and the message in some form."""
        ...


def sender_prompts(sender: Model, task: Task) -> Prompts:
    """What the sender reads of each item."""
    return encode(sender, [item.sender for item in task.items], template=task.template)


def receiver_prompts(receiver: Model, task: Task) -> Prompts:
    """What the receiver reads of each item."""
    return encode(receiver, [item.receiver for item in task.items], template=task.template)


def label(item: Item) -> str:
    """The canonical answer of an item."""
    return item.answers[0]
