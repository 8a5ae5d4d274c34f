"""What is fitted to a receiver's states at a site, and the detectors that read it: one function and one entry each."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import laid_out
from latentcomm.drift.gaussian import Gaussian, rms_normalised
from latentcomm.drift.neighbours import Bank, LocalDensity, Neighbours, local_outlier_factor, local_residual
from latentcomm.redundancy import Projection

__all__ = ["DETECTORS", "PANEL", "Detector", "Manifold", "measure_all"]

KNN = 10
"""Which neighbour's distance `knn_distance` is."""
LOF_NEIGHBOURS = 20
"""Neighbours of the local outlier factor; scikit-learn's default."""
LOCAL_NEIGHBOURS = 30
"""Neighbours that the local PCA is fitted to."""
LOCAL_RANK = 10
"""Directions of the local PCA at most, and half the width at most."""

Scores = Float[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class Manifold:
    """What the detectors know of a receiver's states at a site.

    Attributes:
        mean: m, of the raw states.
        typical_norm: their median norm.
        overall, within, background: Gaussians of the RMS view: of all states, within clusters, of the background.
        subspace: the principal subspace of the raw states.
        bank: raw states among which neighbours are sought (in the RMS view), all different.
        local: reach and density of each of them.
    """

    mean: Float[Tensor, " d_model"]
    typical_norm: Float[Tensor, ""]
    overall: Gaussian
    within: Gaussian
    background: Gaussian
    subspace: Projection
    bank: Float[Tensor, "bank d_model"]
    local: LocalDensity

    def __post_init__(self) -> None:
        for name in ("mean", "bank"):
            object.__setattr__(self, name, laid_out(getattr(self, name)))

    @functools.cached_property
    def rms_bank(self) -> Float[Tensor, "bank d_model"]:
        """The bank in the RMS view."""
        return rms_normalised(self.bank)

    @functools.cached_property
    def searched(self) -> Bank:
        """The same, ready to be searched."""
        return Bank.of(self.rms_bank)

    def tensors(self) -> dict[str, Tensor]:
        """Every part by name, for a file."""
        gaussians = {"overall": self.overall, "within": self.within, "background": self.background}
        parts = {f"{name}.centres": gaussian.centres for name, gaussian in gaussians.items()}
        parts |= {f"{name}.factor": gaussian.factor for name, gaussian in gaussians.items()}
        parts |= {"subspace.mean": self.subspace.mean, "subspace.basis": self.subspace.directions}
        parts |= {"local.reach": self.local.reach, "local.density": self.local.density}
        return parts | {"mean": self.mean, "typical_norm": self.typical_norm, "bank": self.bank}

    def to(self, device: str | torch.device) -> "Manifold":
        """The same on a device, where it then measures states."""
        return self.of_tensors({name: part.to(device) for name, part in self.tensors().items()})

    @classmethod
    def of_tensors(cls, parts: Mapping[str, Tensor]) -> "Manifold":
        """The manifold of the parts that `tensors` named."""
        overall, within, background = (
            Gaussian(parts[f"{name}.centres"], parts[f"{name}.factor"]) for name in ("overall", "within", "background")
        )
        return cls(
            mean=parts["mean"],
            typical_norm=parts["typical_norm"],
            overall=overall,
            within=within,
            background=background,
            subspace=Projection(parts["subspace.mean"], parts["subspace.basis"], parts["subspace.basis"]),
            bank=parts["bank"],
            local=LocalDensity(parts["local.reach"], parts["local.density"]),
        )


@dataclass(frozen=True, eq=False)
class View:
    """States as the detectors see them, each view computed once and only when a detector needs it."""

    raw: Float[Tensor, "row d_model"]
    manifold: Manifold

    @functools.cached_property
    def rms(self) -> Float[Tensor, "row d_model"]:
        """The RMS view, x / sqrt(mean(x^2))."""
        return rms_normalised(self.raw)

    @functools.cached_property
    def found(self) -> Neighbours:
        """The nearest fitted states."""
        return self.manifold.searched.nearest(self.rms, k=LOCAL_NEIGHBOURS)

    def first(self, k: int) -> Neighbours:
        """The k nearest of them."""
        return Neighbours(self.found.distance[:, :k], self.found.index[:, :k])


@dataclass(frozen=True)
class Detector:
    """A number for each state, and whether being off the manifold makes it larger (+1) or smaller (-1)."""

    score: Callable[[View], Tensor]
    sign: int = 1


def measure_all(manifold: Manifold, rows: Float[Tensor, "row d_model"], names: Sequence[str]) -> dict[str, Scores]:
    """Return the named detectors' numbers for each row, in float64."""
    view = View(rows.detach().to(torch.float64), manifold)
    return {name: DETECTORS[name].score(view) for name in names}


def local_rank(width: int) -> int:
    """Return the dimension of the local plane: LOCAL_RANK, and half the width where that is less.

    >>> local_rank(576), local_rank(2)
    (10, 1)
    """
    return min(LOCAL_RANK, width // 2)


def _mahalanobis(view: View) -> Scores:
    return view.manifold.overall.distance(view.rms)


def _cluster_mahalanobis(view: View) -> Scores:
    return view.manifold.within.distance(view.rms)


def _relative_mahalanobis(view: View) -> Scores:
    return view.manifold.within.distance(view.rms).square() - view.manifold.background.distance(view.rms).square()


def _off_subspace(view: View) -> Scores:
    return view.manifold.subspace.drop(view.raw).square().sum(1)


def _knn_distance(view: View) -> Scores:
    return view.found.distance[:, KNN - 1]


def _local_outlier_factor(view: View) -> Scores:
    return local_outlier_factor(view.first(LOF_NEIGHBOURS), view.manifold.local)


def _local_pca_residual(view: View) -> Scores:
    return local_residual(view.rms, view.manifold.rms_bank, view.found, rank=local_rank(view.raw.shape[1]))


def _norm_ratio(view: View) -> Scores:
    return torch.linalg.vector_norm(view.raw, dim=1) / view.manifold.typical_norm


def _cosine(view: View) -> Scores:
    size = torch.linalg.vector_norm(view.raw, dim=1) * torch.linalg.vector_norm(view.manifold.mean)
    return view.raw @ view.manifold.mean / size


DETECTORS: Mapping[str, Detector] = MappingProxyType(
    {
        "mahalanobis": Detector(_mahalanobis),
        "cluster_mahalanobis": Detector(_cluster_mahalanobis),
        "relative_mahalanobis": Detector(_relative_mahalanobis),
        "off_subspace": Detector(_off_subspace),
        "knn_distance": Detector(_knn_distance),
        "local_outlier_factor": Detector(_local_outlier_factor),
        "local_pca_residual": Detector(_local_pca_residual),
        "norm_ratio": Detector(_norm_ratio),
        "cosine": Detector(_cosine, sign=-1),
    }
)
PANEL: tuple[str, ...] = (
    "mahalanobis",
    "off_subspace",
    "local_outlier_factor",
    "relative_mahalanobis",
    "norm_ratio",
    "cosine",
)
"""The six whose two-sided p-values make the joint verdict: each catches what the others let pass."""
