"""Figure 14: how many pairs of a picture and its name does a map need before the receiver can answer?

    python analyses/fig14_training_pairs.py [--smoke] [--replot] [--out DIR] [--data SET] [--folder DIR] [--vision NAME]

Accuracy by question against the number of names that maps are fitted on, each with all its fitting pictures, for the
soft prompt, the graft and both captions from the same latents, and for the same with other pictures' messages. A name
is that of a folder's table; of digits it is one scan, or one composed picture. The table has the pictures too, as
`pairs`. The block and the layer are chosen once, on all fitting pictures. It resumes where it was stopped.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from pictures import Inputs, PictureSettings, figures_of, run

from latentcomm.experiments.crossmodal import Picture, PictureSet
from latentcomm.experiments.crossmodal.fitted_channels import Setup, choose_layers_of
from latentcomm.experiments.crossmodal.run import Plan, cross_modal
from latentcomm.experiments.crossmodal.splits import held_out
from latentcomm.reporting.plots import accuracy_against_pairs

NAME = "fig14_training_pairs"


@dataclass(frozen=True)
class Settings(PictureSettings):
    """All that decides the figure."""

    channels: tuple[str, ...] = ("soft_prompt", "graft", "caption", "caption_by_map", "caption_by_word")
    names: tuple[int, ...] = (15, 30, 60, 120, 240)
    n_fitting: int = 240
    n_test: int = 60


SETTINGS = Settings()
SMOKE = replace(SETTINGS, names=(15, 30), n_fitting=40, n_composed=40, n_pictures=24, n_test=6)


def compute(settings: Settings, given: Inputs) -> pd.DataFrame:
    """The tables of the runs, one below the other, with the number of names and of pairs of each."""
    vision, receiver, checkpoint = given.vision, given.receiver, given.checkpoint
    tables = []
    for part in given.parts:
        whole = Plan(channels=settings.channels, n_test=settings.n_test, reply_tokens=1, seed=settings.seed)
        chosen = choose_layers_of(Setup.of(vision, receiver, part, whole, checkpoint)).chosen
        order = drawn_names(part.fitting, settings.seed)
        for names in sorted({min(n, len(order)) for n in settings.names}):
            fewer = replace(part, fitting=of_names(part.fitting, order[:names]))
            plan = replace(whole, **chosen)
            found = cross_modal(vision, receiver, [fewer], plan=plan, checkpoint=checkpoint, progress=True)
            tables.append(found.table.assign(names=names, pairs=len(fewer.fitting), **chosen))
    return pd.concat(tables, ignore_index=True)


def drawn_names(pictures: PictureSet, seed: int) -> list[str]:
    """The names of the pictures in seeded order."""
    names = list(dict.fromkeys(map(_name, pictures)))
    return random.Random(f"pairs:{seed}").sample(names, len(names))


def of_names(pictures: PictureSet, names: Sequence[str]) -> PictureSet:
    """All pictures of these names, in the order that they have."""
    return replace(pictures, pictures=tuple(each for each in pictures if _name(each) in set(names)))


def _name(picture: Picture) -> str:
    return picture.facts.get("name", picture.group)


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A panel a question, a line a channel, and a thin one for other pictures' messages."""
    each = []
    for part in table["part"].unique():
        rows = table[table["part"] == part]
        each.append(f"{part} {rows['pairs'].sum() / rows['names'].sum():.2g}")
    return accuracy_against_pairs(
        table,
        title=f"How many pairs does a map need? {settings['vision']} to {settings['receiver']}",
        note=f"Choices; 95 % Wilson intervals over pictures. {held_out(table['part'].unique())} "
        f"Pictures of a name: {'; '.join(each)}.",
        over="names",
    )


FIGURES = figures_of(NAME, plot)


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    run(__doc__, FIGURES, SETTINGS, SMOKE, compute)


if __name__ == "__main__":
    main()
