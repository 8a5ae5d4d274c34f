"""Healing curves against their table, read back from the figure's own JSON: what heals, and what does not."""

import math
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plot_tables import FUSIONS, LAST, WRITES, effects_table, healing_table

from figures import heads, named, parsed, traces
from latentcomm.reporting.plots import healing_curves, with_kl
from latentcomm.reporting.style import styles

UP = list(range(3, LAST + 1))


def curves(figure: go.Figure, name: str) -> list[dict]:
    return [trace for trace in traces(figure, "scatter", "lines+markers") if trace["name"] == name]


def one(**options) -> go.Figure:
    return healing_curves(healing_table(), **{"title": "t", "write_layers": [3]} | options)


def test_a_line_is_the_medians_from_its_write_layer_on() -> None:
    deviation, percentile = curves(one(), "sum")
    assert deviation["x"] == percentile["x"] == UP
    assert deviation["y"] == pytest.approx([3 / (2 + layer) for layer in UP])
    assert percentile["y"] == pytest.approx([1.5 / (2 + layer) for layer in UP])
    assert deviation["line"]["color"] == styles(FUSIONS)["sum"].colour


def test_a_band_runs_along_the_upper_quartiles_and_back_along_the_lower() -> None:
    band = next(trace for trace in traces(one(), "scatter", "lines") if trace.get("fill") == "toself")
    middle = np.array([2 / (2 + layer) for layer in UP])
    assert band["x"] == [*UP, *UP[::-1]]
    assert band["y"] == pytest.approx([*(1.1 * middle), *(0.9 * middle)[::-1]])


def test_the_message_is_the_one_asked_for_and_stands_in_the_title() -> None:
    figure = one(message="same text")
    assert curves(figure, "sum")[0]["y"][0] == pytest.approx(2 / 5)
    assert "same text" in figure.layout.title.text
    assert "other text" in one().layout.title.text


def test_a_column_of_panels_a_write_layer_none_of_them_the_last() -> None:
    assert heads(healing_curves(healing_table(), title="t")) == [f"written after layer {write}" for write in WRITES]
    table = pd.concat(healing_table().query("write_layer == 0").assign(write_layer=layer) for layer in range(LAST + 1))
    shown = [int(head.split()[-1]) for head in heads(healing_curves(table, title="t"))]
    assert len(shown) == 3 and shown[0] == 0 and max(shown) <= LAST - 3


def test_the_ungrafted_run_and_one_in_twenty_stand_beside_the_percentiles() -> None:
    figure = one()
    (own,) = named(figure, "ungrafted run")
    assert own["x"] == UP and own["y"] == pytest.approx([0.4 + layer / 100 for layer in UP])
    (rare,) = named(figure, "0.95: one real state in twenty lies above")
    assert own["yaxis"] == rare["yaxis"] == curves(figure, "sum")[1]["yaxis"]
    bare = healing_curves(healing_table().drop(columns="own_percentile_median"), title="t")
    assert named(bare, "ungrafted run") == []


def test_layers_without_a_reference_have_deviations_but_no_percentile() -> None:
    table = healing_table()
    table.loc[table.layer % 2 == 0, [f"percentile_{end}" for end in ("median", "low", "high")]] = math.nan
    deviation, percentile = curves(healing_curves(table, title="t", write_layers=[3]), "replace")
    assert deviation["x"] == UP and percentile["x"] == [3, 5, 7, 9]


def test_effects_stand_below_as_medians_and_quartiles() -> None:
    figure = one(effects=effects_table())
    dots = traces(figure, "scatter", "markers")
    assert [dot["x"][0] for dot in dots] == pytest.approx([0.2 * 3, 0.3 * 3])
    assert [dot["error_x"]["array"][0] for dot in dots] == pytest.approx([0.2, 0.3])
    assert [dot["error_x"]["arrayminus"][0] for dot in dots] == pytest.approx([0.2, 0.3])
    skewed = traces(one(effects=effects_table().assign(kl=lambda table: table["kl"] ** 2)), "scatter", "markers")
    assert skewed[0]["error_x"]["array"][0] == pytest.approx(0.2**2 * (16 - 9))
    assert skewed[0]["error_x"]["arrayminus"][0] == pytest.approx(0.2**2 * (9 - 4))
    assert figure.layout.xaxis3.type == "log" and "KL" in figure.layout.xaxis3.title.text
    assert figure.layout.yaxis3.ticktext == FUSIONS
    assert "xaxis3" not in parsed(one())["layout"]


def test_a_healed_percentile_beside_harm_that_stays_is_seen() -> None:
    table = healing_table()
    table.loc[table.layer > 5, "percentile_low"] = 0.4
    table.loc[table.layer > 5, "percentile_median"] = table["own_percentile_median"]
    table.loc[table.layer > 5, "percentile_high"] = 0.6
    figure = healing_curves(table, title="t", effects=effects_table().assign(kl=2.0), write_layers=[3])
    assert curves(figure, "sum")[1]["y"][-1] == named(figure, "ungrafted run")[0]["y"][-1]
    assert [dot["x"] for dot in traces(figure, "scatter", "markers")] == [[2.0], [2.0]]


def test_a_kl_of_zero_is_at_the_start_of_the_axis_with_a_note() -> None:
    figure = one(effects=effects_table().assign(kl=lambda table: table["kl"] * (table["fusion"] == "sum")))
    dots = traces(figure, "scatter", "markers")
    assert dots[0]["x"] == [1e-4] and dots[1]["x"] == pytest.approx([0.9])
    assert figure.layout.xaxis3.tickvals[0] == 1e-4 and figure.layout.xaxis3.ticktext[0] == "≤ 0.0001"
    low, high = figure.layout.xaxis3.range
    assert low < -4 and high > math.log10(1.2)
    assert "≤" not in "".join(one(effects=effects_table()).layout.xaxis3.ticktext)


def test_one_table_with_the_kl_gives_the_figure_of_two_tables() -> None:
    joined = with_kl(healing_table(), effects_table())
    assert (
        healing_curves(joined, title="t").to_json()
        == healing_curves(healing_table(), effects=effects_table(), title="t").to_json()
    )


def test_joining_quartiles_gives_each_row_its_grafts_and_nothing_else() -> None:
    effects = effects_table().assign(kl=lambda table: table["kl"] ** 2)
    joined = with_kl(healing_table().sample(frac=1, random_state=0), effects)
    for row in joined.to_dict("records"):
        part = effects[
            (effects.fusion == row["fusion"])
            & (effects.message == row["message"])
            & (effects.write_layer == row["write_layer"])
        ]
        assert (row["kl_low"], row["kl_median"], row["kl_high"]) == pytest.approx(
            np.quantile(part.kl, [0.25, 0.5, 0.75])
        )
    before = healing_table().sample(frac=1, random_state=0).reset_index(drop=True)
    pd.testing.assert_frame_equal(joined[before.columns], before)


def test_a_graft_without_effects_is_refused() -> None:
    with pytest.raises(ValueError, match="no row of sum, same text, 0"):
        with_kl(healing_table(), effects_table().query("fusion == 'replace'"))


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"message": "random"}, "no row of the table has the message 'random'; it has same text, other text"),
        ({}, {"write_layers": [4]}, "write layer 4 is not in the table"),
        ({"deviation_median": math.nan}, {}, "column deviation_median has no number in .*, first at fusion replace"),
        ({"deviation_low": 9.0}, {}, r"has deviation_low 9.0, .* they must rise from 0 on"),
        ({"percentile_high": math.nan}, {}, r"percentile_high nan; they must rise"),
        ({"layer": -1}, {}, "layers are whole numbers"),
        ({"kl_median": 1.0}, {}, "lacks the column kl_low, kl_high"),
        ({"kl_median": [*([1.0] * 9), 2.0] * 12, "kl_low": 0.0, "kl_high": 9.0}, {}, "give each graft one"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(change, options, said) -> None:
    with pytest.raises(ValueError, match=said):
        healing_curves(healing_table().assign(**change), title="t", **options)


def test_ticks_stand_on_the_layers_that_were_looked_at() -> None:
    table = healing_table().query("layer in (3, 6, 9)")
    assert healing_curves(table, title="t", write_layers=[3]).layout.xaxis2.tickvals == (3, 6, 9)
    assert one(write_layers=[0]).layout.xaxis2.dtick == 2


def test_a_curve_that_lies_on_another_is_dashed_and_named_in_the_note() -> None:
    table = healing_table()
    twin = table.query("fusion == 'replace'").assign(fusion="predictability_residual")
    for end in ("median", "low", "high"):  # as alike as a fitted map makes them
        twin[f"deviation_{end}"] *= 1.004
    figure = healing_curves(pd.concat([table, twin]), title="t")
    said = "Dashed: predictability residual deviates as replace does."
    assert said in " ".join(re.sub("<[^>]*>", " ", figure.layout.title.text).split())
    looks = {
        name: {curve["line"].get("dash") for curve in curves(figure, name)}
        for name in (*FUSIONS, "predictability residual")
    }
    assert looks == {"replace": {None}, "sum": {None}, "predictability residual": {"8px,8px"}}
    for end in ("median", "low", "high"):
        twin[f"deviation_{end}"] *= 1.1
    apart = healing_curves(pd.concat([table, twin]), title="t")
    assert "Dashed" not in apart.layout.title.text
    assert {curve["line"].get("dash") for curve in curves(apart, "predictability residual")} == {None}


def test_a_kl_of_nothing_may_be_rounded_below_0_and_no_further() -> None:
    nothing = effects_table().assign(kl=-1e-16)
    assert {dot["x"][0] for dot in traces(one(effects=nothing), "scatter", "markers")} == {1e-4}
    with pytest.raises(ValueError, match="they must rise from 0 on"):
        one(effects=effects_table().assign(kl=-1e-3))


def test_a_layer_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="fusion replace, write_layer 0, layer 0 is in the table more than once"):
        healing_curves(pd.concat([healing_table()] * 2), title="t")


def test_effects_without_a_column_are_refused() -> None:
    with pytest.raises(ValueError, match="lacks the column kl; it has fusion"):
        healing_curves(healing_table(), effects=effects_table().drop(columns="kl"), title="t")
    with pytest.raises(ValueError, match="column kl has no number in 60 of 60 rows"):
        healing_curves(healing_table(), effects=effects_table().assign(kl=math.nan), title="t")


def test_ticks_of_the_kl_are_powers_of_ten_that_do_not_crowd() -> None:
    wide = effects_table().assign(kl=lambda table: 10.0 ** (table["item"] - 3) * (1 + (table["fusion"] == "sum")))
    axis = parsed(one(effects=wide))["layout"]["xaxis3"]
    assert axis["tickvals"] == pytest.approx([10.0 ** round(math.log10(tick)) for tick in axis["tickvals"]])
    assert 2 <= len(axis["tickvals"]) <= 4
