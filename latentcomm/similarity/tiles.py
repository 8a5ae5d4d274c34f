"""Maps too large for memory, a tile of layers at a time: which tiles fit, and the map put together from theirs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Accumulator", "Tile", "plan_tiles", "tiled_map"]


@runtime_checkable
class Accumulator(Protocol):
    """What reports how much memory it takes: `LayerPairs` and `MinibatchPairs`, as they would be used for a tile."""

    def peak_bytes(self, layers: tuple[int, int], widths: tuple[int, int]) -> int:
        """Return the most bytes that so many layers of x and y of these widths take."""
        ...


@dataclass(frozen=True)
class Tile:
    """Layers of x and layers of y whose pairs are measured together, in one pass over the rows of these layers."""

    x: range
    y: range


def plan_tiles(
    accumulator: Accumulator, *, layers: tuple[int, int], widths: tuple[int, int], max_bytes: int
) -> tuple[Tile, ...]:
    """Return tiles of the map that each fit into `max_bytes`, cut so that the fewest layers are streamed in all.

    Args:
        accumulator: as it will be used for each tile, `LayerPairs(folds=1)`; it stays as it is.
        layers: how many of x, and how many of y.
        widths: d_sender and d_receiver.
        max_bytes: what a tile may take in addition to the chunk of rows that is given.

    Raises:
        ValueError: no layers or widths, or less memory than a single pair needs (the message has how much that is).

    >>> from latentcomm.similarity.layer_maps.exact import LayerPairs
    >>> tiles = plan_tiles(LayerPairs(folds=1), layers=(32, 32), widths=(4096, 4096), max_bytes=8 * 2**30)
    >>> len(tiles), tiles[0], tiles[-1].y
    (64, Tile(x=range(0, 4), y=range(0, 4)), range(28, 32))
    """
    if min(*layers, *widths) < 1:
        raise ValueError(
            f"{layers[0]} and {layers[1]} layers {widths[0]} and {widths[1]} wide; give at least 1 of each"
        )
    sizes = [(x, y) for x in range(1, layers[0] + 1) for y in range(1, layers[1] + 1)]
    fitting = [size for size in sizes if accumulator.peak_bytes(size, widths) <= max_bytes]
    if not fitting:
        least = accumulator.peak_bytes((1, 1), widths)
        raise ValueError(
            f"a single pair of layers {widths[0]} and {widths[1]} wide takes {least / 1e9:.3g} GB, more than max_bytes,"
            f" {max_bytes / 1e9:.3g} GB; allow that much, take fewer folds, or use MinibatchPairs for CKA"
        )

    def streamed(size: tuple[int, int]) -> int:
        return ceil(layers[0] / size[0]) * layers[1] + ceil(layers[1] / size[1]) * layers[0]

    size = min(fitting, key=lambda size: (streamed(size), accumulator.peak_bytes(size, widths)))
    cut_y = list(_cut(layers[1], size[1]))
    return tuple(Tile(x, y) for x in _cut(layers[0], size[0]) for y in cut_y)


def tiled_map(
    measure: Callable[[Tile], Float[Tensor, "tile_x tile_y *rest"]], tiles: Sequence[Tile]
) -> Float[Tensor, "layer_x layer_y *rest"]:
    """Return the map of all layers, put together from `measure` of each tile, [layer_x layer_y ...].

    `measure` streams the rows of the tile's layers through a new accumulator and returns its map. Every cell depends on
    its two layers alone, so the map is that of one pass; minibatches draw the same batches in every tile, for the draw
    depends on the seed and the order of the rows.

    Raises:
        ValueError: tiles that leave out a cell or hold one twice, or a map of another shape than its tile.

    >>> layers = torch.randn(5, 60, 4, generator=torch.Generator().manual_seed(0)).double()
    >>> from latentcomm.similarity.layer_maps.exact import LayerPairs
    >>> def measure(tile):
    ...     return LayerPairs().update(layers[tile.x], layers[tile.y]).debiased_cka()
    >>> tiles = plan_tiles(LayerPairs(), layers=(5, 5), widths=(4, 4), max_bytes=4_000_000)
    >>> whole = LayerPairs().update(layers, layers).debiased_cka()
    >>> len(tiles), bool((tiled_map(measure, tiles) - whole).abs().max() < 1e-12)
    (4, True)
    """
    shape = max((tile.x.stop for tile in tiles), default=0), max((tile.y.stop for tile in tiles), default=0)
    counts = torch.zeros(shape, dtype=torch.int64)
    for tile in tiles:
        counts[tile.x.start : tile.x.stop, tile.y.start : tile.y.stop] += 1
    if counts.numel() == 0 or bool((counts != 1).any()):
        wrong = (counts != 1).nonzero().tolist()
        where = f"; layers {wrong[0][0]} and {wrong[0][1]} are in {int(counts[tuple(wrong[0])])}" if wrong else ""
        raise ValueError(f"each pair of layers must be in one tile{where}; use plan_tiles")
    parts = [measure(tile) for tile in tiles]
    for tile, part in zip(tiles, parts, strict=True):
        if part.shape[:2] != (len(tile.x), len(tile.y)):
            raise ValueError(f"{tile} gave a map of {tuple(part.shape[:2])}; measure the layers of the tile alone")
    whole = parts[0].new_empty((*shape, *parts[0].shape[2:]))
    for tile, part in zip(tiles, parts, strict=True):
        whole[tile.x.start : tile.x.stop, tile.y.start : tile.y.stop] = part
    return whole


def _cut(layers: int, most: int) -> Iterator[range]:
    """Yield the layers in order in the fewest parts of at most so many, as equal as can be."""
    parts = ceil(layers / most)
    for part in range(parts):
        yield range(part * layers // parts, (part + 1) * layers // parts)
