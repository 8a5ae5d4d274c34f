"""Openings, the prefixes that a large model generates: rows of a message, with signals, states, keys and values."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm.channels.message import Message
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts

EMBEDDING = -1
"""Where a layer is named: the input of the first block, a row of the embedding table."""
VOCABULARY, LONGEST = "vocabulary", "longest"
"""Keys of `made_by` in a message of openings: a digest of the sender's vocabulary (equal digests mean equal token ids),
and the limit at which openings were cut, in tokens."""
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Opening:
    """The prefix that the large model generated for one item, with the signals recorded at each token.

    It is a row of the message that `write_openings` gives. Beside these fields, which are the row's text and the parts
    of their names, a row may have `states.L`, the residual stream `[n d_model]` after block L at each token, and
    `keys` and `values` `[layer head pos d_head]` of the prompt and all tokens but the last.

    Attributes:
        text: the text of the tokens, without an incomplete last character.
        ids: the tokens, in the large model's vocabulary.
        prompt: the tokens of its prompt.
        ended: whether a stop token followed; else the opening was cut at its limit.
        ends: the length of the text, in characters, after each token; the last token of a character adds it.
        whole: whether each token ends where a character does.
        entropy: of the distribution that each token was drawn from, in nats.
        margin: the probability of each token, the likeliest, minus that of the second likeliest.
    """

    text: str
    ids: tuple[int, ...]
    prompt: tuple[int, ...]
    ended: bool
    ends: Int[Tensor, " n"]
    whole: Bool[Tensor, " n"]
    entropy: Float[Tensor, " n"]
    margin: Float[Tensor, " n"]

    @classmethod
    def of_signals(
        cls,
        *,
        entropy: Float[Tensor, " _"] | None = None,
        margin: Float[Tensor, " _"] | None = None,
        token_texts: Sequence[str] | None = None,
    ) -> "Opening":
        """An opening of signals alone, to apply a stop to; a signal that is not given is NaN, a text empty.

        Raises:
            ValueError: nothing given, or signals of unequal lengths.
        """
        lengths = {len(each) for each in (entropy, margin, token_texts) if each is not None}
        if len(lengths) != 1:
            raise ValueError(f"the signals have the lengths {sorted(lengths)}; give some, all of one length")
        n = lengths.pop()
        missing = torch.full((n,), float("nan"), dtype=torch.float64)
        texts = list(token_texts) if token_texts is not None else [""] * n
        return cls(
            text="".join(texts),
            ids=(0,) * n,
            prompt=(0,),
            ended=False,
            ends=torch.tensor([len(text) for text in texts], dtype=torch.long).cumsum(0),
            whole=torch.ones(n, dtype=torch.bool),
            entropy=missing if entropy is None else entropy,
            margin=missing if margin is None else margin,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def token_texts(self) -> list[str]:
        """The text that each token adds."""
        return [self.text[start:end] for start, end in itertools.pairwise([0, *self.ends.tolist()])]

    def text_at(self, n: int) -> str:
        """The text of the first n tokens, or of all where there are fewer."""
        return text_at(self.text, self.ends, n)

    def cut(self, n: int) -> "Opening":
        """The first n tokens alone, with the signals known by then; the whole opening where it has no more."""
        if n >= len(self):
            return self
        return replace(
            self,
            text=self.text_at(n),
            ids=self.ids[:n],
            ended=False,
            ends=self.ends[:n],
            whole=self.whole[:n],
            entropy=self.entropy[:n],
            margin=self.margin[:n],
        )

    def part(self) -> dict[str, Tensor]:
        """The row's tensors in a message, without states, keys and values."""
        return {
            "ids": torch.tensor(self.ids, dtype=torch.long),
            "prompt": torch.tensor(self.prompt, dtype=torch.long),
            "ended": torch.tensor(self.ended),
            "ends": self.ends,
            "whole": self.whole,
            "entropy": self.entropy,
            "margin": self.margin,
        }


def openings_of(message: Message) -> list[Opening]:
    """The openings of a message of `write_openings`, an item each.

    Raises:
        ValueError: the message holds none.
    """
    texts, parts = opened(message)
    if missing := {"entropy", "margin", "prompt"} - set(parts[0] if parts else ()):
        raise ValueError(
            f"a message of {message.origin} has no {', '.join(sorted(missing))}; give that of write_openings"
        )
    return [
        Opening(
            text,
            tuple(part["ids"].tolist()),
            tuple(part["prompt"].tolist()),
            bool(part["ended"]),
            part["ends"],
            part["whole"],
            part["entropy"],
            part["margin"],
        )
        for text, part in zip(texts, parts, strict=True)
    ]


def opened(message: Message) -> tuple[tuple[str, ...], tuple[Mapping[str, Tensor], ...]]:
    """The texts and parts of a message of openings, or of what a hand-off passes of them.

    Raises:
        ValueError: it is none.
    """
    if message.texts is None or message.parts is None or not all("ids" in part for part in message.parts):
        raise ValueError(f"a message of {message.origin} holds no opening; send one with a hand-off or write_openings")
    return message.texts, message.parts


def text_at(text: str, ends: Int[Tensor, " n"], n: int) -> str:
    """The text of the first n tokens of an opening, or of all where there are fewer."""
    n = min(n, len(ends))
    return text[: int(ends[n - 1])] if n else ""


def ids_of(prompts: Prompts, row: int) -> list[int]:
    """The tokens of a prompt."""
    return prompts.ids(row).tolist()


def characters_of(model: Model, ids: Sequence[int]) -> tuple[str, Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """The text of tokens, its length after each token, and whether each token ends where a character does.

    A character of several tokens is added by its last one.

    Raises:
        RuntimeError: the tokenizer decodes earlier tokens differently once later ones follow.
    """
    tokenizer = model.require_tokenizer()
    ends, whole, before = [], [], ""
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole.append(not text.endswith(_INCOMPLETE))
        text = text.rstrip(_INCOMPLETE)
        if not text.startswith(before):
            raise RuntimeError(
                f"the tokenizer of {model.name} decodes {before[-40:]!r} differently once token {n} follows, so its "
                "openings cannot be cut; choose a model with another tokenizer"
            )
        ends.append(len(text))
        before = text
    return before, torch.tensor(ends, dtype=torch.long), torch.tensor(whole, dtype=torch.bool)
