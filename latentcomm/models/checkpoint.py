"""Where the files of a model are: a built-in name's folder, a directory, a .gguf file, or the hub's cache."""

import contextlib
import difflib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from latentcomm._core.files import first_line
from latentcomm.models import builtin

__all__ = ["Checkpoint", "check_hub", "locate", "read_by_transformers"]

HUB_TIMEOUT_SECONDS = 10.0
"""How long the hub may take to answer whether it has a model or a data set."""

What = Literal["model", "vision encoder", "data set"]


@dataclass(frozen=True)
class Checkpoint:
    """Where transformers finds a model.

    Attributes:
        folder: a directory, which a built-in model not yet downloaded does not have, or a hub id.
        gguf_file: the name of the .gguf file in it, if that is what holds the model.
    """

    folder: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """What transformers' `from_pretrained` takes besides the folder."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}

    @property
    def local(self) -> Path | None:
        """The directory on this machine: `folder`, or the snapshot of a hub id in the cache; None if neither is."""
        if Path(self.folder).is_dir():
            return Path(self.folder)
        import huggingface_hub

        try:
            found = huggingface_hub.try_to_load_from_cache(self.folder, "config.json")
        except huggingface_hub.errors.HFValidationError:  # a path: a built-in model that is not here yet
            return None
        return Path(found).parent if isinstance(found, str) else None


def locate(name_or_path: str | os.PathLike[str], what: What = "model") -> Checkpoint:
    """The checkpoint that a name stands for; nothing is downloaded, and the hub is queried for what is not here.

    A name that the hub knows is queried once a process.

    Raises:
        ValueError: a path at which there is nothing, a file of another kind, or a name that the hub does not know.
        RuntimeError: the hub cannot be reached.
    """
    name = os.fspath(name_or_path)
    if name in builtin.BUILT_IN:
        return Checkpoint(str(builtin.folder_of(builtin.BUILT_IN[name])))
    path = Path(name).expanduser()
    if path.is_dir():
        return Checkpoint(str(path))
    if path.is_file() and path.suffix == ".gguf":
        return Checkpoint(str(path.parent), path.name)
    if path.is_file():
        raise ValueError(f"{name} is a file but not a .gguf; give a .gguf file or a directory in transformers' format")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no file or directory {name}")
    if (checkpoint := Checkpoint(name)).local is None:
        check_hub(name, what)
    return checkpoint


@functools.cache  # of what the hub has; an error is raised anew each time
def check_hub(name: str, what: What = "model") -> None:
    """Query the hub for what is not on this machine, once a process for what it has; its own client tries a minute.

    Raises:
        ValueError: the hub has no such model (the nearest built-in one is named) or data set.
        RuntimeError: the hub cannot be reached.
    """
    import huggingface_hub

    hint = {"model": _built_in_hint(name), "vision encoder": "give a local directory", "data set": "give a file"}[what]
    hub = huggingface_hub.HfApi()
    query = hub.dataset_info if what == "data set" else hub.model_info
    try:
        query(name, timeout=HUB_TIMEOUT_SECONDS)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.HFValidationError) as error:
        raise ValueError(f"there is no {what} {name!r} here or on the hub; {hint}") from error
    except Exception as error:  # any error of its HTTP library: they differ between versions
        raise RuntimeError(
            f"there is no {what} {name!r} on this machine, and the model hub could not be reached "
            f"({first_line(error)}); {hint}"
        ) from error


def _built_in_hint(name: str) -> str:
    families = {known.split("-")[0]: known for known in builtin.BUILT_IN}
    if near := difflib.get_close_matches(name.lower(), [*builtin.BUILT_IN, *families], n=1, cutoff=0.5):
        return f"did you mean {families.get(near[0], near[0])}?"
    return f"give a built-in name ({', '.join(builtin.BUILT_IN)}), a local directory or a .gguf file"


@contextlib.contextmanager
def read_by_transformers(name: str, what: What = "model") -> Iterator[None]:
    """A block in which transformers reads a model's files without progress bars; what it cannot read is one sentence.

    Raises:
        ValueError: files that are missing, damaged, cut off or of a kind that it does not know.
    """
    try:
        with builtin.no_bars():
            yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a damaged file ends in any error: a word for a number, a size of 0, a cut archive
        reason = first_line(error)
        if reason.startswith("Validation error for field"):  # of transformers' configurations: the cause states it
            reason = f"its configuration is wrong: {first_line(error.__cause__ or error)}"
        raise ValueError(f"{name} holds no {what} that transformers can load: {reason}") from error
