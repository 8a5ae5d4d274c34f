"""Texts to token ids: the one module that decides about special tokens."""

from collections.abc import Sequence
from typing import Any

from latentcomm.models.base import Model
from latentcomm.models.prompts import Prompts, Template

Halves = tuple[list[int], list[int]]
"""The ids of a prompt before a gap and after it."""
_GAP = "\N{OBJECT REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
"""Marks the gap in the user's turn until the chat template has been written around it."""


def encode(
    model: Model, texts: Sequence[str], *, template: Template = "raw", prepend_bos: bool | None = None
) -> Prompts:
    """Token ids of texts, padded on the right.

    `"raw"` takes a text as it is, with the special tokens that the model's own tokenizer adds (SmolLM2's adds
    none); `"chat"` makes it the user's turn and opens the assistant's. `prepend_bos` forces a BOS token or its
    absence.

    Raises:
        ValueError: no text, an empty text, a text longer than the model's context, a token that the model does not
            embed, no chat template, no BOS token.
    """
    tokenizer = model.require_tokenizer()
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings, not the string {texts[:40]!r}")
    rows = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):  # the check of annotations reads one entry of a list
            raise TypeError(f"texts[{number}] is a {type(text).__name__}; encode takes strings")
        if not text.strip():
            raise ValueError(f"prompt {number} is empty; give every prompt at least one word")
        rows.append(_token_ids(model, tokenizer, text, template, prepend_bos))
        if len(rows[-1]) > model.n_ctx:
            raise ValueError(
                f"prompt {number} has {len(rows[-1])} tokens and {model.name} reads {model.n_ctx} at most; shorten it"
            )
        if max(rows[-1], default=0) >= (d_vocab := int(model.hooked.cfg.d_vocab)):
            raise ValueError(
                f"prompt {number} has the token id {max(rows[-1])}, and {model.name} embeds {d_vocab} tokens; give it "
                "the tokenizer that it was trained with"
            )
    return Prompts.from_ids(rows)


def around_gap(model: Model, before: str, after: str, *, template: Template) -> Halves:
    """The ids of a prompt on either side of a gap between two texts in the user's turn.

    Each half is tokenized by itself. Special tokens that the tokenizer adds to raw text enclose both.

    Raises:
        ValueError: no chat template, one that does not contain the user's text, or a tokenizer that changes a text when
            it adds special tokens.
    """
    tokenizer = model.require_tokenizer()
    if template == "chat":
        head, gap, tail = _as_turn(model, before + _GAP + after).partition(_GAP)
        if not gap:
            raise ValueError(f"the chat template of {model.name} drops or changes the user's text; use template='raw'")
        return _bare(tokenizer, head), _bare(tokenizer, tail)
    if not after:
        return list(tokenizer(before).input_ids), []
    whole, bare = list(tokenizer(after).input_ids), _bare(tokenizer, after)
    start = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
    if start is None:
        raise ValueError(f"the tokenizer of {model.name} changes a text when it adds special tokens; use a chat prompt")
    return [*whole[:start], *_bare(tokenizer, before)], whole[start:]


def check_template(name: str, tokenizer: Any, template: Template) -> None:
    """Refuse a chat with a model, of this name, whose tokenizer has no chat template.

    Raises:
        ValueError: it has none.
    """
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {name} has no chat template; use template='raw'")


def _token_ids(model: Model, tokenizer: Any, text: str, template: Template, prepend_bos: bool | None) -> list[int]:
    ids = _bare(tokenizer, _as_turn(model, text)) if template == "chat" else list(tokenizer(text).input_ids)
    if prepend_bos is None:
        return ids
    if tokenizer.bos_token_id is None:
        raise ValueError(f"the tokenizer of {model.name} has no BOS token; leave prepend_bos out")
    starts = bool(ids) and ids[0] == tokenizer.bos_token_id
    if prepend_bos and not starts:
        return [tokenizer.bos_token_id, *ids]
    return ids[1:] if starts and not prepend_bos else ids


def _as_turn(model: Model, text: str) -> str:
    """The text as the user's turn, with the assistant's opened."""
    tokenizer = model.require_tokenizer()
    check_template(model.name, tokenizer, "chat")
    turn = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def _bare(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []
