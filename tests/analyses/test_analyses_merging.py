"""The figure of cross-fitted merging: run small, on a planted pair, and that no item has a part in its own cell."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from numerics import assert_same_bits
from test_analyses import ROOT, assert_replots_the_same, assert_resumes_with_the_same_bytes, call, plots, script
from tiny import files_in
from toys import PLANTED_CELL, WIDTH, planted_pair, planted_task

import latentcomm as lc
from latentcomm._core.stats import paired_bootstrap, proportion_interval
from latentcomm.alignment import AffineMap
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.fusion import Replace
from latentcomm.reporting.publish import check_replot

FIGURE = script(ROOT / "analyses" / "fig16_merging_cross_fitted.py")
SMALL = dataclasses.replace(FIGURE.SMOKE, depths=(0.0, 0.34), n=16)
CELLS = [(read, write) for read in range(3) for write in range(2)]
RESIDUAL = {"channel": "orthogonal_residual", "condition": MESSAGE}


@pytest.fixture
def small(tiny: lc.Model, other: lc.Model, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The analysis on one of two tiny models, in layers that these have, on few items."""
    monkeypatch.setattr(lc, "load_model", lambda name, **options: other if "tiny-other" in name else tiny)
    monkeypatch.setattr(FIGURE, "SMOKE", SMALL)
    return FIGURE


@pytest.fixture(scope="module")
def pair() -> tuple[lc.Model, lc.Model]:
    return planted_pair()


def planted(pair: tuple[lc.Model, lc.Model], **change: Any) -> pd.DataFrame:
    """The table of the planted pair, where only one cell carries the answer."""
    settings = dataclasses.replace(FIGURE.SETTINGS, **change)
    return FIGURE.judged(settings, *pair, planted_task(), CELLS, dict.fromkeys(CELLS, AffineMap.identity(WIDTH)))


def of(table: pd.DataFrame, channel: str, metric: str, condition: str = MESSAGE) -> dict[str, Any]:
    """The row of these values."""
    keys = ("channel", "metric", "condition")
    (row,) = table[(table[list(keys)] == [channel, metric, condition]).all(axis=1)].to_dict("records")
    return row


class TestASmallRun:
    @pytest.mark.parametrize("receiver", ["", "/somewhere/tiny-other"])
    def test_publishes_its_figure_and_replots_it_without_a_model(
        self, receiver: str, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = f"{small.NAME}_countries"
        call(small, monkeypatch, "--smoke", "--out", tmp_path, *(["--receiver", receiver] if receiver else []))
        written = {file for file in files_in(tmp_path) if not file.startswith(".unfinished")}
        assert written == {f"{name}{end}" for end in (".csv", ".html", ".json", ".meta.json")}
        check_replot(name, tmp_path, plots(small)[name])
        assert_replots_the_same(small, tmp_path, [name])
        found = pd.read_csv(tmp_path / f"{name}.csv")
        found.assign(high=0.5 * (1 + found["high"])).to_csv(tmp_path / f"{name}.csv", index=False)
        with pytest.raises(RuntimeError, match=f"{name}.json is not what {name}.csv gives"):
            check_replot(name, tmp_path, plots(small)[name])

    def test_gives_the_same_bytes_after_an_interruption(
        self, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert_resumes_with_the_same_bytes(small, tmp_path, monkeypatch)

    @pytest.mark.parametrize("name", FIGURE.TASKS)
    def test_is_on_the_items_of_its_task(self, name: str, tiny: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FIGURE, "judged", lambda _, sender, receiver, task, *rest, **options: task)
        settings = dataclasses.replace(SMALL, task=name)
        task, whole = (FIGURE.compute(dataclasses.replace(settings, n=n), tiny, tiny) for n in (16, None))
        assert task.name == name and len(task.items) == 16
        assert len(whole.items) == (325 if name == "countries" else 200)


class TestCrossFitting:
    def test_judges_every_item_once_where_it_had_no_part_in_the_choice(
        self, tiny: lc.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choosing: list[set[tuple[str, str]]] = []
        judged: Counter[tuple[str, str, str]] = Counter()
        shared: set[tuple[str, str]] = set()
        tabled, evaluate = FIGURE.cell_table, lc.evaluate

        def sees(swept: Any, sender: lc.Model, tune: lc.tasks.Task) -> pd.DataFrame:
            choosing.append({(item.id, item.tags["country"]) for item in tune.items})
            return tabled(swept, sender, tune)

        def judges(channel: Any, sender: lc.Model, receiver: lc.Model, task: Any, **options: Any) -> list[lc.Trial]:
            for at in (0, 1):  # neither the item nor its country
                shared.update(
                    {(item.id, item.tags["country"])[at] for item in task.items} & {e[at] for e in choosing[-1]}
                )
            trials = evaluate(channel, sender, receiver, task, **options)
            judged.update((trial.channel, trial.condition, trial.item) for trial in trials)
            return trials

        monkeypatch.setattr(FIGURE, "cell_table", sees)
        monkeypatch.setattr(lc, "evaluate", judges)
        table = FIGURE.compute(SMALL, tiny, tiny)
        assert not shared and {len(items) for items in choosing} == {SMALL.n_tune}
        assert set(judged.values()) == {1} and set(table["n"]) == {16}
        assert len(judged) == 16 * (2 + 2 * len(FIGURE.FUSED))

    def test_finds_the_one_cell_that_carries_the_answer_in_both_halves(self, pair: tuple[lc.Model, lc.Model]) -> None:
        table = planted(pair)
        cell = "-".join(map(str, PLANTED_CELL))
        for metric in ("free", "choices"):
            row = of(table, "replace", metric)
            n = row["n"]
            assert n == len(planted_task().items) and row["chosen_cell"] == f"{cell}; {cell}"
            assert (row["accuracy"], row["tune_accuracy"]) == (1, 1)
            assert (row["low"], row["high"]) == proportion_interval(n, n)
            assert of(table, "replace", metric, "shuffled")["accuracy"] == 0
            assert of(table, "silent", metric)["accuracy"] == of(table, "skyline", metric)["accuracy"] == 0

    def test_scaled_replace_at_one_is_replace(self, pair: tuple[lc.Model, lc.Model]) -> None:
        table = planted(pair, scales=(1.0,))
        for name in (FIGURE.SCALED, FIGURE.EXTRAPOLATED):
            for condition in (MESSAGE, "shuffled"):
                scaled, plain = (of(table, each, "choices", condition) for each in (name, "replace"))
                assert [scaled[k] for k in ("accuracy", "chosen_cell")] == [
                    plain[k] for k in ("accuracy", "chosen_cell")
                ]
            assert of(table, name, "choices")["over_replace"] == 0
        own, incoming = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        identity = AffineMap.identity(4)
        for name in (FIGURE.SCALED, FIGURE.EXTRAPOLATED):
            assert FIGURE.fusion(name, 1.0, identity) == Replace()
        twice, beyond = (FIGURE.fusion(name, 2.0, identity) for name in (FIGURE.SCALED, FIGURE.EXTRAPOLATED))
        assert_same_bits(twice(own, incoming), 2 * incoming)
        assert torch.allclose(beyond(own, incoming), 2 * incoming - own)
        residual = FIGURE.fusion("predictability_residual", 2.0, identity)  # one model at equal layers
        assert torch.allclose(residual(own, incoming), beyond(own, incoming))

    def test_the_differences_are_paired_and_resample_countries(
        self, tiny: lc.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[lc.Trial] = []
        to_table = FIGURE.to_table
        monkeypatch.setattr(FIGURE, "to_table", lambda trials: seen.extend(trials) or to_table(trials))
        table = FIGURE.compute(dataclasses.replace(SMALL, n=40), tiny, tiny)
        country = {item.id: item.tags["country"] for item in lc.tasks.countries().items}
        for name in ("mean", *FIGURE.RESIDUALS):
            mine, other = (
                {t.item: bool(t.choices) for t in seen if (t.channel, t.condition) == (each, MESSAGE)}
                for each in (name, FIGURE.SCALED)
            )
            items = list(mine)
            gain = paired_bootstrap(
                list(mine.values()), [other[item] for item in items], groups=[country[item] for item in items]
            )
            row = of(table, name, "choices")
            over = [row[f"over_{FIGURE.SCALED}{end}"] for end in ("", "_low", "_high")]
            assert over == [gain.difference, gain.low, gain.high]


class TestTheAnswer:
    def test_is_of_the_residual_that_is_better_on_the_tuning_items(self) -> None:
        gain = {"over_scaled_replace": 0.01, "over_scaled_replace_low": -0.03, "over_scaled_replace_high": 0.05}
        rows = [RESIDUAL | {"metric": "choices", "tune_accuracy": 0.5} | gain]
        rows += [rows[0] | {"channel": "predictability_residual", "tune_accuracy": 0.4, "over_scaled_replace": 0.3}]
        said = "orthogonal residual less scaled replace: +.01 [-.03, .05] (choices): "
        assert FIGURE.answer(pd.DataFrame(rows)) == said + "no difference is shown"
        rows[0] |= {"over_scaled_replace_low": 0.005}
        assert FIGURE.answer(pd.DataFrame(rows)).endswith("the residual is better")
        rows[0] |= {"over_scaled_replace_low": -0.2, "over_scaled_replace_high": -0.1}
        assert FIGURE.answer(pd.DataFrame(rows)).endswith("the residual is worse")


class TestWhatIsCommitted:
    @pytest.mark.parametrize("name", FIGURE.FIGURES)
    def test_of_the_larger_model_is_what_its_data_give(self, name: str) -> None:
        folder = ROOT / "figures" / "1.5b"
        if not (folder / f"{name}.json").exists():
            pytest.skip("not committed yet; run the analysis that writes it")
        check_replot(name, folder, FIGURE.plot)
        meta = json.loads((folder / f"{name}.meta.json").read_text("utf-8"))
        assert meta["settings"]["sender"] == "qwen2.5-coder-1.5b-instruct" and name.endswith(meta["settings"]["task"])
