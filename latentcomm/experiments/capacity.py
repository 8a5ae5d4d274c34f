"""What this machine has: memory and disk that are free, and how fast it multiplies matrices."""

import math
import shutil
import time
from pathlib import Path

import torch

__all__ = ["free_disk", "free_memory", "multiply_adds_a_second", "n_gpus"]

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux states how much of the machine's memory a container may use."""
CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Files of the limit, the use and its parts, and the part that is cached files, in both versions of control groups."""
TIMED_SECONDS = 0.3
"""How long products are timed."""


def n_gpus() -> int:
    """How many CUDA devices torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device, None where it is unknown: of a GPU its own, else the machine's.

    Of "gpus" that of all CUDA devices together.
    """
    if device == "gpus":
        return sum(int(torch.cuda.mem_get_info(number)[0]) for number in range(n_gpus()))
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    found = [each for each in (_available(), _left_to_container()) if each is not None]
    return min(found, default=None)


def free_disk(folder: Path) -> int | None:
    """Bytes that are free where a folder is, or would be made."""
    first = next((each for each in (folder, *folder.absolute().parents) if each.exists()), None)
    try:
        return None if first is None else shutil.disk_usage(first).free
    except OSError:
        return None


def multiply_adds_a_second(device: str, dtype: torch.dtype, *, width: int) -> float:
    """Multiply-adds of the product of 32 rows with a matrix `[width 4 width]` in a second: the fastest of a moment, so
    that other work on the machine counts little.
    """
    rows = torch.ones(32, width, dtype=dtype, device=device)
    matrix = torch.ones(width, 4 * width, dtype=dtype, device=device)
    (rows @ matrix).sum().item()
    start, fastest = time.perf_counter(), math.inf
    while (began := time.perf_counter()) - start < TIMED_SECONDS:
        (rows @ matrix)[0, 0].item()  # which waits for a GPU
        fastest = min(fastest, time.perf_counter() - began)
    return rows.numel() * matrix.shape[1] / fastest


def _available() -> int | None:
    """What the system could give without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def _left_to_container() -> int | None:
    """What is left of a container's limit, None without one; its cache of files counts as free."""
    for limit, usage, statistics, cached in CONTROL_GROUPS:
        try:
            most, used = (int((GROUPS / name).read_text(encoding="utf-8")) for name in (limit, usage))
            facts = dict(line.split() for line in (GROUPS / statistics).read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):  # no such version of control groups, or no limit ("max")
            continue
        return max(0, most - used + int(facts.get(cached, 0)))
    return None
