"""The analyses of channels (figures 8 to 10) run small; their maps, choices and paired numbers are what they say."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from numerics import assert_same_bits
from test_analyses import ROOT, assert_replots_the_same, call, interrupted, plots, script
from tiny import files_in

import latentcomm as lc
from latentcomm._core.stats import mcnemar_exact
from latentcomm.alignment import fit_cca, fit_ridge
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.hooks.paired_text import PairedStates
from latentcomm.reporting.publish import check_replot

NAMES = ("fig8_channels", "fig9_redundancy_merging", "fig10_cross_family")
PATHS = [ROOT / "analyses" / f"{name}.py" for name in NAMES]
CROSS = script(PATHS[2])
every_script = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def settings() -> Any:
    return dataclasses.replace(CROSS.SMOKE, depths=(0.0, 0.97), n_test=12)


@pytest.fixture(scope="module")
def states(settings: Any, tiny: lc.Model, other: lc.Model) -> PairedStates:
    return CROSS.captured(settings, tiny, other)


def of(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table)
    return table


def small(module: ModuleType) -> tuple[list[str], list[str]]:
    """What a small run is asked, and the figures that come of it."""
    if module.NAME != CROSS.NAME:
        name = module.NAME + ("_countries" if module.NAME == "fig8_channels" else "")
        return [], [name]
    return ["--receiver", "/somewhere/else/tiny-other"], list(plots(module))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny: lc.Model, other: lc.Model) -> Callable[[Path], Path]:
    """What runs a script small, once for all tests, and says where its figures are; they may be read, not changed."""

    @cache
    def folder(path: Path) -> Path:
        module, out = script(path), tmp_path_factory.mktemp("figures")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lc, "load_model", lambda name: other if "tiny-other" in name else tiny)
            call(module, patch, "--smoke", "--out", out, *small(module)[0])
        return out

    return folder


class TestASmallRun:
    @every_script
    def test_publishes_its_figures_and_replots_them_without_a_model(
        self, path: Path, published: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = script(path)
        _, names = small(module)
        shutil.copytree(published(path), tmp_path, dirs_exist_ok=True)
        expected = {f"{name}{end}" for name in names for end in (".csv", ".html", ".json", ".meta.json")}
        assert {name for name in files_in(tmp_path) if not name.startswith(".unfinished")} == expected
        assert not [name for name in files_in(tmp_path) if "safetensors" in name]
        for name in names:
            check_replot(name, tmp_path, plots(module)[name])
            for end in (".csv", ".json", ".meta.json"):
                assert not [
                    place
                    for place in ("somewhere", "/models")
                    if place in (tmp_path / f"{name}{end}").read_text("utf-8")
                ]
            table = pd.read_csv(tmp_path / f"{name}.csv")
            assert {"silent", "skyline"} <= set(table["channel"]) and "shuffled" in set(table["condition"])
        assert_replots_the_same(module, tmp_path, names)
        for name in names:  # and a number that is changed in the data is a figure that is not theirs
            table = pd.read_csv(tmp_path / f"{name}.csv")
            table.assign(high=0.5 * (1 + table["high"])).to_csv(tmp_path / f"{name}.csv", index=False)
            with pytest.raises(RuntimeError, match=f"{name}.json is not what {name}.csv gives"):
                check_replot(name, tmp_path, plots(module)[name])

    @every_script
    def test_goes_on_after_an_interruption_to_the_same_numbers(
        self,
        path: Path,
        load: None,
        published: Callable[[Path], Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        module = script(path)
        asked, names = small(module)
        with interrupted(module):
            call(module, monkeypatch, "--smoke", "--out", tmp_path, *asked)
        assert list(tmp_path.rglob("trials-*/*.json"))
        call(module, monkeypatch, "--smoke", "--out", tmp_path, *asked)
        for name in names:
            tables = [pd.read_csv(folder / f"{name}.csv") for folder in (published(path), tmp_path)]
            assert tables[0].drop(columns="seconds").equals(tables[1].drop(columns="seconds"))


class TestMerging:
    def test_the_difference_to_replace_is_that_of_the_accuracies(self, published: Callable[[Path], Path]) -> None:
        module = script(PATHS[1])
        table = pd.read_csv(published(PATHS[1]) / f"{module.NAME}.csv")
        true = of(table, condition=MESSAGE, metric="choices").set_index("channel")
        replace = true["accuracy"]["replace"]
        for name in ("mean", "sum", *module.RESIDUALS):
            assert true["over_replace"][name] == pytest.approx(true["accuracy"][name] - replace)
        assert true["over_replace"].isna()[["silent", "skyline", "replace"]].all()
        best = table["best_plain"].iloc[0]
        assert true["tune_accuracy"][best] == max(true["tune_accuracy"][name] for name in module.PLAIN)


class TestCrossFamily:
    def test_without_a_receiver_nothing_is_done(
        self, load: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        call(CROSS, monkeypatch, "--smoke", "--out", tmp_path)
        assert not list(tmp_path.iterdir()) and "--receiver" in capsys.readouterr().err

    def test_models_of_one_width_are_refused(self, settings: Any, tiny: lc.Model) -> None:
        with pytest.raises(ValueError, match="choose unequal models"):
            CROSS.captured(settings, tiny, tiny)

    def test_every_graft_has_its_own_cell_all_controls_and_paired_numbers(
        self, settings: Any, states: PairedStates, tiny: lc.Model, other: lc.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[lc.Trial] = []
        compared = CROSS.compare_trials
        monkeypatch.setattr(
            CROSS, "compare_trials", lambda trials, *, seed: seen.extend(trials) or compared(trials, seed=seed)
        )
        table = CROSS.compute(settings, tiny, other, states)
        grafts = (CROSS.UNALIGNED, *CROSS.MAPS, CROSS.RESIDUAL)
        for name in grafts:
            mine = of(table, channel=name)
            assert set(mine["condition"]) == {MESSAGE, *(CROSS.CONTROLS[: 1 if name == CROSS.BY_CHANCE else None])}
            assert mine[["read_layer", "write_layer", "tune_accuracy"]].drop_duplicates().shape[0] == 1
            assert mine["write_layer"].max() < 1 and mine["n_cells"].iloc[0] == 2
        assert set(table["channel"]) == {"silent", "skyline", "text", *grafts}
        true = of(table, condition=MESSAGE, metric="choices").set_index("channel")
        for against in ("unaligned", "ridge_of_random_pairs"):
            base = true["accuracy"][against.replace("_", " ")]
            over = true[f"over_{against}"].dropna()
            assert set(over.index) == set(grafts) - {against.replace("_", " ")}
            assert over.to_numpy() == pytest.approx((true["accuracy"][over.index] - base).to_numpy())
        right = {
            name: {trial.item: trial.choices for trial in seen if (trial.channel, trial.condition) == (name, MESSAGE)}
            for name in ("ridge", CROSS.UNALIGNED)
        }
        assert list(right["ridge"]) == list(right[CROSS.UNALIGNED]) and len(right["ridge"]) == 12
        p = mcnemar_exact(*([bool(each) for each in items.values()] for items in right.values())).p_value
        row = of(table, channel="ridge", condition=MESSAGE, metric="choices").iloc[0]
        assert row["p_unaligned"] == pytest.approx(p)

    def test_a_joint_ridge_is_the_ridge_of_each_target_at_that_penalty(self) -> None:
        generator = torch.Generator().manual_seed(0)
        source = torch.randn(90, 4, generator=generator)
        targets = {
            3: source @ torch.randn(4, 2, generator=generator),
            7: 50 * torch.randn(90, 3, generator=generator) + 9,
        }
        documents = torch.arange(90) // 6
        found = CROSS._jointly(source, targets, groups=documents, seed=0)
        for layer, target in targets.items():
            alone = fit_ridge(source, target, penalty=float(found["penalty"]))
            assert torch.allclose(found[f"ridge {layer} weight"], alone.weight, atol=1e-4)
            assert torch.allclose(found[f"ridge {layer} bias"], alone.bias, atol=1e-4)

    def test_canonical_maps_of_factored_rows_are_those_of_the_library(self) -> None:
        generator = torch.Generator().manual_seed(0)
        source, noise = torch.randn(60, 5, generator=generator) + 1, torch.randn(60, 4, generator=generator)
        target = source @ torch.randn(5, 4, generator=generator) + noise - 2
        for rank in (1, 3):
            mine = CROSS._cca(CROSS._factored(source), CROSS._factored(target), rank)
            theirs = fit_cca(source, target, rank=rank)
            assert torch.allclose(mine.weight, theirs.weight, atol=1e-5)
            assert torch.allclose(mine.bias, theirs.bias, atol=1e-5)

    def test_a_map_of_random_pairs_explains_nothing_unlike_one_of_true_pairs(self) -> None:
        generator = torch.Generator().manual_seed(0)
        source = torch.randn(400, 4, generator=generator)
        targets = {0: source @ torch.randn(4, 3, generator=generator) + 2}
        order = torch.randperm(400, generator=generator)
        found = CROSS._jointly(source, targets, groups=torch.arange(400) // 8, seed=0, order=order)
        scores = {}
        for name in ("ridge", CROSS.BY_CHANCE):
            weight, bias = found[f"{name} 0 weight"], found[f"{name} 0 bias"]
            scores[name] = lc.alignment.AffineMap(weight, bias).r_squared(source, targets[0])
        assert scores["ridge"] > 0.99 and scores[CROSS.BY_CHANCE] < 0.05

    def test_what_is_predicted_is_predicted_from_the_receivers_state(
        self, settings: Any, states: PairedStates, tiny: lc.Model, other: lc.Model
    ) -> None:
        way = CROSS._fitted(settings, tiny, other, states, None)
        rows = states.after_first
        for cell in way.cells:
            message = way.maps["ridge"][cell](states.x[cell[0], rows])
            assert (way.predicted[cell].d_in, way.predicted[cell].d_out) == (other.d_model, other.d_model)
            assert way.predicted[cell].r_squared(states.y[cell[1], rows], message) > 0.2
        back = CROSS.turned(states)
        assert_same_bits(back.x, states.y)
        assert_same_bits(back.sender_position, states.receiver_position)

    def test_a_smoke_run_is_the_same_on_less(self) -> None:
        whole, smoke = dataclasses.asdict(CROSS.SETTINGS), dataclasses.asdict(CROSS.SMOKE)
        changed = {name for name in whole if smoke[name] != whole[name]}
        assert changed == {"depths", "documents", "max_tokens", "cca_rank", "message_tokens", "n_tune", "n_test"}
        assert json.dumps(whole)
