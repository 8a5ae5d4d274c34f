"""Debate in words: agents answer, read what the others answered, answer again, and vote."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentcomm.channels.base import asked_itself
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.text import check_length, item_seed, refuse_silence, texts_of
from latentcomm.hooks.decode import decode
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode
from latentcomm.models.prompts import Prompts
from latentcomm.tasks.base import Item, Task
from latentcomm.tasks.judging import is_correct

APART = "\x1e"
"""Stands between the answers in a message: the record separator, which is taken out of what an agent says."""
_CLAUSE = re.compile(r"[.,;:!?\n]")


@dataclass(frozen=True)
class Debate:
    """Agents of both models answer; in later rounds each reads the others' last answers first; the majority counts.

    The first agent is the sender and reads its text, the last is the receiver and reads its own; agents between them
    take turns, the sender's model first, and sample, so that they differ. Of all agents' last answers the one that
    most agents gave is the answer; where no single one is ahead, the receiver's own. What two agents say is the same
    answer if the task's judge finds the same in it, or the same of the task's candidates; an agent whose answer cannot
    be parsed has no vote.

    A message weighs all that the receiver was told: the others' answers of all rounds, the last for the vote.

    Source: Du et al. 2023, arXiv:2305.14325; the wording is this package's own.

    Attributes:
        name: the name in tables.
        n_agents, rounds: how many agents and rounds, 2 or more each: in one round nobody hears anything.
        max_tokens: how long an answer may get; None takes the task's `reply_tokens`.
        request: what the sender's agents read after their text.
        heard: how another's answer is put to an agent; `{answer}` stands for it.
        between: what stands between the answers and the agent's text.
        temperature, top_p, seed: how the agents between the first and the last sample.
        allow_empty: whether the others may say nothing in any round, which is silence; else it is refused. An empty
            answer beside others is passed over.

    Raises:
        ValueError: an option out of range; in `send` no receiver, or an item of which nothing is said.

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
            raise ValueError(f"heard is {self.heard!r}; put {{answer}} where another's answer stands")

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """All rounds but the receiver's last turn: what the others said, round by round."""
        agents = agent_models(self.name, sender, receiver, self.n_agents)
        rounds: list[list[list[str]]] = []
        for number in range(self.rounds):
            last = number == self.rounds - 1
            speaking = range(self.n_agents - 1) if last else range(self.n_agents)
            rounds.append([self._turn(agents[agent], agent, task, number, rounds[-1:]) for agent in speaking])
        others = [said for each in rounds for said in each[: self.n_agents - 1]]
        texts = tuple(APART.join(said[row] for said in others) for row in range(len(task.items)))
        refuse_silence(
            self.name, sender, task, [bool(text.replace(APART, "").strip()) for text in texts], self.allow_empty
        )
        facts = made_by(sender, site="logits", position="reply")
        origin = f"{sender.name} and {agents[-1].name} in debate"
        return Message(None, origin, texts=texts, meant_for=agents[-1].name, made_by=facts)

    def carries_own(self, receiver: Model) -> bool:
        """Yes: a model can debate with itself."""
        return True

    def own(self, receiver: Model, task: Task) -> Message:
        """A debate of the receiver with itself, each side knowing what the receiver knows."""
        return replace(self.send(receiver, asked_itself(task), receiver=receiver), is_own=True)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's last turn: the others' answers of the round before, then its text.

        Raises:
            ValueError: the message holds no debate of this many agents and rounds, or is meant for another model.
        """
        message.check_receiver(receiver)
        n_others = self.n_agents - 1
        heard = [said[-2 * n_others : -n_others] for said in self._said(message)]
        return ReceiverInput(self._reading(receiver, [item.receiver for item in task.items], task, heard))

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The answer of most agents to every item; the receiver's reply where no single answer is ahead."""
        n_others = self.n_agents - 1
        return [
            vote(task, item, [*said[-n_others:], reply])
            for item, said, reply in zip(task.items, self._said(message), replies, strict=True)
        ]

    def _said(self, message: Message) -> list[list[str]]:
        said = [text.split(APART) for text in texts_of(message, self.name)]
        wanted = self.rounds * (self.n_agents - 1)
        if wrong := [len(each) for each in said if len(each) != wanted]:
            raise ValueError(f"the message holds {wrong[0]} answers an item and the channel {self.name} needs {wanted}")
        return said

    def _turn(self, model: Model, agent: int, task: Task, number: int, before: Sequence[list[list[str]]]) -> list[str]:
        """One agent's answers to all items, after those of the round before, if there was one."""
        asked = agent_task(task, self.n_agents, agent, self.request)
        heard: list[list[str]] = [[] for _ in task.items]
        for said in before:
            others = [answers for other, answers in enumerate(said) if other != agent]
            heard = [[answers[row] for answers in others] for row in range(len(task.items))]
        samples = 0 < agent < self.n_agents - 1
        said = decode(
            model,
            self._reading(model, [item.sender for item in asked.items], task, heard),
            max_new_tokens=task.reply_tokens if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature if samples else 0,
            top_p=self.top_p,
            seeds=[item_seed(item, self.seed, number, agent) for item in task.items],
        )
        return [text.replace(APART, " ") for text in said.texts]

    def _reading(self, model: Model, texts: Sequence[str], task: Task, heard: Sequence[Sequence[str]]) -> Prompts:
        """Prompts of the others' answers, those that are not empty, and a text."""
        asked = []
        for text, answers in zip(texts, heard, strict=True):
            told = [self.heard.replace("{answer}", answer.strip()) for answer in answers if answer.strip()]
            asked.append("".join(f"{each}{self.between}" for each in told) + text)
        return encode(model, asked, template=task.template)


def vote(task: Task, item: Item, answers: Sequence[str]) -> str:
    """The answer that most agents gave, as the last (the receiver) or else the first of them said it.

    Where no single answer is ahead, the receiver's; an answer that the judge cannot parse has no vote.
    """
    keys = [same_answer(task, item, answer) for answer in answers]
    counts = Counter(key for key in keys if key)
    ahead = [key for key, count in counts.items() if count == max(counts.values())]
    if len(ahead) != 1 or keys[-1] == ahead[0]:
        return answers[-1]
    return answers[keys.index(ahead[0])]


def same_answer(task: Task, item: Item, answer: str) -> str:
    """What two answers have in common when they are the same: empty where the judge finds none.

    The candidate that the judge's find begins with, the longest if several; else its first clause, a leading "the",
    case and space aside. Whether it is right plays no part.
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
    """Who speaks as each agent: the sender first, the receiver last, between them both in turn.

    Raises:
        ValueError: there is no receiver.
    """
    if receiver is None:
        raise ValueError(f"the channel {name} is a debate: give send the receiver too")
    return [*(receiver if _is_receiver(n_agents, agent) else sender for agent in range(n_agents - 1)), receiver]


def agent_task(task: Task, n_agents: int, agent: int, request: str) -> Task:
    """The task whose sender reads what this agent reads."""
    if _is_receiver(n_agents, agent):
        return asked_itself(task)
    return replace(task, items=tuple(replace(item, sender=item.sender + request) for item in task.items))


def _is_receiver(n_agents: int, agent: int) -> bool:
    return agent == n_agents - 1 or agent % 2 == 1
