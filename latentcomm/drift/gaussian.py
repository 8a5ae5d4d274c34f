"""Shrunken Gaussians of states: Mahalanobis distance to one centre or to the nearest of several."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.files import laid_out
from latentcomm._core.linalg import centred

__all__ = ["Gaussian", "fit_clusters", "fit_gaussian", "ledoit_wolf", "rms_normalised"]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """One covariance around one centre or several, in float64.

    Attributes:
        centres: the means, one a row.
        factor: L, lower triangular, with covariance L L'.
    """

    centres: Float[Tensor, "cluster d_model"]
    factor: Float[Tensor, "d_model d_model"]

    def __post_init__(self) -> None:
        for name in ("centres", "factor"):
            object.__setattr__(self, name, laid_out(getattr(self, name)))

    def distance(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The Mahalanobis distance to the nearest centre, min_k sqrt((x - m_k)' C^-1 (x - m_k)), in float64.

        Source: Mahalanobis 1936, "On the generalised distance in statistics".
        """
        white, white_centres = self._whitened(rows), self._whitened(self.centres)
        each = [torch.linalg.vector_norm(white - centre, dim=1) for centre in white_centres]
        return torch.stack(each).amin(0)

    def _whitened(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Rows in coordinates in which the covariance is the identity, about the first centre against cancellation."""
        shifted = rows.to(torch.float64) - self.centres[0]
        return torch.linalg.solve_triangular(self.factor, shifted.T, upper=False).T


def rms_normalised(rows: Float[Tensor, "row d_model"], name: str = "states") -> Float[Tensor, "row d_model"]:
    """Return x / sqrt(mean(x^2)) row by row in float64: the direction that the next block's RMS norm reads.

    Raises:
        ValueError: a row is zero, which has no direction.

    >>> rms_normalised(torch.tensor([[3.0, 4.0]])).square().mean().item()
    1.0
    """
    wide = rows.detach().to(torch.float64)
    size = wide.square().mean(1, keepdim=True).sqrt()
    if bool((size == 0).any()):
        zero = (size[:, 0] == 0).nonzero().flatten().tolist()
        raise ValueError(f"{name} has {len(zero)} zero rows, the first is row {zero[0]}; they have no direction")
    return wide / size


def ledoit_wolf(deviations: Float[Tensor, "row d_model"]) -> tuple[Float[Tensor, "d_model d_model"], float]:
    """Return the shrunken covariance (1 - s) S + s tr(S)/d I of rows of mean 0, and the shrinkage s.

    S = X'X / n; s is the ratio of beta to delta, at most 1, with delta = |S - tr(S)/d I|_F^2 / d and
    beta = (sum_i |x_i|^4 / n - |S|_F^2) / (n d), which minimises the expected squared error of the covariance.

    Source: Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".

    >>> ledoit_wolf(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))[0].tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    x = deviations.to(torch.float64)
    n, width = x.shape
    sample = x.T @ x / n
    mean_variance = float(sample.trace()) / width
    energy = float(sample.square().sum())
    delta = (energy - width * mean_variance**2) / width
    beta = (float(x.square().sum(1).square().sum()) / n - energy) / (n * width)
    shrinkage = 1.0 if delta <= 0 else min(max(beta, 0.0) / delta, 1.0)
    target = torch.eye(width, dtype=torch.float64, device=x.device) * mean_variance
    return (1 - shrinkage) * sample + shrinkage * target, shrinkage


def fit_gaussian(rows: Float[Tensor, "row d_model"]) -> Gaussian:
    """Return the Gaussian of the rows' mean and Ledoit-Wolf covariance.

    Raises:
        ValueError: the covariance is singular even when shrunk.

    >>> gaussian = fit_gaussian(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> gaussian.distance(torch.tensor([[0.0, 0.0], [0.5, 0.5]])).round(decimals=6).tolist()
    [0.0, 1.0]
    """
    deviations, mean = centred(rows)
    return Gaussian(mean[None], _factor(deviations))


def fit_clusters(rows: Float[Tensor, "row d_model"], centres: Float[Tensor, "cluster d_model"]) -> Gaussian:
    """Return one Gaussian a cluster: the mean of the rows nearest each centre, and the covariance within them all.

    A centre that no row is nearest to is left out.

    Raises:
        ValueError: the covariance within clusters is singular even when shrunk.
    """
    wide = rows.detach().to(torch.float64)
    nearest = _nearest_centre(wide, centres.to(torch.float64))
    means = torch.stack([wide[nearest == label].mean(0) for label in nearest.unique()])
    return Gaussian(means, _factor(wide - means[nearest.unique(return_inverse=True)[1]]))


def _nearest_centre(
    rows: Float[Tensor, "row d_model"], centres: Float[Tensor, "cluster d_model"]
) -> Int[Tensor, " row"]:
    """The number of each row's nearest centre, by Euclidean distance."""
    return (centres.square().sum(1) - 2 * rows @ centres.T).argmin(1)


def _factor(deviations: Float[Tensor, "row d_model"]) -> Float[Tensor, "d_model d_model"]:
    """The Cholesky factor of the shrunken covariance."""
    covariance, shrinkage = ledoit_wolf(deviations)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        raise ValueError(
            f"the covariance of {deviations.shape[0]} rows is singular at shrinkage {shrinkage:.2g};"
            " leave out dimensions that follow from others, or capture more rows"
        )
    return factor
