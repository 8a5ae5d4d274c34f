"""Sums of keys: what comes out, and that nothing tested is ever trained on."""

import random
import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from latentcomm.tasks import Task, kv_math
from latentcomm.tasks.kv_math import _pair, _pair_index, joint_texts, key_table, receiver_texts, sender_texts

SUM = re.compile(r"(\S+) ([-+*]) (\S+) =")
OPTIONS = {"n_keys": 12, "n_digits": 2, "seed": 3}
every_seed = pytest.mark.parametrize("options", [OPTIONS | {"seed": seed} for seed in range(3)])


def worked_out(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def pairs(task: Task) -> set[frozenset[str]]:
    """The pairs of keys, read out of the texts."""
    found = [SUM.fullmatch(item.receiver) for item in task.items]
    return {frozenset((match[1], match[3])) for match in found if match}


class TestTheTask:
    def test_the_answer_is_what_the_keys_numbers_come_to(self) -> None:
        table = key_table(**OPTIONS)
        task = kv_math(n=60, operators=("+", "-", "*"), **OPTIONS)
        for item in task.items:
            match = SUM.fullmatch(item.receiver)
            assert match
            value = worked_out(table[match[1]], match[2], table[match[3]])
            assert item.answers == (str(value),)
            assert task.judge(f" {value}", item.answers).is_right
            assert not task.judge(f" {value + 1}", item.answers).is_right

    def test_both_read_the_keys_and_the_skyline_the_numbers(self) -> None:
        table = key_table(**OPTIONS)
        for item in kv_math(n=20, **OPTIONS).items:
            assert item.sender == item.receiver
            numbers = re.sub(r"<k\d+>", lambda key: str(table[key[0]]), item.receiver)
            assert item.skyline == numbers != item.receiver
            assert not any(str(value) in item.receiver.split() for value in table.values())

    def test_items_are_different_sums_and_more_only_add(self) -> None:
        short, long = kv_math(n=10, **OPTIONS), kv_math(n=50, **OPTIONS)
        assert len({item.receiver for item in long.items}) == 50
        assert long.items[:10] == short.items

    def test_all_sums_of_a_part_can_be_had_and_no_more(self) -> None:
        n_pairs = 66
        for part, n_part in (("test", 13), ("train", n_pairs - 13)):
            task = kv_math(n=4 * n_part, part=part, **OPTIONS)
            assert len(pairs(task)) == n_part
            with pytest.raises(ValueError, match=f"only {4 * n_part} sums"):
                kv_math(n=4 * n_part + 1, part=part, **OPTIONS)

    def test_every_operator_and_order_comes_equally_often(self) -> None:
        task = kv_math(n=2000, n_keys=80, operators=("+", "-"))
        counts = Counter(item.tags["operator"] for item in task.items)
        assert all(900 < count < 1100 for count in counts.values())
        upward = sum(int(a[2:-1]) < int(b[2:-1]) for a, b in (item.tags["keys"].split() for item in task.items))
        assert 900 < upward < 1100

    def test_a_seed_fixes_it_and_another_changes_it(self) -> None:
        assert repr(kv_math(n=30, seed=1)) == repr(kv_math(n=30, seed=1)) != repr(kv_math(n=30, seed=2))
        assert kv_math(n=1, seed=0).items[0].sender == KNOWN_SUM

    def test_bad_options_are_refused(self) -> None:
        for options, message in (
            ({"n": 0}, "n is 0"),
            ({"n_keys": 3}, "n_keys is 3"),
            ({"n_keys": 91}, "4 to 90"),
            ({"n_digits": 0}, "n_digits is 0"),
            ({"operators": ()}, "operators are"),
            ({"operators": ("+", "+")}, "operators are"),
            ({"test_fraction": 0.0}, "test_fraction is 0"),
            ({"n_keys": 4, "test_fraction": 0.01}, "leaves one part empty"),
        ):
            with pytest.raises(ValueError, match=message):
                kv_math(**options)  # type: ignore[arg-type]


class TestHeldOut:
    @every_seed
    def test_the_parts_share_no_pair_of_keys_and_lose_none(self, options: dict[str, Any]) -> None:
        test, train = kv_math(n=52, part="test", **options), kv_math(n=212, part="train", **options)
        assert not pairs(test) & pairs(train)
        assert pairs(test) | pairs(train) == {frozenset(pair) for pair in combinations(key_table(**options), 2)}

    @every_seed
    def test_no_tested_sum_is_in_what_either_model_or_both_train_on(self, options: dict[str, Any]) -> None:
        table = key_table(**options)
        tested = pairs(kv_math(n=52, **options))
        numbers = {frozenset(str(table[key]) for key in pair) for pair in tested}
        trained = [SUM.match(text) for text in receiver_texts(20_000, **options)]
        seen = {frozenset((match[1], match[3])) for match in trained if match}
        assert not numbers & seen
        of_table = {frozenset(map(str, pair)) for pair in combinations(table.values(), 2)}
        assert of_table - numbers <= seen  # while all others are there to be learnt
        joint = [SUM.match(text) for text in joint_texts(212, **options)]
        assert not tested & {frozenset((match[1], match[3])) for match in joint if match}
        assert not any(SUM.search(text) for text in sender_texts(table))

    def test_numbers_of_another_seed_would_leak(self) -> None:
        table = key_table(**OPTIONS)
        numbers = {frozenset(str(table[key]) for key in pair) for pair in pairs(kv_math(n=52, **OPTIONS))}
        other = [SUM.match(text) for text in receiver_texts(20_000, **(OPTIONS | {"seed": 4}))]
        assert numbers & {frozenset((match[1], match[3])) for match in other if match}


class TestTrainingTexts:
    def test_the_table_names_a_number_of_its_own_for_each_key(self) -> None:
        table = key_table(n_keys=90, n_digits=2)
        assert sorted(table.values()) == list(range(10, 100))
        assert sender_texts(table)[5] == f"<k5> = {table['<k5>']}"
        assert key_table(n_keys=9, n_digits=1, seed=1) != key_table(n_keys=9, n_digits=1, seed=2)

    def test_sums_are_worked_out(self) -> None:
        for text in receiver_texts(500, operators=("+", "-", "*")):
            match = re.fullmatch(r"(\d\d) ([-+*]) (\d\d) = (-?\d+)", text)
            assert match
            assert int(match[4]) == worked_out(int(match[1]), match[2], int(match[3]))

    def test_joint_sums_are_those_of_the_table(self) -> None:
        table = key_table(**OPTIONS)
        for text in joint_texts(100, **OPTIONS):
            match = re.fullmatch(r"(\S+) ([-+*]) (\S+) = (-?\d+)", text)
            assert match
            assert int(match[4]) == worked_out(table[match[1]], match[2], table[match[3]])

    def test_another_text_seed_draws_other_sums_of_the_same_division(self) -> None:
        assert receiver_texts(50, text_seed=0) != receiver_texts(50, text_seed=1)
        assert receiver_texts(50) == receiver_texts(50)

    def test_places_count_all_pairs_once(self) -> None:
        wanted = [(i, j) for j in range(60) for i in range(j)]
        assert [_pair(place) for place in range(len(wanted))] == wanted
        far = random.Random(0).sample(range(4_000_000), 200)
        assert [_pair_index(*_pair(place)) for place in far] == far


KNOWN_SUM = "<k17> - <k35> ="
