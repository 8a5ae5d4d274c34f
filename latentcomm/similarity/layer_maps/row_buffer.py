"""A buffer of rows of all layers of two sides, of a size that stays, and memory that every batch uses anew."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.arrays import StoredRows

__all__ = ["LayersX", "LayersY", "Room", "RowBuffer", "StoredX", "StoredY", "in_blocks"]

LayersX = Float[Tensor, "layer_x row_x d_sender"] | Sequence[Float[Tensor, "row_x d_sender"]]
"""The same rows at each layer of x."""
LayersY = Float[Tensor, "layer_y row_y d_receiver"] | Sequence[Float[Tensor, "row_y d_receiver"]]
"""The same rows at each layer of y."""
StoredX = LayersX | Sequence[StoredRows]
"""The same, in memory or in files."""
StoredY = LayersY | Sequence[StoredRows]
"""The same, in memory or in files."""


class RowBuffer:
    """Up to `capacity` rows of two sides, held once while both sides were the same object in every `add`.

    The buffer is a ring, so that dropping the first rows moves none: row i is in slot `slots()[i]` of `x` and `y`.

    >>> layers = torch.ones(2, 3, 4)
    >>> buffer = RowBuffer(5, layers, layers)
    >>> buffer.add(layers, layers, 0), buffer.add(layers, layers, 0), buffer.n_rows, buffer.y is buffer.x
    (3, 2, 5, True)
    >>> buffer.drop(4)
    >>> buffer.add(layers, layers, 0), buffer.slots().tolist()
    (3, [4, 0, 1, 2])
    """

    def __init__(self, capacity: int, x_layers: LayersX, y_layers: LayersY) -> None:
        self.capacity, self.n_rows, self.first = capacity, 0, 0
        self.x = _empty(capacity, x_layers)
        self.y = self.x if y_layers is x_layers else _empty(capacity, y_layers)

    def add(self, x_layers: LayersX, y_layers: LayersY, start: int) -> int:
        """Copy in rows from `start` on, as many as find room; return how many."""
        taken = min(self.capacity - self.n_rows, len(x_layers[0]) - start)
        if self.y is self.x and y_layers is not x_layers:
            self.y = self.x.clone()
        sides = [(self.x, x_layers)] if self.y is self.x else [(self.x, x_layers), (self.y, y_layers)]
        done = 0
        while done < taken:
            slot = (self.first + self.n_rows + done) % self.capacity
            many = min(taken - done, self.capacity - slot)
            given, room = slice(start + done, start + done + many), slice(slot, slot + many)
            for rows, layers in sides:
                _copy(rows[:, room], layers, given)
            done += many
        self.n_rows += taken
        return taken

    def slots(self) -> Int[Tensor, " held"]:
        """Return the rows' slots, in the order in which they came."""
        return (torch.arange(self.n_rows, device=self.x.device) + self.first) % self.capacity

    def rows(self) -> tuple[Float[Tensor, "layer_x held d_sender"], Float[Tensor, "layer_y held d_receiver"]]:
        """Return a copy of the rows of both sides in the order in which they came, one where they are held once."""
        x = self.x[:, self.slots()]
        return x, x if self.y is self.x else self.y[:, self.slots()]

    def drop(self, n_rows: int) -> None:
        """Drop the first rows."""
        self.first, self.n_rows = (self.first + n_rows) % self.capacity, self.n_rows - n_rows


class Room:
    """Memory by name, allocated once and used for every batch: fresh pages would cost more than the sums.

    >>> room = Room()
    >>> once = room.take("Gram", (2, 3), torch.zeros(1))
    >>> room.take("Gram", (3, 1), torch.zeros(1)).data_ptr() == once.data_ptr()
    True
    """

    def __init__(self) -> None:
        self._taken: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a tensor of this shape, of the dtype and on the device of another, whose entries are left over."""
        size = torch.Size(shape).numel()
        held = self._taken.get(name)
        if held is None or held.numel() < size or held.dtype != like.dtype or held.device != like.device:
            held = self._taken[name] = like.new_empty(size)
        return held[:size].view(shape)


def in_blocks(x_layers: StoredX, y_layers: StoredY, n_rows: int) -> Iterator[tuple[slice, LayersX, LayersY]]:
    """Yield layers in memory as they are, and where a side is in files `n_rows` rows of both sides at a time.

    Sides that are one object are one object in each block.

    >>> [rows for rows, _, _ in in_blocks(torch.ones(2, 3, 4), torch.ones(2, 3, 4), 2)]
    [slice(None, None, None)]
    """
    if not any(isinstance(layer, StoredRows) for side in (x_layers, y_layers) for layer in side):
        yield slice(None), x_layers, y_layers  # pyright: ignore[reportReturnType]
        return
    for start in range(0, x_layers[0].shape[0], n_rows):
        rows = slice(start, start + n_rows)
        x = [layer[rows] for layer in x_layers]
        yield rows, x, x if y_layers is x_layers else [layer[rows] for layer in y_layers]


def _copy(rows: Float[Tensor, "layer part d_model"], layers: LayersX | LayersY, given: slice) -> None:
    """Copy these rows of the layers into others."""
    if isinstance(layers, Tensor):
        rows.copy_(layers[:, given])
        return
    for into, layer in zip(rows, layers, strict=True):
        into.copy_(layer[given])


def _empty(capacity: int, layers: LayersX | LayersY) -> Tensor:
    """Return room for so many rows of these layers."""
    return layers[0].new_empty(len(layers), capacity, layers[0].shape[1])
