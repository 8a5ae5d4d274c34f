"""How the small model goes on: greedily, each row to a limit of its own, and behind prefixes that were read once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm.hooks.decode import Past, ReceiverInput, Run, read_prompts, runs
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts


@dataclass(frozen=True)
class Continuation:
    """What the small model wrote.

    Attributes:
        ids: its tokens.
        ended: whether it then ended by itself; else it was cut at its limit.
    """

    ids: tuple[int, ...]
    ended: bool

    def rest(self, opening: Sequence[int]) -> "Continuation | None":
        """What is left of it behind an opening that it writes itself, or None where it does not begin with that."""
        n = len(opening)
        return Continuation(self.ids[n:], self.ended) if self.ids[:n] == tuple(opening) else None


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prompt and an opening that a model has read once, for all that begins with them.

    Attributes:
        ids: what was read.
        layers: keys and values of every layer, as `Model.cache_layers` gives them.
        surprise: -log p of each token after the first under the model, in nats.
    """

    model: Model
    ids: tuple[int, ...]
    layers: Sequence[tuple[Tensor, Tensor]]
    surprise: Float[Tensor, " n"]

    @classmethod
    def read(cls, model: Model, ids: Sequence[int]) -> "Prefix":
        """Read ids in one pass."""
        tokens = torch.tensor([list(ids)])
        cache = model.new_cache(1)
        logits = model.forward(tokens, cache=cache)[0, :-1]
        wanted = tokens[0, 1:, None].to(logits.device)
        surprise = torch.cat([
            torch.nn.functional.cross_entropy(part.double(), goal[:, 0], reduction="none")
            for part, goal in zip(logits.split(64), wanted.split(64), strict=True)
        ]) if len(ids) > 1 else torch.zeros(0, dtype=torch.float64)  # fmt: skip
        return cls(model, tuple(ids), model.cache_layers(cache), surprise.cpu())

    def shared(self, ids: Sequence[int]) -> int:
        """How many tokens ids and this prefix begin with alike."""
        both = zip(self.ids, ids, strict=False)
        return next((n for n, (mine, theirs) in enumerate(both) if mine != theirs), min(len(self.ids), len(ids)))

    def cache(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the first n positions."""
        along = 2 if self.model.is_bridge else 1
        return [(keys.narrow(along, 0, n), values.narrow(along, 0, n)) for keys, values in self.layers]

    def mean_surprise(self, ids: Sequence[int], n_prompt: int) -> float | None:
        """The mean surprise of the tokens of ids behind the prompt, as far as they are this prefix's; None of none."""
        end = self.shared(ids)
        return float(self.surprise[n_prompt - 1 : end - 1].mean()) if end > n_prompt >= 1 else None


def behind(prefixes: Sequence[Prefix], rows: Sequence[Sequence[int]]) -> ReceiverInput:
    """Rows of ids, each behind what its prefix has read of it; the rest, at least the last token, is read again."""
    shared = [min(prefix.shared(ids), len(ids) - 1) for prefix, ids in zip(prefixes, rows, strict=True)]
    past = Past(tuple(prefix.cache(n) for prefix, n in zip(prefixes, shared, strict=True)), tuple(shared))
    return ReceiverInput(Prompts.from_ids([list(ids[n:]) for ids, n in zip(rows, shared, strict=True)]), past=past)


def go_on(model: Model, given: ReceiverInput, limits: Sequence[int]) -> list[Continuation]:
    """The greedy continuation of each row, to a limit of its own; rows of all lengths and limits go on together.

    Raises:
        ValueError: a limit below 1, or a row and its limit exceed the context.
    """
    if len(limits) != len(given.prompts) or min(limits) < 1:
        raise ValueError(f"the limits are {list(limits)} for {len(given.prompts)} rows; give at least 1 a row")
    for length, limit in zip(given.lengths.tolist(), limits, strict=True):
        if length + limit - 1 > model.n_ctx:
            raise ValueError(
                f"a prompt with its opening has {length} tokens and {limit} more exceed the {model.n_ctx} of "
                f"{model.name}; ask for shorter replies"
            )
    found: list[Continuation | None] = [None] * len(limits)
    for run in runs(model, given, max(limits), read_prompts):
        for row, said in zip(run.rows, _each(model, run, [limits[row] for row in run.rows]), strict=True):
            found[row] = said
    return [each for each in found if each is not None]


def _each(model: Model, run: Run, limits: Sequence[int]) -> Iterator[Continuation]:
    ids: list[list[int]] = [[] for _ in limits]
    ended, live, logits = [False] * len(limits), [True] * len(limits), run.logits
    while True:
        tokens = logits.argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            if not live[row]:
                continue
            ended[row] = token in model.stop_ids
            if not ended[row]:
                ids[row].append(token)
            live[row] = not ended[row] and len(ids[row]) < limits[row]
        if not any(live):
            break
        logits = run.step(tokens)
    return (Continuation(tuple(each), end) for each, end in zip(ids, ended, strict=True))
