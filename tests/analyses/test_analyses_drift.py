"""The figures of drift, healing and accuracy: run small, held to states captured and fused apart from them."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from test_analyses import FIGURES, ROOT, assert_replots_the_same, assert_same_figures, call, interrupted, plots, script
from tiny import files_in

import latentcomm as lc
from latentcomm._core.records import Records
from latentcomm.drift import fit_drift_reference
from latentcomm.fusion import Mean, Replace, Sum
from latentcomm.models import encode
from latentcomm.reporting.publish import check_replot
from latentcomm.tasks import countries

PATHS = [ROOT / "analyses" / f"{name}.py" for name in ("fig5_fusion_drift", "fig6_healing", "fig7_drift_and_accuracy")]
every_script = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
SMALL = {
    "fig5_fusion_drift": {"layer_step": 2, "n_states": 6},
    "fig6_healing": {"layer_step": 2, "n_items": 2},
    "fig7_drift_and_accuracy": {"read_layers": (0, 1), "write_layers": (0, 1), "n_items": 4, "n_resamples": 5},
}


def small(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script(path)
    monkeypatch.setattr(module, "SMOKE", dataclasses.replace(module.SMOKE, **SMALL[module.NAME]))
    return module


def of(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table)
    return table


@pytest.fixture(scope="module")
def drifted(tiny: lc.Model) -> tuple[pd.DataFrame, pd.DataFrame]:
    module = script(PATHS[0])
    return module.compute(dataclasses.replace(module.SMOKE, layer_step=2, n_states=60, documents=None), tiny, tiny)


@pytest.fixture(scope="module")
def healed(tiny: lc.Model) -> pd.DataFrame:
    module = script(PATHS[1])
    return module.compute(dataclasses.replace(module.SMOKE, layer_step=1, n_items=4), tiny, tiny)


ACCURACY = script(PATHS[2])
SWEPT = dataclasses.replace(
    ACCURACY.SMOKE, read_layers=(0, 1, 2), write_layers=(0, 1), n_items=5, n_resamples=10, names=("Alice",)
)


@pytest.fixture(scope="module")
def swept(tiny: lc.Model) -> tuple[pd.DataFrame, pd.DataFrame]:
    return ACCURACY.compute(SWEPT, tiny, tiny)


class TestASmallRun:
    @every_script
    @pytest.mark.parametrize("pair", [False, True])
    def test_publishes_its_figures_and_replots_them_without_a_model(
        self,
        pair: bool,
        path: Path,
        load: None,
        tiny: lc.Model,
        other: lc.Model,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        module = small(path, monkeypatch)
        names = [name for name in plots(module) if ("_pair" in name) == pair]
        receiver = ["--receiver", "/somewhere/else/tiny-other"] if pair else []
        call(module, monkeypatch, "--smoke", "--out", tmp_path, *receiver)
        expected = {f"{name}{end}" for name in names for end in (".csv", ".html", ".json", ".meta.json")}
        assert {name for name in files_in(tmp_path) if not name.startswith(".unfinished")} == expected
        assert not [name for name in files_in(tmp_path) if "safetensors" in name]
        for name in names:
            check_replot(name, tmp_path, plots(module)[name])
            meta = json.loads((tmp_path / f"{name}.meta.json").read_text("utf-8"))
            smoke = json.loads(json.dumps(dataclasses.asdict(module.SMOKE)))
            assert smoke.items() <= meta["settings"].items() and "somewhere" not in json.dumps(meta)
            prints = {role: model["fingerprint"] for role, model in meta["models"].items()}
            assert prints == {"sender": tiny.fingerprint, "receiver": (other if pair else tiny).fingerprint}
        assert_replots_the_same(module, tmp_path, names)
        for name in names:  # and a number that is changed in the data is a figure that is not theirs
            table = pd.read_csv(tmp_path / f"{name}.csv")
            shown = ("percentile", "flagged", "deviation_low", "rho", "combined")
            column = next(c for c in shown if c in table and (c != "flagged" or "percentile_median" in table))
            table.assign(**{column: (0.9 * table[column]).fillna(0.1)}).to_csv(tmp_path / f"{name}.csv", index=False)
            with pytest.raises(RuntimeError, match=f"{name}.json is not what {name}.csv gives"):
                check_replot(name, tmp_path, plots(module)[name])

    @every_script
    def test_gives_the_same_bytes_a_second_time_and_after_an_interruption(
        self, path: Path, load: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = small(path, monkeypatch)
        call(module, monkeypatch, "--smoke", "--out", tmp_path / "first")
        with interrupted(module):
            call(module, monkeypatch, "--smoke", "--out", tmp_path / "second")
        assert [name for name in files_in(tmp_path / "second") if name.endswith(".safetensors")]
        call(module, monkeypatch, "--smoke", "--out", tmp_path / "second")
        assert_same_figures(tmp_path / "first", tmp_path / "second")

    @every_script
    def test_a_smoke_run_is_the_same_on_less(self, path: Path) -> None:
        module = script(path)
        whole, smoke = dataclasses.asdict(module.SETTINGS), dataclasses.asdict(module.SMOKE)
        assert {name for name in whole if smoke[name] != whole[name]} <= {
            *("documents", "max_tokens", "layer_step", "n_states", "n_items"),
            *("read_layers", "write_layers", "stride", "names", "block", "n_resamples"),
        }
        assert smoke["max_tokens"] < whole["max_tokens"]


class TestFusionDrift:
    def test_the_same_text_of_one_model_changes_nothing_under_most_fusions(
        self, drifted: tuple[pd.DataFrame, pd.DataFrame]
    ) -> None:
        """Replace, mean and both residuals of equal states are that state: real states, so few are flagged."""
        each, shares = drifted
        same = of(each, message="same text")
        own = of(same, fusion="replace")["percentile"].to_numpy()
        for fusion in ("mean", "norm_matched", "orthogonal_residual"):
            assert abs(of(same, fusion=fusion)["percentile"].to_numpy() - own).max() < 0.05
        assert own.mean() == pytest.approx(0.5, abs=0.2)
        flagged = of(shares, message="same text", fusion="replace", detector="combined")
        assert flagged["flagged"].max() < 0.2 and (flagged["low"] <= flagged["flagged"]).all()

    def test_a_sum_and_a_random_direction_are_told_from_real_states(
        self, drifted: tuple[pd.DataFrame, pd.DataFrame]
    ) -> None:
        _, shares = drifted
        norm = of(shares, fusion="sum", message="same text", detector="norm_ratio")
        assert norm["flagged"].min() > 0.5  # twice as long as the own state
        random = of(shares, fusion="replace", message="random", detector="combined")
        assert random["flagged"].min() > 0.5

    def test_the_share_flagged_is_that_of_the_states(self, drifted: tuple[pd.DataFrame, pd.DataFrame]) -> None:
        each, shares = drifted
        for row in of(shares, detector="combined").to_dict("records"):
            place = {name: row[name] for name in ("fusion", "message", "write_layer")}
            values = of(each, **place)["percentile"]
            assert row["flagged"] == pytest.approx((values >= 0.95).mean()) and row["n"] == len(values)


class TestHealing:
    def test_a_graft_of_the_own_state_changes_nothing_and_another_text_does(self, healed: pd.DataFrame) -> None:
        module = script(PATHS[1])
        later, said = (of(healed, what=what) for what in (module.LATER, module.NEXT))
        assert of(later, fusion="replace", message="same text")["deviation_high"].max() < 1e-5
        assert of(said, fusion="replace", message="same text")["kl"].max() < 1e-6
        assert of(later, fusion="replace", message="other text")["deviation_median"].min() > 0.01
        assert set(later["layer"]) == {0, 1, 2} and set(said["write_layer"]) == {0, 1}

    def test_the_figure_shows_both_tables(self, healed: pd.DataFrame) -> None:
        module = script(PATHS[1])
        settings = {"sender": "a", "receiver": "b", "n_items": 4}
        drawn = [trace.name for trace in module.plot(healed, settings).data]
        assert {"replace", "sum"} <= set(drawn)
        with pytest.raises(ValueError, match="lacks the column"):
            module.plot(of(healed, what=module.LATER), settings)


class TestDriftAndAccuracy:
    MODULE, SETTINGS = ACCURACY, SWEPT

    def asked(self) -> Any:
        return countries().split(seed=0)[0].take(self.SETTINGS.n_items, seed=0)

    @pytest.mark.parametrize(("name", "fusion"), [("replace", Replace()), ("mean", Mean()), ("sum", Sum())])
    def test_each_cell_has_the_accuracy_of_grafts_made_one_by_one(
        self, name: str, fusion: Any, swept: tuple[pd.DataFrame, pd.DataFrame], tiny: lc.Model
    ) -> None:
        task = self.asked()
        choices = lc.tasks.draw_choices(task, tiny.first_token, seed=0)
        for read, write in ((0, 1), (2, 0)):
            right, likely = [], []
            for item, options in zip(task.items, choices, strict=True):
                sent = lc.capture(tiny, encode(tiny, [item.sender]), [lc.Site(read)]).last(lc.Site(read))
                prompt = encode(tiny, [item.receiver])
                graft = lc.Graft(lc.Site(write), -1, sent[0], fusion)
                with lc.grafted(tiny, [graft]):
                    logits = tiny.forward(prompt.tokens)[0, -1]
                scores = logits[[tiny.first_token(option) for option in options]].double()
                right.append(options[int(scores.argmax())] == item.choice)
                likely.append(float(scores.log_softmax(0)[options.index(item.choice)]))
            for row in of(swept[1], fusion=name, read_layer=read, write_layer=write).to_dict("records"):
                assert row["accuracy"] == sum(right) / len(right)
                assert row["log_p"] == pytest.approx(sum(likely) / len(likely), abs=1e-5)

    def test_the_lens_of_a_cell_is_that_of_its_message(
        self, swept: tuple[pd.DataFrame, pd.DataFrame], tiny: lc.Model
    ) -> None:
        task = self.asked()
        choices = lc.tasks.draw_choices(task, tiny.first_token, seed=0)
        last = tiny.n_layers - 1
        likely: dict[int, list[float]] = {0: [], last: []}
        for item, options in zip(task.items, choices, strict=True):
            prompt = encode(tiny, [item.sender])
            sent = lc.capture(tiny, prompt, [lc.Site(0)]).last(lc.Site(0))
            unembedded = {0: tiny.unembed(tiny.final_norm(sent))[0], last: tiny.forward(prompt.tokens)[0, -1]}
            for read, logits in unembedded.items():
                scores = logits[[tiny.first_token(option) for option in options]].double().log_softmax(0)
                likely[read].append(float(scores[options.index(item.choice)]))
        for read, values in likely.items():  # after the last block the lens is the model's own output
            cells = of(swept[1], read_layer=read)["logit_lens"]
            assert cells.tolist() == pytest.approx([sorted(values)[len(values) // 2]] * len(cells), abs=1e-5)

    def test_held_out_items_and_the_lens_are_left_out_as_they_say(self, tiny: lc.Model) -> None:
        """The partial correlation given one column by its closed form, and halves of the items by hand."""
        module, draw = self.MODULE, torch.Generator().manual_seed(0)
        grid = module.Grid(tiny, tiny, (0, 1, 2), (0, 1), self.asked(), None, Records(None))
        names = (*module.PREDICTORS, module.LENS, module.ACCURACY, module.LOG_P)
        values = {name: torch.rand(5, 3, 2, generator=draw, dtype=torch.float64) for name in names}
        outcomes = {name: values.pop(name) for name in (module.ACCURACY, module.LOG_P)}
        found = module._correlations(self.SETTINGS, grid, outcomes, values)
        right, lens = outcomes[module.ACCURACY].flatten(1).numpy(), values[module.LENS].flatten(1).numpy()
        for name in (*module.PREDICTORS, module.LENS):
            x = values[name].flatten(1).numpy()
            row = of(found, outcome="accuracy", predictor=name, statistic="all cells, held-out items").iloc[0]
            expected = spearmanr(np.median(x[[0, 2]], 0), right[[1, 3]].mean(0)).statistic
            assert row["rho"] == pytest.approx(expected, abs=1e-9)
            if name != module.LENS:
                columns = np.median(x, 0), right.mean(0), np.median(lens, 0)
                xy, xz, yz = (spearmanr(columns[a], columns[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2)))
                row = of(found, outcome="accuracy", predictor=name, statistic="given the lens").iloc[0]
                expected = (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5
                assert row["rho"] == pytest.approx(expected, abs=1e-9)
        alone = found[found["predictor"] == module.LENS]
        assert "given the lens" not in set(alone["statistic"]) and len(alone)

    def test_drift_is_measured_against_last_tokens_of_items_outside_the_test(
        self, swept: tuple[pd.DataFrame, pd.DataFrame], tiny: lc.Model
    ) -> None:
        task, read, write = self.asked(), 2, 1
        taken = {item.id for item in task.items}
        others = [item for item in countries().items if item.id not in taken]
        assert len(others) == 325 - self.SETTINGS.n_items
        own, sent = (
            lc.capture(tiny, encode(tiny, [item.skyline for item in items]), [lc.Site(layer)]).last(lc.Site(layer))
            for items, layer in ((others, write), (task.items, read))
        )
        reference = fit_drift_reference(own, seed=0, groups=[item.id for item in others])
        percentiles = reference.percentile(sent.double())
        row = of(
            swept[1], fusion="replace", reference=self.MODULE.LAST_TOKENS, read_layer=read, write_layer=write
        ).iloc[0]
        inside = percentiles["mahalanobis"].clamp(max=1 - 1e-9)
        if float(inside.quantile(0.5)) < 0.98:  # beyond the held-out states the surprise goes on where they end
            assert row["mahalanobis"] == pytest.approx(float((-(1 - inside).log()).quantile(0.5)), abs=1e-3)
        assert row["flagged"] == pytest.approx(float((percentiles["combined"] >= 0.95).double().mean()))

    def test_own_states_are_seldom_flagged_and_those_of_another_layer_often(
        self, swept: tuple[pd.DataFrame, pd.DataFrame]
    ) -> None:
        """One model: what is read where it is written is the receiver's own state of that text."""
        cells = of(swept[1], fusion="replace", reference=self.MODULE.LAST_TOKENS)
        here = cells["read_layer"] == cells["write_layer"]
        assert cells["flagged"][here].max() <= 0.4 < cells["flagged"][~here].max()

    def test_rho_is_scipys_over_the_cells(self, swept: tuple[pd.DataFrame, pd.DataFrame]) -> None:
        correlations, cells = swept
        for fusion, kind in ((f, k) for f in ("replace", "sum") for k in cells["reference"].unique()):
            part = of(cells, fusion=fusion, reference=kind)
            for outcome in ("accuracy", "log_p"):
                rows = of(correlations, fusion=fusion, reference=kind, outcome=outcome, statistic="all cells")
                for row in rows.to_dict("records"):
                    place = {"read layer": part["read_layer"], "write layer": part["write_layer"]}
                    place["|read - write|"] = (part["read_layer"] - part["write_layer"]).abs()
                    x = place.get(row["predictor"], part.get(row["predictor"]))
                    assert row["rho"] == pytest.approx(spearmanr(x, part[outcome]).statistic, abs=1e-9)
        assert set(correlations["n"]) == {6}

    def test_messages_of_another_width_enter_through_a_map_of_their_cell(self, tiny: lc.Model, other: lc.Model) -> None:
        settings = dataclasses.replace(self.SETTINGS, read_layers=None, write_layers=None, stride=1, n_items=4)
        correlations, cells = self.MODULE.compute(settings, tiny, other)
        part = of(cells, fusion="replace", reference=self.MODULE.ANY_TOKENS)
        assert sorted(zip(part["read_layer"], part["write_layer"], strict=True)) == [(0, 0), (1, 0), (2, 0)]
        assert len(correlations["predictor"].unique()) == 14


class TestWhatIsCommitted:
    @pytest.mark.parametrize("name", [name for path in PATHS for name in plots(script(path))])
    def test_a_figure_is_of_the_pair_its_name_says(self, name: str) -> None:
        if not (FIGURES / f"{name}.json").exists():
            pytest.skip(f"figures/{name}.json is not committed yet; run the analysis that writes it")
        models = json.loads((FIGURES / f"{name}.meta.json").read_text("utf-8"))["models"]
        prints = [models[role]["fingerprint"] for role in ("sender", "receiver")]
        assert (prints[0] != prints[1]) == ("_pair" in name)
