"""The check of `SweepSettings` before the first weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass

from latentcomm._core.names import check_name
from latentcomm.channels.base import label
from latentcomm.experiments.controls import USUAL, derangement
from latentcomm.experiments.maps import ALIGNMENTS, depths
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import listed
from latentcomm.experiments.sweep.run import require_choices
from latentcomm.experiments.sweep.settings import SweepSettings
from latentcomm.fusion import BY_NAME, Fusion, RightAligned
from latentcomm.hooks.shared_prefix import MOST_ROWS
from latentcomm.tasks.base import DEFAULT_N_CHOICES, Task

__all__ = ["SweepInputs", "check_sweep", "fusions_named"]

ALIASES = {"norm_matched_sum": "norm_matched"}
"""Names of release 0.1."""


@dataclass(frozen=True, eq=False)
class SweepInputs:
    """What a sweep runs with, besides its settings and its models.

    Attributes:
        fusions: by name.
        task: all of its items.
        n_tune, n_test: items of each half that are used.
    """

    fusions: Mapping[str, Fusion]
    task: Task
    n_tune: int
    n_test: int


def check_sweep(settings: SweepSettings, checks: Checks) -> SweepInputs | None:
    """What the sweep runs with; None where something is refused."""
    fusions = checks.of(fusions_named, settings.fusion, right_aligned=settings.alignment == "right-aligned")
    task, sender, receiver, cell = checks.task_pair_and_cell()
    checks.layers("read_layers", sender)
    checks.layers("write_layers", receiver)
    checks.widths(settings.alignment, sender, receiver)
    if task is None:
        return None
    if cell is None:
        checks.of(require_choices, task)
    halves = checks.halves(task, tuned=cell is None)
    if halves is None or fusions is None:
        return None
    tune, test = halves
    tuned = tune.items if cell is None else ()
    checks.prompts(sender, [item.sender for item in (*tuned, *test.items)])
    checks.prompts(receiver, [item.receiver for item in tuned])
    written = [text for item in test.items for text in (item.receiver, item.skyline)]
    checks.prompts(receiver, written, n_new=task.reply_tokens)
    checks.of(derangement, [label(item) for item in test.items], seed=settings.seed)
    checks.answers(test)
    checks.weights(sender, receiver)
    if sender is not None and receiver is not None and sender.shape.n_layers and receiver.shape.n_layers:
        mapped = settings.alignment in ALIGNMENTS and sender is not receiver
        reads, writes = (
            given or (depths(side.shape.n_layers or 1) if mapped else range(side.shape.n_layers or 0))
            for given, side in ((settings.read_layers, sender), (settings.write_layers, receiver))
        )
        checks.last_block(writes if cell is None else cell[1:], receiver)
        n_tune, n_cells = len(tune.items) if cell is None else 0, len(reads) * len(writes)
        if cell is None:
            checks.work.append(
                f"a sweep of {len(reads)} read by {len(writes)} write layers on {n_tune} items of {task.name}"
            )
        which = "its best cell" if cell is None else f"the cell k = {cell[0]}, j = {cell[1]}"
        checks.work.append(f"{which} by {', '.join(fusions)}, with controls, on {len(test.items)} other items")
        checks.holds_on_host("states", checks.itemsize * n_tune * len(reads) * (sender.shape.d_model or 0))
        logits = n_tune * n_cells * (checks.itemsize * DEFAULT_N_CHOICES + 8)
        checks.holds_on_host("logits", logits)
        checks.disk += logits
        read = checks.length(sender, [item.sender for item in tune.items])
        prompt = checks.length(receiver, [item.receiver for item in tune.items])
        checks.runs(sender, n_tune, n_new=read, n_unembedded=0)
        share = sum(receiver.shape.n_layers - layer for layer in writes) / receiver.shape.n_layers
        rows, most = n_tune * len(reads) * share, MOST_ROWS * share / len(writes)
        checks.runs(receiver, rows, n_new=1, n_past=prompt, n_unembedded=0, at_once=most)
        checks.runs(receiver, n_tune * n_cells, n_new=0, at_once=MOST_ROWS)
        conditions = 3 + len(USUAL) + 2 * (len(fusions) - 1)
        n_test = len(test.items)
        checks.writes(receiver, n_test * conditions, prompt=prompt, n_tokens=task.reply_tokens, at_once=n_test)
        checks.runs(sender, len(test.items), n_new=read)
    return SweepInputs(fusions, task, len(tune.items), len(test.items))


def fusions_named(names: tuple[str, ...], *, right_aligned: bool) -> dict[str, Fusion]:
    """The fusions of these names, in order, with dashes or underscores.

    Raises:
        ValueError: none, or an unknown name.

    >>> fusions_named(("sum",), right_aligned=True)
    {'sum': RightAligned(fusion=Sum())}
    """
    found: dict[str, Fusion] = {}
    for name in listed(names):
        plain_name = name.replace("-", "_")
        known = check_name("fusion", ALIASES.get(plain_name, plain_name), BY_NAME)
        if known in found:
            raise ValueError(f"fusion names {known} twice; name each once")
        found[known] = RightAligned(BY_NAME[known]) if right_aligned else BY_NAME[known]
    if not found:
        raise ValueError(f"fusion names none; choose among {', '.join(BY_NAME)}")
    return found
