"""The table of a sweep: how often each hand-off, stop and condition was right, at what cost, and better than what."""

from collections.abc import Mapping, Sequence

import pandas as pd

from latentcomm.cascade.hand_offs import RANDOM
from latentcomm.cascade.trials import CONDITIONS, LARGE_ALONE, OTHER, SMALL_ALONE, CascadeTrial
from latentcomm.evaluation import MESSAGE
from latentcomm.stats import mcnemar_exact, paired_bootstrap, proportion_interval

NAN = float("nan")
Key = tuple[str, str, str]
"""Hand-off, stop, condition."""


def cascade_table(trials: Sequence[CascadeTrial], *, seed: int = 0) -> pd.DataFrame:
    """One row a hand-off, stop and condition.

    Columns: hand_off, stop, condition; n items, of which `correct`, and accuracy with its 95 % Wilson interval (low,
    high); parsed, the share with an answer at all; tokens, the mean n of the opening; fired, finished and in_opening,
    shares of items whose stop fired, whose opening was the whole reply, and whose opening held the answer already; the
    accuracy of the items without such an answer, with their number and interval (without_n, without_accuracy,
    without_low, without_high), and that of the small model alone on the same items, which are not like the others
    (without_small); large_flops, small_flops and flops, means an item; reply_tokens, votes, entropy, margin, surprise
    and drift, means of the trials that have them; the paired difference to the small model alone with its 95 %
    bootstrap interval over items (over_small, over_small_low, over_small_high); the exact McNemar p-values against the
    small model alone, the large model alone, and the same hand-off and stop with another item's opening or with random
    states of the same norms (p_small, p_large, p_other, p_random), not corrected for the number of comparisons. What
    does not apply is NaN. An oracle's row was chosen by the answers, so that its p-values and differences test nothing.

    Raises:
        ValueError: trials of different items, or an item twice under one name.
    """
    answered: dict[Key, dict[str, CascadeTrial]] = {}
    for trial in trials:
        rows = answered.setdefault((trial.hand_off, trial.stop, trial.condition), {})
        if trial.item in rows:
            raise ValueError(
                f"item {trial.item!r} stands twice under {trial.hand_off}, {trial.stop}, {trial.condition}"
            )
        rows[trial.item] = trial
    items = list(next(iter(answered.values()), ()))
    if any(set(rows) != set(items) for rows in answered.values()):
        raise ValueError("the trials of some hand-offs, stops or conditions are of different items")
    ones = {key[2]: rows for key, rows in answered.items() if key[2] in (SMALL_ALONE, LARGE_ALONE)}
    ordered = sorted(answered, key=lambda key: CONDITIONS.index(key[2]) > 1)  # the two alone first, else as they came
    return pd.DataFrame([_row(key, answered, ones, items, seed) for key in ordered])


def _row(
    key: Key,
    answered: Mapping[Key, Mapping[str, CascadeTrial]],
    ones: Mapping[str, Mapping[str, CascadeTrial]],
    items: Sequence[str],
    seed: int,
) -> dict[str, object]:
    trials = [answered[key][item] for item in items]
    right = [trial.free for trial in trials]
    without = [trial.free for trial in trials if not trial.answer_in_opening]
    hand_off, stop, condition = key
    row: dict[str, object] = {"hand_off": hand_off, "stop": stop, "condition": condition, "n": len(trials)}
    row |= {"correct": sum(right)} | _accuracy(right, "accuracy", "low", "high")
    row |= {"parsed": _mean([trial.parsed for trial in trials]), "tokens": _mean([trial.n for trial in trials])}
    row |= {name: _mean([getattr(trial, name) for trial in trials]) for name in ("fired", "finished")}
    row |= {"in_opening": _mean([trial.answer_in_opening for trial in trials]), "without_n": len(without)}
    row |= _accuracy(without, "without_accuracy", "without_low", "without_high")
    held = [trial.item for trial in trials if not trial.answer_in_opening]
    row["without_small"] = _mean([ones[SMALL_ALONE][item].free for item in held]) if SMALL_ALONE in ones else NAN
    means = ("large_flops", "small_flops", "flops", "reply_tokens", "votes", "entropy", "margin", "surprise", "drift")
    row |= {name: _mean([getattr(trial, name) for trial in trials]) for name in means}
    row |= dict.fromkeys(
        ("over_small", "over_small_low", "over_small_high", "p_small", "p_large", "p_other", "p_random"), NAN
    )
    if condition != SMALL_ALONE and (small := ones.get(SMALL_ALONE)) is not None:
        base = [small[item].free for item in items]
        row["p_small"] = mcnemar_exact(right, base).p_value
        if len(items) > 1:
            gain = paired_bootstrap(right, base, seed=seed)
            row |= {"over_small": gain.difference, "over_small_low": gain.low, "over_small_high": gain.high}
    if condition != LARGE_ALONE and (large := ones.get(LARGE_ALONE)) is not None:
        row["p_large"] = mcnemar_exact(right, [large[item].free for item in items]).p_value
    for name in (OTHER, RANDOM) if condition == MESSAGE else ():
        if (control := answered.get((hand_off, stop, name))) is not None:
            row[f"p_{name}"] = mcnemar_exact(right, [control[item].free for item in items]).p_value
    return row


def _accuracy(right: Sequence[bool], name: str, low: str, high: str) -> dict[str, float]:
    if not right:
        return dict.fromkeys((name, low, high), NAN)
    interval = proportion_interval(sum(right), len(right))
    return {name: sum(right) / len(right), low: interval[0], high: interval[1]}


def _mean(values: Sequence[float | int | None]) -> float:
    there = [float(value) for value in values if value is not None]
    return sum(there) / len(there) if there else NAN
