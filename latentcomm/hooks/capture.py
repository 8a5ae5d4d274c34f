"""Activations of a model at chosen sites: in memory for prompts, in resumable shards on disk for a corpus."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm._core.arrays import StoredRows, mapped_tensor
from latentcomm._core.budget import at_most
from latentcomm._core.files import digest, expanded, map_tensors, read_sealed, write_sealed
from latentcomm._core.progress import track
from latentcomm._core.records import Part, Records, ordered, read_whole, scheduled_by
from latentcomm.models import Hook, Model, PassEnded, in_halves
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

TOKENS_PER_BATCH = 4096
"""Tokens in one forward pass of a capture at most (unless one prompt is longer): fewer where less memory is stated."""
MANIFEST = "manifest.json"
"""The file that describes what was captured in a folder."""
ROWS_PER_SHARD = 65536
"""Rows of activations in one file of a capture on disk at most: 150 MB a site at width 576 in float32."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of prompts at some sites, right-padded.

    Attributes:
        values: site -> `[batch pos d_model]`; entries at padded positions are meaningless and never returned.
        mask: True at real tokens.
    """

    values: dict[Site, Float[Tensor, "batch pos d_model"]]
    mask: Bool[Tensor, "batch pos"]

    def last(self, site: Site) -> Float[Tensor, "batch d_model"]:
        """The activation at each prompt's last real token."""
        return self.at(site, self.mask.sum(1) - 1)

    def at(self, site: Site, position: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_model"]:
        """The activation at one position of each prompt, counted from its first token (from its last when negative).

        Raises:
            ValueError: a position outside its prompt, or a site that was not captured.
        """
        lengths = self.mask.sum(1)
        position = position.to(lengths.device)
        if ((position < -lengths) | (position >= lengths)).any():
            raise ValueError(f"positions {position.tolist()} are not all inside prompts of {lengths.tolist()} tokens")
        values = self._values(site)
        return values[torch.arange(len(values)), (position % lengths).to(values.device)]

    def rows(self, site: Site, *, skip_first: bool = False) -> Float[Tensor, "row d_model"]:
        """Every real token's activation, prompt by prompt; without each prompt's first token where `skip_first`.

        The first token of a prompt is the attention sink of Llama-like models: its norm is a hundred times the others'.
        """
        mask = self.mask.clone()
        if skip_first:
            mask[:, 0] = False
        return self._values(site)[mask]

    def _values(self, site: Site) -> Tensor:
        if site not in self.values:
            raise ValueError(
                f"{site.hook_name} was not captured; captured: {', '.join(s.hook_name for s in self.values)}"
            )
        return self.values[site]


def capture(model: Model, prompts: Prompts, sites: Sequence[Site], *, batch_tokens: int | None = None) -> Activations:
    """The activations of prompts at sites, in memory, on the CPU; the model stops after the deepest site.

    Padding never reaches a result: prompts run right-padded under causal attention, which ignores it.

    Raises:
        ValueError: no site, or one that the model does not have.
    """
    if not sites:
        raise ValueError("name at least one site to capture")
    for site in sites:
        model.check_site(site)
    prompts = prompts.right_padded()
    batch, width = prompts.tokens.shape
    values = {site: torch.zeros(batch, width, model.d_model, dtype=model.dtype) for site in sites}
    for rows in _batches(prompts, batch_tokens or tokens_per_pass(model, prompts, len(sites))):
        part = prompts.select(rows)
        seen = _seen(model, part.tokens, sites)
        for site in sites:
            values[site][rows, : part.tokens.shape[1]] = seen[site]
    return Activations(values, prompts.mask)


def capture_positions(
    model: Model, prompts: Prompts, sites: Sequence[Site], position: int, *, batch_tokens: int | None = None
) -> dict[Site, Float[Tensor, "batch d_model"]]:
    """The activation at one position of every prompt (from its last token when negative); nothing else is stored.

    Raises:
        ValueError: no site, one that the model does not have, or a position outside a prompt.
    """
    if not sites:
        raise ValueError("name at least one site to capture")
    for site in sites:
        model.check_site(site)
    for row, length in enumerate(prompts.lengths.tolist()):
        if not -length <= position < length:
            raise ValueError(f"position {position} is outside prompt {row}, which has {length} tokens")
    found = {site: torch.zeros(len(prompts), model.d_model, dtype=model.dtype) for site in sites}
    for rows in _batches(prompts, batch_tokens or tokens_per_pass(model, prompts, len(sites))):
        part = prompts.select(rows)
        seen = _seen(model, part.tokens, sites, position % part.lengths)
        for site in sites:
            found[site][rows] = seen[site]
    return found


def tokens_per_pass(model: Model, prompts: Prompts, n_sites: int) -> int:
    """Tokens of one forward pass of a capture: `TOKENS_PER_BATCH`, or fewer where less memory is stated.

    A token takes the vectors of `numbers_of_a_row`, its attention scores in float32 and the states that are captured.
    """
    size = torch.finfo(model.dtype).bits // 8
    scores = 3 * int(model.hooked.cfg.n_heads) * max(size, 4) * int(prompts.lengths.max())
    return at_most(TOKENS_PER_BATCH, size * (numbers_of_a_row(model.hooked.cfg) + n_sites * model.d_model) + scores)


def numbers_of_a_row(sizes: Any) -> int:
    """The numbers that one token of a pass takes in a block: about eight vectors of d_model and three of d_mlp."""
    return 8 * sizes.d_model + 3 * int(getattr(sizes, "d_mlp", None) or 4 * sizes.d_model)


def _seen(
    model: Model, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], position: Int[Tensor, " batch"] | None = None
) -> dict[Site, Float[Tensor, "batch *pos d_model"]]:
    """The activations of one batch on the CPU, at one position of each row or at all."""

    def of(rows: Sequence[int]) -> dict[Site, Tensor]:
        row = torch.tensor(rows)
        seen = run_to_deepest(model, tokens[row], [site.hook_name for site in sites])
        states = {site: seen[site.hook_name] for site in sites}
        if position is not None:
            at, own = torch.arange(len(rows)), position[row]
            states = {site: each[at.to(each.device), own.to(each.device)] for site, each in states.items()}
        return {site: each.cpu() for site, each in states.items()}

    parts = in_halves(of, range(len(tokens)), "a capture")
    return parts[0] if len(parts) == 1 else {site: torch.cat([part[site] for part in parts]) for site in sites}


def run_to_deepest(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    points: Sequence[str],
    *,
    hooks: Sequence[Hook] = (),
    cache: Any = None,
    past_mask: Bool[Tensor, "batch past"] | None = None,
    with_grad: bool = False,
) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """One forward pass that records the activations at hook points and ends at the last of them.

    The keys and values of the layers that ran are in the cache afterwards. Further hooks, the cache, the mask and the
    gradients are those of `Model.forward`.

    Raises:
        RuntimeError: a hook point did not fire.
    """
    seen: dict[str, Tensor] = {}

    def record(point: str, value: Tensor) -> None:
        seen[point] = value if with_grad else value.detach().clone()
        if len(seen) == len(set(points)):
            raise PassEnded

    recorders = [recorder(point, partial(record, point)) for point in dict.fromkeys(points)]
    layers = [int(point.split(".")[1]) for point in points if point.startswith("blocks.")]
    with contextlib.suppress(PassEnded):
        model.forward(
            tokens, hooks=[*hooks, *recorders], cache=cache, past_mask=past_mask, with_grad=with_grad,
            n_layers_run=max(layers, default=-1) + 1,
        )  # fmt: skip
    if missing := [point for point in points if point not in seen]:
        raise RuntimeError(f"the hook points {', '.join(missing)} did not fire in {model.name}")
    return seen


def recorder(point: str, record: Callable[[Tensor], None]) -> Hook:
    """A hook that gives the activation at a hook point to `record` and changes nothing."""
    return point, partial(_given_to, record)


def _given_to(record: Callable[[Tensor], None], value: Tensor, hook: Any) -> None:
    record(value)


@dataclass(frozen=True)
class ActivationStore:
    """Activations of a corpus on disk: safetensors shards with a manifest, of which one site is read at a time.

    Attributes:
        folder: where the shards are.
        manifest: what was captured: model, fingerprint, sites, options, and the prompts of each shard.
    """

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "ActivationStore":
        """The store in a folder.

        Raises:
            ValueError: there is none, its manifest is damaged or another program's, or a shard of it is missing: the
                capture was interrupted.
        """
        path = expanded(folder)
        if not (path / MANIFEST).exists():
            raise ValueError(f"{path} holds no captured activations")
        manifest = read_sealed(path / MANIFEST)
        if not all(isinstance(manifest.get(name), list) for name in ("sites", "shards")):
            raise ValueError(f"{path / MANIFEST} names no sites and shards; give a folder of capture_to_disk")
        store = cls(path, manifest)
        missing = [number for number in range(len(store.manifest["shards"])) if not store.shard_path(number).exists()]
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} of its shards; run the same capture again to resume it")
        return store

    def shard_path(self, number: int) -> Path:
        """The file of one shard."""
        return self.folder / f"shard-{number:05d}.safetensors"

    def rows(self, site: Site) -> StoredRows:
        """The rows of a site where they are, to be given to what takes rows: those that it names are read.

        Every shard is verified before the first of them is read, once for a store.

        Raises:
            ValueError: a site that was not captured, or a damaged shard.
        """
        if site.hook_name not in self.manifest["sites"]:
            raise ValueError(f"{site.hook_name} was not captured; captured: {', '.join(self.manifest['sites'])}")
        bounds = self._bounds
        files = tuple(self.shard_path(number) for number in range(len(bounds) - 1))
        first = mapped_tensor(files[0], site.hook_name)
        return StoredRows(files, bounds, first.shape[1], first.dtype, site.hook_name)

    def shards(self, site: Site) -> Iterator[Float[Tensor, "row d_model"]]:
        """The rows of a site, one shard at a time: memory is that of one site of one shard."""
        rows = self.rows(site)
        for start, stop in pairwise(rows.bounds):
            yield rows[start:stop]

    def load(self, site: Site) -> Float[Tensor, "row d_model"]:
        """All rows of a site at once."""
        return self.rows(site)[:]

    def prompt_of_row(self) -> Int[Tensor, " row"]:
        """Which prompt each row is of: the unit of resampling, since tokens of one text are not independent."""
        return self._labels("prompt")

    def position_of_row(self) -> Int[Tensor, " row"]:
        """Which token of its prompt each row is, from 0."""
        return self._labels("position")

    def _labels(self, name: str) -> Int[Tensor, " row"]:
        return torch.cat([mapped_tensor(self.shard_path(number), name) for number in range(len(self._bounds) - 1)])

    @functools.cached_property
    def _bounds(self) -> tuple[int, ...]:
        """The first row of each shard, and the number of rows: all shards are verified for it, each mapped alone."""
        bounds = [0]
        for number in range(len(self.manifest["shards"])):
            tensors = map_tensors(self.shard_path(number))[1]
            if missing := [name for name in (*self.manifest["sites"], "prompt", "position") if name not in tensors]:
                raise ValueError(f"{self.shard_path(number)} lacks {', '.join(missing)}; capture it again")
            bounds.append(bounds[-1] + len(tensors["prompt"]))
        return tuple(bounds)


def capture_to_disk(
    model: Model,
    prompts: Prompts,
    sites: Sequence[Site],
    folder: str | os.PathLike[str],
    *,
    skip_first: bool = False,
    last_only: bool = False,
    rows_per_shard: int | None = None,
    batch_tokens: int | None = None,
    part: str | None = None,
    progress: bool = True,
) -> ActivationStore:
    """Stream a corpus through a model and save its real tokens' activations on disk.

    Every shard is written atomically; the same call after an interruption resumes after the last complete shard, and
    after damage it sets the damaged file aside as FILE.damaged and captures that shard again.
    Memory is that of one shard of the sites, for any corpus. `skip_first` leaves out each prompt's first token
    (the attention sink), `last_only` saves each prompt's last token alone. Part "I/N" captures every N-th shard from
    the I-th on, I from 1; several processes may do so in one folder, and the store is whole when all parts are there.

    Raises:
        ValueError: no site or one that the model lacks; the folder holds a capture of something else; a part that there
            is not.
        RuntimeError: the disk is full; finished shards are saved.
    """
    if not sites:
        raise ValueError("name at least one site to capture")
    for site in sites:
        model.check_site(site)
    turns = contextlib.nullcontext() if part is None else scheduled_by(Part.parse(part))
    target = expanded(folder)
    batch_tokens = batch_tokens or tokens_per_pass(model, prompts, len(sites))
    if rows_per_shard is None:
        rows_per_shard = at_most(ROWS_PER_SHARD, len(sites) * model.d_model * torch.finfo(model.dtype).bits // 8)
    shards = _plan_shards(prompts, rows_per_shard, skip_first, last_only)
    manifest = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype),
        "sites": [site.hook_name for site in sites],
        "prompts": digest([prompts.ids(row) for row in range(len(prompts))]),
        "skip_first": skip_first,
        "last_only": last_only,
        "shards": shards,
    }
    claim_folder(target, manifest, "shard-*.safetensors")
    store, records = ActivationStore(target, manifest), Records(target)
    pieces = [(records, store.shard_path(number).stem) for number in range(len(shards))]
    with turns:
        for number in track(ordered(pieces, needed=False), "capture", total=len(pieces), shown=progress):
            rows = range(*shards[number])
            make = partial(_shard, model, prompts, rows, sites, skip_first, last_only, batch_tokens)
            records.tensors(pieces[number][1], make)
    return store


def claim_folder(folder: Path, manifest: dict[str, Any], files: str) -> None:
    """Write the manifest of a folder of captured states, or refuse the folder where it has another.

    Without a manifest it is not known of what the `files` (a glob pattern) are: they are set aside as FILE.damaged.

    Raises:
        ValueError: what is captured there is another; the entries that differ are named.
        RuntimeError: the disk is full.
    """
    unnamed = list(folder.glob(files))  # before the manifest is read: those of a process that begins meanwhile have one
    saved = read_whole(folder / MANIFEST, read_sealed)
    if saved is None:
        for file in unnamed:
            file.replace(f"{file}.damaged")
        write_sealed(folder / MANIFEST, manifest)
    elif changed := [key for key in manifest if saved[0].get(key) != manifest[key]]:
        raise ValueError(f"{folder} holds a capture that differs in {' and '.join(changed)}; choose another folder")


def _shard(
    model: Model,
    prompts: Prompts,
    rows: range,
    sites: Sequence[Site],
    skip_first: bool,
    last_only: bool,
    batch_tokens: int,
) -> dict[str, Tensor]:
    """The rows of some prompts at each site, in the order of the prompts, with prompt and position of each row."""
    part = prompts.select(rows)
    found: list[tuple[int, Tensor, dict[Site, Tensor]]] = []  # one entry a prompt, since batches run in order of length
    for batch in _batches(part, batch_tokens):
        chosen = part.select(batch)
        seen = _seen(model, chosen.tokens, sites)
        for row, (number, length) in enumerate(zip(batch, chosen.lengths.tolist(), strict=True)):
            position = torch.arange(length - 1 if last_only else int(skip_first), length)
            found.append((number, position, {site: seen[site][row, position] for site in sites}))
    found.sort(key=lambda entry: entry[0])
    tensors = {site.hook_name: torch.cat([states[site] for _, _, states in found]) for site in sites}
    tensors["prompt"] = torch.cat([torch.full_like(position, rows.start + number) for number, position, _ in found])
    return tensors | {"position": torch.cat([position for _, position, _ in found])}


def _plan_shards(prompts: Prompts, rows_per_shard: int, skip_first: bool, last_only: bool) -> list[list[int]]:
    """First and last-plus-one prompt of each shard."""
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}; it must be at least 1")
    shards, start, rows = [], 0, 0
    for number, length in enumerate(prompts.lengths.tolist()):
        rows += 1 if last_only else length - int(skip_first)
        if rows >= rows_per_shard or number == len(prompts) - 1:
            shards.append([start, number + 1])
            start, rows = number + 1, 0
    return shards


def _batches(prompts: Prompts, batch_tokens: int) -> Iterator[list[int]]:
    """Rows in order of length, in padded batches of `batch_tokens` at most."""
    lengths = prompts.lengths.tolist()
    batch: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch
