"""CIPHER: the sender sends averages of embeddings, which the receiver reads instead of token embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentcomm.channels.base import ReadsOwnText
from latentcomm.channels.debate import agent_models, agent_task
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.soft_decoding import (
    SoftReply,
    check_vocabulary,
    decode_softly,
    nearest_tokens,
    table,
    with_slot,
)
from latentcomm.channels.text import check_length, prompts_with_request, refuse_silence
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model
from latentcomm.tasks.base import Task

SOFT = "embeddings"
"""The name of an item's message part: one averaged embedding a step, in the receiver's table."""
OWN = "own"
"""The name of the part with the receiver's own last answer, in a debate."""


@dataclass(frozen=True)
class Cipher(ReadsOwnText):
    """The sender decodes softly; the receiver reads the averages before its own text, inside its template.

    At each step the sender continues from sum_v softmax(logits / T)_v E_v, and the receiver gets the same average over
    its own table: both need one vocabulary. At temperature 0 the message is the greedy text of `Text`, token by token.

    Source: Pham et al. 2023, arXiv:2310.06272.

    Attributes:
        name: the name in tables.
        temperature: T; 0 takes the likeliest token, infinity the mean of the table. Tune it on held-out items; small
            models reply to averages at T = 1 with line breaks.
        entropy_threshold: averages only where the next-token entropy, in nats, exceeds it, and the likeliest token's
            row elsewhere (partial CIPHER); None averages everywhere.
        max_tokens: steps of a message at most.
        request: appended to the sender's text.
        between: the separator between the message and the receiver's text.
        allow_empty: whether an empty message counts as silence for that item; else it is refused.

    Raises:
        ValueError: an option out of range; in `send` two vocabularies, processed weights, or an empty message.

    >>> Cipher(temperature=0.25).max_tokens
    32
    """

    name: str = "cipher"
    temperature: float | int = 0.5
    entropy_threshold: float | int | None = None
    max_tokens: int = 32
    request: str = ""
    between: str = "\n"
    allow_empty: bool = False

    def __post_init__(self) -> None:
        check_length(self.name, self.max_tokens)
        check_temperatures(self.name, (self.temperature,), self.entropy_threshold)

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The averages of each item's message in the receiver's table; without a receiver, in the sender's own."""
        target = sender if receiver is None else receiver
        check_vocabulary(sender, target)
        table(target)
        replies = decode_softly(
            sender,
            ReceiverInput(prompts_with_request(sender, task, self.request)),
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            entropy_threshold=self.entropy_threshold,
            readers=(target,),
        )
        refuse_silence(self.name, sender, task, [len(reply.ids) > 0 for reply in replies], self.allow_empty)
        origin = f"{sender.name} soft tokens in the table of {target.name}"
        return _message(sender, target, origin, [{SOFT: reply.vectors[0]} for reply in replies]).addressed(task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The averages, `between` and the receiver's text as one prompt; an empty message is left out.

        Raises:
            ValueError: the message holds no averages, or is meant for another model.
        """
        message.check_receiver(receiver, task)
        soft = [part[SOFT] for part in soft_parts(self.name, message, SOFT)]
        texts = [item.receiver for item in task.items]
        return with_slot(receiver, texts, soft, template=task.template, between=self.between)


@dataclass(frozen=True)
class CipherDebate(ReadsOwnText):
    """Agents debate in averaged embeddings, each at its own temperature; the answer of the coldest is the decision.

    Agents alternate between the two models as in `Debate`: the first is the sender, the last the receiver. In the
    first round each reads its own text; in later rounds it reads the others' last answers as embeddings, then its own
    last answer, then its text. The answer is the last one of the agent with the lowest temperature, at the nearest
    token of each step by cosine; the receiver's where it is among the coldest. The receiver's own last answer is its
    decoded reply, which counts as an answer at temperature 0.

    A message holds all that the receiver reads in all rounds, and its own last averages, which it reads again.

    Source: Pham et al. 2023, arXiv:2310.06272.

    Attributes:
        name: the name in tables.
        temperatures: one an agent, from the sender to the receiver; two or more.
        rounds: how many rounds, 2 or more: in one round no message is read.
        max_tokens: tokens of an answer at most; None takes the task's `reply_tokens`.
        entropy_threshold, request, between: as in `Cipher`.
        allow_empty: as in `Debate`.

    Raises:
        ValueError: an option out of range; in `send` any argument that `Cipher` refuses, or no receiver.

    >>> CipherDebate(temperatures=(0.25, 0.8)).rounds
    3
    """

    name: str = "cipher debate"
    temperatures: tuple[float | int, ...] = (0.5, 0.25)
    rounds: int = 3
    max_tokens: int | None = None
    entropy_threshold: float | int | None = None
    request: str = ""
    between: str = "\n"
    allow_empty: bool = False

    def __post_init__(self) -> None:
        check_length(self.name, self.max_tokens)
        check_temperatures(self.name, self.temperatures, self.entropy_threshold)
        if len(self.temperatures) < 2 or self.rounds < 2:
            raise ValueError(
                f"the channel {self.name} has {len(self.temperatures)} agents and {self.rounds} rounds; "
                "a debate needs 2 or more of both"
            )

    @property
    def coldest(self) -> int:
        """The agent whose answer is the decision; the receiver where it is among the coldest."""
        lowest = min(self.temperatures)
        return max(agent for agent, each in enumerate(self.temperatures) if each == lowest)

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """All rounds but the receiver's last answer."""
        agents = agent_models(self.name, sender, receiver, len(self.temperatures))
        last_agent = agents[-1]
        check_vocabulary(sender, last_agent)
        table(last_agent)
        rounds: list[list[list[SoftReply]]] = []
        for number in range(self.rounds):
            last = number == self.rounds - 1
            answering = range(len(agents) - 1) if last else range(len(agents))
            rounds.append(
                [self._answers(agents, agent, task, rounds[-1:], (sender, last_agent)) for agent in answering]
            )
        parts = []
        for row in range(len(task.items)):
            received = {
                f"round {number} agent {agent}": answers[agent][row].vectors[1]
                for number, answers in enumerate(rounds)
                for agent in range(len(agents) - 1)
            }
            parts.append(received | {OWN: rounds[-2][-1][row].vectors[1]})
        has_content = [any(len(answers) for part_name, answers in part.items() if part_name != OWN) for part in parts]
        refuse_silence(self.name, sender, task, has_content, self.allow_empty)
        verdicts = None
        if self.coldest != len(agents) - 1:
            answers = rounds[-1][self.coldest]
            verdicts = tuple(agents[self.coldest].decode(reply.ids.tolist()) for reply in answers)
        origin = f"{sender.name} and {last_agent.name} in soft debate"
        return _message(sender, last_agent, origin, parts, verdicts).addressed(task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's last prompt: the others' answers of the previous round, its own, then its text.

        Raises:
            ValueError: the message holds no debate, or is meant for another model.
        """
        message.check_receiver(receiver, task)
        names = [f"round {self.rounds - 2} agent {agent}" for agent in range(len(self.temperatures) - 1)]
        parts = soft_parts(self.name, message, *names, OWN)
        return self._input(receiver, [item.receiver for item in task.items], task, [
            [part[name] for name in (*names, OWN)] for part in parts
        ])  # fmt: skip

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The coldest agent's last answer; the receiver's reply where it is the coldest."""
        return replies if message.texts is None else list(message.texts)

    def _answers(
        self,
        agents: Sequence[Model],
        agent: int,
        task: Task,
        previous: Sequence[list[list[SoftReply]]],
        readers: Sequence[Model],
    ) -> list[SoftReply]:
        """One agent's answers to all items, given those of the previous round, if there was one."""
        model = agents[agent]
        own_task = agent_task(task, len(agents), agent, self.request)
        texts = [item.sender for item in own_task.items]
        received: list[list[Tensor]] = [[] for _ in texts]
        for of_round in previous:
            order = [*(other for other in range(len(agents)) if other != agent), agent]
            column = next(number for number, reader in enumerate(readers) if reader is model)
            received = [[of_round[other][row].vectors[column] for other in order] for row in range(len(texts))]
        return decode_softly(
            model,
            self._input(model, texts, task, received),
            max_new_tokens=task.reply_tokens if self.max_tokens is None else self.max_tokens,
            temperature=self.temperatures[agent],
            entropy_threshold=self.entropy_threshold,
            readers=readers,
        )

    def _input(
        self, model: Model, texts: Sequence[str], task: Task, received: Sequence[Sequence[Tensor]]
    ) -> ReceiverInput:
        """Prompts of answers in embeddings, each followed by `between`, and a text."""
        embeddings = table(model)
        gap = torch.tensor(model.require_tokenizer()(self.between, add_special_tokens=False).input_ids).long()
        joined = []
        for answers in received:
            non_empty = [answer.to(embeddings.device, embeddings.dtype) for answer in answers if len(answer)]
            chunks = [chunk for answer in non_empty for chunk in (embeddings[gap.to(embeddings.device)], answer)][1:]
            joined.append(torch.cat(chunks) if chunks else embeddings[:0])
        return with_slot(model, texts, joined, template=task.template, between=self.between)


def check_temperatures(name: str, temperatures: Sequence[float | int], entropy_threshold: float | int | None) -> None:
    """Refuse temperatures and an entropy threshold that are out of range.

    Raises:
        ValueError: a temperature or an entropy below 0, or not a number.
    """
    if bad := [each for each in temperatures if not each >= 0]:
        raise ValueError(f"a temperature of the channel {name} is {bad[0]}; give at least 0")
    if entropy_threshold is not None and not entropy_threshold >= 0:
        raise ValueError(f"entropy_threshold of the channel {name} is {entropy_threshold}; give nats, at least 0")


def soft_parts(name: str, message: Message, *names: str) -> tuple[dict[str, Tensor], ...]:
    """The named message parts of every item.

    Raises:
        ValueError: the message lacks one.
    """
    parts = tuple(dict(part) for part in message.parts or ())
    if message.parts is None or any(each not in part for part in parts for each in names):
        raise ValueError(f"the channel {name} needs a message of soft tokens and got {message.origin}")
    return parts


def nearest_texts(model: Model, message: Message) -> list[str]:
    """A `Cipher` message as text: at each step the nearest token of the receiver's table, by cosine.

    Raises:
        ValueError: the message holds no averages, or is meant for another model.
    """
    message.check_receiver(model)
    return [model.decode(nearest_tokens(model, part[SOFT]).tolist()) for part in soft_parts("cipher", message, SOFT)]


def _message(
    sender: Model, reader: Model, origin: str, parts: Sequence[dict[str, Tensor]], texts: tuple[str, ...] | None = None
) -> Message:
    """A message of averages in the receiver's embedding table."""
    facts = made_by(sender, site="hook_embed", position="reply")
    return Message(None, origin, texts=texts, parts=tuple(parts), meant_for=reader.name, made_by=facts)
