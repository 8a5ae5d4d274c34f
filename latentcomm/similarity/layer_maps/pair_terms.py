"""What CKA needs of every pair of layers, and the two maps that follow from it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from latentcomm.similarity.checks import require_rows
from latentcomm.similarity.hsic import LEAST_ROWS, alignment_ratio, hsic1_of_centred

__all__ = ["PairTerms"]


@dataclass(frozen=True)
class PairTerms:
    """Terms of `n` centred rows: products |X'Y|_F^2, norms a.b of the squared row norms, sizes sum a and sum b.

    >>> import torch
    >>> ones, map_of_ones = torch.ones(2), torch.ones(2, 2)
    >>> PairTerms(9, 2 * map_of_ones, 4 * ones, ones, map_of_ones, ones, ones, ones, ones).linear_cka()
    tensor([[1., 1.],
            [1., 1.]])
    """

    n: int
    products_xy: Float[Tensor, "layer_x layer_y"]
    products_xx: Float[Tensor, " layer_x"]
    products_yy: Float[Tensor, " layer_y"]
    norms_xy: Float[Tensor, "layer_x layer_y"]
    norms_xx: Float[Tensor, " layer_x"]
    norms_yy: Float[Tensor, " layer_y"]
    size_x: Float[Tensor, " layer_x"]
    size_y: Float[Tensor, " layer_y"]

    def linear_cka(self) -> Float[Tensor, "layer_x layer_y"]:
        """Return the biased map.

        Raises:
            ValueError: fewer than 3 rows.
        """
        require_rows(self.n, 3, "(2 rows always give 1)")
        return self.products_xy / (self.products_xx[:, None].sqrt() * self.products_yy.sqrt())

    def debiased_cka(self) -> Float[Tensor, "layer_x layer_y"]:
        """Return the debiased map; values may be negative.

        Raises:
            ValueError: fewer than 4 rows, or a layer whose rows are all equally similar.
        """
        require_rows(self.n, LEAST_ROWS, "for the unbiased estimator")
        n = self.n
        return alignment_ratio(
            hsic1_of_centred(self.products_xy, self.norms_xy, self.size_x[:, None], self.size_y, n),
            hsic1_of_centred(self.products_xx, self.norms_xx, self.size_x, self.size_x, n)[:, None],
            hsic1_of_centred(self.products_yy, self.norms_yy, self.size_y, self.size_y, n),
            self.products_xx[:, None] / n**2,
            self.products_yy / n**2,
        )
