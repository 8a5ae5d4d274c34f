"""What every similarity asks of its rows before it computes anything."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.linalg import require_finite

__all__ = ["LEAST_WIDTH", "require_pair", "require_rows", "require_varied"]

LEAST_WIDTH = 2
"""A single dimension has no geometry: cosines are plus or minus 1, and CKA and CCA are a squared correlation."""
COLUMNS_NAMED = 5
"""How many constant columns an error lists before it only counts them: a sentence must stay readable."""


def require_pair(
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row d_receiver"],
    *,
    least_rows: int,
    least_width: int = LEAST_WIDTH,
    why: str = "",
) -> None:
    """Refuse row-paired sets that a similarity cannot be computed from; each sentence names the set and the number.

    Raises:
        ValueError: fewer than `least_rows` rows (`why` is said after the number), a width below `least_width`, NaN or
            infinite rows, rows that are all equal, or a column that is constant.

    >>> require_pair(torch.eye(3), torch.eye(3), least_rows=4, why="to leave out the diagonal")
    Traceback (most recent call last):
        ...
    ValueError: 3 rows are too few; give at least 4 to leave out the diagonal
    """
    require_rows(x.shape[0], least_rows, why)
    for rows, name in ((x, "x"), (y, "y")):
        if rows.shape[1] < least_width:
            raise ValueError(f"{name} is {rows.shape[1]} wide; a similarity of spaces needs a width of {least_width}")
        require_finite(rows, name)
        low, high = torch.aminmax(rows, dim=0)
        require_varied(low, high, name)


def require_rows(n_rows: int, least_rows: int, why: str = "") -> None:
    """Refuse too few rows, saying how many are needed.

    Raises:
        ValueError: fewer than `least_rows` rows.

    >>> require_rows(3, 3)
    """
    if n_rows < least_rows:
        raise ValueError(f"{n_rows} rows are too few; give at least {least_rows}{' ' if why else ''}{why}")


def require_varied(low: Float[Tensor, " d_model"], high: Float[Tensor, " d_model"], name: str) -> None:
    """Refuse columns whose lowest and highest entries are equal, naming them (from 0).

    Raises:
        ValueError: all columns are constant, so that all rows are equal, or some are.

    >>> require_varied(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]), "y")
    Traceback (most recent call last):
        ...
    ValueError: y is constant in column 1; leave it out of the rows, it holds no information
    """
    constant = (low == high).nonzero().flatten().tolist()
    if not constant:
        return
    if len(constant) == low.shape[0]:
        raise ValueError(f"all rows of {name} are equal; give rows that differ, or nothing can be compared")
    where = ("column " if len(constant) == 1 else "columns ") + ", ".join(map(str, constant[:COLUMNS_NAMED]))
    more = f" and {len(constant) - COLUMNS_NAMED} more" if len(constant) > COLUMNS_NAMED else ""
    what = "it holds" if len(constant) == 1 else "they hold"
    which = "it" if len(constant) == 1 else "them"
    raise ValueError(f"{name} is constant in {where}{more}; leave {which} out of the rows, {what} no information")
