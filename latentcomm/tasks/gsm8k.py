"""GSM8K: grade-school problems in words, whose answer is a number."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from latentcomm._core.files import digest
from latentcomm.models.prompts import Template
from latentcomm.tasks.base import Item, Task
from latentcomm.tasks.files import Row, Source, is_file, read_rows, refuse_repeats, source_name
from latentcomm.tasks.judging import Number
from latentcomm.tasks.numbers import answered_number, written
from latentcomm.tasks.shots import draw_shots

SenderText = Literal["question", "hint"]
SAMPLE = "sample"
"""The source that names the problems that come with the package: for a first trial, far too few to measure on."""
HUB_SUBSET = "main"
REPLY_TOKENS = 320
"""Solutions of the data set have up to some 200 tokens."""
INSTRUCTION = 'Think step by step, and end with a line that has "####" and the number alone.'
_SAMPLE_FILE = Path(__file__).with_name("gsm8k_sample.jsonl")
_WORKINGS = re.compile(r"<<[^<>]*>>")


def gsm8k(
    source: Source | None = None,
    *,
    split: str = "test",
    n_shots: int = 0,
    shots: Source | None = None,
    shots_split: str = "train",
    template: Template = "raw",
    sender_text: SenderText = "question",
    reply_tokens: int = REPLY_TOKENS,
    seed: int = 0,
) -> Task:
    r"""Problems of GSM8K, or of a file in its format, judged by the number that the reply gives (`judging.Number`).

    `source` is a .jsonl, .csv or .parquet file, or a hub data set ("openai/gsm8k", of which `split` is read); "sample"
    gives six problems of this package's own. Each record has a "question" and an "answer": the solution in lines, and
    "#### " with the number at its end. Workings between << and >> are left out of all prompts.

    Sender, receiver and skyline read the same: "Question: ...", and "Answer:" for raw text, or for a chat turn the
    request to think step by step and to end with "#### " and the number. With `sender_text="hint"` the sender and the
    skyline model first read a hint: the solution without its last step, where it has more than one. The question is
    preceded by `n_shots` solved problems drawn with `seed` from `shots`: by default, for a hub data set, its own split
    `shots_split`. Tags: steps (lines of the solution).

    Cobbe et al. 2021, arXiv:2110.14168; the same question for both models: Ramesh and Li 2025, arXiv:2501.14082.

    Raises:
        ValueError: no source, no shots to draw from, or a file that is broken (the line and the reason).
        RuntimeError: the source cannot be read, or the hub cannot be reached.

    >>> task = gsm8k("sample")
    >>> task.judge("Each has 6, so 6 * 4 = 24.\n#### 24", task.items[0].answers).found
    '24'
    """
    if source is None:
        raise ValueError(
            "gsm8k needs its problems; pass a .jsonl file with a question and an answer a line, the hub data set "
            f"'openai/gsm8k', or {SAMPLE!r} for the six that come with the package"
        )
    is_sample = source == SAMPLE
    problems = _problems(read_rows(_SAMPLE_FILE if is_sample else source, split=split, subset=HUB_SUBSET))
    is_local = is_sample or is_file(source)
    given: tuple[str, ...] = ()
    if n_shots:
        if shots is None and is_local:
            raise ValueError(f"n_shots is {n_shots}; name a file of other problems to draw them from as `shots`")
        rows = read_rows(source if shots is None else shots, split=shots_split, subset=HUB_SUBSET)
        examples = [(one.question, one.solved) for one in _problems(rows)]
        given = draw_shots(examples, [one.question for one in problems], n_shots, seed=seed)
    return Task(
        name="gsm8k",
        items=tuple(_item(number, one, given, template, sender_text) for number, one in enumerate(problems)),
        candidates=(),
        template=template,
        settings={
            "source": source_name(source),
            "sha256": digest([(one.question, one.steps, one.answer) for one in problems]),
            "split": None if is_local else split,
            "n_shots": n_shots,
            "shots": source_name(source if shots is None else shots) if n_shots else None,
            "seed": seed,
            "template": template,
            "sender_text": sender_text,
        },
        judge=Number(),
        reply_tokens=reply_tokens,
    )


@dataclass(frozen=True)
class _Problem:
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def solved(self) -> str:
        """The problem as a few-shot example."""
        lines = [*self.steps, f"#### {self.answer}"]
        return f"Question: {self.question}\nAnswer: " + "\n".join(lines)


def _item(number: int, problem: _Problem, shots: tuple[str, ...], template: Template, sender_text: SenderText) -> Item:
    question = {
        "raw": f"Question: {problem.question}\nAnswer:",
        "chat": f"Question: {problem.question}\n{INSTRUCTION}",
    }[template]
    receiver = "\n\n".join([*shots, question])
    hint = " ".join(problem.steps[:-1])
    sender = "\n\n".join([*shots, f"Hint: {hint}", question]) if hint and sender_text == "hint" else receiver
    tags = {"steps": str(len(problem.steps))}
    return Item(f"gsm8k-{number}", sender, receiver, skyline=sender, answers=(problem.answer,), tags=tags)


def _problems(rows: list[Row]) -> list[_Problem]:
    problems = [_problem(row) for row in rows]
    refuse_repeats(rows, [" ".join(one.question.split()) for one in problems], "question")
    return problems


def _problem(row: Row) -> _Problem:
    solution, hashes, number = _WORKINGS.sub("", row.text("answer")).rpartition("####")
    if not hashes:
        raise ValueError(f'{row.where} has no "####" in its answer; end it with a line "#### " and the number')
    value = answered_number(f"#### {number.strip()}") if number.strip() else None
    if value is None:
        raise ValueError(f'{row.where} has no number after the "####" of its answer, but {number.strip()!r}; write it')
    steps = tuple(line.strip() for line in solution.split("\n") if line.strip())
    return _Problem(row.text("question"), steps, written(value))
