"""Progress bars on standard error: shown to a person at a terminal, a few plain lines in a log."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Step = TypeVar("Step")


def track(steps: Iterable[Step], what: str, *, total: int, done: int = 0, shown: bool = True) -> Iterator[Step]:
    """The steps, with a bar that shows how many of `total` are done (`done` of them before this run)."""
    console = Console(stderr=True)
    if not shown:
        yield from steps
        return
    if not console.is_terminal:
        console.print(f"{what}: {done} of {total} done", highlight=False)
        for count, step in enumerate(steps, done + 1):
            yield step
            if count * 4 // total > (count - 1) * 4 // total:
                console.print(f"{what}: {count} of {total} done", highlight=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for step in steps:
            yield step
            progress.advance(task)


def say(sentence: str) -> None:
    """One line on standard error."""
    Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)
