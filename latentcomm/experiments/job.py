"""What every experiment is given and gives: models and task from its settings or from memory, and one result."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm import models
from latentcomm._core.files import digest, told_apart, without_folder
from latentcomm.experiments.folder import Claim
from latentcomm.experiments.settings import SAVED, Settings, TaskSettings
from latentcomm.models import Model
from latentcomm.models.facts import describe
from latentcomm.models.in_turn import Place, in_turn
from latentcomm.models.loading import outlined
from latentcomm.reporting.publish import Published, plain, provenance, write_table
from latentcomm.reporting.publish import publish as publish_figure
from latentcomm.reporting.terminal import Console
from latentcomm.tasks.base import Task
from latentcomm.tasks.catalogue import make_task

__all__ = ["Drawing", "Job", "Result", "publish", "publish_all", "record_of"]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure and the table that it shows."""

    figure: go.Figure
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Job:
    """What an experiment has besides its settings.

    Attributes:
        sender, receiver, task: objects in memory, in place of those that the settings name.
        out: the folder of saved work; None saves nothing.
        load: loads a model by name, dtype and device; `load_model` where None.
        progress: whether progress is shown on standard error.
        began: when the experiment began, by `time.monotonic`.
        finish: called with a name and its files where these are published before the experiment ends.
    """

    sender: Any = None
    receiver: Model | None = None
    task: Task | None = None
    out: Path | None = None
    load: Callable[..., Model] | None = None
    progress: bool = False
    began: float = field(default_factory=time.monotonic)
    finish: Callable[[str, Sequence[Path]], None] = lambda _name, _files: None

    @property
    def in_memory(self) -> tuple[str, ...]:
        """Which of sender, receiver and task are objects in memory."""
        return tuple(name for name in ("sender", "receiver", "task") if getattr(self, name) is not None)

    @property
    def seconds(self) -> float:
        """Wall time since the experiment began."""
        return round(time.monotonic() - self.began, 1)

    def pair(self, settings: Settings) -> tuple[Model, Model]:
        """Both models; one model twice where no receiver is given or the receiver is the sender.

        Two folders of one name are named by as much of their paths as distinguishes them, two snapshots of one hub id
        by their revisions. With `one_at_a_time` each is loaded when it is used, and leaves memory when the other is.

        Raises:
            ValueError: a name or option that `load_model` refuses.
        """
        load = self.model
        if settings.one_at_a_time:
            place = Place()

            def load(name: str, settings: Settings) -> Model:  # anew each time: a cache would hold the weights
                placement = settings.placement
                known = {"dtype", "device", "attention"} >= placement.keys()
                outline = outlined(name, dtype=settings.dtype, device=settings.device) if known else None
                load = partial(models.load_model, name, **placement)
                return in_turn(load, place, outline=outline, attention=settings.attention)

        same = settings.receiver == "" or (self.sender is None and settings.receiver == settings.sender)
        second = self.receiver
        if second is None and not same and settings.one_at_a_time:  # the sender is then there for what it does first
            second = load(settings.receiver, settings)
        first = load(settings.sender, settings) if self.sender is None else self.sender
        if second is None:
            second = first if same else load(settings.receiver, settings)
        loaded = ((self.sender, first, settings.sender), (self.receiver, second, settings.receiver))
        given = [name if model is None else found.name for model, found, name in loaded]
        if given[0] != given[1] and second is not first and without_folder(first.name) == without_folder(second.name):
            names = told_apart(*given)
            first, second = replace(first, name=names[0]), replace(second, name=names[1])
        return first, second

    def model(self, name: str, settings: Settings) -> Model:
        """The model of this name, with the dtype and where the settings place it."""
        return (self.load or models.load_model)(name, **settings.placement)

    def task_of(self, settings: TaskSettings) -> Task:
        """The task.

        Raises:
            ValueError: an unknown name, or options that the task does not have or refuses.
        """
        if self.task is not None:
            return self.task
        return make_task(settings.task, seed=settings.seed, **settings.task_options())

    def saved(self, *decisive: Any) -> Path | None:
        """A folder in `out` for the work that all of these values decide: other settings have another one.

        It stays when the run has finished, so that the same command is read back; large messages are deleted then.
        """
        return None if self.out is None else self.out / SAVED / digest(*decisive)[:16]

    def claims(self, settings: Settings, name: str) -> list[Claim]:
        """What the run would write in `out`, for comparison with the runs that were there before.

        Raises:
            ValueError: an object in memory that has no digest.
        """
        if self.out is None:
            return []
        objects = {role: _digest_of(role, getattr(self, role)) for role in self.in_memory}
        claims = []
        for file, written in settings.written_as(name).items():
            values = written.to_dict()
            folders = {
                path: digest(os.path.expanduser(values[path]))  # noqa: PTH111 (a hub id is no path)
                for path in PATHS
                if values.get(path) and without_folder(values[path]) != values[path]
            }
            record = record_of(written, self.in_memory)
            decides = written.decisive()
            decisive = {name: value for name, value in record["settings"].items() if name in decides}
            record |= {"settings": decisive, "folders": folders, "objects": objects}
            claims.append(Claim(self.out, file, record, type(settings)().to_dict(), written.files_of(file)))
        return claims


@dataclass(frozen=True, eq=False)
class Result:
    """The result of an experiment.

    Attributes:
        settings: the settings that it was run with.
        found: what the experiment's own function returns, such as a `SweepReport` or a `Diagnosis`.
        table: its main table.
        trials: one row a trial; empty where nothing was judged.
        figures: each with its table, by the suffix of the files' name; the main one has none.
        shown: the settings and choices that the figures are drawn with and the metadata record.
        models: the facts about each model, by role.
        seconds: the wall time.
        summary: prints what the command shows.
        in_memory: which of sender, receiver and task were objects in memory, so that the settings do not name them.
        extra: writes further files for a folder and a name, and returns their paths.
        files: the files that were written.
    """

    settings: Settings
    found: Any
    table: pd.DataFrame
    shown: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    seconds: float
    summary: Callable[[Console], None]
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    figures: Mapping[str, Drawing] = field(default_factory=dict)
    extra: Callable[[Path, str], tuple[Path, ...]] | None = None
    in_memory: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def provenance(self) -> dict[str, Any]:
        """Models, versions of packages, commit, machine, and how long it took."""
        return {"models": plain(self.models), **provenance(Path()), "seconds": self.seconds}


PATHS = ("sender", "receiver", "data", "shots", "corpus", "weights")
"""Settings that may be paths: an absolute one is recorded by its last part alone."""


def record_of(settings: Settings, in_memory: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the metadata hold to repeat a run: the experiment, its settings, and what was in memory."""
    values = settings.to_dict()
    values |= {name: without_folder(values[name]) for name in PATHS if name in values}
    values["sender"], values["receiver"] = told_apart(settings.sender, settings.receiver)
    return {"experiment": settings.command, "settings": values, "in_memory": list(in_memory)}


def _digest_of(role: str, value: Any) -> str:
    try:
        return digest(value)
    except TypeError as error:
        raise ValueError(
            f"work with this {role} cannot be saved, since {str(error).partition(';')[0]}; make it of frozen "
            "dataclasses of plain values and tensors, or leave out `out`"
        ) from error


def publish(result: Result, folder: Path, name: str) -> Result:
    """Write a result: every figure with data and metadata, NAME_trials.csv, and the experiment's own files.

    The metadata hold the settings under `run`, so that `--config NAME.meta.json` repeats the run.

    Raises:
        ValueError: a name that is no file name.
        RuntimeError: the disk is full or the folder cannot be written.
    """
    published = publish_all(
        result.figures,
        result.trials,
        name=name,
        folder=folder,
        settings=result.shown,
        measured={"wall_seconds": result.seconds},
        models=result.models,
        run=record_of(result.settings, result.in_memory),
    )
    written = [path for each in published for path in (each.page, each.data, each.figure, each.meta)]
    if not result.trials.empty:
        written.append(folder / f"{name}_trials.csv")
    if result.extra is not None:
        written += result.extra(folder, name)
    return replace(result, files=tuple(written))


def publish_all(
    figures: Mapping[str, Drawing],
    trials: pd.DataFrame | None = None,
    *,
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any] | Model],
    run: Mapping[str, Any] | None = None,
) -> list[Published]:
    """Write figures that belong together, each with its data and metadata, and, if there are trials, NAME_trials.csv.

    Raises:
        ValueError: a name that is no file name.
        RuntimeError: the disk is full or the folder cannot be written.
    """
    known = {role: describe(model) if isinstance(model, Model) else model for role, model in models.items()}
    published = [
        publish_figure(
            drawing.figure, drawing.table, name=f"{name}{ending}", folder=folder, settings=settings,
            measured=dict(measured), models=known, run=run,
        )
        for ending, drawing in figures.items()
    ]  # fmt: skip
    if trials is not None and not trials.empty:
        write_table(trials, folder / f"{name}_trials.csv")
    return published
