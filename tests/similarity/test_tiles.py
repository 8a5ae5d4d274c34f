"""Maps put together from tiles: the same as in one pass, in the memory that was allowed."""

import itertools

import pytest
import torch
from similar import planted, rows

from latentcomm.similarity import LayerPairs, MinibatchPairs, Tile, plan_tiles, tiled_map
from latentcomm.similarity.tiles import Accumulator

N, D_X, D_Y = 160, 48, 32
DOCUMENTS = torch.arange(20).repeat_interleave(8)
SIZES = {"layers": (5, 4), "widths": (D_X, D_Y)}


def layers() -> tuple[torch.Tensor, torch.Tensor]:
    """Five layers 48 wide and four 32 wide, related to one another."""
    sides = [planted(N, D_X, D_Y, noise=1.5, seed=10 * layer) for layer in range(5)]
    shared = sides[0][0]
    x = torch.stack([x + layer * shared for layer, (x, _) in enumerate(sides)])
    return x, torch.stack([y + layer * shared @ rows(D_X, D_Y, seed=9) / 7 for layer, (_, y) in enumerate(sides[:4])])


class Streamed:
    """Measures a tile in one pass over chunks of its own layers, and notes what was held and which layers were read."""

    def __init__(self, make, measured) -> None:
        self.make, self.measured, self.read = make, measured, 0
        self.x, self.y = layers()

    def __call__(self, tile: Tile) -> torch.Tensor:
        accumulator = self.make()
        self.read += len(tile.x) + len(tile.y)
        for chunk in torch.arange(N).split(48):
            x, y = self.x[tile.x][:, chunk], self.y[tile.y][:, chunk]
            if isinstance(accumulator, LayerPairs):
                accumulator.update(x, y, groups=DOCUMENTS[chunk])
            else:
                accumulator.update(x, y)
        return self.measured(accumulator)


CASES = {
    "debiased CKA": (LayerPairs, LayerPairs.debiased_cka),
    "predictability": (LayerPairs, LayerPairs.linear_predictability),
    "a curve": (LayerPairs, lambda pairs: pairs.ridge_curve([0.1, 1, 10])),
    "minibatches": (lambda: MinibatchPairs(batch_rows=20, buffer_rows=40), MinibatchPairs.debiased_cka),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("held", ["rows", "sums"])
def test_a_map_of_tiles_is_the_map_of_one_pass(monkeypatch, case, held):
    if held == "sums":
        monkeypatch.setattr(LayerPairs, "_held_limit", lambda self: 30)
    streamed = Streamed(*CASES[case])
    whole = streamed(Tile(range(5), range(4)))
    least = streamed.make().peak_bytes((1, 1), (D_X, D_Y))
    for max_bytes in (least, (least + streamed.make().peak_bytes((5, 4), (D_X, D_Y))) // 2):
        tiles = plan_tiles(streamed.make(), **SIZES, max_bytes=max_bytes)
        assert len(tiles) > 1
        torch.testing.assert_close(tiled_map(streamed, tiles), whole, atol=1e-11, rtol=0)


def test_tiles_cover_every_pair_once_fit_and_read_fewest_layers():
    pairs = LayerPairs(folds=1)
    for share in (0.01, 0.1, 0.3, 0.6, 1.0):
        largest = pairs.peak_bytes((9, 7), (200, 300))
        max_bytes = max(int(share * largest), pairs.peak_bytes((1, 1), (200, 300)))
        tiles = plan_tiles(pairs, layers=(9, 7), widths=(200, 300), max_bytes=max_bytes)
        cells = [cell for tile in tiles for cell in itertools.product(tile.x, tile.y)]
        assert sorted(cells) == list(itertools.product(range(9), range(7)))
        assert all(pairs.peak_bytes((len(t.x), len(t.y)), (200, 300)) <= max_bytes for t in tiles)
        read = sum(len(tile.x) + len(tile.y) for tile in tiles)
        for x, y in itertools.product(range(1, 10), range(1, 8)):
            if pairs.peak_bytes((x, y), (200, 300)) <= max_bytes:
                assert read <= -(-9 // x) * 7 + -(-7 // y) * 9
    assert plan_tiles(pairs, layers=(9, 7), widths=(200, 300), max_bytes=largest) == (Tile(range(9), range(7)),)


def test_a_wide_model_is_cut_into_tiles_that_its_memory_allows():
    for accumulator in (LayerPairs(folds=1), MinibatchPairs()):
        assert isinstance(accumulator, Accumulator)
        whole = accumulator.peak_bytes((32, 32), (4096, 4096))
        tiles = plan_tiles(accumulator, layers=(32, 32), widths=(4096, 4096), max_bytes=4 * 2**30)
        assert whole > 4 * 2**30 >= accumulator.peak_bytes((len(tiles[0].x), len(tiles[0].y)), (4096, 4096))
    assert LayerPairs(folds=1).peak_bytes((32, 32), (4096, 4096)) > 137e9  # the products alone
    assert len(tiles) == 4  # a few tiles of minibatches, where products would need hundreds


def test_less_memory_than_one_pair_needs_is_refused_with_what_it_needs():
    message = r"^a single pair of layers 4096 and 4096 wide takes 7\.\d+ GB, more than max_bytes, 1\.07 GB; allow that"
    with pytest.raises(ValueError, match=message):
        plan_tiles(LayerPairs(), layers=(32, 32), widths=(4096, 4096), max_bytes=2**30)
    for layers_, widths in (((0, 3), (4, 4)), ((3, 3), (4, 0))):
        with pytest.raises(ValueError, match=r"give at least 1 of each$"):
            plan_tiles(LayerPairs(), layers=layers_, widths=widths, max_bytes=2**30)


def test_tiles_that_do_not_make_a_map_are_refused():
    one, other = Tile(range(2), range(2)), Tile(range(1, 3), range(2))
    for tiles, message in (
        ([], r"^each pair of layers must be in one tile; use plan_tiles"),
        ([one, other], r"^each pair of layers must be in one tile; layers 1 and 0 are in 2"),
        ([Tile(range(1, 2), range(2))], r"^each pair of layers must be in one tile; layers 0 and 0 are in 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tiled_map(lambda tile: torch.zeros(len(tile.x), len(tile.y)), tiles)
    with pytest.raises(ValueError, match=r"^Tile\(x=range\(0, 2\), y=range\(0, 2\)\) gave a map of \(3, 2\); measure"):
        tiled_map(lambda tile: torch.zeros(3, 2), [one])
