"""`TrainSettings` run: channels trained on the tuning half of a task, one file each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.experiments import train
from latentcomm.experiments._train_check import TrainInputs
from latentcomm.experiments.job import Drawing, Job, Result, publish_all, record_of
from latentcomm.experiments.train_settings import TWIN, TrainSettings
from latentcomm.models.facts import describe
from latentcomm.reporting.plots import loss_curves
from latentcomm.reporting.plots.tables import spoken
from latentcomm.reporting.publish import plain
from latentcomm.reporting.terminal import Console

__all__ = ["run_train", "training_figure"]


def run_train(settings: TrainSettings, job: Job, inputs: TrainInputs) -> Result:
    """Train; see `latentcomm.learn`. With a folder, each channel is written there as it is trained.

    Raises:
        ValueError: what the settings, the task or the trainer refuse.
    """
    names, task = list(inputs.names), inputs.task
    plan = train.LearningPlan(
        steps=settings.steps or None,
        batch_size=settings.batch_size or None,
        learning_rate=settings.learning_rate or None,
        dtype="bfloat16" if settings.dtype == "bfloat16" else "float32",
        read_layer=settings.read_layer,
        write_layer=settings.write_layer,
        plan_tokens=settings.plan_tokens,
        n_steps=settings.n_steps or None,
        every=settings.every,
        seed=settings.seed,
    )
    sender, receiver = job.pair(settings.in_float32())
    models = {"sender": describe(sender), "receiver": describe(receiver)}
    shown = settings.decisive() | {"sender": sender.name, "receiver": receiver.name}
    trained, files, rows = {}, [], []
    twins = (False, True) if settings.deranged else (False,)
    for channel, twin in product(names, twins):
        folder = job.saved(channel, sender, receiver, task, plan, settings.held_out, *(["deranged"] if twin else []))
        name = f"{channel}{TWIN}" if twin else channel
        trained[name] = train.learn(
            channel, sender, receiver, task, plan=plan, held_out=settings.held_out, deranged=twin, checkpoint=folder,
            save_every=settings.save_every, progress=job.progress,
        )  # fmt: skip
        facts = trained[name].facts["training"]
        curve = [dict(zip(("update", "loss", "held_out_loss"), each, strict=True)) for each in facts["curve"]]
        losses = pd.DataFrame(curve).astype(float).astype({"update": int}).assign(channel=name)
        rows.append(_summary_row(name, facts["curve"]) | {"seconds": facts["seconds"]})
        if job.out is not None:
            weights = job.out / f"{name}.safetensors"
            trained[name].save(weights)
            here = plain(shown | {"channels": [name], "trained_on": len(trained[name].facts["trained_on"])})
            published = publish_all(
                {"": Drawing(training_figure(losses, here), losses)},
                name=name,
                folder=job.out,
                settings=here,
                measured={"wall_seconds": facts["seconds"]},
                models=models,
                run=record_of(replace(settings, channels=(channel,), deranged=twin), job.in_memory),
            )
            written = [path for each in published for path in (each.page, each.data, each.figure, each.meta)]
            job.finish(name, [weights, *written])
            files += [weights, *written]
    table = pd.DataFrame(rows)

    def summary(console: Console) -> None:
        for row in rows:
            console.print(_sentence(row), highlight=False, soft_wrap=True)

    return Result(
        settings=settings,
        found=trained,
        table=table,
        shown=shown | {"channels": names},
        models=models,
        seconds=job.seconds,
        summary=summary,
        files=tuple(files),
    )


def training_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """The losses of one channel."""
    items = f"{settings['trained_on']} items" if settings["trained_on"] else "text of the corpus"
    return loss_curves(
        table,
        title=f"{spoken(settings['channels'][0])}: {settings['sender']} to {settings['receiver']}, {settings['task']}",
        note=f"Trained on {items}; the loss on those held out changes nothing.",
    )


def _summary_row(name: str, curve: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The updates, and both losses at the begin and at the end."""
    losses = [loss for _, loss, _ in curve if loss is not None]
    held = [loss for *_, loss in curve if loss is not None] or [math.nan]
    row = {"channel": name, "updates": curve[-1][0], "first_loss": losses[0], "last_loss": losses[-1]}
    return row | {"held_out_before": held[0], "held_out_after": held[-1]}


def _sentence(row: Mapping[str, Any]) -> str:
    held = f"; on held-out examples {row['held_out_before']:.4f} before and {row['held_out_after']:.4f} after"
    return (
        f"{row['channel']}: {row['updates']} updates in {row['seconds']:.0f} s, loss {row['first_loss']:.4f} in the "
        f"first tenth and {row['last_loss']:.4f} in the last{'' if math.isnan(row['held_out_after']) else held}"
    )
