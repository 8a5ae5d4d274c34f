"""False alarms on real states of new documents, however the reference is calibrated, and sinks."""

import math

import pytest
import scipy.stats
import torch
from manifolds import DOCUMENTS, fitted_rows, mixture, normal, reference
from numerics import assert_same_bits, same_bits

from latentcomm.alignment import row_folds
from latentcomm.drift import COMBINED, DETECTORS, PANEL, fit_drift_reference, fitting
from latentcomm.drift.gaussian import rms_normalised
from latentcomm.drift.rarity import held_out_surprise, surprise

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
        assert_same_bits(found.drifted(fresh, rate=rate), found.p_value(fresh) <= rate)
    torch.testing.assert_close(found.percentile(fresh)[COMBINED], 1 - found.p_value(fresh))
    torch.testing.assert_close(found.measure(fresh).p_value, found.p_value(fresh))


def test_thresholds_from_fitted_states_or_chi_squared_raise_more_alarms():
    rows, fresh = mixture(180, seed=0, width=40), mixture(1000, seed=21, width=40)
    found = fit_drift_reference(rows)
    fitted = fitted_rows(found, rows)
    in_sample = (found.mahalanobis(fresh) > found.mahalanobis(fitted).quantile(0.95)).double().mean()
    chi_squared = (found.mahalanobis(fresh).square() > float(scipy.stats.chi2.ppf(0.95, 40))).double().mean()
    own = (found.percentile(fresh)["mahalanobis"] >= 0.95).double().mean()
    assert in_sample > 0.2
    assert chi_squared > 0.12
    assert own < 0.12


def test_documents_split_between_fit_and_calibration_hide_false_alarms():
    def documents(n: int, seed: int) -> torch.Tensor:
        return normal(n, 10, seed=seed).repeat_interleave(30, 0) + 0.05 * normal(30 * n, 10, seed=seed + 1) + 1

    rows, fresh = documents(40, 0), documents(40, 50)
    labels = torch.arange(40).repeat_interleave(30)
    by_row = fit_drift_reference(rows).percentile(fresh)["knn_distance"]
    by_document = fit_drift_reference(rows, groups=labels).percentile(fresh)["knn_distance"]
    assert (by_row >= 0.95).double().mean() > 0.5
    assert (by_document >= 0.95).double().mean() < 0.2


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_references_false_alarms_are_of_other_documents_near_the_rate(rate):
    found, part = reference(), row_folds(len(reference().held_out), folds=10, groups=reference().held_out_groups)
    carried = found.false_alarms(rate=rate)
    assert list(carried) == [*DETECTORS, COMBINED]
    n, fresh = len(found.held_out), found.percentile(mixture(2000, seed=24))
    for name, share in carried.items():
        assert scipy.stats.binom.ppf(0.0005, n, rate) <= share * n <= scipy.stats.binom.ppf(0.9995, n, rate)
        assert share == pytest.approx(float((fresh[name] >= 1 - rate).double().mean()), abs=0.06)
    alarms, scores = 0, found.knn_distance(found.held_out)
    for asked in part:  # the detector's alarms written out
        others = torch.cat([scores[other] for other in part if other is not asked])
        for score in scores[asked]:
            sides = ((others <= score).sum(), (others >= score).sum())
            alarms += 2 * (1 + int(min(sides))) / (len(others) + 1) <= rate
    assert carried["knn_distance"] == pytest.approx(alarms / n, abs=1e-6)
    joint, columns = 0, [list(DETECTORS).index(name) for name in PANEL]
    for asked in part:  # and those of the panel
        others = found.held_out_scores[torch.cat([other for other in part if other is not asked])].T.contiguous()
        usual = torch.stack([held_out_surprise(others[column]) for column in columns]).amax(0)
        asks = found.held_out_scores[asked].T.contiguous()
        loud = torch.stack([surprise(asks[column], others[column]) for column in columns]).amax(0)
        joint += sum((1 + int((usual >= one).sum())) / (len(usual) + 1) <= rate for one in loud)
    assert carried[COMBINED] == pytest.approx(joint / n, abs=1e-6)


def test_false_alarms_of_documents_that_differ_show_where_rows_hide_them():
    def documents(n: int, seed: int) -> torch.Tensor:
        return normal(n, 10, seed=seed).repeat_interleave(30, 0) + 0.05 * normal(30 * n, 10, seed=seed + 1) + 1

    rows, labels = documents(24, 0), torch.arange(24).repeat_interleave(30)
    carried = fit_drift_reference(rows, groups=labels).false_alarms(rate=0.2)["norm_ratio"]
    by_row = fit_drift_reference(rows).false_alarms(rate=0.2)["norm_ratio"]
    assert by_row == pytest.approx(0.2, abs=0.05)
    assert abs(carried - 0.2) > abs(by_row - 0.2)


@pytest.mark.parametrize("rate", [0.001, 1.0])
def test_false_alarms_at_a_rate_too_fine_for_the_states_are_refused(rate):
    with pytest.raises(ValueError, match=f"rate is {rate}; 360 real states resolve 0.0055 and more, below 1"):
        reference().false_alarms(rate=rate)


# --- sinks ---


def with_sinks() -> tuple[torch.Tensor, torch.Tensor]:
    """Documents of 12 states whose first is a sink by position alone, and four states elsewhere that are by norm."""
    rows = mixture(1200, seed=0)
    rows[[5, 30, 301, 770]] *= 150
    return rows, torch.arange(12).repeat(100)


def test_sinks_are_left_out_by_position_and_norm_and_counted():
    rows, positions = with_sinks()
    found = fit_drift_reference(rows, groups=DOCUMENTS, positions=positions)
    assert (found.sinks_by_position, found.sinks_by_norm, found.left_out) == (100, 4, 104)
    assert repr(found).endswith("104 sinks left out, width 24)")
    assert found.n_fitted + len(found.held_out) == 1200 - 104
    assert_same_bits(found.held_out, rows[found.held_out_rows])
    assert int(positions[found.held_out_rows].min()) > 0
    kept = (positions > 0) & (rows.norm(dim=1) < 50 * rows.norm(dim=1).median())
    by_hand = fit_drift_reference(rows[kept], groups=DOCUMENTS[kept])
    assert_same_bits(found.held_out_scores, by_hand.held_out_scores)
    assert found.drifted(rows[[5, 30, 301, 770]]).all()


def test_without_positions_only_the_norm_excludes_rows_or_nothing_does():
    rows, positions = with_sinks()
    by_norm = fit_drift_reference(rows, groups=DOCUMENTS)
    assert (by_norm.sinks_by_position, by_norm.sinks_by_norm) == (0, 4)
    everything = fit_drift_reference(rows, groups=DOCUMENTS, norm_limit=math.inf)
    assert everything.left_out == 0
    assert float(everything.manifold.mean.norm()) > 1.2 * float(by_norm.manifold.mean.norm())  # four of 1200 do that
    only_position = fit_drift_reference(rows, groups=DOCUMENTS, positions=positions, norm_limit=math.inf)
    assert (only_position.sinks_by_position, only_position.sinks_by_norm) == (100, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_limit": 1}, "norm_limit is 1; it counts medians"),
        ({"positions": torch.zeros(1200, dtype=torch.long)}, "no row is past the first 1 positions"),
        ({"positions": (torch.arange(1200) > 1100).long()}, "99 rows without 1101 sinks are too few"),
    ],
)
def test_sinks_that_leave_too_little_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_drift_reference(mixture(1200, seed=0), groups=DOCUMENTS, **options)


def test_no_document_is_both_fitted_and_held_out():
    rows, found = mixture(1200, seed=0), reference()
    held = {tuple(row) for row in found.held_out.tolist()}
    documents = {int(label) for row, label in zip(rows, DOCUMENTS, strict=True) if tuple(row.tolist()) in held}
    assert len(found.held_out) == 12 * len(documents)
    assert documents == set(found.held_out_groups.tolist())
    assert_same_bits(rows[found.held_out_rows], found.held_out)
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


# --- one and the same ---


def test_the_same_seed_gives_the_same_bits_and_nothing_given_changes():
    rows, fresh = mixture(300, seed=0), mixture(30, seed=1)
    before = rows.clone()
    first, again, other = (fit_drift_reference(rows, seed=seed) for seed in (0, 0, 1))
    assert_same_bits(rows, before)
    assert_same_bits(first.held_out_scores, again.held_out_scores)
    assert_same_bits(first.p_value(fresh), again.p_value(fresh))
    assert not same_bits(first.held_out, other.held_out)
    rows.zero_()
    assert_same_bits(first.p_value(fresh), again.p_value(fresh))


def test_beyond_the_limits_a_seeded_sample_is_bank_and_calibration(monkeypatch):
    monkeypatch.setattr(fitting, "MOST_NEIGHBOURS", 50)
    monkeypatch.setattr(fitting, "MOST_HELD_OUT", 60)
    rows = mixture(300, seed=0)
    found, again, other = (fit_drift_reference(rows, seed=seed) for seed in (0, 0, 1))
    assert (found.n_fitted, len(found.manifold.bank), len(found.held_out)) == (200, 50, 60)
    assert_same_bits(rows[found.held_out_rows], found.held_out)
    assert int(found.held_out_rows.max()) > 200  # of all held-out rows, and not the first of them
    assert_same_bits(found.held_out_rows, again.held_out_rows)
    assert_same_bits(found.manifold.bank, again.manifold.bank)
    assert not same_bits(found.held_out_rows, other.held_out_rows)


def test_equal_rows_stand_in_the_bank_once():
    rows = mixture(240, seed=0)
    found = fit_drift_reference(torch.cat((rows, rows, 2 * rows[:60])))
    rows_seen = rms_normalised(found.manifold.bank)
    assert len(torch.unique(rows_seen, dim=0)) == len(rows_seen) < found.n_fitted
    assert torch.isfinite(found.held_out_scores).all()
