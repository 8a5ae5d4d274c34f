"""NumPy arrays, and rows in files, where tensors are taken."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["StoredRows", "in_memory", "takes_arrays"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows of one layer in files of tensors: `[rows]` reads those that a slice, a mask or numbers name, `[:]` all.

    A file is mapped into memory, so that nothing else of it is read. Functions of rows take this as they take a tensor,
    and hold the rows while they run.

    Attributes:
        files: in order.
        bounds: the first row of each file, and the number of rows.
        width: how wide they are.
        dtype: what they are read as.
        name: the tensor in each file.
        layer: which layer of that tensor, or None where it is of one layer.
    """

    files: tuple[Path, ...]
    bounds: tuple[int, ...]
    width: int
    dtype: torch.dtype
    name: str
    layer: int | None = None

    def __len__(self) -> int:
        return self.bounds[-1]

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        rows = torch.arange(len(self))[at].contiguous()
        found = torch.empty(len(rows), self.width, dtype=self.dtype)
        part = torch.bucketize(rows, torch.tensor(self.bounds[1:]), right=True)
        for number in part.unique().tolist():
            mine = part == number
            states = mapped_tensor(self.files[number], self.name)
            found[mine] = (states if self.layer is None else states[self.layer])[rows[mine] - self.bounds[number]]
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of dimensions."""
        return len(self), self.width

    @property
    def device(self) -> torch.device:
        """Where they are read to: the CPU."""
        return torch.device("cpu")


def mapped_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file that was verified before, mapped into memory."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def in_memory(rows: Tensor | StoredRows) -> Tensor:
    """Rows as a tensor: those in files are read.

    >>> in_memory(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    return rows[:] if isinstance(rows, StoredRows) else rows


def takes_arrays(function: F) -> F:
    """Let a function of tensors take NumPy arrays of numbers as well, as copies on the CPU, and rows in files.

    >>> takes_arrays(lambda x: x.shape)(np.zeros((2, 3)))
    torch.Size([2, 3])
    """

    @functools.wraps(function)
    def taking(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_tensor, args), **{name: _tensor(value) for name, value in kwargs.items()})

    return taking  # pyright: ignore[reportReturnType]


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    return value[:] if isinstance(value, StoredRows) else value
