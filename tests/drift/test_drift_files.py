"""References on disk, and the states that they are not fitted to or asked about."""

from pathlib import Path

import numpy as np
import pytest
import torch
from manifolds import WIDTH, mixture, normal, reference, small, table
from numerics import assert_same_bits
from safetensors.torch import save_file
from tiny import files_in

from latentcomm._core import files
from latentcomm.drift import DriftReference, fit_drift_reference
from latentcomm.drift.gaussian import fit_gaussian
from latentcomm.drift.neighbours import fit_local_density, local_residual, nearest
from latentcomm.models.sites import Site

# --- the file ---


def test_a_saved_reference_comes_back_with_every_bit(tmp_path: Path):
    found, fresh, path = reference(), mixture(40, seed=60), tmp_path / "deep" / "reference.safetensors"
    found.save(path)
    again = DriftReference.load(path, site=Site(3), model="tiny", kind="all")
    assert repr(again) == repr(found)
    assert (again.site, again.model, again.kind, again.seed) == (Site(3), "tiny", "all", 0)
    assert_same_bits(again.held_out_rows, found.held_out_rows)
    assert again.false_alarms() == found.false_alarms()
    for name, values in found.measure(fresh).scores.items():
        assert_same_bits(again.measure(fresh).scores[name], values)
    assert_same_bits(again.p_value(fresh), found.p_value(fresh))
    assert again.auroc_table() == table()
    assert files_in(tmp_path) == ["deep", "deep/reference.safetensors"]


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "reference.safetensors"
    reference().save(path)
    before = path.read_bytes()

    def fail(tensors: object, draft: Path, metadata: object) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", fail)
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
