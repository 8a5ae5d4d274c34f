"""The figures of similarity and predictability: run small, held to the library's functions on states captured apart."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from common import corpus_states
from subwords import byte_level
from test_analyses import FIGURES, ROOT, assert_replots_the_same, assert_same_figures, call, interrupted, plots, script
from tiny import files_in, transformers_model
from torch import Tensor

import latentcomm as lc
from latentcomm.hooks.paired_text import pair_tokens
from latentcomm.models import wrap_model
from latentcomm.reporting.publish import check_replot
from latentcomm.similarity import LayerPairs, debiased_cka, exchanged_documents, rms_normalised
from latentcomm.tasks.corpus import read_corpus

PATHS = [ROOT / "analyses" / f"{name}.py" for name in ("fig3_similarity", "fig4_predictability")]
every_script = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
SMALL = {"fig3_similarity": {"documents": 12, "null_rows": 100}, "fig4_predictability": {"layer_step": 1}}


@pytest.fixture(scope="module")
def other() -> lc.Model:
    """A model of another width, depth and tokenizer."""
    raw = transformers_model("qwen2", d_model=12, n_layers=2, n_heads=2, n_vocabulary=400, dtype=torch.float32, seed=3)
    return wrap_model(raw, byte_level(), name="/somewhere/else/" + "tiny-other")


@pytest.fixture
def load(tiny: lc.Model, other: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lc, "load_model", lambda name: other if name == "other" else tiny)


def small(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script(path)
    monkeypatch.setattr(module, "SMOKE", dataclasses.replace(module.SMOKE, **SMALL[module.NAME]))
    return module


def computed(module: ModuleType, settings: Any, sender: lc.Model, receiver: lc.Model) -> pd.DataFrame:
    """The table of a figure of these two models."""
    return module.compute(settings, corpus_states(settings, sender, receiver, None)[1])


def captured(settings: Any, sender: lc.Model, receiver: lc.Model) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Both sides' states [layer row d_model] at the paired tokens, each document run by itself; document and place."""
    texts = read_corpus().documents
    texts = texts[:: -(-len(texts) // settings.documents)]
    tokens = pair_tokens(sender, receiver, texts, max_tokens=settings.max_tokens)
    sides = []
    for model, prompts, place in (
        (sender, tokens.sender, tokens.sender_position),
        (receiver, tokens.receiver, tokens.receiver_position),
    ):
        sites = [lc.Site(layer) for layer in range(model.n_layers)]
        parts = []
        for row in range(len(texts)):
            found = lc.capture(model, prompts.select([row]), sites)
            parts.append([found.rows(site)[place[tokens.document == row]] for site in sites])
        sides.append([torch.cat(layer) for layer in zip(*parts, strict=True)])
    return sides[0], sides[1], tokens.document, tokens.sender_position


def ordinary(sides: tuple[list[Tensor], list[Tensor]], position: Tensor) -> Tensor:
    """Rows past the first position whose norm is below five medians at every layer of both sides."""
    keep = position > 0
    for layer in (*sides[0], *sides[1]):
        norms = layer.double().norm(dim=1)
        keep = keep & (norms <= 5 * norms[position > 0].median())
    return keep


def grid(table: pd.DataFrame, column: str) -> Tensor:
    wide = table.pivot(index="sender_layer", columns="receiver_layer", values=column)
    return torch.tensor(wide.to_numpy())


class TestASmallRun:
    @every_script
    def test_publishes_both_pairs_and_replots_them_without_a_model(
        self, path: Path, load: None, tiny: lc.Model, other: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = small(path, monkeypatch)
        call(module, monkeypatch, "--smoke", "--receiver", "other", "--out", tmp_path)
        assert list(plots(module)) == [module.NAME, f"{module.NAME}_pair"]
        expected = {f"{name}{end}" for name in plots(module) for end in (".csv", ".html", ".json", ".meta.json")}
        assert {name for name in files_in(tmp_path) if not name.startswith(".unfinished")} == expected
        assert not [name for name in files_in(tmp_path) if "safetensors" in name]
        for name, plot in plots(module).items():
            check_replot(name, tmp_path, plot)
            meta = json.loads((tmp_path / f"{name}.meta.json").read_text("utf-8"))
            assert dataclasses.asdict(module.SMOKE).items() <= meta["settings"].items()
            prints = {role: model["fingerprint"] for role, model in meta["models"].items()}
            receiver = other if name.endswith("_pair") else tiny
            assert prints == {"sender": tiny.fingerprint, "receiver": receiver.fingerprint}
            assert "somewhere" not in json.dumps(meta)
        assert "somewhere" not in "".join((tmp_path / f"{name}.csv").read_text("utf-8") for name in plots(module))
        assert_replots_the_same(module, tmp_path, plots(module))
        for name, plot in plots(module).items():  # and a number that is changed in the data is a figure not theirs
            table = pd.read_csv(tmp_path / f"{name}.csv")
            column = next(c for c in ("debiased_cka", "forward") if c in table)
            table.assign(**{column: table[column] * 0.9}).to_csv(tmp_path / f"{name}.csv", index=False)
            with pytest.raises(RuntimeError, match=f"{name}.json is not what {name}.csv gives"):
                check_replot(name, tmp_path, plot)

    @every_script
    def test_gives_the_same_bytes_a_second_time_and_after_an_interruption(
        self, path: Path, load: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = small(path, monkeypatch)
        for folder in ("first", "second"):
            call(module, monkeypatch, "--smoke", "--out", tmp_path / folder)
        with interrupted(module):
            call(module, monkeypatch, "--smoke", "--out", tmp_path / "third")
        assert [name for name in files_in(tmp_path / "third") if name.endswith(".safetensors")]
        call(module, monkeypatch, "--smoke", "--out", tmp_path / "third")
        for folder in ("second", "third"):
            assert_same_figures(tmp_path / "first", tmp_path / folder)

    @every_script
    def test_a_smoke_run_is_the_same_on_fewer_documents(self, path: Path) -> None:
        module = script(path)
        whole, smoke = dataclasses.asdict(module.SETTINGS), dataclasses.asdict(module.SMOKE)
        assert whole["documents"] is None and smoke["documents"] >= 10 and smoke["max_tokens"] < whole["max_tokens"]
        changed = {name for name in whole if smoke[name] != whole[name]}
        assert changed <= {"documents", "max_tokens", "draws", "null_rows", "layer_step", "folds"}


class TestSimilarity:
    PATH = PATHS[0]

    @pytest.mark.parametrize("pair", ["itself", "another"])
    def test_each_cell_is_the_debiased_cka_of_its_rows(self, pair: str, tiny: lc.Model, other: lc.Model) -> None:
        module = script(self.PATH)
        settings = dataclasses.replace(module.SMOKE, documents=12)
        receiver = tiny if pair == "itself" else other
        table = computed(module, settings, tiny, receiver)
        x, y, document, position = captured(settings, tiny, receiver)
        rms, raw = (table[table["view"] == name] for name in module.VIEWS)
        keep = ordinary((x, y), position)
        for part, rows, scaled in ((rms, keep, rms_normalised), (raw, torch.ones_like(keep), lambda rows: rows)):
            expected = [[debiased_cka(scaled(a[rows]).double(), scaled(b[rows]).double()) for b in y] for a in x]
            assert float((grid(part, "debiased_cka") - torch.tensor(expected)).abs().max()) < 1e-4
            assert set(part["rows"]) == {int(rows.sum())} and set(part["left_out"]) == {int((~rows).sum())}
            assert set(part["documents"]) == {len(document[rows].unique())}
        if pair == "itself":
            assert grid(rms, "debiased_cka").diagonal().tolist() == pytest.approx([1.0] * 3)

    def test_the_null_is_that_of_documents_exchanged_place_by_place(self, tiny: lc.Model, other: lc.Model) -> None:
        module = script(self.PATH)
        settings = dataclasses.replace(module.SMOKE, documents=12, draws=3, null_rows=10**6)
        table = computed(module, settings, tiny, other)
        x, y, document, position = captured(settings, tiny, other)
        keep = ordinary((x, y), position)
        part = table[table["view"] == next(iter(module.VIEWS))]
        a, b = (rms_normalised(side[1][keep]).double() for side in (x, y))
        draws = [
            debiased_cka(a[pairing.rows], b[pairing.partners])
            for pairing in exchanged_documents(document[keep], position[keep], draws=3, seed=settings.seed)
        ]
        assert float(grid(part, "null_mean")[1, 1]) == pytest.approx(sum(draws) / 3, abs=1e-4)
        assert float(grid(part, "null_high")[1, 1]) == pytest.approx(
            float(torch.tensor(draws).quantile(0.975)), abs=1e-4
        )
        assert part["null_max"].nunique() == 1 and part["null_max"].iloc[0] >= part["null_high"].max() - 1e-12

    def test_a_null_of_fewer_rows_is_another_and_the_map_stays(self, tiny: lc.Model) -> None:
        module = script(self.PATH)
        tables = [
            computed(module, dataclasses.replace(module.SMOKE, documents=12, **change), tiny, tiny)
            for change in ({"null_rows": 40}, {"null_rows": 80}, {"seed": 1, "null_rows": 80})
        ]
        assert tables[0]["debiased_cka"].equals(tables[1]["debiased_cka"])
        assert not tables[0]["null_mean"].equals(tables[1]["null_mean"])
        assert not tables[1]["null_mean"].equals(tables[2]["null_mean"])


class TestPredictability:
    PATH = PATHS[1]

    @pytest.fixture
    def settings(self) -> Any:
        return dataclasses.replace(script(self.PATH).SMOKE, layer_step=1)

    @pytest.mark.parametrize("pair", ["itself", "another"])
    def test_each_cell_is_the_held_out_r_squared_its_way(
        self, pair: str, settings: Any, tiny: lc.Model, other: lc.Model
    ) -> None:
        receiver = tiny if pair == "itself" else other
        table = computed(script(self.PATH), settings, tiny, receiver)
        x, y, document, position = captured(settings, tiny, receiver)
        keep = ordinary((x, y), position)
        document = document[keep]

        def r_squared(source: Tensor, target: Tensor) -> float:
            a, b = (rms_normalised(side[keep]).double()[None] for side in (source, target))
            pairs = LayerPairs(folds=settings.folds, seed=settings.seed).update(a, b, groups=document)
            return float(pairs.linear_predictability())

        ways: dict[str, Callable[[int, int], float]] = {
            "forward": lambda k, j: r_squared(x[k], y[j]),
            "backward": lambda k, j: r_squared(y[j], x[k]),
        }
        for way, expected in ways.items():
            found = grid(table, way)
            for k, j in ((0, 1), (2, 0), (1, 1)):
                assert float(found[k, j]) == pytest.approx(expected(k, j), abs=1e-4)
        assert set(table["rows"]) == {len(document)} and set(table["left_out"]) == {int((~keep).sum())}
        if pair == "itself":
            assert grid(table, "forward").diagonal().min() > 0.999
            assert float(grid(table, "forward_null").diagonal().max()) < 0.5

    def test_strided_layers_are_measured_and_named_by_their_own_number(self, settings: Any, tiny: lc.Model) -> None:
        steps = (dataclasses.replace(settings, layer_step=step) for step in (1, 2))
        whole, some = (computed(script(self.PATH), each, tiny, tiny) for each in steps)
        assert sorted(some["sender_layer"].unique()) == sorted(some["receiver_layer"].unique()) == [0, 2]
        assert torch.allclose(grid(whole, "forward")[::2, ::2], grid(some, "forward"), atol=1e-3)


class TestWhatIsCommitted:
    @pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
    def test_there_is_a_model_with_itself_and_a_pair_of_different_models(self, path: Path) -> None:
        names = list(plots(script(path)))
        if not all((FIGURES / f"{name}.csv").exists() for name in names):
            pytest.skip(f"figures/{names[0]}.csv is not committed yet; run the analysis that writes it")
        prints = []
        for name in names:
            table = pd.read_csv(FIGURES / f"{name}.csv")
            assert table["documents"].min() > 100 and table["rows"].min() > 10_000
            models = json.loads((FIGURES / f"{name}.meta.json").read_text("utf-8"))["models"]
            prints.append([models[role]["fingerprint"] for role in ("sender", "receiver")])
        assert prints[0][0] == prints[0][1] == prints[1][0] != prints[1][1]
