"""The map of layer pairs against its table, read back from the figure's own JSON."""

import json
import math

import pandas as pd
import pytest

from latentcomm.plots import pair_map


def pairs(**more: float) -> pd.DataFrame:
    return pd.DataFrame(
        {"sender_layer": a, "receiver_layer": b, "debiased_cka": (a - b) / 10, "null_max": 0.05} | more
        for a in range(4)
        for b in range(3)
    )


def parsed(table: pd.DataFrame, **options) -> dict:
    return json.loads(pair_map(table, value="debiased_cka", title="A map", **options).to_json())


def test_sender_layers_go_up_and_receiver_layers_right() -> None:
    heat = parsed(pairs())["data"][0]
    assert heat["z"] == [[(a - b) / 10 for b in range(3)] for a in range(4)]
    assert heat["y"] == [0, 1, 2, 3]


def test_negative_values_stay_and_the_scale_begins_at_them() -> None:
    assert parsed(pairs())["layout"]["coloraxis"]["cmin"] == pytest.approx(-0.2)


def test_exactly_the_pairs_that_do_not_exceed_the_null_are_marked() -> None:
    marks = parsed(pairs(), null="null_max")["data"][1]
    wanted = {(b, a) for a in range(4) for b in range(3) if (a - b) / 10 <= 0.05}
    assert set(zip(marks["x"], marks["y"], strict=True)) == wanted
    assert marks["name"] == "not above the null (0.050)"


def test_a_null_of_many_levels_is_told_as_a_span() -> None:
    table = pairs()
    table["null_max"] = [0.01 * row for row in range(len(table))]
    assert parsed(table, null="null_max")["data"][1]["name"] == "not above the null (0.000 to 0.110)"


def test_a_pair_that_was_not_measured_is_blank_and_not_zero() -> None:
    table = pairs().iloc[1:].copy()
    table.loc[5, "debiased_cka"] = math.nan
    heat = parsed(table, null="null_max")["data"][0]
    assert heat["z"][0][0] is None
    assert heat["z"][1][2] is None


def test_panels_share_one_scale_and_the_names_stand_on_the_axes() -> None:
    table = pd.concat([pairs().assign(view="RMS"), pairs().assign(view="raw", debiased_cka=0.9)])
    figure = parsed(table, panels="view", sender="A", receiver="B", null="null_max")
    assert [trace["type"] for trace in figure["data"]] == ["heatmap", "scatter"] * 2
    assert figure["layout"]["coloraxis"]["cmax"] == pytest.approx(0.9)
    assert figure["layout"]["yaxis"]["title"]["text"] == "layer of A"
    assert figure["layout"]["xaxis2"]["title"]["text"] == "layer of B"
    assert [trace["showlegend"] for trace in figure["data"][1::2]] == [True, False]


def test_layers_in_steps_keep_their_numbers() -> None:
    table = pairs()
    table["sender_layer"] *= 5
    assert parsed(table)["data"][0]["y"] == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pairs().iloc[:0], "empty"),
        (pairs().drop(columns="sender_layer"), "lacks the column sender_layer"),
        (pd.concat([pairs(), pairs()]), "more than once"),
        (pairs(debiased_cka=math.nan), "no value at all"),
        (pairs(debiased_cka=math.inf), "finite numbers"),
        (pairs(sender_layer=-1), "layers are whole numbers"),
    ],
    ids=["empty", "a column", "twice", "all missing", "infinite", "a layer below 0"],
)
def test_a_table_that_cannot_be_drawn_is_refused(table: pd.DataFrame, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsed(table)


def test_a_null_without_any_value_is_refused() -> None:
    with pytest.raises(ValueError, match="no value at all; leave"):
        parsed(pairs(null_max=math.nan), null="null_max")
