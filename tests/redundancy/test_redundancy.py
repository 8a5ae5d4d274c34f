"""What the receiver already has, against hand-worked cases and planted predictors."""

import numpy as np
import pytest
import scipy.stats
import torch
from numerics import assert_same_bits
from similar import rows
from sklearn.linear_model import Ridge

from latentcomm.alignment import AffineMap, fit_ridge, row_folds
from latentcomm.fusion import Linear, OrthogonalResidual, PredictabilityResidual, Sum, VectorMap
from latentcomm.redundancy import (
    Drop,
    Keep,
    fit_predictable,
    measure_redundancy,
    orthogonal_residual,
    principal_subspace,
    residual_fusion,
    residual_map,
)


def correlations(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Every correlation between a column of x and one of y."""
    both = np.corrcoef(x.numpy(), y.numpy(), rowvar=False)
    return torch.from_numpy(both[: x.shape[1], x.shape[1] :])


def bonferroni(n: int, n_entries: int) -> float:
    """The size that no correlation of independent normal columns passes in 99.9 % of draws, all entries together."""
    return float(scipy.stats.norm.isf(0.0005 / n_entries)) / n**0.5


def test_the_residual_is_the_formula_worked_by_hand():
    # a.b = 1*1 + 2*1 = 3, b.b = 2: a - 1.5 b
    assert orthogonal_residual(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])).tolist() == [-0.5, 0.5]


def test_the_residual_of_a_state_and_itself_is_zero():
    a = rows(5, 64).float()
    assert_same_bits(orthogonal_residual(a, a.clone()), torch.zeros_like(a))
    assert orthogonal_residual(a, a.flip(0)).abs().max() > 0.1


def test_the_residual_is_what_the_fusion_injects():
    a, b = rows(5, 6), rows(5, 6, seed=1)
    torch.testing.assert_close(OrthogonalResidual(0.7)(b, a), b + 0.7 * orthogonal_residual(a, b))


def test_a_zero_state_leaves_the_message_whole_in_new_memory():
    a = rows(2, 3)
    residual = orthogonal_residual(a, torch.zeros_like(a))
    assert_same_bits(residual, a)
    residual.zero_()
    assert a.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_residual_has_the_messages_dtype_and_shape(dtype):
    a, b = rows(2, 3, 4).to(dtype), rows(2, 3, 4, seed=1).to(dtype)
    assert orthogonal_residual(a, b).dtype == dtype
    assert orthogonal_residual(a, b).shape == (2, 3, 4)


def test_unequal_widths_are_refused_naming_both():
    with pytest.raises(ValueError, match=r"a is 3 wide but b 4; map a into b's space first"):
        orthogonal_residual(rows(2, 3), rows(2, 4))


@pytest.mark.parametrize("name", ["a", "b"])
def test_states_that_are_not_finite_are_refused_by_name(name):
    given = {"a": rows(2, 3), "b": rows(2, 3, seed=1)}
    given[name][1, 2] = float("nan")
    with pytest.raises(ValueError, match=f"^{name} holds NaN or infinity in row 1"):
        orthogonal_residual(**given)


def test_a_planted_predictor_is_found_and_leaves_nothing_to_inject():
    b_rows, planted = rows(200, 4), rows(4, 4, seed=1)
    a_rows = b_rows @ planted.T + 3
    predictable = fit_predictable(b_rows, a_rows)
    torch.testing.assert_close(predictable.weight, planted, atol=1e-6, rtol=1e-6)
    fresh = rows(10, 4, seed=2)
    injected = PredictabilityResidual(predictable)(fresh, fresh @ planted.T + 3) - fresh
    assert injected.abs().max() < 1e-6


def test_the_same_model_on_the_same_text_is_wholly_predictable():
    states = rows(200, 6)
    predictable = fit_predictable(states, states)
    assert predictable.r_squared(states, states) > 1 - 1e-12
    assert (PredictabilityResidual(predictable)(states, states) - states).abs().max() < 1e-6


def test_an_unrelated_message_is_not_predictable_and_passes_nearly_whole():
    b_rows, a_rows = rows(200, 4), rows(200, 4, seed=1)
    predictable = fit_predictable(b_rows, a_rows)
    fresh_b, fresh_a = rows(200, 4, seed=2), rows(200, 4, seed=3)
    assert abs(predictable.r_squared(fresh_b, fresh_a)) < 0.05
    injected = PredictabilityResidual(predictable)(fresh_b, fresh_a) - fresh_b
    assert torch.cosine_similarity(injected, fresh_a).min() > 0.5
    assert torch.cosine_similarity(injected, fresh_a).mean() > 0.99


def test_few_rows_that_least_squares_would_erase_survive_the_held_out_fit():
    b_rows, a_rows = rows(24, 20), rows(24, 20, seed=1)
    least_squares = fit_ridge(b_rows, a_rows, penalty=0)
    assert least_squares.r_squared(b_rows, a_rows) > 0.7
    assert fit_predictable(b_rows, a_rows).r_squared(b_rows, a_rows) < 0.2


def test_document_groups_prevent_a_memorised_document_from_counting():
    # Ten documents of three near-equal rows; the message of a document has nothing to do with its states.
    b_rows = rows(10, 20).repeat_interleave(3, dim=0) + 1e-3 * rows(30, 20, seed=1)
    a_rows = rows(10, 4, seed=2).repeat_interleave(3, dim=0)
    documents = [row // 3 for row in range(30)]
    assert fit_predictable(b_rows, a_rows).r_squared(b_rows, a_rows) > 0.99
    by_document = fit_predictable(b_rows, a_rows, groups=documents, folds=3, seed=5)
    assert by_document.r_squared(b_rows, a_rows) < 0.5
    expected = fit_ridge(b_rows, a_rows, groups=documents, folds=3, seed=5)
    assert_same_bits(by_document.weight, expected.weight)


# --- parts of messages in the fusions ---


def test_the_parts_are_maps_that_the_fusions_take():
    redundant = principal_subspace(rows(50, 4), rank=2)
    own, incoming = rows(3, 4, seed=1), rows(3, 4, seed=2)
    assert isinstance(Drop(redundant), VectorMap) and isinstance(Keep(redundant), VectorMap)
    injected = Linear(Drop(redundant, scale=0.5), Sum())(own, incoming) - own
    torch.testing.assert_close(injected, 0.5 * redundant.drop(incoming))
    torch.testing.assert_close(Linear(Keep(redundant))(own, incoming), redundant.keep(incoming))


def test_the_residual_fusion_of_equal_widths_is_predictability_residual():
    b_rows, a_rows = rows(60, 4), rows(60, 4, seed=1)
    predictable = fit_predictable(b_rows, a_rows)
    expected = PredictabilityResidual(predictable, 0.7)(b_rows, a_rows)
    torch.testing.assert_close(residual_fusion(predictable, scale=0.7)(b_rows, a_rows), expected)


def test_the_residual_of_a_wider_sender_is_aligned_without_the_offset():
    b_rows = rows(80, 3)
    a_rows = torch.cat((b_rows, rows(80, 2, seed=1)), 1) + 9
    predictable, into = fit_predictable(b_rows, a_rows), AffineMap(rows(3, 5, seed=2), rows(3, seed=3))
    own, incoming = rows(6, 3, seed=4), rows(6, 5, seed=5)
    in_sender = incoming - predictable(own)
    both = torch.cat((own, incoming), 1)
    torch.testing.assert_close(residual_map(predictable)(both), in_sender)
    torch.testing.assert_close(residual_map(predictable, into=into)(both), in_sender @ into.weight.T)
    fused = residual_fusion(predictable, into=into, scale=2.0)(own, incoming)
    torch.testing.assert_close(fused, own + 2 * in_sender @ into.weight.T)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: residual_fusion(p), "residual is 5 wide but the receiver's state 3; pass into, a map from 5 to 3"),
        (lambda p: residual_map(p, into=AffineMap.identity(4)), "into is AffineMap.4->4. but the residual is 5 wide"),
        (
            lambda p: residual_map(p, into=AffineMap.identity(5)),
            "into is torch.float32 on cpu but predictable torch.float64",
        ),
        (lambda p: residual_fusion(p, scale=float("nan")), "scale is nan; it must be a finite number"),
    ],
)
def test_a_residual_that_fits_no_receiver_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(fit_predictable(rows(40, 3), rows(40, 5, seed=1)))


# --- how much is predictable ---


def test_at_penalty_zero_the_residual_has_no_covariance_on_fitted_rows():
    b_rows, a_rows = rows(200, 4), rows(200, 6, seed=1) + rows(200, 4) @ rows(4, 6, seed=2)
    residual = a_rows - fit_predictable(b_rows, a_rows, penalty=0)(b_rows)
    assert correlations(b_rows, residual).abs().max() < 1e-12
    assert correlations(b_rows, a_rows).abs().max() > 0.3


def test_with_a_penalty_the_covariance_left_is_the_penalty_times_the_map():
    b_rows, a_rows = rows(50, 4), rows(50, 4) @ rows(4, 3, seed=2) + rows(50, 3, seed=1)
    predictable = fit_predictable(b_rows, a_rows, penalty=7)
    left = (b_rows - b_rows.mean(0)).T @ (a_rows - predictable(b_rows))
    torch.testing.assert_close(left, 7 * predictable.weight.T, atol=1e-10, rtol=1e-10)


def test_on_fresh_rows_the_residual_is_uncorrelated_within_the_interval():
    planted = rows(4, 6, seed=2)
    b_rows, fresh_b = rows(4000, 4), rows(500, 4, seed=3)
    predictable = fit_predictable(b_rows, b_rows @ planted + rows(4000, 6, seed=1))
    fresh_a = fresh_b @ planted + rows(500, 6, seed=4)
    limit = bonferroni(500, 24)
    assert correlations(fresh_b, fresh_a - predictable(fresh_b)).abs().max() < limit
    assert correlations(fresh_b, fresh_a).abs().max() > 3 * limit


def test_a_message_that_is_the_receivers_own_state_is_wholly_redundant():
    states = rows(100, 5) + 2
    report = measure_redundancy(states, states.clone())
    assert report.r_squared == pytest.approx(1, abs=1e-12)
    assert report.explained_energy == pytest.approx(1, abs=1e-12)
    assert report.along_state == 1
    assert report.spectrum.max() < 1e-10


def test_the_share_along_the_receivers_state_is_of_squared_projections():
    a_rows, b_rows = rows(40, 3) + 1, rows(40, 3, seed=1)
    along = ((a_rows * b_rows).sum(1) / b_rows.norm(dim=1)).square().sum() / a_rows.square().sum()
    assert measure_redundancy(a_rows, b_rows).along_state == pytest.approx(float(along), abs=1e-12)
    assert 0.1 < float(along) < 0.9


@pytest.mark.parametrize("side", [0, 1])
def test_messages_or_states_that_are_all_equal_are_refused(side):
    given = [rows(60, 3), rows(60, 3, seed=1)]
    given[side] = torch.ones(60, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^all 60 rows of {'ab'[side]}_rows are equal; give other texts$"):
        measure_redundancy(*given)


def test_half_of_the_variance_planted_is_half_found():
    b_rows = rows(1500, 4)
    novel = rows(1500, 4, seed=1) * torch.tensor([1.4, 1.0, 0.5, 0.0])
    report = measure_redundancy(b_rows @ torch.linalg.qr(rows(4, 4, seed=2))[0] + novel, b_rows)
    signal, rest = 4.0, 1.96 + 1 + 0.25
    assert report.r_squared == pytest.approx(signal / (signal + rest), abs=0.03)
    expected = torch.linalg.eigvalsh(torch.cov(novel.T)).flip(0)
    torch.testing.assert_close(report.spectrum[:3], expected[:3], atol=0.02, rtol=0.02)
    assert report.effective_rank == pytest.approx(rest**2 / (1.96**2 + 1 + 0.0625), abs=0.15)


def test_an_unrelated_message_is_not_redundant_though_its_mean_is_known():
    a_rows, b_rows = rows(300, 4) + 3, rows(300, 3, seed=1)
    report = measure_redundancy(a_rows, b_rows)
    assert abs(report.r_squared) < 0.03
    assert report.explained_energy == pytest.approx(9 / 10, abs=0.02)
    assert report.along_state is None
    assert (report.n_rows, report.n_groups) == (300, 300)


def test_a_memorised_document_does_not_count_as_redundant():
    b_rows = rows(20, 30).repeat_interleave(4, dim=0) + 1e-3 * rows(80, 30, seed=1)
    a_rows = rows(20, 4, seed=2).repeat_interleave(4, dim=0)
    documents = [f"document {row // 4}" for row in range(80)]
    assert measure_redundancy(a_rows, b_rows).r_squared > 0.9
    report = measure_redundancy(a_rows, b_rows, groups=documents)
    assert report.r_squared < 0.2
    assert report.n_groups == 20


def test_every_row_is_predicted_by_a_map_that_did_not_see_it():
    a_rows, b_rows = rows(30, 2), rows(30, 3, seed=1)
    left = torch.empty_like(a_rows)
    total = 0.0
    for held_out in row_folds(30, folds=3, seed=4):
        kept = [row for row in range(30) if row not in held_out.tolist()]
        fitted = fit_ridge(b_rows[kept], a_rows[kept], folds=3, seed=4)
        left[held_out] = a_rows[held_out] - fitted(b_rows[held_out])
        total += float(((a_rows[held_out] - a_rows[kept].mean(0)) ** 2).sum())
    report = measure_redundancy(a_rows, b_rows, folds=3, seed=4)
    assert report.r_squared == pytest.approx(1 - float((left**2).sum()) / total, abs=1e-12)
    assert report.explained_energy == pytest.approx(1 - float((left**2).sum() / (a_rows**2).sum()), abs=1e-12)
    assert report.spectrum.tolist() == pytest.approx(np.linalg.eigvalsh(np.cov(left.numpy().T))[::-1].tolist())


# --- how sure it is ---


def test_the_interval_is_the_bootstrap_of_whole_documents_written_out():
    a_rows, b_rows, documents = documents_of(12, 5, seed=0)
    report = measure_redundancy(a_rows, b_rows, groups=documents, folds=3, penalty=2, n_resamples=400)
    left, size = np.zeros(12), np.zeros(12)
    for held_out in row_folds(60, folds=3, groups=documents):
        kept = np.setdiff1d(np.arange(60), held_out.numpy())
        fitted, mean = Ridge(alpha=2).fit(b_rows[kept], a_rows[kept]), a_rows[kept].numpy().mean(0)
        for row in held_out.tolist():
            left[documents[row]] += (
                (a_rows[row].numpy() - fitted.predict(b_rows[row : row + 1].numpy())[0]) ** 2
            ).sum()
            size[documents[row]] += ((a_rows[row].numpy() - mean) ** 2).sum()
    generator, drawn = np.random.default_rng(5), []
    for _ in range(20_000):
        chosen = generator.integers(12, size=12)
        drawn.append(1 - left[chosen].sum() / size[chosen].sum())
    assert report.r_squared == pytest.approx(1 - left.sum() / size.sum(), abs=1e-10)
    assert report.r_squared_interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert report.r_squared_interval[0] < report.r_squared < report.r_squared_interval[1]


def documents_of(n: int, rows_each: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Messages that a receiver's states predict in part, the rest shared by the rows of a document."""
    labels = torch.arange(n).repeat_interleave(rows_each)
    b_rows = rows(n * rows_each, 3, seed=seed)
    own = rows(n, 2, seed=seed + 1)[labels] + 0.3 * rows(n * rows_each, 2, seed=seed + 2)
    return b_rows @ rows(3, 2, seed=99) + 2 * own, b_rows, labels.tolist()


def test_documents_that_agree_within_give_a_wider_interval_than_rows():
    a_rows, b_rows, documents = documents_of(20, 30, seed=0)
    by_row, by_document = (measure_redundancy(a_rows, b_rows, groups=groups) for groups in (None, documents))
    widths = [high - low for low, high in (by_row.r_squared_interval, by_document.r_squared_interval)]
    assert widths[1] > 2 * widths[0]


def test_the_residuals_covariance_is_zero_within_its_interval():
    planted, inside = rows(8, 3, seed=9), 0
    for seed in range(40):
        b_rows = rows(200, 8, seed=100 + seed)
        found = measure_redundancy(b_rows @ planted + 3 * rows(200, 3, seed=200 + seed), b_rows, penalty=0.5, folds=3)
        low, high = found.residual_covariance_interval
        inside += low < 0 < high
    assert inside >= 28  # of 40; the maps are refitted from draw to draw, which the interval does not know
    b_rows, a_rows = rows(60, 30), rows(60, 3, seed=1)
    claimed = measure_redundancy(a_rows, b_rows, penalty=0)
    assert claimed.residual_covariance_interval[1] < -0.1
    held_back = measure_redundancy(b_rows[:, :3], b_rows, penalty=200)
    assert held_back.residual_covariance_interval[0] > 0.1


def test_the_residuals_covariance_is_its_formula():
    a_rows, b_rows = rows(40, 2) + 5, rows(40, 3, seed=1)
    covariance, size = 0.0, 0.0
    for held_out in row_folds(40, folds=4):
        kept = np.setdiff1d(np.arange(40), held_out.numpy())
        fitted, mean = Ridge(alpha=3).fit(b_rows[kept], a_rows[kept]), a_rows[kept].numpy().mean(0)
        said, own = fitted.predict(b_rows[held_out].numpy()), a_rows[held_out].numpy()
        covariance, size = covariance + ((own - said) * (said - mean)).sum(), size + ((own - mean) ** 2).sum()
    found = measure_redundancy(a_rows, b_rows, folds=4, penalty=3)
    assert found.residual_covariance == pytest.approx(covariance / size, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"level": 1.5}, "level is 1.5; it is a share"), ({"n_resamples": 0}, "n_resamples is 0; at least 1 is needed")],
)
def test_what_makes_no_interval_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        measure_redundancy(rows(30, 2), rows(30, 3, seed=1), **given)
