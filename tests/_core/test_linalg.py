"""The float64 helpers against numpy and against cases small enough to work out by hand."""

import numpy as np
import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits
from similar import rows

from latentcomm._core.linalg import (
    canonical_pairs,
    centred,
    fitted_dtype,
    numerical_rank,
    remove_component,
    require_finite,
    squared_size,
    thin_svd,
)


@pytest.mark.parametrize(
    ("bad", "named"),
    [([3], "row 3;"), ([0, 4], "rows 0, 4;"), (range(7), "rows 0, 1, 2, 3, 4 and 2 more;")],
)
def test_rows_that_are_not_finite_are_named(bad, named):
    given = rows(8, 2)
    require_finite(given, "source")
    for row in bad:
        given[row, 1] = float("inf")
    with pytest.raises(ValueError, match=f"^source holds NaN or infinity in {named}"):
        require_finite(given, "source")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_entry_anywhere_is_found_in_any_dtype(dtype, bad):
    for row, column in ((0, 0), (3, 16), (7, 32)):
        given = rows(8, 33).to(dtype)
        given[row, column] = bad
        with pytest.raises(ValueError, match=f"in row {row};"):
            require_finite(given, "x")
    require_finite(torch.full((8, 33), torch.finfo(dtype).max, dtype=dtype), "x")
    require_finite(torch.zeros(0, 33, dtype=dtype), "x")


def test_a_single_vector_counts_as_row_0():
    with pytest.raises(ValueError, match="row 0;"):
        require_finite(torch.tensor([1.0, float("nan")]), "x")


def test_centring_gives_float64_rows_of_mean_zero_and_copies_the_input():
    given = (rows(50, 3) + 100).float()
    before = given.clone()
    without_mean, mean = centred(given)
    assert without_mean.dtype == mean.dtype == torch.float64
    assert without_mean.mean(0).abs().max() < 1e-12
    assert_equal_to_rounding(mean, torch.from_numpy(given.double().numpy().mean(0)), terms=50)
    assert_same_bits(given, before)


def test_squared_size_is_summed_in_float64():
    # In float32 the small entries vanish beside the large one.
    given = torch.cat((torch.tensor([1e4]), torch.full((1000,), 1e-1)))
    rounding = len(given) * torch.finfo(torch.float64).eps
    assert squared_size(given) == pytest.approx(1e8 + 1000 * float(given[-1]) ** 2, rel=rounding)
    assert float((given**2).cumsum(0)[-1]) != pytest.approx(squared_size(given), rel=1e-9)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_a_map_is_kept_in_the_rows_dtype_or_float32_where_that_is_shorter(dtype, kept):
    assert fitted_dtype(torch.zeros(2, 2, dtype=dtype)) == kept


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_numerical_rank_is_that_of_numpy(rank):
    matrix = rows(9, rank) @ rows(rank, 5, seed=1)
    sizes = torch.linalg.svdvals(matrix)
    assert numerical_rank(sizes, (9, 5)) == rank == np.linalg.matrix_rank(matrix.numpy())


def test_a_tiny_direction_counts_until_rounding_swallows_it():
    def counted(smallest: float) -> int:
        return numerical_rank(torch.tensor([1.0, smallest], dtype=torch.float64), (100, 2))

    assert counted(1e-12) == 2
    assert counted(1e-14) == 1


def test_the_rank_of_nothing_and_of_zeros_is_zero():
    assert numerical_rank(torch.zeros(0, dtype=torch.float64), (0, 3)) == 0
    assert numerical_rank(torch.zeros(3, dtype=torch.float64), (5, 3)) == 0


def test_thin_svd_rebuilds_the_matrix_from_no_more_than_its_rank():
    matrix = rows(9, 2) @ rows(2, 5, seed=1)
    left, sizes, right = thin_svd(matrix)
    assert sizes.shape == (2,)
    torch.testing.assert_close(left * sizes @ right, matrix)
    torch.testing.assert_close(left.T @ left, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(right @ right.T, torch.eye(2, dtype=torch.float64))


def correlations_by_eigenvalues(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations as the square roots of the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx."""
    x, y = x - x.mean(0), y - y.mean(0)
    matrix = np.linalg.solve(x.T @ x, x.T @ y) @ np.linalg.solve(y.T @ y, y.T @ x)
    eigenvalues = np.sort(np.linalg.eigvals(matrix).real)[::-1]
    return np.sqrt(eigenvalues[: min(x.shape[1], y.shape[1])])


@pytest.mark.parametrize("widths", [(3, 3), (3, 5), (5, 3)], ids=str)
def test_canonical_correlations_are_those_of_the_eigenvalue_form(widths):
    source = rows(60, widths[0])
    target = source @ rows(widths[0], widths[1], seed=1) + 3 * rows(60, widths[1], seed=2)
    pairs = canonical_pairs(source + 10, target - 10)
    expected = correlations_by_eigenvalues(source.numpy(), target.numpy())
    np.testing.assert_allclose(pairs.correlations.numpy(), expected, atol=1e-10)
    assert 0 < expected[-1] < expected[0] < 1


def test_canonical_variates_are_orthonormal_and_match_their_directions():
    source, target = rows(60, 4), rows(60, 3, seed=1)
    pairs = canonical_pairs(source, target)
    torch.testing.assert_close(pairs.variates.T @ pairs.variates, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(centred(source)[0] @ pairs.directions, pairs.variates)


def test_canonical_pairs_are_as_many_as_the_smaller_rank():
    flat = rows(60, 2) @ rows(2, 4, seed=1)
    assert canonical_pairs(flat, rows(60, 3, seed=2)).correlations.shape == (2,)
    assert canonical_pairs(rows(60, 3, seed=2), flat).correlations.shape == (2,)


def test_removing_a_component_leaves_what_is_orthogonal_to_it():
    a, b = rows(20, 5), rows(20, 5, seed=1)
    left = remove_component(a, b)
    assert torch.cosine_similarity(left, b).abs().max() < 1e-14
    torch.testing.assert_close(left.square().sum(-1) + (a - left).square().sum(-1), a.square().sum(-1))
    assert torch.cosine_similarity(a, b).abs().max() > 0.1


def test_removing_a_row_from_itself_leaves_exactly_nothing():
    a = rows(20, 576).float()
    assert_same_bits(remove_component(a, a.clone()), torch.zeros(20, 576, dtype=torch.float64))


def test_a_zero_component_removes_nothing_and_a_tiny_one_its_direction():
    a = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert remove_component(a, torch.zeros(2, dtype=torch.float64)).tolist() == [3.0, 4.0]
    smallest_in_float32 = torch.tensor([torch.finfo(torch.float32).smallest_normal, 0.0])
    assert remove_component(a, smallest_in_float32).tolist() == [0.0, 4.0]
