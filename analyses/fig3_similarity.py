"""Figure 3: which layers of two models are similar, and how similar are layers on unrelated texts?

    python analyses/fig3_similarity.py [--smoke] [--replot] [--out DIR] [--sender NAME] [--receiver NAME]

Debiased linear CKA of every pair of layers, of the sender with itself and, where a receiver is named, with that: of
RMS-normalised states without sinks, and of the raw states of all tokens for comparison. The null pairs each document
with another one, token by token; that of the maximum is what the best pair of layers must exceed. About six minutes on
two cores with a receiver of 0.5 billion parameters.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from common import CorpusSettings, run_alone_and_pair

from latentcomm._core.progress import track
from latentcomm.hooks.paired_text import PairedStates
from latentcomm.reporting.plots import pair_map
from latentcomm.similarity import MinibatchPairs, NullMaps, exchanged_documents, raw, residual_view, rms_normalised

NAME = "fig3_similarity"
VIEWS = {
    "RMS-normalised, sinks left out": {"scaling": rms_normalised},
    "raw, all tokens": {"scaling": raw, "sink_positions": 0, "norm_limit": float("inf")},
}
"""What is compared: the states as the next block reads them, and raw."""
NULL_QUANTILE = 0.975


@dataclass(frozen=True)
class Settings(CorpusSettings):
    """All that decides the figure."""

    max_tokens: int = 256
    draws: int = 20
    null_rows: int = 4096


SETTINGS = Settings()
SMOKE = replace(SETTINGS, documents=10, max_tokens=24, draws=2, null_rows=64)


def compute(settings: Settings, states: PairedStates) -> pd.DataFrame:
    """A row a view and pair of layers: the similarity, its null, that of the largest anywhere, and what it rests on."""
    return pd.concat([_view(settings, states, name) for name in VIEWS], ignore_index=True)


def _view(settings: Settings, states: PairedStates, name: str) -> pd.DataFrame:
    view = residual_view(
        states.x, states.y, positions=states.sender_position, positions_y=states.receiver_position, **VIEWS[name]
    )
    document, position = states.document[view.keep], states.sender_position[view.keep]
    pairings = exchanged_documents(document, position, draws=settings.draws, seed=settings.seed)
    generator, maps = torch.Generator().manual_seed(settings.seed), []
    for pairing in track(pairings, f"null, {name}", total=len(pairings)):
        drawn = torch.randperm(len(pairing.rows), generator=generator)[: settings.null_rows]
        x = [layer[pairing.rows[drawn]] for layer in view.x_layers]
        y = [layer[pairing.partners[drawn]] for layer in view.y_layers]
        maps.append(MinibatchPairs(seed=settings.seed).update(x, y).debiased_cka())
    null = NullMaps("exchanged documents", settings.null_rows, (0, 0), torch.stack(maps))
    found = MinibatchPairs(seed=settings.seed).update(view.x_layers, view.y_layers).debiased_cka()
    high, best = null.quantile(NULL_QUANTILE), null.maximum.quantiles[NULL_QUANTILE]
    return pd.DataFrame(
        {
            "view": name,
            "sender_layer": sender_layer,
            "receiver_layer": receiver_layer,
            "debiased_cka": float(found[sender_layer, receiver_layer]),
            "null_mean": float(null.mean[sender_layer, receiver_layer]),
            "null_high": float(high[sender_layer, receiver_layer]),
            "null_max": best,
            "rows": len(document),
            "documents": len(document.unique()),
            "left_out": view.left_out,
        }
        for sender_layer in range(found.shape[0])
        for receiver_layer in range(found.shape[1])
    )


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A map a view, cells that do not exceed the null of the maximum marked."""
    return pair_map(
        table,
        value="debiased_cka",
        null="null_max",
        panels="view",
        title=f"Similarity of every pair of layers: {settings['sender']} with {settings['receiver']}",
        note=(
            f"Debiased linear CKA by minibatches at the same tokens of {int(table['documents'].iloc[0])} documents: "
            + "; ".join(f"{view}: {part['rows'].iloc[0]:,} rows" for view, part in table.groupby("view", sort=False))
            + f". Null: 97.5 % of the largest cell over {settings['draws']} permutations of documents, "
            f"{settings['null_rows']:,} rows each."
        ),
        sender=settings["sender"],
        receiver=settings["receiver"],
        unit="debiased CKA",
    )


FIGURES = {NAME: plot, f"{NAME}_pair": plot}
"""The sender with itself, and with the receiver that was named."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run_alone_and_pair(__doc__, FIGURES, SETTINGS, SMOKE, compute, smoke="a few documents")


if __name__ == "__main__":
    main()
