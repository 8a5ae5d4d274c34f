"""A figure with its provenance: its data, its settings, and the code, models and machine that made it."""

import contextlib
import csv
import dataclasses
import html
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from io import StringIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.offline
import torch

from latentcomm._core.files import digest, expanded, without_folder, written_whole

PACKAGES = ("latentcomm", "torch", "transformers", "transformer-lens", "numpy", "pandas", "plotly")
PNG_SCALE = 2  # pixels of a PNG a pixel of the figure: 230 dots an inch where 780 px are printed 6.75 in wide

Plot = Callable[[pd.DataFrame, dict[str, Any]], go.Figure]


@dataclasses.dataclass(frozen=True)
class Published:
    """Where the parts of a figure are.

    Attributes:
        data: NAME.csv, all that the plot sees; floats in full.
        figure: NAME.json, the figure as plotly reads it.
        meta: NAME.meta.json, its provenance; the values under `not_compared` differ from run to run.
        page: NAME.html, the figure as a page that needs nothing else.
    """

    data: Path
    figure: Path
    meta: Path
    page: Path


def publish(
    figure: go.Figure,
    table: pd.DataFrame,
    *,
    name: str,
    folder: str | os.PathLike[str],
    settings: Any,
    measured: Mapping[str, Any],
    models: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
) -> Published:
    """Write a figure, its data, its page and its provenance; all four, or none where one cannot be written.

    Args:
        figure: what a plot made of `table` and `settings`.
        table: all that the plot saw.
        name: the name of the files.
        folder: where they go; it is made where it is missing.
        settings: a mapping or a dataclass; recorded as `plain` gives them.
        measured: what differs from run to run, such as seconds.
        models: name and fingerprint of each model.
        run: the experiment and the settings that repeat it; see `latentcomm.run`.

    Raises:
        ValueError: a name that is no file name, a table its CSV would not give back, or settings without plain form.
        RuntimeError: the disk is full or the folder cannot be written; earlier files remain as they were.
    """
    paths = _paths(name, folder)
    record = {
        "name": name,
        "settings": plain(settings),
        **({} if run is None else {"run": run}),
        "models": plain(models),
        **provenance(paths.data.parent),
        "not_compared": {"date": datetime.now(UTC).isoformat(timespec="seconds"), "measured": plain(measured)},
    }
    meta = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _write({paths.data: _csv(table), **_drawing(paths, figure), paths.meta: meta})
    return paths


def provenance(outputs: Path) -> dict[str, Any]:
    """The versions of packages, the commit (whether anything outside `outputs` differs from it) and the machine."""
    return {"versions": versions(), "code": _code(outputs), "machine": machine()}


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as a CSV, whole or not at all.

    Raises:
        RuntimeError: the disk is full or the folder cannot be written.
    """
    with written_whole(path) as draft:
        table.to_csv(draft, index=False, lineterminator="\n")


def replot(name: str, folder: str | os.PathLike[str], plot: Plot) -> Published:
    """Draw a published figure anew from its CSV and its recorded settings: NAME.json and NAME.html are written again.

    Raises:
        ValueError: the figure was never published there.
        RuntimeError: the folder cannot be written.
    """
    paths = _paths(name, folder)
    _write(_drawing(paths, plot(*_published(paths))))
    return paths


def check_replot(name: str, folder: str | os.PathLike[str], plot: Plot) -> None:
    """Return if NAME.json is what its CSV and its recorded settings give.

    Raises:
        ValueError: the figure was never published there.
        RuntimeError: it is not, with the first entry at which the two differ.
    """
    paths = _paths(name, folder)
    drawn = json.loads(figure_json(plot(*_published(paths))))
    difference = next(_differences(json.loads(_read(paths.figure)), drawn), None)
    if difference is not None:
        raise RuntimeError(f"{paths.figure.name} is not what {paths.data.name} gives: {difference}; plot it again")


def read_figure(name: str, folder: str | os.PathLike[str]) -> go.Figure:
    """A published figure, from its JSON.

    Raises:
        ValueError: the figure was never published there.
    """
    return go.Figure(json.loads(_read(_paths(name, folder).figure)))


def plain(settings: Any) -> dict[str, Any]:
    """Settings as the metadata record them, in values JSON has: what `replot` gives to the plot.

    A dataclass becomes its fields, a tuple a list; inside, a dataclass (a fusion, a site), a dtype and a device become
    their repr, a function or class its name. An absolute path becomes its last part: a machine's folders stay its own.

    Raises:
        ValueError: a value that has no such form, such as a tensor, a lambda, a set or an infinite number.

    >>> plain({"layers": (3, 4), "dtype": torch.float32})
    {'layers': [3, 4], 'dtype': 'torch.float32'}
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings are a {type(settings).__name__}; give a mapping or a dataclass")
    return {str(_plain_value(name)): _plain_value(value) for name, value in settings.items()}


def figure_json(figure: go.Figure) -> str:
    """A figure as plotly's JSON: equal figures, equal bytes. Keys are sorted, numbers in full, NaN is null.

    >>> figure = go.Figure(go.Scatter(x=[0.1]), layout={"template": "none"})
    >>> json.loads(figure_json(figure))["data"]
    [{'type': 'scatter', 'x': [0.1]}]
    """
    document = json.loads(figure.to_json(engine="json") or "")
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def image(figure: go.Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as .png, .svg or .pdf, in its own size. Equal figures give equal SVG files.

    Raises:
        ValueError: another ending.
        RuntimeError: kaleido or Chromium is missing, or does not start, or the file cannot be written.
    """
    path = expanded(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"{path.name} names no format of an image; end it with .png, .svg or .pdf")
    try:
        import kaleido
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError as error:
        raise RuntimeError(f"{NEEDS}; kaleido is not installed") from error
    document = figure.to_dict()
    for index, trace in enumerate(document["data"]):
        trace["uid"] = f"{index:06x}"  # or plotly draws one
    options = {"format": kind, "scale": PNG_SCALE if kind == "png" else 1}
    options |= {"width": figure.layout.width or 700, "height": figure.layout.height or 500}
    try:
        picture = kaleido.calc_fig_sync(document, opts=options, kopts={"mathjax": False})
    except ChromeNotFoundError as error:
        raise RuntimeError(f"{NEEDS}; no browser was found") from error
    except (BrowserFailedError, BrowserClosedError) as error:
        raise RuntimeError(f"{NEEDS}; one was found that does not start or stay open") from error
    with written_whole(path) as draft:
        draft.write_bytes(_same_ids(picture, figure_json(figure)) if kind == "svg" else picture)
    return path


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str | PurePath):
        return without_folder(value if isinstance(value, str) else value.as_posix())
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple | range):
        return [_plain_value(inner) for inner in value]
    if isinstance(value, torch.dtype | torch.device) or (
        dataclasses.is_dataclass(value) and " at 0x" not in repr(value)
    ):
        return repr(value) if not isinstance(value, torch.device) else str(value)
    name = getattr(value, "__qualname__", "<unnamed>")
    if "<" in name:
        raise ValueError(f"{value!r} cannot be recorded; give its name, or plain values")
    return name


def _paths(name: str, folder: str | os.PathLike[str]) -> Published:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} is no name for files; use letters, digits, _, - and .")
    data, figure, meta, page = (
        expanded(folder) / f"{name}{ending}" for ending in (".csv", ".json", ".meta.json", ".html")
    )
    return Published(data, figure, meta, page)


def _write(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: all drafts are on the disk before the first replaces a file."""
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(written_whole(path)).write_bytes(text.encode("utf-8"))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # read_text would make every line end LF
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is not in {path.parent}; run the analysis that publishes it first") from error


def _published(paths: Published) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the settings a published figure was drawn from."""
    return _table(_read(paths.data)), json.loads(_read(paths.meta))["settings"]


def _csv(table: pd.DataFrame) -> str:
    """A table as a CSV that gives it back: every float in full, lines ended by LF, nothing where there is nothing."""
    if table.empty:
        raise ValueError("the table is empty; there is nothing to publish")
    if wrong := [name for name in table.columns if not isinstance(name, str)] or [
        *table.columns[table.columns.duplicated()]
    ]:
        raise ValueError(f"the column {wrong[0]!r} has no name of its own; name every column by text, once")
    if table.index.nlevels > 1 or table.index.name is not None:
        raise ValueError("the table has a named index, which its CSV leaves out; make it a column with reset_index()")
    table = pd.DataFrame(
        {name: _widened(column) for name, column in table.reset_index(drop=True).infer_objects().items()}
    )
    lines = zip(*(table[name].tolist() for name in table.columns), strict=True)
    text = "".join(",".join(map(_field, line)) + "\n" for line in [tuple(table.columns), *lines])
    back = _table(text)
    for name in table.columns:
        if name not in back or not back[name].equals(table[name]):
            what = back[name].dtype if name in back else "nothing"
            raise ValueError(
                f"column {name} holds {table[name].dtype} and its CSV would be read as {what}; "
                "a column is numbers, truth values, or text of which not all reads as those and none is empty"
            )
    return text


def _widened(column: pd.Series) -> pd.Series:
    """NumPy's integers as int64 and its floats as float64, the types that a CSV gives back, where these hold them."""
    for wide, kinds in (("int64", "iu"), ("float64", "f")):
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in kinds and np.can_cast(column.dtype, wide):
            return column.astype(wide)
    return column


def _field(value: Any) -> str:
    text = "" if pd.isna(value) else repr(value) if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]', text) else text


def _table(text: str) -> pd.DataFrame:
    """The table of a CSV, read by rules of our own: every release of pandas then gives the same numbers."""
    head, *rows = (line or [""] for line in csv.reader(StringIO(text, newline="")))
    columns = {name: _column(list(cells)) for name, cells in zip(head, zip(*rows, strict=True), strict=True)}
    return pd.DataFrame(columns)


def _column(cells: list[str]) -> pd.Series:
    if set(cells) <= {"True", "False"}:
        return pd.Series([cell == "True" for cell in cells])
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return pd.Series([number(cell or ("nan" if number is float else "")) for cell in cells])
    return pd.Series([cell or None for cell in cells])


def _drawing(paths: Published, figure: go.Figure) -> dict[Path, str]:
    document = figure_json(figure)
    heading = re.sub(r"<br>|<[^>]*>", " ", figure.layout.title.text or paths.page.stem)
    page = PAGE.format(
        title=html.escape(" ".join(heading.split())),
        plotly=plotly.offline.get_plotlyjs(),
        figure=json.dumps(json.loads(document), sort_keys=True).replace("<", "\\u003c"),
        name=json.dumps(paths.page.stem),
    )
    return {paths.figure: document, paths.page: page}


def _same_ids(svg: bytes, document: str) -> bytes:
    """The drawing with ids that come from the figure, where plotly puts six random digits."""
    found = re.search(rb'<defs id="defs-([0-9a-f]{6})"', svg)
    if found is None:
        raise RuntimeError("the image has no drawing in it; try again, or with another version of kaleido")
    return re.sub(rb"(?<=[a-z-])" + found[1], digest(document)[:6].encode(), svg)


def _differences(old: Any, new: Any, where: str = "figure") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{where}.{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{where}[{index}]")
    elif old != new:
        was, should = (json.dumps(value, ensure_ascii=False)[:60] for value in (old, new))
        yield f"{where} is {was} and should be {should}"


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that numbers depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None  # run from a checkout without being installed
    return found


def _code(folder: Path) -> dict[str, Any]:
    """The commit this package is checked out at and whether anything outside `folder` differs from it; else nulls."""
    here = Path(__file__).resolve()
    commit = _git(here.parent, "rev-parse", "HEAD")
    top = _git(here.parent, "rev-parse", "--show-toplevel")
    if commit is None or top is None or _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return {"commit": None, "changed": None}
    outputs = folder.resolve()
    inside = outputs != Path(top).resolve() and outputs.is_relative_to(Path(top).resolve())
    others = [f":(top,exclude){outputs.relative_to(Path(top).resolve()).as_posix()}"] if inside else []
    return {"commit": commit, "changed": bool(_git(here.parent, "status", "--porcelain", "--", ":(top)", *others))}


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if name not in GIT_POINTERS}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """What the machine can do, not which one it is."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("Apple MPS")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": None if pages is None else round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerators": accelerators,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8", errors="replace") if listing.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


NEEDS = (
    "an image needs kaleido and Chromium or Chrome: install the extra with `pip install 'latentcomm[paper]'`, "
    "and the browser with the system's packages or `plotly_get_chrome`"
)
GIT_POINTERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")  # set inside git's own hooks
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<script>{plotly}</script>
</head>
<body>
<div id="figure"></div>
<script>
const figure = {figure};
const image = {{format: "svg", filename: {name}}};
Plotly.newPlot("figure", figure.data, figure.layout, {{displaylogo: false, toImageButtonOptions: image}});
</script>
</body>
</html>
"""
