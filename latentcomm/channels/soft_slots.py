"""Prompts with a gap at the end of the user's turn, into which latents are put between a begin and an end."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.hooks.receiver_input import SoftTokens
from latentcomm.models import Halves, Model, around_gap, encode
from latentcomm.models.chat import AnyTemplate
from latentcomm.models.prompts import Prompts

PLACEHOLDER = 0
"""The id at the positions of soft tokens; its value is ignored."""


def with_gap(model: Model, texts: Sequence[str], *, template: AnyTemplate) -> list[Halves]:
    """The two halves of each prompt: raw text up to its end and nothing; a chat up to the end of the user's text, and
    what closes the turn and opens the assistant's.

    Raises:
        ValueError: what `encode` refuses, or a chat template that changes the user's text.
    """
    encode(model, texts, template=template)  # refuses what cannot be a prompt
    return [around_gap(model, text, "", template=template) for text in texts]


def filled(halves: Sequence[Halves], vectors: Sequence[Float[Tensor, "_ d_receiver"]]) -> tuple[Prompts, SoftTokens]:
    """The prompts with a position for each vector in their gaps, and the vectors at these positions."""
    rows = [
        [*before, *[PLACEHOLDER] * len(latents), *after]
        for (before, after), latents in zip(halves, vectors, strict=True)
    ]
    positions = tuple(
        torch.arange(len(before), len(before) + len(latents))
        for (before, _), latents in zip(halves, vectors, strict=True)
    )
    return Prompts.from_ids(rows), SoftTokens(positions, tuple(vectors))
