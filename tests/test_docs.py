"""What the documentation shows runs as it stands, and what it points at is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentcomm.models.builtin import BUILT_IN

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
INTERNAL = re.compile(
    r"latentcomm\.(_core\.(?!stats)|cli\.|hooks\.shared_prefix|models\.facts|reporting\.style"
    r"|experiments\.(sweep|compare|cascade|crossmodal)\.report)"
)
"""Modules that the page of the API leaves out: private ones, and the commands, which document themselves (--help)."""

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)```python\b[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def examples(text: str) -> Iterator[str]:
    """Yield each block marked as python, below as many empty lines as lines stand above it, for the tracebacks."""
    for fence in FENCE.finditer(text):
        if fence["indent"]:
            raise ValueError(
                f"an indented python block would be run with its indent: {fence['code'].splitlines()[0]!r}"
            )
        yield "\n" * text.count("\n", 0, fence.start("code")) + fence["code"]


def run_page(text: str, name: str) -> dict[str, object]:
    """Run a page's blocks in their order in one namespace, as a reader would who pastes them one after the other."""
    namespace: dict[str, object] = {"__name__": "example"}
    for code in examples(text):
        exec(compile(code, name, "exec"), namespace)
    return namespace


def pages_with_examples() -> Iterator[object]:
    """Yield a test parameter for each page that has examples, marked where it needs the built-in weights."""
    for page in PAGES:
        blocks = list(examples(page.read_text("utf-8"))) if page.exists() else []
        weights = any(model in code for model in BUILT_IN for code in blocks)
        if blocks:
            yield pytest.param(page, id=page.name, marks=[pytest.mark.real_weights] if weights else [])


def modules() -> set[str]:
    """Name every module of the package that a page of the API should hold."""
    files = (ROOT / "latentcomm").rglob("*.py")
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if not file.name.startswith("_")}
    return {name for name in names if not INTERNAL.match(name)}


@pytest.mark.parametrize("page", list(pages_with_examples()))
def test_every_example_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page.read_text("utf-8"), str(page))


def test_a_page_runs_its_python_blocks_in_order_and_nothing_else() -> None:
    text = "a\n\n```python\nx = 1\n```\n\n```sh\nexit 1\n```\n\n    x = 5\n\n```python\nx = x + 1\n```\n"
    assert run_page(text, "page")["x"] == 2


def test_an_example_that_fails_is_found_at_its_own_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("text\n\n```python\nfine = 1\n1 / 0\n```\n", "page")
    assert caught.traceback[-1].lineno + 1 == 5


def test_an_example_that_would_be_missed_is_refused() -> None:
    with pytest.raises(ValueError, match="indented"):
        run_page("- item\n\n    ```python\n    x = 1\n    ```\n", "page")


def test_the_script_for_hook_composers_has_at_most_25_lines() -> None:
    script = next(examples((ROOT / "docs" / "hooks.md").read_text("utf-8")))
    assert len(script.strip().splitlines()) <= 25


def test_every_module_stands_on_the_page_of_the_api_and_nothing_else_does() -> None:
    pages = "".join((ROOT / "docs" / page).read_text("utf-8") for page in ("api.md", "commands.md"))
    listed = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert sorted(listed) == sorted(modules())


def test_links_to_files_of_the_project_lead_somewhere() -> None:
    pages = [page for page in [*PAGES, ROOT / "CONTRIBUTING.md"] if page.exists()]
    links = [(page, target) for page in pages for target in LINK.findall(page.read_text("utf-8"))]
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []
