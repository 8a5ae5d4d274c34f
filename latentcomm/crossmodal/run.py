"""The job behind `latentcomm crossmodal`: fit maps on some pictures, ask about others, latents against captions."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.channels import Channel, Message, Silent, Skyline
from latentcomm.crossmodal.digits import FOUR_CELLS, ONE_DIGIT, digit_halves, four_cells, one_digit
from latentcomm.crossmodal.fitting import (
    FOLDS,
    SoftPromptLearner,
    caption_embeddings,
    caption_length,
    fit_soft_prompt,
    fit_vision_graft,
)
from latentcomm.crossmodal.messages import Caption, Eye, NearestLabel, NearestPicture, SoftPrompt, VisionGraft
from latentcomm.crossmodal.pictures import Picture, PictureSet
from latentcomm.crossmodal.questions import Question, picture_task
from latentcomm.crossmodal.table import picture_table
from latentcomm.crossmodal.vision import VisionSender, VisionSite
from latentcomm.decoding import next_token_logits
from latentcomm.evaluation import Cost, Trial, evaluate, to_table
from latentcomm.files import digest, write_json
from latentcomm.models import Model
from latentcomm.progress import say, track
from latentcomm.prompts import Template
from latentcomm.sites import Site
from latentcomm.tasks.base import Task
from latentcomm.training import Schedule, train

LATE = (0.6, 0.7, 0.8, 0.87, 0.94)
"""Relative depths of the layers that a graft is tried at."""
CHOSEN_ON = 0.75
"""Share of the fitting pictures that maps are fitted on while block and layer are chosen on the rest of them."""
MOST_CHOSEN_ON = 24
"""Pictures that a write layer is chosen on at most: the reader runs for each of them, layer and question."""


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of one kind, with the questions asked about them.

    Attributes:
        name: in tables.
        fitting, testing: pictures that maps are fitted on, and those that questions are asked about.
        questions: what is asked.
        pooling, grid: what of the encoder's states is read; see `VisionSite`.

    Raises:
        ValueError: a picture, or a group of pictures, on both sides.
    """

    name: str
    fitting: PictureSet
    testing: PictureSet
    questions: tuple[Question, ...]
    pooling: Literal["class", "patches"] = "class"
    grid: int = 1

    def __post_init__(self) -> None:
        both = {each.group for each in self.fitting} & {each.group for each in self.testing}
        if both:
            raise ValueError(f"the pictures of {min(both)!r} are in the fitting and in the testing set; split by group")


@dataclass(frozen=True)
class Plan:
    """How pictures are said and asked about.

    Attributes:
        block: of the encoder; None chooses it by held-out fit among the fitting pictures.
        write_layer: of the graft; None chooses it by accuracy on held-out fitting pictures.
        template: of the prompts.
        n_test: pictures asked about at most, of each part.
        reply_tokens: of a reply.
        train_steps: updates of the soft prompt that is trained through the reader; 0 leaves it out.
        seed: of all that is drawn.
    """

    block: int | None = None
    write_layer: int | None = None
    template: Template = "raw"
    n_test: int | None = None
    reply_tokens: int = 4
    train_steps: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class CrossModal:
    """What a run found.

    Attributes:
        table: see `table.picture_table`.
        trials: by part, question and type.
        chosen: of each part the block and the write layer.
    """

    table: pd.DataFrame
    trials: Mapping[tuple[str, str, str], list[Trial]]
    chosen: Mapping[str, Mapping[str, int]]

    def trial_table(self) -> pd.DataFrame:
        """One row a trial, with part, question and type."""
        rows = []
        for (part, question, kind), trials in self.trials.items():
            rows.append(to_table(trials).assign(part=part, question=question, type=kind))
        return pd.concat(rows, ignore_index=True)


def digit_parts(*, n_fitting: int = 400, n_testing: int = 100, seed: int = 0) -> tuple[Part, ...]:
    """Pictures of one scanned digit and of up to four; no scan is on both sides, nor seen by `small_vit(seed=seed)`."""
    halves = digit_halves(seed=seed)
    one, four = "digits", "composed digits"
    return (
        Part(
            one,
            _named(one_digit(halves.fitting, n=n_fitting, seed=seed), one, "fit"),
            _named(one_digit(halves.testing, n=n_testing, seed=seed + 1), one, "test"),
            ONE_DIGIT,
        ),
        Part(
            four,
            _named(four_cells(halves.fitting, n=n_fitting, seed=seed), four, "fit"),
            _named(four_cells(halves.testing, n=n_testing, seed=seed + 1), four, "test"),
            FOUR_CELLS,
            "patches",
            2,
        ),
    )


def _named(pictures: PictureSet, name: str, side: str) -> PictureSet:
    """The set with ids and groups that say which side they are on: composed pictures are numbered anew on each."""
    return PictureSet(name, tuple(replace(each, id=f"{side}-{each.id}", group=_group(each, side)) for each in pictures))


def _group(picture: Picture, side: str) -> str:
    return f"{side}-{picture.id}" if picture.group == picture.id else picture.group


def cross_modal(
    vision: VisionSender,
    receiver: Model,
    parts: Sequence[Part],
    *,
    plan: Plan = Plan(),
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> CrossModal:
    """Latents against captions on held-out pictures, by question, with every control.

    Channels: "blind" (the question alone), "oracle" (the true caption), "soft_prompt" and "graft" (latents through
    ridge maps), "soft_prompt_trained" where the plan asks, "caption" (that of the nearest fitting picture by the same
    latents), "caption_by_map" (the caption nearest to what the soft prompt's map gives), "random_encoder" (a soft
    prompt from an untrained encoder of the same form with its OWN fitted map) and "shuffled_names" (from a map fitted
    to captions of other pictures). Each is also run with the messages of other pictures ("shuffled"). Nothing is
    fitted or chosen on a picture that is asked about. With `checkpoint` a run that was stopped goes on.

    Raises:
        ValueError: no part, two of one name, or what fitting and evaluation refuse.
    """
    if not parts or len({part.name for part in parts}) < len(parts):
        raise ValueError(f"the parts are {[part.name for part in parts]}; give at least one, each a name of its own")
    folder = None if checkpoint is None else Path(checkpoint)
    trials: dict[tuple[str, str, str], list[Trial]] = {}
    chosen: dict[str, Mapping[str, int]] = {}
    for part in parts:
        channels, chosen[part.name] = _fitted(vision, receiver, part, plan, folder, progress)
        for question in part.questions:
            task = exchangeable(picture_task(_asked(part, plan), question, template=plan.template))
            told: dict[str, tuple[Message, Cost]] = {}
            found: list[Trial] = []
            for channel in track(channels, f"{part.name}: {question.name}", total=len(channels), shown=progress):
                found += evaluate(
                    channel, receiver, receiver, task, seed=plan.seed, controls=("shuffled",),
                    reply_tokens=plan.reply_tokens, checkpoint=folder, told=told,
                )  # fmt: skip
            trials[part.name, question.name, question.type] = found
    return CrossModal(picture_table(trials, seed=plan.seed), trials, chosen)


def exchangeable(task: Task) -> Task:
    """The task without as many of the items of its commonest answer as exceed half: others can be exchanged for all.

    >>> from latentcomm.tasks import Item
    >>> items = tuple(Item(str(i), f"{i}", "r", "s", (a,), a, {}, ("A", "B")) for i, a in enumerate("AAAB"))
    >>> [item.id for item in exchangeable(Task("toy", items, ("A", "B"), "raw")).items]
    ['0', '3']
    """
    labels = [item.answers[0] for item in task.items]
    commonest = max(sorted(set(labels)), key=labels.count)
    others = len(labels) - labels.count(commonest)
    kept, seen = [], 0
    for item, label in zip(task.items, labels, strict=True):
        seen += label == commonest
        if label != commonest or seen <= others:
            kept.append(item)
    return replace(task, items=tuple(kept))


def _asked(part: Part, plan: Plan) -> PictureSet:
    n = len(part.testing) if plan.n_test is None else min(plan.n_test, len(part.testing))
    return PictureSet(part.testing.name, part.testing.pictures[:n])


def _fitted(
    vision: VisionSender, receiver: Model, part: Part, plan: Plan, folder: Path | None, progress: bool
) -> tuple[list[Channel], Mapping[str, int]]:
    """Every channel of a part, and the block and layer that were chosen."""
    key = digest(vision, receiver.fingerprint, part.fitting, list(part.questions), part.pooling, part.grid, plan)
    kept = _Kept(None if folder is None else folder / f"maps-{key[:16]}")
    images = [picture.image for picture in part.fitting]
    n_tokens = caption_length(receiver, [picture.caption for picture in part.fitting])

    def choose() -> dict[str, int]:
        block = plan.block
        if block is None:
            block = choose_block(vision, receiver, part, n_tokens=n_tokens, seed=plan.seed)
        write = plan.write_layer
        if write is None:
            write = choose_write_layer(vision, receiver, part, block, plan)
        return {"block": block, "write_layer": write}

    chosen = kept.facts("chosen", choose)
    if progress:
        say(f"{part.name}: block {chosen['block']} of {vision.name}, layer {chosen['write_layer']} of {receiver.name}")
    site, write = VisionSite(chosen["block"], part.pooling, part.grid), Site(chosen["write_layer"])
    asked = _asked(part, plan)
    eye = Eye(vision, asked, site)
    vectors = vision.read(images, site).float()

    def soft(rows: Float[Tensor, "item d_read"], shuffled: int | None = None) -> AffineMap:
        return fit_soft_prompt(rows, part.fitting, receiver, n_tokens=n_tokens, shuffled=shuffled, seed=plan.seed)

    mapping = kept.map("soft_prompt", lambda: soft(vectors))
    grafts = kept.maps(
        "graft",
        [question.name for question in part.questions],
        lambda: fit_vision_graft(
            vectors, part.fitting, part.questions, receiver, [write], template=plan.template, seed=plan.seed
        )[write],
    )
    blank = vision.randomised(seed=plan.seed)
    blank_map = kept.map("random_encoder", lambda: soft(blank.read(images, site).float()))
    wrong = kept.map("shuffled_names", lambda: soft(vectors, plan.seed))
    captions = tuple(dict.fromkeys(picture.caption for picture in part.fitting))
    targets = caption_embeddings(receiver, captions, n_tokens=n_tokens)
    known = NearestPicture(vectors, tuple(picture.caption for picture in part.fitting))
    channels: list[Channel] = [
        Silent("blind"),
        Skyline("oracle"),
        SoftPrompt("soft_prompt", eye, mapping, n_tokens),
        VisionGraft("graft", eye, write, grafts),
        Caption("caption", eye, known),
        Caption("caption_by_map", eye, NearestLabel(mapping, targets, captions)),
        SoftPrompt("random_encoder", Eye(blank, asked, site), blank_map, n_tokens),
        SoftPrompt("shuffled_names", eye, wrong, n_tokens),
    ]
    if plan.train_steps:
        tasks = [picture_task(part.fitting, question, template=plan.template) for question in part.questions]
        learner = SoftPromptLearner.of(
            receiver, tasks, {each.id: row for each, row in zip(part.fitting, vectors, strict=True)}, mapping
        )
        schedule = Schedule(
            steps=plan.train_steps, batch_size=8, learning_rate=1e-4, warmup=plan.train_steps // 20, seed=plan.seed
        )
        path = None if kept.folder is None else kept.folder / "training.safetensors"
        train(learner, schedule, frozen=[receiver], checkpoint=path, every=20, progress=progress, name="soft prompt")
        channels.insert(3, SoftPrompt("soft_prompt_trained", eye, learner.mapping, n_tokens))
    return channels, chosen


def choose_block(vision: VisionSender, receiver: Model, part: Part, *, n_tokens: int, seed: int = 0) -> int:
    """The block whose vectors best predict the embeddings of captions of held-out fitting pictures, by R squared."""
    inner, held = part.fitting.split(seed=seed, fraction=CHOSEN_ON)
    sides = []
    for pictures in (inner, held):
        rows = vision.pooled([each.image for each in pictures], pooling=part.pooling, grid=part.grid).float()
        target = caption_embeddings(receiver, [each.caption for each in pictures], n_tokens=n_tokens)
        sides.append((rows, target))
    (rows, target), (held_rows, held_target) = sides
    groups = [picture.group for picture in inner]
    folds = min(FOLDS, len(set(groups)))
    scores = [
        fit_ridge(each, target, groups=groups, folds=folds, seed=seed).r_squared(other, held_target)
        for each, other in zip(rows, held_rows, strict=True)
    ]
    return max(range(len(scores)), key=scores.__getitem__)


def choose_write_layer(vision: VisionSender, receiver: Model, part: Part, block: int, plan: Plan) -> int:
    """The layer at which a graft gets most questions about held-out fitting pictures right, by choices.

    Of layers at the relative depths `LATE`, never the last; equal ones give way to the later.
    """
    inner, held = part.fitting.split(seed=plan.seed, fraction=CHOSEN_ON)
    held = PictureSet(held.name, held.pictures[:MOST_CHOSEN_ON])
    site = VisionSite(block, part.pooling, part.grid)
    last = max(0, receiver.n_layers - 2)  # after the last block nothing reads a state but the unembedding
    writes = [Site(layer) for layer in sorted({min(int(depth * receiver.n_layers), last) for depth in LATE})]
    vectors = vision.read([each.image for each in inner], site).float()
    maps = fit_vision_graft(vectors, inner, part.questions, receiver, writes, template=plan.template, seed=plan.seed)
    right = dict.fromkeys(writes, 0.0)
    for question in part.questions:
        task = picture_task(held, question, template=plan.template, answers_from=part.fitting)
        for write in writes:
            right[write] += _accuracy(VisionGraft("graft", Eye(vision, held, site), write, maps[write]), receiver, task)
    return max(writes, key=lambda write: (right[write], write.layer)).layer


def _accuracy(channel: Channel, receiver: Model, task: Task) -> float:
    """The share of items whose right candidate has the largest logit of all candidates' first tokens."""
    message = channel.send(receiver, task, receiver=receiver)
    logits = next_token_logits(receiver, channel.receive(receiver, task, message))
    right = 0
    for item, row in zip(task.items, logits, strict=True):
        options = item.candidates or task.candidates
        tokens = torch.tensor([receiver.first_token(option) for option in options])
        right += options[int(row.cpu()[tokens].argmax())] == item.choice
    return right / len(task.items)


@dataclass(frozen=True)
class _Kept:
    """What is made once and read again, where there is a folder for it."""

    folder: Path | None

    def facts(self, name: str, make: Callable[[], dict[str, int]]) -> dict[str, int]:
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is not None and path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        made = make()
        if path is not None:
            write_json(path, made)
        return made

    def map(self, name: str, make: Callable[[], AffineMap]) -> AffineMap:
        return self.maps(name, [name], lambda: {name: make()})[name]

    def maps(
        self, name: str, parts: Sequence[str], make: Callable[[], Mapping[str, AffineMap]]
    ) -> Mapping[str, AffineMap]:
        if self.folder is None:
            return make()
        paths = {part: self.folder / f"{name}-{number}.safetensors" for number, part in enumerate(parts)}
        if all(path.exists() for path in paths.values()):
            return {part: AffineMap.load(path) for part, path in paths.items()}
        made = make()
        for part, path in paths.items():
            made[part].save(path)
        return made
