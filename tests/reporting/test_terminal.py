"""Tables on the terminal: where cells stand, what may be broken, and what a missing number looks like."""

from io import StringIO

import pytest

from latentcomm.reporting.terminal import Console, accuracy, interval, p_value, parts, print_table

ROWS = [{"channel": "text", "free": "0.50 [0.31, 0.69]", "p": "0.03"}, {"channel": "kv", "free": "0.25", "p": "-"}]


def printed(width: int = 60, **options: object) -> list[str]:
    console = Console(width=width, file=StringIO())
    print_table(ROWS, console, **options)  # type: ignore[arg-type]
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_text_is_to_the_left_and_numbers_to_the_right() -> None:
    assert printed()[1] == "┃ channel ┃              free ┃    p ┃"
    assert printed()[3:5] == ["│ text    │ 0.50 [0.31, 0.69] │ 0.03 │", "│ kv      │              0.25 │    - │"]
    assert printed(text=("free",))[4] == "│      kv │ 0.25              │    - │"


def test_a_title_and_a_caption_frame_the_table() -> None:
    lines = printed(title="20 items", caption="Wilson")
    assert (lines[0].strip(), lines[-1].strip()) == ("20 items", "Wilson")


def test_only_a_column_that_may_wrap_is_broken() -> None:
    assert "[0.31, 0.69]" not in "".join(printed(width=26))
    wrapped = printed(width=26, wrapped=("free",))
    assert "".join(wrapped).count("0.69]") == 1 and len(wrapped) > len(printed(width=26))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (interval({"accuracy": 1 / 3, "low": 0.0, "high": 1.0}), "0.33 [0.00, 1.00]"),
        (accuracy({"accuracy": 2 / 3}), "0.67"),
        (accuracy(None), ""),
        (p_value(1.2e-7), "1e-07"),
        (p_value(float("nan")), "-"),
        (parts(["", "0.50"]), "0.50"),
        (parts(["0.03", "-"]), "0.03 / -"),
    ],
)
def test_numbers_are_printed_in_one_way(cell: str, expected: str) -> None:
    assert cell == expected
