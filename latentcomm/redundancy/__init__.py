"""What of a message the receiver already has: along its own state, in a subspace, or predictable from it."""

from latentcomm.redundancy.projection import Drop, Keep, Projection
from latentcomm.redundancy.report import Redundancy, measure_redundancy
from latentcomm.redundancy.residuals import fit_predictable, orthogonal_residual, residual_fusion, residual_map
from latentcomm.redundancy.subspaces import principal_subspace, shared_subspace

__all__ = [
    "Drop",
    "Keep",
    "Projection",
    "Redundancy",
    "fit_predictable",
    "measure_redundancy",
    "orthogonal_residual",
    "principal_subspace",
    "residual_fusion",
    "residual_map",
    "shared_subspace",
]
