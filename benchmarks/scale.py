"""Two processes with a part of a run each against one process with all of it; and many records, listed and joined.

    python benchmarks/scale.py [--items 64] [--repeats 3] [--records 10000] [--out benchmarks/scale.json]

`replace` and `kv` on the built-in model, one thread a process. Each process loads the model first; the clock runs from
when all of them are ready until the result is there: of the parts, until the run that follows them in the first process
has read all records. One and two processes alternate. Memory is the proportional set size, in which a page that two
processes share counts half in each.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm._core.records import Records, missing
from latentcomm.experiments.join import join_records
from latentcomm.reporting.publish import machine

SETTINGS = {"channels": ("replace", "kv"), "read_layer": 20, "write_layer": 18}


def work(part: str, n_items: int, out: str, ready: Any, done: Any, results: Any) -> None:
    """One process: load, wait for the others, run its part, and, in the first, the rest."""
    torch.set_num_threads(1)
    model, settings = lc.load_model(lc.CompareSettings().sender), lc.CompareSettings(n_test=n_items, **SETTINGS)
    ready.wait()
    began = time.perf_counter()
    if part != "1/1":
        lc.run_part(settings, part, model, out=out)
        done.wait()
    if part.startswith("1/"):
        table = lc.run(settings, model, out=out).table.drop(columns="seconds", errors="ignore")
        results.put((time.perf_counter() - began, table))
    results.put(_proportional())
    done.wait()  # so that pages are shared until all have counted


def _proportional() -> float | None:
    """MB of this process, shared pages divided by how many processes have them; None off Linux."""
    path = Path("/proc/self/smaps_rollup")
    if not path.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in path.read_text().splitlines() if line.startswith("Pss:"))


def timed(n_workers: int, n_items: int) -> tuple[float, list[float | None], pd.DataFrame]:
    """Seconds, the memory of each process, and the table."""
    context = multiprocessing.get_context("spawn")
    ready, done, results = context.Barrier(n_workers), context.Barrier(n_workers), context.Queue()
    with tempfile.TemporaryDirectory() as out:
        processes = [
            context.Process(target=work, args=(f"{number}/{n_workers}", n_items, out, ready, done, results))
            for number in range(1, n_workers + 1)
        ]
        for process in processes:
            process.start()
        found = [results.get() for _ in range(n_workers + 1)]
        for process in processes:
            process.join()
    (seconds, table) = next(each for each in found if isinstance(each, tuple))
    return seconds, [each for each in found if not isinstance(each, tuple)], table


def many_records(n: int) -> dict[str, float]:
    """Seconds to list n records, and to join the half of them that another folder has."""
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / name for name in ("all", "other")]
        pieces = []
        for number in range(n):
            records = Records(folders[number % 2] / ".latentcomm" / "run" / f"trials-{number // 100:016x}")
            records.folder.mkdir(parents=True, exist_ok=True)
            (records.folder / f"{number:05d}.json").write_text('{"value": 1}')
            pieces.append((Records(folders[0] / records.folder.relative_to(folders[number % 2])), f"{number:05d}"))
        began = time.perf_counter()
        n_new, _ = join_records(folders[0], [folders[1]])
        joined = time.perf_counter()
        absent = missing(pieces)
        listed = time.perf_counter()
    if n_new != n // 2 or absent:
        raise RuntimeError(f"{n_new} of {n // 2} records came, and {len(absent)} are missing")
    return {"records": n, "seconds_to_join": round(joined - began, 3), "seconds_to_list": round(listed - joined, 3)}


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    records = many_records(options.records)
    print(records, flush=True)
    rows = []
    for _ in range(options.repeats):
        (one, alone, table), (two, both, other) = timed(1, options.items), timed(2, options.items)
        if not table.equals(other):
            raise RuntimeError("two processes gave another table than one")
        rows.append({"seconds_one": round(one, 2), "seconds_two": round(two, 2), "ratio": round(one / two, 3)})
        rows[-1] |= {"mb_one": round(sum(alone)), "mb_two": round(sum(both))} if None not in (*alone, *both) else {}
        print(rows[-1], flush=True)
    record = {
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in SETTINGS.items()},
        "items": options.items,
        "ratio": round(statistics.median(row["ratio"] for row in rows), 3),
        "runs": rows,
        "many_records": records,
        "machine": machine(),
    }
    write_json(options.out, record)


if __name__ == "__main__":
    main()
