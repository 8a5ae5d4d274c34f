"""What a map of all layer pairs gives for rows that share nothing: cell by cell, and its largest value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import StoredRows
from latentcomm.similarity.layer_maps.permutations import Pairing
from latentcomm.similarity.nulls import Null, fewest_rows

__all__ = ["NullMaps", "null_maps"]

LayersX = Float[Tensor, "layer_x row d_sender"] | Sequence[Float[Tensor, "row _"]] | Sequence[StoredRows]
"""The same rows at each layer of x, in memory or in files."""
LayersY = Float[Tensor, "layer_y row d_receiver"] | Sequence[Float[Tensor, "row _"]] | Sequence[StoredRows]
"""The same rows at each layer of y, in memory or in files."""
MeasureMap = Callable[[list[Tensor], list[Tensor]], Float[Tensor, "layer_x layer_y"]]
"""Gives all pairs of layers at once."""


@dataclass(frozen=True, eq=False)
class NullMaps:
    """The maps of unrelated rows, one a draw, of at least `rows` rows and widths `dims`."""

    kind: str
    rows: int
    dims: tuple[int, int]
    values: Float[Tensor, "draw layer_x layer_y"]

    @property
    def mean(self) -> Float[Tensor, "layer_x layer_y"]:
        """The mean over the draws, cell by cell."""
        return self.values.mean(0)

    def quantile(self, share: float) -> Float[Tensor, "layer_x layer_y"]:
        """Return the value of each cell that this share of its draws stays below, interpolated between them."""
        return torch.quantile(self.values, share, dim=0)

    def p_values(self, observed: Float[Tensor, "layer_x layer_y"]) -> Float[Tensor, "layer_x layer_y"]:
        """Return for each cell the share of its draws that reach the observed value, that counted among them.

        For ONE cell named beforehand. The null of a map's largest cell is `.maximum`.
        """
        return (1 + (self.values >= observed).sum(0)).double() / (1 + len(self.values))

    @property
    def maximum(self) -> Null:
        """The null of the LARGEST cell: what the best pair of layers of unrelated models gives.

        A best pair picked among many is high by chance; one pair's null is too low for it.

        Source: for calibrating the selected maximum, arXiv:2602.14486.
        """
        largest = self.values.flatten(1).max(1).values
        return Null(self.kind, self.rows, self.dims, tuple(largest.tolist()), over=self.values[0].numel())


def null_maps(
    measure_map: MeasureMap, x_layers: LayersX, y_layers: LayersY, pairings: Sequence[Pairing], *, kind: str
) -> NullMaps:
    """Return the map of each pairing: the null of every cell and, in `.maximum`, of the best cell.

    It costs a map a draw; `MinibatchPairs` on a few thousand rows is enough for debiased CKA, whose null widens as rows
    get fewer (so that fewer rows here than in the map are the careful side).

    Raises:
        ValueError: no pairing, or as `measure_map`.

    >>> from latentcomm.similarity.layer_maps.exact import LayerPairs
    >>> from latentcomm.similarity.layer_maps.permutations import shuffled_rows
    >>> layers = torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(0))
    >>> def measure_map(x, y):
    ...     return LayerPairs(folds=1).update(x, y).debiased_cka()
    >>> found = null_maps(measure_map, layers, layers, shuffled_rows(30, draws=3), kind="shuffled rows")
    >>> found.mean.shape, found.maximum.over, found.maximum.mean > float(found.mean.max())
    (torch.Size([3, 3]), 9, True)
    """
    rows = fewest_rows(pairings)
    values = []
    for pairing in pairings:
        x = [layer[pairing.rows] for layer in x_layers]
        values.append(measure_map(x, [layer[pairing.partners] for layer in y_layers]).to("cpu", torch.float64))
    return NullMaps(kind, rows, (x_layers[0].shape[1], y_layers[0].shape[1]), torch.stack(values))
