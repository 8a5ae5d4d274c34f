"""Figure 11: a large model starts the reasoning, a small one finishes: accuracy against n and cost, and the signals.

    python analyses/fig11_cascade.py [--smoke] [--replot] [--out DIR] [--task NAME] [--large NAME] [--small NAME]
        [--data FILE] [--shots FILE] [--work DIR]

With --task kv-math-worked the two models are trained from scratch, in minutes: one knows the numbers of the keys, the
other only arithmetic. With --task gsm8k they are given, and so is the file of problems. All hand-offs, numbers of
tokens and stops are run on the same items, with the two models alone, another item's opening, empty states (of worked
sums), the small model's own opening and its vote at equal cost as controls. Nothing is chosen on any item. It resumes
where it was stopped.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import FOLDER, replot_found, unfinished
from worked_models import LARGE, SMALL, Size, worked_pair

import latentcomm as lc
from latentcomm.experiments.cascade import CascadeSweep, sweep_cascade
from latentcomm.experiments.cascade.by_name import hand_offs_named, stops_named
from latentcomm.experiments.cascade.report import PLOTS, cascade_drawings, save_rows
from latentcomm.experiments.job import publish_all
from latentcomm.experiments.maps import map_documents
from latentcomm.models.prompts import Template
from latentcomm.tasks import Task, gsm8k, kv_math_worked
from latentcomm.tasks.kv_math_worked import knowing_texts, pairs_of

NAME = "fig11_cascade"
WORKED, GSM8K = "kv-math-worked", "gsm8k"


@dataclass(frozen=True)
class Settings:
    """All that decides the figures of a task, besides the models.

    Attributes:
        n_items, template, n_shots, reply_tokens: of the task.
        hand_offs, ns, stops, controls: of the sweep.
        n_documents: texts that maps are fitted on: of worked sums those that the large model learns, else of the
            packaged corpus.
        measures_drift: whether mapped states are held to the small model's own, which takes many documents.
        trained: the sizes of the large and the small model of worked sums; none where they are given.
    """

    task: str = WORKED
    n_items: int = 210
    template: Template = "raw"
    n_shots: int = 0
    reply_tokens: int = 20
    hand_offs: tuple[str, ...] = ("text", "latent", "graft")
    ns: tuple[int, ...] = (0, 1, 2, 3, 5, 7, 9, 12, 16)
    stops: tuple[str, ...] = ("entropy-drop", "early-drop", "confident", "oracle")
    controls: tuple[str, ...] = ("shuffled", "zero", "random", "self", "self-consistency")
    n_documents: int = 1000
    measures_drift: bool = True
    trained: tuple[Size, ...] = (LARGE, SMALL)
    seed: int = 0


SETTINGS = Settings()
ON_GSM8K = Settings(
    task=GSM8K,
    n_items=60,
    template="chat",
    reply_tokens=180,
    hand_offs=("text", "latent"),
    ns=(0, 8, 32, 96),
    stops=("entropy-drop", "oracle"),
    controls=("shuffled", "self", "self-consistency"),
    n_documents=64,
    trained=(),
)
SMOKE = replace(
    SETTINGS,
    n_items=6,
    ns=(0, 2, 5),
    n_documents=24,
    measures_drift=False,
    trained=(
        Size(n_layers=2, d_model=32, n_heads=2, n_texts=64, steps=4, batch_size=8),
        Size(n_layers=1, d_model=16, n_heads=2, n_texts=64, steps=4, batch_size=8),
    ),
)
SMOKE_ON_GSM8K = replace(
    ON_GSM8K, n_items=4, n_shots=0, reply_tokens=12, ns=(0, 4, 8), n_documents=12, measures_drift=False
)


def settings_of(name: str) -> Settings:
    """The settings of a figure."""
    return ON_GSM8K if GSM8K in name else SETTINGS


def task_of(settings: Settings, data: str | None = None, shots: str | None = None) -> Task:
    """The test items.

    Raises:
        ValueError: GSM8K without its file, or what the task refuses.
    """
    if settings.task == WORKED:
        task = kv_math_worked(n=settings.n_items, template=settings.template, seed=settings.seed)
        return replace(task, reply_tokens=settings.reply_tokens)
    whole = gsm8k(
        data,
        n_shots=settings.n_shots,
        shots=shots,
        template=settings.template,
        reply_tokens=settings.reply_tokens,
        seed=settings.seed,
    )
    return whole.take(min(settings.n_items, len(whole.items)), seed=settings.seed)


def documents_of(settings: Settings) -> Sequence[str]:
    """What maps are fitted on; none of the items is in it."""
    if settings.task == WORKED:
        texts = knowing_texts(settings.n_documents, seed=settings.seed)
        return [f"{each.prompt} {each.reply}" for each in texts]
    return map_documents()[: settings.n_documents]


def compute(
    settings: Settings, large: lc.Model, small: lc.Model, task: Task, *, checkpoint: Path | None = None
) -> CascadeSweep:
    """All trials, and what the large model wrote."""
    hand_offs = hand_offs_named(
        settings.hand_offs,
        large,
        small,
        documents_of(settings),
        measures_drift=settings.measures_drift,
        seed=settings.seed,
    )
    return sweep_cascade(
        large,
        small,
        task,
        hand_offs=hand_offs,
        ns=settings.ns,
        stops=stops_named(settings.stops),
        controls=settings.controls,
        seed=settings.seed,
        checkpoint=checkpoint,
        progress=True,
    )


FIGURES = {
    f"{NAME}_{task.replace('-', '_')}{ending}": plot for task in (WORKED, GSM8K) for ending, plot in PLOTS.items()
}
"""Every figure that this script can write."""


def main() -> None:
    """Compute and publish, or rebuild the figures from their CSVs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=(WORKED, GSM8K), default=WORKED)
    parser.add_argument("--smoke", action="store_true", help="few items and short trainings, to see that it runs")
    parser.add_argument("--replot", action="store_true", help="rebuild the figures from their CSVs alone")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--large", help="of gsm8k: a built-in name, a folder, a .gguf file or a hub id")
    parser.add_argument("--small", default="smollm2-135m-instruct", help="the same")
    parser.add_argument("--data", help="of gsm8k: its test file")
    parser.add_argument("--shots", help="of gsm8k: the file that solved examples are drawn from")
    parser.add_argument("--work", type=Path, help="folder of the trained models; by default in --out, and then removed")
    options = parser.parse_args()
    if options.replot:
        replot_found(FIGURES, options.out)
        return
    began, is_worked = time.monotonic(), options.task == WORKED
    if not is_worked and (options.large is None or options.data is None):
        parser.error("--task gsm8k needs --large and --data")
    settings = {WORKED: (SETTINGS, SMOKE), GSM8K: (ON_GSM8K, SMOKE_ON_GSM8K)}[options.task][options.smoke]
    name = f"{NAME}_{options.task.replace('-', '_')}"
    task = task_of(settings, options.data, options.shots)
    with unfinished(name, options) as checkpoint:
        if settings.trained:
            sizes = dict(zip(("large", "small"), settings.trained, strict=True))
            large, small = worked_pair(options.work or checkpoint, **sizes, seed=settings.seed, progress=True)
        else:
            large, small = lc.load_model(options.large), lc.load_model(options.small)
        found = compute(settings, large, small, task, checkpoint=checkpoint)
        shown: dict[str, Any] = asdict(settings) | {
            "large": large.name,
            "small": small.name,
            "asked": dict(task.settings),
        }
        table = found.table(groups=pairs_of(task.items), seed=settings.seed)
        publish_all(
            cascade_drawings(found, table, stops_named(settings.stops), shown),
            name=name,
            folder=options.out,
            settings=shown,
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            models={"large": large, "small": small},
        )
        save_rows(found, options.out, name)


if __name__ == "__main__":
    main()
