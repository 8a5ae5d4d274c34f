"""What a large model wrote of every item: tokens, signals along them, and states or keys and values if asked."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from latentcomm._core.files import read_tensors, write_tensors
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts

EMBEDDING = -1
"""Where layers are named: what stands before the first block, a row of the embedding table."""
FILE_KIND = "latentcomm.Openings/1"
_HELD_BACK = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Opening:
    """What the large model wrote of one item, and what was seen as it did.

    Attributes:
        ids: the tokens, in the large model's vocabulary.
        ended: whether it then ended by itself; else it was cut.
        n_prompt: tokens that it read before.
        entropy: of the distribution that each token was drawn from, in nats.
        margin: the probability of each token, the likeliest, less that of the second.
        pieces: what each token adds to the text; a character of several tokens comes with its last one.
        whole: whether each token ends where a character does.
        written: the whole as the tokenizer gives it, with whatever its last character lacks.
        states: of some layers, the residual stream after the block at each token.
        cache: keys and values `[layer head pos d_head]` of the prompt and all tokens but the last, or None.
        asked: a digest of the prompt's tokens.
    """

    ids: tuple[int, ...]
    ended: bool
    n_prompt: int
    entropy: Float[Tensor, " n"]
    margin: Float[Tensor, " n"]
    pieces: tuple[str, ...]
    whole: tuple[bool, ...]
    written: str
    states: dict[int, Float[Tensor, "_ d_model"]] = field(default_factory=dict)
    cache: tuple[Tensor, Tensor] | None = None
    asked: str = ""

    @classmethod
    def of_signals(
        cls,
        *,
        entropy: Float[Tensor, " _"] | None = None,
        margin: Float[Tensor, " _"] | None = None,
        pieces: Sequence[str] | None = None,
    ) -> "Opening":
        """An opening of signals alone, to ask a stop about; what is not given is nan, or empty text.

        Raises:
            ValueError: nothing given, or signals of unequal lengths.
        """
        lengths = {len(each) for each in (entropy, margin, pieces) if each is not None}
        if len(lengths) != 1:
            raise ValueError(f"the signals have the lengths {sorted(lengths)}; give some, all of one length")
        n = lengths.pop()
        nothing = torch.full((n,), float("nan"), dtype=torch.float64)
        texts = tuple(pieces if pieces is not None else [""] * n)
        return cls(
            (0,) * n, False, 1, nothing if entropy is None else entropy, nothing if margin is None else margin,
            texts, (True,) * n, "".join(texts),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, n: int) -> str:
        """The text of the first n tokens, or of all where there are fewer; a character that is not whole yet is held
        back.
        """
        return "".join(self.pieces[:n])

    def past(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[layer head pos d_head]` of the prompt and the first n tokens without the last of them.

        Raises:
            ValueError: they were not kept.
        """
        if self.cache is None:
            raise ValueError("keys and values of the openings were not kept; write them with keep_cache=True")
        end = self.n_prompt + max(min(n, len(self)) - 1, 0)
        return self.cache[0][:, :, :end], self.cache[1][:, :, :end]

    def cut(self, n: int) -> "Opening":
        """The first n tokens alone, as they would have been seen by then; all of it where there are not more."""
        if n >= len(self):
            return self
        return replace(
            self,
            ids=self.ids[:n],
            ended=False,
            entropy=self.entropy[:n],
            margin=self.margin[:n],
            pieces=self.pieces[:n],
            whole=self.whole[:n],
            written=self.text(n),
            states={layer: states[:n] for layer, states in self.states.items()},
            cache=None if self.cache is None else self.past(n),
        )


@dataclass(frozen=True, eq=False)
class Openings:
    """What a large model wrote of the items of a task.

    Attributes:
        items: the ids of the items.
        rows: the opening of each.
        longest: tokens after which an opening was cut.
        large: the name of the model.
        vocabulary: a digest of the large model's vocabulary: whether ids mean the same to another model.
        layers: the layers whose states are there.
    """

    items: tuple[str, ...]
    rows: tuple[Opening, ...]
    longest: int
    large: str
    vocabulary: str
    layers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, row: int, n: int) -> str:
        """The text of the first n tokens of an opening."""
        return self.rows[row].text(n)

    def select(self, rows: Sequence[int]) -> "Openings":
        """Those of some of the items, in the given order."""
        return replace(self, items=tuple(self.items[row] for row in rows), rows=tuple(self.rows[row] for row in rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as one safetensors file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        records = []
        for number, row in enumerate(self.rows):
            records.append(
                {"ids": row.ids, "ended": row.ended, "n_prompt": row.n_prompt, "pieces": row.pieces, "whole": row.whole,
                 "written": row.written, "asked": row.asked}
            )  # fmt: skip
            tensors |= {f"{number}.entropy": row.entropy, f"{number}.margin": row.margin}
            tensors |= {f"{number}.states.{layer}": states for layer, states in row.states.items()}
            if row.cache is not None:
                tensors |= {f"{number}.keys": row.cache[0], f"{number}.values": row.cache[1]}
        facts = {name: getattr(self, name) for name in ("items", "longest", "large", "vocabulary", "layers")}
        metadata = {"kind": FILE_KIND, "facts": json.dumps(facts), "rows": json.dumps(records)}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Openings":
        """The openings that `save` wrote.

        Raises:
            ValueError: the file holds none.
        """
        try:
            return cls._read(path)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} holds no openings ({error}); delete it where it is a checkpoint, and they are written again"
            ) from error

    @classmethod
    def _read(cls, path: str | os.PathLike[str]) -> "Openings":
        told, tensors = read_tensors(path)
        if told.get("kind") != FILE_KIND:
            raise ValueError(f"{path} is marked {told.get('kind')}, not {FILE_KIND}; give a file of Openings.save")
        facts, records = json.loads(told["facts"]), json.loads(told["rows"])
        rows = []
        for number, record in enumerate(records):
            states = {layer: tensors[f"{number}.states.{layer}"] for layer in facts["layers"]}
            cache = None
            if f"{number}.keys" in tensors:
                cache = (tensors[f"{number}.keys"], tensors[f"{number}.values"])
            rows.append(
                Opening(
                    tuple(record["ids"]),
                    record["ended"],
                    record["n_prompt"],
                    tensors[f"{number}.entropy"],
                    tensors[f"{number}.margin"],
                    tuple(record["pieces"]),
                    tuple(record["whole"]),
                    record["written"],
                    states,
                    cache,
                    record["asked"],
                )
            )
        return cls(
            tuple(facts["items"]), tuple(rows), facts["longest"], facts["large"], facts["vocabulary"],
            tuple(facts["layers"]),
        )  # fmt: skip


def ids_of(prompts: Prompts, row: int) -> list[int]:
    """The tokens of a prompt."""
    return prompts.ids(row).tolist()


def vocabulary_of(model: Model) -> str:
    """A digest of the tokens of a model's vocabulary and their ids."""
    return model.vocabulary


def pieces_of(model: Model, ids: Sequence[int]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """What each token adds to the text of those before it, and whether it ends where a character does.

    A character of several tokens comes with its last one.

    Raises:
        RuntimeError: the tokenizer writes the text of earlier tokens in another way once later ones are there.
    """
    tokenizer = model.require_tokenizer()
    pieces, whole, before = [], [], ""
    for n in range(1, len(ids) + 1):
        told = tokenizer.decode(ids[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole.append(not told.endswith(_HELD_BACK))
        told = told.rstrip(_HELD_BACK)
        if not told.startswith(before):
            raise RuntimeError(
                f"the tokenizer of {model.name} writes {before[-40:]!r} otherwise once token {n} follows; its openings "
                "cannot be cut"
            )
        pieces.append(told[len(before) :])
        before = told
    return tuple(pieces), tuple(whole)
