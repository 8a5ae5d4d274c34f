"""The comparison of `latentcomm compare`: one half of a task chooses the cell, the other half is reported."""

import contextlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from latentcomm._core.files import expanded
from latentcomm._core.names import check_name
from latentcomm._core.progress import say, track
from latentcomm._core.records import Records, end_of_part, made_once
from latentcomm.alignment import AffineMap
from latentcomm.channels.base import Channel
from latentcomm.channels.catalogue import (
    CHANNELS,
    PREDICTABILITY,
    SENDER_ALONE,
    Recipe,
    build,
    check_names,
    needs_cell,
)
from latentcomm.channels.coconut import marker
from latentcomm.channels.merged import fit_predictability
from latentcomm.experiments.audit import DERANGED, NEEDED
from latentcomm.experiments.compare.channels import Comparison
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.controls import AUDIT, CONTROLS, SAME_LABEL, SHUFFLED, deranged, deranged_within_label
from latentcomm.experiments.cost import ModelSize, paper_activation_flops, paper_forward_flops, paper_text_flops
from latentcomm.experiments.evaluation import MESSAGE, Trial, evaluate, n_evaluated, send_first
from latentcomm.experiments.maps import Sized, depths, fit_maps, is_mapped, map_documents, map_tokens
from latentcomm.experiments.settings import Alignment, cell_of
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.experiments.sweep.run import best_cell, cell_table, tune_sweep
from latentcomm.fusion import Replace, RightAligned
from latentcomm.models import Model, check_pair, encode, fingerprints, one_model, one_vocabulary
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task, draw_choices

MARKERS = (("(", ")"), ("[", "]"), ("<", ">"), (":", "."), (".", "."))
"""Candidate markers of continuous thoughts: the first pair whose texts are single tokens is used."""
SETTINGS = CompareSettings()


def names_for(sender: Model, receiver: Model, *, alignment: Alignment = "ridge") -> list[str]:
    """The names of all channels that can run without training and can pass between these two models."""
    if one_model(sender, receiver):
        return list(CHANNELS)
    left_out = {*unable(CHANNELS, sender, receiver, shares_vocabulary=one_vocabulary(sender, receiver))}
    left_out |= {name for name, entry in CHANNELS.items() if "layout" in entry.same}
    if alignment == "right-aligned" and sender.d_model != receiver.d_model:
        left_out.add(PREDICTABILITY)
    return [name for name in CHANNELS if name not in left_out]


def unable(
    names: Collection[str], sender: Sized, receiver: Sized, *, shares_vocabulary: bool, right_aligned: bool = False
) -> dict[str, str]:
    """The channels that cannot pass between these two models, each with a sentence."""
    needs = {name: CHANNELS[name].same for name in names if name in CHANNELS}
    differ: dict[str, str] = {}
    if not shares_vocabulary:
        differ["vocabulary"] = "their vocabularies differ"
    if (sender.n_layers, sender.d_model) != (receiver.n_layers, receiver.d_model):
        differ["layout"] = "they are of different layouts"
    if sender.d_model != receiver.d_model:
        differ["width"] = f"they are {sender.d_model} and {receiver.d_model} wide, and nothing here maps what it sends"
    found = {
        name: f"the channel {name} cannot pass from {sender.name} to {receiver.name}: "
        f"{next(why for what, why in differ.items() if what in same)}; leave it out"
        for name, same in needs.items()
        if set(same) & differ.keys()
    }
    if right_aligned and PREDICTABILITY in names and sender.d_model != receiver.d_model:
        found[PREDICTABILITY] = (
            f"{PREDICTABILITY} needs a map between {sender.name} and {receiver.name}; leave out one of both"
        )
    return found


def check_controls(names: Sequence[str]) -> None:
    """Refuse controls that there are not, or that are named twice.

    Raises:
        ValueError: with the first of them.
    """
    for number, name in enumerate(names):
        if check_name("control", name, CONTROLS) in names[:number]:
            raise ValueError(f"controls names {name} twice; name each once")


def check_shuffles(test: Task, controls: Sequence[str], *, seed: int) -> None:
    """Refuse items whose messages cannot be shuffled as the controls need it.

    Raises:
        ValueError: what `controls.deranged` and `controls.deranged_within_label` refuse.
    """
    deranged(test, seed=seed)
    if SAME_LABEL in controls:
        deranged_within_label(test, seed=seed)


def audited(
    names: Sequence[str], test: Task, settings: CompareSettings, *, fits: bool
) -> tuple[list[str], list[str], list[str]]:
    """The channels and controls that run: those that are named, with what an audit of them needs; and what is left out.

    `fits` says whether the sender's context holds both texts and a reply, as it must where the sender answers itself.

    Raises:
        ValueError: items whose messages cannot be shuffled as a control needs it that is no part of an audit.
    """
    if not settings.audit or {*names} <= {*NEEDED, "skyline"}:
        check_shuffles(test, settings.controls, seed=settings.seed)
        return list(names), list(settings.controls), []
    controls, left_out = [*settings.controls, *(name for name in AUDIT if name not in settings.controls)], []
    try:
        deranged(test, seed=settings.seed)
    except ValueError as error:
        controls.remove(SHUFFLED)
        left_out.append(f"the audit leaves out {SHUFFLED}, since {error}")
    if SAME_LABEL in controls:
        deranged_within_label(test, seed=settings.seed)
    needed = [name for name in NEEDED if name not in names]
    if SENDER_ALONE in needed and not fits:
        needed.remove(SENDER_ALONE)
        left_out.append(
            "the audit leaves out the sender alone, whose context does not hold both texts and a reply, or whose "
            "tokenizer gives an item too few choices of different first tokens"
        )
    return [*needed, *names], controls, left_out


def compare_named(
    names: Sequence[str],
    sender: Model,
    receiver: Model,
    task: Task,
    *,
    settings: CompareSettings = SETTINGS,
    learned: Mapping[str, Channel] = MappingProxyType({}),
    deranged_twins: Mapping[str, Channel] = MappingProxyType({}),
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> tuple[Comparison, Cell | None]:
    """The channels of these names on the test half of a task, and the cell (k, j) that was chosen on the other half.

    Where a channel grafts a state, `replace` is swept over all cells of one model with itself (over 25 cells of unequal
    models, each with a ridge map fitted on the packaged corpus) and the best by choices is taken, writes after the
    last block left out. Neither the choice of the cell nor any map uses a test item. Trained channels are passed by
    name in `learned` (`train.load_folder`), and in `deranged_twins` the same channels trained on other items' messages.
    `settings` give all but the names, models and task, which are arguments. With `checkpoint`, an interrupted
    comparison resumes.

    Raises:
        ValueError: an unknown name, one half of a cell, a task without choices and no cell, a test half whose messages
            cannot be shuffled, or an argument that a channel refuses.
    """
    check_names(names, learned)
    check_pair(sender, receiver)
    check_controls(settings.controls)
    needs_one = any("vocabulary" in CHANNELS[name].same for name in names if name in CHANNELS)
    shares_vocabulary = not needs_one or one_vocabulary(sender, receiver)
    right_aligned = settings.alignment == "right-aligned"
    for sentence in unable(
        names, sender, receiver, shares_vocabulary=shares_vocabulary, right_aligned=right_aligned
    ).values():
        raise ValueError(sentence)
    tune, test = task.split(seed=settings.seed)
    if 0 < settings.n_test < len(test.items):
        test = test.take(settings.n_test, seed=settings.seed)
    fits = settings.audit and _answers_alone(sender, test, seed=settings.seed)
    names, controls, left_out = audited(names, test, settings, fits=fits)  # raises now, before the sweep
    for sentence in left_out:
        say(sentence)
    folder = None if checkpoint is None else expanded(checkpoint)
    cell, alignment, predictable = None, None, None
    if any(needs_cell(name) for name in names):
        cell, alignment = choose_cell(
            sender,
            receiver,
            tune,
            read_layer=settings.read_layer,
            write_layer=settings.write_layer,
            alignment=settings.alignment,
            n_tune=settings.n_tune,
            seed=settings.seed,
            folder=folder,
            progress=progress,
        )
        if PREDICTABILITY in names:
            prints = fingerprints(sender, receiver)
            records = Records.of(folder, "predictable", 1, prints, str(receiver.dtype), cell, alignment, settings.seed)
            fit = partial(
                fit_predictability,
                sender,
                receiver,
                map_documents(),
                read=Site(cell[0]),
                write=Site(cell[1]),
                alignment=alignment,
                max_tokens=map_tokens(sender, receiver),
                seed=settings.seed,
            )
            predictable = made_once(records, "map", partial(records.saved, "map", fit, AffineMap.load))
    recipe = Recipe(
        Site(cell[0] if cell else 0),
        Site(cell[1] if cell else 0),
        alignment=alignment,
        predictable=predictable,
        right_aligned=right_aligned and sender.d_model != receiver.d_model,
        message_tokens=settings.message_tokens,
        request=settings.request,
        n_thoughts=settings.n_thoughts,
        markers=_markers(sender, receiver),
        learned=learned,
        delta_layers=tuple(sorted({sender.n_layers * part // 4 for part in (1, 2, 3)})),
    )
    channels = build(names, recipe)
    shared = {"seed": settings.seed, "checkpoint": folder}
    alone = [each for each in channels if each.name == SENDER_ALONE]
    trials_of = {each.name: evaluate(each, sender, sender, test, controls=(), **shared) for each in alone}
    others = [each for each in channels if each not in alone]
    twins = [twin for name, twin in deranged_twins.items() if name in names]
    send_first(others, sender, receiver, test, controls=controls, **shared)
    send_first(twins, sender, receiver, test, controls=(), **shared)
    saved = n_evaluated(others, sender, receiver, test, controls=controls, **shared) if progress else 0
    sent: dict[str, Any] = {}
    for channel in track(others, "channels", total=len(others), saved=saved, shown=progress):
        trials_of[channel.name] = evaluate(channel, sender, receiver, test, controls=controls, told=sent, **shared)
    for twin in twins:
        found = evaluate(twin, sender, receiver, test, controls=(), told=sent, **shared)
        trials_of[twin.name] += [replace(trial, condition=DERANGED) for trial in found]
    trials = [trial for channel in channels for trial in trials_of[channel.name]]
    end_of_part()
    comparison = Comparison.of(trials, seed=settings.seed)
    paper_flops = _paper_flops(names, sender, receiver, test, cell, settings, comparison.trials)
    return replace(
        comparison,
        table=comparison.table.assign(paper_flops=[paper_flops[name] for name in comparison.table["channel"]]),
    ), cell


def _answers_alone(model: Model, task: Task, *, seed: int) -> bool:
    """Whether a model's context holds both texts of every item and a reply, and its tokenizer tells choices apart."""
    try:
        prompts = encode(model, [item.skyline for item in task.items], template=task.template)
        if task.has_choices:
            draw_choices(task, model.first_token, seed=seed)
    except ValueError:
        return False
    return int(prompts.lengths.max()) + task.reply_tokens - 1 <= model.n_ctx


def _paper_flops(
    names: Sequence[str],
    sender: Model,
    receiver: Model,
    task: Task,
    cell: Cell | None,
    settings: CompareSettings,
    trials: Sequence[Trial],
) -> dict[str, float]:
    """For each channel the operations of an item by the paper's formulas, without a cache, at mean lengths.

    NaN for a channel that has no formula. A text counts with its maximal length.
    """
    sender_size, receiver_size = ModelSize.of(sender), ModelSize.of(receiver)

    def length(model: Model, texts: list[str]) -> int:
        return round(float(encode(model, texts, template=task.template).lengths.double().mean()))

    n_read, n_own = (
        length(sender, [item.sender for item in task.items]),
        length(receiver, [item.receiver for item in task.items]),
    )

    def of(name: str) -> float:
        counts = [trial.reply_tokens for trial in trials if trial.channel == name and trial.condition == MESSAGE]
        reply = sum(counts) / len(counts)
        if name == "silent":
            return reply * paper_forward_flops(receiver_size, n_own)
        if name in ("skyline", SENDER_ALONE):
            model, size = (receiver, receiver_size) if name == "skyline" else (sender, sender_size)
            return reply * paper_forward_flops(size, length(model, [item.skyline for item in task.items]))
        if name == "text":
            return paper_text_flops(
                sender_size,
                receiver_size,
                prompt=n_read,
                message=settings.message_tokens,
                reply=reply,
                own_prompt=n_own,
            )
        if cell is not None and needs_cell(name):
            return paper_activation_flops(
                sender_size, receiver_size, prompt=n_read, read=cell[0], reply=reply, own_prompt=n_own
            )
        return math.nan

    return {name: of(name) for name in names}


def choose_cell(
    sender: Model,
    receiver: Model,
    tune: Task,
    *,
    read_layer: int | None = None,
    write_layer: int | None = None,
    alignment: Alignment = "ridge",
    n_tune: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
) -> tuple[Cell, AffineMap | None]:
    """The cell of reads and writes, the one given or the best on tuning items, and the map between the two spaces.

    Raises:
        ValueError: a task without choices and no cell, or a layer that the model does not have.
    """
    given = cell_of(read_layer, write_layer)
    mapped = is_mapped(sender, receiver, alignment)
    if given is not None:
        sender.check_site(Site(given[0]))
        receiver.check_site(Site(given[1]))
        options = {"alignment": alignment, "checkpoint": folder}
        return given, fit_maps(sender, receiver, [given], seed, **options)[given] if mapped else None
    require_choices(tune)
    tune = tune if n_tune is None else tune.take(min(n_tune, len(tune.items)), seed=seed)
    reads = depths(sender.n_layers) if mapped else None
    writes = depths(receiver.n_layers) if mapped else None
    maps = None
    if reads is not None and writes is not None:
        cells = [(read, write) for read in reads for write in writes]
        maps = fit_maps(sender, receiver, cells, seed, alignment=alignment, checkpoint=folder, progress=progress)
    wide = alignment == "right-aligned" and sender.d_model != receiver.d_model
    sweep = tune_sweep(
        sender,
        receiver,
        tune,
        fusion=RightAligned(Replace()) if wide else Replace(),
        alignment=maps,
        read_layers=reads,
        write_layers=writes,
        seed=seed,
        checkpoint=None if folder is None else folder / "sweep",
        progress=progress,
    )
    cell = best_cell(cell_table(sweep, sender, tune), n_layers=receiver.n_layers)
    return cell, None if maps is None else maps[cell]


def require_choices(task: Task) -> None:
    """Refuse a task by which no cell can be chosen.

    Raises:
        ValueError: it has no answer choices.
    """
    if not task.has_choices:
        raise ValueError(f"task {task.name!r} has no choices to choose a cell by; give read_layer and write_layer")


def _markers(sender: Model, receiver: Model) -> tuple[str, str]:
    """The markers of thoughts: the first pair of `MARKERS` of single tokens in both models, else the first pair."""
    for pair in MARKERS:
        with contextlib.suppress(ValueError):
            for model in (sender, receiver):
                for text in pair:
                    marker(model, text)
            return pair
    return MARKERS[0]
