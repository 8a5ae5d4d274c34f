"""Figure 4: how much of one model's state does a linear map of the other's predict, layer by layer, both ways?

    python analyses/fig4_predictability.py [--smoke] [--replot] [--out DIR] [--sender NAME] [--receiver NAME]

Held-out R^2 of ridge regression between every second layer of the sender and of itself and, where a receiver is named,
of that: forward predicts the receiver's state from the sender's, backward the sender's from the receiver's, which is
how much of a message the receiver already holds. RMS-normalised states without sinks; folds by document, the penalty
chosen inside the folds; the null pairs each document with another one, token by token. About fifteen minutes on two
cores with a receiver of 0.5 billion parameters.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from common import CorpusSettings, run_alone_and_pair
from torch import Tensor

from latentcomm._core.progress import say
from latentcomm.hooks.paired_text import PairedStates
from latentcomm.reporting.plots import pair_map
from latentcomm.similarity import LayerPairs, Pairing, ResidualView, exchanged_documents, residual_view

NAME = "fig4_predictability"


@dataclass(frozen=True)
class Settings(CorpusSettings):
    """All that decides the figure."""

    max_tokens: int = 256
    layer_step: int = 2
    folds: int = 5


SETTINGS = Settings()
SMOKE = replace(SETTINGS, documents=20, max_tokens=24, layer_step=12, folds=3)


def compute(settings: Settings, states: PairedStates) -> pd.DataFrame:
    """A row a pair of layers: R^2 both ways, with that of permuted documents, and the rows it is computed from."""
    x = states.x[:: settings.layer_step]
    y = x if states.y is states.x else states.y[:: settings.layer_step]
    view = residual_view(x, y, positions=states.sender_position, positions_y=states.receiver_position)
    document, position = states.document[view.keep], states.sender_position[view.keep]
    (permuted,) = exchanged_documents(document, position, draws=1, seed=settings.seed)
    as_they_are = Pairing(torch.arange(len(document)), torch.arange(len(document)))
    say("predictability: the documents as they are, then permuted")
    found, null = (_both_ways(settings, view, document, pairing) for pairing in (as_they_are, permuted))
    return pd.DataFrame(
        {
            "sender_layer": row * settings.layer_step,
            "receiver_layer": column * settings.layer_step,
            "forward": float(found[0][row, column]),
            "backward": float(found[1][row, column]),
            "forward_null": float(null[0][row, column]),
            "backward_null": float(null[1][row, column]),
            "rows": len(document),
            "documents": len(document.unique()),
            "left_out": view.left_out,
        }
        for row in range(found[0].shape[0])
        for column in range(found[0].shape[1])
    )


def _both_ways(settings: Settings, view: ResidualView, document: Tensor, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """R^2 [sender layer, receiver layer] of predicting the receiver, and the sender; each sender row in its fold."""
    x = [layer[pairing.rows] for layer in view.x_layers]
    y = [layer[pairing.partners] for layer in view.y_layers]
    pairs = LayerPairs(folds=settings.folds, seed=settings.seed).update(x, y, groups=document[pairing.rows])
    forward = pairs.linear_predictability()
    if view.y_layers is view.x_layers:  # one model: the other way is the same maps, turned
        return forward, forward.T
    return forward, pairs.swapped().linear_predictability().T


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A map a direction (one where both are the same model), cells that do not exceed the null marked."""
    rows, documents, left_out = (int(table[column].iloc[0]) for column in ("rows", "documents", "left_out"))
    ways = {"forward": "receiver from sender", "backward": "sender from receiver"}
    parts = [
        table[["sender_layer", "receiver_layer"]].assign(way=ways[way], r_squared=table[way], null=table[f"{way}_null"])
        for way in (ways if settings["sender"] != settings["receiver"] else ["forward"])
    ]
    return pair_map(
        pd.concat(parts, ignore_index=True),
        value="r_squared",
        null="null",
        panels="way",
        title=f"What a linear map predicts: {settings['sender']} and {settings['receiver']}",
        note=(
            f"Ridge R² on held-out documents, {settings['folds']} folds: {rows:,} tokens of "
            f"{documents} documents, RMS-normalised, {left_out} sinks left out. "
            "Null: documents permuted, cell by cell."
        ),
        sender=settings["sender"],
        receiver=settings["receiver"],
        unit="held-out R²",
    )


FIGURES = {NAME: plot, f"{NAME}_pair": plot}
"""The sender with itself, and with the receiver that was named."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run_alone_and_pair(__doc__, FIGURES, SETTINGS, SMOKE, compute, smoke="a few documents and layers")


if __name__ == "__main__":
    main()
