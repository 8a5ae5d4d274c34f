"""`latentcomm crossmodal`: a vision encoder's states as messages to a language model."""

import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from latentcomm._core.files import digest, without_folder
from latentcomm.cli.options import (
    CHOSEN,
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    NameOption,
    SeedOption,
    TemplateName,
    TemplateOption,
    WriteLayerOption,
)
from latentcomm.cli.shared import check_file_name, console, errors_as_sentences, layer_or_none, names

DIGITS = "digits"


class Pooling(StrEnum):
    """How an encoder's tokens become one vector."""

    auto = "auto"
    class_token = "class"
    patches = "patches"


def crossmodal(
    vision: Annotated[
        str,
        typer.Option(help="Directory or hub id of a vision encoder; for digits a small one by default."),
    ] = "",
    receiver: Annotated[
        str, typer.Option(help="The receiver: built-in name, hub id, directory or .gguf file.")
    ] = DEFAULT_MODEL,
    data: Annotated[
        str, typer.Option(help="'digits', or a folder of pictures with table.csv or table.json: file, name and facts.")
    ] = DIGITS,
    channels: Annotated[
        str, typer.Option(help="Comma-separated; by default all that need no training through the receiver.")
    ] = "",
    template: TemplateOption = TemplateName.raw,
    pooling: Annotated[
        Pooling, typer.Option(help="Read from the encoder: its class token where it has one, else its patches.")
    ] = Pooling.auto,
    block: Annotated[int, typer.Option(help="Of the encoder; chosen on fitting pictures where left out.")] = CHOSEN,
    write_layer: WriteLayerOption = CHOSEN,
    n_fitting: Annotated[int, typer.Option(help="Pictures of digits that maps are fitted on.", min=8)] = 400,
    n_test: Annotated[int, typer.Option(help="Test pictures of each part.", min=2)] = 60,
    n_pictures: Annotated[int, typer.Option(help="Most pictures of a folder; 0: all.", min=0)] = 250,
    composed: Annotated[
        bool, typer.Option(help="For a folder, also test how many of a thing are shown, and in what ink.")
    ] = False,
    reply_tokens: Annotated[int, typer.Option(help="Tokens of a free reply.", min=1)] = 4,
    train_steps: Annotated[int, typer.Option(help="Updates of soft-prompt-trained.", min=1)] = 200,
    vision_steps: Annotated[int, typer.Option(help="Updates of the small encoder of digits.", min=1)] = 1200,
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out pictures that cannot be read.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the figure, its data and the trials.")] = Path("figures"),
    name: NameOption = "crossmodal",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Test a language model on pictures: through latents, and through captions from the same latents.

    Stopped runs resume: encoder, maps and trials are saved in .crossmodal; delete that folder to start over.
    Preprocessing is what the checkpoint states, ImageNet's where it states none.
    """
    with errors_as_sentences():
        began = time.monotonic()
        check_file_name(name)
        from latentcomm.experiments.crossmodal.picture_folder import (
            counted_part,
            folder_parts,
            read_folder,
            recoloured_part,
        )
        from latentcomm.experiments.crossmodal.report import print_crossmodal, write_crossmodal
        from latentcomm.experiments.crossmodal.run import USUAL, Plan, cross_modal
        from latentcomm.experiments.crossmodal.small_vit import encoder_named
        from latentcomm.experiments.crossmodal.splits import Part, digit_parts, pooled_for
        from latentcomm.experiments.evaluation import forget_messages
        from latentcomm.models import load_model
        from latentcomm.models.sites import Site

        plan = Plan(
            channels=tuple(names(channels)) or USUAL,
            block=layer_or_none(block),
            write_layer=layer_or_none(write_layer),
            template=template.value,
            n_test=n_test,
            reply_tokens=reply_tokens,
            train_steps=train_steps,
            seed=seed,
        )
        n_composed = max(8, round(0.6 * n_fitting))
        if data == DIGITS:
            parts = digit_parts(n_fitting=n_fitting, n_composed=n_composed, n_testing=n_test, seed=seed)
        else:
            if not vision:
                raise ValueError("only digits come with an encoder; name one by --vision, a directory or a hub id")
            pictures = read_folder(data, n_pictures=n_pictures or None, seed=seed, skip_unreadable=skip_unreadable)
            parts: tuple[Part, ...] = folder_parts(pictures, seed=seed)
            if composed:
                sizes = {"n_fitting": n_composed, "n_testing": n_test, "seed": seed}
                parts = (*parts, counted_part(pictures, **sizes), recoloured_part(pictures, **sizes))
        language_model = load_model(receiver, dtype=dtype, device=device)
        if plan.write_layer is not None:
            language_model.check_site(Site(plan.write_layer))
        work = out / ".crossmodal"
        sender = encoder_named(vision, work, steps=vision_steps, seed=seed, dtype=dtype, device=device, progress=True)
        parts = pooled_for(sender, parts, None if pooling is Pooling.auto else pooling.value)
        settings = {
            "vision": sender.name,
            "receiver": language_model.name,
            "data": without_folder(data),
            "n_fitting": {part.name: len(part.fitting) for part in parts},
            "pooling": {part.name: f"{part.pooling} {part.grid} x {part.grid}".replace(" 1 x 1", "") for part in parts},
            "left_out": list(parts[0].fitting.left_out),
            "n_pictures": n_pictures,
            "skip_unreadable": skip_unreadable,
            "vision_steps": None if vision else vision_steps,
            "device": device,
            "dtype": dtype,
        } | asdict(plan)
        fitted_on = [(part.fitting, part.pooling, part.grid) for part in parts]
        checkpoint = work / digest(sender, language_model, fitted_on)[:16]
        result = cross_modal(sender, language_model, parts, plan=plan, checkpoint=checkpoint, progress=True)
        published = write_crossmodal(
            result,
            name=name,
            folder=out,
            settings=settings,
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            vision=sender,
            receiver=language_model,
        )
        forget_messages(checkpoint)
        print_crossmodal(result, console(120))
        for part, places in result.chosen.items():
            if places:
                print(f"{part}: {', '.join(f'{what} {place}' for what, place in places.items())}".replace("_", " "))
        print(f"wrote {published.page} (open it in a browser), {published.data.name}, {name}_trials.csv")
        print(f"took {time.monotonic() - began:.0f} s")
