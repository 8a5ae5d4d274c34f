"""The figures of a reverse cascade say what their tables say, and refuse those that say too little."""

import math

import pandas as pd
import plotly.graph_objects as go
import pytest
from plot_tables import cascade_rows, signal_rows

from figures import heads, named, parsed
from latentcomm.reporting.plots import cascade_curves, cascade_front, opening_signals
from latentcomm.reporting.plots.cascade import CONTINUED, FINISHED, FIRED, IN_OPENING

STOPS = ["0", "8", "16", "entropy-drop", "oracle"]


def accuracies(condition: str, hand_off: str, stops: list[str]) -> list[float]:
    rows = cascade_rows().query("condition == @condition and hand_off == @hand_off").set_index("stop")
    return [float(rows["accuracy"][stop]) for stop in stops]


def curves(table: pd.DataFrame | None = None) -> go.Figure:
    return cascade_curves(cascade_rows() if table is None else table, title="A title")


def front(table: pd.DataFrame | None = None) -> go.Figure:
    return cascade_front(cascade_rows() if table is None else table, title="A title")


class TestCurves:
    def test_a_panel_a_hand_off_with_numbers_of_tokens_and_then_the_stops(self) -> None:
        figure = curves()
        assert heads(figure) == ["text", "latent"]
        labels = list(figure.layout.xaxis3.ticktext)
        assert labels == ["0", "8", "16", "entropy drop (11 to 12)", "oracle (6)"]

    def test_numbers_of_tokens_are_in_order_however_the_table_has_them(self) -> None:
        turned = pd.concat([cascade_rows().iloc[:2], cascade_rows().iloc[:1:-1]])
        assert list(curves(turned).layout.xaxis3.ticktext)[:3] == ["0", "8", "16"]

    def test_fixed_numbers_are_joined_and_stops_stand_by_themselves(self) -> None:
        for hand_off in ("text", "latent"):
            joined, alone = named(curves(), hand_off)
            assert joined["x"] == [0, 1, 2] and joined["mode"] == "lines+markers"
            assert joined["y"] == accuracies("message", hand_off, STOPS[:3])
            assert alone["x"] == [3, 4] and alone["mode"] == "markers"
            assert alone["y"] == accuracies("message", hand_off, STOPS[3:])

    def test_the_bars_end_where_the_intervals_do(self) -> None:
        (row,) = (
            cascade_rows().query("condition == 'message' and hand_off == 'text' and stop == '8'").to_dict("records")
        )
        joined = named(curves(), "text")[0]
        assert joined["y"][1] + joined["error_y"]["array"][1] == pytest.approx(row["high"])
        assert joined["y"][1] - joined["error_y"]["arrayminus"][1] == pytest.approx(row["low"])

    @pytest.mark.parametrize(
        ("condition", "entry"),
        [
            ("other", "other item's opening"),
            ("own", "small model's own"),
            ("self-consistency", "vote at equal cost"),
        ],
    )
    def test_every_control_stands_beside_every_number_in_both_panels(self, condition: str, entry: str) -> None:
        found = [trace for trace in named(curves(), entry) if "lines" in trace["mode"]]
        assert [trace["y"] for trace in found] == [
            accuracies(condition, each, ["8", "16"]) for each in ("text", "latent")
        ]
        assert [trace["x"] for trace in found] == [[1, 2]] * 2
        assert [trace["showlegend"] for trace in found] == [True, False]

    @pytest.mark.parametrize(("condition", "entry"), [("zero", "zeros"), ("random", "random states")])
    def test_empty_states_count_the_items_that_the_small_model_continued(self, condition: str, entry: str) -> None:
        (found,) = (trace for trace in named(curves(), f"{entry}, where it continued") if "lines" in trace["mode"])
        rows = cascade_rows().query("condition == @condition").set_index("stop")
        assert found["y"] == [rows["handed_accuracy"][stop] for stop in ("8", "16")]
        assert found["xaxis"] == "x2" and found["showlegend"]
        nothing = cascade_rows().assign(handed_n=0, handed_accuracy=math.nan)
        assert {y for trace in named(curves(nothing), f"{entry}, where it continued") for y in trace["y"]} == {None}

    def test_a_control_that_was_not_run_is_not_in_the_legend(self) -> None:
        figure = curves(cascade_rows().query("condition != 'own'"))
        assert named(figure, "small model's own") == [] != named(curves(), "small model's own")

    def test_the_two_models_alone_are_lines_across_in_their_bands(self) -> None:
        figure = curves()
        for place, name in enumerate(("small alone", "large alone")):
            row = cascade_rows().iloc[place]
            assert [trace["y"] for trace in named(figure, name)] == [[row["accuracy"]] * 2] * 2
            bands = [(shape["y0"], shape["y1"]) for shape in parsed(figure)["layout"]["shapes"]]
            assert bands.count((row["low"], row["high"])) == 2

    def test_open_dots_count_the_items_that_the_small_model_continued(self) -> None:
        table = cascade_rows()
        held = (table["condition"] == "message") & (table["stop"] == "16")
        table = table.assign(
            handed_n=table["handed_n"].where(~held, 0), handed_accuracy=table["handed_accuracy"].where(~held)
        )
        dots = named(curves(table), CONTINUED)
        assert [trace["x"] for trace in dots] == [[0, 1, 3, 4]] * 2
        right = table.query("condition == 'message' and hand_off == 'text' and stop == '8'")["handed_accuracy"].item()
        assert dots[0]["y"][1] == right

    def test_shares_with_the_answer_and_of_stops_that_fired_are_drawn_below(self) -> None:
        held, ended, fired = (named(curves(), name)[0] for name in (IN_OPENING, FINISHED, FIRED))
        assert ended["y"] == [0.1] * 5
        assert held["y"] == [0.0, 0.4, 0.775, 0.55, 0.3] and fired["y"] == [1.0, 1.0, 1.0, 0.7, 1.0]
        assert held["yaxis"] == fired["yaxis"] == "y3"

    def test_a_hand_off_has_the_colour_it_has_with_others_beside_it(self) -> None:
        alone = cascade_curves(cascade_rows(("latent",)), title="A title")
        assert named(alone, "latent")[0]["marker"] == named(curves(), "latent")[0]["marker"]
        assert named(curves(), "text")[0]["marker"] != named(curves(), "latent")[0]["marker"]


class TestFront:
    def test_a_line_a_hand_off_by_cost_with_its_numbers(self) -> None:
        table = cascade_rows().query("condition == 'message' and hand_off == 'latent'").set_index("stop")
        (line,) = named(front(), "latent")
        assert line["x"] == [table["flops"][stop] for stop in STOPS[:3]]
        assert line["y"] == accuracies("message", "latent", STOPS[:3]) and line["text"] == STOPS[:3]

    def test_the_front_is_what_nothing_beats_and_the_oracle_is_not_on_it(self) -> None:
        table = cascade_rows()
        oracle = table["stop"] == "oracle"
        table = table.assign(accuracy=table["accuracy"].where(~oracle, 0.99), high=table["high"].where(~oracle, 1.0))
        real = table[~oracle & ~table["condition"].isin(["other", "zero", "random", "own"])].to_dict("records")

        def is_beaten(row: dict) -> bool:
            return any(
                (one["flops"] <= row["flops"] and one["accuracy"] > row["accuracy"])
                or (one["flops"] < row["flops"] and one["accuracy"] >= row["accuracy"])
                for one in real
            )

        best = sorted((row["flops"], row["accuracy"]) for row in real if not is_beaten(row))
        (line,) = named(front(table), "front")
        assert list(zip(line["x"], line["y"], strict=True))[:-1] == best
        assert line["y"][-1] == best[-1][1] < 0.99

    def test_the_vote_is_drawn_by_cost_as_that_of_the_first_hand_off(self) -> None:
        (line,) = named(front(), "vote at equal cost")
        assert line["y"] == accuracies("self-consistency", "text", ["8", "16"]) and line["x"] == sorted(line["x"])

    def test_each_stop_has_a_shape_of_its_own_in_the_colour_of_its_hand_off(self) -> None:
        figure = front()
        drops = [trace for trace in named(figure, "entropy-drop") if trace["x"] != [None]]
        assert [trace["y"][0] for trace in drops] == [
            accuracies("message", hand_off, ["entropy-drop"])[0] for hand_off in ("text", "latent")
        ]
        assert drops[0]["marker"]["symbol"] == drops[1]["marker"]["symbol"]
        assert drops[0]["marker"]["symbol"] != named(figure, "oracle")[0]["marker"]["symbol"]
        assert drops[0]["marker"]["color"] == named(figure, "text")[0]["marker"]["color"]

    def test_a_cost_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="costs above 0"):
            front(cascade_rows().assign(flops=0.0))


class TestSignals:
    def test_a_panel_a_signal_with_median_and_quartiles_and_one_for_stops(self) -> None:
        figure = opening_signals(signal_rows(), title="A title")
        medians = named(figure, "median and quartiles over openings")
        assert [line["y"] for line in medians] == [[2.0, 1.0, 2 / 3], [0.25, 0.5, 0.75]]
        band = next(trace for trace in parsed(figure)["data"] if trace.get("fill"))
        assert band["y"] == [3.0, 1.5, 1.0, 1 / 3, 0.5, 1.0] and band["x"] == [1, 2, 3, 3, 2, 1]
        (shares,) = named(figure, "entropy-drop")
        assert shares["y"] == [0.25, 0.5, 0.75] and shares["yaxis"] == "y3"

    def test_a_line_marks_where_half_have_fired_and_none_where_half_never_do(self) -> None:
        def marks(table: pd.DataFrame) -> set[int]:
            shapes = parsed(opening_signals(table, title="A title"))["layout"].get("shapes", [])
            return {shape["x0"] for shape in shapes}

        never = signal_rows().assign(median=lambda table: table["median"].clip(upper=0.4))
        assert marks(signal_rows()) == {2} and marks(never.assign(low=0.0, high=1.0)) == set()

    def test_a_token_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="more than once"):
            opening_signals(pd.concat([signal_rows()] * 2), title="A title")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.query("condition != 'small alone'"), "0 rows of 'small alone'"),
        (lambda table: table.query("condition != 'message'"), "no row of the table has the condition 'message'"),
        (lambda table: table.assign(low=0.9), "is outside"),
        (lambda table: table.assign(accuracy=math.nan), "no number"),
        (lambda table: pd.concat([table, table]), "more than once"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(change, said) -> None:
    for draw in (curves, front):
        with pytest.raises(ValueError, match=said):
            draw(change(cascade_rows()))


def test_stops_that_are_all_numbers_are_read_back_from_a_csv_as_they_were() -> None:
    table = cascade_rows().query("stop in ['0', '8', '16'] or condition == 'large alone'")
    as_read = table.assign(stop=[int(stop) if stop.isdigit() else stop for stop in table["stop"]])
    assert curves(as_read) == curves(table)
