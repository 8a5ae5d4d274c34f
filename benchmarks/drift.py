"""What each drift detector tells on the built-in model's own states, how often it is wrong, and what it costs.

    python benchmarks/drift.py [--corpus FILE] [--layers 6,12,15,20,24] [--only cost] [--out benchmarks/drift.json]

Three parts, written to one file. Calibration: at each layer the AUROC of every detector against every family of
known-off states, one-sided and two-sided, with two families more: the states of a layer two blocks on, and what a
ridge regression makes of the layer six blocks back. False alarms at a nominal 5 % among real states of documents that
the reference never saw: by the library's percentiles, by the chi-squared law, and by the states that were fitted. Cost:
each detector beside scikit-learn's in processes of their own, with the same answers; 30 references and 50,000 states;
and `measure_effects` beside one `run_with_hooks` a graft. Ours and the peers run `--repeats` times in turn, and the
median counts. Peak memory is Linux's high-water mark of pages above the data, reset before each run.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import scipy.stats
import torch
from own_process import measure, timed

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm.drift import COMBINED, DETECTORS, DriftReference, fit_drift_reference
from latentcomm.drift.gaussian import fit_gaussian, rms_normalised
from latentcomm.drift.neighbours import Neighbours, fit_local_density, local_outlier_factor, nearest
from latentcomm.reporting.publish import machine
from latentcomm.tasks.corpus import read_corpus

MODEL = "smollm2-135m-instruct"
TOKENS = 129
"""Tokens of a document, the first of which is a sink."""
FIT_SHARE = 0.75
"""Documents that references are fitted and calibrated on; the others are asked about."""
RATE = 0.05
AHEAD, BACK = 2, 6
"""Layers from which the two further families of known-off states come."""
FEW_ROWS = 700
"""Fitted states of a second, poor reference: 1.2 a dimension."""
REFERENCES, ASKED = 30, 50_000
"""References and states of a whole diagnosis."""
PROMPTS = 6
"""Prompts that are grafted, at every layer."""


def captured(corpus: Path | None, n_documents: int, layers: Sequence[int]) -> dict[str, Any]:
    """States after each block, of documents spread over the corpus, and the document and position of each row."""
    model = lc.load_model(MODEL)
    found = read_corpus(corpus)
    every = range(len(found.documents))
    texts = [found.documents[number] for number in list(every)[:: max(1, len(every) // n_documents)][:n_documents]]
    ids = [lc.encode(model, [text]).ids(0)[:TOKENS] for text in texts]
    states: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for start in range(0, len(ids), 20):
        seen = lc.capture(model, lc.Prompts.from_ids(ids[start : start + 20]), [lc.Site(layer) for layer in layers])
        for layer in layers:
            states[layer].append(seen.rows(lc.Site(layer)))
    document = torch.cat([torch.full((len(each),), number) for number, each in enumerate(ids)])
    position = torch.cat([torch.arange(len(each)) for each in ids])
    facts = {"corpus": found.name, "sha256": found.sha256, "documents": len(ids), "tokens": len(document)}
    return {"states": {layer: torch.cat(each) for layer, each in states.items()}} | {
        "document": document,
        "position": position,
        "facts": facts,
        "prompts": ids[:: max(1, len(ids) // PROMPTS)][:PROMPTS],
    }


def drawn(rows: torch.Tensor, most: int) -> torch.Tensor:
    """So many of the row numbers, ascending."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[:most]].sort().values


def split(data: dict[str, Any], n_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers to fit on and to ask about, of different documents."""
    n_documents = int(data["document"].max()) + 1
    order = torch.randperm(n_documents, generator=torch.Generator().manual_seed(0))
    own = torch.isin(data["document"], order[: int(FIT_SHARE * n_documents)])
    return drawn(own.nonzero().flatten(), n_rows), (~own & (data["position"] > 0)).nonzero().flatten()


def fitted(data: dict[str, Any], layer: int, rows: torch.Tensor) -> DriftReference:
    """The reference of a layer's states at these rows."""
    groups, positions = data["document"][rows], data["position"][rows]
    states = data["states"][layer][rows]
    return fit_drift_reference(states, groups=groups, positions=positions, site=lc.Site(layer), model=MODEL)


def families(data: dict[str, Any], layer: int, rows: torch.Tensor, reference: DriftReference) -> dict[str, Any]:
    """Another layer's states, and a map's output, of the documents that calibrate the reference."""
    held = rows[reference.held_out_rows]
    out = {}
    if layer + AHEAD in data["states"]:
        out[f"layer+{AHEAD}"] = data["states"][layer + AHEAD][held]
    if layer - BACK in data["states"]:
        calibrating = torch.isin(data["document"][rows], data["document"][held].unique())
        training = rows[~calibrating & (data["position"][rows] > 0)]
        before = data["states"][layer - BACK]
        mapped = lc.alignment.fit_ridge(
            before[training], data["states"][layer][training], penalty=None, folds=3, groups=data["document"][training]
        )
        out[f"ridge from layer-{BACK}"] = mapped(before[held])
    return out


def calibration(data: dict[str, Any], layers: Sequence[int], n_rows: int) -> list[dict[str, Any]]:
    """One line a layer, family and detector."""
    rows, _ = split(data, n_rows)
    table = []
    for layer in layers:
        reference = fitted(data, layer, rows)
        told = reference.auroc_table(families(data, layer, rows, reference))
        for family, row in told.items():
            for detector, found in row.items():
                sides = {"one_sided": round(found.one_sided, 4), "two_sided": round(found.two_sided, 4)}
                table.append({"layer": layer, "family": family, "detector": detector} | sides)
        print(f"layer {layer}: {reference}", flush=True)
    return table


def false_alarms(data: dict[str, Any], layers: Sequence[int], n_rows: int) -> list[dict[str, Any]]:
    """One line a layer and rule: the share of fresh real states that it calls drifted at a nominal 5 %."""
    rows, fresh = split(data, n_rows)
    table = []
    for layer in layers:
        states = data["states"][layer]
        norms = states.norm(dim=1)
        asked = states[fresh[norms[fresh] <= 5 * norms[fresh].median()]]
        for n_fit in (n_rows, FEW_ROWS * 3 // 2):
            reference = fitted(data, layer, drawn(rows, n_fit))
            found = reference.percentile(asked)
            width = states.shape[1]
            squared, own = (reference.mahalanobis(each).double().square() for each in (asked, reference.manifold.bank))
            shares = {name: float((found[name] >= 1 - RATE).double().mean()) for name in (*DETECTORS, COMBINED)}
            shares["mahalanobis by chi-squared"] = float(
                (squared > float(scipy.stats.chi2.ppf(1 - RATE, width))).double().mean()
            )
            limit = own.quantile(1 - RATE)
            shares["mahalanobis by fitted states"] = float((squared > limit).double().mean())
            expected = reference.false_alarms(rate=RATE)[COMBINED]
            sizes = {"layer": layer, "fitted": reference.n_fitted, "per_dimension": reference.n_fitted / width}
            sizes |= {"asked": len(asked), "said_by_the_reference": expected}
            table.append(sizes | {"shares": {name: round(share, 4) for name, share in shares.items()}})
    return table


# --- cost: each method runs in a process of its own on the stored rows ---


def ours_mahalanobis(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    return fit_gaussian(fit).distance(asked).square()


def sklearn_mahalanobis(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    from sklearn.covariance import LedoitWolf

    return torch.from_numpy(LedoitWolf().fit(fit.numpy()).mahalanobis(asked.numpy()))


def ours_lof(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    found: Neighbours = nearest(asked, fit, k=20)
    return local_outlier_factor(found, fit_local_density(fit, k=20))


def sklearn_lof(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    from sklearn.neighbors import LocalOutlierFactor

    judge = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(fit.numpy())
    return torch.from_numpy(-judge.score_samples(asked.numpy()))


def ours_knn(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    return nearest(asked, fit, k=10).distance[:, -1]


def sklearn_knn(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    from sklearn.neighbors import NearestNeighbors

    return torch.from_numpy(NearestNeighbors(n_neighbors=10).fit(fit.numpy()).kneighbors(asked.numpy())[0][:, -1])


def ours_pca(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    return lc.redundancy.principal_subspace(fit, energy=0.9).drop(asked).square().sum(1)


def sklearn_pca(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    from sklearn.decomposition import PCA

    pca = PCA(n_components=0.9).fit(fit.numpy())
    left = asked.numpy() - pca.inverse_transform(pca.transform(asked.numpy()))
    return torch.from_numpy((left**2).sum(1))


PAIRS: tuple[tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]], ...] = (
    (ours_mahalanobis, sklearn_mahalanobis),
    (ours_lof, sklearn_lof),
    (ours_knn, sklearn_knn),
    (ours_pca, sklearn_pca),
)


def ours_all(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """A reference, with its calibration, and all that it says of the states."""
    return fit_drift_reference(fit).p_value(asked)


def ours_diagnosis(fit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """As many references as a model has layers, and the states of a whole diagnosis; half of the time is either's."""
    part = asked.repeat(ASKED // REFERENCES // len(asked) + 1, 1)[: ASKED // REFERENCES]
    return torch.stack([fit_drift_reference(fit, seed=seed).measure(part).p_value for seed in range(REFERENCES)])


def ours_effects(model: lc.Model, prompts: list[torch.Tensor], messages: torch.Tensor) -> torch.Tensor:
    found = lc.measure_effects(model, lc.Prompts.from_ids(prompts), messages, fusion=lc.fusion.Mean())
    return torch.cat((found.kl[..., None], found.deviation), 2)


def naive_effects(model: lc.Model, prompts: list[torch.Tensor], messages: torch.Tensor) -> torch.Tensor:
    """A run of the whole prompt for each graft, with the state of every later layer cached, and one without."""
    n_layers = model.n_layers
    out = torch.full((len(prompts), n_layers, n_layers + 1), torch.nan, dtype=torch.float64)
    for item, (ids, message) in enumerate(zip(prompts, messages, strict=True)):
        plain_logits, plain = _run(model, ids, None)
        p = plain_logits.double().log_softmax(-1)
        for write in range(n_layers):
            logits, states = _run(model, ids, (write, message))
            q = logits.double().log_softmax(-1)
            out[item, write, 0] = (p.exp() * (p - q)).sum()
            off = (states - plain).double().norm(dim=1) / plain.double().norm(dim=1)
            out[item, write, 1 + write :] = off[write:]
    return out


def _run(
    model: lc.Model, ids: torch.Tensor, graft: tuple[int, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after the prompt, and the last token's state after every block."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> tuple[str, Callable[..., None]]:
        return f"blocks.{layer}.hook_resid_post", lambda value, hook: seen.__setitem__(layer, value[0, -1].clone())

    hooks: list[Any] = [keep(layer) for layer in range(model.n_layers)]
    if graft is not None:
        layer, message = graft

        def write(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[0, -1] = (value[0, -1] + message) / 2
            return value

        hooks.insert(0, (f"blocks.{layer}.hook_resid_post", write))
    with torch.no_grad():
        logits = model.hooked.run_with_hooks(ids[None], fwd_hooks=hooks)
    return logits[0, -1], torch.stack([seen[layer] for layer in range(model.n_layers)])


def _apart(method: Callable[..., torch.Tensor], folder: str, file: str, threads: int) -> None:
    """Run one method on what is stored; store its seconds, its peak memory above that, and what it found."""
    torch.set_num_threads(threads)
    given = torch.load(f"{folder}/{file}.pt")
    if file != "effects":
        draw = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).double() + 1
        (ours_all if method is ours_diagnosis else method)(draw, draw + 0.1)  # imports and first calls
    else:
        prompts, messages = given
        model = lc.load_model(MODEL)
        method(model, prompts[:1], messages[:1])
        given = (model, prompts, messages)
    measure(method, folder, *given)


def costs(folder: str, repeats: int, threads: int) -> list[dict[str, Any]]:
    """One line a pair of methods, ours and the peer's, and one for a whole diagnosis."""
    table = []
    for file, pairs in (("rows", PAIRS), ("effects", ((ours_effects, naive_effects),))):
        for ours, peer in pairs:
            runs = [[timed(_apart, method, folder, file, threads) for method in (ours, peer)] for _ in range(repeats)]
            (seconds, own_peak, own), (peer_seconds, peak, found) = (
                (statistics.median(run[0] for run in of), of[-1][1], of[-1][2]) for of in zip(*runs, strict=True)
            )
            apart = (own - found).abs().nan_to_num()
            line = {"ours": ours.__name__, "peer": peer.__name__, "seconds": seconds, "peer_seconds": peer_seconds}
            line |= {"ratio": peer_seconds / seconds, "peak_mb": own_peak, "peer_peak_mb": peak}
            line["largest_relative_difference"] = float(apart.max() / own.nan_to_num().abs().max())
            line["load"] = os.getloadavg()[0]
            table.append(line)
            print(line, flush=True)
    for method, n_threads in ((ours_all, threads), (ours_diagnosis, threads), (ours_diagnosis, 1)):
        seconds, peak, _ = timed(_apart, method, folder, "raw", n_threads)
        line = {"ours": method.__name__, "seconds": seconds, "peak_mb": peak, "threads": n_threads}
        whole = {"references": REFERENCES, "states": ASKED} if method is ours_diagnosis else {}
        table.append(line | whole | {"load": os.getloadavg()[0]})
        print(table[-1], flush=True)
    return table


def main() -> None:
    """Measure all three parts and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a text file, .jsonl or folder; the package's own without one")
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--rows", type=int, default=24_000, help="states that a reference of the tables is given")
    parser.add_argument("--cost-rows", type=int, default=6_000, help="states that a reference is timed on")
    parser.add_argument("--layers", default="6,12,15,20,24")
    parser.add_argument("--only", choices=("tables", "cost"), help="measure one part and keep the other of the file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers = [int(layer) for layer in options.layers.split(",")]
    wanted = {layer + step for layer in layers for step in (0, AHEAD, -BACK) if 0 <= layer + step < 30}
    data = captured(options.corpus, options.documents, sorted(wanted))
    out: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.only else {}
    here = machine() | {"threads": options.threads, "load_before": os.getloadavg()[0], "torch": torch.__version__}
    if options.only != "cost":
        out |= {"facts": data["facts"], "rows": options.rows, "rate": RATE}
        out["calibration"] = calibration(data, layers, options.rows)
        out["false_alarms"] = false_alarms(data, layers, options.rows)
    if options.only != "tables":
        with TemporaryDirectory() as folder:
            rows, fresh = split(data, options.cost_rows)
            middle = data["states"][layers[len(layers) // 2]]
            fit = middle[rows[data["position"][rows] > 0]].unique(dim=0)  # equal beginnings of documents stand once
            torch.save((rms_normalised(fit), rms_normalised(middle[drawn(fresh, 2000)])), f"{folder}/rows.pt")
            torch.save((fit, middle[drawn(fresh, 2000)]), f"{folder}/raw.pt")
            messages = middle[drawn(fresh, PROMPTS)].roll(1, 0)
            torch.save((data["prompts"], messages), f"{folder}/effects.pt")
            out["cost_rows"], out["machine"] = len(fit), here
            del data, middle, fit
            out["cost"] = costs(folder, options.repeats, options.threads)
    write_json(options.out, out)
    print(json.dumps(here))


if __name__ == "__main__":
    main()
