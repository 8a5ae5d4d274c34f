"""What passes from the large model to the small one: the opening as text, as hidden states, or as keys and values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.kv import check_layout, layout_of, swapped
from latentcomm.channels.soft_slots import PLACEHOLDER
from latentcomm.drift import DriftReference
from latentcomm.drift.reference import COMBINED
from latentcomm.experiments.cascade.openings import EMBEDDING, Openings
from latentcomm.experiments.cascade.retokenize import opening_tokens, shared_places
from latentcomm.experiments.controls import random_directions
from latentcomm.fusion import Replace
from latentcomm.hooks.decode import Past, ReceiverInput, SoftTokens
from latentcomm.hooks.graft import Graft
from latentcomm.models import Model, check_pair, one_vocabulary
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

ZERO, RANDOM = "zero", "random"
EMPTY = (ZERO, RANDOM)
"""Controls for the content of states: zeros, or random directions of the same norms, in their place."""
EMBEDDINGS = "embeddings"
"""Where a latent hand-off writes: in place of the embeddings of additional prompt tokens."""


@dataclass(frozen=True, eq=False)
class Received:
    """The small model's input for some openings, a row each.

    Attributes:
        given: the input that it is run on.
        opening: for each row the opening in the small model's tokens, or None where no text passes.
        multiply_adds: for each row, multiply-adds of the maps.
        drift: for each row, how far the states that enter are from the small model's own: the mean over them of the
            percentile of `DriftReference`, 0.5 for real states and 1 for states unlike any; None without a reference.
    """

    given: ReceiverInput
    opening: tuple[tuple[int, ...] | None, ...]
    multiply_adds: tuple[int, ...]
    drift: tuple[float | None, ...]


@runtime_checkable
class HandOff(Protocol):
    """A hand-off: how an opening passes to the small model; a frozen dataclass that `files.digest` accepts."""

    @property
    def name(self) -> str:
        """Its name in tables and figures."""
        ...

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

    def receive(self, small: Model, task: Task, openings: Openings, rows: Sequence[int], ns: Sequence[int]) -> Received:
        """Item i of the task with the first `ns[i]` tokens, at least 1, of the opening in row `rows[i]`."""
        ...

    def own(self) -> "HandOff | None":
        """The hand-off of the small model's own opening to itself; None where no map was fitted for it."""
        ...

    def emptied(self, control: str, *, seed: int) -> "HandOff | None":
        """The same with uninformative vectors in place of states, a control of `EMPTY`; None where no states pass."""
        ...


@dataclass(frozen=True)
class TextHandOff:
    """The small model reads its prompt followed by the opening's text.

    Between models of one vocabulary the token ids pass unchanged. Else the text is tokenized separately by the small
    model's tokenizer, without special tokens: ids(prompt) + ids(text), so that no token spans the boundary.

    >>> TextHandOff().layers
    ()
    """

    name: str = "text"

    @property
    def layers(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def needs_cache(self) -> bool:
        """No."""
        return False

    def check(self, large: Model, small: Model, task: Task) -> None:  # noqa: ARG002 (the signature is that of every hand-off)
        """Both models need a tokenizer.

        Raises:
            ValueError: one of them has none.
        """
        large.require_tokenizer()
        small.require_tokenizer()

    def receive(self, small: Model, task: Task, openings: Openings, rows: Sequence[int], ns: Sequence[int]) -> Received:
        """The prompts, each followed by its opening.

        Raises:
            ValueError: the small model's tokenizer does not reproduce an opening's text.
        """
        opening = opening_tokens(small, openings, rows, ns)
        prompts = receiver_prompts(small, task)
        whole = [[*prompts.ids(row).tolist(), *ids] for row, ids in enumerate(opening)]
        no_drift = (None,) * len(opening)
        return Received(ReceiverInput(Prompts.from_ids(whole)), tuple(opening), (0,) * len(opening), no_drift)

    def own(self) -> "TextHandOff":
        """The same: the small model then reads its own output, which equals the small model alone."""
        return self

    def emptied(self, control: str, *, seed: int) -> None:
        """None: no states pass."""


@dataclass(frozen=True)
class LatentHandOff:
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
        itself: the hand-off of the small model's own opening to itself; without it soft tokens have no control "own",
            and a graft writes its own state, unmapped, which with `Replace` equals the small model alone.
        name: in tables.
        instead: a control of `EMPTY` and its seed, which replaces the mapped states; None changes nothing.

    Raises:
        ValueError: a layer below -1, a fusion where there is no own state to fuse with, or an unknown control.

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
    instead: tuple[str, int] | None = None

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
        if self.instead is not None and self.instead[0] not in EMPTY:
            raise ValueError(f"there is no control {self.instead[0]!r} of states; choose among {', '.join(EMPTY)}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer that is read."""
        return (self.read,)

    @property
    def needs_cache(self) -> bool:
        """No."""
        return False

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

    def receive(self, small: Model, task: Task, openings: Openings, rows: Sequence[int], ns: Sequence[int]) -> Received:
        """The prompts followed by soft tokens, or by the opening's text with grafts.

        Raises:
            ValueError: the openings hold no states of the layer, or what `TextHandOff` refuses.
        """
        states = [self.mapped(openings, row, n) for row, n in zip(rows, ns, strict=True)]
        if self.write == EMBEDDINGS:
            return self._as_embeddings(small, task, states)
        text = TextHandOff().receive(small, task, openings, rows, ns)
        starts = receiver_prompts(small, task).lengths.tolist()
        positions = shared_places(small, openings, rows, ns, [ids for ids in text.opening if ids is not None])
        for row, (shared, _), n in zip(rows, positions, ns, strict=True):
            if len(shared) == 0:
                raise ValueError(
                    f"the first {n} tokens of the opening of item {openings.items[row]!r} hold no whole character, so "
                    f"{self.name} has no position to write at; use a larger n"
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
        given = replace(text.given, grafts=(graft,))
        return Received(given, text.opening, self._multiply_adds(used), self._drift(used))

    def own(self) -> "LatentHandOff | None":
        """`itself`; at a layer, where that is None, the same layer's states without a map."""
        if self.write == EMBEDDINGS or self.itself is not None:
            return self.itself
        return LatentHandOff(int(self.write), self.write, None, self.fusion, self.reference, None, self.name)

    def emptied(self, control: str, *, seed: int) -> "LatentHandOff":
        """With zeros, whose drift is not measured since they have no direction, or random directions with each mapped
        state's own norm, the same ones after any n.
        """
        return replace(self, instead=(control, seed), reference=None if control == ZERO else self.reference)

    def mapped(self, openings: Openings, row: int, n: int) -> Float[Tensor, "n d_receiver"]:
        """The states along the first n tokens of an opening in the small model's space, or the control in their place.

        Raises:
            ValueError: the openings do not hold them.
        """
        states = openings.rows[row].states.get(self.read)
        if states is None:
            raise ValueError(
                f"the openings hold no states after block {self.read}; write them with layers=({self.read},)"
            )
        states = states[:n] if self.instead is None else states  # a control is drawn once for every n
        mapped = states if self.alignment is None else self.alignment(states.to(self.alignment.weight.device))
        if self.instead is None:
            return mapped
        control, seed = self.instead
        drawn = torch.Generator().manual_seed(int(digest(seed, openings.items[row])[:8], 16))
        return (torch.zeros_like(mapped) if control == ZERO else random_directions(mapped, drawn))[:n]

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
        if self.reference is None:
            return (None,) * len(states)
        drift = torch.tensor(self.drift_of(torch.cat(list(states))), dtype=torch.float64)
        return tuple(float(part.mean()) for part in drift.split([len(each) for each in states]))


@dataclass(frozen=True)
class KVHandOff:
    """The large model's keys and values of prompt and opening are the small model's cache; it reads the last token of
    the opening and continues.

    The two models need one layout, one vocabulary and the same tokens of the prompts. The prompt's keys and values pass
    with the opening's: under another item's opening the small model never saw its own problem.

    >>> KVHandOff().needs_cache
    True
    """

    name: str = "kv"

    @property
    def layers(self) -> tuple[int, ...]:
        """None: keys and values are cached instead."""
        return ()

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

    def receive(
        self,
        small: Model,
        task: Task,
        openings: Openings,
        rows: Sequence[int],
        ns: Sequence[int],
    ) -> Received:
        """The last token of each opening, after the keys and values of all tokens before it.

        Raises:
            ValueError: the openings hold no keys and values.
        """
        layers, lengths, opening = [], [], []
        for row, n in zip(rows, ns, strict=True):
            keys, values = (each.to(small.device, small.dtype) for each in openings.rows[row].past(n))
            layers.append(
                [
                    (swapped(small, key[None]), swapped(small, value[None]))
                    for key, value in zip(keys, values, strict=True)
                ]
            )
            lengths.append(keys.shape[2])
            opening.append(openings.rows[row].ids[:n])
        if len(task.items) != len(opening):
            raise ValueError(f"{len(task.items)} items for {len(opening)} openings; give one an item")
        given = ReceiverInput(Prompts.from_ids([ids[-1:] for ids in opening]), past=Past(tuple(layers), tuple(lengths)))
        return Received(given, tuple(opening), (0,) * len(opening), (None,) * len(opening))

    def own(self) -> "KVHandOff":
        """The same: the small model then continues from its own cache, which equals the small model alone."""
        return self

    def emptied(self, control: str, *, seed: int) -> None:
        """None: the prompt passes with the opening, so that no trace of the problem would be left."""
