"""A toy task in the words of the tiny tokenizer, a planted pair of models, and a tiny model that reads Countries."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHOICES, COUNTRIES, VOCABULARY, tokenizer, transformers_model

from latentcomm.models import Model, wrap_model
from latentcomm.tasks import Item, Task, countries

ASKED = "Alice is in the country of"
OPENINGS = ("The", " The note says", "Alice is at the Colosseum.")
PIECES = re.compile(r" ?[^\s.?]+| ?[.?]|\s")


def toy(labels: tuple[str, ...] = COUNTRIES, *, openings: tuple[str, ...] = OPENINGS, asked: str = ASKED) -> Task:
    """An item a label, in the openings in turn; the sender reads "... Greece. Alice is in the country of"."""
    items = []
    for number, country in enumerate(labels):
        said = f"{openings[number % len(openings)]} {country}."
        told = f"{said} {asked}"
        items.append(
            Item(f"item-{number}", told, asked, told, (country,), f" {country}", {"country": country}, CHOICES)
        )
    return Task("toy", tuple(items), CHOICES, "raw")


# The planted pair. Attention is uniform (queries and keys are zero), a block adds a linear map of the mean of the
# normed states, and all but a few entries of the residual stream are zero: e names a country where it is read, m is a
# code of it, u is what the unembedding reads.

PLANTED_CELL = (2, 1)
N_SENDER, N_RECEIVER = 4, 3
WIDTH = 32
E, M, U = 0, 8, 16
ENDING, CONSTANT, OTHER_ENDING = 24, 25, 26
DEFAULT = COUNTRIES.index("Japan")
"""What the receiver says unless it is told otherwise; no planted item has this answer."""
LOUD, QUIET = 10.0, 0.1


def planted_task() -> Task:
    """Three-token sender prompts that name a country; equal receiver prompts that do not."""
    words = ("Alice", "The", "note")
    items = tuple(
        Item(f"{word}-{country}", f"{word} {country} of", "Alice is of", f"{word} {country} of", (country,),
             f" {country}", {}, CHOICES)
        for word in words
        for country in COUNTRIES[:DEFAULT]
    )  # fmt: skip
    return Task("planted", items, CHOICES, "raw")


def planted_pair() -> tuple[Model, Model]:
    """A sender that writes a code of the country at its last token in block 2 and takes it back in block 3, and a
    receiver whose block 1 takes the code back and whose block 2 turns it into the answer.

    Only the state after the sender's block 2 holds the code, and only a write after the receiver's block 1 meets the
    block that reads it: of the 4 x 3 cells, (2, 1) alone carries the answer.
    """
    sender, receiver = (
        transformers_model("llama", d_model=WIDTH, n_layers=layers, n_heads=1) for layers in (N_SENDER, N_RECEIVER)
    )
    for model in (sender, receiver):
        _silence(model)
        for index in range(len(COUNTRIES)):
            model.lm_head.weight.data[VOCABULARY[CHOICES[index]], U + index] = 1.0
        default = model.lm_head.weight.data[VOCABULARY[CHOICES[DEFAULT]]]
        default[M : M + 8] = default[ENDING:] = QUIET  # and where nothing is turned into an answer, the default again
    words = sender.model.embed_tokens.weight.data
    words[VOCABULARY[" of"], ENDING] = 1.0
    for index in range(len(COUNTRIES)):
        words[VOCABULARY[CHOICES[index]], E + index] = 1.0
    words = receiver.model.embed_tokens.weight.data
    words[VOCABULARY[" is"], CONSTANT] = 1.0
    words[VOCABULARY[" of"], OTHER_ENDING] = 1.0

    read = 3 / _scale(1.0)  # undoes the norm of a state e_i, and the mean over three positions
    for index in range(len(COUNTRIES)):
        _block(sender, 2)[M + index, E + index] = read
        # By then the position before the last, which sees two positions, holds e_i + 1.5 m_i.
        _block(sender, 3)[M + index, E + index] = -3 / _scale(1.0 + 1.5**2)
        _block(receiver, 1)[M + index, M + index] = -3 / _scale(2.0)  # the message is ENDING + m_i
        _block(receiver, 2)[U + index, M + index] = LOUD
    _block(receiver, 2)[U + DEFAULT, CONSTANT] = QUIET
    return wrap_model(sender, tokenizer(), name="planted-sender"), wrap_model(
        receiver, tokenizer(), name="planted-receiver"
    )


def _silence(model: Any) -> None:
    """Blocks whose attention is uniform, whose values pass as they are, which write nothing; norms without scale."""
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.fill_(1.0)
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight.zero_()
            layer.self_attn.v_proj.weight.copy_(torch.eye(WIDTH))


def _block(model: Any, layer: int) -> torch.Tensor:
    return model.model.layers[layer].self_attn.o_proj.weight.data


def _scale(squared_length: float) -> float:
    """What the norm multiplies a state of this squared length by."""
    return (squared_length / WIDTH + 1e-6) ** -0.5


def countries_folder(folder: Path, *, d_model: int = 16, seed: int = 0) -> Path:
    """A folder with a tiny Llama in transformers' format whose words are those of the task Countries."""
    return words_folder(folder, _words_of_countries(), d_model=d_model, seed=seed)


def words_folder(folder: Path, words: Sequence[str], *, d_model: int = 16, seed: int = 0) -> Path:
    """A folder with a tiny Llama in transformers' format that knows these words beside the usual ones."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    usual = tokenizer()
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*VOCABULARY, *words]))}
    backend = _with_vocabulary(usual, vocabulary)
    saved = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<unk>")
    saved.chat_template = usual.chat_template
    model = transformers_model(
        "llama", d_model=d_model, n_heads=2, n_vocabulary=len(vocabulary), dtype=torch.float32, seed=seed
    )
    logging.disable_progress_bar()
    saved.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _words_of_countries() -> list[str]:
    texts = []
    for template in ("raw", "chat"):
        task = countries(template=template)
        texts += [text for item in task.items for text in (item.skyline, *item.answers)]
        texts += [f" {answer}" for item in task.items for answer in item.answers]
        texts += task.candidates
    return sorted({piece for text in texts for piece in PIECES.findall(text)} - VOCABULARY.keys())


def _with_vocabulary(words: Any, vocabulary: dict[str, int]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = words.backend_tokenizer.pre_tokenizer
    backend.decoder = words.backend_tokenizer.decoder
    return backend


class Counter:
    """A function that counts its calls and passes them on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *given: Any, **options: Any) -> Any:
        self.calls += 1
        return self.function(*given, **options)


def interrupted(patch: pytest.MonkeyPatch, owner: Any, name: str, *, at: int) -> Counter:
    """Raise KeyboardInterrupt once, where the function's call number `at` would be; the calls that run are counted."""
    counter = Counter(getattr(owner, name))

    def stopping(*given: Any, **options: Any) -> Any:
        if counter.calls == at - 1:
            patch.setattr(owner, name, counter)
            raise KeyboardInterrupt
        return counter(*given, **options)

    patch.setattr(owner, name, stopping)
    return counter


def little_memory(patch: pytest.MonkeyPatch, *, n_rows: int, n_past: int = 0) -> list[int]:
    """Let the device run out of memory at the end of passes of more rows after `n_past` positions; lists their rows."""
    forward, failed = Model.forward, []

    def limited(model: Model, tokens: torch.Tensor, **options: Any) -> Any:
        past = 0 if options.get("cache") is None else model.cache_length(options["cache"])
        try:
            return forward(model, tokens, **options)
        finally:
            if len(tokens) > n_rows and past >= n_past:
                failed.append(len(tokens))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    patch.setattr(Model, "forward", limited)
    return failed


WRONG_FUSIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "one number a row": (lambda own, incoming: (own - incoming).norm(dim=-1, keepdim=True), "returned the shape ("),
    "integers": (lambda own, incoming: own.long(), "returned torch.int64 on cpu at blocks."),
    "truth values": (lambda own, incoming: own > incoming, "returned torch.bool on cpu at blocks."),
    "complex numbers": (lambda own, incoming: torch.complex(own, own), "returned torch.complex"),
    "an array": (lambda own, incoming: own.numpy(), "returned ndarray at blocks."),
    "nothing": (lambda own, incoming: None, "returned NoneType at blocks."),
    "what it was given": (lambda own, incoming: own.add_(1.0), "wrote into the states that it was given"),
}
"""Fusions that a user could write, and how each is refused wherever one is applied."""
