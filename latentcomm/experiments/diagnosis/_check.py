"""The check of `DiagnoseSettings` before the first weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass

from latentcomm._core.names import check_name
from latentcomm.experiments.diagnosis.fusions import FUSIONS, Fitted
from latentcomm.experiments.diagnosis.run import check_documents
from latentcomm.experiments.diagnosis.settings import DiagnoseSettings
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import listed
from latentcomm.fusion import Fusion
from latentcomm.hooks.paired_text import TOKENS_PER_PART
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
    states = 0.0
    for side in dict.fromkeys(side for side in (sender, receiver) if side is not None):
        checks.runs(side, n_documents, n_new=n_tokens, n_unembedded=0)
        width = (side.shape.n_layers or 0) * (side.shape.d_model or 0)
        states += 4 * n_documents * n_tokens * width
        checks.holds("states of a pass", checks.itemsize * min(n_documents * n_tokens, TOKENS_PER_PART) * width)
    checks.holds_on_host("captured states, and those without sinks", 2 * states)  # both at once, in float32
    checks.disk += round(states)
    n_grafts = n_prompts * settings.layers * 3 * len(names or FUSIONS)
    checks.runs(receiver, n_grafts, n_new=n_tokens / 2)
    if checks.refusals:
        return None
    return DiagnoseInputs({name: FUSIONS[name] for name in names or FUSIONS}, corpus)
