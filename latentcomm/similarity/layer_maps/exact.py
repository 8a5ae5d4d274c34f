"""All pairs of layers of two models in one streaming pass: CKA, and held-out ridge by documents."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.similarity.checks import Ranges, require_float64, require_layers, require_rows
from latentcomm.similarity.layer_maps.grams import HeldRows
from latentcomm.similarity.layer_maps.moments import LayerSums, bytes_of_sums, empty_sums
from latentcomm.similarity.layer_maps.ridge import (
    SourceFactors,
    TargetSums,
    check_penalty,
    factor_source,
    r_squared_at,
    r_squared_chosen,
)
from latentcomm.similarity.layer_maps.row_buffer import LayersX, LayersY, StoredX, StoredY, in_blocks

__all__ = ["LayerPairs", "document_fold"]

BLOCK_ROWS = 4096
"""Rows added to the sums at once, at most: their products run at full speed."""
BLOCK_BYTES = 2**28
"""The float64 copy of the rows added at once, at most: fewer rows where the layers together are wide."""
COPIES_OF_BLOCK = 4
"""Less the origin, side by side, of one fold, and squared."""
MAX_BYTES = 4 * 2**30
"""Memory that rows or sums may take by default."""

Documents = Int[Tensor, " label"] | Sequence[int] | Sequence[str]
"""The document of each row."""


class LayerPairs:
    """An accumulator of row-paired activations of two models, from which maps [layer_x layer_y] follow.

    Rows stream through `update` in chunks of any size. They are held as they are while that takes less memory than the
    sums of products that every map follows from, and reduced to those sums from then on: memory is bounded by the
    widths, for any number of rows. Rows at hand give CKA by Gram blocks (in the dtype of the rows, float32 at least:
    off by less than 1e-6, by 1e-5 with a row 150 times as long as the others) or by float64 products, whichever is
    cheaper. The sums are float64 about the mean of the first rows; neither chunks nor workers, through `merge`, change
    a digit that counts. Given the same object as x and y, a model with itself, it holds the rows once and computes half
    the Grams.

    `folds` is for `linear_predictability` (1 has no separate folds and takes a fifth of the memory). Documents given to
    `update` go to the fold that `fold_of` names, or else to `document_fold`, so that workers agree without
    communication; without documents row i of a stream goes to fold i modulo `folds`. Where neither rows nor sums fit
    into `max_bytes`, stream again for some layers at a time (as many as `peak_bytes` allows): maps of parts are parts
    of the map. `device` is where rows go and sums are taken, "cuda" for a GPU; maps are returned there.

    >>> layers = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    >>> pairs = LayerPairs().update(layers[:, :20], layers[:, :20]).update(layers[:, 20:], layers[:, 20:])
    >>> pairs, pairs.debiased_cka().shape
    (LayerPairs(50 rows of 3 layers 4 wide and 3 layers 4 wide), torch.Size([3, 3]))
    """

    def __init__(
        self,
        *,
        folds: int = 5,
        seed: int = 0,
        fold_of: Mapping[str, int] | Mapping[int, int] | Mapping[int | str, int] | None = None,
        max_bytes: int = MAX_BYTES,
        device: str | torch.device = "cpu",
    ) -> None:
        require_float64(device)
        if folds < 1:
            raise ValueError(f"folds is {folds}; give at least 3 for predictability, or 1 for CKA alone")
        outside = {} if fold_of is None else {key: fold for key, fold in fold_of.items() if not 0 <= fold < folds}
        if outside:
            label, fold = next(iter(outside.items()))
            raise ValueError(f"fold_of sends document {label!r} to fold {fold}, but folds go from 0 to {folds - 1}")
        self.folds, self.seed, self.max_bytes, self.device = folds, seed, max_bytes, device
        self.fold_of: dict[int | str, int] | None = None if fold_of is None else dict(fold_of.items())
        self.n_rows = 0
        self.by_document: bool | None = None
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sums: LayerSums | None = None
        self._ranges = Ranges()

    def __repr__(self) -> str:
        if not self._ranges.sides:
            return "LayerPairs(no rows yet)"
        return f"LayerPairs({self.n_rows} rows of {self._ranges})"

    def update(self, x_layers: StoredX, y_layers: StoredY, *, groups: Documents | None = None) -> "LayerPairs":
        """Take in rows of all layers, paired between x and y, with one document label a row; return this accumulator.

        Rows in files are read a block of all layers at a time, of BLOCK_ROWS rows at most.

        Raises:
            ValueError: row counts that differ, layers or widths other than before, a width below 2, NaN or infinite
                rows, labels in some updates only or not one a row, a document that `fold_of` lacks, or more memory
                needed than `max_bytes`.
        """
        sizes = require_layers(x_layers, "x"), require_layers(y_layers, "y")
        if sizes[0][1] != sizes[1][1]:
            raise ValueError(f"x has {sizes[0][1]} rows but y {sizes[1][1]}; pair them row by row")
        n_rows = sizes[0][1]
        fold = self._folds_of(n_rows, groups)
        if n_rows == 0:
            return self
        self._require_room(self.n_rows + n_rows, x_layers, y_layers)
        width = sum(n_layers * width for n_layers, _, width in sizes)
        for rows, x, y in in_blocks(x_layers, y_layers, _block_rows(width)):
            self._take(x, y, fold[rows], by_document=groups is not None)
        return self

    def _take(self, x_layers: LayersX, y_layers: LayersY, fold: Int[Tensor, " row"], *, by_document: bool) -> None:
        """Take in rows in memory, of these folds."""
        x = torch.stack([layer.detach().to(self.device) for layer in x_layers])
        y = x if y_layers is x_layers else torch.stack([layer.detach().to(self.device) for layer in y_layers])
        self._ranges = self._ranges.with_rows(x, y)
        self.by_document = by_document
        self.n_rows += len(fold)
        self._held.append((x, y, fold))
        self._settle()

    def merge(self, other: "LayerPairs") -> "LayerPairs":
        """Take in all that another accumulator holds, which stays as it is; return this accumulator.

        Raises:
            ValueError: other layers, widths, folds, seed or fold_of, or documents in one of them only.
        """
        for what in ("folds", "seed", "fold_of"):
            if getattr(self, what) != getattr(other, what):
                raise ValueError(
                    f"{what} is {getattr(self, what)} here but {getattr(other, what)} there; give both the same"
                )
        if other.by_document is None:
            return self
        if self.by_document is not None:
            if self.by_document != other.by_document:
                raise ValueError("one side was given documents and the other not; give them to both")
            if self._ranges.shapes != other._ranges.shapes:
                raise ValueError(f"{self!r} cannot take in {other!r}; their layers or widths differ")
        if other._held:
            self._require_room(self.n_rows + other.n_rows, *other._held[0][:2])
        self.by_document = other.by_document
        self._ranges = self._ranges.merged(other._ranges)
        self.n_rows += other.n_rows
        self._held += other._held
        if other._sums is not None:
            if self._sums is None:
                self._sums = empty_sums(other._sums.origin_x, other._sums.origin_y, self.folds)
            self._sums = self._sums.merged(other._sums)
        self._settle()
        return self

    def swapped(self) -> "LayerPairs":
        """Return an accumulator of the same rows with x and y swapped: the other direction's maps."""
        other = LayerPairs(
            folds=self.folds, seed=self.seed, fold_of=self.fold_of, max_bytes=self.max_bytes, device=self.device
        )
        other.n_rows, other.by_document, other._ranges = self.n_rows, self.by_document, Ranges(self._ranges.sides[::-1])
        other._held = [(y, x, fold) for x, y, fold in self._held]
        other._sums = None if self._sums is None else self._sums.swapped()
        return other

    def linear_cka(self) -> Float[Tensor, "layer_x layer_y"]:
        """Return the biased linear CKA of all rows, every pair (`latentcomm.similarity.cka.linear_cka`).

        Raises:
            ValueError: fewer than 3 rows, or a column that is constant over all of them.
        """
        return self._source(3).terms().linear_cka()

    def debiased_cka(self) -> Float[Tensor, "layer_x layer_y"]:
        """Return the debiased linear CKA of all rows, every pair (`latentcomm.similarity.cka.debiased_cka`).

        Raises:
            ValueError: fewer than 4 rows, or a column that is constant over all of them.
        """
        return self._source(4).terms().debiased_cka()

    def linear_predictability(self, *, penalty: float | int | None = None) -> Float[Tensor, "layer_x layer_y"]:
        """Return the held-out R^2 of predicting y from x, every pair, with `linear_predictability`'s folds and penalty.

        The other direction is `swapped().linear_predictability()`. One eigendecomposition a layer of x and split serves
        all layers of y and all penalties.

        Raises:
            ValueError: a penalty that is none, folds too few for it, a fold without rows, fewer than 2 rows a fold, or
                a column that is constant over all rows.
        """
        check_penalty(penalty, self.folds)
        if penalty is not None:
            return self.ridge_curve([penalty])[..., 0]
        return self._predicted(r_squared_chosen, choosing=True)

    def ridge_curve(self, penalties: Sequence[float | int]) -> Float[Tensor, "layer_x layer_y penalty"]:
        """Return the held-out R^2 at each of these penalties, multiples of the mean eigenvalue of the training rows.

        The largest value of a curve is optimistic, since the held-out rows chose it; `linear_predictability` is not.

        Raises:
            ValueError: as `linear_predictability`.
        """
        for penalty in penalties:
            check_penalty(penalty, self.folds)
        ratios = [float(penalty) for penalty in penalties]
        return self._predicted(partial(r_squared_at, ratios=ratios), choosing=False)

    def peak_bytes(self, layers: tuple[int, int], widths: tuple[int, int]) -> int:
        """Return the most memory that so many layers of these widths take, above the chunk given and two merged.

        That is twice the sums (the rows held before are as large), the copies of a block of rows, and what ridge needs
        of a layer of x.

        >>> LayerPairs(folds=1).peak_bytes((4, 4), (4096, 4096)) / 1e9 < 8
        True
        """
        (n_x, n_y), (d_x, d_y) = layers, widths
        sums, width = bytes_of_sums(n_x, d_x, n_y, d_y, folds=self.folds), n_x * d_x + n_y * d_y
        factors = 2 * self.folds * 2 * 8 * d_x**2 if self.folds > 1 else 0
        return 2 * sums + COPIES_OF_BLOCK * 8 * width * _block_rows(width) + factors

    def _predicted(
        self, judge: Callable[[SourceFactors, TargetSums, Tensor], Tensor], *, choosing: bool
    ) -> Float[Tensor, "layer_x layer_y *penalty"]:
        """Return what `judge` makes of every pair, each layer of x factored once."""
        source = self._source(2 * self.folds)
        targets, sums_of_x = list(source.y_targets()), source.x_fold_sums()
        maps: list[list[Tensor]] = []
        for start in range(0, source.n_layers_x, source.layers_at_once):
            layers = range(start, min(start + source.layers_at_once, source.n_layers_x))
            factors = [factor_source(sums, choosing=choosing) for sums in islice(sums_of_x, len(layers))]
            cells: list[list[Tensor]] = [[] for _ in layers]
            for target, crosses in zip(targets, source.crosses(layers), strict=True):
                for number, of_layer in enumerate(factors):
                    cells[number].append(judge(of_layer, target, crosses[:, number]))
            maps += cells
        return torch.stack([torch.stack(cells) for cells in maps])

    def _folds_of(self, n_rows: int, groups: Documents | None) -> Int[Tensor, " row"]:
        """Return the fold of each row that comes in."""
        if self.by_document is not None and self.by_document != (groups is not None):
            raise ValueError("some rows came with documents and some without; give groups to every update, or to none")
        if groups is None:
            return (torch.arange(self.n_rows, self.n_rows + n_rows) % self.folds).to(self.device)
        labels = groups.tolist() if isinstance(groups, Tensor) else list(groups)
        if len(labels) != n_rows:
            raise ValueError(f"{len(labels)} group labels for {n_rows} rows; give one label a row")
        known: dict[int | str, int] = {label: self._fold_of(label) for label in set(labels)}
        return torch.tensor([known[label] for label in labels], dtype=torch.int64, device=self.device)

    def _fold_of(self, label: int | str) -> int:
        """Return a document's fold."""
        if self.fold_of is None:
            return document_fold(label, folds=self.folds, seed=self.seed)
        if label not in self.fold_of:
            raise ValueError(f"fold_of has no fold for document {label!r}; name every document")
        return self.fold_of[label]

    def _settle(self) -> None:
        """Reduce held rows to sums once those take less memory, in blocks that do not depend on the chunks."""
        while sum(fold.shape[0] for _, _, fold in self._held) > (limit := self._held_limit()):
            x, y, fold = self._joined()
            self._absorb(limit)
            rest = x[:, limit:].clone()
            self._held = [(rest, rest if y is x else y[:, limit:].clone(), fold[limit:].clone())]

    def _held_limit(self) -> int:
        """Return how many rows may be held: as many as the sums would take, and all where those are too large."""
        if self._sums is not None:
            return _block_rows(sum(low.numel() for low, _ in self._ranges.sides))
        sums, a_row = self._bytes(*self._held[0][:2])
        return max(1, sums // a_row) if sums <= self.max_bytes else self.n_rows

    def _bytes(self, x: StoredX, y: StoredY) -> tuple[int, int]:
        """Return the bytes of the sums of these layers, and those of one row as it is."""
        sums = bytes_of_sums(len(x), x[0].shape[1], len(y), y[0].shape[1], folds=self.folds)
        sides = (x,) if y is x else (x, y)
        return sums, sum(len(side) * side[0].shape[1] * side[0].dtype.itemsize for side in sides)

    def _require_room(self, n_rows: int, x: StoredX, y: StoredY) -> None:
        """Refuse so many rows in all, where neither they nor the sums fit."""
        sums, a_row = self._bytes(x, y)
        if sums > self.max_bytes and n_rows * a_row > self.max_bytes:
            raise ValueError(
                f"{n_rows} rows take {n_rows * a_row / 1e9:.3g} GB and the sums of all pairs {sums / 1e9:.3g} GB, more"
                f" than max_bytes, {self.max_bytes / 1e9:.3g} GB; stream fewer layers at a time, or allow more"
            )

    def _absorb(self, n_rows: int) -> None:
        """Add the first held rows, or all where there are fewer, to the sums, about the mean of the first that came."""
        x, y, fold = self._joined()
        x, y, fold = x[:, :n_rows], y[:, :n_rows], fold[:n_rows]
        if self._sums is None:
            origin_x, origin_y = (torch.stack([layer.double().mean(0) for layer in side]) for side in (x, y))
            self._sums = empty_sums(origin_x, origin_y, self.folds)
        sums, rows = self._sums, _block_rows(x.shape[0] * x.shape[2] + y.shape[0] * y.shape[2])
        for start in range(0, fold.shape[0], rows):
            block = slice(start, start + rows)
            sums.add(x[:, block], y[:, block], fold[block])

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all held rows as one block."""
        if len(self._held) > 1:
            xs, ys, folds = zip(*self._held, strict=True)
            x = torch.cat(xs, 1)
            y = x if all(y is x for x, y, _ in self._held) else torch.cat(ys, 1)
            self._held = [(x, y, torch.cat(folds))]
        return self._held[0]

    def _source(self, least_rows: int) -> HeldRows | LayerSums:
        """Return what the maps follow from, refusing rows that they cannot follow from."""
        require_rows(self.n_rows, least_rows)
        self._ranges.require_varied()
        if self._sums is None:
            x, y, fold = self._joined()
            return HeldRows(x, y, fold, self.folds)
        if self._held:
            self._absorb(self.n_rows)
            self._held = []
        return self._sums


def document_fold(label: int | str, *, folds: int, seed: int = 0) -> int:
    """Return the fold of a document, from its label and the seed alone, the same on every machine.

    Few documents can leave a fold empty, which `LayerPairs` refuses; name the folds through `fold_of` then.

    >>> [document_fold(f"doc-{number}", folds=5) for number in range(8)]
    [3, 3, 2, 2, 1, 2, 2, 0]
    """
    digest = blake2b(f"{seed}/{label!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % folds


def _block_rows(width: int) -> int:
    """Return how many rows are added to the sums at once, where all layers of both sides together are so wide."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (8 * width)))
