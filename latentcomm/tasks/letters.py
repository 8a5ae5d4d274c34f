"""Reading the letter of a choice out of a text."""

import re

from latentcomm.tasks.numbers import before_the_next_question

_OPENING = r"(?:\\?[(\[{*_`\"'$]|\\text\{|\\boxed\{)*"
_WORD_CONTINUES = r"(?![\w'\N{RIGHT SINGLE QUOTATION MARK}]|-\w|\.[A-Za-z]\.|&\w)"
_CLOSED = re.compile(r"\s*(?:$|\n|\\?[)\]}*_`\"'$.:,;!?/|]|(?:or|and)\b)")
_JOINED = re.compile(r"[)\]}*_`\"'.]*\s*(?:(?:,|/|\||&|\+)\s*(?:or|and)?\b|\b(?:or|and)\b)\s*", re.IGNORECASE)
_VERBS = r"(?:is|was|because|since|as|for|seems|must|would|or|and)\b"
_NO_ANSWER = re.compile(
    rf"[)\]*]*\s+(?:(?!{_VERBS})[a-z]|(?:is|was|must\s+be|seems)\s+(?:wrong|incorrect|not|false|out)\b)"
)
_ARTICLE = re.compile(rf"\s+(?!{_VERBS})\w", re.IGNORECASE)
_FILLERS = r"(?:(?:therefore|thus|then|simply|clearly|option|choice|letter|statement|the)\b[*_`:,\s]*)*"
_ANSWER = re.compile(
    r"\banswers?\b[*_`]*(?:[^.\n:=]{0,60}?(?:\b(?:is|are|was|(?:would|must|should)\s+be)\b|[:=])|(?=\s))[*_`:\s]*"
    + _FILLERS,
    re.IGNORECASE,
)
_OPTION = re.compile(
    r"\b(?:options?|choices?|choose|select|pick|go\s+with)\b(?:\s*(?:is\b|:))?[*_`:\s]*" + _FILLERS, re.IGNORECASE
)
_BOX = re.compile(r"\\f?boxed\s*\{\s*")


def answered_letter(reply: str, letters: str = "ABCD") -> str:
    r"""The letter of the choice that a reply takes, or an empty string where it takes none or more than one.

    What comes after a further "Question:" is not read. Then the first of these that holds any letter decides, and it
    must hold one letter only: the content of the last \boxed{...}; what "answer is" or "answer:" names; what "option",
    "choice", "choose", "pick" or "go with" names; the letter that the reply begins with, along with those of later
    lines that begin with one, as in a list of the choices; letters in brackets, in bold, or alone on a line. Letters
    joined by "or", "and", a comma or a stroke are two. A lower-case letter counts where only marks follow it. The
    article in "A train", the letter in "B cells" and in "vitamin C" are no answers, nor is a choice repeated in words.
    A later negation of an answer is not detected.

    >>> answered_letter("The answer is (B)."), answered_letter("A train leaves."), answered_letter("A or B")
    ('B', '', '')
    """
    text = before_the_next_question(reply).strip()
    for find in (_boxed, _answer, _option, _leading, _set_apart):
        found = find(text, letters)
        if found:
            return found.pop() if len(found) == 1 else ""
    return ""


def _read(text: str, start: int, letters: str) -> set[str]:
    """The letters at a position, several where they are joined."""
    one = re.compile(rf"{_OPENING}([{letters.upper()}{letters.lower()}]){_WORD_CONTINUES}")
    found: set[str] = set()
    while (match := one.match(text, start)) is not None:
        letter, end = match[1], match.end()
        if letter.islower() and not _CLOSED.match(text, end):
            break
        if _NO_ANSWER.match(text, end) or (letter == "A" and _ARTICLE.match(text, end)):
            break
        found.add(letter.upper())
        joined = _JOINED.match(text, end)
        if joined is None:
            break
        start = joined.end()
    return found


def _boxed(text: str, letters: str) -> set[str]:
    boxes = list(_BOX.finditer(text))
    return _read(text, boxes[-1].end(), letters) if boxes else set()


def _answer(text: str, letters: str) -> set[str]:
    return {letter for mark in _ANSWER.finditer(text) for letter in _read(text, mark.end(), letters)}


def _option(text: str, letters: str) -> set[str]:
    return {letter for mark in _OPTION.finditer(text) for letter in _read(text, mark.end(), letters)}


def _leading(text: str, letters: str) -> set[str]:
    first = _read(text, 0, letters)
    listed = re.findall(rf"^[ \t]*\(?([{letters.upper()}])[.):][ \t]+\S", text, re.MULTILINE)
    return first | set(listed) if first else set()


def _set_apart(text: str, letters: str) -> set[str]:
    both = letters.upper() + letters.lower()
    patterns = (
        rf"[(\[]([{both}])[)\]]",
        rf"\*\*\(?([{letters.upper()}])(?:[.):][^*\n]*)?\)?\*\*",
        rf"^[ \t]*[*_(\[`]*([{letters.upper()}])[*_)\].:`]*[ \t]*$",
        rf"^[ \t]*\(?([{letters.upper()}])[.):][ \t]+\S",
    )
    return {letter.upper() for pattern in patterns for letter in re.findall(pattern, text, re.MULTILINE)}
