"""Small untrained transformers with a vocabulary of whole words, for tasks that a processor learns in minutes."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from latentcomm.models import Model, wrap_model

PAD, UNKNOWN, END = "<pad>", "<unk>", "<eos>"
SPECIAL = (PAD, UNKNOWN, END)


def word_tokenizer(words: Sequence[str]) -> Any:
    """A transformers tokenizer whose tokens are the given words, divided by white space, after `<pad> <unk> <eos>`.

    Raises:
        ValueError: a word that is empty, holds white space, or is repeated.

    >>> word_tokenizer(["one", "two"])("two one").input_ids
    [4, 3]
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    every = [*SPECIAL, *words]
    if bad := [word for word in words if word.split() != [word]]:
        raise ValueError(f"{bad[0]!r} is no word; give words without white space")
    if len(set(every)) < len(every):
        raise ValueError(f"a word is repeated among {len(every)}; name each once")
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(every)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, unk_token=UNKNOWN, eos_token=END)


def small_model(
    words: Sequence[str],
    *,
    name: str,
    n_layers: int = 2,
    d_model: int = 128,
    n_heads: int = 4,
    n_ctx: int = 128,
    tied: bool = False,
    seed: int = 0,
) -> Model:
    """An untrained Llama of these sizes (feed-forward four times the width) as a `Model`.

    `tied` gives it one table for the words it reads and those it writes.

    Raises:
        ValueError: heads that do not divide the width.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if d_model % n_heads:
        raise ValueError(f"{n_heads} heads do not divide the width {d_model}; give a divisor of it")
    tokenizer = word_tokenizer(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        max_position_embeddings=n_ctx,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return wrap_model(model, tokenizer, name=name)


def save_model(model: Model, folder: str | os.PathLike[str]) -> None:
    """Write a model that `small_model` made, as it is now, as a transformers folder that `load_model` reads.

    The folder is written whole or not at all; earlier content is replaced.

    Raises:
        ValueError: another kind of model, or a folder that holds something else.
    """
    from transformers import LlamaForCausalLM

    inner = getattr(model.hooked, "original_model", None)
    if not isinstance(inner, LlamaForCausalLM):
        raise ValueError(f"{model.name} was not made by small_model; save it with the library that made it")
    named = inner.named_parameters(remove_duplicate=False)  # each also under the names of the bridge
    weights = {name.replace("._original_component", ""): value.detach() for name, value in named}
    wanted = LlamaForCausalLM(inner.config).state_dict()
    folder = Path(folder)
    if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something that is no model; give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as draft:
        whole = Path(draft) / "model"
        inner.config.save_pretrained(whole)
        plain = {name: weights[name].cpu().contiguous().clone() for name in wanted}
        save_file(plain, whole / "model.safetensors", metadata={"format": "pt"})
        model.require_tokenizer().save_pretrained(whole)
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
