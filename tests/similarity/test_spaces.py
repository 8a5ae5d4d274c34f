"""CCA, Procrustes, neighbours and RSA against scipy, eigenvalues and loops over rows."""

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from similar import planted, rows, turned

from latentcomm.similarity import cknna, mutual_knn, neighbours, procrustes, pwcca, rsa, svcca


def shuffled(given: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return given[torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))]


# --- canonical correlation ---


def correlations_by_eigenvalues(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Square roots of the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx, largest first."""
    x, y = x - x.mean(0), y - y.mean(0)
    matrix = np.linalg.solve(x.T @ x, x.T @ y) @ np.linalg.solve(y.T @ y, y.T @ x)
    return np.sqrt(np.sort(np.linalg.eigvals(matrix).real)[::-1][: min(x.shape[1], y.shape[1])])


def principal_components(given: np.ndarray, energy: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.cov(given.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = next(k for k in range(1, len(values) + 1) if values[:k].sum() >= energy * values.sum())
    return given @ vectors[:, :kept]


def test_svcca_with_all_energy_is_the_mean_canonical_correlation():
    x, y = planted(60)
    assert svcca(x, y, energy=1) == pytest.approx(correlations_by_eigenvalues(x.numpy(), y.numpy()).mean(), abs=1e-8)


@pytest.mark.parametrize("energy", [0.6, 0.9, 0.99])
def test_svcca_is_the_mean_correlation_of_the_leading_components(energy):
    x, y = planted(60)
    kept = [principal_components(side.numpy(), energy) for side in (x, y)]
    assert kept[1].shape[1] < 7 or energy > 0.9
    assert svcca(x, y, energy=energy) == pytest.approx(correlations_by_eigenvalues(*kept).mean(), abs=1e-8)


def test_pwcca_weighs_correlations_by_the_variates_share_in_x():
    x, y = planted(60)
    cx, cy = (side.numpy() - side.numpy().mean(0) for side in (x, y))
    covariance = np.linalg.solve(cx.T @ cx, cx.T @ cy) @ np.linalg.solve(cy.T @ cy, cy.T @ cx)
    values, directions = np.linalg.eig(covariance)
    order = np.argsort(values.real)[::-1]
    variates = cx @ directions.real[:, order]
    variates /= np.linalg.norm(variates, axis=0)
    weights = [sum(abs(h @ column) for column in cx.T) for h in variates.T]
    correlations = np.sqrt(values.real[order])
    assert pwcca(x, y) == pytest.approx(np.average(correlations, weights=weights), abs=1e-8)
    assert abs(pwcca(x, y) - correlations.mean()) > 0.01


def test_canonical_correlations_are_high_for_shared_spaces_alone():
    x, y = planted(400, 4, 4, noise=0.05)
    x, y = x[:, :3], y[:, :3]
    for measure in (svcca, pwcca):
        assert measure(x, y) > 0.95
        assert measure(x, shuffled(y)) < 0.2


@pytest.mark.parametrize("measure", [svcca, pwcca])
def test_rows_so_few_that_correlations_are_perfect_by_chance_are_refused(measure):
    with pytest.raises(ValueError, match=r"^12 rows are too few; give at least 13 .fewer correlate perfectly"):
        measure(rows(12, 5), rows(12, 7, seed=1), **({"energy": 1} if measure is svcca else {}))
    with pytest.raises(ValueError, match=r"^9 rows are too few; give at least 61 "):
        measure(rows(9, 30), rows(9, 30, seed=1), **({"energy": 1} if measure is svcca else {}))
    assert measure(rows(13, 5), rows(13, 7, seed=1)) < 1


@pytest.mark.parametrize("energy", [0, -0.5, 1.1, float("nan")])
def test_an_energy_that_is_no_share_is_refused(energy):
    with pytest.raises(ValueError, match=f"energy is {energy}; it is the share of variance retained"):
        svcca(*planted(40), energy=energy)


# --- Procrustes ---


@pytest.mark.parametrize("widths", [(5, 5), (5, 7), (60, 45)])
def test_procrustes_is_the_scale_that_scipy_finds(widths):
    x, y = planted(30, *widths)
    wide = max(widths)
    cx, cy = (np.pad(s.numpy() - s.numpy().mean(0), ((0, 0), (0, wide - s.shape[1]))) for s in (x, y))
    _, expected = scipy.linalg.orthogonal_procrustes(cx / np.linalg.norm(cx), cy / np.linalg.norm(cy))
    assert procrustes(x, y) == pytest.approx(expected, abs=1e-8)


def test_procrustes_is_one_less_half_the_smallest_squared_distance():
    x, y = planted(30, 5, 5)
    _, _, disparity = scipy.spatial.procrustes(y.numpy(), x.numpy())  # 1 - p^2: scipy rescales after turning
    assert procrustes(x, y) == pytest.approx(np.sqrt(1 - disparity), abs=1e-8)


def test_procrustes_sees_a_turned_copy_and_not_shuffled_rows():
    x, _ = planted(300)
    assert procrustes(x, turned(x)) == pytest.approx(1)
    assert procrustes(x, shuffled(x)) < 0.3


# --- neighbours ---


def nearest(given: np.ndarray, k: int) -> list[set[int]]:
    found = []
    for i, row in enumerate(given):
        cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in given]
        found.append(set(sorted((j for j in range(len(given)) if j != i), key=lambda j: -cosines[j])[:k]))
    return found


@pytest.mark.parametrize("k", [1, 3, 10])
def test_mutual_knn_is_the_mean_overlap_found_row_by_row(k):
    x, y = planted(25)
    pairs = zip(nearest(x.numpy(), k), nearest(y.numpy(), k), strict=True)
    assert mutual_knn(x, y, k=k) == pytest.approx(np.mean([len(a & b) / k for a, b in pairs]), abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_cknna_is_the_papers_double_sum_over_mutual_neighbours(k):
    x, y = (side.numpy() for side in planted(25))
    near = {name: nearest(side, k) for name, side in (("x", x), ("y", y))}
    gram = {}
    for name, side in (("x", x), ("y", y)):
        units = side / np.linalg.norm(side, axis=1, keepdims=True)
        gram[name] = units @ units.T - (units @ units.T).mean(1, keepdims=True)

    def align(one: str, other: str) -> float:
        total = 0.0
        for i in range(25):
            for j in range(25):
                if i != j and j in near[one][i] and j in near[other][i]:
                    total += gram[one][i, j] * gram[other][i, j]
        return total

    expected = align("x", "y") / np.sqrt(align("x", "x") * align("y", "y"))
    assert cknna(torch.tensor(x), torch.tensor(y), k=k) == pytest.approx(expected, abs=1e-10)


def test_unrelated_spaces_share_neighbours_by_chance_alone():
    x = rows(300, 8)
    found = [mutual_knn(x, rows(300, 8, seed=seed)) for seed in range(1, 9)]
    assert np.mean(found) == pytest.approx(10 / 299, abs=4 * np.std(found) / np.sqrt(8))
    assert mutual_knn(x, turned(x)) == cknna(x, 2 * turned(x)).__round__(9) == 1
    assert cknna(x, rows(300, 8, seed=1)) < 0.1


def test_memory_is_in_blocks_and_their_size_changes_nothing(monkeypatch):
    x, y = planted(30)
    whole = mutual_knn(x, y, k=4), cknna(x, y, k=4)
    monkeypatch.setattr(neighbours, "BLOCK_ENTRIES", 100)
    assert (mutual_knn(x, y, k=4), cknna(x, y, k=4)) == pytest.approx(whole, abs=1e-12)


def test_copies_of_rows_do_not_make_the_answer_depend_on_their_order():
    x, y = planted(40)
    x, y = torch.cat((x, x[:15], x[:9])), torch.cat((y, y[:15], y[:9]))
    y = y + 0.1 * rows(*y.shape, seed=8)  # copies in x alone: the same token, read in different contexts
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for measure in (mutual_knn, cknna):
        assert measure(x, x, k=2) == pytest.approx(1)
        assert measure(x[order], y[order], k=2) == pytest.approx(measure(x, y, k=2), abs=1e-12)


def test_rows_that_tie_share_the_last_place():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 0.1]])  # rows 1 and 2 tie as nearest of row 0
    y = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    # Nearest in y: 0 -> 1, 1 -> 0, 2 -> 1, 3 -> 2. In x: 0 -> 1 or 2 (half each), 1 -> 0, 2 -> 0, 3 -> 1.
    assert mutual_knn(x, y, k=1) == pytest.approx((0.5 + 1 + 0 + 0) / 4)


@pytest.mark.parametrize("measure", [mutual_knn, cknna])
def test_k_over_the_rows_and_rows_without_a_direction_are_refused(measure):
    x, y = planted(10)
    assert measure(x, y, k=8) <= 1
    with pytest.raises(ValueError, match=r"^10 rows are too few; give at least 11 .*one of the 9 nearest.*smaller k"):
        measure(x, y, k=9)
    with pytest.raises(ValueError, match=r"^k is 0; a row needs at least 1 neighbour"):
        measure(x, y, k=0)
    y[[3, 5]] = 0
    with pytest.raises(ValueError, match=r"^row 3 of y is zero \(2 such\), and has no cosine"):
        measure(x, y, k=2)


def test_rows_that_all_point_the_same_way_have_no_cknna():
    x, y = planted(10)
    with pytest.raises(ValueError, match=r"^all rows of y point the same way"):
        cknna(x, torch.linspace(1, 2, 10, dtype=torch.float64)[:, None] * y[:1], k=2)


# --- RSA ---


def test_rsa_is_spearmans_correlation_of_scipys_correlation_distances():
    x, y = planted(20)
    distances = [scipy.spatial.distance.pdist(side.numpy(), "correlation") for side in (x, y)]
    assert rsa(x, y) == pytest.approx(scipy.stats.spearmanr(*distances).statistic, abs=1e-8)


def test_rsa_sees_a_warped_copy_of_equal_ranks_and_not_shuffled_rows():
    x, _ = planted(60)
    assert rsa(x, 3 * x * torch.linspace(1, 9, 60, dtype=torch.float64)[:, None]) == pytest.approx(1)
    assert abs(rsa(x, shuffled(x))) < 0.2


def test_rows_that_correlate_with_nothing_are_refused():
    x, y = planted(20)
    with pytest.raises(ValueError, match=r"^x is 2 wide; a similarity of spaces needs a width of 3"):
        rsa(x[:, :2], y)
    y[[4, 7]] = 0.3
    with pytest.raises(ValueError, match=r"^row 4 of y has equal entries \(2 such rows\)"):
        rsa(x, y)
    with pytest.raises(ValueError, match=r"^all pairs of rows of x are equally dissimilar"):
        rsa(torch.eye(20), torch.eye(20))
