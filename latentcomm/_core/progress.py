"""Progress bars on standard error: shown to a person at a terminal, a few plain lines in a log."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Step = TypeVar("Step")
_QUIET = ContextVar("quiet", default=False)


def track(
    steps: Iterable[Step], what: str, *, total: int, done: int = 0, saved: int = 0, shown: bool = True
) -> Iterator[Step]:
    """The steps, with a bar that shows how many of `total` are done, and about how long the others take.

    `done` steps were done before this run and are not among `steps`; `saved` of the steps are only read.
    """
    console = Console(stderr=True)
    if not shown or _QUIET.get():
        yield from steps
        return
    begun, before = time.monotonic(), done + saved
    first = f"going on, {before} of {total} done" if 0 < before < total else f"{before} of {total} done"
    if not console.is_terminal:
        console.print(f"{what}: {first}", highlight=False)
        for count, step in enumerate(steps, done + 1):
            yield step
            if count * 4 // total > (count - 1) * 4 // total and count > before:
                left = (time.monotonic() - begun) / (count - before) * (total - count)
                more = f", {duration(left)} left" if left >= 1 else ""
                console.print(f"{what}: {count} of {total} done{more}", highlight=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{what}, going on" if before else what, total=total, completed=done)
        for step in steps:
            yield step
            progress.advance(task)


def say(sentence: str) -> None:
    """One line on standard error."""
    if not _QUIET.get():
        Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def quiet(*, on: bool = True) -> Iterator[None]:
    """A block in which nothing is shown here."""
    before = _QUIET.set(on)
    try:
        yield
    finally:
        _QUIET.reset(before)


def duration(seconds: float | int) -> str:
    """About how long something takes.

    >>> duration(40), duration(400), duration(8000)
    ('40 s', '7 min', '2 h 13 min')
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
