"""`latentcomm cascade` as its user meets it: what it writes, how it goes on, and one sentence for what is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import Ended, last_line, listed_files, refusals, run
from test_cli import compared
from tiny import files_in
from worked_models import Size, worked_pair

from latentcomm.experiments.cascade import TextHandOff
from latentcomm.experiments.cascade import continuations as handing
from latentcomm.experiments.cascade import generate as writing
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.report import PLOTS
from latentcomm.experiments.settings import SAVED
from latentcomm.reporting.publish import check_replot
from latentcomm.tasks.kv_math_worked import knowing_texts

ASKED = ("--task", "kv-math-worked", "--n", "0,2,5", "--stop", "confident,oracle", "--n-items", "6")
ENDINGS = (".csv", ".html", ".json", ".meta.json")
WRITTEN = sorted([f"c{figure}{ending}" for figure in PLOTS for ending in ENDINGS] + ["c_trials.jsonl", "c_tokens.csv"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that can read the task and have hardly learnt it."""
    folder = tmp_path_factory.mktemp("worked")
    large = Size(n_layers=2, d_model=32, n_heads=2, n_texts=64, steps=40, batch_size=16, learning_rate=1e-2)
    worked_pair(folder, large=large, small=replace(large, n_layers=1, d_model=16))
    return folder


def cascade(pair: Path, out: Path, *more: str | Path, asked: tuple[str, ...] = ASKED) -> Ended:
    models = ("--large", pair / "large", "--small", pair / "small")
    return run("cascade", *models, *asked, "--name", "c", "--out", out, *more)


class TestCascade:
    def test_writes_three_figures_with_their_data_and_prints_the_table(self, pair: Path, tmp_path: Path) -> None:
        result = cascade(pair, tmp_path)
        assert result.exit_code == 0, result.output
        assert files_in(tmp_path) == WRITTEN == listed_files(result.stdout)
        for ending, plot in PLOTS.items():
            check_replot(f"c{ending}", tmp_path, plot)
        table = pd.read_csv(tmp_path / "c.csv", dtype={"stop": str})
        expected = {"silent", "large", "message", "shuffled", "self", "self-consistency"}
        assert set(table["condition"]) == expected  # text has no states that could be empty
        assert list(table.query("condition == 'message'")["stop"]) == ["0", "2", "5", "confident", "oracle"]
        assert (table["n"] == 6).all() and (table["flops"] > 0).all()
        for words in ("silent", "large", "text", "confident", "oracle", "6 items"):
            assert words in result.stdout
        trials = [json.loads(line) for line in (tmp_path / "c_trials.jsonl").read_text("utf-8").splitlines()]
        assert len(trials) == 6 * len(table)
        meta = json.loads((tmp_path / "c.meta.json").read_text("utf-8"))
        assert str(pair) not in json.dumps(meta)
        assert meta["settings"]["ns"] == [0, 2, 5] and meta["settings"]["large"] == "large"

    def test_n_of_0_is_the_small_model_alone(self, pair: Path, tmp_path: Path) -> None:
        assert cascade(pair, tmp_path).exit_code == 0
        trials = [json.loads(line) for line in (tmp_path / "c_trials.jsonl").read_text("utf-8").splitlines()]
        alone = {one["item"]: one["reply"] for one in trials if one["condition"] == "silent"}
        nothing = {one["item"]: one["reply"] for one in trials if (one["condition"], one["stop"]) == ("message", "0")}
        five = {one["item"]: one["reply"] for one in trials if (one["condition"], one["stop"]) == ("message", "5")}
        assert nothing == alone != five

    @pytest.mark.parametrize(("module", "name"), [(writing, "_write"), (handing, "continue_openings")])
    def test_a_run_stopped_by_ctrl_c_resumes_and_gives_the_results_of_one_run(
        self, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
    ) -> None:
        assert cascade(pair, tmp_path / "whole").exit_code == 0
        true, calls, began = getattr(module, name), [], []

        def stopped(*given: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == 2 and not began:
                raise KeyboardInterrupt
            return true(*given, **options)

        monkeypatch.setattr(module, name, stopped)
        result = cascade(pair, tmp_path / "parts")
        assert result.exit_code == 130 and "the same command resumes it" in result.output
        assert files_in(tmp_path / "parts") == [] and files_in(tmp_path / "parts" / SAVED)
        began.append(len(calls))
        assert cascade(pair, tmp_path / "parts").exit_code == 0
        done = len(calls) - 1  # all but the one that was stopped
        calls.clear()
        assert cascade(pair, tmp_path / "again").exit_code == 0
        assert done == len(calls)  # what was done was not done again
        assert files_in(tmp_path / "parts") == WRITTEN
        assert compared(tmp_path / "parts") == compared(tmp_path / "whole")

    def test_states_pass_through_a_map_that_is_fitted_on_the_corpus(self, pair: Path, tmp_path: Path) -> None:
        texts = [f"{each.prompt} {each.reply}" for each in knowing_texts(300)]
        corpus = tmp_path / "sums.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        more = ("--hand-off", "text,graft", "--corpus", corpus, "--controls", "other,zero,random", "--read-layer", "0")
        result = cascade(pair, tmp_path / "out", *more)
        assert result.exit_code == 0, result.output
        table = pd.read_csv(tmp_path / "out" / "c.csv").query("condition == 'message'")
        drift = table.groupby("hand_off")["drift"].max()
        assert 0 <= drift["graft"] <= 1 and pd.isna(drift["text"])
        assert "the control 'other' is called 'shuffled' now" in result.stderr
        emptied = pd.read_csv(tmp_path / "out" / "c.csv").query("condition in ['zero', 'random']")
        assert set(emptied["hand_off"]) == {"graft"} and set(emptied["condition"]) == {"zero", "random"}

    def test_layers_and_the_seed_go_where_they_belong(
        self, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Any] = {}

        def named(*given: Any, **options: Any) -> dict[str, HandOff]:
            seen["maps"] = options
            return {"graft": TextHandOff()}

        def sweep(*given: Any, **options: Any) -> None:
            seen["sweep"] = options
            raise ValueError("seen")

        monkeypatch.setattr("latentcomm.experiments.cascade._job.hand_offs_named", named)
        monkeypatch.setattr("latentcomm.experiments.cascade._job.sweep_cascade", sweep)
        more = ("--hand-off", "graft", "--read-layer", "1", "--write-layer", "0", "--seed", "3")
        assert "seen" in cascade(pair, tmp_path, *more).output
        assert seen["maps"] == {"read_layer": 1, "write_layer": 0, "seed": 3}
        assert seen["sweep"]["seed"] == 3


class TestWhatIsWrong:
    @refusals(
        """
        --n '' -> --n names no number of tokens
        --n 0,64 -> n is 64, and the large model writes 20 tokens at most
        --stop soon -> there is no stop 'soon'; choose among entropy-drop
        --hand-off thought -> there is no hand-off 'thought'; choose among text
        --hand-off , -> no hand-off is named
        --hand-off kv -> layers
        --controls placebo -> there is no control 'placebo'
        --shots some.jsonl -> --shots names a file of solved examples, and --n-shots is 0; give --n-shots with it
        --data some.jsonl -> --data is no option of the task
        --name a/b -> --name is 'a/b'
        --corpus no-such-file -> there is no corpus
        --task gsm8k -> gsm8k needs its problems
        --hand-off graft --read-layer 7 -> 7
        """
    )
    def test_is_one_sentence_and_nothing_is_written(
        self, pair: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
    ) -> None:
        result = cascade(pair, tmp_path, *arguments)
        assert result.exit_code == 1 and sentence in last_line(result.output)
        assert files_in(tmp_path) == []

    def test_a_model_must_be_named(self, tmp_path: Path) -> None:
        result = run("cascade", "--data", "sample", "--out", tmp_path)
        assert result.exit_code == 1 and result.stderr == "latentcomm: --sender is not given; name the large model\n"
        assert run("cascade", "--n", "0,many").exit_code == 2
