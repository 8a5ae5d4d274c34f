"""Each entry of SIMILARITIES held to its claims: blind to what it names, moved by what it does not."""

import dataclasses
import functools

import pytest
import torch
from similar import planted, rows, turned

from latentcomm import similarity as public
from latentcomm.similarity import INVARIANCES, SIMILARITIES, Similarity

every_similarity = pytest.mark.parametrize("name", SIMILARITIES)
WIDTHS = {"x": 5, "y": 7}


def changed(given: torch.Tensor, invariance: str) -> torch.Tensor:
    """The rows under a change of this kind, far from the identity."""
    n, width = given.shape
    if invariance == "orthogonal":
        return turned(given, seed=11)
    if invariance == "isotropic_scaling":
        return 7.5 * given
    if invariance == "translation":
        return given + 4 * rows(width, seed=12)
    if invariance == "invertible_linear":
        return given @ (torch.linalg.qr(rows(width, width, seed=13))[0] * torch.logspace(-1, 1, width).double())
    if invariance == "row_scaling":
        return given * torch.logspace(-0.5, 0.5, n).double()[torch.randperm(n)][:, None]
    raise AssertionError(invariance)


@every_similarity
@pytest.mark.parametrize("invariance", INVARIANCES)
@pytest.mark.parametrize("side", ["x", "y"])
def test_a_similarity_is_blind_to_what_it_claims_and_moved_by_all_else(name, invariance, side):
    torch.manual_seed(0)
    entry = SIMILARITIES[name]
    given = dict(zip("xy", planted(80, 5, 7, noise=0.6), strict=True))
    before = entry(**given)
    after = entry(**given | {side: changed(given[side], invariance)})
    if invariance in (entry.blind_in_x if side == "x" else entry.blind_in_y):
        assert after == pytest.approx(before, abs=1e-8)
    else:
        assert abs(after - before) > 1e-3


@every_similarity
def test_rows_with_themselves_give_1_and_with_shuffled_rows_far_less(name):
    x, _ = planted(120, noise=0.6)
    assert SIMILARITIES[name](x, x) == pytest.approx(1, abs=1e-6)
    assert SIMILARITIES[name](x, x[torch.randperm(120, generator=torch.Generator().manual_seed(0))]) < 0.4


@every_similarity
def test_a_similarity_is_symmetric_where_it_says_so_and_not_otherwise(name):
    x, y = planted(80, noise=0.6)
    there, back = SIMILARITIES[name](x, y), SIMILARITIES[name](y, x)
    if SIMILARITIES[name].symmetric:
        assert there == pytest.approx(back, abs=1e-10)
    else:
        assert abs(there - back) > 1e-3


@every_similarity
def test_unrelated_rows_give_0_on_average_where_unbiased(name):
    found = torch.tensor([SIMILARITIES[name](rows(30, 8, seed=i), rows(30, 9, seed=100 + i)) for i in range(30)])
    beyond = float(found.mean().abs() / (found.std() / 30**0.5))
    assert beyond < 3 if SIMILARITIES[name].unbiased else beyond > 3


@every_similarity
def test_the_order_of_the_rows_does_not_count(name):
    x, y = planted(90, noise=0.6)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    off = 0.02 if name in ("minibatch_debiased_cka", "minibatch_linear_cka", "linear_predictability") else 1e-9
    assert SIMILARITIES[name](x[order], y[order]) == pytest.approx(SIMILARITIES[name](x, y), abs=off)


@every_similarity
def test_bad_rows_are_refused_by_every_entry(name):
    x, y = planted(80)
    entry = SIMILARITIES[name]
    for bad, message in (
        (y[:, :1], r"^y is 1 wide; a similarity of spaces needs a width of"),
        (y[:1].expand(80, -1), r"^all rows of y are equal"),
        (y.index_fill(1, torch.tensor([4]), 2.0), r"^y is constant in column 4;"),
        (y.index_fill(0, torch.tensor([4]), torch.nan), r"^y holds NaN or infinity in row 4;"),
    ):
        with pytest.raises(ValueError, match=message):
            entry(x, bad)
    with pytest.raises(ValueError, match=r"^2 rows are too few; give at least \d+"):
        entry(x[:2], y[:2])
    for ask in (entry, functools.partial(public.compare, name)):
        with pytest.raises(ValueError, match=r"^x has 80 rows but y 79; pair them row by row$"):
            ask(x, y[1:])


@every_similarity
def test_documents_reach_the_measure_that_splits_by_them_and_no_other(name):
    x, y = planted(80, noise=1.0)
    entry = SIMILARITIES[name]
    moved = abs(entry(x, y, documents=[row // 8 for row in range(80)]) - entry(x, y))
    assert moved > 1e-6 if entry.by_document else moved == 0


def test_every_name_of_the_table_is_public_and_claims_are_known_words():
    for name, entry in SIMILARITIES.items():
        assert getattr(public, name) is entry.function
        assert entry.blind_in_x | entry.blind_in_y <= set(INVARIANCES)


def test_another_option_is_another_entry():
    x, y = planted(80)
    closer = dataclasses.replace(SIMILARITIES["mutual_knn"], function=functools.partial(public.mutual_knn, k=3))
    assert isinstance(closer, Similarity)
    assert closer(x, y) == public.mutual_knn(x, y, k=3) != public.mutual_knn(x, y)
