"""The one way to run an experiment: its settings in, its result out."""

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
    from latentcomm.experiments.job import Result

__all__ = ["EXPERIMENTS", "Experiment", "run", "run_all"]


@dataclass(frozen=True)
class Experiment:
    """An experiment: its settings, and the function that runs them, as "module:function", imported when it is run."""

    settings: type[Settings]
    home: str

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)


def run(
    settings: Settings,
    sender: Any = None,
    receiver: Any = None,
    *,
    task: Any = None,
    out: str | Path | None = None,
    name: str | None = None,
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
        progress: whether to show progress on standard error.

    Raises:
        ValueError: what the settings, the models, the task or the experiment refuse, or a name that is no file name.
        RuntimeError: the disk is full or the folder cannot be written; finished work stays saved.

    >>> import latentcomm as lc
    >>> settings = lc.CompareSettings(channels=("silent", "replace"), read_layer=26, write_layer=26, n_test=20)
    >>> result = lc.run(settings, out="runs/first")  # doctest: +SKIP
    >>> result.table[["channel", "condition", "accuracy"]]  # doctest: +SKIP
    """
    result, clear = _run(settings, sender=sender, receiver=receiver, task=task, out=out, name=name, progress=progress)
    clear()
    return result


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
    found = [
        _run(each, out=None if out is None else Path(out) / folder, load=load, progress=progress)
        for each, folder in zip(settings, folders, strict=True)
    ]
    for _, clear in found:  # once all have ended, so that an interrupted list repeats none
        clear()
    return [result for result, _ in found]


def _run(
    settings: Settings, *, out: str | Path | None, name: str | None = None, **given: Any
) -> tuple["Result", Callable[[], None]]:
    """The result, written where there is a folder, and what removes the saved work that it no longer needs."""
    from latentcomm.experiments.job import Job, publish

    if settings.names_files and name not in (None, settings.command):
        raise ValueError(f"name is {name!r}, but {settings.names_files}; give another folder as `out` instead")
    name = settings.command if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name is {name!r}; give a plain file name (letters, digits, _ - .), and the folder as `out`")
    folder = None if out is None else Path(out).expanduser()
    job = Job(out=folder, **given)
    result = replace(EXPERIMENTS[settings.command].function(settings, job), in_memory=job.in_memory)
    if folder is not None and result.figures:
        result = publish(result, folder, name)
    return result, job.clear


EXPERIMENTS: Mapping[str, Experiment] = {
    "sweep": Experiment(SweepSettings, "latentcomm.experiments.sweep._job:run_sweep"),
    "diagnose": Experiment(DiagnoseSettings, "latentcomm.experiments.diagnosis._job:run_diagnose"),
    "compare": Experiment(CompareSettings, "latentcomm.experiments.compare._job:run_compare"),
    "cascade": Experiment(CascadeSettings, "latentcomm.experiments.cascade._job:run_cascade"),
    "crossmodal": Experiment(CrossModalSettings, "latentcomm.experiments.crossmodal._job:run_crossmodal"),
    "train": Experiment(TrainSettings, "latentcomm.experiments._train_job:run_train"),
}
"""Every experiment by its command, in the order of the help."""
