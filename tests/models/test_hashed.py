"""Fingerprints of files: saved once, used for unchanged weights of unchanged files, and never a wrong one."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import files_in, tokenizer, transformers_model

from latentcomm.models import _hashed, base, load_model, loading, weights_stay, wrap_model
from latentcomm.models._hashed import entry_of, saved_fingerprint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_hashed, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "fingerprints"


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry each time that weights are hashed."""
    hashed, count = base._hash, []
    monkeypatch.setattr(base, "_hash", lambda *given: count.append(1) or hashed(*given))
    return count


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    return saved(tmp_path / "tiny")


def saved(folder: Path, *, seed: int = 0, shard: str = "1GB") -> Path:
    transformers_model("llama", dtype=torch.float32, seed=seed).save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return folder


def in_memory(seed: int = 0, dtype: torch.dtype = torch.float32) -> str:
    """The fingerprint of the same weights without files."""
    return wrap_model(transformers_model("llama", dtype=torch.float32, seed=seed).to(dtype)).fingerprint


def test_the_second_load_hashes_nothing(folder: Path, cache: Path, hashes: list[int]) -> None:
    expected = in_memory()
    hashes.clear()
    assert load_model(folder).fingerprint == expected and len(hashes) == 1
    (link := folder.with_name("link")).symlink_to(folder)
    for path in (folder, link):
        assert load_model(path).fingerprint == expected
    assert len(hashes) == 1 and len(files_in(cache)) == 1
    assert saved_fingerprint(entry_of(folder, torch.float32, None)) == expected
    assert saved_fingerprint(entry_of(folder, torch.float32, "8bit")) is None
    assert wrap_model(transformers_model("llama")).files is None


def test_shards_and_dtypes_have_the_fingerprints_of_their_weights(folder: Path, hashes: list[int]) -> None:
    sharded = saved(folder.with_name("shards"), shard="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    for dtype in (torch.float32, torch.bfloat16):
        expected = in_memory(dtype=dtype)
        for path in (folder, sharded, folder, sharded):
            assert load_model(path, dtype=dtype).fingerprint == expected
    assert len(hashes) == 2 + 4


@pytest.mark.parametrize("change", ["time", "content", "content of that time", "config"])
def test_changed_files_are_hashed_anew(folder: Path, hashes: list[int], change: str) -> None:
    before = load_model(folder).fingerprint
    weights = folder / "model.safetensors"
    facts = weights.stat()
    if "content" in change:
        shutil.copy(saved(folder.with_name("other"), seed=1) / weights.name, weights)
    if change == "time":
        os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    if change == "content of that time":
        os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    if change == "config":
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    hashes.clear()
    found = [load_model(folder).fingerprint for _ in range(3)]
    assert len(set(found)) == 1 and (found[0] == before) == ("content" not in change)
    assert found[0] == saved_fingerprint(entry_of(folder, torch.float32, None)) == in_memory(int("content" in change))
    assert len(hashes) <= 3  # of unknown size and time one, and one in memory


def exchange_rows(weight: torch.Tensor) -> None:
    weight.copy_(weight.flip(0))


def double_one(weight: torch.Tensor) -> None:
    weight[0, 0] *= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_saved", [False, True])
def test_weights_changed_after_loading_have_their_own_fingerprint(
    folder: Path, dtype: torch.dtype, *, is_saved: bool
) -> None:
    expected = in_memory(dtype=dtype)
    changes: list[tuple[Callable[[torch.Tensor], object], bool]] = [
        (double_one, True), (double_one, False), (torch.Tensor.neg_, False), (exchange_rows, False)
    ]  # fmt: skip
    for change, is_counted in changes:
        if is_saved:
            assert load_model(folder, dtype=dtype).fingerprint == expected
        loaded = load_model(folder, dtype=dtype)
        weight = loaded.hooked.original_model.model.layers[1].mlp.down_proj.weight
        with torch.no_grad():
            change(weight if is_counted else weight.data)  # of what changes in `data` torch counts no version
        assert loaded.fingerprint == base._hash(loaded.hooked, sorted(loaded.hooked.state_dict().items())) != expected
        assert saved_fingerprint(entry_of(folder, dtype, None)) in (None, expected)
    assert load_model(folder, dtype=dtype).fingerprint == expected


def test_a_damaged_entry_gives_no_value(folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load_model(folder).fingerprint
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    for position in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        for damaged in (bytes(flipped), whole[:position]):
            entry.write_bytes(damaged)
            assert saved_fingerprint(entry) in (None, expected)
    for content in (b"", b"[]", b'{"fingerprint": 3}', whole.replace(b'"key": "', b'"key": "0')):
        entry.write_bytes(content)
        assert saved_fingerprint(entry) is None
    entry.write_bytes(whole[:-20])
    assert load_model(folder).fingerprint == expected == saved_fingerprint(entry)
    assert "is damaged" in capsys.readouterr().err


def test_the_entry_of_another_model_is_not_used(folder: Path, cache: Path, hashes: list[int]) -> None:
    assert load_model(saved(folder.with_name("other"), seed=1)).fingerprint
    (entry,) = cache.iterdir()
    mine = entry_of(folder, torch.float32, None)
    assert mine is not None
    shutil.copy(entry, mine)
    assert saved_fingerprint(mine) is None
    values = {name: json.loads(entry.read_text())[name] for name in ("fingerprint", "sums")}
    _hashed.write_sealed(mine, {"key": mine.stem, **values})
    hashes.clear()
    assert [load_model(folder).fingerprint for _ in range(3)] == [in_memory()] * 3
    assert saved_fingerprint(mine) == in_memory()


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, cache: Path, hashes: list[int]) -> None:
    cache.parent.write_text("a file")
    assert [load_model(folder).fingerprint for _ in range(2)] == [in_memory()] * 2
    assert len(hashes) == 2 + 1


def test_two_that_save_at_once_leave_one_whole_entry(folder: Path, cache: Path, hashes: list[int]) -> None:
    both = [load_model(folder), load_model(folder)]
    with ThreadPoolExecutor(2) as pool:
        values = set(pool.map(lambda model: model.fingerprint, both))
    assert len(hashes) == 2 and len(files_in(cache)) == 1
    assert values == {saved_fingerprint(next(cache.iterdir()))}


def test_files_that_change_while_they_are_read_save_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, calls = loading.load_whole, []

    def slow(*given: Any, **options: Any) -> Any:
        found = load(*given, **options)
        os.utime(folder / "model.safetensors", ns=(calls.append(1) or 5, 5 + len(calls)))
        return found

    monkeypatch.setattr(loading, "load_whole", slow)
    loaded = load_model(folder)
    assert loaded.files is None and loaded.fingerprint == in_memory() and not cache.exists()


def test_files_that_change_after_they_are_read_save_nothing(folder: Path, cache: Path) -> None:
    loaded = load_model(folder)
    os.utime(folder / "model.safetensors", ns=(5, 5))
    assert loaded.fingerprint == in_memory() and not cache.exists()


def test_an_adapter_and_a_lost_shard_have_no_entry(folder: Path) -> None:
    assert entry_of(folder, torch.float32) is not None and entry_of(None) is None
    (index := folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "lost.safetensors"}}')
    assert entry_of(folder, torch.float32) is None
    index.unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert entry_of(folder, torch.float32) is None


def test_sums_are_taken_once_where_weights_stay_and_writes_still_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrap_model(transformers_model("llama"), tokenizer(), name="tiny")
    stale = model.fingerprint
    model.hooked.state_dict()["unembed.weight"].data.mul_(3)
    with weights_stay():
        before = model.fingerprint
        assert before != stale  # taken before the block, after which anybody may have written
        with monkeypatch.context() as patch:
            patch.setattr(base, "state_of", lambda *_: pytest.fail("sums were taken again"))
            assert model.fingerprint == before
        with torch.no_grad():
            model.hooked.state_dict()["unembed.weight"].mul_(2)
        assert model.fingerprint != before
    changed = model.fingerprint
    model.hooked.state_dict()["unembed.weight"].data.mul_(2)
    assert model.fingerprint != changed
