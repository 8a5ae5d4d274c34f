"""The folder that runs write to: whose its files are, and what is saved in it for a run that resumes."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentcomm._core.files import read_sealed, write_sealed
from latentcomm._core.records import forgotten, read_whole
from latentcomm.experiments.settings import SAVED

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Claim", "claims_in", "forget", "large_work", "note_large", "refuse_unwritable"]

LOCK = ".lock"
"""The file that a run locks while it reads and writes claims; of large work, while it needs that work."""
SHOWN = 4
"""Options that a refusal names before it counts the others."""
_LARGE: ContextVar[dict[Path, int | None] | None] = ContextVar("_LARGE", default=None)
"""What the innermost block of `large_work` in this thread lists, each folder with its lock."""


@dataclass(frozen=True)
class Claim:
    """The files of one name in a folder, and the run that writes them.

    Attributes:
        out, name: the folder, and the name of the files.
        record: the experiment, its settings, and digests of what its settings do not name.
        defaults: the settings with their defaults, for a record of a release that had fewer.
        files: all that the experiment may write under the name.
    """

    out: Path
    name: str
    record: Mapping[str, Any]
    defaults: Mapping[str, Any]
    files: Sequence[str]

    @property
    def path(self) -> Path:
        """The file that records whose files of this name are."""
        return self.out / SAVED / f"{self.name}.json"

    def refusal(self) -> str | None:
        """The sentence that refuses to write over the results or the unfinished work of other settings.

        Results that are no longer there refuse nothing. Nothing is written.
        """
        begun = self._begun()
        there = self._there(begun)
        record = self._published() if begun is None else begun
        if begun is None and there and record is None:
            return (
                f"{self.out} holds a {there[0]} that names no settings; `overwrite=True` writes over it, or give "
                "another `out` or `name`"
            )
        finished = begun is None or bool(begun.get("finished"))
        if record is None or (finished and not there) or not (differing := self.differences(record)):
            return None
        what = ", ".join(differing[:SHOWN]) + (f" and {len(differing) - SHOWN} more" if differing[SHOWN:] else "")
        if finished:
            return (
                f"the results of {self.name!r} in {self.out} differ in {what}; `overwrite=True` writes over them, or "
                "give another `out` or `name`"
            )
        return (
            f"an unfinished run of {self.name!r} in {self.out} differs in {what}; `overwrite=True` goes on without it, "
            "or give another `out`"
        )

    @contextlib.contextmanager
    def held(self, *, overwrite: bool = False) -> Iterator[None]:
        """A block before which the files of this name are this run's, which has not finished.

        A run that is refused in the block, or ends before it has saved anything, has claimed nothing, unless it has
        finished by then.

        Raises:
            ValueError: without `overwrite`, what `refusal` says by then: of different runs that start at once, one.
            RuntimeError: the folder cannot be written.
        """
        made = [each for each in (self.out, *self.out.parents) if not each.exists()]
        try:
            with self._alone():
                read_whole(self.path, _record)  # a damaged one is set aside
                before = self._begun()
                if not overwrite and (refusal := self.refusal()) is not None:
                    raise ValueError(refusal)
                self._write(finished=False, files=_listed(before))
                shared = self.path.with_name(f".{self.name}{LOCK}")
                handle = _lock(shared, shared=True)  # of all equal runs, such as the parts of one
                work = self._work()
            try:
                yield
            except BaseException as error:
                if _is_alone(handle) and (isinstance(error, ValueError) or self._work() <= work):
                    self._withdraw(before)
                raise
            finally:
                _unlock(shared, handle)
        except BaseException:
            for folder in made:
                with contextlib.suppress(OSError):  # another run is there, or work
                    folder.rmdir()
            raise

    def finish(self, written: Sequence[Path]) -> None:
        """Write that it has finished, with the files that it wrote; those of the older run that it replaces go."""
        files = [path.name for path in written if path.name in self.files]
        with self._alone():
            for name in _listed(self._begun()):
                if name not in files:
                    (self.out / name).unlink(missing_ok=True)
            self._write(finished=True, files=files)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """A block in which no other run reads or writes a claim in the folder."""
        return _locked(self.path.with_name(LOCK))

    def _write(self, *, finished: bool, files: Sequence[str]) -> None:
        write_sealed(self.path, {**self.record, "finished": finished, "files": list(files)})

    def _begun(self) -> dict[str, Any] | None:
        """The record of the run that was there before; None where there is none, or a damaged one."""
        try:
            return _record(self.path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def _published(self) -> dict[str, Any] | None:
        """The record in the metadata of what was published; None where there is none."""
        record = (_json(self.out / f"{self.name}.meta.json") or {}).get("run")
        return record if isinstance(record, dict) and isinstance(record.get("settings"), dict) else None

    def _there(self, begun: Mapping[str, Any] | None) -> list[str]:
        """Which files of the run before are there; of a run that lists none, of all that may be written."""
        return [name for name in _listed(begun) or self.files if (self.out / name).exists()]

    def _work(self) -> set[Path]:
        """All that runs have saved in the folder."""
        found = (path for path in self.path.parent.rglob("[!.]*") if path.is_file())
        return {path for path in found if path.parent != self.path.parent or path.suffix != ".json"}

    def _withdraw(self, before: Mapping[str, Any] | None) -> None:
        """Put back what the claim was before, or nothing; unless it is another run's by now, or has finished."""
        with self._alone():
            now = self._begun()
            if now is None or now.get("finished") or self.differences(now):
                return
            if before is None:
                self.path.unlink()
            else:
                write_sealed(self.path, before)

    def differences(self, there: Mapping[str, Any]) -> list[str]:
        """What differs from a record, each with both values."""
        if there.get("experiment") != self.record["experiment"]:
            return [f"the command ({there.get('experiment')} there, {self.record['experiment']} here)"]
        old = {**self.defaults, **(there.get("settings") or {})}
        new = self.record["settings"]
        found = [
            f"`{name}` ({_shown(old[name])} there, {_shown(new[name])} here)" for name in new if old[name] != new[name]
        ]
        memory = [set(each.get("in_memory") or ()) for each in (there, self.record)]
        found += [f"what is in memory ({_shown(role)})" for role in sorted(memory[0] ^ memory[1])]
        for kind, what in (("folders", "another folder of that name"), ("objects", "another one in memory")):
            before = there.get(kind) or {}
            now = self.record.get(kind) or {}
            found += [
                f"`{name}` ({what})"
                for name in now
                if name in before and before[name] != now[name] and old.get(name) == new.get(name)
            ]
        return found


def claims_in(out: Path) -> list[Claim]:
    """The runs that have claimed files in a folder."""
    found = [(path.stem, read_whole(path, _record)) for path in sorted((out / SAVED).glob("*.json"))]
    return [
        Claim(out, name, record[0], record[0]["settings"], _listed(record[0]))
        for name, record in found
        if record is not None
    ]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A block that one process or thread at a time enters, where the file system has locks."""
    handle = _lock(path)
    try:
        yield
    finally:
        _unlock(path, handle)


def _lock(path: Path, *, shared: bool = False) -> int | None:
    """A lock file that is open and locked; None where the file system has no locks, or the file cannot be written.

    The system releases it when the process ends, however that is.
    """
    while fcntl is not None:
        handle = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT)
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:  # the one that had the lock has removed the file, or its folder
            pass
        except OSError:
            if handle is not None:
                os.close(handle)
            return None
        if handle is not None:
            os.close(handle)
    return None


def _is_alone(handle: int | None) -> bool:
    """Whether no other has the lock, which is then exclusive; as far as is known without locks.

    Where another has it, Linux may take the shared lock away; who asks is about to release it.
    """
    if handle is None or fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(path: Path, handle: int | None) -> None:
    """Release a lock; the last one removes the file, and its folder if nothing else is there."""
    if handle is None:
        return
    if _is_alone(handle):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    os.close(handle)


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that results cannot be written to.

    Raises:
        ValueError: it is no folder or may not be written to, or the first folder above it that exists.
    """
    first = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not first.is_dir():
        raise ValueError(f"out is {folder}, and {first} is no folder; choose another folder")
    if not os.access(first, os.W_OK | os.X_OK):
        raise ValueError(f"out is {folder}, and {first} may not be written to; choose another folder")


@contextlib.contextmanager
def large_work() -> Iterator[dict[Path, int | None]]:
    """A block whose large saved work, such as messages, is listed: records of finished work load without it."""
    folders: dict[Path, int | None] = {}
    outside = _LARGE.set(folders)
    try:
        yield folders
    finally:
        _LARGE.reset(outside)
        for folder, handle in folders.items():
            _unlock(_lock_of(folder), handle)


def note_large(folder: Path | None) -> None:
    """List a folder of work that is large and not needed once the run that it is of has finished."""
    folders = _LARGE.get()
    if folders is not None and folder is not None and folder not in folders:
        folders[folder] = _lock(_lock_of(folder), shared=True)


def forget(folders: Mapping[Path, int | None]) -> None:
    """Delete the work that a block of `large_work` lists, but for what another run has listed, too."""
    for folder, handle in folders.items():
        if _is_alone(handle):
            shutil.rmtree(folder, ignore_errors=True)
            forgotten(folder)


def _lock_of(folder: Path) -> Path:
    """The file that all runs lock that need a folder."""
    return folder.with_name(f".{folder.name}{LOCK}")


def _record(path: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        ValueError: the file is damaged, or of another program.
    """
    record = read_sealed(path)
    if "experiment" not in record or not isinstance(record.get("settings"), dict):
        raise ValueError(f"{path} names no settings")
    return record


def _listed(begun: Mapping[str, Any] | None) -> list[str]:
    """The files that the run of a record, or one that it replaces, has written."""
    return list((begun or {}).get("files") or ())


def _json(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file; None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _shown(value: Any) -> str:
    """A value as a refusal shows it."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return "none" if text in ("", "None") else text if len(text) <= 40 else f"{text[:37]}..."
