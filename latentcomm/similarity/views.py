"""What of the residual stream is compared: rows without attention sinks, normalised as the next block reads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm._core.arrays import StoredRows, in_memory, takes_arrays
from latentcomm._core.linalg import require_finite

__all__ = ["ResidualView", "Sinks", "find_sinks", "raw", "residual_view", "rms_normalised", "standardised"]

NORM_LIMIT = 5.0
"""Rows longer than this many medians are sinks: real ones measure 100 and more, ordinary rows stay below 3."""
SINK_POSITIONS = 1
"""The first position of a document is the attention sink of Llama-like models."""

Layers = Float[Tensor, "layer row d_model"] | Sequence[Float[Tensor, "row d_model"]] | Sequence[StoredRows]
"""The same rows at each layer, in memory or in files."""
LayersX = Float[Tensor, "layer_x row_x d_sender"] | Sequence[Float[Tensor, "row_x d_sender"]] | Sequence[StoredRows]
"""The same rows at each layer of x, in memory or in files."""
LayersY = Float[Tensor, "layer_y row_y d_receiver"] | Sequence[Float[Tensor, "row_y d_receiver"]] | Sequence[StoredRows]
"""The same rows at each layer of y, in memory or in files."""
Scaling = Callable[[Float[Tensor, "row _"]], Float[Tensor, "row _"]]
"""What is done to the rows of one layer; `rms_normalised` by default."""


@dataclass(frozen=True)
class Sinks:
    """Which rows are ordinary, and how many are not.

    Attributes:
        keep: True at ordinary rows.
        by_position: rows left out for their position.
        by_norm: further rows left out because they outgrow `norm_limit` medians at some layer.
        by_layer: how many of those each layer saw, in the order of the layers.
        medians: each layer's median norm over rows that their position does not exclude.
        norm_limit: the limit, in medians.
    """

    keep: Bool[Tensor, " row"]
    by_position: int
    by_norm: int
    by_layer: tuple[int, ...]
    medians: tuple[float, ...]
    norm_limit: float


@dataclass(frozen=True)
class ResidualView:
    """Layers of two models ready to compare, the rows they include, the sinks found in each, and what was done to rows.

    `by_position` counts the rows left out for their position on either side, `scaling` names the function. `y_layers`
    is the same object as `x_layers` where both sides were, which spares memory and work.
    """

    x_layers: list[Float[Tensor, "ordinary d_sender"]]
    y_layers: list[Float[Tensor, "ordinary d_receiver"]]
    keep: Bool[Tensor, " row"]
    sinks_x: Sinks
    sinks_y: Sinks
    by_position: int
    scaling: str

    @property
    def left_out(self) -> int:
        """How many rows are left out: sinks of either side."""
        return int((~self.keep).sum())

    @property
    def description(self) -> str:
        """What is compared, as a sentence for the caption of every figure and table of it."""
        return (
            f"{self.scaling.replace('_', ' ')} rows; {self.left_out} of {len(self.keep)} left out as sinks, "
            f"{self.by_position} by position and {self.left_out - self.by_position} by a norm above "
            f"{self.sinks_x.norm_limit:g} medians"
        )


def residual_view(
    x_layers: LayersX,
    y_layers: LayersY,
    *,
    positions: Int[Tensor, " _"],
    positions_y: Int[Tensor, " _"] | None = None,
    norm_limit: float | int = NORM_LIMIT,
    sink_positions: int = SINK_POSITIONS,
    scaling: Scaling | None = None,
) -> ResidualView:
    """Return both sides' layers without the rows that are sinks anywhere, every row scaled.

    Rows are left out together at all layers of both sides, so that they stay paired and every cell of a map rests on
    the same rows. `positions` are those of x and, but for `positions_y`, of y too: two tokenizers count differently.
    `scaling` is `rms_normalised` by default, `standardised` for every dimension at unit variance (which does not
    replace leaving sinks out), or `raw`. Index documents and positions by `.keep` afterwards.

    Raises:
        ValueError: as `find_sinks` and the scaling, or when fewer than 2 rows remain.

    >>> layers = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0))
    >>> layers[:, 0] *= 150
    >>> view = residual_view(layers, layers, positions=torch.arange(40))
    >>> view.left_out, view.sinks_x.by_position, view.sinks_x.by_norm
    (1, 1, 0)
    """
    one_side = y_layers is x_layers and positions_y is None
    counted_y = positions if positions_y is None else positions_y

    def found(side: LayersX | LayersY, counted: Int[Tensor, " _"]) -> Sinks:
        return find_sinks(side, positions=counted, norm_limit=norm_limit, sink_positions=sink_positions)

    sinks_x = found(x_layers, positions)
    sinks_y = sinks_x if one_side else found(y_layers, counted_y)
    if len(sinks_x.keep) != len(sinks_y.keep):
        raise ValueError(f"x has {len(sinks_x.keep)} rows but y {len(sinks_y.keep)}; pair them row by row")
    keep = sinks_x.keep & sinks_y.keep
    if int(keep.sum()) < 2:
        raise ValueError(f"{int(keep.sum())} of {len(keep)} rows are no sinks; capture more text or raise norm_limit")
    scaled = rms_normalised if scaling is None else scaling
    x = [scaled(layer[keep.to(layer.device)]) for layer in x_layers]
    y = x if y_layers is x_layers else [scaled(layer[keep.to(layer.device)]) for layer in y_layers]
    by_position = int(((positions < sink_positions) | (counted_y < sink_positions)).sum())
    return ResidualView(x, y, keep, sinks_x, sinks_y, by_position, getattr(scaled, "__name__", repr(scaled)))


def find_sinks(
    layers: Layers,
    *,
    positions: Int[Tensor, " _"],
    norm_limit: float | int = NORM_LIMIT,
    sink_positions: int = SINK_POSITIONS,
    medians: Sequence[float] | None = None,
) -> Sinks:
    """Return which rows are attention sinks or massive activations, by position AND by norm at any layer.

    `positions` counts each row from its document's start. Rows at the first `sink_positions` are sinks; so is,
    elsewhere, a row longer than `norm_limit` times the median norm of the rows that remain. A few such rows
    among thousands can decide a similarity. Where rows stream, give the `medians` of a first chunk, one a layer.

    Raises:
        ValueError: positions below 0, a limit of at most 1, a negative number of positions, no row past those
            positions, a median that is 0 or not one a layer, or NaN or infinite rows.

    >>> layers = torch.ones(1, 6, 4)
    >>> layers[0, 4] *= 20
    >>> find_sinks(layers, positions=torch.arange(6)).keep.tolist()
    [False, True, True, True, False, True]
    """
    if not norm_limit > 1:
        raise ValueError(f"norm_limit is {norm_limit}; it counts medians, and must be above 1")
    if sink_positions < 0:
        raise ValueError(f"sink_positions is {sink_positions}; give 0 to leave none out by position")
    if len(positions) and int(positions.min()) < 0:
        raise ValueError(f"a position is {int(positions.min())}; count from each document's start, from 0")
    if medians is not None and len(medians) != len(layers):
        raise ValueError(f"{len(medians)} medians for {len(layers)} layers; give one a layer")
    for number, layer in enumerate(layers):
        if layer.shape[0] != len(positions):
            raise ValueError(f"{len(positions)} positions for {layer.shape[0]} rows of layer {number}; give one a row")
    past = (positions >= sink_positions).cpu()
    if not bool(past.any()):
        raise ValueError(f"no row is past the first {sink_positions} positions; capture longer documents")
    long, found, by_layer = torch.zeros_like(past), [], []
    for number, layer in enumerate(map(in_memory, layers)):
        require_finite(layer, f"layer {number}")
        norms = layer.detach().to(torch.float64).norm(dim=1).cpu()
        median = float(norms[past].median()) if medians is None else float(medians[number])
        if not median > 0:
            raise ValueError(f"the median norm of layer {number} is {median:g}; most rows are zero, capture others")
        outgrown = past & (norms > norm_limit * median)
        long |= outgrown
        found.append(median)
        by_layer.append(int(outgrown.sum()))
    return Sinks(past & ~long, int((~past).sum()), int(long.sum()), tuple(by_layer), tuple(found), float(norm_limit))


@takes_arrays
def rms_normalised(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Return each row divided by its root mean square: what a block after an RMS norm reads, except for its gains.

    Computed in float64, returned in the dtype of the rows; no epsilon.

    Raises:
        ValueError: a row of zeros.

    >>> rms_normalised(torch.tensor([[3.0, 4.0, 0.0, 0.0]]))
    tensor([[1.2000, 1.6000, 0.0000, 0.0000]])
    """
    wide = rows.to(torch.float64)
    scale = wide.square().mean(1, keepdim=True).sqrt()
    if zeros := (scale[:, 0] == 0).nonzero().flatten().tolist():
        raise ValueError(f"row {zeros[0]} is zero ({len(zeros)} such rows) and has no direction; leave it out")
    return (wide / scale).to(rows.dtype)


@takes_arrays
def raw(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Return the rows as they are: what a few dimensions and tokens of outlying size decide, sinks left out or not.

    >>> raw(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 4.]])
    """
    return rows


@takes_arrays
def standardised(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Return every dimension with mean 0 and variance 1 over the rows, in the dtype of the rows.

    Raises:
        ValueError: a dimension that is constant.

    >>> standardised(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """
    low, high = torch.aminmax(rows, dim=0)
    if constant := (low == high).nonzero().flatten().tolist():
        raise ValueError(f"dimension {constant[0]} is constant ({len(constant)} such); leave it out before scaling")
    wide = rows.to(torch.float64)
    return ((wide - wide.mean(0)) / wide.std(0, correction=0)).to(rows.dtype)
