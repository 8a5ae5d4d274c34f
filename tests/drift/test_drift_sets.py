"""Sets of states against real ones: the statistics against transcriptions, and the excess over real against real."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from latentcomm.alignment import row_folds
from latentcomm.drift import classifier_auroc, energy_distance, fit_drift_reference, set_drift


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def documents(n: int, per_document: int, *, seed: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """States whose documents differ as much as the states of one, and the document of each."""
    shifts = normal(n, width, seed=seed).repeat_interleave(per_document, 0)
    return shifts + normal(n * per_document, width, seed=seed + 1) + 2, torch.arange(n).repeat_interleave(per_document)


def naive_energy(x: torch.Tensor, y: torch.Tensor) -> float:
    def mean(pairs):
        return float(np.mean([np.linalg.norm(a - b) for a, b in pairs]))

    a, b = x.numpy(), y.numpy()
    between = mean([(p, q) for p in a for q in b])
    return 2 * between - sum(
        mean([(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)
    )


def test_the_energy_distance_is_its_transcription():
    x, y = normal(12, 3), normal(9, 3, seed=1) + 0.5
    assert energy_distance(x, y) == pytest.approx(naive_energy(x, y), abs=1e-12)


def test_in_one_dimension_it_is_scipys_but_for_the_bias():
    x, y = normal(30, 1), normal(20, 1, seed=1) + 1
    biased = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    within = sum(torch.cdist(s, s).mean() * (1 - len(s) / (len(s) - 1)) for s in (x, y))
    assert energy_distance(x, y) == pytest.approx(biased + float(within), abs=1e-10)


def test_it_is_zero_on_average_for_one_distribution_and_grows_by_a_shift():
    null = [energy_distance(normal(40, 4, seed=seed), normal(40, 4, seed=seed + 1000)) for seed in range(60)]
    assert abs(np.mean(null)) < 3 * np.std(null) / 60**0.5
    assert min(null) < 0
    shifts = [energy_distance(normal(60, 4), normal(60, 4, seed=1) + size) for size in (0.0, 0.5, 1.0)]
    assert shifts == sorted(shifts)
    assert energy_distance(normal(60, 4), 2 * normal(60, 4, seed=1)) > 0.3


def test_the_classifier_is_its_transcription():
    x, y = normal(30, 4), normal(40, 4, seed=1) + 0.4
    expected = []
    pairs = zip(row_folds(30, folds=5, seed=3), row_folds(40, folds=5, seed=3), strict=True)
    for held_x, held_y in pairs:
        kept_x, kept_y = np.delete(x.numpy(), held_x, 0), np.delete(y.numpy(), held_y, 0)
        within = np.concatenate([kept_x - kept_x.mean(0), kept_y - kept_y.mean(0)])
        covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
        direction = np.linalg.inv(covariance) @ (kept_x.mean(0) - kept_y.mean(0))
        scores = np.concatenate([x[held_x].numpy(), y[held_y].numpy()]) @ direction
        expected.append(roc_auc_score([1] * len(held_x) + [0] * len(held_y), scores))
    assert classifier_auroc(x, y, seed=3) == pytest.approx(np.mean(expected), abs=1e-10)


def test_the_classifier_detects_a_planted_shift_but_no_change_of_spread():
    assert classifier_auroc(normal(200, 4), normal(200, 4, seed=1) + 1) > 0.85
    assert classifier_auroc(normal(200, 4), normal(200, 4, seed=1)) == pytest.approx(0.5, abs=0.08)
    assert classifier_auroc(normal(200, 4), 3 * normal(200, 4, seed=1)) == pytest.approx(0.5, abs=0.08)


def test_documents_kept_together_do_not_let_the_classifier_remember_them():
    # Ten documents a set, twenty dimensions: every document can be told, none says anything of the next one.
    x, labels = documents(10, 20, seed=0, width=20)
    y, _ = documents(10, 20, seed=50, width=20)
    by_row = classifier_auroc(x, y)
    by_document = classifier_auroc(x, y, x_groups=labels, y_groups=labels)
    assert by_row > 0.85
    assert by_document < 0.75


def test_real_states_of_new_documents_have_no_excess():
    real, labels = documents(20, 30, seed=0)
    fresh, fresh_labels = documents(20, 30, seed=70)
    found = set_drift(fresh, real, real_groups=labels, x_groups=fresh_labels)
    assert found.energy.baseline > 0.1
    assert found.energy.lowest <= found.energy.baseline <= found.energy.highest
    assert abs(found.energy.excess) < 0.15 and abs(found.classifier.excess) < 0.12
    assert found.energy.p_value > 0.1
    shifted = set_drift(fresh + 1.5, real, real_groups=labels, x_groups=fresh_labels)
    assert shifted.energy.excess > 0.8 and shifted.classifier.excess > 0.2
    assert shifted.energy.p_value == pytest.approx(1 / 11)
    assert shifted.energy.baseline == pytest.approx(found.energy.baseline)


def test_what_has_only_another_spread_is_an_excess_of_energy_alone():
    real = normal(300, 5)
    found = set_drift(3 * normal(150, 5, seed=1), real)
    assert found.energy.excess > 1 and found.energy.p_value < 0.1
    assert abs(found.classifier.excess) < 0.15


def test_excess_is_observed_less_baseline_and_both_use_as_many_rows():
    found = set_drift(normal(33, 3), normal(400, 3, seed=1), n_splits=3)
    for part in (found.energy, found.classifier):
        assert part.excess == pytest.approx(part.observed - part.baseline)
    assert (found.n_rows, found.n_splits) == (33, 3)


def test_a_split_compares_half_of_the_documents_with_the_set_and_the_rest():
    real, labels = documents(20, 6, seed=0)
    x, x_labels = documents(10, 6, seed=70)
    found = set_drift(x, real, real_groups=labels, x_groups=x_labels, n_splits=2)
    against, between = [], []
    for seed in (0, 1):  # halves of 60 rows, as many as x has: nothing is drawn
        chosen = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:10]
        first = torch.isin(labels, chosen)
        against.append(energy_distance(x, real[first]))
        between.append(energy_distance(real[~first], real[first]))
    assert found.energy.observed == pytest.approx(np.mean(against), abs=1e-12)
    assert found.energy.baseline == pytest.approx(np.mean(between), abs=1e-12)
    assert (found.energy.lowest, found.energy.highest) == pytest.approx((min(between), max(between)), abs=1e-12)
    assert found.energy.lowest < found.energy.highest


def test_the_same_seed_gives_the_same_numbers():
    x, real = normal(40, 3), normal(100, 3, seed=1)
    first, again, other = (set_drift(x, real, n_splits=2, seed=seed) for seed in (0, 0, 5))
    assert first == again
    assert first.energy.observed != pytest.approx(other.energy.observed)


def test_a_reference_compares_sets_with_held_out_documents_in_rms_view():
    real, labels = documents(60, 10, seed=0)
    reference = fit_drift_reference(real, groups=labels)
    fresh, _ = documents(30, 10, seed=80)
    plain, tripled = reference.set_drift(fresh, n_splits=2), reference.set_drift(3 * fresh, n_splits=2)
    assert plain.energy.observed == pytest.approx(tripled.energy.observed, abs=1e-10)
    assert plain.energy.excess < 0.2 < reference.set_drift(-fresh, n_splits=2).energy.excess


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: energy_distance(normal(1, 3), normal(9, 3)), "x has 1 rows; an energy distance needs at least 2"),
        (lambda: energy_distance(normal(9, 3), normal(9, 3) / 0), "y holds NaN or infinity"),
        (lambda: classifier_auroc(normal(4, 3), normal(9, 3)), "4 rows cannot make 5 folds"),
        (
            lambda: classifier_auroc(normal(9, 3), normal(9, 3), x_groups=[0, 1] * 4 + [1]),
            "2 groups cannot make 5 folds",
        ),
        (lambda: set_drift(normal(19, 3), normal(90, 3)), "19 rows against 90 real ones leave 19 a set; .* 20 and 40"),
        (lambda: set_drift(normal(50, 3), normal(39, 3)), "leave 19 a set; give at least 20 and 40"),
        (lambda: set_drift(normal(50, 3), normal(90, 3), n_splits=0), "n_splits is 0; at least 1 is needed"),
        (lambda: set_drift(normal(50, 3) / 0, normal(90, 3)), "x holds NaN or infinity"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused_in_a_sentence(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
