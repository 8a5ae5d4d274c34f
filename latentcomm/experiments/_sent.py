"""A sent message by itself: what it states of its sender, so that a receiver is evaluated without the sender."""

from collections.abc import Callable
from typing import Any

from latentcomm._core.files import digest
from latentcomm.channels.base import Channel, Sharing
from latentcomm.channels.message import Message
from latentcomm.models import Model
from latentcomm.tasks.base import Task

__all__ = ["SENT", "check_sent", "sending_of"]

SENT = "sent"
"""The entry of a message's facts that `evaluate` takes in place of a sender."""


def sending_of(channel: Channel, task: Task, *, by: list[Any], to: list[Any] | None, processed: bool) -> dict[str, Any]:
    """What a message states of how it was sent: by the sender and to the receiver of these prints.

    Channels that share a message send the same, so that it is a message of each of them.
    """
    sent_by = channel.message_key if isinstance(channel, Sharing) else channel
    return {"by": by, "to": to, "processed": processed, "channel": digest(sent_by), "task": digest(task)}


def check_sent(
    message: Message, channel: Channel, receiver: Model, task: Task, print_of: Callable[[Model], list[Any]]
) -> None:
    """Refuse a message that is not what the channel would send for this task to this receiver.

    Raises:
        ValueError: it states no sender, or is of another channel, task or items, or was sent to another receiver.
    """
    what, facts = f"message ({message.origin})", message.made_by.get(SENT)
    if not isinstance(facts, dict):
        raise ValueError(f"{what} does not state its sender and cost; make it with lc.send, or give the sender")
    to = None if facts["to"] is None else print_of(receiver)
    here = sending_of(channel, task, by=facts["by"], to=to, processed=receiver.processed)
    if facts["channel"] != here["channel"]:
        raise ValueError(f"{what} is not one of channel {channel.name!r}; give the channel that sent it, or send again")
    message.check_items(task)
    if facts["task"] != here["task"]:
        raise ValueError(f"{what} is for other texts of the items of task {task.name!r}; send it for this task")
    if facts["to"] != to:
        raise ValueError(f"{what} was sent to other weights or another tokenizer than {receiver.name}; send it again")
    if facts["processed"] != here["processed"]:
        raise ValueError(f"{what} and {receiver.name}: one has processed weights and the other raw ones; load both raw")
