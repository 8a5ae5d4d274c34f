"""Questions about pictures as tasks: the prompts of a receiver that cannot see, the choices, and the true caption."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.models.chat import AnyTemplate
from latentcomm.tasks.base import DEFAULT_N_CHOICES, Item, Task
from latentcomm.tasks.judging import is_correct

QUESTION_TYPES = ("identity", "category", "colour", "count", "position")
"""Types of questions in tables: what it is, of what kind, in what colour, how many, and where."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""Numbers that a reply may also give as numerals."""
BEFORE, AFTER = "Picture:", ".\n"
"""Prefix and suffix of a picture's caption, or of the latents instead of it, in every prompt."""


@dataclass(frozen=True)
class Question:
    """A question about every picture that has its fact.

    Attributes:
        type: one of `QUESTION_TYPES`.
        ask: the prompt of the receiver; "{fact}" is replaced by that fact of the picture.
        fact: the fact that answers it.
        answers: all possible answers, from which choices are made; () takes those of the pictures in the task.
        name: in tables; the type by default.

    Raises:
        ValueError: an unknown type, or an empty text.

    >>> Question("colour", "The colour of the digit is", "colour").name
    'colour'
    """

    type: str
    ask: str
    fact: str
    answers: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if self.type not in QUESTION_TYPES:
            raise ValueError(
                f"there is no question of the type {self.type!r}; choose among {', '.join(QUESTION_TYPES)}"
            )
        if not self.ask.strip() or not self.fact:
            raise ValueError(f"the question of the type {self.type} is {self.ask!r} of {self.fact!r}; give both")
        object.__setattr__(self, "name", self.name or self.type)


def told(caption: str, question: str = "") -> str:
    r"""A prompt with a caption at the position of the latents: the same text around captions and latents.

    >>> told("a red three", "The digit is")
    'Picture: a red three.\nThe digit is'
    """
    return f"{BEFORE} {caption}{AFTER}{question}"


def picture_task(
    pictures: PictureSet, question: Question, *, template: AnyTemplate = "raw", answers_from: PictureSet | None = None
) -> Task:
    r"""The items of one question: one per picture that has the fact.

    The sender's text is the id of the picture, the receiver's is the question alone, and the skyline's is the true
    caption and the question: the skyline. A reply may give a number from zero to ten in words or as a numeral. Up
    to 20 answers, all of them are choices of every item; of more, each item gets 20. `answers_from` gives the answers
    that choices are made of where the question names none; by default this set. Tags: type, question, picture.

    Raises:
        ValueError: no picture has the fact, a fact that the question's text names is missing, or fewer than two
            different answers.

    >>> from PIL import Image
    >>> pictures = [Picture(word, Image.new("RGB", (1, 1)), f"a {word}", {"identity": word}) for word in ("one", "two")]
    >>> task = picture_task(PictureSet("digits", tuple(pictures)), Question("identity", "The digit is", "identity"))
    >>> task.items[0].skyline, task.items[0].choice
    ('Picture: a one.\nThe digit is', ' one')
    """
    with_fact = [picture for picture in pictures if question.fact in picture.facts]
    if not with_fact:
        raise ValueError(
            f"no picture of {pictures.name!r} has the fact {question.fact!r} that {question.name!r} needs; "
            "leave the question out, or give pictures that have it"
        )
    answers = question.answers or tuple(
        sorted(
            {_canonical(each.facts[question.fact]) for each in answers_from or pictures if question.fact in each.facts}
        )
    )
    lead = " " if template == "raw" else ""
    candidates = tuple(f"{lead}{answer}" for answer in answers)
    if len(candidates) < 2:
        raise ValueError(f"{question.name!r} has the answers {answers}; a question needs at least two")
    shared = candidates if len(candidates) <= DEFAULT_N_CHOICES else None
    items = tuple(_item(picture, question, lead, shared) for picture in with_fact)
    settings = {"pictures": pictures.name, "question": question.name, "ask": question.ask}
    return Task(f"{pictures.name}: {question.name}", items, candidates, template, settings, together="group")


def _canonical(answers: str) -> str:
    return answers.split("|", maxsplit=1)[0]


def _item(picture: Picture, question: Question, lead: str, candidates: tuple[str, ...] | None) -> Item:
    try:
        prompt = question.ask.format(**picture.facts)
    except KeyError as error:
        raise ValueError(
            f"the picture {picture.id!r} has no fact {error.args[0]!r}, which {question.ask!r} names; give it one"
        ) from error
    answers = tuple(picture.facts[question.fact].split("|"))
    answers += tuple(str(NUMBERS.index(answer)) for answer in answers if answer in NUMBERS)
    return Item(
        id=f"{picture.id}/{question.name}",
        sender=picture.id,
        receiver=prompt,
        skyline=told(picture.caption, prompt),
        answers=answers,
        choice=f"{lead}{answers[0]}",
        tags={"type": question.type, "question": question.name, "picture": picture.id, "group": picture.group},
        candidates=candidates,
    )


def answerable(pictures: PictureSet, questions: Sequence[Question]) -> tuple[Question, ...]:
    """The questions that at least one picture answers."""
    return tuple(each for each in questions if any(each.fact in picture.facts for picture in pictures))


def distinct_choices(task: Task, first_token: Callable[[str], int], *, seed: int = 0) -> Task:
    """The task with choices that differ in their first tokens for a receiver, equally many for every item.

    Where answers share a first token, one of them is drawn for each item: the right answer, or any that is not right.
    An item therefore has as many choices as there are different first tokens, at most 20, in the order of the answers.
    A task whose choices all differ is returned unchanged.

    Args:
        task: of `picture_task`.
        first_token: of a choice; see `Model.first_token`.
        seed: of the draws.

    Raises:
        ValueError: an item with fewer than two choices that differ.

    >>> items = tuple(Item(a, "s", "r", "s r", (a,), f" {a}") for a in ("Niger", "Nigeria", "Peru"))
    >>> task = Task("toy", items, (" Niger", " Nigeria", " Peru"), "raw")
    >>> [item.candidates for item in distinct_choices(task, lambda choice: ord(choice[1])).items]
    [(' Niger', ' Peru'), (' Nigeria', ' Peru'), (' Nigeria', ' Peru')]
    """
    tokens = {choice: first_token(choice) for item in task.items for choice in item.candidates or task.candidates}
    drawn = [_differing(item, task, tokens, random.Random(f"distinct:{seed}:{item.id}")) for item in task.items]
    n = min(DEFAULT_N_CHOICES, *map(len, drawn))
    if n < 2:
        raise ValueError(
            f"the choices of {task.name!r} begin with the same token for this receiver, as do "
            f"{' and '.join(choice.strip() for choice in sorted(tokens)[:2])}; leave the question out, or give answers "
            "that begin differently"
        )
    pools = [item.candidates or task.candidates for item in task.items]
    if all(
        len(pool) == n if item.candidates else n == DEFAULT_N_CHOICES
        for item, pool in zip(task.items, pools, strict=True)
    ):
        return task
    selected = [set(choices[:n]) for choices in drawn]
    return replace(
        task,
        items=tuple(
            replace(item, candidates=tuple(choice for choice in pool if choice in chosen))
            for item, pool, chosen in zip(task.items, pools, selected, strict=True)
        ),
    )


def _differing(item: Item, task: Task, tokens: Mapping[str, int], rng: random.Random) -> list[str]:
    """The item's right choice, then others in random order, no two with the same first token."""
    pool = item.candidates or task.candidates
    by_token = {tokens[item.choice]: item.choice}
    for choice in rng.sample(pool, len(pool)):
        if tokens[choice] not in by_token and not is_correct(choice, item.answers):
            by_token[tokens[choice]] = choice
    return list(by_token.values())
