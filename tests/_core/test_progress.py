"""Progress goes to standard error alone, a bar at a terminal and five lines in a log, and never touches the steps."""

import io
import sys
from collections.abc import Iterator

import pytest

from latentcomm._core import progress
from latentcomm._core.progress import quiet, say, track


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables by which rich would take a log for a terminal, or the other way round."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    return screen


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


class TestInALog:
    def test_a_line_at_the_start_and_one_a_quarter(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(track(range(200), "layer sweep", total=200)) == list(range(200))
        assert lines(capsys) == [f"layer sweep: {done} of 200 done" for done in (0, 50, 100, 150, 200)]

    @pytest.mark.parametrize("total", [1, 2, 3, 5, 7])
    def test_few_steps_end_in_a_line_that_says_all_are_done(
        self, total: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        list(track(range(total), "x", total=total))
        seen = lines(capsys)
        assert (seen[0], seen[-1]) == (f"x: 0 of {total} done", f"x: {total} of {total} done")
        assert len(seen) == len(set(seen)) <= 5

    def test_what_an_earlier_run_did_is_counted(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(track("cd", "x", total=4, done=2)) == ["c", "d"]
        assert lines(capsys) == ["x: going on, 2 of 4 done", "x: 3 of 4 done", "x: 4 of 4 done"]

    def test_what_is_saved_is_counted_once_and_passes_without_a_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(track("abcd", "x", total=4, saved=3)) == list("abcd")
        assert lines(capsys) == ["x: going on, 3 of 4 done", "x: 4 of 4 done"]

    def test_the_time_left_is_that_of_the_steps_made_here(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
        for number in track(range(8), "x", total=8, saved=2):
            clock[0] += 60.0 * (number >= 2)  # a minute a step, of those that are not saved
        assert lines(capsys) == [
            "x: going on, 2 of 8 done", "x: 4 of 8 done, 4 min left", "x: 6 of 8 done, 2 min left", "x: 8 of 8 done"
        ]  # fmt: skip

    def test_nothing_is_shown_in_a_quiet_block(self, capsys: pytest.CaptureFixture[str]) -> None:
        with quiet():
            assert list(track("ab", "x", total=2)) == ["a", "b"]
            say("a sentence")
        assert lines(capsys) == []
        with quiet(on=False):
            say("a sentence")
        assert lines(capsys) == ["a sentence"]

    def test_a_step_is_done_when_the_next_is_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        steps = track("ab", "x", total=2)
        next(steps)
        assert lines(capsys) == ["x: 0 of 2 done"]
        next(steps)
        assert lines(capsys) == ["x: 1 of 2 done"]

    def test_nothing_is_shown_unless_wanted(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(track("ab", "x", total=2, shown=False)) == ["a", "b"]
        assert lines(capsys) == []

    def test_no_step_at_all_is_no_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(track([], "x", total=0)) == []
        assert lines(capsys) == ["x: 0 of 0 done"]

    @pytest.mark.parametrize("shown", [True, False])
    def test_steps_are_taken_one_by_one(self, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
        taken: list[int] = []

        def steps() -> Iterator[int]:
            for number in range(5):
                taken.append(number)
                yield number

        tracked = track(steps(), "x", total=5, shown=shown)
        next(tracked)
        assert taken == [0]


class TestAtATerminal:
    def test_a_bar_says_how_many_are_done_and_leaves_nothing_behind(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        terminal = at_a_terminal(monkeypatch)
        assert list(track("abc", "layer sweep", total=5, done=2)) == ["a", "b", "c"]
        shown = terminal.getvalue()
        assert "layer sweep" in shown and "/5" in shown
        assert "of 5 done" not in shown  # the lines of a log
        assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is given back
        assert capsys.readouterr().out == ""

    def test_an_error_in_the_middle_gives_the_cursor_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = at_a_terminal(monkeypatch)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            for step in track("abc", "x", total=3):
                if step == "b":
                    raise KeyboardInterrupt
        assert terminal.getvalue().count("\x1b[?25h") == 1

    def test_nothing_is_shown_unless_wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = at_a_terminal(monkeypatch)
        assert list(track("ab", "x", total=2, shown=False)) == ["a", "b"]
        assert terminal.getvalue() == ""


class TestOneLine:
    def test_goes_to_standard_error_as_it_stands(self, capsys: pytest.CaptureFixture[str]) -> None:
        sentence = f"getting [bold]weights[/bold] ({'long ' * 40}MB) ..."
        say(sentence)
        assert lines(capsys) == [sentence]
