"""Generate openings greedily, and record signals, states or keys and values at every token."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import without_folder
from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.kv import swapped
from latentcomm.channels.message import Message, join, made_by
from latentcomm.experiments.cascade.openings import EMBEDDING, LONGEST, VOCABULARY, Opening, characters_of, ids_of
from latentcomm.experiments.evaluation import chunks, print_of
from latentcomm.hooks.decode import EMBEDDED, ReceiverInput, Run, read_prompts, runs
from latentcomm.models import Hook, Model
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
    parts = chunks(len(prompts), ITEMS_AT_ONCE)
    rows: list[Message] = []
    for part in track(parts, f"openings by {without_folder(large.name)}", total=len(parts), shown=progress):

        def write(part: range = part) -> Message:
            return _write(large, ReceiverInput(prompts.select(part)), longest, wanted, keep_cache)

        rows.append(records.saved(f"{part.start:05d}", write, Message.load))
    return join(rows)


class _EnoughError(Exception):
    """Raised by a hook to end the pass over the last token, whose logits are not needed."""


@dataclass(frozen=True, eq=False)
class _Step:
    """The next token of every row of a batch, with its signals and states."""

    tokens: list[int]
    entropy: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    states: dict[int, Tensor]


def _write(large: Model, given: ReceiverInput, longest: int, layers: tuple[int, ...], keep_cache: bool) -> Message:
    """The openings of one batch, in the order of its prompts."""
    texts, parts = [""] * len(given.prompts), [{} for _ in range(len(given.prompts))]
    for run in runs(large, given, longest, read_prompts):
        steps, lengths = _steps(large, run, longest, layers)
        layers_cached = large.cache_layers(run.cache) if keep_cache else None
        for at, row in enumerate(run.rows):
            n = lengths[at]
            ids = tuple(step.tokens[at] for step in steps[:n])
            text, ends, whole = characters_of(large, ids)
            opening = Opening(
                text=text,
                ids=ids,
                prompt=tuple(ids_of(given.prompts, row)),
                ended=n < longest,
                ends=ends,
                whole=whole,
                entropy=torch.stack([step.entropy[at] for step in steps[:n]]) if n else _NONE,
                margin=torch.stack([step.margin[at] for step in steps[:n]]) if n else _NONE,
            )
            texts[row], parts[row] = text, opening.part()
            for layer in layers:
                states = [step.states[layer][at] for step in steps[:n]]
                empty = torch.zeros(0, large.d_model, dtype=large.dtype)
                parts[row][f"states.{layer}"] = torch.stack(states) if n else empty
            if layers_cached is not None:
                real = _real_positions(run, at, len(opening.prompt) + max(n - 1, 0))
                parts[row]["keys"] = _of_row(large, [keys for keys, _ in layers_cached], at, real)
                parts[row]["values"] = _of_row(large, [values for _, values in layers_cached], at, real)
    facts = made_by(large, site="logits", position="opening")
    facts |= {VOCABULARY: large.vocabulary, LONGEST: longest}
    return Message(None, f"{large.name} opening", texts=tuple(texts), parts=tuple(parts), made_by=facts)


def _steps(large: Model, run: Run, longest: int, layers: tuple[int, ...]) -> tuple[list[_Step], list[int]]:
    """The steps of rows that are decoded together, and the tokens of each row until its end or the limit."""
    steps: list[_Step] = []
    lengths, live, logits = [0] * len(run.rows), [True] * len(run.rows), run.logits
    for number in range(longest):
        entropy, margin = _signals(logits)
        tokens = logits.argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token not in large.stop_ids
            lengths[row] += live[row]
        if not any(live):
            break
        states: dict[int, Tensor] = {}
        steps.append(_Step(tokens.tolist(), entropy, margin, states))
        if number < longest - 1:
            logits = run.step(tokens, _recorders(layers, states))
        elif layers:
            _read_last(large, run, tokens, layers, states)
    return steps, lengths


def _signals(logits: Float[Tensor, "batch d_vocab"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Entropy in nats, and the likeliest token's probability less the second's."""
    log_p = logits.double().log_softmax(-1)
    p = log_p.exp()
    best = p.topk(2, dim=-1).values
    return torch.special.entr(p).sum(-1).cpu(), (best[:, 0] - best[:, 1]).cpu()


def _recorders(layers: Sequence[int], states: dict[int, Tensor]) -> list[Hook]:
    """Hooks that record the state after each layer at the one token that is read."""

    def recorder(layer: int) -> Hook:
        def record(value: Tensor, hook: Any) -> None:
            states[layer] = value[:, -1].detach().cpu().clone()

        return _hook_name(layer), record

    return [recorder(layer) for layer in layers]


def _hook_name(layer: int) -> str:
    return EMBEDDED if layer == EMBEDDING else Site(layer).hook_name


def _read_last(large: Model, run: Run, tokens: Tensor, layers: tuple[int, ...], states: dict[int, Tensor]) -> None:
    """The pass over the last token, which ends once its states are recorded."""

    def stop(_state: Tensor, hook: Any) -> None:
        raise _EnoughError

    hooks = [*_recorders(layers, states), (_hook_name(layers[-1]), stop), *run.hooks]
    with contextlib.suppress(_EnoughError):
        large.forward(
            tokens[:, None], hooks=hooks, cache=run.cache, past_mask=run.past_mask, n_layers_run=layers[-1] + 1
        )


def _real_positions(run: Run, at: int, n: int) -> Tensor:
    """The first n positions of the cache that are not padding in one row."""
    return torch.arange(n) if run.past_mask is None else run.past_mask[at].nonzero()[:n, 0]


def _of_row(large: Model, layers: Sequence[Tensor], at: int, positions: Tensor) -> Float[Tensor, "layer head pos _"]:
    """One row's keys or values at these positions, layers first, on the CPU."""
    of_row = [swapped(large, each[at : at + 1])[0][:, positions.to(each.device)] for each in layers]
    return torch.stack(of_row).detach().cpu()
