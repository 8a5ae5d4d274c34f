"""People: what each side reads, what counts as right, and records that could not be asked about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentcomm.experiments.controls import deranged
from latentcomm.tasks import Begins, Contains, biographies
from latentcomm.tasks.biographies import OWN_PEOPLE

PERSON: dict[str, Any] = {
    "name": "Ida Moor",
    "facts": ["Ida Moor was born in Ghent.", "She built 12 bridges."],
    "questions": [
        {"question": "In which town was {name} born?", "answers": ["Ghent", "Gent"]},
        {"question": "How many bridges did Ida Moor build?", "answers": ["12", "twelve"]},
    ],
}


def write(folder: Path, *people: object) -> Path:
    path = folder / "people.jsonl"
    path.write_text("".join(json.dumps(person) + "\n" for person in people), "utf-8")
    return path


class TestTheTask:
    def test_the_sender_reads_the_facts_and_the_receiver_only_the_question(self, tmp_path: Path) -> None:
        item = biographies(write(tmp_path, PERSON)).items[0]
        assert item.sender == "Ida Moor was born in Ghent. She built 12 bridges."
        assert item.receiver == "Q: In which town was Ida Moor born?\nA:"
        assert item.skyline == f"{item.sender}\n\n{item.receiver}"
        assert (item.answers, item.tags["name"]) == (("Ghent", "Gent"), "Ida Moor")

    def test_a_primed_sender_ends_in_the_receivers_text(self, tmp_path: Path) -> None:
        for template in ("raw", "chat"):
            item = biographies(write(tmp_path, PERSON), template=template, sender_form="primed").items[1]
            assert item.sender == item.skyline and item.sender.endswith(item.receiver)
        assert item.receiver == "How many bridges did Ida Moor build? Answer in a few words."

    def test_an_answer_anywhere_in_the_reply_is_right(self, tmp_path: Path) -> None:
        task = biographies(write(tmp_path, PERSON))
        assert task.judge(" in Gent, I think", task.items[0].answers).is_right
        assert not task.judge(" in Antwerp", task.items[0].answers).is_right
        assert not task.judge(" ", task.items[0].answers).is_parsed

    def test_a_whole_biography_must_mention_every_answer(self, tmp_path: Path) -> None:
        task = biographies(write(tmp_path, PERSON), asked="biography")
        assert len(task.items) == 1 and task.items[0].answers == ("Ghent|Gent", "12|twelve")
        assert task.items[0].receiver == "Write a short biography of Ida Moor.\nBiography:"
        assert task.judge("Ida came from Ghent and built twelve bridges.", task.items[0].answers).is_right
        assert not task.judge("Ida came from Ghent.", task.items[0].answers).is_right

    def test_another_judge_can_be_given(self, tmp_path: Path) -> None:
        assert biographies(write(tmp_path, PERSON), judge=Begins()).judge == Begins()
        assert biographies(write(tmp_path, PERSON)).judge == Contains()

    def test_the_settings_name_the_file_and_its_content(self, tmp_path: Path) -> None:
        one, other = biographies(write(tmp_path, PERSON)), biographies()
        assert one.settings["source"] == "people.jsonl"
        assert one.settings["sha256"] != other.settings["sha256"]


class TestOwnPeople:
    def test_there_are_about_twenty_with_three_questions_each(self) -> None:
        task = biographies()
        assert len({item.tags["name"] for item in task.items}) == 22 and len(task.items) == 66

    def test_no_question_tells_its_answer_and_every_sender_knows_it(self) -> None:
        judge = Contains()
        for item in biographies().items:
            assert not judge(item.receiver, item.answers).is_right
            assert judge(item.sender, item.answers[:1]).is_right, item

    def test_facts_do_not_answer_the_question_of_another_person_by_kind(self) -> None:
        """No answer is the rule: the commonest one holds for a few items only."""
        answers = [item.answers[0] for item in biographies().items]
        assert max(map(answers.count, answers)) <= 2

    def test_every_fact_is_a_sentence(self) -> None:
        for line in OWN_PEOPLE.read_text("utf-8").splitlines():
            person = json.loads(line)
            assert all(fact[0].isupper() and fact.endswith(".") for fact in person["facts"])
            assert all(each["question"].endswith("?") for each in person["questions"])


def changed(**more: object) -> dict[str, Any]:
    return PERSON | more


def question(**more: object) -> dict[str, Any]:
    return changed(questions=[PERSON["questions"][0] | more])


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("person", "message"),
        [
            (changed(name=" "), "line 2 .* has an empty name"),
            (changed(name=5), "line 2 .* has the name 5, which is no text"),
            (changed(facts=[]), "line 2 .* has the facts"),
            (changed(facts="Born in Ghent."), "line 2 .* has the facts 'Born"),
            (changed(facts=["Ghent.", ""]), "line 2 .* has an empty facts"),
            (changed(facts=["Ghent.", "Ghent."]), "line 2 .* twice"),
            (changed(questions=[]), r"line 2 .* has the questions \[\]"),
            (changed(questions=["Where?"]), "question 1 in line 2 .* is 'Where"),
            (changed(questions=PERSON["questions"] * 2), "line 2 .* has the question .* twice"),
            (question(question=None), "question 1 in line 2 .* has no 'question'"),
            (question(answers=[]), "question 1 in line 2 .* has the answers"),
            (question(answers=["Ghent", "Ghent"]), "question 1 in line 2 .* twice"),
            (question(answers=["Ghent|Gent"]), "no stroke"),
            (question(answers=["..."]), "give letters or digits"),
            (question(question="In which town was she born?"), "question 1 in line 2 .* does not name Ida Moor"),
            (question(question="Was {name} born in Ghent?"), "gives its answer 'Ghent' away"),
            (question(answers=["Antwerp"]), "question 1 in line 2 .* answers that no fact mentions"),
            ({"facts": ["a"]}, "line 2 .* has no 'name', only 'facts'"),
        ],
    )
    def test_the_line_and_the_reason_are_told(self, person: object, message: str, tmp_path: Path) -> None:
        first = {"name": "Bo", "facts": ["Bo is 5."], "questions": [{"question": "How old is Bo?", "answers": ["5"]}]}
        with pytest.raises(ValueError, match=message) as caught:
            biographies(write(tmp_path, first, person))
        assert "\n" not in str(caught.value)

    def test_a_person_who_comes_twice_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"line 2 of people\.jsonl repeats the name of line 1"):
            biographies(write(tmp_path, PERSON, changed(name="IDA MOOR", questions=question()["questions"])))

    @pytest.mark.parametrize("spoil", [lambda text: "", lambda text: text[: len(text) // 2], lambda text: f"[{text}]"])
    def test_a_file_that_is_cut_or_wrapped_is_refused(self, spoil: Callable[[str], str], tmp_path: Path) -> None:
        path = write(tmp_path, PERSON)
        path.write_text(spoil(path.read_text("utf-8").strip()), "utf-8")
        with pytest.raises(ValueError, match=r"is empty|line 1 of people\.jsonl"):
            biographies(path)


def test_nobody_is_in_both_halves_or_gets_a_message_on_the_same_person() -> None:
    for seed in range(5):
        tune, test = biographies().split(seed=seed)
        names = [{item.tags["name"] for item in half.items} for half in (tune, test)]
        assert not names[0] & names[1]
        order = deranged(test, seed=seed)
        assert sorted(order) == list(range(len(test.items)))
        for item, other in zip(test.items, (test.items[row] for row in order), strict=True):
            assert item.sender != other.sender and item.answers[0] != other.answers[0]
