"""What an audit costs: the further conditions of a channel against the decoding of their replies alone.

    python benchmarks/audit.py [--model NAME] [--dtype float32] [--items 64] [--repeats 5] [--out benchmarks/audit.json]

One channel (`replace`) on Countries, one model with itself. Alternating in one run: the message alone; the message with
the three conditions of an audit (another item's message, the receiver's own, a filler); the replies of three conditions
whose prompts have been read, which is the decoding that no sharing can save; and the same four conditions, each
evaluated by itself. `over_decoding` is what the audit adds over that decoding.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm.channels import Activation
from latentcomm.experiments.controls import AUDIT
from latentcomm.fusion import Replace
from latentcomm.hooks.decode import Known, decode
from latentcomm.reporting.publish import machine

ITEMS_AT_ONCE = 32


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=lc.CompareSettings().sender)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    model = lc.load_model(options.model, dtype=options.dtype)
    task = lc.tasks.countries().take(options.items, seed=0)
    layer = lc.Site(model.n_layers - 4)
    channel = Activation("replace", layer, layer, Replace())
    parts = [
        task.take(ITEMS_AT_ONCE, seed=seed) for seed in range(-(-len(task.items) // ITEMS_AT_ONCE))
    ]  # of the sizes that run together
    inputs = [channel.receive(model, part, channel.send(model, part)) for part in parts]
    known: dict[str, Known] = {}

    def replies(n: int) -> None:
        for _ in range(n):
            for given in inputs:
                decode(model, given, max_new_tokens=task.reply_tokens, known=known)

    def evaluated(controls: tuple[str, ...]) -> None:
        lc.evaluate(channel, model, model, task, controls=controls)

    def apart() -> None:
        for _ in AUDIT:
            evaluated(())  # a message again, as each condition would run without sharing

    replies(1)  # prompts are read
    runs: dict[str, Callable[[], None]] = {
        "message": lambda: evaluated(()),
        "audit": lambda: evaluated(AUDIT),
        "decoding": lambda: replies(len(AUDIT)),
        "apart": apart,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    added = [audit - message for audit, message in zip(seconds["audit"], seconds["message"], strict=True)]
    ratios = [one / other for one, other in zip(added, seconds["decoding"], strict=True)]
    record = {
        "model": model.name,
        "dtype": options.dtype,
        "items": options.items,
        "seconds": {name: [round(each, 2) for each in found] for name, found in seconds.items()},
        "over_decoding": round(statistics.median(ratios), 3),
        "over_decoding_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "over_apart": round(statistics.median(a / b for a, b in zip(added, seconds["apart"], strict=True)), 3),
        "machine": machine(),
    }
    print(record)
    write_json(options.out, record)


if __name__ == "__main__":
    main()
