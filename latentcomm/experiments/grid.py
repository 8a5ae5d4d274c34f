"""A grid file: an experiment, the settings that its runs share, and lists of values or rows that make the runs."""

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latentcomm._core.names import check_name
from latentcomm.experiments._prepared import EXPERIMENTS
from latentcomm.experiments.job import Result
from latentcomm.experiments.settings import Settings

__all__ = ["MOST_RUNS", "grid_table", "read_grid", "run_names", "varied"]

MOST_RUNS = 10_000
"""Runs of a grid that need no confirmation."""
TABLES = ("experiment", "settings", "grid", "runs")


def read_grid(path: Path, *, most: int = MOST_RUNS) -> list[Settings]:
    """The settings of every run of a grid file, in the order of the file; the last option of [grid] changes fastest.

    `experiment` names the experiment, [settings] holds what all runs share, [grid] a list of values an option, of which
    every combination is a run, and each [[runs]] the options of one run. With both, every row is run at every
    combination.

    Raises:
        ValueError: no such file, broken syntax, an option or table that there is not, an empty list, no run, the same
            settings twice, or more than `most` runs.
    """
    try:
        values = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"there is no grid file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from None
    try:
        return list(_runs(values, most))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _runs(values: Mapping[str, Any], most: int) -> list[Settings]:
    for name in values:
        check_name("table of a grid", name, TABLES)
    if "experiment" not in values:
        raise ValueError(f"it names no experiment; write experiment = {next(iter(EXPERIMENTS))!r} or another command")
    shared, lists, rows = values.get("settings", {}), values.get("grid", {}), values.get("runs", [{}])
    for name, value, what in (("settings", shared, "[settings]"), ("grid", lists, "[grid]")):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {str(value)[:40]}; write it as the table {what}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"runs is {str(rows)[:40]}; write each row as a table [[runs]]")
    if not isinstance(values["experiment"], str):
        raise ValueError(f"experiment is {values['experiment']!r}; give one name")
    settings = EXPERIMENTS[check_name("experiment", values["experiment"], EXPERIMENTS)].settings
    for name, given in lists.items():
        if not isinstance(given, list) or not given:
            raise ValueError(f"{name} of [grid] is {given!r}; give a list of at least one value")
    if not rows:
        raise ValueError("runs is empty; give at least one row")
    n_runs = len(rows) * math.prod(map(len, lists.values()))
    if n_runs > most:
        raise ValueError(f"it describes {n_runs} runs, and more than {most} need `yes=True`")
    combined = [dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())]
    found = [settings.from_dict(_once(shared, row, each)) for row in rows for each in combined]
    first: dict[Settings, int] = {}
    for number, each in enumerate(found, 1):
        if first.setdefault(each, number) != number:
            raise ValueError(f"run {number} has the settings of run {first[each]}; give each once")
    return found


def _once(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of several tables together.

    Raises:
        ValueError: one stands in two of them.
    """
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name in found:
                raise ValueError(f"{name} stands in two of [settings], [grid] and [[runs]]; give it in one")
            found[name] = value
    return found


def varied(runs: Sequence[Settings]) -> list[str]:
    """The options in which runs differ."""
    values = [run.to_dict() for run in runs]
    return [name for name in values[0] if any(each[name] != values[0][name] for each in values)]


def run_names(runs: Sequence[Settings]) -> list[str]:
    """What the runs of a list are called in errors: their numbers, and the options in which they differ.

    >>> from latentcomm.experiments.sweep.settings import SweepSettings
    >>> run_names([SweepSettings(seed=seed) for seed in (0, 7)])
    ['run 1 (seed 0)', 'run 2 (seed 7)']
    """
    commands = len({run.command for run in runs}) > 1
    names = [] if commands or len(runs) < 2 else varied(runs)
    options = [[run.command] if commands else [f"{name} {shown(run, name)}" for name in names] for run in runs]
    return [f"run {number} ({', '.join(each)})" if each else f"run {number}" for number, each in enumerate(options, 1)]


def shown(run: Settings, name: str) -> str:
    """The value of an option in a line of text."""
    value = getattr(run, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def grid_table(results: Sequence[Result]) -> pd.DataFrame:
    """The tables of all runs in one, after the options in which the runs differ."""
    names = varied([result.settings for result in results])
    tables = []
    for number, result in enumerate(results, 1):
        values = result.settings.to_dict()
        options = {name: ",".join(map(str, at)) if isinstance(at := values[name], list) else at for name in names}
        tables.append(pd.DataFrame([{"run": number} | options]).merge(result.table, how="cross", suffixes=("_set", "")))
    return pd.concat(tables, ignore_index=True)
