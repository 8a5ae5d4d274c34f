"""`DiagnoseSettings` run: a pair of models before any graft."""

import json

from latentcomm._core.files import write_json
from latentcomm.experiments.diagnosis import run
from latentcomm.experiments.diagnosis._check import DiagnoseInputs
from latentcomm.experiments.diagnosis.result import Diagnosis
from latentcomm.experiments.diagnosis.settings import FILES, PAGE, RECORD, DiagnoseSettings, Size
from latentcomm.experiments.job import Job, Result, record_of
from latentcomm.experiments.maps import ALIGNMENTS, is_mapped
from latentcomm.fusion import BY_NAME
from latentcomm.reporting.terminal import Console

__all__ = ["run_diagnose"]


def run_diagnose(settings: DiagnoseSettings, job: Job, inputs: DiagnoseInputs) -> Result:
    """Diagnose; see `latentcomm.diagnose`, which writes the report and its tables itself.

    Raises:
        ValueError: what the settings, the corpus or the diagnosis refuse.
    """
    size = Size(documents=settings.documents, tokens=settings.tokens, prompts=settings.prompts, layers=settings.layers)
    sender, receiver = job.pair(settings)
    is_mapped(sender, receiver, settings.alignment)  # refuses unequal widths that nothing matches
    found = run.diagnose(
        sender,
        receiver,
        corpus=inputs.corpus,
        out=job.out,
        fusions=inputs.fusions,
        aligner=ALIGNMENTS.get(settings.alignment),
        size=size,
        seed=settings.seed,
        overwrite=True,  # the run's own claim on the folder was checked
        progress=job.progress,
    )
    if job.out is not None:
        record = json.loads((job.out / RECORD).read_text("utf-8"))
        write_json(job.out / RECORD, record | {"run": record_of(settings, job.in_memory)})
    return Result(
        settings=settings,
        found=found,
        table=found.cells,
        shown=found.settings,
        models=found.models,
        seconds=job.seconds,
        summary=lambda console: _summary(found, console),
        files=() if job.out is None else tuple(job.out / name for name in (PAGE, *FILES)),
    )


def _summary(found: Diagnosis, console: Console) -> None:
    for warning in found.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    for cell in found.recommended:
        console.print(
            f"try {cell.fusion}, k = {cell.read} (sender), j = {cell.write} (receiver): {cell.reason}",
            highlight=False,
            soft_wrap=True,
        )
    first = next((cell for cell in found.recommended if cell.fusion in BY_NAME), None)
    if first is not None:
        console.print(
            f"`latentcomm sweep --fusion {first.fusion.replace('_', '-')} --read-layer {first.read} --write-layer "
            f"{first.write}`, with the same models and alignment, judges it on a task",
            highlight=False,
            soft_wrap=True,
        )
    if not found.recommended:
        console.print("no cell is recommended; the report names the condition that fails in each", soft_wrap=True)
