"""Answers that begin with the same token for a reader are never choices of one item, and stop no run."""

import pytest
from seeing import noise

from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import Question, distinct_choices, picture_task
from latentcomm.tasks.base import Task, draw_choices

SAME = ("Niger", "Nigeria", "Peru", "Poland", "Chad")


def first_letter(choice: str) -> int:
    return ord(choice[1])


def flag_task(names: tuple[str, ...]) -> Task:
    pictures = tuple(Picture(name, noise(place), name, {"name": name}) for place, name in enumerate(names))
    return picture_task(PictureSet("flags", pictures), Question("identity", "It is the flag of", "name"))


def test_few_answers_with_shared_first_tokens_leave_a_choice_a_token() -> None:
    task = flag_task(SAME)
    with pytest.raises(ValueError, match="only 3 of 5 choices"):
        draw_choices(task, first_letter, seed=0)
    distinct = distinct_choices(task, first_letter)
    drawn = draw_choices(distinct, first_letter, seed=0)
    for item, choices in zip(distinct.items, drawn, strict=True):
        assert item.choice in choices and {first_letter(choice) for choice in choices} == set(map(ord, "NPC"))
        assert len(choices) == 3
    assert distinct_choices(task, first_letter).items == distinct.items


def test_more_than_twenty_answers_with_fewer_first_tokens_are_drawn_from() -> None:
    names = tuple(f"{letter}{number}" for letter in "ABCDEFGHIJ" for number in range(3))
    assert {
        len(choices) for choices in draw_choices(distinct_choices(flag_task(names), first_letter), first_letter, seed=0)
    } == {10}
    many = flag_task(tuple(f"{chr(65 + place)}x" for place in range(26)))
    assert distinct_choices(many, first_letter) is many  # 20 of 26 are drawn as ever
    few = flag_task(("Ax", "Bx", "Cx"))
    assert distinct_choices(few, first_letter) is few


def test_answers_that_all_begin_alike_are_refused_in_one_sentence() -> None:
    with pytest.raises(
        ValueError,
        match=r"begin with the same token for this receiver, as do Niger and Nigeria; leave the question out",
    ):
        distinct_choices(flag_task(("Niger", "Nigeria")), first_letter)
