"""Evaluate a channel on a task: one trial an item and condition, judged free and by choices, with its controls."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from latentcomm.channels.base import Channel, label
from latentcomm.controls import CONTROLS, Exchange, true_message
from latentcomm.decoding import decode
from latentcomm.files import digest, write_text
from latentcomm.models import Model, check_pair
from latentcomm.progress import track
from latentcomm.stats import mcnemar_exact, paired_bootstrap, proportion_interval
from latentcomm.tasks.base import Task, draw_choices, is_correct

MESSAGE = "message"
"""The condition in which the true message is sent."""
REPLY_TOKENS = 8
"""Greedy tokens a reply: "the Democratic Republic of the Congo" has seven."""
NAN = float("nan")
METRICS = ("free", "choices")
"""Free: the greedy reply begins with an accepted answer. Choices: of the choices, the right one scores highest."""


@dataclass(frozen=True)
class Trial:
    """One item under one condition.

    Attributes:
        item, label, channel, condition: what was asked, its canonical answer, how, and with what message.
        reply, free: the greedy reply, and whether it begins with an accepted answer.
        pick, choices, n_choices: the highest-scored choice, whether it is right, and of how many.
    """

    item: str
    label: str
    channel: str
    condition: str
    reply: str
    free: bool
    pick: str
    choices: bool
    n_choices: int


def evaluate(
    channel: Channel,
    sender: Model,
    receiver: Model,
    task: Task,
    *,
    n: int | None = None,
    seed: int = 0,
    controls: Sequence[str] = tuple(CONTROLS),
    reply_tokens: int = REPLY_TOKENS,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[Trial]:
    """The trials of a channel on n items of a task (all by default), under its true message and under each control.

    A channel that sends no vectors (silent, skyline) has no controls and is run once; the self control is left out
    where a fusion takes the sender's width alone. The same seed gives the same
    items, choices, shuffles and random vectors. With `checkpoint`, finished conditions are kept and not run again.

    Raises:
        ValueError: an unknown control, a processed model with a raw one, or what the task and the channel refuse.
    """
    check_pair(sender, receiver)
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise ValueError(f"there is no control {unknown[0]!r}; choose among {', '.join(CONTROLS)}")
    task = task if n is None else task.take(n, seed=seed)
    choices = draw_choices(task, receiver.first_token, seed=seed)
    message = channel.send(sender, task)
    exchange = Exchange(channel, sender, receiver, task, message, seed)
    wanted = {MESSAGE: true_message} | {name: CONTROLS[name] for name in controls if message.vectors is not None}
    if "self" in wanted and not channel.carries_own(receiver):
        del wanted["self"]
    prints = None if checkpoint is None else _prints(sender, receiver)
    trials: list[Trial] = []
    for name in track(wanted, channel.name, total=len(wanted), shown=progress and len(wanted) > 1):
        path = None
        if checkpoint is not None:
            asked = digest(prints, channel, task, choices, name, seed, reply_tokens)
            path = Path(checkpoint) / f"trials-{asked[:16]}.jsonl"
        if path is not None and path.exists():
            trials += [Trial(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
            continue
        given = channel.receive(receiver, task, wanted[name](exchange))
        said = decode(receiver, given, max_new_tokens=reply_tokens)
        done = []
        for item, options, reply, logits in zip(task.items, choices, said.texts, said.first_logits, strict=True):
            scores = logits[torch.tensor([receiver.first_token(option) for option in options], device=logits.device)]
            pick = options[int(scores.argmax())]
            done.append(
                Trial(
                    item=item.id,
                    label=label(item),
                    channel=channel.name,
                    condition=name,
                    reply=reply,
                    free=is_correct(reply, item.answers),
                    pick=pick,
                    choices=pick == item.choice,
                    n_choices=len(options),
                )
            )
        if path is not None:
            write_text(path, "".join(json.dumps(asdict(trial), ensure_ascii=False) + "\n" for trial in done))
        trials += done
    return trials


def _prints(sender: Model, receiver: Model) -> list[str]:
    if sender.has_hooks or receiver.has_hooks:
        raise ValueError("trials of a model with hooks attached cannot be kept: they are not in the checkpoint's name")
    one = sender.fingerprint
    return [one, one if receiver is sender else receiver.fingerprint]


def to_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row a trial, the columns of `Trial`."""
    return pd.DataFrame([asdict(trial) for trial in trials])


def summarise(trials: Sequence[Trial], *, seed: int = 0) -> pd.DataFrame:
    """One row a channel, condition and metric: how often it was right, how sure that is, and what it is better than.

    Columns: channel, condition, metric, n, correct, accuracy with its 95 % Wilson interval (low, high); the paired
    difference to silent with its 95 % bootstrap interval over items (over_silent, over_silent_low, over_silent_high);
    the exact McNemar p-values against silent and against this channel's own shuffled message (p_silent, p_shuffled),
    not corrected for the number of comparisons. What does not apply is NaN.

    Raises:
        ValueError: channels that were not evaluated on the same items, or share a name.
    """
    outcomes: dict[tuple[str, str], dict[str, Trial]] = {}
    for trial in trials:
        answered = outcomes.setdefault((trial.channel, trial.condition), {})
        if trial.item in answered:
            raise ValueError(
                f"item {trial.item!r} stands twice under {trial.channel}, {trial.condition}; give every channel a name "
                "of its own, and each of its trials once"
            )
        answered[trial.item] = trial
    items = list(next(iter(outcomes.values()), ()))
    if any(set(answered) != set(items) for answered in outcomes.values()):
        raise ValueError("the channels were evaluated on different items and cannot be compared in pairs")
    records = []
    for (channel, condition), answered in outcomes.items():
        silent = outcomes.get(("silent", MESSAGE)) if channel != "silent" else None
        other = outcomes.get((channel, "shuffled")) if condition == MESSAGE else None
        for metric in METRICS:
            right = _right(answered, items, metric)
            low, high = proportion_interval(sum(right), len(right))
            record: dict[str, object] = {"channel": channel, "condition": condition, "metric": metric, "n": len(right)}
            record |= {"correct": sum(right), "accuracy": sum(right) / len(right), "low": low, "high": high}
            record |= dict.fromkeys(
                ("over_silent", "over_silent_low", "over_silent_high", "p_silent", "p_shuffled"), NAN
            )
            if silent is not None:
                base = _right(silent, items, metric)
                gain = paired_bootstrap(right, base, seed=seed)
                record |= {"over_silent": gain.difference, "over_silent_low": gain.low, "over_silent_high": gain.high}
                record |= {"p_silent": mcnemar_exact(right, base).p_value}
            if other is not None:
                record["p_shuffled"] = mcnemar_exact(right, _right(other, items, metric)).p_value
            records.append(record)
    return pd.DataFrame(records)


def _right(answered: Mapping[str, Trial], items: Sequence[str], metric: str) -> list[bool]:
    return [bool(getattr(answered[item], metric)) for item in items]
