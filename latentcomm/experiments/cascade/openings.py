"""Openings, the prefixes that a large model generates: tokens, signals, and on request states or keys and values."""

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
"""Where a layer is named: the input of the first block, a row of the embedding table."""
FILE_KIND = "latentcomm.Openings/1"
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Opening:
    """The prefix that the large model generated for one item, with the signals recorded at each token.

    Attributes:
        ids: the tokens, in the large model's vocabulary.
        ended: whether a stop token followed; else the opening was cut at its limit.
        n_prompt: tokens of the prompt.
        entropy: of the distribution that each token was drawn from, in nats.
        margin: the probability of each token, the likeliest, minus that of the second likeliest.
        pieces: the text that each token adds; a character of several tokens is added by its last one.
        whole: whether each token ends where a character does.
        written: the whole text as the tokenizer decodes it, an incomplete last character included.
        states: for some layers, the residual stream after the block at each token.
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
        """An opening of signals alone, to apply a stop to; a signal that is not given is NaN, a text empty.

        Raises:
            ValueError: nothing given, or signals of unequal lengths.
        """
        lengths = {len(each) for each in (entropy, margin, pieces) if each is not None}
        if len(lengths) != 1:
            raise ValueError(f"the signals have the lengths {sorted(lengths)}; give some, all of one length")
        n = lengths.pop()
        missing = torch.full((n,), float("nan"), dtype=torch.float64)
        texts = tuple(pieces if pieces is not None else [""] * n)
        return cls(
            (0,) * n, False, 1, missing if entropy is None else entropy, missing if margin is None else margin,
            texts, (True,) * n, "".join(texts),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, n: int) -> str:
        """The text of the first n tokens, or of all where there are fewer, without an incomplete last character."""
        return "".join(self.pieces[:n])

    def past(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[layer head pos d_head]` of the prompt and the first n tokens without the last of them.

        Raises:
            ValueError: the opening was generated without them.
        """
        if self.cache is None:
            raise ValueError("the openings hold no keys and values; write them with keep_cache=True")
        end = self.n_prompt + max(min(n, len(self)) - 1, 0)
        return self.cache[0][:, :, :end], self.cache[1][:, :, :end]

    def cut(self, n: int) -> "Opening":
        """The first n tokens alone, with the signals known by then; the whole opening where it has no more."""
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
    """The openings of the items of a task.

    Attributes:
        items: the ids of the items.
        rows: the opening of each.
        longest: the limit at which openings were cut, in tokens.
        large: the name of the large model.
        vocabulary: a digest of the large model's vocabulary: equal digests mean equal token ids.
        layers: the layers whose states are saved.
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
        """The openings of some of the items, in the given order."""
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
        metadata, tensors = read_tensors(path)
        if metadata.get("kind") != FILE_KIND:
            raise ValueError(f"{path} is marked {metadata.get('kind')}, not {FILE_KIND}; give a file of Openings.save")
        facts, records = json.loads(metadata["facts"]), json.loads(metadata["rows"])
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


def pieces_of(model: Model, ids: Sequence[int]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """The text that each token adds to those before it, and whether it ends where a character does.

    A character of several tokens is added by its last one.

    Raises:
        RuntimeError: the tokenizer decodes earlier tokens differently once later ones follow.
    """
    tokenizer = model.require_tokenizer()
    pieces, whole, before = [], [], ""
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole.append(not text.endswith(_INCOMPLETE))
        text = text.rstrip(_INCOMPLETE)
        if not text.startswith(before):
            raise RuntimeError(
                f"the tokenizer of {model.name} decodes {before[-40:]!r} differently once token {n} follows, so its "
                "openings cannot be cut; choose a model with another tokenizer"
            )
        pieces.append(text[len(before) :])
        before = text
    return tuple(pieces), tuple(whole)
