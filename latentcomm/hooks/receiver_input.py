"""What a receiver can be given: a prompt, soft tokens or a past, under grafts and standing hooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.hooks.graft import Graft
from latentcomm.models import Hook
from latentcomm.models.prompts import Prompts

EMBEDDED = "hook_embed"
"""The hook point before any positional embedding: a row of `Model.embedding_table` each."""


@dataclass(frozen=True, eq=False)
class SoftTokens:
    """Vectors that stand in place of the embeddings of some tokens of each prompt.

    Attributes:
        places: for each prompt, positions counted from its first real token; the ids that stand there do not matter.
        vectors: for each prompt as many vectors, on the scale of rows of the receiver's `Model.embedding_table`.

    Raises:
        ValueError: places and vectors do not match, or a vector is not finite.

    >>> soft = SoftTokens((torch.tensor([0, 1]),), (torch.ones(2, 4),))
    >>> soft.select([0]).places[0].tolist()
    [0, 1]
    """

    places: tuple[Int[Tensor, " _"], ...]
    vectors: tuple[Float[Tensor, "_ d_model"], ...]

    def __post_init__(self) -> None:
        counts = [(len(place), len(vector)) for place, vector in zip(self.places, self.vectors, strict=True)]
        if wrong := [row for row, (n_places, n_vectors) in enumerate(counts) if n_places != n_vectors]:
            n_places, n_vectors = counts[wrong[0]]
            raise ValueError(f"prompt {wrong[0]} has {n_places} places for {n_vectors} soft tokens")
        if bad := [row for row, vector in enumerate(self.vectors) if not torch.isfinite(vector).all()]:
            raise ValueError(f"the soft tokens of prompt {bad[0]} are not finite; they were not given to the receiver")

    def select(self, rows: Sequence[int]) -> "SoftTokens":
        """Those of some of the prompts, in the given order."""
        return SoftTokens(tuple(self.places[row] for row in rows), tuple(self.vectors[row] for row in rows))

    def hook(self, fired: list[int]) -> Hook:
        """A hook that writes them over the embeddings of the prompt; gradients pass to the vectors."""

        def write(value: Tensor, hook: object) -> Tensor:
            fired[0] += 1
            rows = torch.cat([torch.full((len(places),), row) for row, places in enumerate(self.places)])
            index = (rows.to(value.device), torch.cat(self.places).to(value.device))
            return value.index_put(index, torch.cat(self.vectors).to(value.device, value.dtype))

        return EMBEDDED, write


@runtime_checkable
class Standing(Protocol):
    """Something of a receiver's input that acts in every pass, the prompt's and each reply token's."""

    def select(self, rows: Sequence[int]) -> "Standing":
        """The same for some of the prompts, in the given order."""
        ...

    def fwd_hooks(self) -> list[Hook]:
        """TransformerLens hooks that act in every pass that they are attached to, one row a prompt."""
        ...


@runtime_checkable
class Joining(Protocol):
    """Something standing that may act on rows that have read unequally much: it says what it does in their replies.

    What stands without this has its rows' replies run length by length, under the hooks that saw the prompt.
    """

    def reply_hooks(self) -> list[Hook]:
        """Hooks for the passes of reply tokens alone, one row a prompt.

        Keys stand where each row had them, counted from its beginning; behind those of shorter rows there are holes,
        which nobody sees, and then come the reply's.
        """
        ...


@dataclass(frozen=True, eq=False)
class Past:
    """Keys and values that stand before each prompt, as if the receiver had read something before.

    Attributes:
        layers: for each prompt the keys and values of every layer, one row, as `Model.cache_layers` gives them.
        length: for each prompt how many positions they have, the same in every layer.
    """

    layers: tuple[Sequence[tuple[Tensor, Tensor]], ...]
    length: tuple[int, ...]

    def select(self, rows: Sequence[int]) -> "Past":
        """Those of some of the prompts, in the given order."""
        return Past(tuple(self.layers[row] for row in rows), tuple(self.length[row] for row in rows))


@dataclass(frozen=True, eq=False)
class ReceiverInput:
    """All that a receiver is given: what it reads, what stands before that, and what is written into it.

    Attributes:
        prompts: the tokens it reads.
        grafts: written once, while it reads the prompt.
        soft: vectors that enter in place of some of the prompt's embeddings.
        past: keys and values that stand before the prompt.
        standing: what acts in every pass.
    """

    prompts: Prompts
    grafts: tuple[Graft, ...] = ()
    soft: SoftTokens | None = None
    past: Past | None = None
    standing: tuple[Standing, ...] = ()

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Positions that each prompt and its past take."""
        return self.prompts.lengths + (torch.tensor(self.past.length) if self.past is not None else 0)

    def select(self, rows: Sequence[int]) -> "ReceiverInput":
        """The input of some of the rows, padded on the right, and not at all when they are of one length.

        Positions given as a tensor are indices into `prompts.tokens` and move along when padding on the left goes.
        """
        shift = self.prompts.first[torch.as_tensor(rows)]
        return ReceiverInput(
            self.prompts.select(rows),
            tuple(graft.select(rows).moved(shift) for graft in self.grafts),
            None if self.soft is None else self.soft.select(rows),
            None if self.past is None else self.past.select(rows),
            tuple(each.select(rows) for each in self.standing),
        )

    def groups_of_equal_length(self) -> list[list[int]]:
        """Row numbers whose prompts are of one length, and their pasts of one: what runs together without padding."""
        if self.past is None:
            return self.prompts.groups_of_equal_length()
        groups: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(self.prompts.lengths.tolist(), self.past.length, strict=True)):
            groups.setdefault(key, []).append(row)
        return list(groups.values())
