"""Stops against a transcription of their rules that looks at one prefix after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcomm.experiments.cascade.openings import Opening
from latentcomm.experiments.cascade.stops import STOPS, Confident, EntropyDrop, FixedTokens, SentenceEnd, Stop

SIGNALS = st.lists(
    st.tuples(
        st.floats(0, 5),
        st.floats(0, 1),
        st.sampled_from(["a", " b", ".", "!", "\n", " 3", "5", " e.g", " ", "1", "?", '."', ".\n", " Dr"]),
    ),
    max_size=30,
)
POLICIES = (
    FixedTokens(3),
    EntropyDrop(0.8, window=2, minimum=3),
    EntropyDrop(),
    Confident(0.5, window=2),
    SentenceEnd(),
    SentenceEnd(2),
)


def opening(steps: list[tuple[float, float, str]]) -> Opening:
    return Opening.of_signals(
        entropy=torch.tensor([step[0] for step in steps], dtype=torch.float64),
        margin=torch.tensor([step[1] for step in steps], dtype=torch.float64),
        token_texts=[step[2] for step in steps],
    )


def entropies(*values: float) -> Opening:
    return Opening.of_signals(entropy=torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("stop", POLICIES, ids=repr)
@given(steps=SIGNALS)
@settings(max_examples=60, deadline=None)
def test_what_a_stop_says_does_not_change_with_what_is_written_after_it(
    stop: Stop, steps: list[tuple[float, float, str]]
) -> None:
    whole = opening(steps)
    at = stop.at(whole)
    for n in range(len(whole) + 1):
        early = stop.at(whole.cut(n))
        if isinstance(stop, FixedTokens) or (at is not None and n >= at):
            assert early == at
        else:
            assert early is None


@given(steps=SIGNALS)
@settings(max_examples=60, deadline=None)
def test_an_entropy_drop_is_the_first_window_below_the_fraction(
    steps: list[tuple[float, float, str]],
) -> None:
    values = [step[0] for step in steps]

    def falls(n: int) -> bool:
        last, before = values[n - 2 : n], values[: n - 2]
        return n >= 4 and bool(before) and sum(last) / 2 < 0.7 * (sum(before) / len(before))

    wanted = next((n for n in range(1, len(values) + 1) if falls(n)), None)
    assert EntropyDrop(0.7, window=2, minimum=4).at(opening(steps)) == wanted


def test_an_entropy_that_stays_where_it_was_never_drops() -> None:
    assert EntropyDrop(0.5, window=2, minimum=3).at(entropies(2, 2, 2, 2, 2, 2)) is None
    assert EntropyDrop(0.5, window=2, minimum=3).at(entropies(2, 2, 2, 2, 0.5, 0.5)) == 6


def test_a_drop_before_the_minimum_does_not_count() -> None:
    assert EntropyDrop(0.5, window=2, minimum=6).at(entropies(2, 2, 0, 0, 0, 0)) == 6
    assert EntropyDrop(0.5, window=2, minimum=6).at(entropies(2, 2, 0, 0, 9, 9)) is None


def test_confidence_asks_for_margins_on_end() -> None:
    margins = torch.tensor([0.95, 0.95, 0.2, 0.9, 0.9, 0.9])
    assert Confident(0.9, window=3).at(Opening.of_signals(margin=margins)) is None  # 0.9 in float32 is less than 0.9
    assert Confident(0.89, window=3).at(Opening.of_signals(margin=margins)) == 6
    assert Confident(0.89, window=2).at(Opening.of_signals(margin=margins)) == 2


@pytest.mark.parametrize(
    ("token_texts", "number", "at"),
    [
        (["She", " pays", ".", " Then"], 1, 4),
        (["She", " pays", "."], 1, None),  # nobody knows yet whether "5" follows
        (["It", " is", " 3", ".", "5", " long"], 1, None),
        (["Use", " e.g", ".", " three"], 1, None),
        (["Use", " three", ".\n", "Then"], 1, 3),
        (["Use", " three", ".\n", "\n", "Then", "\n"], 2, 6),
        (["1", ".", " Add", " both", ".", " So"], 1, 6),
        (["\n", "\n", "Add", "\n"], 1, 4),
        (["Really", "?!", " Yes", "!", " So"], 2, 5),
        (['He said "no', '."', " Then"], 1, 3),
    ],
)
def test_a_sentence_ends_where_a_reader_says(token_texts: list[str], number: int, at: int | None) -> None:
    assert SentenceEnd(number).at(Opening.of_signals(token_texts=token_texts)) == at


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedTokens(-1),
        lambda: EntropyDrop(fraction=0),
        lambda: EntropyDrop(window=0),
        lambda: EntropyDrop(minimum=-1),
        lambda: Confident(margin=1.5),
        lambda: Confident(window=0),
        lambda: SentenceEnd(0),
        lambda: Opening.of_signals(),
        lambda: Opening.of_signals(entropy=torch.zeros(2), margin=torch.zeros(3)),
    ],
)
def test_options_out_of_range_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"must be|is -?\d|have the lengths"):
        make()


def test_the_command_lines_stops_have_their_defaults() -> None:
    assert STOPS["entropy-drop"] == EntropyDrop(0.5, 4, 8)
    assert STOPS["confident"] == Confident(0.9, 4)
    assert STOPS["sentence-end"] == SentenceEnd(1)
