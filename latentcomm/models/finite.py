"""Why numbers of a model are not finite: weights that hold NaN, or the first block whose states overflow."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from latentcomm.models.base import Model
from latentcomm.models.sites import Site

__all__ = ["not_finite", "why_not_finite"]

EMBEDDED = "hook_embed"
WIDER = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float64", torch.float32: "float64"}
"""The dtypes of a larger range; bfloat16 has that of float32."""


def not_finite(model: Model, again: Callable[[], object], *, what: str = "") -> ValueError:
    """The error of a pass that gave NaN or infinity: what holds them first, and what to do.

    `again` runs the pass once more, to search for the block; `what` is the beginning of the sentence in place of "the
    logits of MODEL are".
    """
    found = why_not_finite(model, again)
    finding, remedy = found or (f"all its blocks are, so its unembedding is not in {_short(model)}", _remedy(model))
    return ValueError(f"{what or f'the logits of {model.name} are'} not finite: {finding}; {remedy}")


def why_not_finite(model: Model, again: Callable[[], object]) -> tuple[str, str] | None:
    """The weights, or else the first states in a pass, that are not finite, and what to do; None where all are.

    The weights and the states of each block are examined only here, after a pass has failed.
    """
    # parameters alone: TransformerLens has buffers, such as that of masked scores, which are infinite by intent
    parameters = getattr(model.hooked, "original_model", model.hooked).named_parameters()
    weights = {name: weight for name, weight in parameters if weight.is_floating_point() and not weight.is_meta}
    names = {weight.data_ptr(): name for name, weight in reversed(weights.items())}  # the first of each tensor
    bad = [name for name, weight in weights.items() if names[weight.data_ptr()] == name and not _is_finite(weight)]
    if bad:
        kind = "NaN" if bool(weights[bad[0]].isnan().any()) else "infinity"
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        name = bad[0].replace("_original_component.", "")  # what a bridge puts between the names of transformers
        return f"its weights hold {kind} in {name}{more}", "load weights that are whole"
    seen: list[str] = []

    streams = [Site(layer, stream) for layer in range(model.n_layers) for stream in ("resid_pre", "resid_post")]
    points = [EMBEDDED, *(site.hook_name for site in streams)]  # what a hook writes after a block enters the next
    hooks = [(point, partial(_watch, seen, point)) for point in points if point in model.hook_names]
    with model.hooked.hooks(fwd_hooks=hooks):
        again()
    if not seen:
        return None
    return f"its stream stops being so at {seen[0]} in {_short(model)}", _remedy(model)


def _watch(seen: list[str], point: str, value: Tensor, hook: object) -> None:
    if not seen and not _is_finite(value):
        seen.append(point)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are, by their extremes: fifteen times faster than testing each."""
    if tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:  # torch finds no extremes of the dtypes of eight bits
        tensor = tensor.float()
    lowest, highest = torch.aminmax(tensor.detach())
    return bool(lowest.isfinite() & highest.isfinite())


def _short(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")


def _remedy(model: Model) -> str:
    wider = WIDER.get(model.dtype)
    look = "look at what grafts and hooks write"
    return look if wider is None else f"load it in {wider}, or {look}"
