"""Maps from an encoder's states to a frozen receiver: fitted in closed form, or trained through the receiver."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap, choose_penalty, fit_ridge
from latentcomm.channels.soft_slots import filled
from latentcomm.channels.training.answers import answer_ids, answer_logits, cross_entropy
from latentcomm.experiments.crossmodal.channels import STOP, around
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.hooks.capture import capture_positions
from latentcomm.hooks.graft import LAST
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode
from latentcomm.models.chat import AnyTemplate
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Item, Task

FOLDS = 4
"""For the penalty of every ridge and classifier: whole groups of pictures are held out."""


def caption_length(receiver: Model, captions: Sequence[str]) -> int:
    """Tokens of the longest caption within a prompt."""
    return max(len(ids) for ids in answer_ids(receiver, [f" {caption}" for caption in captions]))


def caption_embeddings(
    receiver: Model, captions: Sequence[str], *, n_tokens: int | None = None
) -> Float[Tensor, "caption d_out"]:
    """The embeddings of each caption's tokens, concatenated; without `n_tokens`, their mean.

    A shorter caption is padded with the token that follows captions, a full stop.

    Raises:
        ValueError: a caption of more tokens.
    """
    table = receiver.embedding_table.detach()
    if n_tokens is None:
        rows = answer_ids(receiver, [f" {caption}" for caption in captions])
        return torch.stack([table[torch.tensor(ids, device=table.device)].mean(0) for ids in rows]).float().cpu()
    full = torch.tensor(caption_tokens(receiver, captions, n_tokens=n_tokens), device=table.device)
    return rearrange(table[full], "caption token d_receiver -> caption (token d_receiver)").float().cpu()


def caption_tokens(receiver: Model, captions: Sequence[str], *, n_tokens: int) -> list[list[int]]:
    """The ids of each caption within a prompt, shorter ones padded with full stops.

    Raises:
        ValueError: a caption of more tokens.
    """
    rows = answer_ids(receiver, [f" {caption}" for caption in captions])
    stop = answer_ids(receiver, [STOP])[0][0]
    if longer := [index for index, ids in enumerate(rows) if len(ids) > n_tokens]:
        raise ValueError(
            f"the caption {captions[longer[0]]!r} has {len(rows[longer[0]])} tokens, more than n_tokens "
            f"{n_tokens}; give at least as many"
        )
    return [[*ids, *[stop] * (n_tokens - len(ids))] for ids in rows]


def fit_soft_prompt(
    vectors: Float[Tensor, "item d_read"],
    pictures: PictureSet,
    receiver: Model,
    *,
    n_tokens: int | None,
    penalty: float | int | None = None,
    shuffled: int | None = None,
    seed: int = 0,
) -> AffineMap:
    """The ridge map from pictures' vectors to the embeddings of captions: one per token, or their mean.

    With Y the embeddings `[item n_tokens * d_receiver]`, what `alignment.fit_ridge` gives, its penalty chosen on whole
    groups of pictures. `shuffled` seeds a permutation of names (`renamed`): the map is fitted to these, with the
    penalty that the true names get; it is as strong as the true map, and wrong.

    Raises:
        ValueError: not one vector a picture, names that cannot be permuted, or what the ridge refuses, such as
            penalty 0 with more features than pairs.
    """
    require_one_each(vectors, pictures)

    def target(named: PictureSet) -> Float[Tensor, "item d_out"]:
        return caption_embeddings(receiver, [picture.caption for picture in named], n_tokens=n_tokens)

    if shuffled is not None and penalty is None:
        penalty = _penalty(vectors, target(pictures), pictures, seed=seed)
    named = pictures if shuffled is None else renamed(pictures, seed=shuffled)
    return _ridge(vectors, target(named), pictures, penalty=penalty, seed=seed)


def renamed(pictures: PictureSet, *, seed: int) -> PictureSet:
    """The pictures with permuted captions: all pictures of one caption get the same other one, and none its own.

    Raises:
        ValueError: all pictures have one caption.

    >>> from PIL import Image
    >>> from latentcomm.experiments.crossmodal.pictures import Picture
    >>> toy = tuple(Picture(str(index), Image.new("RGB", (1, 1)), "aab"[index]) for index in range(3))
    >>> [each.caption for each in renamed(PictureSet("toy", toy), seed=0)]
    ['b', 'b', 'a']
    """
    names = list(dict.fromkeys(picture.caption for picture in pictures))
    if len(names) < 2:
        raise ValueError(
            f"all {len(pictures)} pictures of {pictures.name!r} are called {names[0]!r} and no name can be permuted; "
            "bring pictures of another name, or leave the channels of shuffled names out"
        )
    random.Random(f"renamed:{seed}").shuffle(names)
    other = dict(zip(names, [*names[1:], names[0]], strict=True))
    return PictureSet(pictures.name, tuple(replace(each, caption=other[each.caption]) for each in pictures))


def fit_vision_graft(
    vectors: Float[Tensor, "item d_read"],
    pictures: PictureSet,
    questions: Sequence[Question],
    receiver: Model,
    writes: Sequence[Site],
    *,
    template: AnyTemplate = "raw",
    penalty: float | int | None = None,
    shuffled: int | None = None,
    seed: int = 0,
) -> dict[Site, dict[str, AffineMap]]:
    """For every site and question the ridge map from pictures' vectors to the receiver's own state.

    The target is the state at the site, at the last token, after the receiver has read the true caption and the
    question: the state that a graft replaces, with the caption known. `shuffled` as for the soft prompt: the caption is
    another picture's, the question the picture's own.

    A ridge a question into a late layer's answer state is close to a supervised probe of the vectors, read out by the
    receiver's last layers; `shuffled` is its control.

    Raises:
        ValueError: not one vector a picture, a question that no picture answers, or what the ridge refuses.
    """
    require_one_each(vectors, pictures)
    named = pictures if shuffled is None else renamed(pictures, seed=shuffled)
    found: dict[Site, dict[str, AffineMap]] = {site: {} for site in writes}
    for question in questions:
        task = picture_task(pictures, question, template=template)
        rows = pictures.indices(item.sender for item in task.items)
        part = PictureSet(pictures.name, tuple(pictures.pictures[row] for row in rows))
        wrong = None if shuffled is None else picture_task(named, question, template=template)
        states = informed_states(receiver, task, writes)
        targets = states if wrong is None else informed_states(receiver, wrong, writes)
        for site in writes:
            weight = penalty
            if wrong is not None and penalty is None:
                weight = _penalty(vectors[rows], states[site], part, seed=seed)
            found[site][question.name] = _ridge(vectors[rows], targets[site], part, penalty=weight, seed=seed)
    return found


def informed_states(receiver: Model, task: Task, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "item d_receiver"]]:
    """The receiver's states at the last token after the true caption and the question; equal texts run once."""
    texts = [item.skyline for item in task.items]
    different = list(dict.fromkeys(texts))
    indices = torch.tensor([different.index(text) for text in texts])
    states = capture_positions(receiver, encode(receiver, different, template=task.template), sites, LAST)
    return {site: each[indices].float() for site, each in states.items()}


def require_one_each(vectors: Float[Tensor, "item d_read"], pictures: PictureSet) -> None:
    """Check that there is one vector per picture.

    Raises:
        ValueError: there are more or fewer.
    """
    if len(vectors) != len(pictures):
        raise ValueError(f"{len(vectors)} vectors for {len(pictures)} pictures; give one a picture")


def _ridge(
    vectors: Float[Tensor, "item d_read"],
    target: Float[Tensor, "item d_out"],
    pictures: PictureSet,
    *,
    penalty: float | int | None,
    seed: int,
) -> AffineMap:
    penalty = _penalty(vectors, target, pictures, seed=seed) if penalty is None else penalty
    return fit_ridge(vectors.float(), target, penalty=penalty)


def _penalty(
    vectors: Float[Tensor, "item d_read"], target: Float[Tensor, "item d_out"], pictures: PictureSet, *, seed: int
) -> float:
    groups = [picture.group for picture in pictures]
    return choose_penalty(vectors.float(), target, folds=min(FOLDS, len(set(groups))), groups=groups, seed=seed)


@dataclass(frozen=True, eq=False)
class SoftPromptLearner:
    """The training of a soft prompt's map through the frozen receiver, on the cross-entropy of the answers.

    Make one with `SoftPromptLearner.of`; `mapping` is the current map.

    Attributes:
        receiver: which stays frozen.
        weight, bias: of the map, trained in place.
        n_tokens: soft tokens it makes.
        vectors: of each item's picture.
        halves: the ids of each question before and after the soft tokens.
        answers: the target tokens after each prompt.
    """

    receiver: Model
    weight: Float[Tensor, "d_out d_read"]
    bias: Float[Tensor, " d_out"]
    n_tokens: int
    vectors: Float[Tensor, "item d_read"]
    halves: tuple[tuple[list[int], list[int]], ...]
    answers: tuple[list[int], ...]

    @classmethod
    def of(
        cls, receiver: Model, tasks: Sequence[Task], vectors: Mapping[str, Float[Tensor, " d_read"]], start: AffineMap
    ) -> "SoftPromptLearner":
        """The learner of all questions together, from the vectors of the pictures by id, initialised with a map.

        Raises:
            ValueError: no task, a picture without a vector, or a map that gives no whole number of tokens.
        """
        items: list[tuple[Item, AnyTemplate]] = [(item, task.template) for task in tasks for item in task.items]
        if not items:
            raise ValueError("there is no question to learn from; give at least one task")
        if start.d_out % receiver.d_model:
            raise ValueError(f"{start} gives no whole number of tokens of {receiver.name}, {receiver.d_model} wide")
        if missing := [item.sender for item, _ in items if item.sender not in vectors]:
            raise ValueError(f"the picture {missing[0]!r} has no vector; give one for every picture of the tasks")
        halves = [around(receiver, [item.receiver], template=template)[0] for item, template in items]
        return cls(
            receiver,
            start.weight.detach().clone().to(receiver.device),
            start.bias.detach().clone().to(receiver.device),
            start.d_out // receiver.d_model,
            torch.stack([vectors[item.sender] for item, _ in items]).to(receiver.device, start.weight.dtype),
            tuple(halves),
            tuple(answer_ids(receiver, [item.choice for item, _ in items])),
        )

    @property
    def mapping(self) -> AffineMap:
        """A copy of the map as it is now."""
        return AffineMap(self.weight.detach().clone().cpu(), self.bias.detach().clone().cpu())

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The map's weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The receiver, and a digest of the examples."""
        examples = digest(self.vectors, list(self.halves), list(self.answers))
        return {"what": "soft prompt", "receiver": self.receiver.name, "tokens": self.n_tokens, "examples": examples}

    def __len__(self) -> int:
        return len(self.vectors)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: ARG002
        """The mean cross-entropy of the answers."""
        rows = list(batch)
        mapped = self.vectors[rows] @ self.weight.T + self.bias
        tokens = rearrange(mapped, "item (token d_receiver) -> item token d_receiver", token=self.n_tokens)
        prompts, soft = filled([self.halves[row] for row in rows], list(tokens.to(self.receiver.dtype)))
        answers = [self.answers[row] for row in rows]
        return cross_entropy(answer_logits(self.receiver, ReceiverInput(prompts, soft=soft), answers), answers)
