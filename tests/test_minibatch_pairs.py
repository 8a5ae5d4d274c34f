"""The minibatch map against sums written out batch by batch, in any chunks, and against the exact map."""

import numpy as np
import pytest
import torch
from similar import hsic_from_moments, planted, rows

from latentcomm.similarity import LayerPairs, MinibatchPairs, minibatch_debiased_cka

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
    assert torch.equal(parts.debiased_cka(), whole.debiased_cka())
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
    assert first.n_rows == 2000 and torch.equal(second.debiased_cka(), before)


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
    assert all(y is x for x, y in once._held) and not any(y is x for x, y in apart._held)


def test_memory_is_a_buffer_and_five_sums():
    x, y = layers()
    pairs = MinibatchPairs(batch_rows=10, buffer_rows=40)
    for _ in range(20):
        pairs.update(x, y)
    assert sum(held[0].shape[1] for held in pairs._held) < 50
    assert [tuple(sums.shape) for sums in pairs._sums] == [(3, 2), (3,), (2,), (3,), (2,)]


@pytest.mark.parametrize(("dtype", "off"), [(None, 1e-6), (torch.bfloat16, 2e-2)])
def test_products_round_as_their_dtype_does(dtype, off):
    x, y = layers()
    exact = MinibatchPairs(batch_rows=20).update(x, y).debiased_cka()
    found = MinibatchPairs(batch_rows=20, dtype=dtype).update(x.float(), y.float()).debiased_cka()
    assert 0 < (found - exact).abs().max() < off


def test_what_does_not_fit_is_refused():
    x, y = layers()
    pairs = MinibatchPairs().update(x, y)
    level, broken = y.clone(), x.clone()
    level[1, :, 2], broken[2, 9, 0] = 0.5, torch.nan
    for act, message in (
        (lambda: MinibatchPairs(batch_rows=3), r"^batch_rows is 3; a batch needs at least 4 rows"),
        (lambda: MinibatchPairs(buffer_rows=100), r"^buffer_rows is 100; a buffer holds at least one batch of 512"),
        (lambda: pairs.update(x[:, 1:], y), r"^x has 129 rows but y 130"),
        (lambda: pairs.update(x[:2], y), r"^x has layers x width \(2, 5\), but \(3, 5\) before"),
        (lambda: pairs.update(x[..., :1], y), r"^x is 1 wide"),
        (lambda: pairs.update(broken, y), r"^layer 2 of x holds NaN or infinity in row 9;"),
        (lambda: pairs.merge(MinibatchPairs(batch_rows=10)), r"^batch_rows is 512 here but 10 there"),
        (lambda: pairs.merge(MinibatchPairs().update(y, x)), r"^x has layers x width \(2, 7\)"),
        (lambda: MinibatchPairs().debiased_cka(), r"^0 rows are too few; give at least 4"),
        (lambda: MinibatchPairs().update(x, level).debiased_cka(), r"^layer 1 of y is constant in column 2"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    assert pairs.n_rows == N
