"""The opening passes as hidden states, through a map: as soft tokens, or grafted along its text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.alignment import AffineMap
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.channels.soft_slots import PLACEHOLDER
from latentcomm.drift import DriftReference
from latentcomm.drift.reference import COMBINED
from latentcomm.experiments.cascade.hand_offs.base import Opened, Received, after_prompts, passed, sent
from latentcomm.experiments.cascade.openings import EMBEDDING, opened
from latentcomm.experiments.cascade.retokenize import opening_tokens, shared_positions
from latentcomm.fusion import Replace
from latentcomm.hooks.decode import ReceiverInput, SoftTokens
from latentcomm.hooks.graft import Graft
from latentcomm.models import Model, check_pair
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

EMBEDDINGS = "embeddings"
"""Where a latent hand-off writes: instead of the embeddings of additional prompt tokens."""


@dataclass(frozen=True)
class LatentHandOff(Opened):
    """The large model's states along the opening enter the small model, through a map.

    With `write="embeddings"` no text passes: the small model reads its prompt and n soft tokens, the mapped states.
    With a layer j it reads its prompt and the opening's text, and wherever a token of both models ends at the same
    character its state after block j is fused with the mapped state (a graft: activation patching of the fused state).
    `fit_hand_off` makes one with its map.

    Attributes:
        read: the block after which the large model's states are taken; -1 takes its embeddings.
        write: "embeddings", or the block after which they are written.
        alignment: from the large model's states to the small one's; needed where the widths differ.
        fusion: how a mapped state and the small model's own are combined, at a layer.
        reference: of the small model's own states where the mapped ones enter; None measures no drift.
        itself: the hand-off of the small model's own opening to itself; without it soft tokens have no self control,
            and a graft writes its own state, unmapped, which with `Replace` equals the small model alone.
        name, longest: as in `TextHandOff`.

    Raises:
        ValueError: a layer below -1, or a fusion where there is no own state to fuse with.

    >>> LatentHandOff(read=3, write=2).layers
    (3,)
    """

    read: int
    write: int | Literal["embeddings"] = EMBEDDINGS
    alignment: AffineMap | None = None
    fusion: Callable[..., Any] = field(default_factory=Replace)
    reference: DriftReference | None = None
    itself: "LatentHandOff | None" = None
    name: str = "latent"
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.read < EMBEDDING:
            raise ValueError(f"read is {self.read}; give a block from 0, or -1 for the embedding")
        if self.write == EMBEDDINGS:
            if not isinstance(self.fusion, Replace):
                raise ValueError(
                    f"soft tokens replace no own state, so {self.fusion} has nothing to fuse with; use Replace"
                )
        elif self.write < 0:
            raise ValueError(f"write is {self.write}; give a block from 0, or 'embeddings'")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer that is read."""
        return (self.read,)

    def check(self, large: Model, small: Model, task: Task) -> None:  # noqa: ARG002 (the signature is that of every hand-off)
        """Both models must have the layers, and the map their widths.

        Raises:
            ValueError: they do not, or the widths differ and there is no map.
        """
        check_pair(large, small)
        if self.read != EMBEDDING:
            large.check_site(Site(self.read))
        if isinstance(self.write, int):
            small.check_site(Site(self.write))
        if self.alignment is None:
            if large.d_model != small.d_model:
                raise ValueError(
                    f"{large.name} is {large.d_model} wide and {small.name} {small.d_model}, and the hand-off "
                    f"{self.name} has no alignment; fit one with fit_hand_off"
                )
        elif (self.alignment.d_in, self.alignment.d_out) != (large.d_model, small.d_model):
            raise ValueError(
                f"the alignment of {self.name} maps {self.alignment.d_in} to {self.alignment.d_out}, and {large.name} "
                f"and {small.name} are {large.d_model} and {small.d_model} wide; fit one for this pair"
            )
        if self.reference is not None and self.reference.d_model != small.d_model:
            raise ValueError(
                f"the drift reference of {self.name} is {self.reference.d_model} wide and {small.name} "
                f"{small.d_model}; fit one for this model"
            )

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's states along its opening of each item's receiver text, in the receiver's space."""
        return sent(self, sender, task, receiver, self.longest)

    def content(self, openings: Message) -> Message:
        """The states along each opening in the small model's space, `states [n d_receiver]`, with their tokens.

        Raises:
            ValueError: the openings hold no states of the layer.
        """
        _, parts = opened(openings)
        name = f"states.{self.read}"
        if not all(name in part for part in parts):
            raise ValueError(
                f"the openings hold no states after block {self.read}; write them with layers=({self.read},)"
            )
        return passed(openings, states=[self._mapped(part[name]) for part in parts])

    def to_itself(self) -> "LatentHandOff | None":
        """`itself`; at a layer, where that is None, the same layer's states without a map."""
        if self.write == EMBEDDINGS or self.itself is not None:
            return self.itself
        return LatentHandOff(int(self.write), self.write, None, self.fusion, self.reference, None, self.name)

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The prompts followed by soft tokens, or by the opening's text with grafts.

        Raises:
            ValueError: the message holds no states, an opening no whole character, or what `TextHandOff` refuses.
        """
        message.check_items(task)
        states = [each[:n] for each, n in zip(states_of(message), ns, strict=True)]
        if self.write == EMBEDDINGS:
            return self._as_embeddings(small, task, states)
        opening = opening_tokens(small, task, message, ns)
        starts = receiver_prompts(small, task).lengths.tolist()
        positions = shared_positions(small, message, ns, opening)
        for item, (shared, _), n in zip(task.items, positions, ns, strict=True):
            if len(shared) == 0:
                raise ValueError(
                    f"the first {n} tokens of the opening of item {item.id!r} hold no whole character, so {self.name} "
                    "has no position to write at; use a larger n"
                )
        used = [each[mine] for each, (mine, _) in zip(states, positions, strict=True)]
        widest = max(map(len, used))
        # A row with fewer positions repeats its last one, where the same state is then written twice.
        index = [torch.arange(widest).clamp(max=len(each) - 1) for each in used]
        graft = Graft(
            Site(int(self.write)),
            torch.stack([at[i] + start for (_, at), i, start in zip(positions, index, starts, strict=True)]),
            torch.stack([each[i] for each, i in zip(used, index, strict=True)]),
            self.fusion,
        )
        given = replace(after_prompts(small, task, opening), grafts=(graft,))
        return Received(given, tuple(opening), self._multiply_adds(used), self._drift(used))

    def _mapped(self, states: Float[Tensor, "n d_sender"]) -> Float[Tensor, "n d_receiver"]:
        return states if self.alignment is None else self.alignment(states.to(self.alignment.weight.device))

    def _as_embeddings(self, small: Model, task: Task, states: Sequence[Float[Tensor, "_ d_receiver"]]) -> Received:
        prompts = receiver_prompts(small, task)
        ids = [[*prompts.ids(row).tolist(), *[PLACEHOLDER] * len(each)] for row, each in enumerate(states)]
        positions = [torch.arange(len(row) - len(each), len(row)) for row, each in zip(ids, states, strict=True)]
        soft = SoftTokens(tuple(positions), tuple(states))
        given = ReceiverInput(Prompts.from_ids(ids), soft=soft)
        return Received(given, (None,) * len(states), self._multiply_adds(states), self._drift(states))

    def _multiply_adds(self, states: Sequence[Tensor]) -> tuple[int, ...]:
        each = 0 if self.alignment is None else self.alignment.weight.numel()
        return tuple(len(row) * each for row in states)

    def drift_of(self, states: Float[Tensor, "n d_receiver"]) -> list[float]:
        """The percentile of each state among the small model's own; NaN without a reference."""
        if self.reference is None:
            return [math.nan] * len(states)
        return self.reference.percentile(states.float().cpu())[COMBINED].tolist()

    def _drift(self, states: Sequence[Float[Tensor, "_ d_receiver"]]) -> tuple[float | None, ...]:
        if self.reference is None or not any(bool(each.any()) for each in states):
            return (None,) * len(states)
        drift = torch.tensor(self.drift_of(torch.cat(list(states))), dtype=torch.float64)
        return tuple(float(part.mean()) for part in drift.split([len(each) for each in states]))


def states_of(message: Message) -> list[Float[Tensor, "_ d_receiver"]]:
    """The states of a latent hand-off's message, `[n d_receiver]` an item.

    Raises:
        ValueError: it holds none.
    """
    _, parts = opened(message)
    if not all("states" in part for part in parts):
        raise ValueError(f"a message of {message.origin} holds no states; send one with a latent hand-off")
    return [part["states"] for part in parts]
