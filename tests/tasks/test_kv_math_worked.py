"""Worked sums of keys: what comes out, that nothing tested is ever trained on, and who can know what."""

import re
from collections import Counter
from itertools import combinations

import pytest

from latentcomm.tasks import Task, kv_math_worked
from latentcomm.tasks.kv_math_worked import (
    Worked,
    arithmetic_texts,
    knowing_texts,
    worked_out,
    worked_table,
    worked_words,
)

OPTIONS = {"n_keys": 12, "highest": 15, "seed": 3}
KEY = re.compile(r"<k\d+>")


def keys_of(text: str) -> list[str]:
    return KEY.findall(text)


def first_pairs(task: Task) -> set[frozenset[str]]:
    return {frozenset(keys_of(item.receiver)[:2]) for item in task.items}


def in_numbers(text: Worked) -> str:
    """The whole line from its first number on: what stands behind the sum of keys, where there is one."""
    line = f"{text.prompt} {text.reply}"
    return line.split(" = ", 1)[1] if keys_of(line) else line


def added(line: str) -> list[tuple[int, int]]:
    """Every two numbers of the sum, and the two that each step adds, read out of the words alone."""
    steps = [[int(word) for word in step.split() if word.isdigit()] for step in line.split(" = ")]
    return [*combinations(steps[0], 2), *((step[0], step[1]) for step in steps if len(step) > 1)]


class TestTheTask:
    def test_the_answer_is_the_sum_of_the_keys_and_ends_the_worked_line(self) -> None:
        table = worked_table(**OPTIONS)
        task = kv_math_worked(n=30, **OPTIONS)
        for item in task.items:
            numbers = [table[key] for key in keys_of(item.receiver)]
            total = 0
            for number in numbers:
                total += number
            assert item.answers == (str(total),)
            line = worked_out(numbers)
            assert task.judge(line, item.answers).is_right
            assert not task.judge(f"{line} = {total + 1}", item.answers).is_right
            assert not task.judge(line.rpartition(" = ")[0], item.answers).is_right

    def test_every_step_of_a_worked_line_comes_to_the_same(self) -> None:
        line = worked_out([5, 23, 12, 1])
        assert line == "5 + 23 + 12 + 1 = 28 + 12 + 1 = 40 + 1 = 41"
        assert {sum(map(int, step.split(" + "))) for step in line.split(" = ")} == {41}

    def test_both_read_the_keys_and_the_skyline_the_numbers(self) -> None:
        table = worked_table(**OPTIONS)
        for item in kv_math_worked(n=12, **OPTIONS).items:
            assert item.sender == item.receiver and not re.search(r"\b\d+\b", KEY.sub("", item.receiver))
            assert item.skyline == KEY.sub(lambda key: str(table[key[0]]), item.receiver)

    def test_sums_of_every_length_come_equally_often_and_more_only_add(self) -> None:
        short, long = kv_math_worked(n=9, **OPTIONS), kv_math_worked(n=30, **OPTIONS)
        assert long.items[:9] == short.items
        assert len({item.receiver for item in long.items}) == 30
        assert Counter(item.tags["terms"] for item in long.items) == {"2": 10, "3": 10, "4": 10}

    def test_the_longest_reply_fits_and_one_token_fewer_would_not_end(self) -> None:
        for terms in ((2,), (2, 3), (5,)):
            task = kv_math_worked(n=3, n_terms=terms, **OPTIONS)
            assert task.reply_tokens == len(worked_out([1] * max(terms)).split()) + 1

    def test_a_seed_fixes_it_and_another_changes_it(self) -> None:
        assert (
            repr(kv_math_worked(n=9, seed=1)) == repr(kv_math_worked(n=9, seed=1)) != repr(kv_math_worked(n=9, seed=2))
        )

    def test_bad_options_are_refused(self) -> None:
        for options, message in (
            ({"n": 0}, "n is 0"),
            ({"n_keys": 3}, "n_keys is 3"),
            ({"n_keys": 31}, "4 to 30"),
            ({"n_terms": ()}, "n_terms are"),
            ({"n_terms": (1,)}, "n_terms are"),
            ({"n_terms": (2, 2)}, "n_terms are"),
            ({"n_terms": (6,), "n_keys": 5}, "give more keys"),
            ({"test_fraction": 1.0}, "leaves one part empty"),
            ({"n_keys": 4, "n_terms": (2,), "n": 3}, "after 2 sums no new one of 2 keys"),
        ):
            with pytest.raises(ValueError, match=message):
                kv_math_worked(**options)  # type: ignore[arg-type]


class TestHeldOut:
    @pytest.mark.parametrize("seed", range(2))
    def test_no_tested_pair_is_in_any_training_by_keys_or_numbers(self, seed: int) -> None:
        options = OPTIONS | {"seed": seed}
        table = worked_table(**options)
        tested = first_pairs(kv_math_worked(n=26, n_terms=(2,), **options))
        assert len(tested) == 13  # a fifth of the 66 pairs of 12 keys
        numbers = {frozenset(table[key] for key in pair) for pair in tested}
        for text in (*knowing_texts(2000, **options), *arithmetic_texts(2000, **options)):
            assert not numbers & set(map(frozenset, added(in_numbers(text))))
        for text in knowing_texts(2000, **options):
            assert not tested & set(map(frozenset, combinations(keys_of(text.prompt), 2)))

    def test_all_other_pairs_are_there_to_be_learnt(self) -> None:
        table = worked_table(**OPTIONS)
        tested = first_pairs(kv_math_worked(n=26, n_terms=(2,), **OPTIONS))
        seen: set[frozenset[str]] = set()
        for text in knowing_texts(3000, **OPTIONS):
            seen |= set(map(frozenset, combinations(keys_of(text.prompt), 2)))
        assert seen == {frozenset(pair) for pair in combinations(table, 2)} - tested

    def test_every_tested_sum_begins_with_a_tested_pair_whatever_its_length(self) -> None:
        tested = first_pairs(kv_math_worked(n=26, n_terms=(2,), **OPTIONS))
        assert first_pairs(kv_math_worked(n=60, n_terms=(3, 4), **OPTIONS)) <= tested


class TestTrainingTexts:
    def test_the_large_model_is_told_the_table_and_how_to_work_a_sum_out(self) -> None:
        table = worked_table(**OPTIONS)
        without_keys = 0
        for text in knowing_texts(51, **OPTIONS):
            keys = keys_of(text.prompt)
            without_keys += not keys
            numbers = [table[key] for key in keys] or [int(n) for n in text.prompt.removesuffix(" =").split(" + ")]
            assert in_numbers(text) == worked_out(numbers)
            assert text.prompt.endswith(" =")
        assert without_keys == 17

    def test_the_small_model_continues_correct_sums_and_cannot_learn_keys(self) -> None:
        table = worked_table(**OPTIONS)
        told: dict[str, set[str]] = {key: set() for key in table}
        alone = 0
        for text in arithmetic_texts(3000, **OPTIONS):
            keys = keys_of(text.prompt)
            line = in_numbers(text)
            numbers = [int(number) for number in line.split(" = ")[0].split(" + ")]
            assert line == worked_out(numbers)
            alone += not keys
            assert len(keys) in (0, len(numbers))
            for key, number in zip(keys, numbers, strict=False):
                told[key].add(str(number))
        assert alone == 1000
        assert all(len(numbers) == 15 for numbers in told.values())  # every key with every number

    def test_words_hold_all_that_is_read_or_written(self) -> None:
        words = worked_words(n_keys=12, highest=15)
        assert len(set(words)) == len(words)
        texts = [*knowing_texts(300, **OPTIONS), *arithmetic_texts(300, **OPTIONS)]
        assert {word for text in texts for word in f"{text.prompt} {text.reply}".split()} <= set(words)
        asked = kv_math_worked(n=30, **OPTIONS).items
        assert {word for item in asked for word in f"{item.skyline} {item.answers[0]}".split()} <= set(words)

    def test_a_text_seed_draws_others_of_the_same_division(self) -> None:
        for make in (knowing_texts, arithmetic_texts):
            assert make(20, **OPTIONS) == make(20, **OPTIONS) != make(20, text_seed=1, **OPTIONS)
