"""Biographies: the sender reads facts about a person, the receiver reads only a question about the person."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentcomm._core.files import digest
from latentcomm.models.prompts import Template
from latentcomm.tasks.base import Item, Task
from latentcomm.tasks.files import Row, Source, read_rows, refuse_repeats, source_name
from latentcomm.tasks.judging import Contains, Judge, Mentions, mentions

BiographySenderForm = Literal["sentence", "primed"]
Asked = Literal["questions", "biography"]
OWN_PEOPLE = Path(__file__).with_name("biographies.jsonl")
"""The people who come with the package: well-known ones of history, described in sentences written for it."""
REPLY_TOKENS = {"questions": 24, "biography": 160}


def biographies(
    source: Source | None = None,
    *,
    asked: Asked = "questions",
    template: Template = "raw",
    sender_form: BiographySenderForm = "sentence",
    judge: Judge | None = None,
    reply_tokens: int | None = None,
) -> Task:
    r"""People of a .jsonl file (or a hub data set of the same fields), and questions about them.

    Each record has a "name", "facts" (a list of sentences) and "questions", a list of objects with a "question" and its
    "answers", the canonical one first. In a question "{name}" is replaced by the name. Without a source it is the 22
    people who come with the package, with three questions each.

    The sender reads the facts, and if "primed" then the receiver's text; the skyline model reads both. The receiver
    reads, by `asked`:

    - "questions": an item a question, "Q: In which city was Marie Curie born?" and "A:" (in chat a request for a few
      words instead). Right when the reply contains an answer (`judging.Contains`).
    - "biography": an item a person, "Write a short biography of Marie Curie." Right when the reply contains an answer
      to every question (`judging.Mentions`, whose `share` is the part answered).

    Another `judge` replaces these, such as a model (`model_judge.JudgedBy`). A receiver may know a famous person
    without any message: check the silent baseline first. Tags: name.

    The task in outline: Ramesh and Li 2025, arXiv:2501.14082, after Du et al. 2024, arXiv:2305.14325.

    Raises:
        ValueError: the file is broken (the line and the reason): a field is missing or empty, a name or a question
            comes twice, a question does not name the person or gives its answer away, or no fact holds the answer.
        RuntimeError: the source cannot be read, or the hub cannot be reached.

    >>> task = biographies()
    >>> task.items[0].receiver, task.items[0].answers[0], len(task.items)
    ('Q: In which city was Marie Curie born?\nA:', 'Warsaw', 66)
    """
    rows = read_rows(OWN_PEOPLE if source is None else source, split="train")
    people = [_person(row) for row in rows]
    refuse_repeats(rows, [person.name.casefold() for person in people], "name")
    make = {"questions": _question_items, "biography": _biography_items}[asked]
    return Task(
        name="biographies",
        items=tuple(
            item for number, person in enumerate(people) for item in make(number, person, template, sender_form)
        ),
        candidates=(),
        template=template,
        settings={
            "source": source_name(OWN_PEOPLE if source is None else source),
            "sha256": digest(people),
            "asked": asked,
            "template": template,
            "sender_form": sender_form,
        },
        together="name",
        judge=judge or {"questions": Contains(), "biography": Mentions()}[asked],
        reply_tokens=REPLY_TOKENS[asked] if reply_tokens is None else reply_tokens,
    )


@dataclass(frozen=True)
class _Person:
    name: str
    facts: tuple[str, ...]
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def _question_items(number: int, person: _Person, template: Template, form: BiographySenderForm) -> list[Item]:
    items = []
    for index, (question, answers) in enumerate(person.questions):
        text = {"raw": f"Q: {question}\nA:", "chat": f"{question} Answer in a few words."}[template]
        items.append(_item(f"biography-{number}-{index}", person, text, answers, form))
    return items


def _biography_items(number: int, person: _Person, template: Template, form: BiographySenderForm) -> list[Item]:
    text = f"Write a short biography of {person.name}."
    facts = tuple("|".join(answers) for _, answers in person.questions)
    return [_item(f"biography-{number}", person, text if template == "chat" else f"{text}\nBiography:", facts, form)]


def _item(name: str, person: _Person, text: str, answers: tuple[str, ...], form: BiographySenderForm) -> Item:
    facts = " ".join(person.facts)
    skyline = f"{facts}\n\n{text}"
    return Item(
        id=name,
        sender={"sentence": facts, "primed": skyline}[form],
        receiver=text,
        skyline=skyline,
        answers=answers,
        tags={"name": person.name},
    )


def _person(row: Row) -> _Person:
    name, facts = row.text("name"), row.texts("facts")
    given = row.value("questions")
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(
            f'{row.where} has the questions {given!r}; give a list of at least one {{"question", "answers"}}'
        )
    questions = tuple(_question(each, number, name, facts, row.where) for number, each in enumerate(given, 1))
    texts = [question for question, _ in questions]
    if repeated := [question for number, question in enumerate(texts) if question in texts[:number]]:
        raise ValueError(f"{row.where} has the question {repeated[0]!r} twice; leave one out")
    return _Person(name, facts, questions)


def _question(given: Any, number: int, name: str, facts: tuple[str, ...], where: str) -> tuple[str, tuple[str, ...]]:
    where = f"question {number} in {where}"
    if not isinstance(given, dict):
        raise ValueError(f'{where} is {given!r}; give an object with a "question" and its "answers"')
    row = Row(where, given)
    question, answers = row.text("question").replace("{name}", name), row.texts("answers")
    if name not in question:
        raise ValueError(f'{where} does not name {name}: the receiver reads it alone; put "{{name}}" in {question!r}')
    for answer in answers:
        if "|" in answer or not any(mark.isalnum() for mark in answer):
            raise ValueError(f"{where} has the answer {answer!r}; give letters or digits, and no stroke")
        if mentions(question, answer):
            raise ValueError(f"{where} gives its answer {answer!r} away in {question!r}; rephrase it")
    if not any(mentions(fact, answer) for fact in facts for answer in answers):
        raise ValueError(f"{where} has answers that no fact mentions ({', '.join(answers)}); the sender must know one")
    return question, answers
