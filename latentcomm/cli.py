"""The command `latentcomm`: names become objects here, errors become sentences."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from latentcomm import weights
from latentcomm.files import digest, without_folder
from latentcomm.fusion import Fusion, Mean, NormMatched, OrthogonalResidual, Replace, RightAligned, Sum, TaskArithmetic
from latentcomm.tasks.base import Task

app = typer.Typer(
    help="Make two language models communicate through their activations, and measure what that does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DATA_HELP = "Of gsm8k, mmlu and biographies: a file or folder, a hub data set, or 'sample'."
DEFAULT_MODEL = "smollm2-135m-instruct"
FUSION_NAMES: dict[str, Fusion] = {
    "replace": Replace(),
    "mean": Mean(),
    "sum": Sum(),
    "norm-matched-sum": NormMatched(Sum()),
    "orthogonal-residual": OrthogonalResidual(),
    "task-arithmetic": TaskArithmetic(),
}
"""The fusions that need no fitted map; those that do are for scripts."""


class TaskName(StrEnum):
    """The tasks of the command line."""

    countries = "countries"
    tip_sheets = "tip-sheets"
    biographies = "biographies"
    gsm8k = "gsm8k"
    mmlu = "mmlu"
    kv_math = "kv-math"
    prosqa = "prosqa"


class TemplateName(StrEnum):
    """How prompts are made."""

    raw = "raw"
    chat = "chat"


class SenderForm(StrEnum):
    """What the sender reads."""

    primed = "primed"
    sentence = "sentence"
    entity = "entity"


class Fame(StrEnum):
    """Which landmarks."""

    all = "all"
    famous = "famous"
    obscure = "obscure"


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    """Turn what a user can mend into one sentence on standard error."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nlatentcomm: stopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    except (ValueError, RuntimeError, OSError) as error:
        print(f"latentcomm: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def sweep(
    sender: Annotated[str, typer.Option(help="Built-in name, hub id, directory or .gguf file.")] = DEFAULT_MODEL,
    receiver: Annotated[str, typer.Option(help="The same; by default the sender itself.")] = "",
    task: Annotated[TaskName, typer.Option(help="What is asked.")] = TaskName.countries,
    template: Annotated[TemplateName, typer.Option(help="Prompts as they stand, or as a chat.")] = TemplateName.raw,
    sender_form: Annotated[SenderForm, typer.Option(help="What the sender reads.")] = SenderForm.primed,
    fame: Annotated[Fame, typer.Option(help="Which landmarks (countries only).")] = Fame.all,
    fusion: Annotated[
        str, typer.Option(help=f"Comma-separated; the first is swept. Of: {', '.join(FUSION_NAMES)}.")
    ] = "replace,mean,sum",
    right_aligned: Annotated[bool, typer.Option(help="Fuse the last entries of states of unequal width.")] = False,
    read_layers: Annotated[str, typer.Option(help="Such as 0-29 or 20,24,28; all by default.")] = "",
    write_layers: Annotated[str, typer.Option(help="The same, of the receiver.")] = "",
    n_tune: Annotated[int, typer.Option(help="Items that the cell is chosen on.", min=2)] = 40,
    n_test: Annotated[int, typer.Option(help="Other items that it is judged on; 0: all.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where figures, data and metadata go.")] = Path("figures"),
    name: Annotated[str, typer.Option(help="What the files are called.")] = "sweep",
    seed: Annotated[int, typer.Option(help="Of the split, the choices and the controls.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
) -> None:
    """Graft every sender layer into every receiver layer, choose a cell, and judge it with all controls.

    Stopped runs go on: the same command takes up what is done, until it has finished once.
    """
    with _errors_as_sentences():
        began = time.monotonic()
        if not name or Path(name).name != name:
            raise ValueError(f"--name is {name!r}; give a plain file name, and the folder by --out")
        fusions = _fusions(fusion, right_aligned)
        reads, writes = _layers(read_layers, "--read-layers"), _layers(write_layers, "--write-layers")
        chosen_task = _task(task, template, sender_form, fame, seed)
        from latentcomm.models import load_model
        from latentcomm.sweep_report import print_report, write_report
        from latentcomm.sweeps import sweep_and_judge

        first = load_model(sender, dtype=dtype, device=device)
        second = first if receiver in ("", sender) else load_model(receiver, dtype=dtype, device=device)
        settings = {
            "sender": first.name,
            "receiver": second.name,
            "task": task.value,
            "template": template.value,
            "sender_form": sender_form.value,
            "fame": fame.value,
            "fusion": next(iter(fusions)),
            "fusions": {key: repr(value) for key, value in fusions.items()},
            "read_layers": reads,
            "write_layers": writes,
            "n_tune": n_tune,
            "n_test": n_test,
            "seed": seed,
            "device": device,
            "dtype": dtype,
        }
        # A folder of its own, so that another stopped run in `out` keeps its work when this one is done.
        kept = out / ".unfinished" / digest(settings)[:16]
        report = sweep_and_judge(
            first,
            second,
            chosen_task,
            fusions=fusions,
            read_layers=reads,
            write_layers=writes,
            n_tune=n_tune,
            n_test=n_test or None,
            seed=seed,
            checkpoint=kept,
            progress=True,
        )
        published = write_report(
            report,
            name=name,
            folder=out,
            settings=settings,
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            models={"sender": first, "receiver": second},
        )
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(OSError):  # another stopped run's work is in it
            kept.parent.rmdir()
        print_report(report, Console(width=None if sys.stdout.isatty() else 118))
        for one in published:
            print(f"wrote {one.page} (open it in a browser), {one.data.name}, {one.figure.name}, {one.meta.name}")
        print(f"took {time.monotonic() - began:.0f} s")


@app.command()
def diagnose(
    sender: Annotated[str, typer.Argument(help="Built-in name, hub id, directory or .gguf file.")] = DEFAULT_MODEL,
    receiver: Annotated[str, typer.Argument(help="The same; by default the sender itself.")] = "",
    corpus: Annotated[
        Path | None,
        typer.Option(help="Text file, .jsonl or folder of .txt; by default the public-domain text of the package."),
    ] = None,
    fusion: Annotated[str, typer.Option(help="Comma-separated; all of them by default.")] = "",
    right_aligned: Annotated[
        bool, typer.Option(help="No fitted map: messages of another model enter as they are, last entries on last.")
    ] = False,
    documents: Annotated[int, typer.Option(help="Of the corpus at most; half fit, half are held out.")] = 96,
    tokens: Annotated[int, typer.Option(help="Of each document at most.")] = 128,
    prompts: Annotated[int, typer.Option(help="Held-out texts that are grafted into.")] = 24,
    layers: Annotated[int, typer.Option(help="A side at most, in even steps; more take longer.")] = 10,
    out: Annotated[Path, typer.Option(help="Where report.html and its tables go.")] = Path("diagnosis"),
    seed: Annotated[int, typer.Option(help="Of the halves, folds, draws and prompts.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
) -> None:
    """Measure a pair before grafting: how alike the layers are, what the receiver lacks, where a graft drifts.

    Writes one report that opens in a browser without a network, and its tables beside it. Stopped runs go on.
    """
    with _errors_as_sentences():
        from latentcomm.alignment import fit_ridge
        from latentcomm.corpus import read_corpus
        from latentcomm.diagnosis import FUSIONS, Size
        from latentcomm.diagnosis import diagnose as run
        from latentcomm.models import load_model

        size = Size(documents=documents, tokens=tokens, prompts=prompts, layers=layers)
        chosen = [name.strip().replace("-", "_") for name in fusion.split(",") if name.strip()] or list(FUSIONS)
        if unknown := [name for name in chosen if name not in FUSIONS]:
            raise ValueError(f"a diagnosis has no fusion {unknown[0]!r}; choose among {', '.join(FUSIONS)}")
        texts = read_corpus(corpus)
        first = load_model(sender, dtype=dtype, device=device)
        second = first if receiver in ("", sender) else load_model(receiver, dtype=dtype, device=device)
        found = run(
            first,
            second,
            corpus=texts,
            out=out,
            fusions={name: FUSIONS[name] for name in chosen},
            aligner=None if right_aligned else fit_ridge,
            size=size,
            seed=seed,
            progress=True,
        )
        for warning in found.warnings:
            print(f"warning: {warning}")
        for one in found.recommended:
            print(f"try {one.fusion}, k = {one.read} (sender), j = {one.write} (receiver): {one.reason}")
        if not found.recommended:
            print("no cell is recommended; the report says which condition fails where")
        print(f"wrote {out / 'report.html'} (open it in a browser) and {len(found.tables)} tables beside it")
        print(f"took {found.seconds:.0f} s")


@app.command()
def compare(
    task: Annotated[TaskName, typer.Option(help="What is asked.")] = TaskName.countries,
    channels: Annotated[str, typer.Option(help="Comma-separated; by default all that need no training.")] = "",
    sender: Annotated[str, typer.Option(help="Built-in name, hub id, directory or .gguf file.")] = DEFAULT_MODEL,
    receiver: Annotated[str, typer.Option(help="The same; by default the sender itself.")] = "",
    template: Annotated[TemplateName, typer.Option(help="Prompts as they stand, or as a chat.")] = TemplateName.raw,
    sender_form: Annotated[SenderForm, typer.Option(help="What the sender reads.")] = SenderForm.primed,
    fame: Annotated[Fame, typer.Option(help="Which landmarks (countries only).")] = Fame.all,
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "",
    subjects: Annotated[str, typer.Option(help="Of mmlu: comma-separated; the five of the paper by default.")] = "",
    n_shots: Annotated[int, typer.Option(help="Of gsm8k and mmlu: solved examples before the question.", min=0)] = 0,
    read_layer: Annotated[int, typer.Option(help="Of the sender; chosen on the tuning half where left out.")] = -1,
    write_layer: Annotated[int, typer.Option(help="Of the receiver; the same.")] = -1,
    right_aligned: Annotated[
        bool, typer.Option(help="Fit no map between unequal models: last entries on last.")
    ] = False,
    message_tokens: Annotated[int, typer.Option(help="How long a written message may get.", min=1)] = 16,
    request: Annotated[str, typer.Option(help="What a sender that writes reads after its text.")] = "",
    n_tune: Annotated[int, typer.Option(help="Items that the cell is chosen on.", min=2)] = 40,
    n_test: Annotated[int, typer.Option(help="Other items that channels are compared on; 0: all.", min=0)] = 100,
    n_thoughts: Annotated[int, typer.Option(help="Of Coconut: how often a state is fed back.", min=0)] = 4,
    learned: Annotated[
        Path | None, typer.Option("--weights", help="Folder of channels that `latentcomm train` wrote.")
    ] = None,
    controls: Annotated[
        str,
        typer.Option(
            help="Comma-separated: shuffled, same-label, zero, random, self. Each costs as the message."
        ),
    ] = "shuffled",
    out: Annotated[Path, typer.Option(help="Where the figure, its data and the trials go.")] = Path("figures"),
    name: Annotated[str, typer.Option(help="What the files are called.")] = "compare",
    seed: Annotated[int, typer.Option(help="Of the split, the choices and the controls.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
) -> None:
    """Run several channels on the same items: accuracy with interval, controls, and what each costs.

    Stopped runs go on, item by item, and what was run once is not run again: another channel is added to those that are
    there. The trials lie in .compared as JSON lines; delete that folder to begin anew.
    """
    with _errors_as_sentences():
        began = time.monotonic()
        if not name or Path(name).name != name:
            raise ValueError(f"--name is {name!r}; give a plain file name, and the folder by --out")
        from latentcomm.catalogue import LEARNED, check_names
        from latentcomm.comparing import Plan, compare_named, names_for
        from latentcomm.comparison_report import print_comparison, write_comparison
        from latentcomm.evaluation import forget_messages
        from latentcomm.learning import check_unseen, load_folder
        from latentcomm.models import load_model

        chosen = [each.strip().replace("-", "_") for each in channels.split(",") if each.strip()]
        if chosen:
            check_names(chosen, () if learned is None else LEARNED)
        asked = _task(task, template, sender_form, fame, seed, data, subjects, n_shots)
        plan = Plan(
            read_layer=None if read_layer < 0 else read_layer,
            write_layer=None if write_layer < 0 else write_layer,
            right_aligned=right_aligned,
            message_tokens=message_tokens,
            request=request,
            n_tune=n_tune,
            n_test=n_test or None,
            controls=tuple(each.strip() for each in controls.split(",") if each.strip()),
            n_thoughts=n_thoughts,
            seed=seed,
        )
        first = load_model(sender, dtype=dtype, device=device)
        second = first if receiver in ("", sender) else load_model(receiver, dtype=dtype, device=device)
        trained = {} if learned is None else load_folder(learned, first, second)
        for each in trained.values():
            check_unseen(each, asked.split(seed=seed)[1])
        chosen = chosen or [*names_for(first, second, right_aligned=right_aligned), *trained]
        settings = {
            "sender": first.name,
            "receiver": second.name,
            "task": task.value,
            "channels": chosen,
            "template": template.value,
            "sender_form": sender_form.value,
            "fame": fame.value,
            "data": without_folder(data),
            "subjects": subjects,
            "n_shots": n_shots,
            "device": device,
            "dtype": dtype,
            "weights": {name: digest(each.weights) for name, each in trained.items() if name in chosen},
        } | asdict(plan)
        how = {key: value for key, value in settings.items() if key not in ("channels", "controls", "weights")}
        kept = out / ".compared" / digest(how)[:16]
        found, cell = compare_named(
            chosen,
            first,
            second,
            asked,
            plan=plan,
            learned={name: each.channel for name, each in trained.items()},
            checkpoint=kept,
            progress=True,
        )
        published = write_comparison(
            found,
            name=name,
            folder=out,
            settings=settings | ({} if cell is None else {"chosen_read_layer": cell[0], "chosen_write_layer": cell[1]}),
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            models={"sender": first, "receiver": second},
        )
        forget_messages(kept)
        if cell is not None:
            print(f"states are read after block {cell[0]} and written after block {cell[1]}")
        print_comparison(found, Console(width=None if sys.stdout.isatty() else 140))
        print(f"wrote {published.page} (open it in a browser), {published.data.name}, {name}_trials.csv")
        print(f"took {time.monotonic() - began:.0f} s")


@app.command("train")
def train_channels(
    channels: Annotated[str, typer.Argument(help="Comma-separated, of those that learn; see the documentation.")],
    task: Annotated[TaskName, typer.Option(help="What is asked.")] = TaskName.countries,
    sender: Annotated[str, typer.Option(help="Built-in name, hub id, directory or .gguf file.")] = DEFAULT_MODEL,
    receiver: Annotated[str, typer.Option(help="The same; by default the sender itself.")] = "",
    template: Annotated[TemplateName, typer.Option(help="Prompts as they stand, or as a chat.")] = TemplateName.raw,
    sender_form: Annotated[SenderForm, typer.Option(help="What the sender reads.")] = SenderForm.primed,
    fame: Annotated[Fame, typer.Option(help="Which landmarks (countries only).")] = Fame.all,
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "",
    subjects: Annotated[str, typer.Option(help="Of mmlu: comma-separated; the five of the paper by default.")] = "",
    n_shots: Annotated[int, typer.Option(help="Of gsm8k and mmlu: solved examples before the question.", min=0)] = 0,
    read_layer: Annotated[int, typer.Option(help="Of the sender; chosen on the tuning half where left out.")] = -1,
    write_layer: Annotated[int, typer.Option(help="Of the receiver; the same.")] = -1,
    steps: Annotated[int, typer.Option(help="Updates; 0 leaves each channel its default.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Examples an update; 0: the default.", min=0)] = 0,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW; 0: the default.", min=0)] = 0.0,
    plan_tokens: Annotated[int, typer.Option(help="Of Interlat: how long the sender's plan gets.", min=1)] = 8,
    n_steps: Annotated[int, typer.Option(help="Of Interlat: compress the plan to so many latents.", min=0)] = 0,
    every: Annotated[int, typer.Option(help="Of CALM: every how many layers of the sender are read.", min=1)] = 4,
    out: Annotated[Path, typer.Option(help="Folder of the trained channels.")] = Path("weights"),
    seed: Annotated[int, typer.Option(help="Of the split and of the training.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the training's arithmetic: float32 or bfloat16.")] = "float32",
) -> None:
    """Train the channels that learn on the tuning half of a task, both models frozen; `compare --weights` asks the
    other half.

    Stopped trainings go on: the same command takes them up where they were, to the same bits.
    """
    with _errors_as_sentences():
        from latentcomm.catalogue import LEARNED
        from latentcomm.learning import LearningPlan, learn
        from latentcomm.models import load_model

        names = [each.strip().replace("-", "_") for each in channels.split(",") if each.strip()]
        if not names or any(name not in LEARNED for name in names):
            raise ValueError(f"the channels to train are {channels!r}; choose among {', '.join(LEARNED)}")
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype is {dtype!r}; train in float32 or bfloat16")
        asked = _task(task, template, sender_form, fame, seed, data, subjects, n_shots)
        plan = LearningPlan(
            steps=steps or None,
            batch_size=batch_size or None,
            learning_rate=learning_rate or None,
            dtype="bfloat16" if dtype == "bfloat16" else "float32",
            read_layer=None if read_layer < 0 else read_layer,
            write_layer=None if write_layer < 0 else write_layer,
            plan_tokens=plan_tokens,
            n_steps=n_steps or None,
            every=every,
            seed=seed,
        )
        first = load_model(sender, device=device)
        second = first if receiver in ("", sender) else load_model(receiver, device=device)
        settings = (first.fingerprint, second.fingerprint, asked, plan)
        kept = out / ".unfinished" / digest(*settings)[:16]
        for name in names:
            learned = learn(name, first, second, asked, plan=plan, checkpoint=kept, progress=True)
            learned.save(out / f"{name}.safetensors")
            (kept / f"{name}.safetensors").unlink(missing_ok=True)
            facts = learned.facts["training"]
            print(f"wrote {out / name}.safetensors: {facts['updates']} updates in {facts['seconds']:.0f} s")
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(OSError):  # another stopped run's work is in it
            kept.parent.rmdir()


@app.command()
def models() -> None:
    """List the built-in models: size, licence, source, and whether they are on disk."""
    table = Table("name", "parameters", "download", "licence", "on disk", "source")
    for entry in weights.BUILT_IN.values():
        place = "yes" if weights.is_on_disk(entry) else "no"
        table.add_row(entry.name, entry.parameters, f"{entry.megabytes} MB", entry.licence, place, entry.source)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"kept in {weights.cache_folder()}; any hub id, local directory or .gguf file can be given as well")


def _fusions(names: str, right_aligned: bool) -> dict[str, Fusion]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen:
        raise ValueError(f"--fusion names none; choose among {', '.join(FUSION_NAMES)}")
    for name in chosen:
        if name not in FUSION_NAMES:
            raise ValueError(f"there is no fusion {name!r} on the command line; choose among {', '.join(FUSION_NAMES)}")
    wrap: Callable[[Fusion], Fusion] = RightAligned if right_aligned else lambda plain: plain
    return {name: wrap(FUSION_NAMES[name]) for name in chosen}


def _layers(text: str, option: str) -> list[int] | None:
    """Layers of "0-3,8": [0, 1, 2, 3, 8]."""
    if not text.strip():
        return None
    layers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()) or (dash and int(high) < int(low)):
            raise ValueError(f"{option} is {text!r}; write layers as 20,24,28 or as a range 20-28")
        layers += range(int(low), int(high or low) + 1)
    return layers


def _task(
    task: TaskName,
    template: TemplateName,
    sender_form: SenderForm,
    fame: Fame,
    seed: int,
    data: str = "",
    subjects: str = "",
    n_shots: int = 0,
) -> Task:
    from latentcomm.tasks import biographies, countries, gsm8k, kv_math, mmlu, prosqa, tip_sheets
    from latentcomm.tasks.mmlu import SUBJECTS

    if data and task in (TaskName.countries, TaskName.tip_sheets, TaskName.kv_math, TaskName.prosqa):
        raise ValueError(f"the task {task.value} makes its own items; leave --data out")
    if (subjects and task is not TaskName.mmlu) or (n_shots and task not in (TaskName.gsm8k, TaskName.mmlu)):
        raise ValueError(f"--subjects is for mmlu and --n-shots for gsm8k and mmlu; leave them out for {task.value}")
    source = data or None
    if task is TaskName.countries:
        which = None if fame is Fame.all else fame.value
        return countries(template=template.value, sender_form=sender_form.value, fame=which)
    if fame is not Fame.all or sender_form is SenderForm.entity:
        raise ValueError(f"--fame and --sender-form entity are for the task countries; leave them out for {task.value}")
    if task is TaskName.gsm8k:
        return gsm8k(source, template=template.value, n_shots=n_shots, seed=seed)
    if task is TaskName.mmlu:
        chosen = [each.strip() for each in subjects.split(",") if each.strip()] or SUBJECTS
        return mmlu(source, subjects=chosen, template=template.value, n_shots=n_shots, seed=seed)
    if task is TaskName.biographies:
        return biographies(source, template=template.value)
    if task is TaskName.kv_math:
        return kv_math(template=template.value, seed=seed)
    if task is TaskName.prosqa:
        return prosqa(seed=seed, template=template.value)
    return tip_sheets(n=200, seed=seed, template=template.value, sender_form=sender_form.value)
