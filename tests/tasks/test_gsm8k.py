"""Problems in words: what each side reads, and files that are broken in every way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from latentcomm.tasks import gsm8k
from latentcomm.tasks.files import Row, is_file, read_rows, source_name

PROBLEMS = [
    {"question": "Two hens lay 3 eggs each. How many eggs?", "answer": "Each 3.\nSo 2*3=<<2*3=6>>6 eggs.\n#### 6"},
    {"question": "A man has $5 and spends $2. How much is left?", "answer": "5-2=3.\n#### 3"},
    {"question": "How many legs have 300 cows?", "answer": "4 legs.\n300 cows.\n4 * 300 = 1200.\n#### 1,200"},
]


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write(tmp_path / "test.jsonl", *PROBLEMS)


class TestTheTask:
    def test_both_models_and_the_skyline_read_the_question(self, problems: Path) -> None:
        task = gsm8k(problems)
        for item, problem in zip(task.items, PROBLEMS, strict=True):
            assert item.sender == item.receiver == item.skyline == f"Question: {problem['question']}\nAnswer:"
        assert [item.answers for item in task.items] == [("6",), ("3",), ("1200",)]
        assert not task.has_choices

    def test_a_chat_turn_asks_for_the_mark_that_the_judge_reads(self, problems: Path) -> None:
        text = gsm8k(problems, template="chat").items[0].receiver
        assert text.startswith("Question: Two hens") and '"####"' in text and not text.endswith("Answer:")

    def test_the_data_sets_own_solutions_are_judged_right_and_others_wrong(self, problems: Path) -> None:
        task = gsm8k(problems)
        for number, item in enumerate(task.items):
            assert task.judge(PROBLEMS[number]["answer"], item.answers).is_right
            assert not task.judge(PROBLEMS[number - 1]["answer"], item.answers).is_right

    def test_a_hint_is_the_solution_without_its_last_step_for_the_sender(self, problems: Path) -> None:
        plain, hinted = gsm8k(problems).items, gsm8k(problems, sender_text="hint").items
        assert hinted[0].sender == f"Hint: Each 3.\n\n{plain[0].receiver}" == hinted[0].skyline
        assert hinted[1].sender == plain[1].sender  # one step: no hint without the answer
        assert "4 legs. 300 cows." in hinted[2].sender and "1200" not in hinted[2].sender
        assert [item.receiver for item in hinted] == [item.receiver for item in plain]

    def test_shots_are_solved_precede_the_question_and_differ_from_it(self, problems: Path, tmp_path: Path) -> None:
        train = write(tmp_path / "train.jsonl", PROBLEMS[0], *({"question": f"{n} and 1?", "answer": f"#### {n + 1}"}
                      for n in range(3)))  # fmt: skip
        task = gsm8k(problems, n_shots=3, shots=train)
        for item in task.items:
            assert item.receiver.count("####") == 3
            assert item.receiver.count(item.receiver.rpartition("Question:")[2]) == 1
            assert "<<" not in item.receiver
        assert {f"{n} and 1?" in task.items[0].sender for n in range(3)} == {True}
        drawn = {gsm8k(problems, n_shots=1, shots=train, seed=seed).items[0].sender for seed in range(12)}
        assert len(drawn) == 3
        with pytest.raises(ValueError, match="only 3 examples"):
            gsm8k(problems, n_shots=4, shots=train)
        with pytest.raises(ValueError, match="as `shots`"):
            gsm8k(problems, n_shots=1)
        with pytest.raises(ValueError, match="n_shots is -1"):
            gsm8k(problems, n_shots=-1, shots=train)

    def test_the_same_records_give_the_same_task_whatever_the_file(self, problems: Path, tmp_path: Path) -> None:
        frame = pd.DataFrame(PROBLEMS)
        frame.to_parquet(tmp_path / "test.parquet")
        frame.to_csv(tmp_path / "test.csv", index=False)
        tasks = [gsm8k(tmp_path / f"test.{suffix}") for suffix in ("jsonl", "parquet", "csv")]
        assert tasks[0].items == tasks[1].items == tasks[2].items
        assert len({task.settings["sha256"] for task in tasks}) == 1
        assert gsm8k(write(tmp_path / "other.jsonl", PROBLEMS[0])).settings["sha256"] != tasks[0].settings["sha256"]

    def test_the_settings_name_the_file_without_its_folder(self, problems: Path) -> None:
        assert gsm8k(problems).settings["source"] == "test.jsonl"

    def test_without_a_source_nothing_is_downloaded_but_told(self) -> None:
        with pytest.raises(ValueError, match=r"pass a \.jsonl file"):
            gsm8k()

    def test_the_sample_holds_to_its_own_sums(self) -> None:
        task = gsm8k("sample")
        assert len(task.items) == 6 and task.settings["source"] == "sample"
        assert {item.answers[0] for item in task.items} == {"24", "420", "10.75", "300", "-7", "18"}
        with pytest.raises(ValueError, match="as `shots`"):
            gsm8k("sample", n_shots=1)


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "an empty file": ("", "is empty"),
    "empty lines": ("\n\n", "is empty"),
    "no JSON": ('{"question": "a", "answer": "#### 1"}\n{"question": "b"', "line 2 of broken.jsonl is no JSON"),
    "a list": ("[1, 2]", "line 1 of broken.jsonl is .*give an object a line"),
    "no question": ('{"answer": "#### 1"}', "line 1 of broken.jsonl has no 'question'"),
    "a null": ('{"question": null, "answer": "#### 1"}', "line 1 of broken.jsonl has no 'question'"),
    "an empty question": ('{"question": " ", "answer": "#### 1"}', "line 1 of broken.jsonl has an empty question"),
    "a number": ('{"question": 5, "answer": "#### 1"}', "line 1 of broken.jsonl has the question 5"),
    "no mark": ('{"question": "a", "answer": "1"}', 'line 1 of broken.jsonl has no "####"'),
    "no number": ('{"question": "a", "answer": "x\\n#### many"}', "line 1 of broken.jsonl has no number after"),
    "nothing behind": ('{"question": "a", "answer": "1\\n####"}', "line 1 of broken.jsonl has no number after"),
    "twice": ('{"question": "a", "answer": "#### 1"}\n' * 2, "line 2 of broken.jsonl repeats the question of line 1"),
    "a zero byte": (b'{"question": "a",\n\0', "line 2 of broken.jsonl has a zero byte"),
    "another encoding": ('\n{"question": "\u00e9"}'.encode("latin-1"), "line 2 of broken.jsonl is no UTF-8"),
    "half a character": ('{"question": "\\ud800", "answer": "#### 1"}', "line 1 of broken.jsonl has half a character"),
    "too deep": ("[" * 100_000, "line 1 of broken.jsonl is no JSON"),
}


class TestBrokenFiles:
    @pytest.mark.parametrize("name", BROKEN)
    def test_the_line_and_the_reason_are_told(self, name: str, tmp_path: Path) -> None:
        content, message = BROKEN[name]
        path = tmp_path / "broken.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message) as caught:
            gsm8k(path)
        assert "\n" not in str(caught.value)

    def test_a_mark_of_the_encoding_and_other_line_ends_are_no_fault(self, tmp_path: Path) -> None:
        path = tmp_path / "fine.jsonl"
        path.write_bytes(
            b'\xef\xbb\xbf{"question": "a", "answer": "#### 1"}\r\n\r\n{"question": "b", "answer": "#### 2"}'
        )
        assert [item.answers for item in gsm8k(path).items] == [("1",), ("2",)]

    def test_a_line_separator_inside_a_text_ends_no_line(self, tmp_path: Path) -> None:
        path = tmp_path / "fine.jsonl"
        path.write_text('{"question": "a\u2028b", "answer": "#### 1"}\n', "utf-8")
        assert len(gsm8k(path).items) == 1

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda folder: folder / "missing.jsonl", "there is no file"),
            (lambda folder: folder, "is a folder"),
            (lambda folder: write(folder / "rows.txt", PROBLEMS[0]), "is none of .jsonl, .csv, .parquet"),
            (lambda folder: write(folder / "rows.parquet", PROBLEMS[0]), "rows.parquet is no Parquet file"),
        ],
    )
    def test_what_is_no_data_file_is_refused(self, make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            gsm8k(make(tmp_path))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("question,answer\na,#### 1,x\n", "line 2 of rows.csv has 3 cells for 2 columns"),
            ('question,answer\n"a\nb",#### 1\nc\n', "line 4 of rows.csv has 1 cells"),
            ('question,answer\n"a\nb\nc"\n', "line 2 of rows.csv has 1 cells"),
            ('question,answer\na,"#### 1\n', "line 2 of rows.csv is no CSV"),
            ("question,question\na,b\n", "line 1 of rows.csv names a column twice"),
            ("q,answer\na,#### 1\n", "line 2 of rows.csv has no 'question'"),
        ],
    )
    def test_a_broken_table_is_told_by_the_line_where_its_record_begins(
        self, content: str, message: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text(content, "utf-8")
        with pytest.raises(ValueError, match=message):
            gsm8k(path)


class TestTheHub:
    def test_what_cannot_be_reached_is_told_in_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        def unreachable(*_: object, **__: object) -> object:
            raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\nwith a trace")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
        with pytest.raises(RuntimeError, match=r"'test' of its subset 'main'.*Couldn't reach.*give a file") as caught:
            gsm8k("nobody/nothing")
        assert "trace" not in str(caught.value)

    def test_a_hub_that_does_not_answer_is_given_ten_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        import huggingface_hub

        asked = []

        def unreachable(self: Any, name: str, *, timeout: float) -> None:
            asked.append((name, timeout))
            raise TimeoutError("too slow")

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("its own client would try on"))
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
        with pytest.raises(RuntimeError, match=r"^there is no data set 'nobody/nothing' .*\(too slow\); give a file$"):
            gsm8k("nobody/nothing")
        assert asked == [("nobody/nothing", 10.0)]

    def test_a_data_set_of_the_hub_gives_the_task_of_its_file(
        self, problems: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        asked = []

        def load(name: str, subset: str, *, split: str) -> datasets.Dataset:
            asked.append((name, subset, split))
            train = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(3)]
            return datasets.Dataset.from_list(PROBLEMS if split == "test" else train)

        monkeypatch.setattr(datasets, "load_dataset", load)
        task = gsm8k("openai/gsm8k", n_shots=2)
        assert [item.answers for item in task.items] == [item.answers for item in gsm8k(problems).items]
        assert asked == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", "main", "train")]
        assert (task.settings["source"], task.settings["split"]) == ("openai/gsm8k", "test")

    def test_a_file_of_that_name_is_never_asked_of_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        write(tmp_path / "data" / "test.jsonl", *PROBLEMS)
        assert len(gsm8k("data/test.jsonl").items) == 3
        with pytest.raises(ValueError, match="there is no file"):
            gsm8k("data/tset.jsonl")
        assert is_file("data/test.jsonl") and source_name("data/test.jsonl") == "test.jsonl"


class TestRows:
    def test_lists_of_texts_are_refused_when_they_are_none(self) -> None:
        for value, message in (("a", "give a list"), ([], "give a list"), ([""], "empty"), (["a", "a"], "twice"),
                               ([1], "which is no text")):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                Row("line 1", {"facts": value}).texts("facts")

    def test_rows_keep_their_place(self, problems: Path) -> None:
        assert [row.where for row in read_rows(problems)] == [f"line {n} of test.jsonl" for n in (1, 2, 3)]
