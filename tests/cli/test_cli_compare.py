"""`latentcomm compare` and `latentcomm train` as their user meets them."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from commands import Ended, last_line, listed_files, refusals, run
from numerics import same_bits
from tiny import files_in
from toys import Counter, countries_folder, interrupted

from latentcomm.channels.catalogue import LEARNED
from latentcomm.channels.training import trainer as training
from latentcomm.experiments import evaluation, maps
from latentcomm.experiments import train as learning
from latentcomm.experiments._train_job import training_figure
from latentcomm.experiments.compare import run as comparing
from latentcomm.experiments.settings import SAVED
from latentcomm.models import recorded_passes
from latentcomm.reporting.publish import check_replot

FEW = (
    "--n-tune",
    "4",
    "--n-test",
    "6",
    "--message-tokens",
    "2",
    "--read-layer",
    "1",
    "--write-layer",
    "1",
    "--no-audit",
)
WRITTEN = ["c.csv", "c.html", "c.json", "c.meta.json", "c_trials.csv"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny-countries")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny-wide", d_model=24)


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Alice is at the Colosseum number {number} . Alice is in the country of" for number in range(6)]
    for module in (maps, comparing, learning):
        monkeypatch.setattr(module, "map_documents", lambda: texts)


def compare(tiny: Path, out: Path, *more: str | Path, channels: str = "silent,text,replace") -> Ended:
    chosen = ("--channels", channels) if channels else ()
    return run("compare", "--sender", tiny, *FEW, *chosen, "--name", "c", "--out", out, *more)


def written(folder: Path) -> list[str]:
    """What is there beside the trials that are kept."""
    return files_in(folder)


class TestCompare:
    def test_channels_without_training_are_in_one_table_with_their_costs(self, tiny: Path, tmp_path: Path) -> None:
        result = compare(tiny, tmp_path, channels="")
        assert result.exit_code == 0, result.output
        assert written(tmp_path) == WRITTEN == listed_files(result.stdout)
        table = pd.read_csv(tmp_path / "c.csv")
        names = set(table["channel"])
        assert {"silent", "skyline", "text", "debate", "cipher", "replace", "ties", "coconut", "deltas", "kv"} <= names
        true = table.query("condition == 'message'")
        assert (true["flops"] > 0).all() and (true["n"] == 6).all()
        assert (true["low"] <= true["accuracy"]).all() and (true["accuracy"] <= true["high"]).all()
        assert set(table.query("condition == 'shuffled'")["channel"]) == names - {"silent", "skyline", "sender_alone"}
        assert all(name.replace("_", " ") in result.stdout for name in names)
        meta = json.loads((tmp_path / "c.meta.json").read_text("utf-8"))
        assert str(tiny) not in json.dumps(meta) and meta["settings"]["n_test"] == 6

    def test_a_run_stopped_by_ctrl_c_resumes_and_gives_the_results_of_one_run(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        assert compare(tiny, whole).exit_code == 0
        interrupted(monkeypatch, evaluation, "decode", at=3)
        stopped = compare(tiny, parts)
        assert stopped.exit_code == 130
        assert "finished work is saved, and the same command resumes it" in last_line(stopped.stderr)
        after = Counter(evaluation.decode)
        monkeypatch.setattr(evaluation, "decode", after)
        resumed = compare(tiny, parts)
        assert resumed.exit_code == 0 and "channels: going on, 1 of 3 done" in resumed.stderr
        assert after.calls == 3  # of five: silence, and two channels under two conditions each
        seconds = [pd.read_csv(folder / "c.csv") for folder in (whole, parts)]
        same = [table.drop(columns="seconds") for table in seconds]
        pd.testing.assert_frame_equal(*same)

    def test_what_was_run_is_not_run_again_and_another_channel_is_added_to_it(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert compare(tiny, tmp_path).exit_code == 0
        kept = files_in(tmp_path / SAVED)
        assert kept and not [name for name in kept if "message-" in name]
        first = (tmp_path / "c_trials.csv").read_bytes()
        after = Counter(evaluation.decode)
        monkeypatch.setattr(evaluation, "decode", after)
        with recorded_passes() as passes:
            assert compare(tiny, tmp_path).exit_code == 0
        assert after.calls == 0 and not [each for each in passes if each.n_unembedded]
        assert (tmp_path / "c_trials.csv").read_bytes() == first
        more = "silent,text,replace,mean"
        assert "differ in --channels" in compare(tiny, tmp_path, channels=more).stderr
        assert compare(tiny, tmp_path, "--overwrite", channels=more).exit_code == 0
        assert after.calls == 2

    def test_a_small_task_is_asked_whole(self, tiny: Path, tmp_path: Path) -> None:
        result = run("compare", "--sender", tiny, "--task", "biographies", "--channels", "silent", "--out", tmp_path)
        assert result.exit_code == 0, result.output
        table = pd.read_csv(tmp_path / "compare.csv")
        assert set(table["n"]) == {33}

    def test_damaged_trials_are_named_and_run_again(self, tiny: Path, tmp_path: Path) -> None:
        assert compare(tiny, tmp_path).exit_code == 0
        first = (tmp_path / "c.csv").read_bytes()
        path = next((tmp_path / SAVED).rglob("trials-*/*.json"))
        path.write_text(path.read_text("utf-8")[:-20], "utf-8")
        result = compare(tiny, tmp_path)
        assert result.exit_code == 0
        assert f"{path.name} is damaged" in result.stderr.replace("\n", " ")
        assert path.with_name(f"{path.name}.damaged").exists()
        drop = ["seconds"]
        again = pd.read_csv(tmp_path / "c.csv").drop(columns=drop)
        pd.testing.assert_frame_equal(again, pd.read_csv(io.BytesIO(first)).drop(columns=drop))

    @pytest.mark.parametrize("aligned", [True, False])
    def test_two_models_of_unequal_width_run_all_that_can_pass_between_them(
        self, aligned: bool, tiny: Path, wide: Path, tmp_path: Path
    ) -> None:
        more = () if aligned else ("--right-aligned",)
        result = compare(tiny, tmp_path, "--receiver", wide, *more, channels="")
        assert result.exit_code == 0, result.output
        names = set(pd.read_csv(tmp_path / "c.csv")["channel"])
        assert {"replace", "ties", "orthogonal_ties", "text"} <= names and not {"kv", "coconut", "deltas"} & names
        for name in ("kv", "coconut", "deltas"):
            refused = compare(tiny, tmp_path / "out", "--receiver", wide, channels=f"silent,{name}")
            assert refused.exit_code == 1 and f"the channel {name} cannot pass" in last_line(refused.stderr)
            assert files_in(tmp_path / "out") == []

    @refusals(
        """
        --task mmlu --data sample --subjects magic -> magic
        --subjects formal_logic -> --subjects is no option of the task countries
        --task biographies --fame famous -> --fame is no option of the task biographies
        --channels silent,smoke -> there is no channel 'smoke'
        --channels silent,silent -> named twice
        --channels calm -> `latentcomm train calm`
        --controls none -> there is no control 'none'
        --write-layer -1 -> --write-layer is -1; give at least 0
        --read-layer 99 -> layer 99 is outside
        --task gsm8k --data nowhere.jsonl -> nowhere.jsonl
        --task prosqa --data here.jsonl -> --data is no option of the task prosqa
        --name a/b -> give a plain file name
        --weights . -> holds no trained channel
        """
    )
    def test_what_is_wrong_is_one_sentence_and_writes_nothing(
        self, arguments: tuple[str, ...], sentence: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = compare(tiny, tmp_path / "out", *arguments)
        assert result.exit_code == 1 and "Traceback" not in result.output
        assert sentence in last_line(result.stderr)
        assert files_in(tmp_path) == []


class TestTrain:
    OPTIONS = ("--steps", "2", "--batch-size", "2", "--read-layer", "1", "--write-layer", "1", "--every", "1")

    def train(self, tiny: Path, out: Path, channels: str = "gated", *more: str) -> Ended:
        return run("train", channels, "--sender", tiny, *self.OPTIONS, "--plan-tokens", "2", "--out", out, *more)

    def test_what_it_writes_is_compared_on_the_other_half(self, tiny: Path, tmp_path: Path) -> None:
        weights = tmp_path / "weights"
        result = self.train(tiny, weights, ",".join(LEARNED))
        assert result.exit_code == 0, result.output
        endings = (".safetensors", ".csv", ".html", ".json", ".meta.json")
        assert (
            files_in(weights)
            == listed_files(result.stdout)
            == sorted(f"{name}{ending}" for name in LEARNED for ending in endings)
        )
        for name in LEARNED:
            assert re.search(
                rf"{name}: 2 updates in .*loss .* on held-out examples .* before and .* after", result.stdout
            )
            check_replot(name, weights, training_figure)
            losses = pd.read_csv(weights / f"{name}.csv")
            assert list(losses["update"]) == [0, 1, 2] and losses["held_out_loss"].notna().all()
        found = compare(tiny, tmp_path / "out", "--weights", weights, channels=",".join(["silent", *LEARNED]))
        assert found.exit_code == 0, found.output
        assert set(pd.read_csv(tmp_path / "out" / "c.csv")["channel"]) == {"silent", *LEARNED}
        seen = compare(tiny, tmp_path / "other", "--weights", weights, "--seed", "1", channels="silent,gated")
        assert seen.exit_code == 1 and "has seen" in last_line(seen.stderr) and "--seed 0 and" in seen.stderr

    def test_a_run_stopped_by_ctrl_c_resumes_and_ends_with_the_same_bytes(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.train(tiny, tmp_path / "whole").exit_code == 0
        real = learning.train
        monkeypatch.setattr(learning, "train", lambda *given, **options: real(*given, **(options | {"save_every": 0})))
        interrupted(monkeypatch, training, "_update", at=2)
        stopped = self.train(tiny, tmp_path / "parts")
        assert stopped.exit_code == 130 and "the same command resumes it" in last_line(stopped.stderr)
        again = Counter(training._update)
        monkeypatch.setattr(training, "_update", again)
        assert self.train(tiny, tmp_path / "parts").exit_code == 0
        assert again.calls == 1
        kept = [
            learning.load_weights(tmp_path / name / "gated.safetensors", kind=learning.KIND)
            for name in ("whole", "parts")
        ]
        assert all(same_bits(kept[0][0][key], kept[1][0][key]) for key in kept[0][0])
        assert [name for name in files_in(tmp_path / "parts") if name.endswith("tensors")] == ["gated.safetensors"]

    def test_a_trained_channel_is_not_trained_again_after_a_stop_in_the_next(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupted(monkeypatch, training, "_update", at=3)  # two updates a channel: the second stops in its first
        assert self.train(tiny, tmp_path, "gated,concatenated").exit_code == 130
        before, _ = learning.load_weights(tmp_path / "gated.safetensors", kind=learning.KIND)
        again = Counter(training._update)
        monkeypatch.setattr(training, "_update", again)
        assert self.train(tiny, tmp_path, "gated,concatenated").exit_code == 0
        assert again.calls == 2
        after, _ = learning.load_weights(tmp_path / "gated.safetensors", kind=learning.KIND)
        assert all(same_bits(after[key], before[key]) for key in before)
        weights = [name for name in files_in(tmp_path) if name.endswith("tensors")]
        assert weights == ["concatenated.safetensors", "gated.safetensors"]
        assert self.train(tiny, tmp_path, "gated").exit_code == 0
        assert again.calls == 2  # what is done is read back

    def test_the_metadata_of_a_channel_repeat_its_training(self, tiny: Path, tmp_path: Path) -> None:
        first, again = tmp_path / "first", tmp_path / "again"
        assert self.train(tiny, first, "gated,concatenated").exit_code == 0
        found = run("train", "--config", first / "gated.meta.json", "--sender", tiny, "--out", again)
        assert found.exit_code == 0, found.output
        assert (again / "gated.csv").read_bytes() == (first / "gated.csv").read_bytes()
        assert not (again / "concatenated.csv").exists()

    @refusals(
        """
        gated --name mine -> --name is 'mine', but train names the files after the channels
        gated --held-out 0.001 -> --held-out is 0.001, which of the 163 items
        replace -> there is no channel to train 'replace'; choose among
        gated --dtype float16 -> train in float32 or bfloat16
        gated --task gsm8k -> gsm8k
        """
    )
    def test_what_is_wrong_is_one_sentence_and_writes_nothing(
        self, arguments: tuple[str, ...], sentence: str, tiny: Path, tmp_path: Path
    ) -> None:
        result = self.train(tiny, tmp_path / "out", *arguments)
        assert result.exit_code == 1 and sentence in last_line(result.stderr)
        assert files_in(tmp_path) == []
