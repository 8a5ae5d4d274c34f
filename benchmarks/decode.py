"""`lc.generate` against transformers' own `generate`: the same prompts, greedy, in turn in one run.

    python benchmarks/decode.py [--tokens 64] [--turns 12] [--threads 2] [--quick]

SmolLM2-135M-Instruct in float32 generates so many tokens after each prompt, and nothing ends a reply earlier.
transformers has its own copy of the model, which no bridge wraps, with the attention that it chooses by itself (sdpa);
`lc.generate` runs with each attention that `load_model` takes.
Prompts are stretches of the package's texts; those of one batch have one length, so that neither side pads. Every turn
times both, and they take turns at being first; the ratio is the geometric mean over turns, with a bootstrap interval
over turns. Writes benchmarks/decode.json.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm._core.stats import paired_bootstrap
from latentcomm.models.builtin import BUILT_IN, fetch
from latentcomm.models.prompts import Prompts
from latentcomm.reporting.publish import machine
from latentcomm.tasks.corpus import read_corpus

MODEL = "smollm2-135m-instruct"
CASES = {"1 short prompt": (1, 24), "8 short prompts": (8, 24), "1 long prompt": (1, 300), "8 long prompts": (8, 300)}
"""Of each case the prompts and the tokens of each."""


def main() -> None:
    """Time all cases and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens after each prompt")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="4 tokens, two turns, no file, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    tokens, turns = (4, 2) if options.quick else (options.tokens, options.turns)
    torch.set_num_threads(options.threads)
    model, theirs = lc.load_model(MODEL), transformers_model()
    found: dict[str, Any] = {"model": MODEL, "new_tokens": tokens, "turns": turns}
    for name, (n_prompts, length) in CASES.items():
        for attention in ("eager", "sdpa"):
            case = name if attention == "eager" else f"{name}, {attention}"
            mine = replace(model, attention=attention)
            mine.__dict__["stop_ids"] = frozenset()
            found[case] = compared(mine, theirs, texts_of(model, n_prompts, length), tokens, turns)
            print(f"{case}: {json.dumps(found[case])}", flush=True)
    if not options.quick:
        write_json(options.out, found | {"machine": machine() | {"threads": options.threads}})


def transformers_model() -> Any:
    """The same model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(fetch(BUILT_IN[MODEL]), dtype=torch.float32).eval()


def texts_of(model: lc.Model, n_prompts: int, length: int) -> Prompts:
    """So many prompts of one length, from different places of the package's texts."""
    ids = model.require_tokenizer()("\n".join(read_corpus().documents)).input_ids
    return Prompts.from_ids([ids[row * length : (row + 1) * length] for row in range(n_prompts)])


def compared(model: lc.Model, theirs: Any, prompts: Prompts, tokens: int, turns: int) -> dict[str, Any]:
    """Median seconds of both, the ratio of their times with its interval, and how many replies are the same."""

    def by_transformers() -> Tensor:
        ids, n = prompts.tokens, prompts.tokens.shape[1]
        return theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
            pad_token_id=0,
        )[:, n:]  # fmt: skip

    def by_latentcomm() -> list[str]:
        return lc.generate(model, prompts, max_new_tokens=tokens)

    expected = [model.decode(row) for row in by_transformers().tolist()]
    same = sum(a == b for a, b in zip(expected, by_latentcomm(), strict=True))
    ours, others = [], []
    for turn in range(turns):
        pair: list[tuple[list[float], Callable[[], Any]]] = [(ours, by_latentcomm), (others, by_transformers)]
        for seconds, run in pair if turn % 2 else pair[::-1]:
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    ratio = paired_bootstrap([math.log(each) for each in ours], [math.log(each) for each in others])
    return {
        "latentcomm_seconds": round(statistics.median(ours), 3),
        "transformers_seconds": round(statistics.median(others), 3),
        "ratio": round(math.exp(ratio.difference), 3),
        "interval": [round(math.exp(end), 3) for end in (ratio.low, ratio.high)],
        "same_replies": f"{same} of {len(expected)}",
    }


if __name__ == "__main__":
    main()
