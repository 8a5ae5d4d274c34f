"""Rows that do not fit into the memory of a device together run in halves, and their cost is that of one piece."""

import gc
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch

from latentcomm._core.progress import say
from latentcomm.models.base import counted_if_whole

__all__ = ["in_halves"]

Row = TypeVar("Row")
Made = TypeVar("Made")


def in_halves(run: Callable[[Sequence[Row]], Made], rows: Sequence[Row], what: str) -> list[Made]:
    """What `run` makes of all rows or, where the device runs out of memory, of their halves, in order.

    A half that does not fit either is halved again. Of passes that ended for lack of memory none stays on record
    (`recorded_passes`). That `what` runs in halves is printed on standard error, once in a process.

    Raises:
        torch.OutOfMemoryError: one row alone does not fit.

    >>> in_halves(sum, [1, 2, 3], "a sum")
    [6]
    """
    try:
        with counted_if_whole():
            return [run(rows)]
    except torch.OutOfMemoryError:
        if len(rows) < 2:
            raise
    if torch.cuda.is_initialized():  # here, where no traceback holds the tensors of the pass any more
        gc.collect()
        torch.cuda.empty_cache()
    _say_once(what)
    middle = len(rows) // 2
    return [*in_halves(run, rows[:middle], what), *in_halves(run, rows[middle:], what)]


@lru_cache
def _say_once(what: str) -> None:
    say(f"{what} does not fit into the memory of the device and runs in halves: the same results, more passes")
