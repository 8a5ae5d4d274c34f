"""`latentcomm crossmodal` as its user meets it."""

import json
from pathlib import Path

import pandas as pd
import pytest
from commands import Ended, last_line, listed_files, run
from seeing import encoder_folder, picture_folder, reader_folder
from test_cli_compare import WRITTEN
from tiny import files_in
from toys import Counter, interrupted

from latentcomm.experiments import evaluation
from latentcomm.experiments.crossmodal.report import crossmodal_figure
from latentcomm.reporting.publish import check_replot

FEW = ("--n-fitting", "30", "--n-test", "6", "--reply-tokens", "1", "--vision-steps", "3")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reader_folder(tmp_path_factory.mktemp("models") / "tiny-reader")


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("models") / "tiny-vit")


def crossmodal(reader: Path, out: Path, *more: str | Path, channels: str = "skyline,soft-prompt,caption") -> Ended:
    chosen = ("--channels", channels) if channels else ()
    return run("crossmodal", "--receiver", reader, *FEW, *chosen, "--name", "c", "--out", out, *more)


def written(folder: Path) -> list[str]:
    return files_in(folder)


def test_digits_need_no_other_encoder_and_every_question_is_in_one_table(reader: Path, tmp_path: Path) -> None:
    result = crossmodal(reader, tmp_path, channels="")
    assert result.exit_code == 0, result.output
    assert written(tmp_path) == WRITTEN == listed_files(result.stdout)
    table = pd.read_csv(tmp_path / "c.csv")
    assert set(table["type"]) == {"identity", "category", "colour", "count", "position"}
    assert set(table["channel"]) == {
        "silent", "skyline", "soft_prompt", "graft", "caption", "caption_by_map", "caption_by_word",
        "probe", "random_encoder", "graft_random_encoder", "shuffled_names", "graft_shuffled_names",
    }  # fmt: skip
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()
    check_replot("c", tmp_path, crossmodal_figure)
    meta = json.loads((tmp_path / "c.meta.json").read_text("utf-8"))
    assert meta["settings"]["vision_steps"] == 3 and meta["settings"]["pooling"]["digits"] == "class"
    assert meta["models"]["vision"]["name"] == "small-vit-0" and set(meta["settings"]["chosen"]) == {
        "digits", "composed digits",
    }  # fmt: skip
    assert str(reader) not in json.dumps(meta)
    assert "colour" in result.stdout and "soft prompt" in result.stdout and "McNemar" in result.stdout
    assert "probe" in result.stdout and "it has no receiver" in " ".join(result.stdout.split())


def test_after_ctrl_c_the_same_command_resumes_as_one_run(
    reader: Path, eye: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--vision", eye, "--data", picture_folder(tmp_path / "pictures"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert crossmodal(reader, whole, *options).exit_code == 0
    total = Counter(evaluation.decode)
    interrupted(monkeypatch, evaluation, "decode", at=5)
    stopped = crossmodal(reader, parts, *options)
    assert stopped.exit_code == 130 and "the same command resumes it" in last_line(stopped.stderr)
    assert written(parts) == []
    monkeypatch.setattr(evaluation, "decode", total)
    assert crossmodal(reader, parts, *options).exit_code == 0
    first, second = (pd.read_csv(each / "c.csv") for each in (whole, parts))
    pd.testing.assert_frame_equal(first, second)
    assert total.calls == 48 - 4  # parts, questions; silence, skyline, the caption twice, the soft prompt four times
    assert crossmodal(reader, parts, *options).exit_code == 0
    assert total.calls == 48 - 4


def test_what_decides_the_numbers_is_in_the_settings(reader: Path, eye: Path, tmp_path: Path) -> None:
    place = picture_folder(tmp_path / "pictures")
    (place / "pictures" / "2.png").write_bytes((place / "pictures" / "3.png").read_bytes())
    (place / "pictures" / "5.png").write_text("no picture")
    options = ("--vision", eye, "--data", place, "--skip-unreadable", "--n-pictures", "14", "--composed")
    result = crossmodal(reader, tmp_path / "out", *options, "--pooling", "patches", channels="silent")
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "out" / "c.meta.json").read_text("utf-8"))["settings"]
    assert settings["skip_unreadable"] is True and settings["n_pictures"] == 14
    assert settings["left_out"] == ["Greece", "France"] and settings["vision_steps"] is None
    assert settings["pooling"] == {
        "pictures, other views": "patches", "pictures, new pictures": "patches",
        "pictures, counted": "patches 2 x 2", "pictures, recoloured": "patches",
    }  # fmt: skip
    table = pd.read_csv(tmp_path / "out" / "c.csv")
    assert set(table["type"]) == {"identity", "category", "count", "colour"}


def test_a_folder_is_asked_about_other_views_and_new_pictures(reader: Path, eye: Path, tmp_path: Path) -> None:
    result = crossmodal(reader, tmp_path / "out", "--vision", eye, "--data", picture_folder(tmp_path / "pictures"))
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "c.csv")
    assert set(table["part"]) == {"pictures, other views", "pictures, new pictures"}
    assert set(table["question"]) == {"name", "capital", "region"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "nowhere"), "name one as sender"),
        (("--data", "nowhere", "--vision", "EYE"), "no table.csv or table.json in nowhere"),
        (("--vision", "nothing/here"), "there is no model 'nothing/here'"),
        (("--channels", "smoke"), "no channel for pictures 'smoke'"),
        (("--block", "9"), "block 9 is outside"),
        (("--vision", "EYE", "--dtype", "float16"), "encoders run in float32 or bfloat16"),
        (("--name", "a/b"), "give a plain file name"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_writes_nothing(
    arguments: tuple[str, ...], sentence: str, reader: Path, eye: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(eye) if each == "EYE" else each for each in arguments]
    result = crossmodal(reader, tmp_path / "out", *given)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert sentence in last_line(result.stderr)
    assert written(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("--write-layer", "9"), "layer 9 is outside"), (("--receiver", "nobody/here"), "nobody")],
)
def test_receiver_and_write_layer_are_checked_before_any_training(
    arguments: tuple[str, ...], sentence: str, reader: Path, tmp_path: Path
) -> None:
    result = crossmodal(reader, tmp_path / "out", *arguments)
    assert result.exit_code == 1 and sentence in last_line(result.stderr)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_read_is_skipped_only_if_asked(reader: Path, eye: Path, tmp_path: Path) -> None:
    place = picture_folder(tmp_path / "pictures")
    (place / "pictures" / "2.png").write_text("no picture")
    options = ("--vision", eye, "--data", place)
    refused = crossmodal(reader, tmp_path / "out", *options, channels="silent")
    assert refused.exit_code == 1 and "2.png cannot be read" in last_line(refused.stderr)
    assert crossmodal(reader, tmp_path / "out", *options, "--skip-unreadable", channels="silent").exit_code == 0
