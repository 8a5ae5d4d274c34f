"""The check of `CompareSettings` before the first weight is read."""

from dataclasses import dataclass

from latentcomm._core.files import expanded
from latentcomm.channels.catalogue import CHANNELS, LEARNED, check_names, needs_cell
from latentcomm.channels.training.trainer import load_weights
from latentcomm.experiments.compare.run import check_controls, check_shuffles, require_choices, unable
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.preflight import Checks, Side
from latentcomm.experiments.settings import listed
from latentcomm.experiments.train import KIND, trained_files
from latentcomm.hooks.shared_prefix import MOST_ROWS
from latentcomm.tasks.base import Task

__all__ = ["CompareInputs", "check_compare"]


@dataclass(frozen=True, eq=False)
class CompareInputs:
    """What a comparison runs with, besides its settings and its models.

    Attributes:
        names: of the channels; none for all that can pass between the models.
        task: all of its items.
    """

    names: tuple[str, ...]
    task: Task


def check_compare(settings: CompareSettings, checks: Checks) -> CompareInputs | None:
    """What the comparison runs with; None where something is refused."""
    names = tuple(name.replace("-", "_") for name in listed(settings.channels))
    trained = checks.of(trained_files, expanded(settings.weights)) if settings.weights else ()
    for path in trained or ():
        checks.of(load_weights, path, kind=KIND)
    if names:
        checks.of(check_names, names, LEARNED if trained is None else [path.stem for path in trained])
    checks.of(check_controls, settings.controls)
    task, sender, receiver, cell = checks.task_pair_and_cell()
    usual = list(CHANNELS)
    if sender is not None and receiver is not None:
        right_aligned = settings.alignment == "right-aligned"
        pair = {"shares_vocabulary": sender.shares_vocabulary(receiver), "right_aligned": right_aligned}
        refused = unable(names or CHANNELS, sender.shape, receiver.shape, **pair)
        for sentence in refused.values() if names else ():
            checks.refuse(sentence)
        usual = [name for name in CHANNELS if name not in refused]
    used = names or tuple(usual)
    grafted = any(needs_cell(name) for name in used)
    tuned = grafted and cell is None
    halves = None if task is None else checks.halves(task, tuned=tuned)
    if task is None or halves is None:
        return None
    tune, test = halves
    swept = tune.items if tuned else ()
    checks.prompts(sender, [item.sender for item in (*swept, *test.items)])
    checks.prompts(receiver, [item.receiver for item in swept])
    written = [item.receiver for item in test.items]
    written += [item.skyline for item in test.items] if "skyline" in used else []
    checks.prompts(receiver, written, n_new=task.reply_tokens)
    if tuned:
        checks.of(require_choices, tune)
    if grafted:
        checks.widths(settings.alignment, sender, receiver)
        checks.last_block(() if cell is None else cell[1:], receiver)
    checks.answers(test)
    checks.of(check_shuffles, test, settings.controls, seed=settings.seed)
    checks.weights(sender, receiver)
    _count(checks, settings, used, sender, receiver, tune=tune, test=test, chosen=tuned)
    return CompareInputs(names, task)


def _count(
    checks: Checks,
    settings: CompareSettings,
    names: tuple[str, ...],
    sender: Side | None,
    receiver: Side | None,
    *,
    tune: Task,
    test: Task,
    chosen: bool,
) -> None:
    """Count what the comparison takes."""
    n, conditions = len(test.items), 1 + len(settings.controls)
    if chosen:
        checks.work.append(f"a sweep for the cell on {len(tune.items)} items of {test.name}")
    checks.work.append(f"{', '.join(names)} on {n} items of {test.name}, with {conditions} messages each")
    read = checks.length(sender, [item.sender for item in test.items])
    prompt = checks.length(receiver, [item.receiver for item in test.items])
    for name in names:
        checks.writes(receiver, n * conditions, prompt=prompt, n_tokens=test.reply_tokens, at_once=n)
        if name in ("text", "debate", "cipher", "cipher_debate", "deltas"):
            checks.writes(sender, n, prompt=read, n_tokens=settings.message_tokens)
        else:
            checks.runs(sender, n, n_new=read)
    if "kv" in names:
        held = n * read * checks.cached(sender)
        checks.holds("keys and values", held)  # of a message, which stay where the sender computed them
        checks.disk += round(held)
    if chosen and sender is not None and receiver is not None:
        n_reads, n_writes = sender.shape.n_layers or 0, receiver.shape.n_layers or 0
        states = len(tune.items) * n_reads * (sender.shape.d_model or 0)
        checks.holds_on_host("states", checks.itemsize * states)
        cells = len(tune.items) * n_reads * n_writes
        checks.runs(receiver, cells / 2, n_new=1, n_past=prompt, n_unembedded=0, at_once=MOST_ROWS / 2)
        checks.runs(receiver, cells, n_new=0, at_once=MOST_ROWS)
