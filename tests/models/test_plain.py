"""The transformers model without its bridge against the bridge, which a hook that changes nothing makes run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import assert_same_bits, same_bits
from tiny import ARCHITECTURES, build, ids, transformers_model
from torch import Tensor

from latentcomm.models import Model

TOKENS = torch.stack(ids(7, 7, 7, seed=3))
PAST_MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] * 6 + [False]])


def nothing(value: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


def logits(model: Model, hooks: list[Any], *, past_mask: Tensor | None) -> list[Tensor]:
    """Of a prompt, of its last token, and of two more tokens on its cache."""
    cache = model.new_cache(len(TOKENS))
    found = [model.forward(TOKENS, hooks=hooks), model.forward(TOKENS, hooks=hooks, last_only=True, cache=cache)]
    for step in range(2):
        found.append(
            model.forward(TOKENS[:, step, None], hooks=hooks, last_only=True, cache=cache, past_mask=past_mask)
        )
        past_mask = None if past_mask is None else torch.nn.functional.pad(past_mask, (0, 1), value=True)
    return found


def runs_bridge(model: Model) -> bool:
    """Whether a pass under no hook runs the bridge."""
    ran: list[int] = []
    run = model.hooked.run_with_hooks
    model.hooked.run_with_hooks = lambda *given, **options: (ran.append(0), run(*given, **options))[1]
    model.forward(TOKENS)
    del model.hooked.run_with_hooks
    return bool(ran)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2", "mistral"])
def test_a_pass_without_hooks_has_the_bits_of_one_with_hooks(architecture: str, masked: bool) -> None:
    for dtype in (torch.float64, torch.float32):
        model = build(architecture, dtype=dtype)
        past_mask = PAST_MASK if masked and model.joins_lengths else None
        plain = logits(model, [], past_mask=past_mask)
        under_hooks = logits(model, [("hook_embed", nothing)], past_mask=past_mask)
        for one, other in zip(plain, under_hooks, strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("llama", False), ("qwen2", False), ("mistral", False), ("gemma2", False), ("gpt2", True), ("neox", True)],
)
def test_the_bridge_runs_where_its_numbers_are_its_own(architecture: str, expected: bool) -> None:
    model = build(architecture)
    assert runs_bridge(model) is expected
    with model._plain._in_place():
        inside = list(model.hooked.original_model.modules())
    assert not any(type(module).__module__.startswith("transformer_lens") for module in inside)
    assert any(
        type(module).__module__.startswith("transformer_lens") for module in model.hooked.original_model.modules()
    )


def double(module: Any, given: Any, output: Any) -> Any:
    return 2 * output


def attach_hook(model: Model) -> None:
    model.hooked.add_hook("blocks.1.hook_mlp_out", lambda value, hook: 2 * value)


def attach_torch_hook(model: Model) -> None:
    model.hooked.blocks[1].mlp.original_component.register_forward_hook(double)


def write_weight_in_place(model: Model) -> None:
    model.hooked.blocks[1].mlp.out.weight.data.mul_(2)


def replace_weight(model: Model) -> None:
    layer = model.hooked.blocks[1].mlp.out.original_component
    layer.weight = torch.nn.Parameter(2 * layer.weight.detach())


def replace_module(model: Model) -> None:
    class Doubled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, value: Tensor) -> Tensor:
            return 2 * self.inner(value)

    mlp = model.hooked.blocks[1].mlp.original_component
    mlp.down_proj = Doubled(mlp.down_proj)


def convert(model: Model) -> None:
    model.hooked.to(torch.float32)


def change_an_attribute(model: Model) -> None:
    model.hooked.blocks[1].attn.original_component.scaling *= 3


def patch_transformers_forward(model: Model) -> None:
    mlp = model.hooked.blocks[1].mlp.original_component
    run = mlp.forward
    mlp.forward = lambda value: 2 * run(value)


def patch_the_bridges_forward(model: Model) -> None:
    mlp = model.hooked.blocks[1].mlp
    run = mlp.forward
    mlp.__dict__["forward"] = lambda *given, **options: 2 * run(*given, **options)


@pytest.mark.parametrize(
    "change",
    [
        attach_hook,
        attach_torch_hook,
        write_weight_in_place,
        replace_weight,
        replace_module,
        convert,
        change_an_attribute,
        patch_transformers_forward,
        patch_the_bridges_forward,
    ],
)
def test_a_change_of_the_model_acts_on_passes_without_hooks(change: Callable[[Model], None]) -> None:
    model = build("llama")
    before = model.forward(TOKENS)
    change(model)
    after = model.forward(TOKENS)
    assert not same_bits(after, before)
    assert_same_bits(after, model.forward(TOKENS, hooks=[("hook_embed", nothing)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["neox", "gpt2"])
def test_a_bridge_that_owns_weights_is_not_replaced(architecture: str, dtype: torch.dtype) -> None:
    model = build(architecture, dtype=dtype)
    assert runs_bridge(model)
    before = model.forward(TOKENS)
    with torch.no_grad():
        model.hooked.blocks[1].attn.v.weight.mul_(3)
    after = model.forward(TOKENS)
    assert not same_bits(after, before)
    assert_same_bits(after, model.forward(TOKENS, hooks=[("hook_embed", nothing)]))


def test_a_torch_hook_of_others_is_a_hook() -> None:
    model = build("llama")
    assert not model.has_hooks
    handle = model.hooked.original_model.lm_head.register_forward_pre_hook(lambda *_: None)
    assert model.has_hooks
    handle.remove()
    assert not model.has_hooks


def test_a_hook_that_is_taken_off_leaves_no_trace() -> None:
    model = build("llama")
    attach_hook(model)
    assert runs_bridge(model)
    model.hooked.reset_hooks()
    assert not runs_bridge(model)
    handle = model.hooked.blocks[0].register_forward_pre_hook(lambda *_: None)
    assert runs_bridge(model)
    handle.remove()
    assert not runs_bridge(model)


def test_gradients_and_training_go_through_the_bridge() -> None:
    model = build("llama")
    assert model.forward(TOKENS, with_grad=True).requires_grad
    model.hooked.train()
    assert model.forward(TOKENS, with_grad=True).requires_grad


def test_folded_weights_run_in_the_bridge_that_folded_them() -> None:
    model = build("llama")
    assert not runs_bridge(model)
    model.hooked.enable_compatibility_mode()
    assert runs_bridge(model)


def test_the_logits_are_those_of_transformers_own_model() -> None:
    with torch.no_grad():
        expected = transformers_model("llama")(TOKENS).logits
    assert_same_bits(build("llama").forward(TOKENS), expected)
