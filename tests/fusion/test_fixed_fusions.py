"""Every fusion without a map against its formula written out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from numerics import assert_equal_to_rounding, assert_same_bits, equal_to_rounding
from tiny import states

import latentcomm as lc
from latentcomm.alignment import AffineMap

WIDTH = 6
NAN = float("nan")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}


def test_replace_sum_and_mean_are_the_formulas_of_the_paper():
    own, incoming = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 4.0, -0.5])
    assert lc.fusion.Replace()(own, incoming).tolist() == [3.0, 4.0, -0.5]
    assert lc.fusion.Sum()(own, incoming).tolist() == [4.0, 2.0, 0.0]
    assert lc.fusion.Mean()(own, incoming).tolist() == [2.0, 1.0, 0.0]


def test_own_is_a_fixed_point_of_mean_and_weighted_but_not_of_sum():
    own = states(3, WIDTH)
    assert_same_bits(lc.fusion.Mean()(own, own), own)
    torch.testing.assert_close(lc.fusion.Weighted(0.3)(own, own), own)
    assert not torch.allclose(lc.fusion.Sum()(own, own), own)


def test_weighted_runs_from_own_through_mean_to_replace_and_beyond():
    own, incoming = states(3, WIDTH), states(3, WIDTH, seed=1)
    assert_same_bits(lc.fusion.Weighted(0)(own, incoming), own)
    assert_same_bits(lc.fusion.Weighted(0.5)(own, incoming), lc.fusion.Mean()(own, incoming))
    assert_same_bits(lc.fusion.Weighted(1)(own, incoming), incoming)
    torch.testing.assert_close(lc.fusion.Weighted(2)(own, incoming), 2 * incoming - own)
    assert not torch.allclose(lc.fusion.Weighted(0.6)(own, incoming), lc.fusion.Mean()(own, incoming))


@pytest.mark.parametrize(
    "inner",
    [
        lc.fusion.Replace(),
        lc.fusion.Sum(),
        lc.fusion.Mean(),
        lc.fusion.OrthogonalResidual(),
        lc.fusion.TaskArithmetic(0.5),
        lc.fusion.Ties(),
    ],
    ids=repr,
)
def test_norm_matched_has_the_norm_of_own_and_the_fused_direction(inner):
    own, incoming = states(4, WIDTH), 30 * states(4, WIDTH, seed=1)
    fused, matched = inner(own, incoming), lc.fusion.NormMatched(inner)(own, incoming)
    torch.testing.assert_close(matched.norm(dim=-1), own.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(matched, fused), torch.ones(4, dtype=torch.float64))
    assert not torch.allclose(fused.norm(dim=-1), own.norm(dim=-1))


def test_norm_matching_a_row_without_direction_is_an_error():
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"Sum\(\) gave a row that is zero or not finite"):
        lc.fusion.NormMatched(lc.fusion.Sum())(own, torch.tensor([[1.0, 2.0], [-3.0, -4.0]]))
    assert lc.fusion.NormMatched(lc.fusion.Sum())(own, own).tolist() == own.tolist()


def test_norm_matching_a_row_that_overflowed_is_an_error():
    own = torch.tensor([60000.0, 1.0], dtype=torch.float16)
    with pytest.raises(ValueError, match="zero or not finite"):
        lc.fusion.NormMatched(lc.fusion.Sum())(own, own.clone())


def test_norm_matched_leaves_a_zero_own_at_zero():
    assert lc.fusion.NormMatched(lc.fusion.Replace())(torch.zeros(2), torch.ones(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1.0, -2.0, 0.5])
def test_what_an_orthogonal_residual_injects_is_orthogonal_to_own(scale):
    own, incoming = states(20, WIDTH), 5 + states(20, WIDTH, seed=1)
    injected = lc.fusion.OrthogonalResidual(scale)(own, incoming) - own
    assert torch.cosine_similarity(injected, own).abs().max() < 1e-12
    # With own's direction what is left out is exactly the message: the two parts add up to it.
    along = (incoming * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True) * own
    torch.testing.assert_close(injected / scale + along, incoming)
    assert torch.cosine_similarity(incoming, own).abs().max() > 0.1


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_message_the_receiver_already_has_injects_nothing(dtype):
    own = states(5, WIDTH, dtype=dtype)
    assert_same_bits(lc.fusion.OrthogonalResidual()(own, own.clone()), own)
    assert not equal_to_rounding(lc.fusion.OrthogonalResidual()(own, own.flip(-1)), own, terms=WIDTH)
    assert_same_bits(lc.fusion.OrthogonalResidual()(own, -2 * own), own)


def test_a_zero_own_takes_nothing_from_the_message():
    own = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    incoming = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    assert lc.fusion.OrthogonalResidual(2)(own, incoming).tolist() == [[6.0, 8.0], [1.0, 8.0]]


def test_right_alignment_of_three_onto_five_keeps_the_first_two():
    own, incoming = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([10.0, 20.0, 30.0])
    assert lc.fusion.RightAligned(lc.fusion.Replace())(own, incoming).tolist() == [1.0, 2.0, 10.0, 20.0, 30.0]
    assert lc.fusion.RightAligned(lc.fusion.Sum())(own, incoming).tolist() == [1.0, 2.0, 13.0, 24.0, 35.0]
    assert lc.fusion.RightAligned(lc.fusion.Mean())(own, incoming).tolist() == [1.0, 2.0, 6.5, 12.0, 17.5]


def test_right_alignment_of_five_onto_three_uses_the_last_three():
    own, incoming = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    assert lc.fusion.RightAligned(lc.fusion.Replace())(own, incoming).tolist() == [30.0, 40.0, 50.0]
    assert lc.fusion.RightAligned(lc.fusion.Sum())(own, incoming).tolist() == [31.0, 42.0, 53.0]
    assert lc.fusion.RightAligned(lc.fusion.Mean())(own, incoming).tolist() == [15.5, 21.0, 26.5]


def test_right_alignment_of_equal_widths_changes_nothing():
    own, incoming = states(3, WIDTH), states(3, WIDTH, seed=1)
    for inner in (lc.fusion.Replace(), lc.fusion.Sum(), lc.fusion.Mean(), lc.fusion.Ties()):
        assert_same_bits(lc.fusion.RightAligned(inner)(own, incoming), inner(own, incoming))


@given(d_receiver=st.integers(1, 9), d_sender=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_right_alignment_follows_the_rule_coordinate_by_coordinate(d_receiver, d_sender):
    own, incoming = states(2, d_receiver), states(2, d_sender, seed=1)
    fused = lc.fusion.RightAligned(lc.fusion.Sum())(own, incoming)
    for row in range(2):
        for from_the_right in range(1, d_receiver + 1):
            expected = own[row, -from_the_right]
            if from_the_right <= d_sender:
                expected = expected + incoming[row, -from_the_right]
            assert fused[row, -from_the_right] == expected


def test_right_alignment_refuses_a_message_broken_in_the_entries_it_drops():
    incoming = states(5)
    incoming[0] = NAN
    with pytest.raises(ValueError, match="incoming holds NaN"):
        lc.fusion.RightAligned(lc.fusion.Replace())(states(3), incoming)


def test_task_arithmetic_adds_every_senders_change():
    own, incoming = states(4, WIDTH), states(3, 4, WIDTH, seed=1)
    expected = own + 0.5 * ((incoming[0] - own) + (incoming[1] - own) + (incoming[2] - own))
    torch.testing.assert_close(lc.fusion.TaskArithmetic(0.5)(own, incoming), expected)


def test_task_arithmetic_of_one_sender_runs_from_own_to_replace():
    own, incoming = states(4, WIDTH), states(4, WIDTH, seed=1)
    assert_same_bits(lc.fusion.TaskArithmetic(0)(own, incoming), own)
    torch.testing.assert_close(lc.fusion.TaskArithmetic(1)(own, incoming), incoming)
    torch.testing.assert_close(lc.fusion.TaskArithmetic(0.3)(own, incoming), lc.fusion.Weighted(0.3)(own, incoming))


@pytest.mark.parametrize("merge", [lc.fusion.TaskArithmetic(0.7), lc.fusion.Ties(density=0.5, scale=0.7)], ids=repr)
def test_one_sender_with_and_without_the_sender_axis_is_the_same(merge):
    own, incoming = states(4, WIDTH), states(4, WIDTH, seed=1)
    assert_same_bits(merge(own, incoming[None]), merge(own, incoming))
    assert_same_bits(merge(own[0], incoming[:1]), merge(own[0], incoming[0]))


@pytest.mark.parametrize("merge", [lc.fusion.TaskArithmetic(0.7), lc.fusion.Ties(density=0.5, scale=0.7)], ids=repr)
def test_merging_several_senders_is_by_row_and_ignores_their_order(merge):
    own, incoming = states(4, WIDTH), states(3, 4, WIDTH, seed=1)
    merged = merge(own, incoming)
    alone = torch.stack([merge(own[row], incoming[:, row]) for row in range(4)])
    size = float((incoming - own).abs().max())
    assert_equal_to_rounding(merged, alone, terms=4, scale=size)
    assert_equal_to_rounding(merge(own, incoming.flip(0)), merged, terms=4, scale=size)
    assert not torch.allclose(merge(own, incoming[:2]), merged)


@pytest.mark.parametrize("merge", [lc.fusion.TaskArithmetic(), lc.fusion.Ties()], ids=repr)
def test_no_sender_at_all_is_an_error(merge):
    with pytest.raises(ValueError, match="merge at least one sender"):
        merge(states(4, WIDTH), states(0, 4, WIDTH))


@pytest.mark.parametrize(
    "single",
    [lc.fusion.Replace(), lc.fusion.Sum(), lc.fusion.Mean(), lc.fusion.NormMatched(lc.fusion.Replace())],
    ids=repr,
)
def test_several_senders_are_refused_by_a_fusion_of_one(single):
    with pytest.raises(TypeCheckError):
        single(states(4, WIDTH), states(3, 4, WIDTH))


def test_wrappers_hand_several_senders_on_to_the_merge_inside():
    own, incoming = states(4, WIDTH), states(3, 4, WIDTH, seed=1)
    merged = lc.fusion.Ties()(own, incoming)
    torch.testing.assert_close(lc.fusion.Linear(AffineMap.identity(WIDTH), lc.fusion.Ties())(own, incoming), merged)
    torch.testing.assert_close(lc.fusion.NormMatched(lc.fusion.Ties())(own, incoming).norm(dim=-1), own.norm(dim=-1))
    wide = torch.cat((states(3, 4, 2, seed=5), incoming), dim=-1)
    torch.testing.assert_close(lc.fusion.RightAligned(lc.fusion.Ties())(own, wide), merged)


def naive_ties(own: list[float], senders: list[list[float]], n_kept: int, scale: float) -> list[float]:
    """TIES of one row, a coordinate at a time, as its three steps read: trim, elect, merge."""
    trimmed = []
    for sender in senders:
        change = [a - b for a, b in zip(sender, own, strict=True)]
        least = sorted((abs(entry) for entry in change), reverse=True)[n_kept - 1]
        trimmed.append([entry if abs(entry) >= least else 0.0 for entry in change])
    fused = []
    for coordinate, base in enumerate(own):
        column = [change[coordinate] for change in trimmed]
        total = sum(column)
        if total > 0:
            agreeing = [entry for entry in column if entry > 0]
        elif total < 0:
            agreeing = [entry for entry in column if entry < 0]
        else:
            agreeing = []
        fused.append(base + scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    return fused


@given(
    n_senders=st.integers(1, 4),
    width=st.integers(1, 8),
    percent=st.integers(1, 100),
    small=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_ties_is_its_three_steps_a_coordinate_at_a_time(n_senders, width, percent, small, seed):
    own, incoming = states(2, width, seed=seed), states(n_senders, 2, width, seed=seed + 1)
    if small:  # small whole numbers make equal sizes and sums of zero common
        own, incoming = own.round(), incoming.round()
    n_kept = -(-percent * width // 100)
    expected = [naive_ties(own[row].tolist(), incoming[:, row].tolist(), n_kept, 0.7) for row in range(2)]
    fused = lc.fusion.Ties(density=percent / 100, scale=0.7)(own, incoming)
    torch.testing.assert_close(fused, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_ties_of_one_sender_that_keeps_all_is_task_arithmetic(dtype):
    own, incoming = states(4, WIDTH, dtype=dtype), states(4, WIDTH, seed=1, dtype=dtype)
    whole = lc.fusion.TaskArithmetic(0.7)(own, incoming)
    assert_same_bits(lc.fusion.Ties(density=1, scale=0.7)(own, incoming), whole)
    assert not equal_to_rounding(lc.fusion.Ties(density=0.5, scale=0.7)(own, incoming), whole, terms=2)


def test_ties_of_several_senders_averages_where_task_arithmetic_adds():
    own, incoming = torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert lc.fusion.Ties(density=1)(own, incoming).tolist() == [2.0, 3.0]
    assert lc.fusion.TaskArithmetic()(own, incoming).tolist() == [4.0, 6.0]


@pytest.mark.parametrize(("density", "kept"), [(0.07, 7), (0.2, 20), (0.201, 21), (0.001, 1), (1, 100)])
def test_ties_keeps_the_share_as_written_rounded_up(density, kept):
    changed = lc.fusion.Ties(density=density)(torch.zeros(100), torch.arange(1.0, 101.0))
    assert int((changed != 0).sum()) == kept
    assert_same_bits(changed[100 - kept :], torch.arange(1.0, 101.0)[100 - kept :])


def test_ties_drops_a_coordinate_on_which_the_senders_cancel():
    fused = lc.fusion.Ties(density=1)(torch.zeros(3), torch.tensor([[2.0, -1.0, 1.0], [-2.0, 3.0, 1.0]]))
    assert fused.tolist() == [0.0, 3.0, 1.0]
