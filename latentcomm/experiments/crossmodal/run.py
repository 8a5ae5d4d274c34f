"""The job of `latentcomm crossmodal`: fit maps on some pictures, test on others, latents against captions."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from latentcomm._core.files import expanded
from latentcomm._core.progress import say, track
from latentcomm._core.records import end_of_part
from latentcomm.channels import Message
from latentcomm.channels.base import Channel
from latentcomm.experiments.accuracy import to_table
from latentcomm.experiments.crossmodal.drift import measure_drift
from latentcomm.experiments.crossmodal.fitted_channels import (
    CHANNELS,
    FITTED_CONTROLS,
    USUAL,
    Plan,
    Setup,
    fit_channels,
)
from latentcomm.experiments.crossmodal.questions import distinct_choices, picture_task
from latentcomm.experiments.crossmodal.splits import Part, digit_parts
from latentcomm.experiments.crossmodal.table import picture_table
from latentcomm.experiments.evaluation import Cost, Trial, evaluate, n_evaluated
from latentcomm.models import Model
from latentcomm.models.vision import VisionSender
from latentcomm.tasks.base import Task

__all__ = ["CHANNELS", "USUAL", "CrossModal", "Part", "Plan", "cross_modal", "digit_parts", "exchangeable"]

PLAN = Plan()
CONTROLS = ("shuffled", "zero", "random")
"""Run with every channel that is no control itself and has a message; a receiver has no picture of its own to send."""


@dataclass(frozen=True, eq=False)
class CrossModal:
    """The results of a run.

    Attributes:
        table: see `table.picture_table`.
        trials: by part, question and type.
        chosen: the block and the write layer of each part.
    """

    table: pd.DataFrame
    trials: Mapping[tuple[str, str, str], list[Trial]]
    chosen: Mapping[str, Mapping[str, int]]

    def trial_table(self) -> pd.DataFrame:
        """One row per trial, with part, question and type."""
        tables = [
            to_table(trials, part=part, question=question, type=kind)
            for (part, question, kind), trials in self.trials.items()
        ]
        return pd.concat(tables, ignore_index=True)


def cross_modal(
    vision: VisionSender,
    receiver: Model,
    parts: Sequence[Part],
    *,
    plan: Plan = PLAN,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> CrossModal:
    """Latents against captions on held-out pictures, by question, with every control.

    Channels: "silent" (the question alone), "skyline" (the true caption), "soft_prompt" and "graft" (latents through
    ridge maps), "soft_prompt_trained" where the plan names it, "caption" (that of the nearest fitting picture by the
    same latents), "caption_by_map" (the caption nearest to the output of the soft prompt's map), "caption_by_word"
    (that output, each soft token rounded to the nearest token of captions), "random_encoder" (a soft prompt from an
    untrained encoder of the same form with its OWN fitted map and its own chosen block), "shuffled_names" and
    "graft_shuffled_names" (maps fitted to shuffled names) and, where the plan names it, "trained_other_pictures" (the
    same training with vectors of other pictures). "probe" has no receiver: it is what a linear classifier of the same
    vectors answers, fitted to the answers about the fitting pictures, which training through the receiver also sees.
    Soft prompts, grafts and captions that are no controls themselves are also run with the messages of other pictures
    ("shuffled"), soft prompts and grafts with the zero vector and a random one of the same norm ("zero", "random");
    silent and skyline have no message to shuffle. Nothing is fitted or chosen on a test picture. With `checkpoint` a
    run that was stopped resumes.

    Raises:
        ValueError: no part, two of one name, or what fitting and evaluation refuse.
    """
    if not parts or len({part.name for part in parts}) < len(parts):
        raise ValueError(f"the parts are {[part.name for part in parts]}; give at least one, each with its own name")
    folder = None if checkpoint is None else expanded(checkpoint)
    trials: dict[tuple[str, str, str], list[Trial]] = {}
    chosen: dict[str, Mapping[str, int]] = {}
    groups: dict[str, str] = {}
    drift: dict[tuple[str, str, str], Mapping[str, float]] = {}
    fits: list[tuple[Setup, Sequence[Channel]]] = []
    for part in parts:
        setup = Setup.of(vision, receiver, part, plan, folder, progress=progress)
        fitted = fit_channels(setup)
        channels, chosen[part.name] = fitted.channels, fitted.layers.chosen
        if progress and chosen[part.name]:
            layers = ", ".join(f"{name.replace('_', ' ')} {layer}" for name, layer in chosen[part.name].items())
            say(f"{part.name}: {layers}")
        for question in part.questions:
            task = exchangeable(picture_task(setup.tested, question, template=plan.template))
            task = distinct_choices(task, receiver.first_token, seed=plan.seed)
            groups |= {item.id: f"{part.name}/{item.tags['group']}" for item in task.items}
            messages: dict[str, tuple[Message, Cost]] = {}
            results: list[Trial] = []
            options = {"seed": plan.seed, "reply_tokens": plan.reply_tokens, "checkpoint": folder}
            controls = {channel.name: () if channel.name in FITTED_CONTROLS else CONTROLS for channel in channels}
            saved = 0
            for channel in channels if progress else ():
                saved += n_evaluated([channel], receiver, receiver, task, controls=controls[channel.name], **options)
            what = f"{part.name}: {question.name}"
            for channel in track(channels, what, total=len(channels), saved=saved, shown=progress):
                results += evaluate(
                    channel, receiver, receiver, task, controls=controls[channel.name], told=messages, **options
                )
            if fitted.probe is not None:
                results += fitted.probe.trials(question, task)
            trials[part.name, question.name, question.type] = results
        fits.append((setup, channels))
    end_of_part()
    for setup, channels in fits:
        drift |= {(setup.part.name, *which): each for which, each in measure_drift(setup, channels).items()}
    return CrossModal(picture_table(trials, groups=groups, drift=drift, seed=plan.seed), trials, chosen)


def exchangeable(task: Task) -> Task:
    """The task with at most half of its items of one answer, so that every item can get another answer's message.

    Raises:
        ValueError: all items have one answer.

    >>> from latentcomm.tasks import Item
    >>> items = tuple(Item(str(i), f"{i}", "r", "s", (a,), a, {}, ("A", "B")) for i, a in enumerate("AAAB"))
    >>> [item.id for item in exchangeable(Task("toy", items, ("A", "B"), "raw")).items]
    ['0', '3']
    """
    labels = [item.answers[0] for item in task.items]
    commonest = max(sorted(set(labels)), key=labels.count)
    others = len(labels) - labels.count(commonest)
    if not others:
        raise ValueError(
            f"all {len(labels)} test pictures of {task.name!r} have the answer {commonest!r}; test on more pictures, "
            "or leave the question out"
        )
    selected, n_common = [], 0
    for item, label in zip(task.items, labels, strict=True):
        n_common += label == commonest
        if label != commonest or n_common <= others:
            selected.append(item)
    return replace(task, items=tuple(selected))
