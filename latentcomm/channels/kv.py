"""Keys and values of selected layers: the receiver continues from the sender's cache as if it had read the prefix."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.linalg import in_float64
from latentcomm.channels.base import receiver_prompts, sender_prompts, with_own_texts
from latentcomm.channels.message import Message, made_by
from latentcomm.hooks.capture import recorder, run_to_deepest
from latentcomm.hooks.decode import TOKENS_PER_BATCH, decode
from latentcomm.hooks.receiver_input import Past, ReceiverInput
from latentcomm.models import Hook, Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

FACTS = "key_values"
"""The manifest key under which a message describes its keys and values."""


@dataclass(frozen=True)
class KeyValues:
    """The sender's keys and values at some layers precede the receiver's prompt, whose positions continue after theirs.

    Nothing is overwritten: at these layers the receiver's tokens attend to the sender's as well as to their own. At
    the other layers they do not. All layers of the same model amount to the two prompts read one after the other.
    Sender and receiver need one layout: as many layers, key-value heads of one size, and one positional encoding.
    The sender stops after the deepest layer that is sent.

    A message holds, of each item, `keys` and `values` `[layer head pos d_head]`.

    Source: KVComm (Shi et al. 2025, arXiv:2510.03346).

    Attributes:
        name: the name in tables.
        layers: the layers that are sent, ascending, from 0; None sends all. `measure_attention` and `choose_layers`
            choose them on items that are not the reported ones.

    Raises:
        ValueError: layers that repeat, do not ascend or are negative; in `send` one that the sender lacks.

    >>> KeyValues(layers=(1, 2)).layers
    (1, 2)
    """

    name: str = "kv"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        layers = self.layers or ()
        if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError(f"the layers of the channel {self.name} are {layers}; give each once, ascending from 0")

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """The keys and values of every token of the sender's prompts.

        Raises:
            ValueError: a layer that the sender lacks; a receiver of another layout.
        """
        layers = tuple(range(sender.n_layers)) if self.layers is None else self.layers
        if layers and layers[-1] >= sender.n_layers:
            raise ValueError(
                f"the channel {self.name} sends layer {layers[-1]}, which is outside {sender.name}, whose layers are 0 "
                f"to {sender.n_layers - 1}"
            )
        facts = layout_of(sender) | {"layers": list(layers)}
        if receiver is not None:
            check_layout(facts, sender.name, receiver)
        parts = _read(sender, sender_prompts(sender, task), layers)
        made = made_by(sender, site="keys and values", position="every prompt token") | {FACTS: facts}
        return Message(None, f"{sender.name} keys and values", parts=parts, made_by=made).addressed(task)

    def carries_own(self, receiver: Model) -> bool:
        """Yes: a model's own keys and values fit it."""
        return True

    def own(self, receiver: Model, task: Task) -> Message:
        """The receiver's keys and values of its own prompt, which it reads twice."""
        return replace(self.send(receiver, with_own_texts(task)), is_own=True)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's prompts after the sender's keys and values; at the other layers masked zeros.

        Raises:
            ValueError: the message holds no keys and values, is meant for another model, or is of another layout.
        """
        message.check_receiver(receiver, task)
        facts = message.made_by.get(FACTS)
        if message.parts is None or facts is None:
            raise ValueError(f"the channel {self.name} needs a message of keys and values and got {message.origin}")
        check_layout(facts, str(message.made_by["model"]), receiver)
        layers = {layer: index for index, layer in enumerate(facts["layers"])}
        rows, lengths = [], []
        for part in message.parts:
            keys, values = (part[name].to(receiver.dtype) for name in ("keys", "values"))
            placeholder = keys.new_zeros(1, *keys.shape[1:])
            pairs = [
                (keys[layers[layer]][None], values[layers[layer]][None])
                if layer in layers
                else (placeholder, placeholder)
                for layer in range(receiver.n_layers)
            ]
            rows.append([(swapped(receiver, key), swapped(receiver, value)) for key, value in pairs])
            lengths.append(keys.shape[2])
        hidden = tuple(layer for layer in range(receiver.n_layers) if layer not in layers)
        hooks = (Hidden(hidden, tuple(lengths)),) if hidden else ()
        return ReceiverInput(receiver_prompts(receiver, task), past=Past(tuple(rows), tuple(lengths)), persistent=hooks)


@dataclass(frozen=True)
class Hidden:
    """Layers at which the first positions of each row get no attention, in every pass.

    Attributes:
        layers: which layers.
        length: for each row the number of positions.
    """

    layers: tuple[int, ...]
    length: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.length)

    def select(self, rows: Sequence[int]) -> "Hidden":
        """The same for some of the rows."""
        return replace(self, length=tuple(self.length[row] for row in rows))

    def fwd_hooks(self) -> list[Hook]:
        """Hooks that mask the attention scores, and that raise where a model's attention ignores the mask."""
        return [hook for layer in self.layers for hook in self._of(layer)]

    def reply_hooks(self) -> list[Hook]:
        """The same hooks: the hidden positions are at the beginning of each row."""
        return self.fwd_hooks()

    def _of(self, layer: int) -> list[Hook]:
        obeyed = [False]

        def hidden(scores: Tensor) -> Tensor:
            positions = torch.arange(scores.shape[-1], device=scores.device)
            lengths = torch.tensor(self.length, device=scores.device)
            return (positions < lengths[:, None])[:, None, None]

        def mask(scores: Tensor, hook: object) -> Tensor:
            return scores.masked_fill(hidden(scores), -math.inf)

        def check(pattern: Tensor, hook: object) -> None:
            obeyed[0] = not bool(pattern.masked_fill(~hidden(pattern), 0).any())

        def insist(_state: Tensor, hook: object) -> None:
            if not obeyed[0]:
                raise RuntimeError(
                    f"the attention of layer {layer} does not obey a mask at its hook points; send all layers instead"
                )
            obeyed[0] = False

        names = [f"blocks.{layer}.{point}" for point in ("attn.hook_attn_scores", "attn.hook_pattern")]
        return [(names[0], mask), (names[1], check), (Site(layer).hook_name, insist)]


def measure_attention(sender: Model, receiver: Model, task: Task) -> Float[Tensor, " layer"]:
    """The share of the receiver's attention that goes to the sender's tokens, at each layer, with all layers sent.

    The mean over items, heads and the tokens of the receiver's prompt of the attention to the sender's positions.
    Measure it on items that are not reported. It costs a pass of both models over them.

    Source: the importance score of KVComm (Shi et al. 2025, arXiv:2510.03346).

    Raises:
        ValueError: the two are of different layouts.
    """
    channel = KeyValues()
    given = channel.receive(receiver, task, channel.send(sender, task, receiver=receiver))
    lengths = given.past.length if given.past is not None else ()
    shares = torch.zeros(len(task.items), receiver.n_layers, dtype=torch.float64)
    watch = _Watched(tuple(range(len(lengths))), lengths, shares)
    decode(receiver, replace(given, persistent=(watch,)), max_new_tokens=1)
    return shares.mean(0)


def choose_layers(
    attention: Float[Tensor, " layer"],
    *,
    share: float | int,
    weight: float | int = 1.0,
    centre: float | int | None = None,
    width: float | int = 10.0,
) -> tuple[int, ...]:
    """The share of the layers with the highest score, ascending: at least one.

    score_l = weight * attention_l, scaled to 0..1 over the layers, + (1 - weight) * exp(-(l - centre)^2 / 2 width^2).
    The second term is a prior for the middle of the model (`centre`, by default half the depth). Ties go to the
    lower layer.

    Source: the selection of KVComm (Shi et al. 2025, arXiv:2510.03346).

    Raises:
        ValueError: a share outside (0, 1], a weight outside [0, 1], a width that is not positive, no layers.

    >>> choose_layers(torch.tensor([0.1, 0.4, 0.3, 0.2]), share=0.5)
    (1, 2)
    """
    if not 0 < share <= 1 or not 0 <= weight <= 1 or not width > 0 or len(attention) == 0:
        raise ValueError(
            f"share {share} must be in (0, 1], weight {weight} in [0, 1] and width {width} above 0, "
            f"for at least one layer of {len(attention)}"
        )
    measured = in_float64(attention)
    spread = float(measured.max() - measured.min())
    scaled = (measured - measured.min()) / spread if spread else torch.zeros_like(measured)
    middle = (len(attention) - 1) / 2 if centre is None else centre
    prior = torch.exp(-((torch.arange(len(attention)) - middle) ** 2) / (2 * width**2)).double()
    score = weight * scaled.cpu() + (1 - weight) * prior
    n_chosen = max(1, round(share * len(attention)))
    return tuple(sorted(score.argsort(descending=True, stable=True)[:n_chosen].tolist()))


@dataclass(frozen=True, eq=False)
class _Watched:
    """Records, for each row, the share of attention to its first positions in the pass of its prompt."""

    rows: tuple[int, ...]
    length: tuple[int, ...]
    shares: Float[Tensor, "item layer"]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> "_Watched":
        return _Watched(tuple(self.rows[row] for row in rows), tuple(self.length[row] for row in rows), self.shares)

    def fwd_hooks(self) -> list[Hook]:
        def at(layer: int) -> Hook:
            def watch(pattern: Tensor) -> None:
                for index, (row, length) in enumerate(zip(self.rows, self.length, strict=True)):
                    self.shares[row, layer] = in_float64(pattern[index, ..., :length]).sum(-1).mean()

            return recorder(f"blocks.{layer}.attn.hook_pattern", watch)

        return [at(layer) for layer in range(self.shares.shape[1])]


def _read(model: Model, prompts: Prompts, layers: Sequence[int]) -> tuple[dict[str, Tensor], ...]:
    """Keys and values `[layer head pos d_head]` of each prompt; rows of one length run together."""
    layout = layout_of(model)
    parts: list[dict[str, Tensor]] = [{} for _ in range(len(prompts))]
    for group in prompts.groups_of_equal_length():
        length = int(prompts.lengths[group[0]])
        step = max(1, TOKENS_PER_BATCH // length)
        for start in range(0, len(group), step):
            rows = group[start : start + step]
            if layers:
                found = _pass(model, prompts.select(rows), max(layers))
            else:
                empty = torch.zeros(len(rows), layout["n_heads"], length, layout["d_head"], dtype=model.dtype)
                found = [(empty, empty)]
            for index, row in enumerate(rows):
                for number, name in enumerate(("keys", "values")):
                    chosen = [found[layer][number][index] for layer in layers]
                    alike = [each.to(chosen[0].device) for each in chosen]  # layers may lie on several devices
                    parts[row][name] = torch.stack(alike) if alike else found[0][number][:0]
    return tuple(parts)


def _pass(model: Model, prompts: Prompts, deepest: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer up to the deepest, `[row head pos d_head]`."""
    cache = model.new_cache(len(prompts))
    run_to_deepest(model, prompts.tokens, [Site(deepest).hook_name], cache=cache)
    found = model.cache_layers(cache)[: deepest + 1]
    return [(swapped(model, keys.detach()), swapped(model, values.detach())) for keys, values in found]


def swapped(model: Model, tensor: Float[Tensor, "row _ _ d_head"]) -> Float[Tensor, "row _ _ d_head"]:
    """Swaps the backend's order of heads and positions with that of a message; its own inverse."""
    return tensor if model.is_bridge else rearrange(tensor, "row pos head d_head -> row head pos d_head")


def layout_of(model: Model) -> dict[str, Any]:
    """The facts that two models must share for one's keys and values to fit the other's cache."""
    cfg = model.hooked.cfg
    return {
        "n_layers": model.n_layers,
        "n_heads": int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
        "d_head": int(cfg.d_head),
        "positions": _positions(model),
    }


def _positions(model: Model) -> str:
    """The positional encoding of a model, and whether the cached keys include it, as a text to compare."""
    cfg = model.hooked.cfg
    kind = str(getattr(cfg, "positional_embedding_type", "unknown"))
    if kind != "rotary":
        return kind
    if not model.is_bridge:
        names = sorted(name for name in vars(cfg) if any(part in name for part in ("rotary", "rope", "NTK")))
        return "rotary, not yet in the keys: " + ", ".join(f"{name} {getattr(cfg, name)}" for name in names)
    config = getattr(model.hooked, "original_model", model.hooked).config
    rope = getattr(config, "rope_parameters", None) or {
        "rope_theta": getattr(config, "rope_theta", None),
        "rope_scaling": getattr(config, "rope_scaling", None),
    }
    return "rotary, in the keys: " + ", ".join(f"{name} {rope[name]}" for name in sorted(rope))


def check_layout(facts: Mapping[str, Any], sender: str, receiver: Model) -> None:
    """Refuse keys and values that do not fit the receiver's cache.

    Raises:
        ValueError: with the first fact that differs.
    """
    own = layout_of(receiver)
    check_heads(facts, sender, own, receiver.name)
    if facts["positions"] != own["positions"]:
        raise ValueError(
            f"{sender} encodes positions in another way ({facts['positions']}) than {receiver.name} "
            f"({own['positions']}), so its keys would be read at wrong positions; choose models of one encoding"
        )


def check_heads(facts: Mapping[str, Any], sender: str, own: Mapping[str, Any], receiver: str) -> None:
    """Refuse keys and values of another number of layers, heads or entries than the receiver's.

    Raises:
        ValueError: with the first that differs.
    """
    units = {"n_layers": "layers", "n_heads": "key-value heads", "d_head": "entries a head"}
    for name, unit in units.items():
        if facts[name] != own[name]:
            raise ValueError(
                f"{sender} has {facts[name]} {unit} and {receiver} has {own[name]}, so its keys and values do "
                "not fit; choose two models of one layout, or a channel that aligns spaces, such as Activation"
            )
