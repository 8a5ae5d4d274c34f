"""Trials about pictures as one table: a row per question, channel, condition and metric, with comparisons."""

from collections.abc import Mapping, Sequence

import pandas as pd

from latentcomm._core.stats import mcnemar_exact, paired_bootstrap, proportion_interval
from latentcomm.experiments.crossmodal.probe import PROBE
from latentcomm.experiments.evaluation import MESSAGE, METRICS, NAN, Trial

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

DRIFT = ("drift", "drift_above_95")


def picture_table(
    trials: Mapping[tuple[str, str, str], Sequence[Trial]],
    *,
    groups: Mapping[str, str] | None = None,
    drift: Mapping[tuple[str, str, str], Mapping[str, float]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per part, question, channel, condition and metric.

    Columns: part, question, type; channel, condition, metric; n, correct, accuracy with its 95 % Wilson interval (low,
    high), and chance, the accuracy of guessing among the choices; for each of `AGAINST` (channels; under
    "random_encoder" and "wrong_names" this channel's own of `OWN_CONTROLS`; under "shuffled" its own message of another
    picture) the paired difference with its 95 % bootstrap interval (over_silent, over_silent_low, over_silent_high,
    ...) and the exact McNemar p-value (p_silent, ...), not corrected for the number of comparisons; units, how many
    groups of pictures the bootstrap draws from; drift and drift_above_95, how far the
    output of the channel's map is from the receiver's own states (`diagnostics.combined_drift`). What does not
    apply is NaN.

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
    rows = []
    for (part, question, kind), given in trials.items():
        outcomes: dict[tuple[str, str], dict[str, Trial]] = {}
        for trial in given:
            outcomes.setdefault((trial.channel, trial.condition), {})[trial.item] = trial
        items = sorted(next(iter(outcomes.values()), ()))
        if any(sorted(answered) != items for answered in outcomes.values()):
            raise ValueError(
                f"the channels have trials of different items for {question!r} of {part!r}; run all on the same"
            )
        if groups is not None and (without := [item for item in items if item not in groups]):
            raise ValueError(f"the item {without[0]!r} is in no group; give every item one")
        drawn = items if groups is None else [groups[item] for item in items]
        for channel, condition in outcomes:
            for metric in METRICS:
                facts = {"part": part, "question": question, "type": kind}
                far = (drift or {}).get((part, question, channel)) if condition == MESSAGE else None
                row = _row(outcomes, channel, condition, metric, items, drawn, seed)
                rows.append(facts | row | dict(far or dict.fromkeys(DRIFT, NAN)))
    return pd.DataFrame(rows)


def _row(
    outcomes: Mapping[tuple[str, str], Mapping[str, Trial]],
    channel: str,
    condition: str,
    metric: str,
    items: Sequence[str],
    groups: Sequence[str],
    seed: int,
) -> dict[str, object]:
    right = _right(outcomes[channel, condition], items, metric)
    low, high = proportion_interval(sum(right), len(right))
    row: dict[str, object] = {"channel": channel, "condition": condition, "metric": metric, "n": len(right)}
    row |= {"correct": sum(right), "accuracy": sum(right) / len(right), "low": low, "high": high}
    options = [outcomes[channel, condition][item].n_choices for item in items]
    row["chance"] = sum(1 / n for n in options) / len(options) if metric == "choices" and all(options) else NAN
    row["units"] = len(set(groups))
    bases = {name: (name, MESSAGE) for name in ("silent", *CAPTIONS, PROBE) if name != channel}
    bases |= {name: (own, MESSAGE) for name, own in OWN_CONTROLS.get(channel, {}).items()}
    bases["shuffled"] = channel, "shuffled"
    for name in AGAINST:
        columns = (f"over_{name}", f"over_{name}_low", f"over_{name}_high", f"p_{name}")
        row |= dict.fromkeys(columns, NAN)
        if condition == MESSAGE and bases.get(name) in outcomes:
            base = _right(outcomes[bases[name]], items, metric)
            found = (*_gain(right, base, groups, seed), mcnemar_exact(right, base).p_value)
            row |= dict(zip(columns, found, strict=True))
    return row


def _gain(right: Sequence[bool], base: Sequence[bool], groups: Sequence[str], seed: int) -> tuple[float, float, float]:
    """The difference and its interval, NaN for a single group."""
    if len(set(groups)) < 2:
        return (sum(right) - sum(base)) / len(right), NAN, NAN
    gain = paired_bootstrap(right, base, groups=groups, seed=seed)
    return gain.difference, gain.low, gain.high


def _right(answered: Mapping[str, Trial], items: Sequence[str], metric: str) -> list[bool]:
    return [bool(getattr(answered[item], metric)) for item in items]
