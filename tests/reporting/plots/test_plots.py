"""Figures show what stands in their table, where it belongs, in colours that are the same everywhere."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from figures import SIGHT, axes_of, luminance, nearest, overlaps, untitled
from latentcomm.reporting.plots import condition_bars, factor_grid, layer_heatmap
from latentcomm.reporting.style import SPARE_STYLES, STYLES, TEMPLATE, styles

ROOT = Path(__file__).resolve().parents[3]
CORE = ("silent", "skyline", "replace", "mean", "sum", "shuffled", "zero", "random", "self", "text")


def grid(reads=range(4), writes=range(3)) -> pd.DataFrame:
    """A planted grid that is not symmetric: 0.1 a read layer and 0.01 a write layer, its rows in no order."""
    rows = [
        {"read_layer": k, "write_layer": j, "free": (10 * k + j) / 100, "choices": (10 * k + j) / 50, "lens": k / 10}
        for k, j in itertools.product(reads, writes)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def bars(metrics=("free", "choices"), conditions=("silent", "replace", "shuffled")) -> pd.DataFrame:
    rows = []
    for rank, (metric, condition) in enumerate(itertools.product(metrics, conditions)):
        middle = (rank + 2) / 10
        row = {
            "condition": condition,
            "metric": metric,
            "accuracy": middle,
            "low": middle - 0.15,
            "high": middle + 0.05,
        }
        rows.append(row | {"n": 40})
    return pd.DataFrame(rows)


def factors() -> pd.DataFrame:
    levels = (
        ("raw", "chat"),
        ("famous", "obscure"),
        ("sentence", "primed"),
        ("silent", "replace"),
        ("free", "choices"),
    )
    names = ("template", "fame", "sender_form", "condition", "metric")
    rows = []
    for rank, combination in enumerate(itertools.product(*levels)):
        rows.append(
            dict(zip(names, combination, strict=True)) | {"accuracy": rank / 40, "low": 0.0, "high": 1.0, "n": 25}
        )
    return pd.DataFrame(rows)


FIGURES = {
    "layer_heatmap": lambda: layer_heatmap(
        grid(), value={"free": "free", "choices": "choices"}, title="Grid", chosen=(2, 1), lens="lens"
    ),
    "condition_bars": lambda: condition_bars(
        bars(conditions=("silent", "my own")), title="Bars", chance={"choices": 0.05}
    ),
    "factor_grid": lambda: factor_grid(factors(), title="Factors", chance={"choices": 0.05}),
}


def drawn(figure: go.Figure) -> dict:
    return figure.to_plotly_json()


def scatters(figure: go.Figure, mode: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.type == "scatter" and trace.mode == mode]


# Heat-map


def test_a_heatmap_has_read_layers_upwards_and_write_layers_to_the_right() -> None:
    table = grid()
    figure = layer_heatmap(table, value="free", title="Grid")
    heat = figure.data[0]
    shown = {(k, j): heat.z[row][column] for row, k in enumerate(heat.y) for column, j in enumerate(heat.x)}
    assert shown == {(row.read_layer, row.write_layer): row.free for row in table.itertuples()}
    assert figure.layout.xaxis.range == (-0.5, 2.5) and figure.layout.yaxis.range == (-0.5, 3.5)  # 0 at the lower left
    assert "write layer" in figure.layout.xaxis.title.text and "read layer" in figure.layout.yaxis.title.text


def test_a_heatmap_of_the_swapped_table_is_another_one() -> None:
    swapped = grid().rename(columns={"read_layer": "write_layer", "write_layer": "read_layer"})
    one, other = layer_heatmap(grid(), value="free", title=""), layer_heatmap(swapped, value="free", title="")
    assert [list(row) for row in zip(*one.data[0].z, strict=True)] == [list(row) for row in other.data[0].z]
    assert one.data[0].z != other.data[0].z


def test_the_chosen_cell_is_ringed_where_it_is_and_named() -> None:
    figure = layer_heatmap(grid(), value={"free": "a", "choices": "b"}, title="", chosen=(3, 1))
    rings = scatters(figure, "markers")
    assert {(ring.x, ring.y) for ring in rings} == {((1,), (3,))}
    assert {ring.xaxis for ring in rings} == {"x", "x2"}
    assert [ring.name for ring in rings if ring.showlegend] == ["chosen cell: k = 3, j = 1"]


def test_panels_share_one_colour_scale_with_one_titled_bar() -> None:
    figure = layer_heatmap(grid(), value={"free": "a", "choices": "b"}, title="", unit="share right")
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [heat.coloraxis for heat in heats] == ["coloraxis", "coloraxis"]
    assert figure.layout.coloraxis.colorbar.title.text == "share right"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 0.7)  # the highest of both is 0.64


def test_the_colour_scale_grows_steadily_brighter() -> None:
    figure = layer_heatmap(grid(), value="free", title="")
    scale = [luminance(colour) for _, colour in figure.layout.coloraxis.colorscale]
    assert scale == sorted(scale) and scale[-1] - scale[0] > 0.5


def test_a_long_table_gives_the_panels_that_a_wide_one_gives() -> None:
    wide = grid()
    long = wide.melt(["read_layer", "write_layer"], ["free", "choices"], "metric", "accuracy")
    one = layer_heatmap(wide, value={"free": "free", "choices": "choices"}, title="T")
    other = layer_heatmap(long, value="accuracy", panels="metric", title="T")
    assert drawn(one) == drawn(other)


def test_cells_without_a_value_are_blank_and_uneven_layers_equally_wide() -> None:
    table = grid(reads=(0, 5, 29), writes=(0, 1))
    table.loc[(table.read_layer == 5) & (table.write_layer == 1), "free"] = math.nan
    table = table[~((table.read_layer == 29) & (table.write_layer == 0))]
    heat = layer_heatmap(table, value="free", title="", bounds=(0, 1)).data[0]
    assert heat.y == ("0", "5", "29") and heat.x == (0, 1)
    assert [list(row) for row in heat.z] == [[0.0, 0.01], [0.5, None], [None, 2.91]]


def test_ticks_stand_on_layers() -> None:
    by_three = layer_heatmap(grid(reads=(1, 4, 7, 10), writes=range(30)), value="free", title="").layout
    assert (by_three.yaxis.tick0, by_three.yaxis.dtick) == (1, 3)
    assert (by_three.xaxis.tick0, by_three.xaxis.dtick) == (0, 5)


def test_the_lens_is_next_to_the_grids_column_at_the_chosen_write_layer() -> None:
    figure = layer_heatmap(grid(), value={"free": "a", "choices": "b"}, title="", chosen=(2, 1), lens="lens")
    lines = {trace.name: (trace.x, trace.y) for trace in scatters(figure, "lines")}
    layers = (0, 1, 2, 3)
    assert lines == {
        "a: graft, j = 1": ((0.01, 0.11, 0.21, 0.31), layers),
        "a: logit lens": ((0.0, 0.1, 0.2, 0.3), layers),
        "b: graft, j = 1": ((0.02, 0.22, 0.42, 0.62), layers),
        "b: logit lens": ((0.0, 0.1, 0.2, 0.3), layers),
    }


def test_each_value_has_a_lens_of_its_own() -> None:
    table = grid().assign(other=lambda table: table["read_layer"] / 20)
    lens = {"choices": "other", "free": "lens"}
    figure = layer_heatmap(table, value={"free": "a", "choices": "b"}, title="", lens=lens)
    assert {trace.name: trace.x[-1] for trace in scatters(figure, "lines")} == {
        "a: logit lens": 0.3,
        "b: logit lens": 0.15,
    }


def test_a_lens_that_depends_on_the_write_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"column free has .* one share for all cells of a read layer"):
        layer_heatmap(grid(), value="choices", title="", lens="free")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"chosen": (9, 1)}, r"chosen cell \(9, 1\) is not in the grid"),
        ({}, {"chosen": (1, 3)}, r"chosen cell \(1, 3\) is not in the grid"),
        ({}, {"value": "accuracy"}, "lacks the column accuracy; it has read_layer"),
        ({}, {"lens": "absent", "panels": "metric"}, "lacks the column metric, absent"),
        ({}, {"lens": {"choices": "lens"}}, r"lens is given for \['choices'\] and the values are \['free'\]"),
        ({"read_layer": 0.5}, {}, "read_layer has 0.5; layers are whole numbers"),
        ({"write_layer": -1}, {}, "write_layer has -1; layers are whole numbers"),
        ({"read_layer": 0}, {}, r"the cell \(0, \d\) is in the table more than once"),
        ({"free": math.inf}, {}, "free has inf; a figure needs finite numbers"),
        ({"free": "high"}, {}, "free has 'high'; a figure needs finite numbers"),
        ({"free": math.nan}, {}, "no cell of the table has a value"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_refused_in_words(change, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        layer_heatmap(grid().assign(**change), **{"value": "free", "title": ""} | options)


# Dots with intervals


def test_conditions_stand_in_the_order_given_from_the_top() -> None:
    figure = condition_bars(bars(), title="")
    assert figure.layout.yaxis.ticktext == ("silent", "replace", "shuffled")
    assert figure.layout.yaxis.range == (2.5, -0.5)  # 0, the first, at the top
    turned = condition_bars(bars(conditions=("shuffled", "replace", "silent")), title="")
    assert turned.layout.yaxis.ticktext == ("shuffled", "replace", "silent")


def test_each_dot_stands_in_its_row_and_its_line_reaches_from_low_to_high() -> None:
    table = bars()
    figure = condition_bars(table, title="", chance={"choices": 0.05})
    metrics = dict(zip(("x", "x2"), ("free", "choices"), strict=True))
    shown = {
        (metrics[trace.xaxis], figure.layout.yaxis.ticktext[trace.y[0]]): (
            trace.x[0],
            round(trace.x[0] - trace.error_x.arrayminus[0], 9),
            round(trace.x[0] + trace.error_x.array[0], 9),
        )
        for trace in scatters(figure, "markers")
    }
    assert shown == {
        (row.metric, row.condition): (row.accuracy, round(row.low, 9), round(row.high, 9)) for row in table.itertuples()
    }


def test_the_numbers_beside_the_dots_are_theirs() -> None:
    figure = condition_bars(bars(), title="")
    written = {(note.yref, note.y): note.text for note in figure.layout.annotations if note.yref in ("y", "y2")}
    assert written[("y", 1)] == "0.30" and written[("y2", 2)] == "0.70" and len(written) == 6


def test_the_number_of_items_is_in_the_heads_or_next_to_each_dot() -> None:
    texts = [note.text for note in condition_bars(bars(), title="").layout.annotations]
    assert "free (n = 40)" in texts and "0.30" in texts
    uneven = bars().assign(n=range(40, 46))
    texts = [note.text for note in condition_bars(uneven, title="").layout.annotations]
    assert "free" in texts and "0.30 (n = 41)" in texts


def test_controls_stand_below_the_name_of_their_group() -> None:
    rows = [("silent", "message"), ("sum", "message"), ("sum", "shuffled"), ("logit lens", "layer 3")]
    share = {"metric": "free", "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    table = pd.DataFrame([{"channel": channel, "condition": condition} | share for channel, condition in rows])
    figure = condition_bars(table, title="", group="channel")
    assert [re.sub("<.*?>", "", text) for text in figure.layout.yaxis.ticktext] == [
        "silent",
        "sum",
        "shuffled",
        "logit lens, layer 3",
    ]
    colours = [trace.marker.color for trace in figure.data]
    assert colours == [STYLES[name].colour for name in ("silent", "sum", "shuffled", "logit lens")]


def test_the_same_control_of_two_groups_gets_two_rows() -> None:
    rows = [(channel, condition) for channel in ("mean", "sum") for condition in ("message", "shuffled")]
    table = pd.DataFrame(rows, columns=["channel", "condition"]).assign(metric="free", low=0.0, high=1.0, n=9)
    figure = condition_bars(table.assign(accuracy=[0.1, 0.2, 0.3, 0.4]), title="", group="channel")
    assert [(trace.y[0], trace.x[0]) for trace in figure.data] == [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)]
    with pytest.raises(ValueError, match="shuffled, free is in the table more than once"):
        condition_bars(table[table.condition == "shuffled"].assign(accuracy=0.5), title="")


def test_chance_is_drawn_in_its_metric_alone() -> None:
    figure = condition_bars(bars(), title="", chance={"choices": 0.05})
    (line,) = scatters(figure, "lines")
    assert (line.name, line.xaxis, line.x, line.showlegend) == ("chance", "x2", (0.05, 0.05), True)


def test_every_row_of_a_factor_grid_is_shown_once_where_it_belongs() -> None:
    table = factors()
    figure = factor_grid(table, title="")
    axes = axes_of(figure)
    heads = {note.xref: note.text for note in figure.layout.annotations if str(note.xref).endswith("domain")}
    heads = {tuple(axes[f"{ref.split()[0][0]}axis{ref.split()[0][1:]}"]["domain"]): text for ref, text in heads.items()}
    upper = max(axis["domain"][1] for name, axis in axes.items() if name.startswith("yaxis"))
    shown = []
    for trace in figure.data:
        if trace.showlegend:
            continue
        x, y = axes["xaxis" + trace.xaxis[1:]], axes["yaxis" + trace.yaxis[1:]]
        template, fame = heads[tuple(x["domain"])].split("<br>")[0].split(", ")
        metric = "free" if y["domain"][1] == upper else "choices"
        for at, share in zip(trace.y, trace.x, strict=True):
            shown.append((template, fame, y["ticktext"][round(at)], trace.name, metric, share))
    columns = ["template", "fame", "sender_form", "condition", "metric", "accuracy"]
    assert sorted(shown) == sorted(table[columns].itertuples(index=False, name=None))


def test_the_dots_of_a_band_do_not_cover_each_other_and_stay_inside_it() -> None:
    figure = factor_grid(factors(), title="")
    heights = sorted(at for trace in figure.data if trace.xaxis == "x" and trace.x != (None,) for at in trace.y)
    assert all(after - before > 0.2 for before, after in itertools.pairwise(heights))
    assert all(abs(at - round(at)) < 0.45 for at in heights)


def test_the_legend_of_a_factor_grid_names_each_condition_once() -> None:
    partial = factors()
    partial = partial[~((partial.template == "raw") & (partial.condition == "replace"))]  # not in the first panel
    figure = factor_grid(partial, title="", chance={"choices": 0.05})
    assert [trace.name for trace in figure.data if trace.showlegend] == ["silent", "replace", "chance"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"low": 0.99}, {}, r"silent, free has low 0.99, accuracy 0.2"),
        ({"high": 1.2}, {}, r"high 1.2; they must rise, between 0 and 1"),
        ({"low": -0.1}, {}, r"low -0.1, .* they must rise, between 0 and 1"),
        ({"accuracy": math.nan}, {}, "accuracy nan"),
        ({"condition": "silent"}, {}, "silent, free is in the table more than once"),
        (
            {},
            {"chance": {"guess": 0.1}},
            r"chance is given for 'guess'; the metrics of the table are \['free', 'choices'\]",
        ),
        ({}, {"chance": {"free": 5}}, "it is a share, between 0 and 1"),
        ({}, {"group": "channel"}, "lacks the column channel; it has condition, metric"),
    ],
)
def test_shares_that_cannot_be_drawn_are_refused_in_words(change, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        condition_bars(bars().assign(**change), **{"title": ""} | options)


# All figures


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_that_shows_labels_has_a_title(name: str) -> None:
    figure = FIGURES[name]()
    assert len(axes_of(figure)) >= 4 and untitled(figure) == []
    figure.layout.xaxis.title.text = ""
    figure.layout.xaxis.showticklabels = True
    assert untitled(figure) == ["xaxis"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_uses_the_one_template_alone(name: str) -> None:
    figure = FIGURES[name]()
    assert figure.layout.template == go.Figure(layout={"template": TEMPLATE}).layout.template
    assert figure.layout.template.layout.plot_bgcolor == figure.layout.template.layout.paper_bgcolor == "white"
    assert figure.layout.template.layout.font.family.endswith("sans-serif")
    assert figure.layout.template.data == go.layout.template.Data()


@pytest.mark.parametrize("name", FIGURES)
def test_no_axis_leaves_the_sheet_or_overlaps_another(name: str) -> None:
    assert overlaps(FIGURES[name]()) == []


@pytest.mark.parametrize(
    ("draw", "needs"),
    [
        (lambda table: layer_heatmap(table, value="free", title=""), "read_layer, write_layer, free"),
        (lambda table: condition_bars(table, title=""), "condition, metric, accuracy, low, high, n"),
        (
            lambda table: factor_grid(table, title=""),
            "template, fame, sender_form, condition, metric, accuracy, low, high, n",
        ),
    ],
    ids=FIGURES,
)
def test_missing_columns_are_named_and_an_empty_table_is_refused(draw, needs: str) -> None:
    with pytest.raises(ValueError, match=f"lacks the column {needs}; it has other"):
        draw(pd.DataFrame({"other": [1]}))
    with pytest.raises(ValueError, match="the table is empty"):
        draw(pd.DataFrame(columns=needs.split(", ")))


def test_a_table_is_left_as_it_was() -> None:
    for table, draw in (
        (grid(), lambda t: layer_heatmap(t, value="free", title="")),
        (bars(), lambda t: condition_bars(t, title="")),
    ):
        before = table.copy(deep=True)
        draw(table)
        pd.testing.assert_frame_equal(table, before, check_exact=True)


def test_long_titles_are_broken_into_lines_and_get_the_room() -> None:
    short = layer_heatmap(grid(), value="free", title="Short", note="A note")
    long = layer_heatmap(grid(), value="free", title="A title of many words " * 6, note="A note")
    lines = [re.sub("<.*?>", "", line) for line in long.layout.title.text.split("<br>")]
    assert len(lines) > 2 and max(map(len, lines)) < 60 and lines[-1] == "A note"
    assert long.layout.height - short.layout.height == long.layout.margin.t - short.layout.margin.t > 30


def test_another_process_draws_the_same_bytes() -> None:
    bytes_of = "[t.FIGURES[name]().to_json(engine='json') for name in t.FIGURES]"
    code = f"import json, test_plots as t; print(json.dumps({bytes_of}))"
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [FIGURES[name]().to_json(engine="json") for name in FIGURES]


# Colours


@pytest.mark.parametrize("sight", SIGHT)
def test_the_common_conditions_colours_differ_for_every_kind_of_sight(sight: str) -> None:
    assert nearest([STYLES[name].colour for name in CORE], sight) >= 12


def test_red_and_green_would_not_be_told_apart_by_every_reader() -> None:
    assert nearest(["#CC4422", "#778822"], "full") > 40
    assert min(nearest(["#CC4422", "#778822"], sight) for sight in SIGHT) < 12


def test_no_two_styles_are_the_same() -> None:
    every = [*STYLES.values(), *SPARE_STYLES]
    assert len(set(every)) == len(every)


def test_a_condition_has_one_colour_in_every_figure() -> None:
    figures = [
        condition_bars(bars(conditions=("replace", "mine", "mean")), title=""),
        condition_bars(bars(conditions=("shuffled", "mean", "replace", "mine")), title="", chance={"free": 0.5}),
        factor_grid(factors().replace({"condition": {"silent": "mine"}}), title=""),
    ]
    seen = [{trace.name: trace.marker.color for trace in scatters(figure, "markers")} for figure in figures]
    assert {looks["replace"] for looks in seen} == {"#0072B2"}
    assert seen[0]["mean"] == seen[1]["mean"] == "#D55E00"
    assert len({looks["mine"] for looks in seen}) == 1


def test_unknown_names_differ_in_one_figure_while_styles_last() -> None:
    names = [f"channel {number}" for number in range(len(SPARE_STYLES) + 1)]
    given = styles(names)
    assert set(given.values()) == set(SPARE_STYLES) and len(given) == len(SPARE_STYLES) + 1
    assert styles(names) == given
