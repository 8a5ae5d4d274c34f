"""Generate openings greedily, and record signals, states or keys and values at every token."""

import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest, without_folder
from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.kv import swapped
from latentcomm.experiments.cascade.openings import EMBEDDING, Opening, Openings, ids_of, pieces_of
from latentcomm.hooks.decode import Choice, Reply, Run, read_prompts, runs, write_replies
from latentcomm.hooks.receiver_input import EMBEDDED, ReceiverInput
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks.base import Task

ITEMS_AT_ONCE = 32
"""Items that are decoded together and saved in one file: what a stopped run loses at most."""
_NONE = torch.zeros(0, dtype=torch.float64)


def write_openings(
    large: Model,
    task: Task,
    *,
    longest: int | None = None,
    layers: Sequence[int] = (),
    keep_cache: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Openings:
    """The large model's greedy opening of every item, of at most `longest` tokens (`task.reply_tokens` by default).

    It reads the small model's prompt, `item.receiver`, under the task's template, and generates once for every n and
    every stop. With `layers` the residual stream after these blocks (-1: the embedding) is recorded at every token,
    which takes a last pass of these layers over the last token; with `keep_cache` the keys and values of all layers.
    They are on the CPU: 4 d_model bytes a token and layer, and 8 n_layers G d_head bytes a token of prompt and opening,
    G the key-value heads, in float32. With `checkpoint` the openings are saved there, 32 items a file, and not
    generated again.

    Raises:
        ValueError: `longest` below 1, a layer that the model does not have, or prompts that do not fit it.
    """
    longest = task.reply_tokens if longest is None else longest
    if longest < 1:
        raise ValueError(f"longest is {longest}; let the large model write at least 1 token")
    wanted = tuple(sorted(set(layers)))
    for layer in wanted:
        if layer != EMBEDDING:
            large.check_site(Site(layer))
    prompts = receiver_prompts(large, task)
    if (most := int(prompts.lengths.max())) + longest > large.n_ctx:
        raise ValueError(
            f"{most} prompt tokens and an opening of {longest} exceed the {large.n_ctx} of {large.name}; lower "
            "longest or the task's reply_tokens"
        )
    names, known = tuple(item.id for item in task.items), large.vocabulary
    records = Records(None)
    if checkpoint is not None:
        if large.has_hooks:
            raise ValueError(
                f"openings of {large.name} with hooks attached cannot be saved, since the name of a checkpoint does "
                "not cover hooks; remove them, or run without a checkpoint"
            )
        inputs = [ids_of(prompts, row) for row in range(len(names))]
        records = Records.of(
            checkpoint, "openings", 1, large, names, inputs, sorted(large.stop_ids), known, longest, wanted, keep_cache,
            ITEMS_AT_ONCE,
        )  # fmt: skip
    rows: list[Opening] = []
    parts = list(_chunks(len(names)))
    for part in track(parts, f"openings by {without_folder(large.name)}", total=len(parts), shown=progress):

        def write(part: range = part) -> Openings:
            written = _write(large, ReceiverInput(prompts.select(part)), longest, wanted, keep_cache)
            return Openings(names[part.start : part.stop], tuple(written), longest, large.name, known, wanted)

        rows += records.saved(f"{part.start:05d}", write, Openings.load).rows
    return Openings(names, tuple(rows), longest, large.name, known, wanted)


def _chunks(n: int) -> Iterator[range]:
    return (range(first, min(first + ITEMS_AT_ONCE, n)) for first in range(0, n, ITEMS_AT_ONCE))


def _write(
    large: Model, given: ReceiverInput, longest: int, layers: tuple[int, ...], keep_cache: bool
) -> list[Opening]:
    """The openings of one batch, in the order of its prompts."""
    points = {layer: EMBEDDED if layer == EMBEDDING else Site(layer).hook_name for layer in layers}
    replies: dict[int, Reply] = {}
    caches: dict[int, Sequence[tuple[Tensor, Tensor]]] = {}

    def choose(logits: Tensor, _rows: Sequence[int]) -> Choice:
        entropy, margin = _signals(logits)
        return Choice(logits.argmax(-1), values={"entropy": entropy, "margin": margin})

    def leave(run: Run, row: int) -> None:  # a copy, without which the whole batch's cache would stay in memory
        caches[row] = [(keys.detach().cpu().clone(), values.detach().cpu().clone()) for keys, values in run.past(row)]

    for run in runs(large, given, longest, read_prompts):
        limits = [longest] * len(given.prompts)
        replies |= write_replies(run, choose, limits, points=list(points.values()), leave=leave if keep_cache else None)
    return [
        _opening(large, given.prompts, row, replies[row], points, caches.get(row)) for row in range(len(given.prompts))
    ]


def _opening(
    large: Model,
    prompts: Prompts,
    row: int,
    reply: Reply,
    points: Mapping[int, str],
    layers: Sequence[tuple[Tensor, Tensor]] | None,
) -> Opening:
    """One row's opening, with its keys and values where they are given."""
    ids, n_prompt = tuple(reply.ids), int(prompts.lengths[row])
    cache = None
    if layers is not None:  # of all tokens but the last, which not every opening's cache holds
        end = n_prompt + max(len(ids) - 1, 0)
        keys, values = (torch.stack([swapped(large, each[side])[0, :, :end] for each in layers]) for side in (0, 1))
        cache = keys, values
    nothing = torch.zeros(0, large.d_model, dtype=large.dtype)
    return Opening(
        ids,
        reply.ended,
        n_prompt,
        torch.stack(reply.values["entropy"]) if ids else _NONE.clone(),
        torch.stack(reply.values["margin"]) if ids else _NONE.clone(),
        *pieces_of(large, ids),
        large.decode(ids),
        {layer: torch.stack(reply.states[point]) if ids else nothing for layer, point in points.items()},
        cache,
        digest(ids_of(prompts, row)),
    )


def _signals(logits: Float[Tensor, "batch d_vocab"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Entropy in nats, and the likeliest token's probability less the second's."""
    log_p = logits.double().log_softmax(-1)
    p = log_p.exp()
    best = p.topk(2, dim=-1).values
    return torch.special.entr(p).sum(-1).cpu(), (best[:, 0] - best[:, 1]).cpu()
