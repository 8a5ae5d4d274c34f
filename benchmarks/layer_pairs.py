"""All pairs of layers of the built-in model with itself, beside the peers, in one run: CKA maps and held-out ridge.

    pip install pytorch-cka==1.1.3 torch-cka==0.21 ckatorch==1.0.3
    python benchmarks/layer_pairs.py [--corpus FILE] [--rows 20480] [--threads 2] [--exact] [--out FILE]

Prints, for each method, its seconds, its peak memory above the activations, its ratio to ours and the largest
difference from ours, and writes it all to a file. The rows are the states of a text in the default view: sinks left
out, each row over its RMS. The peers take models: each is given one whose layers hand out the captured rows, in the
same shuffled batches as ours. Ours and the fastest peer run `--repeats` times in turn, and the median counts. ckatorch
keeps its last batch alone, so a few batches are timed and scaled to all; its map is that of its last batch. Ridge is
timed on `--sources` layers against all layers, 5 document folds and 13 penalties, and beside it one pair by one
scikit-learn refit for each fold and penalty. A method runs in a process of its own, so that its peak memory (Linux:
the high-water mark of its pages, reset before it starts) is its own.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from own_process import measure, timed

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm.reporting.publish import machine
from latentcomm.similarity import LayerPairs, MinibatchPairs, document_fold, residual_view
from latentcomm.tasks.corpus import read_corpus

BATCH_ROWS = 512
BATCHES_OF_CKATORCH = 4
DOCUMENT_TOKENS = 257
FOLDS = 5
PENALTIES = [10.0**exponent for exponent in range(4, -9, -1)]
PEERS = ("pytorch-cka", "torch-cka", "ckatorch", "scikit-learn")


class Handed(torch.nn.Module):
    """A model whose layer l hands out the captured rows of layer l, for peers that hook models."""

    def __init__(self, layers: torch.Tensor, *, leading_axis: bool = False) -> None:
        super().__init__()
        self.layers, self.leading_axis = layers, leading_axis
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in layers)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Run every layer's hook on these rows."""
        for block, layer in zip(self.blocks, self.layers, strict=True):
            block(layer[rows][None] if self.leading_axis else layer[rows])
        return rows


def names(layers: torch.Tensor) -> list[str]:
    return [f"blocks.{layer}" for layer in range(len(layers))]


def captured(corpus: Path | None, most_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole batches of rows of all layers in the default view, [layer row d_model], and the document of each."""
    model = lc.load_model("smollm2-135m-instruct")
    sites = [lc.Site(0, "resid_pre"), *(lc.Site(layer) for layer in range(model.n_layers))]
    passages = lc.encode(model, list(read_corpus(corpus).documents))
    ids = torch.cat([passages.ids(number) for number in range(len(passages))])
    n_documents = min(len(ids) // DOCUMENT_TOKENS, most_rows // (DOCUMENT_TOKENS - 1) + 2)  # two more, for the sinks
    prompts = lc.Prompts.from_ids(list(ids[: n_documents * DOCUMENT_TOKENS].view(n_documents, DOCUMENT_TOKENS)))
    found = lc.capture(model, prompts, sites)
    layers = [found.rows(site) for site in sites]
    view = residual_view(layers, layers, positions=torch.arange(DOCUMENT_TOKENS).repeat(n_documents))
    print(view.description, flush=True)
    n_rows = min(most_rows, len(view.x_layers[0])) // BATCH_ROWS * BATCH_ROWS
    documents = torch.arange(n_documents).repeat_interleave(DOCUMENT_TOKENS)[view.keep]
    return torch.stack([layer[:n_rows] for layer in view.x_layers]), documents[:n_rows]


def batches(n_rows: int) -> list[torch.Tensor]:
    """Shuffled batches of equal size; what is left over at the end is left out for everybody."""
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0))
    return list(order[: n_rows // BATCH_ROWS * BATCH_ROWS].split(BATCH_ROWS))


def ours_minibatch(rows: torch.Tensor, _documents: torch.Tensor) -> torch.Tensor:
    pairs = MinibatchPairs(batch_rows=BATCH_ROWS, buffer_rows=BATCH_ROWS)
    for batch in batches(rows.shape[1]):
        part = rows[:, batch]
        pairs.update(part, part)
    return pairs.debiased_cka()


def pytorch_cka(rows: torch.Tensor, _documents: torch.Tensor) -> torch.Tensor:
    from cka import compute_cka

    model = Handed(rows)
    loader = torch.utils.data.DataLoader(torch.cat(batches(rows.shape[1])), batch_size=BATCH_ROWS)
    return compute_cka(model, model, loader, layers=names(rows), device="cpu", progress=False)[0]


def torch_cka(rows: torch.Tensor, _documents: torch.Tensor) -> torch.Tensor:
    from torch_cka import CKA

    data = torch.utils.data.TensorDataset(torch.cat(batches(rows.shape[1])))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH_ROWS)
    compared = CKA(Handed(rows), Handed(rows), "one", "other", names(rows), names(rows), device="cpu")
    compared.compare(loader)
    return compared.export()["CKA"]


def ckatorch(rows: torch.Tensor, _documents: torch.Tensor) -> torch.Tensor:
    """The first few batches, of which it keeps the last."""
    from ckatorch import CKA

    data = torch.utils.data.TensorDataset(torch.cat(batches(rows.shape[1])[:BATCHES_OF_CKATORCH]))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH_ROWS)
    model = Handed(rows, leading_axis=True)
    return CKA(model, model, names(rows), device="cpu")(loader, epochs=1)


def ours_exact(rows: torch.Tensor, _documents: torch.Tensor) -> torch.Tensor:
    return LayerPairs(folds=1, max_bytes=2**36).update(rows, rows).debiased_cka()


def source_layers(n_layers: int, n_sources: int) -> list[int]:
    """Layers spread over the depth, none of them the last."""
    return np.linspace(1, n_layers - 2, n_sources).round().astype(int).tolist()


def ours_ridge(rows: torch.Tensor, documents: torch.Tensor, n_sources: int) -> torch.Tensor:
    sources = rows[source_layers(len(rows), n_sources)]
    return LayerPairs(folds=FOLDS, max_bytes=2**36).update(sources, rows, groups=documents).ridge_curve(PENALTIES)


def sklearn_refits(rows: torch.Tensor, documents: torch.Tensor, n_sources: int) -> torch.Tensor:
    """The first source and the last layer alone, one refit a fold and penalty."""
    from sklearn.linear_model import Ridge

    x, y = (rows[layer].double().numpy() for layer in (source_layers(len(rows), n_sources)[0], -1))
    fold = np.array([document_fold(label, folds=FOLDS) for label in documents.tolist()])
    sse, tss = np.zeros(len(PENALTIES)), 0.0
    for held_out in range(FOLDS):
        training, test = fold != held_out, fold == held_out
        spread = ((x[training] - x[training].mean(0)) ** 2).sum() / x.shape[1]
        tss += ((y[test] - y[training].mean(0)) ** 2).sum()
        for number, penalty in enumerate(PENALTIES):
            fitted = Ridge(alpha=penalty * spread).fit(x[training], y[training])
            sse[number] += ((y[test] - fitted.predict(x[test])) ** 2).sum()
    return torch.tensor(1 - sse / tss)


def _apart(method: Callable[..., torch.Tensor], folder: str, threads: int, *more: Any) -> None:
    """Run one method on the stored rows; store its seconds, its peak memory above them, and what it found."""
    torch.set_num_threads(threads)
    rows, documents = torch.load(f"{folder}/rows.pt")
    method(rows[:3, :2560, :16].contiguous(), torch.arange(2560) % 40, *more)  # imports and first calls
    measure(method, folder, rows, documents, *more)


def compared(folder: str, options: argparse.Namespace, n_batches: int) -> list[dict[str, Any]]:
    """One line a method, ours first of its kind, as measured on the stored rows."""
    runs = [
        [timed(_apart, method, folder, options.threads) for method in (ours_minibatch, pytorch_cka)]
        for _ in range(options.repeats)
    ]
    own_runs, fast_runs = zip(*runs, strict=True)
    seconds, own = statistics.median(run[0] for run in own_runs), own_runs[0][2]
    table = [{"map": "ours_minibatch", "seconds": seconds, "peak_mb": own_runs[-1][1]}]

    def add(name: str, its_seconds: float, peak: float | None, found: torch.Tensor) -> None:
        difference = float((found.double() - own).abs().max())
        line = {"map": name, "seconds": its_seconds, "peak_mb": peak, "times_ours": its_seconds / seconds}
        table.append(line | {"largest_difference": difference})
        print(table[-1], flush=True)

    add("pytorch_cka", statistics.median(run[0] for run in fast_runs), *fast_runs[-1][1:])
    add("torch_cka", *timed(_apart, torch_cka, folder, options.threads))
    few_seconds, peak, found = timed(_apart, ckatorch, folder, options.threads)
    add("ckatorch", few_seconds * n_batches / BATCHES_OF_CKATORCH, peak, found)
    table[-1]["scaled_from_batches"] = BATCHES_OF_CKATORCH
    if options.exact:
        add("ours_exact", *timed(_apart, ours_exact, folder, options.threads))
    ridge_seconds, ridge_peak, curves = timed(_apart, ours_ridge, folder, options.threads, options.sources)
    a_pair = ridge_seconds / (curves.shape[0] * curves.shape[1])
    table.append(
        {"ridge": "ours", "seconds_a_pair": a_pair, "pairs": curves.shape[0] * curves.shape[1], "peak_mb": ridge_peak}
    )
    refit_seconds, refit_peak, curve = timed(_apart, sklearn_refits, folder, options.threads, options.sources)
    line = {"ridge": "sklearn_refits", "seconds_a_pair": refit_seconds, "pairs": 1, "peak_mb": refit_peak}
    line |= {"times_ours": refit_seconds / a_pair, "largest_difference": float((curves[0, -1] - curve).abs().max())}
    return [*table, line]


def main() -> None:
    """Time everything on the same rows and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a text file instead of the text that comes with the package")
    parser.add_argument("--random", action="store_true", help="random rows instead of a model's states")
    parser.add_argument("--rows", type=int, default=20480, help="at most; the text may have fewer")
    parser.add_argument("--layers", type=int, default=31, help="of the random rows")
    parser.add_argument("--width", type=int, default=576, help="of the random rows")
    parser.add_argument("--sources", type=int, default=4, help="layers that ridge predicts all layers from")
    parser.add_argument("--repeats", type=int, default=3, help="of ours and the fastest peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true", help="also the exact map, a minute or more")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if not options.random:
        rows, documents = captured(options.corpus, options.rows)
    else:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(options.layers, options.rows, options.width, generator=generator).cumsum(0)
        documents = torch.arange(options.rows) // (DOCUMENT_TOKENS - 1)
    sizes = {"layers": len(rows), "rows": rows.shape[1], "width": rows.shape[2], "random": options.random}
    sizes |= {"corpus": options.corpus.name if options.corpus else None}
    sizes |= {"batch_rows": BATCH_ROWS, "folds": FOLDS, "penalties": len(PENALTIES), "repeats": options.repeats}
    print(f"{len(rows)} x {len(rows)} layers, {rows.shape[1]} rows, {rows.shape[2]} wide", flush=True)
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        torch.save((rows, documents), f"{folder}/rows.pt")
        n_batches = rows.shape[1] // BATCH_ROWS
        del rows
        table = compared(folder, options, n_batches)
    for line in table:
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in line.items()}
        print(", ".join(f"{key} {value}" for key, value in shown.items()))
    where = machine() | {"threads": options.threads, "load_before": load, "torch": torch.__version__}
    for peer in PEERS:
        try:
            where[peer] = version(peer)
        except PackageNotFoundError:
            where[peer] = None
    print(json.dumps(where))
    write_json(options.out, {"sizes": sizes, "table": table, "machine": where})


if __name__ == "__main__":
    main()
