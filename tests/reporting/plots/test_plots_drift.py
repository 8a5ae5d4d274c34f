"""Violins of drift, and drift against accuracy, against their tables, read back from the figures' own JSON."""

import math

import pandas as pd
import pytest
from correlation import drift_against_accuracy
from plot_tables import FUSIONS, MESSAGES, WRITES, cells_table, drift_table

from figures import heads, named, parsed, traces
from latentcomm.reporting.plots import drift_violins
from latentcomm.reporting.style import styles


class TestViolins:
    def test_each_holds_the_percentiles_of_its_fusion_message_and_layer(self) -> None:
        table = drift_table()
        drawn = traces(drift_violins(table, title="t"), "violin")
        wanted = [
            part.percentile.tolist()
            for message in MESSAGES
            for fusion in FUSIONS
            for _, part in table[
                (table.detector == "combined") & (table.fusion == fusion) & (table.message == message)
            ].groupby("write_layer")
        ]
        assert [trace["y"] for trace in drawn] == wanted
        assert [trace["x0"] for trace in drawn] == [0, 1, 2] * 4
        assert {trace["fillcolor"] for trace in drawn} == {styles(FUSIONS)[name].colour for name in FUSIONS}

    def test_a_panel_a_fusion_and_a_row_of_panels_a_message(self) -> None:
        figure = drift_violins(drift_table(), title="t")
        assert [trace["xaxis"] for trace in traces(figure, "violin")] == [
            axis for axis in ("x", "x2", "x3", "x4") for _ in WRITES
        ]
        assert heads(figure) == ["same text", "replace", "sum", "other text"]
        assert parsed(figure)["layout"]["xaxis4"]["ticktext"] == ["0", "3", "7"]

    def test_a_violin_ends_where_percentiles_end(self) -> None:
        table = drift_table()
        table.loc[table.fusion == "sum", "percentile"] = 0.9975
        for trace in traces(drift_violins(table, title="t"), "violin"):
            assert trace["spanmode"] == "manual" and 0 <= trace["span"][0] < trace["span"][1] <= 1
            assert trace["span"][0] <= min(trace["y"]) and max(trace["y"]) <= trace["span"][1]
            assert trace["span"][0] > 0.8 or trace["y"][0] != 0.9975  # no hairline down to 0

    def test_the_dots_are_medians(self) -> None:
        dots = named(drift_violins(drift_table(), title="t"), "median")
        table = drift_table()
        part = table[(table.detector == "combined") & (table.fusion == "sum") & (table.message == "other text")]
        assert dots[3]["y"] == pytest.approx(part.groupby("write_layer").percentile.median().tolist())

    def test_the_line_of_one_in_twenty_is_in_every_panel_with_one_entry(self) -> None:
        figure = drift_violins(drift_table(), title="t")
        lines = named(figure, "0.95: one real state in twenty lies above")
        assert [line["y"] for line in lines] == [[0.95, 0.95]] * 4
        assert [line["showlegend"] for line in lines] == [True, False, False, False]
        assert parsed(figure)["layout"]["yaxis"]["tickvals"] == [0, 0.5, 0.95]

    def test_another_detector_is_another_figure(self) -> None:
        first = traces(drift_violins(drift_table(), title="t", detector="cosine"), "violin")[0]
        table = drift_table()
        part = table[(table.detector == "cosine") & (table.fusion == "replace") & (table.write_layer == 0)]
        assert first["y"] == part[part.message == "same text"].percentile.tolist()

    @pytest.mark.parametrize("n_fusions", [1, 2, 6])
    def test_of_many_layers_as_many_are_drawn_as_fit_with_both_ends(self, n_fusions: int) -> None:
        one = drift_table().query("write_layer == 0 and fusion == 'sum'")
        table = pd.concat(
            one.assign(write_layer=layer, fusion=f"fusion {name}") for layer in range(40) for name in range(n_fusions)
        )
        figure = drift_violins(table, title="t")
        ticks = parsed(figure)["layout"]["xaxis"]["ticktext"]
        assert (ticks[0], ticks[-1]) == ("0", "39")
        layout = figure.layout
        width = (layout.xaxis.domain[1] - layout.xaxis.domain[0]) * (layout.width - layout.margin.l - layout.margin.r)
        assert 20 <= width / len(ticks) <= 30 and layout.width <= 900

    def test_the_layers_asked_for_are_drawn(self) -> None:
        figure = drift_violins(drift_table(), title="t", write_layers=[7, 0])
        assert parsed(figure)["layout"]["xaxis3"]["ticktext"] == ["0", "7"]
        table = drift_table()
        part = table[(table.detector == "combined") & (table.write_layer == 7) & (table.fusion == "replace")]
        assert traces(figure, "violin")[1]["y"] == part[part.message == "same text"].percentile.tolist()

    def test_a_combination_that_was_not_measured_stays_empty(self) -> None:
        table = drift_table()
        gap = (table.fusion == "sum") & (table.message == "other text") & (table.write_layer == 3)
        figure = drift_violins(table[~gap], title="t")
        assert len(traces(figure, "violin")) == 11
        assert named(figure, "median")[3]["x"] == [0, 2]

    @pytest.mark.parametrize(
        ("table", "options", "said"),
        [
            (drift_table(), {"detector": "knn"}, "no row of the table has the detector 'knn'; it has combined, cosine"),
            (drift_table(), {"write_layers": [4]}, "write layer 4 is not in the table"),
            (drift_table().assign(percentile=95.0), {}, r"percentile is 95"),
            (drift_table().assign(percentile=-0.1), {}, r"percentile is -0.1"),
            (drift_table().assign(percentile=math.nan), {}, "column percentile has no number in 120 of 120 rows"),
            (drift_table().assign(item=0), {}, "write_layer 0, item 0 is in the table more than once"),
            (drift_table().assign(write_layer=0.5), {}, "layers are whole numbers"),
            (drift_table().drop(columns="item"), {}, "lacks the column item"),
        ],
        ids=["detector", "layer", "over 1", "below 0", "missing", "twice", "half a layer", "column"],
    )
    def test_a_table_that_cannot_be_drawn_is_refused(self, table, options, said) -> None:
        with pytest.raises(ValueError, match=said):
            drift_violins(table, title="t", **options)

    def test_the_first_row_without_a_number_is_named(self) -> None:
        table = drift_table()
        table.loc[7, "percentile"] = math.nan
        with pytest.raises(ValueError, match=r"in 1 of 120 rows, first at fusion replace, .* item 3, detector cosine"):
            drift_violins(table, title="t")


class TestDriftAgainstAccuracy:
    def test_a_panel_a_detector_a_dot_a_cell(self) -> None:
        dots = traces(drift_against_accuracy(cells_table(), title="t"), "scatter")
        assert [dot["name"] for dot in dots] == ["cosine", "combined"]
        assert dots[1]["x"] == [1, 1.25, 1.5, 1.75]
        assert dots[1]["y"] == [0, 0.125, 0.25, 0.375]
        assert dots[1]["marker"]["color"] == [0, 1, 2, 3]

    def test_another_column_may_be_the_depth(self) -> None:
        table = cells_table().rename(columns={"write_layer": "read_layer"})
        figure = drift_against_accuracy(table, title="t", depth="read_layer")
        assert [dot["marker"]["color"] for dot in traces(figure, "scatter")] == [[0, 1, 2, 3]] * 2
        layout = parsed(figure)["layout"]
        assert (layout["xaxis"]["title"]["text"], layout["yaxis"]["title"]["text"]) == ("drift", "accuracy")
        assert heads(figure) == ["cosine", "combined"]

    def test_ten_detectors_fit_a_page_and_each_has_the_axis_of_its_own_drift(self) -> None:
        table = cells_table(tuple(f"detector {number}" for number in range(10)))
        figure = drift_against_accuracy(table, title="t")
        assert figure.layout.width <= 900 and len(traces(figure, "scatter")) == 10
        low, high = figure.layout.xaxis10.range
        assert low < 9 < 9.75 < high and low > 8

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"drift": math.nan}, "column drift has no number"),
            ({"accuracy": math.inf}, "finite numbers"),
        ],
    )
    def test_a_table_that_cannot_be_drawn_is_refused(self, change, said) -> None:
        with pytest.raises(ValueError, match=said):
            drift_against_accuracy(cells_table().assign(**change), title="t")
