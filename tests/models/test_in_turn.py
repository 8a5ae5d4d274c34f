"""A model in turn: what is known of it without its weights is what it has with them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_same_bits
from tiny import tokenizer, transformers_model

from latentcomm.models import _hashed, load_model, loading
from latentcomm.models.in_turn import FACTS, Place, in_turn
from latentcomm.models.loading import outlined

OPTIONS: dict[str, Any] = {"dtype": "bfloat16", "device": "cpu"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hashed, "cache_folder", lambda: tmp_path / "cache")


def saved(folder: Path, architecture: str = "llama", *, seed: int = 0) -> Path:
    raw = transformers_model(architecture, dtype=torch.float32, seed=seed)
    raw.generation_config.eos_token_id = [1, 5]
    raw.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "neox"])
def test_an_outline_has_the_facts_of_the_loaded_model(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "tiny", architecture)
    assert outlined(folder, **OPTIONS) is None  # no fingerprint is saved yet
    loaded = load_model(folder, **OPTIONS)
    facts = {name: getattr(loaded, name) for name in FACTS}
    load, place = partial(load_model, folder, **OPTIONS), Place()
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_whole", lambda *_, **__: pytest.fail("weights were read"))
        turned = in_turn(load, place, outline=outlined(folder, **OPTIONS))
        assert {name: getattr(turned, name) for name in FACTS} == facts and turned.stop_ids == {1, 5}
        assert repr(turned.hooked.cfg) == repr(loaded.hooked.cfg)
        assert (turned.name, turned.n_ctx, turned.vocabulary) == (loaded.name, loaded.n_ctx, loaded.vocabulary)
    assert place.n_loads == 0
    tokens = torch.tensor([[9, 13, 21]])
    assert_same_bits(turned.forward(tokens), loaded.forward(tokens))
    assert place.n_loads == 1


def test_a_model_that_is_wrapped_by_computing_has_no_outline(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny", "gpt2")
    expected = load_model(folder, **OPTIONS).fingerprint
    assert outlined(folder, **OPTIONS) is None
    turned = in_turn(partial(load_model, folder, **OPTIONS), place := Place())
    assert (turned.fingerprint, place.n_loads) == (expected, 1)


def test_files_that_changed_since_the_outline_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny")
    assert load_model(folder, **OPTIONS).fingerprint
    turned = in_turn(partial(load_model, folder, **OPTIONS), Place(), outline=outlined(folder, **OPTIONS))
    saved(folder, seed=1)
    with pytest.raises(RuntimeError, match="tiny are not those that they were when the run began; run it again"):
        turned.forward(torch.tensor([[9, 13, 21]]))
