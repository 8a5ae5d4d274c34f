"""From the tables to a verdict: each cell in one row, which cells to try first and why, and what to be wary of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import binom

from latentcomm._core.files import without_folder
from latentcomm._core.stats import paired_bootstrap
from latentcomm.drift import COMBINED
from latentcomm.experiments.diagnosis.cells import Cell
from latentcomm.experiments.diagnosis.rows import Rows
from latentcomm.experiments.diagnosis.settings import MESSAGES, OTHER, RANDOM, SAME
from latentcomm.models import Model

__all__ = ["Recommendation", "Situation", "cell_table", "recommend", "warn"]

ALARM = 0.95
"""A state whose two-sided percentile is at least this is flagged; one real state in twenty is."""
MOST_FLAGGED = 0.25
"""Share of flagged items up to which a fusion counts as staying among real states: five times the real states' own."""
LEAST_CONTRAST = 0.1
"""Nats by which another text's message must move the next token more than the same text's, at the lower end of the
interval: a graft that moves it less is hardly worth a sweep."""
MOST_RECOMMENDED = 5
"""Cells named at most, one a fusion."""
ROWS_A_WIDTH = 5
"""Fitted rows for each dimension below which a linear map is fitted to too little: R^2 then reads too low."""

SHORT = {SAME: "same", OTHER: "other", RANDOM: "random"}


@dataclass(frozen=True)
class Recommendation:
    """A cell to try first, and why, in words."""

    fusion: str
    read: int
    write: int
    reason: str


@dataclass(frozen=True)
class Situation:
    """What a warning may follow from, beside the rows.

    Attributes:
        identical: whether both sides are the same weights reading the same tokens.
        one_vocabulary: whether every token of both was paired.
        n_paired: rows before sinks were left out.
        n_sender, n_receiver: tokens that each model read.
        items_asked, items: prompts asked for and found.
        documents_asked, documents: documents asked for and read.
        flagged_own: the share of the receiver's own states, where grafts are written, that is flagged.
    """

    identical: bool
    one_vocabulary: bool
    n_paired: int
    n_sender: int
    n_receiver: int
    items_asked: int
    items: int
    documents_asked: int
    documents: int
    flagged_own: float


def cell_table(
    drift: pd.DataFrame, effects: pd.DataFrame, cells: Sequence[Cell], *, own: Mapping[int, Float[np.ndarray, " item"]]
) -> pd.DataFrame:
    """Return one row a fusion and write layer: predictability, and for each message medians over `n` items.

    `flagged_*` is the share of items whose combined percentile is 0.95 or more, `flagged_own` that of the receiver's
    own states at the same places (`own`, by write layer), `kl_*` the median in nats. `contrast` is the mean over items
    of the KL of another text's message less that of the same text's, with its 95 % interval (paired bootstrap over
    prompts).
    """
    percentiles = _by_item(drift, "percentile", detector=COMBINED)
    moved, agreed = _by_item(effects, "kl"), _by_item(effects, "top1_agreement")
    known = {cell.write: cell for cell in cells}
    found = []
    for fusion, write in dict.fromkeys((fusion, write) for fusion, write, _ in moved):
        cell = known[write]
        row: dict[str, Any] = {
            "fusion": fusion,
            "read_layer": cell.read,
            "write_layer": cell.write,
            "r_squared": cell.r_squared,
            "r_squared_null": cell.null,
            "by_depth": cell.by_depth,
            "n": len(own[write]),
            "flagged_own": float(np.mean(own[write] >= ALARM)),
        }
        for message in MESSAGES:
            place, short = (fusion, write, message), SHORT[message]
            row |= {
                f"percentile_{short}": float(np.median(percentiles[place])),
                f"flagged_{short}": float(np.mean(percentiles[place] >= ALARM)),
                f"kl_{short}": float(np.median(moved[place])),
                f"top1_{short}": float(np.mean(agreed[place])),
            }
        told = paired_bootstrap(moved[fusion, write, OTHER], moved[fusion, write, SAME])
        found.append(row | {"contrast": told.difference, "contrast_low": told.low, "contrast_high": told.high})
    return pd.DataFrame(found)


def recommend(cells: pd.DataFrame) -> tuple[Recommendation, ...]:
    """Return the best cell of each fusion that has one, best first, five at most.

    A cell qualifies where the sender's layer predicts the receiver's above the null, the fused state of the same text
    is flagged in a quarter of the items at most, and another text's message moves the next token by 0.1 nats more
    than the same text's even at the lower end of the interval: there the receiver goes by what the message says. Of
    those the one with the largest such end is taken. It may lie near the end, where a write hands over the sender's own
    next token: a sweep with its logit lens tells.
    """
    fit = [
        row
        for row in cells.to_dict("records")
        if not row["by_depth"] and row["flagged_same"] <= MOST_FLAGGED and row["contrast_low"] >= LEAST_CONTRAST
    ]
    best: dict[str, dict[Any, Any]] = {}
    for row in sorted(fit, key=lambda row: (-row["contrast_low"], row["write_layer"])):
        best.setdefault(row["fusion"], row)
    return tuple(
        Recommendation(row["fusion"], row["read_layer"], row["write_layer"], _reason(row))
        for row in list(best.values())[:MOST_RECOMMENDED]
    )


def warn(rows: Rows, sender: Model, receiver: Model, situation: Situation, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return what a reader must know before believing a number, a sentence each."""
    said = []
    if situation.identical:
        said.append(
            "Sender and receiver are the same model. A state of the same text at the same layer is the receiver's "
            "own state, so the message “same text” changes nothing under replace, mean and the residuals: those "
            "zeros are by construction, and the predictability residual is the same as replace. What is learnt here "
            "is in the messages “other text” and “random”."
        )
    if not situation.one_vocabulary:
        share = situation.n_paired / min(situation.n_sender, situation.n_receiver)
        said.append(
            f"The tokenizers differ. Only places where a token of both models ends at the same character are compared: "
            f"{situation.n_paired:,} rows, {share:.0%} of the tokens of the model that reads fewer. Tokens that the "
            "other model cuts differently are not represented."
        )
    fitted = int(rows.fit.sum())
    widest = max(sender.d_model, receiver.d_model)
    if fitted < ROWS_A_WIDTH * widest:
        said.append(
            f"Few rows for the width: {fitted:,} rows fit maps of states {widest} wide, fewer than {ROWS_A_WIDTH} a "
            "dimension. Predictability and redundancy read too low, and drift is told less sharply; give a longer "
            "corpus, or read more documents and tokens."
        )
    for role, model, sinks in (("sender", sender, rows.sinks_x), ("receiver", receiver, rows.sinks_y)):
        if sinks.by_norm and not (role == "receiver" and situation.identical):
            who = "the model" if situation.identical else f"the {role}"
            rows_are = "row is" if sinks.by_norm == 1 else "rows are"
            said.append(
                f"Massive activations in {who} ({without_folder(model.name)}): beyond each text's first token, "
                f"{sinks.by_norm:,} {rows_are} more than {sinks.norm_limit:g} times as long as the median. Such rows "
                "were left out everywhere: one of them can decide a similarity. What a graft does at such a token is "
                "not measured here."
            )
    if sender.processed or receiver.processed:
        said.append(
            "The weights are processed (folded norms or centred writing weights). Their residual stream is not that of "
            "the model as it was released; compare these numbers only with others of processed weights."
        )
    if situation.documents < situation.documents_asked:
        said.append(
            f"The corpus gave {situation.documents} documents where {situation.documents_asked} were asked for; "
            "intervals over documents are wider than the defaults promise."
        )
    if situation.items < situation.items_asked:
        said.append(f"The corpus gave only {situation.items} held-out prompts of {situation.items_asked} asked for.")
    if situation.flagged_own > float(binom.ppf(0.975, situation.items, 1 - ALARM)) / situation.items:
        said.append(
            f"Real states are flagged too often: {situation.flagged_own:.0%} of the receiver's own states at the "
            f"places of the grafts, where it should be 5%, more than chance makes of {situation.items} prompts. Few "
            "documents stand behind the drift references. Compare every share of flagged states with that one, and "
            "read more documents."
        )
    if depth := [cell.write for cell in cells if cell.by_depth]:
        said.append(
            f"No sender layer predicts the receiver's state after layer {_listed(depth)} better than unrelated texts "
            "do; there the layer at the same relative depth is read, and nothing is recommended."
        )
    return tuple(said)


def _by_item(table: pd.DataFrame, value: str, *, detector: str | None = None) -> dict[tuple[str, int, str], np.ndarray]:
    """A column's values by item, for each fusion, write layer and message, of one detector where the table has such."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in table.sort_values("item", kind="stable").to_dict("records"):
        if detector is not None and row["detector"] != detector:
            continue
        found.setdefault((row["fusion"], int(row["write_layer"]), row["message"]), []).append(float(row[value]))
    return {place: np.array(values) for place, values in found.items()}


def _reason(row: Mapping[Any, Any]) -> str:
    """Why a cell is recommended, in numbers a reader can check in cells.csv."""
    return (
        f"predictable (a linear map of the sender's state gives {row['r_squared']:.0%} of the receiver's on unseen "
        f"documents, {max(0.0, row['r_squared_null']):.0%} when the texts are unrelated); looks real "
        f"({row['flagged_same']:.0%} of the same-text states are flagged, {row['flagged_own']:.0%} of the receiver's "
        "own at the same places); and the receiver goes by what the message says: the same text's moves the next token "
        f"by {row['kl_same']:.2f} nats, another text's by {row['kl_other']:.2f} (medians over {row['n']} prompts; mean "
        f"difference {row['contrast']:.2f}, 95% interval "
        f"{row['contrast_low']:.2f} to {row['contrast_high']:.2f})"
    )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
