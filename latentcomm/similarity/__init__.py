"""How alike two sets of activations are, row by row: many measures, each with its null and its claims."""

from latentcomm.similarity.cca import pwcca, svcca
from latentcomm.similarity.cka import (
    debiased_cka,
    linear_cka,
    minibatch_debiased_cka,
    minibatch_linear_cka,
    rbf_cka,
)
from latentcomm.similarity.neighbours import cknna, mutual_knn
from latentcomm.similarity.predictability import linear_predictability
from latentcomm.similarity.rsa import rsa
from latentcomm.similarity.shape import procrustes

__all__ = [
    "cknna",
    "debiased_cka",
    "linear_cka",
    "linear_predictability",
    "minibatch_debiased_cka",
    "minibatch_linear_cka",
    "mutual_knn",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "rsa",
    "svcca",
]
