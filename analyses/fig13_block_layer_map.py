"""Figure 13: which blocks of a vision encoder and layers of a receiver are similar over the same names?

    python analyses/fig13_block_layer_map.py [--smoke] [--replot] [--out DIR] [--data SET] [--folder DIR]
                                             [--vision NAME]

Mutual nearest neighbours, CKNNA and debiased CKA of every block with every layer, over names: the mean state of a
name's pictures, and the receiver's state at the name's last token. The best cell is chosen on one half of the names;
the map shows the other half, with the level that 95 % of shuffled names stay below at the chosen cell.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from pictures import Inputs, PictureSettings, figures_of, run

from latentcomm.experiments.crossmodal.diagnostics import alignment_map, name_states
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.reporting.plots import pair_map

NAME = "fig13_block_layer_map"


@dataclass(frozen=True)
class Settings(PictureSettings):
    """All that decides the figure."""

    n_fitting: int = 600
    n_composed: int = 8
    k: int = 10
    draws: int = 200


SETTINGS = Settings()
SMOKE = replace(SETTINGS, n_fitting=120, n_pictures=24, k=2, draws=5)


def compute(settings: Settings, given: Inputs) -> pd.DataFrame:
    """The map of the first part's pictures, those for fitting and for testing together."""
    part = given.parts[0]
    pictures = PictureSet(part.name, (*part.fitting.pictures, *part.testing.pictures))
    states = name_states(given.vision, given.receiver, pictures, pooling=part.pooling, grid=part.grid)
    return alignment_map(states, k=settings.k, draws=settings.draws, seed=settings.seed)


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A panel a measure, a cell a block and layer."""
    chosen = table[table["chosen"]].set_index("measure")
    shown = table.assign(
        sender_layer=table["block"],
        receiver_layer=table["layer"],
        null=[float(chosen.loc[measure, "null_95"]) for measure in table["measure"]],
    )
    sentences = [
        f"{str(measure).replace('_', ' ')} {row['held_out']:.2f} at block {row['block']}, layer {row['layer']} "
        f"(null {row['null_mean']:.2f}, p = {row['p']:.2g})"
        for measure, row in chosen.iterrows()
    ]
    note = (
        f"Over {int(table['names'].iloc[0])} names on which no cell was chosen. Chosen on the other half: "
        f"{'; '.join(sentences)}. White dots: not above what 95 % of shuffled names stay below at the chosen cell."
    )
    return pair_map(
        shown,
        value="held_out",
        null="null",
        panels="measure",
        title=f"Where are an encoder and a receiver similar? {settings['vision']} and {settings['receiver']}",
        note=note,
        sender=settings["vision"],
        receiver=settings["receiver"],
        unit="similarity on held-out names",
    )


FIGURES = figures_of(NAME, plot)


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run(__doc__, FIGURES, SETTINGS, SMOKE, compute)


if __name__ == "__main__":
    main()
