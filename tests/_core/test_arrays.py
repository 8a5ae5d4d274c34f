"""NumPy arrays are taken where a set of rows is, and give what the same tensors give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import latentcomm as lc
from latentcomm.similarity import SIMILARITIES, raw, rms_normalised, standardised

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(60, 4)), DRAW.normal(size=(60, 3))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_similarity(name: str) -> None:
    measure: Any = SIMILARITIES[name].function
    assert measure(X, Y) == measure(torch.tensor(X), torch.tensor(Y))


def test_a_similarity_with_its_null() -> None:
    rows = {"documents": np.repeat(np.arange(12), 5), "positions": np.tile(np.arange(5), 12)}
    found = lc.similarity.compare("linear_cka", X, Y, **rows, draws=5)
    tensors = {name: torch.tensor(each) for name, each in rows.items()}
    assert found == lc.similarity.compare("linear_cka", torch.tensor(X), torch.tensor(Y), **tensors, draws=5)


@pytest.mark.parametrize("fit", [lc.alignment.fit_ridge, lc.redundancy.fit_predictable])
def test_maps(fit: Callable[..., Any]) -> None:
    found, expected = fit(X, Y), fit(torch.tensor(X), torch.tensor(Y))
    assert found.weight.tolist() == expected.weight.tolist()
    assert found(X).tolist() == expected(torch.tensor(X)).tolist()
    assert found.r_squared(X, target=Y) == expected.r_squared(torch.tensor(X), torch.tensor(Y))


def test_a_penalty_that_is_chosen_by_groups() -> None:
    groups = np.repeat(np.arange(12), 5)
    expected = lc.alignment.choose_penalty(torch.tensor(X), torch.tensor(Y), groups=torch.tensor(groups))
    assert lc.alignment.choose_penalty(X, target=Y, groups=groups) == expected


@pytest.mark.parametrize("scaling", [rms_normalised, standardised, raw])
def test_scalings_of_rows(scaling: Callable[..., Any]) -> None:
    assert scaling(X).tolist() == scaling(torch.tensor(X)).tolist()


def test_drift_references() -> None:
    rows = DRAW.normal(size=(400, 3))
    found, expected = lc.drift.fit_drift_reference(rows), lc.drift.fit_drift_reference(torch.tensor(rows))
    assert found.mahalanobis(Y).tolist() == expected.mahalanobis(torch.tensor(Y)).tolist()
    assert found.percentile(Y).keys() == expected.percentile(torch.tensor(Y)).keys()


def test_what_is_given_is_not_changed_and_of_another_kind_refused() -> None:
    rows = X[::-1].copy()
    rows.flags.writeable = False
    assert lc.similarity.linear_cka(rows[::-1], rows) <= 1
    with pytest.raises(TypeError, match=r"^x is <U1 ndarray \[2 2\]; linear_cka takes float tensor \[row d_sender\]$"):
        lc.similarity.linear_cka(np.array([["a", "b"], ["c", "d"]]), X)
    with pytest.raises(TypeError, match=r"^x is int64 \[60 4\]; linear_cka takes float tensor \[row d_sender\]$"):
        lc.similarity.linear_cka(X.astype(int), X)
