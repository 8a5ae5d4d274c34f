"""Activation communication: senders' last-token states after one block, fused into the receiver's after another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float

from latentcomm._core.linalg import in_float64, mapped
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.message import Message, made_by
from latentcomm.channels.several_senders import FurtherSender, apart, takes_several, together
from latentcomm.fusion import Fusion
from latentcomm.hooks.capture import capture_positions
from latentcomm.hooks.graft import LAST, Graft
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, check_pair, encode, not_finite
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task


@dataclass(frozen=True)
class Activation:
    """The sender stops after `read`; the receiver's state after `write` is replaced by the fused state.

    One vector a sender, once, at the last prompt token; the sender's later layers and its unembedding never run.

    With `others`, further models or further texts are senders too, and each state is mapped into the receiver's space
    by its own alignment. A fusion that merges senders (TaskArithmetic, Ties, OfEach, and what wraps them) gets them all
    `[sender item d_receiver]`; any other fusion gets their mean.

    Source: Ramesh & Li 2025, arXiv:2501.14082.
    """

    name: str
    read: Site
    write: Site
    fusion: Fusion
    alignment: Callable[..., Any] | None = None
    others: tuple[FurtherSender, ...] = ()

    @property
    def message_key(self) -> tuple[Any, ...]:
        """The values that determine the message: the read site and the further senders, not the fusion."""
        return ("states", self.read, self.others)

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The state after the read site at each sender prompt's last token; of several senders, all of them.

        Raises:
            ValueError: an item lacks the text of a further sender, or a model of processed weights is mixed with one
                of raw weights.
        """
        first = _state(sender, encode(sender, FurtherSender().texts(task.items), template=task.template), self.read)
        if not self.others or first.vectors is None:
            return first.addressed(task)
        states, readings = [first.vectors], [first.made_by]
        for other in self.others:
            model = other.model or sender
            check_pair(model, sender)
            prompts = encode(model, other.texts(task.items), template=task.template)
            message = _state(model, prompts, other.read or self.read)
            states += [] if message.vectors is None else [message.vectors]
            readings.append({**message.made_by, "text": other.text})
        facts = {**first.made_by, "senders": readings}
        origin = f"{first.origin} and {len(self.others)} more"
        return together(states, origin=origin, made_by=facts).addressed(task)

    def carries_own(self, receiver: Model) -> bool:
        """Whether the fusion takes a message of the receiver's width; one with a map from another width does not."""
        probe = torch.linspace(1, 2, receiver.d_model, dtype=receiver.dtype, device=receiver.device)[None]
        try:
            self.fusion(probe, probe.flip(1))
        except ValueError:
            return False
        return True

    def own(self, receiver: Model, task: Task) -> Message:
        """The receiver's state after its own block of the read layer's number (its last, if it has fewer)."""
        site = replace(self.read, layer=min(self.read.layer, receiver.n_layers - 1))
        return replace(_state(receiver, receiver_prompts(receiver, task), site), is_own=True).addressed(task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's prompts with one graft.

        Raises:
            ValueError: the message holds no vectors, was read at another site, is meant for another model, or is from
                another number of senders than the channel has; senders that are not aligned into one space.
        """
        message.check_receiver(receiver, task)
        site = message.made_by.get("site", self.read.hook_name)
        if not message.is_own and site != self.read.hook_name:
            raise ValueError(
                f"the message ({message.origin}) was read at {site}, and the channel {self.name} reads at "
                f"{self.read.hook_name}"
            )
        states = apart(message)
        if states is None:
            raise ValueError(f"the channel {self.name} needs a message with vectors and got {message.origin}")
        vectors = self._in_receivers_space(states, receiver, message)
        if vectors.ndim == 3 and not takes_several(self.fusion):
            vectors = in_float64(vectors).mean(0).to(vectors)
        vectors = vectors[:, :, None] if vectors.ndim == 3 else vectors
        return ReceiverInput(receiver_prompts(receiver, task), (Graft(self.write, LAST, vectors, self.fusion),))

    def _in_receivers_space(
        self, states: list[torch.Tensor], receiver: Model, message: Message
    ) -> Float[torch.Tensor, "*sender item d"]:
        """The senders' states, each through its own alignment; a lone sender's without a sender axis."""
        states = [state.to(receiver.dtype) for state in states]  # the graft moves them to the block that it is in
        if message.is_own:
            return states[0]
        if len(states) != 1 + len(self.others):
            raise ValueError(
                f"the channel {self.name} has {1 + len(self.others)} senders and the message ({message.origin}) is "
                f"from {len(states)}"
            )
        maps = [
            self.alignment,
            *(other.alignment or (None if other.model else self.alignment) for other in self.others),
        ]
        aligned = [state if map is None else mapped(map, state) for map, state in zip(maps, states, strict=True)]
        if len({state.shape[-1] for state in aligned}) > 1:
            raise ValueError(
                f"the senders' states are {', '.join(str(state.shape[-1]) for state in aligned)} wide in the channel "
                f"{self.name}; give each of them an alignment into the receiver's space, {receiver.d_model} wide"
            )
        return torch.stack(aligned) if self.others else aligned[0]


def _state(model: Model, prompts: Prompts, site: Site) -> Message:
    """The state at a site, at each prompt's last token."""
    again = partial(capture_positions, model, prompts, [site], LAST)
    states = again()[site]
    if not torch.isfinite(states).all():
        raise not_finite(model, again, what=f"the states of {model.name} at {site.hook_name} are")
    facts = made_by(model, site=site.hook_name, position="last prompt token")
    return Message(states, f"{model.name} {site.hook_name}", made_by=facts)
