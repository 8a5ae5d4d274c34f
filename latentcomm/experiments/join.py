"""Bring the records together that parts of one run wrote to several folders."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from latentcomm._core.files import expanded, write_sealed, written_whole
from latentcomm.experiments.folder import Claim, claims_in
from latentcomm.experiments.settings import SAVED

__all__ = ["join_records"]

RECORD_ENDINGS = (".json", ".safetensors")


def join_records(out: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]]) -> tuple[int, int]:
    """Copy the records of other folders to `out` where it lacks them: how many came, and how many were there already.

    Nothing is copied unless all folders are of runs with the same settings. A record that is damaged is found when it
    is read, and made again.

    Args:
        out: the folder of a run, which need not exist.
        folders: the folders of parts of the same run.

    Raises:
        ValueError: no folder, one that holds no saved work, or one whose run differs in a setting.
        RuntimeError: `out` cannot be written.
    """
    target = expanded(out)
    sources = [expanded(folder) for folder in folders]
    if not sources:
        raise ValueError(f"no folder is given to join to {target}; give those of the other parts")
    claims: dict[str, Claim] = {claim.name: claim for claim in claims_in(target)}
    for source in sources:
        if not (source / SAVED).is_dir():
            raise ValueError(f"{source} holds no saved work (no folder {SAVED}); give the folder of a part")
        for claim in claims_in(source):
            first = claims.setdefault(claim.name, claim)
            if differing := first.differences({**claim.record, "folders": {}}):  # paths differ between machines
                raise ValueError(
                    f"{source} is of another run than {first.out}: {claim.name!r} differs in {differing[0]}"
                )
    for name, claim in claims.items():
        path = target / SAVED / f"{name}.json"
        if not path.exists():
            write_sealed(path, {**claim.record, "finished": False})
    there = {path.relative_to(target / SAVED) for path in _records(target / SAVED)}
    n_new = n_there = 0
    for source in sources:
        for path in _records(source / SAVED):
            record = path.relative_to(source / SAVED)
            if record in there:
                n_there += 1
                continue
            _bring(path, target / SAVED / record)
            there.add(record)
            n_new += 1
    return n_new, n_there


def _bring(path: Path, to: Path) -> None:
    """A file under another name too, on one file system without a copy: records are replaced and never changed."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(path)
    except OSError:
        with written_whole(to) as whole:
            shutil.copyfile(path, whole)


def _records(folder: Path) -> Iterator[Path]:
    """The records below a folder, in a fixed order; those of whose runs its files are lie in it itself."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in RECORD_ENDINGS and path.parent != folder and path.is_file():
            yield path
