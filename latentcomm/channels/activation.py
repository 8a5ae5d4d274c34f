"""Activation communication: the sender's last-token state after one block, fused into the receiver's after another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentcomm.capture import capture
from latentcomm.channels.base import Message, receiver_prompts, sender_prompts
from latentcomm.decoding import ReceiverInput
from latentcomm.fusion import Fusion
from latentcomm.grafting import LAST, Graft
from latentcomm.models import Model
from latentcomm.sites import Site
from latentcomm.tasks.base import Task


@dataclass(frozen=True)
class Activation:
    """The sender stops after `read`; the receiver pauses after `write`, takes the fused state, and goes on.

    One vector, once, at the last prompt token; the sender's later layers and its unembedding never run.

    Source: Ramesh & Li 2025, arXiv:2501.14082.
    """

    name: str
    read: Site
    write: Site
    fusion: Fusion
    alignment: Callable[..., Any] | None = None

    def send(self, sender: Model, task: Task) -> Message:
        """The state after the read site, at each sender prompt's last token."""
        vectors = capture(sender, sender_prompts(sender, task), [self.read]).last(self.read)
        return Message(vectors, f"{sender.name} {self.read.hook_name}")

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's prompts with one graft.

        Raises:
            ValueError: the message holds no vectors.
        """
        if message.vectors is None:
            raise ValueError(f"the channel {self.name} needs a message with vectors and got {message.origin}")
        vectors = message.vectors.to(receiver.device, receiver.dtype)
        vectors = vectors if self.alignment is None else self.alignment(vectors)
        return ReceiverInput(receiver_prompts(receiver, task), (Graft(self.write, LAST, vectors, self.fusion),))
