"""KV-MATH worked out: sums of keys, answered by the numbers first and then the additions, one step after another."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from latentcomm.models.prompts import Template
from latentcomm.tasks.base import Item, Task
from latentcomm.tasks.kv_math import TEST_FRACTION, Part, sums_task

N_KEYS, HIGHEST = 20, 30
"""Keys, and the largest number that one of them may have."""
TERMS = (2, 3, 4)
"""Keys of a sum; a sum of t of them is worked out in t² + t - 1 words."""
EVERY = 3
"""Of what either model learns, every third sum is in numbers alone."""
MOST_DRAWS = 1000
"""Draws in a row that brought nothing new, after which there is taken to be nothing new."""


class Worked(NamedTuple):
    """A prompt and its continuation."""

    prompt: str
    reply: str


def kv_math_worked(
    *,
    n: int = 200,
    n_keys: int = N_KEYS,
    highest: int = HIGHEST,
    n_terms: Sequence[int] = TERMS,
    part: Part = "test",
    test_fraction: float = TEST_FRACTION,
    template: Template = "raw",
    seed: int = 0,
) -> Task:
    """Generated sums of two or more keys, "<k3> + <k7> + <k1> =", to be worked out: "5 + 23 + 12 = 28 + 12 = 40".

    The task on which one model can begin the reasoning and another finish it. A model that has learnt `knowing_texts`
    writes the numbers of the keys and adds them up, one step after another; one that has learnt `arithmetic_texts`
    continues from any point at which the numbers are in its context, and has never seen those of a key. Once the
    numbers are written, 2t - 1 words for t keys, either can finish. Both read the sum of keys; the skyline is the same
    sum in numbers. The reply is judged by its last number.

    The pairs of different keys are divided once by `seed`: a share `test_fraction` of them is tested. The first two
    keys of a tested sum are such a pair; in what either model trains on, no two keys of a sum are one, and no two
    numbers, partial sums among them, are added that are the numbers of one. `part="train"` gives sums of that kind.
    Sums of each of `n_terms` lengths come equally often. Tags: terms, keys, pair (the tested one, several sums each);
    splits preserve the share of the terms.

    After the key-value task of Bansal et al. 2024, arXiv:2401.02412 (`kv_math`).

    Raises:
        ValueError: an option out of its range, or more items than there are sums.

    >>> task = kv_math_worked(n=3, seed=1)
    >>> item, table = task.items[0], worked_table(seed=1)
    >>> numbers = [table[key] for key in item.tags["keys"].split()]
    >>> item.answers == (str(sum(numbers)),), item.skyline == f"{numbers[0]} + {numbers[1]} ="
    (True, True)
    """
    if n < 1:
        raise ValueError(f"n is {n}; request at least one sum")
    sums = _Sums(n_keys, highest, tuple(n_terms), test_fraction, seed)
    drawn = sums.different(n, part)
    items = tuple(
        Item(
            id=f"worked-{'+'.join(keys)}",
            sender=_sum_text(keys),
            receiver=_sum_text(keys),
            skyline=_sum_text([sums.table[key] for key in keys]),
            answers=(str(sum(sums.table[key] for key in keys)),),
            tags={"terms": str(len(keys)), "keys": " ".join(keys), "pair": " ".join(sorted(keys[:2]))},
        )
        for keys in drawn
    )
    most = max(n_terms)
    settings = {"n": n, "n_keys": n_keys, "highest": highest, "n_terms": tuple(n_terms), "part": part}
    settings |= {"test_fraction": test_fraction, "template": template, "seed": seed}
    return sums_task("kv_math_worked", items, settings, strata=("terms",), reply_tokens=most * most + most)


def worked_table(*, n_keys: int = N_KEYS, highest: int = HIGHEST, seed: int = 0) -> dict[str, int]:
    """What the large model knows: a number from 1 to `highest` for each key "<k0>", "<k1>", ..., no number twice.

    Raises:
        ValueError: fewer than 4 keys, or more than there are numbers.

    >>> sorted(worked_table(n_keys=4, highest=4).values())
    [1, 2, 3, 4]
    """
    if not 4 <= n_keys <= highest:
        raise ValueError(f"n_keys is {n_keys}; with highest={highest} give 4 to {highest}, so that no two share one")
    values = random.Random(f"kv_math_worked:{seed}:table").sample(range(1, highest + 1), n_keys)
    return {f"<k{number}>": value for number, value in enumerate(values)}


def worked_words(*, n_keys: int = N_KEYS, highest: int = HIGHEST, n_terms: Sequence[int] = TERMS) -> tuple[str, ...]:
    """Every word of prompts and replies: the keys, all numbers that may come out, "+" and "=".

    >>> worked_words(n_keys=4, highest=4, n_terms=(2,))[3:7]
    ('<k3>', '1', '2', '3')
    """
    return (*(f"<k{number}>" for number in range(n_keys)), *map(str, range(1, highest * max(n_terms) + 1)), "+", "=")


def knowing_texts(
    n: int,
    *,
    n_keys: int = N_KEYS,
    highest: int = HIGHEST,
    n_terms: Sequence[int] = TERMS,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    text_seed: int = 0,
) -> tuple[Worked, ...]:
    """What the large model learns: n sums of keys of the training part, worked out. Sums may come twice.

    Every third is in numbers and continues the skyline's text from where it breaks off, as in `arithmetic_texts`. The
    options are those of the task; `text_seed` draws other sums of the same division.

    Raises:
        ValueError: as `kv_math_worked`.

    >>> [text.prompt[0] for text in knowing_texts(3)].count("<")
    2
    """
    sums = _Sums(n_keys, highest, tuple(n_terms), test_fraction, seed)
    rng = random.Random(f"kv_math_worked:{seed}:knowing:{text_seed}")
    texts = []
    for number in range(n):
        terms = rng.choice(sums.n_terms)
        if number % EVERY == 0:
            texts.append(_begun(sums.draw_numbers(terms, rng)))
        else:
            keys = sums.draw(terms, "train", rng)
            texts.append(Worked(_sum_text(keys), worked_out([sums.table[key] for key in keys])))
    return tuple(texts)


def arithmetic_texts(
    n: int,
    *,
    n_keys: int = N_KEYS,
    highest: int = HIGHEST,
    n_terms: Sequence[int] = TERMS,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    text_seed: int = 0,
) -> tuple[Worked, ...]:
    """What the small model learns: n worked sums of numbers, broken off at any point and continued.

    The numbers are drawn afresh each time, so that the keys before them, drawn as well, carry no information about
    them; a third of the sums have no keys before them and break off where the skyline's do. Nothing of the table is in
    these texts.

    Raises:
        ValueError: as `kv_math_worked`.

    >>> text = arithmetic_texts(1)[0]
    >>> (text.prompt + " " + text.reply).rpartition(" ")[2].isdigit()
    True
    """
    sums = _Sums(n_keys, highest, tuple(n_terms), test_fraction, seed)
    rng = random.Random(f"kv_math_worked:{seed}:reckoning:{text_seed}")
    texts = []
    for number in range(n):
        numbers = sums.draw_numbers(rng.choice(sums.n_terms), rng)
        if number % EVERY == 0:
            texts.append(_begun(numbers))
        else:
            words, keys = worked_out(numbers).split(), rng.sample(list(sums.table), len(numbers))
            cut = rng.randrange(len(words))
            texts.append(Worked(" ".join([_sum_text(keys), *words[:cut]]), " ".join(words[cut:])))
    return tuple(texts)


def pairs_of(items: Sequence[Item]) -> dict[str, str] | None:
    """The tested pair of keys of each item, for a bootstrap over pairs; None where an item has none."""
    pairs = {item.id: item.tags["pair"] for item in items if "pair" in item.tags}
    return pairs if len(pairs) == len(items) else None


def worked_out(numbers: Sequence[int]) -> str:
    """A sum of numbers, its first two added a step, until one is left.

    >>> worked_out([5, 23, 12])
    '5 + 23 + 12 = 28 + 12 = 40'
    """
    steps = [(sum(numbers[: done + 1]), *numbers[done + 1 :]) for done in range(len(numbers))]
    return " = ".join(" + ".join(map(str, step)) for step in steps)


def _begun(numbers: Sequence[int]) -> Worked:
    """A sum in numbers that continues the skyline's text from where it breaks off."""
    begun, _, rest = worked_out(numbers).partition(" = ")
    return Worked(f"{begun} =", rest)


def _sum_text(terms: Sequence[str | int]) -> str:
    return " + ".join(map(str, terms)) + " ="


@dataclass(frozen=True)
class _Sums:
    """The table, and which pairs of keys are tested."""

    n_keys: int
    highest: int
    n_terms: tuple[int, ...]
    test_fraction: float
    seed: int
    table: dict[str, int] = field(init=False)
    tested: tuple[tuple[str, str], ...] = field(init=False)
    _tested_numbers: frozenset[frozenset[int]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.n_terms or len(set(self.n_terms)) < len(self.n_terms) or min(self.n_terms) < 2:
            raise ValueError(f"n_terms are {self.n_terms}; give one or more different numbers of keys from 2")
        table = worked_table(n_keys=self.n_keys, highest=self.highest, seed=self.seed)
        if max(self.n_terms) > self.n_keys:
            raise ValueError(f"n_terms are {self.n_terms}, and there are {self.n_keys} keys; give more keys")
        pairs = list(combinations(table, 2))
        n_tested = round(self.test_fraction * len(pairs))
        if not 0.0 < self.test_fraction < 1.0 or not 0 < n_tested < len(pairs):
            raise ValueError(
                f"test_fraction {self.test_fraction} of {len(pairs)} pairs leaves one part empty; give a share between "
                "0 and 1, or more keys"
            )
        tested = tuple(random.Random(f"kv_math_worked:{self.seed}:tested").sample(pairs, n_tested))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "tested", tested)
        object.__setattr__(
            self, "_tested_numbers", frozenset(frozenset(map(table.__getitem__, pair)) for pair in tested)
        )

    def adds_a_tested_pair(self, numbers: Sequence[int]) -> bool:
        """Whether two of the numbers, or a partial sum and the number added to it, are those of a tested pair."""
        steps = [(sum(numbers[:done]), numbers[done]) for done in range(1, len(numbers))]
        return any(frozenset(pair) in self._tested_numbers for pair in (*combinations(numbers, 2), *steps))

    def draw(self, terms: int, part: Part, rng: random.Random) -> tuple[str, ...]:
        """The keys of a sum of a part, at random."""
        for _ in range(MOST_DRAWS):
            keys = tuple(rng.sample(list(self.table), terms))
            if part == "test":
                first = rng.choice(self.tested)
                return (*rng.sample(first, 2), *[key for key in keys if key not in first][: terms - 2])
            if not self.adds_a_tested_pair([self.table[key] for key in keys]):
                return keys
        raise ValueError(f"almost every sum of {terms} keys holds a tested pair; lower test_fraction")

    def draw_numbers(self, terms: int, rng: random.Random) -> list[int]:
        """Numbers to add, at random, that are no tested pair's."""
        for _ in range(MOST_DRAWS):
            numbers = [rng.randint(1, self.highest) for _ in range(terms)]
            if not self.adds_a_tested_pair(numbers):
                return numbers
        raise ValueError(f"almost every sum of {terms} numbers holds a tested pair; lower test_fraction")

    def different(self, n: int, part: Part) -> list[tuple[str, ...]]:
        """Different sums of a part, n of them, the lengths in rotation; a larger n only adds."""
        rng, found = random.Random(f"kv_math_worked:{self.seed}:{part}"), {}
        while len(found) < n:
            terms = self.n_terms[len(found) % len(self.n_terms)]
            drawn = (self.draw(terms, part, rng) for _ in range(MOST_DRAWS))
            new = next((keys for keys in drawn if keys not in found), None)
            if new is None:
                raise ValueError(
                    f"n is {n}, but after {len(found)} sums no new one of {terms} keys was found in the {part} part; "
                    "request fewer, or give more keys or numbers of terms"
                )
            found[new] = None
        return list(found)
