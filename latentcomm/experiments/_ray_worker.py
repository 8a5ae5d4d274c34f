"""What runs on the machines of a Ray cluster: a store of records beside the driver, and workers that make them.

The store leases the records one by one, so that workers share a run without a plan, and takes back what a worker that
has died had in its hands. No file system is shared: a worker has a scratch folder, reads from the store what others
have made, and sends what it makes.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from latentcomm._core.files import written_whole
from latentcomm._core.records import Piece
from latentcomm.experiments._prepared import Prepared, prepare
from latentcomm.experiments.job import Result
from latentcomm.experiments.settings import SAVED, Settings
from latentcomm.reporting.terminal import Console, console

__all__ = ["ATTEMPTS", "Store", "Worker"]

ATTEMPTS = 3
"""Workers that may die with a record in their hands before the run is given up: it is likely to be what kills them."""
WAIT = 0.05
"""Seconds between two questions of a worker for records that others have in their hands."""
SUMMARY_WIDTH = 150
"""Characters of a line of a summary."""


class Store:
    """The records of several runs below a folder of the driver's machine, and who has which in hand."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self.there = {_key(path.relative_to(self.root)) for path in self.root.glob(f"*/{SAVED}/*/**/*.*")}
        self.hands: dict[str, str] = {}
        self.lost: Counter[str] = Counter()
        self.n_made = 0

    def take(self, keys: Sequence[str], worker: str) -> tuple[int | None, bool]:
        """The index of a record that this worker makes now; where there is none, whether others have some in hand."""
        in_hand = False
        for index, key in enumerate(keys):
            if key in self.there:
                continue
            if key not in self.hands:
                self.hands[key] = worker
                return index, True
            in_hand = in_hand or self.hands[key] != worker
        return None, in_hand

    def absent(self, keys: Sequence[str]) -> list[int]:
        """The indices of the records that are not there."""
        return [index for index, key in enumerate(keys) if key not in self.there]

    def get(self, path: str) -> bytes | None:
        """The content of a file; None where there is none."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def put(self, path: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        with written_whole(self.root / path) as draft:
            draft.write_bytes(content)
        key = _key(Path(path))
        self.there.add(key)
        self.hands.pop(key, None)
        self.n_made += 1

    def delete(self, folder: str) -> None:
        """Delete a folder of records."""
        shutil.rmtree(self.root / folder, ignore_errors=True)
        self.there = {key for key in self.there if not key.startswith(f"{folder}/")}

    def release(self, worker: str) -> list[str]:
        """Take back what a worker had in its hands; the records that too many workers have died with.

        A worker makes the record that it took last; records that it took before need that one.
        """
        held = [key for key, hand in self.hands.items() if hand == worker]
        for key in held:
            del self.hands[key]
        self.lost.update(held[-1:])  # the others waited for it
        return sorted(key for key, times in self.lost.items() if times >= ATTEMPTS and key not in self.there)

    def count(self) -> int:
        """How many records were written."""
        return self.n_made


def _key(path: Path) -> str:
    return path.with_suffix("").as_posix()


@dataclass(eq=False)
class _Leases:
    """The scheduler of a worker: the store gives it one record after the other.

    Attributes:
        store: the actor.
        scratch: the folder that stands for the store's on this machine.
        worker: the name that the store knows the worker by.
        is_share: see `Scheduler`; else all records are waited for.
    """

    store: Any
    scratch: Path
    worker: str
    is_share: bool
    left: list[str] = field(default_factory=list)

    def order(self, pieces: Sequence[Piece], *, needed: bool, together: int = 1) -> Iterator[int]:  # noqa: ARG002
        """What the store leases; then what is there or, where all are needed, all others once they are there."""
        import ray

        keys = [(self.relative(records.folder or Path()) / name).as_posix() for records, name in pieces]
        of_loop, seen = ray.put(keys), set()
        while True:
            index, more = self._call("take", of_loop, self.worker)
            if index is not None:
                seen.add(index)
                yield index
            elif more and (needed or not self.is_share):
                time.sleep(WAIT)
            else:
                break
        absent = set(self._call("absent", of_loop))
        yield from (index for index in range(len(pieces)) if index not in seen and index not in absent)
        self.left += [keys[index] for index in sorted(absent)]

    def fetch(self, path: Path) -> None:
        """Bring a record from the store, if it has it."""
        content = self._call("get", self.relative(path).as_posix())
        if content is not None:
            with written_whole(path) as draft:
                draft.write_bytes(content)

    def wrote(self, path: Path) -> None:
        """Send a record to the store."""
        self._call("put", self.relative(path).as_posix(), path.read_bytes())

    def forgot(self, folder: Path) -> None:
        """Delete the store's copy too."""
        self._call("delete", self.relative(folder).as_posix())

    @property
    def n_left(self) -> int:
        """How many records were left to others and are not there yet."""
        return len(self._call("absent", self.left))

    def relative(self, path: Path) -> Path:
        """The path below the scratch folder, which is that below the store's."""
        return path.relative_to(self.scratch)

    def _call(self, method: str, *given: Any) -> Any:
        """What a method of the store returns."""
        import ray

        return ray.get(getattr(self.store, method).remote(*given))


class Worker:
    """A process with models in memory that makes records of any of the runs."""

    def __init__(self, store: Any, name: str, n_threads: int) -> None:
        import torch

        from latentcomm.models import load_model

        torch.set_num_threads(n_threads)
        self.store, self.name = store, name
        self.load = cache(load_model)
        self.scratch = tempfile.TemporaryDirectory(prefix="latentcomm-")
        self.last: Prepared | None = None

    def ready(self) -> str:
        """Its name, once it can work."""
        return self.name

    def check(self, settings: Settings, folder: str) -> None:
        """Refuse a run that cannot start on this machine.

        Raises:
            ValueError: what `preflight` refuses.
        """
        self._prepared(settings, folder)

    def share(self, settings: Settings, folder: str) -> None:
        """Make the records of a run that the store leases."""
        self._prepared(settings, folder).share(self._leases(is_share=True))

    def finish(self, settings: Settings, folder: str) -> Result:
        """The result of a run, whose files the store has got; the records that are missing are made."""
        from latentcomm._core.records import scheduled_by

        leases = self._leases(is_share=False)
        with scheduled_by(leases):
            result = self._prepared(settings, folder).result()
        for path in result.files:
            leases.wrote(path)
        files = tuple(leases.relative(path) for path in result.files)
        shutil.rmtree(leases.scratch / folder, ignore_errors=True)
        return replace(result, found=None, extra=None, summary=_Printed.of(result), files=files)

    def close(self) -> None:
        """Remove the scratch folder."""
        self.scratch.cleanup()

    def _prepared(self, settings: Settings, folder: str) -> Prepared:
        self.last = prepare(settings, out=Path(self.scratch.name) / folder, load=self.load, like=self.last)
        return self.last.check()

    def _leases(self, *, is_share: bool) -> _Leases:
        return _Leases(self.store, Path(self.scratch.name), self.name, is_share)


@dataclass(frozen=True)
class _Printed:
    """The summary of a result as a worker printed it, since what it is made of stays there."""

    text: str

    @classmethod
    def of(cls, result: Result) -> "_Printed":
        """What the summary prints."""
        printed = console(SUMMARY_WIDTH)
        with printed.capture() as captured:
            result.summary(printed)
        return cls(captured.get())

    def __call__(self, console: Console) -> None:
        """Print it."""
        console.print(self.text, end="", markup=False, highlight=False)
