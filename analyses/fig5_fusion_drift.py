"""Figure 5: how far from the receiver's own states does each fusion leave it, at each write layer, with each message?

    python analyses/fig5_fusion_drift.py [--smoke] [--replot] [--out DIR] [--sender NAME] [--receiver NAME]

States of held-out documents of the packaged corpus, fused with the sender's state at the same position ("same text"),
at a position of another document ("other text"), and with a random direction as long as the first ("random"); each is
compared with the receiver's own states of other documents at the layer that is written to. The sender is read at the
same relative depth: no cell is chosen. Of the sender with itself or, where a receiver is named, with that, through
ridge maps fitted on the other half of the documents. It resumes where it was stopped.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from common import CorpusSettings, corpus_rows, run_pair
from torch import Tensor

import latentcomm as lc
from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm._core.stats import paired_bootstrap
from latentcomm.alignment import fit_ridge
from latentcomm.drift import COMBINED, DETECTORS
from latentcomm.experiments.diagnosis import FUSIONS, MESSAGES
from latentcomm.experiments.diagnosis.cells import ChosenCell, Joint, fit_joints, fit_references
from latentcomm.experiments.diagnosis.grafts import Items, choose_items
from latentcomm.experiments.diagnosis.rows import Rows
from latentcomm.reporting.plots import drift_violins
from latentcomm.reporting.style import (
    LETTER,
    LINE,
    TICK_SIZE,
    bare,
    blank_sheet,
    colour_axis,
    layer_axis,
    layer_positions,
    names_axis,
)

NAME = "fig5_fusion_drift"
RARE = 0.95
"""A state of at least this percentile is flagged; one real state in twenty is."""


@dataclass(frozen=True)
class Settings(CorpusSettings):
    """All that decides the figure."""

    layer_step: int = 3
    n_states: int = 128


SETTINGS = Settings()
SMOKE = replace(SETTINGS, layer_step=13, n_states=12, documents=32, max_tokens=24)


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The combined percentile of every fused state, and by detector and write layer the share that is flagged."""
    tokens, rows = corpus_rows(settings, sender, receiver, checkpoint)
    items = choose_items(rows, tokens, n=settings.n_states, seed=settings.seed)
    depth = (sender.n_layers - 1) / (receiver.n_layers - 1)
    writes = range(0, receiver.n_layers, settings.layer_step)
    cells = [ChosenCell(round(depth * write), write, r_squared=0.0, null=0.0, by_depth=True) for write in writes]
    options = {"seed": settings.seed, "records": Records(checkpoint), "progress": True}
    references = fit_references(rows, writes, model=receiver.fingerprint, **options)
    aligner = None if sender is receiver else fit_ridge
    joints = fit_joints(rows, cells, aligner=aligner, predictable=True, **options)
    document = rows.document[items.row].tolist()
    each, shares = [], []
    for cell in track(cells, "drift", total=len(cells)):
        own = rows.y[cell.write, items.row]
        messages = _messages(settings, rows, items, cell, joints[cell.write])
        for fusion, message in product(FUSIONS, MESSAGES):
            rule = joints[cell.write].fusion(FUSIONS[fusion], own.shape[1], messages[message].shape[1])
            labels = {"fusion": fusion, "message": message, "read_layer": cell.read, "write_layer": cell.write}
            percentiles = references[cell.write].percentile(rule(own, messages[message]))
            for item, percentile in enumerate(percentiles[COMBINED].tolist()):
                each.append(labels | {"detector": COMBINED, "item": item, "percentile": percentile})
            for detector in (COMBINED, *DETECTORS):
                values = percentiles[detector]
                flags = (values >= RARE).double().numpy()
                share = paired_bootstrap(flags, 0 * flags, groups=document, n_resamples=1000, seed=settings.seed)
                median = {"percentile_median": float(values.quantile(0.5)), "flagged": share.difference}
                found = labels | {"detector": detector} | median | {"low": share.low, "high": share.high}
                shares.append(found | {"n": len(values), "documents": share.n})
    return pd.DataFrame(each), pd.DataFrame(shares)


def _messages(settings: Settings, rows: Rows, items: Items, cell: ChosenCell, joint: Joint) -> dict[str, Tensor]:
    """What enters the fusion, by name."""
    sent = joint.message(rows.x[cell.read, items.row])
    draw = torch.randn(sent.shape, generator=torch.Generator().manual_seed(settings.seed + cell.write))
    random = draw / draw.norm(dim=1, keepdim=True) * sent.norm(dim=1, keepdim=True)
    return dict(zip(MESSAGES, (sent, sent[items.partner], random), strict=True))


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A violin a write layer, a panel a fusion, a row of panels a message."""
    return drift_violins(
        table,
        title=f"Drift of fused states: {settings['sender']} to {settings['receiver']}",
        note="Combined two-sided percentile among the receiver's own states at the write layer; "
        f"{settings['n_states']} states of held-out documents; sender read at the same relative depth.",
    )


def detectors_plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A column of panels a fusion, a row of panels a message; in a panel the share flagged by detector and layer."""
    columns = ("fusion", "message", "detector", "write_layer")
    shares = {tuple(row[name] for name in columns): row["flagged"] for row in table.to_dict("records")}
    fusions, messages, detectors, writes = (list(dict.fromkeys(key[index] for key in shares)) for index in range(4))
    width, height, gap = 128, 17 * len(detectors), 12
    across, down = len(fusions) * (width + gap) + 64, len(messages) * (height + gap) - gap
    sheet = blank_sheet(
        f"Which detector flags which fusion? {settings['sender']} to {settings['receiver']}",
        f"Share of {settings['n_states']} fused states whose two-sided percentile is {RARE} or more; of real states it "
        "is 5 %. A panel a fusion and message.",
        [],
        across=across,
        down=down,
        left=40 + round(LETTER[TICK_SIZE] * max(map(len, detectors))),
        right=8,
        head=LINE * 3,
    )
    end = len(fusions) * (width + gap) + 24
    sheet.figure.update_layout(coloraxis=colour_axis((0, 1), "share flagged", end / across))
    name_axis = names_axis([name.replace("_", " ") for name in detectors], "")
    write_axis = layer_axis(writes, "write layer <i>j</i>")
    for (line, message), (index, fusion) in product(enumerate(messages), enumerate(fusions)):
        bottom = down - height - line * (height + gap)
        axes = sheet.panel(
            line * len(fusions) + index,
            (index * (width + gap), bottom, width, height),
            write_axis if line == len(messages) - 1 else bare(write_axis),
            bare(name_axis) if index else name_axis,
            "" if line else fusion.replace("_", "<br>"),
        )
        cells = [[shares[fusion, message, detector, write] for write in writes] for detector in detectors]
        heat = {
            "x": layer_positions(writes),
            "z": cells,
            "xgap": 1,
            "ygap": 1,
            "coloraxis": "coloraxis",
            "hoverinfo": "z",
        }
        sheet.figure.add_trace(go.Heatmap(heat | axes))
        if not index:
            aside = {"x": end - gap - 10, "y": bottom + height / 2}
            sheet.figure.add_annotation(
                x=aside["x"] / across,
                y=aside["y"] / down,
                xref="paper",
                yref="paper",
                text=message,
                textangle=90,
                showarrow=False,
                xanchor="center",
                yanchor="middle",
            )
    return sheet.figure


FIGURES = {NAME: plot, f"{NAME}_detectors": detectors_plot, f"{NAME}_pair": plot}
FIGURES |= {f"{NAME}_pair_detectors": detectors_plot}
"""The sender with itself; and, with _pair, with a receiver that was named."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run_pair(__doc__, FIGURES, SETTINGS, SMOKE, compute, smoke="a few layers and states")


if __name__ == "__main__":
    main()
