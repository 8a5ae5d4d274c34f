"""The job behind `latentcomm train`: what is trained, that it is kept to the bit, and who may be asked about what."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numerics import assert_same_bits, equal_to_rounding, forward_terms, same_bits
from tiny import build, model
from toys import toy

from latentcomm.channels.catalogue import CHANNELS, LEARNED, Recipe
from latentcomm.channels.catalogue import build as build_channels
from latentcomm.channels.training.trainer import Schedule, Trainable, Training
from latentcomm.experiments import maps
from latentcomm.experiments import train as learning
from latentcomm.experiments.compare import run as comparing
from latentcomm.experiments.compare.run import compare_named
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.train import LearningPlan, check_unseen, learn, load_folder, load_learned
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model
from latentcomm.models.sites import Site
from latentcomm.tasks import Task

PLAN = LearningPlan(steps=3, batch_size=2, read_layer=1, write_layer=1, plan_tokens=2, every=1)
FEW_DOCUMENTS = 3


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Alice is in the country of Greece .", "The best company is one of Bob .", "Bob says that Alice is in ."]
    for module in (maps, learning, comparing):
        monkeypatch.setattr(module, "map_documents", lambda: texts * FEW_DOCUMENTS)


def pair() -> tuple[Model, Model]:
    return model("llama"), model("llama", seed=1)


def asked() -> Task:
    return toy()


@pytest.mark.parametrize("name", LEARNED)
class TestEveryChannelThatLearns:
    def test_comes_back_from_its_file_to_the_bit_and_says_the_same(self, name: str, tmp_path: Path) -> None:
        sender, receiver = pair()
        made = learn(name, sender, receiver, asked(), plan=PLAN)
        made.save(tmp_path / f"{name}.safetensors")
        read = load_folder(tmp_path, sender, receiver)[name]
        assert set(read.weights) == set(made.weights)
        assert all(same_bits(read.weights[key], made.weights[key]) for key in made.weights)
        assert read.facts == made.facts and read.channel.name == name
        heard = []
        for one in (made.channel, read.channel):
            message = one.send(sender, asked(), receiver=receiver)
            heard.append(next_token_logits(receiver, one.receive(receiver, asked(), message)))
        assert_same_bits(*heard)

    def test_is_another_after_training_and_the_models_are_not(self, name: str) -> None:
        sender, receiver = pair()
        before = [sender.fingerprint, receiver.fingerprint]
        one, more = (learn(name, sender, receiver, asked(), plan=replace(PLAN, steps=n)) for n in (1, 3))
        terms = forward_terms(receiver)
        assert any(not equal_to_rounding(one.weights[key], more.weights[key], terms=terms) for key in one.weights)
        assert len(more.facts["training"]["mean_loss_by_tenths"]) == 3
        assert [sender.fingerprint, receiver.fingerprint] == before

    def test_goes_on_where_it_stopped(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sender, receiver = pair()
        whole = learn(name, sender, receiver, asked(), plan=PLAN)
        real = learning.train

        def stopped(learner: object, schedule: object, **options: object) -> object:
            real(learner, schedule, **(options | {"save_every": 0}))  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr(learning, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            learn(name, sender, receiver, asked(), plan=PLAN, checkpoint=tmp_path)
        monkeypatch.setattr(learning, "train", real)
        again = learn(name, sender, receiver, asked(), plan=PLAN, checkpoint=tmp_path)
        assert all(same_bits(again.weights[key], whole.weights[key]) for key in whole.weights)

    def test_is_compared_beside_the_others_on_items_that_it_has_not_seen(self, name: str) -> None:
        sender, receiver = pair()
        made = learn(name, sender, receiver, asked(), plan=PLAN)
        tune, test = asked().split(seed=0)
        check_unseen(made, test)
        found, _ = compare_named(
            ["silent", name],
            sender,
            receiver,
            asked(),
            settings=CompareSettings(controls=(), audit=False),
            learned={name: made.channel},
        )
        assert {trial.channel for trial in found.trials} == {"silent", name}
        assert {trial.item for trial in found.trials} == {item.id for item in test.items}
        if made.facts["trained_on"]:
            assert set(made.facts["trained_on"]) == {item.id for item in tune.items}
            with pytest.raises(ValueError, match=rf"has seen {len(tune.items)} of the {len(tune.items)} items"):
                check_unseen(made, tune)

    def test_what_is_held_out_is_neither_trained_on_nor_tested(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sender, receiver = pair()
        learners: list[Trainable] = []
        real = learning.train

        def watched(learner: Trainable, schedule: Schedule, *, held_out: Trainable, **options: Any) -> Training:
            learners.extend((learner, held_out))
            return real(learner, schedule, held_out=held_out, **options)

        monkeypatch.setattr(learning, "train", watched)
        made = learn(name, sender, receiver, asked(), plan=PLAN, held_out=0.25)
        tune, test = asked().split(seed=0)
        curve = made.facts["training"]["curve"]
        assert [n_done for n_done, *_ in curve] == [0, 1, 2, 3] and all(held > 0 for *_, held in curve)
        assert curve[0][1] is None and all(loss > 0 for _, loss, _ in curve[1:])
        if name != "learned_linear":  # which holds out documents
            parts = [set(made.facts[part]) for part in ("trained_on", "held_out")]
            assert all(parts) and not parts[0] & parts[1]
            assert parts[0] | parts[1] == {item.id for item in tune.items}
            assert [len(each) for each in learners] == [len(made.facts[part]) for part in ("trained_on", "held_out")]
        trained, held = learners
        assert all(held.parameters[key] is value for key, value in trained.parameters.items())  # the loss as it is now
        assert held.configuration != trained.configuration
        check_unseen(made, test)

    def test_without_its_weights_it_is_refused_with_what_makes_them(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"latentcomm train {name}"):
            build_channels([name], Recipe(Site(1), Site(1)))


class TestWhoItIsFor:
    def test_other_weights_are_refused(self, tmp_path: Path) -> None:
        sender, receiver = pair()
        learn("gated", sender, receiver, asked(), plan=PLAN).save(tmp_path / "gated.safetensors")
        for who in ((receiver, receiver), (sender, build("llama", seed=2))):
            with pytest.raises(ValueError, match="has other weights; train one for this pair"):
                load_learned(tmp_path / "gated.safetensors", *who)

    def test_each_model_is_hashed_once_for_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sender, receiver = pair()
        for name in ("gated", "concatenated"):
            learn(name, sender, receiver, asked(), plan=PLAN).save(tmp_path / f"{name}.safetensors")
        hashed: list[Model] = []
        real = vars(Model)["fingerprint"].fget
        monkeypatch.setattr(Model, "fingerprint", property(lambda self: (hashed.append(self), real(self))[1]))
        assert len(load_folder(tmp_path, sender, receiver)) == 2
        assert len(hashed) == 2 and {id(each) for each in hashed} == {id(sender), id(receiver)}

    def test_what_is_no_trained_channel_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no trained channel"):
            load_folder(tmp_path, *pair())
        with pytest.raises(FileNotFoundError, match="latentcomm train"):
            load_learned(tmp_path / "gated.safetensors", *pair())
        (tmp_path / "gated.safetensors").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="cannot be read"):
            load_learned(tmp_path / "gated.safetensors", *pair())

    @pytest.mark.parametrize("share", [0.001, 1.0, -0.5])
    def test_a_share_that_holds_out_nothing_or_everything_is_refused(self, share: float) -> None:
        with pytest.raises(ValueError, match=f"held_out is {share}"):
            learn("gated", *pair(), asked(), plan=PLAN, held_out=share)

    def test_only_what_learns_can_be_trained(self) -> None:
        with pytest.raises(ValueError, match="nothing to train in a channel 'replace'"):
            learn("replace", *pair(), asked())
        assert not set(LEARNED) & set(CHANNELS)

    def test_a_cell_that_is_chosen_has_seen_its_items(self) -> None:
        sender, receiver = pair()
        plan = replace(PLAN, read_layer=None, write_layer=None)
        made = learn("learned_linear", sender, receiver, asked(), plan=plan)
        tune, test = asked().split(seed=0)
        check_unseen(made, test)
        with pytest.raises(ValueError, match="has seen"):
            check_unseen(made, tune)
