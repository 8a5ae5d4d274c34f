"""Figure 12: what does a text-only model know of pictures, through latents and through captions?

    python analyses/fig12_crossmodal.py [--smoke] [--replot] [--out DIR] [--data SET] [--folder DIR] [--vision NAME]

Accuracy by question on held-out pictures: a soft prompt and a graft through ridge maps, a soft prompt trained through
the receiver, and three captions from the same latents, with silence, the true caption, other pictures' messages, zeros
and random vectors instead of messages, an untrained encoder with a map of its own, maps fitted to permuted names,
training with other pictures' vectors, and a linear classifier of the same latents. The set digits needs nothing else: a
small encoder is trained first. For flags and emoji give --folder, with table.json and pictures, and --vision. It
resumes where it was stopped.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from pictures import Inputs, PictureSettings, figures_of, run

from latentcomm.experiments.crossmodal.run import CHANNELS, Plan, cross_modal
from latentcomm.experiments.crossmodal.splits import held_out
from latentcomm.reporting.plots import accuracy_by_question

NAME = "fig12_crossmodal"


@dataclass(frozen=True)
class Settings(PictureSettings):
    """All that decides the figure."""

    channels: tuple[str, ...] = CHANNELS
    n_test: int = 100
    reply_tokens: int = 4
    train_steps: int = 300


SETTINGS = Settings()
SMOKE = replace(SETTINGS, n_fitting=40, n_composed=40, n_pictures=24, n_test=6, reply_tokens=1, train_steps=2)


def compute(settings: Settings, given: Inputs) -> pd.DataFrame:
    """The table of the run, with the block and the layer that were chosen for each part."""
    plan = Plan(
        channels=settings.channels,
        n_test=settings.n_test,
        reply_tokens=settings.reply_tokens,
        train_steps=settings.train_steps,
        seed=settings.seed,
    )
    found = cross_modal(
        given.vision, given.receiver, given.parts, plan=plan, checkpoint=given.checkpoint, progress=True
    )
    table = found.table
    for column in ("block", "write_layer", "random_encoder_block"):
        table[column] = [found.chosen[part].get(column, -1) for part in table["part"]]
    return table


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A panel a question, a row a channel."""
    return accuracy_by_question(
        table,
        title=f"What does a text-only model know of pictures? {settings['vision']} to {settings['receiver']}",
        note=f"Choices; 95 % Wilson intervals over pictures. {held_out(table['part'].unique())}",
    )


FIGURES = figures_of(NAME, plot)


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run(__doc__, FIGURES, SETTINGS, SMOKE, compute)


if __name__ == "__main__":
    main()
