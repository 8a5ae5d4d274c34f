"""The lower and upper baselines: a receiver without a message, and one that also reads the sender's text."""

from dataclasses import dataclass

from latentcomm.channels.base import NothingOfItsOwn, receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode
from latentcomm.tasks.base import Task


class _SendsNothing(NothingOfItsOwn):
    """What the two baselines share: the sender does not run, and there is no message to carry."""

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """Nothing: the sender does not run."""
        return Message(None, "nothing")


@dataclass(frozen=True)
class Silent(_SendsNothing):
    """The receiver alone, without a message."""

    name: str = "silent"

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's own prompts; a message meant for another model is refused, though it would not be read."""
        message.check_receiver(receiver, task)
        return ReceiverInput(receiver_prompts(receiver, task))


@dataclass(frozen=True)
class Skyline(_SendsNothing):
    """One model reads both texts: the receiver without any loss of information in the message."""

    name: str = "skyline"

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The prompts that hold both texts; a message meant for another model is refused here too."""
        message.check_receiver(receiver, task)
        texts = [item.skyline for item in task.items]
        return ReceiverInput(encode(receiver, texts, template=task.template))
