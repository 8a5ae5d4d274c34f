"""Every similarity with what it claims: to which changes of either side it is blind, and what its rows must be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.similarity.cca import pwcca, svcca
from latentcomm.similarity.cka import debiased_cka, linear_cka, minibatch_debiased_cka, minibatch_linear_cka, rbf_cka
from latentcomm.similarity.neighbours import cknna, mutual_knn
from latentcomm.similarity.predictability import linear_predictability
from latentcomm.similarity.rsa import rsa
from latentcomm.similarity.shape import procrustes

__all__ = ["INVARIANCES", "SIMILARITIES", "Similarity"]

INVARIANCES = ("orthogonal", "isotropic_scaling", "translation", "invertible_linear", "row_scaling")
"""Changes of one side: rows Q for orthogonal Q, c rows for c > 0, rows + v, rows A for any invertible A, and each row
times a positive number of its own. All similarities are blind to the order of the rows but for rounding, and those
that draw batches or folds to their seed."""


@dataclass(frozen=True)
class Similarity:
    """A similarity of row-paired activations and its claims, which tests hold it to in both directions.

    Attributes:
        function: called with x and y, and `groups=` where `by_document`; `functools.partial` sets other options.
        blind_in_x: the members of INVARIANCES that, applied to x alone, leave the number as it was; all others move it.
        blind_in_y: the same for y.
        symmetric: whether x and y may be swapped.
        unbiased: whether unrelated rows give 0 on average, at any rows and widths.
        by_document: whether it takes document labels, so that no document is in two folds.

    >>> SIMILARITIES["debiased_cka"].symmetric, sorted(SIMILARITIES["mutual_knn"].blind_in_x)
    (True, ['isotropic_scaling', 'orthogonal', 'row_scaling'])
    """

    function: Callable[..., float]
    blind_in_x: frozenset[str]
    blind_in_y: frozenset[str]
    symmetric: bool = True
    unbiased: bool = False
    by_document: bool = False

    def __call__(
        self,
        x: Float[Tensor, "row d_sender"],
        y: Float[Tensor, "row_y d_receiver"],
        *,
        documents: Int[Tensor, " row"] | Sequence[int] | Sequence[str] | None = None,
    ) -> float:
        """Return the number for these rows; the document labels matter only where `by_document`."""
        if self.by_document and documents is not None:
            return self.function(x, y, groups=documents)
        return self.function(x, y)


_EUCLIDEAN = frozenset({"orthogonal", "isotropic_scaling", "translation"})
_ANGULAR = frozenset({"orthogonal", "isotropic_scaling", "row_scaling"})
_AFFINE = _EUCLIDEAN | {"invertible_linear"}
_SCALES = frozenset({"isotropic_scaling"})

SIMILARITIES: Mapping[str, Similarity] = MappingProxyType(
    {
        "debiased_cka": Similarity(debiased_cka, _EUCLIDEAN, _EUCLIDEAN, unbiased=True),
        "linear_cka": Similarity(linear_cka, _EUCLIDEAN, _EUCLIDEAN),
        "minibatch_debiased_cka": Similarity(minibatch_debiased_cka, _EUCLIDEAN, _EUCLIDEAN, unbiased=True),
        "minibatch_linear_cka": Similarity(minibatch_linear_cka, _EUCLIDEAN, _EUCLIDEAN),
        "rbf_cka": Similarity(rbf_cka, _EUCLIDEAN, _EUCLIDEAN, unbiased=True),
        "svcca": Similarity(svcca, _EUCLIDEAN, _EUCLIDEAN),
        "pwcca": Similarity(pwcca, _SCALES | {"translation"}, _AFFINE, symmetric=False),
        "procrustes": Similarity(procrustes, _EUCLIDEAN, _EUCLIDEAN),
        "mutual_knn": Similarity(mutual_knn, _ANGULAR, _ANGULAR),
        "cknna": Similarity(cknna, _ANGULAR, _ANGULAR),
        "rsa": Similarity(rsa, _SCALES | {"row_scaling"}, _SCALES | {"row_scaling"}, unbiased=True),
        "linear_predictability": Similarity(
            linear_predictability, _EUCLIDEAN, _EUCLIDEAN, symmetric=False, by_document=True
        ),
    }
)
