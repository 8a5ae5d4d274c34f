"""The table of detectors against its table, read back from the figure's own JSON."""

import math

import pandas as pd
import pytest
from plot_tables import DETECTORS, calibration_table

from figures import SIGHT, contrast, heads, luminance, nearest, parsed, traces
from latentcomm.drift import DETECTORS as ALL_DETECTORS
from latentcomm.drift import FAMILIES
from latentcomm.reporting.plots import detector_table
from latentcomm.reporting.style import DIVERGING, INK


def test_every_number_stands_in_its_cell_as_colour_and_as_text() -> None:
    table = calibration_table()
    figure = detector_table(table, title="t")
    assert heads(figure) == ["layer 5", "layer 15"]
    for layer, heat in zip((5, 15), traces(figure, "heatmap"), strict=True):
        part = table[table.layer == layer].pivot(index="detector", columns="family", values="two_sided")
        for row, text, detector in zip(heat["z"], heat["text"], DETECTORS, strict=True):
            assert row == [part.loc[detector, family] for family in ("real", "sum")]
            assert text == [f"{value:.2f}" for value in row]
    layout = parsed(figure)["layout"]
    assert layout["xaxis2"]["ticktext"] == ["real", "sum"]
    assert layout["yaxis"]["ticktext"] == ["cosine", "kNN distance", "combined"]
    assert layout["yaxis"]["range"] == [2.5, -0.5]  # the first at the top


def test_a_cell_that_was_not_measured_is_blank() -> None:
    heat = traces(detector_table(calibration_table().iloc[1:], title="t"), "heatmap")[0]
    whole = calibration_table()["two_sided"]
    assert heat["z"] == [[whole[1], whole[4]], [whole[2], whole[5]], [None, whole[3]]]  # cosine is now seen last
    assert heat["text"][2][0] == ""


def test_the_middle_of_the_scale_is_a_coin() -> None:
    axis = parsed(detector_table(calibration_table(), title="t"))["layout"]["coloraxis"]
    assert (axis["cmin"], axis["cmax"]) == (0, 1)
    assert axis["colorscale"] == [list(stop) for stop in DIVERGING]
    assert axis["colorscale"][1][0] == 0.5 == axis["colorbar"]["tickvals"][2]


@pytest.mark.parametrize("sight", SIGHT)
def test_both_sides_and_the_middle_are_told_apart_by_every_reader(sight: str) -> None:
    colours = [colour for _, colour in DIVERGING]
    assert nearest(colours, sight) >= 25
    assert luminance(colours[1]) > max(luminance(colours[0]), luminance(colours[2]))


def test_the_numbers_can_be_read_on_every_colour() -> None:
    heat = traces(detector_table(calibration_table(), title="t"), "heatmap")[0]
    assert heat["textfont"]["color"] == INK
    assert min(contrast(INK, colour) for _, colour in DIVERGING) >= 4.5


def test_several_values_get_a_panel_each() -> None:
    table = calibration_table().query("layer == 5")
    figure = detector_table(table, title="t", value={"one_sided": "one-sided", "two_sided": "two-sided"})
    assert heads(figure) == ["layer 5, one-sided", "layer 5, two-sided"]
    assert traces(figure, "heatmap")[0]["z"] == [[0.5, 0.5]] * 3
    assert traces(figure, "heatmap")[1]["z"][2] == [0.175, 0.2]


@pytest.mark.parametrize("more", [(), ("another_layer",), ("layer_below", "layer_above", "a_map_of_another_model")])
def test_all_families_fit_a_page_and_their_names_stay_apart(more: tuple[str, ...]) -> None:
    table = pd.DataFrame(
        {"layer": 3, "family": family, "detector": detector, "two_sided": 0.5}
        for family in (*FAMILIES, *more)
        for detector in (*ALL_DETECTORS, "combined")
    )
    layout = detector_table(table, title="t").layout
    assert layout.width <= 900
    cell = (layout.xaxis.domain[1] - layout.xaxis.domain[0]) * (layout.width - layout.margin.l - layout.margin.r)
    cell /= len(FAMILIES) + len(more)
    longest = max(len(word) for text in layout.xaxis.ticktext for word in text.split("<br>"))
    assert 6.4 * 12 / 13 * longest <= cell if layout.xaxis.tickangle == 0 else layout.xaxis.tickangle == -90


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"two_sided": 55.0}, {}, "column two_sided has 55.0; an AUROC is between 0 and 1"),
        ({"two_sided": math.nan}, {}, "column two_sided has no number in 12 of 12 rows"),
        ({"layer": 5}, {}, "real, cosine is in panel 'layer 5' more than once"),
        ({}, {"value": "three_sided"}, "lacks the column three_sided"),
        ({}, {"panels": "site"}, "lacks the column site"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(change, options, said) -> None:
    with pytest.raises(ValueError, match=said):
        detector_table(calibration_table().assign(**change), title="t", **options)
