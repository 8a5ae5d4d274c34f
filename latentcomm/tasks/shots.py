"""Few-shot examples: the solved questions that precede the prompt's own."""

import random
from collections.abc import Sequence


def draw_shots(examples: Sequence[tuple[str, str]], questions: Sequence[str], n: int, *, seed: int) -> tuple[str, ...]:
    """The texts of n examples in random order, none of them one of the questions.

    `examples` are pairs of a key and a text, `questions` the keys of the questions; both are compared without regard to
    white space and case.

    Raises:
        ValueError: n is negative, or too few examples are left.

    >>> draw_shots([("a", "A 1"), ("b", "B 2")], ["B"], 1, seed=0)
    ('A 1',)
    """
    if n < 0:
        raise ValueError(f"n_shots is {n}; give 0 or more")
    taken = {_key(key) for key in questions}
    free = {_key(key): text for key, text in examples if _key(key) not in taken}
    if len(free) < n:
        raise ValueError(f"only {len(free)} examples are none of the questions, fewer than n_shots {n}; lower it")
    return tuple(random.Random(f"shots:{seed}").sample(list(free.values()), n))


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()
