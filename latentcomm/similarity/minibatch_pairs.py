"""The CKA map of all layer pairs by minibatches: one pass, a small buffer, two numbers a pair."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.linalg import require_finite
from latentcomm.similarity.checks import LEAST_WIDTH, require_rows, require_varied
from latentcomm.similarity.cka import BATCH_ROWS
from latentcomm.similarity.hsic import LEAST_ROWS, alignment_ratio, hsic1_of_centred

__all__ = ["MinibatchPairs"]

BUFFER_ROWS = 4096
"""Rows shuffled together, so that a batch holds tokens of many documents: batches of one document measure another
thing (0.73 instead of 0.60 for two layers of SmolLM2)."""

LayersX = Float[Tensor, "layer_x row_x d_sender"] | Sequence[Float[Tensor, "row_x d_sender"]]
"""The same rows at each layer of x."""
LayersY = Float[Tensor, "layer_y row_y d_receiver"] | Sequence[Float[Tensor, "row_y d_receiver"]]
"""The same rows at each layer of y."""
Sums = tuple[Float[Tensor, "layer_x layer_y"], ...]
"""HSIC1 of xy, xx, yy and the biased xx and yy on the same scale, summed over batches by their rows."""


class MinibatchPairs:
    """An accumulator of row-paired activations that keeps a buffer of rows and a few sums a pair of layers.

    Much cheaper than `LayerPairs` and for debiased CKA alone, which it estimates without bias but not exactly: compare
    seeds. Rows gather in a buffer of `buffer_rows`, are shuffled there across documents, and leave it in batches of
    `batch_rows`; numerators and denominators are summed over batches before the ratio (Nguyen et al. 2021,
    arXiv:2010.15327). Chunks of any size give the same bits. Workers merged give the batches of each, so other batches
    than one worker would draw, and as good an estimate. Given the same object as x and y, a model with itself, it keeps
    the rows once and halves the work. Products are in `dtype`: the rows' own, float32 at least,
    unless given (bfloat16 is faster and off by up to 1e-3: for a first look only); sums are in float64.

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
        device: str = "cpu",
    ) -> None:
        if batch_rows < LEAST_ROWS:
            raise ValueError(f"batch_rows is {batch_rows}; a batch needs at least {LEAST_ROWS} rows")
        if buffer_rows < batch_rows:
            raise ValueError(f"buffer_rows is {buffer_rows}; a buffer holds at least one batch of {batch_rows}")
        self.batch_rows, self.buffer_rows, self.seed = batch_rows, buffer_rows, seed
        self.dtype, self.device = dtype, device
        self.n_rows = 0
        self._held: list[tuple[Tensor, Tensor]] = []
        self._sums: tuple[Tensor, ...] | None = None
        self._buffers_done = 0
        self._ranges: tuple[tuple[Tensor, Tensor], ...] = ()

    def update(self, x_layers: LayersX, y_layers: LayersY) -> "MinibatchPairs":
        """Take in rows of all layers, paired between x and y; return this accumulator.

        Raises:
            ValueError: row counts that differ, layers or widths other than before, a width below 2, or NaN or infinite
                rows.
        """
        x = torch.stack([layer.detach().to(self.device) for layer in x_layers])
        y = x if y_layers is x_layers else torch.stack([layer.detach().to(self.device) for layer in y_layers])
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x has {x.shape[1]} rows but y {y.shape[1]}; pair them row by row")
        for rows, name in ((x, "x"), (y, "y")):
            if rows.shape[2] < LEAST_WIDTH:
                raise ValueError(
                    f"{name} is {rows.shape[2]} wide; a similarity of spaces needs a width of {LEAST_WIDTH}"
                )
            for number, layer in enumerate(rows):
                require_finite(layer, f"layer {number} of {name}")
        if x.shape[1] == 0:
            return self
        ranges = tuple(torch.aminmax(rows, dim=1) for rows in (x, y))
        self._take(ranges, x.shape[1], [(x, y)])
        return self

    def merge(self, other: "MinibatchPairs") -> "MinibatchPairs":
        """Take in all that another accumulator holds, which stays as it is; return this accumulator.

        Raises:
            ValueError: other layers or widths, or another size of batch.
        """
        if self.batch_rows != other.batch_rows:
            raise ValueError(f"batch_rows is {self.batch_rows} here but {other.batch_rows} there; make them alike")
        if not other._ranges:
            return self
        self._take(other._ranges, other.n_rows, other._held)
        if other._sums is not None:
            mine = self._sums
            self._sums = other._sums if mine is None else tuple(a + b for a, b in zip(mine, other._sums, strict=True))
        return self

    def debiased_cka(self) -> Float[Tensor, "layer_x layer_y"]:
        """Return the map; values may be negative. The buffered rows count, in batches of about `batch_rows`.

        Raises:
            ValueError: fewer than 4 rows, a column that is constant over all of them, or a layer whose rows are all
                equally similar.
        """
        require_rows(self.n_rows, LEAST_ROWS, "for the unbiased estimator")
        for (low, high), name in zip(self._ranges, "xy", strict=True):
            for layer in range(low.shape[0]):
                require_varied(low[layer], high[layer], f"layer {layer} of {name}")
        x, y = self._joined()
        rest = self._batch_sums(x, y, max(1, x.shape[1] // self.batch_rows))
        sums = rest if self._sums is None else tuple(a + b for a, b in zip(self._sums, rest, strict=True))
        return alignment_ratio(sums[0], sums[1][:, None], sums[2], sums[3][:, None], sums[4])

    def _take(self, ranges: tuple[tuple[Tensor, Tensor], ...], n_rows: int, held: list[tuple[Tensor, Tensor]]) -> None:
        """Take in rows, and turn full buffers into sums; a batch's worth of rows stays for the last, uneven batches."""
        for (low, _), (known, _), name in zip(ranges, self._ranges, "xy", strict=False):
            if low.shape != known.shape:
                now, before = tuple(low.shape), tuple(known.shape)
                raise ValueError(f"{name} has layers x width {now}, but {before} before; use another accumulator")
        if self._ranges:
            ranges = tuple(
                (torch.minimum(low, other_low), torch.maximum(high, other_high))
                for (low, high), (other_low, other_high) in zip(self._ranges, ranges, strict=True)
            )
        self._ranges, self.n_rows = ranges, self.n_rows + n_rows
        self._held = [*self._held, *held]
        while sum(x.shape[1] for x, _ in self._held) >= self.buffer_rows + self.batch_rows:
            x, y = self._joined()
            full, n_batches = self.buffer_rows, self.buffer_rows // self.batch_rows
            more = self._batch_sums(*_part(x, y, slice(None, full)), n_batches)
            self._sums = more if self._sums is None else tuple(a + b for a, b in zip(self._sums, more, strict=True))
            self._buffers_done += 1
            self._held = [_part(x, y, torch.arange(full, x.shape[1]))]

    def _joined(self) -> tuple[Tensor, Tensor]:
        """Return all buffered rows as one block."""
        if len(self._held) > 1:
            x = torch.cat([rows for rows, _ in self._held], 1)
            same = all(y is x for x, y in self._held)
            self._held = [(x, x if same else torch.cat([rows for _, rows in self._held], 1))]
        return self._held[0]

    def _batch_sums(
        self, x: Float[Tensor, "layer_x row d_sender"], y: Float[Tensor, "layer_y row d_receiver"], n_batches: int
    ) -> tuple[Tensor, ...]:
        """Return the sums over shuffled batches of these rows, equal but for one row."""
        generator = torch.Generator().manual_seed(self.seed + self._buffers_done)
        order = torch.randperm(x.shape[1], generator=generator).to(x.device)
        summed: list[Tensor] | None = None
        for rows in order.tensor_split(n_batches):
            terms = self._terms(*_part(x, y, rows))
            summed = terms if summed is None else [a + b for a, b in zip(summed, terms, strict=True)]
        return tuple(summed or ())

    def _terms(
        self, x: Float[Tensor, "layer_x row d_sender"], y: Float[Tensor, "layer_y row d_receiver"]
    ) -> list[Tensor]:
        """Return one batch's terms, times its rows."""
        n = x.shape[1]
        sides = []
        for rows in (x,) if y is x else (x, y):
            dtype = torch.promote_types(rows.dtype, torch.float32)
            about_mean = rows.to(dtype) - rows.to(torch.float64).mean(1, keepdim=True).to(dtype)
            narrow = about_mean if self.dtype is None else about_mean.to(self.dtype)
            gram = (narrow @ narrow.mT).to(dtype)
            sides.append((gram.flatten(1), gram.diagonal(dim1=1, dim2=2).to(torch.float64)))
        (K, a), (L, b) = sides[0], sides[-1]
        products = (K @ L.T).to(torch.float64)
        own = [torch.stack([layer @ layer for layer in side]).to(torch.float64) for side in (K, L)]
        size_a, size_b = a.sum(1), b.sum(1)
        return [
            n * hsic1_of_centred(products, a @ b.T, size_a[:, None], size_b, n),
            n * hsic1_of_centred(own[0], a.square().sum(1), size_a, size_a, n),
            n * hsic1_of_centred(own[1], b.square().sum(1), size_b, size_b, n),
            own[0] / n,
            own[1] / n,
        ]


def _part(
    x: Float[Tensor, "layer_x row d_sender"], y: Float[Tensor, "layer_y row d_receiver"], rows: Tensor | slice
) -> tuple[Tensor, Tensor]:
    """Return some rows of both sides, which stay one tensor where they were one."""
    part = x[:, rows]
    return part, part if y is x else y[:, rows]
