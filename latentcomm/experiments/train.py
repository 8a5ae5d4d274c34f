"""The job behind `latentcomm train`: the channels that learn, trained on the tuning half of a task, kept and read."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from latentcomm._core.files import without_folder
from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation, Calm, Channel, Interlat
from latentcomm.channels.calm import Bridge, BridgeShape, CalmLearner, new_bridge
from latentcomm.channels.catalogue import LEARNED
from latentcomm.channels.interlat import Adapter, AdapterShape, new_adapter
from latentcomm.channels.training.answers import LinearRows, xavier
from latentcomm.channels.training.fusions import FusionLearner
from latentcomm.channels.training.interlat import InterlatLearner, InterlatLoss, right_answer, warm_start
from latentcomm.channels.training.trainer import Schedule, Trainable, Training, load_weights, save_weights, train
from latentcomm.experiments.compare.run import Plan, choose_cell, map_documents, map_tokens
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.fusion import Concat, Fusion, Gated, Replace
from latentcomm.hooks.paired_text import capture_paired, pair_tokens
from latentcomm.models import Model, check_pair, fingerprints, one_vocabulary
from latentcomm.models.sites import Site
from latentcomm.reporting.publish import plain
from latentcomm.tasks.base import Task

KIND = "learned channel"
WITH_A_CELL = ("learned_linear", "gated", "concatenated")
"""Those of them that read and write at one cell."""


@dataclass(frozen=True)
class LearningPlan:
    """How channels are trained.

    Attributes:
        steps, batch_size, learning_rate, dtype: as in `training.Schedule`, with a warm-up over the first 20th and a
            linear way down to a tenth; None leaves each channel its own default (`DEFAULTS`).
        read_layer, write_layer: the cell; chosen on the tuning half where None, as `compare_named` does.
        plan_tokens: of Interlat, how long the sender's plan gets.
        n_steps: of Interlat, to how many latents a plan is compressed; None for one a state.
        every: of CALM, every how many layers of the sender are read.
        n_tune: items that the cell is chosen on; the parts are trained on all of the half.
        seed: of the split, which must be that of the comparison, and of the training.
    """

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    read_layer: int | None = None
    write_layer: int | None = None
    plan_tokens: int = 8
    n_steps: int | None = None
    every: int = 4
    n_tune: int | None = 40
    seed: int = 0


DEFAULTS: Mapping[str, tuple[int, int, float]] = {
    "learned_linear": (960, 32, 1e-3),
    "gated": (200, 16, 1e-3),
    "concatenated": (200, 16, 1e-4),
    "interlat": (300, 8, 3e-4),
    "calm": (300, 16, 1e-3),
}
"""Updates, examples a batch, and learning rate, where a plan does not say."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained channel with all that its file says.

    Attributes:
        channel: ready to be compared.
        weights: its trained tensors.
        facts: plain values: the name, both models and their fingerprints, the task, the items it has seen, the cell,
            the schedule, how the loss went.
    """

    channel: Channel
    weights: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one safetensors file, whole or not at all; `load_learned` gives the same bits back."""
        save_weights(path, self.weights, kind=KIND, configuration=self.facts)


def learn(
    name: str,
    sender: Model,
    receiver: Model,
    task: Task,
    *,
    plan: LearningPlan = LearningPlan(),
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Learned:
    """The channel of this name, trained on the tuning half of a task, both models frozen.

    With `checkpoint`, a folder, a training that was stopped goes on from there and ends with the same bits.

    Raises:
        ValueError: a name that is not in `LEARNED`, or what the channel, the cell or the trainer refuse.
    """
    if name not in LEARNED:
        raise ValueError(f"there is nothing to train in a channel {name!r}; choose among {', '.join(LEARNED)}")
    check_pair(sender, receiver)
    tune, _ = task.split(seed=plan.seed)
    kept = None if checkpoint is None else Path(checkpoint)
    schedule = _schedule(name, plan)
    cell, asked = None, _Asked(sender, receiver, tune, plan)
    if name in WITH_A_CELL:
        choice = Plan(plan.read_layer, plan.write_layer, n_tune=plan.n_tune, seed=plan.seed)
        cell, alignment = choose_cell(sender, receiver, tune, choice, kept, progress)
        asked = _Asked(sender, receiver, tune, plan, cell, alignment)
    made = _MAKERS[name](asked)
    path = None if kept is None else kept / f"{name}.safetensors"
    training = train(
        made.learner, schedule, frozen=[sender, receiver], checkpoint=path, every=20, progress=progress, name=name
    )
    weights = {key: value.detach().clone() for key, value in {**made.learner.parameters, **made.fixed}.items()}
    prints = fingerprints(sender, receiver)
    facts = {
        "name": name,
        "sender": without_folder(sender.name),
        "sender_fingerprint": prints[0],
        "receiver": without_folder(receiver.name),
        "receiver_fingerprint": prints[1],
        "task": task.name,
        "template": task.template,
        "trained_on": [] if name == "learned_linear" else [item.id for item in tune.items],
        "chosen_on": [item.id for item in tune.items] if cell is not None and plan.read_layer is None else [],
        "cell": None if cell is None else list(cell),
        "shape": plain(made.shape),
        "plan": asdict(plan),
        "schedule": asdict(schedule),
        "training": _facts(training),
    }
    return Learned(_channel(name, weights, facts, receiver), weights, facts)


def load_learned(path: str | os.PathLike[str], sender: Model, receiver: Model) -> Learned:
    """The trained channel that `Learned.save` wrote, for the two models that it was trained for.

    Raises:
        ValueError: the file is no trained channel, or one of the models is another.
        FileNotFoundError: there is no such file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}; `latentcomm train` writes it")
    return _load([Path(path)], sender, receiver)[0]


def load_folder(folder: str | os.PathLike[str], sender: Model, receiver: Model) -> dict[str, Learned]:
    """Every trained channel of a folder, by its name.

    Raises:
        ValueError: there is none, or what `load_learned` refuses.
    """
    paths = [path for name in LEARNED if (path := Path(folder) / f"{name}.safetensors").exists()]
    if not paths:
        raise ValueError(f"the folder {folder} holds no trained channel; `latentcomm train` writes them")
    return {path.stem: each for path, each in zip(paths, _load(paths, sender, receiver), strict=True)}


def _load(paths: Sequence[Path], sender: Model, receiver: Model) -> list[Learned]:
    """The trained channels of these files; all weights of the models are hashed once for all of them."""
    files = [load_weights(path, kind=KIND) for path in paths]
    sides = list(zip(("sender", "receiver"), (sender, receiver), fingerprints(sender, receiver), strict=True))
    for path, (_, facts) in zip(paths, files, strict=True):
        for role, model, fingerprint in sides:
            if facts[f"{role}_fingerprint"] != fingerprint:
                raise ValueError(
                    f"{path.name} was trained for the {role} {facts[role]} and {model.name} has other weights; "
                    "train one for this pair"
                )
    return [Learned(_channel(facts["name"], weights, facts, receiver), weights, facts) for weights, facts in files]


def check_unseen(learned: Learned, test: Task) -> None:
    """Refuse a channel that was trained, or whose cell was chosen, on items that it is asked about.

    Raises:
        ValueError: it has seen some of them, or was trained on prompts of another template.
    """
    if learned.facts["template"] != test.template and learned.facts["trained_on"]:
        raise ValueError(
            f"the trained channel {learned.facts['name']} has read {learned.facts['template']} prompts and these are "
            f"{test.template}; compare with --template {learned.facts['template']}, or train it anew"
        )
    seen = {*learned.facts["trained_on"], *learned.facts["chosen_on"]} & {item.id for item in test.items}
    if seen and learned.facts["task"] == test.name:
        raise ValueError(
            f"the trained channel {learned.facts['name']} has seen {len(seen)} of the {len(test.items)} items that are "
            f"asked; compare with the seed {learned.facts['plan']['seed']} and the options that it was trained with"
        )


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a learner is made for."""

    sender: Model
    receiver: Model
    tune: Task
    plan: LearningPlan
    cell: Cell = (0, 0)
    alignment: AffineMap | None = None


@dataclass(frozen=True, eq=False)
class _Made:
    """A learner, the sizes of its part, and tensors that belong to it and are not trained."""

    learner: Trainable
    shape: dict[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)


def _answers(task: Task) -> list[str]:
    return [right_answer(item, task) for item in task.items]


def _linear(asked: _Asked) -> _Made:
    tokens = pair_tokens(
        asked.sender, asked.receiver, map_documents(), max_tokens=map_tokens(asked.sender, asked.receiver)
    )
    states = capture_paired(asked.sender, asked.receiver, tokens)
    rows = states.after_first
    source, target = states.x[asked.cell[0], rows].float(), states.y[asked.cell[1], rows].float()
    weight = xavier(target.shape[1], source.shape[1], generator=torch.Generator().manual_seed(asked.plan.seed))
    return _Made(LinearRows(source, target, weight, torch.zeros(target.shape[1])))


def _fused(make: Callable[[AffineMap], Fusion]) -> Callable[[_Asked], _Made]:
    def made(asked: _Asked) -> _Made:
        receiver, alignment = asked.receiver, asked.alignment
        read, write = (Site(layer) for layer in asked.cell)
        said = Activation("states", read, write, Replace()).send(asked.sender, asked.tune, receiver=receiver)
        if alignment is not None and said.vectors is not None:
            said = replace(said, vectors=alignment(said.vectors.to(receiver.device, receiver.dtype)))
        learner = FusionLearner.of(receiver, asked.tune, said, write, make, answers=_answers(asked.tune))
        if make is Concat:  # begins as replace
            learner.map.weight[:, -receiver.d_model :] = torch.eye(receiver.d_model)
        fixed = {} if alignment is None else {"alignment.weight": alignment.weight, "alignment.bias": alignment.bias}
        return _Made(learner, fixed=fixed)

    return made


def _interlat(asked: _Asked) -> _Made:
    sender, receiver, tune, plan = asked.sender, asked.receiver, asked.tune, asked.plan
    first = new_adapter(sender, receiver, n_heads=_heads(receiver.d_model), n_steps=plan.n_steps, seed=plan.seed)
    message = Interlat("interlat", first, plan.plan_tokens).send(sender, tune, receiver=receiver)
    shared = one_vocabulary(sender, receiver)
    loss = InterlatLoss(separation=0.5, alignment=0.1)
    if shared:
        last = {item.receiver.split()[-1] for item in tune.items}
        word = f" {last.pop()}" if len(last) == 1 and tune.template == "raw" else None
        first = warm_start(receiver, message, first.shape, marker=word, seed=plan.seed)
    else:
        loss = replace(loss, curriculum=(0,))
    learner = InterlatLearner.of(receiver, tune, message, first, options=loss, answers=_answers(tune))
    return _Made(learner, shape=asdict(first.shape))


def _calm(asked: _Asked) -> _Made:
    sender, receiver, plan = asked.sender, asked.receiver, asked.plan
    every = min(plan.every, sender.n_layers)
    bridge = new_bridge(sender, receiver, every=every, n_heads=_heads(receiver.d_model), seed=plan.seed)
    message = Calm("calm", bridge).send(sender, asked.tune, receiver=receiver)
    learner = CalmLearner.of(receiver, asked.tune, message, bridge, answers=_answers(asked.tune))
    return _Made(learner, shape=asdict(bridge.shape))


_MAKERS: Mapping[str, Callable[[_Asked], _Made]] = {
    "learned_linear": _linear,
    "gated": _fused(Gated),
    "concatenated": _fused(Concat),
    "interlat": _interlat,
    "calm": _calm,
}


def _channel(name: str, weights: Mapping[str, Tensor], facts: Mapping[str, Any], receiver: Model) -> Channel:
    """The channel of trained weights, for a receiver whose weights are the right ones, whatever it is called now."""
    shape = {**facts["shape"], "receiver": receiver.name}
    if name == "interlat":
        return Interlat(name, Adapter(AdapterShape(**shape), dict(weights)), facts["plan"]["plan_tokens"])
    if name == "calm":
        return Calm(name, Bridge(BridgeShape.of(shape), dict(weights)))
    read, write = (Site(layer) for layer in facts["cell"])
    learnt = AffineMap(weights["weight"], weights["bias"])
    if name == "learned_linear":
        return Activation(name, read, write, Replace(), learnt)
    alignment = None
    if "alignment.weight" in weights:
        alignment = AffineMap(weights["alignment.weight"], weights["alignment.bias"])
    return Activation(name, read, write, Gated(learnt) if name == "gated" else Concat(learnt), alignment)


def _heads(width: int) -> int:
    return next(n for n in (8, 4, 2, 1) if width % n == 0)


def _schedule(name: str, plan: LearningPlan) -> Schedule:
    steps, batch_size, rate = DEFAULTS[name]
    steps = steps if plan.steps is None else plan.steps
    return Schedule(
        steps,
        batch_size if plan.batch_size is None else plan.batch_size,
        learning_rate=rate if plan.learning_rate is None else plan.learning_rate,
        warmup=steps // 20,
        final_rate=0.1,
        dtype=plan.dtype,
        seed=plan.seed,
    )


def _facts(training: Training) -> dict[str, Any]:
    return {
        "updates": len(training.losses),
        "seconds": round(training.seconds, 1),
        "mean_loss_by_tenths": [round(loss, 5) for loss in training.mean_losses],
    }
