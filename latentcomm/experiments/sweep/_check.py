"""The check of `SweepSettings` before the first weight is read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentcomm._core.names import check_name
from latentcomm.channels.base import label
from latentcomm.experiments._demand import Side
from latentcomm.experiments.controls import USUAL, derangement
from latentcomm.experiments.evaluation import ITEMS_AT_ONCE
from latentcomm.experiments.maps import ALIGNMENTS, MAP_TOKENS, depths, map_documents
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import Alignment, listed
from latentcomm.experiments.sweep.run import require_choices
from latentcomm.experiments.sweep.settings import SweepSettings
from latentcomm.fusion import BY_NAME, Fusion, RightAligned
from latentcomm.tasks.base import DEFAULT_N_CHOICES, Task

__all__ = ["SweepInputs", "cells_of", "check_sweep", "count_sweep", "depth_of", "fusions_named"]

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
        reads, writes = cells_of(settings.alignment, sender, receiver, settings.read_layers, settings.write_layers)
        checks.last_block(writes if cell is None else cell[1:], receiver)
        if cell is None:
            checks.work.append(
                f"a sweep of {len(reads)} read by {len(writes)} write layers on {len(tune.items)} items of {task.name}"
            )
            count_sweep(checks, sender, receiver, tune, reads, writes)
        which = "its best cell" if cell is None else f"the cell k = {cell[0]}, j = {cell[1]}"
        checks.work.append(f"{which} by {', '.join(fusions)}, with controls, on {len(test.items)} other items")
        if settings.alignment in ALIGNMENTS and sender is not receiver:
            n_maps = 1 if cell is not None else len(reads) * len(writes)
            checks.maps(sender, receiver, map_documents(), MAP_TOKENS, n_maps)
        prompts, depth = [item.receiver for item in test.items], depth_of(cell, reads)
        n_tokens = task.reply_tokens
        checks.reads(receiver, prompts, n_tokens=n_tokens)
        for number in range(len(fusions)):
            times = 2 if number else 1 + len(USUAL)
            checks.reads(receiver, prompts, n_tokens=n_tokens, times=times, grafted=True)
        checks.reads(receiver, [item.skyline for item in test.items], n_tokens=n_tokens)
        texts = [item.sender for item in test.items]
        checks.captures(sender, texts, n_layers=depth, chunk=ITEMS_AT_ONCE)
        checks.captures(receiver, prompts, n_layers=depth, chunk=ITEMS_AT_ONCE)  # of the control `self`
        if task.has_choices:
            checks.captures(sender, texts, n_layers=depth)
            checks.unembeds(sender, len(texts))
    return SweepInputs(fusions, task, len(tune.items), len(test.items))


def cells_of(
    alignment: Alignment,
    sender: Side,
    receiver: Side,
    read_layers: Sequence[int] = (),
    write_layers: Sequence[int] = (),
) -> tuple[Sequence[int], Sequence[int]]:
    """The read and write layers of a sweep: those given, or all, or some depths where maps are fitted."""
    mapped = alignment in ALIGNMENTS and sender is not receiver
    reads, writes = (
        given or (depths(side.shape.n_layers or 1) if mapped else range(side.shape.n_layers or 0))
        for given, side in ((read_layers, sender), (write_layers, receiver))
    )
    return reads, writes


def depth_of(cell: tuple[int, int] | None, reads: Sequence[int]) -> int:
    """Blocks that run up to the read layer, or to the mean of those that one is chosen among."""
    return cell[0] + 1 if cell is not None else round(sum(reads) / len(reads)) + 1


def count_sweep(
    checks: Checks, sender: Side, receiver: Side, tune: Task, reads: Sequence[int], writes: Sequence[int]
) -> None:
    """Count what a sweep of cells takes."""
    n_rows = len(tune.items) * len(reads)
    checks.holds_on_host("states", checks.itemsize * n_rows * (sender.shape.d_model or 0))
    logits = n_rows * len(writes) * (checks.itemsize * DEFAULT_N_CHOICES + 8)
    checks.holds_on_host("logits", logits)
    checks.disk += logits
    checks.captures(sender, [item.sender for item in tune.items], n_layers=max(reads) + 1, n_sites=len(reads))
    checks.unembeds(sender, n_rows)  # the logit lens
    texts = [item.receiver for item in tune.items]
    n_tokens = dict(zip(texts, checks.tokens(receiver, texts), strict=True))
    for text, n in Counter(texts).items():
        checks.staircase(receiver, n * len(reads), writes, n_past=n_tokens[text] - 1)


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
