"""How alike two sets of activations are, row by row: many measures, each with its null and its claims."""

from latentcomm.similarity.cka import (
    debiased_cka,
    linear_cka,
    minibatch_debiased_cka,
    minibatch_linear_cka,
    rbf_cka,
)

__all__ = ["debiased_cka", "linear_cka", "minibatch_debiased_cka", "minibatch_linear_cka", "rbf_cka"]
