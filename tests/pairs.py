"""Pairs of tiny models for a diagnosis, and texts in the words of their tokenizer."""

import random
from html.parser import HTMLParser
from typing import Any

import torch
from tiny import COUNTRIES, VOCABULARY, WORDS, tokenizer, transformers_model

from latentcomm._core.files import digest
from latentcomm.models import Model, wrap_model
from latentcomm.tasks.corpus import Corpus

NORMS = ("input_layernorm", "post_attention_layernorm")


def corpus(n_documents: int = 40, *, words: int = 36, seed: int = 0) -> Corpus:
    """Documents of words in random order."""
    draw = random.Random(seed)
    texts = tuple(" ".join(draw.choice([*WORDS, *COUNTRIES]) for _ in range(words)) for _ in range(n_documents))
    return Corpus("words.txt", texts, digest(texts))


def rotated_pair() -> tuple[Model, Model]:
    """A model, and the same one with its residual stream turned by a random rotation: another model in the same words.

    A norm without gains commutes with a rotation, so what reads the stream is turned with it and what writes it back.
    """
    first, second = (transformers_model("llama", d_model=32) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    with torch.no_grad():
        for model in (first, second):
            for norm in (model.model.norm, *(getattr(block, name) for block in model.model.layers for name in NORMS)):
                norm.weight.fill_(1.0)
        for part in (second.model.embed_tokens, second.lm_head):
            part.weight.copy_(part.weight @ turn)
        for block in second.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                reader.weight.copy_(reader.weight @ turn)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(turn.T @ writer.weight)
    return wrap_model(first, tokenizer(), name="upright"), wrap_model(second, tokenizer(), name="turned")


def other_ids(words: Any) -> Any:
    """A tokenizer that cuts as another does and numbers what it cuts otherwise."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    ids = sorted(VOCABULARY.values(), reverse=True)
    backend = Tokenizer(WordLevel(dict(zip(VOCABULARY, ids, strict=True)), unk_token="<unk>"))
    backend.pre_tokenizer = words.backend_tokenizer.pre_tokenizer
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<unk>")


class Tags(HTMLParser):
    """What a page refers to, and what stands in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.words = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words += data
