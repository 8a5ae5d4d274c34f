"""Latent trajectories: the message is the states of the plan, the adapter what its formula says, each loss falls."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_equal_to_rounding, assert_same_bits, assert_saved_bit_for_bit, forward_terms, same_bits
from tiny import BACKENDS, build, model, states
from torch import Tensor
from toys import ASKED, toy

import latentcomm as lc
from latentcomm.channels import Channel, Message
from latentcomm.channels.interlat import Adapter, AdapterShape, Interlat, new_adapter
from latentcomm.channels.soft_slots import filled, with_gap
from latentcomm.channels.training.interlat import InterlatLearner, InterlatLoss, jensen_shannon, warm_start
from latentcomm.channels.training.trainer import Schedule, Trainable, frozen_weights, train
from latentcomm.hooks.decode import next_token_logits
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model

TASK = toy()
CE_ONLY = InterlatLoss(separation=0, alignment=0, curriculum=(0,))


def channel(sender: Model, receiver: Model, *, n_steps: int | None = None) -> Interlat:
    return Interlat("interlat", new_adapter(sender, receiver, n_heads=4, n_steps=n_steps), plan_tokens=3)


def learner(options: InterlatLoss, *, n_steps: int | None = None) -> tuple[Model, Interlat, InterlatLearner]:
    tiny = build("llama", dtype=torch.float32)
    said = channel(tiny, tiny, n_steps=n_steps)
    return tiny, said, InterlatLearner.of(tiny, TASK, said.send(tiny, TASK), said.adapter, options=options)


class TestTheGap:
    def test_raw_text_has_its_gap_at_the_end(self) -> None:
        tiny = model("llama")
        assert with_gap(tiny, [ASKED], template="raw") == [(tiny.tokenizer(ASKED).input_ids, [])]

    def test_the_gap_of_a_chat_is_at_the_end_of_the_users_text(self) -> None:
        tiny = model("llama")
        ((before, after),) = with_gap(tiny, [ASKED], template="chat")
        assert tiny.tokenizer.decode(after) == "<end><assistant>"
        assert [*before, *after] == lc.encode(tiny, [ASKED], template="chat").ids(0).tolist()

    def test_vectors_fill_it_in_order(self) -> None:
        vectors = [states(2, 32), states(1, 32, seed=1)]
        prompts, soft = filled([([5, 6], [7]), ([5], [])], vectors)
        assert prompts.ids(0).tolist() == [5, 6, 0, 0, 7] and prompts.ids(1).tolist() == [5, 0]
        assert [place.tolist() for place in soft.positions] == [[2, 3], [1]]

    def test_a_template_that_changes_the_words_is_refused(self) -> None:
        tiny = build("llama")
        tiny.tokenizer.chat_template = "{% for message in messages %}<user>hello{% endfor %}"
        with pytest.raises(ValueError, match="changes the user's text"):
            with_gap(tiny, [ASKED], template="chat")


class TestTheMessage:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_each_state_says_its_own_plan_token(self, backend: str) -> None:
        tiny = model("llama", backend)
        message = channel(tiny, tiny).send(tiny, TASK)
        plans = lc.generate(tiny, lc.encode(tiny, [item.sender for item in TASK.items]), max_new_tokens=3)
        assert message.texts == tuple(plans)
        for part in message.parts or ():
            assert tiny.unembed(part["states"]).argmax(-1).tolist() == part["ids"].tolist()

    def test_the_states_are_those_of_one_item_alone_by_transformer_lens(self) -> None:
        tiny = model("llama")
        message = channel(tiny, tiny).send(tiny, TASK)
        for item, part in zip(TASK.items, message.parts or (), strict=True):
            row = torch.tensor([[*tiny.tokenizer(item.sender).input_ids, *part["ids"].tolist()]])
            with torch.no_grad():
                last = tiny.hooked.run_with_cache(row)[1]["blocks.2.hook_resid_post"][0]
                expected = tiny.hooked.ln_final(last[None])[0]
            start = len(tiny.tokenizer(item.sender).input_ids) - 1
            assert_equal_to_rounding(part["states"], expected[start:-1], terms=forward_terms(tiny))

    def test_it_weighs_its_states_and_comes_back_from_a_file(self, tmp_path: Path) -> None:
        tiny = model("llama")
        message = channel(tiny, tiny).send(tiny, TASK)
        message.save(tmp_path / "m")
        found = Message.load(tmp_path / "m")
        assert found.nbytes() == message.nbytes() and found.texts == message.texts and found.meant_for == tiny.name
        assert message.nbytes()[0] == 3 * (32 * 8 + 8) + len((message.texts or ("",))[0].encode())

    def test_another_receiver_another_width_and_a_silent_sender_are_refused(self) -> None:
        tiny, other = model("llama"), model("gpt2")
        said = channel(tiny, tiny)
        with pytest.raises(ValueError, match="cannot read it"):
            said.receive(other, TASK, said.send(tiny, TASK))
        with pytest.raises(ValueError, match="32 wide and the adapter of interlat reads 16"):
            channel(model("llama", d_model=16), tiny).send(tiny, TASK)
        with pytest.raises(ValueError, match="needs a message of states"):
            said.receive(tiny, TASK, Message(states(8, 32), "a vector"))
        ended = build("llama")
        ended.hooked.original_model.generation_config.eos_token_id = list(range(64))
        with pytest.raises(ValueError, match="generated an empty plan for item 'item-0'"):
            said.send(ended, TASK)


class TestTheAdapter:
    @pytest.mark.parametrize("n_steps", [None, 2])
    def test_it_is_its_formula(self, n_steps: int | None) -> None:
        shape = AdapterShape(6, 8, "toy", n_heads=2, n_steps=n_steps, limit=0.5)
        adapter = Adapter.initial(shape, states(20, 8, dtype=torch.float32))
        w = {name: torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) for name, weight in
             adapter.weights.items()}  # fmt: skip
        found, h = Adapter(shape, w)(states(5, 6, dtype=torch.float32)), states(5, 6, dtype=torch.float32)

        def norm(x: Tensor, name: str) -> Tensor:
            centred = x - x.mean(-1, keepdim=True)
            return (
                centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
                + w[f"{name}.bias"]
            )

        x = norm(h @ w["in.weight"].T + w["in.bias"], "in_norm")
        asking = x if n_steps is None else w["queries"]
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            query, key, value = (r @ w[f"{n}.weight"][head].T for n, r in (("query", asking), ("key", x), ("value", x)))
            heads.append((query @ key.T / 2).softmax(-1) @ value)
        x = norm(asking + torch.cat(heads, 1) @ w["out.weight"].T, "out_norm")
        gate = 1 / (1 + (-(x @ w["gate.weight"].T + w["gate.bias"])).exp())
        out = (w["scale"] * gate * (x @ w["through.weight"].T + w["through.bias"])).clamp(-0.5, 0.5)
        assert found.shape == ((5 if n_steps is None else 2) + 2, 8)
        assert torch.allclose(found[1:-1], out, atol=1e-5)
        assert same_bits(found[0], w["begin"]) and same_bits(found[-1], w["end"])
        assert (out.abs() == 0.5).any()

    def test_it_is_saved_bit_for_bit_and_refuses_weights_of_another_shape(self, tmp_path: Path) -> None:
        adapter = Adapter.initial(AdapterShape(6, 8, "toy", n_heads=2), states(20, 8))
        assert_saved_bit_for_bit(adapter, tmp_path / "a")
        with pytest.raises(ValueError, match=r"begin is \(8,\), but .* needs \(16,\)"):
            Adapter(replace(adapter.shape, d_receiver=16), adapter.weights)
        with pytest.raises(ValueError, match="7 wide and the adapter reads 6"):
            adapter(states(2, 7))
        with pytest.raises(ValueError, match="3 heads do not divide"):
            AdapterShape(6, 8, "toy", n_heads=3)

    def test_new_latents_are_as_large_as_embeddings(self) -> None:
        table = 0.2 * states(500, 64, dtype=torch.float32)
        adapter = Adapter.initial(AdapterShape(48, 64, "toy"), table)
        latents = adapter(100 * states(40, 48, dtype=torch.float32))[1:-1]
        assert 0.5 < float(latents.norm(dim=1).mean() / table.norm(dim=1).mean()) < 2

    def test_a_warm_start_returns_the_plans_embeddings_unlike_a_cold_one(self) -> None:
        tiny = model("llama", dtype=torch.float32)
        table = tiny.hooked.W_E.detach()
        token = torch.randint(64, (40, 6), generator=torch.Generator().manual_seed(0))
        mixing = states(32, 32, seed=3, dtype=torch.float32)
        parts = tuple({"states": table[ids] @ mixing, "ids": ids} for ids in token)
        texts = tuple(tiny.decode(ids.tolist()) for ids in token)
        shape = AdapterShape(32, 32, tiny.name, n_heads=4)
        message = Message(None, "planted", texts=texts, parts=parts)
        warm, cold = warm_start(tiny, message, shape, marker=" of"), new_adapter(tiny, tiny, n_heads=4)
        near = [F.cosine_similarity(a(parts[0]["states"])[1:-1], table[token[0]]).min() for a in (warm, cold)]
        assert near[0] > 0.9 > 0.5 > near[1]
        assert_same_bits(warm.weights["begin"], table[tiny.first_token(" of")])
        pooled = warm_start(tiny, message, replace(shape, n_steps=3))(parts[0]["states"])[1:-1]
        assert F.cosine_similarity(pooled, table[token[0]].mean(0)[None]).min() > 0.8


class TestTheChannel:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_receiver_reads_turn_begin_latents_end(self, backend: str) -> None:
        tiny = model("llama", backend)
        said = channel(tiny, tiny)
        assert isinstance(said, Channel)
        message = said.send(tiny, TASK)
        found = next_token_logits(tiny, said.receive(tiny, TASK, message))
        for row, item in enumerate(TASK.items):
            ids = tiny.tokenizer(item.receiver).input_ids
            with torch.no_grad():
                entering = said.adapter((message.parts or ())[row]["states"])
            tokens = torch.tensor([[*ids, *[9] * len(entering)]])

            def write(value: Tensor, hook: object, entering: Tensor = entering, n: int = len(ids)) -> Tensor:
                return torch.cat([value[:, :n], entering[None].to(value.dtype)], 1)

            expected = tiny.forward(tokens, hooks=[("hook_embed", write)])[0, -1]
            assert_equal_to_rounding(found[row], expected, terms=forward_terms(tiny))

    def test_the_self_message_is_the_receivers_own_plan(self) -> None:
        tiny = model("llama")
        said = channel(tiny, tiny)
        own = said.own(tiny, TASK)
        assert said.carries_own(tiny) and own.is_own
        assert len(set(own.texts or ())) == 1  # every receiver reads the same words, so it has nothing else to say
        assert len(set(said.send(tiny, TASK).texts or ())) > 1
        assert not said.carries_own(model("llama", d_model=16))

    def test_controls_can_be_run_on_it(self) -> None:
        tiny = model("llama", dtype=torch.float32)
        trials = lc.evaluate(channel(tiny, tiny, n_steps=2), tiny, tiny, TASK, reply_tokens=1)
        assert {trial.condition for trial in trials} == {"message", "shuffled", "zero", "random", "self"}


class TestTheLosses:
    @pytest.mark.parametrize(
        "options",
        [CE_ONLY, InterlatLoss(curriculum=(0,)), InterlatLoss()],
        ids=["task alone", "with separation and alignment", "with a curriculum"],
    )
    def test_the_loss_falls_and_the_receiver_stays(self, options: InterlatLoss) -> None:
        tiny, said, taught = learner(options)
        assert isinstance(taught, Trainable)
        before = tiny.fingerprint
        done = train(taught, Schedule(steps=30, batch_size=8, learning_rate=5e-3), frozen=[tiny])
        assert sum(done.losses[-5:]) < 0.85 * sum(done.losses[:5])
        assert tiny.fingerprint == before and said.adapter.weights["scale"] is taught.parameters["scale"]

    def test_training_separates_the_items_and_shuffled_messages_do_not(self) -> None:
        tiny, said, taught = learner(CE_ONLY)
        train(taught, Schedule(steps=80, batch_size=8, learning_rate=5e-3, warmup=5), frozen=[tiny])
        trials = lc.evaluate(said, tiny, tiny, TASK, reply_tokens=1, controls=("shuffled",))
        right = {name: sum(t.free for t in trials if t.condition == name) for name in ("message", "shuffled")}
        assert right["message"] == len(TASK.items) and right["shuffled"] == 0

    def test_jensen_shannon_is_nothing_for_equals_and_ln_2_for_strangers(self) -> None:
        a, b = torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[0.0, 50.0, 0.0]])
        assert float(jensen_shannon(a, a)) == pytest.approx(0, abs=1e-6)
        assert float(jensen_shannon(a, b)) == pytest.approx(math.log(2), abs=1e-6)
        p, q = states(1, 5).softmax(-1), states(1, 5, seed=1).softmax(-1)
        m = (p + q) / 2
        by_hand = float(((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2)
        assert float(jensen_shannon(p.log(), q.log())) == pytest.approx(by_hand, abs=1e-6)
        assert float(jensen_shannon(a, b)) == float(jensen_shannon(b, a))

    def test_each_loss_adds_its_own_part(self) -> None:
        values = {}
        for name, options in {
            "ce": CE_ONLY,
            "separation": replace(CE_ONLY, separation=1),
            "alignment": replace(CE_ONLY, alignment=1),
            "both": replace(CE_ONLY, separation=1, alignment=1),
        }.items():
            tiny, _, taught = learner(options)
            with frozen_weights([tiny]), torch.no_grad():
                values[name] = float(taught.loss(range(8), torch.Generator().manual_seed(0)))
        assert values["ce"] < values["separation"] <= values["ce"] + math.log(2)
        assert values["both"] - values["separation"] == pytest.approx(values["alignment"] - values["ce"], rel=1e-4)

    def test_messages_that_are_all_the_same_pay_the_whole_separation(self) -> None:
        values = []
        for separation in (0, 1):
            _, _, taught = learner(replace(CE_ONLY, separation=separation))
            taught = replace(taught, states=(taught.states[0],) * len(taught))
            with torch.no_grad():
                values.append(float(taught.loss(range(8), torch.Generator().manual_seed(0))))
        assert values[1] - values[0] == pytest.approx(math.log(2), abs=1e-4)

    def test_a_curriculum_of_one_reads_the_text_and_its_alignment_is_nothing(self) -> None:
        whole = replace(CE_ONLY, alignment=1, curriculum=(1,))
        with torch.no_grad():
            text = float(learner(whole)[2].loss(range(8), torch.Generator()))
            ce = float(learner(replace(whole, alignment=0))[2].loss(range(8), torch.Generator()))
            latents = float(learner(CE_ONLY)[2].loss(range(8), torch.Generator()))
        assert text == pytest.approx(ce, abs=1e-5) and abs(ce - latents) > 1e-3

    def test_half_a_curriculum_replaces_half_of_the_positions_at_their_places(self) -> None:
        tiny, said, taught = learner(replace(CE_ONLY, curriculum=(0.34,)))
        with torch.no_grad():
            mixed = taught._mixed(0, torch.Generator().manual_seed(0))
            latents = said.adapter(taught.states[0])
        table = tiny.hooked.W_E.detach()
        replaced = [place for place in range(1, 4) if not same_bits(mixed[place], latents[place])]
        assert len(replaced) == 1
        assert_same_bits(mixed[replaced[0]], table[taught.plans[0][replaced[0] - 1]])
        assert same_bits(mixed[0], latents[0]) and same_bits(mixed[-1], latents[-1])

    def test_compressed_to_k_steps_it_still_learns(self) -> None:
        tiny, said, taught = learner(CE_ONLY, n_steps=2)
        done = train(taught, Schedule(steps=30, batch_size=8, learning_rate=5e-3), frozen=[tiny])
        assert done.losses[-1] < 0.8 * done.losses[0]
        given = said.receive(tiny, TASK, said.send(tiny, TASK))
        assert given.soft is not None and {len(each) for each in given.soft.vectors} == {4}

    def test_options_that_mean_nothing_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 0"):
            InterlatLoss(separation=-1)
        with pytest.raises(ValueError, match="fractions from 0 to 1"):
            InterlatLoss(curriculum=())
        tiny = build("llama", dtype=torch.float32)
        said = channel(tiny, tiny)
        same = replace(TASK, items=tuple(replace(i, answers=("Peru",)) for i in TASK.items))
        taught = InterlatLearner.of(tiny, same, said.send(tiny, same), said.adapter)
        with pytest.raises(ValueError, match="needs items with other answers"):
            taught.loss([0], torch.Generator())


def test_a_prompt_given_as_receiver_input_holds_no_graft() -> None:
    tiny = model("llama")
    said = channel(tiny, tiny)
    given = said.receive(tiny, TASK, said.send(tiny, TASK))
    assert isinstance(given, ReceiverInput) and given.grafts == () and given.past is None
