"""Drift from a receiver's manifold: distances, percentiles against held-out real states, and what each detects."""

from latentcomm.drift.detectors import DETECTORS, PANEL
from latentcomm.drift.families import FAMILIES
from latentcomm.drift.fitting import fit_drift_reference
from latentcomm.drift.reference import COMBINED, Auroc, Drift, DriftReference
from latentcomm.drift.sets import Excess, SetDrift, classifier_auroc, energy_distance, set_drift

__all__ = [
    "COMBINED",
    "DETECTORS",
    "FAMILIES",
    "PANEL",
    "Auroc",
    "Drift",
    "DriftReference",
    "Excess",
    "SetDrift",
    "classifier_auroc",
    "energy_distance",
    "fit_drift_reference",
    "set_drift",
]
