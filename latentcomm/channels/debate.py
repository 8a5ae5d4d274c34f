"""Debate in text: agents answer, read the others' answers, answer again, and vote."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentcomm.channels.base import ReadsOwnText, with_own_texts
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.text import check_length, item_seed, refuse_silence, texts_of
from latentcomm.hooks.decode import decode
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode
from latentcomm.models.prompts import Prompts
from latentcomm.tasks.base import Item, Task
from latentcomm.tasks.judging import is_correct

APART = "\x1e"
"""The separator of the answers in a message: the record separator, which is replaced in every generated answer."""
_CLAUSE = re.compile(r"[.,;:!?\n]")


@dataclass(frozen=True)
class Debate(ReadsOwnText):
    """Agents of both models answer; in later rounds each reads the others' last answers first; the majority counts.

    The first agent is the sender and reads its text, the last is the receiver and reads its own; agents between them
    alternate, the sender's model first, and sample, so that they differ. The decision is the most frequent of
    all agents' last answers; where no single answer leads, it is the receiver's own. Two answers are the same if the
    task's judge finds the same answer in both, or the same of the task's candidates; an answer that cannot be parsed
    has no vote.

    A message holds all that the receiver reads: the others' answers of all rounds, the last for the vote.

    Source: Du et al. 2023, arXiv:2305.14325; the wording is this package's own.

    Attributes:
        name: the name in tables.
        n_agents, rounds: how many agents and rounds, 2 or more each: in one round no message is read.
        max_tokens: tokens of an answer at most; None takes the task's `reply_tokens`.
        request: appended to the text of the sender's agents.
        heard: the template of another agent's answer in a prompt; `{answer}` is replaced by the answer.
        between: the separator between the answers and the agent's text.
        temperature, top_p, seed: sampling of the agents between the first and the last.
        allow_empty: whether the others' answers may be empty in all rounds, which counts as silence; else that is
            refused. Single empty answers are skipped.

    Raises:
        ValueError: an option out of range; in `send` no receiver, or an item with an empty message.

    >>> Debate(n_agents=3).rounds
    2
    """

    name: str = "debate"
    n_agents: int = 2
    rounds: int = 2
    max_tokens: int | None = None
    request: str = ""
    heard: str = "Somebody else says: {answer}"
    between: str = "\n"
    temperature: float | int = 0.7
    top_p: float | int = 1
    seed: int = 0
    allow_empty: bool = False

    def __post_init__(self) -> None:
        check_length(self.name, self.max_tokens)
        if self.n_agents < 2 or self.rounds < 2:
            raise ValueError(
                f"the channel {self.name} has {self.n_agents} agents and {self.rounds} rounds; "
                "a debate needs 2 or more of both"
            )
        if "{answer}" not in self.heard:
            raise ValueError(f"heard is {self.heard!r}; put {{answer}} where another agent's answer goes")

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """All rounds but the receiver's last answer: the others' answers, round by round."""
        agents = agent_models(self.name, sender, receiver, self.n_agents)
        rounds: list[list[list[str]]] = []
        for number in range(self.rounds):
            last = number == self.rounds - 1
            answering = range(self.n_agents - 1) if last else range(self.n_agents)
            rounds.append([self._answers(agents[agent], agent, task, number, rounds[-1:]) for agent in answering])
        others = [answers for of_round in rounds for answers in of_round[: self.n_agents - 1]]
        texts = tuple(APART.join(answers[row] for answers in others) for row in range(len(task.items)))
        refuse_silence(
            self.name, sender, task, [bool(text.replace(APART, "").strip()) for text in texts], self.allow_empty
        )
        facts = made_by(sender, site="logits", position="reply")
        origin = f"{sender.name} and {agents[-1].name} in debate"
        return Message(None, origin, texts=texts, meant_for=agents[-1].name, made_by=facts).addressed(task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's last prompt: the others' answers of the previous round, then its text.

        Raises:
            ValueError: the message holds no debate of this many agents and rounds, or is meant for another model.
        """
        message.check_receiver(receiver, task)
        n_others = self.n_agents - 1
        previous = [answers[-2 * n_others : -n_others] for answers in self._parse(message)]
        return ReceiverInput(self._prompts(receiver, [item.receiver for item in task.items], task, previous))

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The most frequent answer to every item; the receiver's reply where no single answer leads."""
        n_others = self.n_agents - 1
        return [
            vote(task, item, [*answers[-n_others:], reply])
            for item, answers, reply in zip(task.items, self._parse(message), replies, strict=True)
        ]

    def _parse(self, message: Message) -> list[list[str]]:
        """For each item the others' answers, round by round."""
        answers = [text.split(APART) for text in texts_of(message, self.name)]
        wanted = self.rounds * (self.n_agents - 1)
        if wrong := [len(of_item) for of_item in answers if len(of_item) != wanted]:
            raise ValueError(f"the message holds {wrong[0]} answers an item and the channel {self.name} needs {wanted}")
        return answers

    def _answers(
        self, model: Model, agent: int, task: Task, number: int, previous: Sequence[list[list[str]]]
    ) -> list[str]:
        """One agent's answers to all items, given those of the previous round, if there was one."""
        own_task = agent_task(task, self.n_agents, agent, self.request)
        received: list[list[str]] = [[] for _ in task.items]
        for of_round in previous:
            others = [answers for other, answers in enumerate(of_round) if other != agent]
            received = [[answers[row] for answers in others] for row in range(len(task.items))]
        samples = 0 < agent < self.n_agents - 1
        replies = decode(
            model,
            self._prompts(model, [item.sender for item in own_task.items], task, received),
            max_new_tokens=task.reply_tokens if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature if samples else 0,
            top_p=self.top_p,
            seeds=[item_seed(item, self.seed, number, agent) for item in task.items],
        )
        return [text.replace(APART, " ") for text in replies.texts]

    def _prompts(self, model: Model, texts: Sequence[str], task: Task, received: Sequence[Sequence[str]]) -> Prompts:
        """Prompts of the others' non-empty answers and a text."""
        prompts = []
        for text, answers in zip(texts, received, strict=True):
            quoted = [self.heard.replace("{answer}", answer.strip()) for answer in answers if answer.strip()]
            prompts.append("".join(f"{quote}{self.between}" for quote in quoted) + text)
        return encode(model, prompts, template=task.template)


def vote(task: Task, item: Item, answers: Sequence[str]) -> str:
    """The most frequent answer, as the last agent (the receiver) or else the first agent that gave it wrote it.

    Where no single answer leads, the receiver's; an answer that the judge cannot parse has no vote.
    """
    keys = [same_answer(task, item, answer) for answer in answers]
    counts = Counter(key for key in keys if key)
    leading = [key for key, count in counts.items() if count == max(counts.values())]
    if len(leading) != 1 or keys[-1] == leading[0]:
        return answers[-1]
    return answers[keys.index(leading[0])]


def same_answer(task: Task, item: Item, answer: str) -> str:
    """The key under which equal answers are counted: empty where the judge finds no answer.

    The candidate that the found answer begins with, the longest if several; else its first clause, without a leading
    "the", case and spaces ignored. It does not depend on whether the answer is right.
    """
    verdict = task.judge(answer, item.answers)
    if not verdict.is_parsed:
        return ""
    choices = [choice.strip() for choice in item.candidates or task.candidates]
    named = [choice for choice in choices if is_correct(verdict.found, (choice,))]
    if named:
        return max(named, key=len)
    first = _CLAUSE.split(verdict.found.strip(), maxsplit=1)[0]
    return " ".join((first or verdict.found).casefold().split()).removeprefix("the ")


def agent_models(name: str, sender: Model, receiver: Model | None, n_agents: int) -> list[Model]:
    """The model of each agent: the sender first, the receiver last, between them both alternately.

    Raises:
        ValueError: there is no receiver.
    """
    if receiver is None:
        raise ValueError(f"the channel {name} is a debate: give send the receiver too")
    return [*(receiver if _is_receiver(n_agents, agent) else sender for agent in range(n_agents - 1)), receiver]


def agent_task(task: Task, n_agents: int, agent: int, request: str) -> Task:
    """The task whose sender's text is this agent's text."""
    if _is_receiver(n_agents, agent):
        return with_own_texts(task)
    return replace(task, items=tuple(replace(item, sender=item.sender + request) for item in task.items))


def _is_receiver(n_agents: int, agent: int) -> bool:
    return agent == n_agents - 1 or agent % 2 == 1
