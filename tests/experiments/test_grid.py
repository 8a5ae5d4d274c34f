"""A grid file: lists and rows become settings, and what is wrong in it is named."""

from pathlib import Path

import pandas as pd
import pytest

import latentcomm as lc
from latentcomm.cli import app
from latentcomm.experiments.grid import grid_table, read_grid

GRID = """
experiment = "compare"
[settings]
channels = ["silent", "replace"]
n_test = 6
[grid]
seed = [0, 1]
read_layer = [1, 2]
[[runs]]
write_layer = 1
[[runs]]
write_layer = 2
fame = "famous"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text, "utf-8")
    return path


def test_every_row_is_run_at_every_combination(tmp_path: Path) -> None:
    runs = read_grid(written(tmp_path, GRID))
    assert [(run.write_layer, run.fame, run.seed, run.read_layer) for run in runs] == [
        (write, fame, seed, read) for write, fame in ((1, "all"), (2, "famous")) for seed in (0, 1) for read in (1, 2)
    ]
    assert {(type(run), run.channels, run.n_test) for run in runs} == {(lc.CompareSettings, ("silent", "replace"), 6)}


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('experiment = "compare"', "", "names no experiment"),
        ('"compare"', '"compair"', "no experiment 'compair'; did you mean 'compare'"),
        ("seed = [0, 1]", "seed = []", "seed of .grid. is ..; give a list of at least one value"),
        ("seed = [0, 1]", "seed = 3", "seed of .grid. is 3"),
        ("seed = [0, 1]", "sed = [0, 1]", "no option of compare 'sed'; did you mean 'seed'"),
        ("seed = [0, 1]", "seed = [0, 'a']", "seed is 'a'; give a value of type int"),
        ("seed = [0, 1]", "seed = [0, 0]", "run 3 has the settings of run 1"),
        ("seed = [0, 1]", "n_test = [5, 6]", "n_test stands in two"),
        ("[grid]", "[gird]", "no table of a grid 'gird'; did you mean 'grid'"),
        ("[grid]", "[grid", "cannot be read as TOML"),
        ("[grid]", "[[grid]]", "write it as the table .grid."),
        ("[settings]", "[[settings]]", "write it as the table .settings."),
        ("[[runs]]\nwrite_layer = 1\n[[runs]]", "[runs]", "write each row as a table"),
        ('experiment = "compare"', 'experiment = ["compare"]', "give one name"),
        ("seed = [0, 1]", f"seed = {list(range(3000))}", "12000 runs, and more than 10000 need"),
    ],
)
def test_a_wrong_grid_is_refused_in_a_sentence(before: str, after: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_grid(written(tmp_path, GRID.replace(before, after)))


def test_a_grid_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no grid file"):
        read_grid(tmp_path / "grid.toml")


def test_the_table_of_a_grid_names_what_differs(tiny: lc.Model) -> None:
    runs = [lc.CompareSettings(channels=("silent",), n_test=6, seed=seed, controls=()) for seed in (0, 1)]
    results = [lc.run(each, tiny) for each in runs]
    found = grid_table(results)
    assert list(found.columns[:2]) == ["run", "seed"] and found["seed"].unique().tolist() == [0, 1]
    for number, result in enumerate(results, 1):
        rows = found[found["run"] == number].drop(columns=["run", "seed"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, result.table, check_dtype=False)


def test_a_dry_run_prints_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GRID)
    with pytest.raises(SystemExit) as end:
        app(["grid", str(path), "--out", str(tmp_path / "runs"), "--dry-run"])
    assert end.value.code == 0 and not (tmp_path / "runs").exists()
    assert capsys.readouterr().out.count("famous") == 4
