"""Figure 6: does the receiver heal a graft at the later layers, and is its output then what it would have been?

    python analyses/fig6_healing.py [--smoke] [--replot] [--out DIR] [--sender NAME] [--receiver NAME]

Every fusion and message is grafted into held-out texts of the packaged corpus, each cut off at one of its tokens; at
every later layer with a reference, the deviation from the ungrafted state and its percentile among the receiver's own
states; at the end, the KL of the next token. A percentile that heals is no recovery: compare the KL. The sender
is read at the same relative depth: no cell is chosen. Of the sender with itself or, where a receiver is named, with
that, through ridge maps fitted on the other half of the documents. It resumes where it was stopped.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from common import CorpusSettings, corpus_rows, run_pair

import latentcomm as lc
from latentcomm._core.records import Records
from latentcomm.alignment import fit_ridge
from latentcomm.experiments.diagnosis import FUSIONS
from latentcomm.experiments.diagnosis.cells import ChosenCell, fit_joints, fit_references
from latentcomm.experiments.diagnosis.grafts import choose_items, effects_table, graft_items, healing_table
from latentcomm.reporting.plots import healing_curves

NAME = "fig6_healing"
LATER, NEXT = "later layers", "next token"
"""Two tables in one: a row a later layer (quartiles over items), and a row an item's next token."""


@dataclass(frozen=True)
class Settings(CorpusSettings):
    """All that decides the figure."""

    layer_step: int = 3
    n_items: int = 48


SETTINGS = Settings()
SMOKE = replace(SETTINGS, layer_step=13, n_items=3, documents=32, max_tokens=24)


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> pd.DataFrame:
    """Both tables, one below the other."""
    tokens, rows = corpus_rows(settings, sender, receiver, checkpoint)
    items = choose_items(rows, tokens, n=settings.n_items, seed=settings.seed)
    depth, last = (sender.n_layers - 1) / (receiver.n_layers - 1), receiver.n_layers - 1
    writes = range(0, last, settings.layer_step)
    cells = [ChosenCell(round(depth * write), write, r_squared=0.0, null=0.0, by_depth=True) for write in writes]
    options = {"seed": settings.seed, "records": Records(checkpoint), "progress": True}
    measured = [*writes, last]
    references = fit_references(rows, measured, model=receiver.fingerprint, **options)
    aligner = None if sender is receiver else fit_ridge
    joints = fit_joints(rows, cells, aligner=aligner, predictable=True, **options)
    variants, effects = graft_items(
        rows, items, receiver, cells=cells, joints=joints, fusions=FUSIONS, references=references, **options
    )
    later = healing_table(variants, effects, cells, measured)
    on_output = effects_table(variants, effects, cells).astype({"top1_agreement": float})  # a share, some missing
    return pd.concat([later.assign(what=LATER), on_output.assign(what=NEXT)], ignore_index=True)


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """Deviation and percentile over later layers with another text's message, and the KL beneath."""
    rows: list[dict[str, Any]] = [dict(row) for row in table.to_dict("records")]
    later = [row | {"layer": int(row["layer"])} for row in rows if row["what"] == LATER]
    return healing_curves(
        pd.DataFrame(later),
        effects=pd.DataFrame([row for row in rows if row["what"] == NEXT]),
        title=f"Healing: {settings['sender']} to {settings['receiver']}",
        note=f"Median and quartiles over {settings['n_items']} held-out texts. A percentile that heals is not "
        "recovery: the KL of the next token is below.",
    )


FIGURES = {NAME: plot, f"{NAME}_pair": plot}
"""The sender with itself, and with a receiver that was named."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run_pair(__doc__, FIGURES, SETTINGS, SMOKE, compute, smoke="a few layers and texts")


if __name__ == "__main__":
    main()
