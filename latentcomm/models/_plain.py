"""The transformers model that a bridge wraps in place, without the bridge's modules: same weights, same numbers."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BRIDGE = "transformer_lens.model_bridge"
"""The modules of TransformerLens whose own torch hooks serve its hook points and change nothing by themselves."""
WRAPPED = "_original_component"
"""The child of a bridge's module that it wraps."""
ATTENTION = ("full_attention", "sliding_attention")
"""Kinds of layers whose cache is keys and values."""


@dataclass(frozen=True)
class Swap:
    """A child of a transformers module that the bridge replaced, and the module that it replaced."""

    parent: dict[str, Any]
    name: str
    wrapper: Any
    original: Any


@dataclass(eq=False)
class Plain:
    """A bridge's model as transformers runs it, for passes under no hook.

    During a pass the transformers modules hold one another in place of the bridge's, so that whatever is changed in
    them (weights, attributes, adapters) is seen. A pass is taken only where the bridge's modules add nothing: they own
    no weights, nobody has hooked, patched or replaced one, and two short passes give the same bits.

    Attributes:
        bridge: the bridge.
        swaps: the children to put back during a pass.
        links: parent, name and child wherever one of the bridge's modules is held or holds the one it wraps.
        modules: all modules of both, by which hooks of others are seen.
        wrappers: those of the bridge, by which patches and weights of others are seen.
    """

    bridge: Any
    swaps: list[Swap] = field(default_factory=list)
    links: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)
    modules: list[Any] = field(default_factory=list)
    wrappers: list[Any] = field(default_factory=list)
    _agreed: dict[Any, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, bridge: Any) -> "Plain | None":
        """The plain model of a bridge, or None where transformers' own cannot leave out logits or has other caches."""
        original = getattr(bridge, "original_model", None)
        if original is None or "logits_to_keep" not in inspect.signature(original.forward).parameters:
            return None
        if set(getattr(original.config, "layer_types", None) or ()) - set(ATTENTION):
            return None
        return cls(bridge)

    @property
    def replaces_bridge(self) -> bool:
        """Whether a pass would be the same now: asked before each, so that it calls nothing for every module."""
        if not self.links or any(parent.get(name) is not child for parent, name, child in self.links):
            self._look()
        return not has_foreign_hooks(self.modules, own=BRIDGE) and not self._is_patched and self._agrees

    def _look(self) -> None:
        """Find what the bridge has replaced, anew."""
        original = self.bridge.original_model
        self.modules = list({id(each): each for root in (self.bridge, original) for each in root.modules()}.values())
        self.wrappers = [module for module in self.modules if _is_wrapper(module)]
        self.swaps = []
        inside, reached = [original], dict[int, Any]()
        while inside:
            module = inside.pop()
            if id(module) in reached:
                continue
            reached[id(module)] = module
            for name, child in module._modules.items():
                if child is not None and _is_wrapper(child):
                    self.swaps.append(Swap(module._modules, name, child, _unwrapped(child)))
                inside += [] if child is None else [_unwrapped(child)]
        self.links = [(each.parent, each.name, each.wrapper) for each in self.swaps]
        wrapping = [module._modules for module in self.wrappers if WRAPPED in module._modules]
        self.links += [(children, WRAPPED, children[WRAPPED]) for children in wrapping]
        of_plain = {id(tensor) for module in reached.values() for tensor in _own_tensors(module)}
        of_bridge = {id(tensor) for module in self.modules for tensor in _own_tensors(module)}
        self._agreed = {} if of_bridge <= of_plain else {"weights of the bridge's own": False}

    @property
    def _is_patched(self) -> bool:
        """Whether one of the bridge's modules has a `forward` or weights that were put there."""
        return any("forward" in module.__dict__ or len(module._parameters) > 0 for module in self.wrappers)

    def logits(
        self, tokens: Int[Tensor, "batch pos"], *, last_only: bool, attention: str = "eager", **options: Any
    ) -> Float[Tensor, "batch _ d_vocab"]:
        """Logits of every position, or of the last one alone."""
        with self._in_place(), _attending(self.bridge.original_model.config, attention):
            return self.bridge.original_model(input_ids=tokens, logits_to_keep=int(last_only), **options).logits

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        for each in self.swaps:
            each.parent[each.name] = each.original
        try:
            yield
        finally:
            for each in self.swaps:
                each.parent[each.name] = each.wrapper

    @property
    def _agrees(self) -> bool:
        """Whether two short passes, the second on a cache, give the same bits as the bridge, for this dtype and device.

        A bridge computes attention by itself: GPT-2's queries, keys and values in three products for transformers'
        one, GPT-NeoX's softmax in float32 whatever the dtype.
        """
        first = next(self.bridge.parameters())
        if first.is_meta or not all(self._agreed.values()):  # offloaded weights are brought module by module
            return False
        key = first.dtype, first.device
        if key not in self._agreed:
            self._agreed[key] = self._same_bits(first.device)
        return self._agreed[key]

    def _same_bits(self, device: torch.device) -> bool:
        from transformers import DynamicCache

        tokens = (torch.arange(8, device=device) % self.bridge.cfg.d_vocab).reshape(2, 4)
        caches = DynamicCache(), DynamicCache()
        for part, n_positions in ((tokens[:, :3], 3), (tokens[:, 3:], 4)):
            options = {"attention_mask": torch.ones(2, n_positions, device=device).long(), "use_cache": True}
            expected = self.bridge(part, past_key_values=caches[0], **options)
            if not torch.equal(self.logits(part, last_only=False, past_key_values=caches[1], **options), expected):
                return False
        return True


@contextmanager
def _attending(config: Any, attention: str) -> Iterator[None]:
    """A block in which transformers computes attention in this way; a bridge has set its own, eager."""
    before = config._attn_implementation
    if before == attention:
        yield
        return
    config._attn_implementation = attention
    try:
        yield
    finally:
        config._attn_implementation = before


def has_foreign_hooks(modules: list[Any], *, own: str) -> bool:
    """Whether one of these modules has a torch hook that is defined outside `own` and transformers.

    The hooks of transformers record outputs for who asks for them, and stay where they were once asked for.
    """
    return any(
        not str(getattr(hook, "__module__", "")).startswith((own, "transformers."))
        for module in modules
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


def _is_wrapper(module: Any) -> bool:
    return type(module).__module__.startswith(BRIDGE)


def _unwrapped(module: Any) -> Any:
    while _is_wrapper(module):
        module = module._modules[WRAPPED]
    return module


def _own_tensors(module: Any) -> Iterator[Tensor]:
    for each in (*module._parameters.values(), *module._buffers.values()):
        if each is not None:
            yield each
