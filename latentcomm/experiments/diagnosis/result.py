"""The result of a diagnosis: its tables, recommended cells, and warnings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from latentcomm.experiments.diagnosis.recommend import Recommendation

__all__ = ["Diagnosis"]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was measured on a pair, as tables; `latentcomm.experiments.diagnosis.report` makes a page of it.

    Attributes:
        similarity: sender_layer, receiver_layer, debiased_cka, null_mean, null_high, null_max, rows, null_rows.
        predictability: sender_layer, receiver_layer, forward, backward, forward_null, backward_null, rows, null_rows.
        calibration: layer, family, detector, one_sided, two_sided (AUROC).
        drift: fusion, message, read_layer, write_layer, item, detector, percentile.
        effects: fusion, message, read_layer, write_layer, item, kl, entropy_change, top1_agreement.
        healing: fusion, message, write_layer, layer, and quartiles of deviation and percentile.
        cells: one row a fusion and write layer, with the basis of the recommendation.
        recommended: the cells to try first, best first; none where none qualifies.
        warnings: the caveats of the numbers.
        settings: all choices, and facts about the rows and cells.
        models: the facts about each model, by role.
        seconds: the wall time of this run.
    """

    similarity: pd.DataFrame
    predictability: pd.DataFrame
    calibration: pd.DataFrame
    drift: pd.DataFrame
    effects: pd.DataFrame
    healing: pd.DataFrame
    cells: pd.DataFrame
    recommended: tuple[Recommendation, ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    seconds: float

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        names = ("similarity", "predictability", "calibration", "drift", "effects", "healing", "cells")
        return {name: getattr(self, name) for name in names}
