"""The training of a fusion with a map of its own, a gate or a concatenation, for a frozen receiver on a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.channels.training.answers import answer_ids, answer_logits, cross_entropy
from latentcomm.fusion import Fusion
from latentcomm.hooks.graft import LAST, Graft
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task


@dataclass(frozen=True, eq=False)
class FusionLearner:
    """The training of `make(map)`, such as Gated or Concat, on the cross-entropy of the answers after one graft.

    Make one with `FusionLearner.of`; `fusion` is the fusion in its current state.

    Attributes:
        receiver, write: the frozen model and the site of the graft, at the last prompt token.
        make: from the map to the fusion.
        map: the map, which is trained in place.
        vectors: the sender's state of each item.
        prompts, answers: the receiver's prompt of each item, and the tokens that should continue it.
    """

    receiver: Model
    write: Site
    make: Callable[[AffineMap], Fusion]
    map: AffineMap
    vectors: Float[Tensor, "item d_sender"]
    prompts: Prompts
    answers: tuple[list[int], ...]

    @classmethod
    def of(
        cls,
        receiver: Model,
        task: Task,
        message: Message,
        write: Site,
        make: Callable[[AffineMap], Fusion],
        *,
        answers: Sequence[str],
    ) -> "FusionLearner":
        """The learner of a fusion for the messages of a task; `answers` are the texts that should follow the prompts.

        A gate begins at one half everywhere and a concatenation at zero: the map is zero.

        Raises:
            ValueError: a message without one vector an item or for other items, or answers of another number.
        """
        message.check_items(task)
        if message.vectors is None or message.vectors.ndim != 2:
            raise ValueError(f"a fusion is trained on one vector an item, and {message.origin} has none")
        if len(answers) != len(task.items):
            raise ValueError(f"{len(answers)} answers for {len(task.items)} items; give one to each")
        d_in = receiver.d_model + message.vectors.shape[1]
        zero = AffineMap(torch.zeros(receiver.d_model, d_in), torch.zeros(receiver.d_model))
        ids = tuple(answer_ids(receiver, answers))
        return cls(receiver, write, make, zero, message.vectors.detach(), receiver_prompts(receiver, task), ids)

    @property
    def fusion(self) -> Fusion:
        """The fusion with a copy of the map as it is now."""
        return self.make(AffineMap(self.map.weight.detach().clone(), self.map.bias.detach().clone()))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The map's weight and bias."""
        return {"weight": self.map.weight, "bias": self.map.bias}

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The receiver, the site, the kind of fusion, and a digest of the examples."""
        examples = digest(self.vectors, self.prompts, self.answers)
        kind = getattr(self.make, "__qualname__", repr(self.make))
        return {"what": kind, "receiver": self.receiver.name, "write": self.write.hook_name, "examples": examples}

    def __len__(self) -> int:
        return len(self.vectors)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean cross-entropy of the answers."""
        rows = list(batch)
        graft = Graft(self.write, LAST, self.vectors[rows], self.make(self.map))
        answers = [self.answers[row] for row in rows]
        inputs = ReceiverInput(self.prompts.select(rows), (graft,))
        return cross_entropy(answer_logits(self.receiver, inputs, answers), answers)
