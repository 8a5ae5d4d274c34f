"""Figures from tables alone: the same table gives the same figure, byte for byte, in every process."""

from latentcomm.reporting.plots.audit import audit_effects
from latentcomm.reporting.plots.cascade import cascade_curves, cascade_front, opening_signals
from latentcomm.reporting.plots.costs import accuracy_against_cost
from latentcomm.reporting.plots.crossmodal import accuracy_against_pairs, accuracy_by_question
from latentcomm.reporting.plots.detectors import detector_table
from latentcomm.reporting.plots.drift import drift_violins
from latentcomm.reporting.plots.healing import healing_curves, with_kl
from latentcomm.reporting.plots.pairs import pair_map
from latentcomm.reporting.plots.sweeps import condition_bars, factor_grid, layer_heatmap
from latentcomm.reporting.plots.training import loss_curves

__all__ = [
    "accuracy_against_cost",
    "cascade_curves",
    "cascade_front",
    "accuracy_against_pairs",
    "accuracy_by_question",
    "audit_effects",
    "condition_bars",
    "detector_table",
    "drift_violins",
    "factor_grid",
    "healing_curves",
    "layer_heatmap",
    "loss_curves",
    "opening_signals",
    "pair_map",
    "with_kl",
]
