"""Intervals and tests against closed forms, scipy's own formulas, and their coverage in simulation."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom, norm, rankdata, spearmanr

from latentcomm._core import stats
from latentcomm._core.stats import (
    McNemar,
    RankCorrelation,
    cell_rank_correlation,
    mcnemar_exact,
    paired_bootstrap,
    paired_bootstraps,
    proportion_interval,
    spearman,
)


def wilson(k: int, n: int, level: float) -> tuple[float, float]:
    z = norm.ppf((1 + level) / 2)
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return middle - half, middle + half


# --- proportions ---


@pytest.mark.parametrize(("k", "n"), [(0, 20), (13, 20), (20, 20), (1, 1), (37, 100)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_is_wilsons_formula(k, n, level):
    assert proportion_interval(k, n, level=level) == pytest.approx(wilson(k, n, level), abs=1e-12)


def test_the_interval_of_one_hundred_items_is_about_eight_points_each_way():
    low, high = proportion_interval(80, 100)
    assert (high - low) / 2 == pytest.approx(0.08, abs=0.005)
    narrow = proportion_interval(800, 1000)
    assert narrow[1] - narrow[0] < (high - low) / 2.5


@pytest.mark.parametrize("chance", [0.05, 0.5, 0.9])
def test_the_interval_covers_the_true_proportion_at_about_its_rate(chance):
    n = 50
    covered = [low <= chance <= high for low, high in (proportion_interval(k, n) for k in range(n + 1))]
    coverage = float(np.dot(covered, binom.pmf(np.arange(n + 1), n, chance)))  # exact, no simulation needed
    assert 0.92 < coverage < 0.99
    covered_half = [low <= chance <= high for low, high in (proportion_interval(k, n, level=0.5) for k in range(n + 1))]
    assert float(np.dot(covered_half, binom.pmf(np.arange(n + 1), n, chance))) < 0.75


@pytest.mark.parametrize(
    ("k", "n", "message"), [(0, 0, "n is 0"), (1, -1, "n is -1"), (-1, 5, "k is -1 of 5"), (6, 5, "k is 6 of 5")]
)
def test_counts_that_cannot_be_are_refused(k, n, message):
    with pytest.raises(ValueError, match=message):
        proportion_interval(k, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, -0.5, float("nan")])
def test_a_level_that_is_no_share_is_refused(level):
    with pytest.raises(ValueError, match=r"level is .* between 0 and 1"):
        proportion_interval(1, 2, level=level)
    with pytest.raises(ValueError, match=r"level is .* between 0 and 1"):
        paired_bootstrap([1, 0], [0, 0], level=level)


# --- paired bootstrap ---


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize(("k", "n"), [(10, 40), (30, 60), (3, 50)])
def test_the_interval_of_right_against_never_right_is_the_binomials(k, n, level):
    # Resampling n items of which k are 1 draws a Binomial(n, k / n) number of ones.
    result = paired_bootstrap([1] * k + [0] * (n - k), [0] * n, level=level, n_resamples=20_000)
    assert result.difference == pytest.approx(k / n)
    assert result.low == pytest.approx(binom.ppf((1 - level) / 2, n, k / n) / n, abs=1.01 / n)
    assert result.high == pytest.approx(binom.ppf((1 + level) / 2, n, k / n) / n, abs=1.01 / n)


def test_the_interval_of_many_scores_is_the_normal_one():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=2000), generator.normal(0.2, 1, size=2000)
    result = paired_bootstrap(a, b)
    half = norm.ppf(0.975) * (a - b).std() / math.sqrt(2000)
    assert result.difference == pytest.approx((a - b).mean())
    assert result.low == pytest.approx(result.difference - half, rel=0.05)
    assert result.high == pytest.approx(result.difference + half, rel=0.05)


def test_pairing_makes_a_shared_difficulty_cancel():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 10, size=200)
    a, b = difficulty + 0.5 + generator.normal(size=200), difficulty + generator.normal(size=200)
    paired = paired_bootstrap(a, b)
    unpaired = paired_bootstrap(a, generator.permutation(b))
    assert paired.low > 0
    assert unpaired.low < 0 < unpaired.high
    assert paired.difference == pytest.approx(unpaired.difference)


def test_swapping_the_systems_turns_the_interval_round():
    a, b = [1, 1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 1, 0]
    one, other = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))


def test_a_system_against_itself_has_no_difference_and_no_interval():
    result = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (result.difference, result.low, result.high, result.n, result.unit) == (0.0, 0.0, 0.0, 3, "item")


def test_the_seed_alone_decides_and_nothing_given_changes():
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=30), generator.normal(size=30)
    before = a.copy(), b.copy()
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)
    assert (a == before[0]).all() and (b == before[1]).all()


def test_drawing_in_parts_gives_the_same_draws(monkeypatch):
    a, b = [1, 0, 1, 1, 0], [0, 0, 1, 0, 1]
    whole = paired_bootstrap(a, b, n_resamples=1000)
    monkeypatch.setattr(stats, "DRAWS_AT_ONCE", 37)
    assert paired_bootstrap(a, b, n_resamples=1000) == whole


@pytest.mark.parametrize("groups", [None, [item // 7 for item in range(30)]])
def test_pairs_that_share_resamples_are_those_of_each_alone_to_the_bit(groups):
    generator = np.random.default_rng(3)
    a, b, c = 1e9 * generator.normal(size=(3, 30))
    alone = [paired_bootstrap(*pair, groups=groups, seed=5) for pair in ((a, b), (c, b))]
    assert paired_bootstraps([(a, b), (c, b)], groups=groups, seed=5) == alone
    assert alone[0] != alone[1] and paired_bootstraps([]) == []


def test_pairs_of_different_items_do_not_share_resamples():
    with pytest.raises(ValueError, match="pairs of 2 and of 3 items"):
        paired_bootstraps([([1, 0], [0, 0]), ([1, 0, 0], [0, 0, 0])])


def coverage(*, clustered: bool, grouped: bool, repeats: int = 300) -> float:
    """How often the interval holds the true difference of 0.3, items being alike within groups of 10 or independent."""
    hits = 0
    for repeat in range(repeats):
        generator = np.random.default_rng(repeat)
        if clustered:
            differences = np.repeat(generator.normal(0.3, 1, size=30), 10) + generator.normal(0, 0.1, size=300)
        else:
            differences = generator.normal(0.3, 1, size=300)
        groups = [item // 10 for item in range(300)] if grouped else None
        result = paired_bootstrap(differences, np.zeros(300), groups=groups, n_resamples=400, seed=repeat)
        hits += result.low <= 0.3 <= result.high
    return hits / repeats


def test_the_interval_over_independent_items_covers_at_about_its_rate():
    assert 0.91 < coverage(clustered=False, grouped=False) < 0.98


def test_alike_items_need_their_groups_or_the_interval_is_far_too_narrow():
    assert coverage(clustered=True, grouped=True) > 0.89
    assert coverage(clustered=True, grouped=False) < 0.6


def test_groups_of_one_item_are_items_but_for_their_name():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=20), generator.normal(size=20)
    by_item, by_group = paired_bootstrap(a, b), paired_bootstrap(a, b, groups=[f"g{item}" for item in range(20)])
    assert by_group.unit == "group"
    assert dataclasses.replace(by_group, unit="item") == by_item


def test_a_resample_of_groups_is_weighed_by_its_items():
    # Two groups: one item of difference 1 and three of 0. Drawn twice each or once each: 1, 0, or 1/4.
    result = paired_bootstrap([1, 0, 0, 0], [0, 0, 0, 0], groups=["x", "y", "y", "y"], level=0.4)
    assert result.difference == 0.25
    assert (result.low, result.high, result.n, result.unit) == (0.25, 0.25, 2, "group")
    wide = paired_bootstrap([1, 0, 0, 0], [0, 0, 0, 0], groups=["x", "y", "y", "y"], level=0.9)
    assert (wide.low, wide.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([1, 0], [1], {}, "a has 2 items but b 1"),
        ([], [], {}, "hold no items"),
        ([1.0, float("nan")], [0, 1], {}, "a or b is NaN or infinite at item 1"),
        ([1, 1], [0.0, float("inf")], {}, "a or b is NaN or infinite at item 1"),
        ([1], [0], {}, "1 item cannot be resampled; give at least 2 items"),
        ([1, 0], [0, 0], {"groups": ["x", "x"]}, "1 group cannot be resampled; give at least 2 groups"),
        ([1, 0], [0, 0], {"groups": ["x"]}, "1 group labels for 2 items"),
        ([1, 0], [0, 0], {"n_resamples": 0}, "n_resamples is 0"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, **options)


# --- McNemar ---


def two_sided_binomial(fewer: int, total: int) -> float:
    """Twice the lower tail of Binomial(total, 1/2), at most 1: the two tails are alike."""
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total)


@pytest.mark.parametrize(("only_a", "only_b"), [(5, 0), (0, 5), (8, 3), (6, 6), (7, 6), (30, 12), (1, 0)])
def test_mcnemar_is_the_binomial_tail_of_the_items_on_which_they_differ(only_a, only_b):
    a = [1] * only_a + [0] * only_b + [1] * 4 + [0] * 9
    b = [0] * only_a + [1] * only_b + [1] * 4 + [0] * 9
    result = mcnemar_exact(a, b)
    assert (result.only_a, result.only_b) == (only_a, only_b)
    assert result.p_value == pytest.approx(two_sided_binomial(min(only_a, only_b), only_a + only_b), rel=1e-12)


def test_items_that_both_or_neither_got_right_change_nothing():
    a, b = [1, 1, 1, 1, 0], [0, 0, 0, 1, 1]
    assert mcnemar_exact(a, b) == mcnemar_exact(a + [1, 0] * 50, b + [1, 0] * 50)
    assert mcnemar_exact(a, b) != mcnemar_exact([*a, 1], [*b, 0])


def test_systems_that_never_disagree_have_p_value_one():
    assert mcnemar_exact([1, 0, 1], [1, 0, 1]) == McNemar(p_value=1.0, only_a=0, only_b=0)


def test_true_and_false_lists_and_arrays_are_the_same():
    a, b = [1, 1, 0, 1], [0, 1, 1, 0]
    expected = mcnemar_exact(a, b)
    assert mcnemar_exact([bool(x) for x in a], [bool(x) for x in b]) == expected
    assert mcnemar_exact(np.array(a, dtype=bool), np.array(b)) == expected


def test_under_the_null_small_p_values_are_no_more_frequent_than_they_say():
    generator = np.random.default_rng(0)
    p_values = [mcnemar_exact(generator.random(60) < 0.6, generator.random(60) < 0.6).p_value for _ in range(400)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05
    better = [mcnemar_exact(generator.random(60) < 0.9, generator.random(60) < 0.6).p_value for _ in range(100)]
    assert np.mean(np.array(better) <= 0.05) > 0.8


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1], "a has 2 items but b 1"),
        ([], [], "hold no items"),
        ([2, 0], [1, 0], "a holds 2; McNemar's test takes right"),
        ([1, 0], [1.0, 0.5], "b holds 0.5; McNemar's test takes right"),
        ([1, 0], [1.0, float("nan")], "NaN or infinite at item 1"),
    ],
)
def test_answers_that_are_not_right_or_wrong_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        mcnemar_exact(a, b)


def test_results_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        mcnemar_exact([1, 0], [0, 0]).p_value = 0.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        paired_bootstrap([1, 0], [0, 0]).low = 0.0  # type: ignore[misc]


# --- rank correlations ---


def partial_by_precision(x, y, given) -> float:
    """The partial correlation of ranks from their inverse correlation matrix: no regression in it."""
    precision = np.linalg.inv(np.corrcoef([rankdata(column) for column in (x, y, *given)]))
    return -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])


def grid(n_read: int, n_write: int) -> tuple[np.ndarray, np.ndarray]:
    read, write = np.divmod(np.arange(n_read * n_write), n_write)
    return read, write


def test_spearman_is_scipys_with_ties_and_without():
    rng = np.random.default_rng(0)
    smooth, coarse = rng.normal(size=60), rng.integers(0, 5, 60)
    for x, y in ((smooth, smooth**3 + rng.normal(size=60)), (coarse, coarse + rng.integers(0, 4, 60))):
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert spearman(smooth, np.exp(smooth)) == pytest.approx(1.0, abs=1e-12)
    assert spearman(smooth, -smooth) == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize("n_given", [1, 2, 3])
def test_the_partial_correlation_is_that_of_the_inverse_matrix(n_given):
    rng = np.random.default_rng(n_given)
    given = list(rng.integers(0, 12, (n_given, 80)))
    x, y = sum(given) + rng.normal(size=80), sum(given) - 2 * rng.normal(size=80)
    assert spearman(x, y, given=given) == pytest.approx(partial_by_precision(x, y, given), abs=1e-9)


def test_given_depth_only_what_depth_does_not_explain_remains():
    rng = np.random.default_rng(1)
    depth = np.arange(400.0)
    x, y = depth + 20 * rng.normal(size=400), depth + 20 * rng.normal(size=400)
    assert spearman(x, y) > 0.9 and abs(spearman(x, y, given=[depth])) < 0.15
    shared = 40 * rng.normal(size=400)
    assert spearman(x + shared, y + shared, given=[depth]) > 0.6


def test_a_column_constant_or_fixed_by_the_given_ones_has_no_correlation():
    x, y = np.arange(8.0), np.array([3.0, 1, 2, 5, 4, 7, 6, 8])
    assert math.isnan(spearman(np.ones(8), y)) and math.isnan(spearman(x, np.ones(8)))
    assert math.isnan(spearman(x, y, given=[2 * x + 1]))


@pytest.mark.parametrize("n_items", [7, 8])
def test_over_cells_it_is_that_of_medians_and_means(n_items):
    rng = np.random.default_rng(n_items)
    x, y = rng.normal(size=(n_items, 20)), rng.random((n_items, 20))
    found = cell_rank_correlation(x, y, n_resamples=20)
    assert found.rho == pytest.approx(spearmanr(np.median(x, 0), y.mean(0)).statistic, abs=1e-12)
    assert (found.n, found.units, found.defined) == (20, f"{n_items} items", 1.0)


@pytest.mark.parametrize("n_items", [5, 6])
def test_its_interval_is_that_of_grids_drawn_one_by_one(n_items):
    """A naive transcription: items, rows and columns are drawn and the drawn grid is laid out cell by cell."""
    rng = np.random.default_rng(n_items)
    x, y = rng.normal(size=(n_items, 12)), rng.random((n_items, 12))
    read, write = grid(3, 4)
    found = cell_rank_correlation(x, y, factors=[read, write], given=[read], n_resamples=30, seed=3)
    draws = np.random.default_rng(3)
    each = []
    for _ in range(30):
        items, reads, writes = (draws.integers(size, size=size) for size in (n_items, 3, 4))
        cells = [int(np.flatnonzero((read == k) & (write == j))[0]) for k in reads for j in writes]
        each.append(spearman(np.median(x[items], 0)[cells], y[items].mean(0)[cells], given=[read[cells]]))
    low, high = np.nanquantile(each, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.defined == np.isfinite(each).mean()


def test_within_strata_it_is_their_mean_and_constant_strata_are_left_out():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 24)), rng.normal(size=(5, 24))
    strata = np.repeat(["a", "b", "c"], 8)
    each = [
        spearmanr(np.median(x, 0)[strata == label], y.mean(0)[strata == label]).statistic for label in ("a", "b", "c")
    ]
    found = cell_rank_correlation(x, y, within=strata, n_resamples=5)
    assert found.rho == pytest.approx(np.mean(each), abs=1e-12)
    y[:, strata == "c"] = 1.0
    assert cell_rank_correlation(x, y, within=strata, n_resamples=5).rho == pytest.approx(np.mean(each[:2]), abs=1e-12)


def test_within_strata_and_given_depth_it_is_the_mean_of_the_partial_ones():
    rng = np.random.default_rng(7)
    x, y, depth = rng.normal(size=(5, 30)), rng.normal(size=(5, 30)), rng.normal(size=30)
    strata = np.arange(30) % 3
    each = [
        partial_by_precision(np.median(x, 0)[part], y.mean(0)[part], [depth[part]])
        for part in (strata == label for label in range(3))
    ]
    found = cell_rank_correlation(x, y, within=strata, given=[depth], n_resamples=5)
    assert found.rho == pytest.approx(np.mean(each), abs=1e-9)


def test_its_interval_over_independent_cells_is_never_too_narrow():
    """Both columns share layer effects of their own and none with each other: the true correlation is nought."""
    rng = np.random.default_rng(4)
    read, write = grid(8, 8)
    covered, naive = 0, 0
    for trial in range(60):
        x, y = (rng.normal(size=8)[read] + rng.normal(size=8)[write] + 0.3 * rng.normal(size=(10, 64)) for _ in "xy")
        crossed = cell_rank_correlation(x, y, factors=[read, write], n_resamples=100, seed=trial)
        alone = cell_rank_correlation(x, y, n_resamples=100, seed=trial)
        covered += crossed.low <= 0 <= crossed.high
        naive += alone.low <= 0 <= alone.high
    assert covered >= 52  # P(fewer of 60 | 95 %) < 2 %
    assert naive <= 30  # the same cells again: an interval over items alone says nothing of other layers


def test_the_same_seed_gives_the_same_interval_and_inputs_do_not_change():
    rng = np.random.default_rng(5)
    read, write = grid(4, 5)
    x, y = rng.normal(size=(6, 20)), rng.normal(size=(6, 20))
    before = x.copy(), y.copy()
    options = {"factors": [read, write], "given": [read], "n_resamples": 40}
    first, second = (cell_rank_correlation(x, y, seed=7, **options) for _ in "12")
    assert first == second and first.units == "6 items x 4 x 5 groups of cells"
    assert cell_rank_correlation(x, y, seed=8, **options) != first
    assert (x == before[0]).all() and (y == before[1]).all()


def test_resamples_without_a_correlation_are_counted():
    x = np.zeros((4, 6))
    x[:, 0] = 1.0  # constant wherever the first cell is not drawn
    y = np.random.default_rng(6).normal(size=(4, 6))
    found = cell_rank_correlation(x, y, factors=[np.arange(6)], n_resamples=200)
    assert 0.4 < found.defined < 0.9 and -1 <= found.low <= found.high <= 1  # 1 - (5 / 6) ** 6 = 0.67
    nothing = cell_rank_correlation(np.ones((4, 6)), y, n_resamples=20)
    assert math.isnan(nothing.rho) and math.isnan(nothing.low) and nothing.defined == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((1, 4)), "y": np.zeros((1, 4))}, "hold 1 items of 4 cells; give at least 2"),
        ({"y": np.full((3, 4), np.nan)}, "NaN or infinite; leave that cell"),
        ({"factors": [[0, 1, 0]]}, "3 labels for 4 cells"),
        ({"factors": [[0, 0, 0, 0]]}, "a factor has one group"),
        ({"within": [0, 1]}, "2 labels for 4 cells"),
        ({"given": [[1, 2, 3]]}, r"columns hold \[4, 4, 3\] entries"),
        ({"given": [[1, 2, 3, math.inf]]}, "a column is NaN or infinite"),
        ({"n_resamples": 0}, "n_resamples is 0"),
        ({"level": 1.0}, "level is 1.0"),
    ],
)
def test_cells_that_cannot_be_correlated_are_refused(change, message):
    rng = np.random.default_rng(0)
    given = {"x": rng.normal(size=(3, 4)), "y": rng.normal(size=(3, 4))} | change
    x, y = given.pop("x"), given.pop("y")
    with pytest.raises(ValueError, match=message):
        cell_rank_correlation(x, y, **given)


def test_columns_too_short_for_ranks_are_refused():
    with pytest.raises(ValueError, match=r"columns hold \[1, 1\] entries; give equally many, at least 2"):
        spearman([1], [2])
    assert isinstance(cell_rank_correlation(np.eye(3), np.eye(3), n_resamples=3), RankCorrelation)
