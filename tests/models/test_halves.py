"""Rows in halves: the same rows in the same order, the cost of one piece, and one line on standard error."""

from collections.abc import Callable, Sequence

import pytest
import torch
from tiny import ids, model
from toys import little_memory

from latentcomm.models import in_halves, recorded_passes


def doubled(most: int) -> tuple[list[int], Callable[[Sequence[int]], list[int]]]:
    """A function that doubles at most so many rows at once, and how many rows it was called with."""
    calls: list[int] = []

    def run(rows: Sequence[int]) -> list[int]:
        calls.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * row for row in rows]

    return calls, run


@pytest.mark.parametrize(
    ("most", "expected", "calls"),
    [
        (9, [[0, 2, 4, 6, 8]], [5]),
        (3, [[0, 2], [4, 6, 8]], [5, 2, 3]),
        (1, [[0], [2], [4], [6], [8]], [5, 2, 1, 1, 3, 1, 2, 1, 1]),
    ],
)
def test_halves_come_in_order_and_are_halved_again(most: int, expected: list[list[int]], calls: list[int]) -> None:
    found, run = doubled(most)
    assert in_halves(run, range(5), "a test") == expected and found == calls


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(doubled(0)[1], range(2), "a test")


def test_it_is_printed_once_what_runs_in_halves(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        in_halves(doubled(1)[1], range(4), "a batch of this test")
    assert capsys.readouterr().err.count("a batch of this test does not fit into the memory of the device") == 1


def test_passes_that_ran_out_of_memory_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, tokens = model("llama"), torch.stack(ids(5, 5, 5))
    failed = little_memory(monkeypatch, n_rows=2)
    with recorded_passes() as passes:
        tiny.forward(tokens[:1])
        in_halves(lambda rows: tiny.forward(tokens[list(rows)]), range(3), "a test")
    assert [each.rows for each in passes] == [1, 1, 2] and failed == [3]
