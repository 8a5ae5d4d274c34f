"""Intervals of a ratio of sums over documents: whole documents are drawn anew, the fits stay as they are."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Interval", "Sums", "ratio_intervals", "sums_by_group"]

RESAMPLES = 2000
"""Draws of the documents: the ends of a 95 % interval then rest on 50 draws each."""
DRAWS_AT_ONCE = 2**22
"""Drawn counts held at a time, 32 MB of them."""

Interval = tuple[float, float]
"""Its low and its high end."""
Sums = Float[Tensor, "sum group"]
"""Several sums over the rows of each group."""


def sums_by_group(values: Float[Tensor, "sum row"], groups: Int[Tensor, " row"]) -> Sums:
    """Return each line of values summed within the groups, which count from 0, in float64.

    >>> sums_by_group(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0, 1, 0])).tolist()
    [[4.0, 2.0]]
    """
    out = torch.zeros(values.shape[0], int(groups.max()) + 1, dtype=torch.float64)
    return out.index_add_(1, groups, values.to(torch.float64))


def ratio_intervals(
    numerators: Sums, denominator: Float[Tensor, " group"], *, level: float, n_resamples: int, seed: int
) -> list[Interval]:
    """Return for each line of numerators the percentile interval of its sum over that of the denominator.

    As many groups as there are are drawn with replacement, `n_resamples` times; the interval runs between the
    quantiles (1 - level) / 2 and (1 + level) / 2 of the ratios.

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap".

    Raises:
        ValueError: a level that is no share, fewer than 1 resample, or a draw whose denominator is 0.

    >>> ratio_intervals(torch.ones(1, 4), 2 * torch.ones(4), level=0.95, n_resamples=50, seed=0)
    [(0.5, 0.5)]
    """
    if not (math.isfinite(level) and 0 < level < 1):
        raise ValueError(f"level is {level}; it is a share such as 0.95, between 0 and 1")
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; at least 1 is needed, and 1000 for an interval")
    generator = torch.Generator().manual_seed(seed)
    n_groups = denominator.shape[0]
    both = torch.cat((numerators, denominator[None])).to(torch.float64)
    ratios = []
    for start in range(0, n_resamples, step := max(1, DRAWS_AT_ONCE // n_groups)):
        n_draws = min(step, n_resamples - start)
        drawn = torch.randint(n_groups, (n_draws, n_groups), generator=generator)
        counts = torch.zeros(n_draws, n_groups, dtype=torch.float64)
        sums = both @ counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)).T
        if bool((sums[-1] == 0).any()):
            raise ValueError("some documents alone have no variance to explain; give rows that differ within documents")
        ratios.append(sums[:-1] / sums[-1])
    every = torch.cat(ratios, 1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = every.quantile(ends, dim=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))
