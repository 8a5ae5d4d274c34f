"""From the tables to a verdict: one row per cell, which cells to try first and why, and warnings."""

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
from latentcomm.experiments.diagnosis.cells import ChosenCell
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
interval; below that, a graft is hardly worth a sweep."""
MOST_RECOMMENDED = 5
"""Most cells recommended, one per fusion."""
ROWS_A_WIDTH = 5
"""Fewest fitted rows per dimension for a linear map; with fewer, R^2 is biased low."""

SHORT = {SAME: "same", OTHER: "other", RANDOM: "random"}


@dataclass(frozen=True)
class Recommendation:
    """A cell to try first, and the reason as text."""

    fusion: str
    read: int
    write: int
    reason: str


@dataclass(frozen=True)
class Situation:
    """What a warning may follow from, besides the rows.

    Attributes:
        identical: whether both sides are the same weights reading the same tokens.
        one_vocabulary: whether every token of both was paired.
        n_paired: rows before sinks were left out.
        n_sender, n_receiver: tokens read by each model.
        items_requested, items: prompts requested and found.
        documents_requested, documents: documents requested and read.
        flagged_own: the share of the receiver's own states at the grafted positions that is flagged.
    """

    identical: bool
    one_vocabulary: bool
    n_paired: int
    n_sender: int
    n_receiver: int
    items_requested: int
    items: int
    documents_requested: int
    documents: int
    flagged_own: float


def cell_table(
    drift: pd.DataFrame,
    effects: pd.DataFrame,
    cells: Sequence[ChosenCell],
    *,
    own: Mapping[int, Float[np.ndarray, " item"]],
) -> pd.DataFrame:
    """Return one row per fusion and write layer: predictability, and for each message the medians over `n` items.

    `flagged_*` is the share of items whose combined percentile is 0.95 or more, `flagged_own` that of the receiver's
    own states at the same positions (`own`, by write layer), `kl_*` the median in nats. `contrast` is the mean over
    items of the KL of another text's message less that of the same text's, with its 95 % interval (paired bootstrap
    over prompts).
    """
    percentiles = _by_item(drift, "percentile", detector=COMBINED)
    moved, agreed = _by_item(effects, "kl"), _by_item(effects, "top1_agreement")
    cell_of = {cell.write: cell for cell in cells}
    table = []
    for fusion, write in dict.fromkeys((fusion, write) for fusion, write, _ in moved):
        cell = cell_of[write]
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
            key, short = (fusion, write, message), SHORT[message]
            row |= {
                f"percentile_{short}": float(np.median(percentiles[key])),
                f"flagged_{short}": float(np.mean(percentiles[key] >= ALARM)),
                f"kl_{short}": float(np.median(moved[key])),
                f"top1_{short}": float(np.mean(agreed[key])),
            }
        gap = paired_bootstrap(moved[fusion, write, OTHER], moved[fusion, write, SAME])
        table.append(row | {"contrast": gap.difference, "contrast_low": gap.low, "contrast_high": gap.high})
    return pd.DataFrame(table)


def recommend(cells: pd.DataFrame) -> tuple[Recommendation, ...]:
    """Return the best qualifying cell of each fusion, best first, at most five.

    A cell qualifies where the sender's layer predicts the receiver's above the null, the fused state of the same text
    is flagged in at most a quarter of the items, and another text's message moves the next token by 0.1 nats more
    than the same text's even at the lower end of the interval: the receiver depends on the content of the message. Of
    those, the cell with the largest lower end is chosen. It may be a late layer, where a write transfers the sender's
    own next token; the logit lens of a sweep shows whether it does.
    """
    qualified = [
        row
        for row in cells.to_dict("records")
        if not row["by_depth"] and row["flagged_same"] <= MOST_FLAGGED and row["contrast_low"] >= LEAST_CONTRAST
    ]
    best: dict[str, dict[Any, Any]] = {}
    for row in sorted(qualified, key=lambda row: (-row["contrast_low"], row["write_layer"])):
        best.setdefault(row["fusion"], row)
    return tuple(
        Recommendation(row["fusion"], row["read_layer"], row["write_layer"], _reason(row))
        for row in list(best.values())[:MOST_RECOMMENDED]
    )


def warn(
    rows: Rows, sender: Model, receiver: Model, situation: Situation, cells: Sequence[ChosenCell]
) -> tuple[str, ...]:
    """Return the caveats of the numbers, one sentence or more each."""
    warnings = []
    if situation.identical:
        warnings.append(
            "Sender and receiver are the same model. A state of the same text at the same layer is the receiver's "
            "own state, so the message “same text” changes nothing under replace, mean and the residuals: those "
            "zeros are by construction, and the predictability residual equals replace. Only the messages “other "
            "text” and “random” are informative here."
        )
    if not situation.one_vocabulary:
        share = situation.n_paired / min(situation.n_sender, situation.n_receiver)
        warnings.append(
            f"The tokenizers differ. Only positions where tokens of both end at the same character are compared: "
            f"{situation.n_paired:,} rows, {share:.0%} of the tokens of the model that reads fewer. Tokens that the "
            "other model splits differently are not represented."
        )
    fitted = int(rows.fit.sum())
    widest = max(sender.d_model, receiver.d_model)
    if fitted < ROWS_A_WIDTH * widest:
        warnings.append(
            f"Few rows for the width: {fitted:,} rows fit maps of states {widest} wide, fewer than {ROWS_A_WIDTH} a "
            "dimension. Predictability and redundancy are biased low, and drift is detected less reliably; give a "
            "longer corpus, or read more documents and tokens."
        )
    for role, model, sinks in (("sender", sender, rows.sinks_x), ("receiver", receiver, rows.sinks_y)):
        if sinks.by_norm and not (role == "receiver" and situation.identical):
            who = "the model" if situation.identical else f"the {role}"
            rows_are = "row is" if sinks.by_norm == 1 else "rows are"
            warnings.append(
                f"Massive activations in {who} ({without_folder(model.name)}): beyond each text's first token, "
                f"{sinks.by_norm:,} {rows_are} more than {sinks.norm_limit:g} times as long as the median. Such rows "
                "are excluded everywhere: one of them can dominate a similarity. The effect of a graft at such a token "
                "is not measured here."
            )
    if sender.processed or receiver.processed:
        warnings.append(
            "The weights are processed (folded norms or centred writing weights). The residual stream differs "
            "from that of the released model; compare these numbers only with others of processed weights."
        )
    if situation.documents < situation.documents_requested:
        warnings.append(
            f"The corpus has {situation.documents} documents where {situation.documents_requested} were requested; "
            "intervals over documents are wider than with the default size."
        )
    if situation.items < situation.items_requested:
        warnings.append(
            f"The corpus has only {situation.items} held-out prompts of {situation.items_requested} requested."
        )
    if situation.flagged_own > float(binom.ppf(0.975, situation.items, 1 - ALARM)) / situation.items:
        warnings.append(
            f"Real states are flagged too often: {situation.flagged_own:.0%} of the receiver's own states at the "
            f"grafted positions, where it should be 5%, more than chance explains with {situation.items} prompts. The "
            "drift references are fitted on few documents. Compare every share of flagged states with that one, and "
            "read more documents."
        )
    if depth := [cell.write for cell in cells if cell.by_depth]:
        warnings.append(
            f"No sender layer predicts the receiver's state after layer {_listed(depth)} better than unrelated texts "
            "do; the layer at the same relative depth is read instead, and no such cell is recommended."
        )
    return tuple(warnings)


def _by_item(table: pd.DataFrame, value: str, *, detector: str | None = None) -> dict[tuple[str, int, str], np.ndarray]:
    """A column's values by item, for each fusion, write layer and message; of one detector where it is given."""
    values_of: dict[tuple[str, int, str], list[float]] = {}
    for row in table.sort_values("item", kind="stable").to_dict("records"):
        if detector is not None and row["detector"] != detector:
            continue
        values_of.setdefault((row["fusion"], int(row["write_layer"]), row["message"]), []).append(float(row[value]))
    return {key: np.array(values) for key, values in values_of.items()}


def _reason(row: Mapping[Any, Any]) -> str:
    """Why a cell is recommended, in numbers that are in cells.csv."""
    return (
        f"predictable (a linear map of the sender's state gives {row['r_squared']:.0%} of the receiver's on unseen "
        f"documents, {max(0.0, row['r_squared_null']):.0%} when the texts are unrelated); like a real state "
        f"({row['flagged_same']:.0%} of the same-text states are flagged, {row['flagged_own']:.0%} of the receiver's "
        "own at the same positions); and the next token depends on the message: the same text's moves it "
        f"by {row['kl_same']:.2f} nats, another text's by {row['kl_other']:.2f} (medians over {row['n']} prompts; mean "
        f"difference {row['contrast']:.2f}, 95% interval "
        f"{row['contrast_low']:.2f} to {row['contrast_high']:.2f})"
    )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
