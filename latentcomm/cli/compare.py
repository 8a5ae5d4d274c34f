"""`latentcomm compare`: several channels on the same items."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from latentcomm._core.files import digest, without_folder
from latentcomm.cli.options import (
    CHOSEN,
    DEFAULT_MODEL,
    DataOption,
    DeviceOption,
    DtypeOption,
    Fame,
    FameOption,
    NameOption,
    ReadLayerOption,
    ReceiverOption,
    RightAlignedOption,
    SeedOption,
    SenderForm,
    SenderFormOption,
    SenderOption,
    ShotsOption,
    SubjectsOption,
    TaskName,
    TaskOption,
    TemplateName,
    TemplateOption,
    TuneOption,
    WriteLayerOption,
)
from latentcomm.cli.shared import (
    check_file_name,
    console,
    errors_as_sentences,
    layer_or_none,
    listed,
    load_pair,
    make_task,
    names,
)


def compare(
    task: TaskOption = TaskName.countries,
    channels: Annotated[str, typer.Option(help="Comma-separated; by default all that need no training.")] = "",
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
    right_aligned: RightAlignedOption = False,
    message_tokens: Annotated[int, typer.Option(help="Tokens of a generated message at most.", min=1)] = 16,
    request: Annotated[str, typer.Option(help="Appended to the text of a sender that generates.")] = "",
    n_tune: TuneOption = 40,
    n_test: Annotated[int, typer.Option(help="Other items that channels are compared on; 0: all.", min=0)] = 100,
    n_thoughts: Annotated[int, typer.Option(help="Of Coconut: how many times a state is fed back.", min=0)] = 4,
    learned: Annotated[
        Path | None, typer.Option("--weights", help="Folder of channels that `latentcomm train` wrote.")
    ] = None,
    controls: Annotated[
        str,
        typer.Option(help="Comma-separated: shuffled, same-label, zero, random, self. Each costs as the message."),
    ] = "shuffled",
    out: Annotated[Path, typer.Option(help="Where the figure, its data and the trials go.")] = Path("figures"),
    name: NameOption = "compare",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Run several channels on the same items: accuracy with interval, controls, and what each costs.

    Interrupted runs resume, item by item, and finished items do not run again: another channel is added to the finished
    ones. The trials are saved in .compared as JSON lines; delete that folder to start again.
    """
    with errors_as_sentences():
        began = time.monotonic()
        check_file_name(name)
        from latentcomm.channels.catalogue import LEARNED, check_names
        from latentcomm.experiments.compare.report import print_comparison, write_comparison
        from latentcomm.experiments.compare.run import Plan, compare_named, names_for
        from latentcomm.experiments.evaluation import forget_messages
        from latentcomm.experiments.train import check_unseen, load_folder

        chosen = names(channels)
        if chosen:
            check_names(chosen, () if learned is None else LEARNED)
        chosen_task = make_task(task, template, sender_form, fame, seed, data, subjects, n_shots)
        plan = Plan(
            read_layer=layer_or_none(read_layer),
            write_layer=layer_or_none(write_layer),
            right_aligned=right_aligned,
            message_tokens=message_tokens,
            request=request,
            n_tune=n_tune,
            n_test=n_test or None,
            controls=tuple(listed(controls)),
            n_thoughts=n_thoughts,
            seed=seed,
        )
        first, second = load_pair(sender, receiver, device=device, dtype=dtype)
        trained = {} if learned is None else load_folder(learned, first, second)
        for each in trained.values():
            check_unseen(each, chosen_task.split(seed=seed)[1])
        chosen = chosen or [*names_for(first, second, right_aligned=right_aligned), *trained]
        settings = {
            "sender": first.name,
            "receiver": second.name,
            "task": task.value,
            "channels": chosen,
            "template": template.value,
            "sender_form": sender_form.value,
            "fame": fame.value,
            "data": without_folder(data),
            "subjects": subjects,
            "n_shots": n_shots,
            "device": device,
            "dtype": dtype,
            "weights": {name: digest(each.weights) for name, each in trained.items() if name in chosen},
        } | asdict(plan)
        varying = ("channels", "controls", "weights")
        shared_settings = {key: value for key, value in settings.items() if key not in varying}
        folder = out / ".compared" / digest(shared_settings)[:16]
        comparison, cell = compare_named(
            chosen,
            first,
            second,
            chosen_task,
            plan=plan,
            learned={name: each.channel for name, each in trained.items()},
            checkpoint=folder,
            progress=True,
        )
        published = write_comparison(
            comparison,
            name=name,
            folder=out,
            settings=settings | ({} if cell is None else {"chosen_read_layer": cell[0], "chosen_write_layer": cell[1]}),
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            models={"sender": first, "receiver": second},
        )
        forget_messages(folder)
        if cell is not None:
            print(f"states are read after block {cell[0]} and written after block {cell[1]}")
        print_comparison(comparison, console(140))
        print(f"wrote {published.page} (open it in a browser), {published.data.name}, {name}_trials.csv")
        print(f"took {time.monotonic() - began:.0f} s")
