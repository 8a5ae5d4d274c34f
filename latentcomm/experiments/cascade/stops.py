"""Stops, which decide when the large model hands off: after n tokens, or by a signal along the opening so far."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from latentcomm.experiments.cascade.openings import Opening

_SENTENCE_END = re.compile(r"(?P<mark>[.!?])[\"'\u201d\u2019)\]*_]*(?=\s)|\n")
_ABBREVIATIONS = frozenset({"e.g", "i.e", "etc", "vs", "mr", "mrs", "ms", "dr", "prof", "st", "approx", "cf", "eq"})
"""Words before a point that ends no sentence, in lower case."""
_LAST_WORD = re.compile(r"[^\s(\[\"']*$")
_NUMBERING = re.compile(r"(?:^|\n)[ \t*_#]*(?:step )?\d+$", re.IGNORECASE)
"""A list's number at the beginning of a line, "1", whose point ends no sentence."""


@runtime_checkable
class Stop(Protocol):
    """A rule for the number of opening tokens after which the small model continues; a frozen dataclass.

    It is causal: its result does not depend on the tokens after the hand-off, so that it can be applied at every token
    as the opening is generated.
    """

    def at(self, opening: Opening) -> int | None:
        """The number of tokens after which it hands off, or None where it does not fire."""
        ...


@dataclass(frozen=True)
class FixedTokens:
    """Hand off after `n` tokens, whatever they are.

    Raises:
        ValueError: a negative number.

    >>> FixedTokens(8).n
    8
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n is {self.n}; hand off after 0 tokens or more")

    def at(self, opening: Opening) -> int | None:  # noqa: ARG002 (the signature is that of every stop)
        """`n`, also where the opening is shorter."""
        return self.n


@dataclass(frozen=True)
class EntropyDrop:
    """Hand off once the next-token entropy has fallen: the mean of the last `window` tokens is below `fraction` times
    the mean of all tokens before the window.

    With H_1 .. H_n the entropies of the distributions that the first n tokens were drawn from and w the window, n is
    the smallest with n >= max(minimum, w + 1) and mean(H_{n-w+1} .. H_n) < fraction * mean(H_1 .. H_{n-w}).

    Raises:
        ValueError: a fraction that is not above 0, a window below 1, a negative minimum.

    >>> import torch
    >>> sure = Opening.of_signals(entropy=torch.tensor([2.0, 2.0, 2.0, 0.1, 0.1, 0.1]))
    >>> EntropyDrop(fraction=0.5, window=2, minimum=3).at(sure)
    5
    """

    fraction: float | int = 0.5
    window: int = 4
    minimum: int = 8

    def __post_init__(self) -> None:
        if not self.fraction > 0 or self.window < 1 or self.minimum < 0:
            raise ValueError(
                f"fraction {self.fraction} must be above 0, window {self.window} at least 1 and minimum "
                f"{self.minimum} at least 0"
            )

    def at(self, opening: Opening) -> int | None:
        """The first such number of tokens."""
        values = opening.entropy.tolist()
        for n in range(max(self.minimum, self.window + 1), len(values) + 1):
            before = math.fsum(values[: n - self.window]) / (n - self.window)
            if math.fsum(values[n - self.window : n]) / self.window < self.fraction * before:
                return n
        return None


@dataclass(frozen=True)
class Confident:
    """Hand off once `window` tokens on end were each drawn with a top-1 margin (p_1 - p_2) of at least `margin`.

    Raises:
        ValueError: a margin outside [0, 1], or a window below 1.

    >>> import torch
    >>> Confident(margin=0.9, window=2).at(Opening.of_signals(margin=torch.tensor([0.95, 0.2, 0.92, 0.99, 0.1])))
    4
    """

    margin: float | int = 0.9
    window: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1 or self.window < 1:
            raise ValueError(f"margin {self.margin} must be in [0, 1] and window {self.window} at least 1")

    def at(self, opening: Opening) -> int | None:
        """The first such number of tokens."""
        run = 0
        for n, value in enumerate(opening.margin.tolist(), 1):
            run = run + 1 if value >= self.margin else 0
            if run == self.window:
                return n
        return None


@dataclass(frozen=True)
class SentenceEnd:
    r"""Hand off once `number` sentences or lines have ended: ".", "!" or "?" with white space after it, or "\n".

    A mark counts once the next token shows the character after it, so that "3.5" is not cut; the hand-off then
    includes that token. The points of "e.g." and of a list's "1." end no sentence, and a line feed ends a line that is
    not blank.

    Raises:
        ValueError: a number below 1.

    >>> token_texts = ["She", " pays", " $3", ".", "5", " e", ".g", ".", " now", ".", " So"]
    >>> SentenceEnd().at(Opening.of_signals(token_texts=token_texts))
    11
    """

    number: int = 1

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"number is {self.number}; hand off after the first sentence or a later one")

    def at(self, opening: Opening) -> int | None:
        """The smallest number of tokens whose text has `number` ends."""
        text = "".join(opening.token_texts)
        ends = _ends(text)
        if len(ends) < self.number:
            return None
        needed, length = ends[self.number - 1], 0
        for n, token_text in enumerate(opening.token_texts, 1):
            length += len(token_text)
            if length >= needed:
                return n
        return None


@dataclass(frozen=True)
class Oracle:
    """For analysis only: for each item the smallest n of the grid at which the answer is right, else the smallest.

    It uses the answer, so its row is no usable policy. It is the best of as many tries as the grid has numbers, so that
    it counts chance as well: an upper bound on the gain of a stop.
    """


def _ends(text: str) -> list[int]:
    """For each end of a sentence or line the number of characters that show it."""
    ends: list[int] = []
    line_start = 0
    closed = True  # nothing but white space since the last end
    last_end = 0
    for match in _SENTENCE_END.finditer(text):
        fresh = text[last_end : match.start()].strip()
        closed = closed and not fresh
        last_end = match.end()
        if match["mark"] is None:
            if text[line_start : match.start()].strip() and not closed:
                ends.append(match.end())
                closed = True
            line_start = match.end()
            continue
        before = text[: match.start()]
        word = _LAST_WORD.search(before)
        is_short = word is not None and word.group().lower() in _ABBREVIATIONS
        if (is_short and match["mark"] == ".") or _NUMBERING.search(before):
            closed = False
            continue
        if not closed:
            ends.append(match.end() + 1)
            closed = True
    return ends


STOPS: Mapping[str, Stop | Oracle] = MappingProxyType(
    {
        "entropy-drop": EntropyDrop(),
        "early-drop": EntropyDrop(window=1, minimum=0),
        "confident": Confident(),
        "sentence-end": SentenceEnd(),
        "oracle": Oracle(),
    }
)
"""The stops by the names of the command line; "early-drop" is an entropy drop over a window of one token."""
