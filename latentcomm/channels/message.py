"""The message of a sender: states, texts or named tensors of each item, which can be selected, saved and loaded."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from latentcomm._core.files import first_line, laid_out, read_tensors, write_tensors
from latentcomm.models import Model
from latentcomm.tasks.base import Task

FORMAT = "latentcomm message 1"

MOST_PARTS = 1_000_000
"""Items of a message of parts, most of which may be empty; a number beyond it is no number of items."""
MOST_SHOWN = 120
"""Characters of another error that an error of a saved message shows, so that it can be read."""
UNREADABLE = (OSError, SafetensorError, RuntimeError, AttributeError, KeyError, TypeError, json.JSONDecodeError)
"""What reading a file of other bytes than a message ends in."""


def _is_texts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))


MANIFEST: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "origin": (lambda value: isinstance(value, str), "a text"),
    "is_own": (lambda value: isinstance(value, bool), "true or false"),
    "texts": (_is_texts, "null or a list of texts"),
    "n_parts": (lambda value: value is None or (type(value) is int and 0 <= value <= MOST_PARTS), "null or a count"),
    "meant_for": (lambda value: value is None or isinstance(value, str), "null or a text"),
    "made_by": (lambda value: isinstance(value, dict), "a mapping"),
    "items": (_is_texts, "null or a list of ids"),
}
"""What each entry of a manifest is, and its name in an error."""


@dataclass(frozen=True, eq=False)
class Message:
    """A sender's message for each item. It may hold all three kinds of content; without any it is silent.

    Attributes:
        vectors: one state an item, in the sender's width; from several senders with one more leading axis.
        origin: a description of the content, model and site, such as "smollm2 blocks.26.hook_resid_post".
        is_own: whether the content is the receiver's own, in its own width, so that no alignment applies.
        texts: a text an item.
        parts: named tensors an item, of any length each (a trajectory, keys and values, distributions).
        meant_for: the name of the only receiver that can read it; None where any of the right shape can.
        made_by: facts about the sender, for the manifest: model, revision, dtype, site, position.
        items: the ids of the items that it is for, in order (`addressed`); None where it was not addressed.

    Raises:
        ValueError: the kinds of content, or the ids, are of different numbers of items.

    >>> import torch
    >>> parts = ({"h": torch.ones(2, 3)}, {"h": torch.ones(1, 3)})
    >>> message = Message(None, "by hand", texts=("Petra", "Rome"), parts=parts)
    >>> message.nbytes()
    [29, 16]
    >>> message.select([1, 0]).texts
    ('Rome', 'Petra')
    """

    vectors: Float[Tensor, "item d_sender"] | Float[Tensor, "sender item d_sender"] | None
    origin: str
    is_own: bool = False
    texts: tuple[str, ...] | None = None
    parts: tuple[Mapping[str, Tensor], ...] | None = None
    meant_for: str | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.parts is not None:  # sorted by name as in a file, so that random draws for them are the same
            parts = tuple({name: laid_out(part[name]) for name in sorted(part)} for part in self.parts)
            object.__setattr__(self, "parts", parts)
        if self.vectors is not None:
            object.__setattr__(self, "vectors", laid_out(self.vectors))
        sizes = set()
        if self.vectors is not None:
            sizes.add(self.vectors.shape[-2])
        sizes |= {len(kind) for kind in (self.texts, self.parts) if kind is not None}
        if len(sizes) > 1:
            raise ValueError(f"a message has contents for {sorted(sizes)} items; give one content an item")
        if self.items is not None and sizes and sizes != {len(self.items)}:
            raise ValueError(f"items are {len(self.items)} ids for a message of {sizes.pop()} items; give one an item")

    @property
    def has_tensors(self) -> bool:
        """Whether there is anything in it to zero or to randomise: ids and masks are not."""
        tensors = (tensor for part in self.parts or () for tensor in part.values())
        return self.vectors is not None or any(tensor.is_floating_point() for tensor in tensors)

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the processor if it has none."""
        tensors = (tensor for part in self.parts or () for tensor in part.values())
        tensor = self.vectors if self.vectors is not None else next(tensors, None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def is_silent(self) -> bool:
        """Whether it holds nothing at all."""
        return self.vectors is None and self.texts is None and not any(self.parts or ())

    def __len__(self) -> int:
        if self.vectors is not None:
            return self.vectors.shape[-2]
        return len(next((kind for kind in (self.texts, self.parts) if kind is not None), ()))

    def nbytes(self) -> list[int]:
        """The size of each item's message in bytes: tensors as stored, texts in UTF-8. Empty for silence."""
        weights = [0] * len(self)
        for row in range(len(self)):
            if self.vectors is not None:
                weights[row] += self.vectors.nbytes // len(self)
            if self.texts is not None:
                weights[row] += len(self.texts[row].encode())
            if self.parts is not None:
                weights[row] += sum(tensor.nbytes for tensor in self.parts[row].values())
        return weights

    def select(self, rows: Sequence[int]) -> "Message":
        """The messages of some items, in the given order."""
        vectors = None if self.vectors is None else self.vectors[..., list(rows), :]
        texts = None if self.texts is None else tuple(self.texts[row] for row in rows)
        parts = None if self.parts is None else tuple(self.parts[row] for row in rows)
        items = None if self.items is None else tuple(self.items[row] for row in rows)
        return replace(self, vectors=vectors, texts=texts, parts=parts, items=items)

    def addressed(self, task: Task) -> "Message":
        """The same message for the items of a task, row by row, whomever it was for: a shuffled one is given so.

        Raises:
            ValueError: it has another number of items.
        """
        self._check_number(task)
        return replace(self, items=tuple(item.id for item in task.items))

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "Message":
        """The same message with every floating-point tensor changed; ids, masks and texts stay."""
        vectors = None if self.vectors is None else change(self.vectors)
        parts = self.parts and tuple(
            {name: change(tensor) if tensor.is_floating_point() else tensor for name, tensor in part.items()}
            for part in self.parts
        )
        return replace(self, vectors=vectors, parts=parts)

    def check_receiver(self, receiver: Model, task: Task | None = None) -> None:
        """Refuse a receiver that this message was not made for, or a task of other items.

        Raises:
            ValueError: it is meant for another model, or is for other items than the task's or another number.
        """
        if self.meant_for is not None and self.meant_for != receiver.name:
            raise ValueError(
                f"this message ({self.origin}) is meant for {self.meant_for} and {receiver.name} cannot read it; "
                f"send again with receiver={receiver.name}"
            )
        if task is not None:
            self.check_items(task)

    def check_items(self, task: Task) -> None:
        """Refuse a task of other items than those that this message is for.

        Raises:
            ValueError: with the first item that differs, or the numbers.
        """
        self._check_number(task)
        for row, (mine, item) in enumerate(zip(self.items or (), task.items, strict=False)):
            if mine != item.id:
                raise ValueError(
                    f"message ({self.origin}) is for item {mine!r} where task {task.name!r} has {item.id!r} in row "
                    f"{row}; send it for this task, or give message.addressed(task)"
                )

    def _check_number(self, task: Task) -> None:
        if not self.is_silent and len(self) != len(task.items):
            raise ValueError(
                f"message ({self.origin}) is for {len(self)} items and task {task.name!r} has {len(task.items)}; "
                "send it for this task"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the message atomically as safetensors, with its manifest in the file's metadata.

        The manifest holds the texts, `origin`, `is_own`, `meant_for` and `made_by` (model, site, position).
        """
        tensors = {} if self.vectors is None else {"vectors": self.vectors.detach().cpu().contiguous()}
        for row, part in enumerate(self.parts or ()):
            tensors |= {f"{row}/{name}": tensor.detach().cpu().contiguous() for name, tensor in part.items()}
        manifest = {
            "format": FORMAT,
            "origin": self.origin,
            "is_own": self.is_own,
            "texts": self.texts,
            "n_parts": None if self.parts is None else len(self.parts),
            "meant_for": self.meant_for,
            "made_by": dict(self.made_by),
            "items": self.items,
            "dtypes": sorted({str(tensor.dtype) for tensor in tensors.values()}),
        }
        write_tensors(path, tensors, {"manifest": json.dumps(manifest, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Message":
        """The message in a file, bit for bit.

        Raises:
            ValueError: the file is missing, is no message, or does not match its checksum.
        """
        try:
            facts, tensors = read_tensors(path)
            manifest = json.loads(facts.get("manifest", "{}"))
        except UNREADABLE as error:
            raise ValueError(f"{os.fspath(path)} is no saved message ({first_line(error)[:MOST_SHOWN]})") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"{os.fspath(path)} is no message of this package; write one with Message.save")
        try:
            return _from_manifest(manifest, tensors)
        except ValueError as error:
            raise ValueError(
                f"{os.fspath(path)} is a message with wrong content ({first_line(error)[:MOST_SHOWN]})"
            ) from error


def _from_manifest(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Message:
    """The message of a manifest and its tensors.

    Raises:
        ValueError: they do not fit what `Message.save` writes.
    """
    for name, (is_right, kind) in MANIFEST.items():
        if not is_right(manifest.get(name)):
            raise ValueError(f"its {name} is not {kind}")
    vectors, n_parts = tensors.get("vectors"), manifest.get("n_parts")
    if vectors is not None and (not vectors.is_floating_point() or vectors.ndim not in (2, 3)):
        raise ValueError(f"its vectors are {vectors.dtype} of the shape {tuple(vectors.shape)}")
    parts: list[dict[str, Tensor]] = [{} for _ in range(n_parts or 0)]
    for name in tensors.keys() - {"vectors"}:
        row, slash, own = name.partition("/")
        if not slash or not row.isdecimal() or int(row[:9]) >= len(parts):
            raise ValueError(f"its tensor {name[:40]!r} is of none of its {len(parts)} items")
        parts[int(row)][own] = tensors[name]
    return Message(
        vectors,
        manifest["origin"],
        is_own=manifest["is_own"],
        texts=None if manifest.get("texts") is None else tuple(manifest["texts"]),
        parts=None if n_parts is None else tuple(parts),
        meant_for=manifest.get("meant_for"),
        made_by=manifest["made_by"],
        items=None if manifest.get("items") is None else tuple(manifest["items"]),
    )


def join(messages: Sequence[Message]) -> Message:
    """The messages of several sets of items as one, in order, with the first one's facts about the sender.

    Raises:
        ValueError: none were given, or they are of different kinds.
    """
    if not messages:
        raise ValueError("no messages to join")
    first = messages[0]
    kinds = {
        (m.vectors is None, m.texts is None, m.parts is None, m.items is None, m.is_own, m.meant_for) for m in messages
    }
    if len(kinds) > 1:
        raise ValueError("messages of different kinds, or for different receivers, cannot be joined")
    device = messages[-1].device  # where some were loaded from a file, the last one has the device of the run
    vectors = [m.vectors.to(device) for m in messages if m.vectors is not None]
    vectors = None if first.vectors is None else torch.cat(vectors, -2)
    texts = None if first.texts is None else tuple(text for m in messages for text in m.texts or ())
    parts = [{name: tensor.to(device) for name, tensor in part.items()} for m in messages for part in m.parts or ()]
    parts = None if first.parts is None else tuple(parts)
    items = None if first.items is None else tuple(item for m in messages for item in m.items or ())
    return replace(first, vectors=vectors, texts=texts, parts=parts, items=items)


def made_by(model: Model, *, site: str, position: str) -> dict[str, Any]:
    """The facts about a sender in a manifest; the revision is that of the hub, None for local weights."""
    config = getattr(getattr(model.hooked, "original_model", None), "config", None)
    facts = {"model": model.name, "revision": getattr(config, "_commit_hash", None)}
    return facts | {"dtype": str(model.dtype).removeprefix("torch."), "site": site, "position": position}
