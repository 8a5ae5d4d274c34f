"""Accuracy on pictures: a row per question, channel, condition and metric, with comparisons."""

from collections.abc import Mapping, Sequence

import pandas as pd

from latentcomm.experiments.accuracy import NAN, Key, accuracy_table, in_pairs, to_table
from latentcomm.experiments.crossmodal.probe import PROBE
from latentcomm.experiments.evaluation import MESSAGE, Trial

CAPTIONS = ("caption", "caption_by_map", "caption_by_word")
"""The channels that send the same latents as text."""
AGAINST = ("silent", *CAPTIONS, PROBE, "random_encoder", "wrong_names", "shuffled")
"""What a channel is compared with: no picture, the same latents as text, a classifier of them that has seen answers, an
untrained encoder, maps fitted to wrong names, and its own message of another picture."""
OWN_CONTROLS = {
    "soft_prompt": {"random_encoder": "random_encoder", "wrong_names": "shuffled_names"},
    "soft_prompt_trained": {"wrong_names": "trained_other_pictures"},
    "graft": {"random_encoder": "graft_random_encoder", "wrong_names": "graft_shuffled_names"},
}
"""The channels that differ only in what they are fitted to: no other channel is compared with them."""

BY = ("channel", "condition")
DRIFT = ("drift", "drift_above_95")
FIRST = ("part", "question", "type", *BY, "metric", "n", "correct", "accuracy", "low", "high", "chance", "units")
"""The columns before the comparisons."""


def picture_table(
    trials: Mapping[tuple[str, str, str], Sequence[Trial]],
    *,
    groups: Mapping[str, str] | None = None,
    drift: Mapping[tuple[str, str, str], Mapping[str, float]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per part, question, channel, condition and metric.

    Columns: part, question, type; channel, condition, metric; n, correct, accuracy with its 95 % Wilson interval (low,
    high); chance, the accuracy of guessing among the choices; units, how many groups of pictures the bootstrap draws
    from; for each of `AGAINST` (channels; under "random_encoder" and "wrong_names" this channel's own of
    `OWN_CONTROLS`; under "shuffled" its own message of another picture) the comparison of `accuracy.accuracy_table`
    (over_silent, over_silent_low, over_silent_high, p_silent, ...); drift and drift_above_95, how far the output of the
    channel's map is from the receiver's own states (`diagnostics.combined_drift`). What does not apply is NaN.

    The bootstrap draws whole groups, since views of one drawing are right or wrong together. McNemar's test and the
    Wilson interval treat all pictures as independent of each other: where groups hold several pictures, their p-values
    are too small and their intervals too short, and the bootstrap's interval is the one to read.

    Args:
        trials: by part, question and type of question, of all channels on the same pictures.
        groups: of each trial's item; None makes every item its own group.
        drift: by part, question and channel.
        seed: of the bootstrap.

    Raises:
        ValueError: channels with different items, or an item without a group.
    """
    tables = []
    for (part, question, kind), given in trials.items():
        answered = to_table(sorted(given, key=lambda trial: trial.item))
        answered["chance"] = [1 / n if n else NAN for n in answered["n_choices"]]
        pairs = in_pairs(answered, BY)
        table = accuracy_table(
            pairs, BY, against=AGAINST, baselines=_baselines, means=("chance",), units=groups, seed=seed
        )
        table.loc[table["metric"] != "choices", "chance"] = NAN
        items = dict.fromkeys(answered["item"].tolist())
        n_units = len(items if groups is None else {groups[item] for item in items})
        far = [
            (drift or {}).get((part, question, channel), {}) if condition == MESSAGE else {}
            for channel, condition in zip(table["channel"], table["condition"], strict=True)
        ]
        shifts = {column: [each.get(column, NAN) for each in far] for column in DRIFT}
        tables.append(table.assign(part=part, question=question, type=kind, units=n_units, **shifts))
    table = pd.concat(tables, ignore_index=True)
    return table.reindex(columns=[*FIRST, *table.columns.drop(list(FIRST))])


def _baselines(channel: str, condition: str) -> dict[str, Key]:
    if condition != MESSAGE:
        return {}
    baselines = {name: (name, MESSAGE) for name in ("silent", *CAPTIONS, PROBE) if name != channel}
    baselines |= {name: (own, MESSAGE) for name, own in OWN_CONTROLS.get(channel, {}).items()}
    return baselines | {"shuffled": (channel, "shuffled")}
