"""Every analysis runs small, publishes what it says, and every committed figure is what its data give."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from pictures import PictureSettings
from tiny import files_in

import latentcomm as lc
from latentcomm._core.stats import proportion_interval
from latentcomm.fusion import Replace
from latentcomm.reporting.publish import check_replot, plain
from latentcomm.tasks import countries

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "figures"
SCRIPTS = sorted((ROOT / "analyses").glob("fig*.py"), key=lambda path: int(path.stem.partition("_")[0][3:]))
SWEEPS = [path for path in SCRIPTS if path.stem.partition("_")[0] in ("fig1", "fig2")]
"""The analyses of a sweep on Countries; the others have tests of their own that run them small."""
BENCHMARKS = sorted(set((ROOT / "benchmarks").glob("*.py")) - {ROOT / "benchmarks" / "own_process.py"})
ENDINGS = (".csv", ".html", ".json", ".meta.json")


def script(path: Path) -> ModuleType:
    """A script as a module, its `main` not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def plots(module: ModuleType) -> dict[str, Callable[[pd.DataFrame, dict[str, Any]], go.Figure]]:
    """The figures an analysis writes and what draws each."""
    return dict(module.FIGURES) if hasattr(module, "FIGURES") else {module.NAME: module.plot}


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.NAME}.py", *map(str, arguments)])
    module.main()


@contextlib.contextmanager
def interrupted(module: ModuleType) -> Iterator[None]:
    """Within it an analysis is stopped when its tables are computed and nothing is published yet."""
    compute = module.compute

    def stopped(*given: Any, **options: Any) -> None:
        compute(*given, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compute", stopped)
        with pytest.raises(KeyboardInterrupt):
            yield


def assert_replots_the_same(module: ModuleType, folder: Path, names: Iterable[str]) -> None:
    """Require that a script gives the same figures again, from their tables and without a model."""
    figures = {name: (folder / f"{name}.json").read_bytes() for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lc, "load_model", lambda name, **options: pytest.fail("a replot loaded a model"))
        call(module, patch, "--replot", "--out", folder)
    assert figures == {name: (folder / f"{name}.json").read_bytes() for name in figures}


def assert_same_figures(first: Path, second: Path) -> None:
    """Require the same bytes of every table and figure of the first folder; their metadata have times."""
    for name in files_in(first):
        if name.endswith((".csv", ".json")) and not name.endswith(".meta.json"):
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def assert_resumes_with_the_same_bytes(module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Require that a small run that is interrupted before it publishes gives the figures of an undisturbed one."""
    call(module, monkeypatch, "--smoke", "--out", folder / "first")
    with interrupted(module):
        call(module, monkeypatch, "--smoke", "--out", folder / "second")
    call(module, monkeypatch, "--smoke", "--out", folder / "second")
    assert_same_figures(folder / "first", folder / "second")


PLOTS = {name: plot for path in SCRIPTS for name, plot in plots(script(path)).items()}
every_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
every_sweep = pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)


class TestTheTableOfTheDemo:
    PUBLISHED = pd.read_csv(FIGURES / "fig1_layer_sweep_conditions.csv")

    def test_the_published_table_is_itself(self) -> None:
        assert script(ROOT / "analyses" / "readme_table.py").differences(self.PUBLISHED, self.PUBLISHED) == []

    def test_every_row_that_moved_or_is_missing_is_named(self) -> None:
        found = self.PUBLISHED.drop(index=5)
        found.loc[4, "correct"] -= 1
        lines = script(ROOT / "analyses" / "readme_table.py").differences(found, self.PUBLISHED)
        moved, missing = self.PUBLISHED.loc[4], self.PUBLISHED.loc[5]
        row = f"{moved.channel} {moved.condition} {moved.metric}"
        gone = f"{missing.channel} {missing.condition} {missing.metric}"
        assert set(lines) == {
            f"{row}: {moved.correct - 1} of 162, README {moved.correct} of 162",
            f"{gone}: no such row, README {missing.correct} of 162",
        }

    def test_equal_counts_of_other_items_show_by_their_p_value(self) -> None:
        found = self.PUBLISHED.copy()
        row = found.index[found["p_silent"].notna()][0]
        found.loc[row, "p_silent"] *= 1.01
        assert len(script(ROOT / "analyses" / "readme_table.py").differences(found, self.PUBLISHED)) == 1

    def test_a_sweep_that_was_not_run_is_said(self, tmp_path: Path) -> None:
        command = [sys.executable, "analyses/readme_table.py", str(tmp_path / "no.csv")]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode == 1 and "run `latentcomm sweep` first" in found.stderr


def made_small(module: ModuleType, tiny: lc.Model, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The analysis on a tiny model, in layers that this has, on few items."""
    monkeypatch.setattr(lc, "load_model", lambda name, **options: tiny)
    small = dataclasses.replace(module.SMOKE, read_layers=(0, 1), write_layers=(0, 1), n_tune=2, n_test=4)
    monkeypatch.setattr(module, "SMOKE", small)
    return module


class TestEveryScript:
    def test_there_are_the_figures_of_the_paper(self) -> None:
        assert [path.stem.partition("_")[0] for path in SCRIPTS] == [f"fig{n + 1}" for n in range(len(SCRIPTS))]
        assert len(SCRIPTS) >= 2

    @every_script
    def test_has_frozen_settings_and_a_smaller_version_of_them(self, path: Path) -> None:
        module = script(path)
        assert path.stem == module.NAME
        assert type(module.SMOKE) is type(module.SETTINGS) and module.SMOKE != module.SETTINGS
        assert dataclasses.fields(module.SETTINGS)
        with pytest.raises(dataclasses.FrozenInstanceError):
            module.SETTINGS.seed = 1

    @every_sweep
    def test_a_smoke_run_is_the_same_in_fewer_cells_and_items(self, path: Path) -> None:
        module = script(path)
        whole, smoke = dataclasses.asdict(module.SETTINGS), dataclasses.asdict(module.SMOKE)
        changed = {name for name in whole if smoke[name] != whole[name]}
        assert changed <= {"read_layers", "write_layers", "n_tune", "n_test", "templates", "sender_forms"}
        assert smoke["n_tune"] < whole["n_tune"] and smoke["n_test"] is not None
        for layers in (smoke["read_layers"], smoke["write_layers"]):
            assert len(layers) <= 3 and set(layers) <= set(range(30))  # the built-in model has 30

    @every_script
    def test_has_a_compute_a_plot_for_every_figure_and_a_main(self, path: Path) -> None:
        module = script(path)
        assert callable(module.compute) and callable(module.main)
        assert all(name.startswith(module.NAME) and callable(plot) for name, plot in plots(module).items())

    @every_script
    def test_says_at_its_top_how_it_is_run(self, path: Path) -> None:
        assert f"python analyses/{path.name} [--smoke] [--replot] [--out DIR]" in (script(path).__doc__ or "")

    @pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
    def test_a_benchmark_finds_all_that_it_imports(self, path: Path) -> None:
        assert callable(script(path).main)

    def test_a_script_starts_by_itself(self) -> None:
        done = subprocess.run(
            [sys.executable, SCRIPTS[0], "--help"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and "--replot" in done.stdout, done.stderr


class TestASmallRun:
    @every_sweep
    def test_publishes_every_figure_and_replots_it_without_a_model(
        self, path: Path, tiny: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = made_small(script(path), tiny, monkeypatch)
        call(module, monkeypatch, "--smoke", "--out", tmp_path)
        expected = {f"{name}{ending}" for name in plots(module) for ending in ENDINGS}
        written = {name for name in files_in(tmp_path) if not name.startswith(".unfinished")}
        assert expected <= written and all(name.startswith(module.NAME) for name in written)
        assert not (tmp_path / ".unfinished" / module.NAME).exists()
        for name, plot in plots(module).items():
            check_replot(name, tmp_path, plot)
            meta = json.loads((tmp_path / f"{name}.meta.json").read_text("utf-8"))
            recorded = {field.name: getattr(module.SMOKE, field.name) for field in dataclasses.fields(module.SMOKE)}
            plain = {key: list(value) if isinstance(value, tuple) else value for key, value in recorded.items()}
            assert meta["settings"] == plain | {
                key: meta["settings"][key] for key in meta["settings"] if key not in plain
            }
            assert all(model["fingerprint"] == tiny.fingerprint for model in meta["models"].values())

        for name in plots(module):
            (tmp_path / f"{name}.html").unlink()
        assert_replots_the_same(module, tmp_path, plots(module))
        assert all((tmp_path / f"{name}.html").exists() for name in plots(module))

        for name, plot in plots(
            module
        ).items():  # and a number that is changed in the data is a figure that is not theirs
            table = pd.read_csv(tmp_path / f"{name}.csv")
            column = next(c for c in ("accuracy", "choices_accuracy") if c in table)
            other = (table[column] + 0.001).where(table[column] < 0.5, table[column] - 0.001)
            table.assign(**{column: other}).assign(**({"low": 0.0, "high": 1.0} if "low" in table else {})).to_csv(
                tmp_path / f"{name}.csv", index=False
            )
            with pytest.raises(RuntimeError, match=f"{name}.json is not what {name}.csv gives"):
                check_replot(name, tmp_path, plot)

    @every_sweep
    def test_gives_the_same_bytes_a_second_time(
        self, path: Path, tiny: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = made_small(script(path), tiny, monkeypatch)
        for folder in ("first", "second"):
            call(module, monkeypatch, "--smoke", "--out", tmp_path / folder)
        for name in files_in(tmp_path / "first"):
            if name.endswith((".csv", ".json")) and not name.endswith(".meta.json"):
                assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


class TestTheLayerSweep:
    PATH = ROOT / "analyses" / "fig1_layer_sweep.py"

    @pytest.fixture
    def small(self, tiny: lc.Model, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        return made_small(script(self.PATH), tiny, monkeypatch)

    def test_every_setting_does_what_it_says(self, small: ModuleType, tiny: lc.Model) -> None:
        settings = small.SMOKE
        plain = small.compute(settings, tiny, tiny)
        assert [plain.cells[axis].unique().tolist() for axis in ("read_layer", "write_layer")] == [[0, 1], [0, 1]]
        assert set(plain.cells["n"]) == {settings.n_tune} and set(plain.conditions["n"]) == {settings.n_test}
        for change in ({"template": "chat"}, {"sender_form": "entity"}, {"fame": "obscure"}, {"seed": 1}):
            other = small.compute(dataclasses.replace(settings, **change), tiny, tiny)
            assert [trial.reply for trial in other.trials] != [trial.reply for trial in plain.trials], change
        swept = small.compute(dataclasses.replace(settings, fusion="mean"), tiny, tiny)
        controlled = {trial.channel for trial in swept.trials if trial.condition == "zero"}
        assert controlled == {"mean"} and {"replace", "sum"} <= {trial.channel for trial in swept.trials}

    def test_the_settings_of_the_paper_are_the_demos_own(self) -> None:
        settings = script(self.PATH).SETTINGS
        assert (settings.sender, settings.receiver) == ("smollm2-135m-instruct",) * 2
        assert (settings.template, settings.sender_form, settings.fame) == ("raw", "primed", None)
        assert (settings.read_layers, settings.write_layers, settings.n_tune, settings.n_test) == (None, None, 40, None)


class TestTemplateAndFame:
    PATH = ROOT / "analyses" / "fig2_template_and_fame.py"

    def test_each_row_counts_the_test_items_of_its_fame(self, tiny: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
        module = made_small(script(self.PATH), tiny, monkeypatch)
        settings = dataclasses.replace(module.SMOKE, templates=("chat",), sender_forms=("sentence",), n_test=12)
        found = module.compute(settings, tiny)
        task = countries(template="chat", sender_form="sentence")
        fame = {item.id: item.tags["fame"] for item in task.items}
        report = lc.sweep_and_judge(
            tiny,
            tiny,
            task,
            fusions={"replace": Replace()},
            read_layers=(0, 1),
            write_layers=(0, 1),
            n_tune=settings.n_tune,
            n_test=12,
        )
        shown = {"silent": ("silent", "message"), "skyline": ("skyline", "message"), "replace": ("replace", "message")}
        shown |= {"shuffled": ("replace", "shuffled"), "logit lens": ("logit lens", "unembedded")}
        assert len(found) == len(shown) * 2 * 2  # conditions, fames, metrics
        for row in found.to_dict("records"):
            channel, condition = shown[row["condition"]]
            mine = [
                trial
                for trial in report.trials
                if (trial.channel, trial.condition, fame[trial.item]) == (channel, condition, row["fame"])
            ]
            right = sum(getattr(trial, row["metric"]) for trial in mine)
            assert (row["n"], row["accuracy"]) == (len(mine), right / len(mine))
            assert (row["low"], row["high"]) == proportion_interval(right, len(mine))
            assert (row["read_layer"], row["write_layer"]) == report.chosen
            assert (row["template"], row["sender_form"]) == ("chat", "sentence")
        assert found.groupby(["condition", "metric"])["n"].sum().unique().tolist() == [12]


class TestWhatIsCommitted:
    @pytest.mark.parametrize("name", sorted(PLOTS))
    def test_the_figure_is_what_its_data_give(self, name: str) -> None:
        if not (FIGURES / f"{name}.json").exists():
            pytest.skip(f"figures/{name}.json is not committed yet; run the analysis that writes it")
        check_replot(name, FIGURES, PLOTS[name])

    @every_script
    def test_a_replot_leaves_it_byte_for_byte(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = script(path)
        names = [name for name in plots(module) if (FIGURES / f"{name}.json").exists()]
        if not names:
            pytest.skip(f"no figure of {path.name} is committed yet; run it")
        for name in names:
            for ending in (".csv", ".meta.json"):
                (tmp_path / f"{name}{ending}").write_bytes((FIGURES / f"{name}{ending}").read_bytes())
        call(module, monkeypatch, "--replot", "--out", tmp_path)
        for name in names:
            assert (tmp_path / f"{name}.json").read_bytes() == (FIGURES / f"{name}.json").read_bytes()

    def test_every_figure_has_its_data_its_metadata_and_an_analysis(self) -> None:
        names = {path.name.removesuffix(".json") for path in FIGURES.glob("fig*.json")}
        names = {name for name in names if not name.endswith(".meta")}
        assert names <= set(PLOTS)
        assert [name for name in names if not (FIGURES / f"{name}.csv").exists()] == []
        assert [name for name in names if not (FIGURES / f"{name}.meta.json").exists()] == []

    def test_every_figure_was_made_with_the_settings_of_its_analysis(self) -> None:
        for path in SCRIPTS:
            module = script(path)
            for name in plots(module):
                if not (FIGURES / f"{name}.meta.json").exists():
                    continue
                recorded = json.loads((FIGURES / f"{name}.meta.json").read_text("utf-8"))["settings"]
                settings = module.settings_of(name) if hasattr(module, "settings_of") else module.SETTINGS
                if isinstance(settings, PictureSettings):
                    settings = dataclasses.replace(settings, data=name.rpartition("_")[2])
                for field in dataclasses.fields(settings):
                    value = plain(dataclasses.asdict(settings))[field.name]
                    assert recorded[field.name] == value, f"{name}: {field.name}"
