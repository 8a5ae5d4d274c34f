"""How sure a comparison is: an interval for a proportion, a paired bootstrap, an exact McNemar test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["McNemar", "PairedDifference", "mcnemar_exact", "paired_bootstrap", "proportion_interval"]

DRAWS_AT_ONCE = 2**22
"""Resampled unit counts held at a time, 32 MB of them: memory stays bounded and the draws do not depend on it."""

Scores = Sequence[float | int] | Shaped[np.ndarray, "_"]
"""One number (or right and wrong) for each item, in the items' order."""
Labels = Sequence[str | int] | Shaped[np.ndarray, "_"]
"""The group of each item, in the items' order."""


@dataclass(frozen=True)
class PairedDifference:
    """mean(a) - mean(b) with its interval, from `n` resampled units, each an "item" or a "group"."""

    difference: float
    low: float
    high: float
    n: int
    unit: str


@dataclass(frozen=True)
class McNemar:
    """The two-sided exact p-value, and how many items only `a` and only `b` got right."""

    p_value: float
    only_a: int
    only_b: int


def proportion_interval(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of the proportion k / n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: n is below 1, k is not within 0..n, or the level is not between 0 and 1.

    >>> low, high = proportion_interval(13, 20)
    >>> round(low, 3), round(high, 3)
    (0.433, 0.819)
    """
    if n < 1:
        raise ValueError(f"n is {n}; a proportion needs at least 1 trial")
    if not 0 <= k <= n:
        raise ValueError(f"k is {k} of {n} trials; it must be from 0 to {n}")
    _require_level(level)
    from scipy.stats import binomtest  # a second of import time that only a table needs

    interval = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def paired_bootstrap(
    a: Scores,
    b: Scores,
    *,
    groups: Labels | None = None,
    n_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Return mean(a) - mean(b) over paired items with its percentile interval.

    `a[i]` and `b[i]` are two systems' scores (or right and wrong) on the same item. Items are drawn with replacement,
    both scores together, `n_resamples` times; the interval runs between the quantiles (1 - level) / 2 and
    (1 + level) / 2 of the resampled differences. With `groups` (one label an item: a document, a country) whole groups
    are drawn, and a resample's difference is its total over its number of items. Where all units differ alike the
    interval is a point.

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap"; paired over items as in Koehn 2004.

    Raises:
        ValueError: scores of different number, NaN or infinite; not one group label an item; fewer than 2 units to draw
            from; fewer than 1 resample; or a level not between 0 and 1.

    >>> result = paired_bootstrap([1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1])
    >>> result.difference, result.low > 0, result.n, result.unit
    (0.5, True, 6, 'item')
    """
    scores_a, scores_b = _paired(a, b)
    differences = scores_a - scores_b
    _require_level(level)
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; at least 1 is needed, and 1000 for an interval")
    if groups is None:
        totals, sizes, unit = differences, np.ones_like(differences), "item"
    else:
        if len(groups) != len(differences):
            raise ValueError(f"{len(groups)} group labels for {len(differences)} items; give one label an item")
        index = _numbered(groups)
        totals, sizes, unit = np.bincount(index, weights=differences), np.bincount(index).astype(float), "group"
    n_units = len(totals)
    if n_units < 2:
        raise ValueError(f"{n_units} {unit} cannot be resampled; give at least 2 {unit}s")
    generator = np.random.default_rng(seed)
    resampled = np.empty(n_resamples)
    step = max(1, DRAWS_AT_ONCE // n_units)
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        drawn = generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=stop - start)
        resampled[start:stop] = (drawn @ totals) / (drawn @ sizes)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(float(differences.mean()), float(low), float(high), n_units, unit)


def mcnemar_exact(a: Scores, b: Scores) -> McNemar:
    """Return McNemar's exact test of whether two systems are right equally often, on the same items.

    Of the items that one system alone got right, the number that were `a`'s is Binomial(only_a + only_b, 1/2) if
    neither is better; p_value is its two-sided exact probability, and 1 where the systems never disagree.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions".

    Raises:
        ValueError: answers of different number, none at all, or other than right (1, True) and wrong (0, False).

    >>> mcnemar_exact([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    McNemar(p_value=0.0625, only_a=5, only_b=0)
    """
    right_a, right_b = _paired(a, b)
    for right, name in ((right_a, "a"), (right_b, "b")):
        other = right[(right != 0) & (right != 1)]
        if other.size:
            raise ValueError(f"{name} holds {other[0]:g}; McNemar's test takes right (1) and wrong (0) only")
    only_a, only_b = int((right_a > right_b).sum()), int((right_b > right_a).sum())
    disagreed = only_a + only_b
    from scipy.stats import binomtest

    return McNemar(float(binomtest(only_a, disagreed).pvalue) if disagreed else 1.0, only_a, only_b)


def _paired(a: Scores, b: Scores) -> tuple[Float[np.ndarray, " item"], Float[np.ndarray, " item"]]:
    """Return both systems' finite scores in float64, at least one each and equally many."""
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} items but b {len(b)}; score both on the same items, in the same order")
    if len(a) == 0:
        raise ValueError("a and b hold no items; give at least 1")
    scores_a, scores_b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(scores_a) & np.isfinite(scores_b)))
    if bad.size:
        raise ValueError(f"a or b is NaN or infinite at item {bad[0]}; score that item or leave it out of both")
    return scores_a, scores_b


def _numbered(labels: Labels) -> Shaped[np.ndarray, " item"]:
    """Return each label's number in order of first appearance."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels])


def _require_level(level: float) -> None:
    """Refuse a confidence level that is no share."""
    if not (math.isfinite(level) and 0 < level < 1):
        raise ValueError(f"level is {level}; it is a share such as 0.95, between 0 and 1")
