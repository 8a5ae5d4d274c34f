"""The streaming accumulator against the plain functions, in any chunks, by any worker, from rows and from sums."""

import numpy as np
import pytest
import torch
from numerics import assert_same_bits
from similar import planted, rows
from sklearn.linear_model import Ridge

from latentcomm.alignment import row_folds
from latentcomm.similarity import (
    LayerPairs,
    MinibatchPairs,
    debiased_cka,
    document_fold,
    linear_cka,
    linear_predictability,
)
from latentcomm.similarity.layer_maps import exact as layer_pairs
from latentcomm.similarity.layer_maps import grams as held_rows

D_X, D_Y = 5, 7
DOCUMENTS = torch.arange(15).repeat_interleave(8)
N = len(DOCUMENTS)
MAPS = (LayerPairs.linear_cka, LayerPairs.debiased_cka, LayerPairs.linear_predictability)


def layers(noise: float = 1.0, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Three layers 5 wide and two layers 7 wide, related to one another, away from the origin."""
    sides = [planted(n, D_X, D_Y, noise=noise, seed=10 * layer) for layer in range(3)]
    shared = sides[0][0]
    x = torch.stack([side[0] + layer * shared for layer, side in enumerate(sides)]) + 3
    y = torch.stack([side[1] + layer * shared @ rows(D_X, D_Y, seed=70) for layer, side in enumerate(sides[:2])]) - 40
    return x, y


def each_pair(measure, x, y, **options) -> torch.Tensor:
    return torch.tensor([[measure(a, b, **options) for b in y] for a in x])


@pytest.fixture(params=["rows", "sums"])
def kept(request, monkeypatch) -> str:
    """Whether the accumulator still holds its rows, or turned them into sums after the first."""
    first, later = (20, 16) if request.param == "sums" else (10**9, 10**9)
    monkeypatch.setattr(layer_pairs, "BLOCK_ROWS", later)
    monkeypatch.setattr(LayerPairs, "_held_limit", lambda self: first if self._sums is None else later)
    return request.param


def streamed(x, y, chunks=(N,), groups=None, **options) -> LayerPairs:
    pairs, start = LayerPairs(**options), 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        pairs.update(x[:, part], y[:, part], groups=None if groups is None else groups[part])
        start += chunk
    assert start == x.shape[1]
    return pairs


# --- values ---


def test_both_cka_maps_are_those_of_the_plain_functions(kept):
    x, y = layers()
    pairs = streamed(x, y, (50, 1, N - 51))
    assert (pairs._sums is not None) == (kept == "sums")
    torch.testing.assert_close(pairs.linear_cka(), each_pair(linear_cka, x, y).double(), atol=1e-7, rtol=0)
    for measure, found in ((linear_cka, pairs.linear_cka()), (debiased_cka, pairs.debiased_cka())):
        for i in range(3):
            for j in range(2):
                assert float(found[i, j]) == pytest.approx(measure(x[i], y[j]), abs=1e-10)


@pytest.mark.parametrize("penalty", [None, 0.0, 1e-3, 1.0])
def test_predictability_is_the_plain_functions_on_the_same_folds(kept, penalty):
    x, y = layers()
    held_out = row_folds(N, folds=5, groups=DOCUMENTS, seed=0)
    fold_of = {int(label): number for number, part in enumerate(held_out) for label in DOCUMENTS[part]}
    pairs = streamed(x, y, (50, 1, N - 51), DOCUMENTS, fold_of=fold_of)
    there, back = pairs.linear_predictability(penalty=penalty), pairs.swapped().linear_predictability(penalty=penalty)
    assert there.shape == (3, 2) and back.shape == (2, 3)
    for i in range(3):
        for j in range(2):
            expected = linear_predictability(x[i], y[j], penalty=penalty, groups=DOCUMENTS)
            assert float(there[i, j]) == pytest.approx(expected, abs=1e-8)
            expected = linear_predictability(y[j], x[i], penalty=penalty, groups=DOCUMENTS)
            assert float(back[j, i]) == pytest.approx(expected, abs=1e-8)


def test_the_curve_over_penalties_is_scikit_learns_refits(kept):
    x, y = layers()
    pairs = streamed(x, y, groups=DOCUMENTS)
    fold = np.array([document_fold(label, folds=5) for label in DOCUMENTS.tolist()])
    penalties = [1e-8, 1e-4, 1, 100]
    found = pairs.ridge_curve(penalties)
    assert found.shape == (3, 2, 4)
    source, target = x[1].numpy(), y[1].numpy()
    for number, penalty in enumerate(penalties):
        sse = tss = 0.0
        for held_out in range(5):
            training, test = fold != held_out, fold == held_out
            spread = ((source[training] - source[training].mean(0)) ** 2).sum() / D_X
            model = Ridge(alpha=penalty * spread).fit(source[training], target[training])
            sse += ((target[test] - model.predict(source[test])) ** 2).sum()
            tss += ((target[test] - target[training].mean(0)) ** 2).sum()
        assert float(found[1, 1, number]) == pytest.approx(1 - sse / tss, abs=1e-8)


@pytest.mark.parametrize("n", [11, 13, 40])
def test_gram_blocks_and_products_give_the_same_maps(monkeypatch, n):
    x, y = layers(n=n)
    monkeypatch.setattr(held_rows, "GRAM_ROWS", 4)
    found = {}
    for cheaper in (True, False):
        monkeypatch.setattr(held_rows.HeldRows, "grams_are_cheaper", cheaper)
        pairs = streamed(x, y, (n,))
        found[cheaper] = pairs.linear_cka(), pairs.debiased_cka()
    torch.testing.assert_close(found[True], found[False], atol=1e-12, rtol=0)


def test_a_model_with_itself_keeps_its_rows_once_and_gives_the_same_maps(kept):
    x, _ = layers()
    once, apart = LayerPairs(), LayerPairs()
    for part in (slice(0, 50), slice(50, N)):
        one = x[:, part]
        once.update(one, one, groups=DOCUMENTS[part])
        apart.update(one, one.clone(), groups=DOCUMENTS[part])
    for measured in (*MAPS, lambda pairs: pairs.swapped().debiased_cka()):
        torch.testing.assert_close(measured(once), measured(apart), atol=1e-12, rtol=0)
    mixed, other = LayerPairs(), LayerPairs()
    for part, later in ((slice(0, 50), x), (slice(50, N), x.flip(1))):
        one = x[:, part]
        mixed.update(one, one if later is x else later[:, part], groups=DOCUMENTS[part])
        other.update(one, later[:, part].clone(), groups=DOCUMENTS[part])
    torch.testing.assert_close(mixed.debiased_cka(), other.debiased_cka(), atol=1e-12, rtol=0)
    assert kept == "sums" or (once._held[0][1] is once._held[0][0] and apart._held[0][1] is not apart._held[0][0])


def test_layers_of_x_taken_a_few_at_a_time_give_the_same_predictability(monkeypatch):
    x, y = layers()
    found = []
    for at_once in (1, 2, 3, 5):
        monkeypatch.setattr(held_rows, "AT_ONCE_BYTES", at_once * 8 * N * D_X)
        found.append(streamed(x, y, groups=DOCUMENTS).linear_predictability())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-12, rtol=0)


def test_wide_layers_are_added_in_smaller_blocks_that_give_the_same_sums(monkeypatch):
    x, y = layers()
    monkeypatch.setattr(LayerPairs, "_held_limit", lambda self: 20)
    whole = streamed(x, y, groups=DOCUMENTS)
    monkeypatch.setattr(layer_pairs, "BLOCK_BYTES", 8 * 29 * 7)  # seven rows of 3 x 5 and 2 x 7 columns
    assert layer_pairs._block_rows(29) == 7
    parts = streamed(x, y, groups=DOCUMENTS)
    for measured in MAPS:
        torch.testing.assert_close(measured(parts), measured(whole), atol=1e-10, rtol=0)


def test_what_is_held_stays_below_the_peak_that_is_announced():
    x, y = layers()
    pairs = LayerPairs()
    for _ in range(9):
        pairs.update(x, y)
        sums = [] if pairs._sums is None else [getattr(pairs._sums, name) for name in pairs._sums.__dataclass_fields__]
        held = [part for rows in pairs._held for part in rows]
        assert 8 * sum(part.numel() for part in (*held, *sums)) < pairs.peak_bytes((3, 2), (D_X, D_Y))
    assert LayerPairs(folds=1).peak_bytes((3, 2), (D_X, D_Y)) < pairs.peak_bytes((3, 2), (D_X, D_Y))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_what_the_processor_gives(kept):
    x, y = layers()
    here, there = streamed(x, y, groups=DOCUMENTS), streamed(x, y, groups=DOCUMENTS, device="cuda")
    for measured in MAPS:
        assert measured(there).device.type == "cuda"
        torch.testing.assert_close(measured(there).cpu(), measured(here), atol=1e-9, rtol=0)


def test_grams_are_chosen_for_few_rows_and_products_for_many():
    def chosen(n):
        x, y = torch.zeros(4, n, 10), torch.zeros(4, n, 10)
        return held_rows.HeldRows(x, y, torch.zeros(n, dtype=torch.int64), 1).grams_are_cheaper

    assert chosen(30) and not chosen(200)


# --- chunks and workers ---


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"])
@pytest.mark.parametrize(
    "chunks", [(1,) * N, (7,) * 17 + (1,), (N - 1, 1), (0, N, 0)], ids=lambda c: f"{c[:3]} and {len(c) - 3} more"
)
def test_any_chunking_gives_the_same_to_ten_digits(kept, documents, chunks):
    x, y = layers()
    whole, parts = streamed(x, y, (N,), documents), streamed(x, y, chunks, documents)
    for measured in MAPS:
        torch.testing.assert_close(measured(parts), measured(whole), atol=1e-10, rtol=0)
    assert parts.n_rows == whole.n_rows == N


@pytest.mark.parametrize("cut", [3, 30, 60, 115])
def test_two_workers_merged_give_what_one_gives_without_changing_either(kept, cut):
    x, y = layers()
    x[:, cut:] += 5  # the workers' first rows, and so their origins, lie apart
    whole = streamed(x, y, (N,), DOCUMENTS)
    one = LayerPairs().update(x[:, :cut], y[:, :cut], groups=DOCUMENTS[:cut])
    two = LayerPairs().update(x[:, cut:], y[:, cut:], groups=DOCUMENTS[cut:])
    before = two.debiased_cka()
    one.merge(two)
    for measured in MAPS:
        torch.testing.assert_close(measured(one), measured(whole), atol=1e-10, rtol=0)
    assert one.n_rows == N and two.n_rows == N - cut
    assert_same_bits(two.debiased_cka(), before)
    one.merge(LayerPairs())
    torch.testing.assert_close(LayerPairs().merge(one).debiased_cka(), whole.debiased_cka(), atol=1e-10, rtol=0)


def test_a_map_may_be_read_while_rows_still_come_in(kept):
    x, y = layers()
    pairs = LayerPairs()
    for start in range(0, N, 24):
        pairs.update(x[:, start : start + 24], y[:, start : start + 24], groups=DOCUMENTS[start : start + 24])
        pairs.debiased_cka()
    torch.testing.assert_close(pairs.debiased_cka(), streamed(x, y).debiased_cka(), atol=1e-10, rtol=0)


def test_rows_far_from_the_origin_lose_nothing(kept):
    x, y = layers()
    near, far = streamed(x, y, groups=DOCUMENTS), streamed(x + 1e4, y - 1e4, groups=DOCUMENTS)
    for measured in MAPS:
        torch.testing.assert_close(measured(far), measured(near), atol=1e-8, rtol=0)


def test_memory_is_bounded_by_the_widths_and_not_by_the_rows():
    x, y = layers()
    pairs = LayerPairs()
    most = 0
    for _ in range(60):
        pairs.update(x, y)
        rows_held = sum(part.numel() for held in pairs._held for part in held[:2])
        sums = [] if pairs._sums is None else [getattr(pairs._sums, name) for name in pairs._sums.__dataclass_fields__]
        most = max(most, rows_held + sum(part.numel() for part in sums))
    assert pairs._sums is not None and pairs.n_rows == 60 * N
    block = layer_pairs.BLOCK_ROWS * (3 * D_X + 2 * D_Y)
    assert most < block + 2 * layer_pairs.bytes_of_sums(3, D_X, 2, D_Y, folds=5) / 8 + (N * 29)


def test_float32_rows_are_summed_in_float64_and_nothing_given_changes(kept):
    x, y = (side.float() for side in layers())
    before = x.clone(), y.clone()
    pairs = streamed(x, y, (N - 3, 3))
    exact = streamed(x.double(), y.double()).debiased_cka()
    torch.testing.assert_close(pairs.debiased_cka(), exact, atol=1e-12, rtol=0)
    assert pairs.debiased_cka().dtype == torch.float64
    found = LayerPairs().update(x[:, :9], y[:, :9]).debiased_cka()  # few rows, so by Gram blocks, which are in float32
    exact = LayerPairs().update(x[:, :9].double(), y[:, :9].double()).debiased_cka()
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)
    assert_same_bits(x, before[0])
    assert_same_bits(y, before[1])


@pytest.mark.parametrize(("times", "off"), [(1, 5e-7), (150, 2e-5)], ids=["ordinary rows", "one long row"])
def test_float32_grams_of_many_rows_lose_no_more_than_is_said(times, off):
    mixed = rows(200, 200, seed=1) / 200**0.5
    x = torch.stack([rows(700, 200, seed=layer) @ mixed for layer in (2, 3)])
    y = x + 0.5 * rows(2, 700, 200, seed=4)
    x[:, 77] *= times
    y[:, 77] *= times
    x, y = x.float(), y.float()
    pairs = LayerPairs(folds=1).update(x, y)
    assert pairs._sums is None and pairs._source(4).grams_are_cheaper
    own = LayerPairs(folds=1).update(x, x).debiased_cka()
    batch = MinibatchPairs(batch_rows=700, buffer_rows=700).update(x, y).debiased_cka()
    found = {"linear": pairs.linear_cka(), "debiased": pairs.debiased_cka(), "own": own, "batch": batch}
    for name, other in (("linear", y), ("debiased", y), ("own", x), ("batch", y)):
        exact = each_pair(linear_cka if name == "linear" else debiased_cka, x, other).double()
        torch.testing.assert_close(found[name], exact, atol=off, rtol=0)


def test_the_caller_may_reuse_the_memory_of_a_chunk():
    x, y = layers()
    expected = streamed(x, y).debiased_cka()
    pairs, chunk_x, chunk_y = LayerPairs(), torch.empty(3, N // 2, D_X).double(), torch.empty(2, N // 2, D_Y).double()
    for half in (slice(0, N // 2), slice(N // 2, N)):
        pairs.update(chunk_x.copy_(x[:, half]), chunk_y.copy_(y[:, half]))
    torch.testing.assert_close(pairs.debiased_cka(), expected, atol=1e-12, rtol=0)


def test_lists_of_layers_are_taken_as_one_tensor_is():
    x, y = layers()
    assert_same_bits(LayerPairs().update(list(x), list(y)).debiased_cka(), streamed(x, y).debiased_cka())


# --- folds ---


def test_documents_have_one_fold_on_every_machine_and_rows_rotate():
    found = [document_fold(f"doc-{number}", folds=5) for number in range(2000)]
    counts = np.bincount(found)
    assert len(counts) == 5 and counts.min() > 330
    assert found[:4] == [3, 3, 2, 2]  # from the label alone
    assert found != [document_fold(f"doc-{number}", folds=5, seed=1) for number in range(2000)]
    x, y = layers()
    turns = {number: number % 5 for number in range(N)}
    by_turn = streamed(x, y, groups=torch.arange(N), fold_of=turns).linear_predictability()
    assert_same_bits(streamed(x, y).linear_predictability(), by_turn)


def test_folds_of_documents_do_not_leak_where_folds_of_rows_do():
    label = torch.arange(40).repeat_interleave(15)
    x = (rows(40, 45)[label] + 0.1 * rows(600, 45, seed=1))[None]
    y = (rows(40, 5, seed=2)[label] + 0.1 * rows(600, 5, seed=3))[None]
    assert float(LayerPairs().update(x, y).linear_predictability()) > 0.5
    assert float(LayerPairs().update(x, y, groups=label).linear_predictability()) < 0.05


# --- refusals ---


def test_what_does_not_fit_together_is_refused():
    x, y = layers()
    pairs = LayerPairs().update(x, y, groups=DOCUMENTS)
    for act, message in (
        (lambda: pairs.update(x[:, 1:], y, groups=DOCUMENTS), r"^x has 119 rows but y 120; pair them row by row"),
        (lambda: pairs.update(x[:2], y, groups=DOCUMENTS), r"^x has 2 layers 5 wide, but 3 layers 5 wide before"),
        (lambda: pairs.update(x, y[..., :6], groups=DOCUMENTS), r"^y has 2 layers 6 wide, but 2 layers 7 wide before"),
        (lambda: pairs.update(x, y), r"^some rows came with documents and some without"),
        (lambda: pairs.update(x, y, groups=DOCUMENTS[1:]), r"^119 group labels for 120 rows"),
        (lambda: pairs.update(x[..., :1], y), r"^x is 1 wide; a similarity of spaces needs a width of 2"),
        (lambda: pairs.update([], y), r"^x has no layers"),
        (lambda: pairs.update([x[0], x[1, 1:]], y), r"^the layers of x differ in shape: \[\(119, 5\), \(120, 5\)\]"),
        (lambda: pairs.merge(LayerPairs(folds=4)), r"^folds is 5 here but 4 there"),
        (lambda: pairs.merge(LayerPairs(seed=1)), r"^seed is 0 here but 1 there"),
        (lambda: pairs.merge(LayerPairs().update(x, y)), r"^one side was given documents and the other not"),
        (lambda: pairs.merge(LayerPairs().update(y, x, groups=DOCUMENTS)), r"their layers or widths differ"),
        (lambda: LayerPairs(device="mps"), r"^device mps has no float64"),
        (lambda: LayerPairs(folds=0), r"^folds is 0; give at least 3"),
        (lambda: LayerPairs(fold_of={"a": 5}), r"^fold_of sends document 'a' to fold 5, but folds go from 0 to 4"),
        (lambda: LayerPairs(fold_of={"a": 1}).update(x, y, groups=["b"] * N), r"^fold_of has no fold for document 'b'"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    assert pairs.n_rows == N  # a refused update leaves nothing behind
    torch.testing.assert_close(pairs.debiased_cka(), streamed(x, y).debiased_cka())


@pytest.mark.parametrize("side", [0, 1])
def test_rows_that_are_not_finite_are_refused_as_they_come_in(side):
    given = list(layers())
    given[side][1, 17, 2] = float("nan")
    with pytest.raises(ValueError, match=f"^layer 1 of {'xy'[side]} holds NaN or infinity in row 17;"):
        LayerPairs().update(*given)


def test_constant_columns_and_equal_rows_are_refused_at_the_end(kept):
    x, y = layers()
    y[1, :, 3] = 0.1
    for chunks in ((N,), (30, 90)):
        with pytest.raises(ValueError, match=r"^layer 1 of y is constant in column 3;"):
            streamed(x, y, chunks).debiased_cka()
    x[2] = 0.1
    with pytest.raises(ValueError, match=r"^all rows of layer 2 of x are equal"):
        streamed(x, y).linear_cka()
    y[1, 5, 3] = 0.2
    x[2, 100:] = rows(20, D_X)
    streamed(x, y, (90, 30)).debiased_cka()


def test_too_few_rows_or_folds_are_refused():
    x, y = layers()
    with pytest.raises(ValueError, match=r"^0 rows are too few; give at least 4"):
        LayerPairs().debiased_cka()
    with pytest.raises(ValueError, match=r"^2 rows are too few; give at least 3"):
        LayerPairs().update(x[:, :2], y[:, :2]).linear_cka()
    with pytest.raises(ValueError, match=r"^9 rows are too few; give at least 10"):
        LayerPairs().update(x[:, :9], y[:, :9]).linear_predictability()
    with pytest.raises(ValueError, match=r"^folds is 2; choosing a penalty inside the training folds needs 3"):
        LayerPairs(folds=2).update(x, y).linear_predictability()
    with pytest.raises(ValueError, match=r"^folds is 1; at least 2 are needed"):
        LayerPairs(folds=1).update(x, y).linear_predictability(penalty=1)
    with pytest.raises(ValueError, match=r"^fold 0 of 5 holds no rows"):
        LayerPairs().update(x, y, groups=["doc-0"] * 60 + ["doc-2"] * 60).linear_predictability()


def test_more_memory_than_allowed_is_refused_with_the_numbers():
    x, y = layers()
    pairs = LayerPairs(max_bytes=12_000).update(x[:, :50], y[:, :50])  # 50 * 29 * 8 bytes fit, the sums do not
    message = r"^100 rows take 2\.32e-05 GB and the sums of all pairs 1\.53e-05 GB, more than max_bytes, 1\.2e-05 GB;"
    with pytest.raises(ValueError, match=message):
        pairs.update(x[:, 50:100], y[:, 50:100])
    assert pairs.n_rows == 50
    assert LayerPairs(max_bytes=16_000).update(x, y).n_rows == N  # the sums fit


def test_an_accumulator_says_what_it_holds():
    assert repr(LayerPairs()) == "LayerPairs(no rows yet)"
    assert repr(streamed(*layers())) == "LayerPairs(120 rows of 3 layers 5 wide and 2 layers 7 wide)"
