"""`latentcomm clean`: remove the work that runs have saved in a folder, and nothing else."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from latentcomm.experiments.settings import SAVED

__all__ = ["clean"]


def clean(arguments: Sequence[str]) -> None:
    """Remove the saved work of all runs in a folder, .latentcomm; results stay, and another run starts over.

    Raises:
        ValueError: not exactly one folder, or one without saved work.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: latentcomm clean OUT\n\n{(clean.__doc__ or '').partition('Raises:')[0].strip()}")
        return
    from latentcomm._core.files import readable

    if len(arguments) > 1:
        raise ValueError(f"clean takes one folder, the --out of a run, and was given {' '.join(arguments)}")
    saved = Path(arguments[0]).expanduser() / SAVED
    if saved.is_symlink() or not saved.is_dir():
        raise ValueError(f"{arguments[0]} holds no saved work (no folder {SAVED}); give the --out of a run")
    files = [path for path in saved.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    shutil.rmtree(saved)
    print(f"removed {saved}: {len(files)} files, {readable(size)}")
