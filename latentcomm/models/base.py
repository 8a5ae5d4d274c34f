"""A language model with TransformerLens hook points: what it is, and how it runs with hooks and with a cache."""

import contextlib
import hashlib
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm._core.linalg import in_float64
from latentcomm.models._hashed import LoadedFiles, place_of, state_of
from latentcomm.models._plain import Plain, has_foreign_hooks
from latentcomm.models.sites import Site

Hook = tuple[str, Callable[..., Any]]
"""A TransformerLens forward hook: the hook point's name and `fn(value, hook) -> value | None`."""


@dataclass(frozen=True)
class Pass:
    """One forward pass as it was run, for counting what it cost.

    Attributes:
        model: which ran.
        rows: prompts that ran together.
        n_new: tokens of each that ran.
        n_past: positions of each that were read from a cache.
        n_layers: blocks that ran; fewer than the model has where the pass was ended early.
        n_unembedded: positions of each row that passed the unembedding.
        n_extra: multiply-adds, of all rows together, of products that are no part of the model (`record_products`).
    """

    model: "Model"
    rows: int
    n_new: int
    n_past: int
    n_layers: int
    n_unembedded: int
    n_extra: int = 0


@contextlib.contextmanager
def recorded_passes() -> Iterator[list[Pass]]:
    """A block whose forward passes, of any model, are listed as they run."""
    passes: list[Pass] = []
    _RECORDS.append(passes)
    try:
        yield passes
    finally:
        _RECORDS[:] = [record for record in _RECORDS if record is not passes]


@contextlib.contextmanager
def counted_if_whole() -> Iterator[None]:
    """A block whose passes stay on record only if it ends without an error."""
    before = [(record, len(record)) for record in _RECORDS]
    try:
        yield
    except BaseException:
        for record, n_passes in before:
            del record[n_passes:]
        raise


@contextlib.contextmanager
def weights_stay() -> Iterator[None]:
    """A block in which nobody writes to weights through `.data`: fingerprints that it took need no sums again.

    Another tensor and a write in place still show.
    """
    before = _STAYING.set(object())
    try:
        yield
    finally:
        _STAYING.reset(before)


def record_passes(passes: Sequence[Pass]) -> None:
    """Put passes on record that ran before, whose result is used again."""
    for record in _RECORDS:
        record.extend(passes)


def record_products(model: "Model", multiply_adds: int) -> None:
    """Put matrix products outside the models on record: averages of embeddings, adapters, bridges."""
    for record in _RECORDS:
        record.append(Pass(model, 0, 0, 0, 0, 0, multiply_adds))


_RECORDS: list[list[Pass]] = []
_STAYING: ContextVar[object | None] = ContextVar("_STAYING", default=None)

_WHOLE = ("full_attention", "global")
"""What transformers calls attention that reaches back to the beginning."""
_ROWS_COMPARED = 64
"""Rows of the embedding table that are compared with what the embedding gives: a factor would show in any of them."""


class PassEnded(Exception):  # noqa: N818 (nothing went wrong)
    """Raised by a hook to end a forward pass whose remaining layers are not needed."""


@dataclass(frozen=True, eq=False)
class Model:
    """A language model with TransformerLens hook points, the same for a bridge and for a HookedTransformer.

    Attributes:
        hooked: the TransformerBridge or HookedTransformer itself; compose hooks with `hooked.run_with_hooks`.
        tokenizer: its transformers tokenizer, or None.
        name: what it was loaded as.
        is_bridge: a TransformerBridge (True) or a HookedTransformer (False).
        files: the files that its weights are loaded from, with what was known of them then; None of other models.
        attention: how passes under no hook compute it, "eager" or "sdpa"; passes under hooks are eager.
    """

    hooked: Any
    tokenizer: Any
    name: str
    is_bridge: bool
    files: LoadedFiles | None = None
    attention: str = "eager"

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
        """The type of its states: that of its weights, those aside that are quantised to integers."""
        return next(p.dtype for p in self.hooked.parameters() if p.is_floating_point())

    @property
    def rounding(self) -> torch.dtype:
        """The dtype whose precision its states have: 8-bit matrices round what they multiply, and by the batch."""
        eight = getattr(getattr(self.hooked, "original_model", None), "is_loaded_in_8bit", False)
        return torch.bfloat16 if eight else self.dtype

    @property
    def device(self) -> torch.device:
        """Where tokens are embedded; blocks may be on other devices (`device_of`)."""
        return _device_of(self.hooked)

    def device_of(self, layer: int) -> torch.device:
        """Where a block computes, and has its keys and values."""
        return _device_of(self.hooked.blocks[layer], self.device)

    @cached_property
    def hook_names(self) -> frozenset[str]:
        """The names of all its hook points."""
        return frozenset(self.hooked.hook_dict)

    @property
    def unembedding_entry(self) -> str:
        """The hook point at which positions can be left out that need no logits, after everything that mixes them."""
        # GPT-2 of transformers gives its final states a shape of its own, so a bridge is cut at the unembedding itself.
        return "unembed.hook_in" if self.is_bridge else f"blocks.{self.n_layers - 1}.hook_resid_post"

    @cached_property
    def joins_lengths(self) -> bool:
        """Whether rows of unequal lengths can continue in one pass, with masked holes in the cache.

        A bridge to a model that takes the positions of its tokens, and whose attention reaches back to the beginning.
        """
        original = getattr(self.hooked, "original_model", None)
        if not self.is_bridge or original is None:
            return False
        config = original.config
        kinds = [*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())]
        sliding = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
        limited = sliding or getattr(config, "alibi", False) or any(kind not in _WHOLE for kind in kinds)
        return not limited and "position_ids" in inspect.signature(original.forward).parameters

    @property
    def _plain(self) -> Plain | None:
        if "_plain_model" not in self.__dict__:
            self.__dict__["_plain_model"] = Plain.of(self.hooked)
        return self.__dict__["_plain_model"]

    @property
    def _in_place_of_bridge(self) -> Plain | None:
        """The transformers model where it may run instead of its bridge: no hook would see the difference."""
        raw = self.is_bridge and not self.processed and not self.hooked.training
        return self._plain if raw and self._plain is not None and self._plain.replaces_bridge else None

    @property
    def has_hooks(self) -> bool:
        """Whether anybody's forward hooks are attached at this moment, at hook points or at modules."""
        roots = [self.hooked, *filter(None, [getattr(self.hooked, "original_model", None)])]
        return any(point.fwd_hooks for point in self.hooked.hook_dict.values()) or has_foreign_hooks(
            [module for root in roots for module in root.modules()], own="transformer_lens"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all weights in the order of their names, as they are now: the same weights, the same value.

        All weights are hashed when it is first needed, and again once one of them is another tensor, was changed in
        place, or has other sums, by which a change through `.data` shows. It is the same whatever devices they are on;
        those that accelerate has offloaded are read from their files. Quantised weights have another value. That of
        files is saved in the cache folder: weights that `load_model` reads from them again are not hashed. Sums are
        taken at every call, but within `weights_stay`.
        """
        weights = sorted(self.hooked.state_dict().items())
        staying = _STAYING.get()
        if staying is not None and self.__dict__.get("_hashed_in") is staying:
            known, fingerprint = self.__dict__["_hashed"]
            here = [(name,) if tensor.is_meta else (name, *place_of(tensor)) for name, tensor in weights]
            if here == [each[:3] for each in known]:  # name, place and version of a `State`
                return fingerprint
        self.__dict__["_hashed_in"] = staying
        state: list[Any] = [(name,) if tensor.is_meta else state_of(name, tensor) for name, tensor in weights]
        if self.__dict__.get("_hashed", (None,))[0] != state:
            hashed = partial(_hash, self.hooked, weights)
            self.__dict__["_hashed"] = state, hashed() if self.files is None else self.files.fingerprint(state, hashed)
        return self.__dict__["_hashed"][1]

    @property
    def vocabulary(self) -> str:
        """A digest of the tokens of its vocabulary and their ids, taken once for a tokenizer of one length."""
        tokenizer = self.require_tokenizer()
        if self.__dict__.get("_vocabulary", (None,))[0] != len(tokenizer):
            entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
            self.__dict__["_vocabulary"] = len(tokenizer), digest(entries)
        return self.__dict__["_vocabulary"][1]

    def run_with_hooks(self, *inputs: Any, **options: Any) -> Any:
        """`run_with_hooks` of the TransformerLens model, with its own arguments."""
        return self.hooked.run_with_hooks(*inputs, **options)

    def run_with_cache(self, *inputs: Any, **options: Any) -> Any:
        """`run_with_cache` of the TransformerLens model, with its own arguments."""
        return self.hooked.run_with_cache(*inputs, **options)

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
            ValueError: the text is empty, or its first token by itself is none of its letters.
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
    # `cache_from_layers` convert it to plain tensors and back, so that a prefix is computed once and used many times.

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        hooks: Sequence[Hook] = (),
        cache: Any = None,
        last_only: bool = False,
        with_grad: bool = False,
        n_layers_run: int | None = None,
        past_mask: Bool[Tensor, "batch past"] | None = None,
    ) -> Float[Tensor, "batch _ d_vocab"]:
        """Logits of unpadded rows under hooks; `cache` holds the earlier positions and is extended in place.

        With `last_only` the last position alone passes the unembedding, which is most of the work of a short prompt.
        `with_grad` lets gradients through, to what the hooks wrote. `n_layers_run`, for the recorded passes, is how
        many blocks run before a hook ends the pass. `past_mask` marks which of the cache's positions a row really has:
        the others are masked, and the tokens get the positions after the real ones (`joins_lengths`).

        Raises:
            ValueError: a hook names a hook point that the model does not have, a `past_mask` for a model that does
                not join lengths, or a model in training mode, unless `with_grad`.
        """
        original = getattr(self.hooked, "original_model", None)
        if not with_grad and (self.hooked.training or getattr(original, "training", False)):
            raise ValueError(f"{self.name} is in training mode, where passes are random; call its eval() first")
        for name, _ in hooks:
            if name not in self.hook_names:
                raise ValueError(f"{self.name} has no hook point {name!r}")
        if past_mask is not None and not self.joins_lengths:
            raise ValueError(f"{self.name} cannot run rows of several lengths in one pass; run those of one length")
        tokens = tokens.to(self.device)
        options: dict[str, Any] = {}
        past = 0 if cache is None else self.cache_length(cache)
        if self.is_bridge:
            seen = torch.ones(len(tokens), past + tokens.shape[1], device=tokens.device).long()
            if past_mask is not None:
                seen[:, :past] = past_mask.to(seen)
                positions = seen[:, :past].sum(1, keepdim=True) + torch.arange(tokens.shape[1], device=tokens.device)
                options["position_ids"] = positions
            options["attention_mask"] = seen
            options |= {} if cache is None else {"past_key_values": cache, "use_cache": True}
        else:  # a mask of ones, always: without it a real token that equals the pad id would be masked
            options["attention_mask"] = torch.ones_like(tokens)
            options |= {} if cache is None else {"past_kv_cache": cache}
        n_unembedded = 0 if n_layers_run is not None else 1 if last_only else tokens.shape[1]
        depth = self.n_layers if n_layers_run is None else n_layers_run
        n_past = {past: len(tokens)} if past_mask is None else Counter(past_mask.sum(1).tolist())
        for record in _RECORDS:
            record += [Pass(self, rows, tokens.shape[1], n, depth, n_unembedded) for n, rows in n_past.items()]
        if not hooks and not with_grad:
            with torch.no_grad():
                if (plain := self._in_place_of_bridge) is not None:
                    return plain.logits(tokens, last_only=last_only, attention=self.attention, **options)
        hooks = [*hooks, (self.unembedding_entry, _last_position)] if last_only else list(hooks)
        with torch.set_grad_enabled(with_grad):
            return self.hooked.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits", **options)

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
            from latentcomm.models._growing_cache import growing_cache

            return growing_cache()
        from transformer_lens import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(self.hooked.cfg, self.device, batch)

    def cache_length(self, cache: Any) -> int:
        """How many positions a cache holds."""
        return int(cache.get_seq_length()) if self.is_bridge else int(cache[0].past_keys.shape[1])

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
        devices = map(self.device_of, range(self.n_layers))
        layers = [(keys.to(at), values.to(at)) for (keys, values), at in zip(layers, devices, strict=True)]
        if self.is_bridge:
            for index, (keys, values) in enumerate(layers):
                cache.update(keys, values, index)
            return cache
        for entry, (keys, values) in zip(cache, layers, strict=True):
            entry.past_keys, entry.past_values = keys, values
        cache.previous_attention_mask = torch.ones(batch or 1, layers[0][0].shape[1], device=self.device).long()
        return cache

    def keep_rows(self, cache: Any, rows: Int[Tensor, " row"]) -> None:
        """Only these rows stay in a cache."""
        rows = rows.cpu()  # which index keys and values on any device
        if self.is_bridge:
            cache.batch_select_indices(rows)
            return
        for entry in cache:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
        cache.previous_attention_mask = cache.previous_attention_mask[rows]

    @property
    @torch.no_grad()
    def embedding_table(self) -> Float[Tensor, "d_vocab d_model"]:
        """What a token puts at `hook_embed`, a row a token: W_E, multiplied where the model multiplies it (Gemma)."""
        rows = self.hooked.W_E.detach()
        probe = torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS_COMPARED), device=rows.device).long()
        if torch.equal(self.hooked.embed(probe[None])[0], rows[probe]):
            return rows
        return self.hooked.embed(torch.arange(len(rows), device=rows.device)[None])[0]

    def final_norm(
        self, residual: Float[Tensor, "row d_model"], *, with_grad: bool = False
    ) -> Float[Tensor, "row d_model"]:
        """What the unembedding reads: the residual stream after the last block, through the final norm."""
        with torch.set_grad_enabled(with_grad):
            norm = self.hooked.ln_final
            return norm(residual[None].to(_device_of(norm, residual.device)))[0]

    @torch.no_grad()
    def unembed(self, normed: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Logits of states that passed the final norm, before any soft cap of the model's head."""
        head = self.hooked.unembed
        return head(normed[None].to(_device_of(head, normed.device)))[0]

    @torch.no_grad()
    def unembed_columns(
        self, normed: Float[Tensor, "row d_model"], columns: Int[Tensor, " choice"]
    ) -> Float[Tensor, "row choice"]:
        """The logits of some tokens alone: `unembed` at the price of as many columns."""
        table = self.hooked.W_U
        if table.is_meta:  # read from disk by the head alone
            return self.unembed(normed)[:, columns.to(_device_of(self.hooked.unembed))]
        columns, normed = columns.to(table.device), normed.to(table.device)
        bias = self.hooked.b_U
        return normed @ table[:, columns] + (0 if bias is None else bias.to(table.device)[columns])

    @property
    def softcap(self) -> float:
        """The soft cap of the output logits, 0 where there is none."""
        return max(float(getattr(self.hooked.cfg, "output_logits_soft_cap", 0.0) or 0.0), 0.0)


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


def one_model(a: Model, b: Model) -> bool:
    """Whether both are one object, or the same weights in the same shape; all weights are hashed to know it."""
    if a is b:
        return True
    shapes = [(model.n_layers, model.d_model, model.dtype, model.is_bridge, model.attention) for model in (a, b)]
    return shapes[0] == shapes[1] and a.fingerprint == b.fingerprint


def fingerprints(sender: Model, receiver: Model) -> tuple[str, str]:
    """The fingerprints of both."""
    return sender.fingerprint, receiver.fingerprint


def one_vocabulary(a: Model, b: Model) -> bool:
    """Whether an id is the same token in both."""
    return a.require_tokenizer() is b.require_tokenizer() or a.vocabulary == b.vocabulary


def _device_of(module: Any, otherwise: torch.device | None = None) -> torch.device:
    """Where a module computes: where its first weight is, or where accelerate brings it from another device or a file.

    One without weights computes where its input is, `otherwise`.
    """
    weight = next(module.parameters(), None)
    if weight is None:
        return torch.device("cpu") if otherwise is None else otherwise
    if not weight.is_meta:
        return weight.device
    hooks = (hook for each in module.modules() for hook in _placing(each) if hook.execution_device is not None)
    return torch.device(next((hook.execution_device for hook in hooks), "cpu"))


def _placing(module: Any) -> list[Any]:
    """The hooks by which accelerate moves what enters a module, and brings weights that are offloaded."""
    hook = getattr(module, "_hf_hook", None)
    return [each for each in getattr(hook, "hooks", (hook,)) if hasattr(each, "execution_device")]


def _offloaded(hooked: Any) -> dict[str, Callable[[], Tensor]]:
    """What reads each weight that accelerate keeps in files or apart in memory, by its name in the model."""
    readers = {
        id(tensor): partial(operator.getitem, hook.weights_map, key)
        for module in hooked.modules()
        for hook in _placing(module)
        if hook.weights_map is not None
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and tensor.is_meta
    }
    named = hooked.state_dict(keep_vars=True).items()
    return {name: readers[id(tensor)] for name, tensor in named if tensor.is_meta}


def _hash(hooked: Any, weights: Sequence[tuple[str, Tensor]]) -> str:
    """The SHA-256 of named weights; those that accelerate has offloaded are read."""
    offloaded = _offloaded(hooked) if any(tensor.is_meta for _, tensor in weights) else {}
    found = hashlib.sha256()
    for name, tensor in weights:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        tensor = offloaded[name]() if tensor.is_meta else tensor
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _last_position(value: Tensor, hook: Any) -> Tensor:
    return value[:, -1:]


def _hooked_transformer_is_processed(model: Any) -> bool:
    """Folded norms show in the config; centred writing weights show in W_O, whose rows then have mean zero."""
    if str(model.cfg.normalization_type).endswith("Pre"):
        return True
    writes = in_float64(model.blocks[0].attn.W_O.detach())
    return bool(writes.mean(-1).abs().max() < 1e-6 * writes.abs().mean())
