"""The layout holds: imports point one way, heavy libraries load late, and no file names the machine it comes from."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "latentcomm"

ROOMS = (  # a room may import those that are named before it, and none that is named after it
    "_core",
    "fusion",
    "alignment",
    "models",
    "reporting",
    "hooks",
    "similarity",
    "tasks",
    "redundancy",
    "drift",
    "channels",
    "experiments",
    "cli",
    "__main__",
)
SEAM = "models"

MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])(?:/(?:work|tmp|root|home|Users|opt|mnt|data|var)/|[A-Z]:\\)\w")
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".json", ".csv", ".svg", ".js", ".css", ""}
NAME_LENGTH = 70
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


def broken_rules(room: str, imports: set[str], rooms: tuple[str, ...] = ROOMS) -> list[str]:
    """Name each import from the package that is not of a room before this one."""
    broken = []
    for name in sorted(imports):
        first, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if first != "latentcomm" or target == room:
            continue
        if target not in rooms:
            broken.append(f"{room} imports {name}, which is no room of the house; import from the module itself")
        elif rooms.index(target) > rooms.index(room):
            broken.append(f"{room} imports {target}, which is above it")
    return broken


def dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def circle_in(root: Path) -> list[str]:
    """A circle of modules that import one another, late imports too, in the package below `root`; empty if none."""
    files = {dotted(path, root): path for path in sorted((root / "latentcomm").rglob("*.py"))}
    graph = {}
    for name, path in files.items():
        imports = imports_of(path.read_text("utf-8"), ".".join(path.parent.relative_to(root).parts))
        found = {full if full in files else full.rpartition(".")[0] for full in imports} & files.keys()
        graph[name] = found - {name, "latentcomm"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


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
def test_a_module_imports_only_from_rooms_below_its_own(path: Path) -> None:
    assert module_of(path) in ROOMS
    assert broken_rules(module_of(path), imports_of(path.read_text("utf-8"), package_of(path))) == []


def test_the_package_has_these_rooms_and_no_other() -> None:
    entries = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert entries == {*ROOMS, "__init__"}


def test_the_folders_of_the_tests_are_those_of_the_package() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    strange = {folder for folder in folders if not (PACKAGE / folder).is_dir()}
    assert strange == {Path("analyses")}


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle_in(ROOT) == []


@pytest.mark.parametrize("late", ["", "def late():\n    "])
def test_a_circle_inside_a_package_is_seen(tmp_path: Path, late: str) -> None:
    package = tmp_path / "latentcomm" / "room"
    package.mkdir(parents=True)
    (package / "one.py").write_text("from latentcomm.room import two")
    (package / "two.py").write_text("from latentcomm.room.three import name")
    (package / "three.py").write_text("name = 1")
    assert circle_in(tmp_path) == []
    (package / "three.py").write_text(f"{late}from .one import two")
    assert sorted(set(circle_in(tmp_path))) == [f"latentcomm.room.{name}" for name in ("one", "three", "two")]


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
    assert len(broken_rules("hooks", imports_of(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from latentcomm.models.sites import Site",
        "from latentcomm import models",
        "from .fusion import Sum",
        "import torch",
    ],
)
def test_an_import_along_the_layout_is_allowed(source: str) -> None:
    assert broken_rules("hooks", imports_of(source)) == []


def test_files_of_a_subpackage_import_each_other_but_nothing_above_it() -> None:
    package = "latentcomm.tasks"
    assert broken_rules("tasks", imports_of("from .base import Task\nfrom latentcomm.tasks import base", package)) == []
    assert len(broken_rules("tasks", imports_of("from ..experiments import sweep", package))) == 1


def test_transformer_lens_is_imported_in_the_seam_alone() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == "transformer_lens" for name in imports_of(path.read_text("utf-8")))
    }
    assert importers == {SEAM}


def test_importing_latentcomm_loads_nothing_heavy() -> None:
    heavy = "{'transformer_lens', 'transformers', 'torch', 'pandas', 'plotly', 'sklearn'}"
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


def test_no_file_defers_its_annotations_so_shapes_are_checked() -> None:
    deferred = [
        path.relative_to(ROOT).as_posix()
        for path in code_files()
        if "__future__.annotations" in imports_of(path.read_text("utf-8"))
    ]
    assert deferred == []


def long_test_names(code: str) -> list[str]:
    """The names of tests that have too many characters to be read at a glance."""
    functions = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [one.name for one in functions if one.name.startswith("test_") and len(one.name) >= NAME_LENGTH]


def test_names_of_tests_are_shorter_than_seventy_characters() -> None:
    assert long_test_names(f"class TestA:\n    def test_{'a' * 65}(self): ...") == [f"test_{'a' * 65}"]
    assert long_test_names(f"def test_{'a' * 64}(): ...\ndef helper_{'a' * 64}(): ...") == []
    paths = sorted((ROOT / "tests").rglob("*.py"))
    assert len(paths) > 100
    found = {path.name: names for path in paths if (names := long_test_names(path.read_text("utf-8")))}
    assert found == {}
