"""What each detector can tell: known-off families, and the failures of one side."""

import pytest
import torch
from manifolds import WIDTH, mixture, normal, reference, table
from numerics import assert_same_bits, equal_to_rounding, same_bits
from sklearn.metrics import roc_auc_score

from latentcomm.drift import COMBINED, DETECTORS, FAMILIES, PANEL, fit_drift_reference
from latentcomm.drift.families import NOISE, Material, known_off, partners
from latentcomm.drift.rarity import surprise

# --- what each detector can tell ---


def test_the_table_has_every_family_and_detector_and_real_states_pass():
    assert list(table()) == list(FAMILIES)
    for row in table().values():
        assert list(row) == [*DETECTORS, COMBINED]
    for found in table()["real"].values():
        assert found.one_sided == pytest.approx(0.5, abs=0.12)
        assert found.two_sided == pytest.approx(0.5, abs=0.12)


def test_an_average_is_typical_on_one_side_and_caught_by_two():
    average = table()["average"]
    assert average["norm_ratio"].one_sided < 0.25 < 0.7 < average["norm_ratio"].two_sided
    assert average["off_subspace"].one_sided < 0.35
    assert 0.35 < average["mahalanobis"].two_sided < 0.65  # which sees nothing of it here
    assert average["relative_mahalanobis"].two_sided > 0.8
    assert average["local_outlier_factor"].two_sided > 0.85
    assert average[COMBINED].two_sided > 0.9


def test_one_sided_mahalanobis_passes_averages_of_gaussian_states():
    found = fit_drift_reference(normal(600, 16) * torch.linspace(0.5, 2, 16) + 6)
    averages = (normal(300, 16, seed=4) + normal(300, 16, seed=5)) / 2 * torch.linspace(0.5, 2, 16) + 6
    told = found.auroc(normal(300, 16, seed=6) * torch.linspace(0.5, 2, 16) + 6, averages)["mahalanobis"]
    assert told.one_sided < 0.15
    assert told.two_sided > 0.65


def test_a_gaussian_fake_of_a_mixture_is_caught_by_its_neighbours_alone():
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


def test_both_sides_of_the_table_are_their_transcription():
    found, real = reference(), {}
    order = found.held_out_groups.unique()
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]
    first = torch.isin(found.held_out_groups, order[: len(order) // 2])
    made = known_off(found.held_out[~first], found.held_out_groups[~first], found.manifold.bank, seed=0)["average"]
    for name in DETECTORS:
        held, asked = getattr(found, name)(found.held_out), getattr(found, name)(made)
        others = [torch.cat((held[:i], held[i + 1 :])) for i in first.nonzero().flatten().tolist()]
        on = torch.cat([surprise(value[None], other) for value, other in zip(held[first], others, strict=True)])
        real[name] = torch.cat((on, surprise(asked, held)))
    truth = [0] * int(first.sum()) + [1] * len(made)
    for name, rare in real.items():
        assert table()["average"][name].two_sided == pytest.approx(roc_auc_score(truth, rare), abs=1e-9)
    joint = roc_auc_score(truth, torch.stack([real[name] for name in PANEL]).amax(0))
    assert table()["average"][COMBINED].two_sided == pytest.approx(joint, abs=1e-9)


def test_few_held_out_states_do_not_make_new_real_ones_look_off():
    told = []
    for seed in range(8):
        found = fit_drift_reference(mixture(150, seed=600 + seed, width=8), seed=seed)
        told.append(found.auroc_table({"new": mixture(300, seed=700 + seed, width=8)})["new"][COMBINED].two_sided)
    assert sum(told) / 8 == pytest.approx(0.5, abs=0.06)


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
    assert_same_bits(made["real"], rows)
    assert_same_bits(made["shuffled_dimensions"].sort(1).values, rows.sort(1).values)
    assert not same_bits(made["shuffled_dimensions"], rows)
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
    assert all(same_bits(first[name], again[name]) for name in FAMILIES)
    assert not equal_to_rounding(first["average"], other["average"], terms=2)
