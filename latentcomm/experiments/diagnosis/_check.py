"""The check of `DiagnoseSettings` before the first weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass

from latentcomm._core.names import check_name
from latentcomm.experiments.cost import MULTIPLY_ADD
from latentcomm.experiments.diagnosis.alikeness import NULL_ROWS, RIDGE_ROWS, RIDGE_ROWS_A_WIDTH
from latentcomm.experiments.diagnosis.fusions import FUSIONS, Fitted
from latentcomm.experiments.diagnosis.run import check_documents
from latentcomm.experiments.diagnosis.settings import MESSAGES, DiagnoseSettings, Size
from latentcomm.experiments.preflight import Checks, Side
from latentcomm.experiments.settings import listed
from latentcomm.fusion import Fusion
from latentcomm.hooks.paired_text import TOKENS_PER_PART
from latentcomm.similarity.cka import BATCH_ROWS
from latentcomm.similarity.layer_maps.minibatch import BUFFER_ROWS
from latentcomm.tasks.corpus import Corpus, read_corpus

__all__ = ["DiagnoseInputs", "check_diagnose"]


@dataclass(frozen=True, eq=False)
class DiagnoseInputs:
    """What a diagnosis runs with, besides its settings and its models.

    Attributes:
        fusions: by name.
        corpus: all of its documents.
    """

    fusions: Mapping[str, Fusion | Fitted]
    corpus: Corpus


def check_diagnose(settings: DiagnoseSettings, checks: Checks) -> DiagnoseInputs | None:
    """What the diagnosis runs with; None where something is refused."""
    names = [name.replace("-", "_") for name in listed(settings.fusion)]
    for name in dict.fromkeys(names):
        checks.of(check_name, "fusion", name, FUSIONS)
        checks.refuse(f"fusion names {name} twice; name each once", when=names.count(name) > 1)
    sender, receiver = checks.pair()
    checks.widths(settings.alignment, sender, receiver)
    contexts = [side.shape.n_ctx for side in (sender, receiver) if side is not None and side.shape.n_ctx is not None]
    most = settings.tokens
    if contexts:
        most = checks.at_most("tokens", min(contexts), "the shorter context of both models", "tokens")
    corpus = checks.of(read_corpus, settings.corpus or None)
    if corpus is None:
        return None
    n_documents = checks.at_most("documents", len(corpus.documents), corpus.name, "documents")
    checks.of(check_documents, corpus.name, len(corpus.documents))
    checks.weights(sender, receiver)
    checks.work.append(f"a diagnosis on {n_documents} documents of {corpus.name}, {most} tokens each")
    n_held_out = n_documents // 2
    n_prompts = checks.at_most("prompts", n_held_out * most, "the held-out half", "tokens to graft at")
    checks.work.append(
        f"grafts by {', '.join(names or FUSIONS)} into {n_prompts} prompts of {n_held_out} held-out documents"
    )
    if n_prompts > n_held_out:
        checks.notes.append(
            f"{n_prompts} prompts are of {n_held_out} held-out documents: those of one document share its begin, and "
            "are no independent texts"
        )
    n_tokens = min(most, checks.length(receiver, corpus.documents))
    states = buffers = in_maps = 0.0
    for side in dict.fromkeys(side for side in (sender, receiver) if side is not None):
        checks.runs(side, n_documents, n_new=n_tokens, n_unembedded=0)
        width = (side.shape.n_layers or 0) * (side.shape.d_model or 0)
        states += 4 * n_documents * n_tokens * width
        buffers += 4 * min(n_documents * n_tokens, BUFFER_ROWS) * width
        in_maps += (
            4 * n_documents * n_tokens * min(settings.layers, side.shape.n_layers or 0) * (side.shape.d_model or 0)
        )
        part = min(n_documents * n_tokens, TOKENS_PER_PART) * width
        checks.holds("states of a pass", checks.itemsize * part)
        checks.holds_on_host("captured states at work", (checks.itemsize + 4) * part)
    if checks.job.out is None:
        checks.holds_on_host("captured states", states)
    checks.holds_on_host("captured states at work", 2 * buffers)  # gathered, and shuffled: after a part was captured
    checks.holds_on_host("captured states at work", in_maps)  # of equal norms, in float32: after the similarity
    checks.disk += round(states)
    n_variants = settings.layers * len(MESSAGES) * len(names or FUSIONS)
    checks.runs(receiver, n_prompts, n_new=n_tokens / 2, at_once=1)
    checks.runs(receiver, n_prompts * n_variants / 2, n_new=1, n_past=n_tokens / 2, at_once=n_variants / 2)
    checks.flops += MULTIPLY_ADD * _statistics(settings, sender, receiver, n_documents * n_tokens)
    if checks.refusals:
        return None
    return DiagnoseInputs({name: FUSIONS[name] for name in names or FUSIONS}, corpus)


def _statistics(settings: DiagnoseSettings, sender: Side | None, receiver: Side | None, n_rows: float | int) -> float:
    """Multiply-adds of the maps of layers: Gram matrices of minibatches, and the products of ridge regression."""
    shapes = [side.shape for side in dict.fromkeys((sender, receiver)) if side is not None]
    n_grams = n_rows + Size.draws * min(n_rows, NULL_ROWS)
    found = 0.0
    for shape in shapes:
        n_layers, d_model = shape.n_layers or 0, shape.d_model or 0
        found += GRAMS * n_grams * BATCH_ROWS * n_layers * d_model
        n_fitted = min(settings.layers, n_layers)
        n_products = 2 * n_fitted * (1 + n_fitted)  # each layer from each, and the same of permuted documents
        found += n_products * min(n_rows, max(RIDGE_ROWS, RIDGE_ROWS_A_WIDTH * d_model)) * d_model**2
    return found


GRAMS = 3
"""Gram matrices of a layer and minibatch: of its first half, its second, and the first with the second."""
