"""Centred kernel alignment: linear and RBF, biased and debiased, exact and by minibatches."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import centred
from latentcomm.similarity.checks import require_pair
from latentcomm.similarity.hsic import (
    LEAST_ROWS,
    alignment_ratio,
    hsic1_from_grams,
    hsic1_of_centred,
    squared_products,
)

__all__ = ["BATCH_ROWS", "debiased_cka", "linear_cka", "minibatch_debiased_cka", "minibatch_linear_cka", "rbf_cka"]

BATCH_ROWS = 512
"""Rows of a minibatch: its Gram matrix of 1 MB in float32 stays in a processor's cache."""


@takes_arrays
def linear_cka(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"]) -> float:
    """Return the BIASED linear CKA, |X_c'Y_c|_F^2 / (|X_c'X_c|_F |Y_c'Y_c|_F), in [0, 1].

    It rises with width over rows for any data: about 0.8 for independent Gaussian data of 8 rows and 32 and 48
    dimensions. Use `debiased_cka` unless you compare with a published biased number.

    Source: Kornblith et al. 2019, arXiv:1905.00414.

    Raises:
        ValueError: fewer than 3 rows (2 always give 1), a width below 2, NaN or infinite rows, or constant columns.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(linear_cka(rows, 3 * rows + 1), 6)
    1.0
    """
    require_pair(x, y, least_rows=3, why="(2 rows always give 1)")
    xy, xx, yy = _biased_sums(centred(x)[0], centred(y)[0])
    return float(xy / (xx * yy).sqrt())


@takes_arrays
def debiased_cka(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"]) -> float:
    """Return the debiased linear CKA: HSIC1(K, L) / sqrt(HSIC1(K, K) HSIC1(L, L)) with K = XX', L = YY'.

    HSIC1 is the unbiased estimator (`latentcomm.similarity.hsic`), so that independent data give 0 on average, and
    negative values as often as positive ones: they are not clipped. It does not protect against outliers: a single
    attention sink can decide it (`latentcomm.similarity.views`).

    Source: Song et al. 2012 for HSIC1; Nguyen et al. 2021, arXiv:2010.15327, for its use in CKA.

    Raises:
        ValueError: fewer than 4 rows, a width below 2, NaN or infinite rows, constant columns, or rows of one side that
            are all equally similar to each other.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> noise = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    >>> debiased = debiased_cka(rows, noise)
    >>> round(debiased_cka(rows, rows), 6), round(debiased, 3), round(linear_cka(rows, noise), 3)
    (1.0, -0.056, 0.144)
    """
    require_pair(x, y, least_rows=LEAST_ROWS, why="for the unbiased estimator")
    return float(alignment_ratio(*_debiased_sums(centred(x)[0], centred(y)[0])))


@takes_arrays
def minibatch_linear_cka(
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row_y d_receiver"],
    *,
    batch_rows: int = BATCH_ROWS,
    seed: int = 0,
) -> float:
    """Return the biased linear CKA with its three terms summed over minibatches of shuffled rows before the ratio.

    Its bias is that of `batch_rows` rows, not of all: it does not converge to `linear_cka`. It is here to compare with
    published numbers; use `minibatch_debiased_cka`.

    Raises:
        ValueError: as `linear_cka`, or fewer than 3 rows a batch.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(minibatch_linear_cka(rows, rows, batch_rows=10), 6)
    1.0
    """
    require_pair(x, y, least_rows=3, why="(2 rows always give 1)")
    batches = _batches(x, y, batch_rows, seed, least=3)
    xy, xx, yy = torch.stack([torch.stack(_biased_sums(*batch)) / batch[0].shape[0] for batch in batches]).sum(0)
    return float(xy / (xx * yy).sqrt())


@takes_arrays
def minibatch_debiased_cka(
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row_y d_receiver"],
    *,
    batch_rows: int = BATCH_ROWS,
    seed: int = 0,
) -> float:
    """Return the debiased CKA with the three HSIC1 summed over minibatches before the ratio (never a mean of ratios).

    Rows are shuffled first, so that a batch holds rows of many documents: batches of one document measure something
    else (0.73 instead of 0.60 for two layers of SmolLM2). Batches are of equal size but for one row, about
    `batch_rows`, and weigh by their rows; no row is left out. Unlike the biased one, it estimates what all rows
    together give.

    Source: Nguyen et al. 2021, arXiv:2010.15327.

    Raises:
        ValueError: as `debiased_cka`, or fewer than 4 rows a batch.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(minibatch_debiased_cka(rows, rows, batch_rows=10), 6)
    1.0
    """
    require_pair(x, y, least_rows=LEAST_ROWS, why="for the unbiased estimator")
    batches = _batches(x, y, batch_rows, seed, least=LEAST_ROWS)
    sums = [torch.stack(_debiased_sums(*batch)) * batch[0].shape[0] for batch in batches]
    return float(alignment_ratio(*torch.stack(sums).sum(0)))


@takes_arrays
def rbf_cka(
    x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"], *, bandwidth: float | int = 1.0
) -> float:
    """Return the debiased CKA of Gaussian kernels exp(-d^2 / (2 s^2)), s^2 = bandwidth^2 times the median of d^2.

    d is the Euclidean distance of two rows; the median is over all pairs of different rows, of each side its own. Large
    bandwidths make it `debiased_cka`. It holds four n x n matrices in float64: 32 n^2 bytes, 3 GB at 10,000 rows.

    Source: Kornblith et al. 2019, arXiv:1905.00414 (bandwidths as shares of the median distance); debiased as above.

    Raises:
        ValueError: a bandwidth that is not positive; more than half of the pairs of rows equal, so that the median is
            0; or as `debiased_cka`.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(rbf_cka(rows, 3 * rows + 1), 6)
    1.0
    """
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth is {bandwidth}; it is a positive multiple of the median distance, 1 by default")
    require_pair(x, y, least_rows=LEAST_ROWS, why="for the unbiased estimator")
    K, L = _gaussian_gram(x, bandwidth, "x"), _gaussian_gram(y, bandwidth, "y")
    scale = torch.tensor(1.0 / x.shape[0] ** 2, dtype=torch.float64, device=x.device)
    xy, xx, yy = hsic1_from_grams(K, L), hsic1_from_grams(K, K), hsic1_from_grams(L, L)
    return float(alignment_ratio(xy, xx, yy, scale, scale))


def _biased_sums(
    x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row d_receiver"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return tr KL, tr KK, tr LL of centred rows."""
    return squared_products(x, y), squared_products(x, x), squared_products(y, y)


def _debiased_sums(
    x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row d_receiver"]
) -> tuple[Float[Tensor, ""], ...]:
    """Return the HSIC1 of xy, xx and yy of centred rows, and the biased xx and yy on the same scale."""
    n, a, b = x.shape[0], x.square().sum(1), y.square().sum(1)
    biased = _biased_sums(x, y)
    return (
        hsic1_of_centred(biased[0], a @ b, a.sum(), b.sum(), n),
        hsic1_of_centred(biased[1], a @ a, a.sum(), a.sum(), n),
        hsic1_of_centred(biased[2], b @ b, b.sum(), b.sum(), n),
        biased[1] / n**2,
        biased[2] / n**2,
    )


def _batches(
    x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row d_receiver"], batch_rows: int, seed: int, *, least: int
) -> Iterator[tuple[Float[Tensor, "batch d_sender"], Float[Tensor, "batch d_receiver"]]]:
    """Yield shuffled batches, each centred in float64, of about `batch_rows` rows and equal but for one."""
    if batch_rows < least:
        raise ValueError(f"batch_rows is {batch_rows}; a batch needs at least {least} rows")
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(seed)).to(x.device)
    for rows in order.tensor_split(max(1, x.shape[0] // batch_rows)):
        yield centred(x[rows])[0], centred(y[rows])[0]


def _gaussian_gram(rows: Float[Tensor, "row d_model"], bandwidth: float | int, name: str) -> Float[Tensor, "row row"]:
    """Return the Gaussian kernel of all pairs of rows."""
    wide = centred(rows)[0]
    norms = wide.square().sum(1)
    squared = norms[:, None] + norms - 2 * wide @ wide.T
    squared = torch.where(squared < 0, 0.0, squared)  # a square below zero is rounding: the rows are equal
    above = torch.ones_like(squared, dtype=torch.bool).triu(1)
    ordered = squared[above].sort().values  # torch.quantile takes 16 million entries at most
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    if float(median) <= 1e-12 * float(norms.mean()):
        raise ValueError(
            f"half of the pairs of rows of {name} are equal, so their median distance is 0; drop the copies"
        )
    return torch.exp(-squared / (2 * bandwidth**2 * median))
