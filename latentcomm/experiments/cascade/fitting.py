"""Fit the map of a latent hand-off: from the large model's states to the small model's at the layer written."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.alignment import fit_ridge
from latentcomm.drift import DriftReference, fit_drift_reference
from latentcomm.experiments.cascade.hand_offs import EMBEDDINGS, LatentHandOff
from latentcomm.experiments.cascade.openings import EMBEDDING
from latentcomm.experiments.maps import MAP_FOLDS, map_documents, map_tokens
from latentcomm.fusion import Replace
from latentcomm.hooks.capture import capture
from latentcomm.hooks.paired_text import PairedTokens, pair_tokens
from latentcomm.models import Model, check_pair
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site


def fit_hand_off(
    large: Model,
    small: Model,
    documents: Sequence[str] | None = None,
    *,
    read: int,
    write: int | Literal["embeddings"] = EMBEDDINGS,
    fusion: Callable[..., Any] | None = None,
    max_tokens: int | None = None,
    folds: int = MAP_FOLDS,
    measures_drift: bool = True,
    name: str = "latent",
    seed: int = 0,
) -> LatentHandOff:
    """A latent hand-off whose map was fitted on documents that both models read.

    Where a token of both ends at the same character, ridge regression takes the large model's state after block `read`
    (-1: its embedding) to the small model's state after block `write`, or, for "embeddings", to the row of its
    embedding table of the token that ends there. The penalty is chosen held-out, in folds of whole documents; each
    document's first token, the attention sink, is left out. The documents are the packaged corpus unless given,
    each cut to `max_tokens` tokens (by default 128, or the shortest context if that is less). The small model's
    hand-off to itself is fitted as well, from its block at the same relative depth, for the self control.

    With `measures_drift` a drift reference is fitted to the small model's own states at the layer written, grouped by
    document; for embeddings, to the embedding rows of the distinct tokens of the documents.

    Raises:
        ValueError: a processed model with a raw one, a layer that a model does not have, or documents that
            `paired.pair_tokens`, `alignment.fit_ridge` or `drift.fit_drift_reference` refuse.
    """
    check_pair(large, small)
    fused = Replace() if fusion is None else fusion
    LatentHandOff(read, write, fusion=fused)  # refuses layers that do not exist before anything is read
    if read != EMBEDDING:
        large.check_site(Site(read))
    if isinstance(write, int):
        small.check_site(Site(write))
    texts = map_documents() if documents is None else list(documents)
    limit = map_tokens(large, small) if max_tokens is None else max_tokens
    tokens = pair_tokens(large, small, texts, max_tokens=limit)
    used = tokens.after_first
    written = EMBEDDING if isinstance(write, str) else write
    source = _states(large, tokens.sender, read, tokens.document, tokens.sender_position)[used]
    target = _states(small, tokens.receiver, written, tokens.document, tokens.receiver_position)
    groups = tokens.document[used]
    alignment = fit_ridge(source, target[used], folds=folds, groups=groups, seed=seed)
    reference = _reference(small, tokens, written, target, seed) if measures_drift else None
    depth = EMBEDDING if read == EMBEDDING else max(0, round((read + 1) * small.n_layers / large.n_layers) - 1)
    self_pairs = pair_tokens(small, small, texts, max_tokens=limit)
    self_used = self_pairs.after_first
    own = [
        _states(small, self_pairs.sender, layer, self_pairs.document, self_pairs.sender_position)
        for layer in (depth, written)
    ]
    self_map = fit_ridge(
        own[0][self_used], own[1][self_used], folds=folds, groups=self_pairs.document[self_used], seed=seed
    )
    itself = LatentHandOff(depth, write, self_map, fused, reference, name=name)
    return LatentHandOff(read, write, alignment, fused, reference, itself, name)


def _states(
    model: Model,
    prompts: Prompts,
    layer: int,
    document: Int[Tensor, " row"],
    position: Int[Tensor, " row"],
) -> Float[Tensor, "row d_model"]:
    """The states after a block, or the rows of the embedding table, at these tokens of these prompts, on the CPU."""
    if layer == EMBEDDING:
        return model.embedding_table[prompts.tokens[document, position].to(model.device)].float().cpu()
    return capture(model, prompts, [Site(layer)]).values[Site(layer)][document, position].float()


def _reference(
    small: Model, tokens: PairedTokens, layer: int, states: Float[Tensor, "row d_model"], seed: int
) -> DriftReference:
    """The drift reference of the small model's own states at the layer written."""
    if layer != EMBEDDING:
        return fit_drift_reference(
            states, seed=seed, site=Site(layer), model=small.name, groups=tokens.document,
            positions=tokens.receiver_position,
        )  # fmt: skip
    ids = tokens.receiver.tokens[tokens.document, tokens.receiver_position].unique()
    return fit_drift_reference(small.embedding_table[ids.to(small.device)].float().cpu(), seed=seed, model=small.name)
