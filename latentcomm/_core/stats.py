"""How sure a comparison is: an interval for a proportion, a paired bootstrap, McNemar's test, rank correlations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

__all__ = [
    "McNemar",
    "PairedDifference",
    "RankCorrelation",
    "cell_rank_correlation",
    "cost_front",
    "mcnemar_exact",
    "paired_bootstrap",
    "paired_bootstraps",
    "proportion_interval",
    "spearman",
]

DRAWS_AT_ONCE = 2**22
"""Resampled unit counts held at a time, 32 MB of them: memory stays bounded and the draws do not depend on it."""
DETERMINED = 1e-12
"""Share of a rank's variance below which what is left of it is rounding: its rank follows from what is given."""

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


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho with its interval.

    Attributes:
        rho: NaN where it is not defined: one side is constant, or follows from what is given.
        low, high: the interval over the resamples in which rho is defined; NaN where there is none.
        n: how many cells.
        units: what was drawn, as text such as "80 items x 10 x 10 groups of cells".
        defined: the share of resamples in which rho is defined.
    """

    rho: float
    low: float
    high: float
    n: int
    units: str
    defined: float


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
    are drawn, and a resample's difference is its total over its number of items. Where all units differ equally the
    interval is a point.

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap"; paired over items as in Koehn 2004.

    Raises:
        ValueError: scores of different number, NaN or infinite; not one group label an item; fewer than 2 units to draw
            from; fewer than 1 resample; or a level not between 0 and 1.

    >>> result = paired_bootstrap([1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1])
    >>> result.difference, result.low > 0, result.n, result.unit
    (0.5, True, 6, 'item')
    """
    return paired_bootstraps([(a, b)], groups=groups, n_resamples=n_resamples, level=level, seed=seed)[0]


def paired_bootstraps(
    pairs: Sequence[tuple[Scores, Scores]],
    *,
    groups: Labels | None = None,
    n_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> list[PairedDifference]:
    """Return what `paired_bootstrap` gives for each pair of scores on the same items, drawing the resamples once.

    Raises:
        ValueError: as `paired_bootstrap`; or pairs of different numbers of items.

    >>> a, b, c = [1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1]
    >>> paired_bootstraps([(a, b), (a, c)]) == [paired_bootstrap(a, b), paired_bootstrap(a, c)]
    True
    """
    _require_level(level)
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; at least 1 is needed, and 1000 for an interval")
    differences = [np.subtract(*_paired(a, b)) for a, b in pairs]
    if not differences:
        return []
    n_items = len(differences[0])
    if wrong := [len(each) for each in differences if len(each) != n_items]:
        raise ValueError(f"pairs of {n_items} and of {wrong[0]} items cannot share resamples; give each the same items")
    if groups is None:
        totals, sizes, unit = differences, np.ones(n_items), "item"
    else:
        if len(groups) != n_items:
            raise ValueError(f"{len(groups)} group labels for {n_items} items; give one label an item")
        index = _numbered(groups)
        totals = [np.bincount(index, weights=each) for each in differences]
        sizes, unit = np.bincount(index).astype(float), "group"
    n_units = len(sizes)
    if n_units < 2:
        raise ValueError(f"{n_units} {unit} cannot be resampled; give at least 2 {unit}s")
    generator = np.random.default_rng(seed)
    resampled = np.empty((len(pairs), n_resamples))
    step = max(1, DRAWS_AT_ONCE // n_units)
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        drawn = generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=stop - start).astype(float)
        n_drawn = drawn @ sizes
        for row, total in zip(resampled, totals, strict=True):
            row[start:stop] = (drawn @ total) / n_drawn
    return [
        PairedDifference(float(each.mean()), *_middle(row, level), n_units, unit)
        for each, row in zip(differences, resampled, strict=True)
    ]


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


def spearman(x: Scores, y: Scores, *, given: Sequence[Scores] = ()) -> float:
    """Return Spearman's rank correlation of x and y, or the partial one given other columns.

    Ties get their average rank. With `given`, it is the Pearson correlation of what is left of both ranks once their
    least-squares prediction from the ranks of the given columns (with a constant) is taken away. NaN where x or y is
    constant or follows from what is given.

    Source: Spearman 1904, "The proof and measurement of association between two things".

    Raises:
        ValueError: columns of different length, fewer than 2 entries, NaN or infinite.

    >>> spearman([1, 2, 3, 4], [10, 30, 20, 40])
    0.8
    """
    columns = _columns(x, y, given)
    return _correlation(columns[0], columns[1], columns[2:])


def cell_rank_correlation(
    x: Float[np.ndarray, "item cell"],
    y: Float[np.ndarray, "item cell"],
    *,
    factors: Sequence[Labels] = (),
    given: Sequence[Scores] = (),
    within: Labels | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Return Spearman's rho over cells between the median over items of x and the mean over items of y.

    The cells of a grid are not independent: all are measured on the same items, and neighbours share layers. So each
    resample draws items with replacement (for x and y together), and for each of `factors` (one label a cell, such as
    its block of neighbouring read layers) its groups with replacement; a cell then counts as often as the product of
    its groups' counts. Without factors the interval is of the items alone, for just these cells. `given` are columns
    with a number a cell, as in `spearman`. `within` (one label a cell) gives the mean of the rho of each stratum,
    for the strata in which it is defined. The interval runs between the quantiles (1 - level) / 2 and (1 + level) / 2.

    Source: Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111 (it errs towards intervals that are too wide).

    Raises:
        ValueError: fewer than 2 items or cells, NaN or infinite entries, not one label or
            number a cell, a factor with one group, fewer than 1 resample, or a level not between 0 and 1.

    >>> x = np.arange(12.0).reshape(2, 6)
    >>> cell_rank_correlation(x, -x, n_resamples=10).rho
    -1.0
    """
    if min(x.shape) < 2:
        raise ValueError(f"x and y hold {x.shape[0]} items of {x.shape[1]} cells; give at least 2 of each")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y is NaN or infinite; leave that cell or item out of both")
    _require_level(level)
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; at least 1 is needed, and 1000 for an interval")
    n_items, n_cells = x.shape
    if wrong := [
        len(labels) for labels in (*factors, *(() if within is None else (within,))) if len(labels) != n_cells
    ]:
        raise ValueError(f"{wrong[0]} labels for {n_cells} cells; give one label a cell")
    groups = [_numbered(labels) for labels in factors]
    sizes = [int(index.max()) + 1 for index in groups]
    if 1 in sizes:
        raise ValueError("a factor has one group, which cannot be resampled; leave it out or give more")
    strata = None if within is None else _numbered(within)
    order = np.argsort(x, 0, kind="stable")
    ascending = np.take_along_axis(x.astype(np.float64), order, 0)

    def summaries(items: Shaped[np.ndarray, " item"]) -> tuple[np.ndarray, np.ndarray]:
        """The median of x and the mean of y over drawn items."""
        times = np.bincount(items, minlength=n_items)
        passed = 2 * times[order].cumsum(0)
        middle = [(passed >= n_items).argmax(0), (passed > n_items).argmax(0)]
        return ascending[middle, np.arange(n_cells)].mean(0), times @ y / n_items

    columns = _columns(*summaries(np.arange(n_items)), given)
    rho = _stratified(columns, strata)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(n_resamples):
        resampled = [*summaries(generator.integers(n_items, size=n_items)), *columns[2:]]
        times = np.ones(n_cells, dtype=np.int64)
        for index, size in zip(groups, sizes, strict=True):
            times *= np.bincount(generator.integers(size, size=size), minlength=size)[index]
        cells = np.repeat(np.arange(n_cells), times)
        chosen = [column[cells] for column in resampled]
        drawn.append(_stratified(chosen, None if strata is None else strata[cells]) if len(cells) > 1 else math.nan)
    found = np.array(drawn)
    found = found[~np.isnan(found)]
    low, high = _middle(found, level) if found.size else (math.nan, math.nan)
    units = f"{n_items} items" + (f" x {' x '.join(map(str, sizes))} groups of cells" if sizes else "")
    return RankCorrelation(rho, low, high, n_cells, units, found.size / n_resamples)


def _middle(resampled: Float[np.ndarray, " resample"], level: float) -> tuple[float, float]:
    """The ends of the percentile interval."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def _stratified(columns: Sequence[Float[np.ndarray, " cell"]], strata: Shaped[np.ndarray, " cell"] | None) -> float:
    """The partial rho of the first two columns given the others; with strata the mean of theirs."""
    if strata is None:
        return _correlation(columns[0], columns[1], columns[2:])
    labels, stratum = np.unique(strata, return_inverse=True)
    if len(columns) > 2:
        parts = [[column[stratum == label] for column in columns] for label in range(len(labels))]
        each = np.array([_correlation(x, y, given) if len(x) > 1 else math.nan for x, y, *given in parts])
    else:  # all strata at once: a bootstrap calls this often
        x, y = (_centred(_ranks(stratum * len(stratum) + _ranks(column)), stratum) for column in columns)
        sizes = np.bincount(stratum, x * x) * np.bincount(stratum, y * y)
        each = np.bincount(stratum, x * y) / np.sqrt(np.where(sizes > 0, sizes, math.nan))
    return float(np.nanmean(each)) if not np.isnan(each).all() else math.nan


def _centred(values: Float[np.ndarray, " cell"], stratum: Shaped[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The values less the mean of their stratum; ranks are halves of whole numbers, so that equal ones leave nought."""
    return values - (np.bincount(stratum, values) / np.bincount(stratum))[stratum]


def _correlation(
    x: Float[np.ndarray, " cell"], y: Float[np.ndarray, " cell"], given: Sequence[Float[np.ndarray, " cell"]]
) -> float:
    """Pearson's correlation of the ranks, of what the ranks of `given` leave of them."""
    ranks = [_ranks(x), _ranks(y)]
    ranks = [column - column.mean() for column in ranks]
    left = ranks
    if given:
        known = np.stack([np.ones(len(x)), *(_ranks(column) for column in given)], 1)
        basis = np.linalg.svd(known, full_matrices=False)
        directions = basis.U[:, DETERMINED * basis.S[0] < basis.S]
        left = [column - directions @ (directions.T @ column) for column in ranks]
    sizes = [float(column @ column) for column in left]
    if any(size <= DETERMINED * float(column @ column) for size, column in zip(sizes, ranks, strict=True)):
        return math.nan
    return float(left[0] @ left[1]) / math.sqrt(sizes[0] * sizes[1])


def _ranks(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """Each value's rank from 1, ties sharing their average."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[where]


def _columns(x: Scores, y: Scores, given: Sequence[Scores]) -> list[Float[np.ndarray, " cell"]]:
    """All columns in float64, of one length and finite."""
    columns = [np.asarray(column, dtype=np.float64) for column in (x, y, *given)]
    if len({len(column) for column in columns}) != 1 or len(columns[0]) < 2:
        raise ValueError(f"columns hold {[len(column) for column in columns]} entries; give equally many, at least 2")
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("a column is NaN or infinite somewhere; leave that entry out of all columns")
    return columns


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


def cost_front(table: pd.DataFrame, *, cost: str = "flops", accuracy: str = "accuracy") -> pd.DataFrame:
    """The rows that no other row beats: none is as accurate at less cost, or more accurate at the same; cheapest first.

    Raises:
        ValueError: a column is missing, or holds what is no number.

    >>> rows = pd.DataFrame({"channel": ["a", "b", "c"], "flops": [1, 2, 3], "accuracy": [0.2, 0.6, 0.5]})
    >>> cost_front(rows)["channel"].tolist()
    ['a', 'b']
    """
    for column in (cost, accuracy):
        if column not in table:
            raise ValueError(f"the table has no column {column!r}; it has {', '.join(map(str, table.columns))}")
        missing = table.index[table[column].isna().to_numpy(dtype=bool)].tolist()
        if missing:
            raise ValueError(f"row {missing[0]} has no number in {column!r}; leave such rows out")
    ordered = table.sort_values([cost, accuracy], ascending=[True, False], kind="stable")
    reached = ordered[accuracy].to_numpy(dtype=float)
    best = np.maximum.accumulate(reached)
    return ordered.iloc[[row for row in range(len(ordered)) if row == 0 or reached[row] > best[row - 1]]]
