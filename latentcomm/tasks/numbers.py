"""Reading a number out of a text: which one is the answer, and what it is worth, exactly."""

import re
from dataclasses import dataclass
from fractions import Fraction

_MINUS = str.maketrans(dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{NON-BREAKING HYPHEN}\N{HYPHEN}", "-"))
_SPACES_IN_NUMBERS = re.compile(r"(?<=\d)(?:[\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}]|\\,)(?=\d{3})")
_SPACES_IN_SUMS = re.compile(r"(?P<head>[$€£¥₹]\s?\d{1,3})(?P<groups>(?: \d{3})+)(?!\d)")
_WORKINGS = re.compile(r"<<[^<>]*>>")
_FRACTION = re.compile(r"(?P<whole>\d)?\s*\\[dt]?frac\s*\{\s*(?P<top>-?[\d,.]+)\s*\}\s*\{\s*(?P<bottom>[\d,.]+)\s*\}")
_LATEX = (("{,}", ","), (r"\$", "$"), (r"\%", "%"), (r"\times", "*"), (r"\cdot", "*"), (r"\approx", "="), ("≈", "="))

_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)"
_TOKEN = re.compile(
    rf"""
    (?P<sign>(?<![\w.)\]}}%])-)? (?:[$€£¥₹]\s?)? (?P<inner>(?<![\w)\]}}])-)?
    (?<![A-Za-z_\d])(?<!\d\.)
    (?:
        (?P<odd> \d+(?::\d+)+ | \d+(?:/\d+){{2,}} | \d+(?:\.\d+){{2,}} )   # a clock time, a date, a version: no number
      | (?P<whole>\d+)\s+(?P<top>\d+)/(?P<bottom>\d+)
      | (?P<mantissa>{_DIGITS})\s?[x×*]\s?10\s?\^\s?\{{?(?P<ten>[-+]?\d+)\}}?
      | (?P<number>{_DIGITS}(?:[eE][-+]?\d+)?)
        (?: \s?/\s?(?P<over>{_DIGITS}) | \s?\^\s?\{{?(?P<power>[-+]?\d+)\}}? )?
    )
    (?:\s(?P<scale>thousand|million|billion)\b)?
    """,
    re.VERBOSE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
LONGEST = 99
"""Numbers with more digits, and larger exponents, are not worked out: a runaway reply would take all memory."""

_RUN_ON = re.compile(r"\n\s*(?:Question|Q|Problem|Exercise|User|Human)\s*\d*\s*[:.]", re.IGNORECASE)
_HASHES = re.compile(r"####+[ \t]*(?:the\s+)?(?:final\s+)?(?:answer\b(?:\s+is)?\s*:?[ \t]*)?", re.IGNORECASE)
_HEADING = re.compile(r"\s*(?:[.)]\s*[A-Za-z*]|:)")
_ANSWER_IS = re.compile(
    r"\banswer\b[*_`\s]*(?:is|was|equals|(?:would|must|should|will)\s+be|comes\s+to|:|=)[*_`:=\s]*"
    r"(?:(?:that|therefore|thus|then|simply|just|only|exactly|about|approximately|roughly|equal\s+to|a\s+total\s+of|"
    r"indeed|again|still|also|actually|,)\b[*_`:,\s]*)*",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:f?boxed)\s*\{")
_SENTENCE_ENDS = re.compile(r"[.!?](?=\s|$)|\n|####")
_DRESS = re.compile(r"[\s*_`\"'(\[{\\$]*")
_OPERATES = re.compile(r"\s*(?:[-+*x×/÷])\s*\$?\s*")


@dataclass(frozen=True)
class _Token:
    start: int
    end: int
    value: Fraction | None


def before_the_next_question(reply: str) -> str:
    r"""The reply without what a model writes on when it does not stop: another "Question:" on a line of its own.

    >>> before_the_next_question("It is 4.\n\nQuestion: What is 3 + 3?")
    'It is 4.'
    """
    return next((reply[: more.start()] for more in _RUN_ON.finditer(reply) if reply[: more.start()].strip()), reply)


def answered_number(reply: str) -> Fraction | None:
    r"""The number that a reply gives as its answer, exactly, or None where it gives none.

    What comes after a further "Question:" is not read, nor a working between << and >>. Then, in this order: the number
    right after the first "####" (a heading such as "#### Step 2" is none), the last one in the last \boxed{...}, the
    one after the last "answer is" or "answer:", the last number of the whole reply. After "answer is" the number counts
    that follows at once, or follows the sentence's last "=", or else the last of the sentence; a sum that is not worked
    out ("the answer is 3 + 4") is none. In the last sentence, too, what follows the last "=" counts.

    Numbers may have a sign, a currency, thousands separated by commas or narrow spaces (after a currency, by any),
    decimals, an exponent, a fraction bar (3/4, 1 1/2, \frac{3}{4}), "thousand", "million" or "billion" after them, and
    units. A percent sign is a unit: 50% is 50. Not read: numbers in words, times (3:30), dates, decimal commas.

    >>> answered_number("She makes 9 * $2 = $18 a day.\n#### 18"), answered_number("No idea.")
    (Fraction(18, 1), None)
    """
    text = _normal(before_the_next_question(reply))
    tokens = _tokens(text)
    for find in (_after_hashes, _in_box, _after_answer_is, _at_the_end):
        token = find(text, tokens)
        if token is not None:
            return token.value
    return None


def written(value: Fraction) -> str:
    """A number in its canonical form: 18, 0.75, or 1/3 where decimals do not end.

    >>> written(Fraction(18)), written(Fraction(3, 4)), written(Fraction(-1, 3))
    ('18', '0.75', '-1/3')
    """
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    decimals = max(twos, fives)
    if rest != 1 or decimals == 0:
        return str(value)
    digits = str(abs(value.numerator) * 10**decimals // value.denominator).zfill(decimals + 1)
    return f"{'-' if value < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def _normal(text: str) -> str:
    text = _WORKINGS.sub("", text.translate(_MINUS))
    for theirs, ours in _LATEX:
        text = text.replace(theirs, ours)
    text = _FRACTION.sub(lambda found: f"{found['whole'] or ''} {found['top']}/{found['bottom']}", text)
    text = _SPACES_IN_SUMS.sub(lambda found: found["head"] + found["groups"].replace(" ", ""), text)
    return _SPACES_IN_NUMBERS.sub("", text)


def _tokens(text: str) -> list[_Token]:
    return [_Token(found.start(), found.end(), _value(found)) for found in _TOKEN.finditer(text)]


def _value(found: re.Match[str]) -> Fraction | None:
    """What a match is worth; None for what is no single number, and for one too long to be meant."""
    if found["odd"] or sum(mark.isdigit() for mark in found[0]) > LONGEST:
        return None
    if found["whole"]:
        part = _divided(Fraction(found["top"]), Fraction(found["bottom"]))
        value = None if part is None else Fraction(found["whole"]) + part
    elif found["mantissa"]:
        value = _scaled(_plain(found["mantissa"]), int(found["ten"]))
    else:
        digits, _, exponent = found["number"].lower().partition("e")
        value = _scaled(_plain(digits), int(exponent or 0))
        if value is not None and found["over"]:
            value = _divided(value, _plain(found["over"]))
        elif value is not None and found["power"]:
            value = _raised(value, int(found["power"]))
    if value is None:
        return None
    value *= _SCALES.get(found["scale"], 1)
    return -value if bool(found["sign"]) != bool(found["inner"]) else value


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _divided(top: Fraction, bottom: Fraction) -> Fraction | None:
    return top / bottom if bottom else None


def _scaled(value: Fraction, ten: int) -> Fraction | None:
    return value * Fraction(10) ** ten if abs(ten) <= LONGEST else None


def _raised(base: Fraction, power: int) -> Fraction | None:
    if abs(power) > LONGEST or (not base and power < 0):
        return None
    value = base**power
    return value if abs(value.numerator) < 10**LONGEST and value.denominator < 10**LONGEST else None


def _first_at(text: str, tokens: list[_Token], start: int) -> _Token | None:
    """The number that begins at a position, or after the brackets, emphasis, quotes and currency there."""
    dress = _DRESS.match(text, start)
    end = dress.end() if dress else start
    return next((token for token in tokens if start <= token.start <= end), None)


def _after_hashes(text: str, tokens: list[_Token]) -> _Token | None:
    for mark in _HASHES.finditer(text):
        start = mark.end()
        if (box := _BOX.match(text, start)) is not None:
            start = box.end()
        line_ends = text.find("\n", start)
        token = _first_at(text, tokens, start)
        is_on_line = token is not None and (line_ends < 0 or token.start < line_ends)
        if token is not None and is_on_line and not _HEADING.match(text, token.end):
            return _worked_out(text, tokens, token, len(text) if line_ends < 0 else line_ends)
    return None


def _in_box(text: str, tokens: list[_Token]) -> _Token | None:
    for box in reversed(list(_BOX.finditer(text))):
        depth, end = 1, box.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if inside := [token for token in tokens if box.end() <= token.start < end]:
            return inside[-1]
    return None


def _after_answer_is(text: str, tokens: list[_Token]) -> _Token | None:
    for mark in reversed(list(_ANSWER_IS.finditer(text))):
        ends = _SENTENCE_ENDS.search(text, mark.end())
        end = ends.start() if ends else len(text)
        first = _first_at(text, tokens, mark.end())
        if first is not None:
            return _worked_out(text, tokens, first, end)
        if inside := [token for token in tokens if mark.end() <= token.start < end]:
            return _worked_out(text, tokens, inside[-1], end)
    return None


def _at_the_end(text: str, tokens: list[_Token]) -> _Token | None:
    """The last number, unless a sum in its sentence comes out before it: "4 + 5 = 9 points in 40 minutes"."""
    if not tokens:
        return None
    begins = max((end.end() for end in _SENTENCE_ENDS.finditer(text, 0, tokens[-1].start)), default=0)
    equals = text.rfind("=", begins, tokens[-1].start)
    return tokens[-1] if equals < 0 else next(token for token in tokens if token.start > equals)


def _worked_out(text: str, tokens: list[_Token], token: _Token, end: int) -> _Token:
    """The number after the last "=" before `end`, or the one given; without value if it begins an open sum."""
    equals = text.rfind("=", token.end, end)
    after = [other for other in tokens if equals < other.start < end]
    if equals >= 0 and after:
        return after[0]
    operator = _OPERATES.match(text, token.end, end)
    follows = operator is not None and any(token.end <= other.start <= operator.end() for other in tokens)
    return _Token(token.start, token.end, None) if follows else token
