"""Ray: a cluster of two nodes on this machine gives the table of one process, whatever dies meanwhile."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from toys import countries_folder

import latentcomm as lc
from latentcomm.experiments._ray_worker import Store

pytest.importorskip("ray", reason="ray is not installed: pip install 'latentcomm[ray]'")
pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
SECONDS = 80.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[lc.CompareSettings]:
    """A comparison of two models, and one of a model with itself."""
    sender, receiver = (str(countries_folder(tmp_path_factory.mktemp(name), seed=ord(name))) for name in "ab")
    return [
        lc.CompareSettings(
            sender=sender, receiver=other, channels=("silent", "replace", "kv"), read_layer=1, write_layer=1, n_test=34,
            controls=("shuffled",),
        )
        for other in (receiver, "")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(runs: list[lc.CompareSettings]) -> list[pd.DataFrame]:
    return [table(each) for each in lc.run_all(runs)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine; the last test of this file removes one."""
    import ray
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    small["num_gpus"] = torch.cuda.device_count()
    found = Cluster(initialize_head=True, head_node_args=small)
    found.second = found.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


def table(result: lc.Result) -> pd.DataFrame:
    return result.table.drop(columns="seconds", errors="ignore")


def records(out: Path) -> list[Path]:
    return list(out.glob("*/.latentcomm/*/trials-*/*.json"))


def once_records_are_there(out: Path, *acts: Callable[[], object]) -> threading.Thread:
    """Acts one after the other, each once there are more records than at the last."""

    def watch() -> None:
        began, seen = time.monotonic(), 0
        for act in acts:
            while len(records(out)) <= seen and time.monotonic() - began < SECONDS:
                time.sleep(0.02)
            seen = len(records(out))
            act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def kill_one_worker() -> None:
    import psutil

    mine = psutil.Process().children(recursive=True)
    next(each for each in mine if "ray::Worker.share" in " ".join(each.cmdline())).send_signal(signal.SIGKILL)


def test_of_nested_leases_the_innermost_alone_is_lost(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for worker in ("a", "b", "c"):  # each dies with a trial whose message it had not made yet
        assert store.take(["run/trials"], worker) == (0, True) and store.take(["run/message"], worker) == (0, True)
        lost = store.release(worker)
        assert lost == (["run/message"] if worker == "c" else [])
    assert store.lost["run/trials"] == 0 and store.take(["run/trials"], "d") == (
        0,
        True,
    )  # it is taken back all the same


def test_an_address_without_a_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"there is no Ray cluster at '127\.0\.0\.1:1'"):
        lc.run_all([lc.CompareSettings()], out=tmp_path, engine="ray", address="127.0.0.1:1")


def test_without_ray_the_engine_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match=r"pip install 'latentcomm\[ray\]'"):
        lc.run_all([lc.CompareSettings()], out=tmp_path, engine="ray")


def test_the_engine_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="give it as out"):
        lc.run_all([lc.CompareSettings()], engine="ray")


def test_gpus_that_no_machine_has_are_refused_at_once(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(ValueError, match="a worker needs 99 GPUs and 1 CPUs on one machine, and the largest of the"):
        lc.run_all([lc.CompareSettings(device="cuda")], out=tmp_path, engine="ray", gpus_per_model=99)


DRIVER = """
import json
import sys
import latentcomm as lc
out, address, *runs = sys.argv[1:]
lc.run_all([lc.CompareSettings.from_dict(json.loads(run)) for run in runs], out=out, engine="ray", address=address)
"""


def test_a_run_that_is_refused_is_named(runs: list[lc.CompareSettings], cluster: Any, tmp_path: Path) -> None:
    wrong = replace(runs[0], read_layer=9)
    with pytest.raises(ValueError, match=r"^run 2 \(read_layer 9\): read_layer 9 is outside"):
        lc.run_all([runs[0], wrong], out=tmp_path, engine="ray", workers=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_worker_with_a_gpu_gives_the_table_of_the_cpu(
    runs: list[lc.CompareSettings], expected: list[pd.DataFrame], cluster: Any, tmp_path: Path
) -> None:
    settings = replace(runs[0], device="cuda")
    (found,) = lc.run_all([settings], out=tmp_path, engine="ray", workers=1, gpus_per_model=0.5)
    pd.testing.assert_frame_equal(table(found), expected[0], rtol=1e-2, atol=1e-3)


def test_a_killed_driver_resumes(
    runs: list[lc.CompareSettings], expected: list[pd.DataFrame], cluster: Any, tmp_path: Path
) -> None:
    given = [str(tmp_path), cluster.address, *(json.dumps(run.to_dict()) for run in runs)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *given], stderr=subprocess.DEVNULL)
    once_records_are_there(tmp_path, driver.kill).join()
    driver.wait()
    there = {path: path.stat().st_mtime_ns for path in records(tmp_path)}
    assert there
    results = lc.run_all(runs, out=tmp_path, engine="ray")
    assert all(table(result).equals(whole) for result, whole in zip(results, expected, strict=True))
    assert there == {path: path.stat().st_mtime_ns for path in there}


def test_four_ways_and_what_dies_on_the_way_give_one_table(
    runs: list[lc.CompareSettings],
    expected: list[pd.DataFrame],
    cluster: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for part in ("3/3", "1/3", "2/3"):
        assert lc.run_part(runs[0], part, out=tmp_path / "parts").n_made
    in_parts = lc.run(runs[0], out=tmp_path / "parts")
    in_turn = lc.run(replace(runs[0], one_at_a_time=True), out=tmp_path / "turns")
    assert table(in_parts).equals(expected[0]) and table(in_turn).equals(expected[0])

    there: list[int] = []
    out = tmp_path / "ray"

    def remove_node() -> None:
        cluster.remove_node(cluster.second)
        there.append(len(records(out)))

    acting = once_records_are_there(out, kill_one_worker, remove_node)
    results = lc.run_all(runs, out=out, engine="ray", progress=True)
    acting.join()
    assert "has died" in capsys.readouterr().err
    assert there[0] < len(records(out))  # the node went while the run was going
    assert all(table(result).equals(whole) for result, whole in zip(results, expected, strict=True))
    assert all(path.exists() and out in path.parents for result in results for path in result.files)
