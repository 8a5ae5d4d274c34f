"""Where weights go as they are loaded: maps of modules, offloading to files, quantised matrices, converted files."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_same_bits
from safetensors.torch import load_file
from tiny import files_in, ids, tokenizer, transformers_model, write_gguf

import latentcomm as lc
from latentcomm.fusion import Replace
from latentcomm.models import builtin, load_model, not_finite, wrap_model
from latentcomm.models.prompts import Prompts

TOKENS = torch.stack(ids(9, 9, seed=3))
BLOCKS = [f"model.layers.{layer}" for layer in range(3)]
MODULES = ("model.embed_tokens", *BLOCKS, "model.norm", "model.rotary_emb", "lm_head")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install .[quantized]"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in two shards."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    transformers_model("llama", d_model=64, dtype=torch.float32).save_pretrained(folder, max_shard_size="200KB")
    tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> lc.Model:
    """It, on the CPU."""
    return load_model(folder)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights are read."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("latentcomm.models.loading.load_whole", read)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": dict.fromkeys(MODULES[:-1], "cpu")},
         "device_map leaves out 1 weights of {}: lm_head.weight; name their modules, or '' for all others"),
        ({"device_map": {"model.layers.1": "cpu"}},
         "device_map leaves out 21 weights of {}: model.embed_tokens.weight, model.layers.0.self_attn.q_proj.weight"),
        ({"device_map": {"": "cpu", "transformer.h.0": "cpu"}},
         "device_map names 'transformer.h.0', which {} does not have; its modules: model.embed_tokens, "),
        ({"device_map": {"": 0}}, "device is 'cuda:0', but torch sees no CUDA device here; use 'cpu' or 'auto'"),
        ({"device_map": {"": "gpu"}}, "there is no device 'gpu'; "),
        ({"device_map": "balance"}, "there is no device_map 'balance'; choose among auto"),
        ({"device_map": "auto", "device": "cpu"},
         "device is 'cpu' and there is a device_map, which places all modules; give one"),
        ({"max_memory": {"cpu": "1GiB"}},
         "max_memory bounds what device_map='auto' puts on each device; give both, or none"),
        ({"max_memory": {"cpu": "1GiB"}, "device_map": {"": "cpu"}}, "max_memory bounds what device_map='auto' puts"),
        ({"quantization": "8bits"}, "there is no quantization '8bits'; did you mean '8bit'? choose among 8bit, 4bit"),
    ],
)  # fmt: skip
def test_a_placement_that_cannot_be_is_refused_before_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(folder))}"):
        load_model(folder, **options)


def test_gpus_together_with_the_cpu_or_a_disk_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = "device_map puts 'model.layers' on disk and others on a GPU, which TransformerLens does not run; use GPUs"
    with pytest.raises(ValueError, match=f"^{message}"):
        load_model(folder, device_map={"": 1, "model.layers": "disk"})


@pytest.mark.parametrize("device_map", [{"": "cpu"}, dict.fromkeys(MODULES, "cpu"), "auto"], ids=str)
def test_a_map_of_one_device_gives_what_the_device_gives(folder: Path, plain: lc.Model, device_map: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("auto is the GPU here")
    placed = load_model(folder, device="auto", device_map=device_map)
    assert_same_bits(placed.forward(TOKENS), plain.forward(TOKENS))
    assert placed.fingerprint == plain.fingerprint
    assert placed.device == placed.device_of(2) == torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_offloaded_to_files_have_the_models_fingerprint(folder: Path, dtype: str) -> None:
    plain = load_model(folder, dtype=dtype)
    there = {name: "cpu" if name in ("model.norm", BLOCKS[1]) else "disk" for name in MODULES}
    away = load_model(folder, dtype=dtype, device_map=there)
    assert sum(weight.is_meta for weight in away.hooked.original_model.parameters()) > 10
    assert away.fingerprint == plain.fingerprint
    assert (away.dtype, away.device, away.device_of(0)) == (plain.dtype, torch.device("cpu"), torch.device("cpu"))
    assert_same_bits(away.forward(TOKENS), plain.forward(TOKENS))
    with torch.no_grad():
        away.hooked.original_model.model.norm.weight.mul_(2)
    assert away.fingerprint != plain.fingerprint


def test_what_reads_single_matrices_runs_where_they_are_offloaded(folder: Path, plain: lc.Model) -> None:
    away = load_model(folder, device_map=dict.fromkeys(MODULES, "disk"))
    normed = plain.final_norm(torch.ones(2, plain.d_model))
    columns = torch.tensor([9, 4])
    assert torch.allclose(away.unembed_columns(normed, columns), plain.unembed_columns(normed, columns), atol=1e-6)
    prompts = Prompts.from_ids([row.tolist() for row in TOKENS])
    grids = [
        lc.sweep_layers(each, each, prompts, prompts, fusion=Replace(), choices=[(" Greece", " Peru")] * 2)
        for each in (plain, away)
    ]
    assert torch.allclose(*(grid.logits for grid in grids if grid.logits is not None), atol=1e-5)
    assert lc.generate(away, prompts, max_new_tokens=3) == lc.generate(plain, prompts, max_new_tokens=3)
    with pytest.raises(ValueError, match="all its blocks are, so its unembedding is not"):  # not: its weights hold NaN
        raise not_finite(away, lambda: away.forward(TOKENS))


class TestConvertedOnce:
    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path / "cache"))
        path = tmp_path / "files" / "tiny.gguf"
        path.parent.mkdir()
        write_gguf(transformers_model("llama", dtype=torch.float32), path)
        return path

    def test_a_second_start_reads_the_folder(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = load_model(file)
        assert first.name == str(file) and files_in(file.parent) == ["tiny.gguf"]

        def convert(*_: object) -> None:
            raise AssertionError("converted again")

        monkeypatch.setattr(builtin, "_write_plain", convert)
        (link := file.parent / "link.gguf").symlink_to(file)
        again = load_model(link)
        assert again.fingerprint == first.fingerprint == wrap_model(raw_of(file)).fingerprint
        assert_same_bits(again.forward(TOKENS), first.forward(TOKENS))
        with pytest.raises(AssertionError, match="converted again"):
            load_model(file, dtype="bfloat16")

    def test_another_dtype_rounds_as_transformers_does(self, file: Path) -> None:
        assert load_model(file, dtype="bfloat16").fingerprint == wrap_model(raw_of(file, torch.bfloat16)).fingerprint

    @pytest.mark.parametrize("change", ["time", "content"])
    def test_a_changed_file_is_converted_anew(self, file: Path, change: str) -> None:
        before, facts = load_model(file).fingerprint, file.stat()
        if change == "time":
            os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        else:
            write_gguf(transformers_model("llama", dtype=torch.float32, seed=1), file)
            os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert (load_model(file).fingerprint == before) == (change == "time")
        assert len(list((builtin.cache_folder() / "models").iterdir())) == 2

    def test_a_head_that_is_tied_to_the_embedding_stays_so(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = transformers_model("llama", dtype=torch.float32)
        held = {name: weight for name, weight in raw.state_dict().items() if name != "lm_head.weight"}
        monkeypatch.setattr(raw, "state_dict", lambda: held)
        write_gguf(raw, file)
        tied = load_model(file).hooked.original_model
        assert tied.lm_head.weight.data_ptr() == tied.model.embed_tokens.weight.data_ptr()
        (weights,) = builtin.cache_folder().rglob("model.safetensors")
        assert set(load_file(weights)) == set(held)
        assert wrap_model(raw_of(file)).fingerprint == load_model(file).fingerprint

    def test_a_cache_that_cannot_be_written_is_one_sentence(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(RuntimeError, match=r"^tiny\.gguf could not be put into .*cache/models: "):
            load_model(file)


def raw_of(file: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers reads it from the file."""
    from transformers import AutoModelForCausalLM

    with builtin.no_bars():
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)


def test_a_quantization_without_bitsandbytes_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_bitsandbytes_available", lambda: False)
    message = "quantization 4bit needs bitsandbytes 0.46.1 or later: pip install latentcomm[quantized]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_model(folder, quantization="4bit")


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("quantization", "stored", "largest"), [("8bit", torch.int8, 0.5), ("4bit", torch.uint8, 2.0)])
def test_a_quantised_model_runs_and_has_a_fingerprint_of_its_own(
    folder: Path, plain: lc.Model, quantization: str, stored: torch.dtype, largest: float
) -> None:
    quantised, again = (load_model(folder, device="cpu", quantization=quantization) for _ in range(2))
    query = quantised.hooked.original_model.model.layers[0].self_attn.q_proj
    assert stored in {weight.dtype for weight in query.parameters()}
    assert quantised.dtype == torch.float32
    fingerprint = quantised.fingerprint
    off = (quantised.forward(TOKENS) - plain.forward(TOKENS)).abs().max() / plain.forward(TOKENS).std()
    assert 0 < off < largest
    assert quantised.fingerprint == again.fingerprint == fingerprint != plain.fingerprint
    prompts = Prompts.from_ids([row.tolist() for row in TOKENS])
    grid = lc.sweep_layers(quantised, quantised, prompts, prompts, fusion=Replace())
    assert grid.top_token is not None and grid.top_token.shape == (2, 3, 3)
