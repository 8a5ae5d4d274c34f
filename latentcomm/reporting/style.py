"""The style of every figure: colours of conditions, the template, panels laid out in pixels, dots with intervals."""

import math
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import plotly.graph_objects as go

INK, MUTED, GRID, BAND, BLANK = "#1A1A1A", "#595959", "#E3E3E3", "#F4F4F4", "#DADADA"
TITLE_SIZE, TEXT_SIZE, TICK_SIZE = 16, 14, 13  # 780 px across a page's 6.75 in print these at 10, 9 and 8 pt
LETTER = {
    TITLE_SIZE: 8.2,
    TEXT_SIZE: 7.0,
    TICK_SIZE: 6.4,
}  # px a letter takes, about; margins are fixed, text is not measured
LINE = 19  # px from one line of text to the next
LEGEND_AT = 0.01  # share of a sheet's height below the legend
FOOT = 70  # px below panels for the labels and the title of an axis, and a little before the legend
PAGE = 900  # px across that a page has room for
MINUS = "\N{MINUS SIGN}"  # as plotly sets it along the axes


class Style(NamedTuple):
    """A condition's style in every figure: a colour safe for colour-blind sight, and a shape for all."""

    colour: str
    symbol: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """The style of each name: its own from `STYLES`, else one of `SPARE_STYLES`.

    An unknown name starts at an index into `SPARE_STYLES` fixed by its letters (CRC-32), and moves on while another
    name of the same figure has that style, so that its style is the same in every figure where that is possible.

    >>> styles(["replace", "my channel"])["replace"]
    Style(colour='#0072B2', symbol='circle')
    """
    given: dict[str, Style] = {}
    for name in dict.fromkeys(names):
        start = zlib.crc32(name.encode())
        spare = [SPARE_STYLES[(start + step) % len(SPARE_STYLES)] for step in range(len(SPARE_STYLES))]
        free = [style for style in spare if style not in given.values()]
        given[name] = STYLES.get(name) or (free or spare)[0]
    return given


@dataclass(frozen=True)
class Sheet:
    """A figure laid out in pixels: `across` by `down` of them inside the margins, counted from the lower left."""

    figure: go.Figure
    across: int
    down: int

    def panel(self, index: int, spot: Sequence[int], x: dict[str, Any], y: dict[str, Any], head: str) -> dict[str, str]:
        """Add a pair of axes at (left, bottom, width, height), and give what a trace needs to be drawn on them."""
        left, bottom, width, height = spot
        number = str(index + 1) if index else ""
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        x = x | {"anchor": axes["yaxis"], "domain": _within(left / self.across, (left + width) / self.across)}
        y = y | {"anchor": axes["xaxis"], "domain": _within(bottom / self.down, (bottom + height) / self.down)}
        self.figure.update_layout({f"xaxis{number}": x, f"yaxis{number}": y})
        if head:
            spot_of_head = {"x": 0.5, "xref": f"{axes['xaxis']} domain", "y": 1, "yref": f"{axes['yaxis']} domain"}
            self.figure.add_annotation(spot_of_head, text=head, yanchor="bottom", yshift=2, showarrow=False)
        return axes

    def write(self, text: str, axes: dict[str, str], row: int) -> None:
        """Write right of a panel, at the height of one of its rows."""
        spot = {
            "x": 1,
            "xref": f"{axes['xaxis']} domain",
            "xanchor": "left",
            "xshift": 6,
            "y": row,
            "yref": axes["yaxis"],
        }
        self.figure.add_annotation(spot, text=text, showarrow=False, font={"size": TICK_SIZE})

    def write_aside(self, text: str, height: float | int) -> None:
        """Write along the right edge, turned, centred on a height in pixels."""
        spot = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 6, "y": height / self.down, "yref": "paper"}
        self.figure.add_annotation(spot, text=text, showarrow=False, textangle=90, yanchor="middle")

    def shade(self, axes: dict[str, str], low: float | int, high: float | int, colour: str = BAND) -> None:
        """Tint a band across a panel, between two heights of its own axis."""
        spot = {"x0": 0, "x1": 1, "xref": f"{axes['xaxis']} domain", "y0": low, "y1": high, "yref": axes["yaxis"]}
        self.figure.add_shape(spot, fillcolor=colour, line={"width": 0}, layer="below")

    def rule(self, axes: dict[str, str], height: int) -> None:
        """Draw a thin line across a panel, at a height of its own axis (on a category axis, the category's index)."""
        spot = {"x0": 0, "x1": 1, "xref": f"{axes['xaxis']} domain", "y0": height, "y1": height, "yref": axes["yaxis"]}
        self.figure.add_shape(spot, line={"color": MUTED, "width": 1}, layer="below")


def blank_sheet(
    title: str,
    note: str,
    entries: Sequence[str],
    *,
    across: int,
    down: int,
    left: int,
    right: int,
    head: int,
    foot: int = 58,
) -> Sheet:
    """An empty sheet, with room for the title, the note, the legend's entries, and in pixels for the heads above the
    panels and the labels and titles below them.
    """
    width = across + left + right
    titles, notes = (
        textwrap.wrap(title, int((width - 24) / LETTER[TITLE_SIZE])),
        textwrap.wrap(note, int((width - 24) / LETTER[TICK_SIZE])),
    )
    small = f'<span style="font-size:{TICK_SIZE}px;color:{MUTED}">{{}}</span>'
    top = 16 + (LINE + 2) * len(titles) + LINE * len(notes) + head
    bottom = foot + 20 * _legend_lines(entries, across)
    bottom += max(0, round((top + down + bottom) * LEGEND_AT) - 8)  # or the axis titles make way for the legend
    height = top + down + bottom
    margin = {"l": left, "r": right, "t": top, "b": bottom, "autoexpand": False}
    heading = {"text": "<br>".join([*titles, *map(small.format, notes)]), "y": 1 - 24 / height}
    layout = {"template": TEMPLATE, "title": heading, "margin": margin, "width": width, "height": height}
    return Sheet(go.Figure(layout=layout), across, down)


def bare(axis: dict[str, Any]) -> dict[str, Any]:
    """The axis of a panel whose neighbour carries the labels and the title."""
    return {name: what for name, what in axis.items() if name != "title"} | {"showticklabels": False}


def names_axis(names: Sequence[str], title: str) -> dict[str, Any]:
    """An axis with a name at 0, 1, 2, ... from the top."""
    ticks = {"range": [len(names) - 0.5, -0.5], "tickvals": list(range(len(names))), "ticktext": list(names)}
    return ticks | {"title": {"text": title}, "ticks": ""}


def dots(
    rows: Sequence[Mapping[str, Any]],
    heights: Sequence[float | int],
    style: Style,
    axes: dict[str, str],
    name: str,
    *,
    named: bool = False,
) -> go.Scatter:
    """Dots with their intervals; without any, their legend entry."""
    interval = {
        "array": [row["high"] - row["accuracy"] for row in rows],
        "arrayminus": [row["accuracy"] - row["low"] for row in rows],
        "color": style.colour,
        "symmetric": False,
        "thickness": 2,
        "type": "data",
        "width": 0,
    }
    return go.Scatter(
        axes,
        x=[row["accuracy"] for row in rows] or [None],
        y=list(heights) or [None],
        customdata=[[row["low"], row["high"], row["n"]] for row in rows],
        error_x=interval,
        hovertemplate="%{x:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f}), n = %{customdata[2]}",
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "size": 10,
            "line": {"width": 2 if "open" in style.symbol else 0},
        },
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=named,
    )


def rings(spots: Sequence[tuple[int | str, int | str]], size: int, axes: dict[str, str], name: str) -> list[go.Scatter]:
    """Black rings in white ones: seen on every colour of a scale, and the cell inside stays in sight."""
    traces = []
    for colour, width in (("white", 5), (INK, 2)):
        marker = {"symbol": "circle-open", "size": size, "color": colour, "line": {"width": width}}
        at = {"x": [x for x, _ in spots], "y": [y for _, y in spots], "mode": "markers", "hoverinfo": "skip"}
        ring = at | {"marker": marker} | axes
        traces.append(go.Scatter(ring, name=name, showlegend=bool(name) and colour == INK))
    return traces


def chance_line(
    chance: Mapping[str, float | int] | None, metric: str, n_rows: int, axes: dict[str, str], *, named: bool
) -> list[go.Scatter]:
    """The line of guessing in a panel; the legend names the first one drawn."""
    if not chance or metric not in chance:
        return []
    line = {"color": MUTED, "dash": "dot", "width": 1.5}
    ends = {"x": [chance[metric]] * 2, "y": [-0.5, n_rows - 0.5], "mode": "lines", "line": line, "hoverinfo": "skip"}
    first = named and metric == next(iter(chance))
    return [go.Scatter(ends | axes, name="chance", legendgroup="chance", showlegend=first)]


def colour_axis(bounds: Sequence[float | int], unit: str, x: float) -> dict[str, Any]:
    """One sequential scale safe for colour-blind sight, with its bar at a share `x` of the width."""
    bar = {"len": 1, "lenmode": "fraction", "outlinewidth": 0, "thickness": 12, "x": x, "xanchor": "left", "xpad": 0}
    bar |= {
        "tickfont": {"size": TICK_SIZE},
        "ticks": "outside",
        "ticklen": 4,
        "title": {"text": unit, "side": "right", "font": {"size": TEXT_SIZE}},
    }
    return {"cmin": bounds[0], "cmax": bounds[1], "colorscale": "Cividis", "colorbar": bar | {"ypad": 0}}


def layer_axis(layers: Sequence[int], title: str) -> dict[str, Any]:
    """A numeric axis for layers in even steps, else a category a layer, so that all cells are of one size."""
    if not _even(layers):
        return {"title": {"text": title}, "type": "category", "range": [-0.5, len(layers) - 0.5]}
    step = layers[1] - layers[0] if len(layers) > 1 else 1
    tick = step * next(size for size in (1, 2, 5, 10, 20, 50, 100) if len(layers) <= 8 * size or size == 100)
    first = layers[0] - layers[0] % tick if step == 1 else layers[0]
    ends = [layers[0] - step / 2, layers[-1] + step / 2]
    return {"title": {"text": title}, "range": ends, "tick0": first, "dtick": tick}


def layer_positions(layers: Sequence[int]) -> list[int] | list[str]:
    """Each layer's position on its axis."""
    return list(layers) if _even(layers) else [str(layer) for layer in layers]


def _even(layers: Sequence[int]) -> bool:
    return len({after - before for before, after in pairwise(layers)}) <= 1


def _within(*ends: float) -> list[float]:
    return [min(1.0, max(0.0, round(end, 6))) for end in ends]


def _legend_lines(entries: Sequence[str], width: int) -> int:
    """A legend that needs more than one line has columns as wide as its widest entry."""
    needs = [48 + LETTER[TEXT_SIZE] * len(entry) for entry in entries]
    if sum(needs) <= width:
        return min(1, len(entries))
    return math.ceil(len(entries) / max(1, int(width / max(needs))))


DEPTH = [
    [0.0, "#0D0887"],
    [0.2, "#5402A3"],
    [0.4, "#8B0AA5"],
    [0.6, "#B93289"],
    [0.8, "#DB5C68"],
    [1.0, "#F48849"],
]
"""Layers from the first to the last: Plasma of matplotlib to 0.75, as its brightest part is lost on white paper."""
DIVERGING = [[0.0, "#56B4E9"], [0.5, "#F7F7F7"], [1.0, "#E69F00"]]
"""Below, at and above a middle: the sky blue and the orange of Okabe & Ito 2008, on which dark text can be read."""
TIGHT_LEGEND = {"tracegroupgap": 0}
"""For legends of grouped traces, whose lines would be further apart than a sheet has room for."""
SHARE_AXIS = {"range": [-0.03, 1.03], "tick0": 0, "dtick": 0.25, "showgrid": True, "gridcolor": GRID}
_AXIS = {
    "automargin": False,
    "linecolor": INK,
    "linewidth": 1,
    "showgrid": False,
    "showline": True,
    "tickcolor": INK,
    "tickfont": {"size": TICK_SIZE},
    "ticklen": 4,
    "ticks": "outside",
    "title": {"font": {"size": TEXT_SIZE}, "standoff": 8},
    "zeroline": False,
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, Liberation Sans, sans-serif", "size": TEXT_SIZE, "color": INK},
        "hoverlabel": {"align": "left", "bgcolor": "white", "bordercolor": INK, "font": {"color": INK}},
        "legend": {
            "bgcolor": "rgba(255,255,255,0)",
            "font": {"size": TEXT_SIZE},
            "orientation": "h",
            "x": 0.01,
            "xref": "container",
            "y": LEGEND_AT,
            "yanchor": "bottom",
            "yref": "container",
        },
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "title": {
            "font": {"size": TITLE_SIZE},
            "pad": {"l": 12},
            "x": 0,
            "xref": "container",
            "yanchor": "top",
            "yref": "container",
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)

STYLES = {
    "silent": Style("#555555", "circle-open"),
    "skyline": Style("#000000", "diamond"),
    "sender_alone": Style("#000000", "diamond-open"),
    "replace": Style("#0072B2", "circle"),
    "mean": Style("#D55E00", "square"),
    "sum": Style("#009E73", "triangle-up"),
    "shuffled": Style("#CC79A7", "x"),
    "zero": Style("#BBBBBB", "square-open"),
    "random": Style("#E69F00", "cross"),
    "self": Style("#56B4E9", "triangle-down"),
    "text": Style("#661100", "star"),
    "logit lens": Style("#555555", "diamond-open"),
    "weighted": Style("#CC6677", "square"),
    "gated": Style("#AA4499", "diamond"),
    "norm_matched": Style("#88CCEE", "hexagon2"),
    "linear": Style("#332288", "circle"),
    "concat": Style("#999933", "circle"),
    "orthogonal_residual": Style("#882255", "triangle-up"),
    "predictability_residual": Style("#117733", "triangle-down"),
    "task_arithmetic": Style("#44AA99", "square"),
    "ties": Style("#AA4499", "star"),
    "right_aligned": Style("#661100", "triangle-up"),
    "cipher": Style("#332288", "hexagon"),
    "latent": Style("#117733", "pentagon"),
    "coconut": Style("#999933", "hourglass"),
    "calm": Style("#882255", "bowtie"),
    "kv": Style("#44AA99", "star-square"),
    "delta": Style("#CC6677", "triangle-left"),
}
"""Conditions, fusions and channels. The first ten colours stay 12 units of CIE Lab or more apart for full, red-, green-
and blue-blind sight; after them no two names share both colour and shape. After Okabe & Ito 2008 and Tol 2021."""

SPARE_STYLES = tuple(
    Style(colour, symbol)
    for symbol in ("triangle-right", "star-diamond", "hexagram")
    for colour in ("#332288", "#D55E00", "#117733", "#CC79A7", "#0072B2", "#999933", "#882255", "#44AA99")
)
