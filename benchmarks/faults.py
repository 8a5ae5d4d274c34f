"""Faults that a run is put through, and whether the same command then ends with the same bits.

    python benchmarks/faults.py [--only sweep,compare] [--faults "kill -9,Ctrl-C"] [--out FILE]

Each of the six commands runs on tiny models (those of the tests) undisturbed, and then once a fault: it is killed,
interrupted, refused or finds its saved files damaged, and the same command is run again. Every run is a process of its
own, forked from one that has imported everything. A process is stopped at a given number of the files that it saves,
when the file is written and has not yet taken its name, so that every run of this script does the same. Wrong command
lines follow, each with the sentence that refuses it. Writes benchmarks/faults.json, which docs/reliability.md shows.
"""

import argparse
import contextlib
import errno
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "analyses")]
os.environ["HF_HUB_OFFLINE"] = "1"

# ruff: noqa: E402
import torch
from results_tables import faults_table, refusals_table
from safetensors.torch import load_file, save_file
from small_commands import DAMAGES, published, saved_files, small_commands

from latentcomm._core.files import write_json, write_text
from latentcomm.cli import app
from latentcomm.experiments._prepared import EXPERIMENTS
from latentcomm.experiments.settings import SAVED
from latentcomm.reporting.publish import machine

PAGE = ROOT / "docs" / "reliability.md"
MOST_SECONDS = 120
"""A run that has not ended by then hangs."""
SMALL_DISK, DISK = "8m", "256m"
IMPORTED = (
    "encodings.utf_8_sig",
    "transformer_lens",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
)
CLAIM = re.compile(rf"{re.escape(SAVED)}/[\w.-]+\.json")
"""The file that says whose the results are: no piece of work."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (minus the signal that ended it), its standard error, what it saved.

    Attributes:
        writes: the saved files that it wrote, in order, the one at which it was stopped included.
    """

    status: int
    error: str
    writes: tuple[str, ...]

    @property
    def says(self) -> str:
        """What it was refused or stopped with, and of nothing else the last line."""
        at = self.error.rfind("latentcomm: ")
        if at >= 0:
            return " ".join(self.error[at:].split())
        return " ".join(re.sub("[╭╮╰╯─│]", " ", self.error).split())  # a usage error comes in a box


@dataclass(frozen=True)
class Bench:
    """One command, a folder for it, and its undisturbed run."""

    arguments: tuple[str, ...]
    folder: Path
    whole: Path
    undisturbed: Ended
    wanted: Mapping[str, str]

    @property
    def out(self) -> Path:
        """Where the disturbed runs write."""
        return self.folder / "out"

    @property
    def middle(self) -> int:
        """The number of the piece of work in the middle of the undisturbed run."""
        return max(1, len(self.undisturbed.writes) // 2)

    def run(self, *more: str, at: int = 0, then: Callable[[], object] | None = None, **options: Any) -> Ended:
        """The command with `--out`; at its piece of work number `at`, it does `then`."""
        return finished(start((*self.arguments, "--out", str(self.out), *more), self.out, at=at, then=then, **options))


@dataclass(frozen=True)
class Started:
    """A process that runs a command."""

    process: int
    error: Path
    writes: Path


def start(
    arguments: tuple[str, ...],
    out: Path,
    *,
    at: int = 0,
    then: Callable[[], object] | None = None,
    before: Callable[[], object] | None = None,
) -> Started:
    """Run a command in a process of its own; `before` is done first, and `then` at its write number `at`."""
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix="process-"))
    folder.chmod(0o777)
    for name in ("stdout", "stderr", "writes"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    started = Started(os.fork(), folder / "stderr", folder / "writes")
    if not started.process:
        _in_the_child(arguments, out, started.writes, at, then, before)
    return started


def _in_the_child(
    arguments: tuple[str, ...],
    out: Path,
    writes: Path,
    at: int,
    then: Callable[[], object] | None,
    before: Callable[[], object] | None,
) -> NoReturn:
    status = 1
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(writes.with_name(name), os.O_WRONLY), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False, encoding="utf-8") for number in (1, 2))  # noqa: SIM115
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _watch(out, writes, at, then)
        if before is not None:
            before()
        app(list(arguments))
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 (whatever it is, it is shown)
        traceback.print_exc()
        status = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(out: Path, writes: Path, at: int, then: Callable[[], object] | None) -> None:
    """Note every saved file when it takes its name, and do something before the one of a given number does."""
    true, log = os.replace, writes.open("a", encoding="utf-8")
    seen = 0

    def replacing(source: Any, target: Any, **options: Any) -> None:
        nonlocal seen
        name = os.path.relpath(target, out)
        if name.startswith(SAVED) and not name.endswith(".damaged") and not CLAIM.fullmatch(name):
            log.write(f"{name}\n")
            log.flush()
            seen += 1
            if seen == at and then is not None:
                then()
        true(source, target, **options)

    os.replace = replacing


def finished(started: Started) -> Ended:
    """Wait for a process."""
    until = time.monotonic() + MOST_SECONDS
    while (ended := os.waitpid(started.process, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(started.process, signal.SIGKILL)
        time.sleep(0.01)
    lines = tuple(started.writes.read_text("utf-8").splitlines())
    return Ended(os.waitstatus_to_exitcode(ended[1]), started.error.read_text("utf-8"), lines)


def killed() -> None:
    """As by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> None:
    """As by Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def kill_9(bench: Bench) -> list[Ended]:
    """Killed at the piece in the middle."""
    return [bench.run(at=bench.middle, then=killed), bench.run()]


def kill_9_twice(bench: Bench) -> list[Ended]:
    """Killed at the piece in the middle, and the next run at the first piece that it makes."""
    return [bench.run(at=bench.middle, then=killed), bench.run(at=1, then=killed), bench.run()]


def ctrl_c(bench: Bench) -> list[Ended]:
    """Interrupted at the piece in the middle."""
    return [bench.run(at=bench.middle, then=interrupted), bench.run()]


def disk_full(bench: Bench) -> list[Ended]:
    """On a disk that another program fills once half is saved; without the right to mount one, a write fails so."""
    bench.out.mkdir()
    if os.system(f"mount -t tmpfs -o size={DISK} tmpfs {bench.out} 2>/dev/null"):
        return [bench.run(at=bench.middle, then=_no_space), bench.run()]
    filler = bench.out / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    try:
        full = bench.run(at=bench.middle, then=fill)
        filler.unlink()
        ended = [full, bench.run()]
        shutil.copytree(bench.out, bench.folder / "copy")
    finally:
        os.system(f"umount {bench.out}")
    bench.out.rmdir()
    (bench.folder / "copy").rename(bench.out)
    return ended


def small_disk(bench: Bench) -> list[Ended]:
    """A disk of 8 MB: refused before the first weight is read, or enough."""
    bench.out.mkdir()
    if os.system(f"mount -t tmpfs -o size={SMALL_DISK} tmpfs {bench.out} 2>/dev/null"):
        raise RuntimeError("the fault of a small disk needs the right to mount one; leave it out with --faults")
    try:
        first = bench.run()
    finally:
        os.system(f"umount {bench.out}")
    return [first, bench.run()]


def _no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(bench: Bench) -> list[Ended]:
    """The folder may not be written to once half is saved, and then it may again."""
    first = bench.run(at=bench.middle, then=killed)
    is_mounted = not os.system(f"mount --bind -o ro {bench.out} {bench.out} 2>/dev/null")  # root may write otherwise
    if not is_mounted:
        bench.out.chmod(0o555)
    try:
        refused = bench.run()
    finally:
        if is_mounted:
            os.system(f"umount {bench.out}")
        else:
            bench.out.chmod(0o755)
    return [first, refused, bench.run()]


def two_equal(bench: Bench) -> list[Ended]:
    """Two equal runs at once."""
    both = [start((*bench.arguments, "--out", str(bench.out)), bench.out) for _ in range(2)]
    return [finished(each) for each in both]


def two_different_at_once(bench: Bench) -> list[Ended]:
    """Of two runs with different seeds at once one is refused, whichever it is; the command then overwrites it."""
    lines = ((*bench.arguments, *more, "--out", str(bench.out)) for more in ((), ("--seed", "1")))
    both = [start(line, bench.out) for line in lines]
    return [*sorted(map(finished, both), key=lambda ended: ended.status), bench.run("--overwrite")]


def two_different(bench: Bench) -> list[Ended]:
    """A run with another seed is refused where one was killed, and where it has finished."""
    return [
        bench.run(at=bench.middle, then=killed), bench.run("--seed", "1"), bench.run(), bench.run("--seed", "1"),
    ]  # fmt: skip


def clock_set_back(bench: Bench) -> list[Ended]:
    """Killed at the piece in the middle; the next run's clock is a month earlier, and every file is of tomorrow."""
    first = bench.run(at=bench.middle, then=killed)
    for path in bench.out.rglob("*"):
        os.utime(path, (time.time() + 86_400,) * 2)
    return [first, bench.run(before=_a_month_ago)]


def _a_month_ago() -> None:
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() - 30 * 86_400
    time.time_ns = lambda: true_ns() - 30 * 86_400 * 10**9


def damaged(name: str) -> Callable[[Bench], list[Ended]]:
    """Every saved file of a finished run is damaged in one way."""

    def fault(bench: Bench) -> list[Ended]:
        shutil.copytree(bench.whole, bench.out)
        for path in saved_files(bench.out):
            DAMAGES[name](path)
        return [bench.run()]

    return fault


@dataclass(frozen=True)
class Fault:
    """A fault, and how its runs must end.

    Attributes:
        name: as the table shows it.
        runs: makes the runs.
        statuses: the exit statuses that they must have.
        says: what standard error of the run before the last one (of a damage, of the last) must say.
        most_lost: how many pieces may be lost; None where a piece is lost for each that was damaged.
    """

    name: str
    runs: Callable[[Bench], list[Ended]]
    statuses: tuple[int, ...]
    says: str = ""
    most_lost: int | None = 1


FAULTS = (
    Fault("kill -9", kill_9, (-9, 0)),
    Fault("kill -9, twice in a row", kill_9_twice, (-9, -9, 0)),
    Fault("Ctrl-C", ctrl_c, (130, 0), "the same command resumes it"),
    Fault("disk full", disk_full, (1, 0), "could not be written"),
    Fault("disk of 8 MB", small_disk, (1, 0), "are free there"),
    Fault("read-only folder", read_only, (-9, 1, 0), "may not be written to"),
    Fault("two equal runs at once", two_equal, (0, 0), most_lost=None),
    Fault("two different runs at once", two_different_at_once, (0, 1, 0), "--seed", None),
    Fault("two different runs in one folder", two_different, (-9, 1, 0, 1), "--seed"),
    Fault("clock set back", clock_set_back, (-9, 0)),
    *(Fault(f"saved files: {name}", damaged(name), (0,), "damaged", None) for name in DAMAGES),
)


WRONG = {
    "a name": (
        "compare --sender MODEL --channels silent,replce",
        "sweep --sender MODEL --task contries",
        "sweep --sender MODEL --fusion sume",
        "sweep --sender MODEL --receivr MODEL",
        "sweep --sender MODEL --dtype float17",
    ),
    "a number": (
        "compare --sender MODEL --n-test 100000",
        "compare --sender MODEL --read-layer=-1 --write-layer 1",
        "compare --sender MODEL --read-layer 99 --write-layer 1",
        "diagnose MODEL --corpus TEXTS --documents 1000000",
        "train gated --sender MODEL --batch-size 100000",
        "sweep --sender MODEL --seed=-1",
    ),
    "a list": (
        "compare --sender MODEL --channels=",
        "compare --sender MODEL --channels replace,replace",
        "cascade --sender MODEL --task kv-math-worked --stop=",
    ),
    "options that do not fit together": (
        "compare --sender MODEL --read-layer 1",
        "compare --sender MODEL --shots rows.jsonl",
        "sweep --sender MODEL --task kv-math-worked",
    ),
    "a file": (
        "sweep --config nowhere.toml",
        "sweep --config TEXTS",
        "diagnose MODEL --corpus nowhere.txt",
        "compare --sender MODEL --channels silent,gated --weights EMPTY",
        "crossmodal --receiver MODEL --vision MODEL --data nowhere",
    ),
    "a model": (
        "sweep --sender nobody/nothing",
        "sweep --sender EMPTY",
        "sweep --sender CUT",
        "sweep --sender LACKING",
        "sweep --sender NAN",
    ),
    "a folder": ("sweep --sender MODEL --out TEXTS", "sweep --sender MODEL --name a/b"),
}
"""Wrong command lines by the kind of what is wrong in them."""


def refused(kind: str, line: str, places: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """The row of a wrong command line: how it ended, and what it said."""
    arguments = tuple(str(places.get(word, word)) for word in line.split())
    out = folder / "wrong"
    more = () if "--out" in arguments else ("--out", str(out))
    ended = finished(start((*arguments, *more), out))
    says = ended.says if ended.status else ""
    for word, place in places.items():
        says = says.replace(str(place), word).replace(place.name, word)
    is_refused = ended.status in (1, 2) and "Traceback" not in ended.error and not out.exists()
    return {"kind": kind, "command": line, "status": ended.status, "says": says, "refused": is_refused}


def wrong_places(folder: Path) -> dict[str, Path]:
    """What the wrong command lines name: a model, and damaged copies of it."""
    model = folder / "tiny-countries"
    places = {"MODEL": model, "TEXTS": folder / "texts.jsonl", "EMPTY": folder / "empty-folder"}
    places["EMPTY"].mkdir()
    for word in ("CUT", "LACKING", "NAN"):
        places[word] = shutil.copytree(model, folder / f"{word.lower()}-weights")
    DAMAGES["cut to half"](places["CUT"] / "model.safetensors")
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in sorted(tensors) if "layers.1." in name)
    lacking = {key: tensor for key, tensor in tensors.items() if key != name}
    save_file(lacking, places["LACKING"] / "model.safetensors", metadata={"format": "pt"})
    not_finite = tensors | {name: torch.full_like(tensors[name], torch.nan)}
    save_file(not_finite, places["NAN"] / "model.safetensors", metadata={"format": "pt"})
    return places


def tried(fault: Fault, bench: Bench) -> dict[str, Any]:
    """The row of a fault: how the runs ended, how many pieces were lost, and whether the bits are the same."""
    ended = fault.runs(bench)
    found = published(bench.out)
    differing = sorted(name for name in found.keys() | bench.wanted.keys() if found.get(name) != bench.wanted.get(name))
    is_damage = fault.name.startswith("saved files")
    usual, made = (
        Counter(() if is_damage else bench.undisturbed.writes),
        Counter(name for each in ended for name in each.writes),
    )
    lost = [name for name in made if made[name] > usual[name]]
    errors, statuses = [each.error for each in ended], [each.status for each in ended]
    wrong = [
        *([f"exit statuses {statuses}"] if tuple(statuses) != fault.statuses else []),
        *(["a traceback"] if any("Traceback" in error for error in errors) else []),
        *([f"nothing says {fault.says!r}"] if fault.says and not any(fault.says in error for error in errors) else []),
        *([f"other bits: {', '.join(differing)}"] if differing else []),
        *([f"{len(lost)} pieces lost"] if fault.most_lost is not None and len(lost) > fault.most_lost else []),
        *([f"not set aside: {name}" for name in _not_aside(bench)] if is_damage else []),
        *([f"left: {name}" for name in _drafts(bench.out)]),
    ]  # fmt: skip
    shown = [each.says for each in ended if each.status not in (0, -9)]
    return {
        "fault": fault.name,
        "statuses": statuses,
        "says": _plain(shown[0], bench) if shown else "",
        "pieces": len(set(bench.undisturbed.writes)),
        "lost": None if fault.most_lost is None and fault.name.endswith("at once") else len(lost),
        "survived": not wrong,
        "wrong": [_plain(each, bench) for each in wrong],
    }


def _drafts(out: Path) -> list[str]:
    """Files that are none of the results, beside what is saved; a killed run leaves the one that it wrote."""
    return [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != SAVED]


def _not_aside(bench: Bench) -> list[str]:
    """Damaged files that are not beside what was made again."""
    names = [path.relative_to(bench.whole) for path in saved_files(bench.whole)]
    return [str(name) for name in names if not bench.out.joinpath(f"{name}.damaged").exists()]


def _plain(text: str, bench: Bench) -> str:
    return text.replace(str(bench.out), "OUT")


def main() -> None:
    """Try every fault on every command, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help="the commands")
    parser.add_argument("--quick", action="store_true", help="no fault, only the wrong command lines")
    parser.add_argument("--faults", default="", help="the faults whose name begins with one of these")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in (*IMPORTED, *(each.run_by.partition(":")[0] for each in EXPERIMENTS.values())):
        importlib.import_module(module)
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        commands = _prepared(folder)
        places = wrong_places(folder)
        wrong = [refused(kind, line, places, folder) for kind, lines in WRONG.items() for line in lines]
        for row in wrong:
            print(row, flush=True)
        table = partial(_written, options.out, wrong=wrong)
        table([], seconds=0)
        for command in () if options.quick else options.only.split(","):
            whole = folder / command / "whole"
            whole.parent.mkdir()
            (whole.parent).chmod(0o777)
            undisturbed = finished(start((*commands[command], "--out", str(whole)), whole))
            if undisturbed.status != 0:
                raise RuntimeError(f"{command} fails undisturbed: {undisturbed.error}")
            for number, fault in enumerate(FAULTS):
                if not any(fault.name.startswith(each) for each in options.faults.split(",")):
                    continue
                place = whole.parent / f"fault-{number}"
                place.mkdir()
                place.chmod(0o777)
                bench = Bench(commands[command], place, whole, undisturbed, published(whole))
                row = {"command": command, **tried(fault, bench)}
                print(f"{time.monotonic() - began:4.0f} s  {row}", flush=True)
                rows.append(row)
                shutil.rmtree(place)
            table(rows, seconds=round(time.monotonic() - began))
    _write_page()
    failed = [f"{row['command']}, {row['fault']}: {'; '.join(row['wrong'])}" for row in rows if not row["survived"]]
    failed += [f"{row['command']} is not refused: {row['says']}" for row in wrong if not row["refused"]]
    print(f"{len(rows) + len(wrong) - len(failed)} of {len(rows) + len(wrong)} survived or refused", *failed, sep="\n")
    sys.exit(bool(failed))


def _written(
    path: Path, rows: Sequence[Mapping[str, Any]], *, wrong: Sequence[Mapping[str, Any]], seconds: int
) -> None:
    """Write the table, with the rows of an earlier run for what this one did not try."""
    there = json.loads(path.read_text("utf-8")) if path.exists() else {"faults": []}
    known = {(row["command"], row["fault"]): row for row in (*there["faults"], *rows)}
    order = [(command, fault.name) for fault in FAULTS for command in EXPERIMENTS]
    faults = [known[key] for key in order if key in known]
    write_json(path, {"faults": faults, "wrong": wrong, "machine": machine(), "seconds": seconds})


def _write_page() -> None:
    """Put the tables where the page marks their places."""
    text = PAGE.read_text("utf-8")
    for mark, lines in (("faults", faults_table()), ("wrong", refusals_table())):
        start, _, rest = text.partition(f"<!-- {mark} -->\n")
        after = rest.partition("<!-- end -->\n")[2]
        text = "".join([start, f"<!-- {mark} -->\n\n", *(f"{line}\n" for line in lines), "\n<!-- end -->\n", after])
    write_text(PAGE, text)


def _prepared(folder: Path) -> dict[str, tuple[str, ...]]:
    """The commands; their models are trained in a process of their own, so that no thread of it is forked later."""
    process = os.fork()
    if not process:
        (folder / "commands.json").write_text(json.dumps(small_commands(folder)), "utf-8")
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("the models could not be made")
    return {name: tuple(each) for name, each in json.loads((folder / "commands.json").read_text("utf-8")).items()}


if __name__ == "__main__":
    main()
