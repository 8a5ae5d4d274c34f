"""NumPy arrays where tensors are taken."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = ["takes_arrays"]

F = TypeVar("F", bound=Callable[..., Any])


def takes_arrays(function: F) -> F:
    """Let a function of tensors take NumPy arrays of numbers as well, as copies on the CPU.

    >>> takes_arrays(lambda x: x.shape)(np.zeros((2, 3)))
    torch.Size([2, 3])
    """

    @functools.wraps(function)
    def taking(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_tensor, args), **{name: _tensor(value) for name, value in kwargs.items()})

    return taking  # pyright: ignore[reportReturnType]


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value
