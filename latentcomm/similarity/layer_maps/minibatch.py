"""The CKA map of all layer pairs by minibatches: one pass, a small buffer, two numbers a pair."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.similarity.checks import Ranges, require_float64, require_layers, require_rows
from latentcomm.similarity.cka import BATCH_ROWS
from latentcomm.similarity.hsic import LEAST_ROWS, alignment_ratio, gram_products, gram_squares, hsic1_of_centred
from latentcomm.similarity.layer_maps.row_buffer import LayersX, LayersY, Room, RowBuffer, StoredX, StoredY, in_blocks

__all__ = ["MinibatchPairs"]

BUFFER_ROWS = 4096
"""Rows shuffled together, so that a batch holds tokens of many documents: batches of one document measure another
thing (0.73 instead of 0.60 for two layers of SmolLM2)."""
LIBRARY_BYTES = 2**26
"""Buffers of the matrix library and of the threads, as measured."""

Grams = tuple[Float[Tensor, "_ _ _"], Float[Tensor, "_ _ _"], Float[Tensor, "_ _ _"]]
"""Of each layer the Gram matrix of the first half of a batch, of the second, and of the first with the second."""


class MinibatchPairs:
    """An accumulator of row-paired activations that holds a buffer of rows and a few sums a pair of layers.

    Much cheaper than `LayerPairs` and for debiased CKA alone, which it estimates without bias but not exactly: compare
    seeds. Rows gather in a buffer of `buffer_rows`, are shuffled there across documents, and leave it in batches of
    `batch_rows`; numerators and denominators are summed over batches before the ratio (Nguyen et al. 2021,
    arXiv:2010.15327). Chunks of any size give the same bits. Workers merged give the batches of each, so other batches
    than one worker would draw, and as good an estimate. Given the same object as x and y, a model with itself, it holds
    the rows once and halves the work. Products are in `dtype`: the rows' own, float32 at least, unless given (bfloat16
    is faster and off by up to 1e-3: for a first estimate only); sums are in float64. `device` is where rows go and
    products are taken, "cuda" for a GPU; the map is returned there.

    >>> layers = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    >>> MinibatchPairs(batch_rows=10).update(layers, layers).debiased_cka().diagonal().round(decimals=5)
    tensor([1., 1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        batch_rows: int = BATCH_ROWS,
        buffer_rows: int = BUFFER_ROWS,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        require_float64(device)
        if batch_rows < LEAST_ROWS:
            raise ValueError(f"batch_rows is {batch_rows}; a batch needs at least {LEAST_ROWS} rows")
        if buffer_rows < batch_rows:
            raise ValueError(f"buffer_rows is {buffer_rows}; a buffer holds at least one batch of {batch_rows}")
        self.batch_rows, self.buffer_rows, self.seed = batch_rows, buffer_rows, seed
        self.dtype, self.device = dtype, device
        self.n_rows = 0
        self._buffer: RowBuffer | None = None
        self._sums: tuple[Tensor, ...] | None = None
        self._buffers_done = 0
        self._ranges = Ranges()
        self._room = Room()

    def __repr__(self) -> str:
        if not self._ranges.sides:
            return "MinibatchPairs(no rows yet)"
        return f"MinibatchPairs({self.n_rows} rows of {self._ranges})"

    def update(self, x_layers: StoredX, y_layers: StoredY) -> "MinibatchPairs":
        """Take in rows of all layers, paired between x and y; return this accumulator.

        Rows in files are read a batch of all layers at a time.

        Raises:
            ValueError: no layers, shapes or row counts that differ, layers or widths other than before, a width below
                2, or NaN or infinite rows.
        """
        n_rows, other_rows = require_layers(x_layers, "x")[1], require_layers(y_layers, "y")[1]
        if n_rows != other_rows:
            raise ValueError(f"x has {n_rows} rows but y {other_rows}; pair them row by row")
        if n_rows == 0:
            return self
        for _, some_x, some_y in in_blocks(x_layers, y_layers, self.batch_rows):
            x = self._placed(some_x)
            self._take(x, x if some_y is some_x else self._placed(some_y), len(x[0]))
        return self

    def merge(self, other: "MinibatchPairs") -> "MinibatchPairs":
        """Take in all that another accumulator holds, which stays as it is; return this accumulator.

        Raises:
            ValueError: other layers or widths, another size of batch, or products in another dtype.
        """
        for what in ("batch_rows", "dtype"):
            if getattr(self, what) != getattr(other, what):
                raise ValueError(
                    f"{what} is {getattr(self, what)} here but {getattr(other, what)} there; give both the same"
                )
        if other._buffer is None:
            return self
        self._take(*other._buffer.rows(), other.n_rows)
        self._ranges = self._ranges.merged(other._ranges)  # rows that left the other's buffer have varied too
        if other._sums is not None:
            self._sums = _added(self._sums, other._sums)
        return self

    def debiased_cka(self) -> Float[Tensor, "layer_x layer_y"]:
        """Return the map; values may be negative. The buffered rows count, in batches of about `batch_rows`.

        Raises:
            ValueError: fewer than 4 rows, a column that is constant over all of them, or a layer whose rows are all
                equally similar.
        """
        require_rows(self.n_rows, LEAST_ROWS, "for the unbiased estimator")
        self._ranges.require_varied()
        slots = self._held().slots()
        sums = _added(self._sums, self._batch_sums(slots, max(1, len(slots) // self.batch_rows)))
        return alignment_ratio(sums[0], sums[1][:, None], sums[2], sums[3][:, None], sums[4])

    def peak_bytes(self, layers: tuple[int, int], widths: tuple[int, int]) -> int:
        """Return the most memory that so many layers of these widths take in float32, above the chunk given.

        That is the buffer, twice a batch's rows and Gram matrices, and what the matrix library reserves.

        >>> MinibatchPairs().peak_bytes((31, 31), (576, 576)) / 1e9 < 1.2
        True
        """
        (n_x, n_y), (d_x, d_y) = layers, widths
        width = n_x * d_x + n_y * d_y
        a_batch = self.batch_rows * (2 * width + (n_x + n_y) * self.batch_rows)
        return 4 * ((self.buffer_rows + self.batch_rows) * width + 2 * a_batch) + LIBRARY_BYTES

    def _held(self) -> RowBuffer:
        """Return the buffer, which is there once rows are."""
        if self._buffer is None:
            raise RuntimeError(f"{self.n_rows} rows were counted, but none are held; report this")
        return self._buffer

    def _placed(self, layers: LayersX | LayersY) -> LayersX | LayersY:
        """Return the layers on the device, outside the autograd graph."""
        if isinstance(layers, Tensor):
            return layers.detach().to(self.device)
        return [layer.detach().to(self.device) for layer in layers]

    def _take(self, x: LayersX, y: LayersY, n_rows: int) -> None:
        """Take in rows, `n_rows` counted; a batch's worth of rows stays in the buffer for the last, uneven batches."""
        ranges = self._ranges.with_rows(x, y)
        if self._buffer is None:
            self._buffer = RowBuffer(self.buffer_rows + self.batch_rows, x, y)
        for layers, held, name in ((x, self._buffer.x, "x"), (y, self._buffer.y, "y")):
            if layers[0].dtype != held.dtype:
                raise ValueError(f"{name} is {layers[0].dtype}, but {held.dtype} before; convert it first")
        self._ranges, start = ranges, 0
        self.n_rows += n_rows
        while start < len(x[0]):
            start += self._buffer.add(x, y, start)
            if self._buffer.n_rows == self._buffer.capacity:
                full = self._buffer.slots()[: self.buffer_rows]
                self._sums = _added(self._sums, self._batch_sums(full, self.buffer_rows // self.batch_rows))
                self._buffers_done += 1
                self._buffer.drop(self.buffer_rows)

    def _batch_sums(self, slots: Int[Tensor, " held"], n_batches: int) -> tuple[Tensor, ...]:
        """Return the sums over shuffled batches of the rows in these slots, equal but for one row."""
        buffer, sums = self._held(), None
        generator = torch.Generator().manual_seed(self.seed + self._buffers_done)
        order = torch.randperm(len(slots), generator=generator).to(slots.device)
        for rows in slots[order].tensor_split(n_batches):
            one = self._grams(buffer.x, rows, "x")
            other = one if buffer.y is buffer.x else self._grams(buffer.y, rows, "y")
            sums = _added(sums, _terms(one, other, len(rows)))
        return sums or ()

    def _grams(self, layers: Float[Tensor, "layer _ d_model"], rows: Int[Tensor, " batch"], name: str) -> Grams:
        """Return the Gram matrices of these rows about their mean, in halves: the one off the diagonal represents two.

        The mean is taken off twice, since in float32 the first is rounded in proportion to the rows' distance from the
        origin.
        """
        dtype = torch.promote_types(layers.dtype, torch.float32)
        room = self._room.take(f"rows of {name}", (layers.shape[0], len(rows), layers.shape[2]), layers)
        batch = torch.index_select(layers, 1, rows, out=room).to(dtype)
        for _ in range(2):
            batch -= batch.mean(1, keepdim=True)
        if self.dtype is not None:
            batch = batch.to(self.dtype)
        half = len(rows) // 2
        parts = batch[:, :half], batch[:, half:]
        grams = []
        for number, (first, second) in enumerate((parts[:1] * 2, parts[1:] * 2, parts)):
            shape = (len(batch), first.shape[1], second.shape[1])
            out = self._room.take(f"Gram {number} of {name}", shape, batch)
            grams.append(torch.matmul(first, second.mT, out=out).to(dtype))
        return grams[0], grams[1], grams[2]


def _terms(one: Grams, other: Grams, n: int) -> tuple[Tensor, ...]:
    """Return the terms of one batch of `n` rows, times its rows.

    The diagonals of the Gram matrices are set to zero and their products added in float64: the unbiased estimator takes
    them away again, and the rounding of one long row would stay.
    """
    a = _diagonals(one)
    b = a if other is one else _diagonals(other)
    squares = a.square().sum(1), b.square().sum(1)
    products = a @ b.T + _weighed([gram_products(K, L) for K, L in zip(one, other, strict=True)])
    if other is one:
        own = [products.diagonal()] * 2
    else:
        sides = zip(squares, (one, other), strict=True)
        own = [square + _weighed([gram_squares(gram) for gram in grams]) for square, grams in sides]
    size_a, size_b = a.sum(1), b.sum(1)
    return (
        n * hsic1_of_centred(products, a @ b.T, size_a[:, None], size_b, n),
        n * hsic1_of_centred(own[0], squares[0], size_a, size_a, n),
        n * hsic1_of_centred(own[1], squares[1], size_b, size_b, n),
        own[0] / n,
        own[1] / n,
    )


def _diagonals(grams: Grams) -> Float[Tensor, "layer row"]:
    """Return the squared norms of a batch's rows in float64, and set the diagonals that hold them to zero."""
    halves = [gram.diagonal(dim1=1, dim2=2) for gram in grams[:2]]
    found = torch.cat(halves, 1).double()
    for half in halves:
        half.zero_()
    return found


def _weighed(terms: list[Tensor]) -> Tensor:
    """Return what is true of a whole Gram matrix from that of its parts."""
    return terms[0] + terms[1] + 2 * terms[2]


def _added(sums: tuple[Tensor, ...] | None, more: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return sums with more of them."""
    return more if sums is None else tuple(a + b for a, b in zip(sums, more, strict=True))
