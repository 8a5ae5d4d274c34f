"""The same text in two models: which tokens end at the same character, and the residual streams there."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm._core.arrays import StoredRows
from latentcomm._core.budget import at_most, budget
from latentcomm._core.files import digest, expanded
from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.hooks.capture import capture, claim_folder
from latentcomm.models import Model, one_model, one_vocabulary
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

MAX_TOKENS = 256
"""Tokens of a document that are read, by default."""
TOKENS_PER_PART = 4096
"""Tokens of the documents that are captured together and saved in one file at most: what an interruption loses."""


class _PairedRows:
    """What both have in common: a row for each character at which a token of both models ends."""

    document: Int[Tensor, " row"]
    sender_position: Int[Tensor, " row"]
    receiver_position: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.document)

    @property
    def after_first(self) -> Bool[Tensor, " row"]:
        """Which rows are of no document's first token, the attention sink, in either model."""
        return (self.sender_position > 0) & (self.receiver_position > 0)


@dataclass(frozen=True, eq=False)
class PairedTokens(_PairedRows):
    """Documents as both models read them, and the rows at which both have read the same text.

    Attributes:
        sender: the documents in the sender's tokens.
        receiver: the documents in the receiver's tokens.
        document: which document each row is of, from 0, ascending.
        sender_position: which token of its document the row is for the sender, from 0, a BOS token counted.
        receiver_position: the same for the receiver.
    """

    sender: Prompts
    receiver: Prompts
    document: Int[Tensor, " row"]
    sender_position: Int[Tensor, " row"]
    receiver_position: Int[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class PairedStates(_PairedRows):
    """The residual stream after the captured blocks of both models, row by row at the same character of the same text.

    Attributes:
        x: the sender's states, in float32, in the order of the layers that were captured.
        y: the receiver's; the same object as `x` where a model is paired with itself.
        document: which document each row is of, from 0, ascending.
        sender_position: which token of its document the row is for the sender, from 0.
        receiver_position: the same for the receiver.
    """

    x: Float[Tensor, "layer_x row d_sender"]
    y: Float[Tensor, "layer_y row d_receiver"]
    document: Int[Tensor, " row"]
    sender_position: Int[Tensor, " row"]
    receiver_position: Int[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class StatesOnDisk(Sequence[StoredRows]):
    """The states of one model in the parts that a capture wrote: `[layer]` is where those of a layer are.

    Attributes:
        files: the parts, in order.
        bounds: the first row of each part, and the number of rows.
        shape: the numbers of layers, rows and dimensions.
    """

    files: tuple[Path, ...]
    bounds: tuple[int, ...]
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> Any:  # a layer, a slice of layers, or a layer and the rows that are read of it
        if isinstance(at, tuple):
            layer, rows = at
            return self[layer][rows]
        if isinstance(at, slice):
            return [self[layer] for layer in range(len(self))[at]]
        layer = range(len(self))[at]
        return StoredRows(self.files, self.bounds, self.shape[2], torch.float32, "states", layer)


@dataclass(frozen=True, eq=False)
class PairedOnDisk(_PairedRows):
    """What `PairedStates` holds, with the states on disk.

    Attributes:
        x: the sender's states.
        y: the receiver's; the same object as `x` where a model is paired with itself.
        document: which document each row is of, from 0, ascending.
        sender_position: which token of its document the row is for the sender, from 0.
        receiver_position: the same for the receiver.
    """

    x: StatesOnDisk
    y: StatesOnDisk
    document: Int[Tensor, " row"]
    sender_position: Int[Tensor, " row"]
    receiver_position: Int[Tensor, " row"]


def pair_tokens(
    sender: Model, receiver: Model, documents: Sequence[str], *, max_tokens: int = MAX_TOKENS
) -> PairedTokens:
    """Both models' tokens of documents, and a row for each character at which a token of both ends.

    There both have read exactly the same text. Each document is cut after `max_tokens` tokens of either model; special
    tokens that a tokenizer adds (BOS) are read but give no rows. Of several tokens of one character (the bytes of "€")
    only the last ends there. Where both tokenizers have one vocabulary and split every document into the same tokens,
    every token is a row, special ones too, without matching.

    Raises:
        ValueError: no document, an empty one, fewer than 1 token, more than a model reads, a tokenizer without
            character offsets paired with a different one, or no character at which tokens of both end.
        RuntimeError: a tokenizer gives other tokens with character offsets than without.
    """
    if isinstance(documents, str):
        raise ValueError(f"documents must be a list of strings, not the string {documents[:40]!r}")
    if not documents:
        raise ValueError("no documents were given; read_corpus() has some")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; read at least 1 token of a document")
    ids = [_ids(model, documents) for model in ((sender,) if sender is receiver else (sender, receiver))]
    for model, rows in zip((sender, receiver), ids, strict=False):
        longest = min(max_tokens, max(map(len, rows)))
        if longest > model.n_ctx:
            raise ValueError(f"{model.name} reads {model.n_ctx} tokens and max_tokens is {max_tokens}; lower it")
    prompts = [Prompts.from_ids([row[:max_tokens] for row in rows]) for rows in ids]
    if ids[0] == ids[-1] and one_vocabulary(sender, receiver):
        lengths = prompts[0].lengths.tolist()
        position = torch.cat([torch.arange(length) for length in lengths])
        document = torch.repeat_interleave(torch.arange(len(lengths)), prompts[0].lengths)
        return PairedTokens(prompts[0], prompts[0], document, position, position)
    ends = [_ends(model, documents, rows) for model, rows in zip((sender, receiver), ids, strict=True)]
    matches = [
        (number, sender_ends[end], receiver_ends[end])
        for number, (sender_ends, receiver_ends) in enumerate(zip(*ends, strict=True))
        for end in sorted(sender_ends.keys() & receiver_ends.keys())
        if sender_ends[end] < max_tokens and receiver_ends[end] < max_tokens
    ]
    if not matches:
        raise ValueError(
            f"no token of {sender.name} ends where one of {receiver.name} does within {max_tokens} tokens; "
            "give longer documents or more tokens"
        )
    document, sender_token, receiver_token = torch.tensor(matches).T.contiguous()
    return PairedTokens(prompts[0], prompts[1], document, sender_token, receiver_token)


def capture_paired(
    sender: Model,
    receiver: Model,
    tokens: PairedTokens,
    *,
    sender_layers: Sequence[int] | None = None,
    receiver_layers: Sequence[int] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> PairedStates:
    """The residual stream after blocks of both models (all by default) at the rows of `tokens`, on the CPU, in float32.

    Each model reads each document once, all its layers in one pass. A model paired with itself (the same object or the
    same weights, the same tokens) is captured once, and `y` is `x` where the layers are the same. With a `checkpoint`
    folder, each part is a file written atomically, and the same call after an interruption resumes after the last one
    with the same bits; the folder is as large as the result, 4 bytes a layer, row and dimension. Remove it when done.

    Raises:
        ValueError: a layer that a model does not have, or the checkpoint is of other models, layers or tokens.
        RuntimeError: the disk is full; finished parts are saved.
    """
    read, write = (
        list(range(model.n_layers) if layers is None else layers)
        for model, layers in ((sender, sender_layers), (receiver, receiver_layers))
    )
    sides, both = _sides(sender, receiver, tokens, read, write), sorted({*read, *write})
    found = {
        role: torch.empty(len(side.layers), len(tokens), side.model.d_model, dtype=torch.float32)
        for role, side in sides.items()
    }
    for role, _, rows, states in _captured(
        sides, tokens, None if checkpoint is None else expanded(checkpoint), progress
    ):
        found[role][:, rows] = states
    x, y = found["sender"], found.get("receiver", found["sender"])
    if read != write and y is x:
        x, y = (x[[both.index(layer) for layer in layers]] for layers in (read, write))
    return PairedStates(x, y, tokens.document, tokens.sender_position, tokens.receiver_position)


def capture_paired_to_disk(
    sender: Model,
    receiver: Model,
    tokens: PairedTokens,
    folder: str | os.PathLike[str],
    *,
    progress: bool = False,
) -> PairedOnDisk:
    """The states of `capture_paired` after every block, in the files of its checkpoint: one part is in memory at once.

    `x[layer]` and `y[layer]` are given to what takes rows, `x` and `y` to what takes layers. Every part, one that is
    there already too, is read once and verified; what indexing reads is mapped into memory.

    Raises:
        ValueError: the folder is of other models or tokens.
        RuntimeError: the disk is full; finished parts are saved.
    """
    layers = [list(range(model.n_layers)) for model in (sender, receiver)]
    sides, target = _sides(sender, receiver, tokens, *layers), expanded(folder)
    parts: dict[str, list[tuple[Path, int]]] = {role: [] for role in sides}
    for role, name, rows, _ in _captured(sides, tokens, target, progress):
        parts[role].append((target / f"{name}.safetensors", rows.start))
    found = {}
    for role, side in sides.items():
        files, starts = zip(*parts[role], strict=True)
        shape = (len(side.layers), len(tokens), side.model.d_model)
        found[role] = StatesOnDisk(files, (*starts, len(tokens)), shape)
    x = found["sender"]
    labels = (tokens.document, tokens.sender_position, tokens.receiver_position)
    return PairedOnDisk(x, found.get("receiver", x), *labels)


def _sides(
    sender: Model, receiver: Model, tokens: PairedTokens, read: list[int], write: list[int]
) -> "dict[str, _Side]":
    """What is captured of each model; of both at once where they are one that reads the same tokens."""
    if _same_reading(tokens) and one_model(sender, receiver):
        return {"sender": _Side(sender, tokens.sender, tokens.sender_position, sorted({*read, *write}))}
    return {
        "sender": _Side(sender, tokens.sender, tokens.sender_position, read),
        "receiver": _Side(receiver, tokens.receiver, tokens.receiver_position, write),
    }


def _captured(
    sides: "dict[str, _Side]", tokens: PairedTokens, folder: Path | None, progress: bool
) -> Iterator[tuple[str, str, slice, Float[Tensor, "layer part d_model"]]]:
    """The parts of each side as they are captured or read: role, name of the record, rows and states."""
    records = Records(folder)
    most = min(at_most(TOKENS_PER_PART, side.bytes_a_token) for side in sides.values())
    if records.folder is not None:
        claim_folder(records.folder, _manifest(sides, tokens, most), "*er-*.safetensors")
    parts = _parts(tokens, most)
    bounds = torch.searchsorted(tokens.document, torch.tensor([0, *(stop for _, stop in parts)])).tolist()
    todo = [(role, f"{role}-{number:05d}", number) for role in sides for number in range(len(parts))]
    saved = records.n_saved(name for _, name, _ in todo)
    for role, name, number in track(todo, "capture", total=len(todo), saved=saved, shown=progress):
        rows = slice(bounds[number], bounds[number + 1])
        make = partial(_states, sides[role], range(*parts[number]), tokens.document[rows], rows)
        yield role, name, rows, records.tensors(name, make)["states"]


@dataclass(frozen=True, eq=False)
class _Side:
    """What is captured of one model."""

    model: Model
    prompts: Prompts
    position: Int[Tensor, " row"]
    layers: list[int]

    @property
    def bytes_a_token(self) -> int:
        """The states of a token as they are captured, and in float32."""
        return len(self.layers) * self.model.d_model * (torch.finfo(self.model.dtype).bits // 8 + 4)


def _states(
    side: _Side, documents: range, document: Int[Tensor, " row"], rows: slice
) -> dict[str, Float[Tensor, "layer row d_model"]]:
    """The residual stream of a side at these rows, which are of these documents, as "states"."""
    sites = [Site(layer) for layer in side.layers]
    most = TOKENS_PER_PART if budget() is None else None
    seen = capture(side.model, side.prompts.select(documents), sites, batch_tokens=most)
    at = document - documents.start, side.position[rows]
    return {"states": torch.stack([seen.values[site][at].float() for site in sites])}


def _manifest(sides: dict[str, _Side], tokens: PairedTokens, tokens_per_part: int) -> dict[str, Any]:
    """What identifies the models, tokens and layers (None where all are) of a folder of captured parts."""
    some = {role: side.layers for role, side in sides.items() if side.layers != list(range(side.model.n_layers))}
    return {
        "models": {role: side.model.fingerprint for role, side in sides.items()},
        "dtypes": {role: str(side.model.dtype) for role, side in sides.items()},
        "tokens": digest(
            {role: [side.prompts.ids(row) for row in range(len(side.prompts))] for role, side in sides.items()},
            tokens.document,
            tokens.sender_position,
            tokens.receiver_position,
        ),
        "tokens_per_part": tokens_per_part,
        "layers": some or None,
    }


def _parts(tokens: PairedTokens, most: int) -> list[tuple[int, int]]:
    """First and last-plus-one document of each part: as many as `most` tokens of either model hold."""
    parts, start, n_tokens = [], 0, 0
    for number, length in enumerate(torch.maximum(tokens.sender.lengths, tokens.receiver.lengths).tolist()):
        if n_tokens and n_tokens + length > most:
            parts.append((start, number))
            start, n_tokens = number, 0
        n_tokens += length
    return [*parts, (start, len(tokens.sender))]


def _same_reading(tokens: PairedTokens) -> bool:
    """Whether both sides read the same ids at the same positions."""
    if tokens.sender is tokens.receiver:
        return torch.equal(tokens.sender_position, tokens.receiver_position)
    rows = range(len(tokens.sender))
    same_ids = all(torch.equal(tokens.sender.ids(row), tokens.receiver.ids(row)) for row in rows)
    return same_ids and torch.equal(tokens.sender_position, tokens.receiver_position)


def _ids(model: Model, documents: Sequence[str]) -> list[list[int]]:
    """The ids of whole documents, as `encode` has them."""
    tokenizer = model.require_tokenizer()
    rows = []
    for number, text in enumerate(documents):
        if not text.strip():
            raise ValueError(f"document {number} is empty; give every document at least one word")
        rows.append(list(tokenizer(text).input_ids))
    return rows


def _ends(model: Model, documents: Sequence[str], ids: list[list[int]]) -> list[dict[int, int]]:
    """For each document the last token that ends at each character, `{characters read: token}`, without special tokens.

    A byte-level tokenizer may trim white space from its offsets, so that a token of a line feed and two spaces seems to
    end after the line feed: the offsets come from a copy that does not trim.
    """
    tokenizer = model.require_tokenizer()
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer of {model.name} ({type(tokenizer).__name__}) does not give character offsets "
            "and cannot be paired with a different one; use its fast version"
        )
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(json.dumps(_untrimmed(json.loads(tokenizer.backend_tokenizer.to_str()))))
    plain.no_truncation()
    plain.no_padding()
    found = []
    for number, (text, row) in enumerate(zip(documents, ids, strict=True)):
        encoding = plain.encode(text)
        if encoding.ids != row:
            raise RuntimeError(f"the tokenizer of {model.name} cuts document {number} in two ways; report this text")
        spans = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        found.append({end: token for token, ((_, end), special) in enumerate(spans) if not special and end > 0})
    return found


def _untrimmed(entry: Any) -> Any:
    """A tokenizer's description with offsets that include white space."""
    if isinstance(entry, dict):
        return {key: False if key == "trim_offsets" else _untrimmed(value) for key, value in entry.items()}
    return [_untrimmed(value) for value in entry] if isinstance(entry, list) else entry
