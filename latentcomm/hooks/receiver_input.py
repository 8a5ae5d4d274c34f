"""A receiver's input: a prompt, soft tokens or a past, under grafts and persistent hooks."""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.hooks.graft import Graft
from latentcomm.models import Hook
from latentcomm.models.prompts import Prompts

EMBEDDED = "hook_embed"
"""The hook point of token embeddings, before any positional embedding: rows of `Model.embedding_table`."""


@dataclass(frozen=True, eq=False)
class SoftTokens:
    """Vectors that replace the embeddings of some tokens of each prompt.

    Attributes:
        positions: for each prompt, positions counted from its first real token; the token ids there are ignored.
        vectors: for each prompt as many vectors, on the scale of rows of the receiver's `Model.embedding_table`.

    Raises:
        ValueError: positions and vectors do not match, a position is negative, or a vector is not finite.

    >>> soft = SoftTokens((torch.tensor([0, 1]),), (torch.ones(2, 4),))
    >>> soft.select([0]).positions[0].tolist()
    [0, 1]
    """

    positions: tuple[Int[Tensor, " _"], ...]
    vectors: tuple[Float[Tensor, "_ d_model"], ...]

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.vectors):
            raise ValueError(
                f"positions are of {len(self.positions)} prompts and vectors of {len(self.vectors)}; give both of each"
            )
        counts = [(len(position), len(vector)) for position, vector in zip(self.positions, self.vectors, strict=True)]
        if wrong := [row for row, (n_positions, n_vectors) in enumerate(counts) if n_positions != n_vectors]:
            n_positions, n_vectors = counts[wrong[0]]
            raise ValueError(f"prompt {wrong[0]} has {n_positions} positions for {n_vectors} soft tokens")
        if below := [row for row, position in enumerate(self.positions) if (position < 0).any()]:
            raise ValueError(f"positions of prompt {below[0]} are negative; count from its first token, which is 0")
        if bad := [row for row, vector in enumerate(self.vectors) if not torch.isfinite(vector).all()]:
            raise ValueError(f"the soft tokens of prompt {bad[0]} are not finite; check the sent states and maps")

    def select(self, rows: Sequence[int]) -> "SoftTokens":
        """The rows of some of the prompts, in the given order."""
        return SoftTokens(tuple(self.positions[row] for row in rows), tuple(self.vectors[row] for row in rows))

    def hook(self, fired: list[int]) -> Hook:
        """A hook that writes the vectors over the embeddings of the prompt; gradients flow to the vectors."""

        def write(value: Tensor, hook: object) -> Tensor:
            fired[0] += 1
            rows = torch.cat([torch.full((len(positions),), row) for row, positions in enumerate(self.positions)])
            index = (rows.to(value.device), torch.cat(self.positions).to(value.device))
            return value.index_put(index, torch.cat(self.vectors).to(value.device, value.dtype))

        return EMBEDDED, write


@runtime_checkable
class PersistentHooks(Protocol):
    """Persistent hooks of a receiver's input, which act in every pass: the prompt's and each reply token's.

    Those that have a length have one row a prompt, and are refused with another number of prompts.
    """

    def select(self, rows: Sequence[int]) -> "PersistentHooks":
        """The same for some of the prompts, in the given order."""
        ...

    def fwd_hooks(self) -> list[Hook]:
        """TransformerLens hooks, attached in every pass, one row a prompt."""
        ...


@runtime_checkable
class Joining(Protocol):
    """Persistent hooks that can act on rows of unequal length, with hooks of their own for the passes of replies.

    Without `reply_hooks`, replies run separately for each prompt length, under the hooks of the prompt's pass.
    """

    def reply_hooks(self) -> list[Hook]:
        """Hooks for the passes of reply tokens alone, one row a prompt.

        Each row's keys are at their positions from its beginning; those of shorter rows are followed by masked
        positions, then by the reply's keys.
        """
        ...


@dataclass(frozen=True, eq=False)
class Past:
    """Keys and values that precede each prompt in the cache, as if the receiver had read a prefix.

    Attributes:
        layers: for each prompt the keys and values of every layer, one row, as `Model.cache_layers` gives them.
        length: for each prompt the number of their positions, the same in every layer.
    """

    layers: tuple[Sequence[tuple[Tensor, Tensor]], ...]
    length: tuple[int, ...]

    def select(self, rows: Sequence[int]) -> "Past":
        """The rows of some of the prompts, in the given order."""
        return Past(tuple(self.layers[row] for row in rows), tuple(self.length[row] for row in rows))


@dataclass(frozen=True, eq=False)
class ReceiverInput:
    """The whole input of a receiver: its prompt, the cached prefix, and the vectors written into its states.

    Attributes:
        prompts: the tokens that it reads.
        grafts: written once, in the pass that reads the prompt.
        soft: vectors that replace some of the prompt's embeddings.
        past: keys and values that precede the prompt.
        persistent: persistent hooks, which act in every pass.

    Raises:
        ValueError: grafts, soft tokens, a past or persistent hooks of another number of rows than there are prompts
            (a graft may have one row for all), or a soft token beyond its prompt.
    """

    prompts: Prompts
    grafts: tuple[Graft, ...] = ()
    soft: SoftTokens | None = None
    past: Past | None = None
    persistent: tuple[PersistentHooks, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.prompts)
        for name, rows in self._rows():
            if rows != n:
                raise ValueError(
                    f"{name} has {rows} {'row' if rows == 1 else 'rows'} for {n} prompts; give one a prompt"
                )
        if self.soft is not None:
            ends = [int(positions.max()) if len(positions) else -1 for positions in self.soft.positions]
            lengths = self.prompts.lengths.tolist()
            if beyond := [row for row in range(n) if ends[row] >= lengths[row]]:
                raise ValueError(
                    f"soft has a token at position {ends[beyond[0]]} of prompt {beyond[0]}, which has "
                    f"{lengths[beyond[0]]} tokens"
                )

    def _rows(self) -> Iterator[tuple[str, int]]:
        """The number of rows of everything that has one a prompt, by name."""
        for number, graft in enumerate(self.grafts):
            where = f"grafts[{number}] at {graft.site.hook_name}"
            if isinstance(graft.position, Tensor):
                yield f"the position of {where}", len(graft.position)
            if graft.n_rows != 1:
                yield where, graft.n_rows
        if self.soft is not None:
            yield "soft", len(self.soft.positions)
        if self.past is not None:
            yield "past", len(self.past.layers)
            yield "the length of past", len(self.past.length)
        for number, each in enumerate(self.persistent):
            if isinstance(each, Sized):
                yield f"persistent[{number}] ({type(each).__name__})", len(each)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """The number of positions of each prompt and its past."""
        return self.prompts.lengths + (torch.tensor(self.past.length) if self.past is not None else 0)

    def select(self, rows: Sequence[int]) -> "ReceiverInput":
        """The input of some of the rows, padded on the right, or not at all when they are of one length.

        Positions given as a tensor are indices into `prompts.tokens` and shift when padding on the left is removed.
        """
        shift = self.prompts.first[torch.as_tensor(rows)]
        return ReceiverInput(
            self.prompts.select(rows),
            tuple(graft.select(rows).moved(shift) for graft in self.grafts),
            None if self.soft is None else self.soft.select(rows),
            None if self.past is None else self.past.select(rows),
            tuple(each.select(rows) for each in self.persistent),
        )

    def groups_of_equal_length(self) -> list[list[int]]:
        """Row numbers grouped by the lengths of prompt and past: the rows of a group run together without padding."""
        if self.past is None:
            return self.prompts.groups_of_equal_length()
        groups: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(self.prompts.lengths.tolist(), self.past.length, strict=True)):
            groups.setdefault(key, []).append(row)
        return list(groups.values())
