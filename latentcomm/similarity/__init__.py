"""How similar two sets of activations are, row by row: many measures, each with its null and its claims."""

from latentcomm.similarity.cca import pwcca, svcca
from latentcomm.similarity.cka import (
    debiased_cka,
    linear_cka,
    minibatch_debiased_cka,
    minibatch_linear_cka,
    rbf_cka,
)
from latentcomm.similarity.layer_maps.exact import LayerPairs, document_fold
from latentcomm.similarity.layer_maps.minibatch import MinibatchPairs
from latentcomm.similarity.layer_maps.null_maps import NullMaps, null_maps
from latentcomm.similarity.layer_maps.permutations import Pairing, exchanged_documents, shuffled_rows
from latentcomm.similarity.neighbours import cknna, mutual_knn
from latentcomm.similarity.nulls import Compared, Null, compare, null
from latentcomm.similarity.predictability import linear_predictability
from latentcomm.similarity.rsa import rsa
from latentcomm.similarity.shape import procrustes
from latentcomm.similarity.table import INVARIANCES, SIMILARITIES, Similarity
from latentcomm.similarity.views import (
    ResidualView,
    Sinks,
    find_sinks,
    raw,
    residual_view,
    rms_normalised,
    standardised,
)

__all__ = [
    "INVARIANCES",
    "SIMILARITIES",
    "Compared",
    "LayerPairs",
    "MinibatchPairs",
    "Null",
    "NullMaps",
    "Pairing",
    "ResidualView",
    "Similarity",
    "Sinks",
    "cknna",
    "compare",
    "debiased_cka",
    "document_fold",
    "exchanged_documents",
    "find_sinks",
    "linear_cka",
    "linear_predictability",
    "minibatch_debiased_cka",
    "minibatch_linear_cka",
    "mutual_knn",
    "null",
    "null_maps",
    "procrustes",
    "pwcca",
    "raw",
    "rbf_cka",
    "residual_view",
    "rms_normalised",
    "rsa",
    "shuffled_rows",
    "standardised",
    "svcca",
]
