"""`latentcomm grid`: many runs of an experiment from one file, in this process or on a Ray cluster."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from latentcomm._core.progress import quiet

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
        dry_run: Run nothing: print the runs.
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
    from latentcomm.experiments.grid import MOST_RUNS, grid_table, read_grid, varied
    from latentcomm.experiments.run import run_all
    from latentcomm.reporting.publish import write_table
    from latentcomm.reporting.terminal import console, print_table

    runs = read_grid(given.file, most=sys.maxsize if given.yes else MOST_RUNS)
    if given.dry_run:
        names = varied(runs)
        rows = [
            {"run": str(number)} | {name: str(getattr(run, name)) for name in names}
            for number, run in enumerate(runs, 1)
        ]
        print_table(rows, console(160), text=rows[0], wrapped=rows[0])
        return
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
