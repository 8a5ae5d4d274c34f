"""Latent trajectories: the sender's last states along its plan enter the receiver through a trained adapter."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from latentcomm.channels.base import ReadsOwnText, sender_prompts
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.soft_slots import filled, with_gap
from latentcomm.channels.training.answers import xavier
from latentcomm.channels.training.saved import check_weights, load_weights, save_weights
from latentcomm.hooks.capture import capture
from latentcomm.hooks.decode import decode
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, record_products
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

KIND = "interlat adapter"
LIMIT_IN_SPREADS = 8.0
"""The initial clamp, in standard deviations of the receiver's embedding entries: real rows are within it."""


@dataclass(frozen=True)
class AdapterShape:
    """The sizes of an adapter.

    Attributes:
        d_sender, d_receiver: widths of the two models.
        n_heads: heads of its attention, which divide d_receiver.
        n_steps: the number of latents; None for one a state.
        limit: the bound that entries are clamped to.
        receiver: the name of the model that it is trained for.

    Raises:
        ValueError: heads that do not divide the width, or a number out of its range.
    """

    d_sender: int
    d_receiver: int
    receiver: str
    n_heads: int = 8
    n_steps: int | None = None
    limit: float = math.inf

    def __post_init__(self) -> None:
        if self.n_heads < 1 or self.d_receiver % self.n_heads:
            raise ValueError(f"{self.n_heads} heads do not divide the width {self.d_receiver}; give a divisor of it")
        if (self.n_steps is not None and self.n_steps < 1) or not self.limit > 0:
            raise ValueError(f"n_steps is {self.n_steps} and limit {self.limit}; give positive numbers")


@dataclass(frozen=True, eq=False)
class Adapter:
    """From the sender's states to latents on the scale of the receiver's embeddings.

    x = LN(W h + c); x <- x + Attention(x), 8 heads, over the whole message; x <- LN(x);
    latent = clamp(scale * sigmoid(G x + g) * (P x + p), -limit, limit). A learnt begin and end vector
    enclose the latents. Compressed to K steps, K learnt queries replace x as the queries: each latent is a weighted
    mean of all states, where mean pooling would weigh every span of the message equally, regardless of its content.

    Source: Du et al. 2025, arXiv:2511.09149.

    Raises:
        ValueError: weights that are not of the stated shape.

    >>> adapter = Adapter.initial(AdapterShape(6, 16, "toy", n_steps=2), torch.randn(9, 16), seed=0)
    >>> adapter(torch.randn(5, 6)).shape  # begin, two latents, end
    torch.Size([4, 16])
    """

    shape: AdapterShape
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_weights(self.weights, _shapes(self.shape), of="adapter", shape=self.shape)

    @classmethod
    def initial(cls, shape: AdapterShape, table: Float[Tensor, "d_vocab d_receiver"], *, seed: int = 0) -> "Adapter":
        """An untrained adapter: Xavier matrices, and a scale at which latents are as large as rows of the table."""
        generator = torch.Generator().manual_seed(seed)
        spread, centre = float(table.float().std()), table.float().mean(0).cpu()
        weights: dict[str, Tensor] = {}
        for name, size in _shapes(shape).items():
            if name in ("begin", "end"):
                weights[name] = centre + spread * torch.randn(size, generator=generator)
            elif name == "queries":
                weights[name] = torch.randn(size, generator=generator)
            elif len(size) == 2:
                weights[name] = xavier(size[0], size[1], generator=generator)
            else:
                weights[name] = torch.ones(size) if name.endswith("norm.weight") else torch.zeros(size)
        weights["scale"] = torch.tensor(2 * spread)  # the gate is initially one half
        limit = shape.limit if math.isfinite(shape.limit) else LIMIT_IN_SPREADS * spread
        return cls(replace(shape, limit=limit), weights)

    def __call__(self, states: Float[Tensor, "pos d_sender"]) -> Float[Tensor, "slot d_receiver"]:
        """Begin, the latents of one message, end.

        Raises:
            ValueError: states of another width.
        """
        w, shape = self.weights, self.shape
        if states.shape[1] != shape.d_sender:
            raise ValueError(f"the states are {states.shape[1]} wide and the adapter reads {shape.d_sender}")
        x = F.linear(states.to(w["scale"]), w["in.weight"], w["in.bias"])
        x = F.layer_norm(x, (shape.d_receiver,), w["in_norm.weight"], w["in_norm.bias"])
        queries = x if shape.n_steps is None else w["queries"]
        x = queries + self._attention(queries, x)
        x = F.layer_norm(x, (shape.d_receiver,), w["out_norm.weight"], w["out_norm.bias"])
        gate = torch.sigmoid(F.linear(x, w["gate.weight"], w["gate.bias"]))
        latents = w["scale"] * gate * F.linear(x, w["through.weight"], w["through.bias"])
        return self._between(latents.clamp(-shape.limit, shape.limit))

    def around(self, embeddings: Float[Tensor, "pos d_receiver"]) -> Float[Tensor, "slot d_receiver"]:
        """Begin, the given embeddings, end: a text instead of the latents."""
        return self._between(embeddings.to(self.weights["scale"]))

    def multiply_adds(self, n_states: int) -> int:
        """Of the matrix products over one message."""
        d, n_queries = self.shape.d_receiver, n_states if self.shape.n_steps is None else self.shape.n_steps
        return n_states * d * (self.shape.d_sender + 2 * d) + 4 * n_queries * d * d + 2 * n_queries * n_states * d

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors, atomically."""
        save_weights(path, self.weights, kind=KIND, configuration=asdict(self.shape))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Adapter":
        """The adapter that `save` wrote, bit for bit.

        Raises:
            ValueError: the file is no saved adapter.
        """
        weights, shape = load_weights(path, kind=KIND)
        return cls(AdapterShape(**shape), weights)

    def _between(self, vectors: Tensor) -> Tensor:
        return torch.cat([self.weights["begin"][None], vectors, self.weights["end"][None]])

    def _attention(self, queries: Tensor, states: Tensor) -> Tensor:
        heads = self.shape.n_heads
        query, key, value = (
            rearrange(F.linear(rows, self.weights[f"{name}.weight"]), "pos (head d) -> head pos d", head=heads)
            for name, rows in (("query", queries), ("key", states), ("value", states))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return F.linear(rearrange(attended, "head pos d -> pos (head d)"), self.weights["out.weight"])


@dataclass(frozen=True)
class Interlat(ReadsOwnText):
    """The sender generates a plan; its last states along the plan enter the receiver, adapted, after the user's turn.

    One state a plan token: the state that predicts the token, after the final norm. The receiver reads the user's
    turn, begin, the latents, end. The adapter is trained for one receiver, which stays frozen
    (`channels.training.interlat.InterlatLearner`). The message is the raw states: 4 d_sender bytes a plan token.

    Source: Du et al. 2025, arXiv:2511.09149.
    """

    name: str
    adapter: Adapter
    plan_tokens: int = 8

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The plan as a text, and as its states and token ids.

        Raises:
            ValueError: the sender generates an empty plan, or is of another width than the adapter reads.
        """
        if sender.d_model != self.adapter.shape.d_sender:
            raise ValueError(
                f"{sender.name} is {sender.d_model} wide and the adapter of {self.name} reads "
                f"{self.adapter.shape.d_sender}; train one for this pair"
            )
        prompts = sender_prompts(sender, task)
        plan = decode(sender, prompts, max_new_tokens=self.plan_tokens)
        if empty := [item.id for item, ids in zip(task.items, plan.ids, strict=True) if not ids]:
            raise ValueError(f"{sender.name} generated an empty plan for item {empty[0]!r}; change its prompt")
        states = trajectories(sender, prompts, plan.ids)
        parts = tuple({"states": each, "ids": torch.tensor(ids)} for each, ids in zip(states, plan.ids, strict=True))
        facts = made_by(sender, site="final norm", position="from which each plan token was read")
        return Message(
            None, f"{sender.name} trajectory", texts=tuple(plan.texts), parts=parts,
            meant_for=self.adapter.shape.receiver, made_by=facts,
        ).addressed(task)  # fmt: skip

    def carries_own(self, receiver: Model) -> bool:
        """Whether the adapter reads states of the receiver's width."""
        return receiver.d_model == self.adapter.shape.d_sender

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's prompts with begin, latents, end at the end of the user's turn.

        Raises:
            ValueError: the message is for another receiver, or has no states.
        """
        message.check_receiver(receiver, task)
        texts = [item.receiver for item in task.items]
        with torch.no_grad():
            states = states_of(message, self.name)
            latents = [self.adapter(each) for each in states]
        record_products(receiver, sum(self.adapter.multiply_adds(len(each)) for each in states))
        prompts, soft = filled(with_gap(receiver, texts, template=task.template), latents)
        return ReceiverInput(prompts, soft=soft)


def states_of(message: Message, name: str) -> list[Float[Tensor, "_ d_sender"]]:
    """The states of each item's message.

    Raises:
        ValueError: it has none.
    """
    if message.parts is None or any("states" not in part for part in message.parts):
        raise ValueError(f"the channel {name} needs a message of states along a plan and got {message.origin}")
    return [part["states"] for part in message.parts]


def trajectories(model: Model, prompts: Prompts, plans: Sequence[Sequence[int]]) -> list[Float[Tensor, "_ d_model"]]:
    """For each row the last layer's states, after the final norm, that predict each token of a given plan."""
    rows = [torch.cat([prompts.ids(row), torch.tensor(ids)[:-1]]) for row, ids in enumerate(plans)]
    site, starts = Site(model.n_layers - 1), prompts.lengths.tolist()
    states = capture(model, Prompts.from_ids(rows), [site]).values[site]
    return [
        model.final_norm(states[row, starts[row] - 1 : starts[row] - 1 + len(ids)]) for row, ids in enumerate(plans)
    ]


def new_adapter(
    sender: Model, receiver: Model, *, n_heads: int = 8, n_steps: int | None = None, seed: int = 0
) -> Adapter:
    """An untrained adapter for a pair of models."""
    shape = AdapterShape(sender.d_model, receiver.d_model, receiver.name, n_heads, n_steps)
    return Adapter.initial(shape, receiver.embedding_table, seed=seed)


def _shapes(shape: AdapterShape) -> dict[str, tuple[int, ...]]:
    """The names and shapes of an adapter's weights."""
    d = shape.d_receiver
    sizes: dict[str, tuple[int, ...]] = {"in.weight": (d, shape.d_sender), "in.bias": (d,)}
    sizes |= {f"{name}.weight": (d, d) for name in ("query", "key", "value", "out", "gate", "through")}
    sizes |= {f"{name}.bias": (d,) for name in ("gate", "through")}
    sizes |= {f"{name}.{part}": (d,) for name in ("in_norm", "out_norm") for part in ("weight", "bias")}
    sizes |= {"begin": (d,), "end": (d,), "scale": ()}
    return sizes if shape.n_steps is None else sizes | {"queries": (shape.n_steps, d)}
