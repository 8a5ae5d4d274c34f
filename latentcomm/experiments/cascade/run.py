"""The reverse cascade at every n and stop: the large model generates once, and each shorter opening is a prefix."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from latentcomm._core.files import digest, write_text
from latentcomm.channels.base import receiver_prompts
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.cascade.hand_offs import EMPTY, HandOff
from latentcomm.experiments.cascade.openings import Opening, Openings, ids_of
from latentcomm.experiments.cascade.runner import ALL, Setting, Side
from latentcomm.experiments.cascade.signals import kept_signals
from latentcomm.experiments.cascade.stops import FixedTokens, Oracle, Stop
from latentcomm.experiments.cascade.table import cascade_table
from latentcomm.experiments.cascade.trials import (
    CONTROLS,
    NO_HAND_OFF,
    OTHER,
    OWN,
    SELF_CONSISTENCY,
    SMALL_ALONE,
    CascadeTrial,
)
from latentcomm.experiments.cascade.votes import held_votes
from latentcomm.experiments.controls import derangement
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.models import Model, check_pair
from latentcomm.tasks.base import Task

NS = (0, 8, 16, 32, 64, 128)
"""Numbers of opening tokens at which a sweep hands over."""


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
        openings: Openings | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> list[CascadeTrial]:
        """One trial an item. Given `openings` of `write_openings`, with what the hand-off needs, are reused.

        A stop that never fires hands over at the end of the openings. Opening and continuation together have
        `task.reply_tokens` tokens at most.

        Raises:
            ValueError: a fixed n beyond the openings, openings of another model, of other items, longer than a reply or
                without what the hand-off needs, or what `HandOff.check` refuses.
        """
        self.hand_off.check(self.large, self.small, task)
        if openings is None:
            openings = write_openings(
                self.large, task, layers=self.hand_off.layers, keep_cache=self.hand_off.needs_cache,
                checkpoint=checkpoint, progress=progress,
            )  # fmt: skip
        if openings.items != tuple(item.id for item in task.items):
            raise ValueError(f"the openings are of other items than those of task {task.name!r}; write them for it")
        prompts = receiver_prompts(self.large, task)
        if [row.asked for row in openings.rows] != [digest(ids_of(prompts, row)) for row in range(len(openings))]:
            raise ValueError(
                f"the openings are of other prompts than those of task {task.name!r}, under the same item ids; "
                "write them for it"
            )
        if openings.large != self.large.name:
            raise ValueError(
                f"the openings are by {openings.large}, not by {self.large.name}; write them with the large model"
            )
        if (longest := max(map(len, openings.rows), default=0)) > task.reply_tokens:
            raise ValueError(
                f"an opening has {longest} tokens, and a reply of task {task.name!r} {task.reply_tokens} at most; "
                "raise its reply_tokens, or write shorter openings"
            )
        _refuse_silence(openings)
        chosen = [choose(self.stop, opening, openings.longest, openings.longest) for opening in openings.rows]
        needed = [row for row, (n, _) in enumerate(chosen) if n == 0]
        alone: dict[int, Opening] = {}
        if needed:
            part = replace(task, items=tuple(task.items[row] for row in needed))
            replies = write_openings(self.small, part, checkpoint=checkpoint, progress=progress)
            alone = dict(zip(needed, replies.rows, strict=True))
        setting = Setting.of(self.large, self.small, task, checkpoint, progress)
        side = Side(openings, range(len(openings)), self.hand_off, is_small=False)
        name = str(self.stop.n) if isinstance(self.stop, FixedTokens) else type(self.stop).__name__
        return setting.trials(side, MESSAGE, self.hand_off.name, {name: chosen}, alone)


@dataclass(frozen=True, eq=False)
class CascadeSweep:
    """All trials of a sweep, with the openings of both models.

    Attributes:
        trials: of every hand-off, stop and condition.
        openings: the large model's whole openings, with their signals.
        small_openings: the small model's replies without a hand-off.
        signals: a row a token of the large model's openings; see `cascade.signals.token_signals`.
    """

    trials: tuple[CascadeTrial, ...]
    openings: Openings
    small_openings: Openings
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
    fired by the largest n hands over there. n = 0 is the small model alone, and where the large model had ended, or
    generated `task.reply_tokens`, its output is the reply and the small model does not run. Each pair of item and n is
    run once a hand-off.

    Controls at every n above 0, in addition to "small alone" and "large alone", which are always run: "other", the
    first n tokens of the opening of another item with another answer (where that had ended before, it is the reply,
    which is then wrong by construction: the share `finished` gives how often); "zero" and "random", where states pass,
    zeros and random directions of the same norms in their place; "own", the small model's own opening through the same
    hand-off (by text, by keys and values, and by `Replace` at a layer that is the small model alone by construction:
    the same replies at another cost); "self-consistency", the majority of m sampled replies of the small model
    (temperature 0.7), m the mean cost of the cascade over that of a reply, rounded, at least 1. A vote of one or two is
    hardly more than one sampled reply; there "small alone" is the stronger control.

    With `checkpoint` finished work is saved there and not run again. Same seed, same trials.

    Raises:
        ValueError: an n that is negative or beyond `task.reply_tokens`, an unknown control, no hand-off or one that the
            two models refuse, a large model whose openings are all empty, or items whose openings cannot be permuted.
    """
    check_pair(large, small)
    _refuse_names(hand_offs, stops, controls)
    grid = sorted(set(ns))
    for n in grid:
        if not 0 <= n <= task.reply_tokens:
            raise ValueError(
                f"n is {n}, and the large model writes {task.reply_tokens} tokens at most in task {task.name!r}; give "
                "n from 0 to that, or raise the task's reply_tokens"
            )
    for hand_off in hand_offs.values():
        hand_off.check(large, small, task)
    labels, texts = [item.answers[0] for item in task.items], [item.receiver for item in task.items]
    permuted = derangement(labels, seed=seed, texts=texts) if OTHER in controls else []
    openings = _generated(large, task, list(hand_offs.values()), checkpoint, progress)
    _refuse_silence(openings)
    own = {name: hand_off.own() for name, hand_off in hand_offs.items()} if OWN in controls else {}
    small_openings = _generated(small, task, [each for each in own.values() if each is not None], checkpoint, progress)
    setting = Setting.of(large, small, task, checkpoint, progress)
    alone = dict(enumerate(small_openings.rows))
    most = max(grid, default=0) or task.reply_tokens
    plan = {str(n): [(n, True)] * len(openings) for n in grid}
    for name, stop in stops.items():
        if not isinstance(stop, Oracle):
            plan[name] = [choose(stop, opening, most, openings.longest) for opening in openings.rows]
    above = {name: chosen for name, chosen in plan.items() if any(n > 0 for n, _ in chosen)}
    trials = setting.alone(openings, alone)
    singles, compared = [trial for trial in trials if trial.condition == SMALL_ALONE], []
    for name, hand_off in hand_offs.items():
        side = Side(openings, range(len(openings)), hand_off, is_small=False)
        messages = setting.trials(side, MESSAGE, name, plan, alone)
        messages += _by_oracle(messages, [key for key, stop in stops.items() if isinstance(stop, Oracle)], grid)
        trials += messages
        if OTHER in controls:
            side = Side(openings, permuted, hand_off, is_small=False)
            trials += setting.trials(side, OTHER, name, above, alone)
        for control in EMPTY:
            if control in controls and (empty := hand_off.emptied(control, seed=seed)) is not None:
                side = Side(openings, range(len(openings)), empty, is_small=False)
                trials += setting.trials(side, control, name, above, alone)
        if (itself := own.get(name)) is not None:
            side = Side(small_openings, range(len(openings)), itself, is_small=True)
            trials += setting.trials(side, OWN, name, above, alone)
        compared += [trial for trial in messages if trial.stop in above]
    if SELF_CONSISTENCY in controls:
        trials += held_votes(
            small,
            task,
            compared,
            singles,
            seed=seed,
            folder=setting.folder,
            prints=setting.small_prints,
            shown=progress,
        )
    signals = kept_signals(openings, small, task, hand_offs, folder=setting.folder, prints=setting.prints)
    return CascadeSweep(tuple(trials), openings, small_openings, signals)


def choose(stop: Stop, opening: Opening, most: int, longest: int) -> tuple[int, bool]:
    """The number of tokens after which a stop hands over, `most` at the latest, and whether it fired.

    Raises:
        ValueError: a fixed number beyond the longest opening.
    """
    if isinstance(stop, FixedTokens):
        if stop.n > longest:
            raise ValueError(
                f"n is {stop.n}, and the large model wrote {longest} tokens at most; give a smaller n, or write "
                "longer openings"
            )
        return stop.n, True
    n = stop.at(opening.cut(most))
    return (most, False) if n is None else (n, True)


def _generated(
    model: Model,
    task: Task,
    hand_offs: Sequence[HandOff],
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> Openings:
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


def _refuse_names(
    hand_offs: Mapping[str, HandOff], stops: Mapping[str, Stop | Oracle], controls: Sequence[str]
) -> None:
    """Refuse names that are ambiguous, reserved or unknown."""
    if not hand_offs:
        raise ValueError("no hand-off was given; give at least one, such as {'text': TextHandOff()}")
    if NO_HAND_OFF in hand_offs:
        raise ValueError(f"{NO_HAND_OFF!r} is the name for the two models alone; name the hand-off otherwise")
    if odd := [name for name in stops if name.isdigit() or name == ALL]:
        raise ValueError(f"a stop is named {odd[0]!r}, which is the name of a fixed n; name it otherwise")
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise ValueError(f"there is no control {unknown[0]!r}; choose among {', '.join(CONTROLS)}")


def _refuse_silence(openings: Openings) -> None:
    """Refuse openings that are all empty."""
    if not any(len(opening) for opening in openings.rows):
        raise ValueError(
            f"{openings.large} wrote an empty opening for every item, so there is nothing to hand over; use a prompt "
            "that it answers, such as its chat template"
        )
