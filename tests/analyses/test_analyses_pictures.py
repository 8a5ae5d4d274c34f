"""The figures of pictures (12 to 14) run small and are drawn again from their data."""

import dataclasses
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from seeing import NAMED, encoder_folder, picture_folder, reader_folder
from test_analyses import ENDINGS, ROOT, call, plots, script
from tiny import files_in

from latentcomm.experiments.crossmodal.picture_folder import folder_parts
from latentcomm.reporting.publish import check_replot

NAMES = ("fig12_crossmodal", "fig13_block_layer_map", "fig14_training_pairs")
PATHS = [ROOT / "analyses" / f"{name}.py" for name in NAMES]
every_script = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reader_folder(tmp_path_factory.mktemp("models") / "tiny-reader")


def small(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with as few updates of the small encoder as can be."""
    module = script(path)
    monkeypatch.setattr(module, "SMOKE", dataclasses.replace(module.SMOKE, vision_steps=2))
    return module


@every_script
def test_digits_are_published_and_redrawn_without_a_model(
    path: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small(path, monkeypatch)
    call(module, monkeypatch, "--smoke", "--out", tmp_path, "--receiver", reader)
    name = f"{module.NAME}_digits"
    assert [each for each in files_in(tmp_path) if ".unfinished" not in each] == sorted(name + end for end in ENDINGS)
    check_replot(name, tmp_path, plots(module)[name])
    meta = json.loads((tmp_path / f"{name}.meta.json").read_text("utf-8"))
    assert meta["settings"]["vision"] == "small-vit-0" and meta["settings"]["receiver"] == "tiny-reader"
    before = (tmp_path / f"{name}.json").read_bytes()
    (tmp_path / f"{name}.json").unlink()
    call(module, monkeypatch, "--replot", "--out", tmp_path)
    assert (tmp_path / f"{name}.json").read_bytes() == before


def test_a_folder_is_seen_by_the_encoder_that_is_named(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small(PATHS[0], monkeypatch)
    pictures, eye = picture_folder(tmp_path / "some folder"), encoder_folder(tmp_path / "tiny-vit")
    (pictures / "pictures" / "2.png").write_bytes((pictures / "pictures" / "3.png").read_bytes())
    told = ("--data", "flags", "--folder", pictures, "--vision", eye, "--receiver", reader, "--pooling", "patches")
    call(module, monkeypatch, "--smoke", "--out", tmp_path / "out", *told)
    table = pd.read_csv(tmp_path / "out" / "fig12_crossmodal_flags.csv")
    assert set(table["part"]) == {"flags, other views", "flags, new pictures"}
    assert set(table["question"]) == {"country", "capital", "region"}
    meta = (tmp_path / "out" / "fig12_crossmodal_flags.meta.json").read_text("utf-8")
    assert str(tmp_path) not in meta
    said = json.loads((tmp_path / "out" / "fig12_crossmodal_flags.json").read_text("utf-8"))["layout"]["title"]["text"]
    assert "those of other views are the drawings of the fitting pictures" in " ".join(
        re.sub("<[^>]*>", " ", said).split()
    )
    assert json.loads(meta)["settings"]["pooling"]["flags, other views"] == ["patches", 1]
    assert json.loads(meta)["settings"]["left_out"] == ["Greece"]


def test_more_pairs_are_another_row_of_the_same_channels(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small(PATHS[2], monkeypatch)
    call(module, monkeypatch, "--smoke", "--out", tmp_path, "--receiver", reader)
    table = pd.read_csv(tmp_path / "fig14_training_pairs_digits.csv")
    assert set(table["pairs"]) == set(table["names"]) == {15, 30}  # a scan has one picture
    assert set(table["condition"]) == {"message", "shuffled", "zero", "random"}
    data = json.loads((tmp_path / "fig14_training_pairs_digits.json").read_text("utf-8"))["data"]
    assert "the same, shuffled picture" in {trace["name"] for trace in data}
    assert set(table["channel"]) == {"silent", *module.SMOKE.channels}
    assert (table.groupby("part")["block"].nunique() == 1).all()  # chosen once, on all pairs


def test_names_are_drawn_with_all_their_pictures(tmp_path: Path) -> None:
    module = script(PATHS[2])
    for part, each in zip(
        folder_parts(picture_folder(tmp_path / "a"), n_views=4, fitting_share=0.5), (3, 3), strict=True
    ):
        order = module.drawn_names(part.fitting, 0)
        assert sorted(order) == sorted({view.facts["name"] for view in part.fitting})
        few = module.of_names(part.fitting, order[:5])
        assert len(few) == 5 * each and {view.facts["name"] for view in few} == set(order[:5])
    assert module.drawn_names(part.fitting, 1) != order


def test_emoji_are_also_counted_and_recoloured_from_all_that_are_plain(tmp_path: Path) -> None:
    script(PATHS[0])
    import pictures

    rows = [{"file": f"{place}.png", "name": row["name"], "category": "Food"} for place, row in enumerate(NAMED)]
    rows[3]["category"] = "Animals"
    parts = pictures.parts_of(
        "emoji", str(picture_folder(tmp_path / "b", rows)), n_fitting=8, n_composed=20, n_pictures=10, seed=0
    )
    assert [part.name for part in parts] == [
        "emoji, other views", "emoji, new pictures", "emoji, counted", "emoji, recoloured",
    ]  # fmt: skip
    assert [{question.type for question in part.questions} for part in parts[2:]] == [{"count"}, {"colour"}]
    assert len(parts[0].testing) == 10
    assert (
        len({each.facts["name"] for part in parts[2:3] for side in (part.fitting, part.testing) for each in side}) == 16
    )
