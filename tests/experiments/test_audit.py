"""An audit tells content from presence, and both from a change of the receiver: with channels that send just one."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
from numerics import assert_same_bits
from tiny import COUNTRIES, model
from toys import PLANTED_CELL, Counter, planted_pair, planted_task, toy

from latentcomm.channels import Activation, Message, Silent, Text
from latentcomm.channels.base import ReadsOwnText, receiver_prompts
from latentcomm.experiments.audit import DERANGED, audit, verdict
from latentcomm.experiments.compare.run import compare_named
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.controls import AUDIT, FILLER, NEUTRAL, SHUFFLED, deranged, with_filler_texts
from latentcomm.experiments.evaluation import Trial, evaluate
from latentcomm.experiments.train import LearningPlan, learn, load_twins, with_other_messages
from latentcomm.fusion import Replace
from latentcomm.hooks import decode as decoding
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model
from latentcomm.models.sites import Site
from latentcomm.tasks import Task

LABELS = (*COUNTRIES[:6], *COUNTRIES[:6], *COUNTRIES[:6])
TASK = toy(LABELS, openings=("The", " The note says", "Alice is at the Colosseum.", "note", "Alice"))
RECEIVER = model("llama")
UNEQUAL = replace(TASK, items=tuple(replace(each, receiver="Alice is in") for each in TASK.items[:6]) + TASK.items[6:])
"""Receiver prompts of two lengths."""


@dataclass(frozen=True)
class _Planted(ReadsOwnText):
    """A channel whose reply is decided by what arrives, so that what it carries is known."""

    name: str

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The country that the sender's text names, "no" where it names none."""
        found = [next((name for name in COUNTRIES if name in item.sender), "no") for item in task.items]
        return Message(None, "planted", texts=tuple(found)).addressed(task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The prompts alone."""
        return ReceiverInput(receiver_prompts(receiver, task))


class Content(_Planted):
    """The reply is the message."""

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """What was sent."""
        return list(message.texts or ())


class Presence(_Planted):
    """The reply is right as soon as any country is named."""

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The right answer, if the message is about some country."""
        pairs = zip(message.texts or (), task.items, strict=True)
        return ["no" if text == "no" else item.answers[0] for text, item in pairs]


class Adaptation(_Planted):
    """The reply is right whatever arrives."""

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The right answer."""
        return [item.answers[0] for item in task.items]


def audited(channel: _Planted) -> dict[str, object]:
    trials = [
        *evaluate(Silent(), RECEIVER, RECEIVER, TASK),
        *evaluate(channel, RECEIVER, RECEIVER, TASK, controls=AUDIT),
    ]
    return next(row for row in audit(trials).to_dict("records") if row["metric"] == "free")


class TestPlantedChannels:
    def test_pure_content_is_content_and_follows_the_wrong_message(self) -> None:
        row = audited(Content("content"))
        assert row["content"] == row["total"] == 1 and row["presence"] == 0
        assert row["over_self"] == row["over_filler"] == 1
        assert row["follow"] == 1 and row["chance"] == pytest.approx(0.2)
        assert row["verdict"] == "content: +1.00 [.63, 1.00]; no presence is shown: .00 [-.19, .19]"

    def test_pure_presence_is_none_of_content_and_more_than_a_filler(self) -> None:
        row = audited(Presence("presence"))
        assert row["content"] == 0 and row["presence"] == row["total"] == 1
        assert row["over_self"] == row["over_filler"] == 1 and row["follow"] == 0
        assert row["verdict"] == "no content is shown: .00 [-.19, .19]; presence: +1.00 [.63, 1.00]"

    def test_a_changed_receiver_needs_no_message_at_all(self) -> None:
        row = audited(Adaptation("adaptation"))
        assert row["content"] == 0 and row["presence"] == 1 and row["over_self"] == row["over_filler"] == 0
        verdict = str(row["verdict"])
        assert verdict.startswith("no content is shown: .00 [-.19, .19]; presence: +1.00 [.63, 1.00]; no more than the")
        assert "no more than the receiver's own reading is shown" in verdict and "than a filler is shown" in verdict


def row_of(**values: float) -> dict[str, float]:
    """An audit's row with intervals of .1 to both sides of each effect."""
    names = ("total", "presence", "content", "over_self", "over_filler", "over_deranged")
    row = {}
    for name in names:
        value = values.get(name, float("nan"))
        row |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    return row


UNTAUGHT = "no more than what training on other items' messages gives is shown"


class TestVerdict:
    @pytest.mark.parametrize(
        ("row", "sentence"),
        [
            ({"content": 0.3}, "content: +.30 [.20, .40]"),
            ({"content": 0.3, "presence": 0.2}, "content: +.30 [.20, .40]; presence: +.20 [.10, .30]"),
            (
                {"content": 0.3, "presence": -0.2},
                "content: +.30 [.20, .40]; the presence of a wrong message harms: -.20 [-.30, -.10]",
            ),
            ({"content": -0.3}, "another item's message does better: -.30 [-.40, -.20]"),
            ({"content": 0.05}, "no content is shown: +.05 [-.05, .15]"),
            ({"content": 0.3, "over_deranged": 0.05}, f"content: +.30 [.20, .40]; {UNTAUGHT}: +.05 [-.05, .15]"),
            ({"total": 0.2}, "content is not known without another item's message; total: +.20 [.10, .30]"),
            ({}, "content is not known without another item's message"),
        ],
    )
    def test_is_read_from_the_intervals_alone(self, row: dict[str, float], sentence: str) -> None:
        assert verdict(row_of(**row)) == sentence


class TestAudit:
    def test_total_is_presence_and_content(self) -> None:
        draw = random.Random(0)

        def trials(channel: str, conditions: Sequence[str]) -> list[Trial]:
            return [
                Trial(str(item), "a", channel, condition, "", draw.random() < 0.5, " a", draw.random() < 0.5, 4)
                for condition in conditions
                for item in range(50)
            ]

        found = audit([*trials("silent", ["message"]), *trials("one", ["message", *AUDIT, DERANGED])])
        assert list(found["metric"]) == ["free", "choices"]
        assert found["total"].tolist() == pytest.approx((found["presence"] + found["content"]).tolist())
        assert found[["over_self", "over_filler", "over_deranged"]].notna().all(axis=None)

    def test_one_item_gives_no_interval(self) -> None:
        one = replace(TASK, items=TASK.items[:1])
        trials = evaluate(Silent(), RECEIVER, RECEIVER, one)
        trials += evaluate(Content("content"), RECEIVER, RECEIVER, one, controls=())
        trials += [replace(trial, condition=SHUFFLED) for trial in trials if trial.channel == "content"]
        assert set(audit(trials)["verdict"]) == {"one item, or one group of them, gives no interval"}

    def test_without_silence_or_the_wrong_message_their_effects_are_not_known(self) -> None:
        trials = evaluate(Content("content"), RECEIVER, RECEIVER, TASK, controls=(FILLER,))
        (row,) = [each for each in audit(trials).to_dict("records") if each["metric"] == "free"]
        assert row["over_filler"] == 1 and pd.isna(row["total"]) and pd.isna(row["content"])
        assert row["verdict"] == "content is not known without another item's message"


class TestFiller:
    def test_is_as_long_as_the_text_and_says_nothing(self) -> None:
        task = with_filler_texts(TASK)
        for item, filled in zip(TASK.items, task.items, strict=True):
            assert len(filled.sender.split()) == len(item.sender.split())
            assert NEUTRAL.startswith(filled.sender) and filled.receiver == item.receiver
        long = replace(TASK, items=(replace(TASK.items[0], sender="word " * 100, more_senders=("two words",)),))
        (filled,) = with_filler_texts(long).items
        assert len(filled.sender.split()) == 100 and filled.more_senders == ("This text",)

    def test_is_what_the_sender_sends_about_that_text(self) -> None:
        channel = Activation("a", Site(1), Site(1), Replace())
        trials = evaluate(channel, RECEIVER, RECEIVER, TASK, controls=(FILLER,))
        by_hand = evaluate(channel, RECEIVER, RECEIVER, with_filler_texts(TASK), controls=())
        found = [trial for trial in trials if trial.condition == FILLER]
        free = {"condition": "message", "sender_flops": 0.0}  # a text that several items have is read once
        assert [replace(trial, **free) for trial in found] == [replace(trial, **free) for trial in by_hand]
        assert all(trial.sender_flops < whole.sender_flops for trial, whole in zip(found, by_hand, strict=True))

    def test_is_left_out_where_the_sender_is_not_there(self) -> None:
        from latentcomm.experiments.evaluation import send

        channel = Text("text", max_tokens=2, allow_empty=True)
        trials = evaluate(channel, send(channel, RECEIVER, TASK), RECEIVER, TASK, controls=AUDIT)
        assert {trial.condition for trial in trials} == {"message", "shuffled", "self"}

    def test_records_of_a_sent_message_leave_the_sender_its_filler(self, tmp_path: Path) -> None:
        from latentcomm.experiments.evaluation import send

        channel = Text("text", max_tokens=2, allow_empty=True)
        for sender in (send(channel, RECEIVER, TASK), RECEIVER, send(channel, RECEIVER, TASK)):
            trials = evaluate(channel, sender, RECEIVER, TASK, controls=AUDIT, checkpoint=tmp_path)
            assert ("filler" in {trial.condition for trial in trials}) == (sender is RECEIVER)


class TestFollowing:
    def test_the_wrong_answer_is_that_of_the_item_whose_message_came(self) -> None:
        trials = evaluate(Content("content"), RECEIVER, RECEIVER, TASK, controls=(SHUFFLED,), seed=3)
        wrong = [trial for trial in trials if trial.condition == SHUFFLED]
        sources = [TASK.items[row].answers[0] for row in deranged(TASK, seed=3)]
        assert [trial.reply for trial in wrong] == sources
        assert all(trial.follows_free and not trial.free for trial in wrong)
        assert {trial.chance_free for trial in wrong} == {3 / 15}  # of 15 items of other answers three have this one
        assert all(trial.follows_free is None for trial in trials if trial.condition == "message")

    def test_a_pick_follows_where_it_is_the_other_answer(self) -> None:
        sender, receiver = planted_pair()
        channel = Activation("graft", Site(PLANTED_CELL[0]), Site(PLANTED_CELL[1]), Replace(), lambda x: x)
        task = planted_task()
        trials = [
            trial
            for trial in evaluate(channel, sender, receiver, task, controls=(SHUFFLED,))
            if trial.condition == SHUFFLED
        ]
        sources = [task.items[row].choice for row in deranged(task, seed=0)]
        expected = [trial.pick == source for trial, source in zip(trials, sources, strict=True)]
        assert [trial.follows_choices for trial in trials] == expected and any(expected)


class TestSharedPrompts:
    """The conditions of a graft share what the receiver reads before it."""

    CHANNEL = Activation("a", Site(0), Site(1), Replace())

    def test_the_prompt_is_read_once_for_all_conditions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads = Counter(decoding._layers_of)
        monkeypatch.setattr(decoding, "_layers_of", reads)
        evaluate(self.CHANNEL, RECEIVER, RECEIVER, UNEQUAL, controls=(SHUFFLED, "zero", "random"), reply_tokens=1)
        assert reads.calls == 2  # prompts of two lengths

    def test_each_condition_states_the_cost_of_its_prompt(self, tmp_path: Path) -> None:
        trials = evaluate(self.CHANNEL, RECEIVER, RECEIVER, TASK, controls=(SHUFFLED,), reply_tokens=1)
        first, second = ([t for t in trials if t.condition == name] for name in ("message", SHUFFLED))
        assert [t.receiver_flops for t in first] == [t.receiver_flops for t in second]
        evaluate(self.CHANNEL, RECEIVER, RECEIVER, TASK, controls=(), reply_tokens=1, checkpoint=tmp_path)
        resumed = evaluate(
            self.CHANNEL, RECEIVER, RECEIVER, TASK, controls=(SHUFFLED,), reply_tokens=1, checkpoint=tmp_path
        )
        assert resumed == trials

    def test_replies_are_those_of_prompts_read_whole(self) -> None:
        given = self.CHANNEL.receive(RECEIVER, TASK, self.CHANNEL.send(RECEIVER, TASK))
        known: dict[str, decoding.Known] = {}
        for _ in range(2):
            shared = decoding.decode(RECEIVER, given, max_new_tokens=3, known=known)
            whole = decoding.decode(RECEIVER, given, max_new_tokens=3)
            assert shared.ids == whole.ids
        assert known
        before = {key: [keys.clone() for keys, _ in layers] for key, (layers, _) in known.items()}
        decoding.decode(RECEIVER, given, max_new_tokens=3, known=known)
        for key, (layers, _) in known.items():
            for (keys, _), old in zip(layers, before[key], strict=True):
                assert_same_bits(keys, old)


class TestCompare:
    SETTINGS = CompareSettings(read_layer=1, write_layer=1, n_test=8, message_tokens=2)

    def test_runs_what_an_audit_needs_beside_what_is_named(self) -> None:
        found, _ = compare_named(["replace"], RECEIVER, RECEIVER, TASK, settings=self.SETTINGS)
        groups = {(trial.channel, trial.condition) for trial in found.trials}
        assert groups == {("silent", "message"), ("sender_alone", "message")} | {
            ("replace", name) for name in ("message", *AUDIT)
        }
        assert found.audit["total"].notna().all() and list(found.audit["channel"].unique()) == ["replace"]

    def test_the_sender_alone_is_the_sender_that_reads_both_texts(self) -> None:
        sender = model("llama", seed=1)
        settings = replace(self.SETTINGS, alignment="right-aligned")
        found, _ = compare_named(["replace", "skyline"], sender, RECEIVER, TASK, settings=settings)
        alone, _ = compare_named(["skyline"], sender, sender, TASK, settings=settings)
        replies = [trial.reply for trial in found.trials if trial.channel == "sender_alone"]
        assert replies == [trial.reply for trial in alone.trials if trial.channel == "skyline"]
        assert replies != [trial.reply for trial in found.trials if trial.channel == "skyline"]

    def test_what_cannot_be_shuffled_is_left_out_and_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        same = toy(("Greece",) * 16 + ("Japan",) * 2, openings=("The", " The note says"))
        found, _ = compare_named(["replace"], RECEIVER, RECEIVER, same, settings=self.SETTINGS)
        assert "the audit leaves out shuffled, since" in " ".join(capsys.readouterr().err.split())
        assert {trial.condition for trial in found.trials} == {"message", "self", "filler"}
        assert found.audit["content"].isna().all()

    def test_baselines_alone_need_no_audit(self) -> None:
        found, _ = compare_named(["silent"], RECEIVER, RECEIVER, TASK, settings=self.SETTINGS)
        assert {trial.channel for trial in found.trials} == {"silent"} and found.audit.empty


class TestTrainingOnOtherMessages:
    PLAN = LearningPlan(steps=2, batch_size=2, read_layer=1, write_layer=1, n_tune=4)

    def test_every_example_has_a_message_of_another_text_whatever_its_answer(self) -> None:
        other = with_other_messages(TASK, 0)
        for item, wrong in zip(TASK.items, other.items, strict=True):
            assert wrong.answers == item.answers and wrong.receiver == item.receiver
            assert wrong.sender != item.sender
        own = sum(item.answers[0] in wrong.sender for item, wrong in zip(TASK.items, other.items, strict=True))
        assert 0 < own < len(TASK.items) / 2  # never the own answer would tell something of it

    @pytest.mark.parametrize("name", ["gated", "interlat", "calm"])
    def test_a_twin_is_saved_loaded_and_compared(self, name: str, tmp_path: Path) -> None:
        twin = learn(name, RECEIVER, RECEIVER, TASK, plan=self.PLAN, deranged=True)
        true = learn(name, RECEIVER, RECEIVER, TASK, plan=self.PLAN)
        assert twin.facts["deranged"] and "deranged" not in true.facts
        assert any((twin.weights[key] != true.weights[key]).any() for key in true.weights)
        twin.save(tmp_path / f"{name}.deranged.safetensors")
        loaded = load_twins(tmp_path, RECEIVER, RECEIVER)
        assert set(loaded) == {name} and load_twins(tmp_path / "none", RECEIVER, RECEIVER) == {}
        found, _ = compare_named(
            [name],
            RECEIVER,
            RECEIVER,
            TASK,
            settings=TestCompare.SETTINGS,
            learned={name: true.channel},
            deranged_twins={name: loaded[name].channel},
        )
        conditions = [trial.condition for trial in found.trials if trial.channel == name]
        assert conditions.count(DERANGED) == 8 and found.audit["over_deranged"].notna().all()
