"""The logit lens of a message: the sender's state, unembedded at the layer where it is read."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from latentcomm.hooks.capture import capture_positions
from latentcomm.hooks.graft import LAST
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site


def lens_top_token(
    model: Model, prompts: Prompts, layers: Sequence[int], answers: Sequence[Sequence[str]]
) -> Bool[Tensor, "item layer"]:
    """Whether the last token's state after each layer, unembedded, has the first token of an accepted answer on top.

    Answers are taken literally, as they would continue the prompt: " Greece" has its space.
    The state passes the model's final norm and its unembedding, as the last layer's does. Where this is often true, a
    graft of that state sends the answer itself.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Raises:
        ValueError: another number of answers than prompts, or an answer without a first token of its own.
    """
    _check_one_each(prompts, answers)
    accepted = [torch.tensor(sorted({model.first_token(name) for name in names})) for names in answers]
    columns = []
    for states in _last_states(model, prompts, layers):
        top = model.unembed(model.final_norm(states)).argmax(-1).cpu()
        columns.append(torch.tensor([bool(torch.isin(token, ids)) for token, ids in zip(top, accepted, strict=True)]))
    return torch.stack(columns, 1)


def lens_choice(
    model: Model, prompts: Prompts, layers: Sequence[int], right: Sequence[str], choices: Sequence[Sequence[str]]
) -> Bool[Tensor, "item layer"]:
    """Whether the last token's state after each layer, unembedded, ranks the right choice above all other choices.

    A choice that shares its first token with another one (choices are drawn for the receiver's tokenizer) is not above
    it.

    Raises:
        ValueError: another number of right or other choices than prompts, or a choice without a first token of its own.
    """
    _check_one_each(prompts, right)
    _check_one_each(prompts, choices)
    columns = []
    tokens = [torch.tensor([model.first_token(choice) for choice in row]) for row in choices]
    for states in _last_states(model, prompts, layers):
        logits = model.unembed(model.final_norm(states)).cpu()
        above = []
        for row, ids, names, name in zip(logits, tokens, choices, right, strict=True):
            best = (row[ids] == row[ids].max()).nonzero()[:, 0].tolist()
            above.append([names[index] for index in best] == [name])
        columns.append(torch.tensor(above))
    return torch.stack(columns, 1)


def _check_one_each(prompts: Prompts, given: Sequence[object]) -> None:
    if len(given) != len(prompts):
        raise ValueError(f"{len(given)} answers or lists of choices for {len(prompts)} prompts; give one a prompt")


def _last_states(model: Model, prompts: Prompts, layers: Sequence[int]) -> list[Tensor]:
    states = capture_positions(model, prompts, [Site(layer) for layer in layers], LAST)
    return [states[Site(layer)].to(model.device) for layer in layers]
