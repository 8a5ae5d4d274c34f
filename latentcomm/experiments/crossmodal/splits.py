"""Pictures of one kind with their questions, split for fitting and testing: the parts of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from latentcomm._core.progress import say
from latentcomm.experiments.crossmodal.digits import FOUR_CELLS, ONE_DIGIT, digit_halves, four_cells, one_digit
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import Question
from latentcomm.models.vision import VisionSender

OTHER_VIEWS = "other views"
"""Ending of the name of a part whose test pictures are other views of the fitting pictures."""


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of one kind, with the questions about them.

    Attributes:
        name: in tables.
        fitting, testing: pictures that maps are fitted on, and those that the questions are about.
        questions: of both.
        pooling, grid: what of the encoder's states is read; see `VisionSite`.
        captions: possible captions besides those of the fitting pictures: names that no map is fitted to.

    Raises:
        ValueError: a picture, an equal one, a group of pictures, or a source of composed pictures, on both sides.
    """

    name: str
    fitting: PictureSet
    testing: PictureSet
    questions: tuple[Question, ...]
    pooling: Literal["class", "patches"] = "class"
    grid: int = 1
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        made_of = [
            {name for each in side for name in (each.group, *each.sources)} for side in (self.fitting, self.testing)
        ]
        shared = made_of[0] & made_of[1]
        if shared:
            raise ValueError(
                f"the pictures of {min(shared)!r} are in the fitting and in the testing set; split by group"
            )
        fitted = {each.pixels: each.id for each in self.fitting}
        if same := [(fitted[each.pixels], each.id) for each in self.testing if each.pixels in fitted]:
            raise ValueError(
                f"the pictures {same[0][0]!r} for fitting and {same[0][1]!r} for testing of {self.name!r} are equal in "
                "every pixel; drop one of them, as PictureSet.distinct does"
            )


def held_out(parts: Iterable[str]) -> str:
    """A sentence on what is held out from the maps of these parts, by name: the pictures, or only other views.

    >>> held_out(["digits"])
    'Nothing was fitted or chosen on the test pictures.'
    """
    start = "Nothing was fitted or chosen on the test pictures"
    ends = [part.endswith(OTHER_VIEWS) for part in parts]
    if not any(ends):
        return f"{start}."
    views = "those of other views are the drawings of the fitting pictures, rotated, cropped and lit otherwise"
    return f"{start}; {views}." if not all(ends) else f"{start}, but {views}."


def pooled_for(
    vision: VisionSender, parts: Sequence[Part], pooling: Literal["class", "patches"] | None = None
) -> tuple[Part, ...]:
    """The parts, read from this encoder by the class token or the patches; without `pooling` as each part specifies.

    A part that specifies the class token is read by the mean of the patches where the encoder has none, as SigLIP's.

    Raises:
        ValueError: the class token is requested and there is none, or another pooling.
    """
    if pooling not in (None, "class", "patches"):
        raise ValueError(f"the pooling is {pooling!r}; give class or patches")
    has_class = "class" in vision.states([parts[0].fitting.pictures[0].image], blocks=[0]).tokens
    if pooling == "class" and not has_class:
        raise ValueError(f"{vision.name} has no class token; pool its patches")
    pooled = []
    for part in parts:
        chosen = pooling or part.pooling
        if chosen == "class" and not has_class:
            chosen = "patches"
            say(f"{part.name}: {vision.name} has no class token; the mean of the patches is read")
        pooled.append(replace(part, pooling=chosen, grid=1 if chosen == "class" else part.grid))
    return tuple(pooled)


def digit_parts(*, n_fitting: int = 400, n_composed: int = 240, n_testing: int = 60, seed: int = 0) -> tuple[Part, ...]:
    """Pictures of one scanned digit and of up to four; no scan is on both sides, nor seen by `small_vit(seed=seed)`."""
    halves = digit_halves(seed=seed)
    one, four = "digits", "composed digits"
    return (
        Part(
            one,
            _named(one_digit(halves.fitting, n=n_fitting, seed=seed), one, "fit"),
            _named(one_digit(halves.testing, n=n_testing, seed=seed + 1), one, "test"),
            ONE_DIGIT,
        ),
        Part(
            four,
            _named(four_cells(halves.fitting, n=n_composed, seed=seed), four, "fit"),
            _named(four_cells(halves.testing, n=n_testing, seed=seed + 1), four, "test"),
            FOUR_CELLS,
            "patches",
            2,
        ),
    )


def _named(pictures: PictureSet, name: str, side: str) -> PictureSet:
    """The set with ids and groups that name their side: composed pictures are numbered from 0 on each."""
    return PictureSet(name, tuple(replace(each, id=f"{side}-{each.id}", group=_group(each, side)) for each in pictures))


def _group(picture: Picture, side: str) -> str:
    return f"{side}-{picture.id}" if picture.group == picture.id else picture.group
