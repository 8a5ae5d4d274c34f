"""CKA and ridge of all layer pairs from rows still at hand: by Gram blocks or by products, whichever is cheaper."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.similarity.hsic import gram_products, gram_squares
from latentcomm.similarity.layer_maps.pair_terms import PairTerms
from latentcomm.similarity.layer_maps.ridge import FoldSums, TargetSums, cross_sums, fold_sums, target_sums

__all__ = ["HeldRows"]

GRAM_ROWS = 1024
"""Rows of a Gram block: the blocks of 31 and 31 layers together take 260 MB in float32."""
AT_ONCE_BYTES = 2**29
"""Float64 copies of layers of x that each conversion of a layer of y serves."""

Products = tuple[Float[Tensor, "layer_x layer_y"], Float[Tensor, " layer_x"], Float[Tensor, " layer_y"]]
"""|X'Y|_F^2 of every pair, |X'X|_F^2 and |Y'Y|_F^2 of every layer."""


@dataclass(frozen=True)
class HeldRows:
    """All rows of all layers, and the fold of each."""

    x: Float[Tensor, "layer_x row d_sender"]
    y: Float[Tensor, "layer_y row d_receiver"]
    fold: Int[Tensor, " row"]
    folds: int

    @property
    def grams_are_cheaper(self) -> bool:
        """Whether n x n Grams cost less than d x d products: n^2 (L d + L^2) against n d^2 L^2, both sides counted.

        One side where both are the same rows; Grams of float32 rows run twice as fast as products, which are float64.
        """
        (layer_x, n, d_x), (layer_y, _, d_y) = self.x.shape, self.y.shape
        sides = layer_x * (d_x + 1) + (0 if self.y is self.x else layer_y * (d_y + 1))
        grams = n * (sides + layer_x * layer_y) / (2 if self.x.dtype == torch.float64 else 4)
        return grams < layer_x * layer_y * d_x * d_y + layer_x * d_x**2 + layer_y * d_y**2

    def terms(self) -> PairTerms:
        """Return what CKA needs of every pair, summed in float64.

        Gram blocks are in the dtype of the rows, float32 at least: off by less than 1e-6 there (1e-5 with a row 150
        times as long as the others), by nothing in float64.
        """
        a = torch.stack([rows.square().sum(1) for rows in _centred_layers(self.x)])
        b = a if self.y is self.x else torch.stack([rows.square().sum(1) for rows in _centred_layers(self.y)])
        xy, xx, yy = (
            _gram_products(self.x, self.y, a, b) if self.grams_are_cheaper else _moment_products(self.x, self.y)
        )
        norms = (a @ b.T, a.square().sum(1), b.square().sum(1))
        return PairTerms(self.x.shape[1], xy, xx, yy, *norms, a.sum(1), b.sum(1))

    def x_fold_sums(self) -> Iterator[FoldSums]:
        """Yield each layer of x as ridge regression takes it."""
        fold, order = self.fold.sort(stable=True)
        for layer in _centred_layers(self.x, order):
            yield fold_sums(layer, fold, self.folds)

    def y_targets(self) -> Iterator[TargetSums]:
        """Yield each layer of y as ridge regression predicts it."""
        fold, order = self.fold.sort(stable=True)
        for layer in _centred_layers(self.y, order):
            yield target_sums(layer, fold, self.folds)

    @property
    def n_layers_x(self) -> int:
        """How many layers x has."""
        return self.x.shape[0]

    @property
    def layers_at_once(self) -> int:
        """How many layers of x `crosses` should be given at a time: as many as stay small in float64."""
        return max(1, AT_ONCE_BYTES // (8 * self.x.shape[1] * self.x.shape[2]))

    def crosses(self, layers: range) -> Iterator[Float[Tensor, "fold layer d_sender d_receiver"]]:
        """Yield for each layer of y the products of some layers of x with it, over each fold's rows."""
        fold, order = self.fold.sort(stable=True)
        x = torch.cat(list(_centred_layers(self.x[layers.start : layers.stop], order)), 1)
        for y in _centred_layers(self.y, order):
            products = cross_sums(x, y, fold, self.folds)
            yield rearrange(products, "fold (layer d_x) d_y -> fold layer d_x d_y", layer=len(layers))

    def swapped(self) -> "HeldRows":
        """Return the same rows with x and y swapped."""
        return HeldRows(self.y, self.x, self.fold, self.folds)


def _centred_layers(
    rows: Float[Tensor, "layer row d_model"], order: Int[Tensor, " row"] | None = None
) -> Iterator[Float[Tensor, "row d_model"]]:
    """Yield each layer's rows less their mean, in float64, in this order."""
    for layer in rows:
        wide = (layer if order is None else layer.index_select(0, order)).to(torch.float64)
        yield wide - wide.mean(0)


def _gram_products(
    x: Float[Tensor, "layer_x row d_sender"],
    y: Float[Tensor, "layer_y row d_receiver"],
    a: Float[Tensor, "layer_x row"],
    b: Float[Tensor, "layer_y row"],
) -> Products:
    """Return the products as tr KL, summed over blocks of the Gram matrix; those off the diagonal count twice.

    The diagonals are left out of the blocks and come from the squared row norms `a` and `b`, which are in float64: the
    unbiased estimator takes them away again, and the rounding of one long row would stay.
    """
    n, sides = x.shape[1], (x,) if y is x else (x, y)
    means = [torch.stack([rows.double().mean(0) for rows in side])[:, None] for side in sides]
    xy, xx, yy = a @ b.T, a.square().sum(1), b.square().sum(1)
    for start in range(0, n, GRAM_ROWS):
        here = [_centred_block(side, mean, start) for side, mean in zip(sides, means, strict=True)]
        for other in range(start, n, GRAM_ROWS):
            there = [_centred_block(side, mean, other) for side, mean in zip(sides, means, strict=True)]
            grams = [first @ second.mT for first, second in zip(here, there, strict=True)]
            if start == other:
                for gram in grams:
                    gram.diagonal(dim1=1, dim2=2).zero_()
            weight = 1 if start == other else 2
            products = gram_products(grams[0], grams[-1])
            xy += weight * products
            if y is x:
                xx += weight * products.diagonal()
                continue
            for own, gram in zip((xx, yy), grams, strict=True):
                own += weight * gram_squares(gram)
    if y is x:
        yy.copy_(xx)
    return xy, xx, yy


def _centred_block(
    rows: Float[Tensor, "layer row d_model"], mean: Float[Tensor, "layer 1 d_model"], start: int
) -> Float[Tensor, "layer block d_model"]:
    """Return a block of rows less the mean, in the dtype that its products are taken in."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return rows[:, start : start + GRAM_ROWS].to(dtype) - mean.to(dtype)


def _moment_products(x: Float[Tensor, "layer_x row d_sender"], y: Float[Tensor, "layer_y row d_receiver"]) -> Products:
    """Return the products from X'Y of each pair, in float64."""
    xy, xx, yy = (torch.zeros(shape, dtype=torch.float64, device=x.device) for shape in _map_shapes(x, y))
    for i, first in enumerate(_centred_layers(x)):
        xx[i] = (first.T @ first).square().sum()
        for j, second in enumerate(_centred_layers(y)):
            xy[i, j] = (first.T @ second).square().sum()
    for j, second in enumerate(_centred_layers(y)):
        yy[j] = (second.T @ second).square().sum()
    return xy, xx, yy


def _map_shapes(
    x: Float[Tensor, "layer_x row d_sender"], y: Float[Tensor, "layer_y row d_receiver"]
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of what is known of every pair, of every layer of x, and of every layer of y."""
    return (x.shape[0], y.shape[0]), (x.shape[0],), (y.shape[0],)
