"""`CascadeSettings` run: a large model generates an opening, a small one continues it."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pandas as pd

from latentcomm._core.files import digest, without_folder
from latentcomm._core.records import Records
from latentcomm._core.version import __version__
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade._check import CascadeInputs
from latentcomm.experiments.cascade.by_name import hand_offs_named
from latentcomm.experiments.cascade.openings import openings_of
from latentcomm.experiments.cascade.report import cascade_drawings, print_cascade, save_rows
from latentcomm.experiments.cascade.run import CascadeSweep, sweep_cascade
from latentcomm.experiments.cascade.settings import CascadeSettings
from latentcomm.experiments.cascade.trials import CascadeTrial
from latentcomm.experiments.job import Job, Result
from latentcomm.models.facts import describe
from latentcomm.reporting.publish import plain
from latentcomm.tasks.kv_math_worked import pairs_of

__all__ = ["run_cascade"]


def run_cascade(settings: CascadeSettings, job: Job, inputs: CascadeInputs) -> Result:
    """Sweep openings, stops and hand-offs; see `sweep_cascade`.

    Raises:
        ValueError: what the settings, the task or the cascade refuse.
    """
    settings = replace(settings, controls=inputs.controls)
    task, stops, ns, wanted = inputs.task, inputs.stops, list(inputs.ns), inputs.hand_offs
    groups = pairs_of(task.items)
    documents = None if inputs.corpus is None else inputs.corpus.documents
    large, small = job.pair(settings)
    given = settings.decisive() | {"sender": large.name, "receiver": small.name}
    shown = given | {
        "large": large.name,
        "small": small.name,
        "data": without_folder(settings.data),
        "shots": without_folder(settings.shots),
        "ns": ns,
        "stops": {name: repr(stop) for name, stop in stops.items()},
        "hand_offs": list(wanted),
        "corpus": None if documents is None else digest(documents),
        "n_items": len(task.items),
        "reply_tokens": task.reply_tokens,
    }
    checkpoint = job.saved(shown, large, small, task)
    maps = {name: getattr(settings, name) for name in ("read_layer", "write_layer", "seed")}

    def sweep() -> CascadeSweep:
        return sweep_cascade(
            large,
            small,
            task,
            hand_offs=hand_offs_named(wanted, large, small, documents, **maps),
            ns=ns,
            stops=stops,
            controls=settings.controls,
            seed=settings.seed,
            checkpoint=checkpoint,
            progress=job.progress,
        )

    swept = _saved_or_swept(checkpoint, sweep)
    table = swept.table(groups=groups, seed=settings.seed)
    shown = plain(shown)

    return Result(
        settings=settings,
        found=swept,
        table=table,
        figures=cascade_drawings(swept, table, stops, shown),
        shown=shown,
        models={"large": describe(large), "small": describe(small)},
        seconds=job.seconds,
        summary=lambda console: print_cascade(table, console),
        extra=lambda folder, name: save_rows(swept, folder, name),
    )


def _saved_or_swept(checkpoint: Path | None, sweep: Callable[[], CascadeSweep]) -> CascadeSweep:
    """A sweep without the states, keys and values of its openings, read from the records where it is saved there.

    A record is of this release: another one may make another table of the same continuations.
    """
    records, swept = Records.of(checkpoint, "result", 1, __version__), cache(sweep)
    trials = records.values("trials", lambda: [asdict(trial) for trial in swept().trials])
    signals = records.values("signals", lambda: swept().signals.to_dict("records"))
    openings, small_openings = (
        records.saved(name, lambda name=name: _without_states(getattr(swept(), name)), Message.load)
        for name in ("openings", "small_openings")
    )
    return CascadeSweep(
        tuple(CascadeTrial(**trial) for trial in trials), openings, small_openings, pd.DataFrame(signals)
    )


def _without_states(openings: Message) -> Message:
    """Openings without states, keys and values."""
    return replace(openings, parts=tuple(opening.part() for opening in openings_of(openings)))
