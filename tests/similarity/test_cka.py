"""CKA against sums over quadruples, the trace formula written out, and sums that never centre."""

import numpy as np
import pytest
import torch
from numerics import assert_same_bits
from scipy.spatial.distance import pdist, squareform
from similar import aligned, biased_hsic, hsic_from_moments, hsic_over_quadruples, planted, rows, turned

from latentcomm.similarity import debiased_cka, linear_cka, minibatch_debiased_cka, minibatch_linear_cka, rbf_cka
from latentcomm.similarity.hsic import hsic1_from_grams, hsic1_of_centred, squared_products

EVERY_CKA = (debiased_cka, linear_cka, minibatch_debiased_cka, minibatch_linear_cka, rbf_cka)
every_cka = pytest.mark.parametrize("cka", EVERY_CKA, ids=lambda cka: cka.__name__)


def linear_gram(given: np.ndarray) -> np.ndarray:
    return given @ given.T


def gaussian_gram(given: np.ndarray, bandwidth: float = 1.0) -> np.ndarray:
    squared = pdist(given, "sqeuclidean")
    return np.exp(-squareform(squared) / (2 * bandwidth**2 * np.median(squared)))


# --- values ---


@pytest.mark.parametrize("n", [4, 5, 8])
def test_the_unbiased_criterion_is_the_mean_over_quadruples_of_rows(n):
    x, y = planted(n)
    K, L = linear_gram(x.numpy()), linear_gram(y.numpy())
    expected = hsic_over_quadruples(K, L)
    assert float(hsic1_from_grams(torch.tensor(K), torch.tensor(L))) == pytest.approx(expected, rel=1e-10)
    assert hsic_from_moments(x.numpy(), y.numpy()) == pytest.approx(expected, rel=1e-10)
    cx, cy = x - x.mean(0), y - y.mean(0)
    a, b = cx.square().sum(1), cy.square().sum(1)
    found = hsic1_of_centred(squared_products(cx, cy), a @ b, a.sum(), b.sum(), n)
    assert float(found) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("widths", [(5, 7), (30, 40)], ids=["more rows than columns", "more columns than rows"])
def test_debiased_cka_is_the_ratio_of_sums_over_quadruples(widths):
    x, y = planted(9, *widths)
    expected = aligned(lambda p, q: hsic_over_quadruples(linear_gram(p), linear_gram(q)), x.numpy(), y.numpy())
    assert debiased_cka(x, y) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("widths", [(5, 7), (60, 90)], ids=["more rows than columns", "more columns than rows"])
def test_linear_cka_is_a_ratio_of_traces_and_debiased_cka_of_moments(widths):
    x, y = planted(40, *widths)
    biased = aligned(lambda p, q: biased_hsic(linear_gram(p), linear_gram(q)), x.numpy(), y.numpy())
    assert linear_cka(x, y) == pytest.approx(biased, abs=1e-8)
    assert debiased_cka(x, y) == pytest.approx(aligned(hsic_from_moments, x.numpy(), y.numpy()), abs=1e-8)
    assert abs(linear_cka(x, y) - debiased_cka(x, y)) > 1e-3


@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [8, 9])
def test_rbf_cka_is_the_ratio_over_quadruples_of_gaussian_kernels(bandwidth, n):
    x, y = planted(n)
    expected = aligned(
        lambda p, q: hsic_over_quadruples(gaussian_gram(p, bandwidth), gaussian_gram(q, bandwidth)),
        x.numpy(),
        y.numpy(),
    )
    assert rbf_cka(x, y, bandwidth=bandwidth) == pytest.approx(expected, abs=1e-8)


def test_rbf_cka_becomes_linear_at_a_large_bandwidth_alone():
    x, y = planted(60)
    assert rbf_cka(x, y, bandwidth=300) == pytest.approx(debiased_cka(x, y), abs=1e-4)
    assert abs(rbf_cka(x, y, bandwidth=0.3) - debiased_cka(x, y)) > 0.05


def test_rbf_cka_sees_a_circle_that_linear_cka_does_not():
    angle = torch.linspace(0, 6.283, 80, dtype=torch.float64)[:-1]
    x = torch.stack((angle.cos(), angle.sin()), 1)
    y = torch.stack(((2 * angle).cos(), (2 * angle).sin()), 1)  # neighbours stay neighbours, correlations vanish
    assert abs(debiased_cka(x, y)) < 0.05
    assert rbf_cka(x, y, bandwidth=0.3) > 0.3


# --- minibatches ---


def test_minibatch_sums_come_before_the_ratio():
    x, y = planted(40, noise=2.0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    batches = [(x[part].numpy(), y[part].numpy()) for part in order.split(10)]
    sums = [sum(hsic_from_moments(p[i], p[j]) for p in batches) for i, j in ((0, 1), (0, 0), (1, 1))]
    found = minibatch_debiased_cka(x, y, batch_rows=10, seed=5)
    assert found == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-8)
    assert abs(found - np.mean([aligned(hsic_from_moments, *batch) for batch in batches])) > 1e-3


def test_biased_minibatch_sums_are_those_of_the_trace_formula():
    x, y = planted(40, noise=2.0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    batches = [[linear_gram(side[part].numpy()) for side in (x, y)] for part in order.split(10)]
    sums = [sum(biased_hsic(p[i], p[j]) for p in batches) for i, j in ((0, 1), (0, 0), (1, 1))]
    assert minibatch_linear_cka(x, y, batch_rows=10, seed=5) == pytest.approx(
        sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-8
    )


@pytest.mark.parametrize("pair", [(minibatch_debiased_cka, debiased_cka), (minibatch_linear_cka, linear_cka)])
def test_one_batch_of_all_rows_is_the_exact_number(pair):
    x, y = planted(30)
    assert pair[0](x, y, batch_rows=30) == pytest.approx(pair[1](x, y), abs=1e-12)


def test_the_debiased_minibatch_estimates_the_value_of_all_rows():
    x, y = planted(1000, 30, 40, noise=3.0)
    assert minibatch_debiased_cka(x, y, batch_rows=50) == pytest.approx(debiased_cka(x, y), abs=0.02)
    assert minibatch_linear_cka(x, y, batch_rows=50) > linear_cka(x, y) + 0.1


@pytest.mark.parametrize("n", [23, 29, 31])
def test_no_row_is_left_out_when_the_batches_do_not_divide_them(n):
    x, y = planted(n)
    before = minibatch_debiased_cka(x, y, batch_rows=10)
    for row in range(n):
        moved = y.clone()
        moved[row] += 1
        assert minibatch_debiased_cka(x, moved, batch_rows=10) != pytest.approx(before)


def test_the_same_seed_gives_the_same_minibatches_and_another_seed_others():
    x, y = planted(40)
    found = [minibatch_debiased_cka(x, y, batch_rows=10, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != pytest.approx(found[2])


# --- bias ---


def test_biased_cka_of_independent_rows_is_high_where_debiased_is_zero():
    draws = [(rows(8, 32, seed=2 * i), rows(8, 48, seed=2 * i + 1)) for i in range(60)]
    assert np.mean([linear_cka(*draw) for draw in draws]) == pytest.approx(0.83, abs=0.03)
    debiased = [debiased_cka(*draw) for draw in draws]
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / np.sqrt(60)
    assert min(debiased) < -0.02  # negative values are kept


def test_one_outlier_decides_debiased_cka_of_unrelated_rows():
    x, y = rows(60, 5), rows(60, 7, seed=1)
    assert abs(debiased_cka(x, y)) < 0.1
    x[0], y[0] = 150.0, 150.0
    assert linear_cka(x, y) > 0.99


# --- what is given ---


@every_cka
def test_unrelated_rows_differ_a_rotated_copy_agrees_and_inputs_remain(cka):
    x, y = planted(200)
    before = x.clone(), y.clone()
    assert cka(x, 2 * turned(x) + 3) == pytest.approx(1, abs=1e-9)
    assert cka(x, y) > 0.4
    assert cka(x, y[torch.randperm(200, generator=torch.Generator().manual_seed(0))]) < 0.1
    assert_same_bits(x, before[0])
    assert_same_bits(y, before[1])


@every_cka
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_in_float64_whatever_the_rows_are(cka, dtype):
    x, y = (side.to(dtype) for side in planted(60))
    found = cka(x, y)
    assert isinstance(found, float)
    assert found == cka(x.double(), y.double())


@every_cka
def test_a_shift_far_from_the_origin_changes_nothing(cka):
    x, y = planted(60)
    assert cka(x + 1e5, y - 1e5) == pytest.approx(cka(x, y), abs=1e-8)


@every_cka
@pytest.mark.parametrize("side", [0, 1])
def test_rows_that_are_not_finite_are_named(cka, side):
    given = list(planted(30))
    given[side][[4, 9], 1] = float("nan")
    with pytest.raises(ValueError, match=f"^{'xy'[side]} holds NaN or infinity in rows 4, 9;"):
        cka(*given)


@every_cka
def test_too_few_rows_are_refused_saying_how_many_are_needed(cka):
    least = 3 if cka in (linear_cka, minibatch_linear_cka) else 4
    with pytest.raises(ValueError, match=f"^{least - 1} rows are too few; give at least {least} "):
        cka(*planted(least - 1))


@every_cka
@pytest.mark.parametrize("side", [0, 1])
def test_a_single_column_constant_columns_and_equal_rows_are_refused(cka, side):
    name, given = "xy"[side], list(planted(30, 8, 8))
    for bad, message in (
        (given[side][:, :1], f"^{name} is 1 wide; a similarity of spaces needs a width of 2"),
        (given[side][:1].expand(30, 8), f"^all rows of {name} are equal;"),
        (given[side].index_fill(1, torch.tensor([2]), 0.1), f"^{name} is constant in column 2;"),
        (
            given[side].index_fill(1, torch.arange(1, 8), 0.1),
            f"^{name} is constant in columns 1, 2, 3, 4, 5 and 2 more;",
        ),
    ):
        both = list(given)
        both[side] = bad
        with pytest.raises(ValueError, match=message):
            cka(*both)


@pytest.mark.parametrize("cka", [debiased_cka, minibatch_debiased_cka, rbf_cka], ids=lambda cka: cka.__name__)
@pytest.mark.parametrize("side", [0, 1])
def test_rows_that_are_all_equally_similar_leave_nothing_to_align(cka, side):
    given = [rows(6, 6), rows(6, 6, seed=1)]
    given[side] = torch.eye(6, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"the rows of {'xy'[side]} are all equally similar to each other"):
        cka(*given)


@pytest.mark.parametrize("bandwidth", [0, -1.0, float("nan"), float("inf")])
def test_a_bandwidth_that_is_not_positive_is_refused(bandwidth):
    with pytest.raises(ValueError, match=f"bandwidth is {bandwidth}; it is a positive multiple"):
        rbf_cka(*planted(30), bandwidth=bandwidth)


def test_a_median_distance_of_zero_is_refused():
    x, y = planted(30)
    x[:25] = x[0]
    with pytest.raises(ValueError, match="half of the pairs of rows of x are equal"):
        rbf_cka(x, y)


@pytest.mark.parametrize(("cka", "least"), [(minibatch_debiased_cka, 4), (minibatch_linear_cka, 3)])
def test_batches_too_small_are_refused(cka, least):
    with pytest.raises(ValueError, match=f"batch_rows is {least - 1}; a batch needs at least {least} rows"):
        cka(*planted(30), batch_rows=least - 1)
