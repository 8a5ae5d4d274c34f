"""The report of a diagnosis: the page, its warnings each with its cause, and the recommended cells."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import tiny
import torch
from pairs import Tags, corpus, rotated_pair
from tiny import files_in

from latentcomm.drift import COMBINED
from latentcomm.experiments.diagnosis import Diagnosis, Size, diagnose
from latentcomm.experiments.diagnosis.cells import ChosenCell, choose_cells
from latentcomm.experiments.diagnosis.recommend import Situation, cell_table, recommend, warn
from latentcomm.experiments.diagnosis.report import report_page, write_report
from latentcomm.experiments.diagnosis.rows import Rows, ordinary_rows
from latentcomm.models import Model
from latentcomm.reporting.html_page import Page, shade
from latentcomm.reporting.publish import PACKAGES

SIZE = Size(documents=24, tokens=24, prompts=3, draws=2)
FILES = sorted(
    [f"{name}.csv" for name in ("calibration", "cells", "drift", "effects", "healing", "predictability", "similarity")]
    + ["report.html", "report.meta.json"]
)


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> tuple[Diagnosis, Path]:
    out = tmp_path_factory.mktemp("itself")
    model = tiny.model("llama")
    return diagnose(model, model, corpus=corpus(), size=SIZE, out=out), out


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Diagnosis, Path]:
    out = tmp_path_factory.mktemp("pair")
    return diagnose(*rotated_pair(), corpus=corpus(), size=SIZE, out=out), out


class TestThePage:
    @pytest.mark.parametrize("which", ["itself", "pair"])
    def test_is_one_file_that_needs_no_network(self, which: str, request: pytest.FixtureRequest) -> None:
        _, out = request.getfixturevalue(which)
        assert files_in(out) == FILES
        page = Tags((out / "report.html").read_text("utf-8"))
        assert not {"link", "img", "iframe", "object", "embed", "base", "video", "audio"} & set(page.tags)
        assert page.links and all(re.fullmatch(r"[\w.]+", link) and (out / link).is_file() for link in page.links)
        assert len(page.scripts) == 2
        library, figures = page.scripts
        assert library.count("plotly.js v") == 1 and len(library) > 1_000_000
        assert len(figures) < 2_000_000 and "http" not in figures.replace("http://www.w3.org", "")
        assert "@import" not in (out / "report.html").read_text("utf-8").replace(library, "")
        assert "url(" not in (out / "report.html").read_text("utf-8").replace(library, "")

    def test_every_figure_has_its_place(self, pair: tuple[Diagnosis, Path]) -> None:
        page = Tags((pair[1] / "report.html").read_text("utf-8"))
        figures = re.search(r"const figures = (.*);\n", page.scripts[1])
        assert figures is not None
        drawn = json.loads(figures[1])
        assert list(drawn) == [name for name in page.ids if name.startswith("figure-")]
        assert len(drawn) == 6 and len(set(page.ids)) == len(page.ids)
        assert all(figure["data"] for figure in drawn.values())

    def test_says_who_the_models_are_and_what_was_done(self, pair: tuple[Diagnosis, Path]) -> None:
        found, out = pair
        words = Tags((out / "report.html").read_text("utf-8")).words
        for model in found.models.values():
            assert model["name"] in words and model["fingerprint"][:16] in words and str(model["d_model"]) in words
        for phrase in ("In short", "Cells to try first", "attention sinks", "float64", "words.txt", "seed", *PACKAGES):
            assert phrase in words, phrase
        assert words.count("How to read it") == words.count("What it does not show") - 1 >= 5
        assert "not a test of usefulness" in words
        for one in found.recommended:
            assert one.reason[1:] in words
        assert "nan" not in words.lower().replace("nano", "")

    def test_names_no_folder_of_this_machine(self, tmp_path: Path) -> None:
        there = replace(tiny.model("llama"), name="/somewhere/else/model-x")
        found = diagnose(there, there, corpus=corpus(), size=SIZE, out=tmp_path / "out")
        assert found.models["sender"]["name"] == "model-x"
        for name in FILES:
            text = (tmp_path / "out" / name).read_text("utf-8")
            assert "somewhere" not in text and str(tmp_path) not in text

    def test_the_csv_files_hold_the_tables_in_full(self, pair: tuple[Diagnosis, Path]) -> None:
        found, out = pair
        for name, table in found.tables.items():
            pd.testing.assert_frame_equal(pd.read_csv(out / f"{name}.csv"), table, check_exact=True)

    def test_the_metadata_tell_what_differs_from_run_to_run_apart(self, pair: tuple[Diagnosis, Path]) -> None:
        found, out = pair
        meta = json.loads((out / "report.meta.json").read_text("utf-8"))
        assert set(meta["not_compared"]) == {"date", "measured"}
        assert meta["models"]["sender"]["fingerprint"] == found.models["sender"]["fingerprint"]
        assert meta["warnings"] == list(found.warnings)
        assert [one["write"] for one in meta["recommended"]] == [one.write for one in found.recommended]

    def test_is_the_same_from_the_same_diagnosis(self, pair: tuple[Diagnosis, Path]) -> None:
        found, out = pair
        assert report_page(replace(found, seconds=1.0)).html() == (out / "report.html").read_text("utf-8")

    def test_every_figure_states_its_number_of_rows_and_maps_their_layers(self, pair: tuple[Diagnosis, Path]) -> None:
        found, out = pair
        figures = re.search(r"const figures = (.*);\n", Tags((out / "report.html").read_text("utf-8")).scripts[1])
        assert figures is not None
        layouts = [figure["layout"] for figure in json.loads(figures[1]).values()]
        heads = [re.sub(r"<[^>]*>", " ", layout["title"]["text"]) for layout in layouts]
        rows = [int(found.tables[name]["rows"].iloc[0]) for name in ("similarity", "predictability")]
        settings = found.settings
        held_out = f"{settings['reference_states_held_out']:,}"
        for head, number in zip(heads, [*rows, rows[1], held_out, held_out, settings["prompts"]], strict=True):
            assert re.search(rf"\b{number}\b", head), (head, number)
        for layout in layouts[:3]:
            assert layout["yaxis"]["title"]["text"] == "sender layer<br>upright"
            assert layout["xaxis"]["title"]["text"] == "receiver layer<br>turned"

    def test_the_receivers_own_states_stand_beside_the_flagged_ones(self, itself: tuple[Diagnosis, Path]) -> None:
        """A message that is the receiver's own state is flagged as often as the state itself: the same numbers."""
        found, out = itself
        same = found.cells[found.cells["fusion"] == "replace"]
        assert same["flagged_same"].tolist() == same["flagged_own"].tolist()
        own = float(same["flagged_own"].mean())
        assert found.settings["own_states_flagged"] == pytest.approx(own)
        words = Tags((out / "report.html").read_text("utf-8")).words
        assert f"the receiver's own states at the same positions: {own:.0%}" in words
        assert f"of its own at the same positions {own:.0%} are" in words

    def test_says_how_often_the_next_token_changes(self, pair: tuple[Diagnosis, Path]) -> None:
        effects = pair[0].effects
        big = effects[effects["kl"] > 1]
        changed = f"{1 - big['top1_agreement'].mean():.0%} of those above 1 (n = {len(big)})"
        assert len(big) and Tags((pair[1] / "report.html").read_text("utf-8")).words.count(changed) == 2

    def test_fusions_that_are_alike_are_not_ranked(self, pair: tuple[Diagnosis, Path]) -> None:
        alike = replace(pair[0], cells=pair[0].cells.assign(flagged_other=1.0))
        words = Tags(report_page(alike).html()).words
        assert "every fusion leaves as many states unlike the receiver's own (100%" in words and "strays" not in words
        assert "strays furthest" in Tags(report_page(pair[0]).html()).words

    def test_says_so_where_no_cell_qualifies(self, pair: tuple[Diagnosis, Path]) -> None:
        words = Tags(report_page(replace(pair[0], recommended=())).html()).words
        assert "None qualifies" in words and "No cell combines" in words

    def test_a_folder_that_cannot_be_made(self, pair: tuple[Diagnosis, Path], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RuntimeError, match="could not be written"):
            write_report(pair[0], tmp_path / "file" / "out")

    def test_all_text_is_escaped(self) -> None:
        page = Page("<b>", "<i>")
        page.heading("<x>")
        page.text("a < b & c")
        page.notes({"<n>": "<m>"})
        page.findings([("<q>", "<a>")])
        page.bullets(["<l>"])
        page.table(["<h>"], [["<r>", "<c>"]], caption="<k>")
        page.links({"<f>": "<w>"})
        page.figure(go.Figure(layout={"title": {"text": "</script><b>"}}))
        found = Tags(page.html())
        tags = set(found.tags)
        assert len(found.scripts) == 2 and "</script" not in found.scripts[1] and "figure-1" in found.scripts[1]
        assert not tags & {"b", "i", "x", "n", "m", "q", "l", "r", "c", "k", "f", "w"}

    def test_shades_run_from_white_up_and_no_further(self) -> None:
        assert shade(-1.0, 2.0) == shade(0.0, 2.0) == shade(5.0, 0.0) == "#ffffff"
        assert shade(2.0, 2.0) == shade(9.0, 2.0) != shade(1.0, 2.0)


CLEAN = Situation(
    identical=False,
    one_vocabulary=True,
    n_paired=500,
    n_sender=500,
    n_receiver=600,
    items_requested=3,
    items=3,
    documents_requested=25,
    documents=25,
    flagged_own=0.05,
)


class TestWarnings:
    """Each warning is there with its cause and not without."""

    @pytest.fixture
    def rows(self) -> Rows:
        return self.of(tiny.states(2, 500, 32, dtype=torch.float32))

    def of(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Rows:
        places = torch.arange(500) % 20
        y = tiny.states(3, 500, 32, seed=1, dtype=torch.float32) if y is None else y
        return ordinary_rows(
            x, y, document=torch.arange(500) // 20, sender_position=places, receiver_position=places, seed=0
        )

    def warnings(
        self, rows: Rows, *, model: Model | None = None, cells: tuple[ChosenCell, ...] = (), **changes: Any
    ) -> str:
        model = model or tiny.model("llama")
        found = warn(rows, model, model, replace(CLEAN, **changes), cells)
        assert len(found) <= 1
        return "".join(found)

    def test_a_pair_without_a_flaw_gets_none(self, rows: Rows) -> None:
        assert self.warnings(rows, cells=(ChosenCell(0, 0, 0.5, 0.0, False),)) == ""

    def test_identical_models(self, rows: Rows) -> None:
        assert "the same model" in self.warnings(rows, identical=True)

    def test_tokenizers_that_differ_with_the_share_of_rows(self, rows: Rows) -> None:
        text = self.warnings(rows, one_vocabulary=False, n_paired=400)
        assert "tokenizers differ" in text and "400 rows" in text and "80%" in text

    def test_few_rows_for_the_width(self, rows: Rows) -> None:
        text = self.warnings(rows, model=tiny.model("llama", d_model=64))
        assert "Few rows for the width" in text and f"{int(rows.fit.sum())} rows" in text and "64 wide" in text

    @pytest.mark.parametrize("side", ["sender", "receiver"])
    def test_massive_activations_with_their_side_and_number(self, side: str) -> None:
        x, y = tiny.states(2, 500, 32, dtype=torch.float32), tiny.states(3, 500, 32, seed=1, dtype=torch.float32)
        (x if side == "sender" else y)[1, 7] *= 100
        text = self.warnings(self.of(x, y), model=replace(tiny.model("llama"), name="~/somewhere/tiny-llama"))
        assert f"Massive activations in the {side} (tiny-llama)" in text and "1 row is more than 5 times" in text

    def test_a_sink_at_the_first_position_is_expected(self) -> None:
        x = tiny.states(2, 500, 32, dtype=torch.float32)
        x[:, ::20] *= 100
        rows = self.of(x)
        assert self.warnings(rows) == "" and rows.left_out == 25

    def test_processed_weights(self, rows: Rows) -> None:
        processed = tiny.build("llama")
        processed.hooked.enable_compatibility_mode(disable_warnings=True)
        assert "weights are processed" in self.warnings(rows, model=processed)

    def test_fewer_documents_than_requested(self, rows: Rows) -> None:
        assert "25 documents where 96 were requested" in self.warnings(rows, documents_requested=96)

    def test_fewer_prompts_than_requested(self, rows: Rows) -> None:
        assert "only 3 held-out prompts of 24" in self.warnings(rows, items_requested=24)

    def test_real_states_that_are_flagged_too_often(self, rows: Rows) -> None:
        text = self.warnings(rows, flagged_own=0.17, items=24, items_requested=24)  # 4 of 24 are one in forty by chance
        assert "17% of the receiver's own states" in text and "24 prompts" in text
        assert self.warnings(rows, flagged_own=0.16, items=24, items_requested=24) == ""
        assert self.warnings(rows, flagged_own=0.3, items=6, items_requested=6) == ""

    def test_layers_that_nothing_predicts(self, rows: Rows) -> None:
        text = self.warnings(rows, cells=(ChosenCell(0, 0, 0.5, 0.0, False), ChosenCell(0, 2, -0.1, 0.0, True)))
        assert "after layer 2 better" in text

    def test_a_run_warns_of_what_it_found(self, itself: tuple[Diagnosis, Path], pair: tuple[Diagnosis, Path]) -> None:
        assert ["same model" in one for one in itself[0].warnings] == [True]
        assert pair[0].warnings == ()


def cells_of(**columns: list[Any]) -> pd.DataFrame:
    """Cells that qualify but for what is given."""
    n = len(next(iter(columns.values())))
    common = {
        "fusion": ["replace"] * n, "read_layer": list(range(n)), "write_layer": list(range(n)), "by_depth": [False] * n,
        "r_squared": [0.5] * n, "r_squared_null": [-0.01] * n, "flagged_same": [0.0] * n, "kl_same": [0.1] * n,
        "kl_other": [2.0] * n, "n": [24] * n, "flagged_own": [0.04] * n,
        "contrast": [1.9] * n, "contrast_low": [1.0] * n, "contrast_high": [3.0] * n,
    }  # fmt: skip
    return pd.DataFrame(common | columns)


class TestRecommendation:
    def test_names_a_cell_of_each_fusion_the_clearest_contrast_first(self) -> None:
        found = recommend(cells_of(fusion=["a", "a", "b"], contrast_low=[0.5, 2.0, 1.0], contrast_high=[1.0, 3.0, 2.0]))
        assert [(one.fusion, one.write) for one in found] == [("a", 1), ("b", 2)]

    def test_of_equals_takes_the_shallower(self) -> None:
        assert recommend(cells_of(contrast_low=[1.0, 1.0]).iloc[::-1])[0].write == 0

    @pytest.mark.parametrize(
        "flaw",
        [{"by_depth": [True]}, {"flagged_same": [0.26]}, {"contrast_low": [0.09]}],
        ids=lambda flaw: next(iter(flaw)),
    )
    def test_passes_over_a_cell_with_a_flaw(self, flaw: dict[str, list[Any]]) -> None:
        assert recommend(cells_of(**flaw)) == ()

    def test_names_five_at_most_and_its_numbers(self) -> None:
        found = recommend(cells_of(fusion=list("abcdefg")))
        assert len(found) == 5
        for number in (
            "50%",
            " 0% when",
            "0.10 nats",
            "2.00",
            "interval 1.00 to 3.00",
            "4% of the receiver's own",
            "24 prompts",
        ):
            assert number in found[0].reason

    def test_a_cells_row_is_what_its_items_say(self) -> None:
        keys = {"fusion": "f", "read_layer": 1, "write_layer": 2}
        kl = {"same text": [0.0, 1.0, 2.0], "other text": [1.0, 2.0, 6.0], "random": [9.0, 9.0, 9.0]}
        percentile = {"same text": [0.6, 0.95, 0.2], "other text": [0.99, 0.96, 0.1], "random": [1.0, 1.0, 1.0]}
        effects = [
            {**keys, "message": name, "item": item, "kl": value, "entropy_change": 0.0, "top1_agreement": value < 1.5}
            for name, values in kl.items()
            for item, value in enumerate(values)
        ]
        drift = [
            {**keys, "message": name, "item": item, "detector": detector, "percentile": value}
            for name, values in percentile.items()
            for item, value in enumerate(values)
            for detector in (COMBINED, "norm_ratio")
        ]
        cell, own = ChosenCell(1, 2, 0.5, 0.1, False), {2: np.array([0.95, 0.1, 0.3])}
        (row,) = cell_table(pd.DataFrame(drift), pd.DataFrame(effects), [cell], own=own).to_dict("records")
        assert row["n"] == 3 and row["flagged_own"] == pytest.approx(1 / 3)
        assert (row["kl_same"], row["kl_other"], row["kl_random"]) == (1.0, 2.0, 9.0)
        assert row["flagged_same"] == pytest.approx(1 / 3) and row["flagged_other"] == pytest.approx(2 / 3)
        assert row["percentile_same"] == 0.6 and row["top1_same"] == pytest.approx(2 / 3)
        assert row["contrast"] == pytest.approx(2.0) and row["contrast_low"] == 1.0 and row["contrast_high"] == 4.0


class TestChosenCells:
    def table(self, forward: dict[tuple[int, int], float], null: float = 0.0) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {"sender_layer": k, "receiver_layer": j, "forward": value, "forward_null": null}
                for (k, j), value in forward.items()
            ]
        )

    def test_the_most_predictive_sender_layer_is_read(self) -> None:
        table = self.table({(0, 0): 0.2, (4, 0): 0.6, (8, 0): 0.6, (0, 3): 0.1, (4, 3): 0.0, (8, 3): -0.5})
        found = choose_cells(table, n_sender=9, n_receiver=4)
        assert [(cell.read, cell.write, cell.by_depth) for cell in found] == [(4, 0, False), (0, 3, False)]

    def test_the_same_depth_where_nothing_is_above_the_null(self) -> None:
        table = self.table({(k, j): 0.01 for k in (0, 4, 8) for j in (0, 2, 3)}, null=0.02)
        found = choose_cells(table, n_sender=9, n_receiver=4)
        assert [(cell.read, cell.write, cell.by_depth) for cell in found] == [(0, 0, True), (4, 2, True), (8, 3, True)]
        negative = self.table({(0, 0): -0.01}, null=-0.02)
        assert choose_cells(negative, n_sender=1, n_receiver=1)[0].by_depth
