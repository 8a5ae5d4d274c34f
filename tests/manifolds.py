"""States on a planted manifold, a reference fitted to them, and the documents they are of."""

import functools

import numpy as np
import torch

from latentcomm.drift import DriftReference, fit_drift_reference
from latentcomm.models.sites import Site

WIDTH = 24
DOCUMENTS = torch.arange(100).repeat_interleave(12)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(n_rows: int, *, seed: int, width: int = WIDTH) -> torch.Tensor:
    """States of six kinds, each with six directions of its own, about a mean as large as their spread."""
    kinds, centres, axes = 6, 3 * normal(6, width, seed=1), normal(6, width, 6, seed=2)
    kind = torch.randint(kinds, (n_rows,), generator=torch.Generator().manual_seed(seed + 100))
    within = torch.einsum("rdk,rk->rd", axes[kind], normal(n_rows, 6, seed=seed + 200))
    return 2 * normal(width, seed=3) + centres[kind] + within + 0.3 * normal(n_rows, width, seed=seed + 300)


@functools.cache
def reference() -> DriftReference:
    return fit_drift_reference(mixture(1200, seed=0), groups=DOCUMENTS, site=Site(3), model="tiny", kind="all")


def fitted_rows(found: DriftReference, rows: torch.Tensor) -> torch.Tensor:
    """The rows that were not held out, told by their values."""
    held = {tuple(row) for row in found.held_out.tolist()}
    return torch.stack([row for row in rows if tuple(row.tolist()) not in held])


@functools.cache
def small() -> tuple[DriftReference, np.ndarray, torch.Tensor]:
    """A reference, the rows that it was fitted on, and other states: some real, some far off."""
    rows = mixture(240, seed=7, width=8)
    found = fit_drift_reference(rows, seed=4)
    others = torch.cat((mixture(20, seed=9, width=8), 3 * normal(10, 8, seed=5)))
    return found, fitted_rows(found, rows).numpy(), others


@functools.cache
def table() -> dict:
    return reference().auroc_table()
