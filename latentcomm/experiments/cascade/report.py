"""Report a reverse cascade: a table in the terminal, three figures on disk, and all trials and signals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.experiments.cascade import CascadeSweep, Opening, Oracle, Stop, openings_of
from latentcomm.experiments.cascade.openings import LONGEST
from latentcomm.experiments.cascade.run import choose
from latentcomm.experiments.cascade.trials import CONTROLS, LARGE, SELF_CONSISTENCY, SILENT
from latentcomm.experiments.controls import RANDOM, SELF, SHUFFLED, ZERO
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.experiments.job import Drawing
from latentcomm.reporting.plots import cascade_curves, cascade_front, opening_signals
from latentcomm.reporting.plots.cascade import OF_STOP
from latentcomm.reporting.plots.tables import spoken
from latentcomm.reporting.publish import plain, write_table
from latentcomm.reporting.terminal import Console, accuracy, interval, p_value, parts, print_table

FRONT, SIGNALS = "front", "signals"
"""Suffixes of the names of the two other figures."""


def signal_table(
    openings: Sequence[Opening],
    seen: pd.DataFrame,
    stops: Mapping[str, Stop | Oracle],
    *,
    most: int,
) -> pd.DataFrame:
    """The signals along openings, token by token: the data of `plots.opening_signals`.

    For every signal of `seen` (`cascade.signals.token_signals`) the median and the quartiles over the openings that
    have it at a token, with their number; for every stop the share of all openings at which it has fired by that token,
    if it fires by `most`. The oracle, which needs the answers, is left out.

    Raises:
        ValueError: no opening has a token.

    >>> import torch
    >>> from latentcomm.experiments.cascade import Confident, Opening
    >>> sure = Opening.of_signals(entropy=torch.tensor([2.0, 0.5]), margin=torch.tensor([0.1, 0.95]))
    >>> seen = pd.DataFrame({"item": "a", "token": [1, 2], "piece": "", "entropy": sure.entropy, "margin": sure.margin})
    >>> signal_table([sure], seen, {"confident": Confident(window=1)}, most=2)["median"].round(2).tolist()
    [2.0, 0.5, 0.1, 0.95, 0.0, 1.0]
    """
    longest = max((len(opening) for opening in openings), default=0)
    if longest == 0:
        raise ValueError("no opening has a token, so there are no signals to show")
    rows = []
    for signal in seen.columns.drop(["item", "token", "piece"]):
        for token, values in seen.dropna(subset=[signal]).groupby("token")[signal]:
            low, median, high = values.quantile([0.25, 0.5, 0.75]).tolist()
            rows.append(
                {"signal": signal, "token": token, "median": median, "low": low, "high": high, "n": len(values)}
            )
    for name, stop in stops.items():
        if isinstance(stop, Oracle):
            continue
        chosen = [choose(stop, opening, most) for opening in openings]
        for token in range(1, longest + 1):
            share = sum(fired and n <= token for n, fired in chosen) / len(chosen)
            of_stop = {"signal": f"{OF_STOP}{name}", "token": token, "n": len(chosen)}
            rows.append(of_stop | dict.fromkeys(("median", "low", "high"), share))
    return pd.DataFrame(rows)


def curves_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Accuracy against the tokens of the large model."""
    return cascade_curves(
        table,
        title=f"How much must the large model write? {_pair(settings)}",
        note=f"{_items(table)}; 95 % Wilson intervals over items. Tokens of a stop: the mean at its hand-off. "
        "Controls of states are shown where states pass; the oracle uses the answers and is no policy.",
    )


def front_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Accuracy against cost."""
    return cascade_front(
        table,
        title=f"What does it cost? {_pair(settings)}",
        note=f"{_items(table)}; 95 % Wilson intervals over items. Operations of both models, as run with a cache for "
        "this number of tokens alone; numbers at the dots: tokens by the large model. The oracle is outside the "
        "front.",
    )


def signals_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Entropy and margin along the openings, and the stops."""
    n = max(table["n"].tolist())
    return opening_signals(
        table,
        title=f"When is the large model sure? {_pair(settings)}",
        note=f"{n} openings; fewer are so long further on. Dashed: the token by which a stop has fired on "
        "half of them.",
    )


PLOTS = {"": curves_figure, f"_{FRONT}": front_figure, f"_{SIGNALS}": signals_figure}
"""The function that draws each figure of a cascade, by the suffix of its name."""


def cascade_drawings(
    found: CascadeSweep, table: pd.DataFrame, stops: Mapping[str, Stop | Oracle], settings: Mapping[str, Any]
) -> dict[str, Drawing]:
    """The three figures by their suffix: accuracy against tokens, against cost, and the signals.

    `table` is that of `found`; `settings` have `large`, `small` and `task`, which the titles name, and `ns`.
    """
    most = max(settings["ns"]) or int(found.openings.made_by[LONGEST])
    signals = signal_table(openings_of(found.openings), found.signals, stops, most=most)
    shown = plain(settings)
    data = (table, table, signals)
    return {ending: Drawing(draw(seen, shown), seen) for (ending, draw), seen in zip(PLOTS.items(), data, strict=True)}


def save_rows(found: CascadeSweep, folder: Path, name: str) -> tuple[Path, Path]:
    """NAME_trials.jsonl: all replies, item by item; and NAME_tokens.csv: all signals."""
    trials, tokens = folder / f"{name}_trials.jsonl", folder / f"{name}_tokens.csv"
    found.save_trials(trials)
    write_table(found.signals, tokens)
    return trials, tokens


def print_cascade(table: pd.DataFrame, console: Console) -> None:
    """Print one row a hand-off and stop, the two models alone first, with the controls of each."""
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    by_cell = {(row["hand_off"], row["stop"], row["condition"]): row for row in rows}
    shown = []
    for row in rows:
        if row["condition"] not in (SILENT, LARGE, MESSAGE):
            continue
        is_alone = row["condition"] != MESSAGE
        control = {name: accuracy(by_cell.get((row["hand_off"], row["stop"], name))) for name in CONTROLS}
        shown.append(
            {
                "hand-off": row["condition"] if is_alone else spoken(row["hand_off"]),
                "stop": "" if is_alone else row["stop"],
                "tokens": f"{row['tokens']:.1f}",
                "accuracy": interval(row),
                "continued": "" if is_alone else _part(row, "handed"),
                "answer in opening": "" if is_alone else f"{row['in_opening']:.2f}",
                "accuracy without": "" if is_alone else _part(row, "without"),
                "shuffled": control[SHUFFLED],
                "zero/random": f"{control[ZERO]}/{control[RANDOM]}".strip("/"),
                "self": control[SELF],
                "vote": control[SELF_CONSISTENCY],
                "p": parts([p_value(row[f"p_{name}"]) for name in ("silent", "large", "shuffled")]),
                "GFLOP": f"{row['flops'] / 1e9:.3g}",
            }
        )
    print_table(
        shown,
        console,
        text=("hand-off", "stop"),
        wrapped=set(shown[0]) - {"hand-off", "stop", "accuracy", "p"},
        title=f"{_items(table)}; 95 % Wilson intervals; exact McNemar p against silent / large / shuffled",
        caption="silent: the small model alone; large: the large one alone; shuffled, self: another item's opening, "
        "the small model's own; continued: the items whose reply the large model had not finished; operations are "
        "means of an item, as if run for this n alone; not corrected for multiple tests; an oracle is chosen by the "
        "answers, so that its p test nothing",
    )
    for row in rows:
        if row["condition"] in (SILENT, LARGE) and row["parsed"] < 1:
            unread = 1 - row["parsed"]
            console.print(
                f"{row['condition']}: no answer could be read in {unread:.0%} of the replies", highlight=False
            )


def _part(row: Mapping[str, Any], name: str) -> str:
    """Accuracy on a subset of the items, and its size."""
    return f"{row[f'{name}_accuracy']:.2f} of {row[f'{name}_n']}" if row[f"{name}_n"] else ""


def _pair(settings: Mapping[str, Any]) -> str:
    return f"{settings['large']} to {settings['small']}, {settings['task']}"


def _items(table: pd.DataFrame) -> str:
    return f"{table['n'].tolist()[0]} items"
