"""The redundancy of all pairs of layers, against the one-pair functions and a transcription with scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from latentcomm.alignment import PENALTY_RATIOS, row_folds
from latentcomm.redundancy import redundancy_map
from latentcomm.similarity import linear_predictability


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers_of_two() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Three sender and two receiver layers: sender layer 1 follows from receiver layer 0, layer 2 from nothing."""
    receiver = rows(2, 150, 6)
    sender = torch.stack(
        (receiver[0, :, :4], receiver[0] @ rows(6, 4, seed=1) + rows(150, 4, seed=2), rows(150, 4, seed=3))
    )
    return sender + 1, receiver - 2, (torch.arange(150) // 6).tolist()


def test_the_map_holds_every_pair_as_the_one_pair_functions_give_it():
    sender, receiver, documents = layers_of_two()
    found = redundancy_map(sender, receiver, groups=documents, spectra=[(1, 0), (2, 1)])
    for i in range(3):
        for j in range(2):
            expected = linear_predictability(receiver[j], sender[i], groups=documents)
            assert float(found.r_squared[i, j]) == pytest.approx(expected, abs=1e-8)
            low, high = found.r_squared_interval[i, j].tolist()
            assert low - 1e-12 <= float(found.r_squared[i, j]) <= high + 1e-12
            low, high = found.residual_covariance_interval[i, j].tolist()
            assert low < high and low - 1e-12 <= float(found.residual_covariance[i, j]) <= high + 1e-12
    assert float(found.r_squared[0, 0]) == pytest.approx(1, abs=1e-8)
    assert 0.5 < float(found.r_squared[1, 0]) < 0.95
    assert float(found.r_squared[2].abs().max()) < 0.1 and float(found.r_squared[:, 1].abs().max()) < 0.1
    assert (found.n_rows, found.n_documents) == (150, 25)


def test_a_pair_of_the_map_is_its_transcription_with_scikit_learn():
    sender, receiver, documents = layers_of_two()
    found = redundancy_map(sender[1:2], receiver[:1], groups=documents, spectra=[(0, 0)], folds=3)
    a, b = sender[1].numpy(), receiver[0].numpy()
    parts = [part.numpy() for part in row_folds(150, folds=3, groups=documents)]
    residual, said = np.zeros_like(a), np.zeros_like(a)

    def fitted(kept: np.ndarray, ratio: float) -> Ridge:
        return Ridge(alpha=ratio * ((b[kept] - b[kept].mean(0)) ** 2).sum() / b.shape[1]).fit(b[kept], a[kept])

    for number, held_out in enumerate(parts):
        judge = parts[(number + 1) % 3]
        kept = np.concatenate([part for part in parts if part is not held_out])
        inner = np.setdiff1d(kept, judge)
        errors = [((a[judge] - fitted(inner, ratio).predict(b[judge])) ** 2).sum() for ratio in PENALTY_RATIOS]
        guess = fitted(kept, PENALTY_RATIOS[int(np.argmin(errors))]).predict(b[held_out])
        residual[held_out], said[held_out] = a[held_out] - guess, guess - a[kept].mean(0)
    size = ((residual + said) ** 2).sum()
    assert float(found.r_squared) == pytest.approx(1 - (residual**2).sum() / size, abs=1e-10)
    assert float(found.explained_energy) == pytest.approx(1 - (residual**2).sum() / (a**2).sum(), abs=1e-10)
    assert float(found.residual_covariance) == pytest.approx((residual * said).sum() / size, abs=1e-10)
    expected = np.linalg.eigvalsh(np.cov(residual.T))[::-1]
    assert found.spectra[0, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-10)
    filled = expected.sum() ** 2 / (expected**2).sum()
    assert float(found.effective_rank()[0, 0]) == pytest.approx(filled, abs=1e-8)


def test_a_message_of_the_receivers_own_layer_is_redundant_there_alone():
    _, receiver, documents = layers_of_two()
    found = redundancy_map(receiver, receiver, groups=documents, spectra=[(0, 0), (1, 1)])
    assert found.r_squared.diagonal().tolist() == pytest.approx([1, 1], abs=1e-10)
    assert max(float(spectrum.max()) for spectrum in found.spectra.values()) < 1e-8
    assert float(found.r_squared[0, 1]) < 0.1


def test_the_map_as_a_table_has_a_line_a_pair_in_the_order_of_the_map():
    sender, receiver, documents = layers_of_two()
    found = redundancy_map(sender, receiver, groups=documents, spectra=[(2, 1)], n_resamples=50)
    table = found.to_table()
    assert list(table["sender_layer"]) == [0, 0, 1, 1, 2, 2] and list(table["receiver_layer"]) == [0, 1] * 3
    assert table["r_squared"].tolist() == found.r_squared.flatten().tolist()
    assert table["r_squared_high"].tolist() == found.r_squared_interval[..., 1].flatten().tolist()
    assert table["effective_rank"].isna().tolist() == [True] * 5 + [False]
    again = redundancy_map(sender, receiver, groups=documents, spectra=[(2, 1)], n_resamples=50)
    assert again.to_table().equals(table)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: redundancy_map([], [rows(9, 2)]), "a has no layers; give at least 1"),
        (lambda: redundancy_map([rows(30, 2)], [rows(29, 2)]), "layers have 29 and 30 rows; give the same rows"),
        (lambda: redundancy_map([rows(30, 2)], [rows(30, 2) / 0]), "layer 0 of b holds NaN or infinity"),
        (lambda: redundancy_map([torch.ones(30, 2)], [rows(30, 2)]), "all 30 rows of layer 0 of a are equal"),
        (lambda: redundancy_map([rows(30, 2)], [rows(30, 2)], spectra=[(0, 1)]), r"spectra is \(0, 1\)"),
        (lambda: redundancy_map([rows(30, 2)], [rows(30, 2)], groups=[0, 1] * 15), "2 groups cannot make 5 folds"),
        (lambda: redundancy_map([rows(30, 2)], [rows(30, 2)], folds=2), "folds is 2; choosing a penalty"),
        (lambda: redundancy_map([rows(4, 2)], [rows(4, 2)]), "4 groups cannot make 5 folds"),
    ],
)
def test_layers_that_make_no_map_are_refused_in_a_sentence(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
