"""The reverse cascade at every n and stop: the large model generates once, and each shorter opening is a prefix."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from latentcomm._core.files import digest, write_text
from latentcomm._core.names import check_name
from latentcomm._core.records import end_of_part
from latentcomm.channels.base import receiver_prompts, with_own_texts
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.openings import LONGEST, Opening, ids_of, openings_of
from latentcomm.experiments.cascade.runner import ALL, Setting, Side
from latentcomm.experiments.cascade.signals import saved_signals
from latentcomm.experiments.cascade.stops import FixedTokens, Oracle, Stop
from latentcomm.experiments.cascade.table import cascade_table
from latentcomm.experiments.cascade.trials import (
    CONTROLS,
    NO_HAND_OFF,
    RENAMED,
    SELF_CONSISTENCY,
    SILENT,
    CascadeTrial,
)
from latentcomm.experiments.cascade.votes import held_votes
from latentcomm.experiments.controls import SELF, SHUFFLED, deranged
from latentcomm.experiments.evaluation import MESSAGE, keyed
from latentcomm.models import Model, check_pair
from latentcomm.tasks.base import Task

NS = (0, 8, 16, 32, 64, 128)
"""Numbers of opening tokens at which a sweep hands off."""


@dataclass(frozen=True, eq=False)
class Cascade:
    """A large model that generates the opening, a small one that continues it, the hand-off between them, and the stop.

    Attributes:
        large, small: the two models; both read the same problem.
        hand_off: how the opening passes.
        stop: after how many tokens.
    """

    large: Model
    small: Model
    hand_off: HandOff
    stop: Stop

    def run(
        self,
        task: Task,
        *,
        openings: Message | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> list[CascadeTrial]:
        """One trial an item. Given `openings` of `write_openings`, with what the hand-off needs, are reused.

        A stop that never fires hands off at the end of the openings. Opening and continuation together have
        `task.reply_tokens` tokens at most.

        Raises:
            ValueError: a fixed n beyond the openings, openings of another model, of other items, longer than a reply or
                without what the hand-off needs, or what `HandOff.check` refuses.
        """
        self.hand_off.check(self.large, self.small, task)
        _refuse_unkeyed(checkpoint, hand_off=self.hand_off)
        if openings is None:
            openings = write_openings(
                self.large, task, layers=self.hand_off.layers, keep_cache=self.hand_off.needs_cache,
                checkpoint=checkpoint, progress=progress,
            )  # fmt: skip
        longest = self._check_openings(task, openings)
        _refuse_late(self.stop, longest)
        rows = openings_of(openings)
        chosen = [choose(self.stop, opening, longest) for opening in rows]
        needed = [row for row, (n, _) in enumerate(chosen) if n == 0]
        alone: dict[int, Opening] = {}
        if needed:
            part = replace(task, items=tuple(task.items[row] for row in needed))
            replies = write_openings(self.small, part, checkpoint=checkpoint, progress=progress)
            alone = dict(zip(needed, openings_of(replies), strict=True))
        setting = Setting.of(self.large, self.small, task, checkpoint, shown=progress)
        side = Side.of(openings, self.hand_off, is_small=False)
        name = str(self.stop.n) if isinstance(self.stop, FixedTokens) else type(self.stop).__name__
        return setting.trials(side, MESSAGE, self.hand_off.name, {name: chosen}, alone)

    def _check_openings(self, task: Task, openings: Message) -> int:
        """The limit at which the openings were cut; refuses those that are not of this task and this large model."""
        rows = openings_of(openings)
        if len(rows) != len(task.items):
            raise ValueError(f"the openings are of other items than those of task {task.name!r}; write them for it")
        prompts = receiver_prompts(self.large, task)
        if any(list(row.prompt) != ids_of(prompts, number) for number, row in enumerate(rows)):
            raise ValueError(f"the openings are of other prompts than those of task {task.name!r}; write them for it")
        openings.check_items(task)
        if (writer := openings.made_by["model"]) != self.large.name:
            raise ValueError(f"the openings are by {writer}, not by {self.large.name}; write them with the large model")
        if (most := max(map(len, rows), default=0)) > task.reply_tokens:
            raise ValueError(
                f"an opening has {most} tokens, and a reply of task {task.name!r} {task.reply_tokens} at most; "
                "raise its reply_tokens, or write shorter openings"
            )
        _refuse_silence(openings)
        return int(openings.made_by[LONGEST])


@dataclass(frozen=True, eq=False)
class CascadeSweep:
    """All trials of a sweep, with the openings of both models.

    Attributes:
        trials: of every hand-off, stop and condition.
        openings: the large model's whole openings, with their signals; `openings_of` gives them row by row.
        small_openings: the small model's replies without a hand-off.
        signals: a row a token of the large model's openings; see `cascade.signals.token_signals`.
    """

    trials: tuple[CascadeTrial, ...]
    openings: Message
    small_openings: Message
    signals: pd.DataFrame

    def table(self, *, groups: Mapping[str, str] | None = None, seed: int = 0) -> pd.DataFrame:
        """One row a hand-off, stop and condition; see `cascade.table.cascade_table`."""
        return cascade_table(self.trials, groups=groups, seed=seed)

    def save_trials(self, path: str | os.PathLike[str]) -> None:
        """Write the trials as JSON lines, whole or not at all."""
        lines = [json.dumps(asdict(trial), ensure_ascii=False) for trial in self.trials]
        write_text(Path(path), "".join(f"{line}\n" for line in lines))


def sweep_cascade(
    large: Model,
    small: Model,
    task: Task,
    *,
    hand_offs: Mapping[str, HandOff],
    ns: Sequence[int] = NS,
    stops: Mapping[str, Stop | Oracle] = MappingProxyType({}),
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> CascadeSweep:
    """Every hand-off at every n and stop, the two models alone, and the controls, on all items of a task.

    The large model generates once, to `task.reply_tokens`; every n and stop is a prefix of that. A stop that has not
    fired by the largest n hands off there. n = 0 is the small model alone, and where the large model had ended, or
    generated `task.reply_tokens`, its output is the reply and the small model does not run. Each pair of item and n is
    run once a hand-off.

    Controls at every n above 0, in addition to "silent" (the small model alone, which receives nothing) and "large"
    (the large model alone), which are always run: "shuffled", the first n tokens of the opening of another item with
    another answer (where that had ended before, it is the reply, which is then wrong by construction: the share
    `finished` gives how often); "zero" and "random", where states pass, zeros and random directions of the same norms
    instead; "self", the small model's own opening through the same hand-off (by text, by keys and values, and by
    `Replace` at a layer that is the small model alone by construction: the same replies at another cost);
    "self-consistency", the majority of m sampled replies of the small model (temperature 0.7), m the mean cost of the
    cascade over that of a reply, rounded, at least 1. A vote of one or two is hardly more than one sampled reply; there
    "silent" is the stronger control.

    With `checkpoint` finished work is saved there and not run again. Same seed, same trials.

    Raises:
        ValueError: an n that is negative or beyond `task.reply_tokens`, an unknown control, no hand-off or one that the
            two models refuse, a large model whose openings are all empty, or items whose openings cannot be permuted.
    """
    check_pair(large, small)
    grid = sorted(set(ns))
    check_plan(task, list(hand_offs), ns=grid, stops=stops, controls=controls, seed=seed)
    for hand_off in hand_offs.values():
        hand_off.check(large, small, task)
    _refuse_unkeyed(checkpoint, hand_offs=hand_offs)
    openings = _generated(large, task, list(hand_offs.values()), checkpoint, progress)
    _refuse_silence(openings)
    own = [each.to_itself() for each in hand_offs.values()] if SELF in controls else []
    small_openings = _generated(small, task, [each for each in own if each is not None], checkpoint, progress)
    setting = Setting.of(large, small, task, checkpoint, seed=seed, shown=progress)
    rows, alone = openings_of(openings), dict(enumerate(openings_of(small_openings)))
    most = max(grid, default=0) or task.reply_tokens
    plan = {str(n): [(n, True)] * len(rows) for n in grid}
    for name, stop in stops.items():
        if not isinstance(stop, Oracle):
            plan[name] = [choose(stop, opening, most) for opening in rows]
    above = {name: chosen for name, chosen in plan.items() if any(n > 0 for n, _ in chosen)}
    oracles = [name for name, stop in stops.items() if isinstance(stop, Oracle)]
    trials, compared = setting.alone(rows, alone), []
    singles = [trial for trial in trials if trial.condition == SILENT]
    for name, hand_off in hand_offs.items():
        for condition, side in setting.sides(openings, small_openings, hand_off, controls):
            found = setting.trials(side, condition, name, plan if condition == MESSAGE else above, alone)
            if condition == MESSAGE:
                found += _by_oracle(found, oracles, grid)
                compared += [trial for trial in found if trial.stop in above]
            trials += found
    end_of_part(only_where_left=SELF_CONSISTENCY in controls)
    if SELF_CONSISTENCY in controls:
        trials += held_votes(
            small,
            task,
            compared,
            singles,
            seed=seed,
            folder=setting.folder,
            decisive=setting.small_print,
            shown=progress,
        )
    decisive = [setting.large_print, setting.small_print]
    signals = saved_signals(openings, small, task, hand_offs, folder=setting.folder, decisive=decisive)
    return CascadeSweep(tuple(trials), openings, small_openings, signals)


def check_plan(
    task: Task,
    hand_offs: Sequence[str],
    *,
    ns: Sequence[int],
    stops: Mapping[str, Stop | Oracle],
    controls: Sequence[str],
    seed: int,
) -> None:
    """Refuse names, numbers of tokens and items of a sweep that no cascade can run, whatever its models.

    Raises:
        ValueError: see `sweep_cascade`.
    """
    _refuse_names(hand_offs, stops, controls)
    for n in ns:
        if not 0 <= n <= task.reply_tokens:
            raise ValueError(
                f"n is {n}, and the large model writes {task.reply_tokens} tokens at most in task {task.name!r}; give "
                "n from 0 to that, or raise the task's reply_tokens"
            )
    for stop in stops.values():
        _refuse_late(stop, task.reply_tokens)
    if SHUFFLED in controls:
        deranged(with_own_texts(task), seed=seed)  # refuses items that cannot be shuffled


def choose(stop: Stop, opening: Opening, most: int) -> tuple[int, bool]:
    """The number of tokens after which a stop hands off, and whether it fired; one that is not fixed, by `most`."""
    if isinstance(stop, FixedTokens):
        return stop.n, True
    n = stop.at(opening.cut(most))
    return (most, False) if n is None else (n, True)


def _generated(
    model: Model,
    task: Task,
    hand_offs: Sequence[HandOff],
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> Message:
    """The whole openings of a model, with the states and caches that the hand-offs need."""
    layers = sorted({layer for hand_off in hand_offs for layer in hand_off.layers})
    keep_cache = any(hand_off.needs_cache for hand_off in hand_offs)
    return write_openings(model, task, layers=layers, keep_cache=keep_cache, checkpoint=checkpoint, progress=progress)


def _by_oracle(trials: Sequence[CascadeTrial], names: Sequence[str], grid: Sequence[int]) -> list[CascadeTrial]:
    """For each item the trial of the smallest n that is right, else of the smallest n; under each oracle's name."""
    stops = {str(n): n for n in grid}
    of_item: dict[str, list[CascadeTrial]] = {}
    for trial in trials:
        if trial.stop in stops:
            of_item.setdefault(trial.item, []).append(trial)
    chosen = []
    for name in names:
        for of_grid in of_item.values():
            ascending = sorted(of_grid, key=lambda trial: stops[trial.stop])
            best = next((trial for trial in ascending if trial.free), ascending[0])
            chosen.append(replace(best, stop=name, fired=best.free))
    return chosen


def _refuse_names(hand_offs: Sequence[str], stops: Mapping[str, Stop | Oracle], controls: Sequence[str]) -> None:
    """Refuse names that are ambiguous, reserved or unknown."""
    if not hand_offs:
        raise ValueError("no hand-off was given; give at least one, such as {'text': TextHandOff()}")
    if NO_HAND_OFF in hand_offs:
        raise ValueError(f"{NO_HAND_OFF!r} is the name for the two models alone; name the hand-off otherwise")
    if odd := [name for name in stops if name.isdigit() or name == ALL]:
        raise ValueError(f"a stop is named {odd[0]!r}, which is the name of a fixed n; name it otherwise")
    if renamed := [name for name in controls if name in RENAMED]:
        raise ValueError(f"the control {renamed[0]!r} is called {RENAMED[renamed[0]]!r} now; give that name")
    for number, name in enumerate(controls):
        if check_name("control", name, CONTROLS) in controls[:number]:
            raise ValueError(f"controls names {name} twice; name each once")


def _refuse_unkeyed(checkpoint: str | os.PathLike[str] | None, **given: HandOff | Mapping[str, HandOff]) -> None:
    """Refuse hand-offs whose work cannot be saved, before anything is run."""
    if checkpoint is not None:
        with keyed(**given):
            digest(given)


def _refuse_late(stop: Stop | Oracle, longest: int) -> None:
    """Refuse a fixed number of tokens beyond the longest opening."""
    if isinstance(stop, FixedTokens) and stop.n > longest:
        raise ValueError(
            f"n is {stop.n}, and the large model wrote {longest} tokens at most; give a smaller n, or write longer "
            "openings"
        )


def _refuse_silence(openings: Message) -> None:
    """Refuse openings that are all empty."""
    if not any(len(opening) for opening in openings_of(openings)):
        raise ValueError(
            f"{openings.made_by['model']} wrote an empty opening for every item, so there is nothing to hand off; use "
            "a prompt that it answers, such as its chat template"
        )
