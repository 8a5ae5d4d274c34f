"""Figure 2: what decides whether a grafted activation carries the answer: template, fame, or what the sender reads?

    python analyses/fig2_template_and_fame.py [--smoke] [--replot] [--out DIR]

Raw and chat prompts x famous and obscure landmarks x three sender forms, replace alone. For each template and form the
cell is chosen on 24 items of the tuning half among layers 12 to 29 (not the last write layer), and judged on the test
half, where famous and obscure landmarks are reported apart. Five to twelve minutes on two cores.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from common import figure_arguments, swept, unfinished

import latentcomm as lc
from latentcomm._core.stats import proportion_interval
from latentcomm.fusion import Replace
from latentcomm.models.facts import describe
from latentcomm.reporting.plots import factor_grid
from latentcomm.reporting.publish import publish, replot
from latentcomm.tasks import DEFAULT_N_CHOICES, SenderForm, Template, countries

NAME = "fig2_template_and_fame"
SHOWN = {
    ("silent", "message"): "silent",
    ("skyline", "message"): "skyline",
    ("replace", "message"): "replace",
    ("replace", "shuffled"): "shuffled",
    ("logit lens", "unembedded"): "logit lens",
}
"""Channel and message -> the condition's name in the figure."""


@dataclass(frozen=True)
class Settings:
    """All that decides the figure."""

    model: str = "smollm2-135m-instruct"
    templates: tuple[Template, ...] = ("raw", "chat")
    sender_forms: tuple[SenderForm, ...] = ("primed", "sentence", "entity")
    read_layers: tuple[int, ...] = tuple(range(12, 30))
    write_layers: tuple[int, ...] = tuple(range(12, 30))
    n_tune: int = 24
    n_test: int | None = None
    seed: int = 0


SETTINGS = Settings()
SMOKE = replace(SETTINGS, sender_forms=("primed",), read_layers=(20, 26), write_layers=(20, 27), n_tune=4, n_test=8)


def compute(settings: Settings, model: lc.Model, *, checkpoint: Path | None = None) -> pd.DataFrame:
    """A row a template, sender form, fame, condition and metric."""
    records = []
    for template in settings.templates:
        for form in settings.sender_forms:
            task = countries(template=template, sender_form=form)
            fame = {item.id: item.tags["fame"] for item in task.items}
            report = swept(settings, model, model, task, fusions={"replace": Replace()}, checkpoint=checkpoint)
            outcomes: dict[tuple[str, str], list[lc.Trial]] = {}
            for trial in report.trials:
                if shown := SHOWN.get((trial.channel, trial.condition)):
                    outcomes.setdefault((fame[trial.item], shown), []).append(trial)
            for (level, shown), trials in outcomes.items():
                for metric, right in (
                    ("free", sum(trial.free for trial in trials)),
                    ("choices", sum(bool(trial.choices) for trial in trials)),
                ):
                    low, high = proportion_interval(right, len(trials))
                    record: dict[str, Any] = {"template": template, "fame": level, "sender_form": form}
                    record |= {"condition": shown, "metric": metric, "accuracy": right / len(trials)}
                    record |= {"low": low, "high": high, "n": len(trials)}
                    records.append(record | {"read_layer": report.chosen[0], "write_layer": report.chosen[1]})
    order = list(SHOWN.values())
    return pd.DataFrame(sorted(records, key=lambda record: order.index(record["condition"])))


def plot(table: pd.DataFrame, settings: dict[str, Any]) -> go.Figure:
    """A column of panels a template and fame, a row a metric, a band a sender form, a dot a condition."""
    return factor_grid(
        table,
        title=f"Template, fame and what the sender reads: {settings['model']} with itself, Countries, replace",
        note="Cell chosen on other items for each template and sender form; 95 % Wilson intervals over items.",
        chance={"choices": 1 / DEFAULT_N_CHOICES},
    )


def main() -> None:
    """Compute and publish, or rebuild the figure from its CSV."""
    options = figure_arguments(__doc__, smoke="a few cells and items").parse_args()
    if options.replot:
        replot(NAME, options.out, plot)
        return
    settings, began = SMOKE if options.smoke else SETTINGS, time.monotonic()
    model = lc.load_model(settings.model)
    with unfinished(NAME, options) as checkpoint:
        table = compute(settings, model, checkpoint=checkpoint)
        publish(
            plot(table, asdict(settings)),
            table,
            name=NAME,
            folder=options.out,
            settings=asdict(settings),
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            models={"model": describe(model)},
        )


if __name__ == "__main__":
    main()
