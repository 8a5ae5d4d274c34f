"""Runs on a Ray cluster: the driver starts one store and workers (`_ray_worker`), and gives runs to the workers."""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentcomm._core.progress import duration, say
from latentcomm.experiments._ray_worker import ATTEMPTS, Store, Worker
from latentcomm.experiments.folder import Claim, refuse_unwritable
from latentcomm.experiments.grid import run_names
from latentcomm.experiments.job import Job, Result
from latentcomm.experiments.settings import Settings

__all__ = ["run_on_ray"]

STARTING = 120.0
"""Seconds without any worker after which a run is given up."""
ANSWERING = 5.0
"""Seconds in which a cluster answers at its address."""
STORE_BYTES = 512 * 2**20
"""Of Ray's shared memory on a machine on which it is started here: records pass through it one by one."""


@dataclass(eq=False)
class _Run:
    """A run of the driver's: where its records are shared out, and by whom.

    Attributes:
        name: what it is called in errors; "" where it is the only one.
        is_shared: whether there may be records that no worker has taken.
        claims: of the files that it writes.
        at: the workers that are at it.
        held: what the claims hold until it has ended.
    """

    settings: Settings
    folder: str
    name: str
    is_shared: bool
    claims: Sequence[Claim]
    at: set[str] = field(default_factory=set)
    result: Result | None = None
    held: contextlib.ExitStack | None = None

    def hold(self) -> None:
        """Claim the files that it writes, once."""
        if self.held is None:
            self.held = contextlib.ExitStack()
            for claim in self.claims:
                self.held.enter_context(claim.held())

    def refusal(self, sentence: object) -> ValueError:
        """The error of what it refuses, with its name."""
        return ValueError(f"{self.name}: {sentence}" if self.name else str(sentence))

    def finish(self, result: Result) -> None:
        """Note its result, and that its files are written."""
        self.result = result
        for claim in self.claims:
            claim.finish(result.files)
        if self.held is not None:
            self.held.close()


def run_on_ray(
    runs: Mapping[str, Settings],
    out: Path,
    *,
    address: str | None = None,
    gpus_per_model: float | int = 1,
    cpus_per_worker: int = 1,
    workers: int | None = None,
    progress: bool = False,
) -> list[Result]:
    """The results of several runs by workers of a Ray cluster; see `run_all`.

    Args:
        runs: settings by the folder below `out` that each writes to.
        out: the folder, of this machine alone.
        address: of a cluster; "auto" for the one that runs on this machine, None starts one here.
        gpus_per_model: of runs whose device is cuda or auto.
        cpus_per_worker: processor threads of each worker.
        workers: how many; as many as the cluster has room for, without it.
        progress: whether to say what has ended.

    Raises:
        ValueError: what a preflight refuses, or a demand that no machine of the cluster meets.
        RuntimeError: Ray is not installed, there is no cluster at the address, a record was lost with three workers,
            or no worker is left.
    """
    ray = _imported()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        n_gpus = max(_gpus(settings, gpus_per_model) for settings in runs.values())
        room = _room(ray, n_gpus, cpus_per_worker)
        driver = _Driver(ray, runs, out, n_gpus, cpus_per_worker, min(workers or room, room), progress=progress)
        try:
            return driver.results()
        finally:
            driver.stop()
    except ray.exceptions.RayTaskError as error:  # carries the trace of the worker in its message
        raise error.cause from None
    finally:
        if started:
            ray.shutdown()


class _Driver:
    """Gives runs to workers until each has its result."""

    def __init__(
        self,
        ray: Any,
        runs: Mapping[str, Settings],
        out: Path,
        n_gpus: float | int,
        n_cpus: int,
        n: int,
        *,
        progress: bool,
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        refuse_unwritable(out)
        out.mkdir(parents=True, exist_ok=True)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.ray, self.out, self.progress = ray, out, progress
        names = run_names([*runs.values()]) if len(runs) > 1 else [""]
        self.runs = [
            _Run(settings, folder, name, settings.in_parts, Job(out=out / folder).claims(settings, settings.command))
            for (folder, settings), name in zip(runs.items(), names, strict=True)
        ]
        for run in self.runs:
            for claim in run.claims:
                if (refusal := claim.refusal()) is not None:
                    raise run.refusal(refusal)
        self.store = ray.remote(num_cpus=0)(Store).options(scheduling_strategy=here).remote(str(out.absolute()))
        self.actor = ray.remote(num_cpus=n_cpus, num_gpus=n_gpus, max_restarts=0, max_task_retries=0)(Worker)
        self.n_cpus, self.n_started = n_cpus, 0
        self.workers: dict[str, Any] = {}
        self.ready: set[str] = set()
        self.n_workers, self.deaths, self.n_made = n, 0, 0
        self.pending: dict[Any, tuple[str, str, _Run | None]] = {}
        for _ in range(n):
            self._start()

    def _start(self) -> None:
        self.n_started += 1
        name = f"worker-{self.n_started}"
        self.workers[name] = self.actor.remote(self.store, name, self.n_cpus)
        self.pending[self.workers[name].ready.remote()] = (name, "ready", None)

    def stop(self) -> None:
        """End all workers."""
        for run in self.runs:
            if run.held is not None:
                run.held.close()
        closing = [worker.close.remote() for name, worker in self.workers.items() if name in self.ready]
        if closing:
            self.ray.wait(closing, num_returns=len(closing), timeout=ANSWERING)
        for worker in [*self.workers.values(), self.store]:
            self.ray.kill(worker)

    def results(self) -> list[Result]:
        """The results, in the order of the runs."""
        began = self.heard = time.monotonic()
        to_check = deque(self.runs)
        is_ready = self.ready
        while any(run.result is None for run in self.runs):
            done, _ = self.ray.wait(list(self.pending), timeout=1) if self.pending else ([], [])
            for future in done:
                name, what, run = self.pending.pop(future)
                try:
                    found = self.ray.get(future)
                except self.ray.exceptions.RayTaskError as error:
                    if run is not None and isinstance(error.cause, ValueError):
                        raise run.refusal(error.cause) from None
                    raise
                except self.ray.exceptions.RayError:  # the process, its memory or its machine is gone
                    is_ready.discard(name)
                    self._died(name, run, to_check if what == "check" else None)
                    continue
                self.heard = time.monotonic()
                is_ready.add(name)
                self._ended(name, what, run, found, began)
            for name in sorted(is_ready - {name for name, _, _ in self.pending.values()}):
                self._give(name, to_check)
            if not is_ready and time.monotonic() - self.heard > STARTING:
                raise RuntimeError(
                    f"the cluster has started no worker for {duration(STARTING)}; it needs {self.n_cpus} processor(s) "
                    "and its GPUs free on one machine; records are saved, and the same call resumes"
                )
        results = [run.result for run in self.runs if run.result is not None]  # which are all
        return [replace(each, files=tuple(self.out / path for path in each.files)) for each in results]

    def _ended(self, name: str, what: str, run: _Run | None, found: Any, began: float) -> None:
        """Note what a worker has done."""
        if run is None or what == "check":
            return
        run.at.discard(name)
        if what == "share":
            run.is_shared = False
            return
        run.finish(found)
        n_done = sum(run.result is not None for run in self.runs)
        if self.progress:
            left = (time.monotonic() - began) / n_done * (len(self.runs) - n_done)
            more = f", {duration(left)} left" if n_done < len(self.runs) else ""
            say(f"{run.folder}: done, {n_done} of {len(self.runs)} runs{more}")

    def _give(self, name: str, to_check: "deque[_Run]") -> None:
        """Give a worker that is free something to do, if there is something."""
        if to_check:
            self._call(name, "check", to_check.popleft())
            return
        if any(what == "check" for _, what, _ in self.pending.values()):
            return  # nothing runs before all are known to run
        open_runs = [run for run in self.runs if run.result is None]
        for run in open_runs:
            if not run.is_shared and not run.at:
                self._call(name, "finish", run)
                return
        shared = [run for run in open_runs if run.is_shared]
        if shared:
            self._call(name, "share", min(shared, key=lambda run: len(run.at)))

    def _call(self, name: str, what: str, run: _Run) -> None:
        method = getattr(self.workers[name], what)
        if what != "check":
            run.hold()
            run.at.add(name)
        self.pending[method.remote(run.settings, run.folder)] = (name, what, run)

    def _died(self, name: str, run: _Run | None, to_check: "deque[_Run] | None") -> None:
        """Give what a worker had in its hands to others, and start another worker.

        Raises:
            RuntimeError: a record was in the hands of three workers that died, or three times as many as there are
                have died and none has made a record meanwhile.
        """
        del self.workers[name]
        if run is not None:
            run.at.discard(name)
            run.is_shared = run.settings.in_parts
            if to_check is not None:
                to_check.append(run)
        lost, n_made = self.ray.get([self.store.release.remote(name), self.store.count.remote()])
        self.deaths = self.deaths + 1 if n_made == self.n_made else 1
        self.n_made = n_made
        if lost or self.deaths >= ATTEMPTS * self.n_workers:
            where = f" at {run.folder}" if run is not None else ""
            what = (
                f"{ATTEMPTS} workers have died with the record {lost[0]} in their hands"
                if lost
                else (f"{self.deaths} workers have died{where} and made no record")
            )
            raise RuntimeError(
                f"{what}; they may need more memory than there is; all records are saved, and the same call resumes"
            )
        if self.progress:
            say(f"{name} has died; others make what it had in its hands")
        self._start()


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise RuntimeError("the engine ray needs Ray; pip install 'latentcomm[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine.

    Raises:
        RuntimeError: there is none at the address.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        if address not in (None, "auto", "local"):  # Ray itself would wait for minutes
            host, colon, port = address.rpartition(":")
            if not colon or not port.isdecimal():
                raise ValueError("it is no host and port")
            socket.create_connection((host, int(port)), timeout=ANSWERING).close()
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"there is no Ray cluster at {address!r} ({str(error).splitlines()[0][:80]}); start one with "
            "`ray start --head`, or leave the address out"
        ) from None


def _gpus(settings: Settings, gpus_per_model: float | int) -> float | int:
    """The GPUs that a worker needs for a run: of one model or of two, and of none on the CPU."""
    if not settings.device.startswith(("cuda", "auto")):
        return 0
    return gpus_per_model * (1 if settings.receiver in ("", settings.sender) else 2)


def _room(ray: Any, n_gpus: float | int, n_cpus: int) -> int:
    """How many workers the cluster has room for.

    Raises:
        ValueError: none.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = []
    for machine in machines:
        room = int(machine.get("CPU", 0) // n_cpus)
        rooms.append(min(room, int(machine.get("GPU", 0) // n_gpus)) if n_gpus else room)
    if not sum(rooms):
        most = {kind: max((machine.get(kind, 0) for machine in machines), default=0) for kind in ("GPU", "CPU")}
        raise ValueError(
            f"a worker needs {n_gpus:g} GPUs and {n_cpus} CPUs on one machine, and the largest of the cluster's "
            f"{len(machines)} has {most['GPU']:g} and {most['CPU']:g}; give fewer gpus_per_model or cpus_per_worker"
        )
    return sum(rooms)
