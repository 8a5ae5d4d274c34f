"""A diagnosis of a pair of models: similarity, what the receiver lacks, and where a graft leaves its manifold."""

from latentcomm.experiments.diagnosis.recommend import Recommendation
from latentcomm.experiments.diagnosis.result import Diagnosis
from latentcomm.experiments.diagnosis.run import diagnose
from latentcomm.experiments.diagnosis.settings import FUSIONS, MESSAGES, Fitted, Size

__all__ = ["FUSIONS", "MESSAGES", "Diagnosis", "Fitted", "Recommendation", "Size", "diagnose"]
