"""The rows of a diagnosis: tokens that both models read, without sinks, in two halves of the documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm.similarity import Sinks, find_sinks, rms_normalised

__all__ = ["Rows", "ordinary_rows", "rms_layers", "sample"]


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
    """

    x: Float[Tensor, "layer_x row d_sender"]
    y: Float[Tensor, "layer_y row d_receiver"]
    document: Int[Tensor, " row"]
    sender_position: Int[Tensor, " row"]
    receiver_position: Int[Tensor, " row"]
    fit: Bool[Tensor, " row"]
    sinks_x: Sinks
    sinks_y: Sinks
    left_out: int

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
    x: Float[Tensor, "layer_x all d_sender"],
    y: Float[Tensor, "layer_y all d_receiver"],
    *,
    document: Int[Tensor, " all"],
    sender_position: Int[Tensor, " all"],
    receiver_position: Int[Tensor, " all"],
    seed: int,
) -> Rows:
    """Return the rows that are a sink on neither side, with their documents split into two halves by the seed.

    Raises:
        ValueError: states that are not finite or mostly zero, or no row past the first position.
    """
    sinks_x = find_sinks(x, positions=sender_position)
    sinks_y = sinks_x if y is x else find_sinks(y, positions=receiver_position)
    keep = sinks_x.keep & sinks_y.keep
    ordinary_x = x[:, keep]
    documents = document[keep].unique()
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    return Rows(
        x=ordinary_x,
        y=ordinary_x if y is x else y[:, keep],
        document=document[keep],
        sender_position=sender_position[keep],
        receiver_position=receiver_position[keep],
        fit=torch.isin(document[keep], documents[order[: (len(documents) + 1) // 2]]),
        sinks_x=sinks_x,
        sinks_y=sinks_y,
        left_out=int((~keep).sum()),
    )


def rms_layers(side: Float[Tensor, "layer row d_model"], layers: Sequence[int]) -> Float[Tensor, "chosen row d_model"]:
    """Return some layers with every row divided by its root mean square, as the next block reads it."""
    return torch.stack([rms_normalised(side[layer]) for layer in layers])


def sample(rows: Int[Tensor, " row"], most: int, seed: int) -> Int[Tensor, " drawn"]:
    """Return all of these row numbers, or `most` of them drawn by the seed, ascending.

    >>> len(sample(torch.arange(9), 4, 0)), len(sample(torch.arange(3), 4, 0))
    (4, 3)
    """
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most].sort().values]
