"""The opening passes as keys and values of the large model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.kv import check_layout, layout_of, swapped
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade.hand_offs.base import Opened, Received, passed, sent
from latentcomm.experiments.cascade.openings import opened
from latentcomm.hooks.decode import Past, ReceiverInput
from latentcomm.models import Model, check_pair, one_vocabulary
from latentcomm.models.prompts import Prompts
from latentcomm.tasks.base import Task


@dataclass(frozen=True)
class KVHandOff(Opened):
    """The large model's keys and values of prompt and opening are the small model's cache; it reads the last token of
    the opening and continues.

    A message holds, of each item, `keys` and `values` `[layer head pos d_head]` of the prompt and the opening without
    its last token. The two models need one layout, one vocabulary and the same tokens of the prompts. The prompt's keys
    and values pass with the opening's: under another item's opening the small model never saw its own problem.

    Attributes:
        name, longest: as in `TextHandOff`.

    >>> KVHandOff().needs_cache
    True
    """

    name: str = "kv"
    longest: int | None = None

    @property
    def needs_cache(self) -> bool:
        """Yes."""
        return True

    def check(self, large: Model, small: Model, task: Task) -> None:
        """Both models must have one layout, one vocabulary, and the same prompt tokens.

        Raises:
            ValueError: with the first thing that differs.
        """
        check_pair(large, small)
        check_layout(layout_of(large), large.name, small)
        if large is small:
            return
        if not one_vocabulary(large, small):
            raise ValueError(
                f"{large.name} and {small.name} have different vocabularies, so one cannot continue from the "
                "other's keys and values; use a text hand-off"
            )
        for item in task.items:
            single = replace(task, items=(item,))
            if receiver_prompts(large, single).ids(0).tolist() != receiver_prompts(small, single).ids(0).tolist():
                raise ValueError(
                    f"{large.name} and {small.name} cut the prompt of item {item.id!r} into different tokens, so the "
                    "keys of one do not belong to the tokens of the other; use a text hand-off"
                )

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's keys and values of each item's receiver text and its opening."""
        return sent(self, sender, task, receiver, self.longest)

    def content(self, openings: Message) -> Message:
        """The keys and values, with the tokens they are of.

        Raises:
            ValueError: the openings hold no keys and values.
        """
        _, parts = opened(openings)
        if not all("keys" in part for part in parts):
            raise ValueError("the openings hold no keys and values; write them with keep_cache=True")
        caches = {name: [part[name] for part in parts] for name in ("prompt", "keys", "values")}
        return passed(openings, **caches)

    def to_itself(self) -> "KVHandOff":
        """The same: the small model then continues from its own cache, which equals the small model alone."""
        return self

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The last of the first n tokens of each opening, after the keys and values of all tokens before it.

        Raises:
            ValueError: an opening without a token, or a message for other items.
        """
        message.check_items(task)
        _, parts = opened(message)
        layers, lengths, opening = [], [], []
        for item, part, n in zip(task.items, parts, ns, strict=True):
            if n < 1:
                raise ValueError(f"the opening of item {item.id!r} has no token to continue from; use a text hand-off")
            length = len(part["prompt"]) + n - 1
            keys, values = (part[name][:, :, :length].to(small.device, small.dtype) for name in ("keys", "values"))
            layers.append(
                [
                    (swapped(small, key[None]), swapped(small, value[None]))
                    for key, value in zip(keys, values, strict=True)
                ]
            )
            lengths.append(length)
            opening.append(tuple(part["ids"][:n].tolist()))
        given = ReceiverInput(Prompts.from_ids([ids[-1:] for ids in opening]), past=Past(tuple(layers), tuple(lengths)))
        return Received(given, tuple(opening), (0,) * len(opening), (None,) * len(opening))
