"""Grafts (activation patching of a fused state): a vector fused into an activation at one site, on the prompt alone."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.fusion import Replace, fuse
from latentcomm.models import Hook, Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

LAST = -1
"""The last position of a pass: of a prompt without padding, its last token."""


@dataclass(frozen=True, eq=False)
class Graft:
    """Writes `fusion(own, vector)` over the activation at `site` and `position`.

    `own` is the receiver's activation there; the vector is the sender's. All other rows and positions are unchanged,
    bit for bit.

    Attributes:
        site: where to write.
        position: which positions of each row.
            An int (counted from the end when negative), the same for every row; `range` or `slice` for a span of all
            rows; a tensor `[batch]` (one position a row, such as `prompts.last`) or `[batch n]` (n positions a row).
            `slice(None)` writes all positions.
        vector: `[d_sender]` for every row and position, `[batch d_sender]` for each row, `[batch n d_sender]` for each
            row and position, or `[sender batch n d_sender]` from several senders, for a fusion that merges them.
        fusion: how the two are combined; `Replace()` by default.

    Source: Ramesh & Li 2025, arXiv:2501.14082 (one vector into the last token); the rest generalises it.

    Raises:
        ValueError: the vector has a NaN or an infinite entry, or its shape fits no position.

    >>> import torch
    >>> graft = Graft(Site(2), LAST, torch.ones(1, 4))
    >>> graft.fwd_hooks()[0][0]
    'blocks.2.hook_resid_post'
    """

    site: Site
    position: int | range | slice | Int[Tensor, " batch"] | Int[Tensor, "batch n"]
    vector: (
        Float[Tensor, " d_sender"]
        | Float[Tensor, "row d_sender"]
        | Float[Tensor, "row pos d_sender"]
        | Float[Tensor, "sender row pos d_sender"]
    )
    fusion: Callable[..., Any] = field(default_factory=Replace)

    def __post_init__(self) -> None:
        if not torch.isfinite(self.vector).all():
            bad = (~torch.isfinite(self.vector)).nonzero()[0].tolist()
            raise ValueError(f"the message for {self.site.hook_name} is not finite at index {bad}; it was not grafted")
        if isinstance(self.position, Tensor) and self.n_rows not in (1, len(self.position)):
            raise ValueError(f"{len(self.position)} rows of positions but {self.n_rows} rows of vectors")

    @property
    def n_rows(self) -> int:
        """How many prompts it has vectors for; 1 may also be one vector for all."""
        return self._wide().shape[-3]

    def fwd_hooks(self) -> list[Hook]:
        """The graft as TransformerLens forward hooks, to combine with other hooks in `run_with_hooks`.

        They write in every pass that they are attached to. `grafted` writes in the prompt alone and checks it.
        """

        def write(value: Tensor, hook: Any) -> Tensor:
            return self._write_in_block(value)

        return [(self.site.hook_name, write)]

    def write(self, value: Float[Tensor, "batch pos d_receiver"]) -> Float[Tensor, "batch pos d_receiver"]:
        """A copy of `value` with the fused state at this graft's positions; `value` itself is not changed.

        Raises:
            ValueError: a position outside the row, a number of rows that is not the vector's, or what `fuse` refuses.
        """
        index = self.index(value)
        rows = torch.arange(len(value), device=value.device)[:, None]
        own = value[rows, index]
        vector = self._wide().to(value.device, value.dtype)
        n_rows, n_positions = vector.shape[-3:-1]
        if n_rows not in (1, len(value)):
            raise ValueError(f"{n_rows} rows of vectors for {len(value)} prompts; give one a prompt, or one for all")
        if n_positions not in (1, index.shape[1]):
            raise ValueError(f"{n_positions} vectors a row for {index.shape[1]} positions a row; they must agree")
        incoming = vector.expand(*vector.shape[:-3], len(value), index.shape[1], vector.shape[-1])
        out = value.clone()  # resid_post of one block and resid_pre of the next share memory
        out[rows, index] = fuse(self.fusion, own, incoming, at=self.site.hook_name)
        return out

    def _write_in_block(self, value: Float[Tensor, "batch pos d_receiver"]) -> Float[Tensor, "batch pos d_receiver"]:
        """The hook's return value: that of `write`, and at resid_mid written into the tensor of the block as well.

        A bridge passes the return value at resid_mid to the MLP alone, and adds the MLP's output to the tensor it gave
        the hook. No other name shares that tensor's memory.
        """
        out = self.write(value)
        return value.copy_(out) if self.site.stream == "resid_mid" else out

    def select(self, rows: Sequence[int]) -> "Graft":
        """The same graft for some of its rows, in the given order."""
        chosen = torch.as_tensor(rows, dtype=torch.long)
        position = (
            self.position[chosen.to(self.position.device)] if isinstance(self.position, Tensor) else self.position
        )
        wide = self._wide()
        vector = wide[..., chosen.to(wide.device), :, :] if wide.shape[-3] > 1 else wide
        return replace(self, position=position, vector=vector)

    def moved(self, shift: Int[Tensor, " batch"]) -> "Graft":
        """The same graft with its positions, where a tensor names them, `shift` earlier in each row."""
        if not isinstance(self.position, Tensor):
            return self
        positions = self.position if self.position.ndim == 2 else self.position[:, None]
        moved = torch.where(positions < 0, positions, positions - shift.to(positions.device)[:, None])
        return replace(self, position=moved)

    def _wide(self) -> Float[Tensor, "*sender batch n d_sender"]:
        """The vectors with an axis for rows and one for positions, of length 1 where one vector serves all."""
        shape = {1: (1, 1), 2: (len(self.vector), 1)}.get(self.vector.ndim)
        return self.vector if shape is None else self.vector.reshape(*shape, -1)

    def index(self, value: Tensor) -> Int[Tensor, "batch n"]:
        """This graft's positions as non-negative indices for each row of `value`."""
        batch, length = value.shape[:2]
        position = self.position
        if isinstance(position, int):
            position = range(position, position + 1)
        elif isinstance(position, slice):
            position = range(*position.indices(length))
        if isinstance(position, range):
            position = torch.tensor(list(position))[None].expand(batch, -1)
        index = position.to(value.device).long()
        index = index[:, None] if index.ndim == 1 else index
        if len(index) != batch:
            raise ValueError(f"{len(index)} rows of positions for {batch} prompts at {self.site.hook_name}")
        if index.shape[1] == 0:
            raise ValueError(f"the graft at {self.site.hook_name} names no position of a prompt of {length} tokens")
        outside = (index < -length) | (index >= length)
        if outside.any():
            raise ValueError(
                f"position {int(index[outside][0])} is outside a prompt of {length} tokens at {self.site.hook_name}"
            )
        return index % length


@contextlib.contextmanager
def grafted(model: Model, grafts: Sequence[Graft]) -> Iterator[None]:
    """A block in which the model reads a prompt under the grafts, also by `model.hooked.generate`.

    A graft writes at its position in the prompt, in the first pass through its site. Decoded tokens read it from the
    cache; generation without a cache reads the prompt again, with the same write at the same position. Another prompt
    needs another block.

    Raises:
        ValueError: the model does not have a graft's site; a later pass has another number of rows.
        RuntimeError: a graft never fired inside the block.
    """
    for graft in grafts:
        model.check_site(graft.site)
    fired = [0] * len(grafts)
    hooks = [_on_prompt(graft, number, fired) for number, graft in enumerate(grafts)]
    block = (model.hooked, fired)
    _OPEN.append(block)
    try:
        with model.hooked.hooks(fwd_hooks=hooks):
            yield
    finally:
        _OPEN.remove(block)
    check_fired(grafts, fired)


def is_grafted(model: Model, *, already_fired: bool = False) -> bool:
    """Whether a `grafted` block of this model is open (and one of its grafts has fired)."""
    return any(hooked is model.hooked and (not already_fired or any(fired)) for hooked, fired in _OPEN)


_OPEN: list[tuple[Any, list[int]]] = []


def _on_prompt(graft: Graft, number: int, fired: list[int]) -> Hook:
    """A hook that writes in the first pass, and in later ones that contain the whole first pass."""
    prompt: dict[str, Any] = {}

    def write(value: Tensor, hook: Any) -> Tensor:
        if not prompt:
            prompt["length"], prompt["index"] = value.shape[1], graft.index(value)
        elif value.shape[1] == 1:
            return value
        elif value.shape[1] < prompt["length"]:
            raise ValueError(
                f"a second prompt of {value.shape[1]} tokens ran in a `grafted` block whose first has "
                f"{prompt['length']}; open another block for it"
            )
        fired[number] += 1
        return replace(graft, position=prompt["index"])._write_in_block(value)

    return graft.site.hook_name, write


def counting_hooks(grafts: Sequence[Graft]) -> tuple[list[Hook], list[int]]:
    """The hooks of the grafts, in order, and the number of times each has fired, for `check_fired`."""
    fired = [0] * len(grafts)

    def counted(number: int) -> Hook:
        ((name, write),) = grafts[number].fwd_hooks()

        def fire(value: Tensor, hook: object) -> Tensor:
            fired[number] += 1
            return write(value, hook)

        return name, fire

    return [counted(number) for number in range(len(grafts))], fired


def check_fired(grafts: Sequence[Graft], fired: Sequence[int]) -> None:
    """Raise where a graft did not fire.

    Raises:
        RuntimeError: with the first one's hook point.
    """
    for graft, count in zip(grafts, fired, strict=True):
        if count == 0:
            raise RuntimeError(f"the graft at {graft.site.hook_name} never fired; run the model inside the block")


def span(prompts: Prompts, starts: Sequence[int], stops: Sequence[int]) -> Int[Tensor, "batch n"]:
    """Positions `starts[i] .. stops[i]-1` of each prompt, counted from its first real token, for `Graft.position`.

    Every row names the same number. The result holds indices into `prompts.tokens`, as those of `prompts.last` are.

    Raises:
        ValueError: spans of different lengths, or one outside its prompt.
    """
    widths = {stop - start for start, stop in zip(starts, stops, strict=True)}
    if len(widths) != 1 or min(widths) < 1:
        raise ValueError(f"spans have the lengths {sorted(widths)}; a batch of grafts needs one length of at least 1")
    for row, (start, stop, length) in enumerate(zip(starts, stops, prompts.lengths.tolist(), strict=True)):
        if start < 0 or stop > length:
            raise ValueError(f"span {start}..{stop} is outside prompt {row}, which has {length} tokens")
    positions = torch.tensor([list(range(start, stop)) for start, stop in zip(starts, stops, strict=True)])
    return positions + prompts.first[:, None]
