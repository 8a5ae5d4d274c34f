"""`CrossModalSettings` run: pictures through latents, and through captions from the same latents."""

from collections.abc import Mapping

from latentcomm._core.files import digest
from latentcomm.experiments.crossmodal.picture_folder import counted_part, folder_parts, read_folder, recoloured_part
from latentcomm.experiments.crossmodal.report import crossmodal_figure, describe_vision, print_crossmodal
from latentcomm.experiments.crossmodal.run import USUAL, Plan, cross_modal
from latentcomm.experiments.crossmodal.settings import DIGITS, CrossModalSettings
from latentcomm.experiments.crossmodal.small_vit import encoder_named
from latentcomm.experiments.crossmodal.splits import Part, digit_parts, pooled_for
from latentcomm.experiments.evaluation import forget_messages
from latentcomm.experiments.job import Drawing, Job, Result
from latentcomm.experiments.settings import listed
from latentcomm.models.facts import describe
from latentcomm.models.sites import Site
from latentcomm.reporting.publish import plain
from latentcomm.reporting.terminal import Console

__all__ = ["run_crossmodal"]


def run_crossmodal(settings: CrossModalSettings, job: Job) -> Result:
    """Fit on some pictures, test on others; see `cross_modal`.

    Raises:
        ValueError: what the settings, the pictures or the channels refuse.
    """
    plan = Plan(
        channels=tuple(name.replace("-", "_") for name in listed(settings.channels)) or USUAL,
        block=settings.block,
        write_layer=settings.write_layer,
        template=settings.template,
        n_test=settings.n_test,
        reply_tokens=settings.reply_tokens,
        train_steps=settings.train_steps,
        seed=settings.seed,
    )
    parts = _parts(settings, named=job.sender is not None)
    receiver = job.receiver or job.model(settings.receiver, settings)
    if plan.write_layer is not None:
        receiver.check_site(Site(plan.write_layer))
    work = None if job.out is None else job.out / ".crossmodal"
    encoder = job.sender or encoder_named(
        settings.sender, work, steps=settings.vision_steps, seed=settings.seed, dtype=settings.dtype,
        device=settings.device, progress=job.progress,
    )  # fmt: skip
    parts = pooled_for(encoder, parts, None if settings.pooling == "auto" else settings.pooling)
    fitted_on = [(part.fitting, part.pooling, part.grid) for part in parts]
    checkpoint = None if work is None else work / digest(encoder, receiver, fitted_on)[:16]
    found = cross_modal(encoder, receiver, parts, plan=plan, checkpoint=checkpoint, progress=job.progress)
    if checkpoint is not None:
        forget_messages(checkpoint)
    shown = plain(
        settings.to_dict()
        | {
            "vision": encoder.name,
            "receiver": receiver.name,
            "channels": list(plan.channels),
            "n_fitting": {part.name: len(part.fitting) for part in parts},
            "pooling": {part.name: f"{part.pooling} {part.grid} x {part.grid}".replace(" 1 x 1", "") for part in parts},
            "left_out": list(parts[0].fitting.left_out),
            "vision_steps": None if settings.sender else settings.vision_steps,
            "chosen": {part: dict(layers) for part, layers in found.chosen.items()},
        }
    )

    def summary(console: Console) -> None:
        print_crossmodal(found, console)
        for part, layers in found.chosen.items():
            if layers:
                console.print(f"{part}: {_sentence(layers)}", highlight=False)

    return Result(
        settings=settings,
        found=found,
        table=found.table,
        trials=found.trial_table(),
        figures={"": Drawing(crossmodal_figure(found.table, shown), found.table)},
        shown=shown,
        models={"vision": describe_vision(encoder), "receiver": describe(receiver)},
        seconds=job.seconds,
        summary=summary,
    )


def _sentence(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {layer}" for what, layer in layers.items()).replace("_", " ")


def _parts(settings: CrossModalSettings, *, named: bool) -> tuple[Part, ...]:
    n_composed = max(8, round(0.6 * settings.n_fitting))
    sizes = {"n_testing": settings.n_test, "seed": settings.seed}
    if settings.data == DIGITS:
        return tuple(digit_parts(n_fitting=settings.n_fitting, n_composed=n_composed, **sizes))
    if not settings.sender and not named:
        raise ValueError("only digits come with an encoder; name one as sender, a directory or a hub id")
    pictures = read_folder(
        settings.data, n_pictures=settings.n_pictures or None, seed=settings.seed,
        skip_unreadable=settings.skip_unreadable,
    )  # fmt: skip
    parts = tuple(folder_parts(pictures, seed=settings.seed))
    if not settings.composed:
        return parts
    sizes |= {"n_fitting": n_composed}
    return (*parts, counted_part(pictures, **sizes), recoloured_part(pictures, **sizes))
