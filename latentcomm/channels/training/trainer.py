"""Train a few tensors with all other weights frozen: seeded, resumed bit for bit, with atomic writes of the result."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import expanded
from latentcomm._core.progress import duration, say
from latentcomm.channels.training.saved import check_weights, load_weights, resume, save_weights, write_checkpoint
from latentcomm.models import Model, why_not_finite

__all__ = [
    "Schedule",
    "Trainable",
    "Training",
    "check_weights",
    "frozen_weights",
    "load_weights",
    "marks",
    "save_weights",
    "train",
]

REPORTS = 10
"""Progress lines that a training prints, and how often it computes the loss on held-out examples."""
SAVE_EVERY = 30.0
"""Seconds between two checkpoints: what an interrupted training loses at most, with one update."""


@runtime_checkable
class Trainable(Protocol):
    """What `train` needs: the trained tensors, the configuration of the training, and its loss on some examples."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The tensors that are trained, by name; `train` changes them in place and nothing else."""
        ...

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Plain values that a checkpoint must match: the sizes, the options, a digest of the examples."""
        ...

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean loss over the examples of these numbers; all random numbers come from the generator."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The optimiser's settings: AdamW with a linear warm-up and, where `final_rate` is below 1, a linear decay.

    Attributes:
        steps: updates of the parameters.
        batch_size: examples a pass; `accumulate` passes make an update.
        learning_rate: after the warm-up of `warmup` updates; the last update has `final_rate` times it.
        weight_decay: AdamW's; 0 makes it Adam.
        clip: the largest norm of all gradients together; None does not clip.
        dtype: of the arithmetic; "bfloat16" is torch's autocast over float32 parameters.
        seed: of the order of the examples and of the random numbers of a loss.

    Raises:
        ValueError: a number out of its range.

    >>> [round(Schedule(steps=4, learning_rate=1.0, warmup=2, final_rate=0.5).rate(step), 2) for step in range(4)]
    [0.5, 1.0, 0.75, 0.5]
    """

    steps: int
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 0
    final_rate: float | int = 1.0
    weight_decay: float | int = 0.0
    clip: float | int | None = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("accumulate", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; give a positive number")
        if not 0 <= self.final_rate <= 1 or self.weight_decay < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(
                f"final_rate {self.final_rate} must be in [0, 1], weight_decay {self.weight_decay} at least 0, "
                f"and clip {self.clip} positive or None"
            )

    def rate(self, step: int) -> float:
        """The learning rate of an update, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        decay_steps = max(1, self.steps - self.warmup)
        share = (step - self.warmup + 1) / decay_steps
        return self.learning_rate * (1 - (1 - self.final_rate) * share)


@dataclass(frozen=True)
class Training:
    """The record of a training.

    Attributes:
        losses: the loss before every update.
        held_out: the number of updates done and the loss on held-out examples then, before the first update and at
            each of `marks`; empty where none are held out.
        seconds: the total time, the part before an interruption included.
        resumed_at: the number of updates that the checkpoint held when this run began.
    """

    losses: tuple[float, ...]
    seconds: float
    resumed_at: int = 0
    held_out: tuple[tuple[int, float], ...] = ()

    @property
    def mean_losses(self) -> tuple[float, ...]:
        """The mean loss of each tenth of the updates, in order; left-over updates make further parts.

        >>> Training(losses=(4.0, 2.0, 1.0), seconds=0.0).mean_losses
        (4.0, 2.0, 1.0)
        """
        tenth = max(1, len(self.losses) // 10)
        parts = [self.losses[start : start + tenth] for start in range(0, len(self.losses), tenth)]
        return tuple(sum(part) / len(part) for part in parts)

    @property
    def curve(self) -> list[tuple[int, float, float]]:
        """At 0 updates and at each of `marks`: the updates done, the mean loss since the last mark, the held-out loss.

        NaN where there is none.

        >>> Training(losses=(4.0, 2.0), seconds=0.0, held_out=((0, 5.0), (1, 3.0), (2, 2.5))).curve
        [(0, nan, 5.0), (1, 4.0, 3.0), (2, 2.0, 2.5)]
        """
        at, held = [0, *marks(len(self.losses))], dict(self.held_out)
        means = [math.nan, *(sum(self.losses[a:b]) / (b - a) for a, b in pairwise(at))]
        return [(n, mean, held.get(n, math.nan)) for n, mean in zip(at, means, strict=True)]


def marks(steps: int) -> list[int]:
    """The numbers of updates after which a training reports: `REPORTS` of them, evenly, the last is the end.

    >>> marks(25), marks(3)
    ([3, 5, 8, 10, 13, 15, 18, 20, 23, 25], [1, 2, 3])
    """
    return sorted({-(-part * steps // REPORTS) for part in range(1, REPORTS + 1)} - {0})


def train(
    learner: Trainable,
    schedule: Schedule,
    *,
    frozen: Sequence[Model] = (),
    held_out: Trainable | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: float | int = SAVE_EVERY,
    progress: bool = False,
    name: str = "training",
) -> Training:
    """Change the learner's parameters in place until the schedule ends, and return the losses.

    Each epoch has a new order of the examples, and a loss draws from the seed and the number of the update, so there is
    no random state to save. `held_out` holds other examples of the same parameters, whose loss is computed at `marks`
    and changes nothing. With `checkpoint` the parameters, the optimiser and the losses are written there whenever
    `save_every` seconds have passed, and at the end; an interrupted training resumes from them and ends with the same
    bits as an uninterrupted one, and a finished one is loaded. A damaged checkpoint is named on standard error and set
    aside as FILE.damaged, and the training starts anew. Gradients flow through the `frozen` models, whose weights do
    not change.

    Raises:
        ValueError: there are no parameters or examples, a parameter belongs to a frozen model, or the checkpoint has
            another shape or configuration.
        RuntimeError: a loss or a gradient that is not finite.
    """
    parameters = dict(learner.parameters)
    if not parameters or len(learner) == 0:
        raise ValueError(f"there are {len(parameters)} parameters and {len(learner)} examples; a training needs both")
    frozen_ids = {id(parameter) for model in frozen for parameter in model.hooked.parameters()}
    if overlap := [label for label, parameter in parameters.items() if id(parameter) in frozen_ids]:
        raise ValueError(f"the parameter {overlap[0]} belongs to a frozen model; leave that model out of `frozen`")
    configuration = {"schedule": asdict(schedule), **learner.configuration}
    if held_out is not None:
        configuration["held_out"] = dict(held_out.configuration)
    path = None if checkpoint is None else expanded(checkpoint)
    models = [*frozen, *(model for model in (getattr(learner, "model", None),) if isinstance(model, Model))]
    with frozen_weights(frozen), _requires_grad(parameters.values(), gradients=True):
        optimiser = torch.optim.AdamW(
            parameters.values(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        losses, held, seconds_before = [], [], 0.0
        if path is not None:
            losses, held, seconds_before = resume(path, parameters, optimiser, configuration)
        resumed_at, start = len(losses), time.perf_counter()
        if progress and 0 < resumed_at < schedule.steps:
            say(f"{name}: resumed, {resumed_at} of {schedule.steps} updates done")
        if held_out is not None and not held:
            held.append((0, _held_out_loss(held_out, schedule, parameters, 0, models)))
        reported, saved_at = marks(schedule.steps), start
        for step in range(resumed_at, schedule.steps):
            losses.append(_update(learner.loss, len(learner), parameters, optimiser, schedule, step, models))
            n_done = step + 1
            if held_out is not None and n_done in reported:
                held.append((n_done, _held_out_loss(held_out, schedule, parameters, n_done, models)))
            now = time.perf_counter()
            if path is not None and (now - saved_at >= save_every or n_done == schedule.steps):
                write_checkpoint(path, parameters, optimiser, configuration, losses, held, seconds_before + now - start)
                saved_at = time.perf_counter()
            if progress and (n_done in reported or step == resumed_at):
                recent = losses[-max(1, schedule.steps // REPORTS) :]
                shown = f"loss {sum(recent) / len(recent):.4f}" + (f", held out {held[-1][1]:.4f}" if held else "")
                left = (now - start) / (n_done - resumed_at) * (schedule.steps - n_done)
                say(f"{name}: {n_done} of {schedule.steps} updates, {shown}, {duration(left)} left")
        seconds = seconds_before + time.perf_counter() - start
    return Training(tuple(losses), seconds, resumed_at, tuple(held))


def frozen_weights(models: Sequence[Model]) -> contextlib.AbstractContextManager[None]:
    """A block in which no weight of these models requires a gradient; each weight's setting is restored after it."""
    return _requires_grad((weight for model in models for weight in model.hooked.parameters()), gradients=False)


def _update(
    loss_of: Callable[..., Tensor],
    n_examples: int,
    parameters: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    step: int,
    models: Sequence[Model],
) -> float:
    """Apply one update and return its loss; the models are searched where that is not finite."""
    optimiser.zero_grad(set_to_none=True)
    device = next(iter(parameters.values())).device.type
    total = 0.0
    for part in range(schedule.accumulate):
        number = step * schedule.accumulate + part

        def loss_once(number: int = number) -> Tensor:
            draw = torch.Generator().manual_seed(_mixed(schedule.seed, 1, number))
            with (
                torch.random.fork_rng(devices=[]),
                torch.enable_grad(),
                torch.autocast(device, torch.bfloat16, enabled=schedule.dtype == "bfloat16"),
            ):
                torch.manual_seed(_mixed(schedule.seed, 2, number))  # for layers that draw themselves, such as dropout
                return loss_of(_batch(n_examples, schedule, number), draw)

        loss = loss_once()
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss of update {step} is {float(loss.detach())}{_cause(models, loss_once, step)}")
        (loss / schedule.accumulate).backward()
        total += float(loss.detach()) / schedule.accumulate
    if schedule.clip is not None:
        norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), schedule.clip)
        if not torch.isfinite(norm):
            raise RuntimeError(f"the gradient of update {step} is not finite; lower learning_rate")
    for group in optimiser.param_groups:
        group["lr"] = schedule.rate(step)
    optimiser.step()
    return total


def _held_out_loss(
    held_out: Trainable, schedule: Schedule, parameters: Mapping[str, Tensor], n_done: int, models: Sequence[Model]
) -> float:
    """The mean loss over all held-out examples, with the same random draws each time; refused as that of an update."""
    device = next(iter(parameters.values())).device.type
    total = 0.0
    for start in range(0, len(held_out), schedule.batch_size):
        batch = range(start, min(start + schedule.batch_size, len(held_out)))

        def loss_once(batch: range = batch) -> Tensor:
            draw = torch.Generator().manual_seed(_mixed(schedule.seed, 3, batch.start))
            with (
                torch.random.fork_rng(devices=[]),
                torch.no_grad(),
                torch.autocast(device, torch.bfloat16, enabled=schedule.dtype == "bfloat16"),
            ):
                torch.manual_seed(_mixed(schedule.seed, 4, batch.start))
                return held_out.loss(batch, draw)

        loss = float(loss_once())
        if not math.isfinite(loss):
            cause = _cause(models, loss_once, n_done)
            raise RuntimeError(f"the held-out loss after {n_done} updates is {loss}{cause}")
        total += loss * len(batch)
    return total / len(held_out)


def _cause(models: Sequence[Model], again: Callable[[], object], step: int) -> str:
    """What of a model is not finite, where something is, and what to do: before the first update it is no rate's."""
    advice = "lower the learning rate or set clip"
    for model in models:
        found = why_not_finite(model, again)
        if found is not None:
            return f": of {model.name} {found[0]}; {found[1] if step == 0 else advice}"
    return f"; {advice}"


def _batch(n: int, schedule: Schedule, number: int) -> list[int]:
    """The examples of a pass: the epochs' orders concatenated and cut into batches."""
    positions = range(number * schedule.batch_size, (number + 1) * schedule.batch_size)
    orders: dict[int, list[int]] = {}
    for epoch in {position // n for position in positions}:
        draw = torch.Generator().manual_seed(_mixed(schedule.seed, 0, epoch))
        orders[epoch] = torch.randperm(n, generator=draw).tolist()
    return [orders[position // n][position % n] for position in positions]


def _mixed(seed: int, stream: int, number: int) -> int:
    """A separate seed for each stream of random numbers and each position in it."""
    return (seed * 1_000_003 + stream) * 1_000_000_007 + number


@contextlib.contextmanager
def _requires_grad(tensors: Iterable[Tensor], *, gradients: bool) -> Iterator[None]:
    """A block in which these tensors do or do not require gradients; each tensor's setting is restored after it.

    Gradients that the block leaves in tensors that required them are removed.
    """
    settings = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _ in settings:
            tensor.requires_grad_(gradients)
        yield
    finally:
        for tensor, required in settings:
            tensor.requires_grad_(required)
            if gradients:
                tensor.grad = None
