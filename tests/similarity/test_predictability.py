"""Held-out predictability against scikit-learn's refits, planted maps and documents that leak."""

import numpy as np
import pytest
import torch
from numerics import assert_same_bits
from similar import planted, rows, turned
from sklearn.linear_model import Ridge

from latentcomm.alignment import PENALTY_RATIOS, row_folds
from latentcomm.similarity import linear_predictability
from latentcomm.similarity.layer_maps.ridge import check_penalty, factor_source, fold_sums
from latentcomm.similarity.predictability import predictability_of_each


def documents(n_documents: int, length: int) -> torch.Tensor:
    return torch.arange(n_documents).repeat_interleave(length)


def refit(x: np.ndarray, y: np.ndarray, training: np.ndarray, test: np.ndarray, ratio: float) -> tuple[float, float]:
    """Squared error and squared size on the test rows of scikit-learn's ridge of the training rows."""
    spread = ((x[training] - x[training].mean(0)) ** 2).sum() / x.shape[1]
    model = Ridge(alpha=ratio * spread, solver="cholesky").fit(x[training], y[training])
    sse = ((y[test] - model.predict(x[test])) ** 2).sum()
    return float(sse), float(((y[test] - y[training].mean(0)) ** 2).sum())


def parts(n: int, folds: int, groups: torch.Tensor | None, seed: int) -> list[np.ndarray]:
    return [fold.numpy() for fold in row_folds(n, folds=folds, groups=groups, seed=seed)]


def rest(n: int, *held_out: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.arange(n), np.concatenate(held_out))


@pytest.mark.parametrize("groups", [None, documents(12, 5)], ids=["rows", "documents"])
@pytest.mark.parametrize("penalty", [1e-6, 0.01, 1, 100])
def test_a_given_penalty_is_scikit_learns_refits(groups, penalty):
    x, y = planted(60, noise=1.0)
    held_out = parts(60, 5, groups, 3)
    fits = [refit(x.numpy(), y.numpy(), rest(60, part), part, penalty) for part in held_out]
    expected = 1 - sum(sse for sse, _ in fits) / sum(tss for _, tss in fits)
    assert linear_predictability(x, y, penalty=penalty, groups=groups, seed=3) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("penalty", [None, 0.01])
def test_many_layers_at_once_are_the_same_numbers_as_each_alone(penalty):
    x, y = planted(60, noise=1.0)
    layers = [y, rows(60, 3, seed=9), 2 * y]
    found = predictability_of_each(x, iter(layers), penalty=penalty, groups=documents(12, 5), seed=3)
    expected = [linear_predictability(x, y, penalty=penalty, groups=documents(12, 5), seed=3) for y in layers]
    assert found.tolist() == expected and expected[0] > 0.2 > expected[1]
    with pytest.raises(ValueError, match="no layer of y to predict"):
        predictability_of_each(x, [])
    with pytest.raises(ValueError, match="y is 1 wide"):
        predictability_of_each(x, [y, y[:, :1]])


@pytest.mark.parametrize("folds", [3, 5])
def test_the_chosen_penalty_never_sees_the_rows_it_is_judged_on(folds):
    x, y = planted(60, noise=2.0)
    held_out = parts(60, folds, None, 0)
    sse = tss = 0.0
    ratios = set()
    for number, part in enumerate(held_out):
        judge = held_out[(number + 1) % folds]
        errors = [refit(x.numpy(), y.numpy(), rest(60, part, judge), judge, ratio)[0] for ratio in PENALTY_RATIOS]
        ratios.add(PENALTY_RATIOS[int(np.argmin(errors))])
        error, size = refit(x.numpy(), y.numpy(), rest(60, part), part, PENALTY_RATIOS[int(np.argmin(errors))])
        sse, tss = sse + error, tss + size
    assert linear_predictability(x, y, folds=folds) == pytest.approx(1 - sse / tss, abs=1e-8)
    assert len(ratios) > 1 or folds == 3


def test_more_columns_than_rows_are_no_obstacle_with_a_penalty():
    x, y = planted(30, 80, 90, noise=1.0)
    fits = [refit(x.numpy(), y.numpy(), rest(30, part), part, 0.1) for part in parts(30, 5, None, 0)]
    expected = 1 - sum(sse for sse, _ in fits) / sum(tss for _, tss in fits)
    assert linear_predictability(x, y, penalty=0.1) == pytest.approx(expected, abs=1e-8)


def test_penalty_zero_is_least_squares_and_is_refused_without_full_rank():
    x, y = planted(40, noise=1.0)
    fits = [refit(x.numpy(), y.numpy(), rest(40, part), part, 0.0) for part in parts(40, 5, None, 0)]
    expected = 1 - sum(sse for sse, _ in fits) / sum(tss for _, tss in fits)
    assert linear_predictability(x, y, penalty=0) == pytest.approx(expected, abs=1e-8)
    with pytest.raises(ValueError, match="penalty 0 needs training rows of full rank"):
        linear_predictability(torch.cat((x, x[:, :1]), 1), y, penalty=0)


def test_a_planted_map_reaches_its_noise_ceiling_and_noise_nothing():
    x = rows(800, 6)
    y = turned(x) + 0.5 * rows(800, 6, seed=5)  # signal variance 1, noise variance 1/4: the best possible R^2 is 0.8
    assert linear_predictability(x, y) == pytest.approx(0.8, abs=0.02)
    assert -0.02 < linear_predictability(rows(600, 300), rows(600, 20, seed=1)) < 0.005


def test_the_two_directions_differ_where_one_side_holds_more():
    x = rows(400, 8)
    y = x[:, :3].contiguous()
    assert linear_predictability(x, y) > 1 - 1e-9
    assert linear_predictability(y, x) == pytest.approx(3 / 8, abs=0.03)


def test_row_folds_leak_within_documents_and_document_folds_do_not():
    label = documents(30, 20)
    x = rows(30, 40)[label] + 0.1 * rows(600, 40, seed=1)  # what a document is about, said again at every token
    y = rows(30, 5, seed=2)[label] + 0.1 * rows(600, 5, seed=3)  # unrelated, but constant in a document too
    assert linear_predictability(x, y) > 0.9
    assert linear_predictability(x, y, groups=label) < 0.05


def test_a_row_far_from_all_others_is_judged_about_the_training_mean():
    x, y = planted(40)
    y[0] += 1000
    # So strong a penalty predicts the training mean, which is what R^2 is counted from: in its fold, and in the other.
    assert abs(linear_predictability(x, y, penalty=1e12, folds=2)) < 1e-6


def test_the_same_seed_gives_the_same_number_and_nothing_given_changes():
    x, y = planted(60, noise=1.0)
    before = x.clone(), y.clone()
    found = [linear_predictability(x, y, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != pytest.approx(found[2])
    assert_same_bits(x, before[0])
    assert_same_bits(y, before[1])


@pytest.mark.parametrize("penalty", [-1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match=f"penalty is {penalty}; give a multiple of the mean eigenvalue"):
        linear_predictability(*planted(40), penalty=penalty)


def test_too_few_rows_folds_or_documents_are_refused():
    x, y = planted(40)
    with pytest.raises(ValueError, match=r"^9 rows are too few; give at least 10 for 5 folds"):
        linear_predictability(x[:9], y[:9])
    with pytest.raises(ValueError, match=r"^folds is 2; choosing a penalty inside the training folds needs 3"):
        linear_predictability(x, y, folds=2)
    with pytest.raises(ValueError, match=r"^folds is 1; at least 2 are needed"):
        linear_predictability(x, y, folds=1, penalty=1)
    with pytest.raises(ValueError, match="4 groups cannot make 5 folds"):
        linear_predictability(x, y, groups=documents(4, 10))
    with pytest.raises(ValueError, match="39 group labels for 40 rows"):
        linear_predictability(x, y, groups=[0] * 39)
    check_penalty(0.0, 2)


def test_bad_rows_are_refused_as_by_every_measure():
    x, y = planted(40)
    with pytest.raises(ValueError, match=r"^y is 1 wide"):
        linear_predictability(x, y[:, :1])
    with pytest.raises(ValueError, match=r"^all rows of y are equal"):
        linear_predictability(x, y[:1].expand(40, -1))
    x[3, 1] = float("inf")
    with pytest.raises(ValueError, match=r"^x holds NaN or infinity in row 3;"):
        linear_predictability(x, y)


def test_a_fold_without_rows_and_training_rows_that_are_equal_are_refused():
    fold = torch.arange(9) % 3
    with pytest.raises(ValueError, match=r"^fold 3 of 4 holds no rows; give more rows or documents, or fewer folds"):
        factor_source(fold_sums(rows(9, 2), fold, 4), choosing=False)
    level = rows(9, 2).masked_fill((fold > 0)[:, None], 0.0)
    with pytest.raises(ValueError, match=r"^the training rows of some fold are all equal"):
        factor_source(fold_sums(level, fold, 3), choosing=False)
