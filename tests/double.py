"""Float64 models that compute in float64 throughout, so that a test of them can see an error of 1e-9.

transformers computes RMS norms, and transformers and TransformerLens most softmaxes, in float32 whatever the model's
dtype. That is meant for float16; for float64 it hides everything below 1e-7, and differs by as much between two
processors. Models of other dtypes compute what they always do.
"""

import functools
from typing import Any

import torch
from torch import Tensor


def stay_in_float64() -> None:
    """Let norms and softmaxes of float64 values be computed in float64, for this process."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    for kind in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm):
        kind.forward = _norm(kind.forward, lambda norm: (norm.variance_epsilon, norm.weight))
    Gemma2RMSNorm.forward = _norm(Gemma2RMSNorm.forward, lambda norm: (norm.eps, 1 + norm.weight))
    torch.nn.functional.softmax = _softmax(torch.nn.functional.softmax)


def _norm(usual: Any, read: Any) -> Any:
    @functools.wraps(usual)
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != torch.float64:
            return usual(self, hidden_states)
        eps, weight = read(self)
        return weight * (hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + eps))

    return forward


def _softmax(usual: Any) -> Any:
    @functools.wraps(usual)
    def softmax(input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:  # noqa: A002
        return usual(input, dim, _stacklevel, None if input.dtype == torch.float64 else dtype)

    return softmax
