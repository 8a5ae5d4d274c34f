"""Whole commands of this checkout against the same commands of an earlier commit, alternating in one run.

    python benchmarks/overhead.py [--base COMMIT] [--repeats 3] [--only sweep,compare] [--out benchmarks/overhead.json]

The earlier commit is checked out in a worktree that is removed at the end. Every command runs as a process of its own
on the built-in model with 16 items, first one checkout, then the other; each run starts with an empty folder. Reported:
the median seconds of both, and the median of the ratios of the runs that followed one another, with their range.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from latentcomm._core.files import write_json
from latentcomm.reporting.publish import machine

HERE = Path(__file__).resolve().parent.parent
BASE = "7951f3c"
"""The last commit before the settings classes and the records."""
CELL = ("--read-layer", "20", "--write-layer", "18")
COMMANDS = {
    "sweep": ("sweep", "--n-tune", "8", "--n-test", "16", "--fusion", "replace"),
    "compare": ("compare", "--channels", "silent,replace,kv,text", "--n-test", "16", *CELL),
    "diagnose": ("diagnose", "--documents", "24", "--tokens", "64", "--prompts", "4", "--layers", "4"),
    "cascade": (
        *("cascade", "--large", "smollm2-135m-instruct", "--task", "kv-math-worked", "--n", "0,4,8"),
        *("--n-items", "16", "--reply-tokens", "16", "--controls", "zero"),
    ),
}
"""The arguments of each, which both checkouts understand."""


def seconds(checkout: Path, arguments: tuple[str, ...]) -> float:
    """Wall seconds of one command in an empty folder.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "latentcomm", *arguments, "--out", folder],
            env=os.environ | {"PYTHONPATH": str(checkout)}, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed in {checkout.name}: {done.stderr[-500:]}")
    return took


def measured(base: Path, name: str, repeats: int) -> dict[str, object]:
    """Both checkouts, alternating."""
    before, after = [], []
    for _ in range(repeats):
        before.append(seconds(base, COMMANDS[name]))
        after.append(seconds(HERE, COMMANDS[name]))
    ratios = [new / old for new, old in zip(after, before, strict=True)]
    row = {
        "arguments": " ".join(COMMANDS[name]),
        "seconds_before": round(statistics.median(before), 2),
        "seconds_after": round(statistics.median(after), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }
    print(name, row, flush=True)
    return row


def main() -> None:
    """Measure the commands and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(COMMANDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "--detach", "-f", base, options.base], check=True)
        try:
            rows = {name: measured(base, name, options.repeats) for name in options.only.split(",")}
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", base], check=True)
    record = {"base": options.base, "repeats": options.repeats, "commands": rows, "machine": machine()}
    write_json(options.out, record)


if __name__ == "__main__":
    main()
