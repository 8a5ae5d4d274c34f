"""Planted and unrelated rows for the tests of similarities, and formulas transcribed as they stand in the papers."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import torch


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def turned(given: torch.Tensor, seed: int = 3) -> torch.Tensor:
    """The rows under a random orthogonal map."""
    return given @ torch.linalg.qr(rows(given.shape[1], given.shape[1], seed=seed))[0]


def planted(n: int = 40, d_x: int = 5, d_y: int = 7, noise: float = 0.3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rows of two widths that share three directions, each with noise of its own, away from the origin."""
    shared = rows(n, 3, seed=seed)
    x = shared @ rows(3, d_x, seed=seed + 1) + noise * rows(n, d_x, seed=seed + 2) + 1.5
    y = shared @ rows(3, d_y, seed=seed + 3) + noise * rows(n, d_y, seed=seed + 4) - 0.5
    return x, y


def biased_hsic(K: np.ndarray, L: np.ndarray) -> float:
    """tr(KHLH), with H written out."""
    n = len(K)
    H = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(K @ H @ L @ H))


def hsic_over_quadruples(K: np.ndarray, L: np.ndarray) -> float:
    """The U-statistic itself: the mean over all ordered quadruples of different rows of K_ij (L_ij + L_qr - 2 L_iq)."""
    terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in permutations(range(len(K)), 4)]
    return float(np.mean(terms))


def hsic_from_moments(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased HSIC of linear kernels from sums over rows, with no centring anywhere."""
    n, a, b, s_x, s_y, M = len(x), (x**2).sum(1), (y**2).sum(1), x.sum(0), y.sum(0), x.T @ y
    u, v = x.T @ b, y.T @ a
    first = (M**2).sum() - a @ b + (s_x @ s_x - a.sum()) * (s_y @ s_y - b.sum()) / ((n - 1) * (n - 2))
    return (first - 2 / (n - 2) * (s_x @ M @ s_y - s_x @ u - s_y @ v + a @ b)) / (n * (n - 3))


def aligned(hsic: Callable[..., float], x: np.ndarray, y: np.ndarray) -> float:
    """A ratio of three criteria."""
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
