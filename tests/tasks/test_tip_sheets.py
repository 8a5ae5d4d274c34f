"""The generated market notes: one right answer by content, and none by anything else."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
from jaxtyping import TypeCheckError
from scipy.stats import binom

from latentcomm.tasks import Item, draw_choices, tip_sheets
from latentcomm.tasks.tip_sheets import COMPANIES, TOPICS

N = 900
CONFIDENCE = 0.99  # of the two-sided binomial interval: 38 rules and seeds are tried, none may leave it

# Read off the English by hand, apart from the generator's own labels: one phrase for each piece of good or bad news.
GOOD = (
    "raised its profit forecast|won a|reported record|paid off|already profitable|sold out|regulator approve|"
    "won the patent|widened its profit|doubled their stakes|cut its production costs|best managed|fill its factories|"
    "doubled its cash|gained market share|hired the most admired|raised its dividend|praise it|that opens|"
    "passed every audit|ahead of time and budget|demand to triple|upgraded to strong buy|very cheap supplies|"
    "fixed the fault|none of its competitors match|returned to profit|growing faster than any"
)
BAD = (
    "cut its profit forecast|lost a|falling sales|missed a payment|deep in losses|broke down|regulator ban|"
    "lost the patent|below its cost|upset three|costs climb|worst managed|stood idle|burned nearly|lost market share|"
    "lost its most admired|scrapped its dividend|complain|broke a partnership|criminal inquiry|unfinished and far over|"
    "demand to collapse|downgraded|ruinous shortage|hid the fault|none of its customers want|slid into loss|"
    "shrinking faster"
)


def listed(item: Item) -> list[str]:
    """The companies in the order of the receiver's prompt, read out of its text."""
    found = re.match(
        r"You must invest in exactly one of these companies: (.+), (.+) or (.+)\. (The|Which)", item.receiver
    )
    assert found
    return [found[1], found[2], found[3]]


def paragraphs(item: Item) -> dict[str, str]:
    """What the note says of each company, in the note's order, read out of its text."""
    companies = sorted(listed(item), key=item.sender.index)
    starts = [item.sender.index(company) for company in companies] + [len(item.sender)]
    return {
        company: item.sender[start:end].removeprefix(company).strip()
        for company, start, end in zip(companies, starts[:-1], starts[1:], strict=True)
    }


def news_total(text: str) -> int:
    return len(re.findall(GOOD, text)) - len(re.findall(BAD, text))


def hits(items: tuple[Item, ...], rule: Callable[[Item], str]) -> int:
    return sum(rule(item) == item.answers[0] for item in items)


def is_chance(count: int, n: int) -> bool:
    low, high = binom.interval(CONFIDENCE, n, 1 / 3)
    return bool(low <= count <= high)


RULES: dict[str, Callable[[Item], str]] = {
    "first listed": lambda item: listed(item)[0],
    "second listed": lambda item: listed(item)[1],
    "last listed": lambda item: listed(item)[2],
    "first in the alphabet": lambda item: min(listed(item)),
    "middle of the alphabet": lambda item: sorted(listed(item))[1],
    "last in the alphabet": lambda item: max(listed(item)),
    "shortest name": lambda item: min(listed(item), key=len),
    "longest name": lambda item: max(listed(item), key=len),
    "first by trade": lambda item: min(listed(item), key=lambda company: company.split()[1]),
    "last letter": lambda item: max(listed(item), key=lambda company: company[::-1]),
    "most often a candidate so far": lambda item: max(listed(item), key=lambda company: APPEARANCES[company]),
    "first in the note": lambda item: next(iter(paragraphs(item))),
    "last in the note": lambda item: list(paragraphs(item))[2],
    "middle of the note": lambda item: list(paragraphs(item))[1],
    "most words in the note": lambda item: max(paragraphs(item), key=lambda name: len(paragraphs(item)[name].split())),
    "fewest words in the note": lambda item: min(
        paragraphs(item), key=lambda name: len(paragraphs(item)[name].split())
    ),
    "most letters in the note": lambda item: max(paragraphs(item), key=lambda name: len(paragraphs(item)[name])),
    "fewest letters in the note": lambda item: min(paragraphs(item), key=lambda name: len(paragraphs(item)[name])),
    "most numbers in the note": lambda item: max(
        paragraphs(item), key=lambda name: (len(re.findall(r"\d+", paragraphs(item)[name])), name[::-1])
    ),
}
TASKS = {seed: tip_sheets(n=N, seed=seed) for seed in (0, 1)}
APPEARANCES = Counter(company for item in TASKS[0].items for company in listed(item))


class TestOneRightAnswer:
    @pytest.mark.parametrize("seed", TASKS)
    def test_the_note_names_exactly_one_company_with_good_prospects(self, seed: int) -> None:
        for item in TASKS[seed].items:
            totals = {company: news_total(text) for company, text in paragraphs(item).items()}
            right = [company for company, total in totals.items() if total > 0]
            assert right == [item.answers[0]]
            assert totals[item.answers[0]] >= 2

    def test_every_topic_has_one_piece_of_good_news_one_dull_one_bad(self) -> None:
        for topic in TOPICS:
            assert [news_total(text) for text in (topic.positive, topic.neutral, topic.negative)] == [1, 0, -1]

    def test_the_others_are_dull_mixed_and_bad_in_turn(self) -> None:
        totals = Counter(
            news_total(text)
            for item in TASKS[0].items
            for company, text in paragraphs(item).items()
            if company != item.answers[0]
        )
        assert set(totals) == {0, -2, -3}
        assert all(count > 300 for count in totals.values())
        mixed = [
            text
            for item in TASKS[0].items
            for text in paragraphs(item).values()
            if news_total(text) == 0 and re.search(GOOD, text)
        ]
        assert len(mixed) > 300  # so that one good sentence alone does not make the answer

    def test_each_company_is_named_once_and_three_things_are_said_of_it(self) -> None:
        for item in TASKS[0].items:
            for company, text in paragraphs(item).items():
                assert item.sender.count(company.split()[0]) == 1
                assert len(re.findall(r"[a-z]\.(?: |$)", text)) == 3

    def test_no_topic_comes_twice_in_a_note(self) -> None:
        for item in TASKS[0].items:
            sentences = re.findall(r"(?:The company|It|" + "|".join(listed(item)) + r") ([^.]+)\.", item.sender)
            assert len(sentences) == 9
            templates = [re.sub(r"\d+", "{n}", sentence) for sentence in sentences]
            topics = [
                number
                for number, topic in enumerate(TOPICS)
                if {topic.positive, topic.neutral, topic.negative} & set(templates)
            ]
            assert len(topics) == 9


class TestNothingElseTells:
    @pytest.mark.parametrize("seed", TASKS)
    @pytest.mark.parametrize("name", RULES)
    def test_a_rule_blind_to_the_news_is_right_once_in_three(self, name: str, seed: int) -> None:
        assert is_chance(hits(TASKS[seed].items, RULES[name]), N)

    def test_a_leak_of_one_item_in_eight_would_be_found(self) -> None:
        items = TASKS[0].items
        leaky = tuple(
            replace(item, receiver=receiver_with(item, [item.answers[0], *others(item)])) if number % 8 == 0 else item
            for number, item in enumerate(items)
        )
        assert not is_chance(hits(leaky, RULES["first listed"]), N)

    def test_positions_in_alphabet_note_and_list_are_balanced_together(self) -> None:
        cells = Counter(
            (
                sorted(listed(item)).index(item.answers[0]),
                list(paragraphs(item)).index(item.answers[0]),
                listed(item).index(item.answers[0]),
            )
            for item in tip_sheets(n=54, seed=5).items
        )
        assert len(cells) == 27
        assert set(cells.values()) == {2}

    def test_the_order_of_the_list_does_not_follow_the_note(self) -> None:
        same = sum(listed(item) == list(paragraphs(item)) for item in TASKS[0].items)
        low, high = binom.interval(CONFIDENCE, N, 1 / 6)
        assert low <= same <= high

    def test_companies_right_in_one_half_are_not_right_in_the_other(self) -> None:
        train, held_out = TASKS[0].items[: N // 2], TASKS[0].items[N // 2 :]
        right, seen = Counter(item.answers[0] for item in train), Counter(c for item in train for c in listed(item))

        def most_often_right(item: Item) -> str:
            return max(listed(item), key=lambda company: right[company] / max(seen[company], 1))

        assert is_chance(hits(held_out, most_often_right), N // 2)
        assert not is_chance(hits(train, most_often_right), N // 2)  # the rule can learn what there is to learn

    def test_every_way_to_say_a_topic_has_equally_many_words_and_numbers(self) -> None:
        for topic in TOPICS:
            ways = (topic.positive, topic.neutral, topic.negative)
            assert len({len(way.split()) for way in ways}) == 1, ways
            assert len({way.count("{n}") for way in ways}) == 1, ways

    def test_the_receivers_text_is_the_list_and_the_question_and_nothing_else(self) -> None:
        item = TASKS[0].items[0]
        a, b, c = listed(item)
        assert item.receiver == (
            f"You must invest in exactly one of these companies: {a}, {b} or {c}. The best company to invest in is"
        )


class TestTheGenerator:
    def test_there_are_enough_sentences_and_companies(self) -> None:
        sentences = [text for topic in TOPICS for text in (topic.positive, topic.neutral, topic.negative)]
        assert len(sentences) == len(set(sentences)) >= 75
        assert len(COMPANIES) == len({company.split()[0] for company in COMPANIES}) >= 60
        assert {company for item in TASKS[0].items for company in listed(item)} == set(COMPANIES)

    def test_no_companys_first_word_begins_or_ends_another(self) -> None:
        first_words = [company.split()[0].lower() for company in COMPANIES]
        assert not [pair for pair in combinations(first_words, 2) if pair[0] in pair[1] or pair[1] in pair[0]]

    def test_the_companies_of_an_item_begin_with_three_different_letters(self) -> None:
        for item in TASKS[0].items:
            assert len({company[0] for company in listed(item)}) == 3

    def test_the_same_seed_gives_the_same_bytes(self) -> None:
        assert repr(tip_sheets(n=40, seed=3)).encode() == repr(tip_sheets(n=40, seed=3)).encode()

    def test_a_known_seed_gives_this_note_on_every_machine(self) -> None:
        assert tip_sheets(n=1, seed=0).items[0].sender == KNOWN_NOTE

    def test_other_seeds_give_other_notes_and_other_ids(self) -> None:
        one, other = TASKS[0].items, TASKS[1].items
        assert not {item.sender for item in one} & {item.sender for item in other}
        assert not {item.id for item in one} & {item.id for item in other}
        assert len({item.sender for item in one}) == N

    def test_more_items_only_add(self) -> None:
        assert tip_sheets(n=70).items == TASKS[0].items[:70]
        assert len(tip_sheets().items) == 70

    def test_bad_options_are_refused(self) -> None:
        for n in (0, -3):
            with pytest.raises(ValueError, match=f"n is {n}"):
                tip_sheets(n=n)
        with pytest.raises(TypeCheckError):
            tip_sheets(sender_form="entity")  # type: ignore[arg-type]
        with pytest.raises(TypeCheckError):
            tip_sheets(template="none")  # type: ignore[arg-type]


class TestTheTexts:
    def test_forms_and_templates(self) -> None:
        note = tip_sheets(n=1).items[0]
        primed = tip_sheets(n=1, sender_form="primed").items[0]
        chat = tip_sheets(n=1, template="chat", sender_form="primed").items[0]
        assert note.skyline == primed.sender == primed.skyline == f"{note.sender} {note.receiver}"
        assert chat.sender == f"{note.sender} {chat.receiver}"
        assert chat.receiver.endswith(
            ". Which company is the best to invest in? Answer with the name of the company only."
        )
        assert note.choice == f" {note.answers[0]}"
        assert chat.choice == note.answers[0]

    def test_the_answer_is_the_full_name_or_its_first_word(self) -> None:
        item = tip_sheets(n=1).items[0]
        assert item.answers == (item.tags["answer"], item.tags["answer"].split()[0])

    def test_choices_are_the_three_companies_of_the_item(self) -> None:
        task = tip_sheets(n=60)
        choices = draw_choices(task, lambda choice: ord(choice.strip()[0]), seed=0)
        for item, drawn in zip(task.items, choices, strict=True):
            assert set(drawn) == {f" {company}" for company in listed(item)}
            assert item.choice in drawn
        assert len({drawn.index(item.choice) for item, drawn in zip(task.items, choices, strict=True)}) == 3

    def test_the_outlook_tags_follow_the_note(self) -> None:
        for item in TASKS[0].items:
            signs = {"positive": {2, 3}, "neutral": {0}, "negative": {-2, -3}}
            for outlook, text in zip(item.tags["outlooks"].split(), paragraphs(item).values(), strict=True):
                assert news_total(text) in signs[outlook]

    def test_the_settings_record_every_option(self) -> None:
        task = tip_sheets(n=2, seed=4, template="chat", sender_form="primed")
        assert dict(task.settings) == {"n": 2, "seed": 4, "template": "chat", "sender_form": "primed"}


class TestSeveralSenders:
    @pytest.mark.parametrize("senders", [2, 3])
    def test_they_know_the_note_together_and_no_company_is_known_to_two(self, senders: int) -> None:
        for whole, shared in zip(tip_sheets(n=30).items, tip_sheets(n=30, senders=senders).items, strict=True):
            texts = (shared.sender, *shared.more_senders)
            assert len(texts) == senders
            assert " ".join(texts) == whole.sender
            for company in listed(whole):
                assert sum(company in text for text in texts) == 1
            assert (shared.receiver, shared.skyline, shared.answers) == (whole.receiver, whole.skyline, whole.answers)

    def test_one_sender_knows_all_and_has_no_others(self) -> None:
        assert all(item.more_senders == () for item in tip_sheets(n=5).items)
        assert tip_sheets(n=5, senders=1) == tip_sheets(n=5)
        assert tip_sheets(n=5, senders=3).settings["senders"] == 3

    def test_primed_senders_each_end_in_the_receivers_text(self) -> None:
        for item in tip_sheets(n=5, senders=3, sender_form="primed").items:
            assert all(text.endswith(f" {item.receiver}") for text in (item.sender, *item.more_senders))
            assert item.skyline.count(item.receiver) == 1

    def test_the_first_sender_knows_the_answer_once_in_three(self) -> None:
        items = tip_sheets(n=54, senders=3).items
        assert sum(item.answers[0] in item.sender for item in items) == 18

    @pytest.mark.parametrize("senders", [0, 4, -1])
    def test_other_numbers_are_refused(self, senders: int) -> None:
        with pytest.raises(ValueError, match=f"senders is {senders}"):
            tip_sheets(n=1, senders=senders)


def others(item: Item) -> list[str]:
    return [company for company in listed(item) if company != item.answers[0]]


def receiver_with(item: Item, companies: list[str]) -> str:
    a, b, c = companies
    return f"You must invest in exactly one of these companies: {a}, {b} or {c}. The best company to invest in is"


KNOWN_NOTE = (
    "Yostrin Yarns widened its profit margin to a record 12 percent. The company hired the usual number "
    "of trainees this summer. It scrapped its dividend after 10 weak quarters in succession. Harrowmere "
    "Insurance expects demand to collapse over the next 7 months. The company has customers in the same "
    "towns as before. It reported falling sales, down 16 percent on last year. Zephrane Gliders opened 11 "
    "new stores, all of them already profitable. The company won a 13-year contract from a large new "
    "customer. It fixed the fault that had long worried its buyers."
)
