"""The numbers of docs/similarity.md: what each similarity says of layers of the built-in model, and of no relation.

    python benchmarks/similarity_numbers.py [--corpus FILE] [--draws 10] [--threads 2]

Residual streams after blocks of SmolLM2-135M-Instruct on the text that comes with the package, cut into contexts of
`--tokens` tokens. Every line is a dictionary with its rows, its view and its unit; all go to
benchmarks/similarity_numbers.json. Measures that hold n x n matrices see every `EVERY`-th position of each document.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import latentcomm as lc
from latentcomm import similarity as sim
from latentcomm._core.files import write_json
from latentcomm.alignment import fit_ridge
from latentcomm.reporting.publish import machine
from latentcomm.similarity.hsic import hsic1_from_grams
from latentcomm.tasks.corpus import read_corpus

PAIRS = ((11, 24), (14, 19), (4, 19))
PREDICTED = ((1, 28), (7, 19))
EVERY = 8
BATCH_ROWS = 512

States = dict[int, torch.Tensor]


def captured(corpus: Path | None, n_documents: int, n_tokens: int) -> tuple[States, torch.Tensor, torch.Tensor]:
    """Rows after each block that is asked about, the document of each row and its position there."""
    model = lc.load_model("smollm2-135m-instruct")
    texts = lc.encode(model, list(read_corpus(corpus).documents))
    ids = torch.cat([texts.ids(number) for number in range(len(texts))])[: n_documents * n_tokens]
    contexts = ids[: len(ids) // n_tokens * n_tokens].view(-1, n_tokens)
    sites = {block: lc.Site(block) for block in sorted({block for pair in PAIRS + PREDICTED for block in pair})}
    found = lc.capture(model, lc.Prompts.from_ids(list(contexts)), list(sites.values()))
    documents = torch.arange(len(contexts)).repeat_interleave(n_tokens)
    return {k: found.rows(s) for k, s in sites.items()}, documents, torch.arange(n_tokens).repeat(len(contexts))


def sinks(states: States, documents: torch.Tensor, positions: torch.Tensor, draws: int) -> list[dict[str, Any]]:
    """Biased and debiased CKA with and without sinks, raw and in the default view, with the null of documents."""
    every, past = torch.ones_like(positions, dtype=torch.bool), positions > 0
    lines = []
    for i, j in PAIRS:
        both = [states[i], states[j]]
        clean = sim.residual_view(both, both, positions=positions).keep
        for rows, name in ((every, "all"), (past, "past the first position"), (clean, "no sinks")):
            for scaling in (sim.raw, sim.rms_normalised):
                x, y = (scaling(side[rows]) for side in both)
                pairings = sim.exchanged_documents(documents[rows], positions[rows], draws=draws)
                own = sim.null(sim.SIMILARITIES["debiased_cka"], x, y, pairings, kind="exchanged documents")
                line = {"table": "sinks", "blocks": [i, j], "rows": len(x), "tokens": name, "view": scaling.__name__}
                numbers = {
                    "biased": sim.linear_cka(x, y),
                    "debiased": sim.debiased_cka(x, y),
                    "document_null": own.mean,
                }
                lines.append(line | numbers)
    return lines


def measures(states: States, documents: torch.Tensor, positions: torch.Tensor, draws: int) -> list[dict[str, Any]]:
    """Every similarity of the same few rows of each document, with both nulls."""
    some = positions % EVERY == EVERY // 2
    lines = []
    for i, j in PAIRS:
        view = sim.residual_view([states[i][some]], [states[j][some]], positions=positions[some])
        labels, places = documents[some][view.keep], positions[some][view.keep]
        for name in sim.SIMILARITIES:
            found = sim.compare(
                name, view.x_layers[0], view.y_layers[0], documents=labels, positions=places, draws=draws
            )
            line = {"table": "measures", "blocks": [i, j], "measure": name, "rows": found.rows, "value": found.value}
            lines.append(line | {own.kind: [own.mean, own.quantiles[0.95]] for own in found.nulls})
    return lines


def ratio_of_sums(x: torch.Tensor, y: torch.Tensor, parts: list[torch.Tensor]) -> float:
    """Debiased CKA with its three terms summed over parts of the rows, by their rows."""
    sums = torch.zeros(3, dtype=torch.float64)
    for part in parts:
        K, L = (side[part].double() @ side[part].double().T for side in (x, y))
        sums += len(K) * torch.stack([hsic1_from_grams(K, L), hsic1_from_grams(K, K), hsic1_from_grams(L, L)])
    return float(sums[0] / (sums[1] * sums[2]).sqrt())


def units(states: States, documents: torch.Tensor, positions: torch.Tensor) -> list[dict[str, Any]]:
    """Debiased CKA of the same rows, each time with another unit of sampling."""
    lines = []
    for i, j in PAIRS:
        view = sim.residual_view([states[i]], [states[j]], positions=positions)
        (x,), (y,), labels = view.x_layers, view.y_layers, documents[view.keep]
        each = [(labels == label).nonzero().flatten() for label in labels.unique()]
        shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(BATCH_ROWS)
        ratios = [sim.debiased_cka(x[part], y[part]) for part in shuffled if len(part) == BATCH_ROWS]
        means = [torch.stack([side[part].mean(0) for part in each]) for side in (x, y)]
        line = {"table": "units", "blocks": [i, j], "rows": len(x), "documents": len(each)}
        line |= {"all rows": sim.debiased_cka(x, y), "shuffled batches": ratio_of_sums(x, y, list(shuffled))}
        line |= {"one document a batch": ratio_of_sums(x, y, each), "mean of ratios": sum(ratios) / len(ratios)}
        lines.append(line | {"document means": sim.debiased_cka(*means)})
    return lines


def predicted(states: States, documents: torch.Tensor, positions: torch.Tensor) -> list[dict[str, Any]]:
    """R^2 of predicting one layer from another with folds of documents, with folds of tokens, and in sample."""
    lines = []
    for i, j in PREDICTED:
        view = sim.residual_view([states[i]], [states[j]], positions=positions)
        (x,), (y,), labels = view.x_layers, view.y_layers, documents[view.keep]
        (pairing,) = sim.exchanged_documents(labels, positions[view.keep], draws=1)
        strangers = sim.linear_predictability(x[pairing.rows], y[pairing.partners], groups=labels[pairing.rows])
        line = {"table": "predicted", "blocks": [i, j], "rows": len(x), "in sample": fit_ridge(x, y).r_squared(x, y)}
        line |= {"token folds": sim.linear_predictability(x, y), "document null": strangers}
        lines.append(line | {"document folds": sim.linear_predictability(x, y, groups=labels)})
    return lines


def bias(states: States) -> list[dict[str, Any]]:
    """Biased and debiased CKA of rows that share nothing: Gaussian ones, and a layer's with another's, shuffled."""
    lines = []
    for rows, d_x, d_y in ((8, 32, 48), (100, 576, 576), (2000, 2000, 2000)):
        generator = torch.Generator().manual_seed(rows)
        x, y = torch.randn(rows, d_x, generator=generator), torch.randn(rows, d_y, generator=generator)
        line = {"table": "bias", "of": "independent Gaussian", "rows": rows, "dims": [d_x, d_y]}
        lines.append(line | {"biased": sim.linear_cka(x, y), "debiased": sim.debiased_cka(x, y)})
    for rows in (100, 500, 2000):
        pairing = sim.shuffled_rows(len(states[11]), draws=1)[0]
        ordinary = sim.rms_normalised(states[11]), sim.rms_normalised(states[24])
        x, y = ordinary[0][pairing.rows][1::7][:rows], ordinary[1][pairing.partners][1::7][:rows]
        line = {"table": "bias", "of": "shuffled states of blocks 11 and 24", "rows": rows, "dims": [576, 576]}
        lines.append(line | {"biased": sim.linear_cka(x, y), "debiased": sim.debiased_cka(x, y)})
    return lines


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a text file instead of the text that comes with the package")
    parser.add_argument("--documents", type=int, default=80, help="contexts, at most")
    parser.add_argument("--tokens", type=int, default=256, help="of a context")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    states, documents, positions = captured(options.corpus, options.documents, options.tokens)
    lines = []
    for measured in (
        lambda: sinks(states, documents, positions, options.draws),
        lambda: bias(states),
        lambda: units(states, documents, positions),
        lambda: predicted(states, documents, positions),
        lambda: measures(states, documents, positions, options.draws),
    ):
        found = measured()
        lines += found
        for line in found:
            shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}
            print(shown, flush=True)
    settings = {"documents": int(documents.max()) + 1, "tokens": options.tokens, "draws": options.draws}
    settings |= {"corpus": str(options.corpus.name) if options.corpus else "the text that comes with the package"}
    write_json(options.out, {"settings": settings, "lines": lines, "machine": machine()})


if __name__ == "__main__":
    main()
