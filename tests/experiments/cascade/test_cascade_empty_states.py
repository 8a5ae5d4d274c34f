"""The controls of what states say: zeros, and random directions of their norms, where the mapped states would enter."""

import pytest
import torch
from cascades import large, of_bytes, small, task
from tiny import states

from latentcomm.alignment import AffineMap
from latentcomm.channels.base import with_own_texts
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade import KVHandOff, LatentHandOff, TextHandOff, sweep_cascade, write_openings
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.openings import EMBEDDING
from latentcomm.experiments.cascade.runner import _item_by_item
from latentcomm.experiments.controls import Sending
from latentcomm.models import Model

MAPPED = AffineMap(0.3 * states(16, 32), states(16, seed=1))
NOTHING = AffineMap(torch.zeros(16, 32), torch.zeros(16))
SOFT, GRAFT = LatentHandOff(1, alignment=MAPPED), LatentHandOff(1, 1, MAPPED)


@pytest.fixture(scope="module")
def openings() -> Message:
    return write_openings(large(), task(), layers=(1,))


def emptied(hand_off: HandOff, openings: Message, control: str, *, seed: int = 0) -> Message:
    """The message of a control, as a sweep makes it."""
    message = hand_off.content(openings)
    return _item_by_item(control, Sending(hand_off, large(), of_bytes(), with_own_texts(task()), message, seed))


def entering(hand_off: HandOff, message: Message, n: int) -> list[torch.Tensor]:
    """The vectors `[n d]` that stand in place of each item's opening."""
    given = hand_off.enter(of_bytes(), task(), message, [n] * len(message)).given
    if given.soft is not None:
        return list(given.soft.vectors)
    return list(given.grafts[0].vector)


@pytest.mark.parametrize("hand_off", [SOFT, GRAFT], ids=["soft", "graft"])
class TestWhatEnters:
    def test_is_zero_where_zeros_are_asked_for(self, hand_off: LatentHandOff, openings: Message) -> None:
        assert all((vectors == 0).all() for vectors in entering(hand_off, emptied(hand_off, openings, "zero"), 3))
        assert not any((vectors == 0).any() for vectors in entering(hand_off, hand_off.content(openings), 3))

    def test_has_the_norms_of_the_mapped_states_and_not_their_directions(
        self, hand_off: LatentHandOff, openings: Message
    ) -> None:
        messages = hand_off.content(openings), emptied(hand_off, openings, "random")
        told, drawn = (entering(hand_off, each, 6) for each in messages)
        for own, other in zip(told, drawn, strict=True):
            torch.testing.assert_close(other.norm(dim=-1), own.norm(dim=-1))
            assert (torch.cosine_similarity(own, other, dim=-1) < 0.95).all()

    def test_is_the_same_after_any_n_and_another_of_another_item_and_seed(
        self, hand_off: LatentHandOff, openings: Message
    ) -> None:
        empty = emptied(hand_off, openings, "random")
        few, many = (entering(hand_off, empty, n) for n in (3, 6))
        for first, more in zip(few, many, strict=True):
            shared = [row for row in first if any(torch.allclose(row, each) for each in more)]
            assert len(shared) == len(first)
        units = [vectors[0] / vectors[0].norm() for vectors in many]
        assert not any(torch.allclose(units[0], each) for each in units[1:])
        again = entering(hand_off, emptied(hand_off, openings, "random", seed=1), 6)
        assert not torch.allclose(again[0], many[0])


@pytest.mark.parametrize("hand_off", [SOFT, GRAFT], ids=["soft", "graft"])
def test_zeros_are_what_a_map_to_nothing_gives(hand_off: LatentHandOff) -> None:
    silent = LatentHandOff(hand_off.read, hand_off.write, NOTHING)
    found = sweep_cascade(
        large(), of_bytes(), task(), hand_offs={"told": hand_off, "silent": silent}, ns=(2, 6), controls=("zero",)
    )
    replies = {
        key: [trial.reply for trial in found.trials if (trial.channel, trial.condition) == key]
        for key in (("told", "zero"), ("silent", "message"), ("told", "message"))
    }
    assert replies["told", "zero"] == replies["silent", "message"] != replies["told", "message"]


@pytest.mark.parametrize(("reader", "others"), [(small, {"text": TextHandOff(), "kv": KVHandOff()})])
def test_a_sweep_runs_them_where_states_pass_and_tests_against_them(reader: type[Model], others: dict) -> None:
    hand_offs = {**others, "graft": LatentHandOff(1, 1), "soft": LatentHandOff(EMBEDDING)}
    found = sweep_cascade(large(), reader(), task(), hand_offs=hand_offs, ns=(0, 3), controls=("zero", "random"))
    table = found.table()
    for condition in ("zero", "random"):
        assert set(table[table["condition"] == condition]["hand_off"]) == {"graft", "soft"}
        assert set(table[table["condition"] == condition]["stop"]) == {"3"}
    tested = table[table["p_random"].notna()]
    assert set(zip(tested["hand_off"], tested["stop"], strict=True)) == {("graft", "3"), ("soft", "3")}
    paid = {key: rows["large_flops"].tolist() for key, rows in table.groupby(["hand_off", "stop", "condition"])}
    assert paid["graft", "3", "random"] == paid["graft", "3", "message"]
