"""`SweepSettings` run: the sweep on half of a task, its best cell judged on the other half, two figures."""

from latentcomm._core.names import check_name
from latentcomm.experiments.job import Job, Result
from latentcomm.experiments.maps import depths, fit_maps, is_mapped
from latentcomm.experiments.settings import listed
from latentcomm.experiments.sweep import run
from latentcomm.experiments.sweep.report import choice_of, print_report, sweep_drawings
from latentcomm.experiments.sweep.settings import SweepSettings
from latentcomm.fusion import BY_NAME, Fusion, RightAligned
from latentcomm.models.facts import describe
from latentcomm.reporting.publish import plain

__all__ = ["run_sweep"]

ALIASES = {"norm_matched_sum": "norm_matched"}
"""Names of release 0.1."""


def run_sweep(settings: SweepSettings, job: Job) -> Result:
    """Sweep, choose, judge; see `sweep_and_judge`.

    Raises:
        ValueError: what the settings, the task or the sweep refuse.
    """
    fusions = fusions_named(settings.fusion, right_aligned=settings.alignment == "right-aligned")
    task = job.task_of(settings)
    if settings.read_layer is None:
        run.check_choices(task)
    sender, receiver = job.pair(settings)
    given = settings.to_dict() | {"sender": sender.name, "receiver": receiver.name}
    folder = job.unfinished(sender, receiver, task, given, {name: repr(fusion) for name, fusion in fusions.items()})
    given_cell = (settings.read_layer, settings.write_layer)
    cell = None if given_cell[0] is None or given_cell[1] is None else (given_cell[0], given_cell[1])
    reads, writes = list(settings.read_layers) or None, list(settings.write_layers) or None
    maps = None
    if is_mapped(sender, receiver, settings.alignment):
        reads, writes = reads or depths(sender.n_layers), writes or depths(receiver.n_layers)
        cells = [cell] if cell else [(read, write) for read in reads for write in writes]
        maps = fit_maps(sender, receiver, cells, settings.seed, alignment=settings.alignment, progress=job.progress)
    report = run.sweep_and_judge(
        sender,
        receiver,
        task,
        fusions=fusions,
        alignment=maps,
        cell=cell,
        read_layers=reads,
        write_layers=writes,
        n_tune=settings.n_tune,
        n_test=settings.n_test or None,
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


def fusions_named(names: tuple[str, ...], *, right_aligned: bool) -> dict[str, Fusion]:
    """The fusions of these names, in order, with dashes or underscores.

    Raises:
        ValueError: none, or an unknown name.

    >>> fusions_named(("sum",), right_aligned=True)
    {'sum': RightAligned(fusion=Sum())}
    """
    found: dict[str, Fusion] = {}
    for name in listed(names):
        plain_name = name.replace("-", "_")
        known = check_name("fusion", ALIASES.get(plain_name, plain_name), BY_NAME)
        if known in found:
            raise ValueError(f"fusion names {known} twice; name each once")
        found[known] = RightAligned(BY_NAME[known]) if right_aligned else BY_NAME[known]
    if not found:
        raise ValueError(f"fusion names none; choose among {', '.join(BY_NAME)}")
    return found
