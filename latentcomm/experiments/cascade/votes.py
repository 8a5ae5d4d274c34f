"""Self-consistency of the small model: the majority of as many sampled replies as the cascade costs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentcomm._core.records import Records, end_of_part, tracked
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.text import item_seed
from latentcomm.experiments.cascade.openings import ids_of
from latentcomm.experiments.cascade.trials import SELF_CONSISTENCY, CascadeTrial, writing_flops
from latentcomm.experiments.cost import ModelSize
from latentcomm.hooks.decode import decode
from latentcomm.models import Model
from latentcomm.tasks.base import Task
from latentcomm.tasks.judging import Letter, Number

TEMPERATURE = 0.7
"""Of the sampled replies, as in Wang et al. 2022 (arXiv:2203.11171) for models without truncation."""

_WORDS = re.compile(r"\w+")

Reply = tuple[str, int]
"""A sampled reply and how many tokens it has."""


def held_votes(
    small: Model,
    task: Task,
    trials: Sequence[CascadeTrial],
    alone: Sequence[CascadeTrial],
    *,
    seed: int,
    folder: Path | None,
    decisive: Sequence[Any],
    shown: bool = False,
) -> list[CascadeTrial]:
    """A vote of the small model for every hand-off and stop of `trials`, at equal cost.

    m is the mean cost of the trials of a stop over the mean cost of the small model `alone`, rounded, at least 1. The
    answer is the most frequent one among the first m sampled replies in which the judge finds one; of ties the first.
    Two replies have one answer where the judge reads the same number or letter in them; where it searches for accepted
    words, and so reads no answer in a wrong reply, where their first lines are equal but for case and punctuation. A
    vote of one or two is hardly more than one sampled reply, and the small model alone, which is greedy, the stronger
    control. The cost of each reply includes its prompt, as a separate request: replies that share one pass over the
    prompt would be more at the same cost, the more the longer the prompts are relative to the replies. Source: Wang et
    al. 2022, arXiv:2203.11171.

    Raises:
        ValueError: a saved file holds other values.
    """
    reply_cost = sum(trial.flops for trial in alone) / len(alone)
    of_stop: dict[tuple[str, str], list[CascadeTrial]] = {}
    for trial in trials:
        of_stop.setdefault((trial.channel, trial.stop), []).append(trial)
    counts = {
        key: max(1, round(sum(trial.flops for trial in each) / len(each) / reply_cost)) for key, each in of_stop.items()
    }
    numbers = range(max(counts.values(), default=0))
    records = _records(small, task, seed=seed, folder=folder, decisive=decisive)
    pieces = [(records, f"{number:04d}") for number in numbers]
    drawn_by = {
        number: _sampled(small, task, number, seed=seed, records=records)
        for number in tracked(pieces, "votes", needed=False, shown=shown)
    }
    end_of_part()
    replies = [drawn_by[number] for number in numbers]
    lengths = receiver_prompts(small, task).lengths.tolist()
    size, votes = ModelSize.of(small), []
    for (hand_off, stop), m in counts.items():
        for row in range(len(task.items)):
            drawn = [each[row] for each in replies[:m]]
            costs = [
                writing_flops(size, n_prompt=lengths[row], n_past=0, n_written=n, ended=n < task.reply_tokens)
                for _, n in drawn
            ]
            votes.append(_vote(task, row, drawn, hand_off=hand_off, stop=stop, receiver_flops=sum(costs)))
    return votes


def _vote(
    task: Task, row: int, drawn: Sequence[Reply], *, hand_off: str, stop: str, receiver_flops: float
) -> CascadeTrial:
    """The trial of the majority among some sampled replies."""
    replies = [text for text, _ in drawn]
    item = task.items[row]
    verdicts = [task.judge(reply, item.answers) for reply in replies]
    names_one = isinstance(task.judge, Number | Letter)
    answers = [
        (verdict.found if names_one else _plain(reply)) if verdict.is_parsed else None
        for verdict, reply in zip(verdicts, replies, strict=True)
    ]
    parsed = [answer for answer in answers if answer is not None]
    best = max(dict.fromkeys(parsed), key=parsed.count) if parsed else None
    chosen = answers.index(best)
    verdict = verdicts[chosen]
    return CascadeTrial(
        item=item.id,
        channel=hand_off,
        stop=stop,
        condition=SELF_CONSISTENCY,
        n=0,
        fired=True,
        finished=False,
        opening="",
        reply=replies[chosen],
        free=verdict.is_right,
        parsed=verdict.is_parsed,
        found=verdict.found,
        answer_in_opening=False,
        sender_flops=0.0,
        receiver_flops=receiver_flops,
        reply_tokens=sum(n for _, n in drawn),
        votes=len(replies),
    )


def _plain(reply: str) -> str:
    """The words of the first line that has any, in lower case."""
    lines = [" ".join(_WORDS.findall(line.lower())) for line in reply.splitlines()]
    return next((line for line in lines if line), "")


def _records(small: Model, task: Task, *, seed: int, folder: Path | None, decisive: Sequence[Any]) -> Records:
    """Where sampled replies are saved."""
    prompts = receiver_prompts(small, task)
    inputs = [(item.id, ids_of(prompts, row)) for row, item in enumerate(task.items)]
    return Records.of(folder, "votes", 2, decisive, inputs, task.reply_tokens, TEMPERATURE, seed)


def _sampled(small: Model, task: Task, number: int, *, seed: int, records: Records) -> list[Reply]:
    """The sampled replies number `number` to all items, read from the records where they are saved."""

    def sampled() -> list[Reply]:
        decoded = decode(
            small,
            receiver_prompts(small, task),
            max_new_tokens=task.reply_tokens,
            temperature=TEMPERATURE,
            seeds=[item_seed(item, seed, number) for item in task.items],
        )
        return list(zip(decoded.texts, decoded.n_tokens, strict=True))

    return [(text, n) for text, n in records.values(f"{number:04d}", sampled)]
