"""The check of `CompareSettings` before the first weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentcomm._core.files import expanded
from latentcomm.channels import Debate
from latentcomm.channels.catalogue import CHANNELS, LEARNED, PREDICTABILITY, SENDER_ALONE, check_names, needs_cell
from latentcomm.channels.training.trainer import load_weights
from latentcomm.experiments._demand import Side
from latentcomm.experiments.compare.run import audited, check_controls, require_choices, unable
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.controls import FILLER, RANDOM, SAME_LABEL, SELF, SHUFFLED, ZERO
from latentcomm.experiments.evaluation import ITEMS_AT_ONCE
from latentcomm.experiments.maps import ALIGNMENTS, MAP_TOKENS, map_documents
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import listed
from latentcomm.experiments.sweep._check import cells_of, count_sweep, depth_of
from latentcomm.experiments.train import KIND, trained_files
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
    skylines = [item.skyline for item in test.items]
    fits = not checks.exceeds(sender, skylines, n_new=task.reply_tokens)
    run, controls, left_out = checks.of(audited, used, test, settings, fits=fits) or (used, settings.controls, ())
    checks.notes += left_out
    checks.prompts(sender, [item.sender for item in (*swept, *test.items)])
    checks.prompts(receiver, [item.receiver for item in swept])
    if SENDER_ALONE in run:
        checks.prompts(sender, skylines, n_new=task.reply_tokens)
    written = [item.receiver for item in test.items]
    written += skylines if "skyline" in used else []
    checks.prompts(receiver, written, n_new=task.reply_tokens)
    if tuned:
        checks.of(require_choices, tune)
    if grafted:
        checks.widths(settings.alignment, sender, receiver)
        checks.last_block(() if cell is None else cell[1:], receiver)
    checks.answers(test)
    checks.weights(sender, receiver)
    _count(checks, settings, run, controls, sender, receiver, tune=tune, test=test, chosen=tuned)
    return CompareInputs(names, task)


def _count(
    checks: Checks,
    settings: CompareSettings,
    names: Sequence[str],
    controls: Sequence[str],
    sender: Side | None,
    receiver: Side | None,
    *,
    tune: Task,
    test: Task,
    chosen: bool,
) -> None:
    """Count what the comparison takes."""
    n, conditions = len(test.items), 1 + len(controls)
    cell = checks.cell()
    grafts = [name for name in names if needs_cell(name) or name in LEARNED]
    mapped = (
        bool(grafts) and settings.alignment in ALIGNMENTS and None not in (sender, receiver) and sender is not receiver
    )
    n_maps, reads = 1, range(sender.shape.n_layers or 1 if sender is not None else 1)
    if chosen:
        checks.work.append(f"a sweep for the cell on {len(tune.items)} items of {test.name}")
    if chosen and sender is not None and receiver is not None and sender.shape.n_layers and receiver.shape.n_layers:
        reads, writes = cells_of(settings.alignment, sender, receiver)
        n_maps = len(reads) * len(writes)
        count_sweep(checks, sender, receiver, tune, reads, writes)
    if mapped:
        checks.maps(sender, receiver, map_documents(), MAP_TOKENS, n_maps + (PREDICTABILITY in names))
    checks.work.append(f"{', '.join(names)} on {n} items of {test.name}, with {conditions} messages each")
    sent, prompts = ([getattr(item, side) for item in test.items] for side in ("sender", "receiver"))
    depth, n_tokens, n_words = depth_of(cell, reads), test.reply_tokens, settings.message_tokens
    n_read = sum(checks.tokens(sender, sent)) / n
    by_sender, by_receiver = 1 + (FILLER in controls), int(SELF in controls)  # messages that a model makes
    made = by_sender + by_receiver
    if grafts:  # the channels that graft a state share one message
        for _ in range(by_sender):
            checks.captures(sender, sent, n_layers=depth, chunk=ITEMS_AT_ONCE)
    for name in names:
        shown = [item.skyline for item in test.items] if name in ("skyline", SENDER_ALONE) else prompts
        times = 1 if name in ("silent", "skyline", SENDER_ALONE) else conditions
        if name == SENDER_ALONE:
            checks.reads(sender, shown, n_tokens=n_tokens)
            continue
        if name in ROUNDS:
            with_controls = made + len({SHUFFLED, SAME_LABEL} & {*controls})
            for number in range(ROUNDS[name]):
                last = number == ROUNDS[name] - 1
                more = {"n_more": number and n_tokens + 1, "n_tokens": n_tokens, "shares": number == 0}
                checks.reads(sender, sent, **more, times=by_sender)
                checks.reads(receiver, shown, **more, times=(with_controls if last else made) + by_receiver)
            if name in SOFT:
                checks.mixes(receiver, made * n * n_tokens * (2 * ROUNDS[name] - 1), n_tables=4)
        elif name in IN_WORDS:
            times -= len({ZERO, RANDOM} & {*controls}) * (name == "text")  # which a text has none of
            checks.reads(sender, sent, n_tokens=n_words + (name == "deltas"), times=by_sender)
            checks.reads(receiver, prompts, n_tokens=n_words + (name == "deltas"), times=by_receiver)
            checks.reads(
                receiver,
                shown,
                n_more=n_words + 1,
                n_tokens=n_tokens,
                times=times,
                shares=False,
                ragged=name != "cipher",
            )
            if name in SOFT:
                checks.mixes(receiver, made * n * n_words, n_tables=3)
        elif name == "kv":
            checks.reads(sender, sent, times=by_sender)
            checks.reads(receiver, prompts, times=by_receiver)
            checks.reads(receiver, shown, n_past=n_read, n_tokens=n_tokens, times=times)
        elif name == "coconut":
            more = settings.n_thoughts + 2 if settings.n_thoughts else 0
            for _ in range(made):
                checks.captures(sender, sent, chunk=ITEMS_AT_ONCE)
            checks.runs(sender, made * n * max(0, settings.n_thoughts - 1), n_new=1, n_past=n_read, n_unembedded=0)
            checks.reads(receiver, shown, n_more=more, n_tokens=n_tokens, times=times, shares=False)
        else:
            checks.reads(receiver, shown, n_tokens=n_tokens, times=times, grafted=needs_cell(name))
            if by_receiver and name in grafts:
                checks.captures(receiver, prompts, n_layers=depth, chunk=ITEMS_AT_ONCE)
    if "kv" in names:
        held = made * n * n_read * checks.cached(sender)
        checks.holds("keys and values", held)  # of a message, which stay where the sender computed them
        checks.disk += round(held)


IN_WORDS = ("text", "cipher", "deltas")
"""Channels whose sender writes tokens."""
ROUNDS = {"debate": Debate().rounds, "cipher_debate": 2}
"""Rounds of the debates of the catalogue."""
SOFT = ("cipher", "cipher_debate")
"""Channels whose tokens are averages of embeddings."""
