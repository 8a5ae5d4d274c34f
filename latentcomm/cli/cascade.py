"""`latentcomm cascade`: a large model opens the reasoning and a small one finishes it."""

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
"""What a layer is where it is left out: that at two thirds of the model's depth."""


def cascade(
    large: Annotated[str, Option(help="Opens the reasoning: built-in name, hub id, directory or .gguf file.")],
    small: Annotated[str, Option(help="Finishes it: the same.")] = DEFAULT_MODEL,
    task: TaskOption = TaskName.gsm8k,
    data: DataOption = "",
    template: TemplateOption = TemplateName.raw,
    subjects: SubjectsOption = "",
    n_shots: ShotsOption = 0,
    shots: Annotated[str, Option(help="Of gsm8k: the file that solved examples are drawn from.")] = "",
    n: Annotated[str, Option(help="Comma-separated: tokens by the large model; 0 is the small model alone.")] = (
        "0,8,16,32,64,128"
    ),
    stop: Annotated[
        str,
        Option(help="Comma-separated: entropy-drop, early-drop, confident, sentence-end, oracle; or how they begin."),
    ] = "entropy-drop",
    hand_off: Annotated[str, Option(help="Comma-separated: text, latent, graft, kv; see the documentation.")] = "text",
    controls: Annotated[
        str,
        Option(help="Comma-separated: other, zero, random, own, self-consistency. Both models alone are always run."),
    ] = "other,zero,random,own,self-consistency",
    read_layer: Annotated[
        int, Option(help="Of latent and graft: after which block of the large model; by default at 2/3 of its depth.")
    ] = AT_DEPTH,
    write_layer: Annotated[int, Option(help="Of graft: the same of the small model.")] = AT_DEPTH,
    corpus: Annotated[
        Path | None, Option(help="What maps are fitted on: as in diagnose; by default the text of the package.")
    ] = None,
    n_items: Annotated[int, Option(help="Items that are asked; 0: all.", min=0)] = 100,
    reply_tokens: Annotated[int, Option(help="Of opening and continuation at most; 0: the task's own.", min=0)] = 0,
    out: OutOption = Path("figures"),
    name: NameOption = "cascade",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Let a large model write n tokens and a small one finish: accuracy against n and against cost, with all controls.

    The large model writes once for every n and every stop. Stopped runs go on: the same command takes up what is done,
    until it has finished once.
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
        asked = make_task(task, template, SenderForm.primed, Fame.all, seed, data, subjects, n_shots, shots)
        asked = asked.take(n_items, seed=seed) if 0 < n_items < len(asked.items) else asked
        asked = replace(asked, reply_tokens=reply_tokens) if reply_tokens else asked
        groups = pairs_of(asked.items)
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
            "n_items": len(asked.items),
            "reply_tokens": asked.reply_tokens,
            "seed": seed,
            "device": device,
            "dtype": dtype,
        }
        with unfinished(out, settings, first, second) as kept:
            found = sweep_cascade(
                first,
                second,
                asked,
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
                checkpoint=kept,
                progress=True,
            )
            published = write_cascade(
                found,
                stops,
                name=name,
                folder=out,
                settings=settings,
                measured={"wall_seconds": round(time.monotonic() - began, 1)},
                models={"large": first, "small": second},
                groups=groups,
            )
        print_cascade(found.table(groups=groups, seed=seed), console(150))
        for one in published:
            print(f"wrote {one.page} (open it in a browser), {one.data.name}, {one.figure.name}, {one.meta.name}")
        print(f"wrote {name}_trials.jsonl: all that was written, item by item, and {name}_tokens.csv: all signals")
        print(f"took {time.monotonic() - began:.0f} s")


def _numbers(text: str) -> list[int]:
    """Numbers of tokens of "0,8,16": [0, 8, 16]."""
    parts = listed(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--n is {text!r}; give numbers of tokens with commas between them, such as 0,8,16,32")
    return sorted({int(part) for part in parts})
