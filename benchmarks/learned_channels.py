"""What the channels that learn reach, on real weights or on tasks learnt from nothing, and how long it takes.

    python benchmarks/learned_channels.py linear|interlat|coconut|calm|all [--quick] [--out FILE] [--work FOLDER]

One part an argument, each written into the same file as it ends. Trainings keep checkpoints below `--work` and go on
from them; `--quick` runs a few updates of each, to see that all of it runs. One thread. `linear`: W between two layers
of SmolLM2-135M on sentences, Adam against ridge, and grafts through both on Countries. `interlat`: the adapter on
Countries, sender and receiver SmolLM2-135M, against silence, the controls, and the same training with an untrained
sender. `coconut`: questions on graphs, a small transformer from nothing, with thoughts, without, and without a
curriculum. `calm`: a model that knows numbers of keys and one that adds, alone, composed, and composed with a model
that knows nothing.
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
from latentcomm._core.files import write_json
from latentcomm._core.stats import mcnemar_exact, proportion_interval
from latentcomm.alignment import fit_ridge
from latentcomm.channels import Text
from latentcomm.channels.calm import Calm, CalmLearner, new_bridge
from latentcomm.channels.coconut import Coconut, CoconutLearner, think
from latentcomm.channels.interlat import AdapterShape, Interlat
from latentcomm.channels.training.answers import TextLearner, train_linear
from latentcomm.channels.training.interlat import InterlatLearner, InterlatLoss, warm_start
from latentcomm.channels.training.trainer import Schedule, Training, train
from latentcomm.experiments.accuracy import summarise
from latentcomm.experiments.controls import derangement
from latentcomm.fusion import Replace
from latentcomm.models import Model
from latentcomm.models.small import small_model
from latentcomm.reporting.publish import machine
from latentcomm.tasks import Item, Task
from latentcomm.tasks.corpus import read_corpus
from latentcomm.tasks.countries import countries
from latentcomm.tasks.prosqa import NODES, Wording, problems, prosqa, words

MODEL = "smollm2-135m-instruct"
CONTROLS = ("shuffled", "zero", "random", "self")


def untrained_like(model: Model, *, seed: int) -> Model:
    """A model of the same sizes and tokenizer whose weights were drawn and never trained: it knows nothing."""
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


def compared(a: Sequence[lc.Trial], b: Sequence[lc.Trial], metric: str, condition: str = "message") -> dict[str, Any]:
    """Exact McNemar of a channel under its true messages and another under those of a condition."""
    first = {t.item: bool(getattr(t, metric)) for t in a if t.condition == "message"}
    second = {t.item: bool(getattr(t, metric)) for t in b if t.condition == condition}
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
    means = [round(loss, 4) for loss in training.mean_losses]
    return {"updates": len(training.losses), "seconds": round(training.seconds), "mean_loss_by_tenths": means}


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
    for channel in (lc.Silent(), lc.Skyline(), Text(max_tokens=4, allow_empty=True)):
        trials[channel.name] = lc.evaluate(
            channel, model, model, test, controls=(), reply_tokens=4, checkpoint=work / "trials"
        )
    for name, sender in (("interlat", model), ("interlat, untrained sender", untrained_like(model, seed=0))):
        shape = AdapterShape(model.d_model, model.d_model, model.name)
        untrained = Interlat(name, warm_start(model, *_sent(sender, tune, shape, model), marker=" of"), plan_tokens=4)
        message = untrained.send(sender, tune)
        if sender is model:  # where the adapter begins: each state as the embedding of its token, by ridge
            begun = replace(untrained, name="interlat, no update")
            trials[begun.name] = lc.evaluate(
                begun, sender, model, test, controls=("shuffled",), reply_tokens=4, checkpoint=work / "trials"
            )
        learner = InterlatLearner.of(model, tune, message, untrained.adapter, options=loss)
        checkpoint = work / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
        out[name] = facts(train(learner, schedule, frozen=[model], checkpoint=checkpoint, progress=True, name=name))
        controls = CONTROLS if sender is model else ()
        trials[name] = lc.evaluate(
            untrained, sender, model, test, controls=controls, reply_tokens=4, checkpoint=work / "trials"
        )
        learner.adapter.save(work / f"{checkpoint.stem}-adapter.safetensors")
    out["table"] = table_of([trial for each in trials.values() for trial in each])
    ours, theirs = trials["interlat"], trials["interlat, untrained sender"]
    others = {"untrained sender": (theirs, "message")}
    others |= {name: (trials[name], "message") for name in ("silent", "text", "interlat, no update")}
    others |= {f"{control} message": (ours, control) for control in CONTROLS}
    out["against"] = {
        name: [compared(ours, them, metric, condition) for metric in ("free", "choices")]
        for name, (them, condition) in others.items()
    }
    return out


def _sent(sender: Model, task: Task, shape: AdapterShape, receiver: Model) -> tuple[Any, AdapterShape]:
    from latentcomm.channels.interlat import Adapter

    first = Interlat("first", Adapter.initial(shape, receiver.embedding_table), plan_tokens=4)
    return first.send(sender, task), shape


LAYERS = (24, 28)
"""Where W is fitted: from the state after the first to that after the second, of the same token.

Fixed before W was: figure 9 read at the first and wrote at the second, chosen on other items than are asked here."""
HELD_OUT = 25
"""Documents that no map is fitted on."""


def linear(work: Path, quick: bool) -> dict[str, Any]:
    """W by the published recipe and by ridge: held-out R^2, how long each took, and Countries through each of them."""
    model = lc.load_model(MODEL)
    documents = read_corpus(None).documents
    documents = documents[:12] if quick else documents
    rows = [states_of(model, text) for text in documents]
    n_held = len(rows) // 4 if quick else HELD_OUT
    held_source, held_target = (torch.cat([each[side] for each in rows[:n_held]]) for side in (0, 1))
    source, target = (torch.cat([each[side] for each in rows[n_held:]]) for side in (0, 1))
    groups = torch.cat([torch.full((len(each[0]),), number) for number, each in enumerate(rows[n_held:])])
    out: dict[str, Any] = {
        "from_layer": LAYERS[0],
        "to_layer": LAYERS[1],
        "fitted": {"documents": len(rows) - n_held, "tokens": len(source)},
        "held_out": {"documents": n_held, "tokens": len(held_source)},
    }
    began = time.process_time()
    learnt = train_linear(source, target, epochs=10, progress=True, checkpoint=work / "linear.safetensors")
    out["adam"] = {
        "r_squared": learnt.r_squared(held_source, held_target),
        "cpu_seconds": time.process_time() - began,
    }
    began = time.process_time()
    ridge = fit_ridge(source, target, penalty=None, groups=groups)
    out["ridge"] = {
        "r_squared": ridge.r_squared(held_source, held_target),
        "cpu_seconds": time.process_time() - began,
    }
    shuffled = target[torch.randperm(len(target), generator=torch.Generator().manual_seed(0))]
    null = fit_ridge(source, shuffled, penalty=None, groups=groups)
    out["ridge_on_shuffled_rows"] = {"r_squared": null.r_squared(held_source, held_target)}
    for each in ("adam", "ridge", "ridge_on_shuffled_rows"):
        out[each] = {key: _rounded(value) for key, value in out[each].items()}
    items = countries().split(seed=0)[1]
    items = items.take(6, seed=0) if quick else items
    read, write = map(lc.Site, LAYERS)
    maps = {"no map": None, "W by Adam": learnt, "W by ridge": ridge, "W by ridge on shuffled rows": null}
    channels = [lc.Silent(), *(lc.Activation(name, read, write, Replace(), map) for name, map in maps.items())]
    trials = {
        channel.name: lc.evaluate(
            channel,
            model,
            model,
            items,
            controls=() if channel.name == "silent" else ("shuffled", "zero", "random"),
            reply_tokens=4,
        )
        for channel in channels
    }
    out["asked"] = len(items.items)
    out["table"] = table_of([trial for each in trials.values() for trial in each])
    out["W by Adam against"] = {
        name: [compared(trials["W by Adam"], trials[name], metric) for metric in ("free", "choices")]
        for name in trials
        if name != "W by Adam"
    }
    return out


def states_of(model: Model, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States after the two layers at every token of a text but the first, which is the attention sink."""
    prompts = lc.encode(model, [text])
    prompts = lc.Prompts.from_ids([prompts.ids(0)[:256]])
    seen = lc.capture(model, prompts, [lc.Site(layer) for layer in LAYERS])
    first, second = (seen.rows(lc.Site(layer))[1:].float() for layer in LAYERS)
    return first, second


N_STEPS = 3
BEGIN, END = "<think>", "</think>"
NORM = 1.0
"""What every thought is brought to: about the length of a row of these small models' tables."""
FACTS = Wording(NODES.fact, NODES.question)
"""The same questions, with whole facts as steps."""
START = ((FACTS, 1000, 3e-3), (NODES, 600, 2e-3))
"""What every arm starts from, chain of thought in words: wording, updates, learning rate."""
UPDATES, RATE = 300, 1e-3
"""Of every stage; the other arms have those of all stages together."""
SEEDS = (0, 1)


def coconut(work: Path, quick: bool) -> dict[str, Any]:
    """Small transformers that have learnt to think in words, and from there four arms of equally many updates."""
    out: dict[str, Any] = {"n_steps": N_STEPS, "example": prosqa(n=1, n_steps=N_STEPS, wording=NODES).items[0].skyline}
    out |= {"stage": {"updates": UPDATES, "rate": RATE}, "start": [list(each[1:]) for each in START]}
    for seed in SEEDS[:1] if quick else SEEDS:
        out[f"model seed {seed}"] = _coconut(work, quick, seed)
    return out


def _coconut(work: Path, quick: bool, seed: int) -> dict[str, Any]:
    n = 64 if quick else 20000
    told = {wording: problems(n, n_steps=N_STEPS, wording=wording, seed=0) for wording in (FACTS, NODES)}
    asked = prosqa(n=20 if quick else 500, n_steps=N_STEPS, wording=NODES, seed=2)
    if {each.question for each in told[NODES]} & {item.receiver for item in asked.items}:
        raise RuntimeError("a held-out problem is among those trained on")
    vocabulary = [*words(), BEGIN, END]
    model = small_model(vocabulary, name="graphs", n_layers=2, d_model=64, n_heads=2, n_ctx=128, tied=True, seed=seed)

    def taught(wording: Wording, stage: int, *, silently: bool = False) -> CoconutLearner:
        found = told[wording]
        questions, answers = tuple(each.question for each in found), tuple(each.answer for each in found)
        steps = tuple(() if silently else each.steps for each in found)
        return CoconutLearner(model, questions, steps, answers, BEGIN, END, stage, norm=NORM, inside=True)

    def trained(name: str, learner: CoconutLearner, updates: int, rate: float) -> dict[str, Any]:
        updates = 4 if quick else updates
        schedule = Schedule(updates, 64, learning_rate=rate, warmup=min(50, updates // 4), seed=0)
        where = work / f"coconut-{seed}-{name.replace(' ', '-')}.safetensors"
        return facts(train(learner, schedule, checkpoint=where, progress=True, name=f"{name}, seed {seed}"))

    out: dict[str, Any] = {}
    for number, (wording, updates, rate) in enumerate(START):
        out[f"start {number}"] = trained(f"start {number}", taught(wording, 0), updates, rate)
    start = {name: weight.detach().clone() for name, weight in model.hooked.named_parameters()}
    outcomes: dict[str, list[bool]] = {}
    arms = {
        "thoughts": [(stage, UPDATES) for stage in range(1, N_STEPS + 1)],
        "no curriculum": [(N_STEPS, UPDATES * N_STEPS)],
        "no thoughts": [(0, UPDATES * N_STEPS)],
        "words": [(0, UPDATES * N_STEPS)],
    }
    for name, stages in arms.items():
        with torch.no_grad():
            for weight_name, weight in model.hooked.named_parameters():
                weight.copy_(start[weight_name])
        for stage, updates in stages:
            learner = taught(NODES, stage, silently=name == "no thoughts")
            out[f"{name}, {stage} steps as thoughts"] = trained(f"{name} {stage}", learner, updates, RATE)
        n_thoughts = 0 if name in ("no thoughts", "words") else N_STEPS
        outcomes[name] = answered(model, asked, n_thoughts=n_thoughts, closed=name != "words")
        if name == "thoughts":
            state = think(model, lc.encode(model, [asked.items[0].receiver + f" {BEGIN}"]).tokens, n=1)[0]
            norms = float(state.norm(dim=-1).mean()), float(model.hooked.W_E.norm(dim=-1).mean())
            out["norms"] = {"thought as it comes": _rounded(norms[0]), "embedding": _rounded(norms[1])}
    return {**out, "asked": scored(outcomes, "thoughts")}


def answered(model: Model, task: Task, *, n_thoughts: int, closed: bool) -> list[bool]:
    """Whether the last word of each reply is the answer; `closed` ends the thinking before anything is said."""
    right = []
    for start in range(0, len(task.items), 100):
        part = replace(task, items=task.items[start : start + 100])
        if n_thoughts:
            said = Coconut("thoughts", n_thoughts, BEGIN, END, norm=NORM)
            given: Any = said.receive(model, part, said.own(model, part))
        else:
            given = lc.encode(model, [f"{item.receiver} {BEGIN}" + f" {END}" * closed for item in part.items])
        replies = lc.generate(model, given, max_new_tokens=2 * N_STEPS + 2)
        right += [reply.split()[-1:] == [item.answers[0]] for reply, item in zip(replies, part.items, strict=True)]
    return right


N_KEYS, N_TAUGHT = 80, 40
"""Keys that the sender knows, and those of them whose sums the bridge is trained on; it is asked about the others."""


def calm(work: Path, quick: bool) -> dict[str, Any]:
    """A memorises a digit a key, B learns sums of two digits, a bridge joins them; asked about keys it never saw."""
    rng = random.Random("learned channels: calm")
    keys = [f"<k{number}>" for number in range(N_KEYS)]
    table = {key: rng.randrange(10) for key in keys}
    words = [*keys, *map(str, range(19)), "+", "="]
    knows, untrained, adds = (
        small_model(words, name=name, n_layers=n_layers, d_model=64, n_ctx=16, seed=seed)
        for name, n_layers, seed in (("knows", 2, 1), ("untrained", 2, 3), ("adds", 4, 2))
    )
    steps = 4 if quick else 600
    out: dict[str, Any] = {"keys": N_KEYS, "taught_keys": N_TAUGHT, "layers": [2, 4], "width": 64}
    pairs = rng.sample([(a, b) for a in keys for b in keys], 3000)
    told = [(key, table[key]) for key in keys] * 20 + [(f"{a} + {b}", table[b]) for a, b in pairs]
    sums = [(f"{a} + {b} =", a + b) for a in range(10) for b in range(10)]
    for model, texts in ((knows, told), (adds, sums)):
        learner = TextLearner(model, tuple(text for text, _ in texts), tuple(str(value) for _, value in texts))
        schedule = Schedule(steps, 48, learning_rate=3e-3, warmup=min(30, steps // 2), final_rate=0.1)
        where = work / f"calm-{model.name}.safetensors"
        out[model.name] = facts(train(learner, schedule, checkpoint=where, progress=True, name=model.name))
    taught, other = keys[:N_TAUGHT], keys[N_TAUGHT:]
    seen = rng.sample([(a, b) for a in taught for b in taught if a != b], 1200 if not quick else 20)
    training, held = seen[: len(seen) * 5 // 6], seen[len(seen) * 5 // 6 :]
    tasks = {
        "new keys": key_sums(
            rng.sample([(a, b) for a in other for b in other if a != b], 300 if not quick else 10), table
        ),
        "new pairs of taught keys": key_sums(held, table),
    }
    outcomes: dict[str, dict[str, list[bool]]] = {name: {} for name in tasks}
    task = key_sums(training, table)
    for name, sender in (("composed", knows), ("composed with an untrained sender", untrained)):
        channel = Calm(name, new_bridge(sender, adds, every=1))
        answers = [item.answers[0] for item in task.items]
        learner = CalmLearner.of(adds, task, channel.send(sender, task), channel.bridge, answers=answers)
        schedule = Schedule(2 * steps, 32, learning_rate=2e-3, warmup=min(30, steps // 2), final_rate=0.1)
        where = work / f"calm-{name.replace(' ', '-')}.safetensors"
        out[name] = facts(train(learner, schedule, frozen=[sender, adds], checkpoint=where, progress=True, name=name))
        for kind, asked in tasks.items():
            given = channel.receive(adds, asked, channel.send(sender, asked))
            outcomes[kind][name] = right_sums(adds, given, asked)
            if sender is knows:
                swapped = derangement([item.answers[0] for item in asked.items], seed=0)
                shuffled = channel.receive(adds, asked, channel.send(sender, asked).select(swapped).addressed(asked))
                outcomes[kind]["composed, shuffled message"] = right_sums(adds, shuffled, asked)
    for kind, asked in tasks.items():
        prompts = [item.receiver for item in asked.items]
        for model in (knows, adds):
            outcomes[kind][f"{model.name} alone"] = right_sums(model, lc.encode(model, prompts), asked)
        told_numbers = lc.encode(adds, [item.skyline for item in asked.items])
        outcomes[kind]["told the numbers"] = right_sums(adds, told_numbers, asked)
    out["asked"] = {kind: scored(each, "composed") for kind, each in outcomes.items()}
    return out


def key_sums(pairs: Sequence[tuple[str, str]], table: dict[str, int]) -> Task:
    """Sums of two keys; one-digit numbers, of which many keys share one."""
    items = tuple(
        Item(f"{a}{b}", f"{a} + {b} =", f"{a} + {b} =", f"{table[a]} + {table[b]} =", (str(table[a] + table[b]),), "")
        for a, b in pairs
    )
    return Task("sums of keys", items, (), "raw", reply_tokens=2)


def right_sums(model: Model, given: Any, task: Task) -> list[bool]:
    """Whether the first word of each reply is the sum."""
    replies = lc.generate(model, given, max_new_tokens=2)
    return [reply.split()[:1] == [item.answers[0]] for reply, item in zip(replies, task.items, strict=True)]


def scored(outcomes: dict[str, list[bool]], first: str) -> dict[str, Any]:
    """Right, n, interval, and the exact McNemar p against the first."""
    out = {}
    for name, right in outcomes.items():
        low, high = proportion_interval(sum(right), len(right))
        out[name] = {"right": sum(right), "n": len(right), "low": _rounded(low), "high": _rounded(high)}
        if name != first:
            out[name]["p"] = _rounded(mcnemar_exact(outcomes[first], right).p_value)
    return out


PARTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "linear": linear,
    "calm": calm,
    "coconut": coconut,
    "interlat": interlat,
}


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
