"""Drift from a manifold: every detector against an independent one, the calibration, one side's known failures."""

import functools
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from tiny import files_in

from latentcomm.drift import COMBINED, DETECTORS, FAMILIES, PANEL, DriftReference, fit_drift_reference
from latentcomm.drift import reference as reference_module
from latentcomm.drift.families import NOISE, Material, known_off, partners
from latentcomm.drift.gaussian import fit_gaussian, ledoit_wolf, rms_normalised
from latentcomm.drift.neighbours import fit_local_density, local_residual, nearest
from latentcomm.drift.rarity import auroc, held_out_surprise, share_at_least, surprise, two_sided
from latentcomm.sites import Site

WIDTH = 24
every_detector = pytest.mark.parametrize("name", DETECTORS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(n_rows: int, *, seed: int, width: int = WIDTH) -> torch.Tensor:
    """States of six kinds, each with six directions of its own, about a mean as large as their spread."""
    kinds, centres, axes = 6, 3 * normal(6, width, seed=1), normal(6, width, 6, seed=2)
    kind = torch.randint(kinds, (n_rows,), generator=torch.Generator().manual_seed(seed + 100))
    within = torch.einsum("rdk,rk->rd", axes[kind], normal(n_rows, 6, seed=seed + 200))
    return 2 * normal(width, seed=3) + centres[kind] + within + 0.3 * normal(n_rows, width, seed=seed + 300)


DOCUMENTS = torch.arange(100).repeat_interleave(12)


@functools.cache
def reference() -> DriftReference:
    return fit_drift_reference(mixture(1200, seed=0), groups=DOCUMENTS, site=Site(3), model="tiny", kind="all")


def fitted_rows(found: DriftReference, rows: torch.Tensor) -> torch.Tensor:
    """The rows that were not held out, told by their values."""
    held = {tuple(row) for row in found.held_out.tolist()}
    return torch.stack([row for row in rows if tuple(row.tolist()) not in held])


@functools.cache
def small() -> tuple[DriftReference, np.ndarray, torch.Tensor]:
    """A reference, the rows that it was fitted on, and other states: some real, some far off."""
    rows = mixture(240, seed=7, width=8)
    found = fit_drift_reference(rows, seed=4)
    others = torch.cat((mixture(20, seed=9, width=8), 3 * normal(10, 8, seed=5)))
    return found, fitted_rows(found, rows).numpy(), others


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


def test_off_subspace_is_what_the_principal_components_of_scikit_learn_leave_of_raw_states():
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


@every_detector
def test_a_detector_is_a_method_a_score_and_a_column_with_the_same_numbers(name):
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


def test_the_joint_p_value_falls_with_a_planted_shift_down_to_the_smallest_it_can_be():
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


def test_auroc_is_that_of_scikit_learn_with_ties():
    on, off = normal(60).round(decimals=1), normal(40, seed=1).round(decimals=1) + 0.5
    truth = [0] * 60 + [1] * 40
    assert auroc(on, off) == pytest.approx(roc_auc_score(truth, torch.cat((on, off)).numpy()), abs=1e-12)
    with pytest.raises(ValueError, match="60 real and 0 other scores"):
        auroc(on, off[:0])


def test_the_share_at_least_as_large_counts_the_asked_one():
    assert share_at_least(torch.tensor([5.0, 0.0]), torch.tensor([1.0, 5.0, 7.0])).tolist() == [0.75, 1.0]


# --- calibration ---


def alarms_expected(n_real: int, n_asked: int, n_extreme: int) -> tuple[float, float]:
    """Where 99.9 % of the numbers of alarms lie: of n_asked exchangeable states, those among the n_extreme outermost
    of n_real + 1 places (a beta-binomial, since all of them are held against the same real ones).
    """
    return scipy.stats.betabinom.interval(0.999, n_asked, n_extreme, n_real + 1 - n_extreme)


@pytest.mark.parametrize("name", [*DETECTORS, COMBINED])
def test_a_real_state_raises_an_alarm_as_often_as_the_rate_says(name):
    found, fresh = reference(), mixture(2000, seed=21)
    n = len(found.held_out)
    alarms = int((found.percentile(fresh)[name] >= 0.95).sum())
    extreme = int(0.05 * (n + 1)) if name == COMBINED else 2 * int(0.025 * (n + 1))
    low, high = alarms_expected(n, 2000, extreme)
    assert low <= alarms <= high
    assert low > 0.01 * 2000 and high < 0.12 * 2000


def test_the_alarm_is_the_joint_p_value_at_the_rate():
    found, fresh = reference(), mixture(500, seed=22)
    for rate in (0.05, 0.2):
        assert torch.equal(found.drifted(fresh, rate=rate), found.p_value(fresh) <= rate)
    torch.testing.assert_close(found.percentile(fresh)[COMBINED], 1 - found.p_value(fresh))
    torch.testing.assert_close(found.measure(fresh).p_value, found.p_value(fresh))


def test_thresholds_from_fitted_states_or_the_chi_squared_law_raise_many_more_alarms():
    rows, fresh = mixture(180, seed=0, width=40), mixture(1000, seed=21, width=40)
    found = fit_drift_reference(rows)
    fitted = fitted_rows(found, rows)
    in_sample = (found.mahalanobis(fresh) > found.mahalanobis(fitted).quantile(0.95)).double().mean()
    chi_squared = (found.mahalanobis(fresh).square() > scipy.stats.chi2.ppf(0.95, 40)).double().mean()
    own = (found.percentile(fresh)["mahalanobis"] >= 0.95).double().mean()
    assert in_sample > 0.2
    assert chi_squared > 0.12
    assert own < 0.12


def test_documents_that_are_split_between_fit_and_calibration_hide_the_false_alarms():
    def documents(n: int, seed: int) -> torch.Tensor:
        return normal(n, 10, seed=seed).repeat_interleave(30, 0) + 0.05 * normal(30 * n, 10, seed=seed + 1) + 1

    rows, fresh = documents(40, 0), documents(40, 50)
    labels = torch.arange(40).repeat_interleave(30)
    by_row = fit_drift_reference(rows).percentile(fresh)["knn_distance"]
    by_document = fit_drift_reference(rows, groups=labels).percentile(fresh)["knn_distance"]
    assert (by_row >= 0.95).double().mean() > 0.5
    assert (by_document >= 0.95).double().mean() < 0.2


def test_no_document_is_both_fitted_and_held_out():
    rows, found = mixture(1200, seed=0), reference()
    held = {tuple(row) for row in found.held_out.tolist()}
    documents = {int(label) for row, label in zip(rows, DOCUMENTS, strict=True) if tuple(row.tolist()) in held}
    assert len(found.held_out) == 12 * len(documents)
    assert documents == set(found.held_out_groups.tolist())
    assert found.n_fitted == 1200 - len(found.held_out)


def test_a_real_states_percentile_is_uniform_and_says_which_side():
    found, fresh = reference(), mixture(2000, seed=23)
    drift = found.measure(fresh)
    for name in DETECTORS:
        assert float(drift.percentiles[name].median()) == pytest.approx(0.5, abs=0.12)
    scaled = found.measure(3 * fresh[:20])
    assert scaled.ranks["norm_ratio"].min() > 0.97
    assert found.measure(fresh[:20] / 3).ranks["norm_ratio"].max() < 0.03
    assert scaled.percentiles["norm_ratio"].min() > 0.95 < found.measure(fresh[:20] / 3).percentiles["norm_ratio"].min()


# --- what each detector can tell ---


@functools.cache
def table() -> dict:
    return reference().auroc_table()


def test_the_table_has_every_family_and_detector_and_real_states_pass():
    assert list(table()) == list(FAMILIES)
    for row in table().values():
        assert list(row) == [*DETECTORS, COMBINED]
    for found in table()["real"].values():
        assert found.one_sided == pytest.approx(0.5, abs=0.12)
        assert found.two_sided == pytest.approx(0.5, abs=0.12)


def test_an_average_looks_more_typical_to_one_side_and_is_caught_by_two_or_by_clusters_and_density():
    average = table()["average"]
    assert average["norm_ratio"].one_sided < 0.25 < 0.7 < average["norm_ratio"].two_sided
    assert average["off_subspace"].one_sided < 0.35
    assert 0.35 < average["mahalanobis"].two_sided < 0.65  # which sees nothing of it here
    assert average["relative_mahalanobis"].two_sided > 0.8
    assert average["local_outlier_factor"].two_sided > 0.85
    assert average[COMBINED].two_sided > 0.9


def test_where_states_are_gaussian_one_sided_mahalanobis_certifies_averages_as_better_than_real():
    found = fit_drift_reference(normal(600, 16) * torch.linspace(0.5, 2, 16) + 6)
    averages = (normal(300, 16, seed=4) + normal(300, 16, seed=5)) / 2 * torch.linspace(0.5, 2, 16) + 6
    told = found.auroc(normal(300, 16, seed=6) * torch.linspace(0.5, 2, 16) + 6, averages)["mahalanobis"]
    assert told.one_sided < 0.15
    assert told.two_sided > 0.65


def test_a_gaussian_fake_of_a_mixture_passes_mahalanobis_and_is_caught_by_its_neighbours():
    fake = table()["gaussian_fake"]
    assert 0.35 < fake["mahalanobis"].one_sided < 0.65 and 0.35 < fake["mahalanobis"].two_sided < 0.65
    assert 0.35 < fake["norm_ratio"].two_sided < 0.65
    for name in ("knn_distance", "local_outlier_factor", "local_pca_residual", "cluster_mahalanobis"):
        assert fake[name].two_sided > 0.9
    assert fake[COMBINED].two_sided > 0.9


def test_a_gaussian_fake_of_gaussian_states_is_no_fake():
    found = fit_drift_reference(normal(900, 6) * torch.linspace(0.5, 2, 6) + 3)
    for told in found.auroc_table()["gaussian_fake"].values():
        assert told.two_sided == pytest.approx(0.5, abs=0.12)


def test_a_linear_maps_output_is_too_typical_off_the_subspace():
    mapped = table()["linear_map"]
    assert mapped["off_subspace"].one_sided < 0.1 < 0.9 < mapped["off_subspace"].two_sided


def test_shuffled_dimensions_keep_the_norm_and_lose_everything_else():
    shuffled = table()["shuffled_dimensions"]
    assert 0.35 < shuffled["norm_ratio"].two_sided < 0.65
    assert shuffled["mahalanobis"].one_sided > 0.95 and shuffled["local_outlier_factor"].one_sided > 0.95


def test_the_panel_is_six_detectors_and_tells_every_large_change():
    assert len(set(PANEL)) == 6 and set(PANEL) <= set(DETECTORS)
    for family in ("gaussian_fake", "average", "sum", "shuffled_dimensions", "linear_map"):
        assert table()[family][COMBINED].two_sided > 0.9


def test_other_states_join_the_table_under_their_name():
    found, layer = reference(), mixture(60, seed=31) @ torch.linalg.qr(normal(WIDTH, WIDTH, seed=9))[0]
    row = found.auroc_table({"another_layer": layer})["another_layer"]
    assert row["mahalanobis"].one_sided > 0.9
    with pytest.raises(ValueError, match="average is built in; give the other family another name"):
        found.auroc_table({"average": layer})


def test_the_auroc_is_that_of_the_scores_themselves():
    found, real, fake = reference(), mixture(80, seed=41), normal(50, WIDTH, seed=42) * 4
    told = found.auroc(real, fake)
    truth = [0] * 80 + [1] * 50
    both = torch.cat((real, fake))
    assert told["mahalanobis"].one_sided == pytest.approx(roc_auc_score(truth, found.mahalanobis(both)), abs=1e-12)
    assert told["cosine"].one_sided == pytest.approx(roc_auc_score(truth, -found.cosine(both)), abs=1e-12)


# --- the families ---


def material(seed: int = 0) -> Material:
    rows = mixture(300, seed=50)
    return Material(rows, rows.roll(7, 0), mixture(600, seed=51), torch.Generator().manual_seed(seed))


def test_families_are_what_they_say():
    made = {name: make(material()) for name, make in FAMILIES.items()}
    rows, fitted = material().real, material().fitted
    torch.testing.assert_close(made["average"], (rows + rows.roll(7, 0)) / 2)
    torch.testing.assert_close(made["sum"], rows + rows.roll(7, 0))
    torch.testing.assert_close(made["scaled"], 1.5 * rows)
    assert torch.equal(made["real"], rows)
    assert torch.equal(made["shuffled_dimensions"].sort(1).values, rows.sort(1).values)
    assert not torch.equal(made["shuffled_dimensions"], rows)
    spread = float(torch.cov(fitted.T).trace())
    for noisy in ("isotropic_noise", "covariance_noise"):
        energy = float((made[noisy] - rows).square().sum(1).mean())
        assert energy == pytest.approx(NOISE**2 * spread, rel=0.1)
    cov, fake = torch.cov(fitted.T), torch.cov(made["gaussian_fake"].T)
    assert float((fake - cov).norm() / cov.norm()) < 0.35
    isotropic = torch.cov((made["isotropic_noise"] - rows).T)
    assert float((isotropic / isotropic.trace() - cov / cov.trace()).norm()) > 0.1
    assert made["linear_map"].var(0).sum() < 0.9 * rows.var(0).sum()
    assert torch.linalg.matrix_rank(made["linear_map"] - made["linear_map"].mean(0)) == WIDTH // 4


def test_a_partner_is_of_another_document_and_every_other_row_is_drawn():
    groups = torch.tensor([0, 2, 0, 1, 0, 0])
    drawn = torch.stack([partners(groups, seed=seed) for seed in range(200)])
    assert bool((groups[drawn] != groups).all())
    assert set(drawn[:, 0].tolist()) == {1, 3}
    assert set(drawn[:, 1].tolist()) == {0, 2, 3, 4, 5}
    with pytest.raises(ValueError, match="all 3 rows are of one document"):
        partners(torch.zeros(3, dtype=torch.long), seed=0)


def test_families_are_the_same_bits_for_the_same_seed():
    rows, groups, fitted = mixture(60, seed=50), torch.arange(60), mixture(90, seed=51)
    first, again = (known_off(rows, groups, fitted, seed=3) for _ in range(2))
    other = known_off(rows, groups, fitted, seed=4)
    assert all(torch.equal(first[name], again[name]) for name in FAMILIES)
    assert not torch.equal(first["average"], other["average"])


# --- one and the same ---


def test_the_same_seed_gives_the_same_bits_and_nothing_given_changes():
    rows, fresh = mixture(300, seed=0), mixture(30, seed=1)
    before = rows.clone()
    first, again, other = (fit_drift_reference(rows, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(rows, before)
    assert torch.equal(first.held_out_scores, again.held_out_scores)
    assert torch.equal(first.p_value(fresh), again.p_value(fresh))
    assert not torch.equal(first.held_out, other.held_out)
    rows.zero_()
    assert torch.equal(first.p_value(fresh), again.p_value(fresh))


def test_equal_rows_stand_in_the_bank_once():
    rows = mixture(240, seed=0)
    found = fit_drift_reference(torch.cat((rows, rows, 2 * rows[:60])))
    rows_seen = rms_normalised(found.manifold.bank)
    assert len(torch.unique(rows_seen, dim=0)) == len(rows_seen) < found.n_fitted
    assert torch.isfinite(found.held_out_scores).all()


# --- the file ---


def test_a_saved_reference_comes_back_with_every_bit(tmp_path: Path):
    found, fresh, path = reference(), mixture(40, seed=60), tmp_path / "deep" / "reference.safetensors"
    found.save(path)
    again = DriftReference.load(path, site=Site(3), model="tiny", kind="all")
    assert repr(again) == repr(found)
    assert (again.site, again.model, again.kind, again.seed) == (Site(3), "tiny", "all", 0)
    for name, values in found.measure(fresh).scores.items():
        assert torch.equal(again.measure(fresh).scores[name], values)
    assert torch.equal(again.p_value(fresh), found.p_value(fresh))
    assert again.auroc_table() == table()
    assert files_in(tmp_path) == ["deep", "deep/reference.safetensors"]


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "reference.safetensors"
    reference().save(path)
    before = path.read_bytes()

    def fail(tensors: object, draft: Path, metadata: object) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference_module, "save_file", fail)
    with pytest.raises(RuntimeError, match="could not be written"):
        reference().save(path)
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["reference.safetensors"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"site": Site(4)},
            r"fitted for Site\(layer=3, .*\) but the states are of Site\(layer=4, .*; fit one with site=",
        ),
        ({"site": Site(3, "resid_pre")}, "the states are of Site.layer=3, stream='resid_pre'"),
        ({"model": "large"}, "fitted for 'tiny' but the states are of 'large'; fit one with model='large'"),
        ({"kind": "last"}, "fitted for 'all' but the states are of 'last'"),
    ],
)
def test_a_reference_of_another_site_model_or_kind_is_refused(tmp_path: Path, asked, message):
    path = tmp_path / "reference.safetensors"
    reference().save(path)
    with pytest.raises(ValueError, match=message):
        DriftReference.load(path, **asked)
    with pytest.raises(ValueError, match=message):
        reference().require(**asked)
    reference().require(site=Site(3), model="tiny", kind="all")


def test_a_reference_fitted_for_no_site_vouches_for_none():
    with pytest.raises(ValueError, match="fitted for no site but the states are of Site"):
        small()[0].require(site=Site(3))
    small()[0].require()


@pytest.mark.parametrize("content", [b"", b"not a reference at all", None])
def test_a_file_that_is_no_reference_is_refused(tmp_path: Path, content):
    path = tmp_path / "reference.safetensors"
    if content is None:
        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="DriftReference"):
        DriftReference.load(path)
    reference().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no safetensors file"):
        DriftReference.load(path)
    with pytest.raises(FileNotFoundError):
        DriftReference.load(tmp_path / "nowhere")


# --- bad input ---


def spoiled(value: float, rows: list[int]) -> torch.Tensor:
    out = mixture(240, seed=0)
    out[rows, 3] = value
    return out


def constant(columns: list[int]) -> torch.Tensor:
    out = mixture(240, seed=0)
    out[:, columns] = 2.0
    return out


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: fit_drift_reference(mixture(119, seed=0)), "119 rows are too few for a calibrated reference; .* 120"),
        (lambda: fit_drift_reference(normal(240, 1)), "rows are 1 wide; a manifold needs a width of at least 2"),
        (lambda: fit_drift_reference(torch.ones(240, 4)), "all 240 rows are equal; give states of different texts"),
        (lambda: fit_drift_reference(constant([5])), r"rows are constant in 1 columns \(5\); leave these out"),
        (lambda: fit_drift_reference(constant(list(range(7)))), r"in 7 columns \(0, 1, 2, 3, 4 and 2 more\)"),
        (lambda: fit_drift_reference(spoiled(np.nan, [7])), "rows holds NaN or infinity in row 7;"),
        (lambda: fit_drift_reference(spoiled(np.inf, list(range(9)))), "in rows 0, 1, 2, 3, 4 and 4 more;"),
        (
            lambda: fit_drift_reference(torch.cat((mixture(240, seed=0), torch.zeros(2, WIDTH)))),
            "2 zero rows, .* row 240",
        ),
        (lambda: fit_drift_reference(mixture(20, seed=0).repeat(10, 1)), "only 20 of 133 fitted rows differ; .* 31 do"),
        (lambda: fit_drift_reference(mixture(240, seed=0), groups=[0, 1] * 120), "2 documents cannot be split .* 12"),
        (lambda: fit_drift_reference(mixture(240, seed=0), groups=[0] * 100 + list(range(1, 141))), None),
        (
            lambda: fit_drift_reference(mixture(240, seed=0), groups=[0] * 200 + list(range(1, 41))),
            "has 20 rows of 20 doc",
        ),
        (lambda: fit_drift_reference(mixture(240, seed=0), groups=[0] * 9), "9 group labels for 240 rows"),
        (lambda: fit_drift_reference(mixture(240, seed=0), background=normal(9, WIDTH)), "9 background are too few"),
        (lambda: nearest(normal(2, 3), normal(5, 3), k=6), "k is 6 but the bank holds 5 rows; choose 1 to 5"),
        (lambda: fit_local_density(normal(5, 3), k=5), "k is 5 but the bank holds 5 rows; choose 1 to 4"),
        (lambda: fit_local_density(torch.ones(5, 3), k=2), "rows of the bank are equal"),
        (lambda: fit_gaussian(torch.zeros(5, 3)), "the covariance of 5 rows is singular"),
        (
            lambda: local_residual(normal(1, 3), normal(9, 3), nearest(normal(1, 3), normal(9, 3), k=5), rank=5),
            "rank is 5 but 5 neighbours span 4 directions at most",
        ),
        (
            lambda: local_residual(normal(1, 3), normal(9, 3), nearest(normal(1, 3), normal(9, 3), k=5), rank=4),
            "5 neighbours span fewer than 4 directions",
        ),
    ],
)
def test_states_that_fit_no_reference_are_refused_in_a_sentence(fit, message):
    if message is None:  # one long document among many short ones is fine
        fit()
        return
    with pytest.raises(ValueError, match=message):
        fit()


@pytest.mark.parametrize("ask", [lambda r, x: r.measure(x), lambda r, x: r.p_value(x), lambda r, x: r.mahalanobis(x)])
@pytest.mark.parametrize(
    ("states", "message"),
    [
        (normal(3, WIDTH + 1), "the states are 25 wide but DriftReference.*; fit a reference at their site"),
        (spoiled(np.nan, [1, 4]), "states holds NaN or infinity in rows 1, 4;"),
        (torch.zeros(3, WIDTH), "states has 3 zero rows, the first is row 0; they have no direction"),
    ],
)
def test_states_that_cannot_be_measured_are_refused_in_a_sentence(ask, states, message):
    with pytest.raises(ValueError, match=message):
        ask(reference(), states)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e-4])
def test_a_rate_that_the_held_out_states_cannot_resolve_is_refused(rate):
    with pytest.raises(ValueError, match=f"rate is {rate}; 408 held-out states resolve 0.0024 and more"):
        reference().drifted(mixture(3, seed=0), rate=rate)


def test_no_states_give_no_numbers():
    assert reference().p_value(torch.zeros(0, WIDTH)).shape == (0,)
