"""`latentcomm sweep`: the whole grid of read and write layers, and the cell that it gives, judged."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from latentcomm.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    Fame,
    FameOption,
    NameOption,
    OutOption,
    ReceiverOption,
    SeedOption,
    SenderForm,
    SenderFormOption,
    SenderOption,
    TaskName,
    TaskOption,
    TemplateName,
    TemplateOption,
    TuneOption,
)
from latentcomm.cli.shared import (
    check_file_name,
    console,
    errors_as_sentences,
    listed,
    load_pair,
    make_task,
    unfinished,
)
from latentcomm.fusion import Fusion, Mean, NormMatched, OrthogonalResidual, Replace, RightAligned, Sum, TaskArithmetic

FUSION_NAMES: dict[str, Fusion] = {
    "replace": Replace(),
    "mean": Mean(),
    "sum": Sum(),
    "norm-matched-sum": NormMatched(Sum()),
    "orthogonal-residual": OrthogonalResidual(),
    "task-arithmetic": TaskArithmetic(),
}
"""The fusions that need no fitted map; those that do are for scripts."""


def sweep(
    sender: SenderOption = DEFAULT_MODEL,
    receiver: ReceiverOption = "",
    task: TaskOption = TaskName.countries,
    template: TemplateOption = TemplateName.raw,
    sender_form: SenderFormOption = SenderForm.primed,
    fame: FameOption = Fame.all,
    fusion: Annotated[
        str, typer.Option(help=f"Comma-separated; the first is swept. Of: {', '.join(FUSION_NAMES)}.")
    ] = "replace,mean,sum",
    right_aligned: Annotated[bool, typer.Option(help="Fuse the last entries of states of unequal width.")] = False,
    read_layers: Annotated[str, typer.Option(help="Such as 0-29 or 20,24,28; all by default.")] = "",
    write_layers: Annotated[str, typer.Option(help="The same, of the receiver.")] = "",
    n_tune: TuneOption = 40,
    n_test: Annotated[int, typer.Option(help="Other items that it is judged on; 0: all.", min=0)] = 0,
    out: OutOption = Path("figures"),
    name: NameOption = "sweep",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Graft every sender layer into every receiver layer, choose a cell, and judge it with all controls.

    Interrupted runs resume: the same command continues from the finished work, until it has finished once.
    """
    with errors_as_sentences():
        began = time.monotonic()
        check_file_name(name)
        fusions = _fusions(fusion, right_aligned)
        reads, writes = _layers(read_layers, "--read-layers"), _layers(write_layers, "--write-layers")
        chosen_task = make_task(task, template, sender_form, fame, seed)
        from latentcomm.experiments.sweep.report import print_report, write_report
        from latentcomm.experiments.sweep.run import sweep_and_judge

        first, second = load_pair(sender, receiver, device=device, dtype=dtype)
        settings = {
            "sender": first.name,
            "receiver": second.name,
            "task": task.value,
            "template": template.value,
            "sender_form": sender_form.value,
            "fame": fame.value,
            "fusion": next(iter(fusions)),
            "fusions": {key: repr(value) for key, value in fusions.items()},
            "read_layers": reads,
            "write_layers": writes,
            "n_tune": n_tune,
            "n_test": n_test,
            "seed": seed,
            "device": device,
            "dtype": dtype,
        }
        with unfinished(out, settings) as folder:
            report = sweep_and_judge(
                first,
                second,
                chosen_task,
                fusions=fusions,
                read_layers=reads,
                write_layers=writes,
                n_tune=n_tune,
                n_test=n_test or None,
                seed=seed,
                checkpoint=folder,
                progress=True,
            )
            published = write_report(
                report,
                name=name,
                folder=out,
                settings=settings,
                measured={"wall_seconds": round(time.monotonic() - began, 1)},
                models={"sender": first, "receiver": second},
            )
        print_report(report, console(118))
        for files in published:
            print(
                f"wrote {files.page} (open it in a browser), {files.data.name}, {files.figure.name}, {files.meta.name}"
            )
        print(f"took {time.monotonic() - began:.0f} s")


def _fusions(text: str, right_aligned: bool) -> dict[str, Fusion]:
    chosen = listed(text)
    if not chosen:
        raise ValueError(f"--fusion names none; choose among {', '.join(FUSION_NAMES)}")
    for name in chosen:
        if name not in FUSION_NAMES:
            raise ValueError(f"there is no fusion {name!r} on the command line; choose among {', '.join(FUSION_NAMES)}")
    wrap: Callable[[Fusion], Fusion] = RightAligned if right_aligned else lambda plain: plain
    return {name: wrap(FUSION_NAMES[name]) for name in chosen}


def _layers(text: str, option: str) -> list[int] | None:
    """Layers of "0-3,8": [0, 1, 2, 3, 8]."""
    if not text.strip():
        return None
    layers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()) or (dash and int(high) < int(low)):
            raise ValueError(f"{option} is {text!r}; write layers as 20,24,28 or as a range 20-28")
        layers += range(int(low), int(high or low) + 1)
    return layers
