"""`latentcomm train`: the channels that learn."""

from pathlib import Path
from typing import Annotated

import typer

from latentcomm.cli.options import (
    CHOSEN,
    DEFAULT_MODEL,
    DataOption,
    DeviceOption,
    Fame,
    FameOption,
    ReadLayerOption,
    ReceiverOption,
    SenderForm,
    SenderFormOption,
    SenderOption,
    ShotsOption,
    SubjectsOption,
    TaskName,
    TaskOption,
    TemplateName,
    TemplateOption,
    WriteLayerOption,
)
from latentcomm.cli.shared import errors_as_sentences, layer_or_none, load_pair, make_task, names, unfinished


def train(
    channels: Annotated[str, typer.Argument(help="Comma-separated, of those that learn; see the documentation.")],
    task: TaskOption = TaskName.countries,
    sender: SenderOption = DEFAULT_MODEL,
    receiver: ReceiverOption = "",
    template: TemplateOption = TemplateName.raw,
    sender_form: SenderFormOption = SenderForm.primed,
    fame: FameOption = Fame.all,
    data: DataOption = "",
    subjects: SubjectsOption = "",
    n_shots: ShotsOption = 0,
    read_layer: ReadLayerOption = CHOSEN,
    write_layer: WriteLayerOption = CHOSEN,
    steps: Annotated[int, typer.Option(help="Updates; 0 leaves each channel its default.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Examples an update; 0: the default.", min=0)] = 0,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW; 0: the default.", min=0)] = 0.0,
    plan_tokens: Annotated[int, typer.Option(help="Of Interlat: tokens of the sender's plan.", min=1)] = 8,
    n_steps: Annotated[int, typer.Option(help="Of Interlat: compress the plan to so many latents.", min=0)] = 0,
    every: Annotated[
        int, typer.Option(help="Of CALM: the step between the layers of the sender that are read.", min=1)
    ] = 4,
    out: Annotated[Path, typer.Option(help="Folder of the trained channels.")] = Path("weights"),
    seed: Annotated[int, typer.Option(help="Of the split and of the training.", min=0)] = 0,
    device: DeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the training's arithmetic: float32 or bfloat16.")] = "float32",
) -> None:
    """Train the channels that learn on the tuning half of a task, both models frozen; `compare --weights` tests
    them on the other half.

    Interrupted trainings resume: the same command continues them, to the same bits.
    """
    with errors_as_sentences():
        from latentcomm.channels.catalogue import LEARNED
        from latentcomm.experiments.train import LearningPlan, learn

        chosen = names(channels)
        if not chosen or any(name not in LEARNED for name in chosen):
            raise ValueError(f"the channels to train are {channels!r}; choose among {', '.join(LEARNED)}")
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype is {dtype!r}; train in float32 or bfloat16")
        chosen_task = make_task(task, template, sender_form, fame, seed, data, subjects, n_shots)
        plan = LearningPlan(
            steps=steps or None,
            batch_size=batch_size or None,
            learning_rate=learning_rate or None,
            dtype="bfloat16" if dtype == "bfloat16" else "float32",
            read_layer=layer_or_none(read_layer),
            write_layer=layer_or_none(write_layer),
            plan_tokens=plan_tokens,
            n_steps=n_steps or None,
            every=every,
            seed=seed,
        )
        first, second = load_pair(sender, receiver, device=device)
        with unfinished(out, first.fingerprint, second.fingerprint, chosen_task, plan) as folder:
            for name in chosen:
                learned = learn(name, first, second, chosen_task, plan=plan, checkpoint=folder, progress=True)
                learned.save(out / f"{name}.safetensors")
                facts = learned.facts["training"]
                print(f"wrote {out / name}.safetensors: {facts['updates']} updates in {facts['seconds']:.0f} s")
