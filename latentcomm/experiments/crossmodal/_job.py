"""`CrossModalSettings` run: pictures through latents, and through captions from the same latents."""

from collections.abc import Mapping

from latentcomm.experiments.crossmodal._check import CrossModalInputs
from latentcomm.experiments.crossmodal.report import crossmodal_figure, describe_vision, print_crossmodal
from latentcomm.experiments.crossmodal.run import cross_modal
from latentcomm.experiments.crossmodal.settings import CrossModalSettings
from latentcomm.experiments.crossmodal.small_vit import encoder_named
from latentcomm.experiments.crossmodal.splits import pooled_for
from latentcomm.experiments.job import Drawing, Job, Result
from latentcomm.experiments.settings import SAVED
from latentcomm.models.facts import describe
from latentcomm.models.sites import Site
from latentcomm.reporting.publish import plain
from latentcomm.reporting.terminal import Console

__all__ = ["run_crossmodal"]


def run_crossmodal(settings: CrossModalSettings, job: Job, inputs: CrossModalInputs) -> Result:
    """Fit on some pictures, test on others; see `cross_modal`.

    Raises:
        ValueError: what the settings, the pictures or the channels refuse.
    """
    plan, parts = inputs.plan, inputs.parts
    receiver = job.receiver or job.model(settings.receiver, settings)
    if plan.write_layer is not None:
        receiver.check_site(Site(plan.write_layer))
    work = None if job.out is None else job.out / SAVED
    encoder = job.sender or encoder_named(
        settings.sender, work, steps=settings.vision_steps, seed=settings.seed, dtype=settings.dtype,
        device=settings.device, progress=job.progress,
    )  # fmt: skip
    parts = pooled_for(encoder, parts, None if settings.pooling == "auto" else settings.pooling)
    fitted_on = [(part.fitting, part.pooling, part.grid) for part in parts]
    checkpoint = job.saved(encoder, receiver, fitted_on)
    found = cross_modal(encoder, receiver, parts, plan=plan, checkpoint=checkpoint, progress=job.progress)
    shown = plain(
        settings.decisive()
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
