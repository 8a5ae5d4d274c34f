"""Lettered questions: their formats, subjects and repeats."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from latentcomm.tasks import draw_choices, mmlu

QUESTIONS = [
    ("What is two and two?", ["3", "4", "5", "6"], 1),
    ("Which is red?", ["grass", "sky", "snow", "blood"], 3),
    ("Which one flies?\nTake your time.", ['a "crow"', "a cow", "a cat, or two", "a cod"], 0),
]
SHOTS = [(f"Shot {n}?", ["a", "b", "c", "d"], n % 4) for n in range(5)]


def with_header(path: Path, rows: list[tuple[str, list[str], int]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
        writer.writerows([question, *choices, answer] for question, choices, answer in rows)
    return path


def as_published(path: Path, rows: list[tuple[str, list[str], int]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([question, *choices, "ABCD"[answer]] for question, choices, answer in rows)
    return path


def as_lines(path: Path, rows: list[tuple[str, list[str], int]], **more: str) -> Path:
    records = ({"question": q, "choices": c, "answer": a, **more} for q, c, a in rows)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with_header(tmp_path / "tests_test.csv", QUESTIONS)
    with_header(tmp_path / "tests_dev.csv", SHOTS)
    return tmp_path


class TestTheTask:
    def test_everybody_reads_the_question_with_its_lettered_choices(self, folder: Path) -> None:
        item = mmlu(folder, subjects=("tests",)).items[0]
        assert item.sender == item.receiver == item.skyline
        assert item.receiver == (
            "The following is a question about tests.\n\n"
            "Question: What is two and two?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
        )
        assert (item.answers, item.choice, item.tags["subject"]) == (("B",), " B", "tests")

    def test_the_letters_are_the_choices_that_are_scored(self, folder: Path) -> None:
        task = mmlu(folder, subjects=("tests",))
        drawn = draw_choices(task, lambda choice: ord(choice.strip()), seed=0)
        assert [set(choices) for choices in drawn] == [{" A", " B", " C", " D"}] * 3
        chat = mmlu(folder, subjects=("tests",), template="chat")
        assert chat.items[0].candidates == ("A", "B", "C", "D") and chat.items[0].choice == "B"
        assert chat.items[0].receiver.endswith("Answer with the letter of the right choice only.")

    def test_replies_are_judged_by_their_letter(self, folder: Path) -> None:
        task = mmlu(folder, subjects=("tests",))
        assert task.judge(" B", task.items[0].answers).is_right
        assert not task.judge(" D", task.items[0].answers).is_right
        assert not task.judge("A cow, I think", task.items[0].answers).is_parsed

    def test_every_format_gives_the_same_items(self, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        wanted = mmlu(folder, subjects=("tests",)).items
        published = tmp_path_factory.mktemp("published")
        (published / "test").mkdir()
        as_published(published / "test" / "tests_test.csv", QUESTIONS)
        lines = tmp_path_factory.mktemp("lines")
        as_lines(lines / "tests_test.jsonl", QUESTIONS)
        one = as_lines(tmp_path_factory.mktemp("one") / "all.jsonl", QUESTIONS, subject="tests")
        for source in (published, lines, one):
            assert mmlu(source, subjects=("tests",)).items == wanted

    def test_shots_are_of_the_same_subject_with_their_answers(self, folder: Path) -> None:
        item = mmlu(folder, subjects=("tests",), n_shots=5).items[1]
        assert item.receiver.startswith("The following are questions about tests.\n\nQuestion: Shot ")
        for question, choices, answer in SHOTS:
            block = f"Question: {question}\n" + "\n".join(f"{n}. {c}" for n, c in zip("ABCD", choices, strict=True))
            assert f"{block}\nAnswer: {'ABCD'[answer]}\n\n" in item.receiver
        assert item.receiver.endswith("D. blood\nAnswer:")
        with pytest.raises(ValueError, match="only 5 examples"):
            mmlu(folder, subjects=("tests",), n_shots=6)

    def test_splits_keep_the_share_of_the_subjects(self) -> None:
        task = mmlu("sample")
        counts = Counter(item.tags["subject"] for item in task.items)
        tune, _ = task.split(seed=0)
        for subject, count in Counter(item.tags["subject"] for item in tune.items).items():
            assert abs(count - counts[subject] / 2) < 1

    def test_the_sample_has_every_answer_and_the_five_subjects(self) -> None:
        task = mmlu("sample")
        assert {item.answers[0] for item in task.items} == set("ABCD")
        assert len({item.tags["subject"] for item in task.items}) == 5
        with pytest.raises(ValueError, match="no question of 'astrology'; it has college_biology"):
            mmlu("sample", subjects=("astrology",))

    def test_without_a_source_nothing_is_downloaded_but_told(self) -> None:
        with pytest.raises(ValueError, match="pass a folder"):
            mmlu()

    def test_subjects_of_the_hub_are_asked_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        asked = []

        def load(name: str, subset: str, *, split: str) -> datasets.Dataset:
            asked.append((name, subset, split))
            rows = [(f"{subset}: {q}", c, a) for q, c, a in QUESTIONS]
            return datasets.Dataset.from_list([{"question": q, "choices": c, "answer": a} for q, c, a in rows])

        monkeypatch.setattr(datasets, "load_dataset", load)
        task = mmlu("cais/mmlu", subjects=("one", "two"))
        assert asked == [("cais/mmlu", "one", "test"), ("cais/mmlu", "two", "test")]
        assert Counter(item.tags["subject"] for item in task.items) == {"one": 3, "two": 3}


class TestRepeats:
    def test_a_word_for_word_repeat_is_left_out_and_counted(self, folder: Path) -> None:
        with_header(folder / "tests_test.csv", [*QUESTIONS, QUESTIONS[1]])
        task = mmlu(folder, subjects=("tests",))
        assert len(task.items) == 3
        assert task.settings["repeats_left_out"] == 1
        assert mmlu("sample").settings["repeats_left_out"] == 0

    def test_a_repeat_with_another_answer_is_refused(self, folder: Path) -> None:
        with_header(folder / "tests_test.csv", [*QUESTIONS, (*QUESTIONS[0][:2], 2)])
        with pytest.raises(ValueError, match=r"line 6 .* repeats line 2 .* with the answer C instead of B"):
            mmlu(folder, subjects=("tests",))

    def test_the_same_question_with_other_choices_is_another(self, folder: Path) -> None:
        with_header(folder / "tests_test.csv", [*QUESTIONS, ("What is two and two?", ["2", "4", "8", "9"], 1)])
        assert len(mmlu(folder, subjects=("tests",)).items) == 4


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is empty"),
            ("q,a,b,c,d\n", "line 1 of tests_test.csv has 5 cells for 6 columns"),
            ("q,a,b,c,d,E\n", "line 1 of tests_test.csv has the answer 'E'"),
            ("q,a,b,c,d,4\n", "line 1 of tests_test.csv has the answer '4'"),
            ("q,a,b,c,d,\n", "line 1 of tests_test.csv has the answer ''"),
            ("q,a,,c,d,A\n", "line 1 of tests_test.csv has an empty B"),
            ("q,a,b,b,d,B\n", "line 1 of tests_test.csv has its right choice 'b' twice"),
            ("question,choice0,choice1,choice2,answer\nq,a,b,c,1\n", "line 2 of tests_test.csv has no 'choice3'"),
        ],
    )
    def test_the_line_and_the_reason_are_told(self, content: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "tests_test.csv").write_text(content, "utf-8")
        with pytest.raises(ValueError, match=message):
            mmlu(tmp_path, subjects=("tests",))

    def test_wrong_choices_may_repeat_each_other(self, tmp_path: Path) -> None:
        (tmp_path / "tests_test.csv").write_text("q,a,b,b,d,A\n", "utf-8")
        assert len(mmlu(tmp_path, subjects=("tests",)).items) == 1

    @pytest.mark.parametrize("answer", [True, 1.0, "b", [1], 7])
    def test_an_answer_that_is_no_letter_or_number_is_refused(self, answer: object, tmp_path: Path) -> None:
        record = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": answer, "subject": "tests"}
        (tmp_path / "all.jsonl").write_text(json.dumps(record), "utf-8")
        with pytest.raises(ValueError, match=r"line 1 of all\.jsonl has the answer"):
            mmlu(tmp_path / "all.jsonl", subjects=("tests",))

    @pytest.mark.parametrize("choices", [["a", "b", "c"], "abcd", ["a", "b", "c", ""], ["a", "b", "c", 4]])
    def test_choices_that_are_not_four_texts_are_refused(self, choices: object, tmp_path: Path) -> None:
        record = {"question": "q", "choices": choices, "answer": 0, "subject": "tests"}
        (tmp_path / "all.jsonl").write_text(json.dumps(record), "utf-8")
        with pytest.raises(ValueError, match=r"line 1 of all\.jsonl has .*choice"):
            mmlu(tmp_path / "all.jsonl", subjects=("tests",))

    def test_a_missing_subject_or_split_is_told(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"one file law_test\.csv .* has none"):
            mmlu(folder, subjects=("law",))
        with_header(folder / "tests_test.jsonl", QUESTIONS)
        with pytest.raises(ValueError, match=r"tests_test\.jsonl and tests_test\.csv"):
            mmlu(folder, subjects=("tests",))
        with pytest.raises(ValueError, match="no split 'dev'"):
            mmlu("sample", n_shots=1)

    @pytest.mark.parametrize("subjects", [(), ("tests", "tests"), "tests"])
    def test_bad_subjects_are_refused(self, subjects: tuple[str, ...], folder: Path) -> None:
        with pytest.raises(ValueError, match="subjects are"):
            mmlu(folder, subjects=subjects)
