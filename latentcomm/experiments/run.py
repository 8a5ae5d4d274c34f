"""The one way to run an experiment: its settings in, its result out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentcomm.experiments._prepared import Prepared, prepare
from latentcomm.experiments.settings import Settings

if TYPE_CHECKING:
    from latentcomm.experiments.job import Result
    from latentcomm.experiments.preflight import Preflight

__all__ = ["PartReport", "plan", "plan_all", "preflight", "run", "run_all", "run_part"]


def run(
    settings: Settings,
    sender: Any = None,
    receiver: Any = None,
    *,
    task: Any = None,
    out: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> "Result":
    """The result of an experiment with these settings; with `out`, its files and resumable work are in that folder.

    Args:
        settings: SweepSettings, CompareSettings, DiagnoseSettings, CascadeSettings, CrossModalSettings or
            TrainSettings.
        sender: a model in memory in place of the one that the settings name (a `VisionSender` of a cross-modal run).
        receiver: the same; without it the sender, if one is given and the settings name no receiver.
        task: a task in memory in place of the one that the settings name.
        out: the folder that figures, data and metadata are written to; an interrupted run with it resumes when it is
            called again. None writes nothing.
        name: what the files are called; by default the name of the command.
        overwrite: whether results and unfinished work of other settings in `out` are written over; files of those
            results that the new one does not have are deleted.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: what `plan` refuses, all of it at once and before a weight is read; or what the models, the
            task or the experiment refuse later.
        RuntimeError: the disk is full or the folder cannot be written; finished work stays saved.

    >>> import latentcomm as lc
    >>> settings = lc.CompareSettings(channels=("silent", "replace"), read_layer=26, write_layer=26, n_test=20)
    >>> result = lc.run(settings, out="runs/first")  # doctest: +SKIP
    >>> result.table[["channel", "condition", "accuracy"]]  # doctest: +SKIP
    """
    given = {"sender": sender, "receiver": receiver, "task": task, "progress": progress}
    return prepare(settings, out=out, name=name, overwrite=overwrite, **given).check().result()


@dataclass(frozen=True)
class PartReport:
    """What a part of a run did.

    Attributes:
        n_made: the records that it made; those that were there are read.
        n_left: the records of other parts that are not there yet. At 0 `run` has nothing left but to write the result,
            unless a vote needs all trials first (self-consistency of a cascade).
    """

    n_made: int
    n_left: int


def run_part(
    settings: Settings,
    part: str,
    sender: Any = None,
    receiver: Any = None,
    *,
    out: str | Path,
    task: Any = None,
    name: str | None = None,
    progress: bool = False,
) -> PartReport:
    """Make a part of the records of a run; `run` with the same arguments then finds them and writes the result.

    Part "I/N" makes every N-th record of the run from the I-th on, I from 1. Where all records of a kind are needed
    for what follows (the cells that one is chosen among, the messages that are shuffled), it then makes those that no
    other part has made yet. Parts may run at the same time, in any order and on several machines: in one folder that
    they share, or in one each, which `latentcomm join` brings together. On machines of one kind, with as many threads
    each, the result is that of an undivided run, to the bit, but for seconds.

    Raises:
        ValueError: a part that there is not, an experiment that does not run in parts, or what `run` raises.
        RuntimeError: as `run`.

    >>> import latentcomm as lc
    >>> lc.run_part(lc.CompareSettings(channels=("silent",)), "5/4", out="runs/first")
    Traceback (most recent call last):
    ...
    ValueError: part is 5/4; give a part from 1/4 to 4/4
    """
    from latentcomm._core.records import Part

    share = Part.parse(part)
    if not settings.in_parts:
        raise ValueError(f"part is {part}, and {settings.command} does not run in parts; leave it out")
    given = {"sender": sender, "receiver": receiver, "task": task, "progress": progress}
    prepare(settings, out=out, name=name, **given).check().share(share)
    return PartReport(share.n_made, share.n_left)


def plan(
    settings: Settings,
    sender: Any = None,
    receiver: Any = None,
    *,
    task: Any = None,
    out: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    flops: float | int = 0,
    bandwidth: float | int = 0,
) -> "Preflight":
    """What `run` with the same arguments would refuse, do and need; no weight is read and nothing is written.

    Settings, names of files, the folder and whose its files are, the task, layers, widths and vocabularies from the
    models' configurations, memory and disk, operations, forward passes and the bytes of weights that they read. A model
    may be a folder with a config.json alone, or a configuration file. Replies count at their full length.

    The time is that of this machine, which is timed for a moment, or of one that runs `flops` operations and reads
    `bandwidth` bytes of weights in a second: the longest of operations / `flops`, bytes / `bandwidth`, and 1.6 ms of
    Python for each layer of each pass, without the statistics. The devices, memory and disk here are then not compared
    with what is needed.

    Raises:
        ValueError: a negative speed, or a bandwidth without operations a second.

    >>> import latentcomm as lc
    >>> found = lc.plan(lc.CompareSettings(channels=("silent", "replce"), n_test=1000))
    >>> found.refusals[1]
    'n_test is 1000, and the test half of countries has 162 items; give at most 162'
    """
    _check_speed(flops, bandwidth)
    given = {"sender": sender, "receiver": receiver, "task": task}
    checks = prepare(settings, out=out, name=name, overwrite=overwrite, elsewhere=flops > 0, **given).checks
    return checks.report(timed=True, flops=flops, bandwidth=bandwidth)


preflight = plan
"""Another name of `plan`."""


def plan_all(
    settings: Sequence[Settings],
    *,
    out: str | Path | None = None,
    flops: float | int = 0,
    bandwidth: float | int = 0,
) -> "list[Preflight]":
    """What `run_all` with the same arguments would refuse, do and need: a report of each run, as of `plan`.

    Models and tasks that several runs have are read once.

    Raises:
        ValueError: the same settings twice, a negative speed, or a bandwidth without operations a second.

    >>> import latentcomm as lc
    >>> reports = plan_all([lc.CompareSettings(channels=("silent",), n_test=n) for n in (8, 999)])
    >>> [len(report.refusals) for report in reports]
    [0, 1]
    """
    _check_speed(flops, bandwidth)
    found, last = [], None
    for each, folder in zip(settings, _folders(settings), strict=True):
        at = None if out is None else Path(out) / folder
        last = prepare(each, out=at, elsewhere=flops > 0, like=last)
        found.append(last.checks.report(timed=True, flops=flops, bandwidth=bandwidth))
    return found


def _check_speed(flops: float | int, bandwidth: float | int) -> None:
    """Refuse the speed of a machine that there is not.

    Raises:
        ValueError: a negative speed, or a bandwidth without operations a second.
    """
    for option, value in (("flops", flops), ("bandwidth", bandwidth)):
        if value < 0:
            raise ValueError(f"{option} is {value}; give the speed of the machine, a positive number a second")
    if bandwidth and not flops:
        raise ValueError(
            f"bandwidth is {bandwidth}, and flops is not given; give the machine's operations a second too"
        )


def _folders(settings: Sequence[Settings]) -> list[str]:
    """The folder of each run of a list.

    Raises:
        ValueError: the same settings twice.
    """
    from latentcomm._core.files import digest

    found: dict[str, None] = {}
    for each in settings:
        folder = f"{each.command}-{digest(each.decisive())[:8]}"
        if folder in found:
            raise ValueError(f"the same settings of {each.command} are given twice; give each once")
        found[folder] = None
    return list(found)


def run_all(
    settings: Sequence[Settings],
    *,
    out: str | Path | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    gpus_per_model: float | int = 1,
    cpus_per_worker: int = 1,
    workers: int | None = None,
    progress: bool = False,
) -> list["Result"]:
    """The results of several experiments; each model is loaded once a process.

    With `out` each writes to a folder of its own, named after its experiment and its settings, and the same call
    resumes what was interrupted until all have ended.

    The engine "local" runs one after the other in this process, and checks each while the one before it has not begun
    (`plan_all` checks all). "ray" runs them by workers of a Ray cluster that share
    each run record by record: a model, or a pair of models, is on one machine; records and results come back to `out`,
    which only this machine needs; what a worker that dies had in its hands another makes, three times at most.

    Args:
        settings: of each experiment.
        out: the folder; the engine ray needs one.
        engine: who runs them.
        address: of a Ray cluster: "auto" for the one that this machine is part of, or its host and port; None starts
            one on this machine.
        gpus_per_model: GPUs that a worker has for each model of runs whose device is cuda or auto.
        cpus_per_worker: processor threads of each worker.
        workers: how many workers; by default as many as the cluster has room for. Each has the models in memory.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: the same settings twice, the engine ray without `out`, demands that no machine of the cluster
            meets, or what `run` raises, of several runs with the number of the one that is refused.
        RuntimeError: as `run`; or Ray is not installed, there is no cluster at the address, or its workers die.
    """
    from latentcomm._core.files import expanded
    from latentcomm._core.progress import say

    for name, value, least in (
        ("cpus_per_worker", cpus_per_worker, 1),
        ("workers", workers, 1),
        ("gpus_per_model", gpus_per_model, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; give at least {least}")
    folders = _folders(settings)
    if engine == "ray":
        if out is None:
            raise ValueError("the engine ray writes records to a folder; give it as out")
        if not settings:
            return []
        from latentcomm.experiments._on_ray import run_on_ray

        return run_on_ray(
            dict(zip(folders, settings, strict=True)),
            expanded(out),
            address=address,
            gpus_per_model=gpus_per_model,
            cpus_per_worker=cpus_per_worker,
            workers=workers,
            progress=progress,
        )
    results: list[Result] = []
    for folder, each in zip(folders, _one_ahead(settings, folders, out, progress=progress), strict=True):
        results.append(each.result())
        if progress:
            say(f"{folder}: done, {len(results)} of {len(folders)} runs")
    return results


def _one_ahead(
    settings: Sequence[Settings], folders: Sequence[str], out: str | Path | None, *, progress: bool
) -> Iterator[Prepared]:
    """The runs one after the other, each once the next has been checked, too.

    Raises:
        ValueError: what a run refuses; of several with the name of the run.
    """
    from latentcomm.experiments.grid import run_names
    from latentcomm.models import load_model

    load, last = cache(load_model), None
    for each, folder, name in zip(settings, folders, run_names(settings), strict=True):
        found = prepare(each, out=None if out is None else Path(out) / folder, load=load, progress=progress, like=last)
        try:
            found.check()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") if len(settings) > 1 else error from None
        if last is not None:
            yield last
        last = found
    if last is not None:
        yield last
