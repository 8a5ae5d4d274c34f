"""A page of text, tables and plotly figures in one file that opens without a network."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.offline

from latentcomm.reporting.publish import figure_json

__all__ = ["Page", "shade"]


class Page:
    """A page that is written from top to bottom; all text is escaped where it comes in.

    >>> page = Page("A < B")
    >>> page.heading("What"); page.text("a & b")
    >>> "<h2 id='what'>What</h2>" in page.html() and "<p>a &amp; b</p>" in page.html()
    True
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"] + [f"<p class='lead'>{html.escape(lead)}</p>"] * bool(lead)
        self._figures: dict[str, str] = {}

    def heading(self, text: str) -> None:
        """A section begins."""
        anchor = "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
        self._parts.append(f"<h2 id='{anchor}'>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def notes(self, entries: Mapping[str, str]) -> None:
        """Short remarks below a figure, such as how to read it, each under its name."""
        lines = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in entries.items())
        self._parts.append(f"<dl class='notes'>{''.join(lines)}</dl>")

    def findings(self, entries: Sequence[tuple[str, str]]) -> None:
        """Questions with their answers."""
        lines = (f"<dt>{html.escape(question)}</dt><dd>{html.escape(answer)}</dd>" for question, answer in entries)
        self._parts.append(f"<dl class='findings'>{''.join(lines)}</dl>")

    def bullets(self, entries: Sequence[str], *, kind: str = "") -> None:
        """A list; `kind` is its class."""
        lines = "".join(f"<li>{html.escape(entry)}</li>" for entry in entries)
        self._parts.append(f"<ul class='{kind}'>{lines}</ul>")

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        shades: Sequence[Sequence[str]] | None = None,
        caption: str = "",
        as_text: bool = False,
        group: int = 0,
    ) -> None:
        """A table; the first column names its row. `shades` gives each further cell its background.

        With `as_text` its cells are left-aligned, as text is; with `group` a line is drawn above every so many rows.
        """
        kind = " class='text'" * as_text
        lines = [f"<caption>{html.escape(caption)}</caption>"] * bool(caption)
        lines.append(
            "<thead><tr>" + "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in head) + "</tr></thead>"
        )
        for index, (name, *cells) in enumerate(rows):
            attributes = (
                [f" style='background:{colour}'" if colour else "" for colour in shades[index]]
                if shades
                else [""] * len(cells)
            )
            body = "".join(
                f"<td{attribute}>{html.escape(cell)}</td>" for cell, attribute in zip(cells, attributes, strict=True)
            )
            start = " class='start'" * (group > 0 and index > 0 and index % group == 0)
            lines.append(f"<tr{start}><th scope='row'>{html.escape(name)}</th>{body}</tr>")
        self._parts.append(f"<div class='wide'><table{kind}>{''.join(lines)}</table></div>")

    def figure(self, figure: go.Figure) -> None:
        """A figure, drawn at this point of the page."""
        name = f"figure-{len(self._figures) + 1}"
        self._figures[name] = figure_json(figure)
        self._parts.append(f"<div class='wide'><div id='{name}' class='figure'></div></div>")

    def links(self, entries: Mapping[str, str]) -> None:
        """Files in the page's folder, with what each holds."""
        lines = (
            f"<li><a href='{html.escape(file)}'>{html.escape(file)}</a>: {html.escape(what)}</li>"
            for file, what in entries.items()
        )
        self._parts.append(f"<ul>{''.join(lines)}</ul>")

    def html(self) -> str:
        """The whole page; it includes plotly once."""
        figures: dict[str, Any] = {name: json.loads(text) for name, text in self._figures.items()}
        return PAGE.format(
            title=html.escape(self.title),
            plotly=plotly.offline.get_plotlyjs() if figures else "",
            body="\n".join(self._parts),
            figures=json.dumps(figures, sort_keys=True).replace("<", "\\u003c"),
        )


def shade(value: float, most: float) -> str:
    """Return a background between white and a light blue on which black text stays readable.

    >>> shade(0.0, 2.0), shade(2.0, 2.0)
    ('#ffffff', '#8ec4e8')
    """
    share = 0.0 if not most > 0 else min(1.0, max(0.0, value / most))
    return "#" + "".join(f"{round(255 + share * (full - 255)):02x}" for full in (0x8E, 0xC4, 0xE8))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.55 Helvetica, Arial, "Liberation Sans", sans-serif; color: #1a1a1a; background: #fff;
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; }}
h2 {{ font-size: 1.25rem; margin: 2.6rem 0 0.6rem; padding-top: 0.7rem; border-top: 1px solid #dadada; }}
p, dl, ul {{ max-width: 46rem; }}
.lead {{ font-size: 1.05rem; color: #404040; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; margin: 0.8rem 0; }}
caption {{ text-align: left; color: #595959; padding: 0.2rem 0 0.4rem; }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid #e3e3e3; text-align: right; vertical-align: top; }}
tr.start th, tr.start td {{ border-top: 1px solid #8c8c8c; }}
thead th {{ border-bottom: 1px solid #1a1a1a; font-weight: 600; }}
th[scope=row], thead th:first-child {{ text-align: left; font-weight: 500; }}
.text td {{ text-align: left; overflow-wrap: anywhere; }}
.findings dt {{ font-weight: 600; margin-top: 0.8rem; }}
.findings dd {{ margin: 0.1rem 0 0; }}
.notes {{ font-size: 0.95rem; background: #f4f4f4; padding: 0.6rem 0.9rem; margin: 0.4rem 0 1rem; }}
.notes dt {{ float: left; clear: left; font-weight: 600; margin-right: 0.5em; }}
.notes dd {{ margin: 0 0 0.35rem; }}
.warnings {{ list-style: none; padding: 0; }}
.warnings li {{ border-left: 4px solid #d55e00; background: #fdf3ec; padding: 0.5rem 0.8rem; margin: 0.5rem 0; }}
.figure {{ margin: 0.6rem 0; }}
code {{ font-size: 0.92em; }}
@media print {{ .notes, .warnings li {{ background: none; }} h2 {{ break-after: avoid; }}
  .wide {{ overflow: visible; }} }}
</style>
<script>{plotly}</script>
</head>
<body>
<main>
{body}
</main>
<noscript>The figures of this page are drawn by a script that it carries with it; allow scripts to see them.</noscript>
<script>
const figures = {figures};
for (const [name, figure] of Object.entries(figures)) {{
  const options = {{displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: {{format: "svg", filename: name}}}};
  Plotly.newPlot(name, figure.data, figure.layout, options);
}}
</script>
</body>
</html>
"""
