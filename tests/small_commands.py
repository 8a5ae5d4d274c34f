"""Six small command lines, one of each experiment, that end in seconds, and ways in which a saved file is damaged."""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pairs import corpus
from seeing import reader_folder
from tiny import COUNTRIES
from toys import countries_folder
from worked_models import Size, worked_pair

from latentcomm._core.files import digest, read_tensors
from latentcomm.experiments.settings import SAVED

ONE_CELL = ("--read-layer", "1", "--write-layer", "1")


def small_commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """Each command with its arguments but for `--out`; their models and texts are written to the folder."""
    tiny = str(countries_folder(folder / "tiny-countries"))
    reader = str(reader_folder(folder / "tiny-reader"))
    size = Size(n_layers=2, d_model=32, n_heads=2, n_texts=64, steps=40, batch_size=16, learning_rate=1e-2)
    worked_pair(folder / "worked", large=size, small=replace(size, n_layers=1, d_model=16))
    texts = folder / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": text}) for text in corpus(24).documents), "utf-8")
    worked = ("--large", str(folder / "worked" / "large"), "--small", str(folder / "worked" / "small"))
    return {
        "sweep": ("sweep", "--sender", tiny, "--n-tune", "4", "--n-test", "8", "--fusion", "replace,mean"),
        "compare": (
            "compare", "--sender", tiny, "--n-tune", "4", "--n-test", "6", "--message-tokens", "2", *ONE_CELL,
            "--channels", "silent,text,replace",
        ),
        "diagnose": (
            "diagnose", tiny, "--corpus", str(texts), "--documents", "24", "--tokens", "20", "--prompts", "2",
            "--fusion", "replace,norm-matched",
        ),
        "train": (
            "train", "gated,concatenated", "--sender", tiny, "--steps", "4", "--batch-size", "2", *ONE_CELL,
            "--plan-tokens", "2", "--every", "1", "--save-every", "1e-9",
        ),
        "cascade": (
            "cascade", *worked, "--task", "kv-math-worked", "--n", "0,2,5", "--stop", "confident", "--n-items", "6",
        ),
        "crossmodal": (
            "crossmodal", "--receiver", reader, "--n-fitting", "20", "--n-test", "6", "--reply-tokens", "1",
            "--vision-steps", "2", "--train-steps", "3", "--channels", "silent,soft-prompt",
        ),
    }  # fmt: skip


def saved_files(out: Path) -> list[Path]:
    """What is saved in a folder of results for a run that resumes."""
    return sorted(path for path in (out / SAVED).rglob("*") if path.is_file() and ".damaged" not in path.name)


def published(out: Path) -> dict[str, str]:
    """A digest of every file of the results, without dates and times."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith(f"{SAVED}/"):
            found[name] = digest(_content(path))
    return found


def _content(path: Path) -> Any:
    """What two runs of one command have in common."""
    if path.suffix == ".safetensors":
        facts, tensors = read_tensors(path)
        manifest = json.loads(facts["manifest"])
        manifest["configuration"]["training"].pop("seconds")
        return [manifest, tensors]
    if path.name.endswith(".meta.json"):
        meta = json.loads(path.read_text("utf-8"))
        meta.pop("not_compared")
        return meta
    if path.suffix == ".csv":
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        return [{column: value for column, value in row.items() if "seconds" not in column} for row in rows]
    return path.read_bytes().hex()


def cut(path: Path) -> None:
    """Half of the file is gone."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    """One bit in the middle of what the file holds is another."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(bytes(content))


def emptied(path: Path) -> None:
    """The file has no bytes."""
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    """A whole file of another program has the name."""
    if path.suffix == ".safetensors":
        import torch
        from safetensors.torch import save_file

        save_file({"weights": torch.ones(2)}, path)
    else:
        path.write_text('{"name": "another"}', "utf-8")


def a_folder(path: Path) -> None:
    """A folder has the name."""
    path.unlink()
    path.mkdir()
    (path / "note.txt").write_text(COUNTRIES[0], "utf-8")


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "cut to half": cut,
    "flipped bit": flipped,
    "empty": emptied,
    "another program's file": foreign,
    "a folder of that name": a_folder,
}
