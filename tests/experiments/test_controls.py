"""The controls take the content of a message away and nothing else."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_same_bits, equal_to_rounding
from tiny import COUNTRIES, model, states
from torch import Tensor
from toys import toy

from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation, Message, Silent
from latentcomm.experiments.controls import (
    CONTROLS,
    USUAL,
    Sending,
    applies,
    deranged_within_label,
    derangement,
    random_message,
    same_label,
    self_message,
    shuffled,
    true_message,
    zero,
)
from latentcomm.fusion import Linear, Replace
from latentcomm.hooks.capture import capture
from latentcomm.models import encode
from latentcomm.models.sites import Site
from latentcomm.tasks import Task

CHANNEL = Activation("a", Site(1), Site(2), Replace())
REPEATED = toy(COUNTRIES[:4] * 2, openings=("The", " The note says", "Alice is at the Colosseum.", "note", "Alice"))


def exchange(task: Task = REPEATED, *, seed: int = 0, receiver_seed: int = 0) -> Sending:
    sender, receiver = model("llama"), model("llama", seed=receiver_seed)
    return Sending(CHANNEL, sender, receiver, task, CHANNEL.send(sender, task), seed)


def vectors(message: Message) -> Tensor:
    assert message.vectors is not None
    return message.vectors


@st.composite
def label_lists(draw: st.DrawFn) -> list[str]:
    """Labels of which none stands for more than half of the items, often for exactly half."""
    half = draw(st.integers(1, 12))
    others = draw(st.lists(st.sampled_from("bcdefg"), min_size=half, max_size=2 * half))
    counts = Counter(others)
    labels = ["a"] * draw(st.integers(0, len(others))) + others
    if 2 * max(counts.values()) > len(labels):
        labels += ["a"] * (2 * max(counts.values()) - len(labels))
    return draw(st.permutations(labels))


class TestDerangements:
    @settings(max_examples=200, deadline=None)
    @given(labels=label_lists(), seed=st.integers(0, 2**32))
    def test_every_item_is_used_once_and_none_goes_to_its_own_label(self, labels: list[str], seed: int) -> None:
        order = derangement(labels, seed=seed)
        assert sorted(order) == list(range(len(labels)))
        assert all(labels[place] != labels[source] for place, source in enumerate(order))

    @pytest.mark.parametrize("labels", ["ab", "abab", "aaabbb", "aaaabcde", "abcabc", "aabbcc" * 10])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_label_may_have_as_many_as_half_of_the_items(self, labels: str, seed: int) -> None:
        order = derangement(labels, seed=seed)
        assert sorted(order) == list(range(len(labels)))
        assert all(labels[place] != labels[source] for place, source in enumerate(order))

    @pytest.mark.parametrize(("labels", "message"), [("aab", "2 of 3"), ("aaabb", "3 of 5"), ("a", "1 of 1")])
    def test_more_than_half_of_one_label_is_impossible(self, labels: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"{message} items share the answer 'a'"):
            derangement(labels, seed=0)

    def test_the_same_seed_gives_the_same_order_and_another_seed_another(self) -> None:
        labels = [str(number) for number in range(20)]
        orders = [derangement(labels, seed=seed) for seed in range(10)]
        assert orders == [derangement(labels, seed=seed) for seed in range(10)]
        assert len({tuple(order) for order in orders}) == 10

    def test_no_item_is_always_given_the_same_other_one(self) -> None:
        sources = [{derangement("abcd", seed=seed)[place] for seed in range(60)} for place in range(4)]
        assert sources == [{0, 1, 2, 3} - {place} for place in range(4)]


class TestTheShuffledMessage:
    @pytest.mark.parametrize("seed", range(4))
    def test_is_that_of_an_item_with_another_answer_each_used_once(self, seed: int) -> None:
        given = exchange(seed=seed)
        true, found = vectors(given.message), vectors(shuffled(given))
        same = (found[:, None] == true[None]).all(-1)
        assert (same.sum(0) == 1).all() and (same.sum(1) == 1).all()
        labels = [item.answers[0] for item in REPEATED.items]
        assert all(labels[place] != labels[int(source)] for place, source in enumerate(same.int().argmax(1)))

    def test_is_refused_where_most_items_share_an_answer(self) -> None:
        with pytest.raises(ValueError, match="3 of 4 items share the answer 'Greece'"):
            shuffled(exchange(toy(("Greece", "Greece", "Greece", "Italy"))))

    def test_goes_by_the_canonical_answer_and_not_by_the_item(self) -> None:
        aliases = tuple(
            replace(item, answers=("one" if number % 2 else "other", *item.answers))
            for number, item in enumerate(toy().items)
        )
        given = exchange(replace(toy(), items=aliases))
        same = (vectors(shuffled(given))[:, None] == vectors(given.message)[None]).all(-1)
        assert all((place + int(source)) % 2 for place, source in enumerate(same.int().argmax(1)))


class TestTheSameLabelControl:
    @pytest.mark.parametrize("seed", range(5))
    def test_each_item_gets_anothers_message_with_its_answer_each_used_once(self, seed: int) -> None:
        given = exchange(seed=seed)
        same = (vectors(same_label(given))[:, None] == vectors(given.message)[None]).all(-1)
        assert (same.sum(0) == 1).all() and (same.sum(1) == 1).all()
        sources = same.int().argmax(1).tolist()
        assert sources == [4, 5, 6, 7, 0, 1, 2, 3]  # of each answer there are two

    def test_is_refused_where_an_item_is_alone_with_its_answer(self) -> None:
        with pytest.raises(ValueError, match="1 of 3 items are alone with their answer, such as 'Italy'"):
            same_label(exchange(toy(("Greece", "Greece", "Italy"))))

    def test_never_gives_an_item_its_own_text_and_says_where_it_must(self) -> None:
        task = toy(("Greece",) * 4, openings=("The", " The note says", "The", " The note says"))
        order = deranged_within_label(task, seed=0)
        assert all(task.items[row].sender != task.items[other].sender for row, other in enumerate(order))
        with pytest.raises(ValueError, match="2 of 2 items share the text, for the answer 'Greece', 'The Greece"):
            deranged_within_label(toy(("Greece",) * 2, openings=("The",)), seed=0)

    def test_a_message_of_nothing_is_refused(self) -> None:
        given = exchange()
        with pytest.raises(ValueError, match="a message of nothing has no content to shuffle"):
            same_label(replace(given, message=Silent().send(given.sender, REPEATED)))


class TestTheOtherControls:
    def test_the_true_message_is_untouched(self) -> None:
        given = exchange()
        assert true_message(given) is given.message

    def test_zero_is_zero_in_the_shape_and_type_of_the_message(self) -> None:
        given = exchange()
        found = vectors(zero(given))
        assert_same_bits(found, torch.zeros_like(vectors(given.message)))
        assert found.dtype == torch.float64 and vectors(given.message).abs().sum() > 0

    def test_random_keeps_each_norm_and_no_direction(self) -> None:
        given = exchange()
        true, found = vectors(given.message), vectors(random_message(given))
        assert torch.allclose(found.norm(dim=-1), true.norm(dim=-1), rtol=1e-12, atol=0)
        assert len({round(float(norm), 6) for norm in true.norm(dim=-1)}) > 1  # norms that differ, each kept
        assert torch.nn.functional.cosine_similarity(found, true).abs().max() < 0.7
        assert torch.nn.functional.cosine_similarity(found[:-1], found[1:]).abs().max() < 0.7

    def test_random_is_the_same_for_a_seed_and_differs_between_seeds(self) -> None:
        first, again, other = (vectors(random_message(exchange(seed=seed))) for seed in (0, 0, 1))
        assert_same_bits(first, again)
        assert (first - other).abs().amax(-1).min() > 0.01

    def test_random_leaves_the_numbers_of_others_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        random_message(exchange())
        assert_same_bits(torch.rand(2), expected)

    def test_random_of_a_zero_message_is_zero_and_halves_have_the_norms(self) -> None:
        given = exchange()
        nothing = replace(given, message=Message(torch.zeros(3, 32), "by hand"))
        found = vectors(random_message(nothing))
        assert found.shape == (3, 32) and not found.any()
        half = replace(given, message=Message(vectors(given.message).half(), "by hand"))
        found = vectors(random_message(half))
        assert found.dtype == torch.float16
        assert torch.allclose(found.double().norm(dim=-1), vectors(half.message).double().norm(dim=-1), rtol=1e-3)

    def test_the_self_message_is_the_receivers_own_state_of_its_own_prompt(self) -> None:
        given = exchange(receiver_seed=1)
        prompts = encode(given.receiver, [item.receiver for item in REPEATED.items])
        own = capture(given.receiver, prompts, [Site(1)]).last(Site(1))
        assert_same_bits(vectors(self_message(given)), own)
        of_sender = capture(given.sender, encode(given.sender, [i.receiver for i in REPEATED.items]), [Site(1)])
        assert not torch.allclose(own, of_sender.last(Site(1)))
        assert not torch.allclose(own, vectors(given.message))

    def test_the_self_message_of_a_fusion_of_another_width_is_refused(self) -> None:
        between = AffineMap(torch.zeros(32, 16, dtype=torch.float64), torch.zeros(32, dtype=torch.float64))
        given = replace(exchange(), channel=Activation("mapped", Site(1), Site(2), Linear(between)))
        with pytest.raises(ValueError, match="the channel mapped cannot carry the receiver's own state"):
            self_message(given)

    @pytest.mark.parametrize("name", list(CONTROLS))
    def test_the_message_given_is_not_changed(self, name: str) -> None:
        given = exchange()
        before = vectors(given.message).clone()
        CONTROLS[name](given)
        assert_same_bits(vectors(given.message), before)

    @pytest.mark.parametrize(
        ("name", "lacks"), [("shuffled", "content to shuffle"), ("zero", "vectors to"), ("random", "vectors to")]
    )
    def test_a_message_of_nothing_is_refused(self, name: str, lacks: str) -> None:
        given = exchange()
        silent = replace(given, message=Silent().send(given.sender, REPEATED))
        with pytest.raises(ValueError, match=f"a message of nothing has no {lacks}"):
            CONTROLS[name](silent)


class TestMessagesOfOtherKinds:
    TEXTS = Message(None, "by hand", texts=tuple(f"note {number}" for number in range(8)))
    PARTS = Message(
        None,
        "by hand",
        parts=tuple({"state": states(3, 4, seed=100 + n), "ids": torch.arange(n + 1)} for n in range(8)),
    )

    def test_texts_are_shuffled_and_cannot_be_zeroed_or_randomised(self) -> None:
        given = replace(exchange(), message=self.TEXTS)
        found, true = shuffled(given).texts, self.TEXTS.texts
        assert found is not None and true is not None
        assert sorted(found) == sorted(true) and all(a != b for a, b in zip(found, true, strict=True))
        for name in ("zero", "random"):
            with pytest.raises(ValueError, match="a message of by hand has no vectors to control for"):
                CONTROLS[name](given)

    def test_numeric_parts_are_zeroed_and_randomised_and_ids_are_not(self) -> None:
        given = replace(exchange(), message=self.PARTS)
        for name in ("zero", "random"):
            parts = CONTROLS[name](given).parts
            assert parts is not None and self.PARTS.parts is not None
            for found, true in zip(parts, self.PARTS.parts, strict=True):
                assert_same_bits(found["ids"], true["ids"])
                expected = 0 * true["state"].norm(dim=-1) if name == "zero" else true["state"].norm(dim=-1)
                assert torch.allclose(found["state"].norm(dim=-1), expected, rtol=1e-12, atol=0)
                assert not equal_to_rounding(found["state"], true["state"], terms=4)

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (Message(None, "nothing"), []),
            (TEXTS, ["shuffled", "self"]),
            (PARTS, ["shuffled", "zero", "random", "self"]),
            (Message(None, "ids alone", parts=({"ids": torch.arange(3)},)), ["shuffled", "self"]),
            (Message(torch.ones(1, 4), "by hand"), ["shuffled", "zero", "random", "self"]),
        ],
        ids=["silence", "texts", "parts", "ids", "vectors"],
    )
    def test_a_control_applies_where_it_takes_something_away(self, message: Message, expected: list[str]) -> None:
        assert [name for name in USUAL if applies(name, CHANNEL, model("llama"), message)] == expected
        assert not applies("self", Silent(), model("llama"), message)
