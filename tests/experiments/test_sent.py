"""A saved message in place of its sender: the sender's trials to the bit, and no message of anything else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import build, model
from toys import Counter, toy

import latentcomm as lc
from latentcomm.channels import Activation, Channel, Cipher, KeyValues, Message, Silent, Text
from latentcomm.experiments import evaluation
from latentcomm.experiments.controls import USUAL
from latentcomm.fusion import Mean, Replace
from latentcomm.models.sites import Site

TASK = toy()
GRAFT = Activation("replace", Site(2), Site(0), Replace())


@pytest.fixture(autouse=True)
def three_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "ITEMS_AT_ONCE", 3)


def sent(channel: Channel, sender: lc.Model, path: Path, **options: Any) -> Message:
    """The message of a channel, out of a file."""
    lc.send(channel, sender, TASK, **options).save(path / "message.safetensors")
    return Message.load(path / "message.safetensors")


@pytest.mark.parametrize(
    "channel", [GRAFT, Text("text", 3), KeyValues(), Silent(), Cipher(max_tokens=3)], ids=lambda each: each.name
)
def test_a_saved_message_gives_the_trials_of_its_sender(channel: Channel, tmp_path: Path) -> None:
    sender, receiver = model("llama"), model("llama", seed=1)
    expected = lc.evaluate(channel, sender, receiver, TASK, reply_tokens=2)
    message = sent(channel, sender, tmp_path, receiver=receiver if isinstance(channel, Cipher) else None)
    assert lc.evaluate(channel, message, receiver, TASK, reply_tokens=2) == expected
    assert message.is_silent or [*dict.fromkeys(trial.condition for trial in expected)][:2] == ["message", "shuffled"]
    if channel is GRAFT:
        assert [*dict.fromkeys(trial.condition for trial in expected)] == ["message", *USUAL]
        assert message.made_by["sent"]["by"][0] == sender.fingerprint


def test_trials_of_the_sender_and_of_its_message_have_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = model("llama"), model("llama", seed=1)
    message = sent(GRAFT, sender, tmp_path, n=5, seed=2)
    options: dict[str, Any] = {"n": 5, "seed": 2}
    ways = [sender, message]
    for number, (first, second) in enumerate((ways, ways[::-1])):
        trials = lc.evaluate(GRAFT, first, receiver, TASK, **options, checkpoint=tmp_path / str(number))
        with monkeypatch.context() as patch:
            patch.setattr(lc.Model, "forward", count := Counter(lc.Model.forward))
            assert lc.evaluate(GRAFT, second, receiver, TASK, **options, checkpoint=tmp_path / str(number)) == trials
        assert count.calls == 0


def test_channels_of_one_message_take_it_and_others_do_not(tmp_path: Path) -> None:
    sender, receiver = model("llama"), model("llama", seed=1)
    message = sent(GRAFT, sender, tmp_path)
    other = Activation("mean", Site(2), Site(1), Mean())
    assert lc.evaluate(other, message, receiver, TASK) == lc.evaluate(other, sender, receiver, TASK)
    for channel in (Activation("replace", Site(1), Site(0), Replace()), Text("text", 3)):
        with pytest.raises(ValueError, match=f"is not one of channel '{channel.name}'; give the channel that sent it"):
            lc.evaluate(channel, message, receiver, TASK)


def test_a_message_for_anything_else_is_refused(tmp_path: Path) -> None:
    sender, receiver = model("llama"), model("llama", seed=1)
    message = sent(GRAFT, sender, tmp_path, receiver=receiver)
    texts = tuple(replace(item, sender=f"{item.sender} The") for item in TASK.items)
    processed = build("gpt2")
    processed.hooked.enable_compatibility_mode(disable_warnings=True)
    anyones = sent(GRAFT, sender, tmp_path)
    for given, reader, task, why in (
        (GRAFT.send(sender, TASK), receiver, TASK, "does not state its sender and cost; make it with lc.send"),
        (
            message,
            receiver,
            replace(TASK, items=TASK.items[::-1]),
            "is for item 'item-0' where task 'toy' has 'item-7'",
        ),
        (message, receiver, TASK.take(7, seed=0), "is for 8 items and task 'toy' has 7"),
        (message, receiver, replace(TASK, items=texts), "is for other texts of the items of task 'toy'"),
        (message, model("llama", seed=2), TASK, "was sent to other weights or another tokenizer than tiny-llama"),
        (anyones, processed, TASK, "one has processed weights and the other raw ones"),
    ):
        with pytest.raises(ValueError, match=why):
            lc.evaluate(GRAFT, given, reader, task)
    assert lc.evaluate(GRAFT, anyones, model("llama", seed=2), TASK, controls=())


def test_a_message_whose_sender_was_exchanged_is_damaged(tmp_path: Path) -> None:
    sent(GRAFT, model("llama"), tmp_path)
    path = tmp_path / "message.safetensors"
    mine, other = (model("llama", seed=seed).fingerprint for seed in (0, 1))
    assert json.dumps(mine).strip('"').encode() in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(mine.encode(), other.encode()))
    with pytest.raises(ValueError, match="does not match its checksum"):
        Message.load(path)
