"""What the tests mean by the same bits and by rounding, and that another processor's kernels can be had on this one."""

import ast
from pathlib import Path

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, equal_to_rounding, forward_terms, same_bits
from other_kernels import OtherKernels
from tiny import ARCHITECTURES, ids, model, states
from torch import Tensor

from latentcomm.models.prompts import Prompts

NAN, INF = float("nan"), float("inf")
EXACT_CALLS = {"equal", "array_equal", "assert_array_equal", "assert_equal"}


class TestSameBits:
    def test_a_copy_in_another_layout_has_the_same(self) -> None:
        x = states(5, 3)
        assert_same_bits(x, x.T.contiguous().T)

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 3e-7])),
            (torch.tensor([0.0]), torch.tensor([-0.0])),
            (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
            (torch.tensor([1.0]), torch.tensor([[1.0]])),
            (torch.tensor([NAN]), torch.tensor([1.0])),
        ],
        ids=["the last bit", "the sign of zero", "dtype", "shape", "not a number"],
    )
    def test_anything_else_has_not(self, x: Tensor, y: Tensor) -> None:
        assert not same_bits(x, y)
        with pytest.raises(AssertionError):
            assert_same_bits(x, y)

    def test_not_a_number_has_its_own(self) -> None:
        assert_same_bits(torch.tensor([NAN, INF]), torch.tensor([NAN, INF]))

    @pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.bfloat16])
    def test_holds_for_other_dtypes(self, dtype: torch.dtype) -> None:
        x = torch.tensor([[0, 1], [1, 1]], dtype=dtype)
        assert_same_bits(x, x.clone())
        assert not same_bits(x, 1 - x.float())


class TestRounding:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_sum_in_another_order_is_within_it(self, dtype: torch.dtype, seed: int) -> None:
        x = states(400, seed=seed, dtype=dtype)
        forth, back = x.cumsum(0)[-1], x.flip(0).cumsum(0)[-1]
        assert_equal_to_rounding(forth, back, terms=400, scale=float(x.abs().max()))

    @pytest.mark.parametrize("planted", [1e-9, -1e-9, NAN, INF])
    def test_a_planted_error_in_one_entry_is_not(self, planted: float) -> None:
        x = states(8, 64)
        wrong = x.clone()
        wrong[3, 5] += planted
        assert not equal_to_rounding(x, wrong, terms=1000)
        with pytest.raises(AssertionError):
            assert_equal_to_rounding(x, wrong, terms=1000)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_planted_error_is_seen_after_a_whole_forward_pass(self, architecture: str) -> None:
        tiny = model(architecture)
        logits = tiny.forward(ids(6)[0][None])
        assert not equal_to_rounding(logits, logits + 1e-9, terms=forward_terms(tiny, n_forward=10))

    def test_whole_numbers_have_none(self) -> None:
        assert not equal_to_rounding(torch.tensor([10**6]), torch.tensor([10**6 + 1]), terms=10**9)

    def test_infinity_agrees_with_itself_alone(self) -> None:
        x = torch.tensor([INF, NAN, 1.0])
        assert equal_to_rounding(x, x.clone(), terms=1)
        assert not equal_to_rounding(x, torch.tensor([-INF, NAN, 1.0]), terms=1)

    def test_another_dtype_or_shape_is_another_tensor(self) -> None:
        x = states(3)
        assert not equal_to_rounding(x, x.float(), terms=10**9)
        assert not equal_to_rounding(x, x[None], terms=1)


class TestOtherKernels:
    """What another processor may do happens here, on any processor, so that a test which relies on luck is red."""

    def test_the_same_operation_on_the_same_layout_gives_the_same_bits(self) -> None:
        x, weight = states(9, 64), states(64, 48, seed=1)
        with OtherKernels():
            assert_same_bits(x @ weight, x.clone() @ weight.clone())
            assert_same_bits(x.sum(1), x.clone().sum(1))

    def test_a_row_of_a_batch_and_the_row_alone_agree_to_rounding_only(self) -> None:
        x, weight = states(9, 64), states(64, 48, seed=1)
        with OtherKernels():
            together, alone = x @ weight, torch.cat([row @ weight for row in x.split(1)])
        assert not torch.equal(together, alone)
        assert_equal_to_rounding(together, alone, terms=64)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_so_do_a_model_s_logits_of_a_batch_and_of_a_prompt(self, architecture: str) -> None:
        tiny, prompts = model(architecture), Prompts.from_ids(ids(5, 5, 5, 5, 5))
        with OtherKernels():
            together = tiny.forward(prompts.tokens)
            alone = torch.cat([tiny.forward(row[None]) for row in prompts.tokens])
        assert not torch.equal(together, alone)
        assert_equal_to_rounding(together, alone, terms=forward_terms(tiny))

    def test_equal_rows_of_one_batch_do_too(self) -> None:
        rows, weight = states(1, 64).expand(9, -1).contiguous(), states(64, 48, seed=1)
        with OtherKernels():
            found = rows @ weight
        assert not torch.equal(found[0], found[-1])
        assert_equal_to_rounding(found[0], found[-1], terms=64)

    @pytest.mark.parametrize("change", ["stride", "alignment"])
    def test_another_layout_gives_other_bits(self, change: str) -> None:
        x, weight = states(9, 64), states(64, 48, seed=1)
        shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view_as(x).copy_(x)
        other = x.T.contiguous().T if change == "stride" else shifted
        with OtherKernels():
            found, expected = other @ weight, x @ weight
        assert not torch.equal(found, expected)
        assert_equal_to_rounding(found, expected, terms=64)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_every_operation_is_right_to_rounding(self, dtype: torch.dtype) -> None:
        x, y, bias = (
            states(3, 6, 40, dtype=dtype),
            states(3, 40, 5, seed=1, dtype=dtype),
            states(5, seed=2, dtype=dtype),
        )
        operations = (
            lambda: x @ y,
            lambda: x[0] @ y[0],
            lambda: x[0] @ y[0, :, 0],
            lambda: x[0, 0] @ y[0, :, 0],
            lambda: torch.nn.functional.linear(x, y[0].T.contiguous(), bias),
            lambda: torch.baddbmm(bias, x, y, beta=2, alpha=3),
            lambda: torch.addmv(x[0, :, 0], x[0], y[0, :, 0]),
            lambda: x.sum(),
            lambda: x.mean((0, 2), keepdim=True),
            lambda: x.var(1),
            lambda: torch.linalg.vector_norm(x, dim=-1),
            lambda: x.softmax(-1),
            lambda: x.log_softmax(1),
            lambda: torch.nn.functional.layer_norm(x, (40,), y[0, :, 0], y[1, :, 0]),
        )
        for operation in operations:
            expected = operation()
            with OtherKernels():
                found = operation()
            with OtherKernels(), torch.inference_mode():
                inferred = operation()
            assert_equal_to_rounding(found, expected, terms=40, scale=max(20.0, float(expected.abs().max())))
            assert_equal_to_rounding(inferred, expected, terms=40, scale=max(20.0, float(expected.abs().max())))

    def test_gradients_go_through(self) -> None:
        x, weight = states(9, 16).requires_grad_(), states(16, 4, seed=1)
        (expected,) = torch.autograd.grad((x @ weight).square().sum(), x)
        with OtherKernels():
            (found,) = torch.autograd.grad((x @ weight).square().sum(), x)
        assert_equal_to_rounding(found, expected, terms=64)


def test_no_test_compares_computed_numbers_by_a_bare_torch_equal() -> None:
    """Which of the two is meant, the same bits or rounding, is said by the name of what compares."""
    here = Path(__file__)
    bare = []
    for file in sorted(here.parent.rglob("*.py")):
        if file == here:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in EXACT_CALLS:
                bare.append(f"{file.name}:{node.lineno}")
    assert not bare, "use assert_same_bits or assert_equal_to_rounding of numerics.py"
