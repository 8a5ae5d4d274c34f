"""Drift from a manifold: every detector against an independent one, rarity against transcriptions."""

import numpy as np
import pytest
import torch
from manifolds import WIDTH, mixture, normal, reference, small
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from latentcomm.drift import DETECTORS, PANEL, fit_drift_reference
from latentcomm.drift.gaussian import ledoit_wolf
from latentcomm.drift.neighbours import local_residual, nearest
from latentcomm.drift.rarity import auroc, held_out_surprise, share_at_least, surprise, two_sided

every_detector = pytest.mark.parametrize("name", DETECTORS)


def rms(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).mean(1, keepdims=True))


def same(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-8)


# --- each detector against an independent implementation ---


@pytest.mark.parametrize(("n", "width"), [(200, 5), (30, 12), (10, 40)])
def test_the_shrunken_covariance_is_that_of_scikit_learn(n, width):
    rows = normal(n, width) @ normal(width, width, seed=1)
    rows = rows - rows.mean(0)
    expected, shrinkage = sklearn_ledoit_wolf(rows.numpy(), assume_centered=True)
    found, own_shrinkage = ledoit_wolf(rows)
    same(found, expected)
    assert own_shrinkage == pytest.approx(shrinkage, abs=1e-10)
    assert own_shrinkage > 0


def test_mahalanobis_is_that_of_scikit_learn_on_rms_normalised_states():
    found, fitted, others = small()
    expected = LedoitWolf().fit(rms(fitted)).mahalanobis(rms(others.numpy()))
    same(found.mahalanobis(others), np.sqrt(expected))
    assert np.abs(LedoitWolf().fit(fitted).mahalanobis(others.numpy()) - expected).max() > 1


def test_cluster_and_relative_mahalanobis_are_their_transcription():
    found, fitted, others = small()
    x = rms(fitted)
    label = KMeans(n_clusters=10, n_init="auto", max_iter=100, random_state=4).fit(x).labels_
    means = np.array([x[label == k].mean(0) for k in range(10)])
    within = LedoitWolf(assume_centered=True).fit(x - means[label])
    asked = rms(others.numpy())
    squared = np.min([within.mahalanobis(asked - mean) for mean in means], axis=0)
    same(found.cluster_mahalanobis(others), np.sqrt(squared))
    same(found.relative_mahalanobis(others), squared - LedoitWolf().fit(x).mahalanobis(asked))


def test_relative_mahalanobis_takes_a_background_that_is_given():
    rows, background, others = mixture(240, seed=7, width=8), normal(150, 8, seed=3) + 1, normal(9, 8, seed=5)
    found = fit_drift_reference(rows, seed=4, background=background)
    expected = LedoitWolf().fit(rms(background.numpy())).mahalanobis(rms(others.numpy()))
    same(found.relative_mahalanobis(others), found.cluster_mahalanobis(others).numpy() ** 2 - expected)
    assert (found.relative_mahalanobis(others) - small()[0].relative_mahalanobis(others)).abs().max() > 0.1


def test_off_subspace_is_what_scikit_learns_principal_components_leave():
    found, fitted, others = small()
    pca = PCA(n_components=0.9).fit(fitted)
    left = others.numpy() - pca.inverse_transform(pca.transform(others.numpy()))
    same(found.off_subspace(others), (left**2).sum(1))


def test_knn_distance_is_that_of_scikit_learn():
    found, fitted, others = small()
    expected = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(rms(fitted)).kneighbors(rms(others.numpy()))[0]
    same(found.knn_distance(others), expected[:, -1])


def test_the_local_outlier_factor_is_that_of_scikit_learn():
    found, fitted, others = small()
    judge = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(rms(fitted))
    same(found.local_outlier_factor(others), -judge.score_samples(rms(others.numpy())))


def test_the_local_pca_residual_is_its_transcription():
    found, fitted, others = small()
    x, expected = rms(fitted), []
    for query in rms(others.numpy()):
        near = x[np.argsort(np.linalg.norm(x - query, axis=1))[:30]]
        axes = np.linalg.svd(near - near.mean(0))[2][:4]  # half of the width of 8
        offset = query - near.mean(0)
        expected.append(np.linalg.norm(offset - axes.T @ (axes @ offset)))
    same(found.local_pca_residual(others), np.array(expected))


def test_norm_ratio_and_cosine_are_their_formulas():
    found, fitted, others = small()
    sizes, mean = np.linalg.norm(others.numpy(), axis=1), fitted.mean(0)
    same(found.norm_ratio(others), sizes / np.median(np.linalg.norm(fitted, axis=1)))
    same(found.cosine(others), others.numpy() @ mean / (sizes * np.linalg.norm(mean)))


def test_neighbours_very_near_lose_no_digits():
    bank = torch.tensor([[1e6, 0.0], [1e6, 1e-6], [1e6 + 1, 0.0]], dtype=torch.float64)
    found = nearest(torch.tensor([[1e6, 3e-7]], dtype=torch.float64), bank, k=2)
    same(found.distance[0], np.array([3e-7, 7e-7]))
    assert abs(float(found.distance[0, 0]) - 3e-7) < 1e-15


def test_a_state_all_but_on_its_neighbours_plane_keeps_its_small_residual():
    plane = torch.linalg.qr(normal(9, 9))[0]
    bank = normal(12, 3, seed=1) @ plane[:3] + 50
    offsets = torch.tensor([1e-7, 1e-3, 1.0], dtype=torch.float64)
    queries = bank.mean(0) + 0.1 * plane[0] + offsets[:, None] * plane[8]
    found = local_residual(queries, bank, nearest(queries, bank, k=12), rank=3)
    torch.testing.assert_close(found, offsets, rtol=1e-6, atol=0)


@every_detector
def test_a_detector_is_a_method_a_score_and_a_column_of_equal_numbers(name):
    found, _, others = small()
    one_by_one = getattr(found, name)(others)
    torch.testing.assert_close(found.measure(others).scores[name], one_by_one)
    shaped = getattr(found, name)(others.reshape(3, 10, 8))
    torch.testing.assert_close(shaped.flatten(), one_by_one)
    assert getattr(found, name)(others.float()).dtype == torch.float32
    column = list(DETECTORS).index(name)
    torch.testing.assert_close(found.held_out_scores[:, column], getattr(found, name)(found.held_out))


@every_detector
def test_only_the_raw_detectors_see_a_states_size(name):
    found, _, others = small()
    moved = bool((getattr(found, name)(others) - getattr(found, name)(2 * others)).abs().max() > 1e-9)
    assert moved is (name in {"off_subspace", "norm_ratio"})


@every_detector
def test_a_planted_shift_moves_every_detector_further_the_larger_it_is(name):
    found = reference()
    direction = found.manifold.subspace.drop(normal(1, WIDTH, seed=8))
    direction = direction - (direction @ found.manifold.mean) / found.manifold.mean.square().sum() * found.manifold.mean
    real = mixture(100, seed=11)
    steps = [
        float(DETECTORS[name].sign * getattr(found, name)(real + size * direction / direction.norm()).mean())
        for size in (0.0, 4.0, 8.0, 16.0)
    ]
    assert steps == sorted(steps)
    assert len(set(steps)) == 4


def test_the_joint_p_value_falls_with_a_planted_shift_to_its_smallest():
    found, real, direction = reference(), mixture(100, seed=11), normal(1, WIDTH, seed=8)
    medians = [float(found.p_value(real + size * direction).median()) for size in (0.0, 0.5, 1.0, 2.0, 8.0)]
    assert medians == sorted(medians, reverse=True)
    assert 0.3 < medians[0] < 0.7
    assert medians[-1] == pytest.approx(1 / (len(found.held_out) + 1))


# --- rarity: naive transcriptions ---


def test_the_two_sided_p_value_is_its_transcription_with_ties():
    held = torch.tensor([3.0, 1.0, 2.0, 2.0, 9.0, 4.0])
    asked = torch.tensor([0.0, 1.0, 2.0, 2.5, 9.0, 10.0])
    expected = [
        min(1, 2 * min(1 + sum(h <= s for h in held.tolist()), 1 + sum(h >= s for h in held.tolist())) / 7)
        for s in asked.tolist()
    ]
    assert two_sided(asked, held).tolist() == pytest.approx(expected)


def test_surprise_is_the_p_value_inside_and_an_exponential_tail_outside():
    held = torch.arange(1.0, 41.0, dtype=torch.float64)  # top tenth 37..40, mean 38.5, threshold 36: scale 2.5
    asked = torch.tensor([20.0, 40.0, 45.0, -4.0], dtype=torch.float64)
    tails = [1 / 41 * np.exp(-5 / 2.5), 1 / 41 * np.exp(-5 / 2.5)]
    expected = [-np.log(min(1, 2 * 21 / 41)), -np.log(2 * 2 / 41), *(-np.log(2 * tail) for tail in tails)]
    assert surprise(asked, held).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
def test_a_held_out_states_surprise_is_that_among_the_others(ties):
    held = normal(50) if not ties else normal(50).round()
    one_by_one = [surprise(held[i][None], torch.cat((held[:i], held[i + 1 :])))[0] for i in range(50)]
    torch.testing.assert_close(held_out_surprise(held), torch.stack(one_by_one), atol=1e-12, rtol=1e-12)
    if not ties:
        assert (held_out_surprise(held) - surprise(held, held)).abs().max() > 0.1


def test_ranks_and_the_joint_p_value_are_their_transcription():
    found, _, others = small()
    drift, n = found.measure(others), len(found.held_out)
    loud, usual = torch.zeros(len(others)).double(), torch.zeros(n).double()
    for name in DETECTORS:
        held, asked = getattr(found, name)(found.held_out), getattr(found, name)(others)
        below = [sum(h < value for h in held.tolist()) / (n + 1) for value in asked.tolist()]
        same(drift.ranks[name], np.array(below))
        if name in PANEL:
            left = [surprise(held[i][None], torch.cat((held[:i], held[i + 1 :])))[0] for i in range(n)]
            loud, usual = torch.maximum(loud, surprise(asked, held)), torch.maximum(usual, torch.stack(left))
    expected = [(1 + sum(value >= one for value in usual.tolist())) / (n + 1) for one in loud.tolist()]
    same(drift.p_value, np.array(expected))
    assert len(set(expected)) > 5


def test_auroc_is_that_of_scikit_learn_with_ties():
    on, off = normal(60).round(decimals=1), normal(40, seed=1).round(decimals=1) + 0.5
    truth = [0] * 60 + [1] * 40
    assert auroc(on, off) == pytest.approx(roc_auc_score(truth, torch.cat((on, off)).numpy()), abs=1e-12)
    with pytest.raises(ValueError, match="60 real and 0 other scores"):
        auroc(on, off[:0])


def test_the_share_at_least_as_large_counts_the_asked_one():
    assert share_at_least(torch.tensor([5.0, 0.0]), torch.tensor([1.0, 5.0, 7.0])).tolist() == [0.75, 1.0]
