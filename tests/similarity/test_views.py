"""Views of the residual stream on planted sinks: found by position and by norm, counted, and gone from the numbers."""

import pytest
import torch
from numerics import assert_same_bits, same_bits
from similar import planted, rows

from latentcomm.similarity import compare, debiased_cka, find_sinks, raw, residual_view, rms_normalised, standardised

POSITIONS = torch.arange(10).repeat(20)


def sunken() -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers a side of 20 documents of 10 tokens: the first position is a sink, and so are two tokens elsewhere."""
    x = torch.stack([planted(200, 8, 8, noise=3.0)[0], planted(200, 8, 8, noise=3.0, seed=1)[0]])
    y = torch.stack([planted(200, 8, 8, noise=3.0)[1], planted(200, 8, 8, noise=3.0, seed=1)[1]])
    for side in (x, y):
        side[:, POSITIONS == 0] = 900 * torch.ones(8).double() + rows(20, 8, seed=5)
    x[1, 57] *= 100
    y[0, 124] *= 100
    return x, y


def test_sinks_are_found_and_counted_by_position_and_by_norm():
    x, _ = sunken()
    found = find_sinks(x, positions=POSITIONS)
    assert (found.by_position, found.by_norm, found.by_layer) == (20, 1, (0, 1))
    assert (~found.keep).nonzero().flatten().tolist() == sorted([*range(0, 200, 10), 57])
    expected = [float(layer[POSITIONS > 0].norm(dim=1).median()) for layer in x]
    assert found.medians == pytest.approx(expected)
    assert find_sinks(x, positions=POSITIONS, sink_positions=0).by_position == 0
    assert find_sinks(x, positions=POSITIONS, norm_limit=1e6).by_norm == 0


def test_a_view_leaves_the_same_rows_out_at_every_layer_of_both_sides():
    x, y = sunken()
    view = residual_view(x, y, positions=POSITIONS)
    assert (~view.keep).nonzero().flatten().tolist() == sorted([*range(0, 200, 10), 57, 124])
    assert (view.left_out, view.sinks_x.by_norm, view.sinks_y.by_norm) == (22, 1, 1)
    for layer, given in zip([*view.x_layers, *view.y_layers], [*x, *y], strict=True):
        kept = given[view.keep]
        torch.testing.assert_close(layer, kept / kept.square().mean(1, keepdim=True).sqrt())


def test_one_sink_decides_the_raw_number_and_not_that_of_the_view():
    x, y = sunken()
    view = residual_view(x, y, positions=POSITIONS, scaling=raw)
    assert_same_bits(view.x_layers[0], x[0][view.keep])
    clean = debiased_cka(view.x_layers[0], view.y_layers[0])
    assert debiased_cka(x[0], y[0]) > 0.99  # the sinks alone
    assert clean < 0.6
    past = POSITIONS > 0
    assert abs(debiased_cka(x[1][past], y[1][past]) - debiased_cka(view.x_layers[1], view.y_layers[1])) > 0.02


def test_a_view_says_in_words_what_it_is_of():
    x, y = sunken()
    left_out = "22 of 200 left out as sinks, 20 by position and 2 by a norm above 5 medians"
    for scaling, name in ((None, "rms normalised"), (raw, "raw"), (standardised, "standardised")):
        assert residual_view(x, y, positions=POSITIONS, scaling=scaling).description == f"{name} rows; {left_out}"
    halved = residual_view(x, y, positions=POSITIONS, norm_limit=2.5, sink_positions=0).description
    assert (
        halved == "rms normalised rows; 22 of 200 left out as sinks, 0 by position and 22 by a norm above 2.5 medians"
    )


def test_each_side_has_first_positions_of_its_own():
    x, y = sunken()
    later = POSITIONS + 1  # the second model has read a token more at every row, a BOS
    later[33] = 0
    view = residual_view(x, y, positions=POSITIONS, positions_y=later, norm_limit=1e6)
    assert (view.sinks_x.by_position, view.sinks_y.by_position, view.by_position, view.left_out) == (20, 1, 21, 21)
    assert (~view.keep).nonzero().flatten().tolist() == sorted([*range(0, 200, 10), 33])


def test_a_model_with_itself_stays_one_object_and_is_counted_once():
    x, _ = sunken()
    view = residual_view(x, x, positions=POSITIONS)
    assert view.y_layers is view.x_layers and view.sinks_y is view.sinks_x
    apart = residual_view(x, x.clone(), positions=POSITIONS)
    assert apart.y_layers is not apart.x_layers
    assert all(same_bits(one, other) for one, other in zip(view.y_layers, apart.y_layers, strict=True))


def test_rows_of_a_stream_are_judged_by_the_medians_of_its_first_chunk():
    x, _ = sunken()
    first = find_sinks(x[:, :100], positions=POSITIONS[:100])
    later = find_sinks(x[:, 50:60], positions=POSITIONS[50:60], medians=first.medians)
    assert later.medians == first.medians
    assert (~later.keep).nonzero().flatten().tolist() == [0, 7]


def test_scalings_follow_their_formulas_in_the_dtype_given():
    given = rows(30, 6, dtype=torch.float32) * 7 + 2
    before = given.clone()
    torch.testing.assert_close(rms_normalised(given).norm(dim=1), torch.full((30,), 6**0.5))
    torch.testing.assert_close(rms_normalised(5 * given), rms_normalised(given))
    scaled = standardised(given)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.var(0, correction=0), torch.ones(6))
    assert rms_normalised(given).dtype == scaled.dtype == torch.float32
    assert_same_bits(given, before)


def test_what_has_no_view_is_refused():
    x, y = sunken()
    for act, message in (
        (lambda: find_sinks(x, positions=POSITIONS, norm_limit=1), r"^norm_limit is 1; it counts medians"),
        (lambda: find_sinks(x, positions=POSITIONS, sink_positions=-1), r"^sink_positions is -1"),
        (lambda: find_sinks(x, positions=POSITIONS - 1), r"^a position is -1; count from each document's start"),
        (lambda: find_sinks(x, positions=POSITIONS, medians=[1.0]), r"^1 medians for 2 layers"),
        (lambda: find_sinks(x, positions=torch.zeros(200).long()), r"^no row is past the first 1 positions"),
        (lambda: find_sinks(0 * x, positions=POSITIONS), r"^the median norm of layer 0 is 0"),
        (lambda: find_sinks(x / 0, positions=POSITIONS), r"^layer 0 holds NaN or infinity in rows 0, 1"),
        (lambda: residual_view(x[:, :2], y[:, :2], positions=POSITIONS[:2]), r"^1 of 2 rows are no sinks"),
        (lambda: rms_normalised(torch.eye(3)[[0, 1]] * 0), r"^row 0 is zero \(2 such rows\)"),
        (lambda: standardised(torch.ones(3, 2)), r"^dimension 0 is constant \(2 such\)"),
    ):
        with pytest.raises(ValueError, match=message):
            act()


def test_positions_and_sides_of_another_length_are_refused():
    layers = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="29 positions for 30 rows of layer 0; give one a row"):
        find_sinks(layers, positions=torch.arange(29))
    with pytest.raises(ValueError, match="29 positions for 30 rows of layer 0"):
        residual_view(layers, layers.clone(), positions=torch.arange(29))
    with pytest.raises(ValueError, match="x has 30 rows but y 28; pair them row by row"):
        residual_view(layers, layers[:, :28], positions=torch.arange(30), positions_y=torch.arange(28))
    assert residual_view(layers, layers.clone(), positions=torch.arange(30)).left_out == 1


def test_a_comparison_carries_the_view_of_its_rows():
    layers = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    view = residual_view(layers, layers, positions=torch.arange(30))
    found = compare("linear_cka", view.x_layers[0], view.y_layers[0], draws=2, view=view.description)
    assert found.view == view.description and "1 of 30 left out as sinks" in found.view
    assert compare("linear_cka", layers[0], layers[0], draws=2).view == "rows as given"
