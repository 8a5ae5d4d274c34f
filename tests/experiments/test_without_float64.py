"""A device without float64, as Apple's MPS: what is summed in float64 is computed on the CPU, the rest stays there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import on, pretend  # noqa: F401 (a fixture)
from tiny import model
from toys import countries_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentcomm as lc
from latentcomm.fusion import BY_NAME


@pytest.fixture
def there(pretend: torch.device, tmp_path: Path) -> lc.Model:  # noqa: F811
    """A model on that device."""
    folder = countries_folder(tmp_path / "tiny-countries")
    return on(pretend, AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def test_the_pretended_device_has_no_float64(there: lc.Model) -> None:
    weight = next(there.hooked.parameters())
    with pytest.raises(TypeError, match="gives float64, which this device does not have"):
        weight.double()
    with pytest.raises(RuntimeError, match="met tensors on"):
        weight + torch.zeros(weight.shape)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_fusion_gives_what_it_gives_on_the_cpu(pretend: torch.device, name: str) -> None:  # noqa: F811
    own, incoming = torch.randn(2, 3, 8).unbind()
    fused = BY_NAME[name](own.to(pretend), incoming.to(pretend))
    assert (fused.device, fused.dtype) == (pretend, torch.float32)
    assert fused.cpu().tolist() == BY_NAME[name](own, incoming).tolist()


def test_tokens_are_drawn_as_on_the_cpu(there: lc.Model, tmp_path: Path) -> None:
    here = lc.load_model(tmp_path / "tiny-countries")
    for options in ({}, {"temperature": 1.0, "seed": 3}):
        replies = [
            lc.generate(each, lc.encode(each, ["Alice is at the", "The"]), max_new_tokens=4, **options)
            for each in (here, there)
        ]
        assert replies[0] == replies[1]


def test_every_channel_that_needs_no_training_runs_there(there: lc.Model) -> None:
    settings = lc.CompareSettings(
        n_tune=2, n_test=2, message_tokens=3, n_thoughts=1, read_layer=1, write_layer=1, controls=("random",)
    )
    result = lc.run(settings, there, there)
    assert set(result.table["channel"]) > {"replace", "kv", "cipher", "coconut", "deltas", "ties"}


def test_a_sweep_runs_there(there: lc.Model) -> None:
    assert len(lc.run(lc.SweepSettings(n_tune=2, n_test=2), there, there).table) > 3


def test_similarities_are_refused_there_at_once(pretend: torch.device) -> None:  # noqa: F811
    rows: Any = torch.randn(9, 4).to(pretend)
    with pytest.raises(ValueError, match="device pretend:0 has no float64, in which sums are taken; use cpu or cuda"):
        lc.similarity.linear_cka(rows, rows)
    assert model("llama").dtype == torch.float64
