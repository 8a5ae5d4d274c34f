"""The memory that one piece of work may take besides the weights: stated for a run, or the fixed sizes of the package.

What is planned with it (passes of a sweep, shards, parts, items at once) decides the last digits and the names of
records. So it is a function of the models' sizes and of what is stated, never of what happens to be free.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["at_most", "budget", "parse_bytes", "within"]

UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_BUDGET: ContextVar[int | None] = ContextVar("budget", default=None)


def parse_bytes(text: str) -> int:
    """The bytes of a size.

    Raises:
        ValueError: it is no size, or less than one byte.

    >>> parse_bytes("2GB"), parse_bytes("1.5 GiB"), parse_bytes("800")
    (2000000000, 1610612736, 800)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\s*", text)
    n_bytes = 0 if found is None else int(float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2].upper()])
    if n_bytes < 1:
        raise ValueError(f"memory is {text!r}; give a size such as 2GB or 800MiB")
    return n_bytes


@contextmanager
def within(n_bytes: int | None) -> Iterator[None]:
    """A block in which each piece of work is planned to take this many bytes; None plans with the fixed sizes."""
    before = _BUDGET.set(n_bytes)
    try:
        yield
    finally:
        _BUDGET.reset(before)


def budget() -> int | None:
    """The stated bytes, or None.

    >>> with within(2 * 10**9):
    ...     budget()
    2000000000
    """
    return _BUDGET.get()


def at_most(most: int, bytes_of_one: int) -> int:
    """How many at once: `most` of them or, of a stated budget, as many as it holds; at least one.

    >>> with within(100):
    ...     at_most(32, 30), at_most(2, 30), at_most(32, 300)
    (3, 2, 1)
    >>> at_most(32, 300)
    32
    """
    stated = budget()
    return most if stated is None else max(1, min(most, stated // max(1, bytes_of_one)))
