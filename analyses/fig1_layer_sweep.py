"""Figure 1: at which pair of layers does a grafted activation carry the answer, and is it the message that does it?

    python analyses/fig1_layer_sweep.py [--smoke] [--replot] [--out DIR]

The demo's figure from its own settings: all 30 x 30 cells on the tuning half of Countries, the best cell judged on the
test half with every control. About four minutes on two cores.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common import figure_arguments, swept, unfinished

import latentcomm as lc
from latentcomm.experiments.job import publish_all
from latentcomm.experiments.sweep.report import choice_of, conditions_figure, heatmap, sweep_drawings
from latentcomm.fusion import Mean, Replace, Sum
from latentcomm.reporting.publish import replot
from latentcomm.tasks import Fame, SenderForm, Template, countries

NAME = "fig1_layer_sweep"
FUSIONS = {"replace": Replace(), "mean": Mean(), "sum": Sum()}
FIGURES = {NAME: heatmap, f"{NAME}_conditions": conditions_figure}


@dataclass(frozen=True)
class Settings:
    """All that decides the figure."""

    sender: str = "smollm2-135m-instruct"
    receiver: str = "smollm2-135m-instruct"
    task: str = "countries"
    template: Template = "raw"
    sender_form: SenderForm = "primed"
    fame: Fame | None = None
    fusion: str = "replace"
    read_layers: tuple[int, ...] | None = None
    write_layers: tuple[int, ...] | None = None
    n_tune: int = 40
    n_test: int | None = None
    seed: int = 0


SETTINGS = Settings()
SMOKE = replace(SETTINGS, read_layers=(20, 26), write_layers=(20, 27), n_tune=4, n_test=6)


def compute(
    settings: Settings, sender: lc.Model, receiver: lc.Model, *, checkpoint: Path | None = None
) -> lc.SweepReport:
    """The sweep of the first fusion, and the judgement of all."""
    first = {settings.fusion: FUSIONS[settings.fusion]}
    task = countries(template=settings.template, sender_form=settings.sender_form, fame=settings.fame)
    return swept(settings, sender, receiver, task, fusions=first | FUSIONS, checkpoint=checkpoint)


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    options = figure_arguments(__doc__, smoke="a few cells and items").parse_args()
    if options.replot:
        for name, plot in FIGURES.items():
            replot(name, options.out, plot)
        return
    settings, began = SMOKE if options.smoke else SETTINGS, time.monotonic()
    sender = lc.load_model(settings.sender)
    receiver = sender if settings.receiver == settings.sender else lc.load_model(settings.receiver)
    with unfinished(NAME, options) as checkpoint:
        report = compute(settings, sender, receiver, checkpoint=checkpoint)
        shown = asdict(settings) | choice_of(report)
        publish_all(
            sweep_drawings(report, shown),
            report.trial_table().drop(columns="seconds"),  # which differ between runs
            name=NAME,
            folder=options.out,
            settings=shown,
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            models={"sender": sender, "receiver": receiver},
        )


if __name__ == "__main__":
    main()
