"""Logits that are not finite are refused, with the weights or the block that they come from."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cascades
import pytest
import torch
from tiny import BACKENDS, build, ids, model, states, tokenizer, transformers_model
from torch import Tensor
from toys import toy

from latentcomm.channels import Activation, Text
from latentcomm.channels.training.answers import TextLearner
from latentcomm.channels.training.fusions import FusionLearner
from latentcomm.channels.training.trainer import Schedule, train
from latentcomm.experiments.cascade import TextHandOff, sweep_cascade
from latentcomm.experiments.effects import measure_effects
from latentcomm.experiments.evaluation import evaluate
from latentcomm.fusion import Gated, Replace
from latentcomm.hooks.decode import decode, generate
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Hook, Model, wrap_model
from latentcomm.models.finite import why_not_finite
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

PROMPTS = Prompts.from_ids(ids(6, 3, 6, 1, seed=5))
TASK = toy()
HELD = "its weights hold NaN in model.layers.1.mlp.down_proj.weight; load weights that are whole"


def with_nan() -> Model:
    """A tiny model of which one number is missing."""
    raw = transformers_model("llama")
    with torch.no_grad():
        raw.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    return wrap_model(raw, tokenizer(), name="holed")


def loud(*, layer: int = 1, dtype: torch.dtype = torch.float16, times: float = 3e5) -> Model:
    """A tiny model whose stream overflows after a block."""
    raw = transformers_model("llama", dtype=dtype)
    with torch.no_grad():
        block = raw.model.layers[layer]
        block.mlp.up_proj.weight.mul_(times**0.5)
        block.mlp.down_proj.weight.mul_(times**0.5)
    return wrap_model(raw, tokenizer(), name="loud")


def refused(message: str, run: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run()
    assert len(str(error.value)) < 200
    return str(error.value)


class TestWeights:
    @pytest.mark.parametrize("temperature", [0.0, 0.7])
    def test_that_hold_nan_are_named_and_not_called_an_overflow(self, temperature: float) -> None:
        holed = with_nan()
        said = refused(
            f"the logits of holed are not finite: {HELD}",
            lambda: generate(holed, PROMPTS, max_new_tokens=3, temperature=temperature),
        )
        assert "float" not in said and "overflow" not in said

    def test_of_which_many_are_infinite_are_counted_once_each(self) -> None:
        raw = transformers_model("llama")
        with torch.no_grad():
            for parameter in raw.parameters():
                parameter.fill_(math.inf)
        n, tiny = len(list(raw.parameters())), wrap_model(raw, tokenizer(), name="endless")
        said = refused("its weights hold infinity in ", lambda: decode(tiny, PROMPTS, max_new_tokens=1))
        assert f" and {n - 1} more; " in said

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_of_eight_bits_are_examined_too(self, dtype: torch.dtype) -> None:
        raw = transformers_model("llama", dtype=torch.float32)
        packed = raw.model.layers[1].mlp.down_proj.weight.detach().to(dtype)
        raw.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
        tiny = wrap_model(raw, tokenizer(), name="packed")
        assert why_not_finite(tiny, lambda: None) is None
        packed[3, 5] = math.nan
        assert why_not_finite(tiny, lambda: None) == tuple(HELD.split("; "))

    def test_are_parameters_and_no_buffers_that_are_infinite_by_intent(self) -> None:
        tiny = loud()
        tiny.hooked.original_model.model.register_buffer("IGNORE", torch.tensor(-math.inf))
        refused("its stream stops being so at blocks.1", lambda: decode(tiny, PROMPTS, max_new_tokens=1))

    def test_of_any_role_in_an_evaluation(self) -> None:
        whole, holed = model("llama"), with_nan()
        graft = Activation("replace", Site(1), Site(1), Replace())
        refused(f"the logits of holed are not finite: {HELD}", lambda: evaluate(graft, whole, holed, TASK))
        refused(f"the logits of holed are not finite: {HELD}", lambda: evaluate(Text(max_tokens=2), holed, whole, TASK))
        said = refused(HELD, lambda: evaluate(graft, holed, whole, TASK))
        assert said.startswith("the states of holed at blocks.1.hook_resid_post are not finite: ")

    def test_in_effects_a_cascade_and_a_training(self) -> None:
        holed, task = with_nan(), cascades.task(3)
        message = f"the logits of holed are not finite: {HELD}"
        refused(message, lambda: measure_effects(holed, PROMPTS, states(4, 32), fusion=Replace()))
        for pair in ((holed, cascades.small()), (cascades.large(), holed)):
            refused(message, lambda pair=pair: sweep_cascade(*pair, task, hand_offs={"text": TextHandOff()}, ns=(2,)))
        sent = Activation("replace", Site(1), Site(1), Replace()).send(model("llama"), TASK)
        learner = FusionLearner.of(
            holed, TASK, sent, write=Site(0), make=Gated, answers=[item.choice for item in TASK.items]
        )
        with pytest.raises(RuntimeError, match=f"the loss of update 0 is nan: of holed {re.escape(HELD)}$"):
            train(learner, Schedule(steps=2, batch_size=2), frozen=[holed])


class TestStreams:
    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_the_first_block_is_that_of_transformers(self, layer: int) -> None:
        tiny = loud(layer=layer)
        with torch.no_grad():
            hidden = tiny.hooked.original_model(PROMPTS.tokens[:1], output_hidden_states=True).hidden_states
        # transformers gives the last hidden state after the final norm, where infinity is NaN
        assert [bool(each.isfinite().all()) for each in hidden].index(False) == layer + 1
        refused(
            f"the logits of loud are not finite: its stream stops being so at blocks.{layer}.hook_resid_post in "
            "float16; load it in bfloat16 or float32, or look at what grafts and hooks write",
            lambda: generate(tiny, PROMPTS.select([0, 2]), max_new_tokens=2),
        )

    def test_of_float64_has_no_wider_dtype_to_load(self) -> None:
        tiny = loud(dtype=torch.float64, times=1e300)
        with torch.no_grad():
            for layer in tiny.hooked.original_model.model.layers:
                layer.mlp.up_proj.weight.mul_(1e150)
        said = refused(
            "in float64; look at what grafts and hooks write", lambda: decode(tiny, PROMPTS, max_new_tokens=1)
        )
        assert "load" not in said

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("passes", [0, 2])
    def test_a_later_token_is_searched_in_its_own_pass(self, backend: str, passes: int) -> None:
        tiny = build("llama", backend)
        tiny.__dict__["stop_ids"] = frozenset()
        given = ReceiverInput(PROMPTS, persistent=(Spoiling(passes),))
        refused(
            "the logits of tiny-llama are not finite: its stream stops being so at blocks.2.hook_resid_pre in float64",
            lambda: decode(tiny, given, max_new_tokens=5),
        )
        assert len(decode(tiny, given, max_new_tokens=passes).ids) == 4 if passes else True

    def test_whose_unembedding_overflows_is_said_to_be_finite(self) -> None:
        raw = transformers_model("llama", dtype=torch.float16)
        with torch.no_grad():
            raw.lm_head.weight.mul_(5e4)
        tiny = wrap_model(raw, tokenizer(), name="steep")
        refused(
            "all its blocks are, so its unembedding is not in float16", lambda: decode(tiny, PROMPTS, max_new_tokens=1)
        )

    def test_a_banned_token_is_no_failure(self) -> None:
        tiny = build("llama")

        def ban(logits: Tensor, hook: object) -> Tensor:
            return logits.index_fill(-1, torch.arange(40), -math.inf)

        with tiny.hooked.hooks(fwd_hooks=[("unembed.hook_out", ban)]):
            found = decode(tiny, PROMPTS, max_new_tokens=3)
        assert min(min(row) for row in found.ids if row) >= 40


def test_a_training_that_diverges_is_told_to_go_slower() -> None:
    tiny = build("llama")
    learner = TextLearner(tiny, ("Alice is",) * 4, (" Greece",) * 4)
    with pytest.raises(RuntimeError, match=r"the loss of update [1-9].*; lower the learning rate or set clip$"):
        train(learner, Schedule(steps=9, batch_size=4, learning_rate=1e200, clip=None))


@dataclass(frozen=True)
class Spoiling:
    """Writes infinity after block 1 in every pass after the first few."""

    passes: int

    def select(self, rows: Sequence[int]) -> "Spoiling":
        return self

    def fwd_hooks(self) -> list[Hook]:
        seen = [0]

        def spoil(value: Tensor, hook: Any) -> Tensor | None:
            seen[0] += 1
            return torch.full_like(value, math.inf) if seen[0] > self.passes else None

        return [("blocks.1.hook_resid_post", spoil)]
