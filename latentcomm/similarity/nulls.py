"""What a similarity gives for rows that share nothing: its null, stored with rows and dims, and that of a maximum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm.similarity.layer_maps.permutations import Pairing, exchanged_documents, shuffled_rows
from latentcomm.similarity.table import SIMILARITIES, Similarity

__all__ = ["DRAWS", "QUANTILES", "Compared", "Null", "compare", "fewest_rows", "null"]

DRAWS = 20
"""Enough for a share of 5 %: an observed number above all of them has p = 1/21."""
QUANTILES = (0.025, 0.05, 0.5, 0.95, 0.975)
"""The quantiles that a record lists."""

Documents = Int[Tensor, " row"] | Sequence[int] | Sequence[str]
"""The document of each row."""
GIVEN = "rows as given"
"""The view of rows that were given without a description."""


@dataclass(frozen=True)
class Null:
    """The numbers of unrelated rows, of `rows` rows and widths `dims`; `over` pairs of layers where of a maximum."""

    kind: str
    rows: int
    dims: tuple[int, int]
    values: tuple[float, ...]
    over: int = 1

    @property
    def mean(self) -> float:
        """The mean over the draws."""
        return float(np.mean(self.values))

    @property
    def quantiles(self) -> Mapping[float, float]:
        """The QUANTILES of the draws, interpolated between them."""
        return dict(zip(QUANTILES, np.quantile(self.values, QUANTILES).tolist(), strict=True))

    def p_value(self, observed: float) -> float:
        """Return the share of draws that reach the observed number, it counted among them: (1 + m) / (1 + draws).

        >>> Null("shuffled rows", 10, (2, 2), (0.1, 0.2, 0.3)).p_value(0.25)
        0.5
        """
        return (1 + sum(value >= observed for value in self.values)) / (1 + len(self.values))


@dataclass(frozen=True)
class Compared:
    """A similarity with the rows and dims it was measured on, its nulls, and the view of the rows.

    The view is how they were scaled and which were left out, as in `ResidualView.description`.
    """

    similarity: str
    value: float
    rows: int
    dims: tuple[int, int]
    nulls: tuple[Null, ...]
    view: str = GIVEN


@takes_arrays
def compare(
    name: str,
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row_y d_receiver"],
    *,
    documents: Documents | None = None,
    positions: Int[Tensor, " row"] | Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    view: str = GIVEN,
) -> Compared:
    """Return an entry of SIMILARITIES with its null of shuffled rows and, given documents, that of permuted documents.

    Shuffled rows show the bias of the estimator at these rows and dims, which is 0 for a debiased one regardless of
    what the states share. Whether tokens of different texts are distinguished, only permuted documents show: give
    `documents` and `positions` (each row's position in its document) whenever rows are tokens. `view` goes into the
    result: what was done to the rows before, such as `residual_view(...).description`.

    Raises:
        ValueError: an unknown name, documents without positions or the reverse, or as the similarity and the pairings.

    >>> rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> found = compare("linear_cka", rows, 2 * rows)
    >>> round(found.value, 6), found.nulls[0].rows, found.nulls[0].dims, found.nulls[0].mean > 0.05
    (1.0, 30, (4, 4), True)
    """
    if name not in SIMILARITIES:
        raise ValueError(f"there is no similarity {name!r}; choose among {', '.join(SIMILARITIES)}")
    if (documents is None) != (positions is None):
        raise ValueError("documents and positions go together; give both for the null of permuted documents")
    similarity = SIMILARITIES[name]
    value = similarity(x, y, documents=documents)
    pairings = {"shuffled rows": shuffled_rows(x.shape[0], draws=draws, seed=seed)}
    if documents is not None and positions is not None:
        pairings["exchanged documents"] = exchanged_documents(documents, positions, draws=draws, seed=seed)
    nulls = tuple(null(similarity, x, y, pairing, kind=kind, documents=documents) for kind, pairing in pairings.items())
    return Compared(name, value, x.shape[0], (x.shape[1], y.shape[1]), nulls, view)


@takes_arrays
def null(
    similarity: Similarity,
    x: Float[Tensor, "row d_sender"],
    y: Float[Tensor, "row d_receiver"],
    pairings: Sequence[Pairing],
    *,
    kind: str,
    documents: Documents | None = None,
) -> Null:
    """Return the numbers of the pairings; `rows` is the fewest of any of them.

    Raises:
        ValueError: no pairing, or as the similarity.

    >>> rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> null(SIMILARITIES["rsa"], rows, rows, shuffled_rows(30, draws=3), kind="shuffled rows").mean < 0.2
    True
    """
    values = []
    numbers = None if documents is None else _numbered(documents)
    for pairing in pairings:
        labels = None if numbers is None else numbers[pairing.rows]
        values.append(similarity(x[pairing.rows], y[pairing.partners], documents=labels))
    return Null(kind, fewest_rows(pairings), (x.shape[1], y.shape[1]), tuple(values))


def _numbered(documents: Documents) -> Int[Tensor, " row"]:
    """Return each label's number in order of first appearance."""
    labels = documents.tolist() if isinstance(documents, Tensor) else list(documents)
    numbers: dict[int | str, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels])


def fewest_rows(pairings: Sequence[Pairing]) -> int:
    """Return how many rows the smallest pairing has.

    Raises:
        ValueError: no pairing.

    >>> fewest_rows(shuffled_rows(9, draws=2))
    9
    """
    if not pairings:
        raise ValueError("no pairings; a null needs at least 1 (shuffled_rows, exchanged_documents)")
    return min(len(pairing.rows) for pairing in pairings)
