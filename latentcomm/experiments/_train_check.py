"""The check of `TrainSettings` before the first weight is read."""

from dataclasses import dataclass

from latentcomm._core.names import check_name
from latentcomm.channels.catalogue import LEARNED
from latentcomm.experiments.compare.run import require_choices
from latentcomm.experiments.maps import MAP_DOCUMENTS, MAP_TOKENS
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import listed
from latentcomm.experiments.train import DEFAULTS, WITH_A_CELL, with_other_messages
from latentcomm.experiments.train_settings import TrainSettings
from latentcomm.models import ModelShape
from latentcomm.tasks.base import Task

__all__ = ["TrainInputs", "check_train"]

STATES = 10
"""States of the width of a model that each token and layer holds for the backward pass, at least."""


@dataclass(frozen=True, eq=False)
class TrainInputs:
    """What a training runs with, besides its settings and its models.

    Attributes:
        names: of the channels.
        task: all of its items.
    """

    names: tuple[str, ...]
    task: Task


def check_train(settings: TrainSettings, checks: Checks) -> TrainInputs | None:
    """What the training runs with; None where something is refused."""
    names = tuple(name.replace("-", "_") for name in listed(settings.channels))
    for name in dict.fromkeys(names):
        checks.of(check_name, "channel to train", name, LEARNED)
        checks.refuse(f"channels names {name} twice; name each once", when=names.count(name) > 1)
    checks.refuse(f"channels names none to train; choose among {', '.join(LEARNED)}", when=not names)
    checks.refuse(
        f"dtype is {settings.dtype!r}; train in float32 or bfloat16", when=settings.dtype not in ("float32", "bfloat16")
    )
    checks.refuse(
        f"quantization is {settings.quantization}, and what is trained needs weights of float32; leave it out",
        when=bool(settings.quantization),
    )
    task, sender, receiver, cell = checks.task_pair_and_cell()
    halves = None if task is None else checks.split(task)
    if task is None or halves is None:
        return None
    tune = halves[0]
    trained = _trained(tune, settings, checks)
    if settings.deranged:
        checks.of(with_other_messages, trained, settings.seed)
    checks.prompts(sender, [item.sender for item in tune.items])
    checks.prompts(receiver, [item.receiver for item in tune.items])
    if cell is None and any(name in WITH_A_CELL for name in names):
        checks.of(require_choices, tune)
    checks.weights(sender, receiver, itemsize=4)  # `dtype` is that of the arithmetic
    prompt = checks.length(receiver, [item.receiver for item in tune.items])
    for name in (name for name in names if name in DEFAULTS):
        steps, batch_size, _ = DEFAULTS[name]
        n_examples = MAP_DOCUMENTS * MAP_TOKENS if name == "learned_linear" else len(trained.items)
        what = "the packaged corpus" if name == "learned_linear" else f"the tuning half of {task.name}"
        size = settings.batch_size or batch_size
        checks.refuse(
            f"batch_size is {size}, and {name} is trained on {n_examples} examples of {what} at most; give at most "
            f"{n_examples}",
            when=0 < n_examples < settings.batch_size,
        )
        steps = settings.steps or steps
        twice = ", and once more on other items' messages" if settings.deranged else ""
        checks.work.append(f"{name}, trained by {steps} updates of {size} examples of {what}{twice}")
        steps *= 1 + settings.deranged
        if sender is not None and receiver is not None:
            n_trained = _n_trained(name, sender.shape, receiver.shape, every=settings.every)
            checks.holds_on_host("trained weights, gradients and moments", 4 * 4 * n_trained)
        if name != "learned_linear" and receiver is not None and (sized := receiver.size()) is not None:
            tokens = size * (prompt + task.reply_tokens)
            checks.holds(
                "activations of the training", checks.itemsize * tokens * sized.n_layers * STATES * sized.d_model
            )
            if settings.dtype == "bfloat16":  # autocast makes a copy of each frozen weight, and backward needs it
                checks.holds("weights in bfloat16", 2 * (receiver.shape.n_parameters or 0))
            checks.runs(receiver, 3 * steps * size, n_new=prompt + task.reply_tokens)  # backward is twice forward
    return TrainInputs(names, task)


def _trained(tune: Task, settings: TrainSettings, checks: Checks) -> Task:
    """The items of the tuning half that are trained on; refuses a share that holds out none of them or all."""
    share, n = settings.held_out, len(tune.items)
    if share == 0:
        return tune
    try:
        if not 0 < round(share * n) < n:
            raise ValueError(share)
        return tune.split(seed=settings.seed, tune_fraction=1 - share)[0]
    except ValueError:  # which a task whose items stay together raises as well
        checks.refuse(
            f"held_out is {share}, which of the {n} items of the tuning half leaves none to train on or none to hold "
            "out; give another share, or 0 for none"
        )
        return tune


def _n_trained(name: str, sender: ModelShape, receiver: ModelShape, *, every: int) -> int:
    """How many numbers a channel trains, without its vectors; they are float32 whatever the arithmetic."""
    d_sender, d_receiver = sender.d_model or 0, receiver.d_model or 0
    n_pairs = min((sender.n_layers or 0) // every, receiver.n_layers or 0)
    return d_receiver * {
        "learned_linear": d_sender,
        "gated": d_receiver + d_sender,
        "concatenated": d_receiver + d_sender,
        "interlat": d_sender + 6 * d_receiver,
        "calm": n_pairs * (d_sender + 4 * d_receiver),
    }.get(name, 0)
