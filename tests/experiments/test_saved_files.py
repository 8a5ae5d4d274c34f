"""Every file that the package writes and reads back: a changed byte anywhere is one sentence that names the file."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import states

from latentcomm._core import files
from latentcomm._core.files import CHECKED, CHECKSUM, read_sealed, read_tensors, write_sealed, write_tensors
from latentcomm._core.records import Records
from latentcomm.alignment import AffineMap
from latentcomm.channels.calm import Bridge, BridgeShape
from latentcomm.channels.interlat import Adapter, AdapterShape
from latentcomm.channels.message import Message
from latentcomm.channels.training.trainer import load_weights, save_weights
from latentcomm.drift import DriftReference, fit_drift_reference
from latentcomm.hooks.capture import MANIFEST, ActivationStore

N_POSITIONS = 150
"""Bytes of a file that are changed, one at a time; of a smaller file all are."""


@dataclass(frozen=True)
class Saved:
    """A kind of file: what writes one to a path, and what reads it."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def reference() -> DriftReference:
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return fit_drift_reference(rows, groups=torch.arange(400) // 4, seed=0)


def adapter() -> Adapter:
    return Adapter.initial(AdapterShape(6, 16, "toy", n_steps=2), states(9, 16).float())


def message() -> Message:
    return Message(states(2, 4), "toy", texts=("one", "two"), parts=({"h": states(2, 3)}, {"h": states(1, 3)}))


SAVED = (
    Saved("tensors", lambda path: write_tensors(path, {"x": states(2, 3)}, {"note": "one"}), read_tensors),
    Saved("JSON", lambda path: write_sealed(path, {"model": "tiny", "shards": [[0, 3]]}), read_sealed),
    Saved("map", AffineMap(states(3, 2), states(3)).save, AffineMap.load),
    Saved("message", lambda path: message().save(path), Message.load),
    Saved("reference", lambda path: reference().save(path), DriftReference.load),
    Saved("adapter", lambda path: adapter().save(path), Adapter.load),
    Saved(
        "bridge", lambda path: Bridge.initial(BridgeShape(6, 8, "toy", ((1, 1),), n_heads=2)).save(path), Bridge.load
    ),
    Saved(
        "trained weights",
        lambda path: save_weights(path, {"w": states(2)}, kind="toy", configuration={"name": "toy"}),
        lambda path: load_weights(path, kind="toy"),
    ),
)
KINDS = pytest.mark.parametrize("saved", SAVED, ids=[saved.name for saved in SAVED])


def sentence(read: Callable[[Path], object], path: Path) -> str:
    """What reading the file is refused with: one line."""
    with pytest.raises(ValueError, match=rf"\A[^\n]*{path.name}[^\n]*\Z") as refused:
        read(path)
    return str(refused.value)


@KINDS
def test_a_changed_byte_anywhere_is_one_sentence_that_names_the_file(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "saved-file"
    saved.write(path)
    saved.read(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    places = list(range(len(whole))) if len(whole) <= N_POSITIONS else draw.sample(range(len(whole)), N_POSITIONS // 2)
    if len(whole) > N_POSITIONS:  # what names the tensors, and the checksum, is where a reader could be misled
        places += draw.sample(range(min(header, len(whole))), N_POSITIONS // 2)
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(changed))
        if saved.name == "JSON" and _same_json(whole, bytes(changed)):
            continue
        sentence(saved.read, path)


def _same_json(one: bytes, other: bytes) -> bool:
    """Whether the changed byte is white space between values."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@KINDS
@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64, b"[]", b"\xff\xfe{"], ids=repr)
def test_a_file_of_something_else_is_one_sentence(saved: Saved, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "saved-file"
    path.write_bytes(content)
    sentence(saved.read, path)


@KINDS
def test_a_file_cut_short_is_one_sentence(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "saved-file"
    saved.write(path)
    whole = path.read_bytes()
    for length in (1, 8, 20, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        sentence(saved.read, path)


@KINDS
def test_a_file_of_before_there_were_checksums_is_read(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "saved-file"
    saved.write(path)
    if saved.name == "JSON":
        path.write_text(json.dumps({"model": "tiny", "shards": [[0, 3]]}), "utf-8")
    else:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            facts = {name: value for name, value in file.metadata().items() if name not in (CHECKED, CHECKSUM)}
        save_file(tensors, path, metadata=facts)
    saved.read(path)


def test_a_file_that_says_it_has_a_checksum_is_refused_without_it(tmp_path: Path) -> None:
    path = tmp_path / "saved-file"
    save_file({"x": states(3)}, path, metadata={CHECKED: CHECKSUM})
    assert "has no checksum" in sentence(read_tensors, path)


def test_another_program_s_whole_tensors_are_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"y": states(3)}, tmp_path / "0001.safetensors")
    assert Records(tmp_path).tensors("0001", lambda: {"x": states(2)}).keys() == {"x"}
    assert "0001.safetensors is damaged" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_has_the_name_of_a_record_is_set_aside_each_time(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for _ in range(3):
        (tmp_path / "0001.json").mkdir()
        (tmp_path / "0001.json" / "note").write_text("here")
        assert records.values("0001", lambda: [1]) == [1] == records.values("0001", lambda: [2])
        (tmp_path / "0001.json").unlink()
    aside = [path.name for path in sorted(tmp_path.iterdir())]
    assert aside == ["0001.json.damaged", "0001.json.damaged-2", "0001.json.damaged-3"]


def test_a_sealed_object_comes_back_as_it_was(tmp_path: Path) -> None:
    record: dict[str, Any] = {"text": "Ünïcode", "numbers": [1, 0.1, None, True]}
    write_sealed(tmp_path / "file", record)
    assert read_sealed(tmp_path / "file") == record


def test_a_whole_record_stays_where_memory_runs_out_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path)
    records.tensors("0001", lambda: {"x": states(3)})
    whole = (tmp_path / "0001.safetensors").read_bytes()

    def no_memory(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"can't allocate memory: you tried to allocate {tensor.nbytes} bytes")

    monkeypatch.setattr(files, "laid_out", no_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        records.tensors("0001", lambda: {"x": states(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["0001.safetensors"]
    assert (tmp_path / "0001.safetensors").read_bytes() == whole


@pytest.mark.parametrize("content", ["{}", '{"shards": 3}', '{"shards": [[0, 1]], "sites": null}'])
def test_another_program_s_manifest_is_no_store_of_activations(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content, "utf-8")
    with pytest.raises(ValueError, match=rf"\A[^\n]*{MANIFEST} names no sites and shards[^\n]*\Z"):
        ActivationStore.open(tmp_path)


@pytest.mark.parametrize("manifest", ["[" * 100_000, f'{{"format": 1{"0" * 5000}}}'], ids=["deep", "long number"])
def test_trained_weights_with_a_manifest_beyond_reading_are_one_sentence(manifest: str, tmp_path: Path) -> None:
    path = tmp_path / "saved-file"
    write_tensors(path, {"x": states(1)}, {"manifest": manifest})
    assert "cannot be read" in sentence(lambda place: load_weights(place, kind="toy"), path)
