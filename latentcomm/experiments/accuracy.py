"""How often trials are right: one table of all trials, and from it shares, intervals and paired tests by group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from latentcomm._core.stats import PairedDifference, Scores, mcnemar_exact, paired_bootstraps, proportion_interval
from latentcomm.experiments.evaluation import MESSAGE, METRICS, Trial

NAN = float("nan")
Key = tuple[str, ...]
"""A group of trials: its value of each factor, such as channel and condition."""
BASELINES = ("silent", "text")
"""Channels with which every other is compared, item by item, where they were run."""
COLUMNS = tuple(field.name for field in fields(Trial))
"""The columns of every table of trials."""


def to_table(trials: Iterable[Any], **factors: str) -> pd.DataFrame:
    """One row a trial of any experiment: the columns of `Trial`, then the trial's other fields, then `factors`.

    NaN where an experiment does not record a column.

    >>> trial = Trial("kilimanjaro", "Tanzania", "replace", "message", "Tanzania", True, "", None, 0)
    >>> to_table([trial], part="test")[["item", "channel", "free", "part"]].values.tolist()
    [['kilimanjaro', 'replace', True, 'test']]
    """
    rows = [vars(trial) for trial in trials]
    columns = dict.fromkeys([*COLUMNS, *(rows[0] if rows else ())])
    return pd.DataFrame(rows, columns=pd.Index(columns)).assign(**factors)


def in_pairs(table: pd.DataFrame, by: Sequence[str]) -> dict[Key, pd.DataFrame]:
    """The trials of each group by its values of the factors `by`, with the same items in the same order in every group.

    Raises:
        ValueError: groups of different items, or an item twice in one.
    """
    rows_of: dict[Key, list[int]] = {}
    for row, key in enumerate(zip(*(table[name].tolist() for name in by), strict=True)):
        rows_of.setdefault(key, []).append(row)
    groups: dict[Key, pd.DataFrame] = {}
    for key, rows in rows_of.items():
        group = table.iloc[rows].set_index("item", drop=False)
        if not group.index.is_unique:
            raise ValueError(
                f"item {group.index[group.index.duplicated()][0]!r} occurs twice under {', '.join(key)}; give each "
                "group a name of its own, and each of its trials once"
            )
        items = next(iter(groups.values()), group).index
        if set(group.index) != set(items):
            raise ValueError(
                f"the trials under {', '.join(key)} and under {', '.join(next(iter(groups)))} are of different items "
                "and cannot be compared in pairs"
            )
        groups[key] = group.loc[items]
    return groups


def accuracy_table(
    groups: Mapping[Key, pd.DataFrame],
    by: Sequence[str],
    *,
    against: Sequence[str] = (),
    baselines: Callable[..., Mapping[str, Key]] = lambda *_: {},
    metrics: Sequence[str] = METRICS,
    means: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a group and metric that all its trials have: its accuracy, and paired comparisons with other groups.

    Columns: the factors `by`; metric; n, correct, accuracy with its 95 % Wilson interval (low, high); the mean of each
    column of `means`; for each NAME of `against` the paired difference with its 95 % bootstrap interval (over_NAME,
    over_NAME_low, over_NAME_high) and the exact McNemar p-value (p_NAME), not corrected for the number of comparisons.
    NaN where a comparison does not apply, or where an interval has a single unit.

    Args:
        groups: see `in_pairs`.
        by: the names of a key's values.
        against: the names of the comparisons.
        baselines: from the values of a group's key, the group that each comparison is with, where it has one.
        metrics: columns of right and wrong.
        means: columns of numbers.
        units: of each item, the unit that the bootstrap draws; every item is its own where None.
        seed: of the bootstrap.
    """
    rows: list[dict[str, object]] = []
    pairs: dict[tuple[int, str], tuple[list[bool], list[bool]]] = {}
    for key, trials in groups.items():
        others = {name: groups[other] for name, other in baselines(*key).items() if other in groups}
        for metric in metrics:
            if (right := verdicts(trials, metric)) is None:
                continue
            row: dict[str, object] = dict(zip(by, key, strict=True))
            row |= {"metric": metric, "n": len(right), "correct": sum(right)} | share(right)
            row |= {name: mean(trials[name]) for name in means}
            for name in against:
                row |= dict.fromkeys((f"over_{name}", f"over_{name}_low", f"over_{name}_high", f"p_{name}"), NAN)
                if name in others and (base := verdicts(others[name], metric)) is not None:
                    row[f"p_{name}"] = mcnemar_exact(right, base).p_value
                    pairs[len(rows), name] = right, base
            rows.append(row)
    items = next(iter(groups.values()))["item"].tolist() if groups else []
    gains = differences(list(pairs.values()), items, units=units, seed=seed)
    for (at, name), gain in zip(pairs, gains, strict=True):
        rows[at] |= {f"over_{name}": gain.difference, f"over_{name}_low": gain.low, f"over_{name}_high": gain.high}
    return pd.DataFrame(rows)


def verdicts(trials: pd.DataFrame, metric: str) -> list[bool] | None:
    """Right or wrong by a metric, trial by trial; None where a trial does not have it."""
    right = trials[metric].tolist()
    return None if any(pd.isna(each) for each in right) else [bool(each) for each in right]


def share(right: Sequence[bool]) -> dict[str, float]:
    """The accuracy with its 95 % Wilson interval (low, high), NaN where there is no trial.

    >>> {name: round(value, 2) for name, value in share([True, True, False, True]).items()}
    {'accuracy': 0.75, 'low': 0.3, 'high': 0.95}
    """
    if not right:
        return dict.fromkeys(("accuracy", "low", "high"), NAN)
    low, high = proportion_interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "low": low, "high": high}


def mean(values: Iterable[Any]) -> float:
    """The mean of the numbers there are.

    >>> mean([1, None, 2]), mean([])
    (1.5, nan)
    """
    known = [float(value) for value in values if not pd.isna(value)]
    return sum(known) / len(known) if known else NAN


def differences(
    pairs: Sequence[tuple[Scores, Scores]],
    items: Sequence[str],
    *,
    units: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[PairedDifference]:
    """The paired differences of scores on these items with 95 % bootstrap intervals, NaN where there is a single unit.

    Raises:
        ValueError: an item without a unit.
    """
    if units is not None and (missing := [item for item in items if item not in units]):
        raise ValueError(f"the item {missing[0]!r} is in no group; give every item one")
    drawn = None if units is None else [units[item] for item in items]
    if len(set(drawn or items)) > 1:
        return paired_bootstraps(pairs, groups=drawn, seed=seed)
    unit = "item" if units is None else "group"
    return [PairedDifference((sum(a) - sum(b)) / len(a), NAN, NAN, 1, unit) for a, b in pairs]


def summarise(trials: Sequence[Trial], *, seed: int = 0) -> pd.DataFrame:
    """One row a channel, condition and metric: its accuracy with an interval, and paired tests against baselines.

    Columns: channel, condition, metric, n, correct, accuracy with its 95 % Wilson interval (low, high); the paired
    difference to silent with its 95 % bootstrap interval over items (over_silent, over_silent_low, over_silent_high);
    the exact McNemar p-values against silent and against this channel's own shuffled message (p_silent, p_shuffled),
    not corrected for the number of comparisons. Columns that do not apply are NaN.

    Raises:
        ValueError: no trials, or channels that were not evaluated on the same items, or share a name.
    """
    if not trials:
        raise ValueError("trials are empty; give those of at least one channel")
    by = ("channel", "condition")
    table = accuracy_table(
        in_pairs(to_table(trials), by), by, against=("silent", "shuffled"), baselines=usual_baselines, seed=seed
    )
    return table.drop(columns=["over_shuffled", "over_shuffled_low", "over_shuffled_high"])


def usual_baselines(channel: str, condition: str) -> dict[str, Key]:
    """The groups that a channel and condition is compared with: `BASELINES`, and its own shuffled message.

    >>> usual_baselines("text", "message")
    {'silent': ('silent', 'message'), 'shuffled': ('text', 'shuffled')}
    """
    baselines = {name: (name, MESSAGE) for name in BASELINES if name != channel}
    return baselines | ({"shuffled": (channel, "shuffled")} if condition == MESSAGE else {})
