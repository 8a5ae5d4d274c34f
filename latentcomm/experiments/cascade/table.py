"""The table of a sweep: accuracy, cost and comparisons of every hand-off, stop and condition."""

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

    - hand_off, stop, condition: the cell.
    - n, correct: items, and those that are right.
    - accuracy, low, high: the share of right items, with its 95 % Wilson interval.
    - parsed: the share of replies in which the judge finds an answer.
    - tokens: the mean n of the opening.
    - fired, finished, in_opening: the shares of items whose stop fired, whose opening was the whole reply, and whose
      opening contains an accepted answer.
    - handed_n, handed_accuracy, handed_low, handed_high: the items that were not finished, which alone the small model
      continued, and their accuracy with its interval.
    - handed_other, p_handed: on the items finished under neither, the accuracy with another item's opening, and the
      exact McNemar p-value of the difference.
    - without_n, without_accuracy, without_low, without_high: the items whose opening contains no accepted answer, and
      their accuracy with its interval.
    - without_small, without_large: the accuracy of the two models alone on these items, which are not like the others.
    - large_flops, small_flops, flops, flops_low, flops_high: means an item, and the 95 % bootstrap interval of the sum.
    - reply_tokens, votes, entropy, margin, surprise, drift: means of the trials that have them.
    - over_small, over_small_low, over_small_high, over_large, over_large_low, over_large_high: paired differences to
      the two models alone, with 95 % bootstrap intervals.
    - p_small, p_large, p_other, p_random: exact McNemar p-values against the small model alone, the large model alone,
      and the same hand-off and stop with another item's opening or with random states of the same norms, not corrected
      for the number of comparisons.

    NaN where a column does not apply. An oracle's row is chosen by the answers, so that its p-values and differences
    test nothing.

    With `groups` (item to group) the bootstrap draws whole groups of items; Wilson intervals and McNemar tests treat
    items as independent.

    Raises:
        ValueError: trials of different items, an item twice under one name, or an item of no group.
    """
    trials_of: dict[Key, dict[str, CascadeTrial]] = {}
    for trial in trials:
        rows = trials_of.setdefault((trial.hand_off, trial.stop, trial.condition), {})
        if trial.item in rows:
            raise ValueError(
                f"item {trial.item!r} occurs twice under {trial.hand_off}, {trial.stop}, {trial.condition}"
            )
        rows[trial.item] = trial
    items = list(next(iter(trials_of.values()), ()))
    if any(set(rows) != set(items) for rows in trials_of.values()):
        raise ValueError("the trials of some hand-offs, stops or conditions are of different items")
    if groups is not None and (missing := [item for item in items if item not in groups]):
        raise ValueError(f"item {missing[0]!r} is in no group; give every item one")
    alone = {key[2]: rows for key, rows in trials_of.items() if key[2] in (SMALL_ALONE, LARGE_ALONE)}
    ordered = sorted(trials_of, key=lambda key: CONDITIONS.index(key[2]) > 1)  # the two alone first, the rest in order
    bootstrap = _Bootstrap([groups[item] for item in items] if groups is not None else None, seed)
    return pd.DataFrame([_row(key, trials_of, alone, items, bootstrap) for key in ordered])


@dataclass(frozen=True)
class _Bootstrap:
    """Resampling of items, or of whole groups of them."""

    groups: Sequence[str] | None
    seed: int

    def __call__(self, name: str, a: Scores, b: Scores | None = None) -> dict[str, float]:
        """The mean difference of a to b, or of a alone, under `name`, and its interval."""
        if len(a if self.groups is None else set(self.groups)) < 2:
            return {}
        interval = paired_bootstrap(a, [0.0] * len(a) if b is None else b, groups=self.groups, seed=self.seed)
        return {name: interval.difference, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _row(
    key: Key,
    trials_of: Mapping[Key, Mapping[str, CascadeTrial]],
    alone: Mapping[str, Mapping[str, CascadeTrial]],
    items: Sequence[str],
    bootstrap: _Bootstrap,
) -> dict[str, object]:
    trials = [trials_of[key][item] for item in items]
    right = [trial.free for trial in trials]
    hand_off, stop, condition = key
    row: dict[str, object] = {"hand_off": hand_off, "stop": stop, "condition": condition, "n": len(trials)}
    row |= {"correct": sum(right)} | _accuracy(right, "")
    row |= {"parsed": _mean([trial.parsed for trial in trials]), "tokens": _mean([trial.n for trial in trials])}
    row |= {name: _mean([getattr(trial, name) for trial in trials]) for name in ("fired", "finished")}
    row["in_opening"] = _mean([trial.answer_in_opening for trial in trials])
    row |= _accuracy([trial.free for trial in trials if not trial.finished], "handed_")
    other = trials_of.get((hand_off, stop, OTHER)) if condition == MESSAGE else None
    row |= _handed_other(trials, other)
    without = [trial for trial in trials if not trial.answer_in_opening]
    row |= _accuracy([trial.free for trial in without], "without_")
    for name, model in (("small", SMALL_ALONE), ("large", LARGE_ALONE)):
        row[f"without_{name}"] = _mean([alone[model][trial.item].free for trial in without] if model in alone else [])
    means = ("large_flops", "small_flops", "flops", "reply_tokens", "votes", "entropy", "margin", "surprise", "drift")
    row |= {name: _mean([getattr(trial, name) for trial in trials]) for name in means}
    row |= dict.fromkeys(INTERVALS, NAN) | bootstrap("flops", [trial.flops for trial in trials])
    row |= dict.fromkeys(("p_small", "p_large", "p_other", "p_random"), NAN)
    for name, model in (("small", SMALL_ALONE), ("large", LARGE_ALONE)):
        if condition != model and model in alone:
            base = [alone[model][item].free for item in items]
            row[f"p_{name}"] = mcnemar_exact(right, base).p_value
            row |= bootstrap(f"over_{name}", right, base)
    for name in (OTHER, RANDOM) if condition == MESSAGE else ():
        if (control := trials_of.get((hand_off, stop, name))) is not None:
            row[f"p_{name}"] = mcnemar_exact(right, [control[item].free for item in items]).p_value
    return row


def _handed_other(trials: Sequence[CascadeTrial], other: Mapping[str, CascadeTrial] | None) -> dict[str, float]:
    """Accuracy with another item's opening where the small model continued under both, and the test between the two."""
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
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else NAN
