"""`TrainSettings` run: channels trained on the tuning half of a task, one file each."""

import pandas as pd

from latentcomm._core.names import check_name
from latentcomm.channels.catalogue import LEARNED
from latentcomm.experiments import train
from latentcomm.experiments.job import Job, Result
from latentcomm.experiments.settings import listed
from latentcomm.experiments.train_settings import TrainSettings
from latentcomm.models.facts import describe
from latentcomm.reporting.terminal import Console

__all__ = ["run_train"]


def run_train(settings: TrainSettings, job: Job) -> Result:
    """Train; see `latentcomm.learn`. With a folder, each channel is written there as it is trained.

    Raises:
        ValueError: what the settings, the task or the trainer refuse.
    """
    names = [check_name("channel to train", name.replace("-", "_"), LEARNED) for name in listed(settings.channels)]
    if not names:
        raise ValueError(f"channels names none to train; choose among {', '.join(LEARNED)}")
    if settings.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {settings.dtype!r}; train in float32 or bfloat16")
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
    task = job.task_of(settings)
    sender, receiver = job.pair(settings.in_float32())
    trained, files = {}, []
    for name in names:
        folder = job.unfinished(name, sender, receiver, task, plan)
        trained[name] = train.learn(name, sender, receiver, task, plan=plan, checkpoint=folder, progress=job.progress)
        if job.out is not None:
            files.append(job.out / f"{name}.safetensors")
            trained[name].save(files[-1])
    facts = {name: each.facts["training"] for name, each in trained.items()}
    table = pd.DataFrame(
        {"channel": name, "updates": each["updates"], "seconds": each["seconds"]} for name, each in facts.items()
    )

    def summary(console: Console) -> None:
        for row in table.to_dict("records"):
            console.print(
                f"{row['channel']}: {row['updates']} updates in {row['seconds']:.0f} s", highlight=False, soft_wrap=True
            )

    return Result(
        settings=settings,
        found=trained,
        table=table,
        shown=settings.to_dict() | {"sender": sender.name, "receiver": receiver.name, "channels": names},
        models={"sender": describe(sender), "receiver": describe(receiver)},
        seconds=job.seconds,
        summary=summary,
        files=tuple(files),
    )
