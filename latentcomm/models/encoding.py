"""Texts to token ids: the one place that decides about special tokens."""

from collections.abc import Sequence
from typing import Any

from latentcomm.models.base import Model
from latentcomm.prompts import Prompts, Template


def encode(
    model: Model, texts: Sequence[str], *, template: Template = "raw", prepend_bos: bool | None = None
) -> Prompts:
    """Token ids of texts, padded on the right.

    `"raw"` takes a text as it stands, with the special tokens that the model's own tokenizer adds (SmolLM2's adds
    none); `"chat"` makes it the user's turn and opens the assistant's. `prepend_bos` forces a BOS token or its
    absence.

    Raises:
        ValueError: no text, an empty text, a text longer than the model's context, no chat template, no BOS token.
    """
    tokenizer = model.require_tokenizer()
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings, not the string {texts[:40]!r}")
    rows = []
    for number, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"prompt {number} is empty; give every prompt at least one word")
        rows.append(_token_ids(model, tokenizer, text, template, prepend_bos))
        if len(rows[-1]) > model.n_ctx:
            raise ValueError(
                f"prompt {number} has {len(rows[-1])} tokens and {model.name} reads {model.n_ctx} at most; shorten it"
            )
    return Prompts.from_ids(rows)


def _token_ids(model: Model, tokenizer: Any, text: str, template: Template, prepend_bos: bool | None) -> list[int]:
    if template == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer of {model.name} has no chat template; use template='raw'")
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    else:
        ids = list(tokenizer(text).input_ids)
    if prepend_bos is None:
        return ids
    if tokenizer.bos_token_id is None:
        raise ValueError(f"the tokenizer of {model.name} has no BOS token; leave prepend_bos out")
    starts = bool(ids) and ids[0] == tokenizer.bos_token_id
    if prepend_bos and not starts:
        return [tokenizer.bos_token_id, *ids]
    return ids[1:] if starts and not prepend_bos else ids
