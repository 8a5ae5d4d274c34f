"""Faults that a run of each experiment ends well after; benchmarks/faults.py has more of them, and their table."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from commands import last_line, run
from small_commands import DAMAGES, published, saved_files, small_commands

from latentcomm.cli.experiment import parse
from latentcomm.experiments._prepared import EXPERIMENTS
from latentcomm.experiments.settings import SAVED

COMMANDS = pytest.mark.parametrize("command", list(EXPERIMENTS))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    return small_commands(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def whole(commands: dict[str, tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of an undisturbed run of a command."""
    found: dict[str, Path] = {}

    def of(command: str) -> Path:
        if command not in found:
            found[command] = tmp_path_factory.mktemp(command)
            ended = run(*commands[command], "--out", found[command])
            assert ended.exit_code == 0, ended.output
            settings, files = parse(EXPERIMENTS[command].settings, commands[command][1:])
            named = {file for name in settings.written_as(files.name) for file in settings.files_of(name)}
            assert set(published(found[command])) <= named  # what a claim protects
        return found[command]

    return of


@COMMANDS
def test_damaged_files_are_named_set_aside_and_made_again(
    command: str, commands: dict[str, tuple[str, ...]], whole: Any
) -> None:
    out = whole(command)
    wanted, files = published(out), saved_files(out)
    for number, path in enumerate(files):
        list(DAMAGES.values())[number % len(DAMAGES)](path)
    ended = run(*commands[command], "--out", out)
    assert ended.exit_code == 0, ended.output
    assert published(out) == wanted
    named = " ".join(ended.stderr.split())
    for path in files:
        assert f"{path.name} is damaged" in named and f"set aside as {path.name}.damaged" in named
        assert path.with_name(f"{path.name}.damaged").exists()


@COMMANDS
def test_a_full_disk_and_a_clock_set_back_change_no_bit(
    command: str, commands: dict[str, tuple[str, ...]], whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = published(whole(command))
    n_saved, replace = len(saved_files(whole(command))), os.replace
    calls: list[str] = []

    def full(source: Any, target: Any, **options: Any) -> None:
        if f"{SAVED}{os.sep}" in os.fspath(target):
            calls.append(os.fspath(target))
            if len(calls) == max(2, n_saved // 2):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    stopped = run(*commands[command], "--out", tmp_path)
    assert stopped.exit_code == 1 and "could not be written (No space left on device)" in last_line(stopped.stderr)
    for path in tmp_path.rglob("*"):
        os.utime(path, (time.time() + 86_400,) * 2)
    monkeypatch.setattr(os, "replace", replace)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 30 * 86_400)
    ended = run(*commands[command], "--out", tmp_path)
    assert ended.exit_code == 0, ended.output
    assert published(tmp_path) == wanted
