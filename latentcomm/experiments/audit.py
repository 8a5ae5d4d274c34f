"""What of a channel's effect is the content of its message, and what the mere presence of one."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from latentcomm._core.stats import PairedDifference, proportion_interval
from latentcomm.channels.catalogue import SENDER_ALONE
from latentcomm.experiments.accuracy import NAN, Key, differences, in_pairs, mean, to_table, verdicts
from latentcomm.experiments.controls import FILLER, SELF, SHUFFLED
from latentcomm.experiments.evaluation import MESSAGE, METRICS

__all__ = ["DERANGED", "EFFECTS", "NEEDED", "audit", "effect", "verdict"]

SILENT = "silent"
NEEDED = (SILENT, SENDER_ALONE)
"""The channels that an audit needs beside those that it audits."""
DERANGED = "deranged"
"""The condition in which a channel sends the true message with what it learned from other items' messages."""
EFFECTS: Mapping[str, tuple[str, str]] = {
    "total": (MESSAGE, SILENT),
    "presence": (SHUFFLED, SILENT),
    "content": (MESSAGE, SHUFFLED),
    "over_self": (MESSAGE, SELF),
    "over_filler": (MESSAGE, FILLER),
    "over_deranged": (MESSAGE, DERANGED),
}
"""Each effect as the difference of two conditions; `silent` is the receiver alone."""
_INSTEAD = {
    "over_self": "the receiver's own reading",
    "over_filler": "a filler",
    "over_deranged": "what training on other items' messages gives",
}


def audit(trials: Iterable[Any], *, units: Mapping[str, str] | None = None, seed: int = 0) -> pd.DataFrame:
    """One row a channel and metric with a control: how much of its effect is content, and a sentence that says so.

    `total` is the accuracy with the message less that of the silent receiver, `presence` that with another item's
    message less the silent one's, and `content` that with the message less that with another item's, so that
    total = presence + content. `over_self` is the gain over the receiver's own reading sent by the same channel,
    `over_filler` over a message about nothing, `over_deranged` over the same channel trained on other items' messages.
    Each is a paired difference with its 95 % bootstrap interval (total_low, total_high, ...). `follow` is how often the
    receiver gives the answer of the wrong message that it got, with its 95 % Wilson interval (follow_low, follow_high);
    `chance`, beside it, is how often the same replies give the answer of an item of another answer drawn at random.
    Columns before these: channel, metric, n; the last is `verdict`. What was not run is NaN.

    Args:
        trials: of `evaluate`, of any number of channels on the same items.
        units: of each item, the unit that the bootstrap draws; every item is its own where None.
        seed: of the bootstrap.

    Raises:
        ValueError: channels that were not evaluated on the same items, or share a name.

    >>> from latentcomm.experiments.evaluation import Trial
    >>> def trial(item, channel, condition, free):
    ...     return Trial(str(item), "a", channel, condition, "", free, "", None, 0)
    >>> rows = [trial(i, "silent", "message", i % 4 == 0) for i in range(40)]
    >>> rows += [trial(i, "replace", "message", i % 4 < 3) for i in range(40)]
    >>> rows += [trial(i, "replace", "shuffled", i % 4 == 0) for i in range(40)]
    >>> audit(rows)["verdict"][0]
    'content: +.50 [.35, .65]; no presence is shown: .00 [-.09, .09]'
    """
    groups = in_pairs(to_table(trials), ("channel", "condition"))
    rows: list[dict[str, Any]] = []
    pairs: dict[tuple[int, str], Any] = {}
    for channel in dict.fromkeys(channel for channel, _ in groups):
        conditions = {condition for name, condition in groups if name == channel}
        if conditions == {MESSAGE}:  # a baseline
            continue
        for metric in METRICS:
            found = {name: _verdicts(groups, _group(channel, name), metric) for name in {MESSAGE, *_CONDITIONS}}
            if (right := found[MESSAGE]) is None:
                continue
            row: dict[str, Any] = {"channel": channel, "metric": metric, "n": len(right)}
            for name, (one, other) in EFFECTS.items():
                row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), NAN)
                if found[one] is not None and found[other] is not None:
                    pairs[len(rows), name] = found[one], found[other]
            rows.append(row | _follow(groups.get((channel, SHUFFLED)), metric))
    items = next(iter(groups.values()))["item"].tolist() if groups else []
    for (at, name), gain in zip(pairs, differences(list(pairs.values()), items, units=units, seed=seed), strict=True):
        low, high = _where_nothing_differs(gain) if gain.low == gain.high else (gain.low, gain.high)
        rows[at] |= {name: gain.difference, f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame([row | {"verdict": verdict(row)} for row in rows])


def _where_nothing_differs(gain: PairedDifference) -> tuple[float, float]:
    """The interval of a difference that is the same in all n units, of which a bootstrap gives a point.

    By Clopper and Pearson, at least the share .025^(1/n) of all units is so; the others may differ in either direction
    from no difference, or by 2 from one.
    """
    most = 1 - 0.025 ** (1 / gain.n)
    if gain.difference == 0:
        return -most, most
    return (max(-1.0, gain.difference - 2 * most), gain.difference) if gain.difference > 0 else (
        gain.difference, min(1.0, gain.difference + 2 * most)
    )  # fmt: skip


_CONDITIONS = tuple(dict.fromkeys(name for pair in EFFECTS.values() for name in pair))


def _group(channel: str, condition: str) -> Key:
    return (SILENT, MESSAGE) if condition == SILENT else (channel, condition)


def _verdicts(groups: Mapping[Key, pd.DataFrame], key: Key, metric: str) -> list[bool] | None:
    return verdicts(groups[key], metric) if key in groups else None


def _follow(trials: pd.DataFrame | None, metric: str) -> dict[str, float]:
    """How often the answer of the wrong message is given, and how often it would be by chance."""
    followed = None if trials is None else verdicts(trials, f"follows_{metric}")
    if trials is None or not followed:
        return dict.fromkeys(("follow", "follow_low", "follow_high", "chance"), NAN)
    low, high = proportion_interval(sum(followed), len(followed))
    return {
        "follow": sum(followed) / len(followed), "follow_low": low, "follow_high": high,
        "chance": mean(trials[f"chance_{metric}"]),
    }  # fmt: skip


def verdict(row: Mapping[str, Any]) -> str:
    """What the intervals of an audit's row show, in one sentence.

    An effect is shown where its interval leaves out 0. That none is shown is no proof that there is none: the interval
    says how large it may be.
    """
    if not math.isnan(row["content"]) and math.isnan(row["content_low"]):
        return "one item, or one group of them, gives no interval"
    if math.isnan(row["content"]):
        total = "" if math.isnan(row["total"]) else f"; total: {effect(row, 'total')}"
        return f"content is not known without another item's message{total}"
    content, presence = _sign(row, "content"), _sign(row, "presence")
    sentence = {
        1: f"content: {effect(row, 'content')}",
        0: f"no content is shown: {effect(row, 'content')}",
        -1: f"another item's message does better: {effect(row, 'content')}",
    }[content]
    if not math.isnan(row["presence"]):
        sentence += {
            1: f"; presence: {effect(row, 'presence')}",
            0: f"; no presence is shown: {effect(row, 'presence')}",
            -1: f"; the presence of a wrong message harms: {effect(row, 'presence')}",
        }[presence]
    for name, instead in _INSTEAD.items():
        if not math.isnan(row[name]) and _sign(row, name) < 1 and (content > 0 or presence > 0):
            sentence += f"; no more than {instead} is shown: {effect(row, name)}"
    return sentence


def _sign(row: Mapping[str, Any], name: str) -> int:
    """1 or -1 where the interval of an effect is above or below 0, else 0."""
    return (row[f"{name}_low"] > 0) - (row[f"{name}_high"] < 0)


def effect(row: Mapping[str, Any], name: str) -> str:
    """An effect of a row with its interval.

    >>> effect({"total": 0.314, "total_low": -0.02, "total_high": 0.4}, "total")
    '+.31 [-.02, .40]'
    """

    def short(value: float, sign: str = "") -> str:
        if math.isnan(value):
            return "?"
        return f"{value:{sign}.2f}".replace("0.", ".") if abs(value) >= 0.005 else ".00"

    return f"{short(row[name], '+')} [{short(row[f'{name}_low'])}, {short(row[f'{name}_high'])}]"
