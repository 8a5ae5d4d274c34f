"""One item under one hand-off, stop and condition: what was written, whether it is right, and what it cost."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from latentcomm.experiments.cascade.hand_offs import EMPTY
from latentcomm.experiments.cascade.openings import Opening
from latentcomm.experiments.cascade.resume import Continuation
from latentcomm.experiments.cost import MULTIPLY_ADD, ModelSize, pass_flops
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.tasks.judging import Judge, Letter, Number, mentions
from latentcomm.tasks.numbers import answered_number

OTHER, OWN, SELF_CONSISTENCY = "other", "own", "self-consistency"
SMALL_ALONE, LARGE_ALONE = "small alone", "large alone"
CONTROLS = (OTHER, *EMPTY, OWN, SELF_CONSISTENCY)
"""Controls of a sweep: another item's opening; zeros, or random directions of their norms, in place of states; the
small model's own opening, and its vote at equal cost."""
CONDITIONS = (SMALL_ALONE, LARGE_ALONE, MESSAGE, *CONTROLS)
"""All conditions, in the order in which tables show them."""
NO_HAND_OFF = "none"
"""The hand-off of the two models alone."""
AT_HAND_OVER = 4
"""Last tokens of the opening whose mean entropy and margin stand in a trial."""
_NUMBERS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")


@dataclass(frozen=True)
class CascadeTrial:
    """One item under one hand-off, stop and condition.

    Attributes:
        item, hand_off, stop, condition: what was asked, and how; a fixed n is the stop of that number. Under "small
            alone" and "large alone" the hand-off is "none".
        n: tokens of the opening that were handed over.
        fired: whether the stop gave a reason; else the hand-over came at the longest n allowed.
        finished: the opening was the whole reply, by its own end or the limit: the small model did not run.
        opening, reply: the text of the opening, and the whole that is judged: the opening and what was written behind.
            Under "self-consistency" the first reply that gives the answer of the majority.
        free, parsed, found: the verdict: right or not, an answer found or not, and the answer as the judge reads it.
        answer_in_opening: an accepted answer stands in the opening as a whole word or number.
        large_flops, small_flops: what it costs with a cache, as if run alone for this n (`cost.pass_flops`).
        reply_tokens: tokens that the small model wrote; under "large alone" the large one, of a vote all together.
        entropy, margin: of the opening's last 4 tokens, the mean; None where nothing was handed over.
        surprise: of the opening under the small model, nats a token (text hand-offs).
        drift: of the states that enter, see `hand_offs.Received` (latent hand-offs with a reference).
        votes: replies that a vote was held among; 0 where there was none.
    """

    item: str
    hand_off: str
    stop: str
    condition: str
    n: int
    fired: bool
    finished: bool
    opening: str
    reply: str
    free: bool
    parsed: bool
    found: str
    answer_in_opening: bool
    large_flops: float
    small_flops: float
    reply_tokens: int
    entropy: float | None = None
    margin: float | None = None
    surprise: float | None = None
    drift: float | None = None
    votes: int = 0

    @property
    def flops(self) -> float:
        """What both models cost together."""
        return self.large_flops + self.small_flops


def opening_flops(size: ModelSize, opening: Opening, n: int, *, finished: bool, layers: Sequence[int] = ()) -> float:
    """What it costs the model that opens to read its prompt and write n tokens, and to read the last for its states.

    A pass over the prompt gives the first token and one over each but the last the next; one that ended by itself has
    read its last token, too. States after a block of the last token take a pass up to there.
    """
    if n == 0 and not finished:
        return 0.0
    ended = finished and opening.ended
    total = writing_flops(size, n_prompt=opening.n_prompt, n_past=0, n_written=n, ended=ended)
    if layers and not finished:
        deepest = max(layers) + 1
        total += pass_flops(size, n_new=1, n_past=opening.n_prompt + n - 1, n_layers=deepest, n_unembedded=0)
    return float(total)


def writing_flops(size: ModelSize, *, n_prompt: int, n_past: int, n_written: int, ended: bool) -> float:
    """What it costs to read a prompt behind a past and to write tokens greedily, with a cache."""
    total = pass_flops(size, n_new=n_prompt, n_past=n_past, n_unembedded=1)
    begun = n_past + n_prompt
    for step in range(n_written if ended else n_written - 1):
        total += pass_flops(size, n_new=1, n_past=begun + step, n_unembedded=1)
    return float(total)


def going_on_flops(size: ModelSize, said: Continuation, *, n_prompt: int, n_past: int, multiply_adds: int = 0) -> float:
    """What the small model's reading and writing costs, and the maps on the way."""
    written = writing_flops(size, n_prompt=n_prompt, n_past=n_past, n_written=len(said.ids), ended=said.ended)
    return written + MULTIPLY_ADD * multiply_adds


def signals_at(opening: Opening, n: int) -> tuple[float | None, float | None]:
    """Mean entropy and margin of the last tokens that were handed over."""
    if n == 0:
        return None, None
    last = slice(max(0, n - AT_HAND_OVER), n)
    return float(opening.entropy[last].mean()), float(opening.margin[last].mean())


def holds_answer(text: str, answers: Sequence[str], judge: Judge) -> bool:
    """Whether an accepted answer stands in a text: as a number, where numbers are judged, else as whole words.

    What a letter stands for is too short to look for: there the judge reads the text as if it were the reply.

    >>> holds_answer("She has 1,000 left of 3.5", ("1000",), Number()), holds_answer("13 or 3.5", ("3",), Number())
    (True, False)
    """
    if isinstance(judge, Number):
        wanted = {abs(value) for answer in answers if (value := answered_number(answer)) is not None}
        return any(Fraction(found.replace(",", "")) in wanted for found in _NUMBERS.findall(text))
    if isinstance(judge, Letter):
        return judge(text, answers).is_right
    return any(mentions(text, alias) for answer in answers for alias in answer.split("|"))
