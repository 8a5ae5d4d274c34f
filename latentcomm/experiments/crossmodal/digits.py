"""The digits of scikit-learn as pictures in coloured ink, one alone or up to four in a square, with questions."""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet, rotated
from latentcomm.experiments.crossmodal.questions import NUMBERS, Question

EDGE = 16
"""Pixels along each side: one digit at twice its scanned size, or four at scanned size."""
WORDS = NUMBERS[:10]
INKS = {
    "red": (255, 40, 40), "green": (40, 220, 40), "blue": (60, 90, 255),
    "yellow": (255, 240, 40), "purple": (190, 50, 230), "orange": (255, 150, 30),
}  # fmt: skip
CELLS = ("top left", "top right", "bottom left", "bottom right")
FITTING_SHARE = 0.6
"""Of the scanned digits; the others are only for testing, of the encoder too."""

ONE_DIGIT = (
    Question("identity", "The digit in the picture is", "identity", WORDS),
    Question("category", "Is the digit in the picture even or odd? It is", "category", ("even", "odd")),
    Question("colour", "The colour of the digit in the picture is", "colour", tuple(INKS)),
)
"""The questions about a picture of one digit."""
FOUR_CELLS = (
    Question("count", "The picture shows", "count", WORDS[1:5]),
    Question("position", "Picture again: {cell}", "there", WORDS),
)
"""The questions about a picture of up to four digits."""


@dataclass(frozen=True)
class Halves:
    """Scanned digits for fitting and for testing, by their number among scikit-learn's 1,797."""

    fitting: tuple[int, ...]
    testing: tuple[int, ...]


def digit_halves(*, seed: int = 0) -> Halves:
    """A seeded division of all scanned digits, 60 % of every digit for fitting."""
    _, labels = _scans()
    rng = random.Random(f"digits:{seed}")
    sides: tuple[list[int], list[int]] = ([], [])
    for digit in range(10):
        own = [number for number, label in enumerate(labels) if label == digit]
        rng.shuffle(own)
        cut = int(len(own) * FITTING_SHARE + 0.5)
        sides[0].extend(own[:cut])
        sides[1].extend(own[cut:])
    return Halves(tuple(sorted(sides[0])), tuple(sorted(sides[1])))


def one_digit(numbers: tuple[int, ...], *, n: int, seed: int = 0, name: str = "digits") -> PictureSet:
    """Pictures of one scanned digit each, in ink of a random colour: identity, category (even or odd) and colour.

    Raises:
        ValueError: no digit to draw from, or no picture requested.
    """
    scans, labels = _scans_to_draw(numbers, n)
    rng = random.Random(f"one digit:{seed}")
    pictures = []
    for index, number in enumerate(rotated(numbers, n, rng)):
        ink, word = rng.choice(list(INKS)), WORDS[labels[number]]
        image = Image.fromarray(_inked(scans[number], ink)).resize((EDGE, EDGE), Image.Resampling.NEAREST)
        facts = {"identity": word, "category": ("even", "odd")[labels[number] % 2], "colour": ink}
        pictures.append(Picture(f"{index}-{number}-{ink}", image, f"a {ink} {word}", facts, f"scan {number}"))
    return PictureSet(name, tuple(pictures))


def four_cells(numbers: tuple[int, ...], *, n: int, seed: int = 0, name: str = "composed digits") -> PictureSet:
    """Pictures of one to four scanned digits in a square of cells: how many, and which is in one filled cell.

    Every scan is drawn once before one is drawn again, so up to about 430 pictures of the fitting half share none.

    Raises:
        ValueError: no digit to draw from, or no picture requested.
    """
    scans, labels = _scans_to_draw(numbers, n)
    rng = random.Random(f"four cells:{seed}")
    pictures = []
    drawn = iter(rotated(numbers, sum(index % 4 + 1 for index in range(n)), rng))
    for index in range(n):
        filled = sorted(rng.sample(range(4), index % 4 + 1))
        canvas = np.zeros((EDGE, EDGE, 3), dtype=np.uint8)
        words, scanned = ["nothing"] * 4, []
        for cell in filled:
            number = next(drawn)
            scanned.append(f"scan {number}")
            top, left = 8 * (cell // 2), 8 * (cell % 2)
            canvas[top : top + 8, left : left + 8] = _inked(scans[number], rng.choice(list(INKS)))
            words[cell] = WORDS[labels[number]]
        queried = rng.choice(filled)
        facts = {"count": WORDS[len(filled)], "cell": CELLS[queried], "there": words[queried]}
        cells = ", ".join(f"{cell} {word}" for cell, word in zip(CELLS, words, strict=True))
        caption = f"{facts['count']} digits, {cells}"  # always as many tokens, so that positions align
        image, sources = Image.fromarray(canvas), tuple(dict.fromkeys(scanned))
        pictures.append(Picture(f"{index}-composed", image, caption, facts, sources=sources))
    return PictureSet(name, tuple(pictures))


@cache
def _scans() -> tuple[UInt8[np.ndarray, "scan 8 8"], tuple[int, ...]]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    scans = rearrange(np.asarray(pixels), "scan (row column) -> scan row column", row=8) * (255 / 16)
    return scans.round().astype(np.uint8), tuple(int(label) for label in np.asarray(labels))


def _inked(scan: UInt8[np.ndarray, "8 8"], ink: str) -> UInt8[np.ndarray, "8 8 3"]:
    """A scan on black, with the ink scaled by the grey level."""
    return (scan[:, :, None].astype(np.float64) / 255 * np.array(INKS[ink])).round().astype(np.uint8)


def _scans_to_draw(numbers: tuple[int, ...], n: int) -> tuple[UInt8[np.ndarray, "scan 8 8"], tuple[int, ...]]:
    if not numbers or n < 1:
        raise ValueError(f"{n} pictures of {len(numbers)} scanned digits cannot be drawn; give at least one of each")
    return _scans()
