"""The states of a vision encoder as a message to a language model: as soft tokens or as a graft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from latentcomm.alignment import AffineMap
from latentcomm.channels.base import NothingOfItsOwn, receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.channels.soft_slots import filled
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.questions import AFTER, BEFORE
from latentcomm.fusion import Fusion, Replace
from latentcomm.hooks.graft import LAST, Graft
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Halves, Model, around_gap, encode, record_products
from latentcomm.models.chat import AnyTemplate
from latentcomm.models.sites import Site
from latentcomm.models.vision import VisionSender, VisionSite
from latentcomm.tasks.base import Item, Task

STOP = AFTER.strip()
"""The suffix of a caption, and the padding of one that is shorter than others."""


@dataclass(frozen=True)
class Eye:
    """The encoder, the pictures, and which of its states are sent: one message for all channels that share it.

    The sender of a picture's message is the encoder in here, and the sender's text of an item is the picture's id; the
    model that `evaluate` gets as the sender only carries the record of the cost.
    """

    vision: VisionSender
    pictures: PictureSet
    site: VisionSite

    @property
    def message_key(self) -> tuple[Any, ...]:
        """What determines the message."""
        return ("seen", self.vision, self.pictures, self.site)

    def vectors_of(self, sender: Model, task: Task) -> Float[Tensor, "item d_read"]:
        """The vector of each item's picture.

        Raises:
            ValueError: an item whose picture is not in the set.
        """
        images = [self.pictures[item.sender].image for item in task.items]
        record_products(sender, len(images) * self.vision.multiply_adds(images[0], self.site.block))
        return self.vision.read(images, self.site).float()

    def message(self, sender: Model, task: Task) -> Message:
        """These vectors as a message."""
        vectors = self.vectors_of(sender, task)
        return Message(vectors, f"{self.vision.name} {self.site}", made_by=self._facts).addressed(task)

    def in_words(self, texts: Sequence[str], what: str) -> Message:
        """The texts made of these vectors, one per item, as a message."""
        return Message(None, f"{self.vision.name} {what}", texts=tuple(texts), made_by=self._facts)

    @property
    def _facts(self) -> dict[str, str]:
        facts = {"model": self.vision.name, "fingerprint": self.vision.fingerprint, "pictures": self.pictures.name}
        return facts | {"dtype": str(self.vision.dtype).removeprefix("torch."), "site": str(self.site)}


@dataclass(frozen=True)
class Seen(NothingOfItsOwn):
    """A channel about pictures, whose receiver cannot see and has no message of its own about them."""

    name: str
    eye: Eye


@dataclass(frozen=True)
class SeenVectors(Seen):
    """A channel that sends the vectors unchanged, so that all such channels of one `Eye` share a message."""

    @property
    def message_key(self) -> tuple[Any, ...]:
        """What determines the message."""
        return self.eye.message_key

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The vector of each picture, before any map."""
        return self.eye.message(sender, task)


@dataclass(frozen=True)
class SoftPrompt(SeenVectors):
    """The vector of a picture, mapped to soft tokens at the position of a caption.

    The receiver reads "Picture:", the tokens, and the question. Each of `n_tokens` soft tokens is d_receiver entries of
    the map's output, unchanged: nothing rescales them, and a ridge map shrinks them towards the mean embedding of the
    captions it was fitted to.

    Source: Merullo et al. 2023, "Linearly mapping from image to text space", arXiv:2209.15162 (there the map is trained
    through the model; in closed form it is fitted to the embeddings of captions, `fitting.fit_soft_prompt`).
    """

    mapping: AffineMap
    n_tokens: int

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The questions after the soft tokens.

        Raises:
            ValueError: the message holds no vectors, is meant for another model, or is not of the map's width; a map
                that does not give `n_tokens` times the receiver's width.
        """
        mapped = mapped_on(self.mapping, vectors_of(message, self.name, receiver, task), receiver)
        if mapped.shape[1] != self.n_tokens * receiver.d_model:
            raise ValueError(
                f"the map of {self.name} gives {mapped.shape[1]} entries and {self.n_tokens} soft tokens of "
                f"{receiver.name} take {self.n_tokens * receiver.d_model}; fit one for this receiver"
            )
        tokens = rearrange(mapped, "item (token d_receiver) -> item token d_receiver", token=self.n_tokens)
        return in_caption_position(receiver, task, tokens)


@dataclass(frozen=True)
class VisionGraft(SeenVectors):
    """The vector of a picture, mapped into a layer of the receiver at the last token of the question.

    With one map a question, into a late layer where the state all but holds the answer, this is close to a supervised
    probe of the vector that the receiver's last layers read out: what it gets right is in the latents, and shows little
    about how the receiver uses them.

    Attributes:
        write: the site that is written to.
        maps: for each question, by its name, the map to the receiver's state at that site after the true caption
            (`fitting.fit_vision_graft`); the map under "" is used for every question without one.
        fusion: combines the receiver's state and the message.
    """

    write: Site
    maps: Mapping[str, AffineMap]
    fusion: Fusion = field(default_factory=Replace)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The questions alone, with one graft.

        Raises:
            ValueError: the message holds no vectors or is meant for another model, or a question without a map.
        """
        vectors = vectors_of(message, self.name, receiver, task)
        each = [mapped_on(self._map_of(item), row, receiver) for item, row in zip(task.items, vectors, strict=True)]
        return ReceiverInput(
            receiver_prompts(receiver, task),
            (Graft(self.write, LAST, torch.stack(each).to(receiver.dtype), self.fusion),),
        )

    def _map_of(self, item: Item) -> AffineMap:
        question = item.tags.get("question", "")
        mapping = self.maps.get(question, self.maps.get(""))
        if mapping is None:
            raise ValueError(
                f"the graft {self.name} has no map for the question {question!r}; fit one for each question"
            )
        return mapping


def vectors_of(message: Message, name: str, receiver: Model, task: Task) -> Float[Tensor, "item d_read"]:
    """The vectors of a message, on their device.

    Raises:
        ValueError: it is meant for another model or other items, or holds none.
    """
    message.check_receiver(receiver, task)
    if message.vectors is None or message.vectors.ndim != 2:
        raise ValueError(f"the channel {name} needs a message with one vector a picture and got {message.origin}")
    return message.vectors


def mapped_on(mapping: AffineMap, rows: Float[Tensor, "*item d_read"], receiver: Model) -> Float[Tensor, "*item d_out"]:
    """The output of a map, computed on the map's device (the CPU), then moved to the receiver's device."""
    return mapping(rows.to(mapping.weight.device)).to(receiver.device)


def in_caption_position(
    receiver: Model,
    task: Task,
    vectors: Float[Tensor, "item slot d_receiver"] | Sequence[Float[Tensor, "_ d_receiver"]],
) -> ReceiverInput:
    """The questions of a task with soft tokens at the position of the caption."""
    halves = around(receiver, [item.receiver for item in task.items], template=task.template)
    prompts, soft = filled(halves, [each.to(receiver.dtype) for each in vectors])
    return ReceiverInput(prompts, soft=soft)


def around(receiver: Model, questions: Sequence[str], *, template: AnyTemplate) -> list[Halves]:
    """The ids before and after the position of a caption, for each question.

    Raises:
        ValueError: what `encode` refuses, or a chat template that changes the user's text.
    """
    encode(receiver, list(questions), template=template)  # refuses what cannot be a prompt
    return [around_gap(receiver, BEFORE, AFTER + text, template=template) for text in questions]
