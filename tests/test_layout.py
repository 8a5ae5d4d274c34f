"""The layout holds: imports point one way, heavy libraries load late, and no file names the machine it comes from."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "latentcomm"

LAYOUT = (  # a module may import those that stand before it, and none that stands behind
    "files",
    "progress",
    "corpus",
    "linalg",
    "sites",
    "fusion",
    "alignment",
    "similarity",
    "redundancy",
    "drift",
    "stats",
    "prompts",
    "weights",
    "models",
    "small_models",
    "capture",
    "paired",
    "grafting",
    "receiver_input",
    "decoding",
    "training",
    "learners",
    "staircase",
    "layer_sweep",
    "logit_lens",
    "effects",
    "tasks",
    "worked_models",
    "channels",
    "controls",
    "cost",
    "evaluation",
    "comparison",
    "catalogue",
    "sweeps",
    "comparing",
    "cascade",
    "crossmodal",
    "sheets",
    "plots",
    "publishing",
    "learning",
    "sweep_report",
    "comparison_report",
    "cascade_report",
    "crossmodal_report",
    "diagnosis",
    "cli",
    "__main__",
)
SEAM = "models"

MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])(?:/(?:work|tmp|root|home|Users|opt|mnt|data|var)/|[A-Z]:\\)\w")
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".json", ".csv", ".svg", ".js", ".css", ""}
PROSE_AND_CODE = ("latentcomm", "analyses", "benchmarks", "docs", "figures", "tests", ".ci")


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the full name of all that is imported anywhere in the file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(source: str, package: str = "latentcomm") -> set[str]:
    return set(imported_names(ast.parse(source), package))


def broken_rules(module: str, imports: set[str], layout: tuple[str, ...] = LAYOUT) -> list[str]:
    """Name each import from the package that does not stand before `module` in the layout."""
    broken = []
    for name in sorted(imports):
        first, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if first != "latentcomm" or target == module:
            continue
        if target not in layout:
            broken.append(f"{module} imports {name}, which is no module of the layout; import from the module itself")
        elif layout.index(target) > layout.index(module):
            broken.append(f"{module} imports {target}, which stands behind it in the layout")
    return broken


def module_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def package_of(path: Path) -> str:
    return ".".join(path.parent.relative_to(ROOT).parts)


def code_files() -> list[Path]:
    return sorted(
        path for folder in ("latentcomm", "analyses", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
    )


def text_files() -> list[Path]:
    below = [path for folder in PROSE_AND_CODE for path in (ROOT / folder).rglob("*")]
    files = [path for path in [*ROOT.iterdir(), *below] if path.is_file() and path.suffix in TEXT]
    return sorted(path for path in files if "__pycache__" not in path.parts)


@pytest.mark.parametrize("path", module_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_stands_in_the_layout_and_imports_only_what_stands_before_it(path: Path) -> None:
    assert module_of(path) in LAYOUT
    assert broken_rules(module_of(path), imports_of(path.read_text("utf-8"), package_of(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import latentcomm.cli",
        "from latentcomm import cli",
        "from latentcomm.cli import app",
        "from . import cli",
        "from .cli import app",
        "def late():\n    from latentcomm.cli import app",
        "from latentcomm import load_model",
        "import latentcomm",
    ],
)
def test_an_import_against_the_layout_is_seen_however_it_is_written(source: str) -> None:
    assert len(broken_rules("grafting", imports_of(source))) == 1


@pytest.mark.parametrize(
    "source",
    ["from latentcomm.sites import Site", "from latentcomm import sites", "from .sites import Site", "import torch"],
)
def test_an_import_along_the_layout_is_allowed(source: str) -> None:
    assert broken_rules("grafting", imports_of(source)) == []


def test_files_of_one_subpackage_may_import_each_other_but_nothing_behind_it() -> None:
    package = "latentcomm.tasks"
    assert broken_rules("tasks", imports_of("from .base import Task\nfrom latentcomm.tasks import base", package)) == []
    assert len(broken_rules("tasks", imports_of("from ..plots import heat_map", package))) == 1


def test_transformer_lens_is_imported_in_the_seam_alone() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == "transformer_lens" for name in imports_of(path.read_text("utf-8")))
    }
    assert importers == {SEAM}


def test_importing_latentcomm_loads_neither_transformer_lens_nor_transformers() -> None:
    heavy = "{'transformer_lens', 'transformers'}"
    lines = f"import sys, latentcomm; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_can_be_imported_without_loading_transformer_lens() -> None:
    names = sorted(
        {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in module_files()}
    )
    importing = f"[importlib.import_module(name) for name in {names}]"
    lines = f"import importlib, sys; {importing}; print('transformer_lens' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("open('/" + "tmp/weights.bin')", True),
        ("see /" + "home/ada/models", True),
        ('"C:' + '\\models"', True),
        ("figures/fig1.csv", False),
        ("https://example.org/" + "home/page", False),
        ("tests/data/rows.csv", False),
        ("#!/usr/bin/env bash", False),
    ],
)
def test_a_machine_path_is_told_from_a_path_of_the_project(line: str, named: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is named


def test_no_file_names_a_machine_path() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): match.group()
        for path in text_files()
        if (match := MACHINE_PATH.search(path.read_text("utf-8", errors="replace")))
    }
    assert found == {}


def test_no_file_defers_its_annotations_since_shapes_are_checked_at_the_call() -> None:
    deferred = [
        path.relative_to(ROOT).as_posix()
        for path in code_files()
        if "__future__.annotations" in imports_of(path.read_text("utf-8"))
    ]
    assert deferred == []
