"""What the channels that learn reach, on real weights or on tasks learnt from nothing, and how long it takes.

    python benchmarks/learned_channels.py linear|interlat|coconut|calm|all [--quick] [--out benchmarks/learned_channels.json]
        [--work learned]

One part an argument, each written into the same file as it ends. Trainings keep checkpoints below `--work` and go on
from them; `--quick` runs a few updates of each, to see that all of it runs. One thread. `linear`: W between two layers
of SmolLM2-135M on sentences, Adam against ridge. `interlat`: the adapter on Countries, sender and receiver SmolLM2-135M,
against silence, the controls, and the same training with an untrained sender. `coconut`: questions on graphs, a small
transformer from nothing, with thoughts, without, and without a curriculum. `calm`: a model that knows numbers of keys
and one that adds, alone, composed, and composed with a model that knows nothing.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import latentcomm as lc
from latentcomm.channels.latent import Interlat
from latentcomm.channels.latent_training import InterlatLearner, InterlatLoss, warm_start
from latentcomm.channels.latent import AdapterShape
from latentcomm.evaluation import summarise, to_table
from latentcomm.files import write_json
from latentcomm.models import Model
from latentcomm.publishing import machine
from latentcomm.stats import mcnemar_exact, proportion_interval
from latentcomm.tasks import Task
from latentcomm.tasks.countries import countries
from latentcomm.training import Schedule, Training, train

MODEL = "smollm2-135m-instruct"
CONTROLS = ("shuffled", "zero", "random", "self")


def untrained_like(model: Model, *, seed: int) -> Model:
    """A model of the same sizes and tokenizer whose weights were drawn and never trained: a sender that knows nothing."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(model.hooked.original_model.config)
    return lc.wrap_model(drawn, model.tokenizer, name=f"{model.name} untrained")


def table_of(trials: Sequence[lc.Trial]) -> list[dict[str, Any]]:
    """A line a channel, condition and metric, numbers rounded."""
    rows = summarise(trials).to_dict("records")
    return [{key: _rounded(value) for key, value in row.items() if value == value} for row in rows]


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def compared(a: Sequence[lc.Trial], b: Sequence[lc.Trial], metric: str) -> dict[str, Any]:
    """Exact McNemar of two channels under their true messages."""
    first, second = ({t.item: bool(getattr(t, metric)) for t in each if t.condition == "message"} for each in (a, b))
    items = list(first)
    p_value = mcnemar_exact([first[item] for item in items], [second[item] for item in items]).p_value
    return {
        "metric": metric,
        "n": len(items),
        "right": [sum(first.values()), sum(second.values())],
        "p": _rounded(p_value),
    }


def facts(training: Training) -> dict[str, Any]:
    """What a training was."""
    losses = training.losses
    tenth = max(1, len(losses) // 10)
    means = [
        round(sum(losses[at : at + tenth]) / len(losses[at : at + tenth]), 4) for at in range(0, len(losses), tenth)
    ]
    return {"updates": len(losses), "seconds": round(training.seconds), "mean_loss_by_tenths": means}


def interlat(work: Path, quick: bool) -> dict[str, Any]:
    """The adapter on famous landmarks, tuned on 100 and asked about 66 others."""
    model = lc.load_model(MODEL)
    tune, test = countries(fame="famous").split(seed=0, tune_fraction=0.6)
    if quick:
        tune, test = tune.take(12, seed=0), test.take(6, seed=0)
    schedule = Schedule(steps=4 if quick else 120, batch_size=8, learning_rate=3e-4, warmup=10, final_rate=0.1, seed=0)
    loss = InterlatLoss(separation=0.5, alignment=0.1)
    out: dict[str, Any] = {
        "task": "countries, famous, primed sender",
        "tuned_on": len(tune.items),
        "asked": len(test.items),
    }
    out["schedule"] = {"steps": schedule.steps, "batch": schedule.batch_size, "rate": schedule.learning_rate}
    trials: dict[str, list[lc.Trial]] = {}
    for channel in (lc.Silent(), lc.Skyline()):
        trials[channel.name] = lc.evaluate(channel, model, model, test, reply_tokens=4, checkpoint=work / "trials")
    for name, sender in (("interlat", model), ("interlat, untrained sender", untrained_like(model, seed=0))):
        shape = AdapterShape(model.d_model, model.d_model, model.name)
        untrained = Interlat(name, warm_start(model, *_sent(sender, tune, shape, model), marker=" of"), plan_tokens=4)
        message = untrained.send(sender, tune)
        learner = InterlatLearner.of(model, tune, message, untrained.adapter, options=loss)
        checkpoint = work / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
        out[name] = facts(
            train(learner, schedule, frozen=[model], checkpoint=checkpoint, every=5, progress=True, name=name)
        )
        controls = CONTROLS if sender is model else ()
        trials[name] = lc.evaluate(
            untrained, sender, model, test, controls=controls, reply_tokens=4, checkpoint=work / "trials"
        )
        learner.adapter.save(work / f"{checkpoint.stem}-adapter.safetensors")
    out["table"] = table_of([trial for each in trials.values() for trial in each])
    ours, theirs = trials["interlat"], trials["interlat, untrained sender"]
    out["against_untrained_sender"] = [compared(ours, theirs, metric) for metric in ("free", "choices")]
    return out


def _sent(sender: Model, task: Task, shape: AdapterShape, receiver: Model) -> tuple[Any, AdapterShape]:
    from latentcomm.channels.latent import Adapter
    from latentcomm.channels.slots import embedding_table

    first = Interlat("first", Adapter.initial(shape, embedding_table(receiver)), plan_tokens=4)
    return first.send(sender, task), shape


PARTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {"interlat": interlat}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/learned_channels.json"))
    parser.add_argument("--work", type=Path, default=Path("learned"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in PARTS if given.part == "all" else (given.part,):
        began, busy = time.perf_counter(), time.process_time()
        found = PARTS[name](given.work, given.quick)
        cost = {"wall_seconds": round(time.perf_counter() - began), "cpu_seconds": round(time.process_time() - busy)}
        known = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {"machine": machine()}
        write_json(given.out, {**known, name: {**found, **cost}})
        print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
