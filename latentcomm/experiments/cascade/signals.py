"""What is seen along the openings, token by token: of the large model's certainty, and of how the small takes it."""

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
"""How the columns of mapped states' drift begin; the hand-off's name follows."""


def token_signals(openings: Openings, small: Model, task: Task, hand_offs: Mapping[str, HandOff]) -> pd.DataFrame:
    """One row a token of every opening.

    Columns: item, token from 1, and `piece`, what it adds to the text; `entropy` (nats) and `margin` of the
    distribution that it was drawn from; `surprise`, -log p of it under the small model behind the item's prompt (nats),
    where a hand-off passes text; and of each latent hand-off with a drift reference `drift_NAME`, the percentile of the
    mapped state among the small model's own, 0.5 for real states and 1 for states unlike any.

    Between two tokenizers the surprise of what the small model reads up to a character where tokens of both end stands
    at the large model's token that ends there; at tokens that end elsewhere it is NaN.

    Raises:
        ValueError: the small model's tokenizer does not give an opening's text back.
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
    """What `token_signals` gives, read from the records where it is there.

    Raises:
        ValueError: as `token_signals`.
    """
    prompts = receiver_prompts(small, task)
    asked = [(ids_of(prompts, row), opening.ids) for row, opening in enumerate(openings.rows)]
    records = Records.of(
        folder, "signals", 1, list(prints), openings.items, asked, list(hand_offs), list(hand_offs.values())
    )
    found = records.values("tokens", lambda: token_signals(openings, small, task, hand_offs).to_dict("records"))
    return pd.DataFrame(found)


def _surprise(openings: Openings, row: int, small: Model, prompt: list[int]) -> list[float]:
    """Of each token of the opening what the small model's reading up to there adds, where both have an end."""
    n = len(openings.rows[row])
    found = [math.nan] * n
    told = opening_tokens(small, openings, [row], [n])
    if not told[0]:
        return found
    ((mine, theirs),) = shared_places(small, openings, [row], [n], told)
    along = Prefix.read(small, [*prompt, *told[0]]).surprise[len(prompt) - 1 :]
    begun = 0
    for place, end in zip(mine.tolist(), theirs.tolist(), strict=True):
        found[place] = float(along[begun : end + 1].sum())
        begun = end + 1
    return found


def _drift(hand_off: LatentHandOff, openings: Openings, row: int) -> list[float]:
    """The percentile of each mapped state."""
    opening: Opening = openings.rows[row]
    states: Float[Tensor, "n d"] = hand_off.mapped(openings, row, len(opening))
    return hand_off.drift_of(states)
