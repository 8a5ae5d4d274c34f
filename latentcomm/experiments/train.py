"""The training of `latentcomm train`: channels trained on the tuning half of a task, saved and loaded."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from latentcomm._core.files import expanded, told_apart
from latentcomm._core.linalg import mapped
from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation, Calm, Channel, Interlat
from latentcomm.channels.calm import Bridge, BridgeShape, CalmLearner, new_bridge
from latentcomm.channels.catalogue import LEARNED
from latentcomm.channels.interlat import Adapter, AdapterShape, new_adapter
from latentcomm.channels.training.answers import LinearRows, xavier
from latentcomm.channels.training.fusions import FusionLearner
from latentcomm.channels.training.interlat import InterlatLearner, InterlatLoss, right_answer, warm_start
from latentcomm.channels.training.trainer import (
    SAVE_EVERY,
    Schedule,
    Trainable,
    Training,
    load_weights,
    save_weights,
    train,
)
from latentcomm.experiments.compare.run import choose_cell
from latentcomm.experiments.controls import derangement
from latentcomm.experiments.maps import map_documents, map_tokens
from latentcomm.experiments.settings import cell_of
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.experiments.train_settings import TWIN, refuse_short_plan
from latentcomm.fusion import Concat, Fusion, Gated, Replace
from latentcomm.hooks.paired_text import capture_paired, pair_tokens
from latentcomm.models import Model, check_pair, fingerprints, one_vocabulary
from latentcomm.models.sites import Site
from latentcomm.reporting.publish import plain
from latentcomm.tasks.base import Task

KIND = "learned channel"
WITH_A_CELL = ("learned_linear", "gated", "concatenated")
"""The trained channels that read and write at one cell."""


@dataclass(frozen=True)
class LearningPlan:
    """How channels are trained.

    Attributes:
        steps, batch_size, learning_rate, dtype: as in `training.Schedule`, with a warm-up over the first 20th of the
            updates and a linear decay to a tenth of the rate; None takes the channel's default (`DEFAULTS`).
        read_layer, write_layer: the cell; chosen on the tuning half where None, as `compare_named` does.
        plan_tokens: of Interlat, tokens of the sender's plan.
        n_steps: of Interlat, latents that a plan is compressed to; None for one a state.
        every: of CALM, the step between the layers of the sender that are read.
        n_tune: items that the cell is chosen on; the weights are trained on the whole half, but for what is held out.
        seed: of the split and of the training; the comparison must use the same split.

    Raises:
        ValueError: one of the two layers, a negative one, or a plan shorter than what it is compressed to.
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

    def __post_init__(self) -> None:
        cell_of(self.read_layer, self.write_layer)
        refuse_short_plan(self.plan_tokens, self.n_steps)


DEFAULTS: Mapping[str, tuple[int, int, float]] = {
    "learned_linear": (960, 32, 1e-3),
    "gated": (200, 16, 1e-3),
    "concatenated": (200, 16, 1e-4),
    "interlat": (300, 8, 3e-4),
    "calm": (300, 16, 1e-3),
}
"""Default updates, examples a batch, and learning rate, by channel."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained channel with the contents of its file.

    Attributes:
        channel: ready for a comparison.
        weights: its trained tensors.
        facts: plain values: the name, both models and their fingerprints, the task, the items it was trained on, the
            cell, the schedule, the losses.
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
    held_out: float | int = 0.0,
    deranged: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: float | int = SAVE_EVERY,
    progress: bool = False,
) -> Learned:
    """The channel of this name, trained on the tuning half of a task, both models frozen.

    `held_out` is the share of that half (of learned_linear: of the corpus) that is not trained on; the loss on it is
    recorded at every tenth of the updates. With `deranged`, each example has the message of another one, whatever
    its answer (of learned_linear: the sender's state of another token), at the same cell: what is then learned has no
    content to pass on, and what it gains is a change of the receiver. What is held out keeps its own messages. With
    `checkpoint`, a folder, an interrupted training resumes and ends with the same bits; it loses at most `save_every`
    seconds.

    Raises:
        ValueError: a name that is not in `LEARNED`, or an argument that the channel, the cell or the trainer refuses.
    """
    if name not in LEARNED:
        raise ValueError(f"there is nothing to train in a channel {name!r}; choose among {', '.join(LEARNED)}")
    check_pair(sender, receiver)
    half, _ = task.split(seed=plan.seed)
    tune, held = _trained_and_held_out(half, held_out, plan.seed)
    folder = None if checkpoint is None else expanded(checkpoint)
    schedule = _schedule(name, plan)
    cell, alignment = None, None
    if name in WITH_A_CELL:
        given = {name: getattr(plan, name) for name in ("read_layer", "write_layer", "n_tune", "seed")}
        cell, alignment = choose_cell(sender, receiver, tune, folder=folder, progress=progress, **given)
    if deranged:
        tune = with_other_messages(tune, plan.seed)
    request = _Request(sender, receiver, tune, held, held_out, plan, cell, alignment, deranged)
    untrained = _MAKERS[name](request)
    path = None if folder is None else folder / f"{name}.safetensors"
    training = train(
        untrained.learner, schedule, frozen=[sender, receiver], held_out=untrained.held_out, checkpoint=path,
        save_every=save_every, progress=progress, name=name,
    )  # fmt: skip
    weights = {
        key: value.detach().clone() for key, value in {**untrained.learner.parameters, **untrained.fixed}.items()
    }
    sender_fingerprint, receiver_fingerprint = fingerprints(sender, receiver)
    sender_name, receiver_name = told_apart(sender.name, receiver.name)
    facts = {
        "name": name,
        "sender": sender_name,
        "sender_fingerprint": sender_fingerprint,
        "receiver": receiver_name,
        "receiver_fingerprint": receiver_fingerprint,
        "task": task.name,
        "template": str(task.template),
        "trained_on": [] if name == "learned_linear" else [item.id for item in tune.items],
        "held_out": [] if held is None or name == "learned_linear" else [item.id for item in held.items],
        "chosen_on": [item.id for item in tune.items] if cell is not None and plan.read_layer is None else [],
        "cell": None if cell is None else list(cell),
        "shape": plain(untrained.shape),
        "plan": asdict(plan),
        "schedule": asdict(schedule),
        "training": _facts(training),
    } | ({"deranged": True} if deranged else {})
    return Learned(_channel(name, weights, facts, receiver), weights, facts)


def load_learned(path: str | os.PathLike[str], sender: Model, receiver: Model) -> Learned:
    """The trained channel that `Learned.save` wrote, for the two models that it was trained for.

    Raises:
        ValueError: the file is no trained channel, or was trained for another model.
        FileNotFoundError: there is no such file.
    """
    if not expanded(path).exists():
        raise FileNotFoundError(f"there is no file {path}; `latentcomm train` writes it")
    return _load([expanded(path)], sender, receiver)[0]


def load_folder(folder: str | os.PathLike[str], sender: Model, receiver: Model) -> dict[str, Learned]:
    """Every trained channel of a folder, by its name.

    Raises:
        ValueError: there is none, or `load_learned` refuses one.
    """
    paths = trained_files(folder)
    return {path.stem: learned for path, learned in zip(paths, _load(paths, sender, receiver), strict=True)}


def load_twins(folder: str | os.PathLike[str], sender: Model, receiver: Model) -> dict[str, Learned]:
    """The channels of a folder that were trained on other items' messages, by the name of the channel; maybe none.

    Raises:
        ValueError: `load_learned` refuses one.
    """
    paths = {name: path for name in LEARNED if (path := expanded(folder) / f"{name}{TWIN}.safetensors").exists()}
    return dict(zip(paths, _load([*paths.values()], sender, receiver), strict=True)) if paths else {}


def trained_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of trained channels in a folder.

    Raises:
        ValueError: there is none.
    """
    paths = [path for name in LEARNED if (path := expanded(folder) / f"{name}.safetensors").exists()]
    if not paths:
        raise ValueError(f"the folder {folder} holds no trained channel; `latentcomm train` writes them")
    return paths


def _load(paths: Sequence[Path], sender: Model, receiver: Model) -> list[Learned]:
    """The trained channels of these files; the models' weights are hashed once for all files."""
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
    """Refuse a channel that was trained, or whose cell was chosen, on items of the test set.

    Raises:
        ValueError: it was trained or chosen on some of them, or was trained on prompts of another template.
    """
    if learned.facts["template"] != str(test.template) and learned.facts["trained_on"]:
        raise ValueError(
            f"the trained channel {learned.facts['name']} was trained on {learned.facts['template']} prompts, not "
            f"{test.template}; compare with that `template`, or train it again"
        )
    seen = {*learned.facts["trained_on"], *learned.facts["chosen_on"]} & {item.id for item in test.items}
    if seen and learned.facts["task"] == test.name:
        raise ValueError(
            f"the trained channel {learned.facts['name']} has seen {len(seen)} of the {len(test.items)} items of "
            f"the test set; compare with `seed` {learned.facts['plan']['seed']} and the options of its training"
        )


@dataclass(frozen=True, eq=False)
class _Request:
    """The models, the task and the options that a learner is built for."""

    sender: Model
    receiver: Model
    tune: Task
    held: Task | None
    share: float | int
    plan: LearningPlan
    cell: Cell | None
    alignment: AffineMap | None
    deranged: bool

    def require_cell(self) -> Cell:
        """The cell of a channel that has one."""
        if self.cell is None:
            raise RuntimeError("no cell was chosen for this channel; add its name to WITH_A_CELL")
        return self.cell


@dataclass(frozen=True, eq=False)
class _Untrained:
    """A learner before its training, the sizes of its trained part, and its fixed tensors.

    `held_out` has the same parameters as the learner, and the examples that are held out.
    """

    learner: Trainable
    held_out: Trainable | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)


def with_other_messages(task: Task, seed: int) -> Task:
    """The task in which the sender of each item reads the text of another one, drawn whatever its answer.

    Raises:
        ValueError: there is none, as where most items share a text.
    """
    order = derangement([item.id for item in task.items], texts=[item.sender for item in task.items], seed=seed)
    sources = [task.items[row] for row in order]
    pairs = zip(task.items, sources, strict=True)
    return replace(
        task,
        items=tuple(replace(item, sender=source.sender, more_senders=source.more_senders) for item, source in pairs),
    )


def _answers(task: Task) -> list[str]:
    return [right_answer(item, task) for item in task.items]


def _trained_and_held_out(half: Task, share: float | int, seed: int) -> tuple[Task, Task | None]:
    """The items that are trained on, and those that are not."""
    if share == 0:
        return half, None
    if not 0 < round(share * len(half.items)) < len(half.items):
        raise ValueError(
            f"held_out is {share}, which of the {len(half.items)} items of the tuning half leaves none to "
            "train on or none to hold out; give another share, or 0 for none"
        )
    return half.split(seed=seed, tune_fraction=1 - share)


def _linear(request: _Request) -> _Untrained:
    tokens = pair_tokens(
        request.sender, request.receiver, map_documents(), max_tokens=map_tokens(request.sender, request.receiver)
    )
    read, write = request.require_cell()
    states = capture_paired(request.sender, request.receiver, tokens, sender_layers=[read], receiver_layers=[write])
    rows = states.after_first
    source, target = states.x[0, rows].float(), states.y[0, rows].float()
    if request.deranged:
        source = source[torch.randperm(len(source), generator=torch.Generator().manual_seed(request.plan.seed))]
    weight = xavier(target.shape[1], source.shape[1], generator=torch.Generator().manual_seed(request.plan.seed))
    learner = LinearRows(source, target, weight, torch.zeros(target.shape[1]))
    if request.held is None:
        return _Untrained(learner)
    document = states.document[rows]
    held = document >= int((int(document.max()) + 1) * (1 - request.share))
    trained, left = (replace(learner, source=source[part], target=target[part]) for part in (~held, held))
    return _Untrained(trained, left)


def _fused(make: Callable[[AffineMap], Fusion]) -> Callable[[_Request], _Untrained]:
    def build(request: _Request) -> _Untrained:
        receiver, alignment = request.receiver, request.alignment
        read, write = (Site(layer) for layer in request.require_cell())

        def learner_of(task: Task) -> FusionLearner:
            message = Activation("states", read, write, Replace()).send(request.sender, task, receiver=receiver)
            if alignment is not None and message.vectors is not None:
                message = replace(message, vectors=mapped(alignment, message.vectors.to(receiver.dtype)))
            return FusionLearner.of(receiver, task, message, write, make, answers=_answers(task))

        learner = learner_of(request.tune)
        if make is Concat:  # initialised as replace
            learner.map.weight[:, -receiver.d_model :] = torch.eye(receiver.d_model)
        fixed = {} if alignment is None else {"alignment.weight": alignment.weight, "alignment.bias": alignment.bias}
        held = None if request.held is None else replace(learner_of(request.held), map=learner.map)
        return _Untrained(learner, held, fixed=fixed)

    return build


def _interlat(request: _Request) -> _Untrained:
    sender, receiver, tune, plan = request.sender, request.receiver, request.tune, request.plan
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
    held = None
    if request.held is not None:  # the answers' part of the loss, with latents alone, as the channel is used
        sent = Interlat("interlat", first, plan.plan_tokens).send(sender, request.held, receiver=receiver)
        alone = InterlatLoss(separation=0.0, alignment=0.0, curriculum=(0,))
        answers = _answers(request.held)
        held = InterlatLearner.of(receiver, request.held, sent, first, options=alone, answers=answers)
    return _Untrained(learner, held, shape=asdict(first.shape))


def _calm(request: _Request) -> _Untrained:
    sender, receiver, plan = request.sender, request.receiver, request.plan
    every = min(plan.every, sender.n_layers)
    bridge = new_bridge(sender, receiver, every=every, n_heads=_heads(receiver.d_model), seed=plan.seed)

    def learner_of(task: Task) -> CalmLearner:
        message = Calm("calm", bridge).send(sender, task, receiver=receiver)
        return CalmLearner.of(receiver, task, message, bridge, answers=_answers(task))

    held = None if request.held is None else learner_of(request.held)
    return _Untrained(learner_of(request.tune), held, shape=asdict(bridge.shape))


_MAKERS: Mapping[str, Callable[[_Request], _Untrained]] = {
    "learned_linear": _linear,
    "gated": _fused(Gated),
    "concatenated": _fused(Concat),
    "interlat": _interlat,
    "calm": _calm,
}


def _channel(name: str, weights: Mapping[str, Tensor], facts: Mapping[str, Any], receiver: Model) -> Channel:
    """The channel of trained weights, for a receiver whose fingerprint was checked; its name may have changed."""
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


def _rounded(loss: float) -> float | None:
    return None if math.isnan(loss) else round(loss, 5)


def _facts(training: Training) -> dict[str, Any]:
    return {
        "updates": len(training.losses),
        "seconds": round(training.seconds, 1),
        "mean_loss_by_tenths": [round(loss, 5) for loss in training.mean_losses],
        "curve": [[n_done, *map(_rounded, losses)] for n_done, *losses in training.curve],
    }
