"""The minibatch map against sums written out batch by batch, in any chunks, and against the exact map."""

import numpy as np
import pytest
import torch
from numerics import assert_same_bits
from similar import hsic_from_moments, planted, rows

from latentcomm.similarity import LayerPairs, MinibatchPairs, minibatch_debiased_cka
from latentcomm.similarity.layer_maps import minibatch as minibatch_pairs

N = 130


def layers(n: int = N, noise: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    sides = [planted(n, 5, 7, noise=noise, seed=10 * layer) for layer in range(3)]
    return torch.stack([x + sides[0][0] for x, _ in sides]), torch.stack([y for _, y in sides[:2]]) - 20


def test_every_cell_is_the_ratio_of_sums_over_the_batches_drawn():
    x, y = layers()
    found = MinibatchPairs(batch_rows=20, buffer_rows=50, seed=4).update(x, y).debiased_cka()
    batches = []
    for number, (start, stop, n_batches) in enumerate(((0, 50, 2), (50, 100, 2), (100, 130, 1))):
        order = torch.randperm(stop - start, generator=torch.Generator().manual_seed(4 + number)) + start
        batches += order.tensor_split(n_batches)
    assert sorted(torch.cat(batches).tolist()) == list(range(N))  # every row once
    for i in range(3):
        for j in range(2):
            parts = [(len(p), x[i][p].numpy(), y[j][p].numpy()) for p in batches]
            xy, xx, yy = (
                sum(part[0] * hsic_from_moments(part[a], part[b]) for part in parts)
                for a, b in ((1, 2), (1, 1), (2, 2))
            )
            assert float(found[i, j]) == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-8)


def test_one_buffer_of_all_rows_is_the_plain_minibatch_function():
    x, y = layers()
    found = MinibatchPairs(batch_rows=20, buffer_rows=200, seed=4).update(x, y).debiased_cka()
    assert float(found[2, 1]) == pytest.approx(minibatch_debiased_cka(x[2], y[1], batch_rows=20, seed=4), abs=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 64, N])
def test_chunks_of_any_size_give_the_same_bits(chunk):
    x, y = layers()
    whole = MinibatchPairs(batch_rows=10, buffer_rows=40).update(x, y)
    parts = MinibatchPairs(batch_rows=10, buffer_rows=40)
    for start in range(0, N, chunk):
        parts.update(x[:, start : start + chunk], y[:, start : start + chunk])
        if start > 4:
            parts.debiased_cka()  # reading changes nothing
    assert_same_bits(parts.debiased_cka(), whole.debiased_cka())
    assert parts.n_rows == N


def test_the_map_estimates_the_exact_one_from_one_worker_or_two():
    x, y = layers(2000, noise=3.0)
    exact = LayerPairs().update(x, y).debiased_cka()
    options = {"batch_rows": 50, "buffer_rows": 400}
    one = MinibatchPairs(**options).update(x, y).debiased_cka()
    first = MinibatchPairs(**options).update(x[:, :900], y[:, :900])
    second = MinibatchPairs(**options, seed=1).update(x[:, 900:], y[:, 900:])
    before = second.debiased_cka()
    both = first.merge(second).merge(MinibatchPairs(**options)).debiased_cka()
    assert (one - exact).abs().max() < 0.03 and (both - exact).abs().max() < 0.03
    assert first.n_rows == 2000
    assert_same_bits(second.debiased_cka(), before)


def test_the_buffer_mixes_documents_that_come_one_after_the_other():
    topic = rows(40, 6).repeat_interleave(50, 0)  # documents of 50 rows, each about one thing in both spaces
    x = (topic + 0.5 * rows(2000, 6, seed=1))[None]
    y = (topic + 0.5 * rows(2000, 6, seed=2))[None]
    exact = float(LayerPairs().update(x, y).debiased_cka())
    mixed = float(MinibatchPairs(batch_rows=50, buffer_rows=2000).update(x, y).debiased_cka())
    alone = float(MinibatchPairs(batch_rows=50, buffer_rows=50).update(x, y).debiased_cka())
    assert mixed == pytest.approx(exact, abs=0.05)
    assert abs(alone - exact) > 0.3


def test_a_model_with_itself_keeps_its_rows_once_and_gives_the_same_map():
    x, _ = layers()
    apart, once = MinibatchPairs(batch_rows=10, buffer_rows=40), MinibatchPairs(batch_rows=10, buffer_rows=40)
    for start in range(0, N, 30):
        part = x[:, start : start + 30]
        apart.update(part, part.clone())
        once.update(part, part)
    torch.testing.assert_close(once.debiased_cka(), apart.debiased_cka(), atol=1e-12, rtol=0)
    assert once._buffer.y is once._buffer.x and apart._buffer.y is not apart._buffer.x


def test_a_side_that_becomes_another_object_is_buffered_separately():
    x, _ = layers()
    y = x.flip(1).contiguous()
    mixed, apart = MinibatchPairs(batch_rows=10, buffer_rows=40), MinibatchPairs(batch_rows=10, buffer_rows=40)
    for start, other in ((0, x), (30, y), (60, x), (90, y)):
        part = slice(start, start + 30)
        one = x[:, part]
        mixed.update(one, one if other is x else other[:, part])
        apart.update(one, other[:, part].clone())
    torch.testing.assert_close(mixed.debiased_cka(), apart.debiased_cka(), atol=1e-12, rtol=0)
    assert mixed.debiased_cka()[0, 0] < 0.999


def test_memory_is_a_buffer_and_five_sums():
    x, y = layers()
    pairs = MinibatchPairs(batch_rows=10, buffer_rows=40)
    for _ in range(20):
        pairs.update(x, y)
    held = [pairs._buffer.x, pairs._buffer.y, *pairs._room._taken.values(), *pairs._sums]
    assert pairs._buffer.n_rows < pairs._buffer.capacity == 50
    announced = pairs.peak_bytes((3, 2), (5, 7)) - minibatch_pairs.LIBRARY_BYTES
    assert 4 * sum(part.numel() for part in held) <= announced
    assert [tuple(sums.shape) for sums in pairs._sums] == [(3, 2), (3,), (2,), (3,), (2,)]


@pytest.mark.parametrize(("dtype", "off"), [(None, 1e-6), (torch.bfloat16, 2e-2)])
def test_products_round_as_their_dtype_does(dtype, off):
    x, y = layers()
    exact = MinibatchPairs(batch_rows=20).update(x, y).debiased_cka()
    found = MinibatchPairs(batch_rows=20, dtype=dtype).update(x.float(), y.float()).debiased_cka()
    assert 0 < (found - exact).abs().max() < off


def test_rows_far_from_the_origin_lose_only_what_their_own_dtype_loses():
    x, y = layers()
    far, other = (x + 1e5).float(), (y - 1e5).float()
    exact = MinibatchPairs(batch_rows=20).update(far.double(), other.double()).debiased_cka()
    found = MinibatchPairs(batch_rows=20).update(far, other).debiased_cka()
    torch.testing.assert_close(found, exact, atol=2e-6, rtol=0)


def test_sums_too_large_for_their_dtype_are_no_reason_to_refuse_rows():
    x, y = layers()
    large = (x * 1e37).float()
    assert bool(large.isfinite().all()) and not bool(large.abs().sum().isfinite())
    MinibatchPairs().update(large.abs(), y)


def test_a_column_that_varies_in_the_last_rows_alone_is_not_constant():
    x, y = layers()
    y[1, :, 2] = 0.5
    pairs = MinibatchPairs(batch_rows=10, buffer_rows=40).update(x, y)
    with pytest.raises(ValueError, match=r"^layer 1 of y is constant in column 2"):
        pairs.update(x, y).debiased_cka()
    moved = y.clone()
    moved[1, 7, 2] = 0.6
    pairs.update(x, moved).debiased_cka()


def test_a_column_that_varied_in_dropped_rows_is_not_constant_after_merge():
    x, y = layers()
    y[0, 60:, 1] = 0.5
    options = {"batch_rows": 10, "buffer_rows": 40}
    worker = MinibatchPairs(**options).update(x, y)
    merged = MinibatchPairs(**options).merge(worker)
    torch.testing.assert_close(merged.debiased_cka(), worker.debiased_cka(), atol=0.05, rtol=0)
    assert merged.n_rows == N


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_what_the_processor_gives():
    x, y = (side.float() for side in layers())
    found = MinibatchPairs(batch_rows=20, buffer_rows=40, device="cuda").update(x, y).debiased_cka()
    assert found.device.type == "cuda"
    expected = MinibatchPairs(batch_rows=20, buffer_rows=40).update(x, y).debiased_cka()
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=0)


def test_an_accumulator_says_what_it_holds():
    assert repr(MinibatchPairs()) == "MinibatchPairs(no rows yet)"
    assert repr(MinibatchPairs().update(*layers())) == "MinibatchPairs(130 rows of 3 layers 5 wide and 2 layers 7 wide)"


def test_what_does_not_fit_is_refused():
    x, y = layers()
    pairs = MinibatchPairs().update(x, y)
    level, broken = y.clone(), x.clone()
    level[1, :, 2], broken[2, 9, 0] = 0.5, torch.nan
    for act, message in (
        (lambda: MinibatchPairs(batch_rows=3), r"^batch_rows is 3; a batch needs at least 4 rows"),
        (lambda: MinibatchPairs(buffer_rows=100), r"^buffer_rows is 100; a buffer holds at least one batch of 512"),
        (lambda: pairs.update(x[:, 1:], y), r"^x has 129 rows but y 130"),
        (lambda: pairs.update(x[:2], y), r"^x has 2 layers 5 wide, but 3 layers 5 wide before; use another"),
        (lambda: pairs.update(x[..., :1], y), r"^x is 1 wide"),
        (lambda: pairs.update(broken, y), r"^layer 2 of x holds NaN or infinity in row 9;"),
        (lambda: pairs.update(x.float(), y), r"^x is torch.float32, but torch.float64 before; convert it first"),
        (lambda: pairs.update([], y), r"^x has no layers; give at least 1"),
        (lambda: pairs.update(x, [y[0], y[1, 1:]]), r"^the layers of y differ in shape: \[\(129, 7\), \(130, 7\)\]"),
        (lambda: pairs.update([x[0], x[1].float()], y), r"^the layers of x differ in dtype: torch.float32, torch.fl"),
        (lambda: MinibatchPairs(device="mps"), r"^device mps has no float64, in which sums are taken; use cpu or cuda"),
        (lambda: pairs.merge(MinibatchPairs(batch_rows=10)), r"^batch_rows is 512 here but 10 there"),
        (lambda: pairs.merge(MinibatchPairs(dtype=torch.bfloat16)), r"^dtype is None here but torch.bfloat16 there"),
        (lambda: pairs.merge(MinibatchPairs().update(y, x)), r"^x has 2 layers 7 wide, but 3 layers 5 wide before"),
        (lambda: MinibatchPairs().debiased_cka(), r"^0 rows are too few; give at least 4"),
        (lambda: MinibatchPairs().update(x, level).debiased_cka(), r"^layer 1 of y is constant in column 2"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    assert pairs.n_rows == N
