"""What every trial of a sweep is run in: two models and a task, and whose openings are handed over how."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentcomm._core.files import digest
from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.channels.base import receiver_prompts
from latentcomm.experiments.cascade.continuations import ITEMS_AT_ONCE, Errand, Handed, kept_or_handed
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.openings import Opening, Openings, ids_of, vocabulary_of
from latentcomm.experiments.cascade.resume import Continuation
from latentcomm.experiments.cascade.trials import (
    LARGE_ALONE,
    NO_HAND_OFF,
    OWN,
    SMALL_ALONE,
    CascadeTrial,
    going_on_flops,
    holds_answer,
    opening_flops,
    signals_at,
)
from latentcomm.experiments.cost import ModelSize
from latentcomm.models import Model, fingerprints
from latentcomm.tasks.base import Task

ALONE, ALL = "0", "all"
"""The stops of the two models alone."""


@dataclass(frozen=True, eq=False)
class Side:
    """Whose openings are handed over, to which item each, and how."""

    openings: Openings
    rows: Sequence[int]
    hand_off: HandOff
    is_small: bool


@dataclass(frozen=True, eq=False)
class Setting:
    """The two models and the task, their sizes, and where what is done is kept."""

    large: Model
    small: Model
    task: Task
    sizes: tuple[ModelSize, ModelSize]
    folder: Path | None
    prints: tuple[str, ...]
    shown: bool

    @classmethod
    def of(
        cls,
        large: Model,
        small: Model,
        task: Task,
        checkpoint: str | os.PathLike[str] | None,
        shown: bool,
    ) -> "Setting":
        """With the weights of both hashed where something is kept."""
        folder = None if checkpoint is None else Path(checkpoint)
        prints: tuple[str, ...] = ()
        if folder is not None:
            if large.has_hooks or small.has_hooks:
                raise ValueError("trials of a model with hooks attached cannot be kept: they are in no name")
            known = [[sorted(model.stop_ids), vocabulary_of(model)] for model in (large, small)]
            prints = (*fingerprints(large, small), digest(known))
        return cls(large, small, task, (ModelSize.of(large), ModelSize.of(small)), folder, prints, shown)

    def alone(self, openings: Openings, alone: Mapping[int, Opening]) -> list[CascadeTrial]:
        """The trials of the two models alone."""
        trials = [
            replace(self._of_small(row, alone[row]), hand_off=NO_HAND_OFF, stop=ALONE, condition=SMALL_ALONE)
            for row in range(len(openings))
        ]
        for row, opening in enumerate(openings.rows):
            trial = self._trial(row, opening, len(opening), reply=opening.written, finished=True)
            cost = opening_flops(self.sizes[0], opening, len(opening), finished=True)
            trials.append(
                replace(
                    trial, hand_off=NO_HAND_OFF, stop=ALL, condition=LARGE_ALONE, large_flops=cost,
                    reply_tokens=len(opening),
                )
            )  # fmt: skip
        return trials

    def trials(
        self,
        side: Side,
        condition: str,
        hand_off: str,
        plan: Mapping[str, Sequence[tuple[int, bool]]],
        alone: Mapping[int, Opening],
    ) -> list[CascadeTrial]:
        """The trials of one hand-off under one condition: of every stop, item by item."""
        settled = {
            stop: [self._settled(side, row, n) for row, (n, _) in enumerate(chosen)] for stop, chosen in plan.items()
        }
        wanted: list[list[int]] = []
        for row in range(len(self.task.items)):
            ns = {each[row][0] for each in settled.values() if not each[row][1]}
            wanted.append(sorted(ns - {0}))
        handed = self._handed(side, condition, hand_off, wanted, alone)
        trials = []
        for stop, chosen in plan.items():
            for row, (_, fired) in enumerate(chosen):
                n, finished = settled[stop][row]
                trial = self._one(side, row, n, finished, handed[row], alone)
                trials.append(replace(trial, hand_off=hand_off, stop=stop, condition=condition, fired=fired))
        return trials

    def _settled(self, side: Side, row: int, n: int) -> tuple[int, bool]:
        """How many tokens there are to hand over, and whether they are the whole reply."""
        opening = side.openings.rows[side.rows[row]]
        return min(n, len(opening)), n > len(opening) or n >= self.task.reply_tokens

    def _handed(
        self, side: Side, condition: str, hand_off: str, wanted: Sequence[Sequence[int]], alone: Mapping[int, Opening]
    ) -> list[dict[int, Handed]]:
        """Of each item what was written behind each number of tokens, in parts that are kept."""
        parts = [range(at, min(at + ITEMS_AT_ONCE, len(wanted))) for at in range(0, len(wanted), ITEMS_AT_ONCE)]
        handed: list[dict[int, Handed]] = []
        for part in track(parts, f"{hand_off}, {condition}", total=len(parts), shown=self.shown):
            rows = [side.rows[row] for row in part]
            known = [Continuation(alone[row].ids, alone[row].ended) for row in part if row in alone]
            errand = Errand(
                replace(self.task, items=self.task.items[part.start : part.stop]),
                rows,
                [wanted[row] for row in part],
                known if len(known) == len(part) else None,
                self.task.reply_tokens,
                measures_surprise=condition != OWN,
            )
            records = Records(None)
            if self.folder is not None:
                ids = [side.openings.rows[row].ids for row in rows]
                whose = [self.task.items[row] for row in rows]
                prompts = receiver_prompts(self.small, errand.task)
                records = Records.of(
                    self.folder, "handed", 1,
                    self.prints, errand.task, [ids_of(prompts, row) for row in range(len(rows))], side.hand_off,
                    condition, whose, ids, errand.wanted, side.openings.layers,
                )  # fmt: skip
            done = kept_or_handed(records, side.hand_off, self.small, side.openings, errand)
            handed += [{one.n: one for one in each} for each in done]
        return handed

    def _one(
        self,
        side: Side,
        row: int,
        n: int,
        finished: bool,
        handed: Mapping[int, Handed],
        alone: Mapping[int, Opening],
    ) -> CascadeTrial:
        """The trial of an item after n tokens."""
        if n == 0 and not finished:
            return self._of_small(row, alone[row])
        opening = side.openings.rows[side.rows[row]]
        size = self.sizes[1] if side.is_small else self.sizes[0]
        opened = opening_flops(size, opening, n, finished=finished, layers=side.hand_off.layers)
        said = None if finished else handed[n]
        trial = self._trial(row, opening, n, reply=opening.written if said is None else said.reply, finished=finished)
        went_on = 0.0
        if said is not None:
            went_on = going_on_flops(
                self.sizes[1], said.said, n_prompt=said.n_prompt, n_past=said.n_past, multiply_adds=said.multiply_adds
            )
        return replace(
            trial,
            large_flops=0.0 if side.is_small else opened,
            small_flops=went_on + (opened if side.is_small else 0.0),
            reply_tokens=0 if said is None else len(said.ids),
            surprise=None if said is None else said.surprise,
            drift=None if said is None else said.drift,
        )

    def _of_small(self, row: int, opening: Opening) -> CascadeTrial:
        """The trial of the small model alone."""
        trial = self._trial(row, opening, 0, reply=opening.written, finished=False)
        cost = opening_flops(self.sizes[1], opening, len(opening), finished=True)
        return replace(trial, small_flops=cost, reply_tokens=len(opening))

    def _trial(self, row: int, opening: Opening, n: int, *, reply: str, finished: bool) -> CascadeTrial:
        """A trial without names and costs."""
        item = self.task.items[row]
        verdict, text = self.task.judge(reply, item.answers), opening.text(n)
        entropy, margin = signals_at(opening, n)
        return CascadeTrial(
            item.id, "", "", "", n, True, finished, text, reply, verdict.is_right, verdict.is_parsed, verdict.found,
            holds_answer(text, item.answers, self.task.judge), 0.0, 0.0, 0, entropy, margin,
        )  # fmt: skip
