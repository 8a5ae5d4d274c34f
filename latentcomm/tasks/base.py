"""What a task is: items of text for a sender and a receiver, who judges the replies, how answer choices are drawn."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from latentcomm.models.chat import ChatFormat
from latentcomm.models.prompts import Template
from latentcomm.tasks.judging import Begins, Judge, is_correct, refuse_empty_answers

REPLY_TOKENS = 8
"""Tokens of a reply where a task sets no limit of its own: "the Democratic Republic of the Congo" has seven."""
DEFAULT_N_CHOICES = 20
"""Answer choices of an item without candidates of its own: chance is 5 %, far below any channel worth a figure."""


@dataclass(frozen=True)
class Item:
    """One question: the sender's text holds the answer, the receiver's text queries it.

    `sender`, `receiver` and `skyline` are the texts for the sender, the receiver, and the one model that reads both.
    `answers` are the accepted aliases, the canonical one first; `choice` is the literal string whose first token
    represents the answer when choices are scored (" Greece" has its space). `tags` are facts about the item to report
    by. `candidates`, where given, are this item's own answer choices and replace the task's. `more_senders` are the
    texts of further senders, each with another part of the facts; tasks of one sender have none.

    Raises:
        ValueError: an empty text, no answers, or a choice that is not among the item's own candidates.

    >>> Item("1", "Alice is at Petra.", "Alice is in the country of", "Alice is at Petra. Alice is in the country of",
    ...      ("Jordan",), " Jordan", {"fame": "famous"}).tags["fame"]
    'famous'
    """

    id: str
    sender: str
    receiver: str
    skyline: str
    answers: tuple[str, ...]
    choice: str = ""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    candidates: tuple[str, ...] | None = None
    more_senders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", dict(self.tags))  # a copy, so that the caller's dict can change
        for name in ("id", "sender", "receiver", "skyline"):
            if not getattr(self, name).strip():
                raise ValueError(f"item {self.id!r} has an empty {name}; every text of an item must have content")
        if not all(text.strip() for text in self.more_senders):
            raise ValueError(f"item {self.id!r} has an empty text in more_senders; every sender must read a text")
        if self.choice and not self.choice.strip():
            raise ValueError(f"item {self.id!r} has an empty choice; every text of an item must have content")
        refuse_empty_answers(self.answers)
        if self.candidates is not None:
            _refuse_bad_candidates(f"item {self.id!r}", self.candidates)
            if self.choice not in self.candidates:
                raise ValueError(f"item {self.id!r}: its choice {self.choice!r} is not among {self.candidates}; add it")


@dataclass(frozen=True)
class Task:
    """A named, ordered set of items, pure data.

    `candidates` are the choice strings that distractors are drawn from, `template` is "raw" where the texts are prompts
    as they are, "chat" where they are the user's turn of a chat, or a `ChatFormat` with what else that chat holds.
    `settings` are recorded with the results, and `strata` names the tags along which `split` and `take` preserve the
    proportions. Items that share a value of the tag `together` are never separated by a split: facts about a person in
    one half are not queried in the other. `judge` decides whether a reply of at most `reply_tokens` tokens is right. A
    task of free answers has no candidates, and its items an empty choice.

    Raises:
        ValueError: no items, a repeated id, a choice among no candidates, or a stratum that an item has no tag for.

    >>> items = tuple(Item(str(i), "s", "r", "s r", ("A",), " A", {"fame": "ab"[i % 2]}) for i in range(8))
    >>> tune, test = Task("toy", items, (" A", " B"), "raw", strata=("fame",)).split(seed=0)
    >>> [item.tags["fame"] for item in tune.items].count("a"), len(test.items)
    (2, 4)
    """

    name: str
    items: tuple[Item, ...]
    candidates: tuple[str, ...]
    template: Template | ChatFormat
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    strata: tuple[str, ...] = ()
    together: str = ""
    judge: Judge = field(default_factory=Begins)
    reply_tokens: int = REPLY_TOKENS

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", dict(self.settings))
        if self.template == ChatFormat():  # one name for one thing, in the keys of saved work too
            object.__setattr__(self, "template", "chat")
        if not self.items:
            raise ValueError(f"task {self.name!r} has no items; loosen the options that chose them")
        if self.has_choices:
            _refuse_bad_candidates(f"task {self.name!r}", self.candidates)
        elif any(item.choice for item in self.items):
            raise ValueError(f"task {self.name!r} has a choice among no candidates; give candidates, or no choice")
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ValueError(f"task {self.name!r} has two items with the id {item.id!r}; make ids unique")
            seen.add(item.id)
            if self.has_choices and item.candidates is None and item.choice not in self.candidates:
                raise ValueError(f"item {item.id!r}: its choice {item.choice!r} is not among the task's; add it")
            tags = (*self.strata, self.together) if self.together else self.strata
            missing = [tag for tag in tags if tag not in item.tags]
            if missing:
                raise ValueError(f"item {item.id!r} has no tag {missing[0]!r}, which task {self.name!r} splits by")

    @property
    def has_choices(self) -> bool:
        """Whether replies can also be scored among choices; a task of free answers has none."""
        return bool(self.candidates)

    def split(
        self, *, seed: int, tune_fraction: float = 0.5, group: Callable[[Item], str] | None = None
    ) -> tuple["Task", "Task"]:
        """Two disjoint tasks (tune, test) that together hold every item, each in this task's order.

        By item, the tune side holds round(tune_fraction * n) items, and of every stratum its share to within one item.
        With `group` (such as `lambda item: item.tags["country"]`) items of one group are never separated; the sizes are
        then as near as a random order of whole groups allows. The same seed gives the same split on every machine.

        Raises:
            ValueError: a fraction outside (0, 1), or one side would be empty.

        >>> items = tuple(Item(str(i), "s", "r", "s r", ("A",), " A", {"country": "xyz"[i // 2]}) for i in range(6))
        >>> tune, test = Task("toy", items, (" A",), "raw").split(seed=0, group=lambda item: item.tags["country"])
        >>> {item.tags["country"] for item in tune.items} & {item.tags["country"] for item in test.items}
        set()
        """
        if not 0.0 < tune_fraction < 1.0:
            raise ValueError(f"tune_fraction is {tune_fraction}; give a number between 0 and 1, both excluded")
        rng = random.Random(f"split:{seed}")
        if group is None and self.together:
            group = self._group
        if group is None:
            n_tune = int(len(self.items) * tune_fraction + 0.5)
            tune_ids = self._sample_in_proportion(n_tune, rng)
        else:
            tune_ids = self._sample_whole_groups(tune_fraction, group, rng)
        if not 0 < len(tune_ids) < len(self.items):
            raise ValueError(
                f"tune_fraction {tune_fraction} of these {len(self.items)} items of task {self.name!r} leaves "
                "one side empty; change the fraction or bring more items or groups"
            )
        record = {"split_seed": seed, "tune_fraction": tune_fraction, "split_by": "item" if group is None else "group"}
        tune = replace(
            self,
            items=tuple(item for item in self.items if item.id in tune_ids),
            settings={**self.settings, **record, "side": "tune"},
        )
        test = replace(
            self,
            items=tuple(item for item in self.items if item.id not in tune_ids),
            settings={**self.settings, **record, "side": "test"},
        )
        return tune, test

    def take(self, n: int, *, seed: int) -> "Task":
        """A task of n of these items, drawn at random in proportion to the strata, in this task's order.

        Raises:
            ValueError: n is not from 1 to the number of items.

        >>> items = tuple(Item(str(i), "s", "r", "s r", ("A",), " A") for i in range(6))
        >>> len(Task("toy", items, (" A",), "raw").take(4, seed=0).items)
        4
        """
        if not 1 <= n <= len(self.items):
            raise ValueError(
                f"cannot take {n} of the {len(self.items)} items of task {self.name!r}; give 1 to that many"
            )
        ids = self._sample_in_proportion(n, random.Random(f"take:{seed}"))
        items = tuple(item for item in self.items if item.id in ids)
        return replace(self, items=items, settings={**self.settings, "taken": n, "take_seed": seed})

    def _group(self, item: Item) -> str:
        return item.tags[self.together]

    def _stratum(self, item: Item) -> tuple[str, ...]:
        return tuple(item.tags[tag] for tag in self.strata)

    def _sample_in_proportion(self, n: int, rng: random.Random) -> set[str]:
        """Ids of exactly n items; of every stratum its share to within one, by rounding the running total."""
        by_stratum: dict[tuple[str, ...], list[str]] = {}
        for item in self.items:
            by_stratum.setdefault(self._stratum(item), []).append(item.id)
        ids: set[str] = set()
        passed = 0
        for stratum in sorted(by_stratum):
            members = by_stratum[stratum]
            passed += len(members)
            quota = (2 * passed * n + len(self.items)) // (2 * len(self.items)) - len(ids)
            ids.update(rng.sample(members, quota))
        return ids

    def _sample_whole_groups(self, fraction: float, group: Callable[[Item], str], rng: random.Random) -> set[str]:
        """Ids of random whole groups, each taken if it brings the strata nearer to their share (sum of squares)."""
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(group(item), []).append(item)
        lacking: dict[tuple[str, ...], float] = {}
        for item in self.items:
            lacking[self._stratum(item)] = lacking.get(self._stratum(item), 0.0) + fraction
        ids: set[str] = set()
        names = list(groups)
        rng.shuffle(names)
        for name in names:
            left = dict(lacking)
            for item in groups[name]:
                left[self._stratum(item)] -= 1.0
            if sum(gap * gap for gap in left.values()) < sum(gap * gap for gap in lacking.values()):
                lacking = left
                ids.update(item.id for item in groups[name])
        return ids


def draw_choices(
    task: Task, first_token: Callable[[str], int], *, n_choices: int | None = None, seed: int
) -> list[tuple[str, ...]]:
    """For each item its answer choices in random order: its own and distractors, pairwise different in the first token.

    `first_token` gives the id of a choice string's first token; two choices that share it would tie in every score.
    Distractors come from the task's candidates, never one that would itself be judged correct; by default there are
    `DEFAULT_N_CHOICES` choices an item. An item with candidates of its own gets all of these and no others. What an
    item gets depends on the seed and its id alone, so it is the same in a split or a sample of the task.

    Raises:
        ValueError: too few different first tokens, own candidates that share one, or items with unequal numbers.

    >>> items = (Item("1", "s", "r", "s r", ("Greece",), " Greece"),)
    >>> task = Task("toy", items, (" Greece", " Italy", " Iran", " Peru"), "raw")
    >>> sorted(draw_choices(task, lambda choice: ord(choice[1]), n_choices=3, seed=0)[0])[0]
    ' Greece'
    """
    tokens = {choice: first_token(choice) for choice in _all_choices(task)}
    drawn = [
        _choices_of(item, task, tokens, n_choices, random.Random(f"choices:{seed}:{item.id}")) for item in task.items
    ]
    counts = sorted({len(choices) for choices in drawn})
    if len(counts) > 1:
        raise ValueError(f"items of task {task.name!r} have {counts} choices; give every item equally many candidates")
    return drawn


def _choices_of(
    item: Item, task: Task, tokens: Mapping[str, int], n_choices: int | None, rng: random.Random
) -> tuple[str, ...]:
    if item.candidates is not None:
        if n_choices is not None and n_choices != len(item.candidates):
            raise ValueError(f"item {item.id!r} has {len(item.candidates)} candidates, not {n_choices}; omit n_choices")
        wanted, pool = len(item.candidates), item.candidates
    else:
        wanted, pool = DEFAULT_N_CHOICES if n_choices is None else n_choices, task.candidates
    if wanted < 2:
        raise ValueError(f"{wanted} choices leave item {item.id!r} nothing to choose between; request at least 2")
    by_token = {tokens[item.choice]: item.choice}
    for choice in rng.sample(pool, len(pool)):
        if len(by_token) == wanted:
            break
        if tokens[choice] not in by_token and not is_correct(choice, item.answers):
            by_token[tokens[choice]] = choice
    if len(by_token) < wanted:
        raise ValueError(
            f"item {item.id!r} has only {len(by_token)} of {wanted} choices with different first tokens among its "
            f"{len(pool)} candidates; request fewer choices or give candidates that begin differently"
        )
    chosen = list(by_token.values())
    rng.shuffle(chosen)
    return tuple(chosen)


def _all_choices(task: Task) -> set[str]:
    """Only strings that can be drawn: a pool nobody uses need not have good first tokens."""
    return {choice for item in task.items for choice in item.candidates or task.candidates}


def _refuse_bad_candidates(owner: str, candidates: tuple[str, ...]) -> None:
    if not candidates or not all(candidate.strip() for candidate in candidates):
        raise ValueError(f"the candidates of {owner} are {candidates!r}; give at least one, and none empty")
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"the candidates of {owner} repeat themselves; name each choice once")
