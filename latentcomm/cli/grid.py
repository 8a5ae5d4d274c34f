"""`latentcomm grid`: many runs of an experiment from one file, in this process or on a Ray cluster."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from latentcomm._core.progress import duration, quiet

if TYPE_CHECKING:
    from latentcomm.experiments.preflight import Preflight
    from latentcomm.experiments.settings import Settings

__all__ = ["grid"]


@dataclass(frozen=True)
class Grid:
    """Run every combination of options that a TOML file lists, or every row of it, each in a folder of its own.

    Attributes:
        file: The grid: experiment, [settings] of all runs, [grid] of lists, [[runs]] of rows.
        out: Folder of the runs' folders and of grid.csv, the tables of all runs in one.
        engine: local runs one after the other in this process; ray shares them among the workers of a cluster.
        address: Of a Ray cluster: auto, or host and port; without it one is started on this machine.
        gpus_per_model: Of ray: GPUs a worker has for each model, where the device is cuda or auto.
        cpus_per_worker: Of ray: processor threads of a worker.
        workers: Of ray: how many workers; 0 for as many as the cluster has room for.
        yes: Run more than 10,000 runs.
        dry_run: Run nothing: print the runs, what each and all of them would take, and what is refused.
        flops: Of a dry run: operations a second of the machine that the time is estimated for; by default this one.
        bandwidth: Of a dry run: bytes a second that its memory reads.
        quiet: Print errors alone.
    """

    file: tyro.conf.Positional[Path]
    out: Path = Path("runs")
    engine: Literal["local", "ray"] = "local"
    address: str = ""
    gpus_per_model: float = 1.0
    cpus_per_worker: int = 1
    workers: int = 0
    yes: bool = False
    dry_run: bool = False
    flops: float = 0.0
    bandwidth: float = 0.0
    quiet: bool = False


def grid(arguments: Sequence[str]) -> None:
    """Run every combination of options that a TOML file lists, on this machine or on a Ray cluster.

    Raises:
        ValueError: a file that describes no runs, or what a run refuses.
    """
    given = tyro.cli(
        Annotated[Grid, tyro.conf.arg(name="")], args=list(arguments), prog="latentcomm grid",
        description=(Grid.__doc__ or "").partition("Attributes:")[0].strip(), config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    from latentcomm.experiments.grid import MOST_RUNS, grid_table, read_grid
    from latentcomm.experiments.run import plan_all, run_all
    from latentcomm.reporting.publish import write_table

    runs = read_grid(given.file, most=sys.maxsize if given.yes else MOST_RUNS)
    if given.dry_run:
        print_plan(runs, plan_all(runs, out=given.out, flops=given.flops, bandwidth=given.bandwidth))
        return
    if given.flops or given.bandwidth:
        raise ValueError("--flops and --bandwidth are of another machine, which runs nothing; give --dry-run too")
    with quiet(on=given.quiet):
        results = run_all(
            runs, out=given.out, engine=given.engine, address=given.address or None,
            gpus_per_model=given.gpus_per_model, cpus_per_worker=given.cpus_per_worker, workers=given.workers or None,
            progress=not given.quiet,
        )  # fmt: skip
    path = given.out.expanduser() / "grid.csv"
    write_table(grid_table(results), path)
    if not given.quiet:
        print(f"wrote {path} with the tables of {len(results)} runs")


def print_plan(runs: "Sequence[Settings]", reports: "Sequence[Preflight]") -> None:
    """Print a row a run, what all of them take, and each note once.

    Raises:
        ValueError: with every refusal and the runs that it is of.
    """
    from latentcomm._core.files import readable
    from latentcomm.experiments.grid import run_names, shown, varied
    from latentcomm.experiments.preflight import together
    from latentcomm.reporting.terminal import console, print_table

    names = varied(runs)
    rows = [
        {"run": str(number)}
        | {name: shown(run, name) for name in names}
        | {"time": "-" if report.seconds is None else duration(max(1, report.seconds))}
        | {"memory": readable(report.memory), "disk": readable(report.disk)}
        for number, (run, report) in enumerate(zip(runs, reports, strict=True), 1)
    ]
    print_table(rows, console(160), text=rows[0], wrapped=names)
    total = together(run_names(runs), reports)
    for line in total.lines():
        print(line)
    total.check()
