"""The table of a sweep: how often each hand-off, stop and condition was right, at what cost, and better than what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from latentcomm._core.stats import Scores, mcnemar_exact, paired_bootstrap, proportion_interval
from latentcomm.experiments.cascade.hand_offs import RANDOM
from latentcomm.experiments.cascade.trials import CONDITIONS, LARGE_ALONE, OTHER, SMALL_ALONE, CascadeTrial
from latentcomm.experiments.evaluation import MESSAGE

NAN = float("nan")
INTERVALS = (
    "flops_low",
    "flops_high",
    *(f"over_{name}{end}" for name in ("small", "large") for end in ("", "_low", "_high")),
)
Key = tuple[str, str, str]
"""Hand-off, stop, condition."""


def cascade_table(
    trials: Sequence[CascadeTrial], *, groups: Mapping[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """One row a hand-off, stop and condition.

    Columns: hand_off, stop, condition; n items, of which `correct`, and accuracy with its 95 % Wilson interval (low,
    high); parsed, the share with an answer at all; tokens, the mean n of the opening; fired, finished and in_opening,
    shares of items whose stop fired, whose opening was the whole reply, and whose opening held an accepted answer
    already; of the items that were not finished, which alone the small model went on with, the number and accuracy
    (handed_n, handed_accuracy, handed_low, handed_high), and on those that are finished under neither what another
    item's opening gave, with the exact McNemar p-value (handed_other, p_handed); the same of the items without such an
    answer (without_n, without_accuracy, without_low, without_high), and the two models alone on these items, which are
    not like the others (without_small, without_large); large_flops, small_flops and flops, means an item, and the 95 %
    bootstrap interval of the last (flops_low, flops_high); reply_tokens, votes, entropy, margin, surprise and drift,
    means of the trials that have them; the paired differences to the two models alone with 95 % bootstrap intervals
    (over_small, over_small_low, over_small_high, over_large, over_large_low, over_large_high); the exact McNemar
    p-values against the small model alone, the large model alone, and the same hand-off and stop with another item's
    opening or with random states of the same norms (p_small, p_large, p_other, p_random), not corrected for the number
    of comparisons. What does not apply is NaN. An oracle's row was chosen by the answers, so that its p-values and
    differences test nothing.

    With `groups` (item to group) the bootstrap draws whole groups of items; Wilson intervals and McNemar tests take
    every item for itself.

    Raises:
        ValueError: trials of different items, an item twice under one name, or an item of no group.
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
    if groups is not None and (lost := [item for item in items if item not in groups]):
        raise ValueError(f"item {lost[0]!r} is in no group; give every item one")
    ones = {key[2]: rows for key, rows in answered.items() if key[2] in (SMALL_ALONE, LARGE_ALONE)}
    ordered = sorted(answered, key=lambda key: CONDITIONS.index(key[2]) > 1)  # the two alone first, else as they came
    bootstrap = _Bootstrap([groups[item] for item in items] if groups is not None else None, seed)
    return pd.DataFrame([_row(key, answered, ones, items, bootstrap) for key in ordered])


@dataclass(frozen=True)
class _Bootstrap:
    """Resampling of items, or of whole groups of them."""

    groups: Sequence[str] | None
    seed: int

    def __call__(self, name: str, a: Scores, b: Scores | None = None) -> dict[str, float]:
        """The mean difference of a to b, or of a alone, under `name`, and its interval."""
        if len(a if self.groups is None else set(self.groups)) < 2:
            return {}
        found = paired_bootstrap(a, [0.0] * len(a) if b is None else b, groups=self.groups, seed=self.seed)
        return {name: found.difference, f"{name}_low": found.low, f"{name}_high": found.high}


def _row(
    key: Key,
    answered: Mapping[Key, Mapping[str, CascadeTrial]],
    ones: Mapping[str, Mapping[str, CascadeTrial]],
    items: Sequence[str],
    bootstrap: _Bootstrap,
) -> dict[str, object]:
    trials = [answered[key][item] for item in items]
    right = [trial.free for trial in trials]
    hand_off, stop, condition = key
    row: dict[str, object] = {"hand_off": hand_off, "stop": stop, "condition": condition, "n": len(trials)}
    row |= {"correct": sum(right)} | _accuracy(right, "")
    row |= {"parsed": _mean([trial.parsed for trial in trials]), "tokens": _mean([trial.n for trial in trials])}
    row |= {name: _mean([getattr(trial, name) for trial in trials]) for name in ("fired", "finished")}
    row["in_opening"] = _mean([trial.answer_in_opening for trial in trials])
    row |= _accuracy([trial.free for trial in trials if not trial.finished], "handed_")
    other = answered.get((hand_off, stop, OTHER)) if condition == MESSAGE else None
    row |= _handed_other(trials, other)
    without = [trial for trial in trials if not trial.answer_in_opening]
    row |= _accuracy([trial.free for trial in without], "without_")
    for name, alone in (("small", SMALL_ALONE), ("large", LARGE_ALONE)):
        held = [ones[alone][trial.item].free for trial in without] if alone in ones else []
        row[f"without_{name}"] = _mean(held)
    means = ("large_flops", "small_flops", "flops", "reply_tokens", "votes", "entropy", "margin", "surprise", "drift")
    row |= {name: _mean([getattr(trial, name) for trial in trials]) for name in means}
    row |= dict.fromkeys(INTERVALS, NAN) | bootstrap("flops", [trial.flops for trial in trials])
    row |= dict.fromkeys(("p_small", "p_large", "p_other", "p_random"), NAN)
    for name, alone in (("small", SMALL_ALONE), ("large", LARGE_ALONE)):
        if condition != alone and alone in ones:
            base = [ones[alone][item].free for item in items]
            row[f"p_{name}"] = mcnemar_exact(right, base).p_value
            row |= bootstrap(f"over_{name}", right, base)
    for name in (OTHER, RANDOM) if condition == MESSAGE else ():
        if (control := answered.get((hand_off, stop, name))) is not None:
            row[f"p_{name}"] = mcnemar_exact(right, [control[item].free for item in items]).p_value
    return row


def _handed_other(trials: Sequence[CascadeTrial], other: Mapping[str, CascadeTrial] | None) -> dict[str, float]:
    """What another item's opening gave where the small model went on under both, and the test between the two."""
    both = [] if other is None else [
        (trial.free, other[trial.item].free) for trial in trials if not (trial.finished or other[trial.item].finished)
    ]  # fmt: skip
    if not both:
        return {"handed_other": NAN, "p_handed": NAN}
    mine, theirs = zip(*both, strict=True)
    return {"handed_other": _mean(theirs), "p_handed": mcnemar_exact(mine, theirs).p_value}


def _accuracy(right: Sequence[bool], name: str) -> dict[str, float | int]:
    """The share with its interval, and outside the first columns the number of items."""
    row: dict[str, float | int] = {f"{name}n": len(right)} if name else {}
    if not right:
        return row | dict.fromkeys((f"{name}accuracy", f"{name}low", f"{name}high"), NAN)
    low, high = proportion_interval(sum(right), len(right))
    return row | {f"{name}accuracy": sum(right) / len(right), f"{name}low": low, f"{name}high": high}


def _mean(values: Sequence[float | int | bool | None]) -> float:
    there = [float(value) for value in values if value is not None]
    return sum(there) / len(there) if there else NAN
