"""Sizes and tokenizer of a model by its name, from its configuration alone: no weights are read."""

import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from latentcomm.models import builtin
from latentcomm.models.checkpoint import Checkpoint, locate, read_by_transformers
from latentcomm.models.vision import TOWERS

__all__ = ["ModelShape", "shape_of", "tokenizer_of"]

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""Files of weights in the order in which transformers tries them."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model; None where a configuration does not state one.

    Attributes:
        name: as it was given.
        n_layers: blocks.
        d_model: the width of the residual stream.
        n_heads, n_key_value_heads, d_head: of the attention.
        d_mlp: the width inside the feed-forward layers.
        d_vocab: tokens that it has logits for.
        n_ctx: the longest prompt, in tokens.
        n_parameters: numbers in the files of weights, or, where these are not on this machine, of the model that the
            configuration describes; those that two matrices share counted once.
        n_in_blocks: those of them in the matrices of the blocks, which a quantization stores as integers.
        gated: whether the feed-forward layers have a gate, hence three matrices and not two.
        weights_bytes: the size of these files; None where they are not on this machine.
    """

    name: str
    n_layers: int | None = None
    d_model: int | None = None
    n_heads: int | None = None
    n_key_value_heads: int | None = None
    d_head: int | None = None
    d_mlp: int | None = None
    d_vocab: int | None = None
    n_ctx: int | None = None
    n_parameters: int | None = None
    n_in_blocks: int | None = None
    gated: bool | None = None
    weights_bytes: int | None = None


def shape_of(name_or_path: str | os.PathLike[str]) -> ModelShape:
    """The sizes of a model of any name that `load_model` or `load_vision` takes, without its weights.

    They come from the config.json of a directory or of the hub, a configuration file of any other name in .json, the
    header of a .gguf file, or, for a built-in model that has not been downloaded, from what is known about it.

    Raises:
        ValueError: an unknown name, a path that is not there, or files that transformers cannot read.
        RuntimeError: the hub cannot be reached.
    """
    name, checkpoint = os.fspath(name_or_path), _located(name_or_path)
    if checkpoint is None:
        return ModelShape(name, **builtin.BUILT_IN[name].sizes)  # pyright: ignore[reportArgumentType] (none is gated)
    if checkpoint.gguf_file:
        return _of_gguf(name, Path(checkpoint.folder) / checkpoint.gguf_file)
    from transformers import AutoConfig

    with read_by_transformers(name):
        config = AutoConfig.from_pretrained(checkpoint.folder)
    config = config.vision_config if config.model_type in TOWERS else config.get_text_config()
    n_heads, d_model = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    d_mlp = _size(config, "intermediate_size", "n_inner", "ffn_dim")
    files = _weight_files(checkpoint)
    weights = _stored(name, files) if files else _described(config)
    return ModelShape(
        name,
        n_layers=_size(config, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=_size(config, "num_key_value_heads") or n_heads,
        d_head=_size(config, "head_dim") or (d_model // n_heads if d_model and n_heads else None),
        d_mlp=d_mlp or (4 * d_model if d_model and hasattr(config, "n_inner") else None),  # GPT-2: None is four widths
        d_vocab=_size(config, "vocab_size"),
        n_ctx=_size(config, "max_position_embeddings", "n_positions"),
        **_counted(weights),
        weights_bytes=sum(path.stat().st_size for path in files) or None,
    )


def tokenizer_of(name_or_path: str | os.PathLike[str]) -> Any:
    """The tokenizer of a model of any name that `shape_of` takes; None of a built-in model not yet downloaded.

    None of a configuration file, too.

    Raises:
        ValueError: an unknown name, a path that is not there, or files that transformers cannot read.
        RuntimeError: the hub cannot be reached.
    """
    checkpoint = _located(name_or_path)
    if checkpoint is None or checkpoint.folder.endswith(".json"):
        return None
    from transformers import AutoTokenizer

    with read_by_transformers(os.fspath(name_or_path)):
        return AutoTokenizer.from_pretrained(checkpoint.folder, **checkpoint.options)


def _located(name_or_path: str | os.PathLike[str]) -> Checkpoint | None:
    """Where a model is; None of a built-in model not yet downloaded."""
    path = Path(name_or_path).expanduser()
    if path.suffix == ".json" and path.is_file():
        return Checkpoint(str(path))
    checkpoint = locate(name_or_path)
    return None if os.fspath(name_or_path) in builtin.BUILT_IN and checkpoint.local is None else checkpoint


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files of weights that transformers would read; none where they are not on this machine."""
    folder = checkpoint.local
    if folder is not None and checkpoint.gguf_file:
        return [folder / checkpoint.gguf_file]
    found = [] if folder is None else [sorted(folder.glob(pattern)) for pattern in _WEIGHTS]
    return next(filter(None, found), [])


def _size(config: Any, *names: str) -> int | None:
    """The first of these sizes that a configuration states."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


Weights = Mapping[str, Sequence[int]]
"""The shape of each weight by its name."""


def _counted(weights: Weights | None) -> dict[str, Any]:
    """What `ModelShape` has of weights."""
    if weights is None:
        return {}
    in_blocks = [shape for name, shape in weights.items() if len(shape) == 2 and re.search(r"\.\d+\.", name)]
    return {
        "n_parameters": sum(map(math.prod, weights.values())),
        "n_in_blocks": sum(map(math.prod, in_blocks)),
        "gated": any("gate" in name for name in weights),
    }


def _stored(name: str, files: list[Path]) -> Weights | None:
    """The weights in files of safetensors, from their headers; None of another format."""
    if any(path.suffix != ".safetensors" for path in files):
        return None
    found = {}
    with read_by_transformers(name):
        for path in files:
            with safe_open(path, framework="pt") as file:
                found |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
    return found


def _described(config: Any) -> Weights | None:
    """The weights of the model that a configuration describes, which is not filled; None of no language model."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError:  # a vision encoder
        return None
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _of_gguf(name: str, path: Path) -> ModelShape:
    with read_by_transformers(name), path.open("rb") as file:
        facts, weights = _gguf_header(file)
    kind, tokens = facts.get("general.architecture"), facts.get("tokenizer.ggml.tokens")

    def size(key: str) -> int | None:
        value = facts.get(f"{kind}.{key}")
        return value if type(value) is int and value > 0 else None

    n_heads, d_model = size("attention.head_count"), size("embedding_length")
    return ModelShape(
        name,
        n_layers=size("block_count"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=size("attention.head_count_kv") or n_heads,
        d_head=size("attention.key_length") or (d_model // n_heads if d_model and n_heads else None),
        d_mlp=size("feed_forward_length"),
        d_vocab=size("vocab_size") or (len(tokens) if isinstance(tokens, range) else None),
        n_ctx=size("context_length"),
        **_counted(weights),
        weights_bytes=path.stat().st_size,
    )


_GGUF_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_MOST_AXES = 4
"""Of a tensor, by ggml itself; more are a damaged header."""


def _gguf_header(file: BinaryIO) -> tuple[dict[str, Any], Weights]:
    """The metadata of a .gguf file (of an array the range of its length) and the shapes of its tensors.

    The package gguf builds every token of the vocabulary on the way, which takes seconds.
    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
    """
    size = os.fstat(file.fileno()).st_size

    def check(is_right: bool) -> None:
        if not is_right:
            raise ValueError(f"its header is cut off or damaged near byte {file.tell()}; get the file again")

    def take(length: int) -> bytes:
        check(length <= size - file.tell())  # a damaged length may be more than memory or an integer of C holds
        return file.read(length)

    def number(kind: str) -> Any:
        return struct.unpack(f"<{kind}", take(struct.calcsize(f"<{kind}")))[0]

    def text() -> str:
        return take(number("Q")).decode("utf-8", errors="replace")

    def value(kind: int) -> Any:
        check(kind in (*_GGUF_NUMBERS, _GGUF_STRING, _GGUF_ARRAY))
        if kind == _GGUF_STRING:
            return text()
        if kind != _GGUF_ARRAY:
            return number(_GGUF_NUMBERS[kind])
        inner, length = number("I"), number("Q")
        check(length <= size)
        if inner in _GGUF_NUMBERS:
            take(length * struct.calcsize(f"<{_GGUF_NUMBERS[inner]}"))
        else:
            for _ in range(length):
                value(inner)
        return range(length)

    if (magic := file.read(4)) != b"GGUF" or number("I") not in (2, 3):
        raise ValueError(f"a .gguf file begins with GGUF and version 2 or 3, not {magic!r}")
    n_tensors, n_facts = number("Q"), number("Q")
    facts = {text(): value(number("I")) for _ in range(n_facts)}
    weights: dict[str, Sequence[int]] = {}
    for _ in range(n_tensors):
        name = text()
        check((n_axes := number("I")) <= _GGUF_MOST_AXES)
        weights[name] = [number("Q") for _ in range(n_axes)]
        take(struct.calcsize("<IQ"))  # its type, and where it is
    return facts, weights
