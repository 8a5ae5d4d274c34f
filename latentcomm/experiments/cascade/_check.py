"""The check of `CascadeSettings` before the first weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from latentcomm.channels.kv import check_heads
from latentcomm.experiments._demand import Side
from latentcomm.experiments.cascade.by_name import (
    GRAFT,
    KV,
    LATENT,
    TEXT,
    controls_named,
    refuse_hand_offs,
    stops_named,
)
from latentcomm.experiments.cascade.continuations import ITEMS_AT_ONCE
from latentcomm.experiments.cascade.run import check_plan
from latentcomm.experiments.cascade.settings import CascadeSettings
from latentcomm.experiments.cascade.stops import Oracle, Stop
from latentcomm.experiments.cascade.trials import SELF_CONSISTENCY
from latentcomm.experiments.controls import RANDOM, SHUFFLED, ZERO
from latentcomm.experiments.cost import pass_flops
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import listed
from latentcomm.models import ModelShape
from latentcomm.tasks.base import Task
from latentcomm.tasks.corpus import Corpus, read_corpus

__all__ = ["CascadeInputs", "check_cascade"]


@dataclass(frozen=True, eq=False)
class CascadeInputs:
    """What a cascade runs with, besides its settings and its models.

    Attributes:
        task: the items that are run.
        ns, stops, hand_offs, controls: as `sweep_cascade` takes them; hand-offs by name.
        corpus: the documents that maps are fitted on; None for the packaged ones.
    """

    task: Task
    ns: tuple[int, ...]
    stops: Mapping[str, Stop | Oracle]
    hand_offs: tuple[str, ...]
    controls: tuple[str, ...]
    corpus: Corpus | None


def check_cascade(settings: CascadeSettings, checks: Checks) -> CascadeInputs | None:
    """What the cascade runs with; None where something is refused."""
    controls = checks.of(controls_named, listed(settings.controls))
    stops = checks.of(stops_named, listed(settings.stop))
    hand_offs, ns = listed(settings.hand_off), tuple(sorted(set(settings.n)))
    checks.refuse("n names no number of tokens; give some, comma-separated, such as 0,8,16,32", when=not ns)
    checks.of(refuse_hand_offs, hand_offs)
    corpus = checks.of(read_corpus, settings.corpus) if settings.corpus else None
    task = checks.task()
    large, small = _pair(settings, checks)
    checks.template(large, small)
    checks.layers("read_layer", large)
    checks.layers("write_layer", small)
    if large is not None and small is not None and KV in hand_offs:
        checks.of(check_heads, *_heads(large.shape), *_heads(small.shape))
        checks.refuse(
            f"{large.name} and {small.name} have different vocabularies, so one cannot continue from the other's keys "
            "and values; use a text hand-off",
            when=not large.shares_vocabulary(small),
        )
    if task is None or stops is None or controls is None:
        return None
    n_items = checks.at_most("n_items", len(task.items), f"task {task.name}")
    task = task if n_items == len(task.items) else task.take(n_items, seed=settings.seed)
    if settings.reply_tokens:
        task = replace(task, reply_tokens=settings.reply_tokens)
    if hand_offs and ns:
        checks.of(check_plan, task, hand_offs, ns=ns, stops=stops, controls=controls, seed=settings.seed)
    texts = [item.receiver for item in task.items]
    checks.prompts(large, texts, n_new=task.reply_tokens + 1)  # the small model reads all that it wrote
    checks.prompts(small, texts, n_new=task.reply_tokens)
    checks.weights(large, small)
    prompt = checks.length(large, texts)
    checks.work += [
        f"one reply by {side.name if side is not None else 'a model'} to each of {n_items} items of {task.name}"
        for side in (large, small)
    ]
    n_grid = sum(n > 0 for n in ns) + len(stops)
    checks.work.append(f"hand-offs by {', '.join(hand_offs)} at {n_grid} stops, with {', '.join(controls) or 'none'}")
    n_tokens = task.reply_tokens
    checks.reads(large, texts, n_tokens=n_tokens)
    if small is not large:  # whose replies are saved
        checks.reads(small, texts, n_tokens=n_tokens)
    grid = [n for n in ns if 0 < n < n_tokens] + len(stops) * [max(ns, default=0)]
    for hand_off in hand_offs:
        of_states = hand_off != TEXT
        n_conditions = 1 + sum(
            control in controls for control in (SHUFFLED, *((ZERO, RANDOM) if hand_off in (LATENT, GRAFT) else ()))
        )
        if of_states:
            n_past = prompt if hand_off == KV else 0
            for n in grid:
                checks.reads(small, texts, n_tokens=n_tokens - n, times=n_conditions, shares=False, n_past=n_past)
            continue
        checks.runs(
            small,
            n_items * n_conditions,
            n_new=prompt + max(grid, default=0),
            n_unembedded=prompt + max(grid, default=0),
            at_once=1,
        )
        checks.runs(small, n_items, n_new=prompt + n_tokens, n_unembedded=prompt + n_tokens, at_once=1)  # signals
        n_decoded = n_conditions - (large is small)  # a model that continues its own reply writes what it has written
        for n in {*grid}:
            n_steps = n_decoded * (n_tokens - n)
            n_passes = -(-n_items // ITEMS_AT_ONCE) * n_steps
            checks.runs(small, n_items * n_steps, n_new=1, n_past=prompt + n_tokens / 2, n_passes=n_passes)
    if SELF_CONSISTENCY in controls and large is not None and small is not None:
        checks.reads(
            small, texts, n_tokens=n_tokens, times=_n_votes(large, small, prompt, n_tokens, max(ns, default=0))
        )
    if large is not None and (size := large.size()) is not None:
        n_states = n_items * task.reply_tokens * size.d_model * len({LATENT, GRAFT} & {*hand_offs})
        cached = n_items * (prompt + task.reply_tokens) * checks.cached(large)
        held = checks.itemsize * n_states + cached * (KV in hand_offs)
        checks.holds_on_host("openings with states", held)
        checks.disk += round(held)
    return CascadeInputs(task, ns, stops, hand_offs, controls, corpus)


def _n_votes(large: Side, small: Side, prompt: float | int, n_tokens: int, n: int) -> int:
    """The sampled replies that cost as much as the longest opening and its continuation."""
    sizes = [size for side in (large, small) if (size := side.size()) is not None]
    if len(sizes) < 2:
        return 1
    opening, reply = (
        pass_flops(size, n_new=prompt + each, n_unembedded=each)
        for size, each in zip(sizes, (n, n_tokens), strict=True)
    )
    return max(1, round((opening + reply) / reply))


def _pair(settings: CascadeSettings, checks: Checks) -> tuple[Side | None, Side | None]:
    """Both models; the large one must be named."""
    if settings.sender or checks.job.sender is not None:
        return checks.pair()
    checks.refuse("sender is not given; name the large model")
    receiver = checks.job.receiver
    return None, checks.named(settings.receiver) if receiver is None else Side.in_memory(receiver)


def _heads(shape: ModelShape) -> tuple[dict[str, int | None], str]:
    """What `check_heads` compares, as far as it is known, and the name."""
    return {"n_layers": shape.n_layers, "n_heads": shape.n_key_value_heads, "d_head": shape.d_head}, shape.name
