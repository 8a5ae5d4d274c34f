"""Prompts: token ids of several texts with a mask, and nothing that depends on which side was padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Template = Literal["raw", "chat"]
"""How a text becomes a prompt: as it is, or as the user's turn of the model's own chat template."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Token ids of several texts. Padding may be on either side: every consumer uses the mask.

    Attributes:
        tokens: ids, padded to the longest text.
        mask: True at real tokens; each row's real tokens are contiguous.

    Raises:
        ValueError: a row has no real token, or its real tokens have a gap.

    >>> prompts = Prompts.from_ids([[5, 6, 7], [8]])
    >>> prompts.last.tolist()
    [2, 0]
    >>> prompts.ids(1).tolist()
    [8]
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    def __post_init__(self) -> None:
        lengths = self.mask.sum(1)
        if (lengths == 0).any():
            raise ValueError(
                f"prompt {int((lengths == 0).nonzero()[0])} is empty; give every prompt at least one token"
            )
        if (self.last - self.first + 1 != lengths).any():
            raise ValueError("the real tokens of a prompt must be contiguous; pad on one side only")

    @classmethod
    def from_ids(cls, rows: Sequence[Sequence[int] | Int[Tensor, " _"]], *, pad_id: int = 0) -> "Prompts":
        """Prompts of the given rows of ids, padded on the right with `pad_id`, whose value never matters."""
        if not rows:
            raise ValueError("no prompts were given")
        ids = [torch.as_tensor(row, dtype=torch.long) for row in rows]
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(row) for row in ids])
        return cls(tokens, torch.arange(tokens.shape[1])[None] < lengths[:, None])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many real tokens each prompt has."""
        return self.mask.sum(1)

    @property
    def first(self) -> Int[Tensor, " batch"]:
        """Index of each row's first real token."""
        return self.mask.int().argmax(1)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Index of each row's last real token."""
        width = self.mask.shape[1]
        return width - 1 - self.mask.flip(1).int().argmax(1)

    def ids(self, row: int) -> Int[Tensor, " pos"]:
        """The real tokens of one prompt."""
        return self.tokens[row, self.mask[row]]

    def select(self, rows: Sequence[int]) -> "Prompts":
        """The given prompts, in the given order, with no more padding than they need."""
        return Prompts.from_ids([self.ids(row) for row in rows])

    def right_padded(self) -> "Prompts":
        """The same prompts with every row's first real token at index 0."""
        return self.select(range(len(self)))

    def groups_of_equal_length(self) -> list[list[int]]:
        """Row numbers grouped by length, so that each group runs as one batch without any padding."""
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(self.lengths.tolist()):
            groups.setdefault(length, []).append(row)
        return list(groups.values())
