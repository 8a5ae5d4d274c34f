"""How a reply is judged: whether it holds an answer at all, and whether that is right."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from latentcomm.tasks.letters import answered_letter
from latentcomm.tasks.numbers import answered_number, before_the_next_question, written

_QUOTES = "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{DOUBLE LOW-9 QUOTATION MARK}\u00ab\u00bb"
_MARKS = " \"'`*_" + _QUOTES
_APOSTROPHES = str.maketrans(
    dict.fromkeys(
        "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}\N{SINGLE LOW-9 QUOTATION MARK}"
        "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}",
        "'",
    )
)
_WORD_CONTINUES = re.compile(r"[^\W_]|[-\N{HYPHEN}][^\W_]")
_WORD_BEFORE = re.compile(r"[^\W_][-\N{HYPHEN}]?$")


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on a reply.

    Attributes:
        is_right: it holds the answer.
        is_parsed: an answer, right or wrong, was found in it.
        found: the answer that was found, as the judge reads it; empty where there is none.
    """

    is_right: bool
    is_parsed: bool = True
    found: str = ""


@runtime_checkable
class Judge(Protocol):
    """A rule that reads an answer out of a reply and compares it with the accepted ones; a frozen dataclass."""

    def __call__(self, reply: str, answers: Sequence[str]) -> Verdict:
        """The verdict on a reply."""
        ...


@dataclass(frozen=True)
class Begins:
    """The reply begins with an accepted answer, as `is_correct` defines; every reply but an empty one counts as parsed.

    >>> Begins()(" the United States, of course", ("United States",)).is_right
    True
    """

    def __call__(self, reply: str, answers: Sequence[str]) -> Verdict:
        """Whether it begins so."""
        return Verdict(is_correct(reply, answers), any(mark.isalnum() for mark in reply), reply.strip())


@dataclass(frozen=True)
class Number:
    r"""The number that the reply gives as its answer, as `numbers.answered_number` reads it, is an accepted one.

    Compared exactly, as numbers: 1,000.00 is 1000, and 3/4 is 0.75. A reply without any is not parsed, and neither is
    one whose answer is no single number (a sum left undone, a time of day). `found` is the number in one fixed form.

    Raises:
        ValueError: an accepted answer that is no number.

    >>> Number()("9 eggs at $2 make $18.00 a day.\n#### 18", ("18",))
    Verdict(is_right=True, is_parsed=True, found='18')
    >>> Number()("I do not know.", ("18",)).is_parsed
    False
    """

    def __call__(self, reply: str, answers: Sequence[str]) -> Verdict:
        """Whether it is."""
        refuse_empty_answers(answers)
        accepted = [answered_number(answer) for answer in answers]
        if None in accepted:
            raise ValueError(f"the answer {answers[accepted.index(None)]!r} is no number; judge by another rule")
        value = answered_number(reply)
        return Verdict(False, False) if value is None else Verdict(value in accepted, True, written(value))


@dataclass(frozen=True)
class Letter:
    """The reply takes the right one of the lettered choices, as `letters.answered_letter` reads it.

    A reply that takes none, or more than one, is not parsed. `found` is the letter.

    Raises:
        ValueError: `letters` are not different capital letters, or an accepted answer is none of them.

    >>> Letter()("**B**, because ...", ("B",)).is_right, Letter()("A or B", ("B",)).is_parsed
    (True, False)
    """

    letters: str = "ABCD"

    def __post_init__(self) -> None:
        if not re.fullmatch("[A-Z]{2,}", self.letters) or len(set(self.letters)) < len(self.letters):
            raise ValueError(f"letters are {self.letters!r}; give two or more different capital letters")

    def __call__(self, reply: str, answers: Sequence[str]) -> Verdict:
        """Whether it does."""
        refuse_empty_answers(answers)
        if odd := [answer for answer in answers if len(answer) != 1 or answer not in self.letters]:
            raise ValueError(f"the answer {odd[0]!r} is none of the letters {self.letters}; give one of them")
        letter = answered_letter(reply, self.letters)
        return Verdict(letter in answers, True, letter) if letter else Verdict(False, False)


@dataclass(frozen=True)
class Contains:
    """The reply contains an accepted answer as whole words, as `mentions` defines.

    That a reply denies the answer, or names several, is not seen: "not Warsaw" and "Warsaw or Paris" both hold
    "Warsaw". What comes after a further "Question:" is not read. Every reply but an empty one counts as parsed. `found`
    is the canonical answer where any alias occurs.

    >>> Contains()("She was born in Warsaw, Poland.", ("Warsaw", "Warszawa"))
    Verdict(is_right=True, is_parsed=True, found='Warsaw')
    """

    def __call__(self, reply: str, answers: Sequence[str]) -> Verdict:
        """Whether one does."""
        refuse_empty_answers(answers)
        reply = before_the_next_question(reply)
        is_right = any(mentions(reply, answer) for answer in answers)
        return Verdict(is_right, any(mark.isalnum() for mark in reply), answers[0] if is_right else "")


@dataclass(frozen=True)
class Mentions:
    """The reply mentions facts: `answers` are the facts, each a string of aliases with "|" between them.

    Right when at least the share `needed` of them is mentioned (all, by default), each by any alias anywhere, as whole
    words (`mentions`); denials are not seen, and what comes after a further "Question:" is not read. `found` lists the
    facts that are mentioned, by their first aliases.

    Raises:
        ValueError: `needed` is not above 0 and at most 1.

    >>> judge = Mentions()
    >>> judge("Born in Warsaw, she won two Nobel Prizes.", ("Warsaw|Warszawa", "Nobel Prize|Nobel Prizes", "radium"))
    Verdict(is_right=False, is_parsed=True, found='Warsaw; Nobel Prize')
    >>> round(judge.share("Born in Warsaw.", ("Warsaw|Warszawa", "radium")), 2)
    0.5
    """

    needed: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.needed <= 1.0:
            raise ValueError(f"needed is {self.needed}; give a share of the facts above 0 and at most 1")

    def __call__(self, reply: str, answers: Sequence[str]) -> Verdict:
        """Whether it mentions enough of them."""
        there = self._there(reply, answers)
        is_right = len(there) >= self.needed * len(answers)
        return Verdict(is_right, any(mark.isalnum() for mark in reply), "; ".join(there))

    def share(self, reply: str, answers: Sequence[str]) -> float:
        """The share of the facts that the reply mentions."""
        return len(self._there(reply, answers)) / len(answers)

    def _there(self, reply: str, answers: Sequence[str]) -> list[str]:
        facts = [fact.split("|") for fact in answers]
        for fact in facts or [[]]:
            refuse_empty_answers(fact)
        reply = before_the_next_question(reply)
        return [fact[0] for fact in facts if any(mentions(reply, alias) for alias in fact)]


def mentions(reply: str, answer: str) -> bool:
    """Whether an answer occurs anywhere in the reply, as whole words.

    Reply and answer are compared as in `is_correct` (diacritics, curly apostrophes, white space, case, a leading "the",
    abbreviations as written), and the answer must also begin where a word begins: "Oman" is not in "Romania".

    >>> mentions("in the United States", "the United States"), mentions("Romania", "Oman")
    (True, False)
    """
    refuse_empty_answers((answer,))
    plain_reply, wanted = _plain(reply), _without_lead(_plain(answer)).rstrip(".")
    folded = (plain_reply, wanted) if _is_abbreviation(wanted) else (plain_reply.casefold(), wanted.casefold())
    starts = (match.start() for match in re.finditer(re.escape(folded[1]), folded[0]))
    return any(
        not _WORD_BEFORE.search(folded[0], 0, start) and not _WORD_CONTINUES.match(folded[0], start + len(folded[1]))
        for start in starts
    )


def is_correct(reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply begins with one of the answers.

    Exactly: reply and answer lose diacritics, curly apostrophes become straight, and runs of white space (line breaks
    too) become one space. White space, quotation marks and markdown emphasis (`*`, `_`, back-tick) before the first
    word are dropped, then one leading "the". What is left of the reply must start with the answer, case aside, and the
    answer must end where a word ends: what follows is nothing, or neither a letter nor a digit, nor a hyphen followed
    by one of these ("Nigeria" does not match "Niger", "Guinea-Bissau" does not match "Guinea"). A full stop that ends
    an answer is not required (the answer "U.S." matches "U.S"). An answer without any lower-case letter is an
    abbreviation and is compared as written: "US" is not the word "us". Text after the answer does not count, text
    before it fails.

    Raises:
        ValueError: no answers, an empty one, or one string instead of a sequence of them.

    >>> is_correct(" the United States, of course", ("United States", "USA")), is_correct("not Italy", ("Italy",))
    (True, False)
    """
    refuse_empty_answers(answers)
    plain_reply = _without_lead(_plain(reply))
    return any(_begins_with(plain_reply, _without_lead(_plain(answer)).rstrip(".")) for answer in answers)


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text).translate(_APOSTROPHES)
    return " ".join("".join(mark for mark in decomposed if not unicodedata.combining(mark)).split())


def _without_lead(plain: str) -> str:
    body = plain.lstrip(_MARKS)
    return body[len("the ") :].lstrip(_MARKS) if body.casefold().startswith("the ") else body


def _begins_with(reply: str, answer: str) -> bool:
    reply, answer = (reply, answer) if _is_abbreviation(answer) else (reply.casefold(), answer.casefold())
    return reply.startswith(answer) and not _WORD_CONTINUES.match(reply, len(answer))


def _is_abbreviation(answer: str) -> bool:
    return not any(letter.islower() for letter in answer)


def refuse_empty_answers(answers: Sequence[str]) -> None:
    """Refuse answers that no reply could be compared with.

    Raises:
        ValueError: none, an empty one, or one string instead of a sequence of them.
    """
    if isinstance(answers, str):
        raise ValueError(f"answers is the string {answers!r}; give a tuple of strings")
    if not answers or not all(any(letter.isalnum() for letter in answer) for answer in answers):
        raise ValueError(f"answers are {tuple(answers)!r}; give at least one, and none without a letter or digit")
