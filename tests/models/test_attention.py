"""Fused attention where no hook is: the same numbers up to rounding, eager under hooks, other keys of saved work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from tiny import ids, model
from toys import countries_folder

import latentcomm as lc
from latentcomm.experiments.evaluation import print_of

TOKENS = torch.stack(ids(9, 9, seed=3))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_passes_under_no_hook_agree_and_passes_under_hooks_are_the_same(architecture: str) -> None:
    eager = model(architecture)
    fused = replace(eager, attention="sdpa")
    called = torch.nn.functional.scaled_dot_product_attention
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional, "scaled_dot_product_attention",
            lambda *given, **options: (calls.append(1), called(*given, **options))[1],
        )  # fmt: skip
        plain, hooked = ([model.forward(TOKENS, hooks=hooks) for model in (eager, fused)] for hooks in ((), HOOKS))
    assert bool(calls) == (eager._in_place_of_bridge is not None)
    assert_equal_to_rounding(plain[0], plain[1], terms=forward_terms(eager))
    assert_same_bits(hooked[0], hooked[1])
    assert eager.hooked.original_model.config._attn_implementation == "eager"


HOOKS = [("blocks.1.attn.hook_pattern", lambda value, hook: value)]


def test_saved_work_has_another_key() -> None:
    eager = model("llama")
    assert print_of(eager) != print_of(replace(eager, attention="sdpa"))
    assert lc.SweepSettings().decisive() == lc.SweepSettings(attention="eager").decisive()
    assert lc.SweepSettings().decisive() != lc.SweepSettings(attention="sdpa").decisive()


def test_settings_and_loading_take_it(tmp_path: Path) -> None:
    folder = str(countries_folder(tmp_path / "model", seed=0))
    assert lc.load_model(folder, attention="sdpa").attention == "sdpa"
    result = lc.run(lc.CompareSettings(sender=folder, channels=("silent",), n_test=6, attention="sdpa"))
    assert result.table["n"].tolist()[0] == 6
    with pytest.raises(ValueError, match="no attention 'flash'; choose among eager, sdpa"):
        lc.load_model(folder, attention="flash")
