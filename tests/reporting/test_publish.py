"""What is published says how it came about, gives its figure back from its data, and is never half written."""

import csv
import dataclasses
import getpass
import io
import json
import math
import platform
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcomm.fusion import Weighted
from latentcomm.reporting import publish as publishing
from latentcomm.reporting.plots import condition_bars
from latentcomm.reporting.publish import check_replot, figure_json, image, plain, publish, read_figure, replot

SETTINGS = {"title": "Bars < dots", "layers": [1, 2]}
ENDINGS = (".csv", ".json", ".meta.json", ".html")


def table() -> pd.DataFrame:
    shares = {"accuracy": [0.1 + 0.2, 1 / 3], "low": [0.1, 0.05], "high": [0.5, 2 / 3], "n": [40, 41]}
    return pd.DataFrame({"condition": ["silent", "replace"], "metric": ["free", "free"]} | shares)


def plot(data: pd.DataFrame, given: dict) -> go.Figure:
    return condition_bars(data, title=given["title"])


def published(folder: Path, data: pd.DataFrame | None = None, **options) -> publishing.Published:
    data = table() if data is None else data
    what = {"settings": SETTINGS, "measured": {"seconds": 1.5}, "models": {"sender": {"fingerprint": "ab12"}}} | options
    return publish(plot(data, SETTINGS), data, name="bars", folder=folder, **what)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is written


def test_four_files_are_written_and_their_paths_returned(tmp_path: Path) -> None:
    paths = published(tmp_path / "new" / "folder")
    assert [path.name for path in dataclasses.astuple(paths)] == [f"bars{ending}" for ending in ENDINGS]
    assert set(contents(paths.data.parent)) == {f"bars{ending}" for ending in ENDINGS}
    with pytest.raises(dataclasses.FrozenInstanceError):
        paths.data = tmp_path


def test_equal_tables_give_equal_bytes_and_another_table_does_not(tmp_path: Path) -> None:
    for name in ("one", "two"):
        published(tmp_path / name)
    published(tmp_path / "other", table().assign(accuracy=[0.3, 0.4]))
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    for ending in (".csv", ".json", ".html"):
        assert one[f"bars{ending}"] == two[f"bars{ending}"] != other[f"bars{ending}"]
    one_meta, two_meta = (json.loads(files["bars.meta.json"]) for files in (one, two))
    one_meta.pop("not_compared"), two_meta.pop("not_compared")
    assert one_meta == two_meta


def test_text_files_end_their_lines_with_a_line_feed_alone(tmp_path: Path) -> None:
    published(tmp_path)
    for ending in (".csv", ".json", ".meta.json"):
        text = contents(tmp_path)[f"bars{ending}"]
        assert text.endswith(b"\n") and b"\r" not in text and text.count(b"\n") > 2


def test_the_json_is_the_figure_in_sorted_keys_and_plain_numbers(tmp_path: Path) -> None:
    paths = published(tmp_path)
    document = json.loads(paths.figure.read_text("utf-8"))
    assert [trace["x"] for trace in document["data"]] == [[0.1 + 0.2], [1 / 3]]
    assert list(document) == sorted(document) and list(document["layout"]) == sorted(document["layout"])
    assert figure_json(read_figure("bars", tmp_path)) == figure_json(plot(table(), SETTINGS))


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.ids, self.scripts, self.open = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.sources += [found[name] for name in ("src", "href", "data", "action") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        self.scripts += [""] if tag == "script" else []
        self.open = tag

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.open = ""


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = published(tmp_path).page.read_text("utf-8")
    page = Page(text)
    assert page.sources == [] and page.ids == ["figure"]
    library, drawing = page.scripts
    assert len(library) > 1_000_000 and "Plotly.newPlot" in drawing
    assert "<title>Bars &lt; dots</title>" in text
    assert Page('<script src="https://cdn.plot.ly/plotly.js"></script>').sources == ["https://cdn.plot.ly/plotly.js"]


def test_the_page_holds_the_figure_of_the_json_whatever_its_text(tmp_path: Path) -> None:
    rude = table().assign(condition=["</script><b>", "<!-- é \u2028"])
    paths = published(tmp_path, rude)
    drawing = Page(paths.page.read_text("utf-8")).scripts[-1]
    held, _ = json.JSONDecoder().raw_decode(drawing.split("const figure = ")[1])
    assert held == json.loads(paths.figure.read_text("utf-8"))


# Nothing is half written


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
def test_an_interrupted_write_leaves_every_old_file_and_no_draft(tmp_path, monkeypatch, ending, stop) -> None:
    published(tmp_path)
    before = contents(tmp_path)
    write_bytes = Path.write_bytes

    def stopped(path: Path, data: bytes) -> int:
        if path.name.startswith(f".bars{ending}."):
            write_bytes(path, data[: len(data) // 2])
            raise stop
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", stopped)
    with pytest.raises((KeyboardInterrupt, RuntimeError)) as caught:
        published(tmp_path, table().assign(accuracy=[0.3, 0.4]))
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert contents(tmp_path) == before


# The CSV gives the table back


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.integers(-(2**63), 2**63 - 1),
            st.booleans(),
            st.text(st.characters(codec="utf-8"), max_size=6).map(lambda text: "a" + text),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_table_comes_back_from_its_csv_to_the_last_bit(rows) -> None:
    before = pd.DataFrame(rows, columns=["real", "whole", "true", "text"])
    after = publishing._table(publishing._csv(before))
    assert [x.hex() for x in after["real"]] == [x.hex() for x in before["real"]]
    pd.testing.assert_frame_equal(after, before, check_exact=True)


def test_a_column_of_nothing_but_gaps_keeps_its_rows() -> None:
    before = pd.DataFrame({"real": [math.nan, 0.5, math.nan]})
    pd.testing.assert_frame_equal(publishing._table(publishing._csv(before)), before)


def test_another_reader_finds_the_same_numbers_and_text_in_the_csv() -> None:
    before = pd.DataFrame(
        {"real": [0.1 + 0.2, math.nan, -0.0], "text": ["a,b", 'say "a"', "two\nlines"], "n": [1, -2, 3]}
    )
    with io.StringIO(publishing._csv(before)) as lines:
        after = list(csv.DictReader(lines))
    assert [row["text"] for row in after] == before["text"].tolist()
    assert [row["real"] for row in after] == ["0.30000000000000004", "", "-0.0"] and after[1]["n"] == "-2"


def test_text_with_line_ends_of_every_kind_comes_back_from_the_file(tmp_path: Path) -> None:
    before = table().assign(condition=["a\rb\r\n", 'c\n"d", é'])
    published(tmp_path, before)
    seen = []
    replot("bars", tmp_path, lambda data, given: seen.append(data) or go.Figure())
    pd.testing.assert_frame_equal(seen[0], before, check_exact=True)


def test_narrow_numbers_are_written_as_exactly_what_they_are() -> None:
    before = pd.DataFrame({"small": np.array([0.1], "float32"), "count": np.array([7], "uint8")})
    after = publishing._table(publishing._csv(before))
    assert after["small"][0] == float(np.float32(0.1)) != 0.1 and after["count"][0] == 7
    assert before.dtypes.tolist() == [np.float32, np.uint8]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"id": ["1", "2"]}), "column id holds .* and its CSV would be read as int64"),
        (pd.DataFrame({"said": ["yes", ""]}), "column said holds"),
        (pd.DataFrame({"mixed": [1, "a"]}), "column mixed holds object"),
        (pd.DataFrame({"whole": pd.array([1, None], "Int64")}), "column whole holds Int64"),
        (pd.DataFrame({"big": np.array([1], "uint64")}), "column big holds uint64 and its CSV would be read as int64"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "column 'a' has no name of its own"),
        (pd.DataFrame([[1, 2]]), "column 0 has no name of its own"),
        (pd.DataFrame({"a": [1]}, index=pd.Index([5], name="item")), "named index"),
        (pd.DataFrame({"a": []}), "the table is empty"),
    ],
)
def test_a_table_that_its_csv_would_not_give_back_is_refused(tmp_path, data, message) -> None:
    with pytest.raises(ValueError, match=message):
        publish(go.Figure(), data, name="x", folder=tmp_path, settings={}, measured={}, models={})
    assert list(tmp_path.iterdir()) == []


# Drawn again from the data


def test_a_figure_is_what_its_csv_gives(tmp_path: Path) -> None:
    published(tmp_path)
    assert check_replot("bars", tmp_path, plot) is None


def test_a_changed_value_in_the_csv_is_found_and_plotting_again_mends_it(tmp_path: Path) -> None:
    paths = published(tmp_path)
    text = paths.data.read_text("utf-8")
    assert repr(1 / 3) in text
    paths.data.write_text(text.replace(repr(1 / 3), repr(math.nextafter(1 / 3, 1))), "utf-8")
    with pytest.raises(
        RuntimeError, match=r"bars.json is not what bars.csv gives: figure.data\[1\].* is 0.3333333333333333 "
    ):
        check_replot("bars", tmp_path, plot)
    meta, page = paths.meta.read_bytes(), paths.page.read_bytes()
    assert replot("bars", tmp_path, plot) == paths
    check_replot("bars", tmp_path, plot)
    assert paths.meta.read_bytes() == meta and paths.page.read_bytes() != page


@pytest.mark.parametrize(
    "change",
    [lambda figure: figure.add_scatter(x=[1]), lambda figure: figure.update_layout(width=321)],
    ids=["trace", "layout"],
)
def test_a_figure_that_is_not_its_plot_is_found(tmp_path: Path, change) -> None:
    data = table()
    publish(change(plot(data, SETTINGS)), data, name="bars", folder=tmp_path, settings=SETTINGS, measured={}, models={})
    with pytest.raises(RuntimeError, match="plot it again"):
        check_replot("bars", tmp_path, plot)


def test_the_plot_gets_the_recorded_settings(tmp_path: Path) -> None:
    published(tmp_path, settings={"title": "Bars < dots", "layers": (1, 2)})
    seen = []
    replot("bars", tmp_path, lambda data, given: seen.append((list(data.columns), given)) or go.Figure())
    assert seen == [(list(table().columns), {"title": "Bars < dots", "layers": [1, 2]})]


def test_a_figure_that_is_not_there_is_named(tmp_path: Path) -> None:
    for ask in (replot, check_replot):
        with pytest.raises(ValueError, match=r"absent\.csv is not in"):
            ask("absent", tmp_path, plot)
    with pytest.raises(ValueError, match=r"absent\.json is not in"):
        read_figure("absent", tmp_path)


@pytest.mark.parametrize("name", ["", "../bars", "a/b", ".bars", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name for files"):
        publish(go.Figure(), table(), name=name, folder=tmp_path, settings={}, measured={}, models={})


# Metadata


def leaves(value) -> list:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in (name, *leaves(inner))]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]


def test_the_metadata_say_what_made_the_figure(tmp_path: Path) -> None:
    meta = json.loads(published(tmp_path).meta.read_text("utf-8"))
    assert list(meta) == ["name", "settings", "models", "versions", "code", "machine", "not_compared"]
    assert meta["settings"] == SETTINGS and meta["models"] == {"sender": {"fingerprint": "ab12"}}
    assert meta["versions"]["python"] == platform.python_version() and meta["versions"]["torch"] == torch.__version__
    assert set(publishing.PACKAGES) < set(meta["versions"])
    assert set(meta["machine"]) == {"processor", "cores", "memory_gib", "system", "accelerators", "threads"}
    assert meta["machine"]["cores"] >= 1 and meta["machine"]["memory_gib"] > 0.1
    assert meta["not_compared"]["measured"] == {"seconds": 1.5} and meta["not_compared"]["date"].endswith("+00:00")


def test_the_metadata_name_no_host_no_user_and_no_folder(tmp_path: Path) -> None:
    here = {"model": str(tmp_path / "weights"), "cache": tmp_path / "cache", "inside": ["C:\\Users\\ada\\runs"]}
    meta = json.loads(published(tmp_path, settings=SETTINGS | here).meta.read_text("utf-8"))
    assert meta["settings"] == SETTINGS | {"model": "weights", "cache": "cache", "inside": ["runs"]}
    texts = [leaf for leaf in leaves(meta) if isinstance(leaf, str)]
    assert not {socket.gethostname(), getpass.getuser(), platform.node()} & set(texts)
    assert not [text for text in texts if str(tmp_path) in text or str(Path.cwd()) in text or text.startswith("/")]


def test_settings_are_recorded_in_plain_values() -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings:
        layers: tuple[int, ...] = (3, 4)
        fusion: object = Weighted(0.5)
        rate: object = np.float64(0.25)
        kind: object = torch.float32
        where: object = torch.device("cpu")
        task: object = plot
        text: str = "a/b"
        folder: Path = Path("runs/one")

    assert plain(Settings()) == {
        "layers": [3, 4],
        "fusion": repr(Weighted(0.5)),
        "rate": 0.25,
        "kind": "torch.float32",
        "where": "cpu",
        "task": "plot",
        "text": "a/b",
        "folder": "runs/one",
    }


@pytest.mark.parametrize(
    "value", [{1, 2}, lambda: 0, object(), torch.zeros(2), math.nan, math.inf], ids=lambda value: type(value).__name__
)
def test_settings_without_a_plain_form_are_refused(tmp_path: Path, value) -> None:
    with pytest.raises(ValueError, match="cannot be recorded"):
        published(tmp_path, settings={"nested": [value]})
    with pytest.raises(ValueError, match="give a mapping or a dataclass"):
        published(tmp_path, settings=["a list"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, in which the package would be running."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    top = tmp_path / "checkout"
    (top / "package").mkdir(parents=True)
    (top / "package" / "publishing.py").write_text("1\n", "utf-8")
    monkeypatch.setattr(publishing, "__file__", str(top / "package" / "publishing.py"))
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "commit", "-qm", "one")
    return top


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def code_of(folder: Path) -> dict:
    return json.loads(published(folder).meta.read_text("utf-8"))["code"]


def test_the_commit_is_recorded_and_figures_alone_do_not_change_the_tree(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert code_of(checkout / "figures") == {"commit": head, "changed": False}
    assert code_of(checkout / "figures") == {"commit": head, "changed": False}  # with the first ones lying there
    (checkout / "package" / "publishing.py").write_text("2\n", "utf-8")
    assert code_of(checkout / "figures") == {"commit": head, "changed": True}


def test_code_outside_a_checkout_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"commit": None, "changed": None}
    stranger = checkout / "site-packages" / "publishing.py"  # installed inside somebody's repository, not part of it
    stranger.parent.mkdir()
    stranger.write_text("1\n", "utf-8")
    monkeypatch.setattr(publishing, "__file__", str(stranger))
    assert code_of(checkout / "figures") == nowhere
    shutil.rmtree(checkout / ".git")
    assert code_of(checkout / "figures") == nowhere


def test_a_hook_of_git_does_not_mislead(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert code_of(checkout / "figures")["commit"] is not None


# Images


def test_another_kind_of_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bars.bmp names no format of an image; end it with .png, .svg or .pdf"):
        image(go.Figure(), tmp_path / "bars.bmp")


def test_without_kaleido_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(RuntimeError, match=r"pip install 'latentcomm\[paper\]'.*kaleido is not installed"):
        image(go.Figure(), tmp_path / "bars.png")
    assert list(tmp_path.iterdir()) == []


def test_without_a_browser_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kaleido = pytest.importorskip("kaleido")
    errors = pytest.importorskip("kaleido.errors")

    def none_found(*arguments, **options):
        raise errors.ChromeNotFoundError

    monkeypatch.setattr(kaleido, "calc_fig_sync", none_found)
    with pytest.raises(RuntimeError, match=r"Chromium or Chrome.*plotly_get_chrome.*no browser was found"):
        image(go.Figure(), tmp_path / "bars.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["BrowserFailedError", "BrowserClosedError"])
def test_a_browser_that_does_not_start_is_told_from_one_that_is_missing(tmp_path: Path, monkeypatch, name) -> None:
    kaleido = pytest.importorskip("kaleido")
    errors = pytest.importorskip("kaleido.errors")

    def broken(*arguments, **options):
        raise getattr(errors, name)("a page of advice")

    monkeypatch.setattr(kaleido, "calc_fig_sync", broken)
    with pytest.raises(
        RuntimeError, match=r"pip install 'latentcomm\[paper\]'.*found that does not start or stay open"
    ):
        image(go.Figure(), tmp_path / "bars.svg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_images_are_drawn_and_an_svg_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        pytest.skip("no Chromium or Chrome is installed")
    figure = plot(table(), SETTINGS)
    assert image(figure, tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    one, two = (image(figure, tmp_path / f"{name}.svg").read_bytes() for name in ("one", "two"))
    assert one == two and b"replace" in one and one.count(b"<svg") >= 1
