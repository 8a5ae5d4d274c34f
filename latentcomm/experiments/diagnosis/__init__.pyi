"""A diagnosis of a pair of models: similarity, what the receiver lacks, and where a graft leaves its manifold."""

from .fusions import FUSIONS as FUSIONS
from .fusions import Fitted as Fitted
from .recommend import Recommendation as Recommendation
from .result import Diagnosis as Diagnosis
from .run import diagnose as diagnose
from .settings import MESSAGES as MESSAGES
from .settings import Size as Size
