"""One method timed in a process of its own, so that the peak memory is its own."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def timed(run: Callable[..., None], method: Callable[..., torch.Tensor], folder: str, *given: Any) -> tuple[Any, ...]:
    """What `run(method, folder, *given)` stores through `measure` in a new process: seconds, MB, and the result."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=(method, folder, *given))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{method.__name__} ended with status {process.exitcode}; its error is above")
    return torch.load(f"{folder}/{method.__name__}.pt")


def measure(method: Callable[..., torch.Tensor], folder: str, *given: Any) -> None:
    """Store the seconds of a call, its peak memory in MB above what is in memory now (None off Linux), and its result.

    The peak is Linux's high-water mark of the pages of this process.
    """
    before = _pages("VmRSS")
    if before is not None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    began = time.perf_counter()
    found = method(*given)
    seconds = time.perf_counter() - began
    highest = _pages("VmHWM")
    peak = None if before is None or highest is None else highest - before
    torch.save((seconds, peak, found), f"{folder}/{method.__name__}.pt")


def _pages(name: str) -> float | None:
    """MB of this process that are, or at most were, in memory, as Linux counts them; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(name))
