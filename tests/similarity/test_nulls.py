"""Nulls of known size: independent rows, documents that share their positions, and the maximum over many pairs."""

import numpy as np
import pytest
import torch
from numerics import assert_same_bits
from similar import planted, rows

from latentcomm.similarity import (
    SIMILARITIES,
    LayerPairs,
    Null,
    compare,
    debiased_cka,
    exchanged_documents,
    linear_cka,
    linear_predictability,
    null,
    null_maps,
    shuffled_rows,
)

N_DOCUMENTS, LENGTH = 20, 8
DOCUMENTS = torch.arange(N_DOCUMENTS).repeat_interleave(LENGTH)
POSITIONS = torch.arange(LENGTH).repeat(N_DOCUMENTS)


# --- pairings ---


def test_shuffled_rows_use_every_row_once_and_differ_by_draw_and_seed():
    pairings = shuffled_rows(30, draws=3)
    assert all(sorted(p.partners.tolist()) == p.rows.tolist() == list(range(30)) for p in pairings)
    assert len({tuple(p.partners.tolist()) for p in [*pairings, *shuffled_rows(30, draws=3, seed=1)]}) == 6
    assert_same_bits(pairings[2].partners, shuffled_rows(30, draws=3)[2].partners)


def test_exchanged_documents_keep_the_position_and_never_meet_themselves():
    order = torch.randperm(len(DOCUMENTS), generator=torch.Generator().manual_seed(0))
    documents, positions = DOCUMENTS[order], POSITIONS[order]
    for pairing in exchanged_documents(documents, positions, draws=5):
        assert sorted(pairing.rows.tolist()) == sorted(pairing.partners.tolist()) == list(range(len(DOCUMENTS)))
        assert_same_bits(positions[pairing.rows], positions[pairing.partners])
        assert (documents[pairing.rows] != documents[pairing.partners]).all()
        met = set(zip(documents[pairing.rows].tolist(), documents[pairing.partners].tolist(), strict=True))
        assert len(met) == N_DOCUMENTS  # one partner a document


def test_rows_whose_position_the_partner_lacks_are_left_out():
    documents, positions = ["a"] * 3 + ["b"] * 2 + ["c"], [0, 1, 2, 0, 1, 0]
    (pairing,) = exchanged_documents(documents, positions, draws=1)
    assert all(positions[i] == positions[j] for i, j in zip(pairing.rows, pairing.partners, strict=True))
    assert (
        len(pairing.rows) == 4
    )  # each circle of these three: one shared position a pair but for a and b, which share two


def test_what_allows_no_exchange_is_refused():
    with pytest.raises(ValueError, match=r"^4 documents form 6 cycles, fewer than 20; give more documents"):
        exchanged_documents([0, 1, 2, 3], [0, 0, 0, 0], draws=20)
    with pytest.raises(ValueError, match=r"^1 documents form 0 cycles"):
        exchanged_documents([0, 0], [0, 1], draws=1)
    with pytest.raises(ValueError, match=r"^rows 0 and 1 both are position 3 of document 'a'"):
        exchanged_documents(["a", "a", "b"], [3, 3, 3], draws=1)
    with pytest.raises(ValueError, match=r"^2 document labels but 3 positions"):
        exchanged_documents(["a", "b"], [0, 0, 1], draws=1)
    with pytest.raises(ValueError, match=r"^the documents have no position in common"):
        exchanged_documents(["a", "b"], [0, 1], draws=1)
    for draw in (lambda: shuffled_rows(5, draws=0), lambda: exchanged_documents([0, 1], [0, 0], draws=0)):
        with pytest.raises(ValueError, match=r"^draws is 0; a null needs at least 1"):
            draw()


# --- nulls ---


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_of_planted_rows_exceed_their_null_unless_shuffled(name):
    x, y = planted(100, noise=0.5)
    found = compare(name, x, y, draws=19)
    (own,) = found.nulls
    assert (found.rows, found.dims, own.rows, own.dims, own.over) == (100, (5, 7), 100, (5, 7), 1)
    assert found.value == SIMILARITIES[name](x, y)
    assert own.p_value(found.value) == 1 / 20
    assert own.quantiles[0.025] <= own.quantiles[0.5] <= own.quantiles[0.975] < found.value
    unrelated = compare(name, x, y[torch.randperm(100, generator=torch.Generator().manual_seed(9))], draws=19)
    assert unrelated.nulls[0].p_value(unrelated.value) > 1 / 20 or unrelated.value < max(own.values) * 1.2


def test_a_null_is_the_measure_of_each_pairing():
    x, y = planted(40)
    pairings = shuffled_rows(40, draws=4, seed=2)
    found = null(SIMILARITIES["linear_cka"], x, y, pairings, kind="shuffled rows")
    expected = [linear_cka(x, y[pairing.partners]) for pairing in pairings]
    assert found.values == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.quantiles[0.5] == pytest.approx(np.median(expected))


def test_only_document_permutation_sees_positions_shared_by_documents():
    at_position = rows(LENGTH, 6)[POSITIONS]  # what position alone decides, the same in every document
    x = 3 * at_position + rows(len(DOCUMENTS), 6, seed=1)
    y = 3 * at_position + rows(len(DOCUMENTS), 6, seed=2)
    found = compare("debiased_cka", x, y, documents=DOCUMENTS, positions=POSITIONS)
    shuffled, exchanged = found.nulls
    assert (shuffled.kind, exchanged.kind) == ("shuffled rows", "exchanged documents")
    assert abs(shuffled.mean) < 0.02
    assert exchanged.mean == pytest.approx(found.value, abs=0.05)  # nothing but position is shared
    assert found.value > 0.5 and shuffled.p_value(found.value) < 0.05 < exchanged.p_value(found.value)


def test_document_labels_follow_their_rows_into_predictabilitys_null():
    x, y = planted(len(DOCUMENTS), noise=1.0)
    pairings = exchanged_documents(DOCUMENTS, POSITIONS, draws=2)
    entry = SIMILARITIES["linear_predictability"]
    expected = [linear_predictability(x[p.rows], y[p.partners], groups=DOCUMENTS[p.rows]) for p in pairings]
    for labels in (DOCUMENTS, DOCUMENTS.tolist(), [f"text {number}" for number in DOCUMENTS.tolist()]):
        found = null(entry, x, y, pairings, kind="exchanged documents", documents=labels)
        assert found.values == pytest.approx(expected)


def test_the_null_of_the_best_pair_is_above_that_of_one_pair():
    x, y = rows(4, 30, 8), rows(4, 30, 8, seed=1)  # four unrelated layers a side

    def measure_map(x_layers, y_layers):
        return torch.tensor([[debiased_cka(a, b) for b in y_layers] for a in x_layers])

    best = float(measure_map(list(x), list(y)).max())
    pairings = shuffled_rows(30, draws=19)
    largest = null_maps(measure_map, x, y, pairings, kind="shuffled rows").maximum
    single = null(SIMILARITIES["debiased_cka"], x[0], y[0], pairings, kind="shuffled rows")
    assert (largest.over, largest.rows, largest.dims) == (16, 30, (8, 8))
    assert largest.p_value(best) > 0.05
    assert largest.mean > single.mean + 1.3 * np.std(single.values)
    maps = [measure_map(list(x), [layer[p.partners] for layer in y]) for p in pairings]
    assert largest.values == pytest.approx([float(found.max()) for found in maps])


def test_null_maps_are_the_maps_of_the_permutations_and_their_largest():
    x, y = rows(3, 60, 6), rows(2, 60, 5, seed=1)
    pairings = shuffled_rows(60, draws=7)

    def measure_map(x_layers, y_layers):
        return LayerPairs(folds=1).update(x_layers, y_layers).debiased_cka()

    found = null_maps(measure_map, x, list(y), pairings, kind="shuffled rows")
    expected = np.array([[[debiased_cka(a, b[p.partners]) for b in y] for a in x] for p in pairings])
    np.testing.assert_allclose(found.values.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(found.mean.numpy(), expected.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.quantile(0.9).numpy(), np.quantile(expected, 0.9, axis=0), atol=1e-12)
    assert (found.rows, found.dims, found.kind) == (60, (6, 5), "shuffled rows")
    assert found.maximum.values == pytest.approx(expected.max((1, 2)))
    reached = found.p_values(torch.tensor([[1.0, -1.0]] * 3))
    assert reached.tolist() == [[1 / 8, 1.0]] * 3


def test_a_cell_that_shares_something_exceeds_its_null_and_the_maximum():
    x, y = planted(N_DOCUMENTS * LENGTH, 6, 6, noise=0.5)
    x_layers, y_layers = [x, rows(len(x), 6, seed=4)], [rows(len(x), 6, seed=5), y]
    pairings = exchanged_documents(DOCUMENTS, POSITIONS, draws=19)

    def measure_map(one, other):
        return LayerPairs(folds=1).update(one, other).debiased_cka()

    observed = measure_map(x_layers, y_layers)
    found = null_maps(measure_map, x_layers, y_layers, pairings, kind="exchanged documents")
    assert float(found.p_values(observed)[0, 1]) == 1 / 20 and float(found.p_values(observed)[1, 0]) > 1 / 20
    assert found.maximum.p_value(float(observed.max())) == 1 / 20


def test_a_p_value_counts_the_observed_number_itself():
    record = Null("shuffled rows", 10, (2, 2), (0.1, 0.2, 0.3, 0.4))
    assert [record.p_value(value) for value in (0.5, 0.4, 0.05)] == [1 / 5, 2 / 5, 1]


def test_what_has_no_null_is_refused():
    x, y = planted(40)
    with pytest.raises(ValueError, match=r"^there is no similarity 'cka'; choose among debiased_cka, linear_cka"):
        compare("cka", x, y)
    with pytest.raises(ValueError, match=r"^documents and positions go together"):
        compare("rsa", x, y, documents=[0] * 40)
    with pytest.raises(ValueError, match=r"^no pairings; a null needs at least 1"):
        null(SIMILARITIES["rsa"], x, y, [], kind="nothing")
    with pytest.raises(ValueError, match=r"^no pairings; a null needs at least 1"):
        null_maps(lambda one, other: one, [x], [y], [], kind="nothing")
