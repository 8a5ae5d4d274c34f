"""Texts to token ids: the one module that decides about special tokens."""

from collections.abc import Sequence
from typing import Any

from latentcomm.models.base import Model
from latentcomm.models.chat import AnyTemplate, as_turn
from latentcomm.models.prompts import Prompts

Halves = tuple[list[int], list[int]]
"""The ids of a prompt before a gap and after it."""
_GAP = "\N{OBJECT REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
"""Marks the gap in the user's turn until the chat template has been written around it."""


def encode(
    model: Model, texts: Sequence[str], *, template: AnyTemplate = "raw", prepend_bos: bool | None = None
) -> Prompts:
    """Token ids of texts, padded on the right.

    `"raw"` takes a text as it is, with the special tokens that the model's own tokenizer adds (SmolLM2's adds
    none); `"chat"` makes it the user's turn and opens the assistant's, by the model's own chat template and without
    further special tokens; a `ChatFormat` puts a system prompt and earlier turns before it. `prepend_bos` forces a BOS
    token or its absence.

    Raises:
        ValueError: no text, an empty text, a text longer than the model's context, a token that the model does not
            embed, no chat template, a chat that it refuses, no BOS token.
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
        _check_ids(model, f"prompt {number}", rows[-1])
    return Prompts.from_ids(rows)


def scaffold(model: Model, *, text: str = "", template: AnyTemplate = "chat") -> Prompts:
    """The prompt of a chat whose user says nothing, or a neutral text: what a message of a filler is made of.

    One prompt, for comparison with those that `encode` makes under the same template: it has their system prompt, their
    headers and the assistant's turn opened, and no content.

    Raises:
        ValueError: raw prompts, which have no scaffold, or a tokenizer without a chat template.
    """
    tokenizer = model.require_tokenizer()
    if template == "raw":
        raise ValueError("template is 'raw', and a raw prompt has no scaffold around its text; give a chat")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer of {model.name} has no chat template, so its prompts have no scaffold around their text; "
            "choose a model with one"
        )
    ids = _token_ids(model, tokenizer, text, template, None)
    _check_ids(model, "the scaffold", ids)
    return Prompts.from_ids([ids])


def around_gap(model: Model, before: str, after: str, *, template: AnyTemplate) -> Halves:
    """The ids of a prompt on either side of a gap between two texts in the user's turn.

    Each half is tokenized by itself. Special tokens that the tokenizer adds to raw text enclose both.

    Raises:
        ValueError: no chat template, one that does not contain the user's text, or a tokenizer that changes a text when
            it adds special tokens.
    """
    tokenizer = model.require_tokenizer()
    if template != "raw":
        head, gap, tail = as_turn(model.name, tokenizer, before + _GAP + after, template).partition(_GAP)
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


def _token_ids(model: Model, tokenizer: Any, text: str, template: AnyTemplate, prepend_bos: bool | None) -> list[int]:
    if template == "raw":
        ids = list(tokenizer(text).input_ids)
    else:
        ids = _bare(tokenizer, as_turn(model.name, tokenizer, text, template))
    if prepend_bos is None:
        return ids
    if tokenizer.bos_token_id is None:
        raise ValueError(f"the tokenizer of {model.name} has no BOS token; leave prepend_bos out")
    starts = bool(ids) and ids[0] == tokenizer.bos_token_id
    if prepend_bos and not starts:
        return [tokenizer.bos_token_id, *ids]
    return ids[1:] if starts and not prepend_bos else ids


def _check_ids(model: Model, what: str, ids: Sequence[int]) -> None:
    """Refuse a prompt that the model cannot read."""
    if len(ids) > model.n_ctx:
        raise ValueError(f"{what} has {len(ids)} tokens and {model.name} reads {model.n_ctx} at most; shorten it")
    if max(ids, default=0) >= (d_vocab := int(model.hooked.cfg.d_vocab)):
        raise ValueError(
            f"{what} has the token id {max(ids)}, and {model.name} embeds {d_vocab} tokens; give it the tokenizer that "
            "it was trained with"
        )


def _bare(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []
