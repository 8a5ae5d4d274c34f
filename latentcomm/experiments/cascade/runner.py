"""Run the trials of a sweep: two models, one task, and for each condition the openings and the hand-off they take."""

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
from latentcomm.experiments.cascade.openings import Opening, Openings, ids_of
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
    """Which openings pass, to which item each, and through which hand-off.

    Attributes:
        openings: the openings.
        rows: for each item of the task, the row of the opening that it gets.
        hand_off: the hand-off.
        is_small: whether the small model generated them.
    """

    openings: Openings
    rows: Sequence[int]
    hand_off: HandOff
    is_small: bool


@dataclass(frozen=True)
class _Label:
    """Where a trial belongs in the table, and whether its stop fired."""

    hand_off: str
    stop: str
    condition: str
    fired: bool = True


@dataclass(frozen=True, eq=False)
class Setting:
    """The two models and the task, their sizes, and the folder of the checkpoint.

    Attributes:
        large, small, task: the models and the items.
        sizes: of the large and of the small model.
        folder: where finished work is saved; None saves nothing.
        prints: digests of the large model's weights, of the small one's, and of the stop tokens and vocabularies of
            both; empty without a folder.
        shown: whether progress is shown.
    """

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
        """With the weights of both models hashed where a checkpoint is saved.

        Raises:
            ValueError: a checkpoint, and a model with hooks attached.
        """
        folder = None if checkpoint is None else Path(checkpoint)
        prints: tuple[str, ...] = ()
        if folder is not None:
            if large.has_hooks or small.has_hooks:
                raise ValueError(
                    "trials of a model with hooks attached cannot be saved, since the name of a checkpoint does not "
                    "cover hooks; remove them, or run without a checkpoint"
                )
            known = [[sorted(model.stop_ids), model.vocabulary] for model in (large, small)]
            prints = (*fingerprints(large, small), digest(known))
        return cls(large, small, task, (ModelSize.of(large), ModelSize.of(small)), folder, prints, shown)

    @property
    def small_prints(self) -> tuple[str, ...]:
        """`prints` without the large model's weights: what the small model's own samples are saved under."""
        return self.prints[1:]

    def alone(self, openings: Openings, alone: Mapping[int, Opening]) -> list[CascadeTrial]:
        """The trials of the two models alone."""
        of_small = _Label(NO_HAND_OFF, ALONE, SMALL_ALONE)
        of_large = _Label(NO_HAND_OFF, ALL, LARGE_ALONE)
        trials = [self._of_small(of_small, row, alone[row]) for row in range(len(openings))]
        for row, opening in enumerate(openings.rows):
            n = len(opening)
            trials.append(
                self._trial(
                    of_large,
                    row,
                    opening,
                    n,
                    reply=opening.written,
                    finished=True,
                    reply_tokens=n,
                    large_flops=opening_flops(self.sizes[0], opening, n, finished=True),
                )
            )
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
        passed = {
            stop: [self._passed(side, row, n) for row, (n, _) in enumerate(chosen)] for stop, chosen in plan.items()
        }
        wanted: list[list[int]] = []
        for row in range(len(self.task.items)):
            ns = {of_items[row][0] for of_items in passed.values() if not of_items[row][1]}
            wanted.append(sorted(ns - {0}))
        continued = self._continued(side, condition, hand_off, wanted, alone)
        trials = []
        for stop, chosen in plan.items():
            for row, (_, fired) in enumerate(chosen):
                label = _Label(hand_off, stop, condition, fired)
                n, finished = passed[stop][row]
                if n == 0 and not finished:
                    trials.append(self._of_small(label, row, alone[row]))
                else:
                    trials.append(self._of_both(label, side, row, n, None if finished else continued[row][n]))
        return trials

    def _passed(self, side: Side, row: int, n: int) -> tuple[int, bool]:
        """How many tokens of an opening pass when n are wanted, and whether they are the whole reply."""
        opening = side.openings.rows[side.rows[row]]
        return min(n, len(opening)), n > len(opening) or n >= self.task.reply_tokens

    def _continued(
        self, side: Side, condition: str, hand_off: str, wanted: Sequence[Sequence[int]], alone: Mapping[int, Opening]
    ) -> list[dict[int, Handed]]:
        """For each item the continuation after each number of tokens, in chunks of items that are saved."""
        chunks = [range(at, min(at + ITEMS_AT_ONCE, len(wanted))) for at in range(0, len(wanted), ITEMS_AT_ONCE)]
        continued: list[dict[int, Handed]] = []
        for chunk in track(chunks, f"{hand_off}, {condition}", total=len(chunks), shown=self.shown):
            rows = [side.rows[row] for row in chunk]
            known = [Continuation(alone[row].ids, alone[row].ended) for row in chunk if row in alone]
            request = Errand(
                replace(self.task, items=self.task.items[chunk.start : chunk.stop]),
                rows,
                [wanted[row] for row in chunk],
                known if len(known) == len(chunk) else None,
                self.task.reply_tokens,
                measures_surprise=condition != OWN,
            )
            records = Records(None)
            if self.folder is not None:
                ids = [side.openings.rows[row].ids for row in rows]
                sources = [self.task.items[row] for row in rows]
                prompts = receiver_prompts(self.small, request.task)
                records = Records.of(
                    self.folder, "handed", 1,
                    self.prints, request.task, [ids_of(prompts, row) for row in range(len(rows))], side.hand_off,
                    condition, sources, ids, request.wanted, side.openings.layers,
                )  # fmt: skip
            of_items = kept_or_handed(records, side.hand_off, self.small, side.openings, request)
            continued += [{handed.n: handed for handed in of_item} for of_item in of_items]
        return continued

    def _of_both(self, label: _Label, side: Side, row: int, n: int, handed: Handed | None) -> CascadeTrial:
        """The trial of an item after n tokens of an opening; without a continuation the opening is the reply."""
        opening = side.openings.rows[side.rows[row]]
        finished = handed is None
        size = self.sizes[1] if side.is_small else self.sizes[0]
        opening_cost = opening_flops(size, opening, n, finished=finished, layers=side.hand_off.layers)
        continuation_cost = 0.0
        if handed is not None:
            continuation_cost = going_on_flops(
                self.sizes[1],
                handed.said,
                n_prompt=handed.n_prompt,
                n_past=handed.n_past,
                multiply_adds=handed.multiply_adds,
            )
        return self._trial(
            label,
            row,
            opening,
            n,
            reply=opening.written if handed is None else handed.reply,
            finished=finished,
            reply_tokens=0 if handed is None else len(handed.ids),
            large_flops=0.0 if side.is_small else opening_cost,
            small_flops=continuation_cost + (opening_cost if side.is_small else 0.0),
            surprise=None if handed is None else handed.surprise,
            drift=None if handed is None else handed.drift,
        )

    def _of_small(self, label: _Label, row: int, opening: Opening) -> CascadeTrial:
        """The trial of the small model alone."""
        return self._trial(
            label,
            row,
            opening,
            0,
            reply=opening.written,
            finished=False,
            reply_tokens=len(opening),
            small_flops=opening_flops(self.sizes[1], opening, len(opening), finished=True),
        )

    def _trial(
        self,
        label: _Label,
        row: int,
        opening: Opening,
        n: int,
        *,
        reply: str,
        finished: bool,
        reply_tokens: int,
        large_flops: float = 0.0,
        small_flops: float = 0.0,
        surprise: float | None = None,
        drift: float | None = None,
    ) -> CascadeTrial:
        """A trial with the verdict on its reply and the signals at the end of its opening."""
        item, text = self.task.items[row], opening.text(n)
        verdict = self.task.judge(reply, item.answers)
        entropy, margin = signals_at(opening, n)
        return CascadeTrial(
            item=item.id,
            hand_off=label.hand_off,
            stop=label.stop,
            condition=label.condition,
            n=n,
            fired=label.fired,
            finished=finished,
            opening=text,
            reply=reply,
            free=verdict.is_right,
            parsed=verdict.is_parsed,
            found=verdict.found,
            answer_in_opening=holds_answer(text, item.answers, self.task.judge),
            large_flops=large_flops,
            small_flops=small_flops,
            reply_tokens=reply_tokens,
            entropy=entropy,
            margin=margin,
            surprise=surprise,
            drift=drift,
        )
