"""An opening in another model's tokens, and the positions where tokens of both end at the same character."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentcomm.channels.message import Message
from latentcomm.experiments.cascade.openings import VOCABULARY, characters_of, opened, text_at
from latentcomm.models import Model
from latentcomm.tasks.base import Task


def opening_tokens(small: Model, task: Task, message: Message, ns: Sequence[int]) -> list[tuple[int, ...]]:
    """The first n tokens of each item's opening as input of the small model: the ids, or its own tokens of the text.

    Raises:
        ValueError: its tokenizer does not reproduce the text from its tokens.
    """
    texts, parts = opened(message)
    if message.made_by[VOCABULARY] == small.vocabulary:
        return [tuple(part["ids"][:n].tolist()) for part, n in zip(parts, ns, strict=True)]
    tokenizer = small.require_tokenizer()
    opening = []
    for item, whole, part, n in zip(task.items, texts, parts, ns, strict=True):
        text = text_at(whole, part["ends"], n)
        ids = tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()
        if tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) != text:
            raise ValueError(
                f"the tokenizer of {small.name} does not give the first {n} tokens of the opening of item "
                f"{item.id!r} back ({text[-40:]!r}); choose a small model whose tokenizer covers this text"
            )
        opening.append(ids)
    return opening


def shared_positions(
    small: Model, message: Message, ns: Sequence[int], tokens: Sequence[tuple[int, ...]]
) -> list[tuple[Int[Tensor, " pos"], Int[Tensor, " pos"]]]:
    """For each row the tokens of the large and of the small model that end at the same character of the opening."""
    _, parts = opened(message)
    one_vocabulary = message.made_by[VOCABULARY] == small.vocabulary
    positions = []
    for part, n, ids in zip(parts, ns, tokens, strict=True):
        if one_vocabulary:
            both = [(position, position) for position in range(len(ids))]
        else:
            _, ends, whole = characters_of(small, ids)
            mine, theirs = _token_at(part["ends"][:n], part["whole"][:n]), _token_at(ends, whole)
            both = [(mine[end], theirs[end]) for end in sorted(mine.keys() & theirs.keys())]
        pairs = torch.tensor(both, dtype=torch.long).reshape(-1, 2)
        positions.append((pairs[:, 0], pairs[:, 1]))
    return positions


def _token_at(ends: Int[Tensor, " n"], whole: Bool[Tensor, " n"]) -> dict[int, int]:
    """The token that ends at each character: `{characters: token}`; one that ends inside a character is left out."""
    found, before = {}, 0
    for token, (end, is_whole) in enumerate(zip(ends.tolist(), whole.tolist(), strict=True)):
        if end > before and is_whole:
            found[end] = token
        before = end
    return found
