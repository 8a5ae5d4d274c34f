"""A diagnosis of a pair of models: similarity, what the receiver lacks, and where a graft leaves its manifold."""

from latentcomm.diagnosis.run import Diagnosis, diagnose
from latentcomm.diagnosis.settings import FUSIONS, MESSAGES, Fitted, Size
from latentcomm.diagnosis.verdicts import Recommendation

__all__ = ["FUSIONS", "MESSAGES", "Diagnosis", "Fitted", "Recommendation", "Size", "diagnose"]
