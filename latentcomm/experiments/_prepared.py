"""A run from its settings to its result: checked, its files claimed, run, written."""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    from latentcomm._core.records import Scheduler
    from latentcomm.experiments.folder import Claim
    from latentcomm.experiments.job import Job, Result
    from latentcomm.experiments.preflight import Checks

__all__ = ["EXPERIMENTS", "Experiment", "Prepared", "prepare"]


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
class Prepared:
    """A run that can start once its refusals are none."""

    settings: Settings
    name: str
    job: "Job"
    claims: "Sequence[Claim]"
    overwrite: bool
    inputs: Any
    checks: "Checks"

    def check(self) -> "Prepared":
        """The run itself.

        Raises:
            ValueError: with every refusal.
        """
        self.checks.report(timed=False).check()
        return self

    def result(self) -> "Result":
        """The result, written where there is a folder; the large work that it no longer needs is deleted."""
        from latentcomm._core.progress import say
        from latentcomm.experiments.folder import forget
        from latentcomm.experiments.job import publish

        for note in dict.fromkeys(self.checks.notes if self.job.progress else ()):
            say(f"note: {note}")
        claims = {claim.name: claim for claim in self.claims}
        job = replace(self.job, finish=lambda name, files: claims[name].finish(files))
        with self._held() as large:
            result = EXPERIMENTS[self.settings.command].function(self.settings, job, self.inputs)
            result = replace(result, in_memory=job.in_memory)
            if job.out is not None and result.figures:
                result = publish(result, job.out, self.name)
            for claim in self.claims:
                claim.finish(result.files)
            forget(large)
        return result

    def share(self, scheduler: "Scheduler") -> None:
        """Make the records that a scheduler gives to this process, and no result."""
        from latentcomm._core.records import PartEnded, scheduled_by

        with contextlib.suppress(PartEnded), scheduled_by(scheduler), self._held():
            EXPERIMENTS[self.settings.command].function(self.settings, self.job, self.inputs)

    @contextlib.contextmanager
    def _held(self) -> Iterator[Mapping[Path, int | None]]:
        """A block in which the run's files are its own, what it lists as large is not deleted, and memory is stated."""
        from latentcomm._core.budget import within
        from latentcomm.experiments.folder import large_work
        from latentcomm.models import weights_stay

        with within(self.settings.budget), weights_stay(), contextlib.ExitStack() as held:
            for claim in self.claims:
                held.enter_context(claim.held(overwrite=self.overwrite))
            yield held.enter_context(large_work())


def prepare(
    settings: Settings,
    *,
    out: str | Path | None,
    name: str | None = None,
    overwrite: bool = False,
    elsewhere: bool = False,
    like: Prepared | None = None,
    **given: Any,
) -> Prepared:
    """The run with all its checks made, of devices and memory unless it is planned for another machine.

    What was read for the checks of a run before it, `like`, is not read again.
    """
    from latentcomm._core.budget import within
    from latentcomm._core.files import expanded
    from latentcomm.experiments.folder import refuse_unwritable
    from latentcomm.experiments.job import Job
    from latentcomm.experiments.preflight import Checks

    job = Job(out=None if out is None else expanded(out), **given)
    known = {} if like is None else {"known": like.checks.known, "counted": like.checks.counted}
    checks = Checks(settings, job, elsewhere=elsewhere, **known)
    checks.refuse(
        f"name is {name!r}, but {settings.names_files}; give another folder as `out` instead",
        when=bool(settings.names_files) and name not in (None, settings.command),
    )
    name = settings.command if name is None else name
    claims: list[Claim] = []
    if not re.fullmatch(r"\w[\w.-]*", name):
        checks.refuse(f"name is {name!r}; give a plain file name (letters, digits, _ - .), and the folder as `out`")
    elif job.out is not None:
        checks.of(refuse_unwritable, job.out)
        claims = checks.of(job.claims, settings, name) or []
        for claim in claims if not overwrite else ():
            if (refusal := checks.of(claim.refusal)) is not None:
                checks.refuse(refusal)
    checks.loading()
    with within(settings.budget):
        inputs = EXPERIMENTS[settings.command].check(settings, checks)
    return Prepared(settings, name, job, claims, overwrite, inputs, checks)


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
