"""The diagnosis of a pair of models: all measurements in order, each saved when it is done."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from latentcomm import alignment
from latentcomm._core.budget import budget
from latentcomm._core.files import digest, expanded, without_folder
from latentcomm._core.linalg import with_float64
from latentcomm._core.records import Records
from latentcomm._core.version import __version__
from latentcomm.alignment import fit_ridge
from latentcomm.drift import reference as drift_reference
from latentcomm.experiments.diagnosis.alikeness import predictability_table, similarity_table
from latentcomm.experiments.diagnosis.cells import (
    Aligner,
    ChosenCell,
    calibration_table,
    choose_cells,
    fit_joints,
    fit_references,
)
from latentcomm.experiments.diagnosis.fusions import FUSIONS, Fitted
from latentcomm.experiments.diagnosis.grafts import (
    choose_items,
    drift_table,
    effects_table,
    graft_items,
    healing_table,
    own_percentiles,
)
from latentcomm.experiments.diagnosis.recommend import ALARM, Situation, cell_table, recommend, warn
from latentcomm.experiments.diagnosis.result import Diagnosis
from latentcomm.experiments.diagnosis.rows import Rows, ordinary_rows
from latentcomm.experiments.diagnosis.settings import FILES, PAGE, RECORD, Size, layers_in_steps
from latentcomm.experiments.folder import forget, large_work, note_large, refuse_unwritable
from latentcomm.experiments.settings import SAVED
from latentcomm.fusion import Fusion
from latentcomm.hooks.paired_text import PairedTokens, capture_paired, capture_paired_to_disk, pair_tokens
from latentcomm.models import Model, check_pair, fingerprints
from latentcomm.tasks.corpus import Corpus, read_corpus

__all__ = ["diagnose"]

FORMATS = (1, alignment.FILE_KIND, drift_reference.FILE_KIND)
"""Of the saved parts: a run stopped under another one starts over. Raise the first when a part changes."""
FEWEST_DOCUMENTS = 24
"""Half of them are the 12 that a calibrated drift reference needs."""
CALIBRATED = 3
"""Layers at which the detectors are tested on known-off states: the first, the middle and the last write layer."""


def diagnose(
    sender: Model,
    receiver: Model,
    *,
    corpus: Corpus | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    fusions: Mapping[str, Fusion | Fitted] = FUSIONS,
    aligner: Aligner | None = fit_ridge,
    size: Size = Size(),  # noqa: B008 (frozen)
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Diagnosis:
    """Measure a pair of models on a corpus: how alike they are, what the receiver lacks, and where a graft drifts.

    Both models read the same documents; tokens that end at the same character are paired, sinks left out by position
    and norm, the documents split in half. On all rows: debiased CKA and held-out R^2 of every pair of layers, with the
    nulls of permuted documents. On the fit half: drift references of the receiver's own states, and the maps. On
    the held-out half: the effects of each fusion at each write layer with three messages, read at the sender layer that
    predicts the write layer best.

    Args:
        corpus: a corpus or its file or folder (`latentcomm.tasks.corpus.read_corpus`); the packaged text by default.
        out: a folder for report.html and the tables as CSV. Finished parts are saved in it, so that the same call
            resumes after an interruption, with bit-identical results.
        fusions: by name; `Fitted` for one that takes a map from the receiver's states to the messages.
        aligner: fits the map from another model's messages to the receiver's states, with the options `folds`, `groups`
            and `seed` of `fit_ridge`; None leaves messages unchanged, on the last entries where the widths differ
            (`RightAligned`). A model with itself needs none.
        size: how much is measured.
        seed: of the halves, folds, draws and prompts.
        overwrite: whether another report in `out` is written over.

    Raises:
        ValueError: no fusion, a processed model with a raw one, a corpus with too few documents or rows, states that
            are not finite, a corpus that cannot be read, or a folder that holds a report of something else.
        RuntimeError: the disk is full or `out` cannot be written; finished parts stay saved.
    """
    began = time.monotonic()
    if not fusions:
        raise ValueError("there is no fusion; give at least one, such as {'replace': Replace()}")
    check_pair(sender, receiver)
    texts = corpus if isinstance(corpus, Corpus) else read_corpus(corpus)
    n_tokens = min(size.tokens, sender.n_ctx, receiver.n_ctx)
    order = torch.randperm(len(texts.documents), generator=torch.Generator().manual_seed(seed)).tolist()
    documents = [texts.documents[number] for number in sorted(order[: size.documents])]
    check_documents(texts.name, len(documents))
    tokens = pair_tokens(sender, receiver, documents, max_tokens=n_tokens)
    prints: dict[str, str] = dict(zip(("sender", "receiver"), fingerprints(sender, receiver), strict=True))
    choices: dict[str, Any] = {
        "corpus": texts.name,
        "corpus_sha256": texts.sha256,
        "documents": len(documents),
        "tokens_a_document": n_tokens,
        "size": asdict(size),
        "seed": seed,
        "fusions": {name: _described(fusion) for name, fusion in fusions.items()},
        "aligner": None if aligner is None else getattr(aligner, "__qualname__", repr(aligner)),
    }
    if budget() is not None:
        choices["memory"] = budget()
    inputs = _key(choices, prints, sender, receiver, fusions)
    target = None if out is None else expanded(out)
    if target is not None:
        refuse_unwritable(target)
        if not overwrite:
            _require_own(target, inputs)
    folder = None if target is None else target / SAVED / inputs
    records = Records(folder)

    def measured() -> dict[str, Any]:
        return _measured(
            tokens,
            sender,
            receiver,
            capture=None if folder is None else folder / "capture",
            fusions=fusions,
            aligner=aligner,
            size=size,
            seed=seed,
            n_documents=len(documents),
            fingerprint=prints["receiver"],
            records=records,
            progress=progress,
        )

    with large_work() as large:
        if folder is not None:  # the states are as large as all else is small
            note_large(folder / "capture")
        found = records.values(f"result-{__version__}", measured)
        tables = {name: _table(columns) for name, columns in found["tables"].items()}
        diagnosis = Diagnosis(
            **tables,
            recommended=recommend(tables["cells"]),
            warnings=tuple(found["warnings"]),
            settings=choices | found["facts"] | {"inputs_digest": inputs},
            models={
                role: _model_facts(model, prints[role]) for role, model in (("sender", sender), ("receiver", receiver))
            },
            seconds=time.monotonic() - began,
        )
        if target is not None:
            from latentcomm.experiments.diagnosis.report import (
                write_report,  # plotly takes a second to import
            )

            write_report(diagnosis, target)
            forget(large)
    return diagnosis


def check_documents(name: str, n_documents: int) -> None:
    """Refuse a corpus of too few documents.

    Raises:
        ValueError: there are fewer than `FEWEST_DOCUMENTS`.
    """
    if n_documents < FEWEST_DOCUMENTS:
        raise ValueError(
            f"{name} holds {n_documents} documents; a diagnosis splits them in half and calibrates on a part, so give "
            f"at least {FEWEST_DOCUMENTS}"
        )


def _measured(
    tokens: PairedTokens,
    sender: Model,
    receiver: Model,
    *,
    capture: Path | None,
    fusions: Mapping[str, Fusion | Fitted],
    aligner: Aligner | None,
    size: Size,
    seed: int,
    n_documents: int,
    fingerprint: str,
    records: Records,
    progress: bool,
) -> dict[str, Any]:
    """All that a diagnosis takes from the states of both models, as plain values: tables, facts and warnings."""
    if capture is None:
        states = capture_paired(sender, receiver, tokens, progress=progress)
    else:
        states = capture_paired_to_disk(sender, receiver, tokens, capture, progress=progress)
    rows = ordinary_rows(
        states.x,
        states.y,
        document=states.document,
        sender_position=states.sender_position,
        receiver_position=states.receiver_position,
        seed=seed,
        device=with_float64(receiver.device),
    )
    n_paired = len(states.document)
    del states
    tables, cells, facts = _tables(
        rows,
        tokens,
        sender,
        receiver,
        fusions=fusions,
        aligner=None if rows.one_model else aligner,
        size=size,
        seed=seed,
        fingerprint=fingerprint,
        records=records,
        progress=progress,
    )
    situation = Situation(
        identical=rows.one_model,
        one_vocabulary=tokens.sender is tokens.receiver,
        n_paired=n_paired,
        n_sender=int(tokens.sender.lengths.sum()),
        n_receiver=int(tokens.receiver.lengths.sum()),
        items_requested=size.prompts,
        items=facts["prompts"],
        documents_requested=size.documents,
        documents=n_documents,
        flagged_own=facts["own_states_flagged"],
    )
    mapped = {"mapped": aligner is not None and not rows.one_model}
    return {
        "tables": {name: _columns(table) for name, table in tables.items()},
        "facts": _row_facts(rows, situation, cells) | facts | mapped,
        "warnings": list(warn(rows, sender, receiver, situation, cells)),
    }


def _columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """The type and the values of each column of a table."""
    return {str(name): [str(column.dtype), column.tolist()] for name, column in table.items()}


def _table(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    """The table of `_columns`."""
    return pd.DataFrame({name: pd.Series(values, dtype=kind) for name, (kind, values) in columns.items()})


def _tables(
    rows: Rows,
    tokens: PairedTokens,
    sender: Model,
    receiver: Model,
    *,
    fusions: Mapping[str, Fusion | Fitted],
    aligner: Aligner | None,
    size: Size,
    seed: int,
    fingerprint: str,
    records: Records,
    progress: bool,
) -> tuple[dict[str, pd.DataFrame], list[ChosenCell], dict[str, Any]]:
    """Return all tables, the cells, and facts for the report: the numbers of prompts and reference states."""
    shared: dict[str, Any] = {"seed": seed, "records": records, "progress": progress}
    similarity = similarity_table(
        rows,
        sender_layers=layers_in_steps(sender.n_layers, size.map_layers),
        receiver_layers=layers_in_steps(receiver.n_layers, size.map_layers),
        draws=size.draws,
        **shared,
    )
    receiver_layers = layers_in_steps(receiver.n_layers, size.layers)
    predictability = predictability_table(
        rows,
        sender_layers=layers_in_steps(sender.n_layers, size.layers),
        receiver_layers=receiver_layers,
        folds=size.folds,
        **shared,
    )
    cells = choose_cells(predictability, n_sender=sender.n_layers, n_receiver=receiver.n_layers)
    last = receiver.n_layers - 1
    cells = [cell for cell in cells if cell.write != last] or cells
    measured_layers = sorted({*receiver_layers, last})
    references = fit_references(rows, measured_layers, model=fingerprint, **shared)
    writes = [cell.write for cell in cells]
    calibrated = sorted({writes[round(index * (len(writes) - 1) / (CALIBRATED - 1))] for index in range(CALIBRATED)})
    calibration = calibration_table(rows, references, calibrated, **shared)
    needed = any(isinstance(fusion, Fitted) for fusion in fusions.values())
    joints = fit_joints(rows, cells, aligner=aligner, predictable=needed, **shared)
    items = choose_items(rows, tokens, n=size.prompts, seed=seed)
    variants, effects = graft_items(
        rows, items, receiver, cells=cells, joints=joints, fusions=fusions, references=references, **shared
    )
    drift, after = drift_table(variants, effects, cells), effects_table(variants, effects, cells)
    own = own_percentiles(effects, cells)
    tables = {
        "similarity": similarity,
        "predictability": predictability,
        "calibration": calibration,
        "drift": drift,
        "effects": after,
        "healing": healing_table(variants, effects, cells, measured_layers),
        "cells": cell_table(drift, after, cells, own=own),
    }
    facts = {
        "prompts": len(items),
        "reference_states": min(reference.n_fitted for reference in references.values()),
        "reference_states_held_out": min(len(reference.held_out) for reference in references.values()),
        "own_states_flagged": float(np.mean([np.mean(own[write] >= ALARM) for write in writes])),
    }
    return tables, cells, facts


def _key(
    choices: Mapping[str, Any],
    prints: Mapping[str, str],
    sender: Model,
    receiver: Model,
    fusions: Mapping[str, Fusion | Fitted],
) -> str:
    """The name of the folder for these inputs, so that each stopped run has its own."""
    kinds = [str(model.dtype) for model in (sender, receiver)]
    rules = {name: _described(fusion) if isinstance(fusion, Fitted) else fusion for name, fusion in fusions.items()}
    return digest(choices, prints, kinds, rules, FORMATS)[:16]


def _require_own(out: Path, inputs: str) -> None:
    """Refuse a folder in which another report, or a file of its names, would be overwritten."""
    there = [out / name for name in (*FILES, PAGE) if (out / name).exists()]
    if not there:
        return
    record = next((path for path in there if path.name == RECORD), None)
    try:
        digest_there = json.loads(record.read_text("utf-8"))["settings"]["inputs_digest"] if record else None
    except (ValueError, KeyError, TypeError):  # another program's file of that name
        digest_there = None
    if digest_there != inputs:
        what = "the report of another diagnosis" if digest_there else f"a {there[0].name} that is not of this diagnosis"
        raise ValueError(
            f"{out} holds {what}, which this one would overwrite; choose another folder, or give overwrite=True"
        )


def _described(fusion: Fusion | Fitted) -> str:
    return f"fitted {fusion.make.__qualname__}" if isinstance(fusion, Fitted) else repr(fusion)


def _model_facts(model: Model, fingerprint: str) -> dict[str, Any]:
    """The facts about a model in the report."""
    tokenizer = model.require_tokenizer()
    return {
        "name": without_folder(model.name),
        "fingerprint": fingerprint,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": "TransformerBridge" if model.is_bridge else "HookedTransformer",
        "processed_weights": model.processed,
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
    }


def _row_facts(rows: Rows, situation: Situation, cells: list[ChosenCell]) -> dict[str, Any]:
    """The facts about rows and cells in the report."""
    return {
        "identical": situation.identical,
        "one_vocabulary": situation.one_vocabulary,
        "sender_tokens": situation.n_sender,
        "receiver_tokens": situation.n_receiver,
        "paired_rows": situation.n_paired,
        "rows_left_out": rows.left_out,
        "sinks_by_position": {"sender": rows.sinks_x.by_position, "receiver": rows.sinks_y.by_position},
        "sinks_by_norm": {"sender": rows.sinks_x.by_norm, "receiver": rows.sinks_y.by_norm},
        "rows": len(rows),
        "fit_rows": int(rows.fit.sum()),
        "fit_documents": len(rows.document[rows.fit].unique()),
        "held_out_documents": len(rows.document[~rows.fit].unique()),
        "read_layer_of_write_layer": {str(cell.write): cell.read for cell in cells},
        "read_by_depth": [cell.write for cell in cells if cell.by_depth],
    }
