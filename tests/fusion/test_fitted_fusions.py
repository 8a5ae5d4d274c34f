"""Every fusion with a map against its formula written out by hand."""

import math

import pytest
import torch
from numerics import assert_same_bits, equal_to_rounding
from tiny import states

from latentcomm.alignment import AffineMap
from latentcomm.fusion import (
    Concat,
    Gated,
    Linear,
    Mean,
    OrthogonalResidual,
    PredictabilityResidual,
    Replace,
    RightAligned,
    Sum,
    Ties,
)

WIDTH = 6
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}


def some_map(d_in: int, d_out: int, seed: int = 7) -> AffineMap:
    return AffineMap(states(d_out, d_in, seed=seed), states(d_out, seed=seed + 1))


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
