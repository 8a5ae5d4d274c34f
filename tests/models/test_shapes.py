"""The sizes and the tokenizer of a model by its name, against the model itself: no weights are read for them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest
import torch
import transformers
from tiny import N_CTX, broken_gguf, tokenizer, transformers_model, write_gguf

from latentcomm.models import ModelShape, builtin, load_model, shape_of, tokenizer_of
from latentcomm.models.builtin import BuiltIn

SIZES = {"n_layers": 3, "d_model": 32, "n_heads": 4, "d_head": 8, "d_vocab": 64, "n_ctx": N_CTX}
LLAMA = SIZES | {"n_key_value_heads": 2, "d_mlp": 64}


def saved(folder: Path, architecture: str = "llama") -> dict[str, Any]:
    """Write a tiny model, and return what its parameters hold."""
    raw = transformers_model(architecture, dtype=torch.float32)
    raw.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return numbers(raw)


def n_numbers(raw: Any) -> int:
    return sum(parameter.numel() for parameter in raw.parameters())


def numbers(raw: Any) -> dict[str, Any]:
    (blocks,) = [each for each in raw.modules() if isinstance(each, torch.nn.ModuleList)]
    in_blocks = sum(each.numel() for each in blocks.parameters() if each.ndim == 2)
    gated = raw.config.model_type in ("llama", "qwen2")
    return {"n_parameters": n_numbers(raw), "n_in_blocks": in_blocks, "gated": gated}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is an error."""
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)


@pytest.mark.usefixtures("no_weights")
class TestShapeOf:
    @pytest.mark.parametrize(
        ("architecture", "n_key_value_heads", "d_mlp"),
        [("llama", 2, 64), ("qwen2", 2, 64), ("gpt2", 4, 128), ("neox", 4, 64)],
    )
    def test_of_a_directory(self, tmp_path: Path, architecture: str, n_key_value_heads: int, d_mlp: int) -> None:
        held = saved(tmp_path, architecture)
        stored = (tmp_path / "model.safetensors").stat().st_size
        groups = {"n_key_value_heads": n_key_value_heads, "d_mlp": d_mlp}
        expected = ModelShape(str(tmp_path), **SIZES, **groups, **held, weights_bytes=stored)
        assert shape_of(tmp_path) == expected
        assert held["n_parameters"] * 4 < stored < held["n_parameters"] * 4 + 20_000

    def test_of_a_directory_of_several_files_or_without_weights(self, tmp_path: Path) -> None:
        raw = transformers_model("llama", dtype=torch.float32)
        raw.save_pretrained(tmp_path, max_shard_size="20KB")
        files = [*tmp_path.glob("*.safetensors")]
        found = shape_of(tmp_path)
        assert len(files) > 1
        assert (found.n_parameters, found.weights_bytes) == (n_numbers(raw), sum(p.stat().st_size for p in files))
        for path in files:
            path.unlink()
        assert shape_of(tmp_path) == replace(found, weights_bytes=None)

    @pytest.mark.parametrize(
        ("entry", "value", "reason"),
        [
            ("hidden_size", "many", "its configuration is wrong: Field 'hidden_size' expected int, got str .*'many'"),
            ("num_attention_heads", 0, "integer modulo by zero"),
            ("model_type", ["llama"], "unhashable type: 'list'"),
        ],
    )
    def test_of_a_configuration_of_wrong_types(self, tmp_path: Path, entry: str, value: Any, reason: str) -> None:
        saved(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {entry: value}))
        for look_up in (shape_of, load_model):
            with pytest.raises(ValueError, match=f"^{tmp_path} holds no model that .* can load: .*{reason}[^\n]*$"):
                look_up(tmp_path)

    def test_of_a_file_of_weights_that_is_cut_off(self, tmp_path: Path) -> None:
        saved(tmp_path)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=r"holds no model that transformers can load: .*incomplete"):
            shape_of(tmp_path)

    def test_of_a_gguf_file(self, tmp_path: Path) -> None:
        path, raw = tmp_path / "tiny.gguf", transformers_model("llama", dtype=torch.float32)
        write_gguf(raw, path)
        stored = path.stat().st_size
        assert shape_of(path) == ModelShape(str(path), **LLAMA, **numbers(raw), weights_bytes=stored)

    @pytest.mark.parametrize("kept", [0, 3, 4, 30, 500])
    def test_of_a_gguf_file_that_breaks_off(self, tmp_path: Path, kept: int) -> None:
        path = broken_gguf(tmp_path / "tiny.gguf", kept)
        with pytest.raises(ValueError, match=r"tiny\.gguf holds no model that transformers can load: "):
            shape_of(path)

    def test_of_a_gguf_file_with_a_changed_byte_is_an_answer_or_one_sentence(self, tmp_path: Path) -> None:
        path, raw = tmp_path / "tiny.gguf", transformers_model("llama", dtype=torch.float32)
        write_gguf(raw, path)
        whole, right = path.read_bytes(), shape_of(path)
        header, answers = len(whole) - 4 * n_numbers(raw), set()
        for at in [*range(0, 600, 11), *range(600, header, 101)]:  # the sizes come first
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (0xFF, 0x80, 0x01)[at % 3]]) + whole[at + 1 : header])
            try:
                found = shape_of(path)
            except ValueError as error:
                said = str(error)
                assert said.startswith(f"{path} holds no model that ") and "\n" not in said and len(said) < 250
                answers.add("refused")
            else:
                assert {type(each) for each in vars(found).values()} <= {str, int, bool, type(None)}
                answers.add("right" if replace(found, weights_bytes=right.weights_bytes) == right else "other")
        assert answers == {"refused", "right", "other"}

    def test_of_a_gguf_file_whose_sizes_are_arrays_states_none(self, tmp_path: Path) -> None:
        path = tmp_path / "tiny.gguf"
        file = gguf.GGUFWriter(path, "llama")
        file.add_head_count([4, 4, 2])  # one a layer
        file.add_embedding_length(32)
        file.add_token_list(["a", "b"])
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.close()
        found = shape_of(path)
        assert (found.n_heads, found.n_key_value_heads, found.d_head, found.d_vocab) == (None, None, None, 2)

    def test_of_a_built_in_model_before_and_after_its_download(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path / "cache"))
        sizes: dict[str, Any] = LLAMA | saved(tmp_path / "made")
        entry = BuiltIn("tiny-built-in", "tiny==1", "tiny.gguf", "0" * 64, "1k", 1, "MIT", "here", sizes)
        monkeypatch.setattr(builtin, "BUILT_IN", {entry.name: entry})
        before = shape_of(entry.name)
        assert before == ModelShape("tiny-built-in", **sizes)
        assert tokenizer_of(entry.name) is None
        shutil.copytree(tmp_path / "made", builtin.folder_of(entry))
        weights_bytes = (tmp_path / "made" / "model.safetensors").stat().st_size
        assert shape_of(entry.name) == replace(before, weights_bytes=weights_bytes)
        assert tokenizer_of(entry.name).get_vocab() == tokenizer().get_vocab()

    @pytest.mark.real_weights
    def test_of_every_built_in_model_as_it_is_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, entry in builtin.BUILT_IN.items():
            builtin.fetch(entry)
            after = shape_of(name)
            with monkeypatch.context() as patch:
                patch.setenv("LATENTCOMM_CACHE", str(tmp_path))
                assert shape_of(name) == replace(after, weights_bytes=None)

    def test_of_an_id_that_is_in_the_cache_of_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("a" * 40)
        held = saved(snapshot)
        (tmp_path / "models--someone--tiny" / "refs").mkdir()
        (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("a" * 40)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)  # nobody is asked
        stored = (snapshot / "model.safetensors").stat().st_size
        expected = ModelShape("someone/tiny", **LLAMA, **held, weights_bytes=stored)
        assert shape_of("someone/tiny") == expected
        assert tokenizer_of("someone/tiny").get_vocab() == tokenizer().get_vocab()

    @pytest.mark.parametrize("look_up", [shape_of, tokenizer_of])
    def test_of_what_is_nowhere(self, look_up: Any, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"'SmolLM2-135M' on this machine.*did you mean smollm2-135m-instruct"):
            look_up("SmolLM2-135M")
        with pytest.raises(ValueError, match=r"there is no file or directory \./nowhere"):
            look_up("./nowhere")
        with pytest.raises(ValueError, match="holds no model that transformers can load: "):
            look_up(tmp_path)
