"""An opening in another model's tokens, and the positions where tokens of both end at the same character."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from latentcomm.experiments.cascade.openings import Openings, pieces_of
from latentcomm.models import Model


def opening_tokens(small: Model, openings: Openings, rows: Sequence[int], ns: Sequence[int]) -> list[tuple[int, ...]]:
    """The first n tokens of openings as input of the small model: the ids, or its own tokens of the text.

    Raises:
        ValueError: its tokenizer does not reproduce the text from its tokens.
    """
    if openings.vocabulary == small.vocabulary:
        return [openings.rows[row].ids[:n] for row, n in zip(rows, ns, strict=True)]
    tokenizer = small.require_tokenizer()
    opening = []
    for row, n in zip(rows, ns, strict=True):
        text = openings.text(row, n)
        ids = tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()
        if tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) != text:
            raise ValueError(
                f"the tokenizer of {small.name} does not give the first {n} tokens of the opening of item "
                f"{openings.items[row]!r} back ({text[-40:]!r}); choose a small model whose tokenizer covers this text"
            )
        opening.append(ids)
    return opening


def shared_places(
    small: Model,
    openings: Openings,
    rows: Sequence[int],
    ns: Sequence[int],
    tokens: Sequence[tuple[int, ...]],
) -> list[tuple[Int[Tensor, " pos"], Int[Tensor, " pos"]]]:
    """For each row the tokens of the large and of the small model that end at the same character of the opening."""
    positions, one_vocabulary = [], openings.vocabulary == small.vocabulary
    for row, n, ids in zip(rows, ns, tokens, strict=True):
        if one_vocabulary:
            both = [(position, position) for position in range(len(ids))]
        else:
            opening = openings.rows[row]
            mine, theirs = _ends(opening.pieces[:n], opening.whole[:n]), _ends(*pieces_of(small, ids))
            both = [(mine[end], theirs[end]) for end in sorted(mine.keys() & theirs.keys())]
        pairs = torch.tensor(both, dtype=torch.long).reshape(-1, 2)
        positions.append((pairs[:, 0], pairs[:, 1]))
    return positions


def _ends(pieces: Sequence[str], whole: Sequence[bool]) -> dict[int, int]:
    """The token that ends at each character: `{characters: token}`; one that ends inside a character is left out."""
    ends, length = {}, 0
    for token, (piece, is_whole) in enumerate(zip(pieces, whole, strict=True)):
        length += len(piece)
        if piece and is_whole:
            ends[length] = token
    return ends
