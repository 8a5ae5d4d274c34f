"""The same settings give the same table in four ways: plain, in parts, one model at a time, and on a Ray cluster.

    python docs/same_table.py [--items 40] [--out FOLDER]

The sender is the built-in model, the receiver its first blocks, as a model of its own. The cluster has two nodes, both
on this machine, and a worker is killed once it has made the first records. All processes compute with one thread.
Needs `pip install 'latentcomm[ray]'`, 1 GB of disk and 3 GB of memory.
"""

import argparse
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import ray
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import latentcomm as lc
from latentcomm._core.files import digest
from latentcomm.models.builtin import BUILT_IN, fetch

BLOCKS = 12


def main() -> None:
    """Run four times and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--out", type=Path, help="where results stay; by default nowhere")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        settings = lc.CompareSettings(
            receiver=first_blocks(Path(scratch) / "first-blocks"), channels=("silent", "replace"), read_layer=10,
            write_layer=8, n_test=options.items, controls=("shuffled", "zero"),
        )  # fmt: skip
        digests = {
            shown("plain", lc.run(settings, out=out / "plain")),
            shown("3 parts", in_parts(settings, out / "parts")),
            shown("one at a time", lc.run(replace(settings, one_at_a_time=True), out=out / "one-at-a-time")),
            shown("Ray", on_two_nodes(settings, out / "ray")),
        }
    if len(digests) > 1:
        raise SystemExit("the tables differ")
    print("same table")


def first_blocks(folder: Path) -> str:
    """The first blocks of the built-in model, written to a folder."""
    whole = fetch(BUILT_IN["smollm2-135m-instruct"])
    logging.set_verbosity_error()  # the blocks that are left out would be listed
    logging.disable_progress_bar()
    AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=BLOCKS).save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return str(folder)


def in_parts(settings: lc.CompareSettings, out: Path) -> lc.Result:
    """The result of a run in three parts."""
    for part in ("3/3", "1/3", "2/3"):
        lc.run_part(settings, part, out=out)
    return lc.run(settings, out=out)


def on_two_nodes(settings: lc.CompareSettings, out: Path) -> lc.Result:
    """The result on a cluster of two nodes on this machine, where one worker is killed on the way."""
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    killer = threading.Thread(target=kill_one_worker, args=[out], daemon=True)
    killer.start()
    try:
        (result,) = lc.run_all([settings], out=out, engine="ray", progress=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    if killer.is_alive():
        raise SystemExit("the run ended before a worker was killed; give more --items")
    return result


def kill_one_worker(out: Path) -> None:
    """Kill one of the workers that make records, once there is one."""
    while not list(out.glob("*/.latentcomm/*/trials-*/*.json")):
        time.sleep(0.02)
    workers = psutil.Process().children(recursive=True)
    next(each for each in workers if "ray::Worker.share" in " ".join(each.cmdline())).send_signal(signal.SIGKILL)


def shown(way: str, result: lc.Result) -> str:
    """The digest of a table without its seconds, which is printed."""
    columns = [name for name in result.table if name != "seconds"]
    found = digest(result.table[columns].to_csv())
    print(f"{found[:16]}  {way}", flush=True)
    return found


if __name__ == "__main__":
    main()
