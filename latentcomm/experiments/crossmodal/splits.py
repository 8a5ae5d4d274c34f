"""Pictures of one kind with their questions, divided for fitting and testing: what a run is made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from latentcomm._core.progress import say
from latentcomm.experiments.crossmodal.digits import FOUR_CELLS, ONE_DIGIT, digit_halves, four_cells, one_digit
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import Question
from latentcomm.models.vision import VisionSender

OTHER_VIEWS = "other views"
"""How the name of a part ends whose pictures are views of drawings that maps were fitted on views of."""


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of one kind, with the questions asked about them.

    Attributes:
        name: in tables.
        fitting, testing: pictures that maps are fitted on, and those that questions are asked about.
        questions: what is asked.
        pooling, grid: what of the encoder's states is read; see `VisionSite`.
        captions: what may be said of a picture beside the captions of the fitting ones: names never seen.

    Raises:
        ValueError: a picture, one that looks the same, a group of pictures, or what pictures are composed of, on both
            sides.
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
        both = made_of[0] & made_of[1]
        if both:
            raise ValueError(f"the pictures of {min(both)!r} are in the fitting and in the testing set; split by group")
        seen = {each.pixels: each.id for each in self.fitting}
        if same := [(seen[each.pixels], each.id) for each in self.testing if each.pixels in seen]:
            raise ValueError(
                f"the pictures {same[0][0]!r} for fitting and {same[0][1]!r} for testing of {self.name!r} are equal in "
                "every pixel; keep one of them, as PictureSet.distinct does"
            )


def held_out(parts: Iterable[str]) -> str:
    """A sentence on what was kept from the maps of these parts, by name: the pictures, or their views alone.

    >>> held_out(["digits"])
    'Nothing was fitted or chosen on the pictures asked about.'
    """
    kept = "Nothing was fitted or chosen on the pictures asked about"
    ends = [part.endswith(OTHER_VIEWS) for part in parts]
    if not any(ends):
        return f"{kept}."
    views = "those of other views are the drawings of the fitting pictures, turned, cut and lit otherwise"
    return f"{kept}; {views}." if not all(ends) else f"{kept}, but {views}."


def pooled_for(
    vision: VisionSender, parts: Sequence[Part], pooling: Literal["class", "patches"] | None = None
) -> tuple[Part, ...]:
    """The parts, read from this encoder by the class token or the patches; without `pooling` as each part says.

    A part that says the class token is read by the mean of the patches where the encoder has none, as SigLIP's.

    Raises:
        ValueError: the class token is asked for and there is none, or another pooling.
    """
    if pooling not in (None, "class", "patches"):
        raise ValueError(f"the pooling is {pooling!r}; give class or patches")
    has_class = "class" in vision.states([parts[0].fitting.pictures[0].image], blocks=[0]).tokens
    if pooling == "class" and not has_class:
        raise ValueError(f"{vision.name} has no class token; pool its patches")
    found = []
    for part in parts:
        chosen = pooling or part.pooling
        if chosen == "class" and not has_class:
            chosen = "patches"
            say(f"{part.name}: {vision.name} has no class token; the mean of the patches is read")
        found.append(replace(part, pooling=chosen, grid=1 if chosen == "class" else part.grid))
    return tuple(found)


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
    """The set with ids and groups that say which side they are on: composed pictures are numbered anew on each."""
    return PictureSet(name, tuple(replace(each, id=f"{side}-{each.id}", group=_group(each, side)) for each in pictures))


def _group(picture: Picture, side: str) -> str:
    return f"{side}-{picture.id}" if picture.group == picture.id else picture.group
