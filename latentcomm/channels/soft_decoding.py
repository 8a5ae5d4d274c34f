"""Soft decoding: a reply of averaged embeddings, step by step; and a slot for vectors inside a prompt's template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.linalg import in_float64
from latentcomm.hooks.decode import Choice, Read, Reply, runs, write_replies
from latentcomm.hooks.receiver_input import EMBEDDED, ReceiverInput, SoftTokens
from latentcomm.models import Hook, Model, around_gap, encode, record_products
from latentcomm.models.chat import AnyTemplate
from latentcomm.models.prompts import Prompts


@dataclass(frozen=True, eq=False)
class SoftReply:
    """A reply in embeddings.

    Attributes:
        vectors: the same steps in each target model's embedding table.
        ids: for each step the token whose row in the decoding model's own table is nearest by cosine.
        entropy: for each step the entropy of the next-token distribution at temperature 1, in nats.
    """

    vectors: tuple[Float[Tensor, "step _"], ...]
    ids: Int[Tensor, " step"]
    entropy: Float[Tensor, " step"]


def decode_softly(
    model: Model,
    given: ReceiverInput,
    *,
    max_new_tokens: int,
    temperature: float | int,
    entropy_threshold: float | int | None = None,
    readers: Sequence[Model] = (),
) -> list[SoftReply]:
    """A soft reply to each prompt: the next input is sum_v softmax(logits / T)_v E_v, without sampling.

    At T = 0 that is the row of the likeliest token, at T = inf the mean of the table. With an entropy threshold it is
    the row of the likeliest token wherever the distribution's entropy (at T = 1) does not exceed it. A reply ends
    before the step whose nearest token, by cosine, ends replies. `vectors` of a reply hold the same averages in the
    tables of `readers`, in order; all models must share one vocabulary (`check_vocabulary`). Rows are decoded
    together, on a cache (`hooks.decode.runs`).

    Source: Pham et al. 2023, arXiv:2310.06272.

    Raises:
        ValueError: an option out of range, or prompt and reply exceed the context.
    """
    if max_new_tokens < 1 or not temperature >= 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 1 and temperature {temperature} at least 0")
    if entropy_threshold is not None and not entropy_threshold >= 0:
        raise ValueError(f"entropy_threshold is {entropy_threshold}; give nats, at least 0, or None")
    longest = int(given.lengths.max())
    if longest + max_new_tokens - 1 > model.n_ctx:
        raise ValueError(
            f"{longest} prompt tokens and {max_new_tokens} new ones exceed the {model.n_ctx} of {model.name}"
        )
    own = table(model)
    tables = [table(reader)[: len(own)] for reader in readers]
    n_shared = min(len(each) for each in (own, *tables))
    rule = _Rule(temperature, entropy_threshold, own[:n_shared], [each[:n_shared] for each in tables])
    replies: dict[int, SoftReply] = {}

    def read(decoder: Model, part: ReceiverInput) -> Read:
        cache = decoder.new_cache(len(part.prompts))
        hooks: list[Hook] = [_as_in_the_table(decoder, rule.own, part.prompts.tokens[:, -1])]
        hooks += [] if part.soft is None else [part.soft.hook([0])]
        return decoder.forward(part.prompts.tokens, hooks=hooks, cache=cache, last_only=True)[:, -1], cache, []

    def choose(logits: Tensor, rows: Sequence[int]) -> Choice:
        own, others, ids, entropy = rule.step(logits)
        record_products(model, rule.multiply_adds(len(rows)))
        return Choice(ids, own, {"entropy": entropy} | {str(number): other for number, other in enumerate(others)})

    for run in runs(model, given, max_new_tokens, read):
        for row, reply in write_replies(run, choose, [max_new_tokens] * len(given.prompts)).items():
            replies[row] = _soft(reply, rule)
    return [replies[row] for row in range(len(given.prompts))]


def table(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """The embedding table, a row a token, on the scale of the activations at `hook_embed`.

    Raises:
        ValueError: the model is processed: folding changes the table.
    """
    if model.processed:
        raise ValueError(
            f"{model.name} has processed weights (folded or centred), which change its embedding table; load it raw"
        )
    return model.embedding_table


def nearest_tokens(model: Model, vectors: Float[Tensor, "step d_model"]) -> Int[Tensor, " step"]:
    """The token whose row of the model's embedding table has the largest cosine with each vector."""
    rows = table(model)
    return _nearest(vectors.to(rows.device, rows.dtype), rows, _inverse_norms(rows))


def check_vocabulary(a: Model, b: Model) -> None:
    """Refuse two models whose token ids mean different things.

    Raises:
        ValueError: their tokenizers' vocabularies differ, or a token of them has no row in one of the tables.
    """
    if a is b:
        return
    one, other = a.require_tokenizer().get_vocab(), b.require_tokenizer().get_vocab()
    if one != other:
        odd = min(one.items() ^ other.items(), key=lambda entry: (entry[1], entry[0]))
        raise ValueError(
            f"{a.name} and {b.name} have different vocabularies ({len(one)} and {len(other)} tokens; {odd[0]!r} is not "
            f"token {odd[1]} of both), so averages of embeddings cannot pass between them; take models that share a "
            "tokenizer, or send text"
        )
    for model in (a, b):
        if max(one.values()) >= model.hooked.cfg.d_vocab:
            raise ValueError(f"{model.name} has {model.hooked.cfg.d_vocab} embeddings for {max(one.values()) + 1} ids")


def with_slot(
    model: Model,
    texts: Sequence[str],
    vectors: Sequence[Float[Tensor, "_ d_model"]],
    *,
    template: AnyTemplate,
    between: str = "\n",
) -> ReceiverInput:
    """Prompts that begin, inside the template and after any BOS token, with vectors, then `between` and the text.

    A row without vectors gets its text alone, as `encode` makes it. The text's tokens are those of `between` and the
    text by themselves: they do not merge with the tokens that the vectors replace.

    Raises:
        ValueError: as `latentcomm.models.encode`, of which this is the counterpart.
    """
    rows: list[list[int]] = []
    positions: list[Tensor] = []
    for text, soft in zip(texts, vectors, strict=True):
        if len(soft) == 0:
            rows.append(encode(model, [text], template=template).ids(0).tolist())
            positions.append(torch.arange(0))
            continue
        if not (between + text).strip():
            raise ValueError("a prompt is empty; give every prompt at least one word")
        before, after = around_gap(model, "", between + text, template=template)
        rows.append([*before, *[after[0]] * len(soft), *after])
        positions.append(torch.arange(len(before), len(before) + len(soft)))
        if len(rows[-1]) > model.n_ctx:
            raise ValueError(
                f"a prompt with its message has {len(rows[-1])} tokens and {model.name} reads {model.n_ctx} at most"
            )
    soft = SoftTokens(tuple(positions), tuple(vectors)) if any(map(len, positions)) else None
    return ReceiverInput(Prompts.from_ids(rows), soft=soft)


@dataclass(frozen=True, eq=False)
class _Rule:
    """The rule that computes the next embedding from logits."""

    temperature: float | int
    entropy_threshold: float | int | None
    own: Float[Tensor, "n_shared d_model"]
    tables: Sequence[Tensor]

    @cached_property
    def inverse_norms(self) -> Float[Tensor, " n_shared"]:
        """See `_nearest`."""
        return _inverse_norms(self.own)

    def multiply_adds(self, n_rows: int) -> int:
        """Of the averages in all tables, and of the search for the nearest row, as they are computed at every step."""
        if self.temperature == 0:
            return 0
        return n_rows * (2 * self.own.numel() + sum(each.numel() for each in self.tables))

    def step(self, logits: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Of logits [batch d_vocab]: the model's next embeddings, each target's, nearest tokens, entropies."""
        logits = in_float64(logits[:, : len(self.own)])
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).nan_to_num().sum(-1)  # a token of probability 0 adds nothing
        best = logits.argmax(-1)
        hard = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        if self.temperature > 0:
            threshold = -math.inf if self.entropy_threshold is None else self.entropy_threshold
            hard = ~(entropy > threshold)
        weights = None if hard.all() else (logits / self.temperature).softmax(-1)

        def mixed(rows: Tensor) -> Tensor:
            taken = rows[best.to(rows.device)]
            if weights is None:
                return taken
            return torch.where(hard[:, None].to(rows.device), taken, weights.to(rows.device, rows.dtype) @ rows)

        own = mixed(self.own)
        ids = (
            best
            if weights is None
            else torch.where(hard, best, _nearest(own, self.own, self.inverse_norms).to(best.device))
        )
        return own, [mixed(each) for each in self.tables], ids, entropy


def _soft(reply: Reply, rule: _Rule) -> SoftReply:
    """A reply with the averages in the tables of all readers."""
    vectors = [
        torch.stack(reply.values[str(number)]) if reply.ids else rows.new_zeros(0, rows.shape[1])
        for number, rows in enumerate(rule.tables)
    ]
    entropy = torch.tensor([float(each) for each in reply.values.get("entropy", ())], dtype=torch.float64)
    return SoftReply(tuple(vectors), torch.tensor(reply.ids, dtype=torch.long), entropy)


def _as_in_the_table(model: Model, rows: Tensor, last: Tensor) -> Hook:
    """A hook that refuses a model whose hook_embed does not hold rows of its table."""

    def check(value: Tensor, hook: Any) -> None:
        if not torch.allclose(value[:, -1], rows[last.to(value.device)], rtol=1e-3):
            raise ValueError(f"the activation at {EMBEDDED} of {model.name} is no row of its embedding table")

    return EMBEDDED, check


def _inverse_norms(rows: Tensor) -> Tensor:
    """1 over each row's norm; a row of zeros has no direction and is never the nearest."""
    norms = in_float64(rows).norm(dim=-1)
    return torch.where(norms > 0, 1 / norms, -math.inf).to(rows)


def _nearest(vectors: Tensor, rows: Tensor, inverse_norms: Tensor) -> Tensor:
    """The row of largest cosine, which does not depend on the vector's norm."""
    scores = (vectors @ rows.T) * inverse_norms
    return scores.masked_fill(torch.isinf(inverse_norms), -math.inf).argmax(-1)
