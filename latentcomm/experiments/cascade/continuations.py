"""One hand-off of many openings: shared prefixes are read once, and finished continuations are saved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from latentcomm._core.records import Records
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade.hand_offs import HandOff, Received, TextHandOff
from latentcomm.experiments.cascade.openings import VOCABULARY, opened, text_at
from latentcomm.experiments.cascade.resume import Continuation, ReadPrefix, after_prefixes, continue_rows
from latentcomm.models import Model
from latentcomm.tasks.base import Task

ITEMS_AT_ONCE = 16
"""Items between two writes of a checkpoint; their prefixes are in memory together."""


@dataclass(frozen=True)
class Continued:
    """The small model's continuation of one opening.

    Attributes:
        n: tokens of the opening.
        ids, ended: see `Continuation`.
        reply: the text of opening and continuation.
        n_prompt, n_past: tokens that it would read for this n alone, and positions in the cache before them.
        multiply_adds, drift: see `hand_offs.Received`.
        surprise: of the opening under the small model, nats a token, where it was measured.
    """

    n: int
    ids: tuple[int, ...]
    ended: bool
    reply: str
    n_prompt: int
    n_past: int
    multiply_adds: int
    drift: float | None
    surprise: float | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Continued":
        """The one that a record holds."""
        rest = {name: value for name, value in record.items() if name != "ids"}
        return cls(ids=tuple(record["ids"]), **rest)

    @property
    def continuation(self) -> Continuation:
        """The small model's tokens."""
        return Continuation(self.ids, self.ended)


@dataclass(frozen=True, eq=False)
class Request:
    """A request for the continuations of some items: for each the message with its opening, and the numbers of tokens.

    Attributes:
        task: the items, whose prompts the small model reads.
        message: what passes of the opening of each.
        wanted: for each item the numbers of opening tokens, ascending, at least 1 each and fewer than `limit`.
        alone: for each item the small model's output after its prompt alone, where that is known.
        limit: tokens of opening and continuation together.
        measures_surprise: whether the opening is read for its surprise even where no continuation has to be decoded.
    """

    task: Task
    message: Message
    wanted: Sequence[Sequence[int]]
    alone: Sequence[Continuation] | None
    limit: int
    measures_surprise: bool = True


def continue_openings(hand_off: HandOff, small: Model, request: Request) -> list[list[Continued]]:
    """The small model's continuations: for each item, one for each requested number of tokens.

    Text hand-offs read their shared prefix once: the prompt and the longest opening in one pass, of which every shorter
    one is a prefix. Where token ids pass unchanged and the continuation after fewer tokens reproduces the opening, the
    continuation after more tokens is its remainder: greedy decoding is deterministic.
    """
    flat = [(item, n) for item, ns in enumerate(request.wanted) for n in ns]
    if not flat:
        return [[] for _ in request.wanted]
    items = tuple(
        replace(request.task.items[item], id=f"{request.task.items[item].id} after {n} tokens") for item, n in flat
    )
    request.message.check_items(request.task)
    task = replace(request.task, items=items)
    message = request.message.select([item for item, _ in flat]).addressed(task)
    received = hand_off.enter(small, task, message, [n for _, n in flat])
    limits = [request.limit - n for _, n in flat]
    surprise: list[float | None] = [None] * len(flat)
    if isinstance(hand_off, TextHandOff):
        continuations, surprise = _after_text(small, request, flat, received, limits)
    else:
        continuations = continue_rows(small, received.given, limits)
    n_past = (0,) * len(flat) if received.given.past is None else received.given.past.length
    texts, parts = opened(message)
    continued: list[list[Continued]] = [[] for _ in request.wanted]
    for row, (item, n) in enumerate(flat):
        opening, ids = received.opening[row], continuations[row].ids
        if opening is None:
            reply = text_at(texts[row], parts[row]["ends"], n) + small.decode(ids)
        else:
            reply = small.decode([*opening, *ids])
        continued[item].append(
            Continued(
                n=n,
                ids=ids,
                ended=continuations[row].ended,
                reply=reply,
                n_prompt=int(received.given.prompts.lengths[row]),
                n_past=n_past[row],
                multiply_adds=received.multiply_adds[row],
                drift=received.drift[row],
                surprise=surprise[row],
            )
        )
    return continued


def _after_text(
    small: Model,
    request: Request,
    flat: Sequence[tuple[int, int]],
    received: Received,
    limits: Sequence[int],
) -> tuple[list[Continuation], list[float | None]]:
    """The continuations after text openings, and the mean surprise of each opening where it was measured."""
    tokens = [received.given.prompts.ids(row).tolist() for row in range(len(flat))]
    rows_of: dict[int, list[int]] = {}
    for row, (item, _) in enumerate(flat):
        rows_of.setdefault(item, []).append(row)
    one_vocabulary = request.message.made_by[VOCABULARY] == small.vocabulary
    known: dict[int, list[tuple[int, Continuation]]] = {item: [] for item in rows_of}
    if one_vocabulary and request.alone is not None:
        known = {item: [(0, request.alone[item])] for item in rows_of}
    prefixes: dict[int, ReadPrefix] = {}

    def prefix(item: int) -> ReadPrefix:
        if item not in prefixes:
            prefixes[item] = ReadPrefix.read(small, tokens[rows_of[item][-1]])
        return prefixes[item]

    continuations: dict[int, Continuation] = {}
    # In one vocabulary a continuation may be the remainder of a shorter opening's, so the shorter ones come first.
    for batch in _shortest_first(rows_of.values()) if one_vocabulary else [list(range(len(flat)))]:
        to_decode = []
        for row in batch:
            item, n = flat[row]
            opening = received.opening[row] or ()
            remainders = [earlier.rest(opening[start:]) for start, earlier in known[item]]
            reused = next((remainder for remainder in remainders if remainder is not None), None)
            if reused is None:
                to_decode.append(row)
            else:
                continuations[row] = reused
        if not to_decode:
            continue
        given = after_prefixes([prefix(flat[row][0]) for row in to_decode], [tokens[row] for row in to_decode])
        decoded = continue_rows(small, given, [limits[row] for row in to_decode])
        for row, continuation in zip(to_decode, decoded, strict=True):
            item, n = flat[row]
            continuations[row] = continuation
            if one_vocabulary:
                known[item].append((n, continuation))
    surprise: list[float | None] = [None] * len(flat)
    if request.measures_surprise:
        starts = receiver_prompts(small, request.task).lengths.tolist()
        surprise = [prefix(item).mean_surprise(tokens[row], starts[item]) for row, (item, _) in enumerate(flat)]
    return [continuations[row] for row in range(len(flat))], surprise


def _shortest_first(rows_of: Iterable[Sequence[int]]) -> list[list[int]]:
    """The first row of every item, then the second of every item that has one, and so on."""
    items = list(rows_of)
    return [[rows[at] for rows in items if at < len(rows)] for at in range(max(map(len, items)))]


def saved_or_continued(records: Records, hand_off: HandOff, small: Model, request: Request) -> list[list[Continued]]:
    """The result of `continue_openings`, read from the records where it is saved there."""

    def computed() -> list[list[dict[str, Any]]]:
        return [[asdict(one) for one in of_item] for of_item in continue_openings(hand_off, small, request)]

    saved = records.values("handed", computed)
    return [[Continued.of(record) for record in of_item] for of_item in saved]
