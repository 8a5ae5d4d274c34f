"""Items, splits, judging and choices, against rules written out by hand."""

from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcomm._core.files import digest
from latentcomm.tasks import DEFAULT_N_CHOICES, TASKS, Item, Task, countries, draw_choices, is_correct, tip_sheets

UNITED_STATES = ("United States", "United States of America", "USA", "U.S.A.", "US", "U.S.", "America")
UNITED_KINGDOM = ("United Kingdom", "UK", "U.K.", "Great Britain", "Britain")


def item(name: str, *, answer: str = "Greece", candidates: tuple[str, ...] | None = None, **tags: str) -> Item:
    return Item(name, f"sender {name}", f"receiver {name}", f"both {name}", (answer,), f" {answer}", tags, candidates)


def task_of(
    *items: Item, candidates: tuple[str, ...] = (" Greece", " Italy", " Oman", " Peru"), **more: object
) -> Task:
    return Task("toy", items, candidates, "raw", **more)  # type: ignore[arg-type]


def first_letter(choice: str) -> int:
    return ord(choice.strip()[0])


def each_reply(table: dict[tuple[str, ...], tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    return [(reply, answers) for answers, replies in table.items() for reply in replies]


ACCEPTED = {
    ("Italy",): (
        "Italy",
        " Italy",
        "\n\n\tItaly\n",
        "\N{NO-BREAK SPACE}Italy",
        "italy",
        "ITALY!",
        '"Italy"',
        "'Italy'",
        "\N{LEFT DOUBLE QUOTATION MARK}Italy\N{RIGHT DOUBLE QUOTATION MARK}",
        "\N{LEFT SINGLE QUOTATION MARK}Italy\N{RIGHT SINGLE QUOTATION MARK}",
        "«Italy»",
        "**Italy**",
        "_Italy_",
        "`Italy`",
        "Italy, in the city of Rome",
        "Italy.\nBob is in the country of France",
        "Italy - more precisely Rome",
        "Italy\N{EM DASH}Rome",
        "Italy's north",
    ),
    UNITED_STATES: (
        "the United States",
        'The "United States"',
        '"The United States',
        "THE UNITED STATES OF AMERICA",
        "United\n States",
        "USA.",
        "the US, of course",
        "U.S.",
        "U.S",
        "the U.S. of A.",
        "U.S.A",
        "America",
    ),
    UNITED_KINGDOM: (
        "U.K.",
        "Great Britain",
    ),
    ("the Netherlands",): ("Netherlands",),
    ("Netherlands",): ("the Netherlands",),
    ("The Gambia",): ("The Gambia",),
    ("Ivory Coast", "Cote d'Ivoire"): ("Côte d'Ivoire",),
    ("Ivory Coast", "Côte d'Ivoire"): ("Cote d'Ivoire",),
    ("Côte d'Ivoire",): (
        "Côte d\N{RIGHT SINGLE QUOTATION MARK}Ivoire",
        "co\N{COMBINING CIRCUMFLEX ACCENT}te d'ivoire",
    ),
    ("Turkey", "Türkiye"): (
        "Türkiye",
        "Turkiye",
    ),
    ("Guinea-Bissau",): ("Guinea-Bissau",),
    ("Guinea\N{HYPHEN}Bissau",): ("Guinea\N{NON-BREAKING HYPHEN}Bissau",),
}

REFUSED = {
    ("Italy",): (
        "",
        "  \n ",
        '"',
        "the",
        "The ",
        "not Italy",
        "Alice is in Italy",
        "A: Italy",
        "France or Italy",
        "the the Italy",
        "theItaly",
        "Ital",
        "Italyx",
        "Italy2",
    ),
    ("Niger",): ("Nigeria",),
    ("Nigeria",): ("Niger",),
    ("Guinea",): (
        "Guinea-Bissau",
        "Guinea\N{NON-BREAKING HYPHEN}Bissau",
        "Papua New Guinea",
    ),
    ("Dominica",): ("Dominican Republic",),
    ("India",): ("Indiana",),
    ("Oman",): ("Romania",),
    UNITED_STATES: (
        "us",
        "us all",
        "USSR",
        "United",
        "United Kingdom",
        "United Arab Emirates",
        "Americans",
    ),
    ("UK",): ("uk",),
    UNITED_KINGDOM: (
        "Ukraine",
        "Brittany",
        "England",
    ),
}


class TestJudgingAReply:
    @pytest.mark.parametrize(("reply", "answers"), each_reply(ACCEPTED))
    def test_it_counts_when_it_begins_with_an_accepted_answer(self, reply: str, answers: tuple[str, ...]) -> None:
        assert is_correct(reply, answers)

    @pytest.mark.parametrize(("reply", "answers"), each_reply(REFUSED))
    def test_it_fails_when_it_begins_with_anything_else(self, reply: str, answers: tuple[str, ...]) -> None:
        assert not is_correct(reply, answers)

    @pytest.mark.parametrize("answers", [(), ("",), ("Italy", " "), ("Italy", "..."), "Italy"])
    def test_answers_that_would_match_everything_or_letters_are_refused(self, answers: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="answers"):
            is_correct("Italy", answers)


class TestItemsAndTasks:
    def test_they_are_frozen_hashable_plain_data(self) -> None:
        one = item("1", fame="famous")
        task = task_of(one, settings={"a": 1})
        with pytest.raises(FrozenInstanceError):
            one.id = "2"  # type: ignore[misc]
        assert hash(task) == hash(task_of(item("1", fame="famous"), settings={"a": 1}))
        assert asdict(task)["items"][0]["tags"] == {"fame": "famous"}

    def test_a_later_change_of_the_callers_dict_does_not_reach_them(self) -> None:
        tags, options = {"fame": "famous"}, {"seed": 0}
        one = Item("1", "s", "r", "s r", ("Greece",), " Greece", tags)
        task = task_of(one, settings=options)
        tags["fame"], options["seed"] = "obscure", 1
        assert one.tags == {"fame": "famous"}
        assert task.settings == {"seed": 0}

    @pytest.mark.parametrize("name", ["id", "sender", "receiver", "skyline", "choice"])
    def test_an_item_with_an_empty_text_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"empty {name}"):
            replace(item("1"), **{name: " "})

    def test_an_item_must_have_answers_and_its_choice_among_candidates(self) -> None:
        with pytest.raises(ValueError, match="answers are"):
            replace(item("1"), answers=())
        with pytest.raises(ValueError, match="not among"):
            item("1", candidates=(" Italy", " Peru"))
        with pytest.raises(ValueError, match="repeat"):
            item("1", candidates=(" Greece", " Peru", " Peru"))

    def test_a_task_needs_unique_ids_and_choices_that_are_candidates(self) -> None:
        with pytest.raises(ValueError, match="no items"):
            task_of()
        with pytest.raises(ValueError, match="two items with the id '1'"):
            task_of(item("1"), item("1"))
        with pytest.raises(ValueError, match="' Greece' is not among"):
            task_of(item("1"), candidates=(" Italy",))
        with pytest.raises(ValueError, match="repeat"):
            task_of(item("1"), candidates=(" Greece", " Greece"))
        with pytest.raises(ValueError, match="none empty"):
            task_of(item("1"), candidates=(" Greece", " "))
        with pytest.raises(ValueError, match="no tag 'fame'"):
            task_of(item("1", fame="famous"), item("2"), strata=("fame",))


def naive_shares(task: Task) -> Counter[str]:
    return Counter(one.tags["fame"] for one in task.items)


fames = st.lists(st.sampled_from(["famous", "obscure", "in between"]), min_size=2, max_size=60)


def task_with(fames: list[str]) -> Task:
    return task_of(*(item(str(i), fame=fame) for i, fame in enumerate(fames)), strata=("fame",))


class TestSplits:
    @settings(max_examples=60, deadline=None)
    @given(fames=fames, seed=st.integers(0, 5), fraction=st.sampled_from([0.2, 0.5, 0.7]))
    def test_the_two_sides_partition_the_items_and_preserve_the_strata(
        self, fames: list[str], seed: int, fraction: float
    ) -> None:
        task = task_with(fames)
        n_tune = int(fraction * len(task.items) + 0.5)
        if n_tune in (0, len(task.items)):
            with pytest.raises(ValueError, match="one side empty"):
                task.split(seed=seed, tune_fraction=fraction)
            return
        tune, test = task.split(seed=seed, tune_fraction=fraction)
        assert not {one.id for one in tune.items} & {one.id for one in test.items}
        assert sorted(tune.items + test.items, key=lambda one: int(one.id)) == list(task.items)
        assert len(tune.items) == n_tune
        for fame, count in naive_shares(task).items():
            assert abs(naive_shares(tune)[fame] - n_tune * count / len(task.items)) < 1

    @settings(max_examples=40, deadline=None)
    @given(fames=fames, seed=st.integers(0, 5))
    def test_items_keep_the_tasks_order_on_both_sides(self, fames: list[str], seed: int) -> None:
        for side in task_with(fames).split(seed=seed):
            places = [int(one.id) for one in side.items]
            assert places == sorted(places)

    def test_the_same_seed_gives_the_same_split_and_another_seed_another(self) -> None:
        task = countries()
        first, again, other = (task.split(seed=seed)[0].items for seed in (3, 3, 4))
        assert first == again
        overlap = len({one.id for one in first} & {one.id for one in other}) / len(first)
        assert 0.35 < overlap < 0.65  # two independent halves share a half

    def test_a_known_seed_gives_this_split_on_every_machine(self) -> None:
        tune, _ = task_of(*(item(str(i)) for i in range(10))).split(seed=0)
        assert [one.id for one in tune.items] == ["0", "1", "2", "7", "9"]

    def test_every_item_is_as_likely_on_either_side(self) -> None:
        task = task_of(*(item(str(i), fame="ab"[i > 3]) for i in range(10)), strata=("fame",))
        counts = Counter(one.id for seed in range(400) for one in task.split(seed=seed)[0].items)
        assert all(140 < counts[one.id] < 260 for one in task.items)  # 200 expected, standard error 10

    def test_a_group_never_parts_while_the_strata_keep_their_share(self) -> None:
        task = countries()
        for seed in range(5):
            tune, test = task.split(seed=seed, tune_fraction=0.4, group=lambda one: one.tags["country"])
            assert not {one.tags["country"] for one in tune.items} & {one.tags["country"] for one in test.items}
            assert len(tune.items) + len(test.items) == len(task.items)
            for fame, count in naive_shares(task).items():
                assert naive_shares(tune)[fame] / count == pytest.approx(0.4, abs=0.03)

    def test_without_a_group_countries_do_part(self) -> None:
        tune, test = countries().split(seed=0)
        assert {one.tags["country"] for one in tune.items} & {one.tags["country"] for one in test.items}

    def test_groups_are_drawn_at_random_large_and_small_alike(self) -> None:
        items = [item(f"{group}{i}", group=group) for group in "abcdefgh" for i in range(1 + ord(group) % 3)]
        counts = Counter(
            one.tags["group"]
            for seed in range(300)
            for one in {
                other.tags["group"]: other
                for other in task_of(*items).split(seed=seed, group=lambda other: other.tags["group"])[0].items
            }.values()
        )
        assert all(90 < counts[group] < 220 for group in "abcdefgh")

    def test_one_group_alone_cannot_be_split(self) -> None:
        with pytest.raises(ValueError, match="one side empty"):
            task_of(item("1"), item("2")).split(seed=0, group=lambda _: "all")

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
    def test_a_fraction_outside_zero_to_one_is_refused(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="tune_fraction"):
            task_of(item("1"), item("2")).split(seed=0, tune_fraction=fraction)

    def test_the_settings_say_which_side_it_is_and_the_task_is_left_alone(self) -> None:
        task = task_of(item("1"), item("2"), settings={"fame": None})
        tune, test = task.split(seed=7)
        assert dict(tune.settings) == {
            "fame": None, "split_seed": 7, "tune_fraction": 0.5, "split_by": "item", "side": "tune",
        }  # fmt: skip
        assert test.settings["side"] == "test"
        assert task.settings == {"fame": None}
        assert tune.candidates == test.candidates == task.candidates


class TestTaking:
    @settings(max_examples=60, deadline=None)
    @given(fames=fames, seed=st.integers(0, 5), share=st.floats(0.05, 1.0))
    def test_a_sample_has_exactly_n_items_in_order_and_in_proportion(
        self, fames: list[str], seed: int, share: float
    ) -> None:
        task = task_with(fames)
        n = max(1, int(share * len(task.items)))
        sample = task.take(n, seed=seed)
        assert len(sample.items) == n
        places = [int(one.id) for one in sample.items]
        assert places == sorted(set(places))
        for fame, count in naive_shares(task).items():
            assert abs(naive_shares(sample)[fame] - n * count / len(task.items)) < 1
        assert sample == task.take(n, seed=seed)

    def test_seeds_draw_different_samples(self) -> None:
        assert len({countries().take(20, seed=seed).items for seed in range(5)}) == 5

    @pytest.mark.parametrize("n", [0, -1, 3])
    def test_a_number_that_is_not_there_is_refused(self, n: int) -> None:
        with pytest.raises(ValueError, match="cannot take"):
            task_of(item("1"), item("2")).take(n, seed=0)


class TestDrawingChoices:
    def test_choices_are_the_own_one_and_distractors_of_other_first_tokens(self) -> None:
        task = countries()
        for one, choices in zip(task.items, draw_choices(task, first_letter, n_choices=15, seed=0), strict=True):
            assert len(choices) == 15
            assert one.choice in choices
            assert set(choices) <= set(task.candidates)
            assert len({first_letter(choice) for choice in choices}) == 15

    def test_the_default_is_twenty_choices(self) -> None:
        task = countries().take(5, seed=0)
        by_name: Callable[[str], int] = {choice: number for number, choice in enumerate(task.candidates)}.__getitem__
        assert {len(choices) for choices in draw_choices(task, by_name, seed=0)} == {DEFAULT_N_CHOICES} == {20}

    def test_a_candidate_with_the_answers_first_token_is_never_drawn(self) -> None:
        task = task_of(item("1"), candidates=(" Greece", " Ghana", " Guatemala", " Italy", " Peru"))
        drawn = {choice for seed in range(30) for choice in draw_choices(task, first_letter, n_choices=3, seed=seed)[0]}
        assert drawn == {" Greece", " Italy", " Peru"}

    def test_a_candidate_that_would_be_judged_correct_is_never_a_distractor(self) -> None:
        one = Item("1", "s", "r", "s r", ("Greece", "Hellas"), " Greece")
        task = task_of(one, candidates=(" Greece", " Hellas", " Italy", " Peru"))
        assert set(draw_choices(task, first_letter, n_choices=3, seed=0)[0]) == {" Greece", " Italy", " Peru"}
        with pytest.raises(ValueError, match="only 3 of 4"):
            draw_choices(task, first_letter, n_choices=4, seed=0)

    def test_the_answer_stands_at_every_place_equally_often(self) -> None:
        task = task_of(*(item(str(i)) for i in range(800)))
        places = Counter(choices.index(" Greece") for choices in draw_choices(task, first_letter, n_choices=4, seed=1))
        assert sorted(places) == [0, 1, 2, 3]
        assert all(150 < count < 250 for count in places.values())

    def test_every_other_candidate_is_a_distractor_equally_often(self) -> None:
        candidates = (" Greece", " Chad", " Cuba", " Iran", " Mali", " Oman", " Peru", " Togo")
        task = task_of(*(item(str(i)) for i in range(700)), candidates=candidates)
        numbers: Callable[[str], int] = {choice: number for number, choice in enumerate(candidates)}.__getitem__
        drawn = Counter(choice for choices in draw_choices(task, numbers, n_choices=3, seed=0) for choice in choices)
        assert drawn.pop(" Greece") == 700
        assert set(drawn) == set(candidates[1:])
        assert all(140 < count < 260 for count in drawn.values())  # 200 expected, standard error 12

    def test_choices_depend_on_the_seed_and_the_item_alone(self) -> None:
        task = countries()
        tune, test = task.split(seed=0)

        def draw(one: Task, seed: int) -> dict[str, tuple[str, ...]]:
            choices = draw_choices(one, first_letter, n_choices=10, seed=seed)
            return dict(zip((each.id for each in one.items), choices, strict=True))

        assert draw(task, 0) == {**draw(tune, 0), **draw(test, 0)}
        assert draw(task, 0) != draw(task, 1)

    def test_an_items_own_candidates_are_all_its_choices_and_no_others(self) -> None:
        own = (" Greece", " Cuba", " Mali")
        task = task_of(item("1", candidates=own), item("2", candidates=own))
        assert [set(choices) for choices in draw_choices(task, first_letter, seed=0)] == [set(own)] * 2
        with pytest.raises(ValueError, match="omit n_choices"):
            draw_choices(task, first_letter, n_choices=20, seed=0)

    def test_items_with_unequal_numbers_are_refused(self) -> None:
        task = task_of(item("1", candidates=(" Greece", " Cuba")), item("2", candidates=(" Greece", " Cuba", " Mali")))
        with pytest.raises(ValueError, match=r"\[2, 3\] choices"):
            draw_choices(task, first_letter, seed=0)

    def test_candidates_that_cannot_be_told_apart_are_refused_not_dropped(self) -> None:
        with pytest.raises(ValueError, match="only 2 of 3 choices"):
            draw_choices(task_of(item("1", candidates=(" Greece", " Cuba", " Chad"))), first_letter, seed=0)
        with pytest.raises(ValueError, match="only 1 of 4 choices"):
            draw_choices(task_of(item("1")), lambda _: 0, n_choices=4, seed=0)
        with pytest.raises(ValueError, match="at least 2"):
            draw_choices(task_of(item("1")), first_letter, n_choices=1, seed=0)


OPTIONS = {"gsm8k": {"source": "sample"}, "mmlu": {"source": "sample"}}
"""What the tasks need that have no items of their own."""
ANSWERS_IN_TEXTS = ("gsm8k", "mmlu", "kv_math", "kv_math_worked", "prosqa")
"""Tasks whose models all read the same, where a letter or a number may well stand in what is asked."""


class TestTheTable:
    def test_it_names_each_task_as_the_task_names_itself(self) -> None:
        assert {name: make(**OPTIONS.get(name, {})).name for name, make in TASKS.items()} == {
            name: name for name in TASKS
        }
        assert TASKS["countries"] is countries
        assert TASKS["tip_sheets"] is tip_sheets

    @pytest.mark.parametrize("name", sorted(TASKS))
    @pytest.mark.parametrize("template", ["raw", "chat"])
    def test_every_task_keeps_the_contract(self, name: str, template: str) -> None:
        options = OPTIONS.get(name, {})
        task = TASKS[name](template=template, **options)
        assert task == TASKS[name](template=template, **options)
        assert task.template == task.settings["template"] == template
        for one in task.items:
            verdict = task.judge(f" {one.answers[0]}", one.answers)
            assert verdict.is_right and verdict.is_parsed
            assert not task.judge("", one.answers).is_parsed
            assert task.has_choices == bool(one.choice)
            if task.has_choices:
                assert is_correct(one.choice, one.answers)
                assert is_correct(one.answers[0], (one.choice.strip(),))
                assert one.choice.startswith(" ") == (template == "raw")
            assert one.skyline.endswith(one.receiver) != (
                name in ("kv_math", "kv_math_worked", "prosqa")  # whose skylines read the numbers, or the steps
            )
            if name not in ANSWERS_IN_TEXTS:
                assert not any(answer in one.receiver for answer in one.answers if one.candidates is None)
            assert all(text == text.strip() for text in (one.sender, one.receiver, one.skyline))

    @pytest.mark.parametrize("name", sorted(TASKS))
    def test_every_task_has_a_digest_that_follows_its_items(self, name: str) -> None:
        task = TASKS[name](**OPTIONS.get(name, {}))
        assert digest(task) == digest(TASKS[name](**OPTIONS.get(name, {})))
        assert digest(task) != digest(replace(task, items=task.items[1:]))


class TestMoreSenders:
    def test_an_item_of_several_senders_keeps_their_texts(self) -> None:
        assert item("1").more_senders == ()
        assert replace(item("1"), more_senders=("a", "b")).more_senders == ("a", "b")
        with pytest.raises(ValueError, match="empty text in more_senders"):
            replace(item("1"), more_senders=("a", " "))
