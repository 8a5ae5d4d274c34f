"""The float64 algebra of a diagnosis on a device that is not the CPU's: the same numbers, and all of them back."""

from typing import Any

import pandas as pd
import pytest
import torch
from numerics import assert_same_bits
from pretend import pretend, pretended  # noqa: F401 (fixtures)
from tiny import states

from latentcomm._core.linalg import with_float64
from latentcomm._core.records import Records
from latentcomm.alignment import fit_cca, fit_procrustes, fit_ridge
from latentcomm.experiments.diagnosis import alikeness, cells
from latentcomm.experiments.diagnosis.cells import ChosenCell
from latentcomm.experiments.diagnosis.rows import Rows, ordinary_rows

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


def test_without_float64_the_algebra_runs_on_the_cpu(pretend: torch.device) -> None:  # noqa: F811
    assert with_float64(pretend) == torch.device("cpu")
