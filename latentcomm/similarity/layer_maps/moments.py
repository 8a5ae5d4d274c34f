"""Sums over rows from which CKA and ridge of all layer pairs follow: added block by block, moved, merged."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.similarity.layer_maps.pair_terms import PairTerms
from latentcomm.similarity.layer_maps.ridge import FoldSums, TargetSums

__all__ = ["LayerSums", "bytes_of_sums", "empty_sums"]


@dataclass(frozen=True)
class LayerSums:
    """Float64 sums over rows x_i, y_i less an origin of each layer's own, with a_i = |x_i|^2 and b_i = |y_i|^2.

    `fold`, of the first axis of all but the last five, separates the rows of each fold. `add` writes in place.
    """

    origin_x: Float[Tensor, "layer_x d_sender"]
    origin_y: Float[Tensor, "layer_y d_receiver"]
    n: Int[Tensor, " fold"]
    total_x: Float[Tensor, "fold layer_x d_sender"]
    total_y: Float[Tensor, "fold layer_y d_receiver"]
    square_x: Float[Tensor, "fold layer_x d_sender d_sender"]
    square_y: Float[Tensor, "fold layer_y d_receiver d_receiver"]
    cross: Float[Tensor, "fold layer_x d_sender layer_y d_receiver"]
    size_x: Float[Tensor, " layer_x"]  # sum a
    size_y: Float[Tensor, " layer_y"]  # sum b
    norms_xx: Float[Tensor, " layer_x"]  # a.a
    norms_yy: Float[Tensor, " layer_y"]  # b.b
    norms_xy: Float[Tensor, "layer_x layer_y"]  # a.b
    weighted_xx: Float[Tensor, "layer_x d_sender"]  # X'a
    weighted_yy: Float[Tensor, "layer_y d_receiver"]  # Y'b
    weighted_xy: Float[Tensor, "layer_x d_sender layer_y"]  # X'b
    weighted_yx: Float[Tensor, "layer_x layer_y d_receiver"]  # Y'a

    def add(
        self,
        x: Float[Tensor, "layer_x row d_sender"],
        y: Float[Tensor, "layer_y row d_receiver"],
        fold: Int[Tensor, " row"],
    ) -> None:
        """Add a block of rows to the sums, in place."""
        x = x.to(torch.float64) - self.origin_x[:, None]
        y = y.to(torch.float64) - self.origin_y[:, None]
        (layer_x, _, d_x), (layer_y, _, d_y) = x.shape, y.shape
        a, b = x.square().sum(2), y.square().sum(2)
        flat_x, flat_y = (rearrange(each, "layer row d -> row (layer d)") for each in (x, y))
        for number in fold.unique().tolist():
            own = fold == number
            self.n[number] += int(own.sum())
            self.total_x[number] += x[:, own].sum(1)
            self.total_y[number] += y[:, own].sum(1)
            self.square_x[number].baddbmm_(x[:, own].mT, x[:, own])
            self.square_y[number].baddbmm_(y[:, own].mT, y[:, own])
            self.cross[number].view(layer_x * d_x, layer_y * d_y).addmm_(flat_x[own].T, flat_y[own])
        for sums, more in (
            (self.size_x, a.sum(1)),
            (self.size_y, b.sum(1)),
            (self.norms_xx, a.square().sum(1)),
            (self.norms_yy, b.square().sum(1)),
            (self.norms_xy, a @ b.T),
            (self.weighted_xx, torch.einsum("lrd,lr->ld", x, a)),
            (self.weighted_yy, torch.einsum("lrd,lr->ld", y, b)),
            (
                self.weighted_xy,
                rearrange(flat_x.T @ b.T, "(layer_x d_x) layer_y -> layer_x d_x layer_y", layer_x=layer_x),
            ),
            (self.weighted_yx, rearrange(a @ flat_y, "layer_x (layer_y d_y) -> layer_x layer_y d_y", layer_y=layer_y)),
        ):
            sums += more

    def moved(
        self, origin_x: Float[Tensor, "layer_x d_sender"], origin_y: Float[Tensor, "layer_y d_receiver"]
    ) -> "LayerSums":
        """Return the same rows' sums about other origins.

        With x -> x + p and y -> y + q (p, q the old origin less the new): a_i -> a_i + 2 x_i.p + |p|^2, likewise b.
        """
        p, q = self.origin_x - origin_x, self.origin_y - origin_y
        pp, qq = p.square().sum(1), q.square().sum(1)
        n, s_x, s_y = self.n.sum(), self.total_x.sum(0), self.total_y.sum(0)
        products, square_x, square_y = self.cross.sum(0), self.square_x.sum(0), self.square_y.sum(0)
        xp, yq = (s_x * p).sum(1), (s_y * q).sum(1)  # sums over rows of x.p and y.q
        size_x, size_y = self.size_x + 2 * xp + n * pp, self.size_y + 2 * yq + n * qq
        norms_xx, weighted_xx = _moved_own(self.norms_xx, self.weighted_xx, square_x, s_x, self.size_x, n, p)
        norms_yy, weighted_yy = _moved_own(self.norms_yy, self.weighted_yy, square_y, s_y, self.size_y, n, q)
        counts = self.n[:, None, None]
        return LayerSums(
            origin_x=origin_x,
            origin_y=origin_y,
            n=self.n.clone(),
            total_x=self.total_x + counts * p,
            total_y=self.total_y + counts * q,
            square_x=_moved_square(self.square_x, self.total_x, self.n, p),
            square_y=_moved_square(self.square_y, self.total_y, self.n, q),
            cross=self.cross
            + torch.einsum("fld,me->fldme", self.total_x, q)
            + torch.einsum("ld,fme->fldme", p, self.total_y + counts * q),
            size_x=size_x,
            size_y=size_y,
            norms_xx=norms_xx,
            norms_yy=norms_yy,
            norms_xy=self._moved_norms(p, q, torch.einsum("ld,ldme,me->lm", p, products, q)),
            weighted_xx=weighted_xx,
            weighted_yy=weighted_yy,
            weighted_xy=self.weighted_xy
            + 2 * torch.einsum("ldme,me->ldm", products, q)
            + s_x[:, :, None] * qq
            + p[:, :, None] * size_y,
            weighted_yx=self.weighted_yx
            + 2 * torch.einsum("ld,ldme->lme", p, products)
            + pp[:, None, None] * s_y
            + size_x[:, None, None] * q,
        )

    def merged(self, other: "LayerSums") -> "LayerSums":
        """Return the sums over both sets of rows, about this one's origins."""
        other = other.moved(self.origin_x, self.origin_y)
        origins = {"origin_x": self.origin_x, "origin_y": self.origin_y}
        summed = [name for name in self.__dataclass_fields__ if name not in origins]
        return LayerSums(**origins, **{name: getattr(self, name) + getattr(other, name) for name in summed})

    def swapped(self) -> "LayerSums":
        """Return a copy with x and y swapped."""
        other = empty_sums(self.origin_y.clone(), self.origin_x.clone(), self.n.shape[0])
        for into, out_of in (
            (other.n, self.n),
            (other.total_x, self.total_y),
            (other.total_y, self.total_x),
            (other.square_x, self.square_y),
            (other.square_y, self.square_x),
            (other.cross, rearrange(self.cross, "fold layer_x d_x layer_y d_y -> fold layer_y d_y layer_x d_x")),
            (other.size_x, self.size_y),
            (other.size_y, self.size_x),
            (other.norms_xx, self.norms_yy),
            (other.norms_yy, self.norms_xx),
            (other.norms_xy, self.norms_xy.T),
            (other.weighted_xx, self.weighted_yy),
            (other.weighted_yy, self.weighted_xx),
            (other.weighted_xy, rearrange(self.weighted_yx, "layer_x layer_y d_y -> layer_y d_y layer_x")),
            (other.weighted_yx, rearrange(self.weighted_xy, "layer_x d_x layer_y -> layer_y layer_x d_x")),
        ):
            into.copy_(out_of)
        return other

    def terms(self) -> PairTerms:
        """Return what CKA needs of every pair: the sums about the mean of all rows."""
        n, s_x, s_y = int(self.n.sum()), self.total_x.sum(0), self.total_y.sum(0)
        p, q = -s_x / n, -s_y / n
        (layer_x, _), (layer_y, _) = s_x.shape, s_y.shape
        products, between = s_x.new_zeros(layer_x, layer_y), s_x.new_zeros(layer_x, layer_y)
        for i in range(layer_x):
            for j in range(layer_y):
                M = self.cross[:, i, :, j].sum(0)
                products[i, j] = (M + torch.outer(p[i], s_y[j])).square().sum()
                between[i, j] = p[i] @ M @ q[j]
        square_x, square_y = self.square_x.sum(0), self.square_y.sum(0)
        return PairTerms(
            n=n,
            products_xy=products,
            products_xx=(square_x + torch.einsum("ld,le->lde", p, s_x)).square().sum((1, 2)),
            products_yy=(square_y + torch.einsum("ld,le->lde", q, s_y)).square().sum((1, 2)),
            norms_xy=self._moved_norms(p, q, between),
            norms_xx=_moved_own(self.norms_xx, self.weighted_xx, square_x, s_x, self.size_x, n, p)[0],
            norms_yy=_moved_own(self.norms_yy, self.weighted_yy, square_y, s_y, self.size_y, n, q)[0],
            size_x=self.size_x + (s_x * p).sum(1),
            size_y=self.size_y + (s_y * q).sum(1),
        )

    def x_fold_sums(self) -> Iterator[FoldSums]:
        """Yield each layer of x as ridge regression takes it."""
        for layer in range(self.origin_x.shape[0]):
            yield FoldSums(self.n, self.total_x[:, layer], self.square_x[:, layer])

    def y_targets(self) -> Iterator[TargetSums]:
        """Yield each layer of y as ridge regression predicts it."""
        for layer in range(self.origin_y.shape[0]):
            yield FoldSums(self.n, self.total_y[:, layer], self.square_y[:, layer]).as_target()

    @property
    def n_layers_x(self) -> int:
        """How many layers x has."""
        return self.origin_x.shape[0]

    @property
    def layers_at_once(self) -> int:
        """How many layers of x `crosses` should be given at a time."""
        return 1

    def crosses(self, layers: range) -> Iterator[Float[Tensor, "fold layer d_sender d_receiver"]]:
        """Yield for each layer of y the products of some layers of x with it, over each fold's rows."""
        for layer_y in range(self.origin_y.shape[0]):
            yield self.cross[:, layers.start : layers.stop, :, layer_y]

    def _moved_norms(
        self,
        p: Float[Tensor, "layer_x d_sender"],
        q: Float[Tensor, "layer_y d_receiver"],
        between: Float[Tensor, "layer_x layer_y"],
    ) -> Float[Tensor, "layer_x layer_y"]:
        """Return a.b of rows moved by p and q, where `between` is p'X'Y q."""
        pp, qq = p.square().sum(1), q.square().sum(1)
        xp, yq = (self.total_x.sum(0) * p).sum(1), (self.total_y.sum(0) * q).sum(1)
        return (
            self.norms_xy
            + 2 * torch.einsum("lme,me->lm", self.weighted_yx, q)
            + 2 * torch.einsum("ldm,ld->lm", self.weighted_xy, p)
            + 4 * between
            + pp[:, None] * (self.size_y + 2 * yq)
            + (self.size_x + 2 * xp)[:, None] * qq
            + self.n.sum() * pp[:, None] * qq
        )


def empty_sums(
    origin_x: Float[Tensor, "layer_x d_sender"], origin_y: Float[Tensor, "layer_y d_receiver"], folds: int
) -> LayerSums:
    """Return sums over no rows.

    >>> int(empty_sums(torch.zeros(2, 3).double(), torch.zeros(1, 4).double(), folds=5).n.sum())
    0
    """
    (layer_x, d_x), (layer_y, d_y) = origin_x.shape, origin_y.shape

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=origin_x.device)

    return LayerSums(
        origin_x=origin_x,
        origin_y=origin_y,
        n=torch.zeros(folds, dtype=torch.int64, device=origin_x.device),
        total_x=zeros(folds, layer_x, d_x),
        total_y=zeros(folds, layer_y, d_y),
        square_x=zeros(folds, layer_x, d_x, d_x),
        square_y=zeros(folds, layer_y, d_y, d_y),
        cross=zeros(folds, layer_x, d_x, layer_y, d_y),
        size_x=zeros(layer_x),
        size_y=zeros(layer_y),
        norms_xx=zeros(layer_x),
        norms_yy=zeros(layer_y),
        norms_xy=zeros(layer_x, layer_y),
        weighted_xx=zeros(layer_x, d_x),
        weighted_yy=zeros(layer_y, d_y),
        weighted_xy=zeros(layer_x, d_x, layer_y),
        weighted_yx=zeros(layer_x, layer_y, d_y),
    )


def bytes_of_sums(n_x: int, d_x: int, n_y: int, d_y: int, folds: int) -> int:
    """Return the bytes of the matrices of `empty_sums` for so many layers of these widths.

    >>> bytes_of_sums(31, 576, 31, 576, folds=1) / 1e9 < 2.8
    True
    """
    return 8 * folds * (n_x * n_y * d_x * d_y + n_x * d_x**2 + n_y * d_y**2)


def _moved_square(
    square: Float[Tensor, "fold layer d_model d_model"],
    total: Float[Tensor, "fold layer d_model"],
    n: Int[Tensor, " fold"],
    p: Float[Tensor, "layer d_model"],
) -> Float[Tensor, "fold layer d_model d_model"]:
    """Return the products X'X of rows moved by p."""
    crossed = torch.einsum("fld,le->flde", total, p)
    return square + crossed + crossed.mT + n[:, None, None, None] * torch.einsum("ld,le->lde", p, p)


def _moved_own(
    norms: Float[Tensor, " layer"],
    weighted: Float[Tensor, "layer d_model"],
    square: Float[Tensor, "layer d_model d_model"],
    total: Float[Tensor, "layer d_model"],
    size: Float[Tensor, " layer"],
    n: Int[Tensor, ""] | int,
    p: Float[Tensor, "layer d_model"],
) -> tuple[Float[Tensor, " layer"], Float[Tensor, "layer d_model"]]:
    """Return a.a and X'a of rows moved by p."""
    pp, along = p.square().sum(1), (total * p).sum(1)
    stretched = torch.einsum("lde,le->ld", square, p)
    moved_norms = (
        norms + 4 * (weighted * p).sum(1) + 4 * (stretched * p).sum(1) + 2 * pp * (size + 2 * along) + n * pp.square()
    )
    moved_weighted = weighted + 2 * stretched + pp[:, None] * total + (size + 2 * along + n * pp)[:, None] * p
    return moved_norms, moved_weighted
