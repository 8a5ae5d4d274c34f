"""The check of `DiagnoseSettings` before the first weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentcomm._core.names import check_name
from latentcomm.experiments._demand import Side
from latentcomm.experiments.cost import MULTIPLY_ADD, predictability_flops, ridge_flops
from latentcomm.experiments.diagnosis.alikeness import NULL_ROWS, RIDGE_ROWS, RIDGE_ROWS_A_WIDTH
from latentcomm.experiments.diagnosis.cells import MAP_FOLDS, REFERENCE_ROWS
from latentcomm.experiments.diagnosis.fusions import FUSIONS, Fitted
from latentcomm.experiments.diagnosis.run import check_documents
from latentcomm.experiments.diagnosis.settings import MESSAGES, DiagnoseSettings, Size, layers_in_steps
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import listed
from latentcomm.fusion import Fusion
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
    states = buffers = 0.0
    sides = list(dict.fromkeys(side for side in (sender, receiver) if side is not None))
    in_part = checks.part(sides)
    for side in sides:
        at_once = min(in_part, checks.tokens_at_once(side, n_tokens, n_sites=side.shape.n_layers or 1)) // n_tokens
        checks.runs(side, n_documents, n_new=n_tokens, n_unembedded=0, at_once=at_once)
        width = (side.shape.n_layers or 0) * (side.shape.d_model or 0)
        states += 4 * n_documents * n_tokens * width
        buffers += 4 * min(n_documents * n_tokens, BUFFER_ROWS) * width
        part = min(n_documents * n_tokens, max(n_tokens, in_part)) * width
        checks.holds("states of a pass", checks.itemsize * part)
        checks.holds_on_host("captured states at work", (checks.itemsize + 4) * part)
    if checks.job.out is None:
        checks.holds_on_host("captured states", states)
    checks.holds_on_host("captured states at work", 2 * buffers)  # gathered, and shuffled: after a part was captured
    widths = [side.shape.d_model or 0 for side in sides]
    used = _rows_of_ridge(n_documents * n_tokens, widths) * max(widths, default=0)
    checks.holds_on_host("captured states at work", 2 * 4 * used)  # a source and a target: after the similarity
    matrices = MATRICES_A_FOLD * Size().folds * max(widths, default=0) ** 2
    checks.holds("states of a pass", BYTES_OF_RIDGE * used + 8 * matrices)  # after the passes
    checks.disk += round(states)
    if receiver is not None and receiver.shape.n_layers:
        last = receiver.shape.n_layers - 1
        steps = layers_in_steps(receiver.shape.n_layers, settings.layers)
        writes = [layer for layer in steps if layer != last] or steps
        for number in range(n_prompts):  # each is cut at a random token
            n_past = n_tokens * (number + 0.5) / n_prompts
            n_variants = len(MESSAGES) * len(names or FUSIONS)
            checks.staircase(receiver, n_variants, writes, n_past=n_past, splits=False)
        n_rows = n_documents * n_tokens
        checks.statistics += _statistics(settings, sender, receiver, n_rows, len(writes))
        width, n_fitted = receiver.shape.d_model or 0, min(REFERENCE_ROWS, n_rows / 2)
        references = 8 * len({*steps, last}) * width * (FACTORS * width + n_fitted)  # in float64
        maps = 4 * len(writes) * width * (width + (sender is not receiver) * ((sender and sender.shape.d_model) or 0))
        checks.holds_on_host("references and maps", references + maps)
        checks.disk += round(references + maps)
    if checks.refusals:
        return None
    return DiagnoseInputs({name: FUSIONS[name] for name in names or FUSIONS}, corpus)


def _statistics(
    settings: DiagnoseSettings, sender: Side | None, receiver: Side | None, n_rows: float | int, n_cells: int
) -> float:
    """Operations of the maps of layers (Gram matrices of minibatches, ridge regression) and of the maps of messages."""
    sides = [side for side in (sender, receiver) if side is not None]
    if not sides:
        return 0.0
    size, same = Size(), sides[0] is sides[-1]
    widths, depths = ([getattr(side.shape, name) or 1 for side in sides] for name in ("d_model", "n_layers"))
    mapped = [len(layers_in_steps(depth, size.map_layers)) for depth in depths]
    one = sum(n * width for n, width in zip(mapped, widths, strict=True)) + GRAM_PRODUCTS * mapped[0] * mapped[-1]
    n_drawn = size.draws * min(n_rows, NULL_ROWS) + n_rows * (0.5 if same else 1)
    found = MULTIPLY_ADD * 0.75 * min(BATCH_ROWS, n_rows) * n_drawn * one
    fitted = [len(layers_in_steps(depth, settings.layers)) for depth in depths]
    ways = [(0, -1)] if same else [(0, -1), (-1, 0)]
    for source, target in ways:  # each with its null of permuted documents
        n_used = _rows_of_ridge(n_rows, widths)
        found += (
            2
            * fitted[source]
            * predictability_flops(n_used, widths[source], widths[target], n_targets=fitted[target], folds=size.folds)
        )
    maps = [] if same else [(widths[0], widths[-1])]
    maps.append((min(widths), min(widths)))  # of the fusion that takes what the receiver predicts
    return found + n_cells * sum(ridge_flops(n_rows / 2, *each, folds=MAP_FOLDS) for each in maps)


def _rows_of_ridge(n_rows: float | int, widths: Sequence[int]) -> float | int:
    """Rows that predictability is measured on."""
    return min(n_rows, max(RIDGE_ROWS, RIDGE_ROWS_A_WIDTH * max(widths, default=0)))


FACTORS = 3
"""Matrices of a drift reference: of all states, of clusters, and of the background."""
BYTES_OF_RIDGE = 40
"""Of each number of a layer: a source and a target in float32, both centred in float64, and what centres them."""
MATRICES_A_FOLD = 6
"""Of a width by a width, in float64: products of the rows, two bases, the held-out rows in each, and with a target."""
GRAM_PRODUCTS = 3
"""Products of every pair of Gram matrices: between the sides, and each side with itself."""
