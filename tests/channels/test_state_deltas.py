"""State deltas, against the text channel, against differences of states and additions made by hand."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from test_channels import far_apart
from tiny import BACKENDS, EVERY_MODEL, N_VOCABULARY, build, states, tokenizer, transformers_model
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap
from latentcomm.channels import Channel, Message, Silent, StateDeltas, Text
from latentcomm.channels.state_deltas import _spliced
from latentcomm.experiments.evaluation import evaluate
from latentcomm.hooks.decode import decode, next_token_logits
from latentcomm.models import Model, encode, recorded_passes, wrap_model
from latentcomm.tasks import Item, Task

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?!\n012345"
START = "5"
STEPS = 4
DELTAS = StateDeltas(layers=(0, 2), max_tokens=STEPS)


def letters(*, adds_start: bool = False) -> Any:
    """A tokenizer of letters, so that whatever a tiny model writes is cut again into the tokens that it wrote."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({letter: number for number, letter in enumerate(ALPHABET)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    if adds_start:
        special = [(START, ALPHABET.index(START))]
        backend.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=special)
    out = PreTrainedTokenizerFast(tokenizer_object=backend)
    out.chat_template = "{% for message in messages %}U {{ message['content'] }}. {% endfor %}A "
    return out


def spelling() -> Task:
    names = ("Ann", "Bo", "Cleo", "Di", "Eve", "Flo")
    items = tuple(Item(name, f"{name} is in", "Who is", f"{name} Who is", (name,), "") for name in names)
    return Task("spelling", items, (), "raw")


TASK = spelling()


def build_spelling(architecture: str, backend: str = "bridge", *, adds_start: bool = False, **options: Any) -> Model:
    tiny = replace(build(architecture, backend, **options), tokenizer=letters(adds_start=adds_start))
    tiny.__dict__["stop_ids"] = frozenset()  # unless a test says which tokens end a reply
    return tiny


@functools.cache
def model(architecture: str, backend: str = "bridge") -> Model:
    return build_spelling(architecture, backend)


def plain_states(tiny: Model, ids: list[int], layer: int) -> Tensor:
    with torch.no_grad():
        _, cache = tiny.hooked.run_with_cache(torch.tensor([ids]))
    return cache[f"blocks.{layer}.hook_resid_post"][0]


def told(channel: StateDeltas | Text, sender: Model, receiver: Model, task: Task = TASK) -> Tensor:
    return next_token_logits(receiver, channel.receive(receiver, task, channel.send(sender, task)))


def parts_of(message: Message) -> Sequence[Any]:
    assert message.parts is not None
    return message.parts


def reply_ids(tiny: Model, ids: list[int], n: int, *, hooks: Sequence[tuple[str, Any]] = ()) -> list[int]:
    """Greedy tokens, the whole text read again at every step, under hooks that find their own places."""
    said: list[int] = []
    for _ in range(n):
        with torch.no_grad():
            logits = tiny.hooked.run_with_hooks(torch.tensor([ids + said]), fwd_hooks=list(hooks), return_type="logits")
        said.append(int(logits[0, -1].argmax()))
        if said[-1] in tiny.stop_ids:
            return said[:-1]
    return said


class TestTheMessage:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_it_is_what_the_sender_writes_and_how_its_states_changed(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        message = DELTAS.send(tiny, TASK)
        for part, item in zip(parts_of(message), TASK.items, strict=True):
            asked = tiny.tokenizer(item.sender).input_ids
            ids = reply_ids(tiny, asked, STEPS)
            assert part["ids"].tolist() == ids
            for number, layer in enumerate(DELTAS.layers):
                path = plain_states(tiny, asked + ids, layer)[len(asked) - 1 :]
                terms, scale = forward_terms(tiny), float(path.abs().max())
                assert_equal_to_rounding(part["deltas"][number], path[1:] - path[:-1], terms=terms, scale=scale)
        assert any(len(part["ids"]) == STEPS for part in parts_of(message))

    def test_its_text_is_that_of_the_text_channel(self) -> None:
        tiny = model("llama")
        variants: tuple[dict[str, Any], ...] = ({}, {"temperature": 1.5, "seed": 3}, {"request": " Now"})
        for options in variants:
            message = replace(DELTAS, **options).send(tiny, TASK)
            assert message.texts == Text(max_tokens=STEPS, **options).send(tiny, TASK).texts

    def test_a_reply_that_ends_by_itself_has_a_delta_for_each_of_its_tokens(self) -> None:
        tiny = build_spelling("llama")
        free = DELTAS.send(tiny, TASK)
        stop = int(parts_of(free)[0]["ids"][2])
        tiny.__dict__["stop_ids"] = frozenset([stop])
        cut = DELTAS.send(tiny, replace(TASK, items=TASK.items[:1]))
        assert parts_of(cut)[0]["ids"].tolist() == parts_of(free)[0]["ids"][:2].tolist()
        assert torch.allclose(parts_of(cut)[0]["deltas"], parts_of(free)[0]["deltas"][:, :2], rtol=0, atol=1e-9)

    def test_it_weighs_its_text_its_ids_and_its_deltas(self) -> None:
        tiny = model("llama")
        message = DELTAS.send(tiny, TASK)
        assert message.texts is not None
        expected = [
            len(text.encode()) + 4 * len(part["ids"]) + 2 * len(part["ids"]) * 32 * 8
            for text, part in zip(message.texts, parts_of(message), strict=True)
        ]
        assert message.nbytes() == expected

    def test_it_comes_back_from_a_file_and_says_the_same(self, tmp_path: Path) -> None:
        tiny = model("llama")
        message = DELTAS.send(tiny, TASK)
        message.save(tmp_path / "m.safetensors")
        loaded = Message.load(tmp_path / "m.safetensors")
        first, again = (next_token_logits(tiny, DELTAS.receive(tiny, TASK, each)) for each in (message, loaded))
        assert_same_bits(first, again)

    def test_a_token_costs_a_pass_and_the_last_ones_state_one_more(self) -> None:
        tiny = model("llama")
        one = replace(TASK, items=TASK.items[:1])
        with recorded_passes() as passes:
            DELTAS.send(tiny, one)
        assert [each.n_new for each in passes] == [len(tiny.tokenizer(TASK.items[0].sender).input_ids)] + STEPS * [1]


class TestWhatTheReceiverReads:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_deltas_of_zero_change_nothing(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        nothing, text = told(replace(DELTAS, scale=0), tiny, tiny), told(Text(max_tokens=STEPS), tiny, tiny)
        assert torch.allclose(nothing, text, rtol=0, atol=1e-9)
        assert far_apart(told(DELTAS, tiny, tiny), text)
        zeros = DELTAS.send(tiny, TASK).map_tensors(torch.zeros_like)
        found = next_token_logits(tiny, DELTAS.receive(tiny, TASK, zeros))
        assert torch.allclose(found, text, rtol=0, atol=1e-9)

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    @pytest.mark.parametrize("scale", [1.0, -0.5])
    def test_deltas_are_added_once_at_the_senders_tokens_and_at_their_layers(
        self, scale: float, architecture: str, backend: str
    ) -> None:
        tiny = model(architecture, backend)
        channel = replace(DELTAS, scale=scale)
        message = channel.send(tiny, TASK)
        found = decode(tiny, channel.receive(tiny, TASK, message), max_new_tokens=STEPS)
        for row, (part, item) in enumerate(zip(parts_of(message), TASK.items, strict=True)):
            n = len(part["ids"])
            ids = part["ids"].tolist() + tiny.tokenizer(f"\n{item.receiver}").input_ids

            def adder(number: int, part: Any = part, n: int = n) -> Any:
                def add(value: Tensor, hook: Any) -> Tensor:
                    value = value.clone()
                    value[0, :n] += scale * part["deltas"][number]
                    return value

                return add

            hooks = [(f"blocks.{layer}.hook_resid_post", adder(number)) for number, layer in enumerate((0, 2))]
            assert found.ids[row] == reply_ids(tiny, ids, STEPS, hooks=hooks)
            with torch.no_grad():
                logits = tiny.hooked.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks, return_type="logits")[0, -1]
            assert_equal_to_rounding(found.first_logits[row], logits, terms=forward_terms(tiny))

    def test_a_batch_says_what_each_item_says_alone(self) -> None:
        tiny = model("llama")
        together = told(DELTAS, tiny, tiny)
        for row in range(len(TASK.items)):
            alone = told(DELTAS, tiny, tiny, replace(TASK, items=TASK.items[row : row + 1]))
            assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-9)

    def test_messages_of_several_lengths_run_beside_each_other(self) -> None:
        tiny = build_spelling("llama")
        message = DELTAS.send(tiny, TASK)
        tiny.__dict__["stop_ids"] = frozenset([int(parts_of(message)[0]["ids"][2])])
        short = DELTAS.send(tiny, TASK)
        lengths = {len(part["ids"]) for part in parts_of(short)}
        assert len(lengths) > 1
        together = next_token_logits(tiny, DELTAS.receive(tiny, TASK, short))
        for row in range(len(TASK.items)):
            task = replace(TASK, items=TASK.items[row : row + 1])
            alone = next_token_logits(tiny, DELTAS.receive(tiny, task, short.select([row])))
            assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-9)

    def test_other_layers_of_the_receiver_can_be_written(self) -> None:
        tiny = model("llama")
        moved, same = replace(DELTAS, layers=(0,), write=(1,)), replace(DELTAS, layers=(0,), write=(0,))
        assert_same_bits(told(same, tiny, tiny), told(replace(DELTAS, layers=(0,)), tiny, tiny))
        assert far_apart(told(moved, tiny, tiny), told(same, tiny, tiny))
        sites = [each.site.layer for each in moved.receive(tiny, TASK, moved.send(tiny, TASK)).persistent]  # type: ignore[attr-defined]
        assert sites == [1]

    def test_of_an_alignment_the_linear_part_acts_alone(self) -> None:
        narrow, wide = build_spelling("llama", d_model=16), model("llama")
        weight, bias = states(32, 16), 100 * states(32)
        channel = replace(DELTAS, alignment=AffineMap(weight, bias))
        message = channel.send(narrow, TASK)
        entering = channel.receive(wide, TASK, message)
        for number, each in enumerate(entering.persistent):
            for row, vectors in enumerate(each.vectors):  # type: ignore[attr-defined]
                expected = parts_of(message)[row]["deltas"][number] @ weight.T
                assert torch.allclose(vectors, expected, rtol=0, atol=1e-9)
        with pytest.raises(
            ValueError, match="deltas are 16 wide and tiny-llama is 32 wide; give the channel deltas an"
        ):
            DELTAS.receive(wide, TASK, message)

    def test_the_receivers_own_needs_no_alignment(self) -> None:
        tiny = model("llama")
        channel = replace(DELTAS, alignment=AffineMap(3 * torch.eye(32).double(), torch.zeros(32).double()))
        own = channel.own(tiny, TASK)
        assert own.is_own and channel.carries_own(tiny)
        found = next_token_logits(tiny, channel.receive(tiny, TASK, own))
        asked = replace(TASK, items=tuple(replace(item, sender=item.receiver) for item in TASK.items))
        assert torch.allclose(found, told(DELTAS, tiny, tiny, asked), rtol=0, atol=1e-9)


class TestWhereTheTokensStand:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_in_a_chat_they_stand_in_the_users_turn(self, backend: str) -> None:
        tiny, chat = model("llama", backend), replace(TASK, template="chat")
        nothing, text = (
            told(channel, tiny, tiny, chat) for channel in (replace(DELTAS, scale=0), Text(max_tokens=STEPS))
        )
        assert torch.allclose(nothing, text, rtol=0, atol=1e-9)
        entering = DELTAS.receive(tiny, chat, DELTAS.send(tiny, chat))
        assert {each.start for each in entering.persistent} == {(2,) * len(TASK.items)}  # type: ignore[attr-defined]

    def test_a_bos_token_stands_before_them(self) -> None:
        tiny = build_spelling("llama", adds_start=True)
        nothing, text = (told(channel, tiny, tiny) for channel in (replace(DELTAS, scale=0), Text(max_tokens=STEPS)))
        assert torch.allclose(nothing, text, rtol=0, atol=1e-9)
        entering = DELTAS.receive(tiny, TASK, DELTAS.send(tiny, TASK))
        assert {each.start for each in entering.persistent} == {(1,) * len(TASK.items)}  # type: ignore[attr-defined]
        assert set(entering.prompts.tokens[:, 0].tolist()) == {ALPHABET.index(START)}

    @pytest.mark.parametrize("template", ["raw", "chat"])
    @pytest.mark.parametrize("adds_bos", [False, True])
    def test_ids_that_the_joined_text_would_not_have_stand_all_the_same(self, template: Any, adds_bos: bool) -> None:
        tiny = replace(build("llama"), tokenizer=tokenizer(adds_bos=adds_bos))
        ids = [9, 0, 3, 12]  # an unknown word and a special token, which the text leaves out
        text = tiny.decode(ids)
        tokens, start = _spliced(tiny, text, ids, "\n", "Alice is", template)
        assert tokens[start : start + 4] == ids
        plain = encode(tiny, ["\nAlice is"], template=template).ids(0).tolist()
        assert tokens[:start] + tokens[start + 4 :] == plain
        canonical = tiny.tokenizer(" Greece is", add_special_tokens=False).input_ids
        tokens, start = _spliced(tiny, " Greece is", canonical, "\n", "Alice is", template)
        assert tokens == encode(tiny, [" Greece is\nAlice is"], template=template).ids(0).tolist()

    def test_after_an_empty_message_the_receiver_reads_its_own_text(self) -> None:
        tiny = build_spelling("llama")
        first = int(DELTAS.send(tiny, TASK).select([0]).parts[0]["ids"][0])  # type: ignore[index]
        tiny.__dict__["stop_ids"] = frozenset([first])
        one = replace(TASK, items=TASK.items[:1])
        with pytest.raises(ValueError, match="sent an empty message for item 'Ann'"):
            DELTAS.send(tiny, one)
        channel = replace(DELTAS, allow_empty=True)
        message = channel.send(tiny, one)
        assert message.texts == ("",) and message.nbytes() == [0]
        silent = next_token_logits(tiny, Silent().receive(tiny, one, Silent().send(tiny, one)))
        found = next_token_logits(tiny, channel.receive(tiny, one, message))
        assert_equal_to_rounding(found, silent, terms=forward_terms(tiny))


class TestRefusals:
    def test_another_vocabulary_is_refused(self) -> None:
        tiny = model("llama")
        other = letters()
        other.add_tokens(["#"])
        strange = wrap_model(transformers_model("llama", n_vocabulary=N_VOCABULARY + 1), other, name="strange")
        with pytest.raises(ValueError, match="strange and tiny-llama have different vocabularies, so deltas cannot be"):
            DELTAS.receive(tiny, TASK, DELTAS.send(strange, TASK))

    def test_a_message_of_another_kind_model_or_set_of_layers_is_refused(self) -> None:
        tiny = model("llama")
        with pytest.raises(
            ValueError, match="the channel deltas needs a message of text and deltas and got tiny-llama text"
        ):
            DELTAS.receive(tiny, TASK, Text(max_tokens=STEPS).send(tiny, TASK))
        message = DELTAS.send(tiny, TASK)
        with pytest.raises(ValueError, match="is meant for tiny-gpt2 and tiny-llama cannot read it"):
            DELTAS.receive(tiny, TASK, replace(message, meant_for="tiny-gpt2"))
        with pytest.raises(ValueError, match="deltas of 2 layers and the channel deltas reads 1"):
            replace(DELTAS, layers=(1,)).receive(tiny, TASK, message)

    def test_layers_that_make_no_sense_are_refused(self) -> None:
        for layers in ((), (1, 1), (2, 0), (-1,)):
            with pytest.raises(ValueError, match="give each once, ascending from 0"):
                StateDeltas(layers=layers)
        with pytest.raises(ValueError, match="reads 2 layers and writes to 1"):
            StateDeltas(layers=(0, 1), write=(0,))
        tiny, deep = model("llama"), build_spelling("llama", n_layers=4)
        with pytest.raises(ValueError, match="layer 3 is outside tiny-llama"):
            StateDeltas(layers=(3,)).send(tiny, TASK)
        last = StateDeltas(layers=(3,), max_tokens=STEPS)
        with pytest.raises(ValueError, match="layer 3 is outside tiny-llama"):
            last.receive(tiny, TASK, last.send(deep, TASK))

    def test_a_prompt_that_is_read_in_pieces_is_an_error(self) -> None:
        tiny = model("llama")
        one = replace(TASK, items=TASK.items[:1])
        entering = DELTAS.receive(tiny, one, DELTAS.send(tiny, one))
        ((name, hook), *_) = (each for standing in entering.persistent for each in standing.fwd_hooks())
        with pytest.raises(RuntimeError, match="end at position 4 and the pass has 2; the prompt must be read in one"):
            tiny.forward(entering.prompts.tokens[:, :2], hooks=[(name, hook)])


def test_it_keeps_the_protocol_and_has_a_stable_digest() -> None:
    assert isinstance(DELTAS, Channel)
    assert digest(DELTAS) == digest(replace(DELTAS)) != digest(replace(DELTAS, scale=2.0))


def test_a_run_with_every_control_resumes_and_its_zero_is_the_text_alone(tmp_path: Path) -> None:
    tiny = model("llama")
    trials = evaluate(DELTAS, tiny, tiny, TASK, checkpoint=tmp_path)
    assert {trial.condition for trial in trials} == {"message", "shuffled", "zero", "random", "self"}
    with recorded_passes() as passes:
        assert evaluate(DELTAS, tiny, tiny, TASK, checkpoint=tmp_path) == trials
    assert passes == []
    text = evaluate(Text(max_tokens=STEPS), tiny, tiny, TASK, controls=())
    assert [trial.reply for trial in trials if trial.condition == "zero"] == [trial.reply for trial in text]
