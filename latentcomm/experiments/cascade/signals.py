"""Signals along the openings, token by token: certainty of the large model, surprise and drift under the small one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.records import Records
from latentcomm.channels.base import receiver_prompts
from latentcomm.experiments.cascade.hand_offs import HandOff, LatentHandOff, TextHandOff
from latentcomm.experiments.cascade.openings import Opening, Openings, ids_of
from latentcomm.experiments.cascade.resume import Prefix
from latentcomm.experiments.cascade.retokenize import opening_tokens, shared_places
from latentcomm.models import Model
from latentcomm.tasks.base import Task

DRIFT = "drift_"
"""Prefix of the columns with the drift of mapped states; the hand-off's name follows."""


def token_signals(openings: Openings, small: Model, task: Task, hand_offs: Mapping[str, HandOff]) -> pd.DataFrame:
    """One row a token of every opening.

    Columns: item, token from 1, and `piece`, the text that it adds; `entropy` (nats) and `margin` of the
    distribution that it was drawn from; `surprise`, -log p of it under the small model after the item's prompt (nats),
    where a hand-off passes text; and of each latent hand-off with a drift reference `drift_NAME`, the percentile of the
    mapped state among the small model's own, 0.5 for real states and 1 for states unlike any.

    Between two tokenizers the small model's surprise is summed up to each character where tokens of both end, and
    listed at the large model's token that ends there; at tokens that end elsewhere it is NaN.

    Raises:
        ValueError: the small model's tokenizer does not reproduce an opening's text.
    """
    has_text = any(isinstance(each, TextHandOff) for each in hand_offs.values())
    latent = {
        name: each for name, each in hand_offs.items() if isinstance(each, LatentHandOff) and each.reference is not None
    }
    prompts = receiver_prompts(small, task)
    parts = []
    for row, opening in enumerate(openings.rows):
        columns = {
            "item": openings.items[row],
            "token": range(1, len(opening) + 1),
            "piece": opening.pieces,
            "entropy": opening.entropy.tolist(),
            "margin": opening.margin.tolist(),
            "surprise": _surprise(openings, row, small, ids_of(prompts, row)) if has_text else math.nan,
        }
        columns |= {f"{DRIFT}{name}": _drift(hand_off, openings, row) for name, hand_off in latent.items()}
        parts += [pd.DataFrame(columns)] if len(opening) else []
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def kept_signals(
    openings: Openings,
    small: Model,
    task: Task,
    hand_offs: Mapping[str, HandOff],
    *,
    folder: Path | None,
    prints: Sequence[str],
) -> pd.DataFrame:
    """The table of `token_signals`, read from the records where it is saved there.

    Raises:
        ValueError: as `token_signals`.
    """
    prompts = receiver_prompts(small, task)
    inputs = [(ids_of(prompts, row), opening.ids) for row, opening in enumerate(openings.rows)]
    records = Records.of(
        folder, "signals", 1, list(prints), openings.items, inputs, list(hand_offs), list(hand_offs.values())
    )
    rows = records.values("tokens", lambda: token_signals(openings, small, task, hand_offs).to_dict("records"))
    return pd.DataFrame(rows)


def _surprise(openings: Openings, row: int, small: Model, prompt: list[int]) -> list[float]:
    """The surprise that the small model accumulates up to each token of the opening where tokens of both end."""
    n = len(openings.rows[row])
    surprise = [math.nan] * n
    tokens = opening_tokens(small, openings, [row], [n])
    if not tokens[0]:
        return surprise
    ((mine, theirs),) = shared_places(small, openings, [row], [n], tokens)
    of_small = Prefix.read(small, [*prompt, *tokens[0]]).surprise[len(prompt) - 1 :]
    start = 0
    for position, end in zip(mine.tolist(), theirs.tolist(), strict=True):
        surprise[position] = float(of_small[start : end + 1].sum())
        start = end + 1
    return surprise


def _drift(hand_off: LatentHandOff, openings: Openings, row: int) -> list[float]:
    """The percentile of each mapped state."""
    opening: Opening = openings.rows[row]
    states: Float[Tensor, "n d"] = hand_off.mapped(openings, row, len(opening))
    return hand_off.drift_of(states)
