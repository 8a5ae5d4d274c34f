"""Text: the sender generates a message, and the receiver reads it before its own text."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latentcomm.channels.base import ReadsOwnText
from latentcomm.channels.message import Message, made_by
from latentcomm.hooks.decode import decode
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode
from latentcomm.models.prompts import Prompts
from latentcomm.tasks.base import Item, Task


@dataclass(frozen=True)
class Text(ReadsOwnText):
    """The sender continues its prompt; the generated text is prepended to the receiver's own text.

    The natural-language baseline of Ramesh & Li 2025, arXiv:2501.14082.

    Attributes:
        name: the name in tables.
        max_tokens: tokens of a message at most.
        request: appended to the sender's text, such as " Tell your partner what you know.".
        between: the separator between the message and the receiver's text.
        temperature, top_p, seed: greedy at temperature 0; a sample depends on the seed and the item alone.
        allow_empty: whether an empty message counts as silence for that item; else it is refused.

    Raises:
        ValueError: `max_tokens` below 1; in `send` an empty message.

    >>> Text(request=" Tell your partner what you know.").name
    'text'
    """

    name: str = "text"
    max_tokens: int = 32
    request: str = ""
    between: str = "\n"
    temperature: float | int = 0
    top_p: float | int = 1
    seed: int = 0
    allow_empty: bool = False

    def __post_init__(self) -> None:
        check_length(self.name, self.max_tokens)

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's generated text for each item, unchanged."""
        replies = decode(
            sender,
            prompts_with_request(sender, task, self.request),
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seeds=[item_seed(item, self.seed) for item in task.items],
        )
        refuse_silence(self.name, sender, task, [bool(text.strip()) for text in replies.texts], self.allow_empty)
        facts = made_by(sender, site="logits", position="reply")
        return Message(None, f"{sender.name} text", texts=tuple(replies.texts), made_by=facts).addressed(task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The message, `between` and the receiver's text as one prompt; an empty message is left out.

        Raises:
            ValueError: the message holds no text, or is meant for another model.
        """
        return words_first(self.name, receiver, task, message, lambda text, own: f"{text}{self.between}{own}")


def words_first(
    name: str, receiver: Model, task: Task, message: Message, joined: Callable[[str, str], str]
) -> ReceiverInput:
    """The text of a message and the receiver's text as one prompt; an empty message is left out.

    `joined` makes one text of both, the message's text first.

    Raises:
        ValueError: the message holds no text, or is meant for another model.
    """
    message.check_receiver(receiver, task)
    texts = [
        joined(text, item.receiver) if text.strip() else item.receiver
        for text, item in zip(texts_of(message, name), task.items, strict=True)
    ]
    return ReceiverInput(encode(receiver, texts, template=task.template))


def texts_of(message: Message, name: str) -> tuple[str, ...]:
    """The texts of a message.

    Raises:
        ValueError: it holds none.
    """
    if message.texts is None:
        raise ValueError(f"the channel {name} needs a message of texts and got {message.origin}")
    return message.texts


def prompts_with_request(sender: Model, task: Task, request: str) -> Prompts:
    """The sender's prompts, with the request appended to each text."""
    return encode(sender, [item.sender + request for item in task.items], template=task.template)


def item_seed(item: Item, *facts: int) -> int:
    """A seed that depends on the item and the given numbers alone, not on the item's row."""
    return int.from_bytes(hashlib.sha256(repr((item.id, *facts)).encode()).digest()[:7])


def check_length(name: str, max_tokens: int | None) -> None:
    """Refuse a limit that leaves no token.

    Raises:
        ValueError: `max_tokens` is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens of the channel {name} is {max_tokens}; give at least 1")


def refuse_silence(name: str, sender: Model, task: Task, filled: Sequence[bool], allow_empty: bool) -> None:
    """Refuse empty messages, unless they are allowed; `filled` is whether each item's message has content.

    Raises:
        ValueError: the message of an item is empty.
    """
    empty = [item.id for item, has_content in zip(task.items, filled, strict=True) if not has_content]
    if empty and not allow_empty:
        raise ValueError(
            f"{sender.name} sent an empty message for item {empty[0]!r} ({len(empty)} of {len(filled)} messages of the "
            f"channel {name} are empty); give it a request, or allow_empty=True to count that as silence"
        )
