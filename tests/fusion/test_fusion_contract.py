"""The promises that all fusions make, and what each refuses."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError
from numerics import assert_equal_to_rounding, assert_same_bits
from tiny import states

import latentcomm as lc
from latentcomm.alignment import AffineMap

WIDTH = 6
NAN, INF = float("nan"), float("inf")


def some_map(d_in: int, d_out: int, seed: int = 7) -> AffineMap:
    return AffineMap(states(d_out, d_in, seed=seed), states(d_out, seed=seed + 1))


# One instance of every entry of FUSIONS for states WIDTH wide, built afresh so that two builds can be compared. Those
# that need no argument are built without; one that is added to the table is under the contract at once.
EXAMPLES: dict[str, Callable[[], lc.fusion.Fusion]] = {
    **{name: lc.fusion.FUSIONS[name] for name in lc.fusion.BY_NAME},
    "weighted": lambda: lc.fusion.Weighted(0.3),
    "gated": lambda: lc.fusion.Gated(some_map(2 * WIDTH, WIDTH)),
    "norm_matched": lambda: lc.fusion.NormMatched(lc.fusion.Sum()),
    "linear": lambda: lc.fusion.Linear(some_map(WIDTH, WIDTH), lc.fusion.Mean()),
    "concat": lambda: lc.fusion.Concat(some_map(2 * WIDTH, WIDTH)),
    "orthogonal_residual": lambda: lc.fusion.OrthogonalResidual(0.7),
    "predictability_residual": lambda: lc.fusion.PredictabilityResidual(some_map(WIDTH, WIDTH), 0.7),
    "task_arithmetic": lambda: lc.fusion.TaskArithmetic(0.7),
    "ties": lambda: lc.fusion.Ties(density=0.5, scale=0.7),
    "right_aligned": lambda: lc.fusion.RightAligned(lc.fusion.Mean()),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}
every_fusion = pytest.mark.parametrize("name", lc.fusion.FUSIONS)


def test_the_contract_below_covers_every_entry_of_the_table():
    assert set(EXAMPLES) == set(lc.fusion.FUSIONS)
    for name, build in EXAMPLES.items():
        assert type(build()) is lc.fusion.FUSIONS[name]


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
    assert shown.startswith(lc.fusion.FUSIONS[name].__name__ + "(")
    assert len(shown) < 80
    assert "tensor" not in shown and "0x" not in shown and "\n" not in shown


def test_reprs_are_what_the_figures_record():
    assert repr(lc.fusion.Linear(some_map(576, 896))) == "Linear(map=AffineMap(576->896), fusion=Replace())"
    assert (
        repr(lc.fusion.NormMatched(lc.fusion.OrthogonalResidual(1)))
        == "NormMatched(fusion=OrthogonalResidual(scale=1.0))"
    )
    assert repr(lc.fusion.Ties()) == "Ties(density=0.2, scale=1.0)"


@every_fusion
def test_a_fusion_is_frozen_hashable_and_a_fusion(name):
    fusion = EXAMPLES[name]()
    assert isinstance(fusion, lc.fusion.Fusion)
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
        (lambda x: lc.fusion.Weighted(x), "alpha"),
        (lambda x: lc.fusion.OrthogonalResidual(x), "scale"),
        (lambda x: lc.fusion.PredictabilityResidual(AffineMap.identity(2), x), "scale"),
        (lambda x: lc.fusion.TaskArithmetic(x), "scale"),
        (lambda x: lc.fusion.Ties(density=x), "density"),
        (lambda x: lc.fusion.Ties(scale=x), "scale"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_at_construction(build, field, bad):
    with pytest.raises(ValueError, match=rf"{field} is -?(nan|inf)"):
        build(bad)


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, 20])
def test_a_density_that_is_no_share_is_refused_at_construction(density):
    with pytest.raises(ValueError, match=r"density is .* above 0 and at most 1"):
        lc.fusion.Ties(density=density)


@pytest.mark.parametrize(
    "wrap", [lc.fusion.NormMatched, lc.fusion.RightAligned, lambda f: lc.fusion.Linear(AffineMap.identity(2), f)]
)
def test_a_fusion_class_instead_of_an_instance_is_refused(wrap):
    with pytest.raises(ValueError, match=r"Replace is a class; pass an instance, such as Replace\(\)"):
        wrap(lc.fusion.Replace)
    wrap(lc.fusion.Replace())


@pytest.mark.parametrize(
    "wrap", [lc.fusion.Gated, lc.fusion.Concat, lc.fusion.Linear, lc.fusion.PredictabilityResidual]
)
def test_a_map_that_does_not_tell_its_widths_is_refused_at_construction(wrap):
    with pytest.raises(TypeCheckError):
        wrap(lambda rows: rows)
