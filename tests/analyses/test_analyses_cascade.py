"""The analysis of the reverse cascade (figure 11) runs small, goes on where it was stopped, and says what it asked."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from test_analyses import ROOT, assert_replots_the_same, call, interrupted, script
from tiny import files_in

from latentcomm.experiments.cascade.report import PLOTS
from latentcomm.reporting.publish import check_replot
from latentcomm.tasks.kv_math_worked import worked_table

MODULE = script(ROOT / "analyses" / "fig11_cascade.py")
STEM = "fig11_cascade_kv_math_worked"
ENDINGS = (".csv", ".html", ".json", ".meta.json")
CONDITIONS = {"silent", "large", "message", "shuffled", "zero", "random", "self", "self-consistency"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


def smoke(monkeypatch: pytest.MonkeyPatch, out: Path, work: Path) -> None:
    call(MODULE, monkeypatch, "--smoke", "--out", out, "--work", work)


class TestASmallRun:
    def test_publishes_three_figures_and_replots_them_without_a_model(
        self, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        smoke(monkeypatch, tmp_path, work)
        names = [f"{STEM}{ending}" for ending in PLOTS]
        written = [name for name in files_in(tmp_path) if name != ".unfinished"]
        whole = [f"{STEM}_trials.jsonl", f"{STEM}_tokens.csv"]
        assert written == sorted([f"{n}{e}" for n in names for e in ENDINGS] + whole)
        for name in names:
            check_replot(name, tmp_path, MODULE.FIGURES[name])
        meta = json.loads((tmp_path / f"{STEM}.meta.json").read_text("utf-8"))
        plain = json.loads(json.dumps(dataclasses.asdict(MODULE.SMOKE)))
        assert {name: meta["settings"][name] for name in plain} == plain
        table = pd.read_csv(tmp_path / f"{STEM}.csv", dtype={"stop": str})
        assert set(table["condition"]) == CONDITIONS
        assert set(table["hand_off"]) == {"none", *MODULE.SMOKE.hand_offs}
        assert_replots_the_same(MODULE, tmp_path, names)

    def test_goes_on_after_an_interruption_to_the_same_numbers(
        self, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        smoke(monkeypatch, tmp_path / "first", work)
        with interrupted(MODULE):
            smoke(monkeypatch, tmp_path / "second", work)
        assert [name for name in files_in(tmp_path / "second") if "handed-" in name]
        smoke(monkeypatch, tmp_path / "second", work)
        assert files_in(tmp_path / "first") == files_in(tmp_path / "second")
        for ending in (*(f"{each}.csv" for each in PLOTS), "_trials.jsonl"):
            first, second = ((tmp_path / run / f"{STEM}{ending}").read_bytes() for run in ("first", "second"))
            assert first == second

    def test_gsm8k_without_its_models_and_file_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            call(MODULE, monkeypatch, "--task", "gsm8k", "--out", tmp_path)
        assert "--large and --data" in capsys.readouterr().err and files_in(tmp_path) == []


class TestSettings:
    def test_every_figure_has_settings_of_its_task(self) -> None:
        assert {MODULE.settings_of(name).task for name in MODULE.FIGURES} == {"kv-math-worked", "gsm8k"}
        for name in MODULE.FIGURES:
            assert MODULE.settings_of(name).task.replace("-", "_") in name

    def test_the_longest_n_is_below_a_whole_reply_and_0_is_among_them(self) -> None:
        for settings in (MODULE.SETTINGS, MODULE.ON_GSM8K, MODULE.SMOKE, MODULE.SMOKE_ON_GSM8K):
            assert settings.ns[0] == 0 and max(settings.ns) < settings.reply_tokens

    def test_the_items_are_as_many_as_asked_and_maps_see_none_of_them(self) -> None:
        settings = dataclasses.replace(MODULE.SETTINGS, n_documents=50)
        task, documents = MODULE.task_of(settings), MODULE.documents_of(settings)
        assert (
            len(task.items) == settings.n_items and task.reply_tokens == settings.reply_tokens and len(documents) == 50
        )
        assert not any(item.receiver in text for item in task.items for text in documents)
        table = worked_table()
        pairs = {frozenset(item.tags["keys"].split()[:2]) for item in task.items}
        numbers = {" + ".join(str(table[key]) for key in sorted(pair)) for pair in pairs}
        assert not any(text.startswith(each) for text in documents for each in numbers)

    def test_gsm8k_takes_its_items_from_the_file(self) -> None:
        settings = dataclasses.replace(MODULE.SMOKE_ON_GSM8K, n_items=4)
        task = MODULE.task_of(settings, "sample")
        assert len(task.items) == 4 and task.reply_tokens == settings.reply_tokens
