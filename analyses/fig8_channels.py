"""Figure 8: every channel on a game: accuracy against cost, with the shuffled message.

    python analyses/fig8_channels.py [--smoke] [--replot] [--out DIR] [--task NAME] [--sender NAME] [--receiver NAME]

The table of Ramesh & Li 2025 (arXiv:2501.14082) rebuilt on available weights. Countries and Tip sheets; the cell of
the channels that graft a state is chosen on 40 items of the tuning half, and all channels are compared on the same 100
items of the other half, each with its shuffled message. Those that learn are trained on the whole tuning half.
It resumes where it was stopped.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from common import arguments, publish_pair, replot_found, unfinished

import latentcomm as lc
from latentcomm.channels.catalogue import LEARNED
from latentcomm.experiments.compare.run import compare_named, names_for
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.train import LearningPlan, learn
from latentcomm.reporting.plots import accuracy_against_cost
from latentcomm.reporting.publish import plain
from latentcomm.tasks import countries, tip_sheets

NAME = "fig8_channels"


@dataclass(frozen=True)
class Settings:
    """All that decides the figure."""

    sender: str = "smollm2-135m-instruct"
    task: str = "countries"
    channels: tuple[str, ...] | None = None
    learned: tuple[str, ...] = LEARNED
    n_sheets: int = 300
    read_layer: int | None = None
    write_layer: int | None = None
    message_tokens: int = 16
    n_tune: int = 40
    n_test: int = 100
    seed: int = 0
    learning: LearningPlan = field(default_factory=LearningPlan)


SETTINGS = Settings()
SMOKE = replace(
    SETTINGS,
    channels=("silent", "skyline", "text", "replace"),
    learned=("gated",),
    learning=LearningPlan(steps=2, batch_size=2),
    read_layer=1,
    write_layer=1,
    n_test=8,
    message_tokens=2,
)


def settings_of(name: str) -> Settings:
    """The settings of a figure: nothing is trained on Tip sheets, where this model is at chance with any prompt."""
    return replace(SETTINGS, task="tip_sheets", learned=(), n_sheets=200) if "tip_sheets" in name else SETTINGS


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> pd.DataFrame:
    """A row a channel, condition and metric: see `compare_trials`; and the cell."""
    names = settings.channels or tuple(names_for(sender, receiver))
    task = countries() if settings.task == "countries" else tip_sheets(n=settings.n_sheets, seed=settings.seed)
    chosen = {name: getattr(settings, name) for name in ("read_layer", "write_layer", "n_tune", "seed")}
    plan = CompareSettings(**chosen, n_test=settings.n_test, message_tokens=settings.message_tokens)
    learned = {}
    for name in settings.learned:
        learning = replace(settings.learning, **chosen)
        learned[name] = learn(name, sender, receiver, task, plan=learning, checkpoint=checkpoint, progress=True).channel
    found, cell = compare_named(
        [*names, *learned], sender, receiver, task, settings=plan, learned=learned, checkpoint=checkpoint, progress=True
    )
    return found.table.assign(read_layer=cell[0] if cell else -1, write_layer=cell[1] if cell else -1)


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A panel a metric; a dot a channel."""
    cell = f"k = {table['read_layer'].iloc[0]}, j = {table['write_layer'].iloc[0]}"
    return accuracy_against_cost(
        table,
        title=f"What does each channel buy? {settings['sender']} to {settings['receiver']}, {settings['task']}",
        note=f"95 % Wilson intervals over items on which nothing was chosen (cell {cell}). Operations of both models "
        "an item, as run with a cache; lines lead to the cost of channels set apart. Open dots: the same channel "
        "with another item's message.",
        unit="floating-point operations an item",
    )


FIGURES = {f"{NAME}_{task}{pair}": plot for task in ("countries", "tip_sheets") for pair in ("", "_pair")}
"""Every figure that this script can write."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    receiver = "another model, instead of the sender itself"
    parser = arguments(__doc__, smoke="a few channels and items", sender=SETTINGS.sender, receiver=receiver)
    parser.add_argument("--task", choices=("countries", "tip_sheets"), default=SETTINGS.task)
    options = parser.parse_args()
    if options.replot:
        replot_found(FIGURES, options.out)
        return
    name = f"{NAME}_{options.task}" + ("_pair" if options.receiver else "")
    chosen, began = SMOKE if options.smoke else settings_of(name), time.monotonic()
    settings = replace(chosen, sender=options.sender, task=options.task)
    sender = lc.load_model(settings.sender)
    pair = {"sender": sender, "receiver": lc.load_model(options.receiver) if options.receiver else sender}
    known = plain(asdict(settings) | {role: model.name for role, model in pair.items()})
    with unfinished(name, options) as checkpoint:
        table = compute(settings, **pair, checkpoint=checkpoint)
        publish_pair(plot, table, name=name, folder=options.out, settings=known, began=began, **pair)


if __name__ == "__main__":
    main()
