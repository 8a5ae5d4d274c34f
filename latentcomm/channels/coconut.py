"""Continuous thoughts: a model's last state is fed back as its next input before it answers or sends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm._core.linalg import mapped
from latentcomm.channels.base import ReadsOwnText
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.soft_slots import with_gap
from latentcomm.hooks.capture import run_to_deepest
from latentcomm.hooks.receiver_input import EMBEDDED, ReceiverInput, SoftTokens
from latentcomm.models import Halves, Model
from latentcomm.models.prompts import Prompts
from latentcomm.tasks.base import Task


@dataclass(frozen=True)
class Coconut(ReadsOwnText):
    """The sender generates thoughts after its prompt; they enter the receiver's prompt between the two markers.

    A thought is the last layer's state after the final norm; it replaces the next input embedding, and this is
    repeated `n_thoughts` times. Within one model, whose sender and receiver read the same text, this is Coconut itself:
    the receiver reads question, begin, thoughts, end and continues with tokens. With different texts the thoughts are a
    message. Without thoughts there are no markers either, and the receiver reads its prompt alone.

    Without training the method rarely helps: a thought is many times as long as a row of the embedding table (on
    SmolLM2-135M 15 times), outside the distribution of inputs. `norm` rescales every thought that enters to one norm.

    Attributes:
        n_thoughts: how many times the state is fed back.
        begin, end: the markers, each a single token of both vocabularies.
        alignment: maps the sender's thoughts into a receiver of another width.
        norm: the L2 norm that thoughts are rescaled to, in the sender's own passes and in the receiver; None leaves
            them unscaled, which is the published method.

    Source: Hao et al. 2024, arXiv:2412.06769.
    """

    name: str
    n_thoughts: int
    begin: str
    end: str
    alignment: Callable[..., Any] | None = None
    norm: float | None = None

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The thoughts after each prompt; with none, a message without tensors."""
        facts = made_by(sender, site="final norm", position=f"{self.n_thoughts} thoughts after the prompt")
        halves = with_gap(sender, [item.sender for item in task.items], template=task.template)
        if self.n_thoughts == 0:
            nothing = Message(None, f"{sender.name} thoughts", parts=tuple({} for _ in halves), made_by=facts)
            return nothing.addressed(task)
        begin = marker(sender, self.begin)
        rows = Prompts.from_ids([[*before, begin] for before, _ in halves])
        parts: list[dict[str, Tensor]] = [{} for _ in halves]
        for group in rows.groups_of_equal_length():
            tokens = rows.select(group).tokens
            thoughts, _ = think(sender, tokens, n=self.n_thoughts, norm=self.norm)
            for row, vectors in zip(group, thoughts, strict=True):
                parts[row] = {"thoughts": vectors}
        return Message(None, f"{sender.name} thoughts", parts=tuple(parts), made_by=facts).addressed(task)

    def carries_own(self, receiver: Model) -> bool:
        """Yes where thoughts enter unmapped: a model can read its own."""
        return self.alignment is None

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's prompts with begin, thoughts and end at the end of the user's turn.

        Raises:
            ValueError: the message is for another receiver, has no thoughts, or thoughts of another width.
        """
        message.check_receiver(receiver, task)
        halves = with_gap(receiver, [item.receiver for item in task.items], template=task.template)
        if message.parts is None:
            raise ValueError(f"the channel {self.name} needs a message of thoughts and got {message.origin}")
        if self.n_thoughts == 0:
            return ReceiverInput(Prompts.from_ids([[*before, *after] for before, after in halves]))
        vectors = [self._entering(receiver, part, message) for part in message.parts]
        return ReceiverInput(*between(receiver, halves, vectors, begin=self.begin, end=self.end))

    def _entering(self, receiver: Model, part: Mapping[str, Tensor], message: Message) -> Tensor:
        if "thoughts" not in part:
            raise ValueError(f"the channel {self.name} needs a message of thoughts and got {message.origin}")
        thoughts = part["thoughts"].to(receiver.dtype)
        if self.alignment is not None and not message.is_own:
            thoughts = mapped(self.alignment, thoughts)
        if thoughts.shape[1] != receiver.d_model:
            raise ValueError(
                f"thoughts {thoughts.shape[1]} wide cannot enter {receiver.name}, which is {receiver.d_model} wide; "
                "give an alignment"
            )
        return _of_norm(thoughts, self.norm)


def think(
    model: Model, tokens: Int[Tensor, "batch pos"], *, n: int, norm: float | None = None, with_grad: bool = False
) -> tuple[Float[Tensor, "batch thought d_model"], Any]:
    """The n thoughts after prompts of one length, and the cache of all inputs: the prompt and thoughts 1 to n-1.

    Pass 1 reads the prompt, and each of the n - 1 later passes the previous thought. Gradients flow through all passes.

    Raises:
        ValueError: n below 1, or more positions than the model reads.
    """
    if n < 1:
        raise ValueError(f"n is {n}; give at least one thought")
    if tokens.shape[1] + n > model.n_ctx:
        raise ValueError(f"{tokens.shape[1]} tokens and {n} thoughts exceed the {model.n_ctx} of {model.name}")
    cache = model.new_cache(len(tokens))
    thoughts: list[Tensor] = []
    entering, hooks = tokens, []
    for _ in range(n):
        thoughts.append(_of_norm(_last_state(model, entering, hooks, cache, with_grad=with_grad), norm))
        entering, hooks = tokens[:, -1:], [_entry(thoughts[-1])]
    return torch.stack(thoughts, 1), cache


def between(
    model: Model, halves: Sequence[Halves], vectors: Sequence[Float[Tensor, "_ d_model"]], *, begin: str, end: str
) -> tuple[Prompts, tuple[()], SoftTokens]:
    """Prompts with begin, a position for each vector and end in their gaps, no grafts, and the soft tokens."""
    begin_id, end_id = marker(model, begin), marker(model, end)
    rows, positions = [], []
    for (before, after), thoughts in zip(halves, vectors, strict=True):
        positions.append(torch.arange(len(before) + 1, len(before) + 1 + len(thoughts)))
        rows.append([*before, begin_id, *[begin_id] * len(thoughts), end_id, *after])
    return Prompts.from_ids(rows), (), SoftTokens(tuple(positions), tuple(vectors))


def marker(model: Model, text: str) -> int:
    """The token id of a marker.

    Raises:
        ValueError: the marker is no single known token of this vocabulary.
    """
    ids = model.require_tokenizer()(text, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        raise ValueError(
            f"the marker {text!r} is {len(ids)} known tokens of {model.name}; choose one that is a single token"
        )
    return int(ids[0])


@dataclass(frozen=True, eq=False)
class CoconutLearner:
    """The training of a whole model at one stage: its first `stage` steps are thoughts, the rest is text.

    The text is question, begin, stage x per_step thoughts, end, the remaining steps, the answer, and the end of the
    text; the loss is the cross-entropy of the tokens after the thoughts. With `per_step` 0 no step is replaced and
    there are no markers: chain of thought, at every stage.

    Attributes:
        model: all of whose weights are trained.
        questions, steps, answers: texts, and the steps of each solution in order.
        begin, end: the markers.
        stage, per_step: k and c.
        norm: the L2 norm that every thought is rescaled to before it is read; None leaves it unscaled, as published.
        inside: whether the remaining text steps precede the end marker, where thoughts will be, instead of following it
            as published. A model with tied embeddings then learns with tokens what it is to do with thoughts: the state
            that predicts a token, and that token's embedding, point the same way.

    Source: Hao et al. 2024, arXiv:2412.06769.

    Raises:
        ValueError: another number of questions than of solutions, a negative stage, or more steps to replace than one
            has.
    """

    model: Model
    questions: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]
    begin: str
    end: str
    stage: int
    per_step: int = 1
    norm: float | None = None
    inside: bool = False
    _rows: list[tuple[list[int], list[int]]] = field(init=False, repr=False)
    _digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.questions) == len(self.steps) == len(self.answers):
            raise ValueError(
                f"{len(self.questions)} questions, {len(self.steps)} lists of steps and {len(self.answers)} answers; "
                "give one of each to every example"
            )
        least = min(map(len, self.steps), default=0)
        if not 0 <= self.stage <= least or self.per_step < 0:
            raise ValueError(
                f"stage is {self.stage} and per_step {self.per_step}; the shortest solution has {least} steps"
            )
        tokenizer = self.model.require_tokenizer()
        n_replaced = self.stage if self.per_step else 0
        rows = []
        for question, steps, answer in zip(self.questions, self.steps, self.answers, strict=True):
            question_ids = tokenizer(question, add_special_tokens=False).input_ids
            end_marker = (self.end,) if self.inside else ()
            text = " ".join((*steps[n_replaced:], *end_marker, answer))
            target_ids = tokenizer(text, add_special_tokens=False).input_ids
            rows.append((list(question_ids), [*target_ids, tokenizer.eos_token_id]))
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_digest", digest(self.questions, self.steps, self.answers))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """All weights of the model."""
        return dict(self.model.hooked.named_parameters())

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The stage, and digests of the texts."""
        return {
            "what": "coconut", "model": self.model.name, "stage": self.stage, "per_step": self.per_step,
            "begin": self.begin, "end": self.end, "norm": self.norm, "inside": self.inside, "examples": self._digest,
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.questions)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean cross-entropy over all tokens after the thoughts."""
        rows = [self._rows[row] for row in batch]
        groups: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {}
        for question, target in rows:
            groups.setdefault((len(question), len(target)), []).append((question, target))
        total = torch.stack([self._summed(group) for group in groups.values()]).sum()
        return total / sum(len(target) for _, target in rows)

    def _summed(self, group: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """The summed cross-entropy of examples with questions of one length and targets of one length."""
        device = self.model.device
        questions, targets = (torch.tensor([row[part] for row in group], device=device) for part in (0, 1))
        n = self.stage * self.per_step
        if n == 0 and self.per_step == 0:
            entering, cache, hooks = torch.cat([questions, targets[:, :-1]], 1), None, []
        else:
            column = torch.ones(len(questions), 1, dtype=torch.long, device=device)
            begin, end = (column * marker(self.model, text) for text in (self.begin, self.end))
            prefix = torch.cat([questions, begin], 1)
            suffix = targets[:, :-1] if self.inside else torch.cat([end, targets[:, :-1]], 1)
            if n == 0:
                entering, cache, hooks = torch.cat([prefix, suffix], 1), None, []
            else:
                thoughts, cache = think(self.model, prefix, n=n, norm=self.norm, with_grad=True)
                entering, hooks = torch.cat([end, suffix], 1), [_entry(thoughts[:, -1])]
        logits = self.model.forward(entering, hooks=hooks, cache=cache, with_grad=True)[:, -targets.shape[1] :]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def _last_state(
    model: Model, tokens: Tensor, hooks: Sequence[Any], cache: Any, *, with_grad: bool
) -> Float[Tensor, "batch d_model"]:
    """The last layer's state of the last token, after the final norm."""
    point = f"blocks.{model.n_layers - 1}.hook_resid_post"
    seen = run_to_deepest(model, tokens, [point], hooks=hooks, cache=cache, with_grad=with_grad)
    return model.final_norm(seen[point][:, -1], with_grad=with_grad)


def _entry(thought: Float[Tensor, "batch d_model"]) -> Any:
    """A hook that replaces the first input embedding by the thought."""

    def write(value: Tensor, hook: Any) -> Tensor:
        return torch.cat([thought[:, None].to(value), value[:, 1:]], 1)

    return EMBEDDED, write


def _of_norm(vectors: Float[Tensor, "*batch d_model"], norm: float | None) -> Float[Tensor, "*batch d_model"]:
    return vectors if norm is None else F.normalize(vectors, dim=-1) * norm
