"""Files that are written whole or not at all, and digests that show whether two inputs are the same."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

CHECKSUM = "sha256"
"""The name in a file's metadata of the digest of its tensors and of the rest of its metadata."""
CHECKED = "checked by"
"""The name of the entry that says that there is a digest, so that a digest whose name is damaged is missed."""
ALIGNMENT = 64
"""Bytes of a cache line, to which torch aligns what it allocates; a tensor mapped from a file begins anywhere."""


class UnreadableError(SafetensorError, ValueError):
    """A file that is no safetensors file, or is one no longer."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A scratch path in the folder of `path` that replaces it when the block succeeds, and is removed when it fails.

    Raises:
        RuntimeError: the disk is full or the folder cannot be written; an earlier file at `path` remains.
    """
    draft, path = None, expanded(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        draft = Path(name)
        yield draft
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o666 & ~umask)
        with draft.open("rb") as written:  # on the disk before it takes the name of what was there
            os.fsync(written.fileno())
        draft.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a full disk
        reason = getattr(error, "strerror", None) or str(error)
        raise RuntimeError(
            f"{path} could not be written ({reason}); free some space and run again; finished work is saved"
        ) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def readable(n_bytes: float | int) -> str:
    """A number of bytes in the largest unit of which there is one, each 1024 of the next smaller.

    >>> readable(999), readable(1500), readable(12_345_678), readable(2.5 * 2**30)
    ('999 bytes', '1.5 kB', '12 MB', '2.5 GB')
    """
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if n_bytes >= size:
            digits = 1 if unit == "GB" or n_bytes < 10 * size else 0
            return f"{n_bytes / size:.{digits}f} {unit}"
    return f"{n_bytes:.0f} bytes"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, keys in the order given, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def laid_out(tensor: Tensor) -> Tensor:
    """Return the tensor in the memory layout of a new one: row by row, its first element at a multiple of 64 bytes.

    A product takes its kernel by the strides and the alignment of its operands, so equal numbers in different memory
    layouts give results that agree to rounding only. What is saved passes through here when it is made and when it is
    loaded, so that both give the same bits. A tensor with that layout is returned as it is.

    >>> import torch
    >>> laid_out(torch.arange(6).view(2, 3).T).stride()
    (2, 1)
    """
    import torch

    usual = torch.empty(tensor.shape, device="meta").stride()
    if tensor.stride() == usual and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors and metadata as safetensors, whole or not at all, with a checksum of both.

    Raises:
        RuntimeError: the file cannot be written; what was there is still there.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():  # safetensors requires memory of its own for each
        plain, owned = tensor.detach().cpu().contiguous(), {each.data_ptr() for each in stored.values()}
        alone = plain.untyped_storage().nbytes() == plain.nbytes and plain.data_ptr() not in owned
        stored[name] = plain if alone else plain.clone()
    facts = {**(metadata or {}), CHECKED: CHECKSUM}
    with written_whole(Path(path)) as draft:
        save_file(stored, draft, metadata=facts | {CHECKSUM: _checksum(stored, facts)})


def read_tensors(
    path: str | os.PathLike[str], *, device: str = "cpu", require_checksum: bool = False
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors, laid out as new ones, of a safetensors file.

    A file of before there were checksums, or of another program, is read without one unless `require_checksum`.

    Raises:
        UnreadableError: it is no safetensors file, or was cut short.
        ValueError: it does not match its checksum.
        FileNotFoundError: there is no such file.
    """
    facts, tensors = map_tensors(path, device=device, require_checksum=require_checksum)
    return facts, {name: laid_out(tensor) for name, tensor in tensors.items()}


def map_tensors(
    path: str | os.PathLike[str], *, device: str = "cpu", require_checksum: bool = False
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return what `read_tensors` does, verified alike, with the tensors of a CPU left in the file and mapped to memory.

    Raises:
        UnreadableError, ValueError, FileNotFoundError: as `read_tensors`.
    """
    name = os.fspath(expanded(path))
    try:
        with safe_open(name, framework="pt", device=device) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            facts = dict(file.metadata() or {})
    except OSError as error:
        if os.path.isdir(name):  # noqa: PTH112 (its error is that there is no such device)
            raise UnreadableError(f"{name} is a folder, and no safetensors file") from error
        raise
    # what lacks memory or a device is a RuntimeError, and says nothing about the file
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{name} is no safetensors file, or was damaged ({first_line(error)})") from error
    expected = facts.pop(CHECKSUM, None)
    _check(name, expected, _checksum(tensors, facts), is_marked=require_checksum or CHECKED in facts)
    facts.pop(CHECKED, None)
    return facts, tensors


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of it, whole or not at all.

    Raises:
        RuntimeError: the file cannot be written; what was there is still there.
    """
    marked = {**record, CHECKED: CHECKSUM}
    write_json(path, {**marked, CHECKSUM: digest_of_json(marked)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The object that `write_sealed` wrote; one of before there were checksums is read without one.

    Raises:
        ValueError: it is no JSON object, or does not match its checksum.
        FileNotFoundError: there is no such file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({first_line(error)})") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no JSON object")
    expected = record.pop(CHECKSUM, None)
    _check(str(path), expected, digest_of_json(record), is_marked=CHECKED in record)
    record.pop(CHECKED, None)
    return record


def _check(name: str, expected: str | None, found: str, *, is_marked: bool) -> None:
    """Refuse a file whose checksum is another than that of its content, or is gone though the file is marked."""
    if expected is None and is_marked:
        raise ValueError(f"{name} has no checksum; it was damaged, or another program wrote it")
    if expected not in (None, found):
        raise ValueError(f"{name} does not match its checksum; it was changed or damaged")


def digest_of_json(value: Any) -> str:
    """The digest of what JSON holds, whatever the order of its keys."""
    return digest(json.dumps(value, ensure_ascii=False, sort_keys=True))


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message, or its kind where it has none.

    >>> first_line(ValueError("no room\nin the folder")), first_line(KeyError())
    ('no room', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest(dict(sorted(tensors.items())), dict(sorted(metadata.items())))


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in place of `~`.

    >>> expanded("~/maps").name, expanded("~/maps") == Path.home() / "maps"
    ('maps', True)
    """
    return Path(path).expanduser()


def without_folder(name: str) -> str:
    """A name, of an absolute path its last part, or the hub id whose snapshot it is: no folders are recorded.

    >>> without_folder("organisation/model"), without_folder("~/models/one")
    ('organisation/model', 'one')
    >>> without_folder("~/.cache/hub/models--someone--tiny/snapshots/0a1b")
    'someone/tiny'
    """
    if found := snapshot_id(name):
        return found
    return PureWindowsPath(name).name or name if _is_absolute(name) and "\n" not in name else name


def snapshot_id(path: str) -> str | None:
    """The hub id whose snapshot in the hub's cache a folder is, or None."""
    found = _SNAPSHOT.search(path)
    return found["id"].replace("--", "/", 1) if found else None


def told_apart(*names: str) -> list[str]:
    """Names without the folders of a machine, with as much of their paths as distinguishes them.

    >>> told_apart("/runs/a/model", "/runs/b/model"), told_apart("/runs/a/model", "/runs/a/model")
    (['a/model', 'b/model'], ['model', 'model'])

    Of two snapshots of one hub id the beginning of the revision is shown.

    >>> told_apart("/hub/models--a--m/snapshots/0a1b", "/hub/models--a--m/snapshots/2c3d")
    ['a/m@0a1b', 'a/m@2c3d']
    """
    short = [without_folder(name) for name in names]
    paths = [PureWindowsPath(name).parts for name in names]
    if len(set(short)) < len(set(paths)):
        short = [
            f"{last}@{found['revision'][:8]}" if short.count(last) > 1 and (found := _SNAPSHOT.search(name)) else last
            for name, last in zip(names, short, strict=True)
        ]
    for depth in range(2, max(map(len, paths))):
        if len(set(short)) == len(set(paths)):
            break
        clashing = {name for name in short if short.count(name) > 1}
        short = [
            "/".join(path[1:][-depth:]) if last in clashing and _is_absolute(name) else last
            for name, path, last in zip(names, paths, short, strict=True)
        ]
    return short


_SNAPSHOT = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<revision>[^/\\]+)[/\\]?$")


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute() or path.startswith("~")


def digest(*values: Any) -> str:
    """SHA-256 of plain values, tensors, and dataclasses of them: equal inputs, equal digests, in every process.

    What has a `fingerprint`, as a model does, is taken for that. A dataclass is its name, its fields and its `VERSION`
    (1 where it names none), which a change of its formula raises; the module of its code does not matter.

    Raises:
        TypeError: a value of a kind that has no stable content, such as a lambda.

    >>> digest(1, "a") == digest(1, "a"), digest(1, "a") == digest(1, "b")
    (True, False)
    """
    state = hashlib.sha256()
    for value in values:
        _feed(state, value)
    return state.hexdigest()


def _feed(state: "hashlib._Hash", value: Any) -> None:
    if isinstance(value, Tensor):
        state.update(f"tensor {tuple(value.shape)} {value.dtype}".encode())
        import torch

        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(fingerprint := getattr(value, "fingerprint", None), str):  # a model is its weights
        state.update(f"fingerprint {fingerprint};".encode())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        state.update(f"record {type(value).__qualname__} {getattr(value, 'VERSION', 1)}".encode())
        for entry in dataclasses.fields(value):
            state.update(entry.name.encode())
            _feed(state, getattr(value, entry.name))
    elif isinstance(value, Mapping):
        state.update(f"mapping {len(value)}".encode())
        for key, inner in value.items():
            _feed(state, key)
            _feed(state, inner)
    elif isinstance(value, list | tuple | range):
        state.update(f"sequence {len(value)}".encode())
        for inner in value:
            _feed(state, inner)
    elif value is None or isinstance(value, str | int | float | bool | Path):
        state.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"{type(value).__name__} has no digest; give plain values, tensors or dataclasses")
