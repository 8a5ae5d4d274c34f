"""A pair of models measured: the tables, what they must show of planted pairs, and that a stopped run goes on."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import tiny
import torch
from numerics import assert_same_bits
from pairs import corpus, other_ids, rotated_pair
from tiny import files_in
from toys import WRONG_FUSIONS

import latentcomm as lc
from latentcomm._core.records import Records
from latentcomm.alignment import fit_procrustes
from latentcomm.drift import COMBINED, DETECTORS, FAMILIES
from latentcomm.experiments.diagnosis import FUSIONS, MESSAGES, Diagnosis, Fitted, Size, cells, diagnose, grafts, report
from latentcomm.experiments.diagnosis import alikeness as comparison
from latentcomm.experiments.diagnosis.rows import Rows, ordinary_rows
from latentcomm.experiments.diagnosis.settings import layers_in_steps
from latentcomm.experiments.settings import SAVED
from latentcomm.fusion import Mean, PredictabilityResidual, Replace, RightAligned
from latentcomm.hooks import paired_text as paired
from latentcomm.hooks.paired_text import PairedTokens, capture_paired, pair_tokens
from latentcomm.models import Model, wrap_model

SMALL = Size(documents=40, tokens=40, prompts=4, draws=3)
TINY = Size(documents=24, tokens=20, prompts=2, draws=2)
"""The least that the statistics bear, for what does not look at numbers."""
COLUMNS = {
    "similarity": [
        *("sender_layer", "receiver_layer", "debiased_cka", "null_mean", "null_high", "null_max"),
        *("rows", "null_rows"),
    ],
    "predictability": [
        *("sender_layer", "receiver_layer", "forward", "backward", "forward_null", "backward_null"),
        *("rows", "null_rows"),
    ],
    "drift": ["fusion", "message", "read_layer", "write_layer", "item", "detector", "percentile"],
    "effects": [
        *("fusion", "message", "read_layer", "write_layer", "item"),
        *("kl", "entropy_change", "top1_agreement"),
    ],
    "healing": [
        *("fusion", "message", "write_layer", "layer", "deviation_median", "deviation_low", "deviation_high"),
        *("percentile_median", "percentile_low", "percentile_high", "own_percentile_median"),
    ],
    "calibration": ["layer", "family", "detector", "one_sided", "two_sided"],
}  # fmt: skip


def rows_where(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table)
    return table


def grid(table: pd.DataFrame, value: str) -> torch.Tensor:
    return torch.tensor(table.pivot(index="sender_layer", columns="receiver_layer", values=value).to_numpy())


@pytest.fixture(scope="module")
def itself() -> Diagnosis:
    model = tiny.model("llama")
    return diagnose(model, model, corpus=corpus(), size=SMALL)


@pytest.fixture(scope="module")
def turned() -> Diagnosis:
    return diagnose(*rotated_pair(), corpus=corpus(), size=SMALL)


class TestTables:
    @pytest.mark.parametrize("name", COLUMNS)
    def test_columns_are_those_stated_and_every_number_is_finite(self, name: str, itself: Diagnosis) -> None:
        table = itself.tables[name]
        assert list(table.columns) == COLUMNS[name]
        numbers = table.select_dtypes("number")
        assert torch.isfinite(torch.tensor(numbers.to_numpy(dtype=float))).all()

    def test_every_combination_has_its_row_and_none_has_two(self, itself: Diagnosis) -> None:
        layers, writes = [0, 1, 2], [0, 1]
        for table in (itself.similarity, itself.predictability):
            assert table[["sender_layer", "receiver_layer"]].to_numpy().tolist() == [
                [k, j] for k in layers for j in layers
            ]
        keys = ["fusion", "message", "write_layer", "item"]
        expected = {(f, m, w, i) for f in FUSIONS for m in MESSAGES for w in writes for i in range(4)}
        found = list(itself.effects[keys].itertuples(index=False, name=None))
        assert set(found) == expected and len(found) == len(expected)
        assert len(itself.drift) == len(expected) * (len(DETECTORS) + 1)
        assert set(itself.drift["detector"]) == {COMBINED, *DETECTORS}
        climbs = rows_where(itself.healing, fusion="sum", message="random")[["write_layer", "layer"]]
        assert climbs.to_numpy().tolist() == [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2]]
        assert set(itself.calibration["family"]) == {*FAMILIES, "another_layer"}
        assert set(itself.calibration["layer"]) == {0, 1}

    def test_nulls_lie_in_order_and_below_what_related_texts_give(self, itself: Diagnosis) -> None:
        table = itself.similarity
        assert (table["null_mean"] <= table["null_high"]).all()
        assert (table["null_high"] <= table["null_max"] + 1e-12).all()
        assert table["null_max"].nunique() == 1
        assert (table["debiased_cka"] > table["null_max"]).all()
        assert (itself.predictability["forward_null"] < 0.05).all()

    def test_percentiles_are_shares(self, itself: Diagnosis) -> None:
        assert itself.drift["percentile"].between(0, 1).all()
        assert (itself.effects["kl"] > -1e-9).all()

    def test_the_same_call_gives_the_same_tables_and_another_seed_others(self, itself: Diagnosis) -> None:
        model = tiny.model("llama")
        again = diagnose(model, model, corpus=corpus(), size=SMALL)
        for name, table in itself.tables.items():
            pd.testing.assert_frame_equal(table, again.tables[name], check_exact=True)
        other = diagnose(model, model, corpus=corpus(), size=SMALL, seed=1)
        for name in ("similarity", "predictability", "drift", "effects"):
            assert not other.tables[name].equals(itself.tables[name])

    def test_layers_come_in_even_steps_and_never_more_than_asked(self) -> None:
        for n_layers in range(1, 40):
            for most in range(1, 12):
                layers = layers_in_steps(n_layers, most)
                assert layers[0] == 0 and layers[-1] < n_layers and len(layers) <= most
                assert len({b - a for a, b in pairwise(layers)}) <= 1
        model = tiny.model("llama", n_layers=5)
        found = diagnose(model, model, corpus=corpus(), size=Size(24, 20, 2, layers=3, map_layers=2, draws=2))
        assert sorted(found.similarity["sender_layer"].unique()) == [0, 3]
        assert sorted(found.predictability["sender_layer"].unique()) == [0, 2, 4]
        assert sorted(found.effects["write_layer"].unique()) == [0, 2]  # nothing runs after the last block
        assert sorted(rows_where(found.healing, write_layer=0)["layer"].unique()) == [0, 2, 4]


class TestAModelWithItself:
    def test_is_predicted_from_itself_and_identical_to_itself(self, itself: Diagnosis) -> None:
        assert itself.settings["identical"]
        for value in ("forward", "backward"):
            assert grid(itself.predictability, value).diagonal().min() > 0.9999
        assert grid(itself.similarity, "debiased_cka").diagonal().min() > 0.999
        assert_same_bits(grid(itself.predictability, "backward"), grid(itself.predictability, "forward").T)
        assert (itself.cells["read_layer"] == itself.cells["write_layer"]).all()

    def test_gets_nothing_from_its_own_state_but_twice_it_from_a_sum(self, itself: Diagnosis) -> None:
        for fusion in ("replace", "mean", "norm_matched", "orthogonal_residual"):
            assert rows_where(itself.effects, fusion=fusion, message="same text")["kl"].max() < 1e-9
            deviation = rows_where(itself.healing, fusion=fusion, message="same text")["deviation_high"]
            assert deviation.max() < 1e-5
        assert rows_where(itself.effects, fusion="sum", message="same text")["kl"].min() > 1e-6
        doubled = rows_where(itself.healing, fusion="sum", message="same text")
        at_write = doubled[doubled["layer"] == doubled["write_layer"]]["deviation_median"]
        assert (at_write - 1).abs().max() < 1e-5

    def test_the_predictability_residual_of_its_own_state_is_small(self, itself: Diagnosis) -> None:
        moved = [
            rows_where(itself.effects, fusion="predictability_residual", message=message)["kl"].median()
            for message in ("same text", "other text")
        ]
        assert moved[0] < 1e-3 < moved[1]

    def test_another_text_or_noise_is_seen(self, itself: Diagnosis) -> None:
        for message in ("other text", "random"):
            assert rows_where(itself.effects, fusion="replace", message=message)["kl"].median() > 0.1
        noise = rows_where(itself.drift, fusion="replace", message="random", detector=COMBINED)["percentile"]
        assert noise.median() > 0.95

    def test_two_loads_of_the_same_weights_are_one_model(self, itself: Diagnosis) -> None:
        found = diagnose(tiny.build("llama"), tiny.build("llama"), corpus=corpus(), size=SMALL)
        assert found.settings["identical"]
        pd.testing.assert_frame_equal(found.effects, itself.effects, check_exact=True)


class TestAPairThatDiffersByARotation:
    """The receiver is the sender with its residual stream turned: the same words, the same thoughts, another basis."""

    def test_is_two_models_of_one_geometry(self, turned: Diagnosis) -> None:
        assert not turned.settings["identical"] and turned.settings["mapped"]
        assert grid(turned.similarity, "debiased_cka").diagonal().min() > 0.999
        assert grid(turned.predictability, "forward").diagonal().min() > 0.999
        assert grid(turned.predictability, "backward").diagonal().min() > 0.999
        off = grid(turned.predictability, "forward") - torch.eye(3)
        assert off.max() < 0.95

    def test_each_write_layer_is_read_at_its_counterpart(self, turned: Diagnosis) -> None:
        assert (turned.cells["read_layer"] == turned.cells["write_layer"]).all()
        assert not turned.cells["by_depth"].any()

    def test_the_fitted_map_carries_the_message_over(self, turned: Diagnosis) -> None:
        same = rows_where(turned.effects, fusion="replace", message="same text")["kl"]
        other = rows_where(turned.effects, fusion="replace", message="other text")["kl"]
        assert same.max() < 1e-3 < 0.1 < other.median()

    def test_without_a_map_the_same_message_is_noise(self, turned: Diagnosis) -> None:
        found = diagnose(*rotated_pair(), corpus=corpus(), size=SMALL, aligner=None, fusions={"replace": Replace()})
        assert rows_where(found.effects, message="same text")["kl"].median() > 0.1
        assert rows_where(found.drift, message="same text", detector=COMBINED)["percentile"].median() > 0.9
        assert found.recommended == ()

    def test_is_recommended_for_what_it_is(self, turned: Diagnosis) -> None:
        best = {one.fusion: one for one in turned.recommended}["replace"]
        assert best.read == best.write
        assert "gives 100% of the receiver's" in best.reason and "the next token depends on the message" in best.reason

    def test_another_aligner_may_fit_the_map(self) -> None:
        def procrustes(source: Any, target: Any, *, folds: int, groups: Any, seed: int) -> Any:
            return fit_procrustes(source, target)

        found = diagnose(*rotated_pair(), corpus=corpus(), size=SMALL, aligner=procrustes, fusions={"mean": Mean()})
        assert rows_where(found.effects, message="same text")["kl"].max() < 1e-6
        assert "procrustes" in found.settings["aligner"]


class TestOtherPairs:
    @pytest.mark.parametrize(("wide", "narrow"), [(32, 24), (24, 32)])
    @pytest.mark.parametrize("mapped", [True, False])
    def test_widths_may_differ(self, wide: int, narrow: int, mapped: bool) -> None:
        pair = tiny.model("llama", d_model=wide), tiny.model("gpt2", d_model=narrow, n_layers=4)
        options = {} if mapped else {"aligner": None}
        found = diagnose(*pair, corpus=corpus(), size=TINY, **options)
        assert set(found.effects["fusion"]) == set(FUSIONS)
        assert torch.isfinite(torch.tensor(found.effects["kl"].to_numpy())).all()
        assert found.settings["mapped"] is mapped
        assert sorted(found.effects["write_layer"].unique()) == [0, 1, 2]
        assert set(found.similarity["receiver_layer"]) == {0, 1, 2, 3} and set(found.similarity["sender_layer"]) == {
            0,
            1,
            2,
        }
        # The words are the same, so the embeddings' traces predict each other, and not all.
        assert 0.05 < found.predictability["forward"].max() < 0.999
        assert not found.predictability["forward"].equals(found.predictability["backward"])

    def test_tokenizers_may_differ(self) -> None:
        raw = tiny.transformers_model("llama", seed=1)
        other = wrap_model(raw, other_ids(tiny.tokenizer()), name="other-ids")
        found = diagnose(tiny.model("llama"), other, corpus=corpus(), size=TINY)
        assert found.settings["one_vocabulary"] is False
        assert found.settings["paired_rows"] == 24 * 20

    def test_fusions_are_those_given(self) -> None:
        model = tiny.model("llama")
        given = {"mine": Fitted(PredictabilityResidual), "half": RightAligned(Mean())}
        found = diagnose(model, model, corpus=corpus(), size=TINY, fusions=given)
        assert list(found.effects["fusion"].unique()) == ["mine", "half"]
        assert found.settings["fusions"] == {"mine": "fitted PredictabilityResidual", "half": repr(given["half"])}


def run_into(out: Path) -> None:
    model = tiny.model("llama")
    diagnose(model, model, corpus=corpus(), size=TINY, out=out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run that nobody stopped wrote."""
    out = tmp_path_factory.mktemp("whole")
    run_into(out)
    return out


def test_states_on_disk_few_rows_at_a_time_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = rotated_pair()
    in_memory = diagnose(sender, receiver, corpus=corpus(), size=TINY)
    monkeypatch.setattr(comparison, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr("latentcomm.experiments.diagnosis.run.capture_paired", None)  # which holds all layers
    on_disk = diagnose(sender, receiver, corpus=corpus(), size=TINY, out=tmp_path)
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(on_disk, name), getattr(in_memory, name), check_exact=True)


class TestWhatIsGrafted:
    """The rows, the places and the messages, seen at the doors of the parts that use them."""

    def states(self) -> tuple[Rows, PairedTokens]:
        sender, receiver = rotated_pair()
        tokens = pair_tokens(sender, receiver, corpus(24).documents, max_tokens=20)
        found = capture_paired(sender, receiver, tokens)
        places = {name: getattr(found, name) for name in ("document", "sender_position", "receiver_position")}
        return ordinary_rows(found.x, found.y, **places, seed=0), tokens

    def test_positions_are_held_out_of_different_documents_and_inside_the_row(self) -> None:
        rows, tokens = self.states()
        items = grafts.choose_items(rows, tokens, n=10, seed=0)
        assert len(items) == 10 and not rows.fit[items.row].any()
        documents = rows.document[items.row]
        assert len(documents.unique()) == 10
        assert (documents != documents[items.partner]).all()
        assert (rows.receiver_position[items.row] > 0).all()
        for item in range(10):
            length = int(rows.receiver_position[items.row[item]]) + 1
            assert_same_bits(items.prompts.ids(item), tokens.receiver.ids(int(documents[item]))[:length])
        assert len(grafts.choose_items(rows, tokens, n=10_000, seed=0)) == int((~rows.fit).sum())

    def test_halves_share_no_document_and_references_see_the_fit_half_alone(
        self,
    ) -> None:
        rows, _ = self.states()
        assert not set(rows.document[rows.fit].tolist()) & set(rows.document[~rows.fit].tolist())
        assert len(rows.document[rows.fit].unique()) == 12 == len(rows.document[~rows.fit].unique())
        options = {"seed": 0, "records": Records(None), "progress": False}
        found = cells.fit_references(rows, [0, 2], model="turned", **options)
        for layer, reference in found.items():
            assert reference.site == lc.Site(layer) and reference.kind == "any token"
            known = set(map(tuple, rows.y[layer, rows.fit].tolist()))
            assert {tuple(state) for state in reference.held_out.tolist()} <= known
            assert set(reference.held_out_groups.tolist()) <= set(range(12))

    def test_messages_are_what_they_are_called(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows, tokens = self.states()
        items = grafts.choose_items(rows, tokens, n=3, seed=0)
        grafted: list[dict[int, torch.Tensor]] = []
        function = grafts.measure_effects

        def watched(receiver: Model, prompts: Any, messages: Any, **options: Any) -> Any:
            grafted.append(dict(messages))
            return function(receiver, prompts, messages, **options)

        monkeypatch.setattr(grafts, "measure_effects", watched)
        cell = cells.ChosenCell(2, 1, 0.5, 0.0, False)
        grafts.graft_items(
            rows, items, rotated_pair()[1], cells=[cell], joints={1: cells.Joint(None, None)}, references={},
            fusions={"replace": Replace(), "mean": Mean()}, seed=0, records=Records(None), progress=False,
        )  # fmt: skip
        sent, own = rows.x[2, items.row], rows.y[1, items.row]
        for item in range(3):
            replaced, averaged = grafted[item][1][:3], grafted[item][1][3:]
            assert_same_bits(replaced[0], sent[item])
            assert_same_bits(replaced[1], sent[items.partner[item]])
            assert float(replaced[2].norm()) == pytest.approx(float(sent[item].norm()), rel=1e-5)
            assert abs(float(torch.cosine_similarity(replaced[2], sent[item], dim=0))) < 0.7
            torch.testing.assert_close(averaged, (replaced + own[item]) / 2)

    @pytest.mark.parametrize(("wrong", "message"), WRONG_FUSIONS.values(), ids=WRONG_FUSIONS)
    def test_a_fusion_that_returns_no_states_is_refused(self, wrong: Any, message: str) -> None:
        rows, tokens = self.states()
        items, cell = grafts.choose_items(rows, tokens, n=3, seed=0), cells.ChosenCell(2, 1, 0.5, 0.0, False)
        with pytest.raises(ValueError, match=re.escape(message)):
            grafts.graft_items(
                rows, items, rotated_pair()[1], cells=[cell], joints={1: cells.Joint(None, None)}, references={},
                fusions={"wrong": wrong}, seed=0, records=Records(None), progress=False,
            )  # fmt: skip


class TestAnInterruptedRun:
    STAGES: ClassVar[tuple[tuple[Any, str, int], ...]] = (
        (paired, "_states", 1),
        (comparison, "MinibatchPairs", 3),
        (comparison, "predictability_of_each", 4),
        (cells, "fit_drift_reference", 2),
        (cells, "fit_predictable", 2),
        (grafts, "measure_effects", 2),
    )
    CALLS: ClassVar[dict[str, int]] = {
        "_states": 1, "MinibatchPairs": 3, "predictability_of_each": 6, "fit_drift_reference": 3, "fit_predictable": 2,
        "measure_effects": 2,
    }  # fmt: skip
    """How often a whole run calls each."""

    @pytest.mark.parametrize(("module", "name", "at"), STAGES, ids=[name for _, name, _ in STAGES])
    def test_goes_on_to_the_same_bytes_without_doing_anything_twice(
        self, module: Any, name: str, at: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = self.stop_at(module, name, at, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run_into(tmp_path)
        assert calls == [name] * at
        assert files_in(tmp_path) == []
        run_into(tmp_path)
        assert len(calls) == self.CALLS[name] + 1  # the one that was stopped, and no other, was done again
        assert files_in(tmp_path) == files_in(whole)
        for file in files_in(whole):
            if file != "report.meta.json":
                assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file

    def test_a_finished_one_is_read_back_and_no_state_captured_again(
        self, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {file: (whole / file).read_bytes() for file in files_in(whole) if file != "report.meta.json"}
        settings = json.loads((whole / "report.meta.json").read_text("utf-8"))["settings"]
        calls = self.stop_at(paired, "_states", 1, monkeypatch)
        run_into(whole)
        assert calls == []
        assert {file: (whole / file).read_bytes() for file in before} == before
        assert json.loads((whole / "report.meta.json").read_text("utf-8"))["settings"] == settings

    def test_a_stopped_run_with_other_settings_keeps_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.stop_at(grafts, "measure_effects", 2, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run_into(tmp_path)
        before = files_in(tmp_path / SAVED)
        model = tiny.model("llama")
        diagnose(model, model, corpus=corpus(), size=TINY, seed=5, out=tmp_path)
        assert before and set(before) <= set(files_in(tmp_path / SAVED))

    def test_the_report_of_other_settings_is_not_written_over(self, whole: Path, tmp_path: Path) -> None:
        for file in files_in(whole):
            (tmp_path / file).write_bytes((whole / file).read_bytes())
        model = tiny.model("llama")
        with pytest.raises(ValueError, match=r"holds the report of another diagnosis, .* choose another folder"):
            diagnose(model, model, corpus=corpus(), size=TINY, seed=5, out=tmp_path)
        assert {file: (tmp_path / file).read_bytes() for file in files_in(tmp_path)} == {
            file: (whole / file).read_bytes() for file in files_in(whole)
        }
        run_into(tmp_path)  # the same diagnosis may be made again
        assert (tmp_path / "report.html").read_bytes() == (whole / "report.html").read_bytes()

    @pytest.mark.parametrize("name", ["effects.csv", "report.html", "report.meta.json"])
    def test_a_file_that_is_no_diagnosis_is_not_written_over(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text("[]")
        with pytest.raises(ValueError, match=f"holds a {name} that is not of this diagnosis"):
            run_into(tmp_path)
        assert files_in(tmp_path) == [name] and (tmp_path / name).read_text() == "[]"

    def test_a_report_that_was_stopped_while_it_was_written_is_written_anew(
        self, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(report, "report_page", lambda found: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_into(tmp_path)
        assert (tmp_path / "drift.csv").exists() and not (tmp_path / "report.html").exists()
        monkeypatch.undo()
        run_into(tmp_path)
        assert (tmp_path / "report.html").read_bytes() == (whole / "report.html").read_bytes()
        assert files_in(tmp_path) == files_in(whole)

    def stop_at(self, module: Any, name: str, at: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Let a function fail at its call number `at`, once; what comes back grows with every call."""
        calls: list[str] = []
        function: Callable[..., Any] = getattr(module, name)

        def counted(*given: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*given, **options)

        monkeypatch.setattr(module, name, counted)
        return calls


class TestWhatIsRefused:
    def refused(self, sender: Model | None = None, receiver: Model | None = None, **options: Any) -> str:
        model = tiny.model("llama")
        with pytest.raises(ValueError, match=r"\w") as caught:
            diagnose(sender or model, receiver or model, **({"corpus": corpus(), "size": TINY} | options))
        return str(caught.value)

    def test_too_few_documents(self) -> None:
        message = self.refused(corpus=corpus(23))
        assert message.startswith("words.txt holds 23 documents") and "at least 24" in message

    def test_documents_too_short_for_a_reference(self) -> None:
        assert "capture" in self.refused(corpus=corpus(24, words=5))

    def test_no_fusion(self) -> None:
        assert "there is no fusion" in self.refused(fusions={})

    def test_a_corpus_that_is_not_there(self, tmp_path: Path) -> None:
        assert "there is no corpus" in self.refused(corpus=tmp_path / "nothing.txt")

    def test_a_corpus_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "bytes.txt").write_bytes(b"abc\0def")
        assert "is no text: byte 3 is zero" in self.refused(corpus=tmp_path / "bytes.txt")

    def test_a_processed_model_with_a_raw_one(self) -> None:
        processed = tiny.build("llama")
        processed.hooked.enable_compatibility_mode(disable_warnings=True)
        assert "processed weights" in self.refused(receiver=processed)

    def test_a_model_without_a_tokenizer(self) -> None:
        bare = wrap_model(tiny.transformers_model("llama"), name="bare")
        assert "bare has no tokenizer" in self.refused(sender=bare, receiver=bare)

    @pytest.mark.parametrize(
        ("field", "least"),
        [("documents", 24), ("tokens", 8), ("prompts", 2), ("layers", 1), ("draws", 1), ("folds", 3)],
    )
    def test_a_size_below_what_the_statistics_bear(self, field: str, least: int) -> None:
        with pytest.raises(ValueError, match=f"{field} is {least - 1}; give at least {least}"):
            Size(**{field: least - 1})
        Size(**{field: least})


def test_is_at_hand_under_its_name() -> None:
    assert lc.diagnose is diagnose and "diagnose" in lc.__all__
