"""The map of layer pairs against its table, read back from the figure's own JSON."""

import math

import pandas as pd
import plotly.graph_objects as go
import pytest
from plot_tables import pairs

from figures import heads, named, overlaps, parsed, traces
from latentcomm.reporting.plots import pair_map


def drawn(table: pd.DataFrame, **options) -> go.Figure:
    return pair_map(table, **{"value": "debiased_cka", "title": "A map"} | options)


def heat(table: pd.DataFrame, **options) -> dict:
    return traces(drawn(table, **options), "heatmap")[0]


def dots(figure: go.Figure) -> list[set]:
    """Where the white dots stand, panel by panel."""
    found = [trace for trace in traces(figure, "scatter", "markers") if trace["marker"]["color"] == "white"]
    found = [trace for trace in found if trace["marker"]["symbol"] == "circle" and not trace["showlegend"]]
    return [set(zip(trace["x"], trace["y"], strict=True)) for trace in found]


def test_sender_layers_go_up_and_receiver_layers_right() -> None:
    found = heat(pairs())
    assert found["z"] == [[(a - b) / 10 for b in range(3)] for a in range(4)]
    assert (found["y"], found["x"]) == ([0, 1, 2, 3], [0, 1, 2])
    shuffled = pairs().sample(frac=1, random_state=1)
    assert heat(shuffled)["z"] == found["z"]


def test_negative_values_stay_and_the_scale_begins_at_them() -> None:
    assert parsed(drawn(pairs()))["layout"]["coloraxis"]["cmin"] == pytest.approx(-0.2)


def test_exactly_the_pairs_that_do_not_exceed_the_null_are_marked() -> None:
    figure = drawn(pairs(null_max=0.1), null="null_max")
    wanted = {
        (b, a) for a in range(4) for b in range(3) if (a - b) / 10 <= 0.1
    }  # one that equals it does not exceed it
    assert dots(figure) == [wanted] and len(wanted) == 9
    assert len(named(figure, "not above its null (9 of 12 cells)")) == 1


def test_each_cell_is_held_against_its_own_null() -> None:
    table = pairs().assign(null_high=lambda table: table["debiased_cka"] - 0.01)
    table.loc[5, "null_high"] = 0.9
    cell = (int(table.loc[5, "receiver_layer"]), int(table.loc[5, "sender_layer"]))
    assert dots(drawn(table, null="null_high")) == [{cell}]


def test_the_level_of_the_null_stands_above_the_map_and_in_the_legend() -> None:
    table = pairs()
    assert heads(drawn(table, null="null_max")) == ["null 0.050"]
    table["null_max"] = [0.01 * row for row in range(len(table))]
    figure = drawn(table, null="null_max")
    assert heads(figure) == ["null 0.000 to 0.110"]
    assert len(named(figure, "highest null, 0.110")) == 1


def test_a_triangle_at_the_colour_bar_points_at_the_highest_null() -> None:
    figure = drawn(pairs(null_max=0.05), null="null_max", bounds=(-0.05, 0.35))
    (triangle,) = [shape for shape in parsed(figure)["layout"]["shapes"] if shape.get("type") == "path"]
    assert triangle["yanchor"] == pytest.approx(0.25) and triangle["yref"] == "paper"
    assert triangle["xanchor"] == figure.layout.coloraxis.colorbar.x
    assert len(parsed(drawn(pairs()))["layout"]["shapes"]) == len(parsed(figure)["layout"]["shapes"]) - 1


def test_a_pair_that_was_not_measured_is_blank_and_not_zero() -> None:
    table = pairs().iloc[1:].copy()
    table.loc[5, "debiased_cka"] = math.nan
    found = heat(table, null="null_max")
    assert found["z"][0][0] is None
    assert found["z"][1][2] is None
    assert sum(cell is None for row in found["z"] for cell in row) == 2


def test_panels_share_one_scale_and_the_names_stand_on_the_axes() -> None:
    table = pd.concat([pairs().assign(view="RMS"), pairs().assign(view="raw", debiased_cka=0.9)])
    figure = drawn(table, panels="view", sender="A", receiver="B", null="null_max")
    assert [trace["coloraxis"] for trace in traces(figure, "heatmap")] == ["coloraxis"] * 2
    layout = parsed(figure)["layout"]
    assert layout["coloraxis"]["cmax"] == pytest.approx(0.9)
    assert layout["yaxis"]["title"]["text"] == "sender layer<br>A"
    assert layout["xaxis2"]["title"]["text"] == "receiver layer<br>B"
    assert heads(figure) == ["RMS<br>null 0.050", "raw<br>null 0.050"]


def test_several_values_get_a_panel_and_a_null_each() -> None:
    table = pairs().assign(forward=0.4, backward=0.2, forward_null=0.3, backward_null=0.3)
    figure = drawn(
        table,
        value={"forward": "receiver from sender", "backward": "sender from receiver"},
        null={"forward": "forward_null", "backward": "backward_null"},
    )
    assert [trace["z"][0] for trace in traces(figure, "heatmap")] == [[0.4] * 3, [0.2] * 3]
    told = [head.replace("<br>", " ") for head in heads(figure)]
    assert told == ["receiver from sender null 0.300", "sender from receiver null 0.300"]
    assert [len(spots - {(None, None)}) for spots in dots(figure)] == [0, 12]


def test_values_beyond_given_bounds_are_told() -> None:
    said = drawn(pairs(), bounds=(0, 0.25)).layout.title.text
    assert "Values below 0.000 have its colour (lowest −0.200)." in " ".join(said.split("<br>")).replace(
        "</span> ", " "
    )
    assert "(highest 0.300)" in said
    assert "have its colour" not in drawn(pairs(), bounds=(-0.2, 0.3)).layout.title.text


@pytest.mark.parametrize("excess", [2e-16, 4e-6, 2e-4])
@pytest.mark.parametrize("bounds", [None, (0, 1)])
def test_a_model_with_itself_is_1_and_not_above_it(excess: float, bounds: tuple[int, int] | None) -> None:
    figure = drawn(pairs(debiased_cka=1 + excess), bounds=bounds)
    assert figure.layout.coloraxis.cmax == 1 and "have its colour" not in figure.layout.title.text
    above = drawn(pairs(debiased_cka=1.002), bounds=(0, 1)).layout.title.text
    assert "Values above 1.000 have its colour (highest 1.002)" in " ".join(above.split("<br>"))


def test_chosen_cells_get_rings_and_are_named_once() -> None:
    figure = drawn(pairs(), chosen=[(3, 1), (2, 2)])
    rings = [trace for trace in traces(figure, "scatter", "markers") if trace["marker"]["symbol"] == "circle-open"]
    assert [(ring["x"], ring["y"]) for ring in rings] == [([1, 2], [3, 2])] * 2
    assert [ring["name"] for ring in rings if ring["showlegend"]] == ["chosen cells"]


@pytest.mark.parametrize(
    ("up", "right", "step"), [(30, 30, 1), (30, 24, 1), (24, 30, 1), (32, 24, 4), (80, 40, 1), (3, 3, 1)]
)
def test_cells_are_square_and_the_sheet_fits_a_page(up: int, right: int, step: int) -> None:
    table = pd.DataFrame(
        {"sender_layer": a, "receiver_layer": b, "cka": 0.5, "view": view}
        for a in range(0, up, step)
        for b in range(0, right, step)
        for view in ("one", "two")
    )
    for options in ({"panels": "view"}, {}):
        part = table if options else table[table["view"] == "one"]
        figure = pair_map(part, value="cka", title="T", sender="a" * 40, receiver="b-" * 20, **options)
        layout = figure.layout
        wide = (layout.xaxis.domain[1] - layout.xaxis.domain[0]) * (layout.width - layout.margin.l - layout.margin.r)
        high = (layout.yaxis.domain[1] - layout.yaxis.domain[0]) * (layout.height - layout.margin.t - layout.margin.b)
        assert wide / len(range(0, right, step)) == pytest.approx(high / len(range(0, up, step)), rel=0.01)
        assert layout.width <= 900 and overlaps(figure) == []
        assert traces(figure, "heatmap")[0]["y"] == list(range(0, up, step))


def test_a_long_name_is_broken_and_gets_the_room() -> None:
    short, long = (
        drawn(pairs(), sender=name, receiver=name).layout for name in ("A", "an-organisation/a-very-long-name")
    )
    assert long.xaxis.title.text.replace("<br>", "") == "receiver layeran-organisation/a-very-long-name"
    assert long.xaxis.title.text.count("<br>") > 1
    assert long.margin.b > short.margin.b and long.margin.l > short.margin.l


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pairs().iloc[:0], "empty"),
        (pairs().drop(columns="sender_layer"), "lacks the column sender_layer"),
        (pairs().drop(columns="null_max"), "lacks the column null_max"),
        (pd.concat([pairs(), pairs()]), "more than once"),
        (pairs(debiased_cka=math.nan), "no pair of layers has a value in debiased_cka"),
        (pairs(debiased_cka=math.inf), "finite numbers"),
        (pairs(sender_layer=-1), "layers are whole numbers"),
        (pairs(null_max=math.nan), "column null_max has no number at 12 pairs, first .*; leave `null` out"),
    ],
    ids=["empty", "a column", "the null", "twice", "all missing", "infinite", "a layer below 0", "no null"],
)
def test_a_table_that_cannot_be_drawn_is_refused(table: pd.DataFrame, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        drawn(table, null="null_max")


def test_nulls_that_do_not_belong_to_the_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nulls are given for \['a'\] and the values are \['debiased_cka'\]"):
        drawn(pairs(), null={"a": "null_max"})


def test_a_panels_name_longer_than_the_panel_is_broken_and_gets_room() -> None:
    name = "RMS-normalised states, attention sinks left out by position and by norm"
    short, long = (drawn(pairs().assign(view=given), panels="view", null="null_max") for given in ("RMS", name))
    assert heads(long)[0].replace("<br>", " ") == f"{name} null 0.050" and heads(long)[0].count("<br>") >= 3
    assert long.layout.margin.t > short.layout.margin.t + 30


def test_a_chosen_cell_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chosen cell \(9, 1\) is not in the table"):
        drawn(pairs(), chosen=[(9, 1)])
