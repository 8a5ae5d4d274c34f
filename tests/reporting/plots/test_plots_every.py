"""What holds of every figure of a diagnosis: one template, a page's width, words on every axis, the data alone."""

import json

import pandas as pd
import plotly.graph_objects as go
import pytest
from correlation import drift_against_accuracy
from plot_tables import (
    calibration_table,
    cascade_rows,
    cells_table,
    drift_table,
    effects_table,
    healing_table,
    loss_rows,
    pairs,
    signal_rows,
)

from figures import SIGHT, lab, linear, luminance, nearest, overlaps, parsed, titled_below, untitled
from latentcomm.reporting.plots import (
    cascade_curves,
    cascade_front,
    detector_table,
    drift_violins,
    healing_curves,
    loss_curves,
    opening_signals,
    pair_map,
    with_kl,
)
from latentcomm.reporting.publish import check_replot, publish, replot
from latentcomm.reporting.style import DEPTH, TEMPLATE


def similarity(table: pd.DataFrame, title: str) -> go.Figure:
    return pair_map(table, value="debiased_cka", null="null_max", title=title, chosen=[(1, 1)])


def healed() -> pd.DataFrame:
    return with_kl(healing_table().query("layer >= write_layer").reset_index(drop=True), effects_table())


DRAWN = {
    "pair_map": (similarity, pairs),
    "drift_violins": (drift_violins, drift_table),
    "healing_curves": (healing_curves, healed),
    "detector_table": (detector_table, calibration_table),
    "drift_against_accuracy": (drift_against_accuracy, cells_table),
    "cascade_curves": (cascade_curves, cascade_rows),
    "cascade_front": (cascade_front, cascade_rows),
    "opening_signals": (opening_signals, signal_rows),
    "loss_curves": (loss_curves, loss_rows),
}


@pytest.mark.parametrize(("plot", "table"), DRAWN.values(), ids=DRAWN)
class TestEveryFigure:
    def test_wears_the_template_and_has_a_size_that_fits_a_page(self, plot, table) -> None:
        figure = plot(table(), title="A title")
        assert figure.layout.template == go.Figure(layout={"template": TEMPLATE}).layout.template
        assert 300 <= figure.layout.width <= 900 and figure.layout.height >= 200
        assert figure.layout.title.text.startswith("A title")

    def test_says_on_every_axis_what_it_shows_and_no_panel_covers_another(self, plot, table) -> None:
        figure = plot(table(), title="A title")
        assert [name for name in untitled(figure) if not titled_below(figure, name)] == []
        assert overlaps(figure) == []

    def test_is_drawn_again_from_its_csv(self, plot, table, tmp_path) -> None:
        def draw(data: pd.DataFrame, settings: dict) -> go.Figure:
            return plot(data, title=settings["title"])

        names = {"name": "one", "folder": tmp_path}
        about = {"settings": {"title": "A title"}, "measured": {}, "models": {}}
        paths = publish(draw(table(), about["settings"]), table(), **names, **about)
        assert check_replot("one", tmp_path, draw) is None
        before = paths.figure.read_bytes()
        replot("one", tmp_path, draw)
        assert paths.figure.read_bytes() == before
        with pytest.raises(RuntimeError, match="plot it again"):
            check_replot("one", tmp_path, lambda data, settings: plot(data, title="Another title"))

    def test_needs_no_pointer_to_be_read(self, plot, table) -> None:
        """Nothing hides behind a menu, a slider or a trace that is switched off."""
        document = parsed(plot(table(), title="A title"))
        assert not {"updatemenus", "sliders"} & set(document["layout"])
        assert all(trace.get("visible", True) is True for trace in document["data"])

    def test_refuses_an_empty_table(self, plot, table) -> None:
        with pytest.raises(ValueError, match="empty"):
            plot(table().iloc[:0], title="A title")

    def test_refuses_a_table_that_lacks_its_columns_and_names_them(self, plot, table) -> None:
        with pytest.raises(ValueError, match=r"lacks the column .*; it has other$"):
            plot(pd.DataFrame({"other": [1]}), title="A title")

    def test_does_not_change_the_table(self, plot, table) -> None:
        given = table()
        plot(given, title="A title")
        pd.testing.assert_frame_equal(given, table())

    def test_gives_long_titles_the_room(self, plot, table) -> None:
        short, long = (plot(table(), title=title).layout for title in ("A title", "A title of words " * 20))
        assert long.height > short.height and long.height - short.height == long.margin.t - short.margin.t
        assert json.dumps(long.title.text).count("<br>") >= 2


@pytest.mark.parametrize("sight", SIGHT)
def test_depth_grows_brighter_in_steps_that_every_reader_sees(sight: str) -> None:
    colours = [colour for _, colour in DEPTH]
    lightness = [lab(SIGHT[sight] @ linear(colour))[0] for colour in colours]
    assert lightness == sorted(lightness)
    assert nearest(colours, sight) >= 8
    assert max(map(luminance, colours)) < 0.45  # and the brightest is still seen on white
