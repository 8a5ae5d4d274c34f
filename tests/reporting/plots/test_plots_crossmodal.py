"""Figures of what a reader knows of pictures against their tables, read back from the figures' own JSON."""

import math

import pandas as pd
import pytest

from figures import heads, named, overlaps, titled_below, traces, untitled
from latentcomm.reporting.plots import accuracy_against_pairs, accuracy_by_question
from latentcomm.reporting.plots.crossmodal import PICTURE_STYLES

CHANNELS = ("silent", "skyline", "soft_prompt", "caption")
QUESTIONS = (
    ("digits", "identity", 0.1),
    ("digits", "category", 0.5),
    ("digits", "colour", 0.2),
    ("four", "count", 0.25),
)


def table() -> pd.DataFrame:
    rows = []
    for place, (part, question, chance) in enumerate(QUESTIONS):
        for rank, channel in enumerate(CHANNELS):
            for condition in ("message", "shuffled")[: 1 + (rank > 1)]:
                share = 0.2 + 0.1 * rank + 0.05 * place - (0.15 if condition == "shuffled" else 0)
                row = {"part": part, "question": question, "type": question, "channel": channel}
                row |= {"condition": condition, "accuracy": share, "low": share - 0.1, "high": share + 0.2, "n": 40}
                rows.append(row | {"metric": "choices", "chance": chance})
                rows.append(row | {"metric": "free", "chance": math.nan, "accuracy": share - 0.05})
    return pd.DataFrame(rows)


def against_pairs() -> pd.DataFrame:
    more = table().query("condition == 'message'")
    parts = [more.assign(pairs=pairs, accuracy=more["accuracy"] + pairs / 1000) for pairs in (100, 25, 50)]
    return pd.concat(parts)


DRAWN = {"by_question": (accuracy_by_question, table), "against_pairs": (accuracy_against_pairs, against_pairs)}
every = pytest.mark.parametrize(("plot", "given"), DRAWN.values(), ids=DRAWN)


@every
def test_every_axis_says_what_it_shows_and_no_panel_covers_another(plot, given) -> None:
    figure = plot(given(), title="A title")
    assert [name for name in untitled(figure) if not titled_below(figure, name)] == []
    assert overlaps(figure) == []
    assert 300 <= figure.layout.width <= 900
    assert heads(figure) == [f"{part}<br>{question} (n = 40)" for part, question, _ in QUESTIONS]


def test_a_dot_is_a_channel_and_an_open_one_the_other_picture() -> None:
    figure = accuracy_by_question(table(), title="t")
    own, other, *_ = [dot for dot in named(figure, "soft_prompt") if dot["xaxis"] == "x"]
    assert own["x"] == pytest.approx([0.4]) and own["y"] == [2]
    assert own["error_x"]["array"] == pytest.approx([0.2]) and own["error_x"]["arrayminus"] == pytest.approx([0.1])
    assert own["marker"]["color"] == PICTURE_STYLES["soft_prompt"].colour
    assert other["x"] == pytest.approx([0.25]) and other["marker"]["symbol"] == "circle-open"
    assert len([dot for dot in named(figure, "silent") if dot["xaxis"] == "x"]) == 1
    chances = [line["x"][0] for line in traces(figure, "scatter", "lines")]
    assert chances == pytest.approx([chance for *_, chance in QUESTIONS])


def test_free_replies_are_shown_where_asked_for_and_have_no_chance() -> None:
    figure = accuracy_by_question(table(), title="t", metric="free")
    assert named(figure, "soft_prompt")[0]["x"] == pytest.approx([0.35])
    assert traces(figure, "scatter", "lines") == []


def test_a_line_goes_through_its_accuracies_in_the_order_of_the_pairs() -> None:
    figure = accuracy_against_pairs(against_pairs(), title="t")
    line = named(figure, "soft prompt")[0]
    assert line["x"] == [25, 50, 100] and line["y"] == pytest.approx([0.425, 0.45, 0.5])
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.tickvals) == [25, 50, 100]
    assert len(named(figure, "soft prompt")) == len(QUESTIONS)


def test_other_pictures_messages_are_a_thin_line_beside_the_channels_own() -> None:
    both = pd.concat([table().assign(names=names, pairs=2 * names) for names in (30, 15)])
    figure = accuracy_against_pairs(both, title="t", over="names")
    drawn = named(figure, "the same, shuffled picture")
    assert len(drawn) == 2 * len(QUESTIONS) + 1  # the soft prompt's, the caption's, and the entry of the legend
    first = drawn[0]
    assert first["x"] == [15, 30] and first["y"] == pytest.approx([0.25, 0.25])
    assert first["line"]["color"] == PICTURE_STYLES["soft_prompt"].colour and first["line"]["dash"] == "dash"
    assert [line["showlegend"] for line in drawn].count(True) == 1
    assert named(figure, "soft prompt")[0]["y"] == pytest.approx([0.4, 0.4])
    assert figure.layout.xaxis4.title.text == "training names"


@every
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"low": 0.99}, "is outside"),
        ({"metric": "other"}, "no row of the table has the metric 'choices'"),
        ({"accuracy": math.nan}, "no number"),
        ({"question": "one"}, "more than once"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(plot, given, change, said) -> None:
    with pytest.raises(ValueError, match=said):
        plot(given().assign(**change), title="t")
    with pytest.raises(ValueError, match="empty"):
        plot(given().iloc[:0], title="t")


def test_pairs_below_one_have_no_place_on_the_axis() -> None:
    with pytest.raises(ValueError, match="above 0"):
        accuracy_against_pairs(against_pairs().assign(pairs=lambda given: given["pairs"] - 25), title="t")
