"""The aligners against planted maps, other libraries and other formulas; the saved map against its bits."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from jaxtyping import TypeCheckError
from numerics import assert_same_bits
from safetensors.torch import save_file
from similar import rows
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge

from latentcomm.alignment import (
    ALIGNERS,
    PENALTY_RATIOS,
    AffineMap,
    choose_penalty,
    fit_cca,
    fit_procrustes,
    fit_ridge,
    row_folds,
)

NAN, INF = float("nan"), float("inf")


def orthogonal(d_out: int, d_in: int, seed: int = 3) -> torch.Tensor:
    """A planted map with orthonormal columns or rows, whichever there are fewer of."""
    wide = max(d_out, d_in)
    return torch.linalg.qr(rows(wide, wide, seed=seed))[0][:d_out, :d_in]


# Each aligner with the options it needs for widths of 4, and the weight it can recover exactly.
FITS: dict[str, Callable[[torch.Tensor, torch.Tensor], AffineMap]] = {
    "procrustes": fit_procrustes,
    "ridge": fit_ridge,
    "cca": lambda source, target: fit_cca(source, target, rank=4),
}
every_aligner = pytest.mark.parametrize("name", ALIGNERS)


# --- what all aligners promise ---


def test_the_contract_below_covers_every_entry_of_the_table():
    assert set(FITS) == set(ALIGNERS)
    assert ALIGNERS["ridge"] is fit_ridge and ALIGNERS["cca"] is fit_cca and ALIGNERS["procrustes"] is fit_procrustes


@every_aligner
def test_a_planted_map_is_recovered_and_holds_on_rows_it_never_saw(name):
    planted, shift = orthogonal(4, 4), rows(4, seed=4)
    source, fresh = rows(100, 4), rows(50, 4, seed=9)
    fitted = FITS[name](source, source @ planted.T + shift)
    torch.testing.assert_close(fitted.weight, planted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(fitted.bias, shift, atol=1e-6, rtol=1e-6)
    assert fitted.r_squared(fresh, fresh @ planted.T + shift) > 1 - 1e-10
    assert fitted.r_squared(fresh, fresh @ planted + shift) < 0.9


@every_aligner
def test_a_noisy_planted_map_explains_held_out_rows_unless_shuffled(name):
    planted = orthogonal(4, 4)
    source, fresh = rows(400, 4), rows(200, 4, seed=9)
    target = source @ planted.T + 0.5 * rows(400, 4, seed=5)
    fresh_target = fresh @ planted.T + 0.5 * rows(200, 4, seed=6)
    # Signal variance 1, noise variance 1/4: the best possible R^2 is 0.8.
    assert FITS[name](source, target).r_squared(fresh, fresh_target) == pytest.approx(0.8, abs=0.04)
    shuffled = target[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert FITS[name](source, shuffled).r_squared(fresh, fresh_target) < 0.15


@every_aligner
def test_the_mean_of_the_source_maps_to_the_mean_of_the_target(name):
    source, target = rows(100, 4) + 5, rows(100, 4, seed=1) - 3
    torch.testing.assert_close(FITS[name](source, target)(source.mean(0)), target.mean(0))


@every_aligner
def test_inputs_do_not_change_and_the_same_rows_give_the_same_bits(name):
    source, target = rows(100, 4), rows(100, 4, seed=1)
    source_before, target_before = source.clone(), target.clone()
    first, second = FITS[name](source, target), FITS[name](source, target)
    assert_same_bits(source, source_before)
    assert_same_bits(target, target_before)
    assert_same_bits(first.weight, second.weight)
    assert_same_bits(first.bias, second.bias)


@every_aligner
@pytest.mark.parametrize(
    ("given", "kept"), [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)]
)
def test_fitting_is_in_float64_and_the_map_has_the_targets_dtype(name, given, kept):
    source, target = rows(100, 4, dtype=given), rows(100, 4, seed=1, dtype=given)
    fitted = FITS[name](source, target)
    assert fitted.weight.dtype == fitted.bias.dtype == kept
    exact = FITS[name](source.double(), target.double())
    assert_same_bits(fitted.weight, exact.weight.to(kept))


@every_aligner
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_rows_that_are_not_finite_are_refused_and_named(name, side, bad):
    given = {"source": rows(100, 4), "target": rows(100, 4, seed=1)}
    given[side][17, 2] = bad
    given[side][40, 0] = bad
    with pytest.raises(ValueError, match=f"^{side} holds NaN or infinity in rows 17, 40;"):
        FITS[name](given["source"], given["target"])


@every_aligner
def test_different_row_counts_are_refused_naming_both(name):
    with pytest.raises(TypeCheckError, match=r"^target is float64 \[90 4\]; .*\[row d_receiver\] with row 100"):
        FITS[name](rows(100, 4), rows(90, 4))


@every_aligner
@pytest.mark.parametrize("side", ["source", "target"])
def test_rows_that_are_all_equal_are_refused(name, side):
    given = {"source": rows(100, 4), "target": rows(100, 4, seed=1)}
    given[side] = torch.full((100, 4), 0.1, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"all 100 {side} rows are equal"):
        FITS[name](given["source"], given["target"])


@every_aligner
@pytest.mark.parametrize("n_rows", [0, 1])
def test_fewer_than_two_rows_are_refused(name, n_rows):
    with pytest.raises(ValueError, match=f"{n_rows} rows fix no map; capture at least 2"):
        FITS[name](rows(n_rows, 4), rows(n_rows, 4))


# --- Procrustes ---


def test_procrustes_without_centring_is_scipys():
    source, target = rows(50, 6) + 1, rows(50, 6, seed=1) - 2
    expected, _ = scipy.linalg.orthogonal_procrustes(source.numpy(), target.numpy())
    fitted = fit_procrustes(source, target, centre=False)
    np.testing.assert_allclose(fitted.weight.numpy(), expected.T, atol=1e-10)
    assert not fitted.bias.any()


def test_procrustes_with_centring_is_scipys_on_centred_rows():
    source, target = rows(50, 6) + 1, rows(50, 6, seed=1) - 2
    x, y = (source - source.mean(0)).numpy(), (target - target.mean(0)).numpy()
    expected, _ = scipy.linalg.orthogonal_procrustes(x, y)
    np.testing.assert_allclose(fit_procrustes(source, target).weight.numpy(), expected.T, atol=1e-10)


@pytest.mark.parametrize(("d_in", "d_out"), [(4, 4), (3, 5), (5, 3)])
def test_procrustes_is_orthogonal_and_recovers_a_map_between_widths(d_in, d_out):
    planted, shift = orthogonal(d_out, d_in), rows(d_out, seed=4)
    source = rows(60, d_in)
    if d_in > d_out:  # rows of the target must reach every direction that the map keeps
        target = rows(60, d_out, seed=8)
        source = target @ planted
        target = target + shift
    else:
        target = source @ planted.T + shift
    fitted = fit_procrustes(source, target)
    narrow = min(d_in, d_out)
    gram = fitted.weight.T @ fitted.weight if d_out >= d_in else fitted.weight @ fitted.weight.T
    torch.testing.assert_close(gram, torch.eye(narrow, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(fitted.weight, planted, atol=1e-10, rtol=0)
    torch.testing.assert_close(fitted(source), target)


@pytest.mark.parametrize(("d_in", "d_out"), [(4, 4), (3, 5)])
def test_no_nearby_isometry_fits_better_than_procrustes(d_in, d_out):
    source, target = rows(60, d_in), rows(60, d_out, seed=1)
    x, y = source - source.mean(0), target - target.mean(0)
    best = fit_procrustes(source, target).weight
    best_error = (y - x @ best.T).square().sum()
    for seed in range(20):
        skew = rows(d_out, d_out, seed=seed)
        turn = torch.linalg.matrix_exp(0.05 * (skew - skew.T))
        assert (y - x @ (turn @ best).T).square().sum() > best_error


def test_procrustes_to_a_narrower_space_is_the_transposed_way_back():
    wide, narrow = rows(60, 5), rows(60, 3, seed=1)
    torch.testing.assert_close(fit_procrustes(wide, narrow).weight, fit_procrustes(narrow, wide).weight.T)


def test_procrustes_does_not_stretch_where_ridge_does():
    source = rows(60, 4)
    torch.testing.assert_close(fit_procrustes(source, 3 * source).weight, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(fit_ridge(source, 3 * source).weight, 3 * torch.eye(4, dtype=torch.float64))


def test_procrustes_needs_a_row_more_than_the_smaller_width_once_centred():
    with pytest.raises(ValueError, match=r"4 rows cannot fix an orthogonal map 4->6; capture at least 5"):
        fit_procrustes(rows(4, 4), rows(4, 6))
    fit_procrustes(rows(5, 4), rows(5, 6))
    fit_procrustes(rows(4, 4), rows(4, 6), centre=False)
    with pytest.raises(ValueError, match=r"capture at least 4"):
        fit_procrustes(rows(3, 4), rows(3, 6), centre=False)


# --- ridge ---


@pytest.mark.parametrize("penalty", [0.0, 1e-3, 1.0, 1e3, 7])
@pytest.mark.parametrize("n_rows", [12, 80])
def test_ridge_is_that_of_scikit_learn(penalty, n_rows):
    source, target = rows(n_rows, 6) + 4, rows(n_rows, 3, seed=1) - 2
    judge = Ridge(alpha=penalty, solver="svd").fit(source.numpy(), target.numpy())
    fitted = fit_ridge(source, target, penalty=penalty)
    np.testing.assert_allclose(fitted.weight.numpy(), judge.coef_, atol=1e-8)
    np.testing.assert_allclose(fitted.bias.numpy(), judge.intercept_, atol=1e-8)


def test_ridge_with_fewer_rows_than_dimensions_is_that_of_scikit_learn():
    source, target = rows(5, 20), rows(5, 3, seed=1)
    judge = Ridge(alpha=0.5, solver="cholesky").fit(source.numpy(), target.numpy())
    np.testing.assert_allclose(fit_ridge(source, target, penalty=0.5).weight.numpy(), judge.coef_, atol=1e-8)


def test_the_intercept_is_never_penalised():
    source, target = rows(50, 4) + 100, rows(50, 3, seed=1) + 1000
    heavy = fit_ridge(source, target, penalty=1e12)
    torch.testing.assert_close(heavy(source), target.mean(0).expand(50, 3), atol=1e-5, rtol=0)
    moved = fit_ridge(source - 7, target + 20, penalty=3.0)
    torch.testing.assert_close(moved(source - 7), fit_ridge(source, target, penalty=3.0)(source) + 20)


def naive_choice(source, target, held_out: list[list[int]]) -> float:
    """The penalty by fitting scikit-learn's ridge once for each fold and each penalty."""
    x, y = source.numpy(), target.numpy()

    def mean_eigenvalue(part: np.ndarray) -> float:
        return float(np.linalg.eigvalsh((part - part.mean(0)).T @ (part - part.mean(0))).mean())

    errors = []
    for ratio in PENALTY_RATIOS:
        error = 0.0
        for fold in held_out:
            kept = [row for row in range(len(x)) if row not in fold]
            judge = Ridge(alpha=ratio * mean_eigenvalue(x[kept]), solver="svd").fit(x[kept], y[kept])
            error += float(((y[fold] - judge.predict(x[fold])) ** 2).sum())
        errors.append(error)
    return PENALTY_RATIOS[int(np.argmin(errors))] * mean_eigenvalue(x)


@pytest.mark.parametrize(("n_rows", "noise", "seed"), [(40, 0.3, 0), (40, 3.0, 1), (12, 1.0, 2), (25, 0.05, 3)])
@pytest.mark.parametrize("by_document", [False, True])
def test_the_penalty_is_the_one_a_loop_over_folds_and_penalties_chooses(n_rows, noise, seed, by_document):
    source = rows(n_rows, 8, seed=seed) * torch.logspace(0, -2, 8, dtype=torch.float64) + 3
    target = source @ rows(8, 2, seed=seed + 10) + noise * rows(n_rows, 2, seed=seed + 20)
    groups = [f"document {row // 3}" for row in range(n_rows)] if by_document else None
    held_out = [fold.tolist() for fold in row_folds(n_rows, folds=4, groups=groups, seed=seed)]
    expected = naive_choice(source, target, held_out)
    chosen = choose_penalty(source, target, folds=4, groups=groups, seed=seed)
    assert chosen == pytest.approx(expected, rel=1e-9)
    fitted = fit_ridge(source, target, folds=4, groups=groups, seed=seed)
    assert_same_bits(fitted.weight, fit_ridge(source, target, penalty=chosen).weight)


def test_the_penalties_tried_reach_from_the_mean_alone_to_least_squares():
    assert PENALTY_RATIOS[0] == pytest.approx(1e4)
    assert PENALTY_RATIOS[-1] == pytest.approx(1e-8)
    assert list(PENALTY_RATIOS) == sorted(PENALTY_RATIOS, reverse=True)


def test_a_held_out_penalty_beats_least_squares_and_the_mean():
    planted = rows(3, 20, seed=3) / 4
    source, fresh = rows(30, 20), rows(300, 20, seed=9)
    target = source @ planted.T + rows(30, 3, seed=5)
    fresh_target = fresh @ planted.T + rows(300, 3, seed=6)
    chosen = fit_ridge(source, target).r_squared(fresh, fresh_target)
    assert chosen > fit_ridge(source, target, penalty=0).r_squared(fresh, fresh_target) + 0.1
    assert chosen > fit_ridge(source, target, penalty=1e12).r_squared(fresh, fresh_target) + 0.1


def test_documents_leak_between_row_folds_and_not_between_document_folds():
    source = rows(10, 20).repeat_interleave(3, dim=0) + 1e-3 * rows(30, 20, seed=1)
    target = rows(10, 4, seed=2).repeat_interleave(3, dim=0)
    documents = [row // 3 for row in range(30)]
    assert choose_penalty(source, target, groups=documents) > 100 * choose_penalty(source, target)


@pytest.mark.parametrize("penalty", [-1.0, NAN, INF])
def test_a_penalty_that_is_no_penalty_is_refused(penalty):
    with pytest.raises(ValueError, match=r"penalty is .*; it must be finite and at least 0, or None"):
        fit_ridge(rows(20, 4), rows(20, 4), penalty=penalty)


def test_least_squares_on_rows_that_do_not_fix_it_is_refused():
    with pytest.raises(ValueError, match=r"penalty 0 needs .* these 4 rows have rank 3 of 4"):
        fit_ridge(rows(4, 4), rows(4, 2), penalty=0)
    fit_ridge(rows(5, 4), rows(5, 2), penalty=0)
    flat = rows(50, 2) @ rows(2, 4, seed=1)
    with pytest.raises(ValueError, match=r"rank 2 of 4"):
        fit_ridge(flat, rows(50, 2), penalty=0)


def test_directions_of_no_size_are_left_alone_however_small_the_penalty():
    flat = rows(50, 2) @ rows(2, 4, seed=1)
    target = flat @ rows(4, 2, seed=2)
    fitted = fit_ridge(flat, target, penalty=1e-30)
    torch.testing.assert_close(fitted(flat), target)
    assert fitted.weight.norm() < 10


def test_a_training_fold_whose_source_never_varies_is_refused():
    source = torch.zeros(4, 2, dtype=torch.float64)
    source[0] = 1
    with pytest.raises(ValueError, match="training fold's source rows are equal"):
        fit_ridge(source, rows(4, 2), folds=4)


# --- folds ---


@pytest.mark.parametrize(("n_rows", "folds"), [(10, 5), (11, 5), (7, 7), (23, 4)])
def test_every_row_is_held_out_once_in_folds_of_nearly_equal_size(n_rows, folds):
    held_out = [fold.tolist() for fold in row_folds(n_rows, folds=folds)]
    assert sorted(row for fold in held_out for row in fold) == list(range(n_rows))
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    assert all(fold == sorted(fold) for fold in held_out)


def test_the_seed_alone_decides_the_folds():
    first = [fold.tolist() for fold in row_folds(20, folds=4, seed=1)]
    assert first == [fold.tolist() for fold in row_folds(20, folds=4, seed=1)]
    assert first != [fold.tolist() for fold in row_folds(20, folds=4, seed=2)]
    before = torch.random.get_rng_state()
    row_folds(20, folds=4, seed=1)
    assert_same_bits(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["text", "number", "tensor"])
def test_a_document_never_splits_between_folds(kind):
    sizes = [1, 9, 2, 2, 5, 1, 3, 4]
    numbers = [document for document, size in enumerate(sizes) for _ in range(size)]
    numbers = [numbers[(row * 5) % 27] for row in range(27)]  # rows of a document need not be neighbours
    groups = {"text": [f"d{n}" for n in numbers], "number": numbers, "tensor": torch.tensor(numbers)}[kind]
    held_out = [fold.tolist() for fold in row_folds(27, folds=3, groups=groups)]
    assert sorted(row for fold in held_out for row in fold) == list(range(27))
    documents = [{numbers[row] for row in fold} for fold in held_out]
    assert sum(len(held) for held in documents) == len(set.union(*documents)) == 8
    assert [len(fold) for fold in held_out] == [9, 9, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds is 1; at least 2"),
        ({"folds": 7}, "6 rows cannot make 7 folds"),
        ({"folds": 3, "groups": [0, 0, 0, 1, 1, 1]}, "2 groups cannot make 3 folds"),
        ({"folds": 2, "groups": [0, 1]}, "2 group labels for 6 rows"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        row_folds(6, **options)
    with pytest.raises(ValueError, match=message):
        fit_ridge(rows(6, 2), rows(6, 2), **options)


# --- canonical correlation ---


def naive_cca(source: torch.Tensor, target: torch.Tensor, rank: int) -> np.ndarray:
    """The weight by the eigenvectors of Sxx^-1 Sxy Syy^-1 Syx, then least squares on the top variates."""
    x, y = (source - source.mean(0)).numpy(), (target - target.mean(0)).numpy()
    values, vectors = np.linalg.eig(np.linalg.solve(x.T @ x, x.T @ y) @ np.linalg.solve(y.T @ y, y.T @ x))
    top = vectors.real[:, np.argsort(values.real)[::-1][:rank]]
    coefficients, *_ = np.linalg.lstsq(x @ top, y, rcond=None)
    return (top @ coefficients).T


@pytest.mark.parametrize(("d_in", "d_out"), [(4, 4), (3, 5), (5, 3)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_cca_is_least_squares_on_the_variates_of_the_eigenvalue_form(d_in, d_out, rank):
    source = rows(80, d_in) + 2
    target = source @ rows(d_in, d_out, seed=1) + rows(80, d_out, seed=2)
    fitted = fit_cca(source, target, rank=rank)
    np.testing.assert_allclose(fitted.weight.numpy(), naive_cca(source, target, rank), atol=1e-9)
    assert torch.linalg.matrix_rank(fitted.weight) == rank


def test_the_source_directions_of_cca_are_those_of_scikit_learn():
    source = rows(200, 4)
    target = source @ rows(4, 3, seed=1) + rows(200, 3, seed=2)
    judge = CCA(n_components=2, scale=False, max_iter=10_000, tol=1e-14).fit(source.numpy(), target.numpy())
    variates = torch.tensor(judge.transform(source.numpy()))
    # The fitted map sees the source only through these two variates: they determine its predictions entirely.
    fitted = fit_cca(source, target, rank=2)
    predictions = fitted(source) - fitted(source).mean(0)
    seen = variates @ torch.linalg.lstsq(variates, predictions).solution
    torch.testing.assert_close(seen, predictions, atol=1e-6, rtol=0)
    whole = fit_cca(source, target, rank=3)(source)
    unseen = variates @ torch.linalg.lstsq(variates, whole - whole.mean(0)).solution
    assert not torch.allclose(unseen, whole - whole.mean(0), atol=1e-2)


def test_cca_of_full_rank_is_least_squares():
    source, target = rows(80, 3), rows(80, 5, seed=1)
    least_squares = fit_ridge(source, target, penalty=0)
    torch.testing.assert_close(fit_cca(source, target, rank=3).weight, least_squares.weight)
    assert not torch.allclose(fit_cca(source, target, rank=2).weight, least_squares.weight)


def test_cca_follows_any_change_of_basis_on_either_side():
    source, target = rows(80, 4), rows(80, 3, seed=1)
    predictions = fit_cca(source, target, rank=2)(source)
    source_turn, target_turn = rows(4, 4, seed=2), rows(3, 3, seed=3)
    turned_source = source @ source_turn + 5
    torch.testing.assert_close(fit_cca(turned_source, target, rank=2)(turned_source), predictions)
    turned_target = target @ target_turn - 5
    torch.testing.assert_close(fit_cca(source, turned_target, rank=2)(source), predictions @ target_turn - 5)


def test_cca_finds_the_one_direction_both_share_where_it_is_the_smallest():
    shared = rows(300, 1, seed=7)
    source = torch.cat((10 * rows(300, 3), 0.1 * shared), dim=1)
    target = torch.cat((shared, rows(300, 2, seed=8)), dim=1)
    weight = fit_cca(source, target, rank=1).weight
    torch.testing.assert_close(weight[0], torch.tensor([0, 0, 0, 10.0], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_that_the_rows_do_not_have_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank is {rank} but these rows have 3 canonical pairs; choose 1 to 3"):
        fit_cca(rows(50, 3), rows(50, 5), rank=rank)


def test_the_rank_is_limited_by_what_the_rows_span():
    flat = rows(50, 2) @ rows(2, 4, seed=1)
    fit_cca(flat, rows(50, 4, seed=2), rank=2)
    with pytest.raises(ValueError, match=r"rank is 3 but these rows have 2 canonical pairs"):
        fit_cca(flat, rows(50, 4, seed=2), rank=3)


def test_cca_on_so_few_rows_that_noise_correlates_perfectly_is_refused():
    with pytest.raises(ValueError, match=r"8 rows give perfect correlations by chance for widths 3 and 5; .* than 8"):
        fit_cca(rows(8, 3), rows(8, 5, seed=1), rank=1)
    fit_cca(rows(9, 3), rows(9, 5, seed=1), rank=1)


# --- the map itself ---


def test_a_map_is_weight_times_row_plus_bias():
    weight, bias = rows(2, 3), rows(2, seed=1)
    row = rows(3, seed=2)
    expected = [sum(float(weight[i, j] * row[j]) for j in range(3)) + float(bias[i]) for i in range(2)]
    assert AffineMap(weight, bias)(row).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kept", [torch.float64, torch.float32], ids=str)
def test_a_map_returns_the_rows_dtype_and_axes_and_computes_in_the_longer(shape, dtype, kept):
    map = AffineMap(rows(2, 3).to(kept), rows(2, seed=1).to(kept))
    given = rows(*shape, seed=2, dtype=dtype)
    mapped = map(given)
    assert mapped.dtype == dtype
    assert mapped.shape == (*shape[:-1], 2)
    exact = (given.double() @ map.weight.double().T + map.bias.double()).to(dtype)
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(mapped, exact, atol=rounding, rtol=rounding)


def test_a_map_is_not_rounded_to_the_rows_shorter_dtype_before_it_is_used():
    difference = AffineMap(torch.tensor([[1.001, -1.0]]), torch.zeros(1))
    mapped = difference(torch.ones(2, dtype=torch.bfloat16))
    assert float(mapped) == pytest.approx(1e-3, rel=0.01)
    assert float(difference.weight.to(torch.bfloat16).sum()) == 0.0


def test_the_identity_gives_the_same_bits_in_new_memory():
    given = rows(4, 8, dtype=torch.float32)
    mapped = AffineMap.identity(8)(given)
    assert_same_bits(mapped, given)
    mapped.zero_()
    assert given.abs().min() > 0
    assert AffineMap.identity(8, dtype=torch.float64).weight.dtype == torch.float64
    with pytest.raises(ValueError, match="width of at least 1, not 0"):
        AffineMap.identity(0)


def test_rows_of_another_width_are_refused_naming_both():
    with pytest.raises(ValueError, match=r"the rows are 4 wide but AffineMap\(3->2\) takes 3"):
        AffineMap(rows(2, 3), rows(2))(rows(5, 4))


def test_rows_on_another_device_are_refused_naming_both():
    with pytest.raises(ValueError, match=r"the rows are on meta but the map on cpu"):
        AffineMap(rows(2, 3), rows(2))(rows(5, 3).to("meta"))


def test_a_map_is_frozen_and_short_to_print():
    map = AffineMap(rows(896, 576), rows(896))
    assert repr(map) == "AffineMap(576->896)"
    assert (map.d_in, map.d_out) == (576, 896)
    with pytest.raises(dataclasses.FrozenInstanceError):
        map.bias = rows(896)  # type: ignore[misc]


def test_weights_that_do_not_fit_together_are_refused_at_construction():
    with pytest.raises(TypeCheckError):
        AffineMap(rows(2, 3), rows(3))
    with pytest.raises(ValueError, match=r"weight and bias are torch.float64 on cpu and torch.float32 on cpu"):
        AffineMap(rows(2, 3), rows(2, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"weight holds NaN or infinity in row 1"):
        AffineMap(torch.tensor([[1.0], [NAN]]), torch.zeros(2))
    with pytest.raises(ValueError, match=r"bias holds NaN or infinity"):
        AffineMap(torch.zeros(2, 1), torch.tensor([0.0, INF]))


def test_r_squared_is_one_less_the_share_of_the_squares_left():
    # Target 0, 2, 4 about its mean: TSS 8. Predictions 0, 1, 2: SSE 0 + 1 + 4.
    half = AffineMap(torch.tensor([[0.5]]), torch.zeros(1))
    target = torch.tensor([[0.0], [2.0], [4.0]])
    assert half.r_squared(target, target) == pytest.approx(1 - 5 / 8)
    assert AffineMap.identity(1).r_squared(target, target) == 1.0
    mean = AffineMap(torch.zeros(1, 1), torch.tensor([2.0]))
    assert mean.r_squared(target, target) == 0.0
    worse = AffineMap(torch.zeros(1, 1), torch.tensor([6.0]))
    assert worse.r_squared(target, target) == pytest.approx(1 - (36 + 16 + 4) / 8)


def test_r_squared_pools_all_outputs_and_is_not_their_mean():
    target = torch.tensor([[0.0, 0.0], [2.0, 20.0]], dtype=torch.float64)
    only_second = AffineMap(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]))
    # The first output, explained not at all, has TSS 2 of 2 + 200.
    assert only_second.r_squared(target, target) == pytest.approx(1 - 2 / 202)


def test_r_squared_of_bad_rows_is_refused():
    map = AffineMap.identity(2)
    with pytest.raises(ValueError, match="all 5 target rows are equal"):
        map.r_squared(rows(5, 2, dtype=torch.float32), torch.ones(5, 2))
    with pytest.raises(ValueError, match="source holds NaN"):
        map.r_squared(torch.tensor([[NAN, 1.0], [1.0, 1.0]]), torch.eye(2))
    with pytest.raises(TypeCheckError):
        map.r_squared(rows(5, 2), rows(4, 2))


# --- saving ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("as_path", [str, Path])
def test_a_saved_map_comes_back_bit_for_bit(tmp_path, dtype, as_path):
    weight, bias = rows(5, 3, dtype=dtype), rows(5, seed=1, dtype=dtype)
    weight[0, 0], bias[0] = -0.0, torch.finfo(dtype).smallest_normal
    AffineMap(weight, bias).save(as_path(tmp_path / "map.safetensors"))
    loaded = AffineMap.load(as_path(tmp_path / "map.safetensors"))
    for got, expected in ((loaded.weight, weight), (loaded.bias, bias)):
        assert_same_bits(got, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["map.safetensors"]


@pytest.mark.parametrize("fit", [fit_procrustes, fit_ridge])
def test_a_loaded_map_gives_the_bits_of_the_fitted_one(tmp_path, fit):
    source, target = rows(60, 24), rows(60, 16, seed=1)
    fitted = fit(source, target)
    fitted.save(tmp_path / "map")
    loaded = AffineMap.load(tmp_path / "map")
    assert fitted.weight.stride() == loaded.weight.stride()  # a transposed weight would take another kernel
    assert_same_bits(loaded(source), fitted(source))


def test_a_transposed_weight_that_learns_is_saved_as_what_it_is(tmp_path):
    weight = rows(3, 5).T.requires_grad_()
    AffineMap(weight, rows(5)).save(tmp_path / "map")
    assert_same_bits(AffineMap.load(tmp_path / "map").weight, weight.detach())


def test_saving_again_replaces_the_file(tmp_path):
    AffineMap.identity(2).save(tmp_path / "map")
    AffineMap.identity(3).save(tmp_path / "map")
    assert AffineMap.load(tmp_path / "map").d_in == 3
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


@pytest.mark.parametrize(
    ("failure", "shown"),
    [(OSError(28, "No space left on device"), RuntimeError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["disk full", "Ctrl-C"],
)
@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_save_that_breaks_off_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failure, shown, owner, step):
    AffineMap.identity(2).save(tmp_path / "map")

    def break_off(*_: object) -> None:
        raise failure

    monkeypatch.setattr(owner, step, break_off)
    with pytest.raises(shown):
        AffineMap.identity(3).save(tmp_path / "map")
    assert AffineMap.load(tmp_path / "map").d_in == 2
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": rows(2, 2), "bias": rows(2)}, path)
    with pytest.raises(ValueError, match=r"other.safetensors is marked no kind at all, not latentcomm.AffineMap/1"):
        AffineMap.load(path)
    save_file({"weight": rows(2, 2), "bias": rows(2)}, path, metadata={"kind": "somebody.Else"})
    with pytest.raises(ValueError, match=r"is marked somebody.Else, not latentcomm.AffineMap/1"):
        AffineMap.load(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all, but long enough to look like a header", None])
def test_a_file_that_is_no_safetensors_or_was_cut_short_is_refused(tmp_path, content):
    path = tmp_path / "map.safetensors"
    AffineMap.identity(8).save(path)
    path.write_bytes(path.read_bytes()[:-16] if content is None else content)
    with pytest.raises(ValueError, match=r"map.safetensors is no safetensors file"):
        AffineMap.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        AffineMap.load(tmp_path / "nowhere")
