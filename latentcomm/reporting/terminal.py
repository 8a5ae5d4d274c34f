"""Tables on the terminal, and how shares and p-values are printed."""

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def console(width: int) -> Console:
    """The console of tables: as wide as the terminal, or of this width without one."""
    return Console(width=None if sys.stdout.isatty() else width)


def print_table(
    rows: Sequence[Mapping[str, str]],
    console: Console,
    *,
    text: Collection[str] = ("channel",),
    wrapped: Collection[str] = (),
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Print rows of cells by their column's head: columns of text to the left, numbers to the right.

    A cell is never broken, unless its column is among `wrapped`.

    >>> print_table([{"channel": "text", "free": "0.50"}], Console(width=40))
    ┏━━━━━━━━━┳━━━━━━┓
    ┃ channel ┃ free ┃
    ┡━━━━━━━━━╇━━━━━━┩
    │ text    │ 0.50 │
    └─────────┴──────┘
    """
    table = Table(title=title, caption=caption)
    for head in rows[0]:
        table.add_column(head, justify="left" if head in text else "right", no_wrap=head not in wrapped)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def interval(row: Mapping[Any, Any]) -> str:
    """The accuracy of a table's row with its interval.

    >>> interval({"accuracy": 0.5, "low": 0.3125, "high": 0.6875})
    '0.50 [0.31, 0.69]'
    """
    return f"{row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def accuracy(row: Mapping[Any, Any] | None) -> str:
    """The accuracy of a table's row alone, nothing where there is no such row.

    >>> accuracy({"accuracy": 0.5}), accuracy(None)
    ('0.50', '')
    """
    return "" if row is None else f"{row['accuracy']:.2f}"


def p_value(value: float) -> str:
    """A p-value with one significant digit, a dash where there is none.

    >>> p_value(0.0312), p_value(float("nan"))
    ('0.03', '-')
    """
    return "-" if math.isnan(value) else f"{value:.1g}"


def parts(cells: Sequence[str]) -> str:
    """Several numbers in one cell, nothing where there are none at either end.

    >>> parts(["0.50", "0.25"]), parts(["", ""])
    ('0.50 / 0.25', '')
    """
    return " / ".join(cells).strip(" /")
