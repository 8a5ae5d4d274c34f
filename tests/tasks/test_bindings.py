"""The bindings of invented names: the answer follows from the facts that a text states, and from nothing else."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import pytest
from scipy.stats import binom

from latentcomm._core.typed import ArgumentTypeError
from latentcomm.experiments.controls import deranged
from latentcomm.tasks import Item, Task, bindings, bindings_keyed, bindings_two_hop, draw_choices
from latentcomm.tasks.bindings import VALUES
from latentcomm.tasks.catalogue import make_task

FORMS: dict[str, Callable[..., Task]] = {
    "bindings": bindings,
    "two hops": bindings_two_hop,
    "two senders": lambda **options: bindings_two_hop(senders=2, **options),
    "keyed": bindings_keyed,
}
every_form = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
two_hops = pytest.mark.parametrize("make", [bindings_two_hop, bindings_keyed])


def homes(text: str) -> dict[str, str]:
    """Who lives where, read out of a text."""
    return dict(re.findall(r"(\w+) lives in (\w+)\.", text))


def things(text: str) -> dict[str, str]:
    """Who owns what, or what is in which town, read out of a text."""
    return dict(re.findall(r"(?:In )?(\w+) (?:owns|is) the (\w+)\.", text))


def asked(text: str) -> tuple[str, bool]:
    """The name that the question at the end of a text asks about, and whether it asks about the town."""
    own = re.search(r"What does (\w+) own\?(\nAnswer: \1 owns the| Answer with one word\.)$", text)
    there = re.search(
        r"What is in the town where (\w+) lives\?"
        r"(\nAnswer: In the town where \1 lives is the| Answer with one word\.)$",
        text,
    )
    found = own or there
    assert found
    return found[1], there is not None


def solved(text: str) -> str:
    name, has_town = asked(text)
    return things(text)[homes(text)[name] if has_town else name]


def names(item: Item) -> set[str]:
    facts = " ".join((item.sender, item.receiver, item.skyline, *item.more_senders))
    return {*homes(facts), *homes(facts).values(), *things(facts), asked(item.skyline)[0]}


def hidden(text: str, item: Item) -> str:
    """The text with its names made the same."""
    return re.sub("|".join(names(item)), "NAME", text)


class TestTheAnswer:
    @every_form
    @pytest.mark.parametrize("template", ["raw", "chat"])
    @pytest.mark.parametrize("values", VALUES)
    @pytest.mark.parametrize("n_bindings", [1, 4, 8])
    def test_it_follows_from_the_facts_of_the_skyline(
        self, make: Callable[..., Task], template: str, values: str, n_bindings: int
    ) -> None:
        for item in make(n=24, template=template, values=values, n_bindings=n_bindings).items:
            assert solved(item.skyline) == item.tags["answer"] == item.answers[0] == item.choice.strip()
            assert asked(item.receiver) == (item.tags["asked"], "key" in item.tags)
            assert item.tags.get("key") == homes(item.skyline).get(item.tags["asked"])
            own = list(things(item.skyline).values())
            assert len(own) == len(set(own)) == (8 if make is bindings_keyed else n_bindings)
            assert len(homes(item.skyline)) == (0 if make is bindings else n_bindings)
            assert set(own) <= set(VALUES[values])  # type: ignore[index]

    @every_form
    @pytest.mark.parametrize("n", [8, 13, 40, 100])
    def test_the_eight_are_equally_often_right_for_every_n(self, make: Callable[..., Task], n: int) -> None:
        counts = Counter(item.answers[0] for item in make(n=n, seed=3).items)
        assert len(counts) == 8
        assert max(counts.values()) - min(counts.values()) <= 1

    @every_form
    @pytest.mark.parametrize("n_bindings", [3, 4])
    def test_each_is_equally_often_at_each_position(self, make: Callable[..., Task], n_bindings: int) -> None:
        items = make(n=8 * n_bindings * 5, n_bindings=n_bindings).items
        facts = things if make is bindings else homes
        positions = [list(facts(item.sender)).index(item.tags["asked"]) for item in items]
        assert positions == [int(item.tags["position"]) for item in items]
        counts = Counter((item.answers[0], position) for item, position in zip(items, positions, strict=True))
        assert set(counts.values()) == {5} and len(counts) == 8 * n_bindings

    @every_form
    def test_choices_are_the_eight_and_replies_are_judged(self, make: Callable[..., Task]) -> None:
        for values in VALUES:
            task = make(n=8, values=values)
            drawn = draw_choices(task, lambda choice: ord(choice[1]), seed=0)  # first letters stand for first tokens
            for item, choices in zip(task.items, drawn, strict=True):
                assert {choice.strip() for choice in choices} == set(VALUES[values])
                right = {value for value in VALUES[values] if task.judge(f" {value}.\nNext", item.answers).is_right}
                assert right == {item.answers[0]}
                assert task.judge(f"The {item.answers[0]}", item.answers).is_right

    @every_form
    def test_a_wrong_message_of_another_answer_always_exists(self, make: Callable[..., Task]) -> None:
        for n in range(8, 24):
            task = make(n=n, seed=n)
            sources = deranged(task, seed=0)
            assert sorted(sources) == list(range(n))
            assert all(task.items[i].answers != task.items[j].answers for i, j in enumerate(sources))


class TestNames:
    @every_form
    def test_no_name_is_in_two_items_nor_in_both_halves(self, make: Callable[..., Task]) -> None:
        task = make(n=300)
        assert max(Counter(name for item in task.items for name in names(item)).values()) == 1
        tune, test = ({name for item in half.items for name in names(item)} for half in task.split(seed=0))
        assert tune and test and not tune & test
        for half in task.split(seed=1):
            counts = Counter(item.answers[0] for item in half.items)
            assert max(counts.values()) - min(counts.values()) <= 1

    @every_form
    def test_those_of_an_item_begin_differently_and_are_no_words(self, make: Callable[..., Task]) -> None:
        for template in ("raw", "chat"):
            for item in make(n=100, template=template, n_bindings=8).items:
                assert len({name[0] for name in names(item)}) == len(names(item))
                plain = re.findall(r"\w+", hidden(item.skyline, item).casefold())
                assert not {name.casefold() for name in names(item)} & {*plain, *VALUES["listed"]}

    def test_they_do_not_run_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for part, few in (("VOWELS", "a"), ("MIDDLE", ("rz",)), ("LAST", "k")):
            monkeypatch.setattr(import_module("latentcomm.tasks.bindings"), part, few)  # 17 names of usual length
        every = [name for item in bindings(n=40).items for name in names(item)]
        assert len(every) == len(set(every)) == 160


class TestWhoKnowsWhat:
    @every_form
    def test_the_receivers_text_says_nothing_of_the_answer(self, make: Callable[..., Task]) -> None:
        items = make(n=128).items
        if make is not bindings_keyed:
            assert len({hidden(item.receiver, item) for item in items}) == 1
            assert not any(value in items[0].receiver for value in VALUES["listed"])
            return
        for item in items:  # each of the eight, with nothing of the one who is asked about but the question
            table = things(item.receiver)
            assert sorted(table.values()) == sorted(VALUES["listed"])
            assert item.tags["asked"] not in item.receiver.split("\n")[0] and not homes(item.receiver)
        places = [list(things(item.receiver).values()).index(item.answers[0]) for item in items]
        assert places == [int(item.tags["place"]) for item in items]
        counts = Counter(zip((item.answers[0] for item in items), places, strict=True))
        assert len(counts) == 64 and set(counts.values()) == {2}

    @pytest.mark.parametrize("rule", [min, max], ids=["first", "last"])
    def test_no_rule_on_the_names_finds_the_key(self, rule: Callable[..., str]) -> None:
        items = bindings_keyed(n=1600, seed=2).items
        by_length = sum(rule(things(i.receiver), key=len) == i.tags["key"] for i in items)
        by_alphabet = sum(rule(things(i.receiver)) == i.tags["key"] for i in items)
        by_letter = sum(
            rule(things(i.receiver), key=lambda name, i=i: abs(ord(name[0]) - ord(i.tags["asked"][0]))) == i.tags["key"]
            for i in items
        )
        low, high = binom.interval(0.999, len(items), 1 / 8)
        assert all(low <= hits <= high for hits in (by_length, by_alphabet, by_letter))

    def test_in_the_keyed_form_neither_has_the_answer(self) -> None:
        for item in bindings_keyed(n=64, n_bindings=4).items:
            assert homes(item.sender)[item.tags["asked"]] == item.tags["key"]
            assert not any(value in item.sender for value in VALUES["listed"])
            assert set(homes(item.sender).values()) <= set(things(item.receiver))  # each could be the key
            assert item.skyline.endswith(item.receiver) and item.skyline.startswith(item.sender.split("\n")[0])

    def test_two_senders_know_one_hop_each(self) -> None:
        one, two = bindings_two_hop(n=64), bindings_two_hop(n=64, senders=2)
        for alone, item in zip(one.items, two.items, strict=True):
            (second,) = item.more_senders
            assert not things(item.sender) and not homes(second)
            assert item.tags["key"] in second and item.answers[0] in second
            assert replace(item, sender=alone.sender, more_senders=()) == alone
        assert one.settings["senders"] == 1 and two.settings["senders"] == 2

    @two_hops
    def test_the_order_of_one_hop_is_not_that_of_the_other(self, make: Callable[..., Task]) -> None:
        items = make(n=1600, n_bindings=8).items
        same = sum(item.tags["position"] == item.tags["place"] for item in items)
        low, high = binom.interval(0.999, len(items), 1 / 8)
        assert low <= same <= high


class TestTheTexts:
    @every_form
    def test_a_primed_sender_reads_its_facts_and_then_the_query(self, make: Callable[..., Task]) -> None:
        for template in ("raw", "chat"):
            primed, plain = (make(n=8, template=template, sender_form=form) for form in ("primed", "sentence"))
            for one, other in zip(primed.items, plain.items, strict=True):
                assert one.sender.startswith(f"{other.sender}\n")
                query = one.sender.removeprefix(f"{other.sender}\n")
                assert one.tags["asked"] in query
                assert (query == one.receiver) == (make in (bindings, bindings_two_hop))
                assert replace(one, sender=other.sender, more_senders=other.more_senders) == other
                counts = Counter(re.findall("|".join(names(other)), other.sender))
                assert counts[other.tags["asked"]] == 1  # as often as anyone's who is not asked about

    def test_they_read_as_written_here(self) -> None:
        item = bindings_keyed(n=8, n_bindings=1).items[0]
        assert (
            hidden(item.sender, item) == "NAME lives in NAME.\nQuestion: Where does NAME live?\nAnswer: NAME lives in"
        )
        item = bindings_keyed(n=8, n_bindings=1, template="chat").items[0]
        assert hidden(item.sender, item) == "NAME lives in NAME.\nWhere does NAME live? Answer with the name only."
        item = bindings_two_hop(n=8, n_bindings=1).items[0]
        assert hidden(item.skyline, item) == (
            f"NAME lives in NAME. In NAME is the {item.answers[0]}.\n"
            "Question: What is in the town where NAME lives?\nAnswer: In the town where NAME lives is the"
        )
        item = bindings(n=8, n_bindings=1, template="chat", values="invented").items[0]
        assert hidden(item.skyline, item) == (
            f"NAME owns the {item.answers[0]}.\nWhat does NAME own? Answer with one word."
        )


class TestOptions:
    @every_form
    def test_the_same_options_give_the_same_items(self, make: Callable[..., Task]) -> None:
        assert make(n=40, seed=1) == make(n=40, seed=1)
        assert not {item.skyline for item in make(n=40).items} & {item.skyline for item in make(n=40, seed=1).items}
        assert make(n=20).items == make(n=50).items[:20]
        assert make(n=9, values="invented").settings["values"] == "invented"

    @every_form
    def test_wrong_ones_are_refused_in_a_sentence(self, make: Callable[..., Task]) -> None:
        for n in (7, 0, -1):
            with pytest.raises(ValueError, match=f"n is {n}; request at least 8 items"):
                make(n=n)
        for n_bindings in (0, 9):
            with pytest.raises(ValueError, match=f"n_bindings is {n_bindings}; give 1 to 8"):
                make(n_bindings=n_bindings)
        with pytest.raises(ArgumentTypeError, match=r"values is 'colours'.* takes 'listed' or 'invented'"):
            make(values="colours")

    def test_so_are_senders_and_values_by_name(self) -> None:
        with pytest.raises(ValueError, match="senders is 3; two hops have 1 or 2"):
            bindings_two_hop(senders=3)
        with pytest.raises(ValueError, match="values is 'colours'; the task bindings-keyed takes listed or invented"):
            make_task("bindings-keyed", values="colours")
