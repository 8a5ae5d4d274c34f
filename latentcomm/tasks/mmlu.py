"""MMLU: questions of many subjects with four lettered choices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentcomm._core.files import digest
from latentcomm.models.prompts import Template
from latentcomm.tasks.base import Item, Task
from latentcomm.tasks.files import SUFFIXES, Row, Source, read_rows, source_name
from latentcomm.tasks.judging import Letter
from latentcomm.tasks.shots import draw_shots

SAMPLE = "sample"
"""The source that names the questions that come with the package, for trying things out; too few to measure on."""
_SAMPLE_FILE = Path(__file__).with_name("mmlu_sample.jsonl")
SUBJECTS = (
    "high_school_psychology",
    "formal_logic",
    "college_biology",
    "professional_law",
    "public_relations",
)
"""The five subjects of Ramesh and Li 2025, arXiv:2501.14082."""
LETTERS = "ABCD"
ORIGINAL_COLUMNS = ("question", *LETTERS, "answer")
"""The columns of the files as they were first published, which have no header."""
REPLY_TOKENS = 16


def mmlu(
    source: Source | None = None,
    *,
    subjects: Sequence[str] = SUBJECTS,
    split: str = "test",
    n_shots: int = 0,
    shots_split: str = "dev",
    template: Template = "raw",
    reply_tokens: int = REPLY_TOKENS,
    seed: int = 0,
) -> Task:
    r"""Questions of MMLU, or of files in its formats, judged by the letter that the reply takes (`judging.Letter`).

    `source` is a folder that holds a file SUBJECT_SPLIT.csv (or .jsonl, .parquet) for each of `subjects`, as it is or
    in a folder of the split's name; or one file whose records have a "subject"; or a hub data set ("cais/mmlu");
    "sample" gives eight questions of this package's own. A record has a "question", its choices as a list "choices" or
    as four columns (choice0 to choice3, or A to D), and the "answer": a letter, or 0 to 3. A .csv file without a header
    has the columns question, A, B, C, D, answer.

    Sender, receiver and skyline read the same: "The following is a question about formal logic.", "Question: ...", the
    four choices as "A. ...", and "Answer:" for raw text, or for a chat turn the request for the letter alone. The
    question is preceded by `n_shots` answered ones of the same subject, drawn with `seed` from the split `shots_split`
    of the source. The choices " A" to " D" ("A" to "D" in chat) are every item's candidates, so that they can be
    scored. Tags: subject; splits preserve its share.

    A question that repeats one of its subject word for word, with the same choices and answer, is left out and counted
    in the settings (the published test files hold 13 in these subjects).

    Hendrycks et al. 2021, arXiv:2009.03300; the same question for both models: Ramesh and Li 2025, arXiv:2501.14082.

    Raises:
        ValueError: no source, no subjects or one that the source lacks, too few examples, or a file that is broken (the
            line and the reason).
        RuntimeError: the source cannot be read, or the hub cannot be reached.

    >>> task = mmlu("sample", subjects=("public_relations",))
    >>> task.items[0].candidates, task.judge(" B. A newsroom", ("B",)).is_right
    ((' A', ' B', ' C', ' D'), True)
    """
    if source is None:
        raise ValueError(
            "mmlu needs its questions; pass a folder of SUBJECT_test.csv files, one .jsonl file with subjects, the hub "
            f"data set 'cais/mmlu', or {SAMPLE!r} for the eight that come with the package"
        )
    if not subjects or isinstance(subjects, str) or len(set(subjects)) < len(subjects):
        raise ValueError(f"subjects are {subjects!r}; give a tuple of one or more different names")
    items: list[Item] = []
    n_repeats = 0
    for subject in subjects:
        rows = _rows_of(source, subject, split)
        questions = [_question(row) for row in rows]
        unique = _without_repeats(rows, questions)
        n_repeats += len(questions) - len(unique)
        shots: tuple[str, ...] = ()
        if n_shots:
            examples = [_question(row) for row in _rows_of(source, subject, shots_split)]
            blocks = [questions[number].block for number in unique]
            shots = draw_shots(
                [(one.block, f"{one.block}\nAnswer: {one.letter}") for one in examples], blocks, n_shots, seed=seed
            )
        items += [_item(subject, number, questions[number], shots, template) for number in unique]
    return Task(
        name="mmlu",
        items=tuple(items),
        candidates=_candidates(template),
        template=template,
        settings={
            "source": source_name(source),
            "sha256": digest([(item.id, item.receiver, item.answers) for item in items]),
            "subjects": tuple(subjects),
            "split": split,
            "n_shots": n_shots,
            "shots_split": shots_split if n_shots else None,
            "seed": seed,
            "template": template,
            "repeats_left_out": n_repeats,
        },
        strata=("subject",),
        judge=Letter(LETTERS),
        reply_tokens=reply_tokens,
    )


@dataclass(frozen=True)
class _Question:
    block: str
    letter: str


def _item(subject: str, number: int, one: _Question, shots: tuple[str, ...], template: Template) -> Item:
    head = f"The following {'are questions' if shots else 'is a question'} about {subject.replace('_', ' ')}."
    ending = {"raw": "Answer:", "chat": "Answer with the letter of the right choice only."}[template]
    text = "\n\n".join([head, *shots, f"{one.block}\n{ending}"])
    candidates = _candidates(template)
    return Item(
        id=f"{subject}-{number}",
        sender=text,
        receiver=text,
        skyline=text,
        answers=(one.letter,),
        choice=candidates[LETTERS.index(one.letter)],
        tags={"subject": subject},
        candidates=candidates,
    )


def _candidates(template: Template) -> tuple[str, ...]:
    return tuple(f" {letter}" if template == "raw" else letter for letter in LETTERS)


def _rows_of(source: Source, subject: str, split: str) -> list[Row]:
    """The records of a subject, in the order in which the source has them."""
    path = _SAMPLE_FILE if source == SAMPLE else Path(source).expanduser()
    if path.is_dir():
        return read_rows(_file_of(path, subject, split), headless=ORIGINAL_COLUMNS)
    if not path.exists():
        return read_rows(source, split=split, subset=subject)
    if split != "test":
        raise ValueError(f"one file has no split {split!r}; give a folder of SUBJECT_{split} and SUBJECT_test files")
    rows = read_rows(path)
    mine = [row for row in rows if row.text("subject") == subject]
    if not mine:
        counts = Counter(row.text("subject") for row in rows)
        raise ValueError(f"{path.name} has no question of {subject!r}; it has {', '.join(sorted(counts))}")
    return mine


def _file_of(folder: Path, subject: str, split: str) -> Path:
    paths = [base / f"{subject}_{split}{suffix}" for base in (folder, folder / split) for suffix in SUFFIXES]
    there = [path for path in paths if path.exists()]
    if len(there) != 1:
        found = " and ".join(path.name for path in there) if there else "none"
        raise ValueError(f"{folder} should hold one file {subject}_{split}.csv (or .jsonl, .parquet), but has {found}")
    return there[0]


def _question(row: Row) -> _Question:
    choices = _choices(row)
    letter = _letter(row)
    if repeated := [text for text in choices if choices.count(text) > 1 and text == choices[LETTERS.index(letter)]]:
        raise ValueError(f"{row.where} has its right choice {repeated[0]!r} twice; no letter alone is right")
    lines = [f"Question: {row.text('question')}"]
    lines += [f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=True)]
    return _Question("\n".join(lines), letter)


def _choices(row: Row) -> tuple[str, ...]:
    if "choices" in row.fields:
        value = row.value("choices")
        if not isinstance(value, list | tuple) or len(value) != len(LETTERS):
            raise ValueError(f"{row.where} has the choices {value!r}; give a list of {len(LETTERS)} texts")
        return tuple(Row(row.where, {"choice": each}).text("choice") for each in value)
    names = tuple(LETTERS) if "A" in row.fields else tuple(f"choice{number}" for number in range(len(LETTERS)))
    return tuple(row.text(name) for name in names)


def _letter(row: Row) -> str:
    value = row.value("answer")
    written = value.strip() if isinstance(value, str) else str(value) if type(value) is int else repr(value)
    if written in tuple("0123"):
        return LETTERS[int(written)]
    if written not in tuple(LETTERS):
        raise ValueError(f"{row.where} has the answer {value!r}; give a letter from A to D, or a number from 0 to 3")
    return written


def _without_repeats(rows: Sequence[Row], questions: Sequence[_Question]) -> list[int]:
    """The indices of the questions that are no repeats.

    Raises:
        ValueError: a question comes again with another answer.
    """
    first: dict[str, int] = {}
    for number, one in enumerate(questions):
        before = first.setdefault(one.block, number)
        if questions[before].letter != one.letter:
            raise ValueError(
                f"{rows[number].where} repeats {rows[before].where} with the answer {one.letter} instead of "
                f"{questions[before].letter}; remove one of them"
            )
    return list(first.values())
