"""`latentcomm diagnose`: a pair of models before any graft."""

from pathlib import Path
from typing import Annotated

import typer

from latentcomm.cli.options import DEFAULT_MODEL, DeviceOption, DtypeOption, ReceiverArgument, SenderArgument
from latentcomm.cli.shared import errors_as_sentences, load_pair, names


def diagnose(
    sender: SenderArgument = DEFAULT_MODEL,
    receiver: ReceiverArgument = "",
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
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Measure a pair before grafting: how alike the layers are, what the receiver lacks, where a graft drifts.

    Writes one report that opens in a browser without a network, and its tables beside it. Stopped runs go on.
    """
    with errors_as_sentences():
        from latentcomm.alignment import fit_ridge
        from latentcomm.experiments.diagnosis import FUSIONS, Size
        from latentcomm.experiments.diagnosis import diagnose as run
        from latentcomm.tasks.corpus import read_corpus

        size = Size(documents=documents, tokens=tokens, prompts=prompts, layers=layers)
        chosen = names(fusion) or list(FUSIONS)
        if unknown := [name for name in chosen if name not in FUSIONS]:
            raise ValueError(f"a diagnosis has no fusion {unknown[0]!r}; choose among {', '.join(FUSIONS)}")
        texts = read_corpus(corpus)
        first, second = load_pair(sender, receiver, device=device, dtype=dtype)
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
