"""Keys and values of selected layers, against concatenated prompts and an attention masked by hand."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_same_bits, same_bits
from test_channels import far_apart, replies
from tiny import BACKENDS, BOS_ID, EVERY_MODEL, N_CTX, build, needs_hooked_transformer, tokenizer, transformers_model
from torch import Tensor
from toys import OPENINGS, toy

from latentcomm._core.files import digest
from latentcomm.channels import Channel, KeyValues, Message, Silent
from latentcomm.channels.kv import choose_layers, measure_attention
from latentcomm.experiments.evaluation import evaluate
from latentcomm.hooks.decode import decode, next_token_logits
from latentcomm.models import Hook, Model, encode, recorded_passes, wrap_model
from latentcomm.models.prompts import Prompts
from latentcomm.tasks import Task

TASK = toy()
ROTARY = ("llama", "qwen2", "neox", "mistral")
STEPS = 5


@functools.cache
def model(architecture: str, backend: str = "bridge") -> Model:
    tiny = build(architecture, backend)
    return exact(tiny) if backend == "bridge" else tiny


def exact(tiny: Model) -> Model:
    """With rotations in float64, which transformers takes in float32: only then are positions quite relative."""

    def rotate(module: Any, run: Any, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        cos, _ = run(*given, **named)
        positions = named["position_ids"] if "position_ids" in named else given[1]
        angles = positions[:, :, None].double() * module.inv_freq.double()
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(cos.dtype), angles.sin().to(cos.dtype)

    for module in tiny.hooked.original_model.modules():
        if "inv_freq" in module._buffers:
            module.forward = functools.partial(rotate, module, module.forward)
    return tiny


def both_ids(tiny: Model, task: Task = TASK) -> list[list[int]]:
    return [tiny.tokenizer(item.sender).input_ids + tiny.tokenizer(item.receiver).input_ids for item in task.items]


def rows_of(tiny: Model, texts: list[str]) -> list[Tensor]:
    return [torch.tensor([tiny.tokenizer(text).input_ids]) for text in texts]


def masked_by_hand(tiny: Model, layers: tuple[int, ...], texts: Sequence[list[int]], lengths: Sequence[int]) -> Tensor:
    """The whole text read at once; behind the sender's part, tokens see that part in the given layers alone.

    What the sender's tokens compute does not depend on the mask, since none of them is masked for another.
    """
    found = []
    for ids, length in zip(texts, lengths, strict=True):

        def mask(scores: Tensor, hook: Any, length: int = length) -> Tensor:
            scores = scores.clone()
            scores[..., length:, :length] = -torch.inf
            return scores

        hooks = [
            (f"blocks.{layer}.attn.hook_attn_scores", mask) for layer in range(tiny.n_layers) if layer not in layers
        ]
        with torch.no_grad():
            logits = tiny.hooked.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks, return_type="logits")
        found.append(logits[0, -1])
    return torch.stack(found)


def sender_lengths(tiny: Model, task: Task = TASK) -> list[int]:
    return [len(tiny.tokenizer(item.sender).input_ids) for item in task.items]


class TestWhatTheReceiverReads:
    @pytest.mark.parametrize(("architecture", "backend"), [*EVERY_MODEL, ("mistral", "bridge"), ("gemma2", "bridge")])
    def test_all_layers_of_one_model_equal_reading_both_prompts_in_sequence(
        self, architecture: str, backend: str
    ) -> None:
        tiny = model(architecture, backend)
        with torch.no_grad():
            whole = [tiny.hooked(torch.tensor([ids]), return_type="logits")[0, -1] for ids in both_ids(tiny)]
        found = replies(KeyValues(), tiny, tiny, TASK)
        assert torch.allclose(found, torch.stack(whole), rtol=0, atol=1e-9)
        assert far_apart(found, replies(Silent(), tiny, tiny, TASK))

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_so_does_every_token_of_the_reply(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        channel = KeyValues()
        entering = channel.receive(tiny, TASK, channel.send(tiny, TASK))
        found = decode(tiny, entering, max_new_tokens=STEPS)
        whole = decode(tiny, Prompts.from_ids(both_ids(tiny)), max_new_tokens=STEPS)
        assert found.ids == whole.ids and any(found.ids)

    @pytest.mark.parametrize(("architecture", "backend"), [*EVERY_MODEL, ("gemma2", "bridge")])
    @pytest.mark.parametrize("layers", [(0,), (1, 2), (0, 2)], ids=str)
    def test_layers_that_are_not_sent_do_not_see_the_sender(
        self, layers: tuple[int, ...], architecture: str, backend: str
    ) -> None:
        tiny = model(architecture, backend)
        found = replies(KeyValues(layers=layers), tiny, tiny, TASK)
        assert torch.allclose(
            found, masked_by_hand(tiny, layers, both_ids(tiny), sender_lengths(tiny)), rtol=0, atol=1e-9
        )
        assert far_apart(found, masked_by_hand(tiny, (0, 1, 2), both_ids(tiny), sender_lengths(tiny)))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_neither_does_any_token_of_the_reply(self, backend: str) -> None:
        tiny = model("gpt2", backend)
        channel, task = KeyValues(layers=(1,)), replace(TASK, items=TASK.items[:3])
        found = decode(tiny, channel.receive(tiny, task, channel.send(tiny, task)), max_new_tokens=STEPS)
        for row, text in enumerate(both_ids(tiny, task)):
            said: list[int] = []
            for _ in range(STEPS):
                logits = masked_by_hand(tiny, (1,), [text + said], sender_lengths(tiny)[row : row + 1])
                said.append(int(logits[0].argmax()))
            assert said[: len(found.ids[row])] == found.ids[row] and len(found.ids[row]) > 1

    @pytest.mark.parametrize("architecture", ROTARY)
    def test_no_layer_at_all_is_silence_where_positions_are_relative(self, architecture: str) -> None:
        tiny = model(architecture)
        found = replies(KeyValues(layers=()), tiny, tiny, TASK)
        assert torch.allclose(found, replies(Silent(), tiny, tiny, TASK), rtol=0, atol=1e-9)
        assert far_apart(replies(KeyValues(layers=(0,)), tiny, tiny, TASK), found)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_no_layer_at_all_is_reading_at_shifted_absolute_positions(self, backend: str) -> None:
        tiny = model("gpt2", backend)
        found = replies(KeyValues(layers=()), tiny, tiny, TASK)
        raw = build("gpt2").hooked.original_model
        expected = []
        for item in TASK.items:
            row, shift = tiny.tokenizer(item.receiver).input_ids, len(tiny.tokenizer(item.sender).input_ids)
            places = torch.arange(shift, shift + len(row))[None]
            with torch.no_grad():
                expected.append(raw(torch.tensor([row]), position_ids=places).logits[0, -1])
        tolerance = 1e-9 if backend == "bridge" else 1e-5  # the reference is transformers' own model
        assert torch.allclose(found, torch.stack(expected), rtol=0, atol=tolerance)
        assert far_apart(found, replies(Silent(), tiny, tiny, TASK))

    @pytest.mark.parametrize("layers", [None, (1,)], ids=str)
    def test_a_batch_says_what_each_item_says_alone(self, layers: tuple[int, ...] | None) -> None:
        tiny, channel = model("llama"), KeyValues(layers=layers)
        assert len({len(ids) for ids in both_ids(tiny)}) > 1  # rows of several lengths run beside each other
        together = replies(channel, tiny, tiny, TASK)
        for row in range(len(TASK.items)):
            alone = replies(channel, tiny, tiny, replace(TASK, items=TASK.items[row : row + 1]))
            assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-9)

    def test_a_bos_token_of_both_prompts_is_read_twice(self) -> None:
        tiny = replace(exact(build("llama")), tokenizer=tokenizer(adds_bos=True))
        ids = both_ids(tiny)
        assert ids[0].count(BOS_ID) == 2
        whole = next_token_logits(tiny, Prompts.from_ids(ids))
        assert torch.allclose(replies(KeyValues(), tiny, tiny, TASK), whole, rtol=0, atol=1e-9)

    def test_a_sender_of_the_same_layout_and_other_weights_is_read(self) -> None:
        tiny, other = model("llama"), build("llama", seed=1)
        found = replies(KeyValues(), other, tiny, TASK)
        assert far_apart(found, replies(KeyValues(), tiny, tiny, TASK))
        assert far_apart(found, replies(Silent(), tiny, tiny, TASK))


class TestTheMessage:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_it_holds_its_layers_keys_and_values_and_counts_their_bytes(self, backend: str) -> None:
        tiny = model("llama", backend)
        message = KeyValues(layers=(0, 2)).send(tiny, TASK)
        lengths = sender_lengths(tiny)
        assert message.parts is not None
        for part, length in zip(message.parts, lengths, strict=True):
            assert part["keys"].shape == part["values"].shape == (2, 2, length, 8)
        assert message.nbytes() == [2 * 2 * 2 * length * 8 * 8 for length in lengths]
        with torch.no_grad():
            _, cache = tiny.hooked.run_with_cache(rows_of(tiny, [TASK.items[0].sender])[0])
        values = cache["blocks.2.attn.hook_v"][0]
        values = values.reshape(lengths[0], 2, 8).transpose(0, 1)
        assert torch.allclose(message.parts[0]["values"][1], values, rtol=0, atol=1e-9)

    def test_it_comes_back_from_a_file_bit_for_bit_and_says_the_same(self, tmp_path: Path) -> None:
        tiny, channel = model("llama"), KeyValues(layers=(1,))
        message = channel.send(tiny, TASK)
        message.save(tmp_path / "m.safetensors")
        loaded = Message.load(tmp_path / "m.safetensors")
        assert message.parts is not None and loaded.parts is not None
        for kept, read in zip(message.parts, loaded.parts, strict=True):
            assert kept.keys() == read.keys() and all(same_bits(kept[name], read[name]) for name in kept)
        told, again = (next_token_logits(tiny, channel.receive(tiny, TASK, each)) for each in (message, loaded))
        assert_same_bits(told, again)

    def test_a_message_of_no_layers_weighs_nothing_and_is_saved_all_the_same(self, tmp_path: Path) -> None:
        tiny, channel = model("gpt2"), KeyValues(layers=())
        with recorded_passes() as passes:
            message = channel.send(tiny, TASK)
        assert passes == [] and message.nbytes() == [0] * len(TASK.items)
        message.save(tmp_path / "m.safetensors")
        told = next_token_logits(tiny, channel.receive(tiny, TASK, Message.load(tmp_path / "m.safetensors")))
        assert_same_bits(told, replies(channel, tiny, tiny, TASK))

    def test_the_sender_stops_after_the_deepest_layer_that_is_sent(self) -> None:
        tiny = model("llama")
        with recorded_passes() as passes:
            KeyValues(layers=(0, 1)).send(tiny, TASK)
        assert {(each.n_layers, each.n_unembedded) for each in passes} == {(2, 0)}
        assert sum(each.rows for each in passes) == len(TASK.items)
        with recorded_passes() as passes:
            KeyValues().send(tiny, TASK)
        assert {each.n_layers for each in passes} == {3}

    def test_the_receivers_passes_are_counted_with_the_past_they_attend_to(self) -> None:
        tiny, channel = model("llama"), KeyValues()
        entering = channel.receive(tiny, TASK, channel.send(tiny, TASK))
        with recorded_passes() as passes:
            decode(tiny, entering, max_new_tokens=1)
        counted = {(each.n_new, each.n_past) for each in passes}
        lengths = set(sender_lengths(tiny))
        assert counted == {(len(tiny.tokenizer(TASK.items[0].receiver).input_ids), length) for length in lengths}
        assert len(counted) == len(OPENINGS)

    def test_the_receivers_own_is_its_prompt_read_twice(self) -> None:
        tiny, channel = model("llama"), KeyValues()
        own = channel.own(tiny, TASK)
        assert own.is_own and channel.carries_own(tiny)
        texts = [item.receiver for item in TASK.items]
        twice = Prompts.from_ids([2 * tiny.tokenizer(text).input_ids for text in texts])
        found = next_token_logits(tiny, channel.receive(tiny, TASK, own))
        assert torch.allclose(found, next_token_logits(tiny, twice), rtol=0, atol=1e-9)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"n_layers": 4}, "tiny-llama has 4 layers and tiny-llama has 3"),
            ({"n_heads": 2}, "has 1 key-value heads and tiny-llama has 2"),
            ({"d_model": 64}, "has 16 entries a head and tiny-llama has 8"),
        ],
        ids=str,
    )
    def test_another_layout_is_refused_with_what_differs(self, options: dict[str, Any], said: str) -> None:
        tiny, other, channel = model("llama"), build("llama", **options), KeyValues()
        with pytest.raises(ValueError, match=f"{said}, so its keys and values do not fit; choose two models of one"):
            channel.receive(tiny, TASK, channel.send(other, TASK))
        with pytest.raises(ValueError, match=said):
            channel.send(other, TASK, receiver=tiny)

    def test_another_way_of_telling_positions_is_refused_by_name(self) -> None:
        channel, neox, gpt2 = KeyValues(), model("neox"), model("gpt2")
        with pytest.raises(ValueError, match=r"in another way \(rotary, in the keys: .*\) than tiny-gpt2 \(standard\)"):
            channel.receive(gpt2, TASK, channel.send(neox, TASK))

    def test_another_base_of_the_rotation_is_refused(self) -> None:
        raw = transformers_model("llama")
        raw.config.rope_parameters = {**raw.config.rope_parameters, "rope_theta": 500.0}
        other, channel = wrap_model(raw, tokenizer(), name="faster"), KeyValues()
        with pytest.raises(ValueError, match=r"faster encodes positions .* rope_theta 500.0.* than tiny-llama"):
            channel.receive(model("llama"), TASK, channel.send(other, TASK))

    @needs_hooked_transformer
    def test_backends_share_keys_without_positions_and_refuse_rotary_ones(self) -> None:
        channel = KeyValues(layers=(0, 1))
        found = channel.receive(model("gpt2", "hooked"), TASK, channel.send(model("gpt2"), TASK))
        expected = replies(channel, model("gpt2"), model("gpt2"), TASK)
        assert torch.allclose(next_token_logits(model("gpt2", "hooked"), found), expected, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match=r"rotary, in the keys: .* than tiny-llama .rotary, not yet in the keys"):
            channel.receive(model("llama", "hooked"), TASK, channel.send(model("llama"), TASK))

    def test_a_message_of_another_kind_or_for_another_model_is_refused(self) -> None:
        tiny, channel = model("llama"), KeyValues()
        with pytest.raises(ValueError, match="the channel kv needs a message of keys and values and got nothing"):
            channel.receive(tiny, TASK, Silent().send(tiny, TASK))
        foreign = replace(channel.send(tiny, TASK), meant_for="tiny-gpt2")
        with pytest.raises(ValueError, match="is meant for tiny-gpt2 and tiny-llama cannot read it"):
            channel.receive(tiny, TASK, foreign)

    def test_layers_that_make_no_sense_are_refused(self) -> None:
        for layers in ((1, 1), (2, 0), (-1,)):
            with pytest.raises(ValueError, match="give each once, ascending from 0"):
                KeyValues(layers=layers)
        with pytest.raises(ValueError, match="sends layer 3, which is outside tiny-llama, whose layers are 0 to 2"):
            KeyValues(layers=(3,)).send(model("llama"), TASK)

    def test_more_positions_than_the_model_has_are_refused(self) -> None:
        tiny = model("gpt2")
        long = replace(TASK, items=tuple(replace(item, sender="Alice is at. " * 9) for item in TASK.items))
        with pytest.raises(ValueError, match=f"exceed the {N_CTX} of tiny-gpt2"):
            replies(KeyValues(), tiny, tiny, long)

    def test_an_attention_that_does_not_obey_the_mask_is_an_error(self) -> None:
        tiny, channel = model("llama"), KeyValues(layers=(0,))
        entering = channel.receive(tiny, TASK, channel.send(tiny, TASK))
        deaf = replace(entering, persistent=tuple(Deaf(each) for each in entering.persistent))
        with pytest.raises(RuntimeError, match="the attention of layer 1 does not obey a mask at its hook points"):
            next_token_logits(tiny, deaf)


@dataclass(frozen=True)
class Deaf:
    """What acts in every pass, but for the masks: as in a model whose attention scores are not where it looks."""

    persistent: Any

    def select(self, rows: Sequence[int]) -> "Deaf":
        return Deaf(self.persistent.select(rows))

    def fwd_hooks(self) -> list[Hook]:
        return [(name, hook) for name, hook in self.persistent.fwd_hooks() if not name.endswith("scores")]


class TestWhichLayers:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_attention_to_the_sender_is_the_mean_over_items_heads_and_tokens(self, backend: str) -> None:
        tiny = model("llama", backend)
        expected = torch.zeros(len(TASK.items), 3, dtype=torch.float64)
        for row, (ids, item) in enumerate(zip(both_ids(tiny), TASK.items, strict=True)):
            length = len(tiny.tokenizer(item.sender).input_ids)
            with torch.no_grad():
                _, cache = tiny.hooked.run_with_cache(torch.tensor([ids]))
            for layer in range(3):
                pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0]
                expected[row, layer] = pattern[:, length:, :length].sum(-1).mean()
        found = measure_attention(tiny, tiny, TASK)
        assert torch.allclose(found, expected.mean(0), rtol=0, atol=1e-9)
        assert float(found.min()) > 0 and float(found.max()) < 1

    def test_the_layers_of_the_highest_attention_are_chosen(self) -> None:
        attention = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3])
        assert choose_layers(attention, share=0.4) == (1, 3)
        assert choose_layers(attention, share=1) == (0, 1, 2, 3, 4)
        assert choose_layers(attention, share=0.01) == (1,)
        assert choose_layers(torch.full((4,), 0.5), share=0.5) == (0, 1)

    def test_the_prior_prefers_the_middle_or_where_it_is_put(self) -> None:
        attention = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.9])
        assert choose_layers(attention, share=0.4) == (0, 4)
        assert choose_layers(attention, share=0.2, weight=0, width=1) == (2,)
        assert choose_layers(attention, share=0.4, weight=0, width=1, centre=3.4) == (3, 4)
        assert choose_layers(attention, share=0.2, weight=0.9, width=1, centre=4) == (4,)  # 0.91 against 0.9

    @pytest.mark.parametrize(
        "options", [{"share": 0}, {"share": 2}, {"share": 0.5, "weight": 2}, {"share": 1, "width": 0}]
    )
    def test_options_out_of_range_are_refused(self, options: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must be in"):
            choose_layers(torch.ones(3), **options)


def test_it_keeps_the_protocol_and_has_a_stable_digest() -> None:
    assert isinstance(KeyValues(), Channel)
    assert digest(KeyValues(layers=(1,))) == digest(KeyValues(layers=(1,))) != digest(KeyValues(layers=(2,)))


def test_a_run_with_every_control_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    tiny, channel = model("llama"), KeyValues(layers=(0, 1))
    trials = evaluate(channel, tiny, tiny, TASK, checkpoint=tmp_path)
    assert {trial.condition for trial in trials} == {"message", "shuffled", "zero", "random", "self"}
    with recorded_passes() as passes:
        again = evaluate(channel, tiny, tiny, TASK, checkpoint=tmp_path)
    assert passes == [] and [trial.reply for trial in again] == [trial.reply for trial in trials]
    assert encode(tiny, [TASK.items[0].sender]).lengths.item() * 2 * 2 * 2 * 8 * 8 == trials[0].message_bytes
