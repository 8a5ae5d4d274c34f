"""What every similarity requires of its rows before it computes anything."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import StoredRows
from latentcomm._core.linalg import WITHOUT_FLOAT64, require_finite

__all__ = [
    "LEAST_WIDTH",
    "Range",
    "Ranges",
    "ranges_of",
    "require_float64",
    "require_layers",
    "require_pair",
    "require_rows",
    "require_varied",
    "wider_ranges",
]

LEAST_WIDTH = 2
"""A single dimension has no geometry: cosines are plus or minus 1, and CKA and CCA are a squared correlation."""
COLUMNS_NAMED = 5
"""How many constant columns an error lists before it only counts them: a sentence must stay readable."""

Range = tuple[Tensor, Tensor]
"""The lowest and the highest entry of every column of every layer, both [layer d_model]."""


def require_pair(
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row_y d_receiver"],
    *,
    least_rows: int,
    least_width: int = LEAST_WIDTH,
    why: str = "",
) -> None:
    """Refuse row-paired sets that a similarity cannot be computed from; each sentence names the set and the number.

    Raises:
        ValueError: x and y differ in their numbers of rows; fewer than `least_rows` of them (`why` follows the
            number), a width below `least_width`, NaN or infinite rows, rows that are all equal, or a column that is
            constant.

    >>> require_pair(torch.eye(3), torch.eye(3), least_rows=4, why="to leave out the diagonal")
    Traceback (most recent call last):
        ...
    ValueError: 3 rows are too few; give at least 4 to leave out the diagonal
    """
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"x has {x.shape[0]} rows but y {y.shape[0]}; pair them row by row")
    require_float64(x.device)
    require_rows(x.shape[0], least_rows, why)
    for rows, name in ((x, "x"), (y, "y")):
        if rows.shape[1] < least_width:
            raise ValueError(f"{name} is {rows.shape[1]} wide; a similarity of spaces needs a width of {least_width}")
        require_finite(rows, name)
        low, high = torch.aminmax(rows, dim=0)
        require_varied(low, high, name)


def require_rows(n_rows: int, least_rows: int, why: str = "") -> None:
    """Refuse too few rows, with how many are needed.

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


def require_float64(device: str | torch.device) -> None:
    """Refuse a device on which sums cannot be taken in float64.

    Raises:
        ValueError: Apple's MPS, which has no float64.

    >>> require_float64("mps")
    Traceback (most recent call last):
        ...
    ValueError: device mps has no float64, in which sums are taken; use cpu or cuda
    """
    if torch.device(device).type in WITHOUT_FLOAT64:
        raise ValueError(f"device {device} has no float64, in which sums are taken; use cpu or cuda")


def require_layers(
    layers: Float[Tensor, "layer row d_model"] | Sequence[Float[Tensor, "_ _"]] | Sequence[StoredRows], name: str
) -> tuple[int, int, int]:
    """Return how many layers and rows there are and how wide, refusing layers that do not hold the same rows.

    Raises:
        ValueError: no layers, layers of different shapes or dtypes, or a width below 2.

    >>> require_layers([torch.zeros(3, 2), torch.ones(3, 2)], "x")
    (2, 3, 2)
    """
    if len(layers) == 0:
        raise ValueError(f"{name} has no layers; give at least 1")
    shapes = {tuple(layer.shape) for layer in layers}
    if len(shapes) > 1:
        raise ValueError(f"the layers of {name} differ in shape: {sorted(shapes)}; give the same rows and width")
    if len(dtypes := {str(layer.dtype) for layer in layers}) > 1:
        raise ValueError(f"the layers of {name} differ in dtype: {', '.join(sorted(dtypes))}; convert them first")
    ((n_rows, width),) = shapes
    if width < LEAST_WIDTH:
        raise ValueError(f"{name} is {width} wide; a similarity of spaces needs a width of {LEAST_WIDTH}")
    return len(layers), n_rows, width


def ranges_of(
    layers: Float[Tensor, "layer row d_model"] | Sequence[Float[Tensor, "row d_model"]], name: str, known: Range | None
) -> Range:
    """Return the lowest and highest entry of every column seen so far, of at least 1 new row and those `known`.

    Once every column has varied, the range stays as it is: it only decides which columns are constant, and
    new rows cannot change that.

    Raises:
        ValueError: NaN or infinite rows, or another number of layers or another width than known.

    >>> low, high = ranges_of(torch.tensor([[[1.0, 5.0], [2.0, 5.0]]]), "x", None)
    >>> low.tolist(), high.tolist()
    ([[1.0, 5.0]], [[2.0, 5.0]])
    """
    now = (len(layers), layers[0].shape[1])
    if known is not None and now != tuple(known[0].shape):
        before = tuple(known[0].shape)
        raise ValueError(
            f"{name} has {now[0]} layers {now[1]} wide, but {before[0]} layers {before[1]} wide before;"
            " use another accumulator for another pair of models"
        )
    sums = [layers.sum()] if isinstance(layers, Tensor) else [layer.sum() for layer in layers]
    if not all(bool(total.isfinite()) for total in sums):  # cheaper than to search all rows, which is rarely needed
        for number, layer in enumerate(layers):
            require_finite(layer, f"layer {number} of {name}")
    if known is not None and bool((known[0] < known[1]).all()):
        return known
    low, high = torch.stack([layer.amin(0) for layer in layers]), torch.stack([layer.amax(0) for layer in layers])
    return (low, high) if known is None else (torch.minimum(low, known[0]), torch.maximum(high, known[1]))


def wider_ranges(ranges: tuple[Range, ...], more: tuple[Range, ...]) -> tuple[Range, ...]:
    """Return each side's lowest and highest entry of every column over both.

    >>> low, high = wider_ranges(((torch.zeros(1, 1), torch.ones(1, 1)),), ((-torch.ones(1, 1), torch.zeros(1, 1)),))[0]
    >>> low.tolist(), high.tolist()
    ([[-1.0]], [[1.0]])
    """
    if not ranges:
        return more
    return tuple(
        (torch.minimum(low, other_low), torch.maximum(high, other_high))
        for (low, high), (other_low, other_high) in zip(ranges, more, strict=True)
    )


@dataclass(frozen=True)
class Ranges:
    """The range of every column of x and of y over all rows that an accumulator was given; of no rows yet, no side.

    >>> ranges = Ranges().with_rows(torch.tensor([[[1.0, 5.0], [2.0, 5.0]]]), torch.tensor([[[1.0, 3.0], [2.0, 4.0]]]))
    >>> str(ranges)
    '1 layers 2 wide and 1 layers 2 wide'
    >>> ranges.require_varied()
    Traceback (most recent call last):
        ...
    ValueError: layer 0 of x is constant in column 1; leave it out of the rows, it holds no information
    """

    sides: tuple[Range, ...] = ()

    def __str__(self) -> str:
        return " and ".join(f"{n_layers} layers {width} wide" for n_layers, width in self.shapes)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The number of layers and the width of each side."""
        return [(low.shape[0], low.shape[1]) for low, _ in self.sides]

    def with_rows(
        self,
        x: Float[Tensor, "layer_x row_x d_sender"] | Sequence[Float[Tensor, "row_x d_sender"]],
        y: Float[Tensor, "layer_y row_y d_receiver"] | Sequence[Float[Tensor, "row_y d_receiver"]],
    ) -> "Ranges":
        """Return the ranges over these rows too, at least 1.

        Raises:
            ValueError: as `ranges_of`.
        """
        known_x, known_y = self.sides or (None, None)
        first = ranges_of(x, "x", known_x)
        return Ranges((first, first if y is x and known_x is known_y else ranges_of(y, "y", known_y)))

    def merged(self, other: "Ranges") -> "Ranges":
        """Return the ranges over both sets of rows."""
        return Ranges(wider_ranges(self.sides, other.sides))

    def require_varied(self) -> None:
        """Refuse columns that are constant, naming the layer.

        Raises:
            ValueError: as `require_varied`.
        """
        for (low, high), name in zip(self.sides, "xy", strict=True):
            for layer in range(low.shape[0]):
                require_varied(low[layer], high[layer], f"layer {layer} of {name}")
