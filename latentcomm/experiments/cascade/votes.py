"""Self-consistency of the small model: the majority of as many sampled replies as the cascade costs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latentcomm._core.progress import track
from latentcomm._core.records import Records
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
    prints: Sequence[str],
    shown: bool = False,
) -> list[CascadeTrial]:
    """A vote of the small model beside every hand-off and stop of `trials`, at equal cost.

    m is the mean cost of the trials of a stop over the mean cost of the small model `alone`, rounded, at least 1. The
    answer is what most of the first m sampled replies give, among those in which the judge finds one; of equals the
    first. Two replies give one answer where the judge reads the same number or letter in them; where it looks for
    accepted words, which says nothing of what a wrong reply gives, where their first lines are alike but for case and
    punctuation. A vote of one or two is hardly more than one sampled reply, and the small model alone, which is greedy,
    the stronger control. Each reply is paid for with its prompt, as if asked anew: replies that share one reading of
    it would be more at the same cost, the more the longer the prompts are beside the replies. Source: Wang et al. 2022,
    arXiv:2203.11171.

    Raises:
        ValueError: a kept file holds something else.
    """
    one = sum(trial.flops for trial in alone) / len(alone)
    of_stop: dict[tuple[str, str], list[CascadeTrial]] = {}
    for trial in trials:
        of_stop.setdefault((trial.hand_off, trial.stop), []).append(trial)
    counts = {key: max(1, round(sum(trial.flops for trial in each) / len(each) / one)) for key, each in of_stop.items()}
    replies = [
        _sampled(small, task, number, seed=seed, folder=folder, prints=prints)
        for number in track(range(max(counts.values(), default=0)), "votes", total=max(counts.values(), default=1),
                            shown=shown)
    ]  # fmt: skip
    lengths = receiver_prompts(small, task).lengths.tolist()
    size, found = ModelSize.of(small), []
    for (hand_off, stop), m in counts.items():
        for row in range(len(task.items)):
            said = [each[row] for each in replies[:m]]
            cost = [
                writing_flops(size, n_prompt=lengths[row], n_past=0, n_written=n, ended=n < task.reply_tokens)
                for _, n in said
            ]
            trial = _vote(task, row, [text for text, _ in said])
            found.append(
                replace(
                    trial, hand_off=hand_off, stop=stop, small_flops=sum(cost), reply_tokens=sum(n for _, n in said)
                )
            )
    return found


def _vote(task: Task, row: int, replies: Sequence[str]) -> CascadeTrial:
    """The trial of the majority among some replies."""
    item = task.items[row]
    verdicts = [task.judge(reply, item.answers) for reply in replies]
    names_one = isinstance(task.judge, Number | Letter)
    answers = [
        (verdict.found if names_one else _plain(reply)) if verdict.is_parsed else None
        for verdict, reply in zip(verdicts, replies, strict=True)
    ]
    found = [answer for answer in answers if answer is not None]
    best = max(dict.fromkeys(found), key=found.count) if found else None
    place = answers.index(best)
    verdict = verdicts[place]
    return CascadeTrial(
        item.id, "", "", SELF_CONSISTENCY, 0, True, False, "", replies[place], verdict.is_right, verdict.is_parsed,
        verdict.found, False, 0.0, 0.0, 0, votes=len(replies),
    )  # fmt: skip


def _plain(reply: str) -> str:
    """The words of the first line that has any, in lower case."""
    lines = [" ".join(_WORDS.findall(line.lower())) for line in reply.splitlines()]
    return next((line for line in lines if line), "")


def _sampled(
    small: Model, task: Task, number: int, *, seed: int, folder: Path | None, prints: Sequence[str]
) -> list[Reply]:
    """The replies to all items of one number, read from the records where they are there."""

    def sampled() -> list[Reply]:
        said = decode(
            small,
            prompts,
            max_new_tokens=task.reply_tokens,
            temperature=TEMPERATURE,
            seeds=[item_seed(item, seed, number) for item in task.items],
        )
        return list(zip(said.texts, said.n_tokens, strict=True))

    prompts = receiver_prompts(small, task)
    asked = [(item.id, ids_of(prompts, row)) for row, item in enumerate(task.items)]
    records = Records.of(folder, "votes", 1, list(prints[-2:]), asked, task.reply_tokens, TEMPERATURE, seed)
    return [(text, n) for text, n in records.values(f"{number:04d}", sampled)]
