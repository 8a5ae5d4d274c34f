"""Signals along the openings, token by token: certainty of the large model, surprise and drift under the small one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latentcomm._core.records import Records
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade.hand_offs import HandOff, LatentHandOff, TextHandOff, states_of
from latentcomm.experiments.cascade.openings import ids_of, openings_of
from latentcomm.experiments.cascade.resume import ReadPrefix
from latentcomm.experiments.cascade.retokenize import opening_tokens, shared_positions
from latentcomm.models import Model
from latentcomm.tasks.base import Task

DRIFT = "drift_"
"""Prefix of the columns with the drift of mapped states; the hand-off's name follows."""


def token_signals(openings: Message, small: Model, task: Task, hand_offs: Mapping[str, HandOff]) -> pd.DataFrame:
    """One row a token of every opening of `write_openings`.

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
    surprise = _surprise(openings, small, task) if has_text else None
    drift = {
        f"{DRIFT}{name}": [each.drift_of(states) for states in states_of(each.content(openings))]
        for name, each in latent.items()
    }
    parts = []
    for row, (item, opening) in enumerate(zip(task.items, openings_of(openings), strict=True)):
        columns = {
            "item": item.id,
            "token": range(1, len(opening) + 1),
            "piece": opening.token_texts,
            "entropy": opening.entropy.tolist(),
            "margin": opening.margin.tolist(),
            "surprise": math.nan if surprise is None else surprise[row],
        }
        columns |= {name: of_rows[row] for name, of_rows in drift.items()}
        parts += [pd.DataFrame(columns)] if len(opening) else []
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def saved_signals(
    openings: Message,
    small: Model,
    task: Task,
    hand_offs: Mapping[str, HandOff],
    *,
    folder: Path | None,
    decisive: Sequence[Any],
) -> pd.DataFrame:
    """The table of `token_signals`, read from the records where it is saved there.

    Raises:
        ValueError: as `token_signals`.
    """
    prompts = receiver_prompts(small, task)
    inputs = [
        (item.id, ids_of(prompts, row), opening.ids)
        for row, (item, opening) in enumerate(zip(task.items, openings_of(openings), strict=True))
    ]
    records = Records.of(folder, "signals", 2, decisive, inputs, list(hand_offs), list(hand_offs.values()))
    rows = records.values("tokens", lambda: token_signals(openings, small, task, hand_offs).to_dict("records"))
    return pd.DataFrame(rows)


def _surprise(openings: Message, small: Model, task: Task) -> list[list[float]]:
    """The surprise that the small model accumulates up to each token of an opening where tokens of both end."""
    prompts, ns = receiver_prompts(small, task), [len(opening) for opening in openings_of(openings)]
    tokens = opening_tokens(small, task, openings, ns)
    found = []
    for row, (mine, theirs) in enumerate(shared_positions(small, openings, ns, tokens)):
        surprise = [math.nan] * ns[row]
        if tokens[row]:
            prompt = ids_of(prompts, row)
            of_small = ReadPrefix.read(small, [*prompt, *tokens[row]]).surprise[len(prompt) - 1 :]
            start = 0
            for position, end in zip(mine.tolist(), theirs.tolist(), strict=True):
                surprise[position] = float(of_small[start : end + 1].sum())
                start = end + 1
        found.append(surprise)
    return found
