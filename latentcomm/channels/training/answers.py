"""Learners on texts and on rows of states, and the answer loss that all learners share."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap
from latentcomm.channels.training.trainer import Schedule, train
from latentcomm.hooks.graft import Graft, check_fired, counting_hooks
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts


def answer_logits(
    model: Model, given: ReceiverInput, answers: Sequence[Sequence[int]], *, with_grad: bool = True
) -> list[Float[Tensor, "_ d_vocab"]]:
    """The logits that predict each token of each given answer, under the receiver's whole input.

    All rows run at once, padded on the right, which causal attention ignores. Gradients reach the soft tokens, the
    grafts and the persistent hooks.

    Raises:
        ValueError: an answer has no token, prompt and answer exceed the context, or there is a past.
        RuntimeError: a graft or the soft tokens did not enter.
    """
    if given.past is not None:
        raise ValueError("gradients do not pass through a past of keys and values; give the receiver prompts alone")
    if min(map(len, answers), default=0) < 1 or len(answers) != len(given.prompts):
        raise ValueError(f"{len(answers)} answers for {len(given.prompts)} prompts; give one of some tokens to each")
    if given.prompts.first.any():  # removes padding on the left and shifts positions counted from it
        given = given.select(range(len(given.prompts)))
    lengths = given.prompts.lengths
    read = zip(given.prompts.tokens.tolist(), lengths.tolist(), answers, strict=True)
    rows = [[*tokens[:length], *ids[:-1]] for tokens, length, ids in read]
    width = max(map(len, rows))
    if width > model.n_ctx:
        raise ValueError(f"a prompt with its answer has {width} tokens and {model.name} reads {model.n_ctx} at most")
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    most = max(map(len, answers))
    wanted = (lengths[:, None] - 1 + torch.arange(most)[None]).clamp(max=width - 1)
    embedded = [0]
    grafts, fired = counting_hooks([_placed(graft, lengths) for graft in given.grafts])
    hooks = [*([] if given.soft is None else [given.soft.hook(embedded)]), *grafts]
    hooks += [hook for each in given.persistent for hook in each.fwd_hooks()]

    def select_wanted(value: Tensor, hook: Any) -> Tensor:
        return value[torch.arange(len(value), device=value.device)[:, None], wanted.to(value.device)]

    hooks.append((model.unembedding_entry, select_wanted))
    logits = model.forward(tokens, hooks=hooks, with_grad=with_grad)
    check_fired(given.grafts, fired)
    if given.soft is not None and embedded[0] != 1:
        raise RuntimeError(f"the soft tokens entered {model.name} {embedded[0]} times instead of once")
    return [logits[row, : len(ids)] for row, ids in enumerate(answers)]


def cross_entropy(logits: Sequence[Float[Tensor, "_ d_vocab"]], answers: Sequence[Sequence[int]]) -> Float[Tensor, ""]:
    """The mean over the answers of the mean cross-entropy of their tokens."""
    right = torch.tensor([token for ids in answers for token in ids], device=logits[0].device)
    share = torch.tensor([1 / (len(ids) * len(answers)) for ids in answers for _ in ids], device=logits[0].device)
    return (F.cross_entropy(torch.cat(list(logits)).float(), right, reduction="none") * share).sum()


def answer_ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of answers as they would continue a prompt, without special tokens.

    Raises:
        ValueError: an answer without a token.
    """
    tokenizer = model.require_tokenizer()
    rows = [list(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    if not all(rows):
        raise ValueError(f"the answer {texts[[bool(row) for row in rows].index(False)]!r} has no token")
    return rows


@dataclass(frozen=True, eq=False)
class TextLearner:
    """The training of all weights of a model to continue prompts with given answers, and to stop after them.

    Attributes:
        model: the model whose weights are changed in place.
        prompts, answers: a text each; the answer's tokens are those of the text alone, then the end of the text.

    Raises:
        ValueError: another number of prompts than of answers, or a text without a token.
    """

    model: Model
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    _rows: list[tuple[list[int], list[int]]] = field(init=False, repr=False)
    _digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.answers):
            raise ValueError(f"{len(self.prompts)} prompts and {len(self.answers)} answers; give one to each")
        end = self.model.require_tokenizer().eos_token_id
        pairs = (answer_ids(self.model, texts) for texts in (self.prompts, self.answers))
        rows = [(prompt, [*answer, end]) for prompt, answer in zip(*pairs, strict=True)]
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_digest", digest(self.prompts, self.answers))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """All weights of the model."""
        return dict(self.model.hooked.named_parameters())

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The model's name and a digest of the texts."""
        return {"what": "texts", "model": self.model.name, "examples": self._digest}

    def __len__(self) -> int:
        return len(self._rows)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean cross-entropy of the answers."""
        answers = [self._rows[row][1] for row in batch]
        given = ReceiverInput(Prompts.from_ids([self._rows[row][0] for row in batch]))
        return cross_entropy(answer_logits(self.model, given, answers), answers)


@dataclass(frozen=True, eq=False)
class LinearRows:
    """The training of W and c in y = W x + c on rows of states by their mean squared error."""

    source: Float[Tensor, "row d_sender"]
    target: Float[Tensor, "row d_receiver"]
    weight: Float[Tensor, "d_receiver d_sender"]
    bias: Float[Tensor, " d_receiver"]

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """W and c."""
        return {"weight": self.weight, "bias": self.bias}

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The rows, by their digest."""
        return {"what": "linear map", "rows": digest(self.source, self.target)}

    def __len__(self) -> int:
        return len(self.source)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean squared error over rows and entries."""
        rows = list(batch)
        return F.mse_loss(self.source[rows] @ self.weight.T + self.bias, self.target[rows])


def train_linear(
    source: Float[Tensor, "row d_sender"],
    target: Float[Tensor, "row d_receiver"],
    *,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> AffineMap:
    """Return the map from source to target that Adam finds: Xavier init, MSE, 10 epochs of batches of 32 at 1e-3.

    That is the published recipe; `alignment.fit_ridge` solves the same problem in closed form and is the better
    baseline.

    Source: Ramesh & Li 2025, arXiv:2501.14082.

    Raises:
        ValueError: no rows.

    >>> rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> train_linear(rows, rows, epochs=200, learning_rate=1e-2).r_squared(rows, rows) > 0.99
    True
    """
    source, target = source.detach().float(), target.detach().float()
    generator = torch.Generator().manual_seed(seed)
    weight = xavier(target.shape[1], source.shape[1], generator=generator)
    learner = LinearRows(source, target, weight, torch.zeros(target.shape[1]))
    steps = math.ceil(epochs * len(source) / batch_size)
    schedule = Schedule(steps, batch_size, learning_rate=learning_rate, clip=None, seed=seed)
    train(learner, schedule, checkpoint=checkpoint, progress=progress, name="linear map")
    return AffineMap(learner.weight.detach(), learner.bias.detach())


def xavier(d_out: int, d_in: int, *, generator: torch.Generator) -> Float[Tensor, "d_out d_in"]:
    """A matrix of uniform entries between plus and minus sqrt(6 / (d_in + d_out))."""
    return (torch.rand(d_out, d_in, generator=generator) * 2 - 1) * math.sqrt(6 / (d_in + d_out))


def _placed(graft: Graft, lengths: Tensor) -> Graft:
    """The graft with its positions counted from the start of each prompt, since an answer follows the prompt."""
    rows = range(len(lengths))
    index = [graft.select([row]).index(torch.empty(1, int(lengths[row]), 1)) for row in rows]
    if len({each.shape[1] for each in index}) != 1:
        raise ValueError(f"the graft at {graft.site.hook_name} names another number of positions in each prompt")
    return replace(graft, position=torch.cat(index))
