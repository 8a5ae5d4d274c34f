"""Settings from a file and from the command line: the fields are the only place where an option is named."""

import json
import subprocess
import sys
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import run as command
from toys import countries_folder

import latentcomm as lc
from latentcomm.cli.experiment import parse
from latentcomm.experiments._prepared import EXPERIMENTS
from latentcomm.models import ChatFormat
from latentcomm.tasks.catalogue import make_task

SMALL = ("--n-tune", "4", "--n-test", "8", "--fusion", "replace")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny-countries")


class TestOptions:
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_every_field_is_an_option_with_help(self, name: str) -> None:
        shown = command(name, "--help").stdout
        for field in fields(EXPERIMENTS[name].settings):
            on = field.default is True  # which the option turns off
            _, found, rest = shown.partition(f"--{'no-' if on else ''}{field.name.replace('_', '-')} ")
            assert found, field.name
            assert rest.partition("(default")[0].replace("│", " ").split()[1:], field.name

    def test_shared_options_stand_in_one_order_in_every_command(self) -> None:
        shared = [field.name for field in fields(lc.SweepSettings)][:5]
        assert shared == ["sender", "receiver", "seed", "device", "dtype"]
        for experiment in EXPERIMENTS.values():
            assert [field.name for field in fields(experiment.settings)][:5] == shared

    def test_options_of_two_commands_come_in_the_same_order_in_both(self) -> None:
        names = {name: [field.name for field in fields(each.settings)] for name, each in EXPERIMENTS.items()}
        for one, other in combinations(names.values(), 2):
            assert [name for name in one if name in other] == [name for name in other if name in one]

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
            (("cascade", "--controls", "shufled"), "there is no control 'shufled'; did you mean 'shuffled'?"),
            (("cascade", "--stop", "entropy-dorp"), "there is no stop 'entropy-dorp'; did you mean 'entropy-drop'?"),
            (("cascade", "--hand-off", "txet"), "there is no hand-off 'txet'; did you mean 'text'?"),
            (("crossmodal", "--channels", "sylent"), "no channel for pictures 'sylent'; did you mean 'silent'?"),
            (("compare", "--controls", "zero,zero"), "--controls names zero twice"),
            (("sweep", "--fusion", "norm-matched,norm_matched_sum"), "--fusion names norm_matched twice"),
        ],
    )
    def test_a_list_with_a_misspelt_or_doubled_name_is_refused(
        self, line: tuple[str, ...], sentence: str, tiny: Path
    ) -> None:
        assert sentence in command(*line, "--sender", tiny).stderr

    def test_the_options_of_a_chat_are_a_line_a_file_and_the_metadata(self, tmp_path: Path) -> None:
        turns = (("user", "Hi, you"), ("assistant", "Hello."))
        given = {"template": "chat", "system": "Be brief.", "history": turns, "date": "2031-05-02"}
        line = ["--template", "chat", "--system", "Be brief.", "--history", json.dumps(turns), "--date", "2031-05-02"]
        for switch, thinking in (("--enable-thinking", True), ("--no-enable-thinking", False)):
            settings, _ = parse(lc.SweepSettings, [*line, switch])
            assert settings == lc.SweepSettings(**given, enable_thinking=thinking)
            assert lc.SweepSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
        task = make_task("countries", **settings.task_options())
        assert task.template == settings.prompted == ChatFormat("Be brief.", turns, False, "2031-05-02")
        path = tmp_path / "run.toml"
        path.write_text(
            'template = "chat"\nsystem = "Be brief."\nhistory = [["user", "Hi, you"], ["assistant", "Hello."]]\n'
            'date = "2031-05-02"\nenable-thinking = false\n',
            "utf-8",
        )
        assert parse(lc.SweepSettings, ["--config", str(path)])[0] == settings
        again, _ = parse(lc.SweepSettings, ["--config", str(path), "--system", "", "--enable-thinking"])
        assert (again.system, again.enable_thinking, again.history) == ("", True, turns)

    @pytest.mark.parametrize(
        ("line", "sentence"),
        [
            (("--system", "Be brief."), "--system is of a chat, and template is raw; give template 'chat' with it"),
            (("--template", "chat", "--history", "Hi"), "'Hi' is no list of pairs; write JSON such as"),
            (("--template", "chat", "--history", '[["user"]]'), "is no list of pairs; write JSON such as"),
            (("--template", "chat", "--history", '[["me", "Hi"]]'), "--history has the role 'me' in turn 0; give user"),
            (("--template", "chat", "--date", "today"), "--date is 'today'; give a day as year-month-day"),
            (("--enable-thinking", "--no-enable-thinking"), "--enable-thinking is given twice; give it once"),
        ],
    )
    def test_a_wrong_option_of_a_chat_is_refused(self, line: tuple[str, ...], sentence: str) -> None:
        found = command("sweep", *line)
        shown = " ".join(found.stderr.replace("│", " ").split())
        assert found.exit_code in (1, 2) and sentence in shown, shown

    def test_the_nearest_choice_is_named(self) -> None:
        found = command("sweep", "--template", "chta")
        assert found.exit_code == 2 and "did you mean 'chat'?" in found.stderr and "--template" in found.stderr

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

    @pytest.mark.parametrize("ending", [">&-", ">&- 2>&-", "| head -c 0"])
    def test_output_that_nobody_reads_is_no_error(self, ending: str) -> None:
        line = f"set -o pipefail; {sys.executable} -m latentcomm list channels {ending}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_list_that_does_not_exist_names_the_nearest(self) -> None:
        assert "did you mean 'tasks'?" in command("list", "task").stderr

    @pytest.mark.parametrize("line", [("list", "tasks", "fusions"), ("models", "gpt2"), ("clean", "a", "b")])
    def test_what_a_command_does_not_take_is_refused(self, line: tuple[str, ...]) -> None:
        found = command(*line)
        assert found.exit_code == 1 and found.stdout == "" and line[-1] in found.stderr

    def test_everything_that_is_listed_is_described(self) -> None:
        for name in ("tasks", "channels", "fusions", "controls", "stops", "models"):
            assert all(len(line.split(None, 1)) == 2 for line in command("list", name).stdout.splitlines()), name
        assert "self-consistency" in command("list", "controls").stdout

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            ("no_such_module:ENTRY", "cannot be loaded from no_such_module:ENTRY (ModuleNotFoundError: No module"),
            ("math:pi", "is a float and no Entry; let its entry point name one"),
        ],
    )
    def test_a_broken_channel_of_another_package_is_named(
        self, value: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "unlucky-1.0.dist-info"
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: unlucky\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text(f"[latentcomm.channels]\nbroken = {value}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        found = command("list", "channels")
        assert found.exit_code == 1 and "Traceback" not in found.stderr
        assert found.stderr.startswith("latentcomm: the channel 'broken' of the package unlucky ")
        assert sentence in found.stderr


class TestHowItIsShown:
    """--quiet, --json and --threads, of the quickest command there is."""

    @pytest.fixture
    def line(self, tiny: Path, tmp_path: Path) -> tuple[str | Path, ...]:
        cell = ("--read-layer", "1", "--write-layer", "0")
        return ("sweep", "--sender", tiny, *SMALL, *cell, "--out", tmp_path / "out")

    def test_quiet_prints_errors_alone(self, line: tuple[str | Path, ...]) -> None:
        assert "going" not in (done := command(*line, "--quiet")).output
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
        refused = command(*line, "--quiet", "--name", "a/b")
        assert refused.exit_code == 1 and refused.stderr.startswith("latentcomm: --name is 'a/b'")

    def test_json_is_one_object_and_everything_else_goes_to_standard_error(
        self, line: tuple[str | Path, ...], tmp_path: Path
    ) -> None:
        done = command(*line, "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout, parse_constant=pytest.fail)
        assert found["command"] == "sweep" and found["settings"]["read_layer"] == 1
        shown = pd.read_csv(tmp_path / "out" / "sweep.csv")
        assert [row["channel"] for row in found["table"]] == [*shown["channel"]]
        assert [row["low"] for row in found["table"]] == [*shown["low"]]  # every digit
        assert None in [row["p_shuffled"] for row in found["table"]]  # there is no test of silence against it
        assert sorted(found["files"]) == sorted(map(str, (tmp_path / "out").glob("[!.]*")))
        assert "wrote" in done.stderr and "replace" in done.stderr

    def test_threads_are_those_of_torch_and_are_recorded(
        self, line: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[int] = []
        monkeypatch.setattr(torch, "set_num_threads", given.append)
        monkeypatch.setattr(torch, "get_num_threads", lambda: given[-1])
        assert command(*line, "--threads", "3").exit_code == 0
        meta = json.loads((tmp_path / "out" / "sweep.meta.json").read_text("utf-8"))
        assert (given, meta["machine"]["threads"]) == ([3], 3)
        refused = command(*line, "--threads", "-1")
        assert refused.exit_code == 1 and "--threads is -1; give at least 1, or 0" in refused.stderr


class TestClean:
    def test_removes_the_saved_work_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / ".latentcomm" / "sweep-1").mkdir(parents=True)
        (tmp_path / ".latentcomm" / "sweep-1" / "pass-000000.safetensors").write_bytes(b"0" * 1500)
        (tmp_path / "sweep.csv").write_text("a result")
        (tmp_path / ".other").mkdir()
        found = command("clean", tmp_path)
        assert (found.exit_code, found.stdout) == (0, f"removed {tmp_path / '.latentcomm'}: 1 files, 1.5 kB\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".other", "sweep.csv"]

    def test_refuses_a_folder_without_saved_work(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / ".latentcomm").symlink_to(tmp_path / "mine")
        for folder in (tmp_path, tmp_path / "mine", tmp_path / "nowhere"):
            found = command("clean", folder)
            assert found.exit_code == 1 and "holds no saved work" in found.stderr
        assert (tmp_path / "mine").exists()
