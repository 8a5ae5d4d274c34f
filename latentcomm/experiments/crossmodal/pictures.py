"""Pictures with names and facts: read from files, compared by pixels, split so that no group is on both sides."""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from PIL import Image

from latentcomm._core.progress import say
from latentcomm.models.vision_preprocessing import read_picture

Thing = TypeVar("Thing")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what is true of it.

    Attributes:
        id: its name among the pictures; it is the sender's text of a task's items.
        image: in RGB.
        caption: what it shows, as text: "a red three".
        facts: by name, as text, such as {"colour": "red"}; several accepted answers are separated by "|".
        group: pictures of one group stay on one side of a split: views of one drawing, or pictures made from it.
        sources: the groups of what it is composed of, such as scans of digits, where that is more than one thing.

    Raises:
        ValueError: an empty id or caption.
    """

    id: str
    image: Image.Image
    caption: str
    facts: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    sources: tuple[str, ...] = ()

    @property
    def pixels(self) -> str:
        """SHA-256 of the size, the mode and the pixels: equal for equal pictures."""
        state = hashlib.sha256(repr((self.image.size, self.image.mode)).encode())
        state.update(self.image.tobytes())
        return state.hexdigest()

    def __post_init__(self) -> None:
        if not self.id.strip() or not self.caption.strip():
            raise ValueError(f"the picture {self.id!r} has the caption {self.caption!r}; give it an id and a caption")
        object.__setattr__(self, "facts", dict(self.facts))
        object.__setattr__(self, "group", self.group or self.id)


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Named pictures in order, found by id.

    Attributes:
        name: in tables.
        pictures: in order.
        left_out: the names of pictures that were left out: equal to another one, or unreadable.

    Raises:
        ValueError: no picture, or two of one id.

    >>> three = Picture("3", Image.new("RGB", (8, 8)), "a three", {"identity": "three"})
    >>> PictureSet("digits", (three,))["3"].caption
    'a three'
    """

    name: str
    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError(f"the set {self.name!r} has no pictures; give at least one")
        ids = [picture.id for picture in self.pictures]
        if len(set(ids)) < len(ids):
            repeated = next(each for each in ids if ids.count(each) > 1)
            raise ValueError(f"the set {self.name!r} has two pictures with the id {repeated!r}; make ids unique")

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def __getitem__(self, picture_id: str) -> Picture:
        """The picture of this id.

        Raises:
            ValueError: there is none.
        """
        if picture_id not in self._by_id:
            raise ValueError(
                f"there is no picture {picture_id!r} in the set {self.name!r}; use the id of a picture of this set"
            )
        return self._by_id[picture_id]

    @cached_property
    def _by_id(self) -> dict[str, Picture]:
        return {picture.id: picture for picture in self.pictures}

    def indices(self, ids: Iterable[str]) -> list[int]:
        """The positions of the pictures of these ids in the set."""
        order = {picture.id: index for index, picture in enumerate(self.pictures)}
        return [order[each] for each in ids]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all ids, pixels, captions and facts."""
        state = hashlib.sha256(self.name.encode())
        for each in self.pictures:
            content = (each.id, each.caption, sorted(each.facts.items()), each.group, each.image.size, each.image.mode)
            state.update(repr(content).encode())
            state.update(each.image.tobytes())
        return state.hexdigest()

    def split(self, *, seed: int, fraction: float = 0.5) -> tuple["PictureSet", "PictureSet"]:
        """Two sets (for fitting, for testing) that together hold every picture; whole groups, in seeded order.

        Raises:
            ValueError: a fraction outside (0, 1), or a side without pictures.

        >>> pictures = tuple(Picture(str(i), Image.new("RGB", (1, 1)), "x", group="ab"[i % 2]) for i in range(4))
        >>> [[each.group for each in side] for side in PictureSet("toy", pictures).split(seed=0)] in (
        ...     [["a", "a"], ["b", "b"]], [["b", "b"], ["a", "a"]])
        True
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}; give a number between 0 and 1, both excluded")
        groups = list(dict.fromkeys(picture.group for picture in self.pictures))
        random.Random(f"pictures:{seed}").shuffle(groups)
        chosen = set(groups[: int(len(groups) * fraction + 0.5)])
        sides = [
            tuple(each for each in self.pictures if (each.group in chosen) == is_first) for is_first in (True, False)
        ]
        if not all(sides):
            raise ValueError(
                f"the set {self.name!r} has {len(groups)} groups of pictures, and a share of {fraction} leaves no "
                "pictures on one side; give more pictures or change the share"
            )
        return PictureSet(f"{self.name} (fitting)", sides[0]), PictureSet(f"{self.name} (testing)", sides[1])

    def distinct(self) -> "PictureSet":
        """The set without equal pictures: of those, the one with the shortest name remains, the first of several.

        A picture's name is its fact "name", its caption where it has none. Of a country and of territories with its
        flag, the country therefore remains. The names of the others are added to `left_out`.

        >>> flags = [Picture(word, Image.new("RGB", (1, 1)), word) for word in ("Bouvet Island", "Norway")]
        >>> found = PictureSet("flags", tuple(flags)).distinct()
        >>> [each.id for each in found], found.left_out
        (['Norway'], ('Bouvet Island',))
        """
        alike: dict[str, list[Picture]] = {}
        for each in self.pictures:
            alike.setdefault(each.pixels, []).append(each)
        remaining = {min(same, key=lambda each: len(_name(each))).id for same in alike.values()}
        others = tuple(_name(each) for each in self.pictures if each.id not in remaining)
        pictures = tuple(each for each in self.pictures if each.id in remaining)
        return PictureSet(self.name, pictures, (*self.left_out, *others))


def _name(picture: Picture) -> str:
    return picture.facts.get("name", picture.caption)


def rotated(things: Sequence[Thing], n: int, rng: random.Random) -> list[Thing]:
    """`n` of the things in random order, each as often as the others to within one.

    >>> sorted(rotated("ab", 3, random.Random(0)))[::2]
    ['a', 'b']
    """
    order: list[Thing] = []
    while len(order) < n:
        order += rng.sample(things, len(things))
    return order[:n]


def read_pictures(paths: Sequence[str | os.PathLike[str]], *, skip_unreadable: bool = False) -> dict[Path, Image.Image]:
    """The pictures of files, by path; with `skip_unreadable`, those that cannot be read are left out and reported.

    Raises:
        ValueError: one cannot be read and `skip_unreadable` is False, or none can be read.
    """
    found: dict[Path, Image.Image] = {}
    for path in paths:
        try:
            found[Path(path)] = read_picture(path)
        except ValueError as error:
            if not skip_unreadable:
                raise
            say(f"skipped: {error}")
    if not found:
        raise ValueError(f"none of {len(paths)} pictures can be read; give pictures such as PNG files")
    return found
