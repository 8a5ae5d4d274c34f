"""Trials about pictures as one table: a row a question, channel, condition and metric, with what it is better than."""

from collections.abc import Mapping, Sequence

import pandas as pd

from latentcomm.evaluation import MESSAGE, METRICS, NAN, Trial
from latentcomm.stats import mcnemar_exact, paired_bootstrap, proportion_interval

AGAINST = ("blind", "caption", "shuffled")
"""What every channel is held against: no picture, the same latents in words, its own message of another picture."""


def picture_table(trials: Mapping[tuple[str, str, str], Sequence[Trial]], *, seed: int = 0) -> pd.DataFrame:
    """One row a part, question, channel, condition and metric.

    Columns: part, question, type; channel, condition, metric; n, correct, accuracy with its 95 % Wilson interval (low,
    high), and chance, the accuracy of guessing among the choices; for "blind", "caption" and this channel's own
    "shuffled" picture the paired difference with its 95 % bootstrap interval over pictures (over_blind,
    over_blind_low, over_blind_high, ...) and the exact McNemar p-value (p_blind, ...), not corrected for the number of
    comparisons. What does not apply is NaN.

    Args:
        trials: by part, question and type of question, of all channels on the same pictures.
        seed: of the bootstrap.

    Raises:
        ValueError: channels that were asked about different pictures.
    """
    rows = []
    for (part, question, kind), given in trials.items():
        outcomes: dict[tuple[str, str], dict[str, Trial]] = {}
        for trial in given:
            outcomes.setdefault((trial.channel, trial.condition), {})[trial.item] = trial
        items = sorted(next(iter(outcomes.values()), ()))
        if any(sorted(answered) != items for answered in outcomes.values()):
            raise ValueError(f"the channels were asked {question!r} about different pictures of {part!r}")
        for channel, condition in outcomes:
            for metric in METRICS:
                facts = {"part": part, "question": question, "type": kind}
                rows.append(facts | _row(outcomes, channel, condition, metric, items, seed))
    return pd.DataFrame(rows)


def _row(
    outcomes: Mapping[tuple[str, str], Mapping[str, Trial]],
    channel: str,
    condition: str,
    metric: str,
    items: Sequence[str],
    seed: int,
) -> dict[str, object]:
    right = _right(outcomes[channel, condition], items, metric)
    low, high = proportion_interval(sum(right), len(right))
    row: dict[str, object] = {"channel": channel, "condition": condition, "metric": metric, "n": len(right)}
    row |= {"correct": sum(right), "accuracy": sum(right) / len(right), "low": low, "high": high}
    options = [outcomes[channel, condition][item].n_choices for item in items]
    row["chance"] = sum(1 / n for n in options) / len(options) if metric == "choices" and all(options) else NAN
    bases = {name: (name, MESSAGE) for name in AGAINST[:2] if name != channel} | {"shuffled": (channel, "shuffled")}
    for name in AGAINST:
        columns = (f"over_{name}", f"over_{name}_low", f"over_{name}_high", f"p_{name}")
        row |= dict.fromkeys(columns, NAN)
        if condition == MESSAGE and bases.get(name) in outcomes:
            base = _right(outcomes[bases[name]], items, metric)
            gain = paired_bootstrap(right, base, seed=seed)
            found = (gain.difference, gain.low, gain.high, mcnemar_exact(right, base).p_value)
            row |= dict(zip(columns, found, strict=True))
    return row


def _right(answered: Mapping[str, Trial], items: Sequence[str], metric: str) -> list[bool]:
    return [bool(getattr(answered[item], metric)) for item in items]
