"""Several senders for one receiver: the further senders, one message of all states, and the fusions that merge them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.channels.message import Message
from latentcomm.fusion import Fusion, Linear, NormMatched, RightAligned, TaskArithmetic, Ties
from latentcomm.models import Model
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Item

FURTHER = "more_senders"
"""The field of an item that holds the texts of further senders."""


@dataclass(frozen=True)
class FurtherSender:
    """A further sender of a channel: another model, another text, or both.

    Attributes:
        text: which text of each item it reads: 0 is the sender's, n the n-th of the item's `more_senders`.
        model: which model reads it; None is the sender itself.
        read: the site of its state; None takes the sender's site.
        alignment: the map from its space to the receiver's; None is the sender's own where the model is the sender
            itself, and no map for another model.

    Raises:
        ValueError: the number of the text is negative.

    >>> FurtherSender(text=1).model is None
    True
    """

    text: int = 0
    model: Model | None = None
    read: Site | None = None
    alignment: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.text < 0:
            raise ValueError(f"text is {self.text}; 0 is the sender's own text, and further ones count from 1")

    def texts(self, items: Sequence[Item]) -> list[str]:
        """The text that it reads of each item.

        Raises:
            ValueError: an item has no such text.
        """
        if self.text == 0:
            return [item.sender for item in items]
        found = []
        for item in items:
            further: tuple[str, ...] = getattr(item, FURTHER, ())
            if len(further) < self.text:
                raise ValueError(
                    f"item {item.id!r} has {len(further)} texts for further senders and text {self.text} was requested;"
                    " give the item more, or request another"
                )
            found.append(further[self.text - 1])
        return found


@dataclass(frozen=True)
class OfEach:
    """merge(own, [content(own, a_1), .., content(own, a_n)]): the content of each sender's state, then the merge.

    The messages that are merged are m_i = content(own, a_i) - own. With `Replace()` they are a_i - own, with
    `OrthogonalResidual()` or `PredictabilityResidual(map)` the part of a_i outside own, with `Linear(W)` W a_i - own.
    `content` is one fusion for all senders or a tuple of one for each; `merge` takes several senders, as TaskArithmetic
    and Ties do. One sender may come without a sender axis.

    Raises:
        ValueError: at construction, a merge that does not take several senders, or no content; at the call, another
            number of senders than of contents.

    >>> from latentcomm.fusion import OrthogonalResidual, TaskArithmetic
    >>> rule = OfEach(OrthogonalResidual(), TaskArithmetic(0.5))
    >>> rule(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([[9.0, 4.0, 0.0], [9.0, 0.0, 2.0]]))
    tensor([2., 2., 1.])
    """

    content: Fusion | tuple[Fusion, ...]
    merge: Fusion

    def __post_init__(self) -> None:
        if not takes_several(self.merge):
            raise ValueError(
                f"{self.merge!r} does not merge senders; give TaskArithmetic(..), Ties(..) or one in a wrapper"
            )
        if self.content == ():
            raise ValueError("content is an empty tuple; give one fusion for all senders, or one for each")

    def __call__(
        self, own: Float[Tensor, "*batch d_receiver"], incoming: Float[Tensor, "*sender_batch d_sender"]
    ) -> Float[Tensor, "*batch d_receiver"]:
        """The merged state, of the shape and dtype of `own`."""
        senders = incoming if incoming.ndim > own.ndim else incoming[None]
        contents = self.content if isinstance(self.content, tuple) else (self.content,) * len(senders)
        if len(contents) != len(senders):
            raise ValueError(f"{len(senders)} senders for {len(contents)} contents; give one for all, or one for each")
        return self.merge(own, torch.stack([part(own, a) for part, a in zip(contents, senders, strict=True)]))


def takes_several(fusion: object) -> bool:
    """Whether a fusion merges several senders along a leading axis; any other sees the mean of their states.

    >>> from latentcomm.fusion import Replace
    >>> takes_several(NormMatched(Ties())), takes_several(Replace())
    (True, False)
    """
    while isinstance(fusion, NormMatched | Linear | RightAligned):
        fusion = fusion.fusion
    return isinstance(fusion, TaskArithmetic | Ties | OfEach)


def together(states: Sequence[Float[Tensor, "item _"]], *, origin: str, made_by: dict[str, Any]) -> Message:
    """One message of several senders' states: vectors `[sender item d]`, or named parts where their widths differ."""
    if len({state.shape[-1] for state in states}) == 1:
        return Message(torch.stack(list(states)), origin, made_by=made_by)
    parts = tuple(
        {f"sender {number}": state[row] for number, state in enumerate(states)} for row in range(len(states[0]))
    )
    return Message(None, origin, parts=parts, made_by=made_by)


def apart(message: Message) -> list[Float[Tensor, "item _"]] | None:
    """Each sender's states in a message, or None where it holds no states."""
    if message.vectors is not None:
        return list(message.vectors) if message.vectors.ndim == 3 else [message.vectors]
    if not message.parts or set(message.parts[0]) != {f"sender {number}" for number in range(len(message.parts[0]))}:
        return None
    names = [f"sender {number}" for number in range(len(message.parts[0]))]
    return [torch.stack([part[name] for part in message.parts]) for name in names]
