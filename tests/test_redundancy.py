"""What the receiver already has, against hand-worked cases and planted predictors."""

import pytest
import torch

from latentcomm.alignment import fit_ridge
from latentcomm.fusion import OrthogonalResidual, PredictabilityResidual
from latentcomm.redundancy import fit_predictable, orthogonal_residual


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_residual_is_the_formula_worked_by_hand():
    # a.b = 1*1 + 2*1 = 3, b.b = 2: a - 1.5 b
    assert orthogonal_residual(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])).tolist() == [-0.5, 0.5]


def test_the_residual_of_a_state_and_itself_is_zero():
    a = rows(5, 64).float()
    assert torch.equal(orthogonal_residual(a, a.clone()), torch.zeros_like(a))
    assert orthogonal_residual(a, a.flip(0)).abs().max() > 0.1


def test_the_residual_is_what_the_fusion_injects():
    a, b = rows(5, 6), rows(5, 6, seed=1)
    torch.testing.assert_close(OrthogonalResidual(0.7)(b, a), b + 0.7 * orthogonal_residual(a, b))


def test_a_zero_state_leaves_the_message_whole_in_new_memory():
    a = rows(2, 3)
    residual = orthogonal_residual(a, torch.zeros_like(a))
    assert torch.equal(residual, a)
    residual.zero_()
    assert a.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_residual_has_the_messages_dtype_and_shape(dtype):
    a, b = rows(2, 3, 4).to(dtype), rows(2, 3, 4, seed=1).to(dtype)
    assert orthogonal_residual(a, b).dtype == dtype
    assert orthogonal_residual(a, b).shape == (2, 3, 4)


def test_unequal_widths_are_refused_naming_both():
    with pytest.raises(ValueError, match=r"a is 3 wide but b 4; map a into b's space first"):
        orthogonal_residual(rows(2, 3), rows(2, 4))


@pytest.mark.parametrize("name", ["a", "b"])
def test_states_that_are_not_finite_are_refused_by_name(name):
    given = {"a": rows(2, 3), "b": rows(2, 3, seed=1)}
    given[name][1, 2] = float("nan")
    with pytest.raises(ValueError, match=f"^{name} holds NaN or infinity in row 1"):
        orthogonal_residual(**given)


def test_a_planted_predictor_is_found_and_leaves_nothing_to_inject():
    b_rows, planted = rows(200, 4), rows(4, 4, seed=1)
    a_rows = b_rows @ planted.T + 3
    predictable = fit_predictable(b_rows, a_rows)
    torch.testing.assert_close(predictable.weight, planted, atol=1e-6, rtol=1e-6)
    fresh = rows(10, 4, seed=2)
    injected = PredictabilityResidual(predictable)(fresh, fresh @ planted.T + 3) - fresh
    assert injected.abs().max() < 1e-6


def test_the_same_model_on_the_same_text_is_wholly_predictable():
    states = rows(200, 6)
    predictable = fit_predictable(states, states)
    assert predictable.r_squared(states, states) > 1 - 1e-12
    assert (PredictabilityResidual(predictable)(states, states) - states).abs().max() < 1e-6


def test_an_unrelated_message_is_not_predictable_and_goes_through_nearly_whole():
    b_rows, a_rows = rows(200, 4), rows(200, 4, seed=1)
    predictable = fit_predictable(b_rows, a_rows)
    fresh_b, fresh_a = rows(200, 4, seed=2), rows(200, 4, seed=3)
    assert abs(predictable.r_squared(fresh_b, fresh_a)) < 0.05
    injected = PredictabilityResidual(predictable)(fresh_b, fresh_a) - fresh_b
    assert torch.cosine_similarity(injected, fresh_a).min() > 0.5
    assert torch.cosine_similarity(injected, fresh_a).mean() > 0.99


def test_the_few_rows_that_least_squares_would_erase_are_kept_by_the_held_out_choice():
    b_rows, a_rows = rows(24, 20), rows(24, 20, seed=1)
    least_squares = fit_ridge(b_rows, a_rows, penalty=0)
    assert least_squares.r_squared(b_rows, a_rows) > 0.7
    assert fit_predictable(b_rows, a_rows).r_squared(b_rows, a_rows) < 0.2


def test_documents_as_groups_keep_a_memorised_document_from_counting_as_predictable():
    # Ten documents of three near-equal rows; the message of a document has nothing to do with its states.
    b_rows = rows(10, 20).repeat_interleave(3, dim=0) + 1e-3 * rows(30, 20, seed=1)
    a_rows = rows(10, 4, seed=2).repeat_interleave(3, dim=0)
    documents = [row // 3 for row in range(30)]
    assert fit_predictable(b_rows, a_rows).r_squared(b_rows, a_rows) > 0.99
    by_document = fit_predictable(b_rows, a_rows, groups=documents, folds=3, seed=5)
    assert by_document.r_squared(b_rows, a_rows) < 0.5
    expected = fit_ridge(b_rows, a_rows, groups=documents, folds=3, seed=5)
    assert torch.equal(by_document.weight, expected.weight)
