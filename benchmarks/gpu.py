"""Sweep, decoding and capture of a model of 1.5B parameters on one device: share of its matrix rate, and transformers.

    python benchmarks/gpu.py [--device auto] [--dtype bfloat16] [--repeats 3] [--quick] [--out benchmarks/gpu.json]

The model has the sizes of Qwen2.5-1.5B and random weights, which need no download and cost the same time. Operations
are those of the matrix products that ran (`experiments.cost.flops`); the matrix rate is that of a square product in the
same dtype, measured here. Decoding and capturing alternate with transformers' own `generate` and
`output_hidden_states`, with the attention that transformers chooses. Under 8 minutes on one GPU; `--quick` is a small
model, to see that it runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm.experiments.cost import flops
from latentcomm.fusion import Replace
from latentcomm.models import recorded_passes, resolve_device, wrap_model
from latentcomm.models.devices import DTYPES
from latentcomm.models.prompts import Prompts
from latentcomm.reporting.publish import machine

SIZES = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = SIZES | {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "vocab_size": 1000}
SIDE = 8192
"""Rows and columns of the matrices whose product gives the rate."""


def qwen(sizes: dict[str, Any], dtype: torch.dtype, device: str, attention: str) -> Any:
    """A Qwen2 of these sizes with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        config = Qwen2Config(**sizes, dtype=dtype, attn_implementation=attention)
        return Qwen2ForCausalLM(config).to(dtype).eval()


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall seconds until the device has finished."""
    began = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def matrix_rate(dtype: torch.dtype, device: str, side: int) -> float:
    """Operations a second of a square product, the best of ten."""
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def against(ours: Callable[[], Any], theirs: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    """Median seconds of both, alternating, and the median of the ratios of neighbours."""
    mine, others = [], []
    for run in (ours, theirs):  # once before the clock runs
        run()
    for _ in range(repeats):
        mine.append(seconds(ours, device))
        others.append(seconds(theirs, device))
    ratios = [a / b for a, b in zip(mine, others, strict=True)]
    return {
        "seconds": round(statistics.median(mine), 3),
        "transformers_seconds": round(statistics.median(others), 3),
        "ratio": round(statistics.median(ratios), 3),
    }


def share(run: Callable[[], Any], device: str, rate: float, repeats: int) -> dict[str, float]:
    """Operations, median seconds, and the share of the matrix rate."""
    run()
    with recorded_passes() as passes:
        run()
    took = statistics.median(seconds(run, device) for _ in range(repeats))
    done = flops(passes)
    return {"tflop": round(done / 1e12, 3), "seconds": round(took, 3), "share_of_rate": round(done / took / rate, 4)}


def measured(device: str, dtype: torch.dtype, repeats: int, *, quick: bool) -> dict[str, Any]:
    """All figures."""
    sizes = SMALL if quick else SIZES
    n_captured, length, n_replies, new_tokens, n_items = (4, 16, 2, 4, 2) if quick else (64, 256, 32, 64, 16)
    rate = matrix_rate(dtype, device, 256 if quick else SIDE)
    found: dict[str, Any] = {"matrix_tflop_a_second": round(rate / 1e12, 3)}
    plain = qwen(sizes, dtype, device, "sdpa")
    model = wrap_model(qwen(sizes, dtype, device, "eager"))
    model.__dict__["stop_ids"] = frozenset()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, sizes["vocab_size"], (n_captured, length), generator=generator)
    prompts, few = Prompts.from_ids(ids.tolist()), Prompts.from_ids(ids[:n_replies, :32].tolist())
    sites = [lc.Site(layer) for layer in range(sizes["num_hidden_layers"])]

    def by_transformers() -> None:
        for part in ids.split(16):
            with torch.no_grad():
                states = plain.model(part.to(device), output_hidden_states=True).hidden_states
            [each.cpu() for each in states]

    def reply_by_transformers() -> None:
        tokens = few.tokens.to(device)
        plain.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new_tokens,
            min_new_tokens=new_tokens, pad_token_id=0,
        )  # fmt: skip

    def capture() -> None:
        lc.capture(model, prompts, sites)

    def reply() -> None:
        from latentcomm.hooks.decode import decode

        decode(model, few, max_new_tokens=new_tokens)

    def sweep() -> None:
        sender, receiver = Prompts.from_ids(ids[:n_items, :14].tolist()), Prompts.from_ids(ids[:n_items, :6].tolist())
        lc.sweep_layers(model, model, sender, receiver, fusion=Replace())

    found["capture"] = share(capture, device, rate, repeats) | against(capture, by_transformers, device, repeats)
    found["decode"] = against(reply, reply_by_transformers, device, repeats)
    found["decode"]["tokens_a_second"] = round(n_replies * new_tokens / found["decode"]["seconds"])
    found["sweep"] = share(sweep, device, rate, repeats)
    if device.startswith("cuda"):
        found["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return found


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small model and no file, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    device = resolve_device(options.device)
    if device == "cpu" and not options.quick:
        parser.error("there is no GPU here; give --quick to see that it runs, or --device")
    found = measured(device, DTYPES[options.dtype], options.repeats, quick=options.quick)
    found = {"sizes": SMALL if options.quick else SIZES, "dtype": options.dtype, "device": device, **found}
    print(found)
    if not options.quick:
        write_json(options.out, found | {"machine": machine()})


if __name__ == "__main__":
    main()
