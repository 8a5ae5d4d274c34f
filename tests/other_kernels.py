"""Another processor's arithmetic on this one: products and sums whose order depends on shapes, strides and alignment.

`pytest --other-kernels` runs every test under it. A BLAS takes its kernel by the shape, the strides and the alignment
of what it is given, and treats the last rows of a batch in another one; which of these matter differs between
processors. Here all of them do: an inner sum is split at a place that is drawn from them, and the last rows are split
elsewhere. So the same operation on the same layout gives the same bits, and hardly anything else does. Fused attention,
convolutions and matrix decompositions are left as they are.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
ALIGNMENT = 64
"""Bytes of a cache line, which is what an allocation of torch is aligned to."""
TILE = 4
"""Rows that a kernel takes at once; what is left over goes to another one."""


class OtherKernels(TorchDispatchMode):
    """While it is entered, products and reductions of floats are summed in an order drawn from the operands' layout."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kernel, kwargs = KERNELS.get(func), kwargs or {}
        if kernel is None:
            if not torch.is_inference_mode_enabled():  # composite operations have come apart before they get here
                return func(*args, **kwargs)
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if not all(tensor.is_floating_point() for tensor in tensors):
            return func(*args, **kwargs)
        return kernel(func, *args, **kwargs)


def layout(*tensors: Tensor) -> int:
    """A number drawn from shapes, strides, dtypes and the alignment of the first element in memory."""
    facts = [(tuple(t.shape), t.stride(), str(t.dtype), t.data_ptr() % ALIGNMENT) for t in tensors]
    return zlib.crc32(repr(facts).encode())


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for [... m k] and [... k n], the sum over k split in two, the last rows elsewhere than the others."""
    inner, rows = a.shape[-1], a.shape[-2]
    if inner < 2 or not rows:
        return _multiply(a, b)
    drawn, full = layout(a, b), rows - rows % TILE
    whole = [
        _split(part, b, 1 + (drawn + number) % (inner - 1))
        for number, part in enumerate((a[..., :full, :], a[..., full:, :]))
        if part.shape[-2]
    ]
    return whole[0] if len(whole) == 1 else torch.cat(whole, -2)


def _split(a: Tensor, b: Tensor, at: int) -> Tensor:
    left = _multiply(a[..., :at], b[..., :at, :], keep=True)
    return left.add_(_multiply(a[..., at:], b[..., at:, :], keep=True)).to(a.dtype)


def _multiply(a: Tensor, b: Tensor, *, keep: bool = False) -> Tensor:
    """a @ b, in float32 at least as a BLAS sums halves; `keep` leaves it there."""
    short = a.dtype.itemsize < 4
    wide = (a.float(), b.float()) if short else (a, b)
    out = aten.bmm.default(*wide) if a.ndim == 3 else aten.mm.default(*wide)
    return out.to(a.dtype) if short and not keep else out


def _mm(func: Any, a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b)


def _mv(func: Any, a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b[:, None])[:, 0]


def _dot(func: Any, a: Tensor, b: Tensor) -> Tensor:
    return _product(a[None], b[:, None])[0, 0]


def _added(multiply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """beta * x + alpha * product."""

    def kernel(func: Any, x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        product = multiply(func, a, b)
        product = product if alpha == 1 else alpha * product
        return product if beta == 0 else (x if beta == 1 else beta * x) + product

    return kernel


def _reduced(func: Any, x: Tensor, dims: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """A reduction over some axes of x, summed from another place on."""
    return func(_turned(x, dims), dims, *args, **kwargs)


def _reduced_whole(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return func(_turned(x, None), *args, **kwargs)


def _norm(func: Any, x: Tensor, order: Any = 2, dims: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    return func(_turned(x, dims), order, dims, *args, **kwargs)


def _softmax(func: Any, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    by = _turn(x, dim)
    return func(x.roll(by, dim), dim, *args, **kwargs).roll(-by, dim)


def _layer_norm(func: Any, x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    if len(shape) != 1:
        return func(x, shape, weight, bias, eps)
    by = _turn(x, -1)
    weight, bias = (None if given is None else given.roll(by, -1) for given in (weight, bias))
    out, mean, rstd = func(x.roll(by, -1), shape, weight, bias, eps)
    return out.roll(-by, -1), mean, rstd


def _turn(x: Tensor, dim: int) -> int:
    """By how many places an axis is turned before it is summed: an odd number, so that lanes of two and more change."""
    length = x.shape[dim] if x.ndim else 1
    return 1 + 2 * (layout(x) % max(1, length // 2))


def _turned(x: Tensor, dims: Any) -> Tensor:
    every = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    for dim in every:
        x = x.roll(_turn(x, dim), dim)
    return x


KERNELS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: _mm,
    aten.bmm.default: _mm,
    aten.mv.default: _mv,
    aten.dot.default: _dot,
    aten.addmm.default: _added(_mm),
    aten.baddbmm.default: _added(_mm),
    aten.addmv.default: _added(_mv),
    aten.sum.default: _reduced_whole,
    aten.mean.default: _reduced_whole,
    aten.sum.dim_IntList: _reduced,
    aten.mean.dim: _reduced,
    aten.var.correction: _reduced,
    aten.std.correction: _reduced,
    aten.linalg_vector_norm.default: _norm,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten.native_layer_norm.default: _layer_norm,
}
