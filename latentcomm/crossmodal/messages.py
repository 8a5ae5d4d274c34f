"""What a vision encoder sees as a message to a model that reads: as soft tokens, as a graft, or as a caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.alignment import AffineMap
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.channels.slots import filled
from latentcomm.crossmodal.pictures import PictureSet
from latentcomm.crossmodal.questions import AFTER, BEFORE, told
from latentcomm.crossmodal.vision import VisionSender, VisionSite
from latentcomm.fusion import Fusion, Replace
from latentcomm.grafting import LAST, Graft
from latentcomm.models import Halves, Model, around_gap, encode, record_products
from latentcomm.prompts import Template
from latentcomm.receiver_input import ReceiverInput
from latentcomm.sites import Site
from latentcomm.tasks.base import Item, Task

STOP = AFTER.strip()
"""What stands behind a caption, and fills up one that is shorter than others."""


@dataclass(frozen=True)
class Eye:
    """Who looks, at which pictures, and what of the states is said: one message for all channels that share it.

    The sender of a picture's message is the encoder in here, and the sender's text of an item the picture's id; what
    `evaluate` is given as the sender only carries the record of the cost.
    """

    vision: VisionSender
    pictures: PictureSet
    site: VisionSite

    @property
    def said(self) -> tuple[Any, ...]:
        """What decides the message."""
        return ("seen", self.vision, self.pictures, self.site)

    def look(self, sender: Model, task: Task) -> Float[Tensor, "item d_read"]:
        """The vector of each item's picture.

        Raises:
            ValueError: an item of no picture of the set.
        """
        images = [self.pictures[item.sender].image for item in task.items]
        record_products(sender, len(images) * self.vision.multiply_adds(images[0], self.site.block))
        return self.vision.read(images, self.site).float()

    def message(self, sender: Model, task: Task) -> Message:
        """These vectors as a message."""
        facts = {"model": self.vision.name, "fingerprint": self.vision.fingerprint, "pictures": self.pictures.name}
        facts |= {"dtype": str(self.vision.dtype).removeprefix("torch."), "site": str(self.site)}
        return Message(self.look(sender, task), f"{self.vision.name} {self.site}", made_by=facts)


@dataclass(frozen=True)
class Seen:
    """A channel about pictures, whose receiver has nothing of its own to say of them."""

    name: str
    eye: Eye

    def carries_own(self, receiver: Model) -> bool:
        """No: the receiver cannot see."""
        return False

    def own(self, receiver: Model, task: Task) -> Message:
        """Nothing."""
        return Message(None, "nothing", is_own=True)


@dataclass(frozen=True)
class SeenVectors(Seen):
    """One that sends the vectors as they are, so that all such channels of one eye share a message."""

    @property
    def said(self) -> tuple[Any, ...]:
        """What decides the message."""
        return self.eye.said

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The vector of each picture, before any map."""
        return self.eye.message(sender, task)


@dataclass(frozen=True)
class SoftPrompt(SeenVectors):
    """The vector of a picture, mapped to soft tokens that stand where the words of a caption would.

    The receiver reads "Picture:", the tokens, and the question. Each of `n_tokens` soft tokens is d_receiver entries of
    what the map gives, as they are: nothing rescales them, and a ridge map shrinks them towards the mean embedding of
    the captions it was fitted to.

    Source: Merullo et al. 2023, "Linearly mapping from image to text space", arXiv:2209.15162 (there the map is trained
    through the model; in closed form it is fitted to the embeddings of captions, `fitting.fit_soft_prompt`).
    """

    mapping: AffineMap
    n_tokens: int

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The questions behind the soft tokens.

        Raises:
            ValueError: the message holds no vectors, is meant for another model, or is not of the map's width; a map
                that does not give `n_tokens` times the receiver's width.
        """
        mapped = mapped_on(self.mapping, vectors_of(message, self.name, receiver), receiver)
        if mapped.shape[1] != self.n_tokens * receiver.d_model:
            raise ValueError(
                f"the map of {self.name} gives {mapped.shape[1]} entries and {self.n_tokens} soft tokens of "
                f"{receiver.name} take {self.n_tokens * receiver.d_model}; fit one for this receiver"
            )
        return in_words_place(receiver, task, mapped.unflatten(1, (self.n_tokens, receiver.d_model)))


@dataclass(frozen=True)
class VisionGraft(SeenVectors):
    """The vector of a picture, mapped into a layer of the receiver at the last token of the question.

    With one map a question, into a late layer where the state all but holds the answer, this is close to a supervised
    probe of the vector that the receiver's last layers read out: what it gets right is in the latents, and says little
    of what the receiver makes of them.

    Attributes:
        write: where.
        maps: for each question, by its name, the map to the state that the receiver has there once it has read the
            true caption (`fitting.fit_vision_graft`); one under "" serves every question without one.
        fusion: how the two become one.
    """

    write: Site
    maps: Mapping[str, AffineMap]
    fusion: Fusion = field(default_factory=Replace)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The questions alone, with one graft.

        Raises:
            ValueError: the message holds no vectors or is meant for another model, or a question without a map.
        """
        vectors = vectors_of(message, self.name, receiver)
        each = [mapped_on(self._map_of(item), row, receiver) for item, row in zip(task.items, vectors, strict=True)]
        return ReceiverInput(
            receiver_prompts(receiver, task),
            (Graft(self.write, LAST, torch.stack(each).to(receiver.dtype), self.fusion),),
        )

    def _map_of(self, item: Item) -> AffineMap:
        question = item.tags.get("question", "")
        found = self.maps.get(question, self.maps.get(""))
        if found is None:
            raise ValueError(
                f"the graft {self.name} has no map for the question {question!r}; fit one for each that is asked"
            )
        return found


@runtime_checkable
class Captioner(Protocol):
    """A rule that puts pictures' vectors into words; a frozen dataclass."""

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """A caption of each."""
        ...


@dataclass(frozen=True, eq=False)
class NearestPicture:
    """The caption of the known picture whose vector is nearest, by cosine once the known ones' mean is taken away.

    >>> known = NearestPicture(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), ("a one", "a two"))
    >>> known(torch.tensor([[0.2, 0.9]]))
    ['a one']
    """

    known: Float[Tensor, "known d_read"]
    captions: tuple[str, ...]

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """Of equally near ones the first."""
        return [self.captions[place] for place in nearest(vectors, self.known, self.known.double().mean(0)).tolist()]


@dataclass(frozen=True, eq=False)
class NearestLabel:
    """The caption whose embeddings are nearest to what the soft prompt's own map gives: the same latents, in words.

    Attributes:
        mapping: from a vector to the embeddings of a caption.
        targets: the embeddings of every caption that may be said.
        captions: these, in the same order.
    """

    mapping: AffineMap
    targets: Float[Tensor, "caption d_out"]
    captions: tuple[str, ...]

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """By cosine, the mean of all captions taken away."""
        places = nearest(
            self.mapping(vectors.to(self.mapping.weight.device)), self.targets, self.targets.double().mean(0)
        )
        return [self.captions[place] for place in places.tolist()]


@dataclass(frozen=True, eq=False)
class NearestWords:
    """What the soft prompt's own map gives, each soft token rounded to the nearest token that captions have there.

    The soft prompt's message in words: it can say captions that no picture has had, one token a place. Full stops at
    the end, which fill captions up, are not said.

    Attributes:
        mapping: from a vector to the embeddings of a caption's tokens, one behind the other.
        receiver: whose embeddings and tokens these are.
        places: of each soft token the ids that may stand there.

    Raises:
        ValueError: a place without a token, or a map that does not give one embedding a place.
    """

    mapping: AffineMap
    receiver: Model
    places: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.places or not all(self.places):
            raise ValueError("there is a place at which no token may stand; give every soft token at least one")
        if self.mapping.d_out != len(self.places) * self.receiver.d_model:
            raise ValueError(
                f"the map gives {self.mapping.d_out} entries and {len(self.places)} tokens of {self.receiver.name} "
                f"take {len(self.places) * self.receiver.d_model}; fit one for this receiver"
            )

    def __call__(self, vectors: Float[Tensor, "item d_read"]) -> list[str]:
        """By Euclidean distance; of equally near ones the first."""
        rows = self.mapping(vectors.to(self.mapping.weight.device)).double().cpu()
        mapped = rows.unflatten(1, (len(self.places), -1))
        table = self.receiver.embedding_table.detach()
        said: list[list[int]] = [[] for _ in mapped]
        for place, ids in enumerate(self.places):
            known = table[torch.tensor(ids, device=table.device)].double().cpu()
            for row, found in zip(said, torch.cdist(mapped[:, place], known).argmin(1).tolist(), strict=True):
                row.append(ids[found])
        decode = self.receiver.require_tokenizer().decode
        texts = [decode(row, clean_up_tokenization_spaces=False) for row in said]
        return [text.strip().rstrip(STOP).rstrip() for text in texts]


@dataclass(frozen=True)
class Caption(Seen):
    """The encoder's latents put into words, which the receiver reads before the question."""

    captioner: Captioner

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """A caption of each picture."""
        facts = self.eye.message(sender, task)
        if facts.vectors is None:
            raise RuntimeError("a picture was looked at and nothing was seen")
        texts = tuple(self.captioner(facts.vectors))
        return Message(None, f"{self.eye.vision.name} caption", texts=texts, made_by=facts.made_by)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The caption and the question as one prompt; without a word, the question alone.

        Raises:
            ValueError: the message holds no text, or is meant for another model.
        """
        message.check_receiver(receiver)
        if message.texts is None:
            raise ValueError(f"the channel {self.name} needs a message of texts and got {message.origin}")
        texts = [
            told(text, item.receiver) if text.strip() else item.receiver
            for text, item in zip(message.texts, task.items, strict=True)
        ]
        return ReceiverInput(encode(receiver, texts, template=task.template))


def vectors_of(message: Message, name: str, receiver: Model) -> Float[Tensor, "item d_read"]:
    """The vectors of a message, where they are.

    Raises:
        ValueError: it is meant for another model, or holds none.
    """
    message.check_receiver(receiver)
    if message.vectors is None or message.vectors.ndim != 2:
        raise ValueError(f"the channel {name} needs a message with one vector a picture and got {message.origin}")
    return message.vectors


def mapped_on(mapping: AffineMap, rows: Float[Tensor, "*item d_read"], receiver: Model) -> Float[Tensor, "*item d_out"]:
    """What a map gives, computed where the map is, then on the receiver's device: maps are kept on the processor."""
    return mapping(rows.to(mapping.weight.device)).to(receiver.device)


def in_words_place(
    receiver: Model,
    task: Task,
    vectors: Float[Tensor, "item slot d_receiver"] | Sequence[Float[Tensor, "_ d_receiver"]],
) -> ReceiverInput:
    """The questions of a task with soft tokens where the words of a caption would stand."""
    halves = around(receiver, [item.receiver for item in task.items], template=task.template)
    prompts, soft = filled(halves, [each.to(receiver.dtype) for each in vectors])
    return ReceiverInput(prompts, soft=soft)


def around(receiver: Model, asked: Sequence[str], *, template: Template) -> list[Halves]:
    """The ids before and behind the place of a caption's words, for each question.

    Raises:
        ValueError: what `encode` refuses, or a chat template that changes the user's words.
    """
    encode(receiver, list(asked), template=template)  # refuses what cannot be a prompt
    return [around_gap(receiver, BEFORE, AFTER + text, template=template) for text in asked]


def nearest(
    vectors: Float[Tensor, "item d"], known: Float[Tensor, "known d"], centre: Float[Tensor, " d"]
) -> Int[Tensor, " item"]:
    """The number of the known vector at the largest cosine to each, all less the centre."""
    rows, bank = (F.normalize(each.double().cpu() - centre.cpu(), dim=1) for each in (vectors, known))
    return (rows @ bank.T).argmax(1)
