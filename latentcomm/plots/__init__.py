"""Figures from tables alone: the same table gives the same figure, byte for byte, in every process."""

from latentcomm.plots.cascade import cascade_curves, cascade_front, opening_signals
from latentcomm.plots.correlation import drift_against_accuracy
from latentcomm.plots.costs import accuracy_against_cost
from latentcomm.plots.crossmodal import accuracy_against_pairs, accuracy_by_question
from latentcomm.plots.detectors import detector_table
from latentcomm.plots.drift import drift_violins
from latentcomm.plots.healing import healing_curves, with_kl
from latentcomm.plots.pairs import pair_map
from latentcomm.plots.sweeps import condition_bars, factor_grid, layer_heatmap

__all__ = [
    "accuracy_against_cost",
    "cascade_curves",
    "cascade_front",
    "accuracy_against_pairs",
    "accuracy_by_question",
    "condition_bars",
    "detector_table",
    "drift_against_accuracy",
    "drift_violins",
    "factor_grid",
    "healing_curves",
    "layer_heatmap",
    "opening_signals",
    "pair_map",
    "with_kl",
]
