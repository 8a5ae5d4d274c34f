"""The figure of the answer or a thought: run small, held to single runs, and to a pair whose code no lens can read."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from test_analyses import ROOT, assert_replots_the_same, assert_resumes_with_the_same_bytes, call, plots, script
from tiny import COUNTRIES, files_in
from toys import DEFAULT, PLANTED_CELL, WIDTH, M, U, planted_pair, planted_task

import latentcomm as lc
from figures import axes_of, heads, named
from latentcomm._core.stats import paired_bootstrap, proportion_interval
from latentcomm.alignment import AffineMap
from latentcomm.fusion import Replace
from latentcomm.reporting.publish import check_replot
from latentcomm.tasks import Task, countries

FIGURE = script(ROOT / "analyses" / "fig15_answer_or_thought.py")
SMALL = dataclasses.replace(FIGURE.SMOKE, read_layers=(0, 1), write_layers=(0, 1), n_tune=4, n_test=12)
PLANTED = dataclasses.replace(FIGURE.SETTINGS, read_layers=(0, 1, 2), write_layers=(0, 1))


@pytest.fixture
def small(tiny: lc.Model, other: lc.Model, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The analysis on one of two tiny models, in layers that these have, on few items."""
    monkeypatch.setattr(lc, "load_model", lambda name, **options: other if "tiny-other" in name else tiny)
    monkeypatch.setattr(FIGURE, "SMOKE", dataclasses.replace(SMALL, write_layers=(0,)))
    return FIGURE


@pytest.fixture(scope="module")
def table(tiny: lc.Model) -> pd.DataFrame:
    return FIGURE.compute(SMALL, tiny, tiny)


@pytest.fixture(scope="module")
def pair() -> tuple[lc.Model, lc.Model]:
    return planted_pair()


def planted(pair: tuple[lc.Model, lc.Model], tune: Task, test: Task) -> dict[tuple[int, str], dict[str, Any]]:
    found = FIGURE.judged(PLANTED, *pair, tune, test).to_dict("records")
    return {(row["read_layer"], row["metric"]): row for row in found}


class TestASmallRun:
    @pytest.mark.parametrize("is_pair", [False, True])
    def test_publishes_its_figure_and_replots_it_without_a_model(
        self, is_pair: bool, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = list(plots(small))[is_pair]
        receiver = ["--receiver", "/somewhere/tiny-other"] if is_pair else []
        call(small, monkeypatch, "--smoke", "--out", tmp_path, *receiver)
        written = {file for file in files_in(tmp_path) if not file.startswith(".unfinished")}
        assert written == {f"{name}{end}" for end in (".csv", ".html", ".json", ".meta.json")}
        assert "somewhere" not in (tmp_path / f"{name}.json").read_text("utf-8")
        check_replot(name, tmp_path, plots(small)[name])
        assert_replots_the_same(small, tmp_path, [name])
        found = pd.read_csv(tmp_path / f"{name}.csv")
        found.assign(graft=found["graft"] + 0.01).to_csv(tmp_path / f"{name}.csv", index=False)
        with pytest.raises(RuntimeError, match=f"{name}.json is not what {name}.csv gives"):
            check_replot(name, tmp_path, plots(small)[name])

    def test_gives_the_same_bytes_after_an_interruption(
        self, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert_resumes_with_the_same_bytes(small, tmp_path, monkeypatch)

    def test_the_dtype_is_that_of_the_models_and_recorded(
        self, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, load = [], lc.load_model
        monkeypatch.setattr(lc, "load_model", lambda name, **options: asked.append(options) or load(name))
        call(small, monkeypatch, "--smoke", "--out", tmp_path, "--dtype", "bfloat16")
        meta = json.loads((tmp_path / f"{small.NAME}.meta.json").read_text("utf-8"))
        assert asked == [{"dtype": "bfloat16"}] and meta["settings"]["dtype"] == "bfloat16"


class TestTheNumbers:
    def test_are_those_of_each_cell_judged_by_itself(self, table: pd.DataFrame, tiny: lc.Model) -> None:
        shown = {
            ("replace", "message"): "graft",
            ("replace", "shuffled"): "shuffled",
            ("logit lens", "unembedded"): "lens",
        }
        shown |= {("silent", "message"): "silent", ("skyline", "message"): "skyline"}
        label_of = {item.id: item.tags["country"] for item in countries().items}
        for row in table.to_dict("records"):
            cell, metric = (row["read_layer"], row["write_layer"]), row["metric"]
            report = lc.sweep_and_judge(tiny, tiny, countries(), fusions={"replace": Replace()}, cell=cell, n_test=12)
            right: dict[str, list[bool]] = {}
            unread: dict[str, bool] = {}
            for trial in report.trials:
                if name := shown.get((trial.channel, trial.condition)):
                    right.setdefault(name, []).append(bool(getattr(trial, metric)))
                if name == "lens":
                    unread[trial.item] = not (trial.free or trial.choices)
            items = list(unread)
            for name, verdicts in right.items():
                assert row[name] == sum(verdicts) / 12
                assert (row[f"{name}_low"], row[f"{name}_high"]) == proportion_interval(sum(verdicts), 12)
                among = [verdict for item, verdict in zip(items, verdicts, strict=True) if unread[item]]
                if name != "lens":
                    assert row[f"unnamed_{name}"] == sum(among) / row["n_unnamed"]
            assert row["n_unnamed"] == sum(unread.values()) and row["sender_alone"] == row["skyline"]
            for column, other in (("over_lens", "lens"), ("content", "shuffled")):
                gain = paired_bootstrap(right["graft"], right[other], groups=[label_of[item] for item in items])
                ends = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
                assert ends == [gain.difference, gain.low, gain.high]

    def test_are_of_every_read_layer_at_one_write_layer_that_is_not_the_last(
        self, table: pd.DataFrame, tiny: lc.Model
    ) -> None:
        assert table[["read_layer", "metric"]].values.tolist() == [
            [read, metric] for read in (0, 1) for metric in ("free", "choices")
        ]
        deep = FIGURE.compute(dataclasses.replace(SMALL, write_layers=(1, tiny.n_layers - 1)), tiny, tiny)
        assert set(deep["write_layer"]) == {1}

    def test_layers_that_are_not_given_end_before_the_last_block(self, tiny: lc.Model, other: lc.Model) -> None:
        settings = dataclasses.replace(FIGURE.SETTINGS, stride=1)
        assert FIGURE._layers(settings, tiny, tiny) == ((1,), (1,)) and tiny.n_layers == 3
        assert FIGURE._layers(settings, tiny, other) == ((1,), (0,)) and other.n_layers == 2


class TestAPlantedThought:
    def test_is_right_where_the_lens_names_nothing(self, pair: tuple[lc.Model, lc.Model]) -> None:
        found = planted(pair, *planted_task().split(seed=0))
        for metric in ("free", "choices"):
            row = found[PLANTED_CELL[0], metric]
            assert row["write_layer"] == PLANTED_CELL[1] and row["tune_choices"] == 1
            assert (row["graft"], row["lens"], row["shuffled"], row["skyline"]) == (1, 0, 0, 0)
            assert row["n_unnamed"] == row["n"] and (row["unnamed_graft"], row["unnamed_shuffled"]) == (1, 0)
            assert row["over_lens"] == row["over_lens_low"] == row["unnamed_content"] == 1
            assert found[1, metric]["graft"] == 0  # before the code is written

    def test_is_found_without_the_answers_of_the_test_items(self, pair: tuple[lc.Model, lc.Model]) -> None:
        """Their answers are made those that every other cell gives: who looked would choose one of these."""
        tune, test = planted_task().split(seed=0)
        given = COUNTRIES[DEFAULT]
        items = [dataclasses.replace(item, answers=(item.id, given), choice=f" {given}") for item in test.items]
        row = planted(pair, tune, dataclasses.replace(test, items=tuple(items)))[PLANTED_CELL[0], "choices"]
        assert (row["write_layer"], row["tune_choices"], row["graft"]) == (PLANTED_CELL[1], 1, 0)

    def test_is_the_answer_in_other_coordinates_where_a_linear_map_reads_it(
        self, pair: tuple[lc.Model, lc.Model]
    ) -> None:
        """A map that moves the code to where the unembedding reads; one that moves nothing is the plain lens."""
        moved = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        moved[U : U + len(COUNTRIES), M : M + len(COUNTRIES)] = torch.eye(len(COUNTRIES), dtype=torch.float64)
        decode = AffineMap(moved, torch.zeros(WIDTH, dtype=torch.float64))
        translators = {0: AffineMap.identity(WIDTH), 1: AffineMap.identity(WIDTH), 2: decode}
        found = FIGURE.judged(PLANTED, *pair, *planted_task().split(seed=0), translators=translators)
        assert (found["ridge_lens"] == found["lens"])[found["read_layer"] < 2].all()
        planted = found[found["read_layer"] == 2]
        assert planted["unnamed_ridge_lens"].tolist() == planted["unnamed_graft"].tolist() == [1, 1]
        assert planted["over_lens"].tolist() == [1, 1] and planted["over_ridge_lens"].tolist() == [0, 0]

    def test_is_an_answer_where_the_message_is_the_senders_last_state(
        self, table: pd.DataFrame, tiny: lc.Model
    ) -> None:
        """After the last block the lens is what the sender would say itself, by its first token."""
        settings = dataclasses.replace(SMALL, read_layers=(tiny.n_layers - 1,))
        for row in FIGURE.compute(settings, tiny, tiny).to_dict("records"):
            assert row["metric"] == "free" or row["lens"] == row["sender_alone"]
            assert row["metric"] == "choices" or row["lens"] >= row["sender_alone"]


class TestTheFigure:
    def test_shows_each_condition_over_the_cells_and_how_many_items_are_left(self, table: pd.DataFrame) -> None:
        settings = dataclasses.asdict(SMALL) | {"receiver": SMALL.sender}
        figure = FIGURE.plot(table, settings)
        graft = [trace["y"] for trace in named(figure, "replace")]
        expected = [
            table[table["metric"] == metric][f"{prefix}graft"].tolist()
            for prefix in ("", "unnamed_")
            for metric in ("free", "choices")
        ]
        assert graft == expected and len(named(figure, "logit lens")) == 2  # none where it is wrong by choice
        assert not named(figure, "sender alone") and named(
            FIGURE.plot(table, settings | {"receiver": "b"}), "sender alone"
        )
        assert set(table["n_unnamed"].astype(str)) <= set(heads(figure))
        cells = [f"{row['read_layer']}<br>{row['write_layer']}" for row in table.to_dict("records")[::2]]
        assert axes_of(figure)["xaxis3"]["ticktext"] == cells


class TestWhatIsCommitted:
    def test_of_the_larger_model_is_what_its_data_give(self) -> None:
        folder = ROOT / "figures" / "1.5b"
        if not (folder / f"{FIGURE.NAME}.json").exists():
            pytest.skip("not committed yet; run the analysis that writes it")
        check_replot(FIGURE.NAME, folder, FIGURE.plot)
        meta = json.loads((folder / f"{FIGURE.NAME}.meta.json").read_text("utf-8"))
        named = {"sender": "qwen2.5-coder-1.5b-instruct", "dtype": "bfloat16"}
        expected = json.loads(json.dumps(dataclasses.asdict(FIGURE.SETTINGS))) | named
        assert expected.items() <= meta["settings"].items()
