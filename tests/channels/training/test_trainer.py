"""The trainer: updates as by hand, interrupted equals uninterrupted, frozen models stay, refusals say why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_same_bits, equal_to_rounding, same_bits
from tiny import BACKENDS, build, ids, model, states
from torch import Tensor
from toys import toy

from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.channels import Activation
from latentcomm.channels.training import trainer
from latentcomm.channels.training.answers import TextLearner, answer_logits, cross_entropy, train_linear
from latentcomm.channels.training.fusions import FusionLearner
from latentcomm.channels.training.trainer import (
    Schedule,
    Trainable,
    Training,
    frozen_weights,
    marks,
    train,
)
from latentcomm.fusion import Concat, Gated, Replace
from latentcomm.hooks.graft import LAST, Graft
from latentcomm.hooks.receiver_input import Past, ReceiverInput, SoftTokens
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site


@dataclass(frozen=True, eq=False)
class Noisy:
    """Least squares whose loss draws noise from its generator and from torch's own: what a resumption could lose."""

    source: Tensor
    target: Tensor
    weight: Tensor
    stop_at: int | None = None
    calls: list[list[int]] = field(default_factory=list)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight}

    @property
    def configuration(self) -> Mapping[str, Any]:
        return {"what": "noisy", "width": self.weight.shape[1]}

    def __len__(self) -> int:
        return len(self.source)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Tensor:
        if self.stop_at is not None and len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(list(batch))
        noise = 0.1 * torch.randn(len(batch), generator=generator) + 0.1 * torch.randn(len(batch))
        return ((self.source[list(batch)] @ self.weight.T)[:, 0] + noise - self.target[list(batch)]).square().mean()


@dataclass(frozen=True, eq=False)
class Exact:
    """Least squares of the rows' sums, without noise."""

    rows: Tensor
    weight: Tensor
    configuration: Mapping[str, Any] = field(default_factory=lambda: {"what": "exact"})

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight}

    def __len__(self) -> int:
        return len(self.rows)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Tensor:
        part = self.rows[list(batch)]
        return (part @ self.weight.T - part.sum(1, keepdim=True)).square().mean()


def noisy(*, stop_at: int | None = None, width: int = 3, rows: int = 10) -> Noisy:
    source = states(rows, width, dtype=torch.float32)
    return Noisy(source, source.sum(1), torch.zeros(1, width), stop_at)


class TestTheTrainer:
    def test_an_interrupted_training_that_goes_on_ends_with_the_same_bits(self, tmp_path: Path) -> None:
        schedule = Schedule(steps=23, batch_size=4, learning_rate=0.05, warmup=5, final_rate=0.1, accumulate=2)
        whole = noisy()
        expected = train(whole, schedule)
        stopped = noisy(stop_at=27)  # in the second pass of update 13
        with pytest.raises(KeyboardInterrupt):
            train(stopped, schedule, checkpoint=tmp_path / "c", save_every=0)
        resumed = noisy()
        found = train(resumed, schedule, checkpoint=tmp_path / "c", save_every=0)
        assert found.resumed_at == 13
        assert_same_bits(resumed.weight, whole.weight)
        assert found.losses == expected.losses
        assert whole.calls[26:] == resumed.calls

    def test_a_stop_loses_no_more_than_the_seconds_between_checkpoints(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopped = noisy(stop_at=21)
        monkeypatch.setattr(trainer.time, "perf_counter", lambda: 7.0 * len(stopped.calls))  # seven seconds an update
        schedule = Schedule(steps=40, batch_size=4)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, schedule, checkpoint=tmp_path / "c", save_every=30)
        found = train(noisy(), schedule, checkpoint=tmp_path / "c")
        assert found.resumed_at == 20  # 35 s, five updates, after each checkpoint; one update of 21 is lost
        assert 7 * (21 - found.resumed_at) <= 30

    def test_held_out_examples_are_measured_at_each_tenth_and_change_nothing(self, tmp_path: Path) -> None:
        schedule = Schedule(steps=20, batch_size=4, learning_rate=0.05)
        alone, learner = noisy(), noisy()
        train(alone, schedule)
        held = Exact(states(7, 3, dtype=torch.float32, seed=9), learner.weight)
        found = train(learner, schedule, held_out=held)
        assert_same_bits(learner.weight, alone.weight)
        assert [n for n, _ in found.held_out] == [0, *range(2, 21, 2)] == [0, *marks(20)]
        expected = float((held.rows @ learner.weight.T - held.rows.sum(1, keepdim=True)).square().mean())
        assert found.held_out[-1][1] == pytest.approx(expected)
        assert found.held_out[0][1] == pytest.approx(float(held.rows.sum(1).square().mean()))  # of the zero map
        stopped = noisy(stop_at=11)
        with pytest.raises(KeyboardInterrupt):
            train(
                stopped,
                schedule,
                held_out=replace(held, weight=stopped.weight),
                checkpoint=tmp_path / "c",
                save_every=0,
            )
        resumed = noisy()
        again = train(resumed, schedule, held_out=replace(held, weight=resumed.weight), checkpoint=tmp_path / "c")
        assert again.held_out == found.held_out and again.losses == found.losses
        assert [held for *_, held in again.curve] == [loss for _, loss in found.held_out]

    def test_the_configuration_is_read_once_and_not_at_every_update(self) -> None:
        reads: list[int] = []

        class Slow(Noisy):
            @property
            def configuration(self) -> Mapping[str, Any]:
                reads.append(1)  # a digest of all examples may take longer than an update
                return {"what": "slow"}

        counts = []
        for steps in (1, 30):
            reads.clear()
            source = states(10, 3, dtype=torch.float32)
            train(Slow(source, source.sum(1), torch.zeros(1, 3), None), Schedule(steps=steps, batch_size=2))
            counts.append(len(reads))
        assert counts[0] == counts[1] > 0

    def test_another_seed_ends_elsewhere_and_the_same_seed_does_not(self) -> None:
        ends = []
        for seed in (0, 0, 1):
            learner = noisy()
            train(learner, Schedule(steps=8, batch_size=4, seed=seed))
            ends.append(learner.weight.clone())
        assert_same_bits(ends[0], ends[1])
        assert not equal_to_rounding(ends[0], ends[2], terms=8 * (3 + 4))  # updates by columns and rows

    def test_torchs_own_random_numbers_go_on_as_if_nothing_had_been_trained(self) -> None:
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        train(noisy(), Schedule(steps=2, batch_size=2))
        assert_same_bits(torch.rand(3), expected)

    def test_a_training_that_is_done_is_read_back_and_not_run(self, tmp_path: Path) -> None:
        first, schedule = noisy(), Schedule(steps=6, batch_size=4)
        expected = train(first, schedule, checkpoint=tmp_path / "c")
        again = noisy(stop_at=0)
        assert train(again, schedule, checkpoint=tmp_path / "c").losses == expected.losses
        assert_same_bits(again.weight, first.weight)

    def test_updates_are_adamw_s_with_warm_up_and_clipping(self) -> None:
        schedule = Schedule(steps=6, batch_size=10, learning_rate=0.1, warmup=3, weight_decay=0.2, clip=0.5)
        learner = noisy()
        train(learner, schedule)
        weight, mean, square = torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3)
        for step in range(6):  # Loshchilov and Hutter's algorithm 2, written out
            weight.requires_grad_(True)
            draw = torch.Generator().manual_seed((0 * 1_000_003 + 1) * 1_000_000_007 + step)
            torch.manual_seed((0 * 1_000_003 + 2) * 1_000_000_007 + step)
            batch = learner.calls[step]
            noise = 0.1 * torch.randn(10, generator=draw) + 0.1 * torch.randn(10)
            loss = ((learner.source[batch] @ weight.T)[:, 0] + noise - learner.target[batch]).square().mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            gradient = gradient * min(1.0, 0.5 / float(gradient.norm()))
            rate = 0.1 * min(1.0, (step + 1) / 3)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
            with torch.no_grad():
                weight = weight * (1 - rate * 0.2)
                weight = weight - rate * (mean / (1 - 0.9 ** (step + 1))) / (
                    (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                )
        assert torch.allclose(learner.weight, weight, atol=1e-5)

    def test_every_example_is_seen_once_an_epoch_in_another_order(self) -> None:
        learner = noisy()
        train(learner, Schedule(steps=4, batch_size=5))
        epochs = [learner.calls[0] + learner.calls[1], learner.calls[2] + learner.calls[3]]
        assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2 and epochs[0] != epochs[1]

    def test_two_passes_of_half_a_batch_are_one_of_a_whole(self) -> None:
        source = states(8, 3, dtype=torch.float32)
        ends = []
        for size, passes in ((8, 1), (4, 2), (4, 1)):
            rows = AffineRows(source, source.flip(1), torch.zeros(3, 3))
            train(rows, Schedule(steps=3, batch_size=size, accumulate=passes, learning_rate=0.1))
            ends.append(rows.weight.clone())
        assert torch.allclose(ends[0], ends[1], atol=1e-6)
        assert not torch.allclose(ends[0], ends[2], atol=1e-3)

    def test_bfloat16_learns_the_same_with_fewer_digits(self) -> None:
        source = states(64, 3, dtype=torch.float32)
        ends = []
        for dtype in ("float32", "bfloat16"):
            rows = AffineRows(source, source.flip(1), torch.zeros(3, 3))
            train(rows, Schedule(steps=150, batch_size=32, learning_rate=0.05, dtype=dtype))
            assert rows.weight.dtype == torch.float32
            ends.append(rows.weight.clone())
        assert torch.allclose(ends[0], ends[1], atol=0.05)
        assert not equal_to_rounding(ends[0], ends[1], terms=150 * (3 + 32))

    def test_frozen_models_keep_their_weights_and_what_they_asked_for(self) -> None:
        tiny = build("llama")
        weights = list(tiny.hooked.parameters())
        weights[0].requires_grad_(False)
        before = [(weight.requires_grad, weight.detach().clone()) for weight in weights]
        with frozen_weights([tiny]):
            assert not any(weight.requires_grad for weight in weights)
        train(noisy(), Schedule(steps=1, batch_size=2), frozen=[tiny])
        assert all(
            weight.requires_grad == asked and same_bits(weight, value)
            for weight, (asked, value) in zip(weights, before, strict=True)
        )

    def test_what_it_cannot_train_is_refused(self) -> None:
        tiny = build("llama")
        learner = TextLearner(tiny, ("The",), (" Peru",))
        with pytest.raises(ValueError, match="belongs to a frozen model"):
            train(learner, Schedule(steps=1), frozen=[tiny])
        with pytest.raises(ValueError, match="0 examples"):
            train(noisy(rows=0), Schedule(steps=1))
        for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"final_rate": 2.0}, {"clip": 0.0}, {"accumulate": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                Schedule(**({"steps": 1} | wrong))  # type: ignore[arg-type]

    def test_a_loss_that_is_not_finite_ends_training_with_the_last_checkpoint(self, tmp_path: Path) -> None:
        learner = noisy()
        train(learner, Schedule(steps=4, batch_size=2), checkpoint=tmp_path / "c")
        kept = (tmp_path / "c").read_bytes()
        learner.source[:] = torch.inf
        with pytest.raises(RuntimeError, match="loss of update 0 is"):
            train(learner, Schedule(steps=4, batch_size=2))
        assert (tmp_path / "c").read_bytes() == kept

    def test_a_held_out_loss_that_is_not_finite_is_refused_as_well(self) -> None:
        learner = noisy()
        held = replace(learner, source=torch.full_like(learner.source, torch.inf))
        with pytest.raises(RuntimeError, match=r"the held-out loss after 0 updates is nan; lower the learning rate"):
            train(learner, Schedule(steps=4, batch_size=2), held_out=held)


def test_the_mean_loss_is_by_tenths_and_a_remainder_is_a_part_of_its_own():
    assert Training(tuple(map(float, range(20))), seconds=0.0).mean_losses == tuple(0.5 + 2 * n for n in range(10))
    assert Training(tuple(map(float, range(23))), seconds=0.0).mean_losses[-2:] == (20.5, 22.0)


class TestAnswers:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_logits_are_those_of_each_row_alone_whatever_the_lengths(self, backend: str) -> None:
        tiny = model("llama", backend)
        prompts, answers = ids(3, 6, 4), [[9, 8], [7], [6, 5, 10]]
        found = answer_logits(tiny, ReceiverInput(Prompts.from_ids(prompts)), answers)
        for prompt, answer, logits in zip(prompts, answers, found, strict=True):
            row = torch.cat([prompt, torch.tensor(answer)])[None]
            with torch.no_grad():
                expected = tiny.hooked(row, return_type="logits")[0].log_softmax(-1)[len(prompt) - 1 : -1]
            assert torch.allclose(logits.log_softmax(-1), expected, rtol=0, atol=1e-9)
        by_hand = [-logits.log_softmax(-1)[range(len(a)), a].mean() for logits, a in zip(found, answers, strict=True)]
        assert torch.allclose(cross_entropy(found, answers), torch.stack(by_hand).mean().float())

    def test_soft_tokens_and_grafts_act_on_the_prompt_and_pass_gradients(self) -> None:
        tiny = model("llama")
        prompts = Prompts.from_ids(ids(3, 5))
        vectors = states(2, 32).requires_grad_(True)
        entering = states(2, 32, seed=1).requires_grad_(True)
        soft = SoftTokens((torch.tensor([1]), torch.tensor([2])), (entering[:1], entering[1:]))
        given = ReceiverInput(prompts, (Graft(Site(1), LAST, vectors, Replace()),), soft)
        found = answer_logits(tiny, given, [[4, 5], [6]])
        for row, last in ((0, 2), (1, 4)):
            tokens = torch.cat([prompts.ids(row), torch.tensor([4 if row == 0 else 6])])[None]

            def write(value: Tensor, hook: object, row: int = row, last: int = last) -> Tensor:
                value = value.clone()
                value[0, last] = vectors[row].detach()
                return value

            def enter(value: Tensor, hook: object, row: int = row) -> Tensor:
                value = value.clone()
                value[0, 1 + row] = entering[row].detach()
                return value

            hooks = [("hook_embed", enter), ("blocks.1.hook_resid_post", write)]
            expected = tiny.forward(tokens, hooks=hooks)[0, last : last + len(found[row])]
            assert torch.allclose(found[row], expected, rtol=0, atol=1e-9)
        cross_entropy(found, [[4, 5], [6]]).backward()
        assert vectors.grad is not None and (vectors.grad.abs().sum(1) > 0).all()
        assert entering.grad is not None and (entering.grad.abs().sum(1) > 0).all()

    def test_what_has_no_answer_or_a_past_is_refused(self) -> None:
        tiny, prompts = model("llama"), Prompts.from_ids(ids(3))
        with pytest.raises(ValueError, match="give one of some tokens to each"):
            answer_logits(tiny, ReceiverInput(prompts), [[]])
        with pytest.raises(ValueError, match="through a past"):
            answer_logits(tiny, ReceiverInput(prompts, past=Past(((),), (1,))), [[3]])
        with pytest.raises(ValueError, match="reads 40 at most"):
            answer_logits(tiny, ReceiverInput(prompts), [[3] * 50])


class TestWhatIsTrained:
    def test_the_linear_map_comes_near_ridge_on_held_out_rows(self) -> None:
        source = states(400, 6, dtype=torch.float32)
        target = source @ states(6, 4, seed=1, dtype=torch.float32) + 2
        learnt = train_linear(source[:300], target[:300], epochs=40, learning_rate=2e-2)
        ridge = fit_ridge(source[:300], target[:300], penalty=None)
        assert learnt.r_squared(source[300:], target[300:]) > 0.98
        assert ridge.r_squared(source[300:], target[300:]) >= learnt.r_squared(source[300:], target[300:])
        noise = states(400, 4, seed=2, dtype=torch.float32)
        assert train_linear(source[:300], noise[:300]).r_squared(source[300:], noise[300:]) < 0.1

    def test_the_linear_map_is_the_same_every_time_and_can_be_saved(self, tmp_path: Path) -> None:
        source = states(40, 3, dtype=torch.float32)
        first, again = (train_linear(source, source) for _ in range(2))
        assert_same_bits(first.weight, again.weight)
        first.save(tmp_path / "w")
        assert_same_bits(AffineMap.load(tmp_path / "w").weight, first.weight)
        with pytest.raises(ValueError, match="steps is 0"):
            train_linear(source[:0], source[:0])

    @pytest.mark.parametrize("make", [Gated, Concat], ids=["gated", "concat"])
    def test_a_gate_and_a_concatenation_learn_from_the_answers(self, make: type[Gated] | type[Concat]) -> None:
        tiny, task = build("llama", dtype=torch.float32), toy()
        message = Activation("a", Site(1), Site(1), Replace()).send(tiny, task)
        learner = FusionLearner.of(tiny, task, message, Site(1), make, answers=[i.choice for i in task.items])
        assert isinstance(learner, Trainable)
        before = tiny.fingerprint
        done = train(learner, Schedule(steps=40, batch_size=8, learning_rate=1e-2), frozen=[tiny])
        assert done.losses[-1] < 0.5 * done.losses[0]
        assert tiny.fingerprint == before
        graft = Graft(Site(1), LAST, learner.vectors, learner.fusion)
        given = ReceiverInput(learner.prompts, (graft,))
        after = answer_logits(tiny, given, learner.answers, with_grad=False)
        assert float(cross_entropy(after, learner.answers)) < 0.5 * done.losses[0]

    def test_a_model_learns_texts_and_ends_where_they_end(self) -> None:
        tiny = build("llama", dtype=torch.float32)
        learner = TextLearner(tiny, ("Alice is", "The note"), (" at Peru", " says"))
        done = train(learner, Schedule(steps=60, batch_size=2, learning_rate=1e-2))
        assert done.losses[-1] < 0.1 * done.losses[0]
        import latentcomm as lc

        assert lc.generate(tiny, lc.encode(tiny, ["Alice is", "The note"]), max_new_tokens=5) == [" at Peru", " says"]


@dataclass(frozen=True, eq=False)
class AffineRows:
    """Least squares without any noise."""

    source: Tensor
    target: Tensor
    weight: Tensor

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight}

    @property
    def configuration(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return len(self.source)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Tensor:
        return (self.source[list(batch)] @ self.weight.T - self.target[list(batch)]).square().mean()
