"""The unbiased Hilbert-Schmidt independence criterion, from Gram matrices or from sums over centred rows."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "alignment_ratio",
    "gram_products",
    "gram_squares",
    "hsic1_from_grams",
    "hsic1_of_centred",
    "squared_products",
]

ZERO_HSIC = 1e-12
"""An unbiased HSIC of a set with itself below this share of its biased one is rounding."""
LEAST_ROWS = 4
"""The unbiased estimator divides by n - 3."""
SUM_ENTRIES = 2**14
"""Entries of Gram matrices whose products are summed in their own dtype before the sum continues in float64: float32
sums of a million entries are off by 2e-5."""


def hsic1_from_grams(K: Float[Tensor, "row row"], L: Float[Tensor, "row row"]) -> Float[Tensor, ""]:
    """Return the unbiased HSIC of two Gram matrices; their diagonals are never read.

    With ~ for a zeroed diagonal: [tr K~L~ + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1] / (n(n-3)).

    Source: Song et al. 2012, "Feature selection via dependence maximization" (JMLR 13), equation 5.

    >>> points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [8.0]], dtype=torch.float64)
    >>> round(float(hsic1_from_grams(points @ points.T, points @ points.T)), 6)
    165.166667
    """
    n = K.shape[0]
    K, L = K.to(torch.float64), L.to(torch.float64)
    k_rows, l_rows = K.sum(1) - K.diagonal(), L.sum(1) - L.diagonal()
    trace = (K * L).sum() - (K.diagonal() * L.diagonal()).sum()
    total = k_rows.sum() * l_rows.sum() / ((n - 1) * (n - 2))
    return (trace + total - 2 * (k_rows @ l_rows) / (n - 2)) / (n * (n - 3))


def hsic1_of_centred(
    products: Float[Tensor, "*pair"],
    norms: Float[Tensor, "*pair"],
    size_x: Float[Tensor, "*layer_x"],
    size_y: Float[Tensor, "*layer_y"],
    n: int,
) -> Float[Tensor, "*pair"]:
    """Return the unbiased HSIC of linear kernels of CENTRED rows, for one pair or a whole map of pairs.

    `products` is |X'Y|_F^2 = tr KL, `norms` is a.b of the squared row norms, `size_x` and `size_y` their sums (which
    must broadcast to a pair). Centred rows have K1 = 0, so the row sums of K with a zeroed diagonal are -a, and the
    formula is [|X'Y|^2 - a.b + sum a sum b / ((n-1)(n-2)) - 2/(n-2) a.b] / (n(n-3)).

    >>> points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [8.0]], dtype=torch.float64) - 3.8
    >>> a = points.square().sum(1)
    >>> round(float(hsic1_of_centred((points.T @ points).square().sum(), a @ a, a.sum(), a.sum(), 5)), 6)
    165.166667
    """
    sizes = size_x * size_y / ((n - 1) * (n - 2))
    return (products - norms + sizes - 2 * norms / (n - 2)) / (n * (n - 3))


def squared_products(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row d_receiver"]) -> Float[Tensor, ""]:
    """Return |X'Y|_F^2 = tr(XX' YY'), through the d x d product or the two n x n ones, whichever is cheaper.

    >>> squared_products(torch.eye(2), 2 * torch.eye(2))
    tensor(8.)
    """
    n, d_x, d_y = x.shape[0], x.shape[1], y.shape[1]
    if n * (d_x + d_y) < d_x * d_y:
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def gram_products(
    K: Float[Tensor, "layer_x row column"], L: Float[Tensor, "layer_y row column"]
) -> Float[Tensor, "layer_x layer_y"]:
    """Return the sum of K_ij L_ij for every pair of layers, in float64 but for parts of SUM_ENTRIES.

    >>> gram_products(torch.ones(1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[10.]], dtype=torch.float64)
    """
    parts = zip(_in_parts(K), _in_parts(L), strict=True)
    return torch.stack([(one @ other.mT).double().sum(0) for one, other in parts]).sum(0)


def gram_squares(K: Float[Tensor, "layer row column"]) -> Float[Tensor, " layer"]:
    """Return the sum of K_ij^2 for every layer, in float64 but for parts of SUM_ENTRIES.

    >>> gram_squares(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).round(decimals=5)
    tensor([30.], dtype=torch.float64)
    """
    return torch.stack([torch.linalg.vector_norm(part, dim=2).double().square().sum(0) for part in _in_parts(K)]).sum(0)


def _in_parts(K: Float[Tensor, "layer row column"]) -> list[Float[Tensor, "part layer entry"]]:
    """Return the entries of Gram matrices in parts of SUM_ENTRIES, and what is left as a part of its own."""
    flat = rearrange(K, "layer row column -> layer (row column)")
    whole = flat.shape[1] // SUM_ENTRIES * SUM_ENTRIES
    return [
        rearrange(flat[:, :whole], "layer (part entry) -> part layer entry", entry=SUM_ENTRIES),
        flat[:, whole:][None],
    ]


def alignment_ratio(
    xy: Float[Tensor, "*pair"],
    xx: Float[Tensor, "*layer_x"],
    yy: Float[Tensor, "*layer_y"],
    floor_x: Float[Tensor, "*layer_x"],
    floor_y: Float[Tensor, "*layer_y"],
) -> Float[Tensor, "*pair"]:
    """Return xy / sqrt(xx yy), refusing a denominator that is zero but for rounding.

    `floor_x` and `floor_y` are the biased counterparts of `xx` and `yy` on the same scale: what is under `ZERO_HSIC` of
    them is rounding. Nothing is clamped: a debiased ratio may be negative.

    Raises:
        ValueError: the rows of a side are all equally similar to each other, so that there is nothing to align.

    >>> one = torch.tensor(1.0)
    >>> alignment_ratio(one, one, 4 * one, one, one)
    tensor(0.5000)
    """
    for own, floor, name in ((xx, floor_x, "x"), (yy, floor_y, "y")):
        if bool((own <= ZERO_HSIC * floor).any()):
            raise ValueError(
                f"the rows of {name} are all equally similar to each other; give more rows, or rows that differ more"
            )
    return xy / (xx.sqrt() * yy.sqrt())
