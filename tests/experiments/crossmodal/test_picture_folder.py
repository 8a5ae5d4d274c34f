"""A folder of pictures with a table becomes parts that separate names; errors in the table are reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeing import NAMED as ROWS
from seeing import noise
from seeing import picture_folder as folder

from latentcomm.experiments.crossmodal.picture_folder import (
    COLUMN_QUESTIONS,
    counted_part,
    folder_parts,
    folder_questions,
    read_folder,
    read_table,
    recoloured_part,
    views,
)
from latentcomm.experiments.crossmodal.pictures import Picture
from latentcomm.experiments.crossmodal.questions import Question, picture_task


def test_csv_and_json_say_the_same_and_lists_are_answers_of_equal_worth(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "one"), folder(tmp_path / "two", table="table.csv")
    assert read_table(first) == read_table(second)
    assert read_table(first)[0]["capital"] == "Peru city|Peru town"
    pictures = read_folder(first)
    assert [each.caption for each in pictures] == [row["name"] for row in ROWS]
    task = picture_task(pictures, folder_questions(pictures)[1])
    assert task.items[0].answers == ("Peru city", "Peru town") and task.items[0].choice == " Peru city"
    assert read_folder(first, n_pictures=3, seed=1).fingerprint == read_folder(first, n_pictures=3, seed=1).fingerprint
    assert len(read_folder(first, n_pictures=3)) == 3
    assert read_folder(first, caption="the flag of {name}")["0.png"].caption == "the flag of Peru"


def test_questions_are_of_columns_with_at_least_two_answers(tmp_path: Path) -> None:
    pictures = read_folder(folder(tmp_path))
    questions = folder_questions(pictures)
    assert [(each.name, each.type) for each in questions] == [
        ("name", "identity"), ("capital", "identity"), ("region", "category"),
    ]  # fmt: skip
    assert questions[2].answers == ("north", "south")
    assert all(column == question.fact for column, question in COLUMN_QUESTIONS.items())
    own = folder_questions(pictures, [Question("category", "It lies in the", "region")])
    assert own[0].answers == ("north", "south")
    with pytest.raises(ValueError, match="have two different answers to no question"):
        folder_questions(pictures, [Question("colour", "Its colour is", "colour")])


def test_views_are_others_of_the_same_thing(tmp_path: Path) -> None:
    picture = Picture("a", noise(0, 40, 30), "a", {"identity": "a"})
    made = views(picture, n=3)
    assert len({each.image.tobytes() for each in (*made, picture)}) == 4
    assert {each.caption for each in made} == {"a"} and len({each.group for each in made}) == 3
    assert all(32 <= each.image.width <= 40 and 24 <= each.image.height <= 30 for each in made)
    assert [each.image.tobytes() for each in views(picture, n=3)] == [each.image.tobytes() for each in made]


def test_no_view_is_on_both_sides_and_of_new_pictures_no_name(tmp_path: Path) -> None:
    seen, new = folder_parts(folder(tmp_path), n_views=3, fitting_share=0.5)
    assert (len(seen.fitting), len(seen.testing)) == (32, 16)
    assert not {each.id for each in seen.fitting} & {each.id for each in seen.testing}
    assert {each.caption for each in seen.fitting} == {each.caption for each in seen.testing}
    assert (len(new.fitting), len(new.testing)) == (16, 8)
    assert not {each.caption for each in new.fitting} & {each.caption for each in new.testing}
    assert {each.caption for each in new.testing} <= set(new.captions)
    assert len({each.group for each in new.fitting}) == 8  # views of one picture part on no choice, either
    assert new.questions[0].answers == tuple(sorted(row["name"] for row in ROWS))


def test_of_equal_pictures_one_remains_and_the_others_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(tmp_path / "flags")
    assert read_folder(place).left_out == () and "left out" not in capsys.readouterr().err
    for copy in (5, 12):  # France and Cuba look as Peru does, Spain as Italy
        noise(0, 24, 16).save(place / "pictures" / f"{copy}.png")
    noise(1, 24, 16).save(place / "pictures" / "6.png")
    pictures = read_folder(place)
    assert set(pictures.left_out) == {"France", "Cuba", "Spain"}
    assert "left out 3 of 16 pictures" in (printed := capsys.readouterr().err) and "France" in printed
    names = [each.facts["name"] for each in pictures]
    assert {"Peru", "Italy"} <= set(names) and len(names) == 13
    assert len({each.image.tobytes() for each in pictures}) == 13
    assert len(read_folder(place, n_pictures=13)) == 13  # drawn from those that differ
    for part in folder_parts(place):
        sides = [{each.image.tobytes() for each in side} for side in (part.fitting, part.testing)]
        assert not sides[0] & sides[1]
        assert part.fitting.left_out == pictures.left_out


def test_what_is_counted_is_there_as_often_and_no_name_on_both_sides(tmp_path: Path) -> None:
    part = counted_part(read_folder(folder(tmp_path)), n_fitting=12, n_testing=8)
    assert not {each.facts["name"] for each in part.fitting} & {each.facts["name"] for each in part.testing}
    for picture in part.testing:
        pixels = np.asarray(picture.image)
        filled = [(pixels[24 * (c // 2) :][:24, 24 * (c % 2) :][:, :24] != 255).any() for c in range(4)]
        assert ("one", "two", "three", "four")[sum(filled) - 1] == picture.facts["count"]
        assert picture.caption == f"{picture.facts['count']} {picture.facts['name']}"
    assert {each.facts["count"] for each in part.testing} == {"one", "two", "three", "four"}


@pytest.mark.parametrize("make", [counted_part, recoloured_part])
def test_of_composed_pictures_every_thing_is_tested_once_and_is_its_group(make: Any, tmp_path: Path) -> None:
    pictures = read_folder(folder(tmp_path))
    part = make(pictures, n_fitting=30, n_testing=100)
    names = [each.facts["name"] for each in part.testing]
    assert len(set(names)) == len(names) == 5  # of sixteen things three tenths, each once
    assert len(part.fitting) == 30 and len({each.group for each in part.fitting}) == 11
    assert all(each.group == f"name {each.facts['name']}" for each in (*part.fitting, *part.testing))
    assert make(pictures, n_fitting=30, n_testing=100).fitting.fingerprint == part.fitting.fingerprint
    assert make(pictures, n_fitting=30, n_testing=100, seed=1).fitting.fingerprint != part.fitting.fingerprint


def test_the_colour_in_question_is_drawn_visible_and_in_no_name(tmp_path: Path) -> None:
    rows = [*ROWS, {"file": "16.png", "name": "red Apple"}, {"file": "17.png", "name": "apple"}]
    part = recoloured_part(read_folder(folder(tmp_path, rows)), n_fitting=120, n_testing=20)
    (question,) = part.questions
    assert question.type == "colour" and set(question.answers) == {each.facts["colour"] for each in part.fitting}
    assert (
        len(
            {
                each.facts["colour"]
                for each in part.fitting
                if each.facts["name"] == part.fitting.pictures[0].facts["name"]
            }
        )
        > 1
    )
    for picture in (*part.fitting, *part.testing):
        ink, name = picture.facts["colour"], picture.facts["name"]
        assert picture.caption == f"{ink} {name}" and name != "red Apple"
        red, green, blue = np.asarray(picture.image).reshape(-1, 3).mean(0)
        order = {
            "red": red > max(green, blue), "green": green > max(red, blue), "blue": blue > max(red, green),
            "yellow": min(red, green) > blue, "purple": min(red, blue) > green, "orange": red > green > blue,
        }  # fmt: skip
        assert order[ink], (ink, red, green, blue)
    assert {each.facts["name"] for each in (*part.fitting, *part.testing)} >= {"apple", "Peru"}


def test_an_unreadable_picture_is_reported_and_skipped_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(tmp_path)
    (place / "pictures" / "3.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"3.png cannot be read"):
        read_folder(place)
    assert len(read_folder(place, skip_unreadable=True)) == 15
    assert "3.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "holds no rows"),
        ([{"name": "Peru"}], "row 1 of .* has no file"),
        ([{"file": "0.png", "name": ""}], "row 1 of .* has no name"),
        ([ROWS[0], ROWS[0]], "names the file '0.png' twice"),
    ],
)
def test_a_table_that_says_too_little_is_refused(rows: list[dict[str, Any]], why: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(rows), "utf-8")
    with pytest.raises(ValueError, match=why):
        read_table(tmp_path)


def test_a_folder_without_a_table_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no table.csv or table.json"):
        read_table(tmp_path / "nowhere")
    (tmp_path / "table.json").write_text("[{", "utf-8")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_table(tmp_path)
    with pytest.raises(ValueError, match="leaves no view for testing"):
        folder_parts(folder(tmp_path / "whole"), n_views=1)
    with pytest.raises(ValueError, match="which the caption"):
        read_folder(tmp_path / "whole", caption="{colour}")
    for caption in ("{0}", "{}", "{name", "{name.size}"):
        with pytest.raises(ValueError, match=r"cannot be filled in .*; name columns in braces"):
            read_folder(tmp_path / "whole", caption=caption)


def test_a_question_that_one_side_cannot_answer_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = read_folder(folder(tmp_path))
    _, new = full.split(seed=0, fraction=0.7)
    some_facts = {new.pictures[0].id: {"capital": "Lima"}} | {
        each.id: {"capital": f"{each.id} city"} for each in full if each.id not in {other.id for other in new}
    }  # of the new pictures one alone has a capital
    facts = {
        each.id: {"name": each.facts["name"], "region": each.facts["region"], **some_facts.get(each.id, {})}
        for each in full
    }
    some = replace(full, pictures=tuple(replace(each, facts=facts[each.id]) for each in full))
    others, unseen = folder_parts(some)
    assert [each.name for each in others.questions] == ["name", "capital", "region"]
    assert [each.name for each in unseen.questions] == ["name", "region"]
    assert "new pictures: left out the questions capital" in capsys.readouterr().err
    alone = replace(full, pictures=tuple(replace(each, facts=some_facts.get(each.id, {})) for each in full))
    with pytest.raises(ValueError, match="no question has answers on both sides"):
        folder_parts(alone)


def test_a_picture_that_was_skipped_is_among_those_left_out(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "pictures" / "2.png").write_text("no picture")
    assert read_folder(place, skip_unreadable=True).left_out == (ROWS[2]["name"],)
