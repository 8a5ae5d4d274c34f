"""Captions from a vision encoder's states: the nearest known caption, or a map's output token by token."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.alignment import AffineMap
from latentcomm.channels.message import Message
from latentcomm.channels.text import words_first
from latentcomm.experiments.crossmodal.channels import STOP, Seen
from latentcomm.experiments.crossmodal.questions import told
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model
from latentcomm.tasks.base import Task


@runtime_checkable
class Captioner(Protocol):
    """A rule from pictures' vectors to captions; a frozen dataclass."""

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """A caption of each."""
        ...


@dataclass(frozen=True, eq=False)
class NearestPicture:
    """The caption of the known picture whose vector is nearest, by cosine after subtracting the mean of the known ones.

    >>> known = NearestPicture(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), ("a one", "a two"))
    >>> known(torch.tensor([[0.2, 0.9]]))
    ['a one']
    """

    known: Float[Tensor, "known d_read"]
    captions: tuple[str, ...]

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """The first of equally near ones."""
        return [
            self.captions[index] for index in nearest(vectors, self.known, self.known.cpu().double().mean(0)).tolist()
        ]


@dataclass(frozen=True, eq=False)
class NearestLabel:
    """The caption whose embeddings are nearest to the output of the soft prompt's own map: the same latents as text.

    Attributes:
        mapping: from a vector to the embeddings of a caption.
        targets: the embeddings of every possible caption.
        captions: their texts, in the same order.
    """

    mapping: AffineMap
    targets: Float[Tensor, "caption d_out"]
    captions: tuple[str, ...]

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """By cosine, after subtracting the mean of all captions."""
        indices = nearest(
            self.mapping(vectors.to(self.mapping.weight.device)), self.targets, self.targets.cpu().double().mean(0)
        )
        return [self.captions[index] for index in indices.tolist()]


@dataclass(frozen=True, eq=False)
class NearestWords:
    """The output of the soft prompt's own map, each soft token rounded to the nearest token that captions have there.

    The soft prompt's message as text: it can form captions that no picture has, one token per position. Full stops at
    the end, which pad captions, are removed.

    Attributes:
        mapping: from a vector to the embeddings of a caption's tokens, concatenated.
        receiver: whose embeddings and tokens these are.
        candidates: for each soft token the candidate ids.

    Raises:
        ValueError: a position without a candidate, or a map that does not give one embedding per position.
    """

    mapping: AffineMap
    receiver: Model
    candidates: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.candidates or not all(self.candidates):
            raise ValueError("a soft token has no candidate tokens; give each at least one")
        if self.mapping.d_out != len(self.candidates) * self.receiver.d_model:
            raise ValueError(
                f"the map gives {self.mapping.d_out} entries and {len(self.candidates)} tokens of {self.receiver.name} "
                f"take {len(self.candidates) * self.receiver.d_model}; fit one for this receiver"
            )

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """By Euclidean distance; of equally near ones the first."""
        rows = self.mapping(vectors.to(self.mapping.weight.device)).cpu().double()
        mapped = rearrange(rows, "item (token d_receiver) -> item token d_receiver", token=len(self.candidates))
        table = self.receiver.embedding_table.detach()
        tokens: list[list[int]] = [[] for _ in mapped]
        for index, ids in enumerate(self.candidates):
            known = table[torch.tensor(ids, device=table.device)].cpu().double()
            for row, found in zip(tokens, torch.cdist(mapped[:, index], known).argmin(1).tolist(), strict=True):
                row.append(ids[found])
        decode = self.receiver.require_tokenizer().decode
        texts = [decode(row, clean_up_tokenization_spaces=False) for row in tokens]
        return [text.strip().rstrip(STOP).rstrip() for text in texts]


@dataclass(frozen=True)
class Caption(Seen):
    """The encoder's latents as a caption, which the receiver reads before the question."""

    captioner: Captioner

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:  # noqa: ARG002
        """A caption of each picture."""
        return self.eye.in_words(self.captioner(self.eye.vectors_of(sender, task)), "caption").addressed(task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The caption and the question as one prompt; with an empty caption, the question alone.

        Raises:
            ValueError: the message holds no text, or is meant for another model.
        """
        return words_first(self.name, receiver, task, message, told)


def nearest(
    vectors: Float[Tensor, "item d"], known: Float[Tensor, "known d"], centre: Float[Tensor, " d"]
) -> Int[Tensor, " item"]:
    """The number of the known vector at the largest cosine to each, all less the centre."""
    rows, bank = (F.normalize(each.cpu().double() - centre.cpu(), dim=1) for each in (vectors, known))
    return (rows @ bank.T).argmax(1)
