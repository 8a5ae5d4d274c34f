"""The rows of a diagnosis: tokens that both models read, without sinks, in two halves of the documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm.hooks.paired_text import StatesOnDisk
from latentcomm.similarity import Sinks, find_sinks, rms_normalised

__all__ = ["LayerRows", "Rows", "ordinary_rows", "rms_layers", "sample"]


@dataclass(frozen=True, eq=False)
class LayerRows(Sequence[Tensor]):
    """States of one model after each block at some rows: `[layer]` gives those of a layer, `[layer, index]` some of it.

    Attributes:
        states: at all rows, in memory or on disk.
        keep: the numbers of the rows.
    """

    states: Float[Tensor, "layer all d_model"] | StatesOnDisk
    keep: Int[Tensor, " row"]

    def __len__(self) -> int:
        return self.states.shape[0]

    def __getitem__(self, at: Any) -> Any:  # an index or slice is a tensor's own
        layer, index = at if isinstance(at, tuple) else (at, slice(None))
        return self.states[layer, self.keep[index]]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[layer] for layer in range(len(self)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of layers, rows and dimensions."""
        return self.states.shape[0], len(self.keep), self.states.shape[2]


@dataclass(frozen=True, eq=False)
class Rows:
    """Paired states of two models at ordinary tokens.

    Attributes:
        x, y: raw residual streams after every block of the sender and the receiver; one object for one model.
        document: of each row.
        sender_position, receiver_position: of the row's token in its document, in each model's tokens.
        fit: whether the row's document is in the half that everything is fitted on; the rest is held out.
        sinks_x, sinks_y: the rows that were left out, by side.
        left_out: the number of rows that were left out for either side.
        device: where the float64 algebra of layers runs; what comes of it is on the CPU, as the states are.
    """

    x: LayerRows
    y: LayerRows
    document: Int[Tensor, " row"]
    sender_position: Int[Tensor, " row"]
    receiver_position: Int[Tensor, " row"]
    fit: Bool[Tensor, " row"]
    sinks_x: Sinks
    sinks_y: Sinks
    left_out: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.document)

    @property
    def one_model(self) -> bool:
        """Whether both sides are the same states."""
        return self.x is self.y

    @property
    def n_documents(self) -> int:
        """How many documents have a row left."""
        return len(self.document.unique())


def ordinary_rows(
    x: Float[Tensor, "layer_x all d_sender"] | StatesOnDisk,
    y: Float[Tensor, "layer_y all d_receiver"] | StatesOnDisk,
    *,
    document: Int[Tensor, " all"],
    sender_position: Int[Tensor, " all"],
    receiver_position: Int[Tensor, " all"],
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
) -> Rows:
    """Return the rows that are a sink on neither side, with their documents split into two halves by the seed.

    Raises:
        ValueError: states that are not finite or mostly zero, or no row past the first position.
    """
    everywhere = torch.arange(len(document))
    sinks_x = find_sinks(x, positions=sender_position)
    sinks_y = sinks_x if y is x else find_sinks(y, positions=receiver_position)
    keep = sinks_x.keep & sinks_y.keep
    ordinary_x = LayerRows(x, everywhere[keep])
    documents = document[keep].unique()
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    return Rows(
        x=ordinary_x,
        y=ordinary_x if y is x else LayerRows(y, everywhere[keep]),
        document=document[keep],
        sender_position=sender_position[keep],
        receiver_position=receiver_position[keep],
        fit=torch.isin(document[keep], documents[order[: (len(documents) + 1) // 2]]),
        sinks_x=sinks_x,
        sinks_y=sinks_y,
        left_out=int((~keep).sum()),
        device=device,
    )


def rms_layers(
    side: LayerRows,
    layers: Sequence[int],
    index: Int[Tensor, " chosen"] | slice = slice(None),
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
) -> Float[Tensor, "some chosen d_model"]:
    """Return some layers, at all or some rows, each row divided by its root mean square: as the next block reads it."""
    return torch.stack([rms_normalised(side[layer, index].to(device)) for layer in layers])


def sample(rows: Int[Tensor, " row"], most: int, seed: int) -> Int[Tensor, " drawn"]:
    """Return all of these row numbers, or `most` of them drawn by the seed, ascending.

    >>> len(sample(torch.arange(9), 4, 0)), len(sample(torch.arange(3), 4, 0))
    (4, 3)
    """
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most].sort().values]
