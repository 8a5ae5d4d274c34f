"""Subspaces of states, against scikit-learn, hand-worked cases and planted directions."""

import numpy as np
import pytest
import sklearn.decomposition
import torch
from numerics import assert_same_bits
from similar import rows

from latentcomm._core.linalg import canonical_pairs
from latentcomm.redundancy import (
    Drop,
    Projection,
    fit_predictable,
    measure_redundancy,
    principal_subspace,
    shared_subspace,
)


@pytest.mark.parametrize(("n_rows", "width"), [(60, 5), (4, 9)])
def test_the_principal_subspace_is_that_of_scikit_learn(n_rows, width):
    x = rows(n_rows, width) * torch.linspace(1, 3, width) + 7
    expected = sklearn.decomposition.PCA(n_components=2).fit(x.numpy())
    fitted = principal_subspace(x, rank=2)
    kept = torch.from_numpy(expected.inverse_transform(expected.transform(x.numpy())))
    torch.testing.assert_close(fitted.keep(x), kept, atol=1e-10, rtol=1e-10)
    assert fitted.explained(x) == pytest.approx(expected.explained_variance_ratio_.sum(), abs=1e-12)


def test_energy_takes_the_fewest_components_that_hold_it():
    x = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])  # 90 % and 10 % of the variance, and a dead axis
    assert principal_subspace(x, energy=0.5).rank == 1
    assert principal_subspace(x, energy=0.9).rank == 1
    assert principal_subspace(x, energy=0.91).rank == 2
    assert principal_subspace(x, energy=1.0).rank == 2


def test_the_two_parts_of_a_state_add_up_and_projecting_is_idempotent():
    x, y = rows(80, 5) + 4, rows(80, 3, seed=1)
    for projection in (principal_subspace(x, rank=2), shared_subspace(x, y, rank=2)):
        torch.testing.assert_close(projection.keep(x) + projection.drop(x), x)
        torch.testing.assert_close(projection.keep(projection.keep(x)), projection.keep(x))
        assert_same_bits(projection.keep(projection.mean), projection.mean)
        again = projection.drop(projection.drop(x) + projection.mean)
        torch.testing.assert_close(again, projection.drop(x))


def test_parts_of_a_principal_subspace_are_orthogonal_unlike_a_shared_one():
    x, y = rows(80, 5), rows(80, 5) @ rows(5, 3, seed=1)
    x = x @ rows(5, 5, seed=2)
    principal, shared = principal_subspace(x, rank=2), shared_subspace(x, y, rank=2)
    assert (principal.drop(x) * (principal.keep(x) - principal.mean)).sum(1).abs().max() < 1e-10
    assert (shared.drop(x) * (shared.keep(x) - shared.mean)).sum(1).abs().max() > 0.1


def test_a_planted_shared_direction_goes_and_a_planted_novel_one_stays():
    shared, novel, receivers = rows(2000, 1), rows(2000, 1, seed=1), rows(2000, 4, seed=2)
    mix_a, mix_b = rows(6, 6, seed=3), rows(5, 5, seed=4)
    a = torch.cat((shared, novel, rows(2000, 4, seed=5)), 1) @ mix_a
    b = torch.cat((shared, receivers), 1) @ mix_b
    left = shared_subspace(a, b, rank=1).drop(a)

    def readable(target):  # the best linear reading of a direction, by an independent least-squares solver
        design = np.hstack([left.numpy(), np.ones((2000, 1))])
        fitted = design @ np.linalg.lstsq(design, target.numpy(), rcond=None)[0]
        return 1 - ((target.numpy() - fitted) ** 2).sum() / ((target.numpy() - target.numpy().mean()) ** 2).sum()

    assert readable(novel) > 0.99
    assert readable(shared) < 0.01
    assert readable(a[:, :1]) > 0.1  # while the message's own first entry is far from gone


def test_what_a_shared_subspace_leaves_has_the_next_canonical_correlation():
    x, noise = rows(300, 5), rows(300, 4, seed=1)
    y = x[:, :4] * torch.tensor([2.0, 1.0, 0.5, 0.1]) + noise
    before = canonical_pairs(x, y).correlations
    after = canonical_pairs(shared_subspace(x, y, rank=2).drop(x), y).correlations
    torch.testing.assert_close(after[:2], before[2:4], atol=1e-8, rtol=1e-8)
    assert after[0] < before[0] - 0.2


def test_a_projection_stays_small_and_prints_its_size():
    projection = principal_subspace(rows(50, 40), rank=3)
    assert sum(part.numel() for part in (projection.mean, projection.directions, projection.loadings)) == 40 * 7
    assert repr(projection) == "Projection(3 of 40)"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_parts_have_the_states_dtype_and_any_leading_axes(dtype):
    projection = principal_subspace(rows(50, 4).to(dtype), rank=2)
    state = rows(2, 3, 4, seed=1).to(dtype)
    assert projection.keep(state).dtype == projection.drop(state).dtype == dtype
    assert projection.drop(state).shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: principal_subspace(rows(9, 3)), "rank is None and energy None; give one of them"),
        (lambda: principal_subspace(rows(9, 3), rank=1, energy=0.5), "rank is 1 and energy 0.5; give one of them"),
        (lambda: principal_subspace(rows(9, 3), rank=4), "rank is 4 but these 9 rows span 3 directions; choose 1 to 3"),
        (lambda: principal_subspace(rows(3, 9), rank=3), "these 3 rows span 2 directions; choose 1 to 2"),
        (lambda: principal_subspace(rows(9, 3), rank=0), "choose 1 to 3"),
        (lambda: principal_subspace(rows(9, 3), energy=1.5), "energy is 1.5; it is a share of the variance"),
        (lambda: principal_subspace(rows(1, 3), rank=1), "1 rows have no principal components; capture at least 2"),
        (lambda: principal_subspace(torch.ones(9, 3), rank=1), "all 9 rows are equal; give rows that differ"),
        (
            lambda: principal_subspace(rows(9, 3) / 0 * 0, rank=1),
            "rows holds NaN or infinity in rows 0, 1, 2, 3, 4 and",
        ),
        (lambda: shared_subspace(rows(6, 3), rows(6, 3), rank=1), "6 rows give perfect correlations by chance .* more"),
        (lambda: shared_subspace(rows(9, 3), rows(9, 2), rank=3), "rank is 3 but these rows have 2 canonical pairs"),
        (lambda: shared_subspace(rows(9, 3), rows(9, 2) / 0, rank=1), "^y holds NaN or infinity"),
        (
            lambda: principal_subspace(rows(9, 3), rank=1).drop(rows(2, 4)),
            "rows are 4 wide but Projection.1 of 3. takes 3",
        ),
        (lambda: principal_subspace(rows(9, 3), rank=1).explained(torch.zeros(0, 3)), "all 0 rows equal"),
        (lambda: Drop(principal_subspace(rows(9, 3), rank=1), scale=float("inf")), "scale is inf"),
        (lambda: Projection(torch.zeros(2).double(), torch.eye(2), torch.eye(2)), "mean, directions and loadings are"),
        (lambda: Projection(torch.full((2,), torch.nan), torch.eye(2), torch.eye(2)), "mean holds NaN"),
    ],
)
def test_what_makes_no_subspace_is_refused_in_a_sentence(fit, message):
    with pytest.raises(ValueError, match=message):
        fit()


def test_states_one_wide_have_one_direction_and_nothing_beside_it():
    x = rows(20, 1)
    assert principal_subspace(x, rank=1).drop(x).abs().max() < 1e-12
    assert shared_subspace(x, rows(20, 2, seed=1), rank=1).drop(x).abs().max() < 1e-12


def test_a_constant_column_is_part_of_the_mean_and_of_no_direction():
    x = torch.cat((rows(30, 2), torch.full((30, 1), 5.0, dtype=torch.float64)), 1)
    projection = principal_subspace(x, energy=1.0)
    assert projection.rank == 2
    assert projection.keep(x)[:, 2].tolist() == pytest.approx([5.0] * 30)


# --- shared subspaces by energy and by correlation ---


def test_a_shared_subspace_of_an_energy_has_the_fewest_pairs():
    x, y = rows(300, 5) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5]), rows(300, 3, seed=1)
    y = y + x[:, :3]
    shares = [shared_subspace(x, y, rank=rank).explained(x) for rank in (1, 2, 3)]
    assert shared_subspace(x, y, energy=shares[1] - 0.01).rank == 2
    assert shared_subspace(x, y, energy=shares[1] + 0.01).rank == 3
    with pytest.raises(ValueError, match=r"energy is 0\.999 but all 3 canonical pairs hold 0\.9"):
        shared_subspace(x, y, energy=0.999)


def test_a_shared_subspace_of_a_correlation_takes_every_pair_as_strong():
    x = rows(400, 5)
    y = x[:, :3] + rows(400, 3, seed=1) * torch.tensor([0.1, 1.0, 10.0])
    found = canonical_pairs(x, y).correlations
    assert shared_subspace(x, y, correlation=0.9).rank == int((found >= 0.9).sum()) == 1
    assert shared_subspace(x, y, correlation=0.5).rank == 2
    with pytest.raises(ValueError, match=r"correlation is 0\.9999 but the strongest pair has 0\.99"):
        shared_subspace(x, y, correlation=0.9999)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (lambda x, y: shared_subspace(x, y), "rank is None, energy None and correlation None; give one"),
        (
            lambda x, y: shared_subspace(x, y, rank=1, energy=0.5),
            "rank is 1, energy 0.5 and correlation None; give one",
        ),
        (lambda x, y: shared_subspace(x, y, energy=0.0), "energy is 0.0; it is a share"),
        (lambda x, y: shared_subspace(x, y, correlation=1.5), "correlation is 1.5; canonical correlations are"),
    ],
)
def test_a_shared_subspace_of_no_one_size_is_refused(share, message):
    with pytest.raises(ValueError, match=message):
        share(rows(30, 3), rows(30, 3, seed=1))


@pytest.mark.parametrize(
    "pair",
    [
        lambda: fit_predictable(rows(30, 3), rows(29, 2)),
        lambda: measure_redundancy(rows(29, 2), rows(30, 3)),
        lambda: shared_subspace(rows(30, 3), rows(29, 2), rank=1),
    ],
)
def test_rows_that_do_not_pair_are_refused_with_both_numbers(pair):
    with pytest.raises(ValueError, match=r"has (29|30) rows but .* (29|30); pair them row by row"):
        pair()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": [0] * 29}, "29 group labels for 30 rows"),
        ({"groups": [0] * 30}, "1 groups cannot make 5 folds"),
        ({"folds": 40}, "30 groups cannot make 40 folds"),
    ],
)
def test_rows_that_cannot_be_held_out_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        measure_redundancy(rows(30, 2), rows(30, 3, seed=1), **given)
