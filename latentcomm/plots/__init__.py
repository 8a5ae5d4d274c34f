"""Figures from tables alone: the same table gives the same figure, byte for byte, in every process."""

from latentcomm.plots.drift import detector_table, drift_against_accuracy, drift_violins, healing_curves
from latentcomm.plots.pairs import pair_map
from latentcomm.plots.sweeps import condition_bars, factor_grid, layer_heatmap

__all__ = [
    "condition_bars",
    "detector_table",
    "drift_against_accuracy",
    "drift_violins",
    "factor_grid",
    "healing_curves",
    "layer_heatmap",
    "pair_map",
]
