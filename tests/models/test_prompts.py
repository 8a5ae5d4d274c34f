"""Prompts against their rows of ids, whichever side was padded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from numerics import assert_same_bits
from tiny import left_padded

from latentcomm.models.prompts import Prompts

ROWS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5)


def padded(rows: list[list[int]], side: str) -> Prompts:
    if side == "right":
        return Prompts.from_ids(rows, pad_id=3)
    return left_padded([torch.tensor(row) for row in rows], pad_id=3)


@given(rows=ROWS, side=st.sampled_from(["left", "right"]))
def test_no_padding_is_ever_seen(rows: list[list[int]], side: str) -> None:
    prompts = padded(rows, side)
    assert len(prompts) == len(rows)
    assert [prompts.ids(row).tolist() for row in range(len(rows))] == rows
    assert prompts.lengths.tolist() == [len(row) for row in rows]
    assert prompts.tokens[range(len(rows)), prompts.first].tolist() == [row[0] for row in rows]
    assert prompts.tokens[range(len(rows)), prompts.last].tolist() == [row[-1] for row in rows]
    assert (prompts.last - prompts.first + 1).tolist() == [len(row) for row in rows]


@given(rows=ROWS, side=st.sampled_from(["left", "right"]), data=st.data())
def test_selecting_keeps_the_ids_in_the_order_asked_for(rows: list[list[int]], side: str, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    part = padded(rows, side).select(chosen)
    assert [part.ids(row).tolist() for row in range(len(chosen))] == [rows[row] for row in chosen]
    assert part.tokens.shape[1] == max(len(rows[row]) for row in chosen)


@given(rows=ROWS)
def test_groups_of_equal_length_hold_every_row_once(rows: list[list[int]]) -> None:
    groups = padded(rows, "left").groups_of_equal_length()
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    assert all(len({len(rows[row]) for row in group}) == 1 for group in groups)
    assert len(groups) == len({len(row) for row in rows})


def test_the_first_and_last_token_stand_where_the_mask_says() -> None:
    left = left_padded([torch.tensor([7, 8]), torch.tensor([1, 2, 3])])
    assert (left.first.tolist(), left.last.tolist()) == ([1, 0], [2, 2])
    right = Prompts.from_ids([[7, 8], [1, 2, 3]])
    assert (right.first.tolist(), right.last.tolist()) == ([0, 0], [1, 2])
    again = left.right_padded()
    assert again.tokens[0, :2].tolist() == [7, 8]
    assert again.mask.tolist() == [[True, True, False], [True, True, True]]


def test_a_real_token_that_equals_the_pad_id_stays_real() -> None:
    prompts = Prompts.from_ids([[5, 0], [0], [1, 2, 3]], pad_id=0)
    assert prompts.last.tolist() == [1, 0, 2]
    assert prompts.ids(0).tolist() == [5, 0]
    assert prompts.ids(1).tolist() == [0]


def test_tensors_and_lists_of_ids_give_the_same_prompts() -> None:
    rows = [[4, 5], [6]]
    given = Prompts.from_ids([torch.tensor(row) for row in rows])
    assert_same_bits(given.tokens, Prompts.from_ids(rows).tokens)


@pytest.mark.parametrize("rows", [[[1], []], [[1, 2], [], [3]]])
def test_an_empty_prompt_is_refused_by_its_number(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty; give every prompt at least one token"):
        Prompts.from_ids(rows)


def test_no_prompts_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts were given"):
        Prompts.from_ids([])


def test_a_gap_in_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="must be contiguous; pad on one side only"):
        Prompts(torch.ones(1, 3).long(), torch.tensor([[True, False, True]]))


def test_tokens_and_mask_of_different_shapes_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        Prompts(torch.ones(2, 3).long(), torch.ones(2, 4).bool())
