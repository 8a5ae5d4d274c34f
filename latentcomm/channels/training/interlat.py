"""The training of an Interlat adapter for a frozen receiver: task, separation and alignment losses, a curriculum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.alignment import fit_ridge
from latentcomm.channels.base import label
from latentcomm.channels.interlat import Adapter, AdapterShape, states_of
from latentcomm.channels.message import Message
from latentcomm.channels.soft_slots import filled, with_gap
from latentcomm.channels.training.answers import answer_ids, answer_logits, cross_entropy
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Halves, Model
from latentcomm.tasks.base import Item, Task

FAINT = 0.1
"""The scale of learnt queries at a warm start, where states have unit spread: small, but enough to differ."""
TENTHS = tuple(number / 10 for number in range(11))


@dataclass(frozen=True)
class InterlatLoss:
    """The adapter's loss: CE + separation (ln 2 - JS) + alignment (KL + 1 - cosine).

    Attributes:
        separation: weight of ln 2 less the Jensen-Shannon divergence between the receiver's distributions under the
            message of the item and under that of an item with another answer.
        alignment: weight of KL(text || latents) + 1 - cosine of the logits, against the receiver that reads the plan's
            own token embeddings instead of the latents.
        curriculum: fractions of positions that are plan token embeddings, one drawn for each example; (0,) for none.

    Source: Du et al. 2025, arXiv:2511.09149.

    Raises:
        ValueError: a negative weight, no fractions, or one outside [0, 1].
    """

    separation: float | int = 1.0
    alignment: float | int = 1.0
    curriculum: tuple[float | int, ...] = TENTHS

    def __post_init__(self) -> None:
        if self.separation < 0 or self.alignment < 0:
            raise ValueError(f"the weights {self.separation} and {self.alignment} must be at least 0")
        if not self.curriculum or not all(0 <= share <= 1 for share in self.curriculum):
            raise ValueError(f"the curriculum {self.curriculum} must be fractions from 0 to 1, and at least one")


@dataclass(frozen=True, eq=False)
class InterlatLearner:
    """The training of an adapter on a task's items, from a sender's messages, computed once.

    Make one with `InterlatLearner.of`. Attributes: as given there; `halves` are the receiver's prompts around the gap,
    `plans` the plans' tokens in the receiver's vocabulary, `texts` its logits after each plan read as text.
    """

    receiver: Model
    adapter: Adapter
    states: tuple[Tensor, ...]
    halves: tuple[Halves, ...]
    answers: tuple[list[int], ...]
    plans: tuple[list[int], ...]
    labels: tuple[str, ...]
    texts: tuple[Tensor, ...] | None
    options: InterlatLoss

    @classmethod
    def of(
        cls,
        receiver: Model,
        task: Task,
        message: Message,
        adapter: Adapter,
        *,
        options: InterlatLoss | None = None,
        answers: Sequence[str] | None = None,
    ) -> "InterlatLearner":
        """The learner of an adapter, which it changes in place; each item's answer is its choice unless given.

        Raises:
            ValueError: a message for another receiver, or (with a curriculum) plans of another vocabulary.
        """
        options = InterlatLoss() if options is None else options
        message.check_receiver(receiver, task)
        states = states_of(message, "Interlat")
        targets = answers if answers is not None else [right_answer(item, task) for item in task.items]
        plans = _plans(receiver, message)
        mixed = [row for row, ids in enumerate(plans) if len(ids) != len(states[row])]
        if mixed and any(share > 0 for share in options.curriculum) and adapter.shape.n_steps is None:
            raise ValueError(
                f"the plan of item {task.items[mixed[0]].id!r} has {len(states[mixed[0]])} states but "
                f"{len(plans[mixed[0]])} tokens of {receiver.name}; a curriculum needs one vocabulary, or use (0,)"
            )
        learner = cls(
            receiver=receiver,
            adapter=adapter,
            states=tuple(states),
            halves=tuple(with_gap(receiver, [item.receiver for item in task.items], template=task.template)),
            answers=tuple(answer_ids(receiver, targets)),
            plans=tuple(plans),
            labels=tuple(label(item) for item in task.items),
            texts=None,
            options=options,
        )
        if not options.alignment:
            return learner
        with torch.no_grad():
            texts = [
                learner._logits([row], [learner._text(row)], with_grad=False)[0].clone() for row in range(len(learner))
            ]
        return replace(learner, texts=tuple(texts))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The adapter's weights."""
        return self.adapter.weights

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The adapter's sizes, the loss, the receiver, and a digest of the examples."""
        examples = digest(self.states, self.halves, self.answers, self.plans)
        return {
            "what": "interlat", "adapter": asdict(self.adapter.shape), "loss": asdict(self.options),
            "receiver": self.receiver.name, "examples": examples,
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.states)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:
        """CE of the answers, plus the weighted separation and alignment, means over the examples."""
        rows = list(batch)
        logits = self._logits(rows, [self._mixed(row, generator) for row in rows])
        total = cross_entropy(logits, [self.answers[row] for row in rows])
        if self.options.separation:
            others = [self._other(row, generator) for row in rows]
            wrong = self._logits(rows, [self._mixed(other, generator) for other in others])
            divergences = [jensen_shannon(a, b) for a, b in zip(logits, wrong, strict=True)]
            total = total + self.options.separation * (math.log(2) - torch.stack(divergences).mean())
        if self.texts is not None:
            alignments = [_alignment(self.texts[row], each) for row, each in zip(rows, logits, strict=True)]
            total = total + self.options.alignment * torch.stack(alignments).mean()
        return total

    def _logits(self, rows: Sequence[int], latents: Sequence[Tensor], *, with_grad: bool = True) -> list[Tensor]:
        prompts, soft = filled([self.halves[row] for row in rows], latents)
        inputs = ReceiverInput(prompts, soft=soft)
        return answer_logits(self.receiver, inputs, [self.answers[row] for row in rows], with_grad=with_grad)

    def _text(self, row: int) -> Tensor:
        return self.adapter.around(self._embedded(row))

    def _embedded(self, row: int) -> Tensor:
        ids = torch.tensor(self.plans[row], device=self.receiver.device)
        return self.receiver.embedding_table[ids]

    def _mixed(self, row: int, generator: torch.Generator) -> Tensor:
        """Begin, latents with the drawn fraction of them replaced by the plan's embeddings there, end."""
        shares = self.options.curriculum
        share = shares[int(torch.randint(len(shares), (), generator=generator))]
        latents = self.adapter(self.states[row])
        n = len(latents) - 2
        if self.adapter.shape.n_steps is not None:  # no latent belongs to a token: the whole plan, or none of it
            whole = float(torch.rand((), generator=generator)) < share
            return self._text(row) if whole else latents
        chosen = torch.randperm(n, generator=generator)[: round(share * n)]
        if len(chosen) == 0:
            return latents
        return latents.index_put((chosen + 1,), self._embedded(row)[chosen].to(latents.dtype))

    def _other(self, row: int, generator: torch.Generator) -> int:
        fits = [other for other, its in enumerate(self.labels) if its != self.labels[row]]
        if not fits:
            raise ValueError(f"every item's answer is {self.labels[row]!r}; separation needs items with other answers")
        return fits[int(torch.randint(len(fits), (), generator=generator))]


def warm_start(
    receiver: Model, message: Message, shape: AdapterShape, *, marker: str | None = None, seed: int = 0
) -> Adapter:
    """An adapter initialised to map each state to the embedding of the plan token that it predicts.

    The input matrix is the ridge regression of the plan tokens' embeddings on the states of a message, with a held-out
    choice of the penalty; attention adds nothing yet (compressed, it is close to the mean over the states), the gate is
    one half, and the last projection the identity. From a Xavier start the same few hundred updates learn the
    frequencies of the answers alone.

    `marker` is a text whose first token's embedding initialises begin and end, instead of random rows. With the last
    word of the receiver's prompt ("... in the country of", " of") the answer's context resembles the message's, and a
    receiver that has learnt to repeat what followed the same token before reads the first latent.

    Raises:
        ValueError: plans whose tokens are not the receiver's, or what `fit_ridge` refuses.
    """
    states, plans = states_of(message, "Interlat"), _plans(receiver, message)
    if any(len(ids) != len(each) for ids, each in zip(plans, states, strict=True)):
        raise ValueError(f"these plans are not in the tokens of {receiver.name}; begin with Adapter.initial")
    table = receiver.embedding_table.float().cpu()
    adapter = Adapter.initial(shape, table, seed=seed)
    ridge = fit_ridge(torch.cat(states).float().cpu(), table[torch.tensor([token for ids in plans for token in ids])])
    identity = torch.eye(shape.d_receiver)
    weights = dict(adapter.weights) | {"in.weight": ridge.weight, "in.bias": ridge.bias, "through.weight": identity}
    weights["gate.weight"] = torch.zeros_like(identity)
    if shape.n_steps is None:
        weights["out.weight"] = torch.zeros_like(identity)
    else:
        weights |= {"value.weight": identity.clone(), "out.weight": identity.clone()}
        weights["queries"] = FAINT * adapter.weights["queries"]
    if marker is not None:
        weights |= {name: table[receiver.first_token(marker)].clone() for name in ("begin", "end")}
    return Adapter(adapter.shape, weights)


def right_answer(item: Item, task: Task) -> str:
    """The text that should continue the receiver's prompt: the item's choice, or its canonical answer."""
    return item.choice or (" " if task.template == "raw" else "") + label(item)


def jensen_shannon(a: Float[Tensor, "pos d_vocab"], b: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, ""]:
    """JS = KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2 of the softmax of two sets of logits; the mean over rows.

    In nats, from 0 (equal) to ln 2 (disjoint).
    """
    p, q = a.float().log_softmax(-1), b.float().log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)).mean() / 2


def _alignment(text: Float[Tensor, "pos d_vocab"], found: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, ""]:
    """KL(text || found) + 1 - cosine of the logits, the mean over positions."""
    p, q = text.float().log_softmax(-1), found.float().log_softmax(-1)
    return ((p.exp() * (p - q)).sum(-1) + 1 - F.cosine_similarity(text.float(), found.float(), dim=-1)).mean()


def _plans(receiver: Model, message: Message) -> list[list[int]]:
    """Each plan in the receiver's tokens: the message's own ids where they mean the same there, else its text."""
    texts = message.texts or ()
    ids = [part["ids"].tolist() for part in message.parts or ()]
    if all(receiver.decode(each) == text for each, text in zip(ids, texts, strict=True)):
        return ids
    return answer_ids(receiver, texts)
