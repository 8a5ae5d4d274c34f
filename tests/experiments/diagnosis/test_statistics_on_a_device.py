"""The float64 algebra of a diagnosis on a device that is not the CPU's: the same numbers, and all of them back."""

import weakref
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from numerics import assert_same_bits
from pretend import on, pretend, pretended  # noqa: F401 (fixtures)
from tiny import WORDS, states, tokenizer, transformers_model

import latentcomm as lc
from latentcomm._core.linalg import with_float64
from latentcomm._core.records import Records
from latentcomm.alignment import fit_cca, fit_procrustes, fit_ridge
from latentcomm.drift import fitting
from latentcomm.drift.reference import HELD_OUT
from latentcomm.experiments import maps
from latentcomm.experiments.diagnosis import alikeness, cells
from latentcomm.experiments.diagnosis._check import MATRICES_A_FOLD
from latentcomm.experiments.diagnosis.cells import ChosenCell
from latentcomm.experiments.diagnosis.rows import LayerRows, Rows, ordinary_rows
from latentcomm.models import wrap_model
from latentcomm.similarity.layer_maps.ridge import cross_sums, factor_source, fold_sums

OPTIONS: dict[str, Any] = {"seed": 0, "records": Records(None), "progress": False}
CELL = ChosenCell(0, 1, 0.5, 0.0, False)


def rows_on(device: str) -> Rows:
    """Rows of 30 documents whose algebra runs on a device."""
    x = states(3, 600, 12, dtype=torch.float32)
    y = x[:2, :, :10] + states(2, 600, 10, seed=1, dtype=torch.float32)
    position = torch.arange(600) % 20
    labels = {"document": torch.arange(600) // 20, "sender_position": position, "receiver_position": position}
    return ordinary_rows(x, y, **labels, seed=0, device=torch.device(device))


def measured(device: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = rows_on(device)
    layers = {"sender_layers": (0, 2), "receiver_layers": (0, 1)}
    return (
        alikeness.similarity_table(rows, **layers, draws=2, **OPTIONS),
        alikeness.predictability_table(rows, **layers, folds=3, **OPTIONS),
    )


def test_maps_of_layers_are_the_same_on_a_device(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    expected, used = measured("cpu"), set()
    each = alikeness.predictability_of_each

    def watched(source: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        found = each(source, *given, **options)
        used.update({str(source.device), str(found.device)})
        return found

    monkeypatch.setattr(alikeness, "predictability_of_each", watched)
    for found, table in zip(measured("pretend:0"), expected, strict=True):
        pd.testing.assert_frame_equal(found, table, check_exact=True)
    assert used == {"pretend:0"}


@pytest.mark.parametrize(
    "aligner", [fit_ridge, lambda a, b, **_: fit_procrustes(a, b), lambda a, b, **_: fit_cca(a, b, rank=4)]
)
def test_maps_that_are_fitted_on_a_device_come_back(pretended: None, aligner: Any) -> None:  # noqa: F811
    used = set()

    def watched(source: torch.Tensor, target: torch.Tensor, **options: Any) -> Any:
        used.update({str(source.device), str(target.device)})
        return aligner(source, target, **options)

    here, there = (
        cells.fit_joints(rows_on(device), [CELL], aligner=watched, predictable=True, **OPTIONS)[1]
        for device in ("cpu", "pretend:0")
    )
    assert used == {"cpu", "pretend:0"}
    for one, other in ((here.alignment, there.alignment), (here.predictable, there.predictable)):
        assert one is not None and other is not None and str(other.weight.device) == "cpu"
        assert_same_bits(other.weight, one.weight)
        assert_same_bits(other.bias, one.bias)


def test_references_are_fitted_on_a_device_and_come_back(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    used, fit = [], cells.fit_drift_reference
    monkeypatch.setattr(
        cells, "fit_drift_reference", lambda rows, **given: used.append(str(rows.device)) or fit(rows, **given)
    )
    expected, found = (
        cells.fit_references(rows_on(device), [0, 1], model="tiny", **OPTIONS) for device in ("cpu", "pretend:0")
    )
    assert used == ["cpu"] * 2 + ["pretend:0"] * 2
    for layer, reference in found.items():
        for name, part in reference.manifold.tensors().items():
            assert_same_bits(part, expected[layer].manifold.tensors()[name])
            assert str(part.device) == "cpu"
        for name in HELD_OUT:
            assert str(getattr(reference, name).device) == "cpu"
            assert_same_bits(getattr(reference, name), getattr(expected[layer], name))
        states = rows_on("cpu").y[layer, torch.arange(20)]
        assert_same_bits(reference.measure(states).p_value, expected[layer].measure(states).p_value)


def test_the_algebra_of_a_reference_is_where_its_rows_are(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    used = set()
    for name in ("fit_gaussian", "fit_clusters", "principal_subspace", "fit_local_density"):
        function = getattr(fitting, name)

        def watched(rows: torch.Tensor, *given: Any, function: Any = function, **options: Any) -> Any:
            used.add((str(rows.device), str(rows.dtype)))
            return function(rows, *given, **options)

        monkeypatch.setattr(fitting, name, watched)
    rows = states(300, 8, dtype=torch.float32).to("pretend:0")
    fitting.fit_drift_reference(rows, background=2 * rows, positions=torch.arange(300) % 10)
    assert used == {("pretend:0", "torch.float64")}


def test_a_device_without_float64_gives_the_reference_of_the_cpu(pretend: torch.device) -> None:  # noqa: F811
    rows = states(300, 8, dtype=torch.float32)
    found, expected = (fitting.fit_drift_reference(each) for each in (rows.to(pretend), rows))
    for name, part in expected.manifold.tensors().items():
        assert_same_bits(found.manifold.tensors()[name], part)


@pytest.mark.parametrize("name", maps.ALIGNMENTS)
def test_maps_of_a_run_are_fitted_where_the_receiver_is(
    pretended: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    used, real = [], maps.ALIGNMENTS[name]

    def watched(source: torch.Tensor, target: torch.Tensor, **options: Any) -> Any:
        used.append((str(source.device), str(target.device)))
        return real(source, target, **options)

    def pair(device: str) -> list[lc.Model]:
        here, raw = (transformers_model("llama", seed=seed, dtype=torch.float32) for seed in (0, 1))
        sender = wrap_model(here, tokenizer(), name="here")
        return [sender, wrap_model(raw, tokenizer()) if device == "cpu" else on(torch.device(device), raw, tokenizer())]

    monkeypatch.setattr(maps, "ALIGNMENTS", {name: watched})
    words = torch.randint(len(WORDS), (12, 30), generator=torch.Generator().manual_seed(0)).tolist()
    monkeypatch.setattr(maps, "map_documents", lambda: [" ".join(WORDS[number] for number in row) for row in words])
    here, there = (maps.fit_maps(*pair(device), [(0, 1), (1, 2)], 0, alignment=name) for device in ("cpu", "pretend:0"))
    assert used == [("cpu", "cpu")] * 2 + [("pretend:0", "pretend:0")] * 2
    for cell, found in there.items():
        assert str(found.weight.device) == "cpu"
        assert_same_bits(found.weight, here[cell].weight)
        assert_same_bits(found.bias, here[cell].bias)


def test_predictability_holds_a_layer_of_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most, made = [0], alikeness.rms_layers

    def watched(side: LayerRows, layers: Sequence[int], *given: Any, **options: Any) -> torch.Tensor:
        out = made(side, layers, *given, **options)
        alive.append(weakref.ref(out))
        most.append(sum(len(one) for one in (each() for each in alive) if one is not None))
        return out

    monkeypatch.setattr(alikeness, "rms_layers", watched)
    layers = {"sender_layers": (0, 1, 2), "receiver_layers": (0, 1)}
    alikeness.predictability_table(rows_on("cpu"), **layers, folds=3, **OPTIONS)
    assert len(alive) == 2 * (3 * 3 + 2 * 4) and max(most) <= 3  # a source, a target, and the target before it


def test_the_matrices_of_ridge_are_counted_as_they_are() -> None:
    width, folds = 8, 5
    rows, fold = states(100, width), torch.arange(100) % folds
    sums = fold_sums(rows, fold, folds)
    source, cross = factor_source(sums, choosing=True), cross_sums(rows, rows, fold, folds)
    splits = [each for split in (*source.outer, *source.inner) for each in (split.vectors, split.tested)]
    assert sum(each.numel() for each in (sums.square, cross, *splits)) == MATRICES_A_FOLD * folds * width**2


def test_without_float64_the_algebra_runs_on_the_cpu(pretend: torch.device) -> None:  # noqa: F811
    assert with_float64(pretend) == torch.device("cpu")
