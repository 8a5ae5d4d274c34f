"""The table of a sweep: accuracy, cost and comparisons of every hand-off, stop and condition."""

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from latentcomm._core.stats import mcnemar_exact
from latentcomm.experiments.accuracy import (
    NAN,
    Key,
    accuracy_table,
    differences,
    in_pairs,
    mean,
    share,
    to_table,
)
from latentcomm.experiments.cascade.hand_offs import RANDOM
from latentcomm.experiments.cascade.trials import CONDITIONS, LARGE_ALONE, OTHER, SMALL_ALONE, CascadeTrial
from latentcomm.experiments.evaluation import MESSAGE

BY = ("channel", "stop", "condition")
ALONE = {"small": SMALL_ALONE, "large": LARGE_ALONE}
"""The two models alone, by their names in columns."""


def cascade_table(
    trials: Sequence[CascadeTrial], *, groups: Mapping[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """One row a hand-off, stop and condition, the two models alone first, with the columns of `COLUMNS`.

    NaN where a column does not apply. An oracle's row is chosen by the answers, so that its p-values and differences
    test nothing.

    With `groups` (item to group) the bootstrap draws whole groups of items; Wilson intervals and McNemar tests treat
    items as independent.

    Raises:
        ValueError: trials of different items, an item twice under one name, or an item of no group.
    """
    given = to_table(trials)
    given["n_tokens"] = given["n"]
    given["flops"] = given["sender_flops"] + given["receiver_flops"]
    pairs = in_pairs(given, BY)
    alone = {name: key for name, model in ALONE.items() for key in pairs if key[-1] == model}
    table = accuracy_table(
        pairs,
        BY,
        against=(*ALONE, OTHER, RANDOM),
        baselines=partial(_baselines, alone),
        metrics=("free",),
        means=MEANS,
        units=groups,
        seed=seed,
    )
    costs = [rows["flops"].tolist() for rows in pairs.values()]
    items = given["item"].unique().tolist()
    intervals = differences([(cost, [0.0] * len(cost)) for cost in costs], items, units=groups, seed=seed)
    for column, name in RENAMED.items():
        table[name] = table[column]
    table["flops_low"], table["flops_high"] = ([getattr(each, end) for each in intervals] for end in ("low", "high"))
    table = table.join(pd.DataFrame([_handed(key, pairs) | _without(pairs[key], alone, pairs) for key in pairs]))
    of_messages = [CONDITIONS.index(condition) > 1 for condition in table["condition"]]
    order = sorted(range(len(table)), key=of_messages.__getitem__)
    return table.loc[order, list(COLUMNS)].reset_index(drop=True)


def _baselines(alone: Mapping[str, Key], hand_off: str, stop: str, condition: str) -> dict[str, Key]:
    """The two models alone, and of a message its two controls."""
    models = {name: key for name, key in alone.items() if ALONE[name] != condition}
    return models | ({name: (hand_off, stop, name) for name in (OTHER, RANDOM)} if condition == MESSAGE else {})


def _handed(key: Key, pairs: Mapping[Key, pd.DataFrame]) -> dict[str, float | int]:
    """Accuracy where the small model continued, and the test against another item's opening where it did under both."""
    hand_off, stop, condition = key
    trials = pairs[key][["free", "finished"]].to_numpy().tolist()
    row = _part([free for free, finished in trials if not finished], "handed")
    row |= {"handed_other": NAN, "p_handed": NAN}
    other = pairs.get((hand_off, stop, OTHER)) if condition == MESSAGE else None
    if other is None:
        return row
    others = other[["free", "finished"]].to_numpy().tolist()
    both = [(mine, its) for (mine, done), (its, its_done) in zip(trials, others, strict=True) if not (done or its_done)]
    if both:
        mine, its = zip(*both, strict=True)
        row |= {"handed_other": mean(its), "p_handed": mcnemar_exact(mine, its).p_value}
    return row


def _without(
    trials: pd.DataFrame, alone: Mapping[str, Key], pairs: Mapping[Key, pd.DataFrame]
) -> dict[str, float | int]:
    """Accuracy where the opening has no accepted answer, and that of the two models alone on the same items."""
    holds = trials["answer_in_opening"].tolist()

    def right(rows: pd.DataFrame) -> list[bool]:
        return [free for free, held in zip(rows["free"].tolist(), holds, strict=True) if not held]

    models = {f"without_{name}": mean(right(pairs[alone[name]])) if name in alone else NAN for name in ALONE}
    return _part(right(trials), "without") | models


def _part(right: Sequence[bool], name: str) -> dict[str, float | int]:
    """How many trials these are, and their accuracy with its interval."""
    return {f"{name}_n": len(right)} | {f"{name}_{column}": value for column, value in share(right).items()}


RENAMED = {
    "channel": "hand_off",
    "n_tokens": "tokens",
    "answer_in_opening": "in_opening",
    "sender_flops": "large_flops",
    "receiver_flops": "small_flops",
}
"""The columns of this table that are called otherwise than those of the trials."""
MEANS = (
    "parsed", "n_tokens", "fired", "finished", "answer_in_opening", "sender_flops", "receiver_flops", "flops",
    "reply_tokens", "votes", "entropy", "margin", "surprise", "drift",
)  # fmt: skip
COLUMNS = {
    "hand_off": "the hand-off; none for the two models alone",
    "stop": "the stop",
    "condition": "which opening passed",
    "n": "items",
    "correct": "items that are right",
    "accuracy": "the share of right items",
    "low": "its 95 % Wilson interval",
    "high": "",
    "parsed": "the share of replies in which the judge finds an answer",
    "tokens": "the mean length of the opening",
    "fired": "the share of items whose stop fired",
    "finished": "the share of items whose opening was the whole reply",
    "in_opening": "the share of items whose opening contains an accepted answer",
    "handed_n": "items that were not finished, which alone the small model continued",
    "handed_accuracy": "their accuracy",
    "handed_low": "its 95 % Wilson interval",
    "handed_high": "",
    "handed_other": "on the items finished under neither, the accuracy with another item's opening",
    "p_handed": "the exact McNemar p-value of that difference",
    "without_n": "items whose opening contains no accepted answer",
    "without_accuracy": "their accuracy",
    "without_low": "its 95 % Wilson interval",
    "without_high": "",
    "without_small": "the accuracy of the small model alone on these items, which are not like the others",
    "without_large": "the accuracy of the large model alone on these items",
    "large_flops": "operations of the large model, a mean an item",
    "small_flops": "operations of the small model, a mean an item",
    "flops": "their sum",
    "reply_tokens": "tokens that the small model generated, a mean of the trials that have it, as are those below",
    "votes": "sampled replies of a vote",
    "entropy": "of the end of the opening, nats",
    "margin": "of the end of the opening",
    "surprise": "of the opening under the small model, nats a token",
    "drift": "of the states that enter",
    "flops_low": "the 95 % bootstrap interval of flops",
    "flops_high": "",
    "over_small": "the paired difference to the small model alone",
    "over_small_low": "its 95 % bootstrap interval",
    "over_small_high": "",
    "over_large": "the paired difference to the large model alone",
    "over_large_low": "its 95 % bootstrap interval",
    "over_large_high": "",
    "p_small": "the exact McNemar p-value against the small model alone, not corrected, as are those below",
    "p_large": "against the large model alone",
    "p_other": "against the same hand-off and stop with another item's opening",
    "p_random": "against the same with random states of the same norms",
}
"""The columns of a cascade's table in their order, and what each holds."""
