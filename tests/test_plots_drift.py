"""The figures of drift against their tables, read back from the figures' own JSON."""

import json
import math

import pandas as pd
import plotly.graph_objects as go
import pytest

from latentcomm.plots import detector_table, drift_against_accuracy, drift_violins, healing_curves
from latentcomm.sheets import TEMPLATE, styles

FUSIONS = ("replace", "sum")
MESSAGES = ("same text", "other text")
WRITES = (0, 3, 7)
LAST = 9


def drift_table() -> pd.DataFrame:
    rows = []
    for f, fusion in enumerate(FUSIONS):
        for m, message in enumerate(MESSAGES):
            for write in WRITES:
                for item in range(5):
                    rare = (1 + f + 3 * m + write + 7 * item) % 20 / 20
                    row = {"fusion": fusion, "message": message, "write_layer": write, "item": item}
                    rows += [row | {"detector": "combined", "percentile": rare}]
                    rows += [row | {"detector": "cosine", "percentile": 1 - rare}]
    return pd.DataFrame(rows)


def healing_table() -> pd.DataFrame:
    rows = []
    for f, fusion in enumerate(FUSIONS):
        for m, message in enumerate(MESSAGES):
            for write in WRITES:
                for layer in range(LAST + 1):
                    value = math.nan if layer < write else (1 + f + m) / (2 + layer)
                    row = {"fusion": fusion, "message": message, "write_layer": write, "layer": layer}
                    for what, scale in (("deviation", 1.0), ("percentile", 0.5)):
                        row |= {f"{what}_median": scale * value}
                        row |= {f"{what}_low": 0.9 * scale * value, f"{what}_high": 1.1 * scale * value}
                    rows.append(row)
    return pd.DataFrame(rows)


def effects_table() -> pd.DataFrame:
    return pd.DataFrame(
        {"fusion": fusion, "message": message, "write_layer": write, "item": item, "kl": 0.1 * (1 + f + m) * (1 + item)}
        for f, fusion in enumerate(FUSIONS)
        for m, message in enumerate(MESSAGES)
        for write in WRITES
        for item in range(5)
    )


def calibration_table() -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": layer, "family": family, "detector": detector, "one_sided": 0.5, "two_sided": (layer + f + d) / 40}
        for layer in (5, 15)
        for f, family in enumerate(("real", "sum"))
        for d, detector in enumerate(("cosine", "knn_distance", "combined"))
    )


def cells_table() -> pd.DataFrame:
    rows = []
    for d, detector in enumerate(("cosine", "combined")):
        for write in range(4):
            row = {"detector": detector, "write_layer": write, "drift": write / 4 + d, "accuracy": write / 8}
            row |= {"rho": 0.5 - d, "rho_low": 0.25 - d, "rho_high": 0.75 - d}
            rows.append(row)
    return pd.DataFrame(rows)


def parsed(figure: go.Figure) -> dict:
    return json.loads(figure.to_json())


def traces(figure: go.Figure, kind: str) -> list[dict]:
    return [trace for trace in parsed(figure)["data"] if trace["type"] == kind]


DRAWN = {
    drift_violins: drift_table,
    healing_curves: healing_table,
    detector_table: calibration_table,
    drift_against_accuracy: cells_table,
}


@pytest.mark.parametrize("plot", DRAWN, ids=lambda plot: plot.__name__)
class TestEveryFigure:
    def test_wears_the_template_and_a_fixed_size(self, plot) -> None:
        figure = plot(DRAWN[plot](), title="A title")
        assert figure.layout.template == go.Figure(layout={"template": TEMPLATE}).layout.template
        assert figure.layout.width <= 1100
        assert figure.layout.title.text.startswith("A title")

    def test_is_the_same_from_the_table_as_a_file_holds_it(self, plot, tmp_path) -> None:
        table = DRAWN[plot]()
        table.to_csv(tmp_path / "table.csv", index=False)
        again = plot(pd.read_csv(tmp_path / "table.csv"), title="A title")
        assert again.to_json() == plot(table, title="A title").to_json()

    def test_refuses_an_empty_table(self, plot) -> None:
        with pytest.raises(ValueError, match="empty"):
            plot(DRAWN[plot]().iloc[:0], title="A title")

    def test_refuses_a_table_that_lacks_a_column_and_names_it(self, plot) -> None:
        table = DRAWN[plot]()
        for column in ("fusion", "family", "detector"):
            if column in table:
                with pytest.raises(ValueError, match=column):
                    plot(table.drop(columns=column), title="A title")

    def test_does_not_change_the_table(self, plot) -> None:
        table = DRAWN[plot]()
        plot(table, title="A title")
        pd.testing.assert_frame_equal(table, DRAWN[plot]())


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
        assert [list(trace["y"]) for trace in drawn] == wanted

    def test_a_violin_ends_where_percentiles_end(self) -> None:
        assert all(trace["span"] == [0, 1] for trace in traces(drift_violins(drift_table(), title="t"), "violin"))

    def test_the_dots_are_medians(self) -> None:
        dots = [t for t in traces(drift_violins(drift_table(), title="t"), "scatter") if t["name"] == "median"]
        table = drift_table()
        part = table[(table.detector == "combined") & (table.fusion == "sum") & (table.message == "other text")]
        assert list(dots[3]["y"]) == pytest.approx(part.groupby("write_layer").percentile.median().tolist())

    def test_another_detector_is_another_figure(self) -> None:
        first = traces(drift_violins(drift_table(), title="t", detector="cosine"), "violin")[0]
        table = drift_table()
        part = table[(table.detector == "cosine") & (table.fusion == "replace") & (table.write_layer == 0)]
        assert list(first["y"]) == part[part.message == "same text"].percentile.tolist()

    def test_of_many_layers_a_few_are_drawn_with_both_ends(self) -> None:
        table = pd.concat([drift_table().assign(write_layer=layer) for layer in range(30)])
        ticks = parsed(drift_violins(table, title="t"))["layout"]["xaxis"]["ticktext"]
        assert ticks[0] == "0"
        assert ticks[-1] == "29"
        assert len(ticks) == 6

    def test_an_unknown_detector_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(ValueError, match="combined, cosine"):
            drift_violins(drift_table(), title="t", detector="knn")

    def test_a_write_layer_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="write layer 4 is not in the table"):
            drift_violins(drift_table(), title="t", write_layers=[4])

    def test_a_percentile_over_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"percentile is 95"):
            drift_violins(drift_table().assign(percentile=95.0), title="t")


class TestHealing:
    def test_a_line_is_the_medians_from_its_write_layer_on(self) -> None:
        figure = healing_curves(healing_table(), title="t", write_layers=[3])
        lines = [t for t in traces(figure, "scatter") if t.get("name") == "sum" and t["mode"] == "lines+markers"]
        assert list(lines[0]["x"]) == list(range(3, LAST + 1))
        assert list(lines[0]["y"]) == pytest.approx([3 / (2 + layer) for layer in range(3, LAST + 1)])
        assert list(lines[1]["y"]) == pytest.approx([1.5 / (2 + layer) for layer in range(3, LAST + 1)])
        assert lines[0]["line"]["color"] == styles(FUSIONS)["sum"].colour

    def test_the_message_is_the_one_asked_for_and_stands_in_the_title(self) -> None:
        figure = healing_curves(healing_table(), title="t", message="same text", write_layers=[3])
        line = next(t for t in traces(figure, "scatter") if t.get("name") == "sum" and t["mode"] == "lines+markers")
        assert line["y"][0] == pytest.approx(2 / 5)
        assert "same text" in figure.layout.title.text

    def test_effects_stand_below_as_medians_and_quartiles(self) -> None:
        figure = healing_curves(healing_table(), effects=effects_table(), title="t", write_layers=[3])
        dots = [t for t in traces(figure, "scatter") if t["mode"] == "markers"]
        assert [dot["x"][0] for dot in dots] == pytest.approx([0.2 * 3, 0.3 * 3])
        assert dots[0]["error_x"]["array"][0] == pytest.approx(0.2)
        assert figure.layout.xaxis3.type == "log"

    def test_a_message_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="random"):
            healing_curves(healing_table(), title="t", message="random")


class TestDetectors:
    def test_every_number_stands_in_its_cell_in_both_ways(self) -> None:
        table = calibration_table()
        heats = traces(detector_table(table, title="t"), "heatmap")
        for layer, heat in zip((5, 15), heats, strict=True):
            part = table[table.layer == layer].pivot(index="family", columns="detector", values="two_sided")
            for row, family in zip(heat["z"], ("real", "sum"), strict=True):
                wanted = [part.loc[family, name] for name in ("cosine", "knn_distance", "combined")]
                assert row == pytest.approx(wanted)
            assert heat["text"][0][0] == f"{heat['z'][0][0]:.2f}"

    def test_the_middle_of_the_scale_is_a_coin(self) -> None:
        axis = parsed(detector_table(calibration_table(), title="t"))["layout"]["coloraxis"]
        assert (axis["cmin"], axis["cmax"]) == (0, 1)
        assert axis["colorscale"][2] == [0.5, "#F7F7F7"]

    def test_one_sided_is_another_table(self) -> None:
        heats = traces(detector_table(calibration_table(), title="t", value="one_sided"), "heatmap")
        assert heats[0]["z"][0][0] == 0.5

    def test_a_share_of_a_hundred_is_refused(self) -> None:
        with pytest.raises(ValueError, match="AUROC lies between 0 and 1"):
            detector_table(calibration_table().assign(two_sided=55.0), title="t")

    def test_an_entry_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="more than once"):
            detector_table(pd.concat([calibration_table()] * 2), title="t")


class TestDriftAgainstAccuracy:
    def test_a_panel_a_detector_a_dot_a_cell(self) -> None:
        dots = traces(drift_against_accuracy(cells_table(), title="t"), "scatter")
        assert [dot["name"] for dot in dots] == ["cosine", "combined"]
        assert list(dots[1]["x"]) == [1, 1.25, 1.5, 1.75]
        assert list(dots[1]["y"]) == [0, 0.125, 0.25, 0.375]
        assert list(dots[1]["marker"]["color"]) == [0, 1, 2, 3]

    def test_the_correlation_stands_above_with_its_interval(self) -> None:
        heads = [
            note["text"] for note in parsed(drift_against_accuracy(cells_table(), title="t"))["layout"]["annotations"]
        ]
        assert "0.50 [0.25, 0.75]" in heads[0]
        assert "-0.50 [-0.75, -0.25]" in heads[1]
        plain = drift_against_accuracy(cells_table()[["detector", "drift", "accuracy", "write_layer"]], title="t")
        assert parsed(plain)["layout"]["annotations"][0]["text"] == "cosine"

    def test_two_correlations_of_one_detector_are_refused(self) -> None:
        table = cells_table()
        table.loc[0, "rho"] = 0.9
        with pytest.raises(ValueError, match="cosine has 2 values of rho"):
            drift_against_accuracy(table, title="t")
