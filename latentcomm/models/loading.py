"""Load a model by its name, or wrap one that is in memory already."""

import contextlib
import copy
import difflib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentcomm.models import builtin as weights
from latentcomm.models.base import Model

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


HUB_TIMEOUT_SECONDS = 10.0
"""How long the hub may take to answer whether it has a model."""


def load_model(name_or_path: str | os.PathLike[str], *, dtype: str = "float32", device: str = "cpu") -> Model:
    """A model with raw weights and TransformerLens hook points.

    `name_or_path` is a built-in name (`latentcomm models` lists them; downloaded and converted once), a directory in
    transformers' format, a .gguf file, or the id of a model on the hub.

    Raises:
        ValueError: an unknown name (near matches are named), an unknown dtype or device, a path that is not there.
        RuntimeError: the hub or the package index cannot be reached, or downloaded weights have the wrong hash.
    """
    if dtype not in DTYPES:
        raise ValueError(f"there is no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"there is no device {device!r}; use 'cpu', or 'cuda' where there is one") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no CUDA device here; use 'cpu'")
    name = os.fspath(name_or_path)
    folder, gguf_file = _locate(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    if not Path(folder).exists():
        _check_hub(name)
    with weights.no_bars():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **options)
        except (
            OSError,
            ValueError,
            KeyError,
            struct.error,
            SafetensorError,
        ) as error:  # the last: a .gguf that breaks off in its header
            raise ValueError(f"{name} holds no model that transformers can load: {_first_line(error)}") from error
    return wrap_model(model.to(device), tokenizer, name=name)


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
        model.eval()
        model.config.architectures = [type(model).__name__]
        device = str(next(model.parameters()).device)
        with _no_installs(), weights.no_bars():
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


def _locate(name: str) -> tuple[str, str | None]:
    """Folder (or hub id) and .gguf file of a name."""
    if name in weights.BUILT_IN:
        return str(weights.fetch(weights.BUILT_IN[name])), None
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), None
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    if path.is_file():
        raise ValueError(f"{name} is a file but not a .gguf; give a .gguf file or a directory in transformers' format")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no file or directory {name}")
    return name, None


def _check_hub(name: str) -> None:
    """Query the hub once for a model that is not on this machine: its own client would try for a minute."""
    import huggingface_hub

    families = {known.split("-")[0]: known for known in weights.BUILT_IN}
    near = difflib.get_close_matches(name.lower(), [*weights.BUILT_IN, *families], n=1, cutoff=0.5)
    hint = f"give a built-in name ({', '.join(weights.BUILT_IN)}), a local directory or a .gguf file"
    hint = f"did you mean {families.get(near[0], near[0])}?" if near else hint
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.HFValidationError) as error:
        raise ValueError(f"there is no model {name!r} here or on the hub; {hint}") from error
    except Exception as error:  # any error of its HTTP library: they differ between versions
        raise RuntimeError(
            f"there is no model {name!r} on this machine, and the model hub could not be reached "
            f"({_first_line(error)}); {hint}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
