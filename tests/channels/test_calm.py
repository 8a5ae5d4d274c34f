"""CALM: the bridge is what its formula says, acts in every pass, starts as nothing, and learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numerics import assert_saved_bit_for_bit
from tiny import BACKENDS, build, model, states
from torch import Tensor
from toys import toy

import latentcomm as lc
from latentcomm.channels import Channel, Message, Silent
from latentcomm.channels.calm import Bridge, BridgeShape, Calm, CalmLearner, new_bridge, paired_layers
from latentcomm.channels.training.trainer import Schedule, Trainable, train
from latentcomm.hooks.decode import decode, next_token_logits
from latentcomm.hooks.receiver_input import PersistentHooks
from latentcomm.models import Model
from latentcomm.tasks import Task

TASK = toy()


def drawn(bridge: Bridge, *, seed: int = 0) -> Bridge:
    """The same bridge with weights that say something."""
    draw = torch.Generator().manual_seed(seed)
    return Bridge(
        bridge.shape, {name: 0.3 * torch.randn(w.shape, generator=draw) for name, w in bridge.weights.items()}
    )


def calm(sender: Model, receiver: Model) -> Calm:
    return Calm("calm", drawn(new_bridge(sender, receiver, every=1)))


def by_hand(bridge: Bridge, pair: int, own: Tensor, heard: Tensor) -> Tensor:
    """What one row's cross-attention adds, a head and a position at a time."""
    w = {name: bridge.weights[f"{pair}.{name}"].double() for name in ("project", "query", "key", "value", "out")}
    width = len(w["out"]) // bridge.shape.n_heads
    out = torch.zeros_like(own)
    for place, b in enumerate(own):
        said = torch.zeros(len(w["out"]), dtype=torch.float64)
        for head in range(bridge.shape.n_heads):
            part = slice(head * width, (head + 1) * width)
            query = w["query"][part] @ (b / b.square().mean().sqrt())
            rows = [w["project"] @ (a / a.square().mean().sqrt()) for a in heard]
            weights = torch.stack([query @ (w["key"][part] @ row) / width**0.5 for row in rows]).softmax(0)
            said[part] = sum(weight * (w["value"][part] @ row) for weight, row in zip(weights, rows, strict=True))
        out[place] = w["out"] @ said
    return out


class TestThePairs:
    @pytest.mark.parametrize(
        ("sizes", "every", "expected"),
        [
            ((8, 8), 4, ((3, 3), (7, 7))),
            ((12, 24), 4, ((3, 7), (7, 15), (11, 23))),
            ((9, 5), 4, ((3, 2), (7, 4))),
            ((6, 2), 1, ((0, 0), (1, 1))),
        ],
    )
    def test_every_nth_layer_meets_evenly_spaced_ones(
        self, sizes: tuple[int, int], every: int, expected: tuple[tuple[int, int], ...]
    ) -> None:
        assert paired_layers(*sizes, every=every) == expected

    def test_more_than_there_are_is_refused(self) -> None:
        with pytest.raises(ValueError, match="give 1 to 3"):
            paired_layers(3, 3)
        with pytest.raises(ValueError, match="another receiver layer"):
            BridgeShape(4, 4, "toy", ((0, 1), (1, 1)))


class TestTheBridge:
    def test_it_is_its_formula_and_masked_places_are_not_seen(self) -> None:
        bridge = drawn(Bridge.initial(BridgeShape(6, 8, "toy", ((0, 0), (1, 2)), n_heads=2)))
        own, heard = states(2, 3, 8), states(2, 5, 6, seed=1)
        mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
        found = bridge.added(1, own, heard, mask)
        assert torch.allclose(found[0], by_hand(bridge, 1, own[0], heard[0]), atol=1e-4)
        assert torch.allclose(found[1], by_hand(bridge, 1, own[1], heard[1, :2]), atol=1e-4)
        assert not torch.allclose(found[1], by_hand(bridge, 1, own[1], heard[1]), atol=1e-2)

    def test_it_is_saved_bit_for_bit_and_refuses_another_shape(self, tmp_path: Path) -> None:
        bridge = drawn(Bridge.initial(BridgeShape(6, 8, "toy", ((0, 0), (1, 2)), n_heads=2)))
        assert_saved_bit_for_bit(bridge, tmp_path / "b")
        with pytest.raises(ValueError, match=r"the bridge's 0.project is \(8, 6\), but .* needs \(8, 7\)"):
            Bridge(replace(bridge.shape, d_sender=7), bridge.weights)


class TestTheChannel:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_untrained_bridge_changes_nothing_and_a_drawn_one_every_item(self, backend: str) -> None:
        tiny = model("llama", backend)
        silent = next_token_logits(tiny, Silent().receive(tiny, TASK, Silent().send(tiny, TASK)))
        for said, same in ((Calm("new", new_bridge(tiny, tiny, every=1)), True), (calm(tiny, tiny), False)):
            assert isinstance(said, Channel)
            found = next_token_logits(tiny, said.receive(tiny, TASK, said.send(tiny, TASK)))
            near = torch.isclose(found, silent, rtol=0, atol=1e-9).all(1)
            assert near.all() if same else not near.any()

    def test_the_message_is_the_senders_states_at_its_paired_layers(self, tmp_path: Path) -> None:
        sender, receiver = model("llama"), model("gpt2")
        said = Calm("calm", new_bridge(sender, receiver, every=2))
        message = said.send(sender, TASK, receiver=receiver)
        assert said.bridge.shape.pairs == ((1, 2),) and message.meant_for == receiver.name
        for item, part in zip(TASK.items, message.parts or (), strict=True):
            row = torch.tensor([sender.tokenizer(item.sender).input_ids])
            with torch.no_grad():
                cache = sender.hooked.run_with_cache(row)[1]
            assert part.keys() == {"layer 1"}
            assert torch.allclose(part["layer 1"], cache["blocks.1.hook_resid_post"][0], rtol=0, atol=1e-9)
        message.save(tmp_path / "m")
        assert Message.load(tmp_path / "m").nbytes() == message.nbytes()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_it_stands_in_the_prompt_and_in_every_reply_token(self, backend: str) -> None:
        tiny = model("llama", backend)
        said = calm(tiny, tiny)
        message = said.send(tiny, TASK)
        given = said.receive(tiny, TASK, message)
        assert isinstance(given.persistent[0], PersistentHooks)
        reply = decode(tiny, given, max_new_tokens=3)
        for row in (0, 3):
            ids = tiny.tokenizer(TASK.items[row].receiver).input_ids
            tokens = torch.tensor([[*ids, *reply.ids[row]]])
            hooks = given.persistent[0].select([row]).fwd_hooks()
            whole = tiny.forward(tokens, hooks=hooks)[0]
            assert whole[len(ids) - 1 : -1].argmax(-1).tolist() == reply.ids[row]  # as one pass with no cache says it

    def test_the_receivers_state_is_moved_by_the_formula(self) -> None:
        tiny = model("llama")
        said = calm(tiny, tiny)
        message = said.send(tiny, TASK)
        row = torch.tensor([tiny.tokenizer(TASK.items[0].receiver).input_ids])
        hooks = said.receive(tiny, TASK, message).persistent[0].select([0]).fwd_hooks()
        kept: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: object) -> None:
            kept["before" if "before" not in kept else "after"] = value.clone()

        name = hooks[0][0]
        tiny.forward(row, hooks=[(name, keep), hooks[0], (name, keep)])
        added = by_hand(said.bridge, 0, kept["before"][0], (message.parts or ())[0]["layer 0"])
        assert torch.allclose(kept["after"][0] - kept["before"][0], added, atol=1e-4)

    def test_a_batch_is_its_rows_one_by_one(self) -> None:
        tiny = model("llama")
        said = calm(tiny, tiny)
        together = next_token_logits(tiny, said.receive(tiny, TASK, said.send(tiny, TASK)))
        for row, item in enumerate(TASK.items):
            alone = replace(TASK, items=(item,))
            found = next_token_logits(tiny, said.receive(tiny, alone, said.send(tiny, alone)))
            assert torch.allclose(found[0], together[row], rtol=0, atol=1e-4)

    def test_every_control_can_be_run_on_it(self) -> None:
        tiny = model("llama", dtype=torch.float32)
        trials = lc.evaluate(calm(tiny, tiny), tiny, tiny, TASK, reply_tokens=1)
        assert {trial.condition for trial in trials} == {"message", "shuffled", "zero", "random", "self"}

    def test_what_it_was_not_made_for_is_refused(self) -> None:
        tiny, other, narrow = model("llama"), model("gpt2"), model("llama", d_model=16)
        said = calm(tiny, tiny)
        with pytest.raises(ValueError, match="cannot read it"):
            said.receive(other, TASK, said.send(tiny, TASK))
        with pytest.raises(ValueError, match="16 wide and the bridge of calm reads 32"):
            said.send(narrow, TASK)
        with pytest.raises(ValueError, match="needs a message of states at layer"):
            said.receive(tiny, TASK, Message(states(8, 32), "a vector"))
        assert said.carries_own(tiny) and not said.carries_own(narrow)
        assert not said.carries_own(model("llama", n_layers=2))


class TestTheTraining:
    def test_it_learns_what_the_sender_knows_and_both_models_stay(self) -> None:
        sender, receiver = build("llama", dtype=torch.float32), build("gpt2", dtype=torch.float32)
        said = Calm("calm", new_bridge(sender, receiver, every=1))
        before = sender.fingerprint, receiver.fingerprint
        message = said.send(sender, TASK)
        taught = CalmLearner.of(receiver, TASK, message, said.bridge, answers=[i.choice for i in TASK.items])
        assert isinstance(taught, Trainable)
        done = train(taught, Schedule(steps=60, batch_size=8, learning_rate=5e-3), frozen=[sender, receiver])
        assert done.losses[-1] < 0.2 * done.losses[0]
        assert (sender.fingerprint, receiver.fingerprint) == before
        trials = lc.evaluate(said, sender, receiver, TASK, reply_tokens=1, controls=("shuffled",))
        right = {name: sum(t.free for t in trials if t.condition == name) for name in ("message", "shuffled")}
        assert right["message"] == len(TASK.items) and right["shuffled"] == 0

    def test_another_number_of_answers_is_refused(self) -> None:
        tiny = model("llama")
        said = calm(tiny, tiny)
        few: Task = replace(TASK, items=TASK.items[:2])
        with pytest.raises(ValueError, match="1 answers for 2 items"):
            CalmLearner.of(tiny, few, said.send(tiny, few), said.bridge, answers=["a"])
