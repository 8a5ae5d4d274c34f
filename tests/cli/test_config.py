"""Settings from a file and from the command line: the fields are the only place where an option is named."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from commands import run as command
from toys import countries_folder

import latentcomm as lc
from latentcomm.cli.experiment import parse
from latentcomm.experiments.run import EXPERIMENTS

SMALL = ("--n-tune", "4", "--n-test", "8", "--fusion", "replace")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny-countries")


class TestOptions:
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_every_field_is_an_option_with_help(self, name: str) -> None:
        shown = command(name, "--help").stdout
        for field in fields(EXPERIMENTS[name].settings):
            _, found, rest = shown.partition(f"--{field.name.replace('_', '-')} ")
            assert found, field.name
            assert rest.partition("(default")[0].replace("│", " ").split()[1:], field.name

    def test_shared_options_stand_in_one_order_in_every_command(self) -> None:
        shared = [field.name for field in fields(lc.SweepSettings)][:5]
        assert shared == ["sender", "receiver", "seed", "device", "dtype"]
        for experiment in EXPERIMENTS.values():
            assert [field.name for field in fields(experiment.settings)][:5] == shared

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_the_defaults_of_the_command_are_those_of_the_class(self, name: str) -> None:
        experiment = EXPERIMENTS[name]
        settings, files = parse(experiment.settings, [])
        assert settings == experiment.settings()
        assert (files.name, str(files.out)) == (name, experiment.settings.default_folder)

    def test_names_of_the_last_release_are_still_understood(self) -> None:
        cascade, _ = parse(lc.CascadeSettings, ["--large", "a", "--small=b"])
        assert (cascade.sender, cascade.receiver) == ("a", "b")
        pictures, _ = parse(lc.CrossModalSettings, ["--vision", "eye"])
        assert pictures.sender == "eye"
        diagnose, _ = parse(lc.DiagnoseSettings, ["a", "b", "--seed", "2"])
        assert (diagnose.sender, diagnose.receiver, diagnose.seed) == ("a", "b", 2)
        train, _ = parse(lc.TrainSettings, ["gated,calm", "--steps", "3"])
        assert (train.channels, train.steps) == (("gated", "calm"), 3)

    def test_help_loads_no_torch(self) -> None:
        lines = "import sys; from latentcomm.cli import app\ntry: app(['sweep', '--help'])\nexcept SystemExit: pass\n"
        lines += "print(sorted({'torch', 'pandas', 'plotly', 'transformers'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    @pytest.mark.parametrize(
        "line",
        [
            ("diagnose", "a", "--sender", "b"),
            ("train", "gated", "--channels", "calm"),
            ("cascade", "--large", "a", "--sender", "b"),
            ("sweep", "--config", "a.toml", "--config", "b.toml"),
        ],
    )
    def test_an_option_that_is_given_twice_is_refused(self, line: tuple[str, ...]) -> None:
        found = command(*line)
        assert found.exit_code == 1 and "is given twice; give it once" in found.stderr

    @pytest.mark.parametrize(
        ("line", "sentence"),
        [
            (("compare", "--controls", "shufled"), "there is no control 'shufled'; did you mean 'shuffled'?"),
            (("compare", "--controls", "zero,zero"), "--controls names zero twice"),
            (("sweep", "--fusion", "norm-matched,norm_matched_sum"), "--fusion names norm_matched twice"),
        ],
    )
    def test_a_list_with_a_misspelt_or_doubled_name_is_refused(
        self, line: tuple[str, ...], sentence: str, tiny: Path
    ) -> None:
        assert sentence in command(*line, "--sender", tiny).stderr

    def test_the_nearest_option_is_named(self) -> None:
        found = command("compare", "--chanels", "silent")
        assert found.exit_code == 2 and "--channels" in found.stderr


class TestAFile:
    def test_a_toml_file_gives_options_and_the_command_line_wins(self, tmp_path: Path) -> None:
        path = tmp_path / "run.toml"
        path.write_text('channels = ["silent", "replace"]\nn-test = 30\nseed = 4\nlearning = 1\n', "utf-8")
        assert "learning" in command("compare", "--config", path).stderr
        path.write_text('channels = ["silent", "replace"]\nn-test = 30\nseed = 4\n', "utf-8")
        settings, _ = parse(lc.CompareSettings, ["--config", str(path), "--seed", "5"])
        assert settings == lc.CompareSettings(channels=("silent", "replace"), n_test=30, seed=5)

    def test_metadata_repeat_the_run_that_wrote_them(self, tiny: Path, tmp_path: Path) -> None:
        first, again = tmp_path / "first", tmp_path / "again"
        assert command("sweep", "--sender", tiny, *SMALL, "--out", first).exit_code == 0
        meta = first / "sweep.meta.json"
        assert str(tiny.parent) not in meta.read_text("utf-8")  # a folder of the machine stays its own
        found = command("sweep", "--config", meta, "--sender", tiny, "--out", again)
        assert found.exit_code == 0, found.output
        assert (again / "sweep_trials.csv").read_bytes() == (first / "sweep_trials.csv").read_bytes()
        assert json.loads((again / "sweep.meta.json").read_text())["run"] == json.loads(meta.read_text())["run"]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("n-tets = 3", "there is no option of compare 'n_tets'; did you mean 'n_test'?"),
            ("n-test = 'many'", "n-test is 'many'; give a value of type int"),
            ("n-test = -1", "n_test is -1; give at least 0"),
            ("channels = ['silent', 3]", "channels is ['silent', 3]"),
            ("[compare]\nseed = 1", "there is no option of compare 'compare'"),
            ("seed = ", "cannot be read as TOML"),
            ("seed = true", "seed is True; give a value of type int"),
            ("n-test = 6\nn_test = 4", "n_test is given twice"),
        ],
    )
    def test_what_is_wrong_with_it_is_named(self, text: str, sentence: str, tmp_path: Path) -> None:
        path = tmp_path / "run.toml"
        path.write_text(text, "utf-8")
        found = command("compare", "--config", path)
        assert found.exit_code == 1 and sentence in found.stderr and "Traceback" not in found.stderr

    def test_metadata_of_something_else_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.meta.json"
        assert "there is no configuration file" in command("sweep", "--config", path).stderr
        path.write_text(json.dumps({"settings": {}, "versions": {"latentcomm": "0.1.0"}}))
        refused = command("sweep", "--config", path).stderr
        assert "written by latentcomm 0.1.0 and holds no settings to repeat" in refused
        path.write_text(json.dumps({"run": {"experiment": "sweep", "settings": {}}, "versions": {}}))
        assert "is of `latentcomm sweep`, not of `latentcomm compare`" in command("compare", "--config", path).stderr

    def test_metadata_of_models_in_memory_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.meta.json"
        path.write_text(json.dumps({"run": {"experiment": "sweep", "settings": {}, "in_memory": ["sender", "task"]}}))
        assert "sender and task in memory, which no command repeats" in command("sweep", "--config", path).stderr

    @pytest.mark.parametrize(
        "content", ['{"versions": null}', '{"run": {"experiment": "sweep", "settings": []}}', "[]"]
    )
    def test_metadata_without_settings_are_refused(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "x.meta.json"
        path.write_text(content)
        found = command("sweep", "--config", path)
        assert found.exit_code == 1 and "holds no settings to repeat" in found.stderr

    def test_metadata_of_another_release_say_so(self, tmp_path: Path) -> None:
        path = tmp_path / "x.meta.json"
        record = {"experiment": "sweep", "settings": {"fusion": ["men"]}}
        path.write_text(json.dumps({"run": record, "versions": {"latentcomm": "0.0.9"}}))
        found = command("sweep", "--config", path)
        assert "written by latentcomm 0.0.9, and this is" in found.stderr and "no fusion 'men'" in found.stderr


class TestTheCommand:
    def test_a_misspelt_command_names_the_nearest(self) -> None:
        found = command("swep")
        assert found.exit_code == 2 and "did you mean 'sweep'?" in found.stderr

    def test_says_its_version(self) -> None:
        assert command("--version").stdout == f"latentcomm {lc.__version__}\n"

    @pytest.mark.parametrize("name", ["tasks", "channels", "fusions", "controls", "stops", "models"])
    def test_lists_names(self, name: str) -> None:
        found = command("list", name)
        assert found.exit_code == 0 and len(found.stdout.splitlines()) >= 1

    def test_a_list_that_does_not_exist_names_the_nearest(self) -> None:
        assert "did you mean 'tasks'?" in command("list", "task").stderr
