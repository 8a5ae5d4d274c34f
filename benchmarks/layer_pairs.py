"""All pairs of layers of the built-in model with itself, beside the peers, in one run: CKA maps and held-out ridge.

    pip install pytorch-cka torch-cka
    python benchmarks/layer_pairs.py --corpus FILE [--documents 80] [--tokens 256] [--threads 2] [--pairs 4] [--exact]

Prints, for each method, its seconds, its peak memory above the activations, its ratio to ours and the largest
difference, and writes benchmarks/layer_pairs.json. The peers take models: each is given one whose layers hand out the
captured rows, in the same shuffled batches as ours. Ridge is compared on `--pairs` ordered pairs of layers, 5 document
folds and 13 penalties, against one scikit-learn refit for each fold and penalty; the sums over rows that the other
pairs share are timed apart. A method runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import latentcomm as lc
from latentcomm.files import write_json
from latentcomm.similarity import LayerPairs, MinibatchPairs, document_fold

BATCH_ROWS = 512
PENALTIES = [10.0**exponent for exponent in range(4, -9, -1)]
FOLDS = 5


class Handed(torch.nn.Module):
    """A model whose layer l hands out the captured rows of layer l, for peers that hook models."""

    def __init__(self, layers: torch.Tensor) -> None:
        super().__init__()
        self.layers = layers
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in layers)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Run every layer's hook on these rows."""
        for block, layer in zip(self.blocks, self.layers, strict=True):
            out = block(layer[rows])
        return out


def captured(corpus: Path, n_documents: int, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of all layers, [layer row d_model], and the document of each row; the first position is left out."""
    model = lc.load_model("smollm2-135m-instruct")
    sites = [lc.Site(0, "resid_pre"), *(lc.Site(layer) for layer in range(model.n_layers))]
    ids = lc.encode(model, [corpus.read_text("utf-8")[: 12 * n_documents * n_tokens]]).ids(0)
    if len(ids) < n_documents * n_tokens:
        raise ValueError(f"the corpus has {len(ids)} tokens; {n_documents * n_tokens} are needed")
    prompts = lc.Prompts.from_ids(list(ids[: n_documents * n_tokens].view(n_documents, n_tokens)))
    found = lc.capture(model, prompts, sites)
    rows = torch.stack([found.rows(site, skip_first=True) for site in sites])
    return rows, torch.arange(n_documents).repeat_interleave(n_tokens - 1)


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

    model, names = Handed(rows), [f"blocks.{layer}" for layer in range(len(rows))]
    loader = torch.utils.data.DataLoader(torch.cat(batches(rows.shape[1])), batch_size=BATCH_ROWS)
    return compute_cka(model, model, loader, layers=names, device="cpu", progress=False)[0]


def torch_cka(rows: torch.Tensor, _documents: torch.Tensor) -> torch.Tensor:
    from torch_cka import CKA

    names = [f"blocks.{layer}" for layer in range(len(rows))]
    data = torch.utils.data.TensorDataset(torch.cat(batches(rows.shape[1])))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH_ROWS)
    compared = CKA(Handed(rows), Handed(rows), "one", "other", names, names, device="cpu")
    compared.compare(loader)
    return compared.export()["CKA"]


def ours_exact(rows: torch.Tensor, _documents: torch.Tensor) -> torch.Tensor:
    return LayerPairs(folds=1, max_bytes=2**36).update(rows, rows).debiased_cka()


def ridge_layers(n_layers: int, pairs: int) -> list[tuple[int, int]]:
    """Ordered pairs of different layers, spread over the depth."""
    places = np.linspace(2, n_layers - 2, 2 * pairs).round().astype(int)
    return list(zip(places[:pairs].tolist(), places[pairs:].tolist(), strict=True))


def ours_ridge(rows: torch.Tensor, documents: torch.Tensor, pairs: int) -> torch.Tensor:
    chosen = ridge_layers(len(rows), pairs)
    x, y = rows[[i for i, _ in chosen]], rows[[j for _, j in chosen]]
    return LayerPairs(folds=FOLDS, max_bytes=2**36).update(x, y, groups=documents).ridge_curve(PENALTIES)


def sklearn_refits(rows: torch.Tensor, documents: torch.Tensor, pairs: int) -> torch.Tensor:
    """The first pair alone, one refit a fold and penalty."""
    from sklearn.linear_model import Ridge

    (i, j), *_ = ridge_layers(len(rows), pairs)
    x, y = rows[i].double().numpy(), rows[j].double().numpy()
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


def _apart(method: Callable[..., torch.Tensor], folder: str, threads: int, more: tuple[Any, ...]) -> None:
    """Run one method on the stored rows; store its seconds, its peak memory above them, and what it found."""
    torch.set_num_threads(threads)
    rows, documents = torch.load(f"{folder}/rows.pt")
    method(rows[:3, :600, :16].contiguous(), torch.arange(600) % 40, *more)  # imports and first calls
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    found = method(rows, documents, *more)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    torch.save((seconds, peak / 1024, found), f"{folder}/{method.__name__}.pt")


def timed(
    method: Callable[..., torch.Tensor], folder: str, threads: int, *more: Any
) -> tuple[float, float, torch.Tensor]:
    """Seconds, MB above the activations, and the result of one method in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=_apart, args=(method, folder, threads, more))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{method.__name__} ended with status {process.exitcode}; its error stands above")
    return torch.load(f"{folder}/{method.__name__}.pt")


def main() -> None:
    """Time everything on the same rows and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a text file; random rows of the same sizes without one")
    parser.add_argument("--documents", type=int, default=80)
    parser.add_argument("--tokens", type=int, default=257)
    parser.add_argument("--layers", type=int, default=31, help="of the random rows")
    parser.add_argument("--width", type=int, default=576, help="of the random rows")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true", help="also the exact map, a minute or more")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.corpus:
        rows, documents = captured(options.corpus, options.documents, options.tokens)
    else:
        n_rows = options.documents * (options.tokens - 1)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(options.layers, n_rows, options.width, generator=generator).cumsum(0)
        documents = torch.arange(options.documents).repeat_interleave(options.tokens - 1)
    print(f"{len(rows)} x {len(rows)} layers, {rows.shape[1]} rows, {rows.shape[2]} wide", flush=True)
    table = []
    with TemporaryDirectory() as folder:
        torch.save((rows, documents), f"{folder}/rows.pt")
        maps = [ours_minibatch, pytorch_cka, torch_cka, *([ours_exact] if options.exact else [])]
        seconds, peak, own = timed(maps[0], folder, options.threads)
        table.append({"map": maps[0].__name__, "seconds": seconds, "peak_mb": peak})
        for method in maps[1:]:
            other_seconds, peak, found = timed(method, folder, options.threads)
            line = {"map": method.__name__, "seconds": other_seconds, "peak_mb": peak}
            difference = float((found.double() - own).abs().max())
            table.append(line | {"times_ours": other_seconds / seconds, "largest_difference": difference})
        ridge_seconds, ridge_peak, curves = timed(ours_ridge, folder, options.threads, options.pairs)
        a_pair = ridge_seconds / options.pairs**2
        refit_seconds, refit_peak, curve = timed(sklearn_refits, folder, options.threads, options.pairs)
        difference = float((curves[0, 0] - curve).abs().max())
        table += [
            {"ridge": "ours", "seconds_a_pair": a_pair, "ordered_pairs": options.pairs**2, "peak_mb": ridge_peak},
            {
                "ridge": "scikit-learn refits",
                "seconds_a_pair": refit_seconds,
                "ordered_pairs": 1,
                "peak_mb": refit_peak,
                "times_ours": refit_seconds / a_pair,
                "largest_difference": difference,
            },
        ]
    for line in table:
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in line.items()}
        print(", ".join(f"{key} {value}" for key, value in shown.items()))
    where = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), "threads": options.threads}
    where |= {"torch": torch.__version__}
    print(json.dumps(where))
    sizes = {"layers": len(rows), "rows": rows.shape[1], "width": rows.shape[2], "random": options.corpus is None}
    write_json(options.out, {"sizes": sizes, "table": table, "machine": where})


if __name__ == "__main__":
    main()
