"""Run the trials of a sweep: two models, one task, and for each condition the openings and the hand-off they take."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentcomm._core.files import digest, expanded
from latentcomm._core.records import Records, tracked
from latentcomm.channels.base import receiver_prompts, with_own_texts
from latentcomm.channels.message import Message, join
from latentcomm.experiments.cascade.continuations import ITEMS_AT_ONCE, Continued, Request, saved_or_continued
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.openings import Opening, ids_of, openings_of
from latentcomm.experiments.cascade.resume import Continuation
from latentcomm.experiments.cascade.trials import (
    LARGE,
    NO_HAND_OFF,
    OF_STATES,
    SILENT,
    CascadeTrial,
    continuation_flops,
    holds_answer,
    opening_flops,
    signals_at,
)
from latentcomm.experiments.controls import CONTROLS, SELF, SHUFFLED, Sending, applies, deranged
from latentcomm.experiments.cost import ModelSize
from latentcomm.experiments.evaluation import MESSAGE, chunks, print_of
from latentcomm.models import Model
from latentcomm.tasks.base import Task

ALONE, ALL = "0", "all"
"""The stops of the two models alone."""


@dataclass(frozen=True, eq=False)
class Side:
    """Of each item the opening that it gets, and what of it passes through which hand-off.

    Attributes:
        openings: the opening of each item.
        message: what passes of them.
        hand_off: the hand-off.
        is_small: whether the small model generated them.
    """

    openings: Sequence[Opening]
    message: Message
    hand_off: HandOff
    is_small: bool

    @classmethod
    def of(cls, openings: Message, hand_off: HandOff, *, is_small: bool) -> "Side":
        """What a hand-off passes of openings of `write_openings`."""
        return cls(openings_of(openings), hand_off.content(openings), hand_off, is_small)

    def shuffled(self, order: Sequence[int]) -> "Side":
        """Item i gets the opening in row `order[i]`."""
        message = replace(self.message.select(order), items=self.message.items)  # for the items that get them
        return replace(self, openings=[self.openings[row] for row in order], message=message)


@dataclass(frozen=True)
class _Label:
    """Where a trial belongs in the table, and whether its stop fired."""

    channel: str
    stop: str
    condition: str
    fired: bool = True


@dataclass(frozen=True, eq=False)
class Setting:
    """The two models and the task, their sizes, and the folder of the checkpoint.

    Attributes:
        large, small, task: the models and the items.
        seed: of the controls.
        sizes: of the large and of the small model.
        folder: where finished work is saved; None saves nothing.
        large_print, small_print: what the work of each model is saved under; empty without a folder.
        shown: whether progress is shown.
    """

    large: Model
    small: Model
    task: Task
    seed: int
    sizes: tuple[ModelSize, ModelSize]
    folder: Path | None
    large_print: Sequence[Any]
    small_print: Sequence[Any]
    shown: bool

    @classmethod
    def of(
        cls,
        large: Model,
        small: Model,
        task: Task,
        checkpoint: str | os.PathLike[str] | None,
        *,
        seed: int = 0,
        shown: bool = False,
    ) -> "Setting":
        """With the weights of both models hashed where a checkpoint is saved.

        Raises:
            ValueError: a checkpoint, and a model with hooks attached.
        """
        return cls(
            large=large,
            small=small,
            task=task,
            seed=seed,
            sizes=(ModelSize.of(large), ModelSize.of(small)),
            folder=None if checkpoint is None else expanded(checkpoint),
            large_print=[] if checkpoint is None else print_of(large),
            small_print=[] if checkpoint is None else print_of(small),
            shown=shown,
        )

    def sides(
        self, openings: Message, small_openings: Message, hand_off: HandOff, controls: Collection[str]
    ) -> Iterator[tuple[str, Side]]:
        """What the small model gets of a hand-off, by condition: the message, and each control that applies to it."""
        side = Side.of(openings, hand_off, is_small=False)
        yield MESSAGE, side
        task = with_own_texts(self.task)  # both models read the small one's prompt
        if SHUFFLED in controls:
            yield SHUFFLED, side.shuffled(deranged(task, seed=self.seed))
        for control in OF_STATES:
            if control in controls and applies(control, hand_off, self.small, side.message):
                sending = Sending(hand_off, self.large, self.small, task, side.message, self.seed)
                yield control, replace(side, message=_item_by_item(control, sending))
        if SELF in controls and (itself := hand_off.to_itself()) is not None:
            yield SELF, Side.of(small_openings, itself, is_small=True)

    def alone(self, openings: Sequence[Opening], alone: Mapping[int, Opening]) -> list[CascadeTrial]:
        """The trials of the two models alone."""
        trials = [self._of_small(_Label(NO_HAND_OFF, ALONE, SILENT), row, alone[row]) for row in range(len(openings))]
        for row, opening in enumerate(openings):
            n = len(opening)
            trials.append(
                self._trial(
                    _Label(NO_HAND_OFF, ALL, LARGE),
                    row,
                    opening,
                    n,
                    reply=self.large.decode(opening.ids),
                    finished=True,
                    reply_tokens=n,
                    sender_flops=opening_flops(self.sizes[0], opening, n, finished=True),
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
        """The trials of one hand-off under one condition: of every stop, item by item.

        None where other processes have not made theirs yet.
        """
        passed = {
            stop: [self._passed(side, row, n) for row, (n, _) in enumerate(chosen)] for stop, chosen in plan.items()
        }
        wanted: list[list[int]] = []
        for row in range(len(self.task.items)):
            ns = {of_items[row][0] for of_items in passed.values() if not of_items[row][1]}
            wanted.append(sorted(ns - {0}))
        continued = self._continued(side, condition, hand_off, wanted, alone)
        if len(continued) < len(wanted):
            return []
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
        opening = side.openings[row]
        return min(n, len(opening)), n > len(opening) or n >= self.task.reply_tokens

    def _continued(
        self, side: Side, condition: str, hand_off: str, wanted: Sequence[Sequence[int]], alone: Mapping[int, Opening]
    ) -> dict[int, dict[int, Continued]]:
        """For each item the continuation after each number of tokens, in chunks of items that are saved.

        Those of some items alone where other processes make the others.
        """
        parts = chunks(len(wanted), ITEMS_AT_ONCE)
        continued: dict[int, dict[int, Continued]] = {}
        pieces = [(self._records(side, condition, wanted, chunk), "handed") for chunk in parts]
        for number in tracked(pieces, f"{hand_off}, {condition}", needed=False, shown=self.shown):
            chunk = parts[number]
            known = [Continuation(alone[row].ids, alone[row].ended) for row in chunk if row in alone]
            request = Request(
                replace(self.task, items=self.task.items[chunk.start : chunk.stop]),
                side.message.select(chunk),
                [wanted[row] for row in chunk],
                known if len(known) == len(chunk) else None,
                self.task.reply_tokens,
                measures_surprise=condition != SELF,
            )
            of_items = saved_or_continued(pieces[number][0], side.hand_off, self.small, request)
            for row, of_item in zip(chunk, of_items, strict=True):
                continued[row] = {each.n: each for each in of_item}
        return continued

    def _records(self, side: Side, condition: str, wanted: Sequence[Sequence[int]], chunk: range) -> Records:
        """Where the continuations of some items are saved."""
        if self.folder is None:
            return Records(None)
        task = replace(self.task, items=self.task.items[chunk.start : chunk.stop])
        prompts = receiver_prompts(self.small, task)
        inputs = [ids_of(prompts, row) for row in range(len(chunk))]
        sent = [(side.openings[row].prompt, side.openings[row].ids) for row in chunk]
        return Records.of(
            self.folder, "handed", 2, self.large_print, self.small_print, task, inputs, side.hand_off,
            condition, self.seed if condition in OF_STATES else None, sent, [wanted[row] for row in chunk],
        )  # fmt: skip

    def _of_both(self, label: _Label, side: Side, row: int, n: int, continued: Continued | None) -> CascadeTrial:
        """The trial of an item after n tokens of an opening; without a continuation the opening is the reply."""
        opening = side.openings[row]
        finished = continued is None
        writer = self.small if side.is_small else self.large
        size = self.sizes[1] if side.is_small else self.sizes[0]
        opening_cost = opening_flops(size, opening, n, finished=finished, layers=side.hand_off.layers)
        continuation_cost = 0.0
        if continued is not None:
            continuation_cost = continuation_flops(
                self.sizes[1],
                continued.continuation,
                n_prompt=continued.n_prompt,
                n_past=continued.n_past,
                multiply_adds=continued.multiply_adds,
            )
        return self._trial(
            label,
            row,
            opening,
            n,
            reply=writer.decode(opening.ids) if continued is None else continued.reply,
            finished=finished,
            reply_tokens=0 if continued is None else len(continued.ids),
            sender_flops=0.0 if side.is_small else opening_cost,
            receiver_flops=continuation_cost + (opening_cost if side.is_small else 0.0),
            surprise=None if continued is None else continued.surprise,
            drift=None if continued is None else continued.drift,
        )

    def _of_small(self, label: _Label, row: int, opening: Opening) -> CascadeTrial:
        """The trial of the small model alone."""
        return self._trial(
            label,
            row,
            opening,
            0,
            reply=self.small.decode(opening.ids),
            finished=False,
            reply_tokens=len(opening),
            receiver_flops=opening_flops(self.sizes[1], opening, len(opening), finished=True),
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
        sender_flops: float = 0.0,
        receiver_flops: float = 0.0,
        surprise: float | None = None,
        drift: float | None = None,
    ) -> CascadeTrial:
        """A trial with the verdict on its reply and the signals at the end of its opening."""
        item, text = self.task.items[row], opening.text_at(n)
        verdict = self.task.judge(reply, item.answers)
        entropy, margin = signals_at(opening, n)
        return CascadeTrial(
            item=item.id,
            channel=label.channel,
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
            sender_flops=sender_flops,
            receiver_flops=receiver_flops,
            reply_tokens=reply_tokens,
            entropy=entropy,
            margin=margin,
            surprise=surprise,
            drift=drift,
        )


def _item_by_item(control: str, sending: Sending) -> Message:
    """The message of a control, drawn for each item by itself, whatever the other items are."""
    messages = []
    for row, item in enumerate(sending.task.items):
        seed = int(digest(sending.seed, item.id)[:8], 16)
        messages.append(CONTROLS[control](replace(sending, message=sending.message.select([row]), seed=seed)))
    return join(messages)
