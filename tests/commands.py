"""The command line in this process, with what it printed and its exit status."""

import contextlib
import io
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from latentcomm.cli import app


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run(*arguments: str | Path) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app([str(argument) for argument in arguments])
        except SystemExit as ended:
            return Ended(int(ended.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("a command ends by SystemExit")


def refusals(table: str) -> pytest.MarkDecorator:
    """Run a test with the `arguments` and the `sentence` of each line of a table, `arguments -> sentence`."""
    lines = [line.strip().split(" -> ", 1) for line in table.strip().splitlines()]
    cases = [(tuple(shlex.split(arguments)), sentence.strip()) for arguments, sentence in lines]
    return pytest.mark.parametrize(("arguments", "sentence"), cases, ids=[arguments.strip() for arguments, _ in lines])


def listed_files(text: str) -> list[str]:
    """The names of the files that a command says it wrote."""
    lines = [line.removeprefix("wrote ") for line in text.splitlines() if line.startswith("wrote ")]
    pages = [Path(line.partition(" (open it")[0]).name for line in lines if "(open it" in line]
    return sorted(
        [*pages, *(name for line in lines if "(open it" not in line for name in line.partition(" in ")[0].split(", "))]
    )


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]
