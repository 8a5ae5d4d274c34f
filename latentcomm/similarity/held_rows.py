"""CKA and ridge of all layer pairs from rows still at hand: by Gram blocks or by products, whichever is cheaper."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.similarity.fold_ridge import FoldSums, cross_sums, fold_sums
from latentcomm.similarity.pair_terms import PairTerms

__all__ = ["HeldRows"]

GRAM_ROWS = 1024
"""Rows of a Gram block: the blocks of 31 and 31 layers together take 260 MB in float32."""

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
        """Whether n x n Grams cost less than d x d products: n^2 (L d + L^2) against n d^2 L^2, both sides counted."""
        (layer_x, n, d_x), (layer_y, _, d_y) = self.x.shape, self.y.shape
        grams = n * (layer_x * d_x + layer_y * d_y + layer_x * layer_y + layer_x + layer_y) / 2
        return grams < layer_x * layer_y * d_x * d_y + layer_x * d_x**2 + layer_y * d_y**2

    def terms(self) -> PairTerms:
        """Return what CKA needs of every pair, summed in float64.

        Gram blocks are in the dtype of the rows, float32 at least: off by less than 1e-6 there, by nothing in float64.
        """
        a, b = (torch.stack([rows.square().sum(1) for rows in _centred_layers(side)]) for side in (self.x, self.y))
        xy, xx, yy = _gram_products(self.x, self.y) if self.grams_are_cheaper else _moment_products(self.x, self.y)
        norms = (a @ b.T, a.square().sum(1), b.square().sum(1))
        return PairTerms(self.x.shape[1], xy, xx, yy, *norms, a.sum(1), b.sum(1))

    def x_fold_sums(self) -> Iterator[FoldSums]:
        """Yield each layer of x as ridge regression takes it."""
        for layer in _centred_layers(self.x):
            yield fold_sums(layer, self.fold, self.folds)

    def y_fold_sums(self) -> Iterator[FoldSums]:
        """Yield each layer of y as ridge regression takes it."""
        for layer in _centred_layers(self.y):
            yield fold_sums(layer, self.fold, self.folds)

    def crosses(self, layer_x: int) -> Iterator[Float[Tensor, "fold d_sender d_receiver"]]:
        """Yield the products of one layer of x with each of y, over each fold's rows."""
        (x,) = _centred_layers(self.x[layer_x : layer_x + 1])
        for y in _centred_layers(self.y):
            yield cross_sums(x, y, self.fold, self.folds)

    def swapped(self) -> "HeldRows":
        """Return the same rows with x and y in each other's place."""
        return HeldRows(self.y, self.x, self.fold, self.folds)


def _centred_layers(rows: Float[Tensor, "layer row d_model"]) -> Iterator[Float[Tensor, "row d_model"]]:
    """Yield each layer's rows less their mean, in float64."""
    for layer in rows:
        wide = layer.to(torch.float64)
        yield wide - wide.mean(0)


def _gram_products(x: Float[Tensor, "layer_x row d_sender"], y: Float[Tensor, "layer_y row d_receiver"]) -> Products:
    """Return the products as tr KL, summed over blocks of the Gram matrices; those off the diagonal count twice."""
    n = x.shape[1]
    means = [torch.stack([rows.double().mean(0) for rows in side])[:, None] for side in (x, y)]
    xy, xx, yy = (torch.zeros(shape, dtype=torch.float64, device=x.device) for shape in _map_shapes(x, y))
    for start in range(0, n, GRAM_ROWS):
        here = [_centred_block(side, mean, start) for side, mean in zip((x, y), means, strict=True)]
        for other in range(start, n, GRAM_ROWS):
            there = [_centred_block(side, mean, other) for side, mean in zip((x, y), means, strict=True)]
            K, L = ((first @ second.mT).flatten(1) for first, second in zip(here, there, strict=True))
            weight = 1 if start == other else 2
            xy += weight * (K @ L.T)
            xx += weight * torch.stack([layer @ layer for layer in K])
            yy += weight * torch.stack([layer @ layer for layer in L])
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
