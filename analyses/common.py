"""What the scripts of the figures share: their arguments, where unfinished work is saved, replots and publication."""

import argparse
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

import latentcomm as lc
from latentcomm._core.stats import mcnemar_exact, paired_bootstrap
from latentcomm.alignment import AffineMap
from latentcomm.experiments.diagnosis.rows import Rows, ordinary_rows
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.fusion import Fusion
from latentcomm.hooks.paired_text import PairedStates, PairedTokens, capture_paired, pair_tokens
from latentcomm.models.facts import describe
from latentcomm.reporting.publish import plain, publish, replot
from latentcomm.tasks import Task
from latentcomm.tasks.corpus import read_corpus

Plot = Callable[[pd.DataFrame, dict[str, Any]], go.Figure]
"""What draws a figure from its table and its settings."""
FOLDER = Path(__file__).resolve().parent.parent / "figures"
"""Where figures are saved by default."""
Maps = Mapping[Cell, AffineMap]
"""A map a cell."""


@dataclass(frozen=True)
class CorpusSettings:
    """What every figure of states on the packaged corpus is decided by; a figure adds its own."""

    sender: str = "smollm2-135m-instruct"
    documents: int | None = None
    max_tokens: int = 128
    seed: int = 0


def figure_arguments(doc: str | None, *, smoke: str) -> argparse.ArgumentParser:
    """The arguments that every figure takes; `smoke` describes a small run."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help=f"{smoke}, to see that it runs")
    parser.add_argument(
        "--replot", action="store_true", help="rebuild the figures that are there from their CSVs alone"
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    return parser


def arguments(doc: str | None, *, smoke: str, sender: str, receiver: str) -> argparse.ArgumentParser:
    """The arguments that every figure of two models takes.

    `smoke` and `receiver` describe a small run and the use of the second model; `sender` is the default.
    """
    parser = figure_arguments(doc, smoke=smoke)
    parser.add_argument("--sender", default=sender, help="a built-in name, a folder, a .gguf file or a hub id")
    parser.add_argument("--receiver", help=receiver)
    return parser


def corpus_states(
    settings: CorpusSettings, sender: lc.Model, receiver: lc.Model, checkpoint: Path | None
) -> tuple[PairedTokens, PairedStates]:
    """The packaged corpus as both models tokenize it, and their states at the tokens that end at one character.

    `settings.documents` of its documents, evenly spaced, or all, and at most `settings.max_tokens` of each.
    """
    texts = read_corpus().documents
    step = 1 if settings.documents is None else -(-len(texts) // settings.documents)
    tokens = pair_tokens(sender, receiver, texts[::step], max_tokens=settings.max_tokens)
    return tokens, capture_paired(sender, receiver, tokens, checkpoint=checkpoint, progress=True)


def corpus_rows(
    settings: CorpusSettings, sender: lc.Model, receiver: lc.Model, checkpoint: Path | None
) -> tuple[PairedTokens, Rows]:
    """The tokens of `corpus_states`, and both models' states at every one of them, sinks left out."""
    folder = None if checkpoint is None else checkpoint / "corpus"
    tokens, states = corpus_states(settings, sender, receiver, folder)
    labels = {name: getattr(states, name) for name in ("document", "sender_position", "receiver_position")}
    return tokens, ordinary_rows(states.x, states.y, seed=settings.seed, **labels)


def swept(
    settings: Any,
    sender: lc.Model,
    receiver: lc.Model,
    task: Task,
    *,
    fusions: Mapping[str, Fusion],
    checkpoint: Path | None,
) -> lc.SweepReport:
    """The sweep of the first fusion over the layers and items of the settings, and the judgement of all."""
    names = ("read_layers", "write_layers", "n_tune", "n_test", "seed")
    given = {name: getattr(settings, name) for name in names}
    return lc.sweep_and_judge(sender, receiver, task, fusions=fusions, checkpoint=checkpoint, progress=True, **given)


def paired_gain(trials: Sequence[lc.Trial], channel: str, other: str, metric: str, seed: int) -> dict[str, float]:
    """The difference of two channels' true messages, its interval over items, and McNemar's p."""

    def right(name: str) -> list[bool]:
        return [bool(getattr(trial, metric)) for trial in trials if (trial.channel, trial.condition) == (name, MESSAGE)]

    gain = paired_bootstrap(right(channel), right(other), seed=seed)
    p = mcnemar_exact(right(channel), right(other)).p_value
    return {"over": gain.difference, "over_low": gain.low, "over_high": gain.high, "p": p}


def run_pair(
    doc: str | None,
    figures: Mapping[str, Plot],
    settings: Any,
    small: Any,
    compute: Callable[..., pd.DataFrame | tuple[pd.DataFrame, ...]],
    *,
    smoke: str,
) -> None:
    """Compute and publish the figures of a sender with itself, or, where a receiver is named, those of the two.

    `figures` names the figures of the sender with itself first, and then, in the same order, those with a receiver:
    NAME and NAME_pair. `compute` gives a table a figure. `small` are the settings of a small run, and `smoke` says what
    it has.
    """
    receiver = "another model to send to, instead of the sender itself"
    options = arguments(doc, smoke=smoke, sender=settings.sender, receiver=receiver).parse_args()
    if options.replot:
        replot_found(figures, options.out)
        return
    chosen = replace(small if options.smoke else settings, sender=options.sender)
    alone = [name for name in figures if "_pair" not in name]
    names = [name for name in figures if "_pair" in name] if options.receiver else alone
    sender, given = lc.load_model(options.sender), options.receiver or options.sender
    _run(names, figures, compute, chosen, options, sender, given)


def run_alone_and_pair(
    doc: str | None,
    figures: Mapping[str, Plot],
    settings: Any,
    small: Any,
    compute: Callable[..., pd.DataFrame],
    *,
    smoke: str,
) -> None:
    """Compute and publish the figure of a sender with itself and, where a receiver is named, that of the two.

    The arguments are those of `run_pair`, but `compute` takes the settings and the states of the corpus.
    """

    def of_states(
        settings: CorpusSettings, sender: lc.Model, receiver: lc.Model, checkpoint: Path | None
    ) -> pd.DataFrame:
        return compute(settings, corpus_states(settings, sender, receiver, checkpoint)[1])

    receiver = "a second model to compare the sender with"
    options = arguments(doc, smoke=smoke, sender=settings.sender, receiver=receiver).parse_args()
    if options.replot:
        replot_found(figures, options.out)
        return
    chosen, sender = replace(small if options.smoke else settings, sender=options.sender), lc.load_model(options.sender)
    for name, given in zip(figures, (options.sender, options.receiver), strict=True):
        if given is not None:
            _run([name], figures, of_states, chosen, options, sender, given)


def loaded(sender: str, receiver: str, dtype: str) -> dict[str, lc.Model]:
    """Sender and receiver by role; one model twice where they have one name."""
    first = lc.load_model(sender, dtype=dtype)
    return {"sender": first, "receiver": first if receiver == sender else lc.load_model(receiver, dtype=dtype)}


def _run(
    names: Sequence[str],
    figures: Mapping[str, Plot],
    compute: Callable[..., pd.DataFrame | tuple[pd.DataFrame, ...]],
    settings: Any,
    options: argparse.Namespace,
    sender: lc.Model,
    receiver: str,
) -> None:
    """Compute the tables of some figures at once, and publish each."""
    began = time.monotonic()
    pair = {"sender": sender, "receiver": sender if receiver == options.sender else lc.load_model(receiver)}
    known = plain(asdict(settings) | {"receiver": receiver})
    with unfinished(names[0], options) as checkpoint:
        made = compute(settings, **pair, checkpoint=checkpoint)
        tables = [made] if isinstance(made, pd.DataFrame) else made
        for name, table in zip(names, tables, strict=True):
            publish_pair(figures[name], table, name=name, folder=options.out, settings=known, began=began, **pair)


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
