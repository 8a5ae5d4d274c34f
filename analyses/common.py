"""What the scripts of the figures share: their arguments, where unfinished work is saved, replots and publication."""

import argparse
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

import latentcomm as lc
from latentcomm.models.facts import describe
from latentcomm.reporting.publish import publish, replot

Plot = Callable[[pd.DataFrame, dict[str, Any]], go.Figure]
"""What draws a figure from its table and its settings."""
FOLDER = Path(__file__).resolve().parent.parent / "figures"
"""Where figures are saved by default."""


def arguments(doc: str | None, *, smoke: str, sender: str, receiver: str) -> argparse.ArgumentParser:
    """The arguments that every figure of two models takes.

    `smoke` and `receiver` describe a small run and the use of the second model; `sender` is the default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help=f"{smoke}, to see that it runs")
    parser.add_argument(
        "--replot", action="store_true", help="rebuild the figures that are there from their CSVs alone"
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--sender", default=sender, help="a built-in name, a folder, a .gguf file or a hub id")
    parser.add_argument("--receiver", help=receiver)
    return parser


def replot_found(figures: Mapping[str, Plot], folder: Path) -> None:
    """Rebuild those of the figures whose CSVs are there."""
    for name, draw in figures.items():
        if (folder / f"{name}.csv").exists():
            replot(name, folder, draw)


@contextlib.contextmanager
def unfinished(name: str, options: argparse.Namespace) -> Iterator[Path]:
    """A folder for what a run has done so far; it goes when all is published and stays where the run was stopped."""
    folder = options.out / ".unfinished" / (f"{name}_smoke" if options.smoke else name)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def publish_pair(
    draw: Plot,
    table: pd.DataFrame,
    *,
    name: str,
    folder: Path,
    settings: dict[str, Any],
    began: float,
    sender: lc.Model,
    receiver: lc.Model,
) -> None:
    """Draw and publish a figure of two models; `began` is when its work began, of `time.monotonic`."""
    publish(
        draw(table, settings),
        table,
        name=name,
        folder=folder,
        settings=settings,
        measured={"wall_seconds": round(time.monotonic() - began, 1)},
        models={"sender": describe(sender), "receiver": describe(receiver)},
    )
