"""A grid file: lists and rows become settings, and what is wrong in it is named."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from toys import Counter, countries_folder

import latentcomm as lc
from latentcomm import models
from latentcomm._core.files import readable
from latentcomm._core.progress import duration
from latentcomm.cli import app
from latentcomm.experiments import job, preflight
from latentcomm.experiments.grid import grid_table, read_grid
from latentcomm.experiments.preflight import Preflight, together
from latentcomm.experiments.run import plan_all

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(countries_folder(tmp_path_factory.mktemp("models") / "a"))


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


class TestDryRun:
    def ended(self, tmp_path: Path, text: str, *more: str) -> int:
        path = written(tmp_path, text)
        with pytest.raises(SystemExit) as end:
            app(["grid", str(path), "--out", str(tmp_path / "runs"), "--dry-run", *more])
        assert not (tmp_path / "runs").exists()
        return int(end.value.code or 0)

    def test_it_states_what_each_and_all_runs_take(
        self, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = GRID.replace("n_test = 6", f'n_test = 6\nsender = "{folder}"')
        assert self.ended(tmp_path, text, "--flops", "1e6") == 0
        found = capsys.readouterr().out
        runs = read_grid(written(tmp_path, text))
        alone = [lc.plan(run, out=tmp_path / "runs", flops=1e6) for run in runs]
        assert found.count("famous") == 4 and "would run: 8 runs" in found
        assert f"disk: about {readable(sum(each.disk for each in alone))}" in found
        assert f"memory: about {readable(max(each.memory for each in alone))}" in found
        assert f"time: at least {duration(sum(each.seconds or 0 for each in alone))} at" in found

    def test_a_refusal_names_the_runs_that_it_is_of(
        self, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = GRID.replace("n_test = 6", f'n_test = 6\nsender = "{folder}"')
        assert self.ended(tmp_path, text.replace("read_layer = [1, 2]", "read_layer = [1, 9]")) == 1
        error = capsys.readouterr().err
        assert "run 2 (seed 0, fame all, read_layer 9, write_layer 1), run 4 (seed 1, " in error
        assert f"and 1 more: read_layer 9 is outside {folder}" in error and "run 1 (" not in error

    def test_models_and_tasks_are_read_once_for_all_runs(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        shapes, tokenizers = Counter(models.shape_of), Counter(models.tokenizer_of)
        monkeypatch.setattr(models, "shape_of", shapes)
        monkeypatch.setattr(models, "tokenizer_of", tokenizers)
        tasks = Counter(job.make_task)
        monkeypatch.setattr(job, "make_task", tasks)
        plain = lc.CompareSettings(sender=folder, channels=("silent",), read_layer=1, write_layer=1)
        runs = [replace(plain, seed=seed, n_test=n) for n in range(5, 20) for seed in (0, 1)]
        reports = plan_all(runs)
        assert [shapes.calls, tokenizers.calls, tasks.calls] == [1, 1, 2]
        assert replace(reports[7], seconds=0, free_memory=0) == replace(lc.plan(runs[7]), seconds=0, free_memory=0)

    def test_a_model_that_is_not_there_is_refused_in_every_run(self, tmp_path: Path) -> None:
        runs = [lc.CompareSettings(sender=str(tmp_path / "none"), channels=("silent",), seed=seed) for seed in (0, 1)]
        assert [report.refusals for report in plan_all(runs)] == [lc.plan(runs[0]).refusals] * 2

    def test_all_runs_need_room_on_the_disk_together(self) -> None:
        reports = [Preflight(disk=6, free_disk=10), Preflight(disk=6, free_disk=10)]
        (refusal,) = together(["run 1", "run 2"], reports).refusals
        assert "all runs write" in refusal and together(["run 1"], reports[:1]).refusals == ()


class TestOneAfterTheOther:
    @pytest.fixture
    def runs(self, folder: str) -> list[lc.CompareSettings]:
        return [
            lc.CompareSettings(sender=folder, channels=("silent",), n_test=6, read_layer=layer, write_layer=1)
            for layer in (0, 1, 9)
        ]

    def test_a_run_starts_once_the_next_has_been_checked(self, runs: list[lc.CompareSettings], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^run 3 \(read_layer 9\): read_layer 9 is outside"):
            lc.run_all(runs, out=tmp_path / "runs")
        assert len(list(tmp_path.glob("runs/*/compare.csv"))) == 1

    def test_memory_is_that_before_any_model_was_loaded(
        self, runs: list[lc.CompareSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = iter([10**12])
        monkeypatch.setattr(preflight, "free_memory", lambda _: next(free, 0))
        assert len(lc.run_all(runs[:2], out=tmp_path / "runs")) == 2
