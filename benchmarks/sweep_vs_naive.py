"""The layer sweep against the obvious alternative, in one run: a `run_with_hooks` of the whole prompt for every cell.

    python benchmarks/sweep_vs_naive.py [--lengths 50,300] [--cells 60] [--threads 2]

Prints, for each receiver length, the seconds of the whole 30 x 30 sweep, of the naive grid, and their ratio, and writes
benchmarks/sweep_vs_naive.json. The naive grid is timed on a random sample of cells, drawn by seed, and scaled to all:
every cell costs it the same full pass. The logits of the sampled cells must agree.

A sweep of eight items, each with a prompt of its own, is also put beside the machine: the rate of the operations that
it needs (the matrix products of every row from the layer at which it joins, attention to what the row sees, the
unembedding) over that of a product of two 1024 x 1024 matrices, the median of products timed between the sweeps.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm.reporting.publish import machine

FILLER = (
    "The city keeps its old archive in a tower by the river, where clerks copied letters, maps, tax rolls and the "
    "diaries of merchants who had sailed far to the east and come back with silk, pepper and stories. "
)
ENDING = " Alice is in the country of"
TOLD = "Alice is at the Colosseum." + ENDING
CHOICES = [" Italy", " France", " Spain", " Greece", " Egypt", " India", " China", " Japan", " Peru", " Mexico"]
REPEATS = 3
N_OWN = 8
"""Items with prompts of their own."""


def prompt_of(model: lc.Model, length: int) -> lc.Prompts:
    """A receiver prompt of exactly `length` tokens that ends in the question."""
    ending = lc.encode(model, [ENDING]).ids(0)
    if length <= len(ending):
        raise SystemExit(f"--lengths has {length}; the question alone has {len(ending)} tokens")
    filler = lc.encode(model, [FILLER * (1 + length // 20)]).ids(0)[: length - len(ending)]
    return lc.Prompts.from_ids([torch.cat([filler, ending])])


def naive_cell(model: lc.Model, ids: torch.Tensor, vector: torch.Tensor, write: int) -> torch.Tensor:
    """One cell as one writes it by hand: the whole prompt, one hook."""

    def replace_last(value: torch.Tensor, hook: object) -> torch.Tensor:
        value = value.clone()
        value[0, -1] = vector
        return value

    with torch.no_grad():
        hooks = [(f"blocks.{write}.hook_resid_post", replace_last)]
        return model.hooked.run_with_hooks(ids, fwd_hooks=hooks)[0, -1]


def own_items(model: lc.Model, length: int) -> dict[str, object]:
    """The rate of a sweep of items with prompts of their own, beside that of a matrix product."""
    shared = prompt_of(model, length).ids(0)
    asked = lc.Prompts.from_ids([torch.cat([torch.tensor([1000 + item]), shared[1:]]) for item in range(N_OWN)])
    told = lc.encode(model, [TOLD] * N_OWN)
    seconds, rates = [], []
    for _ in range(REPEATS):
        rates += [product_rate() for _ in range(5)]
        began = time.perf_counter()
        lc.sweep_layers(model, model, told, asked, fusion=lc.fusion.Replace(), choices=[CHOICES] * N_OWN)
        seconds.append(time.perf_counter() - began)
    took, rate = statistics.median(seconds), statistics.median(rates)
    needed = N_OWN * needed_operations(model, told.tokens.shape[1], length)
    found = {"items": N_OWN, "tokens": length, "seconds": round(took, 2), "needed_gflop": round(needed / 1e9, 1)}
    return found | {
        "product_gflop_per_s": round(rate / 1e9, 1),
        "share_of_product_rate": round(needed / took / rate, 3),
    }


def needed_operations(model: lc.Model, told: int, length: int) -> float:
    """Floating-point operations of a sweep of one item over all cells, a product and a sum counted as two."""
    config = model.hooked.cfg
    width, layers, heads = model.d_model, model.n_layers, int(config.n_heads) * int(config.d_head)
    shared = 2 * int(config.n_key_value_heads or config.n_heads) * int(config.d_head)
    block = 2 * width * (2 * heads + shared + 3 * int(config.d_mlp))
    prompts = layers * (block * (told + length) + 2 * heads * (told**2 + length**2))  # what precedes a token alone
    joined = layers * layers * (layers - 1) // 2  # the blocks above its write layer, of every read and write layer
    rows = joined * (block + 4 * heads * length)
    return prompts + rows + 2 * width * (layers**2 + 1) * int(config.d_vocab)


def product_rate(size: int = 1024) -> float:
    """Operations a second of one matrix product in float32."""
    left, right = torch.randn(2, size, size)
    began = time.perf_counter()
    left @ right
    return 2 * size**3 / (time.perf_counter() - began)


def main() -> None:
    """Time both on every length and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="50,300")
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = lc.load_model("smollm2-135m-instruct")
    told = lc.encode(model, [TOLD])
    sites = [lc.Site(layer) for layer in range(model.n_layers)]
    messages = lc.capture(model, told, sites)
    n_cells = model.n_layers**2
    rows = []
    for length in (int(text) for text in options.lengths.split(",")):
        asked = prompt_of(model, length)
        ids = asked.tokens
        cells = random.Random(length).sample(
            [(k, j) for k in range(model.n_layers) for j in range(model.n_layers)], options.cells
        )
        found = {}
        for what, settings in (
            ("choices", {"choices": [CHOICES], "top_token": False}),
            ("choices and top token", {"choices": [CHOICES]}),
        ):
            lc.sweep_layers(model, model, told, asked, fusion=lc.fusion.Replace(), **settings)  # warm-up
            seconds = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                found[what] = lc.sweep_layers(model, model, told, asked, fusion=lc.fusion.Replace(), **settings)
                seconds.append(time.perf_counter() - began)
            rows.append({"tokens": length, "records": what, "sweep_seconds": statistics.median(seconds)})
        tokens = torch.tensor([model.first_token(choice) for choice in CHOICES])
        naive_cell(model, ids, messages.last(sites[0])[0], 0)
        began, worst, same = time.perf_counter(), 0.0, 0
        plain = [naive_cell(model, ids, messages.last(sites[k])[0], j) for k, j in cells]
        per_cell = (time.perf_counter() - began) / len(cells)
        sweep = found["choices and top token"]
        for (k, j), logits in zip(cells, plain, strict=True):
            worst = max(worst, float((sweep.logits[0, k, j] - logits[tokens]).abs().max()))
            same += int(sweep.top_token[0, k, j] == logits.argmax())
        for row in rows[-2:]:
            row |= {"naive_seconds": per_cell * n_cells, "naive_cells_timed": len(cells)}
            row |= {"ratio": row["naive_seconds"] / row["sweep_seconds"]}
            row |= {"largest_logit_difference": worst, "same_argmax": f"{same} of {len(cells)}"}
            print(
                f"{length:4d} tokens, {row['records']:22s}: sweep {row['sweep_seconds']:6.2f} s, naive grid "
                f"{row['naive_seconds']:7.1f} s ({len(cells)} of {n_cells} cells timed), ratio {row['ratio']:6.0f}; "
                f"largest logit difference {worst:.1e}, same argmax in {same} of {len(cells)} cells",
                flush=True,
            )
    own = [own_items(model, int(text)) for text in options.lengths.split(",")]
    for row in own:
        print(
            f"{row['items']} items with own prompts of {row['tokens']} tokens, choices and top token: "
            f"{row['seconds']} s, {row['share_of_product_rate']:.0%} of the rate of a matrix product "
            f"({row['product_gflop_per_s']} GFLOP/s)"
        )
    where = machine() | {"threads": options.threads}
    print(json.dumps(where))
    found = {"model": model.name, "grid": "30 x 30", "rows": rows, "own_items": own, "machine": where}
    write_json(options.out, found)


if __name__ == "__main__":
    main()
