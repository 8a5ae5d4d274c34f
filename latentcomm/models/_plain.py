"""The transformers model that a bridge wraps in place, without the bridge's modules: same weights, same numbers."""

import copy
import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BRIDGE = "transformer_lens.model_bridge"
"""The modules of TransformerLens whose own torch hooks serve its hook points and change nothing by themselves."""


@dataclass(frozen=True, eq=False)
class Plain:
    """A bridge's model as transformers runs it, for passes under no hook.

    Attributes:
        bridge: the bridge.
        model: copies of the transformers modules that hold each other and not the bridge's, and share all weights.
        hooks: every dictionary of torch hooks of the bridge and of the modules that it wraps.
        children, children_then: every dictionary of submodules of these, and its contents when the copies were made.
    """

    bridge: Any
    model: Any
    hooks: list[dict[int, Any]]
    children: list[dict[str, Any]]
    children_then: list[dict[str, Any]]

    @classmethod
    def of(cls, bridge: Any) -> "Plain | None":
        """The plain model of a bridge, or None where transformers' own cannot leave out logits."""
        original = getattr(bridge, "original_model", None)
        if original is None or "logits_to_keep" not in inspect.signature(original.forward).parameters:
            return None
        modules = {id(module): module for root in (bridge, original) for module in root.modules()}.values()
        hooks = [each for module in modules for each in (module._forward_hooks, module._forward_pre_hooks)]
        children = [module._modules for module in modules if module._modules]
        return cls(bridge, _without_bridge(original, {}), hooks, children, [dict(each) for each in children])

    @property
    def replaces_bridge(self) -> bool:
        """Whether a pass would be the same now: no hooks of others, the same modules, and numbers that agree."""
        attached = (hook for each in filter(None, self.hooks) for hook in each.values())
        return (
            all(str(getattr(hook, "__module__", "")).startswith(BRIDGE) for hook in attached)
            and self.children == self.children_then
            and self._agrees
        )

    def logits(
        self, tokens: Int[Tensor, "batch pos"], *, last_only: bool, **options: Any
    ) -> Float[Tensor, "batch _ d_vocab"]:
        """Logits of every position, or of the last one alone."""
        return self.model(input_ids=tokens, logits_to_keep=int(last_only), **options).logits

    @cached_property
    def _agrees(self) -> bool:
        """Whether two short passes, the second on a cache, give the same bits as the bridge.

        A bridge computes attention by itself: GPT-2's queries, keys and values in three products for transformers'
        one, GPT-NeoX's softmax in float32 whatever the dtype.
        """
        from transformers import DynamicCache

        device = next(self.bridge.parameters()).device
        tokens = (torch.arange(8, device=device) % self.bridge.cfg.d_vocab).reshape(2, 4)
        caches = DynamicCache(), DynamicCache()
        for part, n_positions in ((tokens[:, :3], 3), (tokens[:, 3:], 4)):
            options = {"attention_mask": torch.ones(2, n_positions, device=device).long(), "use_cache": True}
            expected = self.bridge(part, past_key_values=caches[0], **options)
            if not torch.equal(self.logits(part, last_only=False, past_key_values=caches[1], **options), expected):
                return False
        return True


def _without_bridge(module: Any, made: dict[int, Any]) -> Any:
    """A module of the bridge or of transformers as transformers built it; a copy where it holds a bridge's module."""
    while type(module).__module__.startswith(BRIDGE):
        module = module._modules["_original_component"]
    if id(module) in made:
        return made[id(module)]
    children = {
        name: child if child is None else _without_bridge(child, made) for name, child in module._modules.items()
    }
    plain = module
    if any(children[name] is not child for name, child in module._modules.items()):
        plain = copy.copy(module)  # which shares its dictionaries of weights and buffers with the module
        plain.__dict__["_modules"] = children
    made[id(module)] = plain
    return plain
