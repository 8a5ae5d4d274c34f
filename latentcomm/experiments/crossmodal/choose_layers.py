"""The block that is read and the layer that is written, chosen on pictures that are not tested."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.alignment import fit_ridge
from latentcomm.channels import Channel
from latentcomm.experiments.crossmodal.channels import Eye, VisionGraft
from latentcomm.experiments.crossmodal.fitting import FOLDS, caption_embeddings, fit_vision_graft
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.questions import distinct_choices, picture_task
from latentcomm.experiments.crossmodal.splits import Part
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model
from latentcomm.models.chat import AnyTemplate
from latentcomm.models.sites import Site
from latentcomm.models.vision import VisionSender, VisionSite
from latentcomm.tasks.base import Task, draw_choices

LATE = (0.6, 0.7, 0.8, 0.87, 0.94)
"""Relative depths of the candidate layers of a graft."""
CHOSEN_ON = 0.75
"""Share of the fitting pictures that maps are fitted on while block and layer are chosen on the rest of them."""
FEWEST_GROUPS = 3
"""Fewest groups of fitting pictures: two for the folds of a ridge, and one to choose on."""
MOST_CHOSEN_ON = 24
"""Most pictures that a write layer is chosen on: the receiver runs for each of them, layer and question."""


def choose_block(
    seen: Float[Tensor, "layer item d_read"], receiver: Model, part: Part, *, n_tokens: int, seed: int = 0
) -> int:
    """The block whose vectors best predict the embeddings of captions of held-out fitting pictures, by R squared.

    `seen` holds the vectors of all fitting pictures after every block.

    Raises:
        ValueError: too few groups of fitting pictures.
    """
    inner, held = _inner(part, seed)
    sides = []
    for pictures in (inner, held):
        target = caption_embeddings(receiver, [each.caption for each in pictures], n_tokens=n_tokens)
        sides.append((seen[:, part.fitting.indices(each.id for each in pictures)].float(), target))
    (rows, target), (held_rows, held_target) = sides
    groups = [picture.group for picture in inner]
    folds = min(FOLDS, len(set(groups)))
    scores = [
        fit_ridge(each, target, groups=groups, folds=folds, seed=seed).r_squared(other, held_target)
        for each, other in zip(rows, held_rows, strict=True)
    ]
    return max(range(len(scores)), key=scores.__getitem__)


def choose_write_layer(
    vision: VisionSender,
    vectors: Float[Tensor, "item d_read"],
    receiver: Model,
    part: Part,
    block: int,
    *,
    template: AnyTemplate = "raw",
    seed: int = 0,
) -> int:
    """The layer at which a graft answers most questions about held-out fitting pictures right, by choices.

    Of layers at the relative depths `LATE`, never the last; of equal ones, the latest. `vectors` are those of
    all fitting pictures after the block. Choices are drawn as `evaluation.evaluate` draws them.

    Raises:
        ValueError: too few groups of fitting pictures, or answers of which no two differ in their first tokens.
    """
    inner, held = _inner(part, seed)
    held = PictureSet(held.name, held.pictures[:MOST_CHOSEN_ON])
    eye = Eye(vision, held, VisionSite(block, part.pooling, part.grid))
    last = max(0, receiver.n_layers - 2)  # after the last block only the unembedding reads a state
    writes = [Site(layer) for layer in sorted({min(int(depth * receiver.n_layers), last) for depth in LATE})]
    rows = vectors[part.fitting.indices(each.id for each in inner)]
    maps = fit_vision_graft(rows, inner, part.questions, receiver, writes, template=template, seed=seed)
    right = dict.fromkeys(writes, 0.0)
    for question in part.questions:
        if not any(question.fact in picture.facts for picture in held):
            continue
        task = picture_task(held, question, template=template, answers_from=part.fitting)
        task = distinct_choices(task, receiver.first_token, seed=seed)
        for write in writes:
            right[write] += _accuracy(VisionGraft("graft", eye, write, maps[write]), receiver, task, seed=seed)
    return max(writes, key=lambda write: (right[write], write.layer)).layer


def _accuracy(channel: Channel, receiver: Model, task: Task, *, seed: int) -> float:
    """The share of items whose right choice has the largest logit among the choices that `evaluate` would draw."""
    message = channel.send(receiver, task, receiver=receiver)
    logits = next_token_logits(receiver, channel.receive(receiver, task, message))
    drawn = draw_choices(task, receiver.first_token, seed=seed)
    right = 0
    for item, row, options in zip(task.items, logits, drawn, strict=True):
        tokens = torch.tensor([receiver.first_token(option) for option in options])
        right += options[int(row.cpu()[tokens].argmax())] == item.choice
    return right / len(task.items)


def _inner(part: Part, seed: int) -> tuple[PictureSet, PictureSet]:
    """The fitting pictures that maps are fitted on for the choice, and those that the choice is made on.

    Raises:
        ValueError: too few groups of fitting pictures.
    """
    groups = len({picture.group for picture in part.fitting})
    if groups < FEWEST_GROUPS:
        raise ValueError(
            f"{part.name!r} has {groups} groups of fitting pictures, and a choice of block and write layer needs "
            f"{FEWEST_GROUPS}; give more fitting pictures, or both block and write_layer"
        )
    return part.fitting.split(seed=seed, fraction=CHOSEN_ON)
