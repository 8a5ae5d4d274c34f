"""`SweepSettings` run: the sweep on half of a task, its best cell judged on the other half, two figures."""

from latentcomm.experiments.job import Job, Result
from latentcomm.experiments.maps import depths, fit_maps, is_mapped
from latentcomm.experiments.settings import cell_of
from latentcomm.experiments.sweep import run
from latentcomm.experiments.sweep._check import SweepInputs
from latentcomm.experiments.sweep.report import choice_of, print_report, sweep_drawings
from latentcomm.experiments.sweep.settings import SweepSettings
from latentcomm.models.facts import describe
from latentcomm.reporting.publish import plain

__all__ = ["run_sweep"]


def run_sweep(settings: SweepSettings, job: Job, inputs: SweepInputs) -> Result:
    """Sweep, choose, judge; see `sweep_and_judge`.

    Raises:
        ValueError: what the models, the task or the sweep refuse.
    """
    fusions, task = inputs.fusions, inputs.task
    sender, receiver = job.pair(settings)
    given = settings.decisive() | {"sender": sender.name, "receiver": receiver.name}
    folder = job.saved(sender, receiver, task, given, {name: repr(fusion) for name, fusion in fusions.items()})
    cell = cell_of(settings.read_layer, settings.write_layer)
    reads, writes = list(settings.read_layers) or None, list(settings.write_layers) or None
    maps = None
    if is_mapped(sender, receiver, settings.alignment):
        reads, writes = reads or depths(sender.n_layers), writes or depths(receiver.n_layers)
        cells = [cell] if cell else [(read, write) for read in reads for write in writes]
        options = {"alignment": settings.alignment, "checkpoint": folder, "progress": job.progress}
        maps = fit_maps(sender, receiver, cells, settings.seed, **options)
    report = run.sweep_and_judge(
        sender,
        receiver,
        task,
        fusions=fusions,
        alignment=maps,
        cell=cell,
        read_layers=reads,
        write_layers=writes,
        n_tune=inputs.n_tune,
        n_test=inputs.n_test,
        seed=settings.seed,
        checkpoint=folder,
        progress=job.progress,
    )
    shown = plain(
        given
        | {
            "sender_form": task.settings.get("sender_form", ""),
            "fusion": next(iter(fusions)),
            "fusions": {name: repr(fusion) for name, fusion in fusions.items()},
        }
        | choice_of(report)
    )
    return Result(
        settings=settings,
        found=report,
        table=report.conditions,
        trials=report.trial_table().drop(columns="seconds"),  # which differ between runs
        figures=sweep_drawings(report, shown),
        shown=shown,
        models={"sender": describe(sender), "receiver": describe(receiver)},
        seconds=job.seconds,
        summary=lambda console: print_report(report, console),
    )
