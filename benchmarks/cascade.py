"""The sweep of a reverse cascade over all n and stops against one run at the longest n, and against separate runs.

    python benchmarks/cascade.py [--tokens 128] [--threads 2] [--quick]

The large model's side: `write_openings`, with the signals, the states of one layer and every stop asked, over a plain
greedy run of so many tokens, and over separate runs of each n and stop, where a stop that never fires costs the
longest. The small model's side: all continuations of a text hand-off as the sweep runs them, where what is alike is
read and written once, over separate runs of each. Seconds are the median of three turns, operations those of the passes
that were run. Both models are SmolLM2-135M-Instruct, on the problems of GSM8K's kind that come with the package: of one
model the continuations are the openings' own, so that as much is shared as can be; behind the opening of another item
as little is as can be. Writes benchmarks/cascade.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade import TextHandOff, openings_of, write_openings
from latentcomm.experiments.cascade.by_name import depth_of, stops_named
from latentcomm.experiments.cascade.continuations import Request, continue_openings
from latentcomm.experiments.cascade.resume import Continuation, continue_rows
from latentcomm.experiments.cascade.run import choose
from latentcomm.experiments.controls import derangement
from latentcomm.experiments.cost import flops
from latentcomm.hooks.decode import ReceiverInput
from latentcomm.models import recorded_passes
from latentcomm.reporting.publish import machine
from latentcomm.tasks import Task, gsm8k

STOPS = ("entropy-drop", "confident", "sentence-end")
TURNS = 3


def main() -> None:
    """Measure both sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128, help="the longest n, and the tokens of a whole reply")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three problems, one turn, no file, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = lc.load_model("smollm2-135m-instruct")
    task = replace(gsm8k("sample", template="chat"), reply_tokens=options.tokens)
    task = task.take(3, seed=0) if options.quick else task
    ns = [n for n in (8, 16, 32, 64, 128, 256) if n < options.tokens]
    turns = 1 if options.quick else TURNS
    openings, large = large_side(model, task, ns, turns)
    chosen = hand_overs(openings, ns, options.tokens)
    alone = [Continuation(row.ids, row.ended) for row in openings_of(openings)]
    labels, texts = [item.answers[0] for item in task.items], [item.receiver for item in task.items]
    own, other = list(range(len(openings))), derangement(labels, seed=0, texts=texts)
    small = {
        "own openings": small_side(model, task, openings, own, chosen, alone, turns),
        "openings of other items": small_side(model, task, openings, other, chosen, alone, turns),
    }
    facts = {"model": model.name, "items": len(openings), "n": [0, *ns, options.tokens], "stops": STOPS}
    found = {**facts, "large": large, "small": small, "machine": machine() | {"threads": options.threads}}
    print(json.dumps(found, indent=1))
    if not options.quick:
        write_json(options.out, found)


def large_side(model: lc.Model, task: Task, ns: list[int], turns: int) -> tuple[Message, dict[str, Any]]:
    """What the large model writes, and what writing it once costs against other ways."""
    longest, layer = task.reply_tokens, depth_of(model)
    prompts = ReceiverInput(receiver_prompts(model, task))

    def once() -> Message:
        openings = write_openings(model, task, layers=(layer,))
        hand_overs(openings, ns, longest)
        return openings

    def plain(limits: list[int]) -> list[Continuation]:
        return continue_rows(model, prompts, limits)

    openings = once()
    every = {str(n): [n] * len(openings) for n in (*ns, longest)}
    for name, stop in stops_named(STOPS).items():
        every[name] = [max(1, choose(stop, row, longest)[0]) for row in openings_of(openings)]
    ways = {
        "all n and stops at once": once,
        "one run at the longest n": lambda: plain([longest] * len(openings)),
        "separate runs": lambda: [plain(limits) for limits in every.values()],
    }
    return openings, compared(ways, turns)


def hand_overs(openings: Message, ns: list[int], longest: int) -> list[list[int]]:
    """Of each item the different numbers of tokens at which it is handed over, where something is left to write."""
    stops = stops_named(STOPS).values()
    found = []
    for row in openings_of(openings):
        wanted = {*ns, *(choose(stop, row, longest)[0] for stop in stops)}
        found.append(sorted(n for n in wanted if 0 < n <= len(row) and n < longest))
    return found


def small_side(
    model: lc.Model,
    task: Task,
    openings: Message,
    rows: list[int],
    chosen: list[list[int]],
    alone: list[Continuation],
    turns: int,
) -> dict[str, Any]:
    """What all continuations cost as the sweep runs them, and one by one."""
    wanted = [chosen[row] for row in rows]
    message = TextHandOff().content(openings).select(rows)
    request = Request(task, message, wanted, alone, task.reply_tokens)
    columns = range(max(map(len, wanted)))

    def shared() -> list[list[tuple[int, ...]]]:
        return [[one.ids for one in each] for each in continue_openings(TextHandOff(), model, request)]

    def separate() -> list[list[tuple[int, ...]]]:
        said: list[list[tuple[int, ...]]] = [[] for _ in wanted]
        for column in columns:
            places = [place for place, each in enumerate(wanted) if column < len(each)]
            part = replace(task, items=tuple(task.items[place] for place in places))
            lengths = [wanted[place][column] for place in places]
            given = TextHandOff().enter(model, part, message.select(places), lengths).given
            limits = [task.reply_tokens - n for n in lengths]
            for place, one in zip(places, continue_rows(model, given, limits), strict=True):
                said[place].append(one.ids)
        return said

    same = sum(a == b for one, two in zip(shared(), separate(), strict=True) for a, b in zip(one, two, strict=True))
    n = sum(map(len, wanted))
    return {"continuations": n, "of equal tokens": same} | compared(
        {"shared": shared, "separate runs": separate}, turns
    )


def compared(ways: dict[str, Callable[[], Any]], turns: int) -> dict[str, Any]:
    """Median seconds and operations of each way, and the ratios of the first to the others."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    operations: dict[str, float] = {}
    for _ in range(turns):
        for name, run in ways.items():
            with recorded_passes() as passes:
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
            operations[name] = flops(passes)
    found = {
        name: {"seconds": round(statistics.median(each), 2), "gflop": round(operations[name] / 1e9, 1)}
        for name, each in seconds.items()
    }
    first, *others = found
    ratios = {
        f"{first} / {other}": {what: round(found[first][what] / found[other][what], 3) for what in ("seconds", "gflop")}
        for other in others
    }
    return {**found, **ratios}


if __name__ == "__main__":
    main()
