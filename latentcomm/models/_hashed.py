"""Fingerprints of the files that models are loaded from, saved in the cache folder so that they are hashed once."""

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentcomm._core.files import digest, read_sealed, write_sealed
from latentcomm._core.records import read_whole
from latentcomm.models.builtin import cache_folder

__all__ = ["LoadedFiles", "State", "entry_of", "loaded_from", "place_of", "saved_fingerprint", "state_of"]

VERSION = 1
"""Raised whenever the fingerprint of the same weights changes, so that an older one is not taken for it."""
READ = {".safetensors", ".bin", ".json", ".py"}
"""Endings of the files of a model that decide its weights."""


class State(NamedTuple):
    """What changes when a weight does.

    Attributes:
        name: of the weight.
        place: where it is in memory, and its shape and dtype.
        version: how often it was written in place.
        sums: a digest of sums over its bits, the same on every device.
        total: the sum of its entries.
    """

    name: str
    place: tuple[Any, ...]
    version: int | None
    sums: bytes
    total: float


def state_of(name: str, tensor: Tensor) -> State:
    """The state of a weight: where it is, how often it was written in place, and sums over it.

    Its bits are summed along rows and along columns, eight bytes at a time where they allow it (at the speed of
    memory), so that a changed entry and exchanged entries show; where all signs change the plain sum does. The sign of
    a number of eight bytes would wrap around in a sum of an even number of them, so these are summed in halves.
    """
    place, version = place_of(tensor)
    if not tensor.numel():
        return State(name, place, version, b"", 0.0)
    values = tensor.detach()
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(1, -1)
    size, itemsize = rows.shape[1] * rows.dtype.itemsize, rows.dtype.itemsize
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[itemsize]
    if itemsize == 8 and rows.stride(-1) == 1:
        whole = torch.int32
    elif size % 8 == 0 and rows.is_contiguous() and rows.storage_offset() * itemsize % 8 == 0:
        whole = torch.int64
    bits = rows.to(torch.uint8) if rows.dtype == torch.bool else rows.view(whole)
    sums = tuple(bits.sum(axis, dtype=torch.int64).cpu().numpy().tobytes() for axis in (0, 1))
    if values.is_floating_point() and itemsize == 1:  # torch has no sum of them
        values = values.float()
    return State(name, place, version, blake2b(b"".join(sums)).digest(), float(values.sum()))


def place_of(tensor: Tensor) -> tuple[tuple[Any, ...], int | None]:
    """Where a weight is in memory, with its shape and dtype, and how often it was written in place."""
    place = tensor.data_ptr(), tensor.stride(), tuple(tensor.shape), tensor.dtype
    return place, None if tensor.is_inference() else tensor._version


@dataclass(frozen=True, eq=False)
class LoadedFiles:
    """The files of a model as it was loaded, by which a fingerprint is saved for them or found.

    Attributes:
        entry: where the fingerprint of these files is, or will be.
        entry_now: the same of the files as they are by now.
        places: name, place and version of each weight, as it was loaded.
        sums: the digest of the sums of all weights as they are in the files.
        saved: the fingerprint that was in the entry.
    """

    entry: Path
    entry_now: Callable[[], Path | None]
    places: Sequence[tuple[Any, ...]]
    sums: str
    saved: str | None

    def fingerprint(self, state: Sequence[State], hashed: Callable[[], str]) -> str:
        """The saved fingerprint of weights that are those of the files, unchanged since; of others the hash.

        The first hash of unchanged weights is saved. An entry of other sums goes, as of files that were exchanged for
        others of their size and time.
        """
        if [(each.name, each.place, each.version) for each in state] != self.places:
            return hashed()
        if _sums(state) != self.sums:
            with contextlib.suppress(OSError):
                self.entry.unlink(missing_ok=True)
            return hashed()
        if self.saved is not None:
            return self.saved
        value = hashed()
        if self.entry_now() == self.entry:
            with contextlib.suppress(RuntimeError):  # where nothing can be written every load hashes
                write_sealed(self.entry, {"key": self.entry.stem, "fingerprint": value, "sums": self.sums})
        return value


def loaded_from(hooked: Any, entry: Path | None, entry_now: Callable[[], Path | None]) -> LoadedFiles | None:
    """The files of a model that was loaded just now; None where they are not known, or changed while it was loaded.

    `entry` is that of before it was loaded. Where no fingerprint is saved, the sums of the weights are taken now, so
    that nobody has changed them; they are saved with the fingerprint. Offloaded weights are hashed at every load.
    """
    weights = sorted(hooked.state_dict().items())
    if entry is None or entry_now() != entry or any(tensor.is_meta for _, tensor in weights):
        return None
    places = [(name, *place_of(tensor)) for name, tensor in weights]
    saved, sums = _read(entry) or (None, None)
    return LoadedFiles(entry, entry_now, places, sums or _sums([state_of(*each) for each in weights]), saved)


def saved_fingerprint(entry: Path | None) -> str | None:
    """The fingerprint of an entry; None where there is none."""
    found = None if entry is None else _read(entry)
    return None if found is None else found[0]


def entry_of(folder: Path | None, *options: Any) -> Path | None:
    """Where the fingerprint of the model in a folder is saved: by its files, and by dtype and quantization.

    None where the files are not known: a folder that is not here, or an adapter, whose model is in another folder.
    """
    if folder is None or (folder / "adapter_config.json").exists():
        return None
    try:
        named = {path.name for path in folder.iterdir() if path.suffix in READ}
        for index in folder.glob("*.index.json"):
            named.update(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        paths = {name: (folder / name).resolve(strict=True) for name in sorted(named)}
        files = [[name, str(path), (at := path.stat()).st_size, at.st_mtime_ns] for name, path in paths.items()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # transformers names what is wrong
        return None
    versions = [importlib.metadata.version(name) for name in ("transformers", "transformer-lens")]
    return cache_folder() / "fingerprints" / f"{digest(VERSION, files, versions, *map(str, options))[:32]}.json"


def _sums(state: Sequence[State]) -> str:
    return blake2b(b"".join(each.sums for each in state)).hexdigest()


def _read(entry: Path) -> tuple[str, str] | None:
    """The fingerprint and the sums of an entry; a damaged one is set aside."""

    def read(path: Path) -> tuple[str, str]:
        record = read_sealed(path)
        value, sums = str(record.get("fingerprint")), str(record.get("sums"))
        if record.get("key") != path.stem or not re.fullmatch(r"[0-9a-f]{64} [0-9a-f]{128}", f"{value} {sums}"):
            raise ValueError(f"{path} holds no fingerprint of its files")
        return value, sums

    try:
        found = read_whole(entry, read)
    except OSError:
        return None
    return None if found is None else found[0]
