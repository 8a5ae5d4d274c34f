"""CALM: a frozen receiver reads a frozen sender's states by trained cross-attention at paired layers, in every pass."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.channels.base import ReadsOwnText, receiver_prompts, sender_prompts
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.training.answers import answer_ids, answer_logits, cross_entropy, xavier
from latentcomm.channels.training.saved import check_weights, load_weights, save_weights
from latentcomm.hooks.capture import capture
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Hook, Model, record_products
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

KIND = "calm bridge"


def paired_layers(n_sender: int, n_receiver: int, *, every: int = 4) -> tuple[tuple[int, int], ...]:
    """Every n-th layer of the sender with evenly spaced layers of the receiver, (sender, receiver), counted from 0.

    The i-th of m pairs joins sender layer i * every - 1 to receiver layer round(i * n_receiver / m) - 1, for i = 1..m,
    m = n_sender // every (or the receiver's number of layers, if that is less).

    Raises:
        ValueError: `every` is below 1 or above the sender's number of layers.

    >>> paired_layers(8, 4, every=4), paired_layers(2, 3, every=1)
    (((3, 1), (7, 3)), ((0, 1), (1, 2)))
    """
    if not 1 <= every <= n_sender:
        raise ValueError(f"every is {every} and the sender has {n_sender} layers; give 1 to {n_sender}")
    n_pairs = min(n_sender // every, n_receiver)
    return tuple(
        (number * every - 1, (2 * number * n_receiver + n_pairs) // (2 * n_pairs) - 1)
        for number in range(1, n_pairs + 1)
    )


@dataclass(frozen=True)
class BridgeShape:
    """The sizes of a bridge.

    Attributes:
        d_sender, d_receiver: widths of the two models.
        receiver: the name of the model that it is trained for.
        pairs: (sender layer, receiver layer), as `paired_layers` gives them.
        n_heads: heads of each cross-attention, which divide d_receiver.

    Raises:
        ValueError: no pairs, a receiver layer twice, or heads that do not divide the width.
    """

    d_sender: int
    d_receiver: int
    receiver: str
    pairs: tuple[tuple[int, int], ...]
    n_heads: int = 4

    def __post_init__(self) -> None:
        written = [layer for _, layer in self.pairs]
        if not written or len(set(written)) < len(written):
            raise ValueError(f"the pairs {self.pairs} must be at least one, each of another receiver layer")
        if self.n_heads < 1 or self.d_receiver % self.n_heads:
            raise ValueError(f"{self.n_heads} heads do not divide the width {self.d_receiver}; give a divisor of it")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "BridgeShape":
        """The shape from plain values, as in a file, with the pairs as lists."""
        return cls(**{**values, "pairs": tuple((int(read), int(write)) for read, write in values["pairs"])})


@dataclass(frozen=True, eq=False)
class Bridge:
    """The trained part: at each pair, b <- b + O Attention(Q norm(b), K P norm(a), V P norm(a)).

    a are the sender's states over its whole prompt, P the projection from d_sender to d_receiver, norm the division by
    the root mean square, without which the large entries of a residual stream drive the softmax. O is initialised to
    zero, so that an untrained bridge changes nothing.

    Source: Bansal et al. 2024, arXiv:2401.02412.

    Raises:
        ValueError: weights that are not of the stated shape.
    """

    shape: BridgeShape
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_weights(self.weights, _shapes(self.shape), of="bridge", shape=self.shape)

    @classmethod
    def initial(cls, shape: BridgeShape, *, seed: int = 0) -> "Bridge":
        """An untrained bridge, which changes nothing."""
        generator = torch.Generator().manual_seed(seed)
        weights = {name: xavier(size[0], size[1], generator=generator) for name, size in _shapes(shape).items()}
        return cls(shape, {n: torch.zeros_like(w) if n.endswith(".out") else w for n, w in weights.items()})

    def added(
        self,
        pair: int,
        own: Float[Tensor, "batch pos d_receiver"],
        sender_states: Float[Tensor, "batch pos_sender d_sender"],
        mask: Bool[Tensor, "batch pos_sender"],
    ) -> Float[Tensor, "batch pos d_receiver"]:
        """What the cross-attention of one pair adds to the receiver's states; masked positions get no attention."""
        like = self.weights[f"{pair}.out"]
        rows = F.linear(_rms(sender_states.to(like)), self.weights[f"{pair}.project"])
        query, key, value = (
            rearrange(
                F.linear(given, self.weights[f"{pair}.{name}"]),
                "batch pos (head d_head) -> batch head pos d_head",
                head=self.shape.n_heads,
            )
            for name, given in (("query", _rms(own.to(like))), ("key", rows), ("value", rows))
        )
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :].to(like.device))
        seen = rearrange(seen, "batch head pos d_head -> batch pos (head d_head)")
        return F.linear(seen, like).to(own)

    def multiply_adds(self, n_own: int, n_sender: int) -> int:
        """Of one pair, for `n_own` positions of the receiver that attend to `n_sender` positions of the sender."""
        d_sender, d = self.shape.d_sender, self.shape.d_receiver
        return n_sender * d * (d_sender + 2 * d) + 2 * n_own * d * d + 2 * n_own * n_sender * d

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors, atomically."""
        save_weights(path, self.weights, kind=KIND, configuration=asdict(self.shape))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Bridge":
        """The bridge that `save` wrote, bit for bit.

        Raises:
            ValueError: the file is no saved bridge.
        """
        weights, shape = load_weights(path, kind=KIND)
        return cls(BridgeShape.of(shape), weights)


@dataclass(frozen=True, eq=False)
class Attending:
    """The bridge with the messages of some items: hooks that add its cross-attention in every pass.

    Attributes:
        bridge: the trained part.
        states: for each item and each pair, the sender's states at the paired layer.
        receiver: the model that the cost is recorded for; None does not record it.
    """

    bridge: Bridge
    states: tuple[tuple[Float[Tensor, "_ d_sender"], ...], ...]
    receiver: Model | None = None

    def __len__(self) -> int:
        return len(self.states)

    def select(self, rows: Sequence[int]) -> "Attending":
        """The same for some of the items, in the given order."""
        return replace(self, states=tuple(self.states[row] for row in rows))

    def fwd_hooks(self) -> list[Hook]:
        """One hook a pair, after its receiver layer."""
        lengths = torch.tensor([len(each[0]) for each in self.states])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]

        receiver = self.receiver

        def hook_of(pair: int, layer: int) -> Hook:
            states = torch.nn.utils.rnn.pad_sequence([each[pair] for each in self.states], batch_first=True)

            def write(value: Tensor, hook: Any) -> Tensor:
                if receiver is not None:
                    each = (self.bridge.multiply_adds(value.shape[1], n) for n in lengths.tolist())
                    record_products(receiver, sum(each))
                return value + self.bridge.added(pair, value, states, mask)

            return Site(layer).hook_name, write

        return [hook_of(pair, layer) for pair, (_, layer) in enumerate(self.bridge.shape.pairs)]

    def reply_hooks(self) -> list[Hook]:
        """The same hooks: they read the sender's states at every position of the receiver."""
        return self.fwd_hooks()


@dataclass(frozen=True)
class Calm(ReadsOwnText):
    """The sender reads its prompt once; the receiver attends to its states at the paired layers in every pass.

    Both models are frozen. The message is the sender's states over its whole prompt at its paired layers: 4 d_sender
    bytes a token and pair. The bridge is trained for one receiver (`CalmLearner`).

    Source: Bansal et al. 2024, arXiv:2401.02412, where the sender also reads the generated text; here it reads its
    own prompt alone, as every sender does.
    """

    name: str
    bridge: Bridge

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The states at the paired layers, over each prompt.

        Raises:
            ValueError: the sender lacks a layer, or is of another width than the bridge reads.
        """
        shape = self.bridge.shape
        if sender.d_model != shape.d_sender:
            raise ValueError(
                f"{sender.name} is {sender.d_model} wide and the bridge of {self.name} reads {shape.d_sender}; "
                "train one for this pair"
            )
        layers = [read for read, _ in shape.pairs]
        states = states_over(sender, sender_prompts(sender, task), layers)
        parts = tuple({f"layer {layer}": each for layer, each in zip(layers, row, strict=True)} for row in states)
        sites = " ".join(Site(layer).hook_name for layer in layers)
        facts = made_by(sender, site=sites, position="every prompt token")
        message = Message(None, f"{sender.name} states", parts=parts, meant_for=shape.receiver, made_by=facts)
        return message.addressed(task)

    def carries_own(self, receiver: Model) -> bool:
        """Whether the bridge reads states of the receiver's width and layers that it has."""
        deepest = max(read for read, _ in self.bridge.shape.pairs)
        return receiver.d_model == self.bridge.shape.d_sender and deepest < receiver.n_layers

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's prompts, with the bridge's persistent hooks.

        Raises:
            ValueError: the message is for another receiver, or lacks a paired layer's states.
        """
        message.check_receiver(receiver, task)
        attending = Attending(self.bridge, message_states(message, self.bridge.shape), receiver)
        return ReceiverInput(receiver_prompts(receiver, task), persistent=(attending,))


def message_states(message: Message, shape: BridgeShape) -> tuple[tuple[Tensor, ...], ...]:
    """For each item the states of every pair.

    Raises:
        ValueError: the message lacks them.
    """
    names = [f"layer {read}" for read, _ in shape.pairs]
    parts = message.parts or ()
    if not parts or any(name not in part for part in parts for name in names):
        raise ValueError(f"the bridge needs a message of states at {', '.join(names)} and got {message.origin}")
    return tuple(tuple(part[name] for name in names) for part in parts)


def states_over(model: Model, prompts: Prompts, layers: Sequence[int]) -> list[tuple[Float[Tensor, "_ d_model"], ...]]:
    """For each prompt the states after some layers at all its tokens.

    Raises:
        ValueError: a layer that the model does not have.
    """
    sites = [Site(layer) for layer in layers]
    seen = capture(model, prompts, sites)
    states = [seen.values[site].to(model.device) for site in sites]
    return [tuple(each[row, :length] for each in states) for row, length in enumerate(prompts.lengths.tolist())]


@dataclass(frozen=True, eq=False)
class CalmLearner:
    """The training of a bridge on a task's items, from a sender's messages, computed once: CE of the answers.

    Make one with `CalmLearner.of`. Attributes: the frozen receiver, the trained bridge, the sender's states of every
    item, the receiver's prompts, and the answers' tokens.
    """

    receiver: Model
    bridge: Bridge
    states: tuple[tuple[Tensor, ...], ...]
    prompts: Prompts
    answers: tuple[list[int], ...]

    @classmethod
    def of(
        cls, receiver: Model, task: Task, message: Message, bridge: Bridge, *, answers: Sequence[str]
    ) -> "CalmLearner":
        """The learner of a bridge, which it changes in place; `answers` are the texts that should follow the prompts.

        Raises:
            ValueError: a message for another receiver, without the bridge's layers, or answers of another number.
        """
        message.check_receiver(receiver, task)
        if len(answers) != len(task.items):
            raise ValueError(f"{len(answers)} answers for {len(task.items)} items; give one to each")
        states, ids = message_states(message, bridge.shape), answer_ids(receiver, answers)
        return cls(receiver, bridge, states, receiver_prompts(receiver, task), tuple(ids))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The bridge's weights."""
        return self.bridge.weights

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The bridge's sizes, the receiver, and a digest of the examples."""
        examples = digest(self.states, self.prompts, self.answers)
        shape = asdict(self.bridge.shape)
        return {"what": "calm", "bridge": shape, "receiver": self.receiver.name, "examples": examples}

    def __len__(self) -> int:
        return len(self.states)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean cross-entropy of the answers."""
        rows = list(batch)
        attending = Attending(self.bridge, tuple(self.states[row] for row in rows))
        answers = [self.answers[row] for row in rows]
        inputs = ReceiverInput(self.prompts.select(rows), persistent=(attending,))
        return cross_entropy(answer_logits(self.receiver, inputs, answers), answers)


def new_bridge(sender: Model, receiver: Model, *, every: int = 4, n_heads: int = 4, seed: int = 0) -> Bridge:
    """An untrained bridge for a pair of models."""
    pairs = paired_layers(sender.n_layers, receiver.n_layers, every=every)
    shape = BridgeShape(sender.d_model, receiver.d_model, receiver.name, pairs, n_heads)
    return Bridge.initial(shape, seed=seed)


def _rms(states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """States over their root mean square; the clamp, float32's smallest normal number, leaves zeros at zero."""
    return states / states.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float32).tiny)


def _shapes(shape: BridgeShape) -> dict[str, tuple[int, int]]:
    """The names and shapes of a bridge's weights."""
    d = shape.d_receiver
    sizes: dict[str, tuple[int, int]] = {}
    for pair in range(len(shape.pairs)):
        sizes[f"{pair}.project"] = (d, shape.d_sender)
        sizes |= {f"{pair}.{name}": (d, d) for name in ("query", "key", "value", "out")}
    return sizes
