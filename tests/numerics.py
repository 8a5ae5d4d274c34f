"""When two numbers must be the same bits, when the same up to rounding, and how far rounding may go.

The same operations on tensors of the same shapes, strides and dtypes give the same bits: a saved object and the loaded
one, a resumed run and an uninterrupted one, the same seed twice, the parts of a run and the whole. What is computed
another way (a batch and its rows alone, with a cache and without, padded and unpadded, through an identity map) agrees
to rounding only: which kernel a BLAS takes for a shape or a stride differs between processors.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentcomm.models import Model


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits; a NaN equals the same NaN, and 0.0 is not -0.0."""
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return False
    left, right = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (x, y))
    return bool((left == right).all())


def assert_same_bits(x: Tensor, y: Tensor) -> None:
    """Require the same shape, dtype and bits."""
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    if not same_bits(x, y):
        n_different = int((x != y).sum())
        raise AssertionError(f"{n_different} of {x.numel()} entries differ, by at most {_distance(x, y):.3g}")


def assert_saved_bit_for_bit(trained: Any, path: Path) -> None:
    """Require that what has a shape and weights is loaded as it was saved."""
    trained.save(path)
    found = type(trained).load(path)
    assert found.shape == trained.shape
    for name, weight in trained.weights.items():
        assert_same_bits(found.weights[name], weight)


def equal_to_rounding(x: Tensor, y: Tensor, *, terms: int, scale: float | None = None) -> bool:
    """Whether two tensors have the same shape and dtype and |x - y| <= terms * eps * scale in every entry.

    A sum of n products, in whatever order, is off by at most n * eps / 2 * sum |a b| (Higham 2002, section 3.1), so
    that two orders differ by at most n * eps * sum |a b|. NaN agrees with NaN, infinity with the same infinity.

    Args:
        x, y: the same numbers, computed in two ways.
        terms: the length of the sums, added up over the products that follow one another (`forward_terms`).
        scale: the largest size of what is summed; by default that of the results, which is right where nothing
            cancels.
    """
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return False
    bound = _tolerance(x, y, terms, scale)
    return bool(torch.isclose(x.double(), y.double(), rtol=0, atol=bound, equal_nan=True).all())


def assert_equal_to_rounding(x: Tensor, y: Tensor, *, terms: int, scale: float | None = None) -> None:
    """Require the same shape and dtype, and |x - y| <= terms * eps * scale in every entry; see `equal_to_rounding`."""
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    if not equal_to_rounding(x, y, terms=terms, scale=scale):
        bound = _tolerance(x, y, terms, scale)
        raise AssertionError(f"they differ by {_distance(x, y):.3g}, where rounding explains {bound:.3g}")


def forward_terms(model: Model, *, n_forward: int = 1) -> int:
    """The length of the sums, added up, that a state passes from the embedding to the logits: `terms` of such a pass.

    A block sums over d_model (queries, keys and values), over a head, over the context, over all heads, over d_model
    and over the MLP; two norms and the unembedding sum over d_model as well.
    """
    d_model = model.d_model
    block = 5 * d_model + 4 * d_model + 64  # an MLP is at most four times as wide; heads and short contexts fit in 64
    return n_forward * (model.n_layers * block + 2 * d_model)


def _tolerance(x: Tensor, y: Tensor, terms: int, scale: float | None) -> float:
    if not x.is_floating_point():
        return 0.0
    if scale is None:
        finite = [tensor[tensor.isfinite()].abs() for tensor in (x.detach(), y.detach())]
        scale = max((float(tensor.max()) for tensor in finite if tensor.numel()), default=0.0)
    return terms * torch.finfo(x.dtype).eps * scale


def _distance(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).abs().nan_to_num(nan=torch.inf).max())
