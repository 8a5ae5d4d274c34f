"""States that are known to be off the manifold, made from real ones: what a detector must detect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.alignment import fit_ridge

__all__ = ["FAMILIES", "NOISE", "Material", "known_off", "partners"]

NOISE = 0.3
"""Size of added noise: its root-mean-square norm as a share of the states' about their mean."""
SCALE = 1.5
"""Factor of the family that scales."""
SEEN_SHARE = 0.25
"""Share of the width that the family of linear maps reads a state through."""

Rows = Float[Tensor, "row d_model"]


@dataclass(frozen=True, eq=False)
class Material:
    """What a family is made of, in float64.

    Attributes:
        real: real states.
        partner: for each of them a real state of another document.
        fitted: the real states the reference was fitted on, other documents than both.
        generator: the source of all randomness.
    """

    real: Rows
    partner: Rows
    fitted: Float[Tensor, "bank d_model"]
    generator: torch.Generator


def real(material: Material) -> Rows:
    """Real states of other documents: no detector should separate them, so 0.5 within noise."""
    return material.real


def isotropic_noise(material: Material) -> Rows:
    """A real state with noise of the same size in every direction, NOISE times the states' spread."""
    spread = (material.fitted - material.fitted.mean(0)).square().sum(1).mean().sqrt()
    noise = _normal(material.real.shape, material)
    return material.real + NOISE * spread / material.real.shape[1] ** 0.5 * noise


def covariance_noise(material: Material) -> Rows:
    """A real state with noise of the states' own covariance, NOISE times its size."""
    return material.real + NOISE * _covariance_shaped(material)


def gaussian_fake(material: Material) -> Rows:
    """Draws from the Gaussian with the real states' mean and covariance."""
    return material.fitted.mean(0) + _covariance_shaped(material)


def average(material: Material) -> Rows:
    """The mean of two real states of different documents."""
    return (material.real + material.partner) / 2


def sum_of_two(material: Material) -> Rows:
    """The sum of two real states of different documents."""
    return material.real + material.partner


def scaled(material: Material) -> Rows:
    """SCALE times a real state."""
    return SCALE * material.real


def shuffled_dimensions(material: Material) -> Rows:
    """A real state with its entries in another order, drawn anew for each."""
    order = torch.rand(material.real.shape, generator=material.generator).argsort(1)
    return material.real.gather(1, order)


def linear_map(material: Material) -> Rows:
    """What a ridge regression makes of a state from SEEN_SHARE of its width (a random projection of it).

    As any map fitted from another layer or model, it gives conditional means: too little variance in some directions.
    """
    width = material.real.shape[1]
    seen = _normal((width, max(1, int(SEEN_SHARE * width))), material)
    penalty = float((material.fitted - material.fitted.mean(0)).square().mean()) * width
    return fit_ridge(material.fitted @ seen, material.fitted, penalty=penalty)(material.real @ seen)


def partners(groups: Int[Tensor, " row"], *, seed: int) -> Int[Tensor, " row"]:
    """Return for each row the number of a row of another group, drawn evenly.

    Raises:
        ValueError: all rows are of one group.

    >>> partners(torch.tensor([0, 0, 1]), seed=0).tolist()[:2]
    [2, 2]
    """
    sizes = groups.bincount(minlength=int(groups.max()) + 1)
    if int((sizes > 0).sum()) < 2:
        raise ValueError(f"all {len(groups)} rows are of one document; partners need at least 2 documents")
    order = groups.argsort(stable=True)
    after = sizes.cumsum(0)[groups]  # where in that order the next group begins
    draw = torch.rand(len(groups), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    others = len(groups) - sizes[groups]
    return order[(after + (draw * others).long().clamp(max=others - 1)) % len(groups)]


def known_off(
    rows: Rows, groups: Int[Tensor, " row"], fitted: Float[Tensor, "bank d_model"], *, seed: int
) -> dict[str, Rows]:
    """Return every family of FAMILIES made of these real rows, in float64, as many rows each."""
    wide = rows.to(torch.float64)
    partner = wide[partners(groups, seed=seed)]
    return {
        name: make(Material(wide, partner, fitted.to(torch.float64), torch.Generator().manual_seed(seed)))
        for name, make in FAMILIES.items()
    }


def _normal(shape: tuple[int, ...], material: Material) -> Tensor:
    return torch.randn(shape, generator=material.generator, dtype=torch.float64)


def _covariance_shaped(material: Material) -> Rows:
    """Noise with exactly the covariance of the fitted states: random sums of their deviations."""
    deviations = material.fitted - material.fitted.mean(0)
    weights = _normal((material.real.shape[0], deviations.shape[0]), material)
    return weights @ deviations / (deviations.shape[0] - 1) ** 0.5


FAMILIES: Mapping[str, Callable[[Material], Tensor]] = MappingProxyType(
    {
        "real": real,
        "isotropic_noise": isotropic_noise,
        "covariance_noise": covariance_noise,
        "gaussian_fake": gaussian_fake,
        "average": average,
        "sum": sum_of_two,
        "scaled": scaled,
        "shuffled_dimensions": shuffled_dimensions,
        "linear_map": linear_map,
    }
)
"""The families of `DriftReference.auroc_table`, the real states that they are held against first."""
