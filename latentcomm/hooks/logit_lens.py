"""The logit lens of a message: the sender's state, unembedded at the layer where it is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentcomm.models import Model

__all__ = ["LensHits", "logit_lens"]


@dataclass(frozen=True, eq=False)
class LensHits:
    """Which states, unembedded, hold the answer already.

    Attributes:
        top_token: whether the first token of an accepted answer is on top. Answers are taken literally, as they would
            continue the prompt: " Greece" has its space.
        choice: whether the right choice ranks above all other choices. A choice that shares its first token with
            another one (choices are drawn for the receiver's tokenizer) is not above it.
    """

    top_token: Bool[Tensor, "item layer"]
    choice: Bool[Tensor, "item layer"]


def logit_lens(
    model: Model,
    states: Float[Tensor, "item layer d_model"],
    *,
    answers: Sequence[Sequence[str]],
    right: Sequence[str],
    choices: Sequence[Sequence[str]],
) -> LensHits:
    """Whether each item's state after each layer, unembedded, has an accepted answer on top, and the right choice.

    The states pass the model's final norm and its unembedding, as the last layer's do, one layer at a time. Where this
    is often true, a graft of that state sends the answer itself.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Raises:
        ValueError: another number of answers, right choices or lists of choices than items, or a string without a first
            token of its own.
    """
    for given in (answers, right, choices):
        if len(given) != len(states):
            raise ValueError(f"{len(given)} answers or lists of choices for {len(states)} items; give one an item")
    accepted = [torch.tensor(sorted({model.first_token(name) for name in names})) for names in answers]
    options = [torch.tensor([model.first_token(choice) for choice in row]) for row in choices]
    top_token, choice = [], []
    for layer in states.unbind(1):
        logits = model.unembed(model.final_norm(layer)).cpu()
        tops = zip(logits.argmax(-1), accepted, strict=True)
        top_token.append(torch.tensor([bool(torch.isin(token, ids)) for token, ids in tops]))
        above = []
        for row, ids, names, name in zip(logits, options, choices, right, strict=True):
            best = (row[ids] == row[ids].max()).nonzero()[:, 0].tolist()
            above.append([names[index] for index in best] == [name])
        choice.append(torch.tensor(above))
    return LensHits(torch.stack(top_token, 1), torch.stack(choice, 1))
