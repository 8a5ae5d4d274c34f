"""`latentcomm cascade`: a large model generates a prefix of the reply and a small one continues it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from latentcomm._core.files import digest, without_folder
from latentcomm.cli.options import (
    DEFAULT_MODEL,
    DataOption,
    DeviceOption,
    DtypeOption,
    Fame,
    NameOption,
    OutOption,
    SeedOption,
    SenderForm,
    ShotsOption,
    SubjectsOption,
    TaskName,
    TaskOption,
    TemplateName,
    TemplateOption,
)
from latentcomm.cli.shared import (
    check_file_name,
    console,
    errors_as_sentences,
    layer_or_none,
    listed,
    load_pair,
    make_task,
    unfinished,
)

AT_DEPTH = -1
"""The value of a layer that is not given: the block at two thirds of the model's depth is used."""


def cascade(
    large: Annotated[str, Option(help="Generates the opening: built-in name, hub id, directory or .gguf file.")],
    small: Annotated[str, Option(help="Continues it: the same.")] = DEFAULT_MODEL,
    task: TaskOption = TaskName.gsm8k,
    data: DataOption = "",
    template: TemplateOption = TemplateName.raw,
    subjects: SubjectsOption = "",
    n_shots: ShotsOption = 0,
    shots: Annotated[str, Option(help="Of gsm8k: the file of solved examples to draw from.")] = "",
    n: Annotated[str, Option(help="Comma-separated: tokens by the large model; 0 is the small model alone.")] = (
        "0,8,16,32,64,128"
    ),
    stop: Annotated[
        str,
        Option(
            help="Comma-separated: entropy-drop, early-drop, confident, sentence-end, oracle; or a prefix of a name."
        ),
    ] = "entropy-drop",
    hand_off: Annotated[str, Option(help="Comma-separated: text, latent, graft, kv; see the documentation.")] = "text",
    controls: Annotated[
        str,
        Option(help="Comma-separated: other, zero, random, own, self-consistency. Both models alone are always run."),
    ] = "other,zero,random,own,self-consistency",
    read_layer: Annotated[
        int,
        Option(help="Of latent and graft: the block of the large model to read after; by default at 2/3 of its depth."),
    ] = AT_DEPTH,
    write_layer: Annotated[
        int, Option(help="Of graft: the block of the small model to write after; the same.")
    ] = AT_DEPTH,
    corpus: Annotated[
        Path | None, Option(help="Documents to fit maps on: as in diagnose; by default the packaged corpus.")
    ] = None,
    n_items: Annotated[int, Option(help="Items that are run; 0: all.", min=0)] = 100,
    reply_tokens: Annotated[int, Option(help="Of opening and continuation at most; 0: the task's own.", min=0)] = 0,
    out: OutOption = Path("figures"),
    name: NameOption = "cascade",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Let a large model write n tokens and a small one finish: accuracy against n and against cost, with all controls.

    The large model generates once for every n and every stop. An interrupted run resumes: the same command reuses
    finished work, until it has finished once.
    """
    with errors_as_sentences():
        began = time.monotonic()
        check_file_name(name)
        from latentcomm.experiments.cascade import sweep_cascade
        from latentcomm.experiments.cascade.by_name import hand_offs_named, refuse_hand_offs, stops_named
        from latentcomm.experiments.cascade.report import print_cascade, write_cascade
        from latentcomm.tasks.corpus import read_corpus
        from latentcomm.tasks.kv_math_worked import pairs_of

        ns, stops, wanted = _numbers(n), stops_named(listed(stop)), listed(hand_off)
        refuse_hand_offs(wanted)
        run_task = make_task(task, template, SenderForm.primed, Fame.all, seed, data, subjects, n_shots, shots)
        run_task = run_task.take(n_items, seed=seed) if 0 < n_items < len(run_task.items) else run_task
        run_task = replace(run_task, reply_tokens=reply_tokens) if reply_tokens else run_task
        groups = pairs_of(run_task.items)
        documents = None if corpus is None else read_corpus(corpus).documents
        first, second = load_pair(large, small, device=device, dtype=dtype)
        settings = {
            "large": first.name,
            "small": second.name,
            "task": task.value,
            "data": without_folder(data),
            "template": template.value,
            "subjects": subjects,
            "n_shots": n_shots,
            "shots": without_folder(shots),
            "ns": ns,
            "stops": {key: repr(each) for key, each in stops.items()},
            "hand_offs": wanted,
            "controls": listed(controls),
            "read_layer": layer_or_none(read_layer),
            "write_layer": layer_or_none(write_layer),
            "corpus": None if documents is None else digest(documents),
            "n_items": len(run_task.items),
            "reply_tokens": run_task.reply_tokens,
            "seed": seed,
            "device": device,
            "dtype": dtype,
        }
        with unfinished(out, settings, first, second) as checkpoint:
            swept = sweep_cascade(
                first,
                second,
                run_task,
                hand_offs=hand_offs_named(
                    wanted,
                    first,
                    second,
                    documents,
                    read_layer=layer_or_none(read_layer),
                    write_layer=layer_or_none(write_layer),
                    seed=seed,
                ),
                ns=ns,
                stops=stops,
                controls=listed(controls),
                seed=seed,
                checkpoint=checkpoint,
                progress=True,
            )
            published = write_cascade(
                swept,
                stops,
                name=name,
                folder=out,
                settings=settings,
                measured={"wall_seconds": round(time.monotonic() - began, 1)},
                models={"large": first, "small": second},
                groups=groups,
            )
        print_cascade(swept.table(groups=groups, seed=seed), console(150))
        for figure in published:
            files = f"{figure.data.name}, {figure.figure.name}, {figure.meta.name}"
            print(f"wrote {figure.page} (open it in a browser), {files}")
        print(f"wrote {name}_trials.jsonl: all replies, item by item, and {name}_tokens.csv: all signals")
        print(f"took {time.monotonic() - began:.0f} s")


def _numbers(text: str) -> list[int]:
    """The numbers of tokens in a list such as "0,8,16": [0, 8, 16]."""
    parts = listed(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--n is {text!r}; give numbers of tokens, comma-separated, such as 0,8,16,32")
    return sorted({int(part) for part in parts})
