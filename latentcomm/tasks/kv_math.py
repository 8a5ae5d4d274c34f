"""KV-MATH: sums whose numbers are named by keys; one model knows the numbers, the other knows arithmetic."""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from latentcomm.models.prompts import Template
from latentcomm.tasks.base import Item, Task
from latentcomm.tasks.judging import Number

Part = Literal["test", "train"]
Operator = Literal["+", "-", "*"]
TEST_FRACTION = 0.2
"""The share of all pairs of keys that is held out, for every operator and order."""
MOST_KEYS = 3000
"""Pairs are counted one by one: some four and a half million of them."""


def kv_math(
    *,
    n: int = 200,
    n_keys: int = 50,
    n_digits: int = 2,
    operators: Sequence[Operator] = ("+", "-"),
    part: Part = "test",
    test_fraction: float = TEST_FRACTION,
    template: Template = "raw",
    seed: int = 0,
) -> Task:
    """Generated sums of two keys, such as "<k3> + <k7> =", whose answer is the number that comes out.

    A table (`key_table`) names a number for each key. The sender is a model that has learnt the table (`sender_texts`),
    the receiver one that has learnt arithmetic with numbers (`receiver_texts`); neither alone can answer. Both read the
    sum of keys. The skyline model reads the same sum in numbers, "417 + 238 =", as the receiver has learnt it. A model
    that learns to join the two trains on `joint_texts`. The reply is judged by its number.

    The pairs of different keys are divided once by `seed`: a share `test_fraction` of them is tested. No tested pair
    comes, by keys or in numbers, in any order and with any operator, in what either model or their joint
    trains on. `part="train"` gives sums of the other pairs, for training and for tuning. Numbers of different keys
    differ, and so do the items: n at most the number of pairs of the part times two orders times the operators. Tags:
    operator, keys; splits preserve the operators' share.

    Definition of the task: Bansal et al. 2024, arXiv:2401.02412.

    Raises:
        ValueError: an option out of its range, or more items than there are sums.

    >>> task = kv_math(n=4, n_keys=10, seed=1)
    >>> item, table = task.items[0], key_table(n_keys=10, n_digits=2, seed=1)
    >>> left, operator, right, _ = item.receiver.split()
    >>> item.skyline == f"{table[left]} {operator} {table[right]} ="
    True
    """
    table = key_table(n_keys=n_keys, n_digits=n_digits, seed=seed)
    sums = _sums(table, operators=operators, part=part, test_fraction=test_fraction, seed=seed, n=n)
    items = tuple(
        Item(
            id=f"kv-{left}{operator}{right}",
            sender=f"{left} {operator} {right} =",
            receiver=f"{left} {operator} {right} =",
            skyline=f"{table[left]} {operator} {table[right]} =",
            answers=(str(_result(table[left], operator, table[right])),),
            tags={"operator": operator, "keys": f"{left} {right}"},
        )
        for left, operator, right in sums
    )
    settings = {"n": n, "n_keys": n_keys, "n_digits": n_digits, "operators": tuple(operators), "part": part}
    settings |= {"test_fraction": test_fraction, "template": template, "seed": seed}
    return sums_task("kv_math", items, settings, strata=("operator",), reply_tokens=2 * n_digits + 2)


def sums_task(
    name: str, items: tuple[Item, ...], settings: dict[str, Any], *, strata: tuple[str, ...], reply_tokens: int
) -> Task:
    """A task of generated sums, whose replies are judged by their number."""
    return Task(name, items, (), settings["template"], settings, strata, judge=Number(), reply_tokens=reply_tokens)


def key_table(*, n_keys: int = 50, n_digits: int = 2, seed: int = 0) -> dict[str, int]:
    """What the sender knows: a number of `n_digits` digits for each key "<k0>", "<k1>", ..., no number twice.

    Raises:
        ValueError: fewer than 4 keys, more than `MOST_KEYS`, or more than there are numbers.

    >>> table = key_table(n_keys=5, n_digits=3)
    >>> list(table), len(set(table.values())), all(100 <= value <= 999 for value in table.values())
    (['<k0>', '<k1>', '<k2>', '<k3>', '<k4>'], 5, True)
    """
    if n_digits < 1:
        raise ValueError(f"n_digits is {n_digits}; numbers have at least one")
    low, high = 10 ** (n_digits - 1), 10**n_digits
    if not 4 <= n_keys <= min(MOST_KEYS, high - low):
        raise ValueError(
            f"n_keys is {n_keys}; with n_digits={n_digits} give 4 to {min(MOST_KEYS, high - low)}, "
            "so that no two keys share a number"
        )
    values = random.Random(f"kv_math:{seed}:table").sample(range(low, high), n_keys)
    return {f"<k{number}>": value for number, value in enumerate(values)}


def sender_texts(table: Mapping[str, int]) -> tuple[str, ...]:
    """What the sender memorises: every key with its number.

    >>> sender_texts({"<k0>": 41, "<k1>": 23})
    ('<k0> = 41', '<k1> = 23')
    """
    return tuple(f"{key} = {value}" for key, value in table.items())


def receiver_texts(
    n: int,
    *,
    n_keys: int = 50,
    n_digits: int = 2,
    operators: Sequence[Operator] = ("+", "-"),
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    text_seed: int = 0,
) -> tuple[str, ...]:
    """What the receiver learns: n sums of two numbers of `n_digits` digits, worked out, and none of a tested pair.

    The options are those of the task; `text_seed` draws other sums of the same division. Sums may come twice.

    Raises:
        ValueError: as `kv_math`.

    >>> receiver_texts(2, n_digits=1, n_keys=5, operators=("+",))[0].count("=")
    1
    """
    _refuse_bad_options(n, operators, test_fraction)
    table = key_table(n_keys=n_keys, n_digits=n_digits, seed=seed)
    keys = {value: number for number, value in enumerate(table.values())}
    tested = _tested_pairs(n_keys, test_fraction, seed)
    rng = random.Random(f"kv_math:{seed}:receiver:{text_seed}")
    low, high = 10 ** (n_digits - 1), 10**n_digits - 1

    def drawn() -> Iterator[str]:
        while True:
            left, operator, right = rng.randint(low, high), rng.choice(list(operators)), rng.randint(low, high)
            pair = sorted((keys.get(left, -1), keys.get(right, -1)))
            if pair[0] < 0 or pair[0] == pair[1] or _pair_index(pair[0], pair[1]) not in tested:
                yield f"{left} {operator} {right} = {_result(left, operator, right)}"

    return tuple(islice(drawn(), n))


def joint_texts(
    n: int,
    *,
    n_keys: int = 50,
    n_digits: int = 2,
    operators: Sequence[Operator] = ("+", "-"),
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> tuple[str, ...]:
    """What a join of both models learns: n different sums of keys of the training part, with what comes out.

    Raises:
        ValueError: as `kv_math`.

    >>> text = joint_texts(1, n_keys=10)[0]
    >>> text.startswith("<k") and text.split(" = ")[1].lstrip("-").isdigit()
    True
    """
    task = kv_math(
        n=n,
        n_keys=n_keys,
        n_digits=n_digits,
        operators=operators,
        part="train",
        test_fraction=test_fraction,
        seed=seed,
    )
    return tuple(f"{item.receiver} {item.answers[0]}" for item in task.items)


def _sums(
    table: Mapping[str, int], *, operators: Sequence[Operator], part: Part, test_fraction: float, seed: int, n: int
) -> list[tuple[str, Operator, str]]:
    """Different sums of keys of a part, n of them in random order; a larger n only adds."""
    _refuse_bad_options(n, operators, test_fraction)
    keys = list(table)
    tested = _tested_pairs(len(keys), test_fraction, seed)
    indices = range(len(keys) * (len(keys) - 1) // 2)
    pairs = [index for index in indices if (index in tested) == (part == "test")]
    if n > 2 * len(operators) * len(pairs):
        raise ValueError(
            f"n is {n}, but {len(keys)} keys have only {2 * len(operators) * len(pairs)} sums in the {part} part; "
            "request fewer, or give more keys or operators"
        )
    rng = random.Random(f"kv_math:{seed}:{part}")
    sums, seen = [], set()
    while len(sums) < n:
        i, j = _pair(rng.choice(pairs))
        left, right = (i, j) if rng.random() < 0.5 else (j, i)
        one = (keys[left], rng.choice(list(operators)), keys[right])
        if one not in seen:
            seen.add(one)
            sums.append(one)
    return sums


def _tested_pairs(n_keys: int, fraction: float, seed: int) -> set[int]:
    n_pairs = n_keys * (n_keys - 1) // 2
    n_tested = round(fraction * n_pairs)
    if not 0 < n_tested < n_pairs:
        raise ValueError(f"test_fraction {fraction} of {n_pairs} pairs leaves one part empty; change it or n_keys")
    return set(random.Random(f"kv_math:{seed}:tested").sample(range(n_pairs), n_tested))


def _pair_index(i: int, j: int) -> int:
    """The index of a pair of numbers i < j in the row (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    return j * (j - 1) // 2 + i


def _pair(index: int) -> tuple[int, int]:
    j = 1
    step = 1 << index.bit_length()
    while step:
        if (j + step) * (j + step - 1) // 2 <= index:
            j += step
        step >>= 1
    return index - j * (j - 1) // 2, j


def _result(left: int, operator: Operator, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _refuse_bad_options(n: int, operators: Sequence[Operator], test_fraction: float) -> None:
    if n < 1:
        raise ValueError(f"n is {n}; request at least one sum")
    if not operators or len(set(operators)) < len(operators):
        raise ValueError(f"operators are {tuple(operators)}; give one or more different ones of +, - and *")
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction is {test_fraction}; give a number between 0 and 1, both excluded")
