"""The opening passes as text, or as tokens where the two models have one vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentcomm.channels.message import Message
from latentcomm.experiments.cascade.hand_offs.base import Opened, Received, after_prompts, passed, sent
from latentcomm.experiments.cascade.retokenize import opening_tokens
from latentcomm.models import Model
from latentcomm.tasks.base import Task


@dataclass(frozen=True)
class TextHandOff(Opened):
    """The small model reads its prompt followed by the opening's text.

    Between models of one vocabulary the token ids pass unchanged. Else the text is tokenized separately by the small
    model's tokenizer, without special tokens: ids(prompt) + ids(text), so that no token spans the boundary.

    Attributes:
        name: in tables.
        longest: tokens of an opening that `send` generates at most; None takes the task's reply_tokens. In a cascade
            the stop decides.

    >>> TextHandOff().layers
    ()
    """

    name: str = "text"
    longest: int | None = None

    def check(self, large: Model, small: Model, task: Task) -> None:  # noqa: ARG002 (the signature is that of every hand-off)
        """Both models need a tokenizer.

        Raises:
            ValueError: one of them has none.
        """
        large.require_tokenizer()
        small.require_tokenizer()

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's opening of each item's receiver text."""
        return sent(self, sender, task, receiver, self.longest)

    def content(self, openings: Message) -> Message:
        """The tokens and their text."""
        return passed(openings)

    def to_itself(self) -> "TextHandOff":
        """The same: the small model then reads its own output, which equals the small model alone."""
        return self

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The prompts, each followed by its opening.

        Raises:
            ValueError: the message is for other items, or the small model's tokenizer does not reproduce a text.
        """
        message.check_items(task)
        opening = opening_tokens(small, task, message, ns)
        return Received(after_prompts(small, task, opening), tuple(opening), (0,) * len(ns), (None,) * len(ns))
