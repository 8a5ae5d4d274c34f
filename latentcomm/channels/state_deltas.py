"""State deltas: the sender's text, and for each of its tokens the change of the sender's state."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm._core.linalg import mapped
from latentcomm.channels.base import with_own_texts
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.text import check_length, item_seed, prompts_with_request, refuse_silence
from latentcomm.hooks.capture import recorder
from latentcomm.hooks.decode import decode
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Hook, Model, around_gap, encode
from latentcomm.models.chat import AnyTemplate
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

FACTS = "state_deltas"
"""The manifest key under which a message describes its tokens and deltas."""


@dataclass(frozen=True)
class StateDeltas:
    """The receiver reads the sender's text, and the sender's state changes are added to its states at the same tokens.

    Each token of the message is sent with d_i = h_i - h_(i-1) of the sender's residual stream after some layers, h_i at
    the token itself and h_0 at the prompt's last token. The receiver reads the same token ids before its own text, and
    scale * d_i is added after the same layers at the same tokens, once. At scale 0 only the text is sent.

    Tokens must mean the same in both models. Where the two differ in width or space, `alignment` maps the sender's
    states to the receiver's; of an affine map only the linear part acts, since a difference has no offset.

    A message holds texts and, of each item, `ids` `[token]` and `deltas` `[layer token d_sender]`. To get the
    last token's state the sender decodes one token more than it sends.

    Source: Tang et al. 2025, arXiv:2506.19209.

    Attributes:
        name: the name in tables.
        layers: the sender's layers whose deltas are sent, ascending, from 0; the paper takes 1 to 3.
        scale: the factor of the deltas.
        write: the receiver's layers, as many, after which they are added; None takes the same numbers.
        alignment: the map from the sender's space to the receiver's, the same for every layer.
        max_tokens, request, between, temperature, top_p, seed, allow_empty: as in Text.

    Raises:
        ValueError: no layers, layers that do not ascend, another number of write layers; as Text.

    >>> StateDeltas(layers=(2, 4)).scale
    1.0
    """

    layers: tuple[int, ...]
    name: str = "deltas"
    scale: float | int = 1.0
    write: tuple[int, ...] | None = None
    alignment: Callable[..., Any] | None = None
    max_tokens: int = 32
    request: str = ""
    between: str = "\n"
    temperature: float | int = 0
    top_p: float | int = 1
    seed: int = 0
    allow_empty: bool = False

    def __post_init__(self) -> None:
        check_length(self.name, self.max_tokens)
        for layers in (self.layers, self.write or self.layers):
            if list(layers) != sorted(set(layers)) or not layers or layers[0] < 0:
                raise ValueError(
                    f"the layers of the channel {self.name} are {layers}; give each once, ascending from 0"
                )
        if self.write is not None and len(self.write) != len(self.layers):
            raise ValueError(
                f"the channel {self.name} reads {len(self.layers)} layers and writes to {len(self.write)}; give as many"
            )

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The sender's generated text for each item, and its deltas.

        Raises:
            ValueError: a layer that the sender does not have, or an empty message.
        """
        sites = [Site(layer) for layer in self.layers]
        for site in sites:
            sender.check_site(site)
        prompts = prompts_with_request(sender, task, self.request)
        states: list[list[list[Tensor]]] = [[[] for _ in sites] for _ in task.items]
        replies = decode(
            sender,
            ReceiverInput(prompts, persistent=(_Recorded(tuple(sites), tuple(states)),)),
            max_new_tokens=self.max_tokens + 1,
            temperature=self.temperature,
            top_p=self.top_p,
            seeds=[item_seed(item, self.seed) for item in task.items],
        )
        parts, texts = [], []
        for ids, each in zip(replies.ids, states, strict=True):
            ids = ids[: self.max_tokens]
            layers = [torch.stack(layer[: len(ids) + 1]) for layer in each]
            states_of_item = torch.stack([layer.to(layers[0].device) for layer in layers])
            texts.append(sender.decode(ids))
            parts.append(
                {"ids": torch.tensor(ids, dtype=torch.int32), "deltas": states_of_item[:, 1:] - states_of_item[:, :-1]}
            )
        refuse_silence(self.name, sender, task, [bool(text.strip()) for text in texts], self.allow_empty)
        facts = made_by(sender, site=", ".join(site.hook_name for site in sites), position="reply")
        facts[FACTS] = {"layers": list(self.layers), "width": sender.d_model, "vocabulary": _vocabulary(sender)}
        origin = f"{sender.name} text and deltas"
        return Message(None, origin, texts=tuple(texts), parts=tuple(parts), made_by=facts).addressed(task)

    def carries_own(self, receiver: Model) -> bool:
        """Yes: a model can read its own text."""
        return True

    def own(self, receiver: Model, task: Task) -> Message:
        """The receiver's continuation of its own text, with its own deltas, which need no alignment.

        Raises:
            ValueError: the receiver lacks a layer that is read.
        """
        channel = self if self.write is None else replace(self, layers=self.write)
        return replace(channel.send(receiver, with_own_texts(task), receiver=receiver), is_own=True)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The message, `between` and the receiver's text as one prompt, and the deltas that are added to its states.

        Raises:
            ValueError: the message holds no deltas, is meant for another model, is in another vocabulary, is of
                another width and not aligned, or is of another number of layers.
        """
        message.check_receiver(receiver, task)
        facts = message.made_by.get(FACTS)
        if message.parts is None or message.texts is None or facts is None:
            raise ValueError(f"the channel {self.name} needs a message of text and deltas and got {message.origin}")
        self._check(facts, receiver, message)
        prompts, starts, deltas = [], [], []
        for text, part, item in zip(message.texts, message.parts, task.items, strict=True):
            ids = part["ids"].tolist() if text.strip() else []
            tokens, start = _spliced(receiver, text, ids, self.between, item.receiver, task.template)
            prompts.append(tokens)
            starts.append(start)
            path = part["deltas"][:, : len(ids)].to(receiver.dtype)
            if self.alignment is not None and not message.is_own:
                path = mapped(self.alignment, path) - mapped(self.alignment, torch.zeros_like(path))
            deltas.append(self.scale * path)
        written = self.write or self.layers
        added = tuple(
            Added(Site(layer), tuple(starts), tuple(path[number] for path in deltas))
            for number, layer in enumerate(written)
        )
        for each in added:
            receiver.check_site(each.site)
        return ReceiverInput(Prompts.from_ids(prompts), persistent=added)

    def _check(self, facts: dict[str, Any], receiver: Model, message: Message) -> None:
        if facts["vocabulary"] != _vocabulary(receiver):
            raise ValueError(
                f"{message.made_by['model']} and {receiver.name} have different vocabularies, so deltas cannot be "
                "added at the same tokens; send text alone, or choose two models of one tokenizer"
            )
        if len(facts["layers"]) != len(self.layers):
            raise ValueError(
                f"the message has deltas of {len(facts['layers'])} layers and the channel {self.name} reads "
                f"{len(self.layers)}"
            )
        if facts["width"] != receiver.d_model and (self.alignment is None or message.is_own):
            raise ValueError(
                f"the deltas are {facts['width']} wide and {receiver.name} is {receiver.d_model} wide; give the "
                f"channel {self.name} an alignment, fitted to states of this pair"
            )


@dataclass(frozen=True, eq=False)
class Added:
    """Vectors that are added to a row's states from its position `start` on, in the pass that reads the prompt.

    Attributes:
        site: where.
        start: of each row the first position.
        vectors: of each row one vector a position.
    """

    site: Site
    start: tuple[int, ...]
    vectors: tuple[Float[Tensor, "_ d_model"], ...]

    def __len__(self) -> int:
        return len(self.start)

    def select(self, rows: Sequence[int]) -> "Added":
        """The same for some of the rows."""
        return Added(self.site, tuple(self.start[row] for row in rows), tuple(self.vectors[row] for row in rows))

    def fwd_hooks(self) -> list[Hook]:
        """A hook that acts in the first pass it sees, the prompt's, and in no later one."""
        passes = [0]

        def add(value: Tensor, hook: object) -> Tensor | None:
            passes[0] += 1
            if passes[0] > 1:
                return None
            value = value.clone()
            for row, (start, vectors) in enumerate(zip(self.start, self.vectors, strict=True)):
                if start + len(vectors) > value.shape[1]:
                    raise RuntimeError(
                        f"the deltas of row {row} end at position {start + len(vectors)} and the pass has "
                        f"{value.shape[1]}; the prompt must be read in one pass"
                    )
                value[row, start : start + len(vectors)] += vectors.to(value.device, value.dtype)
            return value

        return [(self.site.hook_name, add)]

    def reply_hooks(self) -> list[Hook]:
        """None: the deltas are added in the prompt's pass alone."""
        return []


@dataclass(frozen=True, eq=False)
class _Recorded:
    """Records the state of each row's last position in every pass: `states[row][site]` grows by one a pass."""

    sites: tuple[Site, ...]
    states: tuple[list[list[Tensor]], ...]

    def __len__(self) -> int:
        return len(self.states)

    def select(self, rows: Sequence[int]) -> "_Recorded":
        return _Recorded(self.sites, tuple(self.states[row] for row in rows))

    def fwd_hooks(self) -> list[Hook]:
        def at(number: int, site: Site) -> Hook:
            def record(value: Tensor) -> None:
                for row, states in enumerate(self.states):
                    states[number].append(value[row, -1].detach().clone())

            return recorder(site.hook_name, record)

        return [at(number, site) for number, site in enumerate(self.sites)]

    def reply_hooks(self) -> list[Hook]:
        return self.fwd_hooks()


def _spliced(
    receiver: Model, text: str, ids: list[int], between: str, own_text: str, template: AnyTemplate
) -> tuple[list[int], int]:
    """The receiver's prompt with these ids in it, and their first position.

    It equals the encoding of the joined text wherever that contains the sender's ids. Where the tokenizer splits the
    joined text differently, as at one line break before another, the sender's ids are inserted unchanged.
    """
    if not ids:
        return encode(receiver, [own_text], template=template).ids(0).tolist(), 0
    whole = encode(receiver, [f"{text}{between}{own_text}"], template=template).ids(0).tolist()
    head, tail = around_gap(receiver, "", f"{between}{own_text}", template=template)
    start = len(head)
    return (whole if whole[start : start + len(ids)] == ids else [*head, *ids, *tail]), start


def _vocabulary(model: Model) -> str:
    """SHA-256 of a model's tokens and their ids."""
    return digest(json.dumps(sorted(model.require_tokenizer().get_vocab().items())))
