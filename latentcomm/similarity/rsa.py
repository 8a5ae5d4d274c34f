"""Representational similarity analysis: are the same rows far apart in both spaces?"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm.similarity.checks import require_pair

__all__ = ["rsa"]

LEAST_ROWS = 4
"""Three rows have three distances, whose rank correlation takes four values."""
LEAST_WIDTH = 3
"""The correlation of two rows of width 2 is 1 or -1."""


@takes_arrays
def rsa(x: Float[Tensor, "row d_sender"], y: Float[Tensor, "row_y d_receiver"]) -> float:
    """Return Spearman's correlation of the two sides' dissimilarities, 1 - Pearson's correlation of two rows.

    Over all n(n-1)/2 pairs of different rows, ties taking their mean rank; in [-1, 1], 0 for unrelated spaces on
    average. A row's mean and length do not count, and the basis does: a rotation changes Pearson's correlation of rows.

    Source: Kriegeskorte et al. 2008, "Representational similarity analysis".

    Raises:
        ValueError: fewer than 4 rows, a width below 3, NaN or infinite rows, constant columns, a row whose entries are
            all equal (it correlates with nothing), or dissimilarities that are all equal.

    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(rsa(rows, 3 * rows + 1), 6)
    1.0
    """
    require_pair(x, y, least_rows=LEAST_ROWS, least_width=LEAST_WIDTH, why="for ranks of distances")
    from scipy.stats import rankdata  # a second of import time that only this measure needs

    first, second = _dissimilarities(x, "x"), _dissimilarities(y, "y")
    ranks = [rankdata(distances.cpu().numpy()) for distances in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def _dissimilarities(rows: Float[Tensor, "row d_model"], name: str) -> Float[Tensor, " pair"]:
    """Return 1 - r for every pair of different rows."""
    wide = rows.detach().to(torch.float64)
    if level := (rows == rows[:, :1]).all(1).nonzero().flatten().tolist():
        raise ValueError(f"row {level[0]} of {name} has equal entries ({len(level)} such rows); leave it out")
    wide = wide - wide.mean(1, keepdim=True)
    units = wide / wide.norm(dim=1, keepdim=True)
    distances = 1 - (units @ units.T)[torch.ones(len(wide), len(wide), dtype=torch.bool, device=wide.device).triu(1)]
    if float(distances.max() - distances.min()) <= 1e-12:
        raise ValueError(f"all pairs of rows of {name} are equally dissimilar; give rows that differ more")
    return distances
