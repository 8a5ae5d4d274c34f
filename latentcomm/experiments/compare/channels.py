"""Compare channels on the same items: accuracy with interval, paired tests against baselines, and costs."""

import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from latentcomm._core.stats import cost_front
from latentcomm.channels import Channel
from latentcomm.experiments.accuracy import BASELINES, accuracy_table, in_pairs, to_table, usual_baselines
from latentcomm.experiments.audit import audit
from latentcomm.experiments.controls import USUAL
from latentcomm.experiments.evaluation import MESSAGE, METRICS, Trial, evaluate
from latentcomm.models import Model
from latentcomm.tasks.base import Task

BY = ("channel", "condition")
COSTS = ("sender_flops", "receiver_flops", "message_bytes", "reply_tokens", "seconds", "flops")


@dataclass(frozen=True, eq=False)
class Comparison:
    """The results of a comparison.

    Attributes:
        table: one row a channel, condition and metric; see `compare_trials`.
        trials: every reply, item by item.
        audit: one row a channel and metric, content separated from presence; see `audit.audit`.
    """

    table: pd.DataFrame
    trials: list[Trial]
    audit: pd.DataFrame

    @classmethod
    def of(cls, trials: Sequence[Trial], *, seed: int = 0) -> "Comparison":
        """The comparison of trials on the same items."""
        return cls(compare_trials(trials, seed=seed), list(trials), audit(trials, seed=seed))

    def trial_table(self) -> pd.DataFrame:
        """One row a trial."""
        return to_table(self.trials)


def compare(
    channels: Sequence[Channel],
    sender: Model,
    receiver: Model,
    task: Task,
    *,
    n: int | None = None,
    seed: int = 0,
    controls: Sequence[str] = USUAL,
    reply_tokens: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    told: MutableMapping[str, Any] | None = None,
) -> Comparison:
    """Every channel on the same n items of a task (all by default), under its true message and its controls.

    With `checkpoint`, finished items are saved and not run again. Channels with the same message share it, also across
    calls with the same dict `told`.

    Raises:
        ValueError: no channel, two of one name, or an argument that `evaluate` refuses.
    """
    names = [channel.name for channel in channels]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the channels are named {names}; give at least one, and each a name of its own")
    trials: list[Trial] = []
    told = {} if told is None else told
    shared: dict[str, Any] = {"n": n, "seed": seed, "controls": controls, "checkpoint": checkpoint, "told": told}
    for channel in channels:
        trials += evaluate(channel, sender, receiver, task, reply_tokens=reply_tokens, **shared)
    return Comparison.of(trials, seed=seed)


def compare_trials(trials: Sequence[Trial], *, seed: int = 0) -> pd.DataFrame:
    """One row a channel, condition and metric of trials on the same items.

    Columns: channel, condition, metric, n, correct, accuracy with its 95 % Wilson interval (low, high); unparsed, the
    share of replies in which no answer was found (they count as not right). For each baseline ("silent", "text") and
    for this channel's own "shuffled" message the paired difference with its 95 % bootstrap interval over items
    (over_silent, over_silent_low, over_silent_high, ...) and the exact McNemar p-value (p_silent, ...), not corrected
    for the number of comparisons. Costs, means of an item: flops as run and its parts sender_flops and receiver_flops,
    message_bytes, reply_tokens, seconds. on_front: whether no other true message is as accurate for fewer operations.
    Columns that do not apply are NaN.

    Raises:
        ValueError: channels that were not evaluated on the same items, or share a name.
    """
    given = to_table(trials)
    given = given.assign(unparsed=~given["parsed"], flops=given["sender_flops"] + given["receiver_flops"])
    table = accuracy_table(
        in_pairs(given, BY),
        BY,
        against=(*BASELINES, "shuffled"),
        baselines=usual_baselines,
        means=("unparsed", *COSTS),
        seed=seed,
    )
    table = table[[*table.columns.drop(list(COSTS)), *COSTS]].assign(on_front=False)
    for metric in METRICS:
        part = table.loc[(table["condition"] == MESSAGE) & (table["metric"] == metric)]
        table.loc[cost_front(pd.DataFrame(part)).index, "on_front"] = True
    return table
