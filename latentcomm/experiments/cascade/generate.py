"""Generate openings greedily, and record signals, states or keys and values at every token."""

import os
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import without_folder
from latentcomm._core.linalg import in_float64
from latentcomm._core.records import Records, tracked
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.kv import swapped
from latentcomm.channels.message import Message, join, made_by
from latentcomm.experiments.cascade.openings import EMBEDDING, LONGEST, VOCABULARY, Opening, characters_of, ids_of
from latentcomm.experiments.evaluation import chunks, print_of
from latentcomm.experiments.folder import note_large
from latentcomm.hooks.decode import Choice, Reply, Run, read_prompts, runs, write_replies
from latentcomm.hooks.receiver_input import EMBEDDED, ReceiverInput
from latentcomm.models import Model
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
) -> Message:
    """The large model's greedy opening of every item, of at most `longest` tokens (`task.reply_tokens` by default).

    Each row of the message is an `Opening`; `openings_of` gives them.

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
    records = Records(None)
    if checkpoint is not None:
        inputs = [ids_of(prompts, row) for row in range(len(prompts))]
        decisive = (print_of(large), inputs, longest, wanted, keep_cache, ITEMS_AT_ONCE)
        records = Records.of(checkpoint, "openings", 2, *decisive)
        if keep_cache or wanted:
            note_large(records.folder)
    parts = chunks(len(prompts), ITEMS_AT_ONCE)
    rows: dict[int, Message] = {}
    pieces = [(records, f"{part.start:05d}") for part in parts]
    for number in tracked(pieces, f"openings by {without_folder(large.name)}", shown=progress):

        def write(part: range = parts[number]) -> Message:
            return _write(large, ReceiverInput(prompts.select(part)), longest, wanted, keep_cache)

        rows[number] = records.saved(pieces[number][1], write, Message.load)
    return join([rows[number] for number in range(len(parts))]).addressed(task)


def _write(large: Model, given: ReceiverInput, longest: int, layers: tuple[int, ...], keep_cache: bool) -> Message:
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
    texts, parts = [], []
    for row in range(len(given.prompts)):
        reply, prompt = replies[row], tuple(ids_of(given.prompts, row))
        ids = tuple(reply.ids)
        text, ends, whole = characters_of(large, ids)
        opening = Opening(
            text=text,
            ids=ids,
            prompt=prompt,
            ended=reply.ended,
            ends=ends,
            whole=whole,
            entropy=torch.stack(reply.values["entropy"]) if ids else _NONE,
            margin=torch.stack(reply.values["margin"]) if ids else _NONE,
        )
        part = opening.part()
        for layer, point in points.items():
            empty = torch.zeros(0, large.d_model, dtype=large.dtype)
            part[f"states.{layer}"] = torch.stack(reply.states[point]) if ids else empty
        if keep_cache:
            end = len(prompt) + max(len(ids) - 1, 0)  # all tokens but the last, which not every cache holds
            part["keys"], part["values"] = (
                torch.stack([swapped(large, each[side])[0, :, :end] for each in caches[row]]) for side in (0, 1)
            )
        texts.append(text)
        parts.append(part)
    facts = made_by(large, site="logits", position="opening")
    facts |= {VOCABULARY: large.vocabulary, LONGEST: longest}
    return Message(None, f"{large.name} opening", texts=tuple(texts), parts=tuple(parts), made_by=facts)


def _signals(logits: Float[Tensor, "batch d_vocab"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Entropy in nats, and the likeliest token's probability less the second's."""
    log_p = in_float64(logits).log_softmax(-1)
    p = log_p.exp()
    best = p.topk(2, dim=-1).values
    return torch.special.entr(p).sum(-1).cpu(), (best[:, 0] - best[:, 1]).cpu()
