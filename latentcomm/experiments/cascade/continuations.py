"""One hand-off of many openings: what is alike is read and written once, and what is done is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from latentcomm._core.records import Records
from latentcomm.channels.base import receiver_prompts
from latentcomm.experiments.cascade.hand_offs import HandOff, Received, TextHandOff
from latentcomm.experiments.cascade.openings import Openings, vocabulary_of
from latentcomm.experiments.cascade.resume import Continuation, Prefix, behind, go_on
from latentcomm.models import Model
from latentcomm.tasks.base import Task

ITEMS_AT_ONCE = 16
"""Items between two writes of a checkpoint, whose prefixes lie in memory together."""


@dataclass(frozen=True)
class Handed:
    """How the small model went on behind one opening.

    Attributes:
        n: tokens of the opening.
        ids, ended: see `Continuation`.
        reply: the text of opening and continuation.
        n_prompt, n_past: tokens that it would read for this n alone, and positions that stand before them.
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
    def of(cls, record: Mapping[str, Any]) -> "Handed":
        """The one that a record holds."""
        rest = {name: value for name, value in record.items() if name != "ids"}
        return cls(ids=tuple(record["ids"]), **rest)

    @property
    def said(self) -> Continuation:
        """What the small model wrote."""
        return Continuation(self.ids, self.ended)


@dataclass(frozen=True, eq=False)
class Errand:
    """What is to be handed over of some items: of each the row of its opening, and after how many tokens.

    Attributes:
        task: the items, of whose prompts the small model goes on.
        rows: the opening of each item.
        wanted: of each item the numbers of tokens, ascending, at least 1 each and fewer than `limit`.
        alone: of each item what the small model writes behind its prompt alone, where that is known.
        limit: tokens of opening and continuation together.
        measures_surprise: whether the opening is read for that even where nothing has to be written.
    """

    task: Task
    rows: Sequence[int]
    wanted: Sequence[Sequence[int]]
    alone: Sequence[Continuation] | None
    limit: int
    measures_surprise: bool = True


def hand_over(hand_off: HandOff, small: Model, openings: Openings, errand: Errand) -> list[list[Handed]]:
    """The small model's continuations, of each item one for each wanted number of tokens.

    What text hand-offs share is read once: the prompt and the longest opening in one pass, of which every shorter one
    is a part. Where ids pass as they are and a continuation behind fewer tokens writes what the opening holds, the
    continuation behind more is the rest of it: greedy writing has one way on.
    """
    flat = [(place, n) for place, ns in enumerate(errand.wanted) for n in ns]
    if not flat:
        return [[] for _ in errand.wanted]
    items = tuple(
        replace(errand.task.items[place], id=f"{errand.task.items[place].id} behind {n}") for place, n in flat
    )
    received = hand_off.receive(
        small,
        replace(errand.task, items=items),
        openings,
        [errand.rows[place] for place, _ in flat],
        [n for _, n in flat],
    )
    limits = [errand.limit - n for _, n in flat]
    surprise: list[float | None] = [None] * len(flat)
    if isinstance(hand_off, TextHandOff):
        said, surprise = _by_text(small, openings, errand, flat, received, limits)
    else:
        said = go_on(small, received.given, limits)
    past = (0,) * len(flat) if received.given.past is None else received.given.past.length
    found: list[list[Handed]] = [[] for _ in errand.wanted]
    for number, (place, n) in enumerate(flat):
        told = received.opening[number]
        ids = said[number].ids
        text = openings.text(errand.rows[place], n) + small.decode(ids) if told is None else small.decode([*told, *ids])
        found[place].append(
            Handed(
                n,
                ids,
                said[number].ended,
                text,
                int(received.given.prompts.lengths[number]),
                past[number],
                received.multiply_adds[number],
                received.drift[number],
                surprise[number],
            )
        )
    return found


def _by_text(
    small: Model,
    openings: Openings,
    errand: Errand,
    flat: Sequence[tuple[int, int]],
    received: Received,
    limits: Sequence[int],
) -> tuple[list[Continuation], list[float | None]]:
    """The continuations behind texts, and the mean surprise of each opening where it was measured."""
    whole = [received.given.prompts.ids(number).tolist() for number in range(len(flat))]
    of_place: dict[int, list[int]] = {}
    for number, (place, _) in enumerate(flat):
        of_place.setdefault(place, []).append(number)
    one_vocabulary = openings.vocabulary == vocabulary_of(small)
    known: dict[int, list[tuple[int, Continuation]]] = {place: [] for place in of_place}
    if one_vocabulary and errand.alone is not None:
        known = {place: [(0, errand.alone[place])] for place in of_place}
    prefixes: dict[int, Prefix] = {}

    def prefix(place: int) -> Prefix:
        if place not in prefixes:
            prefixes[place] = Prefix.read(small, whole[of_place[place][-1]])
        return prefixes[place]

    said: list[Continuation | None] = [None] * len(flat)
    for turn in range(max(map(len, of_place.values()))):
        todo = []
        for place, numbers in of_place.items():
            for number in numbers[turn : turn + 1] if one_vocabulary else numbers if turn == 0 else []:
                ids, n = openings.rows[errand.rows[place]].ids, flat[number][1]
                rests = [before.rest(ids[begun:n]) for begun, before in known[place]]
                said[number] = next((rest for rest in rests if rest is not None), None)
                todo += [] if said[number] is not None else [number]
        if todo:
            given = behind([prefix(flat[number][0]) for number in todo], [whole[number] for number in todo])
            for number, one in zip(todo, go_on(small, given, [limits[number] for number in todo]), strict=True):
                said[number] = one
                if one_vocabulary:
                    known[flat[number][0]].append((flat[number][1], one))
    surprise: list[float | None] = [None] * len(flat)
    if errand.measures_surprise:
        starts = receiver_prompts(small, errand.task).lengths.tolist()
        surprise = [prefix(place).mean_surprise(whole[number], starts[place]) for number, (place, _) in enumerate(flat)]
    return [one for one in said if one is not None], surprise


def kept_or_handed(
    records: Records, hand_off: HandOff, small: Model, openings: Openings, errand: Errand
) -> list[list[Handed]]:
    """What `hand_over` gives, read from the records where it is there."""

    def handed() -> list[list[dict[str, Any]]]:
        return [[asdict(one) for one in each] for each in hand_over(hand_off, small, openings, errand)]

    found = records.values("handed", handed)
    return [[Handed.of(one) for one in each] for each in found]
