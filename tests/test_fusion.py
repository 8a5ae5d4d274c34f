"""Every fusion against its formula written out by hand, and the promises that all of them make."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from numerics import assert_equal_to_rounding, assert_same_bits, equal_to_rounding
from tiny import states

from latentcomm.alignment import AffineMap
from latentcomm.fusion import (
    FUSIONS,
    Concat,
    Fusion,
    Gated,
    Linear,
    Mean,
    NormMatched,
    OrthogonalResidual,
    PredictabilityResidual,
    Replace,
    RightAligned,
    Sum,
    TaskArithmetic,
    Ties,
    Weighted,
)

WIDTH = 6
NAN, INF = float("nan"), float("inf")


def some_map(d_in: int, d_out: int, seed: int = 7) -> AffineMap:
    return AffineMap(states(d_out, d_in, seed=seed), states(d_out, seed=seed + 1))


# One instance of every entry of FUSIONS for states WIDTH wide, built afresh so that two builds can be compared.
EXAMPLES: dict[str, Callable[[], Fusion]] = {
    "replace": lambda: FUSIONS["replace"](),
    "sum": lambda: FUSIONS["sum"](),
    "mean": lambda: FUSIONS["mean"](),
    "weighted": lambda: Weighted(0.3),
    "gated": lambda: Gated(some_map(2 * WIDTH, WIDTH)),
    "norm_matched": lambda: NormMatched(Sum()),
    "linear": lambda: Linear(some_map(WIDTH, WIDTH), Mean()),
    "concat": lambda: Concat(some_map(2 * WIDTH, WIDTH)),
    "orthogonal_residual": lambda: OrthogonalResidual(0.7),
    "predictability_residual": lambda: PredictabilityResidual(some_map(WIDTH, WIDTH), 0.7),
    "task_arithmetic": lambda: TaskArithmetic(0.7),
    "ties": lambda: Ties(density=0.5, scale=0.7),
    "right_aligned": lambda: RightAligned(Mean()),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}
every_fusion = pytest.mark.parametrize("name", FUSIONS)


# --- what all fusions promise ---


def test_the_contract_below_covers_every_entry_of_the_table():
    assert set(EXAMPLES) == set(FUSIONS)
    for name, build in EXAMPLES.items():
        assert type(build()) is FUSIONS[name]


@every_fusion
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(WIDTH,), (4, WIDTH), (2, 3, WIDTH)], ids=str)
def test_shape_and_dtype_are_those_of_own_and_values_those_of_float64(name, dtype, shape):
    own, incoming = states(*shape, dtype=dtype), states(*shape, seed=1, dtype=dtype)
    fused = EXAMPLES[name]()(own, incoming)
    assert fused.shape == own.shape
    assert fused.dtype == dtype
    exact = EXAMPLES[name]()(own.double(), incoming.double())
    torch.testing.assert_close(fused.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@every_fusion
def test_a_batch_gives_what_each_row_gives_alone(name):
    own, incoming = states(5, WIDTH), states(5, WIDTH, seed=1)
    fusion = EXAMPLES[name]()
    alone = torch.stack([fusion(own[row], incoming[row]) for row in range(5)])
    assert_equal_to_rounding(fusion(own, incoming), alone, terms=2 * WIDTH)


@every_fusion
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_inputs_do_not_change_and_share_no_memory_with_the_result(name, dtype):
    own, incoming = states(3, WIDTH, dtype=dtype), states(3, WIDTH, seed=1, dtype=dtype)
    own_before, incoming_before = own.clone(), incoming.clone()
    fused = EXAMPLES[name]()(own, incoming)
    fused.fill_(99.0)
    assert_same_bits(own, own_before)
    assert_same_bits(incoming, incoming_before)


@every_fusion
def test_two_calls_give_the_same_bits(name):
    own, incoming = states(3, WIDTH), states(3, WIDTH, seed=1)
    assert_same_bits(EXAMPLES[name]()(own, incoming), EXAMPLES[name]()(own, incoming))


@every_fusion
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_message_that_is_not_finite_is_refused_with_its_row(name, bad):
    own, incoming = states(4, WIDTH), states(4, WIDTH, seed=1)
    incoming[2, 0] = bad
    with pytest.raises(ValueError, match=r"incoming holds NaN or infinity in row 2"):
        EXAMPLES[name]()(own, incoming)


@every_fusion
def test_a_message_of_another_dtype_is_refused(name):
    with pytest.raises(ValueError, match=r"own is torch.float64 on cpu but incoming torch.float32"):
        EXAMPLES[name]()(states(WIDTH), states(WIDTH, dtype=torch.float32))


@every_fusion
def test_a_message_on_another_device_is_refused(name):
    with pytest.raises(ValueError, match=r"own is .* on cpu but incoming .* on meta"):
        EXAMPLES[name]()(states(WIDTH), states(WIDTH).to("meta"))


@every_fusion
@pytest.mark.parametrize("d_sender", [WIDTH - 1, WIDTH + 2])
def test_unequal_widths_are_refused_by_rules_that_are_not_for_them(name, d_sender):
    own, incoming = states(3, WIDTH), states(3, d_sender, seed=1)
    if name == "right_aligned":
        assert EXAMPLES[name]()(own, incoming).shape == own.shape
        return
    message = {
        "concat": f"goes {2 * WIDTH}->{WIDTH} where {WIDTH + d_sender}->{WIDTH} is needed",
        "linear": f"goes {WIDTH}->{WIDTH} where {d_sender}->{WIDTH} is needed",
    }.get(name, f"own is {WIDTH} wide but incoming {d_sender}; wrap the fusion in RightAligned, or .* Linear")
    with pytest.raises(ValueError, match=message):
        EXAMPLES[name]()(own, incoming)


@every_fusion
def test_a_message_for_other_rows_is_refused(name):
    with pytest.raises(TypeCheckError):
        EXAMPLES[name]()(states(4, WIDTH), states(3, WIDTH))


@every_fusion
def test_the_repr_is_one_short_line_that_two_builds_share(name):
    shown = repr(EXAMPLES[name]())
    assert shown == repr(EXAMPLES[name]())
    assert shown.startswith(FUSIONS[name].__name__ + "(")
    assert len(shown) < 80
    assert "tensor" not in shown and "0x" not in shown and "\n" not in shown


def test_reprs_are_what_the_figures_record():
    assert repr(Linear(some_map(576, 896))) == "Linear(map=AffineMap(576->896), fusion=Replace())"
    assert repr(NormMatched(OrthogonalResidual(1))) == "NormMatched(fusion=OrthogonalResidual(scale=1.0))"
    assert repr(Ties()) == "Ties(density=0.2, scale=1.0)"


@every_fusion
def test_a_fusion_is_frozen_hashable_and_a_fusion(name):
    fusion = EXAMPLES[name]()
    assert isinstance(fusion, Fusion)
    assert isinstance(hash(fusion), int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fusion.scale = 2.0  # type: ignore[attr-defined]


@every_fusion
def test_gradients_reach_the_message(name):
    own, incoming = states(3, WIDTH), states(3, WIDTH, seed=1).requires_grad_()
    EXAMPLES[name]()(own, incoming).square().sum().backward()
    assert incoming.grad is not None
    assert incoming.grad.abs().sum() > 0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda x: Weighted(x), "alpha"),
        (lambda x: OrthogonalResidual(x), "scale"),
        (lambda x: PredictabilityResidual(AffineMap.identity(2), x), "scale"),
        (lambda x: TaskArithmetic(x), "scale"),
        (lambda x: Ties(density=x), "density"),
        (lambda x: Ties(scale=x), "scale"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_at_construction(build, field, bad):
    with pytest.raises(ValueError, match=rf"{field} is -?(nan|inf)"):
        build(bad)


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, 20])
def test_a_density_that_is_no_share_is_refused_at_construction(density):
    with pytest.raises(ValueError, match=r"density is .* above 0 and at most 1"):
        Ties(density=density)


@pytest.mark.parametrize("wrap", [NormMatched, RightAligned, lambda f: Linear(AffineMap.identity(2), f)])
def test_a_fusion_class_instead_of_an_instance_is_refused(wrap):
    with pytest.raises(ValueError, match=r"Replace is a class; pass an instance, such as Replace\(\)"):
        wrap(Replace)
    wrap(Replace())


@pytest.mark.parametrize("wrap", [Gated, Concat, Linear, PredictabilityResidual])
def test_a_map_that_does_not_tell_its_widths_is_refused_at_construction(wrap):
    with pytest.raises(TypeCheckError):
        wrap(lambda rows: rows)


# --- each rule by itself ---


def test_replace_sum_and_mean_are_the_formulas_of_the_paper():
    own, incoming = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 4.0, -0.5])
    assert Replace()(own, incoming).tolist() == [3.0, 4.0, -0.5]
    assert Sum()(own, incoming).tolist() == [4.0, 2.0, 0.0]
    assert Mean()(own, incoming).tolist() == [2.0, 1.0, 0.0]


def test_own_is_a_fixed_point_of_mean_and_weighted_but_not_of_sum():
    own = states(3, WIDTH)
    assert_same_bits(Mean()(own, own), own)
    torch.testing.assert_close(Weighted(0.3)(own, own), own)
    assert not torch.allclose(Sum()(own, own), own)


def test_weighted_runs_from_own_through_mean_to_replace_and_beyond():
    own, incoming = states(3, WIDTH), states(3, WIDTH, seed=1)
    assert_same_bits(Weighted(0)(own, incoming), own)
    assert_same_bits(Weighted(0.5)(own, incoming), Mean()(own, incoming))
    assert_same_bits(Weighted(1)(own, incoming), incoming)
    torch.testing.assert_close(Weighted(2)(own, incoming), 2 * incoming - own)
    assert not torch.allclose(Weighted(0.6)(own, incoming), Mean()(own, incoming))


def test_gated_is_a_weight_of_its_own_for_every_coordinate():
    gate = some_map(4, 2)
    own, incoming = [0.3, -1.2], [2.0, 0.7]
    expected = []
    for coordinate in range(2):
        logit = float(gate.bias[coordinate])
        for position, value in enumerate(own + incoming):
            logit += float(gate.weight[coordinate, position]) * value
        g = 1 / (1 + math.exp(-logit))
        expected.append(g * incoming[coordinate] + (1 - g) * own[coordinate])
    fused = Gated(gate)(torch.tensor(own, dtype=torch.float64), torch.tensor(incoming, dtype=torch.float64))
    assert fused.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_wide_open_gate_replaces_and_a_shut_gate_keeps():
    own, incoming = states(3, WIDTH), states(3, WIDTH, seed=1)
    nothing = torch.zeros(WIDTH, 2 * WIDTH, dtype=torch.float64)
    ones = torch.ones(WIDTH, dtype=torch.float64)
    torch.testing.assert_close(Gated(AffineMap(nothing, 100 * ones))(own, incoming), incoming)
    torch.testing.assert_close(Gated(AffineMap(nothing, -100 * ones))(own, incoming), own)
    torch.testing.assert_close(Gated(AffineMap(nothing, 0 * ones))(own, incoming), Mean()(own, incoming))


@pytest.mark.parametrize("gate", [(WIDTH, WIDTH), (2 * WIDTH, 2 * WIDTH)])
def test_a_gate_of_other_widths_is_refused(gate):
    with pytest.raises(ValueError, match=rf"goes {gate[0]}->{gate[1]} where 12->6 is needed"):
        Gated(some_map(*gate))(states(WIDTH), states(WIDTH))


@pytest.mark.parametrize(
    "inner", [Replace(), Sum(), Mean(), OrthogonalResidual(), TaskArithmetic(0.5), Ties()], ids=repr
)
def test_norm_matched_has_the_norm_of_own_and_the_fused_direction(inner):
    own, incoming = states(4, WIDTH), 30 * states(4, WIDTH, seed=1)
    fused, matched = inner(own, incoming), NormMatched(inner)(own, incoming)
    torch.testing.assert_close(matched.norm(dim=-1), own.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(matched, fused), torch.ones(4, dtype=torch.float64))
    assert not torch.allclose(fused.norm(dim=-1), own.norm(dim=-1))


def test_norm_matching_a_row_without_direction_is_an_error():
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"Sum\(\) gave a row that is zero or not finite"):
        NormMatched(Sum())(own, torch.tensor([[1.0, 2.0], [-3.0, -4.0]]))
    assert NormMatched(Sum())(own, own).tolist() == own.tolist()


def test_norm_matching_a_row_that_overflowed_is_an_error():
    own = torch.tensor([60000.0, 1.0], dtype=torch.float16)
    with pytest.raises(ValueError, match="zero or not finite"):
        NormMatched(Sum())(own, own.clone())


def test_norm_matched_leaves_a_zero_own_at_zero():
    assert NormMatched(Replace())(torch.zeros(2), torch.ones(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("inner", [Replace(), Sum(), Mean(), OrthogonalResidual(), Ties()], ids=repr)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_identity_map_changes_no_bit_of_a_fusion(inner, dtype):
    own, incoming = states(4, WIDTH, dtype=dtype), states(4, WIDTH, seed=1, dtype=dtype)
    assert_same_bits(Linear(AffineMap.identity(WIDTH), inner)(own, incoming), inner(own, incoming))


def test_linear_replaces_by_default_and_maps_between_widths():
    map = some_map(3, 2)
    incoming = states(3)
    expected = [
        float(map.bias[row]) + sum(float(map.weight[row, col]) * float(incoming[col]) for col in range(3))
        for row in range(2)
    ]
    assert Linear(map)(states(2, seed=5), incoming).tolist() == pytest.approx(expected, abs=1e-12)


def test_linear_into_the_wrong_width_is_refused_by_the_fusion_inside():
    with pytest.raises(ValueError, match=r"own is 4 wide but incoming 2"):
        Linear(some_map(3, 2))(states(4), states(3))
    aligned = Linear(some_map(3, 2), RightAligned(Replace()))(states(4), states(3))
    assert_same_bits(aligned[:2], states(4)[:2])


def test_concat_puts_own_first():
    own, incoming = states(2), states(3, seed=1)
    keep_own = AffineMap(torch.eye(2, 5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert_same_bits(Concat(keep_own)(own, incoming), own)
    map = some_map(5, 2)
    expected = map.weight[:, :2] @ own + map.weight[:, 2:] @ incoming + map.bias
    torch.testing.assert_close(Concat(map)(own, incoming), expected)


@pytest.mark.parametrize("scale", [1.0, -2.0, 0.5])
def test_what_an_orthogonal_residual_injects_is_orthogonal_to_own(scale):
    own, incoming = states(20, WIDTH), 5 + states(20, WIDTH, seed=1)
    injected = OrthogonalResidual(scale)(own, incoming) - own
    assert torch.cosine_similarity(injected, own).abs().max() < 1e-12
    # With own's direction what is left out is exactly the message: the two parts add up to it.
    along = (incoming * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True) * own
    torch.testing.assert_close(injected / scale + along, incoming)
    assert torch.cosine_similarity(incoming, own).abs().max() > 0.1


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_message_the_receiver_already_has_injects_nothing(dtype):
    own = states(5, WIDTH, dtype=dtype)
    assert_same_bits(OrthogonalResidual()(own, own.clone()), own)
    assert not equal_to_rounding(OrthogonalResidual()(own, own.flip(-1)), own, terms=WIDTH)
    assert_same_bits(OrthogonalResidual()(own, -2 * own), own)


def test_a_zero_own_takes_nothing_from_the_message():
    own = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    incoming = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    assert OrthogonalResidual(2)(own, incoming).tolist() == [[6.0, 8.0], [1.0, 8.0]]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_exact_predictor_injects_nothing(dtype):
    predictor = some_map(WIDTH, WIDTH)
    own = states(5, WIDTH, dtype=dtype)
    assert_same_bits(PredictabilityResidual(predictor, 3.0)(own, predictor(own)), own)
    other = PredictabilityResidual(some_map(WIDTH, WIDTH, seed=9), 3.0)
    assert not equal_to_rounding(other(own, predictor(own)), own, terms=WIDTH)


def test_a_predictor_that_knows_nothing_lets_the_whole_message_through():
    own, incoming = states(5, WIDTH), states(5, WIDTH, seed=1)
    ignorant = AffineMap(torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH))
    torch.testing.assert_close(PredictabilityResidual(ignorant)(own, incoming), own + incoming)


@pytest.mark.parametrize("widths", [(WIDTH, 4), (4, WIDTH)])
def test_a_predictor_of_other_widths_is_refused(widths):
    with pytest.raises(ValueError, match=rf"goes {widths[0]}->{widths[1]} where 6->6 is needed"):
        PredictabilityResidual(some_map(*widths))(states(WIDTH), states(WIDTH))


def test_right_alignment_of_three_onto_five_keeps_the_first_two():
    own, incoming = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([10.0, 20.0, 30.0])
    assert RightAligned(Replace())(own, incoming).tolist() == [1.0, 2.0, 10.0, 20.0, 30.0]
    assert RightAligned(Sum())(own, incoming).tolist() == [1.0, 2.0, 13.0, 24.0, 35.0]
    assert RightAligned(Mean())(own, incoming).tolist() == [1.0, 2.0, 6.5, 12.0, 17.5]


def test_right_alignment_of_five_onto_three_uses_the_last_three():
    own, incoming = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    assert RightAligned(Replace())(own, incoming).tolist() == [30.0, 40.0, 50.0]
    assert RightAligned(Sum())(own, incoming).tolist() == [31.0, 42.0, 53.0]
    assert RightAligned(Mean())(own, incoming).tolist() == [15.5, 21.0, 26.5]


def test_right_alignment_of_equal_widths_changes_nothing():
    own, incoming = states(3, WIDTH), states(3, WIDTH, seed=1)
    for inner in (Replace(), Sum(), Mean(), Ties()):
        assert_same_bits(RightAligned(inner)(own, incoming), inner(own, incoming))


@given(d_receiver=st.integers(1, 9), d_sender=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_right_alignment_follows_the_rule_coordinate_by_coordinate(d_receiver, d_sender):
    own, incoming = states(2, d_receiver), states(2, d_sender, seed=1)
    fused = RightAligned(Sum())(own, incoming)
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
        RightAligned(Replace())(states(3), incoming)


# --- several senders ---


def test_task_arithmetic_adds_every_senders_change():
    own, incoming = states(4, WIDTH), states(3, 4, WIDTH, seed=1)
    expected = own + 0.5 * ((incoming[0] - own) + (incoming[1] - own) + (incoming[2] - own))
    torch.testing.assert_close(TaskArithmetic(0.5)(own, incoming), expected)


def test_task_arithmetic_of_one_sender_runs_from_own_to_replace():
    own, incoming = states(4, WIDTH), states(4, WIDTH, seed=1)
    assert_same_bits(TaskArithmetic(0)(own, incoming), own)
    torch.testing.assert_close(TaskArithmetic(1)(own, incoming), incoming)
    torch.testing.assert_close(TaskArithmetic(0.3)(own, incoming), Weighted(0.3)(own, incoming))


@pytest.mark.parametrize("merge", [TaskArithmetic(0.7), Ties(density=0.5, scale=0.7)], ids=repr)
def test_one_sender_with_and_without_the_sender_axis_is_the_same(merge):
    own, incoming = states(4, WIDTH), states(4, WIDTH, seed=1)
    assert_same_bits(merge(own, incoming[None]), merge(own, incoming))
    assert_same_bits(merge(own[0], incoming[:1]), merge(own[0], incoming[0]))


@pytest.mark.parametrize("merge", [TaskArithmetic(0.7), Ties(density=0.5, scale=0.7)], ids=repr)
def test_merging_several_senders_is_by_row_and_ignores_their_order(merge):
    own, incoming = states(4, WIDTH), states(3, 4, WIDTH, seed=1)
    merged = merge(own, incoming)
    alone = torch.stack([merge(own[row], incoming[:, row]) for row in range(4)])
    size = float((incoming - own).abs().max())
    assert_equal_to_rounding(merged, alone, terms=4, scale=size)
    assert_equal_to_rounding(merge(own, incoming.flip(0)), merged, terms=4, scale=size)
    assert not torch.allclose(merge(own, incoming[:2]), merged)


@pytest.mark.parametrize("merge", [TaskArithmetic(), Ties()], ids=repr)
def test_no_sender_at_all_is_an_error(merge):
    with pytest.raises(ValueError, match="merge at least one sender"):
        merge(states(4, WIDTH), states(0, 4, WIDTH))


@pytest.mark.parametrize("single", [Replace(), Sum(), Mean(), NormMatched(Replace())], ids=repr)
def test_several_senders_are_refused_by_a_fusion_of_one(single):
    with pytest.raises(TypeCheckError):
        single(states(4, WIDTH), states(3, 4, WIDTH))


def test_wrappers_hand_several_senders_on_to_the_merge_inside():
    own, incoming = states(4, WIDTH), states(3, 4, WIDTH, seed=1)
    merged = Ties()(own, incoming)
    torch.testing.assert_close(Linear(AffineMap.identity(WIDTH), Ties())(own, incoming), merged)
    torch.testing.assert_close(NormMatched(Ties())(own, incoming).norm(dim=-1), own.norm(dim=-1))
    wide = torch.cat((states(3, 4, 2, seed=5), incoming), dim=-1)
    torch.testing.assert_close(RightAligned(Ties())(own, wide), merged)


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
    fused = Ties(density=percent / 100, scale=0.7)(own, incoming)
    torch.testing.assert_close(fused, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_ties_of_one_sender_that_keeps_all_is_task_arithmetic(dtype):
    own, incoming = states(4, WIDTH, dtype=dtype), states(4, WIDTH, seed=1, dtype=dtype)
    whole = TaskArithmetic(0.7)(own, incoming)
    assert_same_bits(Ties(density=1, scale=0.7)(own, incoming), whole)
    assert not equal_to_rounding(Ties(density=0.5, scale=0.7)(own, incoming), whole, terms=2)


def test_ties_of_several_senders_averages_where_task_arithmetic_adds():
    own, incoming = torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert Ties(density=1)(own, incoming).tolist() == [2.0, 3.0]
    assert TaskArithmetic()(own, incoming).tolist() == [4.0, 6.0]


@pytest.mark.parametrize(("density", "kept"), [(0.07, 7), (0.2, 20), (0.201, 21), (0.001, 1), (1, 100)])
def test_ties_keeps_the_share_as_written_rounded_up(density, kept):
    changed = Ties(density=density)(torch.zeros(100), torch.arange(1.0, 101.0))
    assert int((changed != 0).sum()) == kept
    assert_same_bits(changed[100 - kept :], torch.arange(1.0, 101.0)[100 - kept :])


def test_ties_drops_a_coordinate_on_which_the_senders_cancel():
    fused = Ties(density=1)(torch.zeros(3), torch.tensor([[2.0, -1.0, 1.0], [-2.0, 3.0, 1.0]]))
    assert fused.tolist() == [0.0, 3.0, 1.0]
