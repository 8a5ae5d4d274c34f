"""Records of what a long run has finished, in files under all that decides them, so that a stopped run resumes."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from latentcomm._core.files import CHECKSUM, digest, digest_of_json, expanded, read_tensors, write_json, write_tensors
from latentcomm._core.progress import say, track

__all__ = [
    "Part",
    "PartEnded",
    "Records",
    "Scheduler",
    "end_of_part",
    "forgotten",
    "made_once",
    "scheduled_by",
    "missing",
    "ordered",
    "read_whole",
    "tracked",
]


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
    Records do not depend on one another: several processes may share a folder, each with a part of them (`ordered`).

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
        there = _stems(self.folder)
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
        path, scheduler = self.folder / file, _SCHEDULER.get()
        if scheduler is not None and not path.exists():
            scheduler.fetch(path)
        found = read_whole(path, read)
        if found is not None:
            return found[0]
        made = make()
        write(path, made)
        if scheduler is not None:
            scheduler.wrote(path)
        return made


Piece = tuple[Records, str]
"""A record by its name."""


@runtime_checkable
class Scheduler(Protocol):
    """Which process makes which records of a run that several processes work at.

    Attributes:
        is_share: whether this process stops where a result would be made of the records.
    """

    is_share: bool

    def order(self, pieces: Sequence[Piece], *, needed: bool, together: int = 1) -> Iterator[int]:
        """The indices of the records that this process makes or, where all are needed, reads.

        Each `together` records in a row share work, and are better made by one process.
        """
        ...

    def fetch(self, path: Path) -> None:
        """Bring a record that is not at this path, if another process has made it elsewhere."""
        ...

    def wrote(self, path: Path) -> None:
        """A record was made and written to this path."""
        ...

    def forgot(self, folder: Path) -> None:
        """A folder of records was deleted, since the run that they are of has finished."""
        ...

    @property
    def n_left(self) -> int:
        """How many records were left to other processes and are not there yet."""
        ...


@dataclass(eq=False)
class Part:
    """Part `number` of `of`, counted from 1: of all records in the order of a run each `of`-th, from that number on.

    Where all records are needed for what follows, a part makes its own first, then waits for the others as long as its
    last one took, since they are made at the same time, and then makes those that are missing, from the last one on,
    while the other parts come from the first.

    Raises:
        ValueError: a number that is not from 1 to `of`.
    """

    number: int
    of: int
    n_made: int = 0
    is_share: bool = True
    _n_seen: int = 0
    _left: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(f"part is {self.number}/{self.of}; give a part from 1/{self.of} to {self.of}/{self.of}")

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that I/N names.

        Raises:
            ValueError: it names none.

        >>> Part.parse("2/8").number
        2
        """
        number, slash, of = text.partition("/")
        if not slash or not number.strip().isdecimal() or not of.strip().isdecimal() or int(of) < 1:
            raise ValueError(f"part is {text!r}; give I/N, such as 1/4 for the first of four parts")
        return cls(int(number), int(of))

    def order(self, pieces: Sequence[Piece], *, needed: bool, together: int = 1) -> Iterator[int]:
        """The records that are there, then its own; where all are needed, then the others from the last on."""
        together = together if len(pieces) >= together * self.of else 1
        first = (self.number - 1 - self._n_seen) % self.of
        own = [index for index in range(len(pieces)) if index // together % self.of == first]
        if not needed:  # every part comes past all of these, but past those that are needed only where it needs them
            self._n_seen += -(-len(pieces) // together)
        absent = missing(pieces)
        yield from (index for index in range(len(pieces)) if index not in absent)
        took = 0.0
        for index in (index for index in own if index in absent):
            began = time.monotonic()
            yield index
            took = time.monotonic() - began
        others = [index for index in sorted(absent) if index not in own]
        if needed:
            until = time.monotonic() + took
            while time.monotonic() < until and missing([pieces[index] for index in others]):
                time.sleep(POLL)
            yield from reversed(others)
        else:
            self._left += [pieces[index] for index in others]

    def fetch(self, path: Path) -> None:
        """All parts write to one folder."""

    def wrote(self, path: Path) -> None:  # noqa: ARG002 (of the protocol)
        """Count it."""
        self.n_made += 1

    def forgot(self, folder: Path) -> None:
        """A part deletes nothing."""

    @property
    def n_left(self) -> int:
        """How many records of the other parts are not there yet."""
        return len(missing(self._left))


def missing(pieces: Sequence[Piece]) -> set[int]:
    """The indices of the records that are not there; every folder is listed once."""
    there = {folder: _stems(folder) for folder in {records.folder for records, _ in pieces}}
    return {index for index, (records, name) in enumerate(pieces) if name not in there[records.folder]}


def _stems(folder: Path | None) -> set[str]:
    return set() if folder is None else {path.stem for path in folder.glob("*")}


POLL = 0.05
"""Seconds between two looks at what another part has made."""


class PartEnded(Exception):  # noqa: N818 (nothing is wrong)
    """The work of this process at a run is done; the result is made where all records are."""


_SCHEDULER: ContextVar[Scheduler | None] = ContextVar("_SCHEDULER", default=None)


@contextlib.contextmanager
def scheduled_by(scheduler: Scheduler) -> Iterator[None]:
    """A block in which a scheduler says which records this process makes."""
    before = _SCHEDULER.set(scheduler)
    try:
        yield
    finally:
        _SCHEDULER.reset(before)


def ordered(pieces: Sequence[Piece], *, needed: bool = True, together: int = 1) -> Iterable[int]:
    """The indices of records in the order in which this process makes them: all in order, without one.

    With `needed` all records are wanted for what follows, and all indices come. Otherwise those come that are this
    process's own, or are there already, and `end_of_part` stops the run before a result is made of them. Each
    `together` in a row go to one process, where there are enough for all.

    >>> pieces = [(Records(None), str(number)) for number in range(5)]
    >>> list(ordered(pieces))
    [0, 1, 2, 3, 4]
    >>> with scheduled_by(Part(2, 3)):
    ...     list(ordered(pieces))
    [1, 4, 3, 2, 0]
    """
    scheduler = _SCHEDULER.get()
    return range(len(pieces)) if scheduler is None else scheduler.order(pieces, needed=needed, together=together)


def tracked(
    pieces: Sequence[Piece], what: str, *, needed: bool = True, together: int = 1, shown: bool
) -> Iterator[int]:
    """The indices of `ordered`, with a bar that shows how many of the records are there."""
    saved = len(pieces) - len(missing(pieces)) if shown else 0
    return track(ordered(pieces, needed=needed, together=together), what, total=len(pieces), saved=saved, shown=shown)


def made_once(records: Records, name: str, read: Callable[[], Made]) -> Made:
    """What `read` gives of one record that all processes need, which one of them makes.

    >>> made_once(Records(None), "map", lambda: "fitted")
    'fitted'
    """
    (found,) = (read() for _ in ordered([(records, name)]))
    return found


def forgotten(folder: Path) -> None:
    """Pass on that a folder of records was deleted, since the run that they are of has finished."""
    scheduler = _SCHEDULER.get()
    if scheduler is not None:
        scheduler.forgot(folder)


def end_of_part(*, only_where_left: bool = False) -> None:
    """Stop a run of which this process does only its own share, before a result is made of it.

    With `only_where_left` it goes on where the other processes have left nothing to do, to records that take all
    that were made before.

    Raises:
        PartEnded: a scheduler gives this process a share.
    """
    scheduler = _SCHEDULER.get()
    if scheduler is not None and scheduler.is_share and not (only_where_left and scheduler.n_left == 0):
        raise PartEnded


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
