"""Bindings of invented names: facts that no model can know, in one hop or two, or shared out between both models."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from latentcomm.tasks.base import Item, Task, Template

SenderForm = Literal["sentence", "primed"]
Values = Literal["listed", "invented"]


def bindings(
    *,
    n: int = 200,
    seed: int = 0,
    template: Template = "raw",
    sender_form: SenderForm = "primed",
    values: Values = "listed",
    n_bindings: int = 4,
) -> Task:
    """Who owns what: the sender reads what some invented people own, the receiver is asked about one of them.

    The receiver reads "Question: What does Tavkob own? Answer: Tavkob owns the" (as a chat turn: "What does Tavkob own?
    Answer with one word."). The sender reads the facts, and if "primed" then the receiver's text, so that its last
    token, too, is the one before the answer; if "sentence" it does not know who is asked about, and a message has to
    carry every binding. The skyline model reads the facts and then the receiver's text.

    The answer is one of the eight `VALUES[values]`: chance is 12.5 %. Every 8 items have each answer once, and every
    8 * n_bindings items have each answer once at each position of its fact. The other people of an item own other
    things. No name occurs in two items, and the names of one item begin with different letters. Item i is the same for
    every n: more items only add. Tags: answer, asked (the name), position (of its fact, from 0).

    Raises:
        ValueError: n below 8, or n_bindings that is not from 1 to 8.

    >>> item = bindings(n=8, n_bindings=2).items[0]
    >>> item.sender.splitlines()[0], item.receiver.splitlines()[1]
    ('Rurzab owns the hammer. Wodveb owns the lamp.', 'Answer: Wodveb owns the')
    >>> item.choice, len(item.candidates)
    (' lamp', 8)
    """
    options = _Options("bindings", n, seed, template, sender_form, values, n_bindings)
    items = []
    for drawn in options.drawn(n_towns=0):
        receiver = QUERIES["thing"][template].format(drawn.people[0])
        items.append(options.item(drawn, [(drawn.things_text, receiver)], receiver))
    return options.task(items)


def bindings_two_hop(
    *,
    n: int = 200,
    seed: int = 0,
    template: Template = "raw",
    sender_form: SenderForm = "primed",
    values: Values = "listed",
    n_bindings: int = 4,
    senders: int = 1,
) -> Task:
    """What is where a person lives: the sender reads in which towns people live and what is there; it takes both hops.

    The sender reads "Tavkob lives in Belzum. ... In Belzum is the lamp. ...", homes and things each in an order of
    their own; the receiver reads "Question: What is in the town where Tavkob lives? Answer: In the town where Tavkob
    lives is the". All else is as in `bindings`. Further tags: key (the town) and place (of its fact, from 0).

    With `senders=2` the first reads the homes (and if "primed" then "Question: Where does Tavkob live? Answer: Tavkob
    lives in"), and the second, whose text is in `Item.more_senders`, what is in the towns. Neither can tell the answer:
    for the second it is any of `n_bindings` things. What receiver and skyline read stays as it is.

    Raises:
        ValueError: n below 8, n_bindings that is not from 1 to 8, or senders that is not 1 or 2.

    >>> item = bindings_two_hop(n=8, n_bindings=2, senders=2).items[0]
    >>> item.sender.splitlines()[0], item.more_senders[0].splitlines()[0]
    ('Wazgib lives in Hilveb. Dipvog lives in Zodvom.', 'In Hilveb is the drum. In Zodvom is the hammer.')
    >>> item.receiver.splitlines()[0], item.answers
    ('Question: What is in the town where Dipvog lives?', ('hammer',))
    """
    if senders not in (1, 2):
        raise ValueError(f"senders is {senders}; two hops have 1 or 2 of them")
    options = _Options("bindings_two_hop", n, seed, template, sender_form, values, n_bindings)
    items = []
    for drawn in options.drawn(n_towns=n_bindings):
        receiver = QUERIES["thing there"][template].format(drawn.people[0])
        sent = [(f"{drawn.homes_text} {drawn.things_text}", receiver)]
        if senders == 2:
            home = QUERIES["home"][template].format(drawn.people[0])
            sent = [(drawn.homes_text, home), (drawn.things_text, receiver)]
        items.append(options.item(drawn, sent, receiver))
    return options.task(items, senders=senders)


def bindings_keyed(
    *,
    n: int = 200,
    seed: int = 0,
    template: Template = "raw",
    sender_form: SenderForm = "primed",
    values: Values = "listed",
    n_bindings: int = 1,
) -> Task:
    """A key and a table: the sender reads in which town a person lives, the receiver what is in eight towns.

    The sender reads "Tavkob lives in Belzum." (and where n_bindings - 1 others live) and if "primed" then "Question:
    Where does Tavkob live? Answer: Tavkob lives in"; the receiver reads "In Belzum is the lamp. ...", with each of the
    eight things once, and then "Question: What is in the town where Tavkob lives? Answer: In the town where Tavkob
    lives is the". A message can name the key, which is the town, but not the answer, which the sender does not know;
    given what the receiver reads each answer is equally likely. The skyline model reads the homes and then the
    receiver's text. All else is as in `bindings`. Further tags: key (the town) and place (of its fact in the receiver's
    text; every 64 items have each answer once at each). A shuffled message names a town that the receiver's text does
    not have.

    Raises:
        ValueError: n below 8, or n_bindings (the homes that the sender reads of) that is not from 1 to 8.

    >>> item = bindings_keyed(n=8).items[0]
    >>> item.sender.splitlines()
    ['Ralvip lives in Digvag.', 'Question: Where does Ralvip live?', 'Answer: Ralvip lives in']
    >>> town = item.tags["key"]
    >>> f"In {town} is the{item.choice}." in item.receiver, town in item.sender, item.answers[0] in item.sender
    (True, True, False)
    """
    options = _Options("bindings_keyed", n, seed, template, sender_form, values, n_bindings)
    items = []
    for drawn in options.drawn(n_towns=N_VALUES):
        home, there = (QUERIES[query][template].format(drawn.people[0]) for query in ("home", "thing there"))
        items.append(options.item(drawn, [(drawn.homes_text, home)], f"{drawn.things_text}\n{there}"))
    return options.task(items)


@dataclass(frozen=True)
class _Drawn:
    """What one item is about; the first of the people, towns and things are those of the question.

    Without towns the people own the things. `position` and `place` are those of the question's facts in the texts.
    """

    index: int
    position: int
    place: int
    people: tuple[str, ...]
    towns: tuple[str, ...]
    things: tuple[str, ...]
    homes_text: str
    things_text: str


@dataclass(frozen=True)
class _Options:
    name: str
    n: int
    seed: int
    template: Template
    sender_form: SenderForm
    values: Values
    n_bindings: int

    def __post_init__(self) -> None:
        if self.n < N_VALUES:
            raise ValueError(f"n is {self.n}; request at least {N_VALUES} items, one for each answer")
        if not 1 <= self.n_bindings <= N_VALUES:
            raise ValueError(f"n_bindings is {self.n_bindings}; give 1 to {N_VALUES}, as there are {N_VALUES} things")

    def drawn(self, *, n_towns: int) -> Iterator[_Drawn]:
        """The items' contents; with `n_towns` towns that have the things, or none."""
        stream = f"{self.name}:{self.seed}"
        names = _names(random.Random(f"{stream}:names"), self.n_bindings + n_towns)
        n_things = n_towns or self.n_bindings
        for index in range(self.n):
            rng = random.Random(f"{stream}:{index}")
            block, answer = index // N_VALUES, _in_turn(f"{stream}:answers", index, N_VALUES)
            position = _in_turn(f"{stream}:positions:{answer}", block, self.n_bindings)
            place = _in_turn(f"{stream}:places:{answer}", block, n_towns) if n_towns else position
            others = [thing for number, thing in enumerate(VALUES[self.values]) if number != answer]
            things = (VALUES[self.values][answer], *rng.sample(others, n_things - 1))
            invented = next(names)
            people, towns = invented[: self.n_bindings], invented[self.n_bindings :]
            fact, owners = ("In {} is the {}.", towns) if towns else ("{} owns the {}.", people)
            homes = [f"{person} lives in {town}." for person, town in zip(people, towns, strict=False)]
            facts = [fact.format(owner, thing) for owner, thing in zip(owners, things, strict=True)]
            yield _Drawn(
                index=index,
                position=position,
                place=place,
                people=people,
                towns=towns,
                things=things,
                homes_text=_shuffled(homes, position, rng) if homes else "",
                things_text=_shuffled(facts, place, rng),
            )

    def item(self, drawn: _Drawn, sent: Sequence[tuple[str, str]], receiver: str) -> Item:
        """The item of the receiver's text and of each sender's facts and prompt."""
        texts = [f"{facts}\n{prompt}" if self.sender_form == "primed" else facts for facts, prompt in sent]
        choices = tuple(f" {value}" if self.template == "raw" else value for value in VALUES[self.values])
        keyed = {"key": drawn.towns[0], "place": str(drawn.place)} if drawn.towns else {}
        return Item(
            id=f"{self.name.replace('_', '-')}-{self.seed}-{drawn.index}",
            sender=texts[0],
            receiver=receiver,
            skyline=f"{' '.join(facts for facts, _ in sent)}\n{receiver}",
            answers=(drawn.things[0],),
            choice=choices[VALUES[self.values].index(drawn.things[0])],
            tags={"answer": drawn.things[0], "asked": drawn.people[0], "position": str(drawn.position)} | keyed,
            candidates=choices,
            more_senders=tuple(texts[1:]),
        )

    def task(self, items: Sequence[Item], **more: int) -> Task:
        """The task of these items; `more` are further options to record."""
        return Task(
            name=self.name,
            items=tuple(items),
            candidates=items[0].candidates or (),
            template=self.template,
            settings={key: value for key, value in vars(self).items() if key != "name"} | more,
            strata=("answer",),
        )


def _in_turn(stream: str, index: int, size: int) -> int:
    """One of `size` numbers: a random order of all of them in every `size` indices."""
    cycle, turn = divmod(index, size)
    return random.Random(f"{stream}:{cycle}").sample(range(size), size)[turn]


def _shuffled(facts: list[str], position: int, rng: random.Random) -> str:
    """The facts as one text, the first of them at this position and the others in random order."""
    others = rng.sample(facts[1:], len(facts) - 1)
    return " ".join([*others[:position], facts[0], *others[position:]])


def _names(rng: random.Random, n: int) -> Iterator[tuple[str, ...]]:
    """Without end, n invented names with different first letters; none comes twice, as one that would gets longer."""
    taken: set[str] = set()
    while True:
        names = []
        for first in rng.sample(FIRST, n):
            name = first + rng.choice(VOWELS) + rng.choice(MIDDLE) + rng.choice(VOWELS) + rng.choice(LAST)
            while name in taken:
                name += rng.choice(VOWELS) + rng.choice(LAST)
            taken.add(name)
            names.append(name)
        yield tuple(names)


QUERIES: dict[str, dict[Template, str]] = {
    "thing": {
        "raw": "Question: What does {0} own?\nAnswer: {0} owns the",
        "chat": "What does {0} own? Answer with one word.",
    },
    "thing there": {
        "raw": "Question: What is in the town where {0} lives?\nAnswer: In the town where {0} lives is the",
        "chat": "What is in the town where {0} lives? Answer with one word.",
    },
    "home": {
        "raw": "Question: Where does {0} live?\nAnswer: {0} lives in",
        "chat": "Where does {0} live? Answer with the name only.",
    },
}
"""What is asked of the person {0}: what they own, what is where they live, and where they live."""

FIRST, VOWELS, LAST = "BDFGHJKLMNPRSTVWZ", "aeiou", "bfgkmpxz"
MIDDLE = ("bz", "dv", "fk", "gv", "kz", "lv", "mz", "nv", "pv", "rz", "tv", "zg")
"""Between them no English word, and no usual name."""

N_VALUES = 8
VALUES: dict[Values, tuple[str, ...]] = {
    "listed": ("boat", "clock", "drum", "hammer", "lamp", "piano", "ring", "tent"),
    "invented": ("brimp", "dwelk", "flonz", "glarp", "skrun", "trusk", "vlimt", "zwap"),
}
"""The answers, `N_VALUES` of each kind; different first letters make their first tokens differ."""
