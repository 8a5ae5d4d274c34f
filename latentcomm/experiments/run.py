"""The one way to run an experiment: its settings in, its result out."""

import contextlib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentcomm.experiments.cascade.settings import CascadeSettings
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.crossmodal.settings import CrossModalSettings
from latentcomm.experiments.diagnosis.settings import DiagnoseSettings
from latentcomm.experiments.settings import Settings
from latentcomm.experiments.sweep.settings import SweepSettings
from latentcomm.experiments.train_settings import TrainSettings

if TYPE_CHECKING:
    from latentcomm.experiments.job import Job, Result
    from latentcomm.experiments.preflight import Checks, Preflight

__all__ = ["EXPERIMENTS", "Experiment", "preflight", "run", "run_all"]


@dataclass(frozen=True)
class Experiment:
    """An experiment: its settings, what checks them, and what runs them with what the check parsed.

    Both functions are "module:function", imported when they are needed.
    """

    settings: type[Settings]
    checked_by: str
    run_by: str

    @property
    def check(self) -> Callable[..., Any]:
        """The check: settings and `Checks` to what the function runs with."""
        return _imported(self.checked_by)

    @property
    def function(self) -> Callable[..., Any]:
        """The function: settings, `Job` and what the check parsed to a `Result`."""
        return _imported(self.run_by)


def _imported(home: str) -> Callable[..., Any]:
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A run that can start once its refusals are none."""

    settings: Settings
    name: str
    job: "Job"
    inputs: Any
    checks: "Checks"


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
        overwrite: whether results and unfinished work of other settings in `out` are written over.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: what `preflight` refuses, all of it at once and before a weight is read; or what the models, the
            task or the experiment refuse later.
        RuntimeError: the disk is full or the folder cannot be written; finished work stays saved.

    >>> import latentcomm as lc
    >>> settings = lc.CompareSettings(channels=("silent", "replace"), read_layer=26, write_layer=26, n_test=20)
    >>> result = lc.run(settings, out="runs/first")  # doctest: +SKIP
    >>> result.table[["channel", "condition", "accuracy"]]  # doctest: +SKIP
    """
    given = {"sender": sender, "receiver": receiver, "task": task, "progress": progress}
    prepared = _prepare(settings, out=out, name=name, overwrite=overwrite, **given)
    prepared.checks.report(timed=False).check()
    return _run(prepared)


def preflight(
    settings: Settings,
    sender: Any = None,
    receiver: Any = None,
    *,
    task: Any = None,
    out: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> "Preflight":
    """What `run` with the same arguments would refuse, do and need; no weight is read and nothing is written.

    Settings, names of files, the folder and whose its files are, the task, layers, widths and vocabularies from the
    models' configurations, and memory and disk.

    >>> import latentcomm as lc
    >>> found = lc.preflight(lc.CompareSettings(channels=("silent", "replce"), n_test=1000))
    >>> found.refusals[1]
    'n_test is 1000, and the test half of countries has 162 items; give at most 162'
    """
    given = {"sender": sender, "receiver": receiver, "task": task}
    return _prepare(settings, out=out, name=name, overwrite=overwrite, **given).checks.report(timed=True)


def run_all(settings: Sequence[Settings], *, out: str | Path | None = None, progress: bool = False) -> list["Result"]:
    """The results of several experiments, one after the other in this process; each model is loaded once.

    With `out` each writes to a folder of its own, named after its experiment and its settings, and the same call
    resumes what was interrupted until all have ended.

    Raises:
        ValueError: the same settings twice, or what `run` raises.
        RuntimeError: as `run`.
    """
    from latentcomm._core.files import digest
    from latentcomm.models import load_model

    folders = [f"{each.command}-{digest(each.to_dict())[:8]}" for each in settings]
    if repeated := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
        raise ValueError(f"the same settings of {repeated[0].partition('-')[0]} are given twice; give each once")
    load = cache(load_model)
    prepared = [
        _prepare(each, out=None if out is None else Path(out) / folder, load=load, progress=progress)
        for each, folder in zip(settings, folders, strict=True)
    ]
    for each in prepared:
        each.checks.report(timed=False).check()
    return [_run(each) for each in prepared]


def _prepare(
    settings: Settings, *, out: str | Path | None, name: str | None = None, overwrite: bool = False, **given: Any
) -> _Prepared:
    """The run with all its checks made."""
    from latentcomm._core.files import expanded
    from latentcomm.experiments.folder import refuse_unwritable
    from latentcomm.experiments.job import Job
    from latentcomm.experiments.preflight import Checks

    job = Job(out=None if out is None else expanded(out), **given)
    checks = Checks(settings, job)
    checks.refuse(
        f"name is {name!r}, but {settings.names_files}; give another folder as `out` instead",
        when=bool(settings.names_files) and name not in (None, settings.command),
    )
    name = settings.command if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name):
        checks.refuse(f"name is {name!r}; give a plain file name (letters, digits, _ - .), and the folder as `out`")
    elif job.out is not None:
        checks.of(refuse_unwritable, job.out)
        for claim in job.claims(settings, name) if not overwrite else ():
            if (refusal := claim.refusal()) is not None:
                checks.refuse(refusal)
    checks.loading()
    inputs = EXPERIMENTS[settings.command].check(settings, checks)
    return _Prepared(settings, name, job, inputs, checks)


def _run(prepared: _Prepared) -> "Result":
    """The result, written where there is a folder; the large work that it no longer needs is deleted."""
    from latentcomm._core.progress import say
    from latentcomm.experiments.folder import forget, large_work
    from latentcomm.experiments.job import publish

    settings, job = prepared.settings, prepared.job
    for note in dict.fromkeys(prepared.checks.notes if job.progress else ()):
        say(f"note: {note}")
    claims = job.claims(settings, prepared.name)
    with contextlib.ExitStack() as held:
        for claim in claims:
            held.enter_context(claim.held())
        with large_work() as large:
            result = EXPERIMENTS[settings.command].function(settings, job, prepared.inputs)
    result = replace(result, in_memory=job.in_memory)
    if job.out is not None and result.figures:
        result = publish(result, job.out, prepared.name)
    for claim in claims:
        claim.finish()
    forget(large)
    return result


EXPERIMENTS: Mapping[str, Experiment] = {
    "sweep": Experiment(
        SweepSettings, "latentcomm.experiments.sweep._check:check_sweep", "latentcomm.experiments.sweep._job:run_sweep"
    ),
    "diagnose": Experiment(
        DiagnoseSettings,
        "latentcomm.experiments.diagnosis._check:check_diagnose",
        "latentcomm.experiments.diagnosis._job:run_diagnose",
    ),
    "compare": Experiment(
        CompareSettings,
        "latentcomm.experiments.compare._check:check_compare",
        "latentcomm.experiments.compare._job:run_compare",
    ),
    "cascade": Experiment(
        CascadeSettings,
        "latentcomm.experiments.cascade._check:check_cascade",
        "latentcomm.experiments.cascade._job:run_cascade",
    ),
    "crossmodal": Experiment(
        CrossModalSettings,
        "latentcomm.experiments.crossmodal._check:check_crossmodal",
        "latentcomm.experiments.crossmodal._job:run_crossmodal",
    ),
    "train": Experiment(
        TrainSettings, "latentcomm.experiments._train_check:check_train", "latentcomm.experiments._train_job:run_train"
    ),
}
"""Every experiment by its command, in the order of the help."""
