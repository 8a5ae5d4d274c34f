"""Questions on a graph of kinds, in the manner of ProsQA: which of two kinds is it, some steps of inference away."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from latentcomm.tasks.base import Item, Task, Template

NAMES = ("Tom", "Ada", "Max", "Eva", "Sam", "Ida")
KINDS = tuple(
    first + last
    for first in ("bor", "dax", "fen", "gup", "hil", "jom", "kel", "lum", "nar", "pim")
    for last in ("pus", "tis", "rin", "dle")
)
"""Invented kinds, one word each."""


@dataclass(frozen=True)
class Wording:
    """How facts and questions are worded: words divided by spaces.

    Attributes:
        fact: with {lower} and {upper}, the two kinds.
        question: what follows the facts, with {name}, {start}, {one} and {two}, the ends in random order.
        step: how an inference is worded, with {lower} and {upper}; as its fact where empty.
    """

    fact: str
    question: str
    step: str = ""


ENGLISH = Wording("Every {lower} is a {upper} .", "{name} is a {start} . Is {name} a {one} or a {two} ?")
TERSE = Wording("{lower} {upper} .", "{one} or {two} ? {name} {start}")
"""Half as many words, and a kind comes right before the one it belongs to: for models that must learn in minutes."""
NODES = Wording("{lower} {upper} .", "{one} or {two} ? {start}", "{upper}")
"""The same with no more of a step than the kind that it arrives at: one word, as a thought is one state."""


@dataclass(frozen=True)
class Problem:
    """One question with its solution.

    Attributes:
        question: the facts in random order, what the named one is, and the query: which of two kinds it is.
        steps: the inferences that lead to the answer, a sentence each.
        answer, other: the two kinds of the query, the right one first.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    other: str


def problems(
    n: int,
    *,
    n_steps: int = 4,
    n_dead_ends: int = 0,
    wording: Wording = ENGLISH,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> tuple[Problem, ...]:
    """Generated problems, each a graph of its own; problem i is the same for every n.

    Two chains of `n_steps` facts such as "Every X is a Y ." start at two kinds; the named one is of the first kind of
    one of them. The question names the ends of both chains, in random order, so that only following all steps
    distinguishes them: both ends are as deep and occur in as many facts, and no word is on one side more often than on
    the other. `n_dead_ends` facts lead from a kind on a chain to one from which nothing follows. Words are divided by
    spaces.

    Raises:
        ValueError: a number below 1 (or below 0, of dead ends), or more kinds than are given.

    >>> problem = problems(1, n_steps=2)[0]
    >>> len(problem.steps), problem.steps[-1].split()[-2] == problem.answer
    (2, True)
    """
    needed = 2 * (n_steps + 1) + n_dead_ends
    if n < 1 or n_steps < 1 or n_dead_ends < 0 or needed > len(kinds):
        raise ValueError(
            f"n {n}, n_steps {n_steps} and n_dead_ends {n_dead_ends} need positive numbers and {needed} kinds; "
            f"there are {len(kinds)}"
        )
    return tuple(
        _problem(random.Random(f"prosqa:{seed}:{index}"), n_steps, n_dead_ends, wording, kinds) for index in range(n)
    )


def prosqa(
    *,
    n: int = 200,
    n_steps: int = 4,
    n_dead_ends: int = 0,
    wording: Wording = ENGLISH,
    kinds: Sequence[str] = KINDS,
    template: Template = "raw",
    seed: int = 0,
) -> Task:
    """The problems as a task: sender and receiver read the question, the skyline its steps as well.

    Definition of the task: Hao et al. 2024, arXiv:2412.06769; graphs and words are this package's own.

    Raises:
        ValueError: what `problems` refuses.

    >>> prosqa(n=3, n_steps=2).items[0].receiver.split()[-1]
    '?'
    """
    items = tuple(
        Item(
            id=f"prosqa-{seed}-{number}",
            sender=each.question,
            receiver=each.question,
            skyline=" ".join((each.question, *each.steps)),
            answers=(each.answer,),
            tags={"answer": each.answer, "steps": str(n_steps)},
        )
        for number, each in enumerate(
            problems(n, n_steps=n_steps, n_dead_ends=n_dead_ends, wording=wording, kinds=kinds, seed=seed)
        )
    )
    settings = {
        "n": n, "n_steps": n_steps, "n_dead_ends": n_dead_ends, "wording": asdict(wording), "kinds": list(kinds),
        "template": template, "seed": seed,
    }  # fmt: skip
    return Task("prosqa", items, (), template, settings=settings, reply_tokens=2)


def words() -> tuple[str, ...]:
    """Every word that problems are made of, for the vocabulary of a small model."""
    return ("Every", "Is", "is", "a", "or", ".", "?", *NAMES, *KINDS)


def _problem(rng: random.Random, n_steps: int, n_dead_ends: int, wording: Wording, kinds: Sequence[str]) -> Problem:
    drawn = rng.sample(list(kinds), 2 * (n_steps + 1) + n_dead_ends)
    chain, decoy = drawn[: n_steps + 1], drawn[n_steps + 1 : 2 * (n_steps + 1)]
    edges = [*pairwise(chain), *pairwise(decoy)]
    edges += [(rng.choice([*chain[:-1], *decoy[:-1]]), leaf) for leaf in drawn[2 * (n_steps + 1) :]]
    rng.shuffle(edges)
    name = rng.choice(NAMES)
    facts = " ".join(wording.fact.format(lower=lower, upper=upper) for lower, upper in edges)
    ends = [chain[-1], decoy[-1]]
    rng.shuffle(ends)
    query = wording.question.format(name=name, start=chain[0], one=ends[0], two=ends[1])
    step_wording = wording.step or wording.fact
    steps = tuple(step_wording.format(lower=lower, upper=upper) for lower, upper in pairwise(chain))
    return Problem(f"{facts} {query}", steps, chain[-1], decoy[-1])
