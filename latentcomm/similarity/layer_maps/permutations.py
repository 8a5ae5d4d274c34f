"""Permutations for nulls: shuffled rows, and documents permuted position by position."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Pairing", "exchanged_documents", "shuffled_rows"]

LEAST_CIRCLED = 10
"""Ten documents have 362,880 different cycles, enough for any number of draws."""


@dataclass(frozen=True)
class Pairing:
    """Rows of x and the rows of y they are paired with: measure `x[rows]` against `y[partners]`."""

    rows: Int[Tensor, " row"]
    partners: Int[Tensor, " row"]


def shuffled_rows(n_rows: int, *, draws: int, seed: int = 0) -> list[Pairing]:
    """Return pairings of every row with one drawn at random, each drawn once.

    Raises:
        ValueError: no draw.

    >>> [pairing.partners.tolist() for pairing in shuffled_rows(4, draws=2)]
    [[0, 1, 3, 2], [0, 2, 3, 1]]
    """
    _require_draws(draws)
    generator = torch.Generator().manual_seed(seed)
    return [Pairing(torch.arange(n_rows), torch.randperm(n_rows, generator=generator)) for _ in range(draws)]


def exchanged_documents(
    documents: Int[Tensor, " row"] | Sequence[int] | Sequence[str],
    positions: Int[Tensor, " row"] | Sequence[int],
    *,
    draws: int,
    seed: int = 0,
) -> list[Pairing]:
    """Return document permutations without fixed points: each document paired with another, row by row by position.

    In each draw the documents form a random cycle and each is paired with the next, so that none is paired with itself.
    What position alone decides (an attention sink, a frequent first word) stays shared, and the content of the text
    does not: that is the null of a similarity over tokens. Rows whose position the partner lacks are left out.

    Raises:
        ValueError: no draw, labels of different number, two rows at one position of one document, so few documents that
            there are fewer cycles than draws, or documents without a position in common.

    >>> exchanged_documents([0, 0, 1, 1, 2, 2], [1, 2, 1, 2, 1, 2], draws=1)[0].partners.tolist()
    [2, 3, 4, 5, 0, 1]
    """
    _require_draws(draws)
    per_row = positions.tolist() if isinstance(positions, Tensor) else list(positions)
    labels = documents.tolist() if isinstance(documents, Tensor) else list(documents)
    if len(per_row) != len(labels):
        raise ValueError(f"{len(labels)} document labels but {len(per_row)} positions; give one of each a row")
    rows_of: dict[int | str, dict[int, int]] = {}
    for row, (label, position) in enumerate(zip(labels, per_row, strict=True)):
        known = rows_of.setdefault(label, {})
        if position in known:
            raise ValueError(f"rows {known[position]} and {row} both are position {position} of document {label!r}")
        known[position] = row
    cycles = math.factorial(min(len(rows_of), LEAST_CIRCLED) - 1) if len(rows_of) > 1 else 0
    if cycles < min(draws, math.factorial(LEAST_CIRCLED - 1)):
        raise ValueError(f"{len(rows_of)} documents form {cycles} cycles, fewer than {draws}; give more documents")
    generator = torch.Generator().manual_seed(seed)
    return [_cycle(list(rows_of.values()), generator) for _ in range(draws)]


def _cycle(documents: list[dict[int, int]], generator: torch.Generator) -> Pairing:
    """Return the pairing of one random cycle, rows ascending."""
    order = torch.randperm(len(documents), generator=generator).tolist()
    pairs = []
    for index, number in enumerate(order):
        partner = documents[order[(index + 1) % len(order)]]
        pairs += [(row, partner[position]) for position, row in documents[number].items() if position in partner]
    if not pairs:
        raise ValueError("the documents have no position in common; count positions from each document's start")
    rows, partners = torch.tensor(sorted(pairs)).unbind(1)
    return Pairing(rows, partners)


def _require_draws(draws: int) -> None:
    """Refuse a null of nothing."""
    if draws < 1:
        raise ValueError(f"draws is {draws}; a null needs at least 1, and 20 for a share of 5 %")
