"""One item under one hand-off, stop and condition: the reply, whether it is right, and its cost."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from latentcomm.experiments.cascade.openings import Opening
from latentcomm.experiments.cascade.resume import Continuation
from latentcomm.experiments.controls import RANDOM, SELF, SHUFFLED, ZERO
from latentcomm.experiments.cost import MULTIPLY_ADD, ModelSize, pass_flops
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.tasks.judging import Judge, Letter, Number, mentions
from latentcomm.tasks.numbers import answered_number

SILENT, LARGE = "silent", "large"
"""The two models alone: the small one, which receives nothing as under the channel `Silent`, and the large one."""
SELF_CONSISTENCY = "self-consistency"
OF_STATES = (ZERO, RANDOM)
"""Controls for the content of states: zeros, or random directions of the same norms, instead."""
CONTROLS = (SHUFFLED, *OF_STATES, SELF, SELF_CONSISTENCY)
"""Controls of a sweep: another item's opening; those of states; the small model's own opening, and its vote at equal
cost."""
CONDITIONS = (SILENT, LARGE, MESSAGE, *CONTROLS)
"""All conditions, in the order in which tables show them."""
RENAMED = {"other": SHUFFLED, "own": SELF}
"""Names of controls before version 0.2, and what they are called now."""
NO_HAND_OFF = "none"
"""The hand-off of the two models alone."""
AT_HAND_OVER = 4
"""Last tokens of the opening whose mean entropy and margin a trial records."""
_NUMBERS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")


@dataclass(frozen=True)
class CascadeTrial:
    """One item under one hand-off, stop and condition; what a `Trial` records too has its name there.

    Attributes:
        item, channel, stop, condition: the cell of the trial; the channel is the hand-off's name, and a fixed n is the
            stop of that number. Under "silent" (the small model alone) and "large" (the large one alone) the channel is
            "none".
        n: tokens of the opening that passed.
        fired: whether the stop fired; else the hand-off came at the largest n allowed.
        finished: the opening was the whole reply, by its own end or the limit: the small model did not run.
        opening, reply: the text of the opening, and the text that is judged: the opening and its continuation.
            Under "self-consistency" the first reply that gives the answer of the majority.
        free, parsed, found: the verdict: right or not, an answer found or not, and the answer as the judge reads it.
        answer_in_opening: the opening contains an accepted answer as a whole word or number.
        sender_flops, receiver_flops: the cost of the large and of the small model, with a cache, as if run for this n
            alone (`cost.pass_flops`).
        reply_tokens: tokens that the small model generated; under "large" the large one, of a vote in all.
        entropy, margin: of the opening's last 4 tokens, the mean; None where n is 0.
        surprise: of the opening under the small model, nats a token (text hand-offs).
        drift: of the states that enter, see `hand_offs.Received` (latent hand-offs with a reference).
        votes: sampled replies of a vote; 0 elsewhere.
    """

    item: str
    channel: str
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
    sender_flops: float
    receiver_flops: float
    reply_tokens: int
    entropy: float | None = None
    margin: float | None = None
    surprise: float | None = None
    drift: float | None = None
    votes: int = 0

    @property
    def flops(self) -> float:
        """The cost of both models together."""
        return self.sender_flops + self.receiver_flops


def opening_flops(size: ModelSize, opening: Opening, n: int, *, finished: bool, layers: Sequence[int] = ()) -> float:
    """The cost of an opening: the prompt and n tokens, and the pass over the last token for its states.

    A pass over the prompt gives the first token, and one over each but the last the next; an opening that ended with a
    stop token took a pass over its last token, too. States of the last token after a block take a pass up to there.
    """
    if n == 0 and not finished:
        return 0.0
    ended = finished and opening.ended
    total = writing_flops(size, n_prompt=len(opening.prompt), n_past=0, n_written=n, ended=ended)
    if layers and not finished:
        deepest = max(layers) + 1
        total += pass_flops(size, n_new=1, n_past=len(opening.prompt) + n - 1, n_layers=deepest, n_unembedded=0)
    return float(total)


def writing_flops(size: ModelSize, *, n_prompt: int, n_past: int, n_written: int, ended: bool) -> float:
    """The cost of a prompt after a cached past and of greedy decoding with a cache."""
    total = pass_flops(size, n_new=n_prompt, n_past=n_past, n_unembedded=1)
    n_cached = n_past + n_prompt
    for step in range(n_written if ended else n_written - 1):
        total += pass_flops(size, n_new=1, n_past=n_cached + step, n_unembedded=1)
    return float(total)


def continuation_flops(
    size: ModelSize, continuation: Continuation, *, n_prompt: int, n_past: int, multiply_adds: int = 0
) -> float:
    """The cost of the small model's prompt and continuation, and of the maps."""
    decoding = writing_flops(
        size, n_prompt=n_prompt, n_past=n_past, n_written=len(continuation.ids), ended=continuation.ended
    )
    return decoding + MULTIPLY_ADD * multiply_adds


def signals_at(opening: Opening, n: int) -> tuple[float | None, float | None]:
    """Mean entropy and margin of the last tokens of the opening that passed."""
    if n == 0:
        return None, None
    last = slice(max(0, n - AT_HAND_OVER), n)
    return float(opening.entropy[last].mean()), float(opening.margin[last].mean())


def holds_answer(text: str, answers: Sequence[str], judge: Judge) -> bool:
    """Whether a text contains an accepted answer: as a number, where numbers are judged, else as whole words.

    A letter is too short to search for: there the judge reads the text as if it were the reply.

    >>> holds_answer("She has 1,000 left of 3.5", ("1000",), Number()), holds_answer("13 or 3.5", ("3",), Number())
    (True, False)
    """
    if isinstance(judge, Number):
        wanted = {abs(value) for answer in answers if (value := answered_number(answer)) is not None}
        return any(Fraction(found.replace(",", "")) in wanted for found in _NUMBERS.findall(text))
    if isinstance(judge, Letter):
        return judge(text, answers).is_right
    return any(mentions(text, alias) for answer in answers for alias in answer.split("|"))
