"""A layer sweep on one half of a task, and its best cell judged on the other half with all controls."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from latentcomm._core.records import end_of_part
from latentcomm.channels import Activation, Message, Silent, Skyline
from latentcomm.channels.base import label, receiver_prompts, sender_prompts
from latentcomm.experiments.accuracy import summarise, to_table
from latentcomm.experiments.controls import USUAL, derangement
from latentcomm.experiments.evaluation import Cost, Trial, evaluate, send_first
from latentcomm.experiments.sweep.grid import Cell, LayerSweep, sweep_layers
from latentcomm.fusion import Fusion
from latentcomm.hooks.capture import capture_positions
from latentcomm.hooks.graft import LAST
from latentcomm.hooks.logit_lens import logit_lens
from latentcomm.models import Model
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Item, Task, draw_choices

LENS = "logit lens"
"""The channel name of the sender's own, unembedded state in the table: no receiver is involved."""
UNEMBEDDED = "unembedded"
"""Its condition: the state after the chosen read layer, as it is."""


@dataclass(frozen=True, eq=False)
class SweepReport:
    """The results of a sweep and of the evaluation of its best cell.

    Attributes:
        cells: one row a cell of the tune half, none where the cell was given: read_layer, write_layer, n,
            choices_accuracy, first_token_accuracy, and the logit lens of the message at that read layer,
            lens_choices_accuracy and lens_first_token_accuracy.
        conditions: one row a channel, condition and metric of the test half; see `accuracy.summarise`.
        trials: every reply, item by item.
        chosen: the cell (k, j): the one given, or the best on the tune half of those whose write layer is not the
            receiver's last.
        n_cells: the number of cells that it was chosen among; 0 where it was given.
    """

    cells: pd.DataFrame
    conditions: pd.DataFrame
    trials: list[Trial]
    chosen: Cell
    n_cells: int

    def trial_table(self) -> pd.DataFrame:
        """One row a trial."""
        return to_table(self.trials)


def sweep_and_judge(
    sender: Model,
    receiver: Model,
    task: Task,
    *,
    fusions: Mapping[str, Fusion],
    alignment: Callable[..., Any] | Mapping[Cell, Callable[..., Any]] | None = None,
    cell: Cell | None = None,
    read_layers: Sequence[int] | None = None,
    write_layers: Sequence[int] | None = None,
    n_tune: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> SweepReport:
    """Sweep the first fusion over all cells on the tune half, then judge every fusion at the best cell on the test
    half.

    The two halves share no item. With `cell` nothing is swept, and the fusions are judged there. `alignment` maps the
    sender's states to the receiver's; a mapping gives each cell its own. The first fusion runs with every control, the
    others with the shuffled message; silence and the skyline always run. `n_tune` and `n_test` draw that many items of
    each half. The sender's logit lens is reported where the task has choices.

    Raises:
        ValueError: no fusion, or one with the name of another channel; more items than a half has; a test half whose
            messages cannot be shuffled; a task without choices and no cell; or an argument that the sweep or the
            evaluation refuses.
    """
    if cell is None:
        require_choices(task)
    if not fusions:
        raise ValueError("name at least one fusion to sweep")
    if taken := {Silent().name, Skyline().name, LENS} & set(fusions):
        raise ValueError(
            f"a fusion is named {taken.pop()!r}, the name of another channel of the table; give it another name"
        )
    tune, test = task.split(seed=seed)
    test = test if n_test is None else test.take(n_test, seed=seed)
    derangement([label(item) for item in test.items], seed=seed)  # raises now, before the sweep
    names = list(fusions)
    cells, n_eligible = pd.DataFrame(), 0
    if cell is None:
        tune = tune if n_tune is None else tune.take(n_tune, seed=seed)
        grid: dict[str, Any] = {"alignment": alignment, "read_layers": read_layers, "write_layers": write_layers}
        grid |= {"seed": seed, "checkpoint": checkpoint, "progress": progress}
        cells = cell_table(tune_sweep(sender, receiver, tune, fusion=fusions[names[0]], **grid), sender, tune)
        n_eligible = sum(write != receiver.n_layers - 1 for write in cells["write_layer"].tolist()) or len(cells)
        cell = best_cell(cells, n_layers=receiver.n_layers)
    read, write = Site(cell[0]), Site(cell[1])
    sender.check_site(read)
    receiver.check_site(write)
    here = alignment[cell] if isinstance(alignment, Mapping) else alignment
    channels = [Silent(), Skyline(), *(Activation(name, read, write, fusion, here) for name, fusion in fusions.items())]
    lens = _lens_trials(sender, receiver, test, cell[0], seed) if test.has_choices else []
    controls = {channel.name: USUAL if channel.name == names[0] else ("shuffled",) for channel in channels}
    send_first(channels, sender, receiver, test, seed=seed, controls=controls, checkpoint=checkpoint)
    trials: list[Trial] = []
    sent: dict[str, tuple[Message, Cost]] = {}  # all fusions send one message, which the sender makes once
    for channel in channels:
        trials += evaluate(
            channel,
            sender,
            receiver,
            test,
            seed=seed,
            controls=controls[channel.name],
            checkpoint=checkpoint,
            told=sent,
            progress=progress,
        )
    end_of_part()
    trials += lens
    return SweepReport(cells, summarise(trials, seed=seed), trials, cell, n_eligible)


def require_choices(task: Task) -> None:
    """Refuse a task by which no cell can be chosen.

    Raises:
        ValueError: it has no answer choices.
    """
    if not task.has_choices:
        raise ValueError(
            f"task {task.name!r} has no answer choices, and a sweep chooses its cell by choices; give read_layer and "
            "write_layer"
        )


def tune_sweep(
    sender: Model,
    receiver: Model,
    tune: Task,
    *,
    fusion: Fusion,
    seed: int,
    alignment: Callable[..., Any] | Mapping[Cell, Callable[..., Any]] | None = None,
    read_layers: Sequence[int] | None = None,
    write_layers: Sequence[int] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> LayerSweep:
    """`sweep_layers` over the items of a task, with choices drawn by `seed`."""
    require_choices(tune)
    return sweep_layers(
        sender,
        receiver,
        sender_prompts(sender, tune),
        receiver_prompts(receiver, tune),
        fusion=fusion,
        alignment=alignment,
        read_layers=read_layers,
        write_layers=write_layers,
        choices=draw_choices(tune, receiver.first_token, seed=seed),
        checkpoint=checkpoint,
        progress=progress,
    )


def cell_table(sweep: LayerSweep, sender: Model, task: Task) -> pd.DataFrame:
    """One row a cell: see `SweepReport.cells`."""
    if sweep.choices is None:
        raise ValueError("this sweep has no choices; run it with some")
    right = [item.choice for item in task.items]
    chosen = sweep.accuracy(right)
    top = sweep.top_token_correct(first_token_answers(task, sweep.first_token)).mean(0)
    answers = first_token_answers(task, sender.first_token)
    lens = logit_lens(sender, sweep.messages, answers=answers, right=right, choices=sweep.choices)
    return pd.DataFrame(
        [
            {
                "read_layer": read,
                "write_layer": write,
                "n": len(task.items),
                "choices_accuracy": float(chosen[k, j]),
                "first_token_accuracy": float(top[k, j]),
                "lens_choices_accuracy": float(lens.choice[:, k].double().mean()),
                "lens_first_token_accuracy": float(lens.top_token[:, k].double().mean()),
            }
            for k, read in enumerate(sweep.read_layers)
            for j, write in enumerate(sweep.write_layers)
        ]
    )


def best_cell(cells: pd.DataFrame, *, n_layers: int | None = None) -> Cell:
    """The cell with the highest accuracy by choices; ties go to the one whose top token is right more often, then to
    the shallower one.

    With `n_layers`, the receiver's number of blocks, a write after its last block is skipped where there is
    another cell: nothing of the receiver runs after it, so that a replaced state is the sender's own answer by
    construction.

    >>> best_cell(pd.DataFrame({"read_layer": [0, 1], "write_layer": [3, 2], "choices_accuracy": [0.5, 0.5],
    ...                         "first_token_accuracy": [0.1, 0.2]}))
    (1, 2)
    """
    rows = cells.to_dict("records")
    eligible = [row for row in rows if n_layers is None or row["write_layer"] != n_layers - 1] or rows
    best = min(
        eligible,
        key=lambda row: (
            -row["choices_accuracy"],
            -row["first_token_accuracy"],
            row["write_layer"],
            row["read_layer"],
        ),
    )
    return int(best["read_layer"]), int(best["write_layer"])


def first_token_answers(task: Task, first_token: Callable[[str], int]) -> list[list[str]]:
    """Each item's choice, and its aliases whose first token begins no other answer of the task.

    One token cannot separate " Republic of Korea" from " Republic of Chile": such an alias would count for both.
    """
    answers_of: dict[int, set[str]] = {}
    for item in task.items:
        for name in _spellings(item):
            answers_of.setdefault(first_token(name), set()).add(label(item))
    return [
        [item.choice, *(name for name in _spellings(item) if len(answers_of[first_token(name)]) == 1)]
        for item in task.items
    ]


def _spellings(item: Item) -> list[str]:
    """An item's accepted answers as they continue its prompt: with a leading space if its choice has one."""
    lead = " " if item.choice.startswith(" ") else ""
    return [lead + answer.strip() for answer in item.answers]


def _lens_trials(sender: Model, receiver: Model, task: Task, layer: int, seed: int) -> list[Trial]:
    """The sender's own state at the read layer as a reply: free by its top token alone, choices by their logits."""
    choices = draw_choices(task, receiver.first_token, seed=seed)
    states = capture_positions(sender, sender_prompts(sender, task), [Site(layer)], LAST)[Site(layer)][:, None]
    answers, right = first_token_answers(task, sender.first_token), [item.choice for item in task.items]
    lens = logit_lens(sender, states, answers=answers, right=right, choices=choices)
    return [
        Trial(
            item=item.id,
            label=label(item),
            channel=LENS,
            condition=UNEMBEDDED,
            reply="",
            free=bool(free),
            pick="",
            choices=bool(picked),
            n_choices=len(options),
        )
        for item, free, picked, options in zip(
            task.items, lens.top_token[:, 0], lens.choice[:, 0], choices, strict=True
        )
    ]
