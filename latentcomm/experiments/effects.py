"""The effects of a graft on the next token, and on the receiver's state at every later layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from latentcomm._core.linalg import in_float64
from latentcomm._core.progress import track
from latentcomm.drift import COMBINED, DETECTORS, DriftReference
from latentcomm.fusion import Fusion, fuse
from latentcomm.hooks.graft import LAST
from latentcomm.hooks.shared_prefix import Prefix, can_pack, columns_per_pass, read_prefix, run_staircase
from latentcomm.models import Model, not_finite
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

__all__ = ["Effects", "measure_effects"]

UNEMBED_BYTES = 64 * 2**20
"""Bytes of full-vocabulary logits in memory at once, in float64."""
STATES_BYTES = 64 * 2**20
"""Bytes of states that are buffered for the references: a batch costs a third of one pass at a time."""

Messages = Float[Tensor, "item d_sender"] | Mapping[int, Float[Tensor, "item d_sender"]]
"""One message an item, or one for each write layer and item."""


@dataclass(frozen=True, eq=False)
class Effects:
    """The effects of grafts, against the ungrafted run of the same prompt. Typicality and harm are distinct: show both.

    Entries of a later layer are those of resid_post at the write position; they are NaN below the write layer, where
    nothing changes, and where no reference is given.

    Attributes:
        write_layers: the layers of the grafts, one graft at a time, counted from 0.
        kl: sum p log(p / q) in nats, p the ungrafted and q the grafted next-token distribution. 0 is no effect.
        entropy_change: entropy of q less that of p, in nats: above 0 the receiver is less sure than before.
        top1_agreement: whether the most likely next token is the same.
        deviation: |x' - x| / |x| of the grafted state x' and the ungrafted x, at each later layer.
        percentile: by detector name and "combined": the two-sided percentile of x' among real states of that layer.
        own_percentile: the same of the ungrafted x.
    """

    write_layers: tuple[int, ...]
    kl: Float[Tensor, "item write"]
    entropy_change: Float[Tensor, "item write"]
    top1_agreement: Bool[Tensor, "item write"]
    deviation: Float[Tensor, "item write layer"]
    percentile: dict[str, Float[Tensor, "item write layer"]]
    own_percentile: dict[str, Float[Tensor, "item layer"]]

    @property
    def growth(self) -> Float[Tensor, "item write"]:
        """The deviation after the last block over that at the write layer: below 1 it heals, above 1 it grows.

        NaN for a graft that changed nothing, whatever rounding the later layers add.
        """
        at_write = torch.stack([self.deviation[:, row, layer] for row, layer in enumerate(self.write_layers)], 1)
        return torch.where(at_write == 0, torch.nan, self.deviation[:, :, -1] / at_write)


def measure_effects(
    receiver: Model,
    prompts: Prompts,
    messages: Messages,
    *,
    fusion: Fusion,
    write_layers: Sequence[int] | None = None,
    write_position: int = LAST,
    references: Mapping[int, DriftReference] | None = None,
    progress: bool = False,
) -> Effects:
    """Return what `fusion(own, message)` does when written after each single layer, for every item.

    The prompt is read once up to the write position; all grafts then share one pass, each joining at its own layer, and
    are measured after every layer (`latentcomm.hooks.shared_prefix`). The cost is that of a few one-token steps for
    each prompt, whatever the number of write layers. Equal to a grafted run of the whole prompt for each.

    Args:
        messages: one a prompt, of the width that the fusion takes; a mapping gives each write layer its own.
        write_layers: all by default.
        write_position: in every prompt, from its end when negative; the last token by default.
        references: layer -> drift reference of the receiver's resid_post there (`latentcomm.drift`).

    Raises:
        ValueError: no message for a prompt or write layer, a layer or position outside the model or prompt, a reference
            of another site or model, or states that the fusion refuses.
        RuntimeError: the shared passes do not give what a plain run gives.
    """
    writes = tuple(range(receiver.n_layers)) if write_layers is None else tuple(write_layers)
    if not writes or sorted(set(writes)) != list(writes):
        raise ValueError(f"write layers {list(writes)} must be at least one, each once, ascending")
    for layer in writes:
        receiver.check_site(Site(layer))
    references = {} if references is None else references
    _check_references(receiver, references)
    per_layer = messages if isinstance(messages, Mapping) else dict.fromkeys(writes, messages)
    if missing := [layer for layer in writes if layer not in per_layer]:
        raise ValueError(f"there are no messages for the write layers {missing}; give one mapping entry each")
    for layer in writes:
        if len(per_layer[layer]) != len(prompts):
            raise ValueError(f"{len(per_layer[layer])} messages for {len(prompts)} prompts; give one each")
    passes = list(_passes(receiver, prompts, write_position, len(writes)))
    prefix, prefix_of = None, -1
    parts: list[Effects] = []
    pending: list[_Pending] = []
    for first, position, items in track(passes, "effects", total=len(passes), shown=progress):
        if prefix is None or prefix_of != first:
            prefix, prefix_of = read_prefix(receiver, prompts.ids(first), position), first
        incoming = {layer: per_layer[layer][items].to(receiver.dtype) for layer in writes}
        part, states = _one_pass(receiver, prefix, incoming, fusion, references)
        parts.append(part)
        pending.append(_Pending(part, len(items), states))
        if sum(each.n_bytes for each in pending) > STATES_BYTES:
            _fill_percentiles(references, pending)
            pending = []
    _fill_percentiles(references, pending)
    return _in_order(parts, [item for _, _, items in passes for item in items])


def _one_pass(
    model: Model,
    prefix: Prefix,
    incoming: Mapping[int, Float[Tensor, "item d_sender"]],
    fusion: Fusion,
    references: Mapping[int, DriftReference],
) -> tuple[Effects, dict[int, Tensor]]:
    """Run one shared pass with the messages of some items that share a prompt, for all write layers.

    The percentiles stay NaN; the states that they are computed from are returned with the effects, by layer: the
    ungrafted one, then one a write layer and item.
    """
    writes = tuple(incoming)
    n_rows = len(incoming[writes[0]])
    unknown = torch.full((n_rows, len(writes), model.n_layers), torch.nan, dtype=torch.float64)
    names = (*DETECTORS, COMBINED) if references else ()
    deviation = unknown.clone()
    percentile = {name: unknown.clone() for name in names}
    own_percentile = {name: unknown[:, 0].clone() for name in names}
    states: dict[int, Tensor] = {}

    def join(layer: int, own: Float[Tensor, " d_model"]) -> Float[Tensor, "row d_model"]:
        return fuse(fusion, own.expand(n_rows, -1), incoming[layer].to(own.device), at=Site(layer).hook_name)

    def observe(layer: int, own: Float[Tensor, " d_model"], rows: Float[Tensor, "joined d_model"]) -> None:
        wide, plain = in_float64(rows), in_float64(own)
        off = torch.linalg.vector_norm(wide - plain, dim=1) / torch.linalg.vector_norm(plain)
        n_joined = len(rows) // n_rows
        deviation[:, :n_joined, layer] = rearrange(off, "(joined row) -> row joined", row=n_rows).cpu()
        if layer in references:
            states[layer] = torch.cat((own[None], rows)).cpu()

    packed = can_pack(model, prefix.n_cached, prefix.tail.shape[1])
    final = run_staircase(model, prefix, writes, join, n_rows=n_rows, packed=packed, observe=observe)
    plain = prefix.logits.cpu().to(torch.float64).log_softmax(-1)
    parts = [_next_token(plain, _logits(model, rows)) for rows in _few(model, final)]
    kl, change, agreement = (
        rearrange(torch.cat(numbers), "(write row) -> row write", row=n_rows).contiguous()
        for numbers in zip(*parts, strict=True)
    )
    if kl.isnan().any():  # the states that are unembedded are finite
        raise not_finite(model, lambda: None, what=f"the logits of {model.name} after a graft are")
    return Effects(writes, kl, change, agreement, deviation, percentile, own_percentile), states


@dataclass(frozen=True, eq=False)
class _Pending:
    """The effects of a pass over `n_items` items, and its states whose percentiles are not yet computed."""

    effects: Effects
    n_items: int
    states: dict[int, Tensor]

    @property
    def n_bytes(self) -> int:
        return sum(rows.nbytes for rows in self.states.values())


def _fill_percentiles(references: Mapping[int, DriftReference], pending: Sequence[_Pending]) -> None:
    """Fill in the percentiles of the pending passes, with one call of every reference."""
    for layer in references:
        passes = [each for each in pending if layer in each.states]
        if not passes:
            continue
        rows = [each.states[layer] for each in passes]
        percentiles = references[layer].percentile(torch.cat(rows))
        for name, values in percentiles.items():
            for each, part in zip(passes, values.split([len(states) for states in rows]), strict=True):
                n_joined = (len(part) - 1) // each.n_items
                each.effects.own_percentile[name][:, layer] = part[0]
                each.effects.percentile[name][:, :n_joined, layer] = rearrange(
                    part[1:], "(joined item) -> item joined", item=each.n_items
                )


def _next_token(
    plain: Float[Tensor, " d_vocab"], logits: Float[Tensor, "row d_vocab"]
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"], Bool[Tensor, " row"]]:
    """KL, change of entropy and agreement of grafted logits with the ungrafted log-probabilities."""
    grafted = logits.cpu().to(torch.float64).log_softmax(-1)
    kl = _dot(plain.exp(), plain - grafted)
    change = _dot(plain.exp(), plain) - _dot(grafted.exp(), grafted)
    return kl, change, grafted.argmax(-1) == plain.argmax(-1)


def _few(model: Model, final: Float[Tensor, "write row d_model"]) -> tuple[Tensor, ...]:
    """The final states, by write layer and then row, in chunks whose logits stay within UNEMBED_BYTES."""
    return rearrange(final, "write row d_model -> (write row) d_model").split(
        max(1, UNEMBED_BYTES // (8 * int(model.hooked.cfg.d_vocab)))
    )


def _logits(model: Model, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    """The model's logits from states after its last block."""
    logits = model.unembed(model.final_norm(states))
    cap = model.softcap
    return cap * torch.tanh(logits / cap) if cap else logits


def _in_order(parts: Sequence[Effects], items: Sequence[int]) -> Effects:
    """The passes' effects as one, by item."""
    order = torch.tensor(items).argsort()
    first = parts[0]
    return Effects(
        write_layers=first.write_layers,
        kl=torch.cat([part.kl for part in parts])[order],
        entropy_change=torch.cat([part.entropy_change for part in parts])[order],
        top1_agreement=torch.cat([part.top1_agreement for part in parts])[order],
        deviation=torch.cat([part.deviation for part in parts])[order],
        percentile={name: torch.cat([part.percentile[name] for part in parts])[order] for name in first.percentile},
        own_percentile={
            name: torch.cat([part.own_percentile[name] for part in parts])[order] for name in first.own_percentile
        },
    )


def _passes(
    receiver: Model, prompts: Prompts, write_position: int, n_writes: int
) -> Iterator[tuple[int, int, list[int]]]:
    """First item with the prompt, write position from its front, and the items of one pass; equal prompts together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for item in range(len(prompts)):
        groups.setdefault(tuple(prompts.ids(item).tolist()), []).append(item)
    for ids, items in groups.items():
        if not -len(ids) <= write_position < len(ids):
            raise ValueError(
                f"write position {write_position} is outside prompt {items[0]}, which has {len(ids)} tokens"
            )
        position = write_position % len(ids)
        step = columns_per_pass(receiver, position, len(ids) - position, n_writes)
        for start in range(0, len(items), step):
            yield items[0], position, items[start : start + step]


def _check_references(receiver: Model, references: Mapping[int, DriftReference]) -> None:
    """Refuse references that are not of this receiver's layers."""
    fingerprint = None
    for layer, reference in references.items():
        receiver.check_site(Site(layer))
        reference.require(site=Site(layer))
        if reference.model not in (None, receiver.name):
            fingerprint = fingerprint or receiver.fingerprint  # hashes all weights: once, and not for each layer
            if reference.model != fingerprint:
                reference.require(model=receiver.name)


def _dot(p: Float[Tensor, "*row d_vocab"], q: Float[Tensor, "*other d_vocab"]) -> Float[Tensor, "*other"]:
    """Sum of p q over the vocabulary, 0 where p is 0 even if q is infinite."""
    return torch.where(p == 0, 0.0, p * q).sum(-1)
