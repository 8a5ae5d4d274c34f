"""Greedy continuation by the small model, each row to its own limit, after prefixes that are read once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.linalg import in_float64
from latentcomm.hooks.decode import Choice, Past, ReceiverInput, Reply, read_prompts, runs, write_replies
from latentcomm.models import Model, not_finite
from latentcomm.models.prompts import Prompts


@dataclass(frozen=True)
class Continuation:
    """The small model's output after a prompt and an opening.

    Attributes:
        ids: its tokens.
        ended: whether a stop token followed; else it was cut at its limit.
    """

    ids: tuple[int, ...]
    ended: bool

    def rest(self, opening: Sequence[int]) -> "Continuation | None":
        """The remainder after an opening that it begins with, or None where it does not."""
        n = len(opening)
        return Continuation(self.ids[n:], self.ended) if self.ids[:n] == tuple(opening) else None


@dataclass(frozen=True, eq=False)
class ReadPrefix:
    """A prompt and an opening that a model has read once, for all rows of tokens that share a prefix with them.

    Attributes:
        model: the model.
        ids: the tokens.
        layers: keys and values of every layer, as `Model.cache_layers` gives them.
        surprise: -log p of each token after the first under the model, in nats.
    """

    model: Model
    ids: tuple[int, ...]
    layers: Sequence[tuple[Tensor, Tensor]]
    surprise: Float[Tensor, " n"]

    @classmethod
    def read(cls, model: Model, ids: Sequence[int]) -> "ReadPrefix":
        """Read ids in one pass.

        Raises:
            ValueError: the logits are NaN or infinite.
        """
        tokens = torch.tensor([list(ids)])
        cache = model.new_cache(1)
        logits = model.forward(tokens, cache=cache)[0, :-1]
        wanted = tokens[0, 1:, None].to(logits.device)
        surprise = torch.cat([
            torch.nn.functional.cross_entropy(wide := in_float64(part), goal[:, 0].to(wide.device), reduction="none")
            for part, goal in zip(logits.split(64), wanted.split(64), strict=True)
        ]) if len(ids) > 1 else torch.zeros(0, dtype=torch.float64)  # fmt: skip
        surprise = surprise.cpu()
        if surprise.isnan().any():
            raise not_finite(model, lambda: model.forward(tokens))
        return cls(model, tuple(ids), model.cache_layers(cache), surprise)

    def shared(self, ids: Sequence[int]) -> int:
        """The length of the longest common prefix of ids and this prefix, in tokens."""
        pairs = zip(self.ids, ids, strict=False)
        return next((n for n, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(self.ids), len(ids)))

    def cache(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the first n positions."""
        axis = 2 if self.model.is_bridge else 1
        return [(keys.narrow(axis, 0, n), values.narrow(axis, 0, n)) for keys, values in self.layers]

    def mean_surprise(self, ids: Sequence[int], n_prompt: int) -> float | None:
        """The mean surprise of the tokens of ids after the prompt that this prefix shares; None if there are none."""
        end = self.shared(ids)
        return float(self.surprise[n_prompt - 1 : end - 1].mean()) if end > n_prompt >= 1 else None


def after_prefixes(prefixes: Sequence[ReadPrefix], rows: Sequence[Sequence[int]]) -> ReceiverInput:
    """Rows of ids, each after the part cached by its prefix; the suffix, at least the last token, is read again."""
    shared = [min(prefix.shared(ids), len(ids) - 1) for prefix, ids in zip(prefixes, rows, strict=True)]
    past = Past(tuple(prefix.cache(n) for prefix, n in zip(prefixes, shared, strict=True)), tuple(shared))
    return ReceiverInput(Prompts.from_ids([list(ids[n:]) for ids, n in zip(rows, shared, strict=True)]), past=past)


def continue_rows(model: Model, given: ReceiverInput, limits: Sequence[int]) -> list[Continuation]:
    """The greedy continuation of each row, to its own limit; rows of all lengths and limits are decoded together.

    Raises:
        ValueError: a limit below 1, or a row and its limit exceed the context.
    """
    if len(limits) != len(given.prompts) or min(limits) < 1:
        raise ValueError(f"the limits are {list(limits)} for {len(given.prompts)} rows; give at least 1 a row")
    for length, limit in zip(given.lengths.tolist(), limits, strict=True):
        if length + limit - 1 > model.n_ctx:
            raise ValueError(
                f"a prompt with its opening has {length} tokens and {limit} more exceed the {model.n_ctx} of "
                f"{model.name}; lower the task's reply_tokens"
            )
    replies: dict[int, Reply] = {}
    for run in runs(model, given, max(limits), read_prompts):
        replies |= write_replies(run, lambda logits, _: Choice(logits.argmax(-1)), limits)
    return [Continuation(tuple(replies[row].ids), replies[row].ended) for row in range(len(limits))]
