"""Records of what a long run has finished, in files under all that decides them, so that a stopped run resumes."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from latentcomm._core.files import CHECKSUM, digest, digest_of_json, expanded, read_tensors, write_json, write_tensors
from latentcomm._core.progress import say

__all__ = ["Records", "read_whole"]


@runtime_checkable
class Saving(Protocol):
    """What writes itself to a path."""

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        ...


Saved = TypeVar("Saved", bound=Saving)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Records:
    """The finished records of one kind of work, one file a record.

    A record that exists is read, every other is made and written whole under its name. A file that is damaged (cut
    short, or other bytes than its checksum) is named on standard error, set aside as FILE.damaged, and made again.
    Records do not depend on one another: several processes may share a folder, and records i, i + n, ... are one part
    of n.

    Attributes:
        folder: where they are; None saves nothing, and every record is made.
    """

    folder: Path | None

    @classmethod
    def of(cls, root: str | os.PathLike[str] | None, kind: str, version: int, *decisive: Any) -> "Records":
        """The records of one kind below `root`, in a folder named after a digest of all that decides the records.

        `version` is raised when a record of the same name and inputs would hold other content.

        Raises:
            TypeError: something decisive has no digest (`latentcomm._core.files.digest`).

        >>> Records.of("runs", "sweep", 1, "model", 3).folder == Records.of("runs", "sweep", 1, "model", 3).folder
        True
        >>> Records.of("runs", "sweep", 1, "model", 3).folder == Records.of("runs", "sweep", 2, "model", 3).folder
        False
        """
        return cls(None if root is None else expanded(root) / f"{kind}-{digest(kind, version, *decisive)[:16]}")

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The record `name` of named tensors, on the CPU where it was saved.

        Raises:
            RuntimeError: it cannot be written.
        """

        def write(path: Path, record: dict[str, Tensor]) -> None:
            write_tensors(path, record)

        return self._record(
            f"{name}.safetensors", make, write, lambda path: read_tensors(path, require_checksum=True)[1]
        )

    def values(self, name: str, make: Callable[[], Made]) -> Made:
        """The record `name` of plain values that JSON holds: lists, not tuples, and keys that are strings.

        Raises:
            RuntimeError: it cannot be written.
        """

        def write(path: Path, record: Made) -> None:
            write_json(path, {CHECKSUM: digest_of_json(record), "value": record})

        return self._record(f"{name}.json", make, write, _read_values)

    def saved(self, name: str, make: Callable[[], Saved], load: Callable[[Path], Saved]) -> Saved:
        """The record `name` that writes itself by `save` and that `load` reads.

        Raises:
            RuntimeError: it cannot be written.
        """
        return self._record(f"{name}.safetensors", make, lambda path, record: record.save(path), load)

    def found(self, name: str) -> tuple[Any] | None:
        """The record `name` of plain values, alone in a tuple; None where there is none."""
        return None if self.folder is None else read_whole(self.folder / f"{name}.json", _read_values)

    def n_saved(self, names: Iterable[str]) -> int:
        """How many of the records of these names are there.

        >>> Records(None).n_saved(["pass-000000"])
        0
        """
        there = set() if self.folder is None else {path.stem for path in self.folder.glob("*")}
        return sum(name in there for name in names)

    def _record(
        self,
        file: str,
        make: Callable[[], Made],
        write: Callable[[Path, Made], None],
        read: Callable[[Path], Made],
    ) -> Made:
        if self.folder is None:
            return make()
        path = self.folder / file
        found = read_whole(path, read)
        if found is not None:
            return found[0]
        made = make()
        write(path, made)
        return made


def read_whole(path: Path, read: Callable[[Path], Made]) -> tuple[Made] | None:
    """What a file holds; None where there is none, or where it was damaged and is set aside now.

    Damaged is what `read` answers with a ValueError, a KeyError or a TypeError, unless the disk or its permissions
    caused it, and a folder.

    >>> read_whole(Path("nowhere.json"), Path.read_text) is None
    True
    """
    try:
        return (read(path),)
    except (FileNotFoundError, NotADirectoryError):  # a file may be where a folder would be
        return None
    except (ValueError, KeyError, TypeError, IsADirectoryError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        if isinstance(error.__cause__, OSError) and not path.is_dir():  # the disk or its permissions
            raise
        aside = _free_name(path)
        try:
            path.replace(aside)
        except FileNotFoundError:  # another process has set it aside
            return None
        say(f"{path} is damaged ({error}); it is set aside as {aside.name} and made again")
        return None


def _free_name(path: Path) -> Path:
    """PATH.damaged, over an earlier file of that name; where a folder is in the way, or is moved, PATH.damaged-2 ..."""
    names = (f"{path.name}.damaged{ending}" for ending in ("", *map("-{}".format, range(2, 1000))))
    free = (each for name in names if not (each := path.with_name(name)).is_dir())
    return next(each for each in free if not (each.exists() and path.is_dir()))


def _read_values(path: Path) -> Any:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        value, expected = record["value"], record[CHECKSUM]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is no record") from error
    if digest_of_json(value) != expected:
        raise ValueError("it does not match its checksum")
    return value
