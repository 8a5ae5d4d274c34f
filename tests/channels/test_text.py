"""Text: what the sender writes is its own greedy reply, and the receiver reads it as a string before its text."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from numerics import assert_same_bits
from tiny import PAD, VOCABULARY, model, tokenizer, transformers_model
from torch import Tensor
from toys import toy

from latentcomm.channels import Message, Silent, Text
from latentcomm.channels.text import item_seed
from latentcomm.experiments.evaluation import evaluate
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model, wrap_model
from latentcomm.tasks import Task

TASK = toy()


def speaker(seed: int, *, silent: bool = False, adds_bos: bool = False) -> Model:
    """A tiny Llama that says words only, each with its space, or at once the end."""
    raw = transformers_model("llama", n_vocabulary=len(VOCABULARY), seed=seed)
    words = [token[:1] == " " and token[1:].isalpha() and token != PAD for token in VOCABULARY]
    with torch.no_grad():
        raw.lm_head.weight[~torch.tensor(words)] = 0
        if silent:
            raw.lm_head.weight.zero_()
            raw.lm_head.weight[raw.config.eos_token_id] = 1
            raw.model.norm.weight.abs_()
    made = wrap_model(raw, tokenizer(adds_bos=adds_bos), name=f"speaker-{seed}")
    if silent:  # whatever it reads, the first token ends the reply
        made.__dict__["stop_ids"] = frozenset(range(len(VOCABULARY)))
    return made


SENDER, RECEIVER = speaker(0), speaker(1)


def their_reply(raw: Any, text: str, tokens: int) -> str:
    words = tokenizer()
    ids = words(text, return_tensors="pt").input_ids
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": False}
    return words.decode(
        raw.generate(ids, max_new_tokens=tokens, **options)[0, ids.shape[1] :], skip_special_tokens=True
    )


def plain_logits(tiny: Model, text: str) -> Tensor:
    with torch.no_grad():
        return tiny.hooked(torch.tensor([tiny.tokenizer(text).input_ids]), return_type="logits")[0, -1]


def heard(channel: Text, message: Message, task: Task = TASK, receiver: Model = RECEIVER) -> Tensor:
    return next_token_logits(receiver, channel.receive(receiver, task, message))


class TestWhatTheSenderWrites:
    @pytest.mark.parametrize("tokens", [1, 5])
    @pytest.mark.parametrize("request_", ["", " The country"])
    def test_is_its_greedy_reply_to_its_text_and_the_request(self, tokens: int, request_: str) -> None:
        raw = transformers_model("gpt2")
        message = Text(max_tokens=tokens, request=request_, allow_empty=True).send(model("gpt2"), TASK)
        expected = tuple(their_reply(raw, item.sender + request_, tokens) for item in TASK.items)
        assert message.texts == expected and len(set(expected)) > 1
        assert message.meant_for is None and message.origin == "tiny-gpt2 text"

    def test_follows_the_template(self) -> None:
        raw, chat = transformers_model("gpt2"), replace(TASK, template="chat")
        message = Text(max_tokens=4, request=" The note", allow_empty=True).send(model("gpt2"), chat)
        expected = [their_reply(raw, f"<user>{item.sender} The note<end><assistant>", 4) for item in TASK.items]
        assert message.texts == tuple(expected)

    def test_is_drawn_by_the_seed_and_the_item_alone(self) -> None:
        channel = Text(max_tokens=4, temperature=2.0)
        first, again = channel.send(SENDER, TASK), channel.send(SENDER, replace(TASK, items=TASK.items[::-1]))
        assert first.texts is not None and again.texts is not None
        assert first.texts == again.texts[::-1]
        assert first.texts != replace(channel, seed=1).send(SENDER, TASK).texts
        assert first.texts != replace(channel, temperature=0).send(SENDER, TASK).texts
        assert len({item_seed(item, seed) for item in TASK.items for seed in range(3)}) == 24

    def test_must_be_something(self) -> None:
        mute = speaker(2, silent=True)
        expected = (
            "speaker-2 sent an empty message for item 'item-0' (8 of 8 messages of the channel text are empty); give "
            "it a request, or allow_empty=True to count that as silence"
        )
        with pytest.raises(ValueError, match=re.escape(expected)):
            Text(max_tokens=3).send(mute, TASK)
        message = Text(max_tokens=3, allow_empty=True).send(mute, TASK)
        assert message.texts == ("",) * 8 and message.nbytes() == [0] * 8
        silent = next_token_logits(RECEIVER, Silent().receive(RECEIVER, TASK, Message(None, "nothing")))
        assert_same_bits(heard(Text(), message), silent)

    def test_cannot_have_no_length(self) -> None:
        with pytest.raises(ValueError, match="max_tokens of the channel text is 0; give at least 1"):
            Text(max_tokens=0)


class TestWhatTheReceiverReads:
    MESSAGE = Message(None, "by hand", texts=tuple(f"The note says {item.answers[0]}" for item in TASK.items))

    @pytest.mark.parametrize("between", ["\n", "?", " "])
    def test_is_the_message_what_stands_between_and_its_text(self, between: str) -> None:
        found = heard(Text(between=between), self.MESSAGE)
        assert self.MESSAGE.texts is not None
        for row, (text, item) in enumerate(zip(self.MESSAGE.texts, TASK.items, strict=True)):
            expected = plain_logits(RECEIVER, f"{text}{between}{item.receiver}")
            assert torch.allclose(found[row], expected, rtol=0, atol=1e-9)
            assert not torch.allclose(found[row], plain_logits(RECEIVER, f"{item.receiver}{between}{text}"), atol=1e-3)

    def test_stands_inside_the_users_turn(self) -> None:
        chat = replace(TASK, template="chat")
        found = heard(Text(), self.MESSAGE, chat)
        assert self.MESSAGE.texts is not None
        for row, (text, item) in enumerate(zip(self.MESSAGE.texts, TASK.items, strict=True)):
            expected = plain_logits(RECEIVER, f"<user>{text}\n{item.receiver}<end><assistant>")
            assert torch.allclose(found[row], expected, rtol=0, atol=1e-9)

    def test_begins_with_the_tokenizers_first_token_of_texts_if_it_has_one(self) -> None:
        receiver = speaker(1, adds_bos=True)
        found = heard(Text(), self.MESSAGE, receiver=receiver)
        assert self.MESSAGE.texts is not None
        expected = plain_logits(RECEIVER, f"<bos>{self.MESSAGE.texts[0]}\n{TASK.items[0].receiver}")
        assert torch.allclose(found[0], expected, rtol=0, atol=1e-9)

    def test_an_empty_message_leaves_the_receivers_text_alone(self) -> None:
        some = replace(self.MESSAGE, texts=("", *(self.MESSAGE.texts or ())[1:]))
        found = heard(Text(), some)
        assert torch.allclose(found[0], plain_logits(RECEIVER, TASK.items[0].receiver), rtol=0, atol=1e-9)
        assert torch.allclose(found[1:], heard(Text(), self.MESSAGE)[1:], rtol=0, atol=1e-9)

    def test_needs_texts(self) -> None:
        with pytest.raises(ValueError, match="the channel text needs a message of texts and got by hand"):
            heard(Text(), Message(torch.ones(8, 32), "by hand"))


def test_texts_are_exchanged_and_sent_to_oneself_and_not_randomised() -> None:
    found = evaluate(Text(max_tokens=3), SENDER, RECEIVER, TASK, controls=("shuffled", "zero", "random", "self"))
    assert list(dict.fromkeys(one.condition for one in found)) == ["message", "shuffled", "self"]
    assert all(one.message_bytes > 0 for one in found)
