"""What passes from the large model to the small one: the opening as text, as hidden states, or as keys and values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.alignment import AffineMap
from latentcomm.channels.base import Channel, receiver_prompts, with_own_texts
from latentcomm.channels.kv import check_layout, layout_of, swapped
from latentcomm.channels.message import Message
from latentcomm.channels.soft_slots import PLACEHOLDER
from latentcomm.drift import DriftReference
from latentcomm.drift.reference import COMBINED
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.cascade.openings import EMBEDDING, opened
from latentcomm.experiments.cascade.retokenize import opening_tokens, shared_positions
from latentcomm.fusion import Replace
from latentcomm.hooks.decode import Past, ReceiverInput, SoftTokens
from latentcomm.hooks.graft import Graft
from latentcomm.models import Model, check_pair, one_vocabulary
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

EMBEDDINGS = "embeddings"
"""Where a latent hand-off writes: instead of the embeddings of additional prompt tokens."""
PASSED = ("ids", "ends", "whole", "ended")
"""The parts of an opening that every hand-off passes: its tokens, and where they and it end. Signals do not pass."""


@dataclass(frozen=True, eq=False)
class Received:
    """The small model's input for some openings, a row each.

    Attributes:
        given: the input that it is run on.
        opening: for each row the opening in the small model's tokens, or None where no text passes.
        multiply_adds: for each row, multiply-adds of the maps.
        drift: for each row, how far the states that enter are from the small model's own: the mean over them of the
            percentile of `DriftReference`, 0.5 for real states and 1 for states unlike any; None without a reference,
            and for zeros, which have no direction.
    """

    given: ReceiverInput
    opening: tuple[tuple[int, ...] | None, ...]
    multiply_adds: tuple[int, ...]
    drift: tuple[float | None, ...]


@runtime_checkable
class HandOff(Channel, Protocol):
    """A channel whose message is an opening; a frozen dataclass that `files.digest` accepts.

    As a channel it is evaluated like any other: `send` generates openings of at most `longest` tokens, `receive` reads
    each to its end, and `decide` puts the opening before the reply (a tokenizer that strips the space before a text, as
    that of Llama 2, loses one there). A cascade generates the openings once, for all hand-offs, numbers of tokens and
    stops, and calls `content` and `enter` instead.
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the large model whose states it needs (-1: the embedding), ascending."""
        ...

    @property
    def needs_cache(self) -> bool:
        """Whether it needs the large model's keys and values."""
        ...

    def check(self, large: Model, small: Model, task: Task) -> None:
        """Refuse two models, or a task, that it cannot connect, before anything is run."""
        ...

    def content(self, openings: Message) -> Message:
        """The message: what passes of openings of `write_openings`, in the small model's space."""
        ...

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The first `ns[i]` tokens, at least 1, of the opening of item i."""
        ...

    def to_itself(self) -> "HandOff | None":
        """The hand-off of the small model's own opening to itself; None where no map was fitted for it."""
        ...

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The opening and its continuation; the opening alone where it was the whole reply."""
        ...


class _Opened:
    """What hand-offs share: their openings are generated, read to the end, and put before the reply."""

    @property
    def layers(self) -> tuple[int, ...]:
        """None: no states are needed."""
        return ()

    @property
    def needs_cache(self) -> bool:
        """No: no keys and values are needed."""
        return False

    def carries_own(self: HandOff, receiver: Model) -> bool:  # noqa: ARG002
        """Whether there is a hand-off of the receiver's own opening to itself."""
        return self.to_itself() is not None

    def own(self: HandOff, receiver: Model, task: Task) -> Message:
        """The message of the receiver's own opening, through `to_itself`.

        Raises:
            ValueError: the hand-off has no map for it.
        """
        itself = self.to_itself()
        if itself is None:
            raise ValueError(f"the hand-off {self.name} has no map of the small model's own states; fit one")
        return replace(itself.send(receiver, with_own_texts(task), receiver=receiver), is_own=True)

    def receive(self: HandOff, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's input at the end of each opening."""
        return self.enter(receiver, task, message, _lengths(message)).given

    def decide(self, task: Task, message: Message, replies: list[str]) -> list[str]:
        """The text of each opening and its continuation; of one that had ended, or is as long as a reply, its own."""
        texts, parts = opened(message)
        return [
            text if bool(part["ended"]) or len(part["ids"]) >= task.reply_tokens else text + reply
            for text, part, reply in zip(texts, parts, replies, strict=True)
        ]


@dataclass(frozen=True)
class TextHandOff(_Opened):
    """The small model reads its prompt followed by the opening's text.

    Between models of one vocabulary the token ids pass unchanged. Else the text is tokenized separately by the small
    model's tokenizer, without special tokens: ids(prompt) + ids(text), so that no token spans the boundary.

    Attributes:
        name: in tables.
        longest: tokens of an opening that `send` generates at most; None takes the task's reply_tokens. In a cascade
            the stop decides.

    >>> TextHandOff().layers
    ()
    """

    name: str = "text"
    longest: int | None = None

    def check(self, large: Model, small: Model, task: Task) -> None:  # noqa: ARG002 (the signature is that of every hand-off)
        """Both models need a tokenizer.

        Raises:
            ValueError: one of them has none.
        """
        large.require_tokenizer()
        small.require_tokenizer()

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's opening of each item's receiver text."""
        return _sent(self, sender, task, receiver, self.longest)

    def content(self, openings: Message) -> Message:
        """The tokens and their text."""
        return _passed(openings)

    def to_itself(self) -> "TextHandOff":
        """The same: the small model then reads its own output, which equals the small model alone."""
        return self

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The prompts, each followed by its opening.

        Raises:
            ValueError: the message is for other items, or the small model's tokenizer does not reproduce a text.
        """
        message.check_items(task)
        opening = opening_tokens(small, task, message, ns)
        return Received(_after_prompts(small, task, opening), tuple(opening), (0,) * len(ns), (None,) * len(ns))


@dataclass(frozen=True)
class LatentHandOff(_Opened):
    """The large model's states along the opening enter the small model, through a map.

    With `write="embeddings"` no text passes: the small model reads its prompt and n soft tokens, the mapped states.
    With a layer j it reads its prompt and the opening's text, and wherever a token of both models ends at the same
    character its state after block j is fused with the mapped state (a graft: activation patching of the fused state).
    `fit_hand_off` makes one with its map.

    Attributes:
        read: the block after which the large model's states are taken; -1 takes its embeddings.
        write: "embeddings", or the block after which they are written.
        alignment: from the large model's states to the small one's; needed where the widths differ.
        fusion: how a mapped state and the small model's own are combined, at a layer.
        reference: of the small model's own states where the mapped ones enter; None measures no drift.
        itself: the hand-off of the small model's own opening to itself; without it soft tokens have no self control,
            and a graft writes its own state, unmapped, which with `Replace` equals the small model alone.
        name, longest: as in `TextHandOff`.

    Raises:
        ValueError: a layer below -1, or a fusion where there is no own state to fuse with.

    >>> LatentHandOff(read=3, write=2).layers
    (3,)
    """

    read: int
    write: int | Literal["embeddings"] = EMBEDDINGS
    alignment: AffineMap | None = None
    fusion: Callable[..., Any] = field(default_factory=Replace)
    reference: DriftReference | None = None
    itself: "LatentHandOff | None" = None
    name: str = "latent"
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.read < EMBEDDING:
            raise ValueError(f"read is {self.read}; give a block from 0, or -1 for the embedding")
        if self.write == EMBEDDINGS:
            if not isinstance(self.fusion, Replace):
                raise ValueError(
                    f"soft tokens replace no own state, so {self.fusion} has nothing to fuse with; use Replace"
                )
        elif self.write < 0:
            raise ValueError(f"write is {self.write}; give a block from 0, or 'embeddings'")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer that is read."""
        return (self.read,)

    def check(self, large: Model, small: Model, task: Task) -> None:  # noqa: ARG002 (the signature is that of every hand-off)
        """Both models must have the layers, and the map their widths.

        Raises:
            ValueError: they do not, or the widths differ and there is no map.
        """
        check_pair(large, small)
        if self.read != EMBEDDING:
            large.check_site(Site(self.read))
        if isinstance(self.write, int):
            small.check_site(Site(self.write))
        if self.alignment is None:
            if large.d_model != small.d_model:
                raise ValueError(
                    f"{large.name} is {large.d_model} wide and {small.name} {small.d_model}, and the hand-off "
                    f"{self.name} has no alignment; fit one with fit_hand_off"
                )
        elif (self.alignment.d_in, self.alignment.d_out) != (large.d_model, small.d_model):
            raise ValueError(
                f"the alignment of {self.name} maps {self.alignment.d_in} to {self.alignment.d_out}, and {large.name} "
                f"and {small.name} are {large.d_model} and {small.d_model} wide; fit one for this pair"
            )
        if self.reference is not None and self.reference.d_model != small.d_model:
            raise ValueError(
                f"the drift reference of {self.name} is {self.reference.d_model} wide and {small.name} "
                f"{small.d_model}; fit one for this model"
            )

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's states along its opening of each item's receiver text, in the receiver's space."""
        return _sent(self, sender, task, receiver, self.longest)

    def content(self, openings: Message) -> Message:
        """The states along each opening in the small model's space, `states [n d_receiver]`, with their tokens.

        Raises:
            ValueError: the openings hold no states of the layer.
        """
        _, parts = opened(openings)
        name = f"states.{self.read}"
        if not all(name in part for part in parts):
            raise ValueError(
                f"the openings hold no states after block {self.read}; write them with layers=({self.read},)"
            )
        return _passed(openings, states=[self._mapped(part[name]) for part in parts])

    def to_itself(self) -> "LatentHandOff | None":
        """`itself`; at a layer, where that is None, the same layer's states without a map."""
        if self.write == EMBEDDINGS or self.itself is not None:
            return self.itself
        return LatentHandOff(int(self.write), self.write, None, self.fusion, self.reference, None, self.name)

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The prompts followed by soft tokens, or by the opening's text with grafts.

        Raises:
            ValueError: the message holds no states, an opening no whole character, or what `TextHandOff` refuses.
        """
        message.check_items(task)
        states = [each[:n] for each, n in zip(states_of(message), ns, strict=True)]
        if self.write == EMBEDDINGS:
            return self._as_embeddings(small, task, states)
        opening = opening_tokens(small, task, message, ns)
        starts = receiver_prompts(small, task).lengths.tolist()
        positions = shared_positions(small, message, ns, opening)
        for item, (shared, _), n in zip(task.items, positions, ns, strict=True):
            if len(shared) == 0:
                raise ValueError(
                    f"the first {n} tokens of the opening of item {item.id!r} hold no whole character, so {self.name} "
                    "has no position to write at; use a larger n"
                )
        used = [each[mine] for each, (mine, _) in zip(states, positions, strict=True)]
        widest = max(map(len, used))
        # A row with fewer positions repeats its last one, where the same state is then written twice.
        index = [torch.arange(widest).clamp(max=len(each) - 1) for each in used]
        graft = Graft(
            Site(int(self.write)),
            torch.stack([at[i] + start for (_, at), i, start in zip(positions, index, starts, strict=True)]),
            torch.stack([each[i] for each, i in zip(used, index, strict=True)]),
            self.fusion,
        )
        given = replace(_after_prompts(small, task, opening), grafts=(graft,))
        return Received(given, tuple(opening), self._multiply_adds(used), self._drift(used))

    def _mapped(self, states: Float[Tensor, "n d_sender"]) -> Float[Tensor, "n d_receiver"]:
        return states if self.alignment is None else self.alignment(states.to(self.alignment.weight.device))

    def _as_embeddings(self, small: Model, task: Task, states: Sequence[Float[Tensor, "_ d_receiver"]]) -> Received:
        prompts = receiver_prompts(small, task)
        ids = [[*prompts.ids(row).tolist(), *[PLACEHOLDER] * len(each)] for row, each in enumerate(states)]
        positions = [torch.arange(len(row) - len(each), len(row)) for row, each in zip(ids, states, strict=True)]
        soft = SoftTokens(tuple(positions), tuple(states))
        given = ReceiverInput(Prompts.from_ids(ids), soft=soft)
        return Received(given, (None,) * len(states), self._multiply_adds(states), self._drift(states))

    def _multiply_adds(self, states: Sequence[Tensor]) -> tuple[int, ...]:
        each = 0 if self.alignment is None else self.alignment.weight.numel()
        return tuple(len(row) * each for row in states)

    def drift_of(self, states: Float[Tensor, "n d_receiver"]) -> list[float]:
        """The percentile of each state among the small model's own; NaN without a reference."""
        if self.reference is None:
            return [math.nan] * len(states)
        return self.reference.percentile(states.float().cpu())[COMBINED].tolist()

    def _drift(self, states: Sequence[Float[Tensor, "_ d_receiver"]]) -> tuple[float | None, ...]:
        if self.reference is None or not any(bool(each.any()) for each in states):
            return (None,) * len(states)
        drift = torch.tensor(self.drift_of(torch.cat(list(states))), dtype=torch.float64)
        return tuple(float(part.mean()) for part in drift.split([len(each) for each in states]))


@dataclass(frozen=True)
class KVHandOff(_Opened):
    """The large model's keys and values of prompt and opening are the small model's cache; it reads the last token of
    the opening and continues.

    A message holds, of each item, `keys` and `values` `[layer head pos d_head]` of the prompt and the opening without
    its last token. The two models need one layout, one vocabulary and the same tokens of the prompts. The prompt's keys
    and values pass with the opening's: under another item's opening the small model never saw its own problem.

    Attributes:
        name, longest: as in `TextHandOff`.

    >>> KVHandOff().needs_cache
    True
    """

    name: str = "kv"
    longest: int | None = None

    @property
    def needs_cache(self) -> bool:
        """Yes."""
        return True

    def check(self, large: Model, small: Model, task: Task) -> None:
        """Both models must have one layout, one vocabulary, and the same prompt tokens.

        Raises:
            ValueError: with the first thing that differs.
        """
        check_pair(large, small)
        check_layout(layout_of(large), large.name, small)
        if large is small:
            return
        if not one_vocabulary(large, small):
            raise ValueError(
                f"{large.name} and {small.name} have different vocabularies, so one cannot continue from the "
                "other's keys and values; use a text hand-off"
            )
        for item in task.items:
            single = replace(task, items=(item,))
            if receiver_prompts(large, single).ids(0).tolist() != receiver_prompts(small, single).ids(0).tolist():
                raise ValueError(
                    f"{large.name} and {small.name} cut the prompt of item {item.id!r} into different tokens, so the "
                    "keys of one do not belong to the tokens of the other; use a text hand-off"
                )

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's keys and values of each item's receiver text and its opening."""
        return _sent(self, sender, task, receiver, self.longest)

    def content(self, openings: Message) -> Message:
        """The keys and values, with the tokens they are of.

        Raises:
            ValueError: the openings hold no keys and values.
        """
        _, parts = opened(openings)
        if not all("keys" in part for part in parts):
            raise ValueError("the openings hold no keys and values; write them with keep_cache=True")
        caches = {name: [part[name] for part in parts] for name in ("prompt", "keys", "values")}
        return _passed(openings, **caches)

    def to_itself(self) -> "KVHandOff":
        """The same: the small model then continues from its own cache, which equals the small model alone."""
        return self

    def enter(self, small: Model, task: Task, message: Message, ns: Sequence[int]) -> Received:
        """The last of the first n tokens of each opening, after the keys and values of all tokens before it.

        Raises:
            ValueError: an opening without a token, or a message for other items.
        """
        message.check_items(task)
        _, parts = opened(message)
        layers, lengths, opening = [], [], []
        for item, part, n in zip(task.items, parts, ns, strict=True):
            if n < 1:
                raise ValueError(f"the opening of item {item.id!r} has no token to continue from; use a text hand-off")
            length = len(part["prompt"]) + n - 1
            keys, values = (part[name][:, :, :length].to(small.device, small.dtype) for name in ("keys", "values"))
            layers.append(
                [
                    (swapped(small, key[None]), swapped(small, value[None]))
                    for key, value in zip(keys, values, strict=True)
                ]
            )
            lengths.append(length)
            opening.append(tuple(part["ids"][:n].tolist()))
        given = ReceiverInput(Prompts.from_ids([ids[-1:] for ids in opening]), past=Past(tuple(layers), tuple(lengths)))
        return Received(given, tuple(opening), (0,) * len(opening), (None,) * len(opening))


def states_of(message: Message) -> list[Float[Tensor, "_ d_receiver"]]:
    """The states of a latent hand-off's message, `[n d_receiver]` an item.

    Raises:
        ValueError: it holds none.
    """
    _, parts = opened(message)
    if not all("states" in part for part in parts):
        raise ValueError(f"a message of {message.origin} holds no states; send one with a latent hand-off")
    return [part["states"] for part in parts]


def _sent(hand_off: HandOff, sender: Model, task: Task, receiver: Model | None, longest: int | None) -> Message:
    """The message of every item, from openings that are generated for it."""
    if receiver is not None:
        hand_off.check(sender, receiver, task)
    return hand_off.content(
        write_openings(sender, task, longest=longest, layers=hand_off.layers, keep_cache=hand_off.needs_cache)
    )


def _passed(openings: Message, **more: Sequence[Tensor]) -> Message:
    """The tokens and texts of openings, and further tensors an item."""
    texts, parts = opened(openings)
    passed = [
        {name: part[name] for name in PASSED} | {name: tensors[row] for name, tensors in more.items()}
        for row, part in enumerate(parts)
    ]
    return replace(openings, texts=texts, parts=tuple(passed))


def _after_prompts(small: Model, task: Task, opening: Sequence[tuple[int, ...]]) -> ReceiverInput:
    """Each item's prompt, followed by its opening in the small model's tokens."""
    prompts = receiver_prompts(small, task)
    whole = [[*prompts.ids(row).tolist(), *ids] for row, ids in enumerate(opening)]
    return ReceiverInput(Prompts.from_ids(whole))


def _lengths(message: Message) -> list[int]:
    """The number of tokens of each opening."""
    return [len(part["ids"]) for part in opened(message)[1]]
