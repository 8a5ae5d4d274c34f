"""The report of a diagnosis: one self-explanatory page, and every table as a CSV file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentcomm._core.files import write_json, write_text
from latentcomm.experiments.diagnosis.recommend import SHORT
from latentcomm.experiments.diagnosis.result import Diagnosis
from latentcomm.experiments.diagnosis.sentences import (
    FUSION_WORDS,
    fusion_overview,
    kl_by_layer,
    next_token_changes,
    shown_name,
    summary,
    title,
)
from latentcomm.experiments.diagnosis.settings import FILES, MESSAGES, PAGE, RECORD
from latentcomm.reporting.html_page import Page, shade
from latentcomm.reporting.plots import detector_table, drift_violins, healing_curves, pair_map
from latentcomm.reporting.publish import machine, plain, versions, write_table

__all__ = ["report_page", "write_report"]

READ, NULL, LIMITS, CHOSEN = "How to read it", "The null", "What it does not show", "How they are chosen"
"""The names of remarks below a figure."""


def write_report(found: Diagnosis, out: Path) -> Path:
    """Write report.html, a CSV a table and report.meta.json into a folder; each file whole or not at all.

    Raises:
        RuntimeError: the disk is full or the folder cannot be written.
    """
    record = {
        "settings": plain(found.settings),
        "models": plain(found.models),
        "recommended": [vars(one) for one in found.recommended],
        "warnings": list(found.warnings),
        "versions": versions(),
        "machine": machine(),
        "not_compared": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "measured": {"seconds": round(found.seconds, 1)},
        },
    }
    write_json(out / RECORD, record)  # first: it identifies the files if the rest is not written
    for name, table in found.tables.items():
        write_table(table, out / f"{name}.csv")
    write_text(out / PAGE, report_page(found).html())
    return out / PAGE


def report_page(found: Diagnosis) -> Page:
    """The page, from the tables and settings alone."""
    page = Page(
        f"Diagnosis: {title(found)}",
        "What happens when one language model's hidden states are sent to another: how similar the two are, what the "
        "receiver already knows, and which fusions of a message leave it in a state that it could have reached by "
        "itself.",
    )
    page.heading("In short")
    page.findings(summary(found))
    page.text(
        "This is a diagnostic on plain text, not a test of usefulness: it does not show that the receiver answers any "
        "question better."
    )
    _overview(page, found)
    if found.warnings:
        page.heading("Warnings")
        page.bullets(found.warnings, kind="warnings")
    _models(page, found)
    _maps(page, found)
    _calibration(page, found)
    _drift(page, found)
    _effects(page, found)
    _healing(page, found)
    _cells(page, found)
    _settings(page, found)
    return page


def _overview(page: Page, found: Diagnosis) -> None:
    rows, shades = [], []
    overview = fusion_overview(found.cells)
    most = max(max(row[f"kl_{short}"] for short in SHORT.values()) for row in overview)
    for row in overview:
        flagged = [row[f"flagged_{short}"] for short in SHORT.values()]
        moved = [row[f"kl_{short}"] for short in SHORT.values()]
        rows.append([shown_name(row["fusion"]), *(f"{share:.0%}" for share in flagged), *(f"{kl:.2f}" for kl in moved)])
        shades.append([*(shade(share, 1.0) for share in flagged), *(shade(kl, most) for kl in moved)])
    head = ["fusion", *(f"flagged, {message}" for message in MESSAGES), *(f"KL, {message}" for message in MESSAGES)]
    page.table(
        head,
        rows,
        shades=shades,
        caption=f"Over {found.settings['prompts']} prompts at each of {found.cells['write_layer'].nunique()} write "
        "layers: share of fused states flagged as unlike real ones (of the receiver's own states at the same "
        f"positions: {found.settings['own_states_flagged']:.0%}; it should be 5%), and how far the next-token "
        "distribution moves (nats, median).",
    )
    described = {shown_name(name): FUSION_WORDS[name] for name in found.settings["fusions"] if name in FUSION_WORDS}
    others = {shown_name(name): rule for name, rule in found.settings["fusions"].items() if name not in FUSION_WORDS}
    page.notes(
        described
        | others
        | {
            "Messages": "“same text”: the sender's state at the end of the same text that the receiver reads; “other "
            "text”: its state at the end of another document's text; “random”: a random direction of the same norm."
        }
    )


def _models(page: Page, found: Diagnosis) -> None:
    page.heading("The two models")
    sender, receiver = found.models["sender"], found.models["receiver"]
    lines = {
        "name": "name",
        "n_layers": "layers",
        "d_model": "width of the residual stream",
        "fingerprint": "fingerprint of the weights (SHA-256, first 16 digits)",
        "dtype": "number format",
        "backend": "TransformerLens backend",
        "processed_weights": "processed weights",
        "tokenizer": "tokenizer",
        "vocabulary": "tokens in its vocabulary",
    }
    page.table(
        ["", "sender", "receiver"],
        [[label, _shown(key, sender), _shown(key, receiver)] for key, label in lines.items()],
    )
    settings = found.settings
    paired = (
        "Both tokenize texts identically, so every token is compared."
        if settings["one_vocabulary"]
        else f"They tokenize texts differently: {settings['sender_tokens']:,} and {settings['receiver_tokens']:,} "
        f"tokens, of which {settings['paired_rows']:,} pairs end at the same character and are compared."
    )
    page.text(
        f"{paired} {settings['documents']} documents of {settings['corpus']} were read, at most "
        f"{settings['tokens_a_document']} tokens of each. {settings['rows_left_out']:,} rows were left out as "
        "attention sinks (each text's first token, and tokens whose state has more than five times the median "
        f"norm at some layer), which leaves {settings['rows']:,}; {settings['fit_rows']:,} of "
        f"{settings['fit_documents']} documents fit maps and references, and the other "
        f"{settings['held_out_documents']} documents are held out. Layers count from 0; a layer's state is the "
        "residual stream after its block."
    )


def _maps(page: Page, found: Diagnosis) -> None:
    page.heading("How alike are the layers?")
    names = {role: found.models[role]["name"] for role in ("sender", "receiver")}
    documents = found.settings["fit_documents"] + found.settings["held_out_documents"]
    rows, null_rows = (int(found.similarity[column].iloc[0]) for column in ("rows", "null_rows"))
    page.figure(
        pair_map(
            found.similarity,
            value="debiased_cka",
            null="null_max",
            title="Similarity of every pair of layers",
            unit="debiased CKA",
            note=f"Debiased linear CKA of RMS-normalised states at the same {rows:,} tokens of {documents} documents, "
            "sinks left out.",
            **names,
        )
    )
    page.notes(
        {
            READ: "Each cell compares one layer of the sender with one of the receiver: 1 is the same "
            "geometry up to rotation and scale, 0 is unrelated; cells below the null are no more alike than the best "
            "pair of layers reading unrelated texts.",
            NULL: "Each document is paired with another, token by token, and the largest value on the map is taken: "
            f"97.5% of {found.settings['size']['draws']} such permutations, {null_rows:,} tokens each, stay below it.",
            LIMITS: "Whether one layer can replace the other, or which features they share.",
        }
    )
    page.heading("How well does one model's state predict the other's?")
    rows, null_rows = (int(found.predictability[column].iloc[0]) for column in ("rows", "null_rows"))
    for value, null, heading in (
        ("forward", "forward_null", "Receiver predicted from sender"),
        ("backward", "backward_null", "Redundancy: sender predicted from receiver, what the message repeats"),
    ):
        if found.settings["identical"] and value == "forward":
            continue  # for one model the maps are transposes of each other
        page.figure(
            pair_map(
                found.predictability,
                value=value,
                null=null,
                title=heading,
                unit="held-out R²",
                note=f"Ridge regression, R² on documents that the map was not fitted on: {rows:,} tokens, "
                f"{found.settings['size']['folds']} folds of {documents} documents.",
                **names,
            )
        )
    page.notes(
        {
            READ: "The share of one state's variance that a linear map of the other predicts on unseen "
            "documents, RMS-normalised; 0 is no better than the mean. "
            + (
                "It is the redundancy of a message: that share of it the receiver already holds. With one model the "
                "other direction, the receiver predicted from the sender, is the same map, transposed."
                if found.settings["identical"]
                else "The second map is redundancy: that share of the sender's message the receiver already holds."
            ),
            NULL: f"The same with each document paired with another, once, with {null_rows:,} tokens; cell by cell.",
            LIMITS: "Whether the receiver uses what is predictable, and what a nonlinear map would find.",
        }
    )


def _calibration(page: Page, found: Diagnosis) -> None:
    page.heading("Can the drift detectors be believed here?")
    page.figure(
        detector_table(
            found.calibration,
            title="Detectors tested on states that are known to be off",
            note="AUROC against held-out real states; 0.5 is chance, 1 is never wrong. References of "
            f"{found.settings['reference_states']:,} states; of {found.settings['reference_states_held_out']:,} held "
            "out, half are the real ones and half are made into the families.",
        )
    )
    page.notes(
        {
            READ: "Each family is made from the receiver's real states in a known way. A detector that stays "
            "near 0.5 for a family is blind to that kind of drift at this layer; the family “real” must stay there.",
            "Flagged": "A flagged state has a percentile of 0.95 or more by “combined”, which uses six of the "
            "detectors at once.",
            LIMITS: "Whether such a state does any harm.",
        }
    )


def _drift(page: Page, found: Diagnosis) -> None:
    page.heading("Are grafted states like real ones?")
    page.figure(
        drift_violins(
            found.drift,
            detector="combined",
            title="Drift of every fusion at every write layer",
            note=f"{found.settings['prompts']} held-out prompts; two-sided percentile among "
            f"{found.settings['reference_states_held_out']:,} of the receiver's own states.",
        )
    )
    page.notes(
        {
            READ: "0.5 is a typical real state; above 0.95 lies one real state in twenty, so points there "
            "are states that the receiver hardly ever reaches by itself. References are fitted on the receiver's "
            "states at all tokens of other documents: in a causal model each is the last-token state of the text so "
            "far.",
            LIMITS: "Harm. Another text's state is perfectly real and wrong; a flagged state may change "
            "nothing. See the next table.",
        }
    )


def _effects(page: Page, found: Diagnosis) -> None:
    page.heading("Do grafts change the next token?")
    writes, lines = kl_by_layer(found.cells)
    most = max((max(values) for _, _, values in lines), default=0.0)
    reads = found.settings["read_layer_of_write_layer"]
    head = ["fusion, message", *(f"{reads[str(write)]} → {write}" for write in writes)]
    page.table(
        head,
        [
            [f"{shown_name(fusion)}, {message}", *(f"{value:.2f}" for value in values)]
            for fusion, message, values in lines
        ],
        shades=[[shade(value, most) for value in values] for _, _, values in lines],
        group=len(MESSAGES),
        caption=f"KL of the next-token distribution from the ungrafted run (nats, median over "
        f"{found.settings['prompts']} prompts), by read layer → write layer.",
    )
    page.notes(
        {
            READ: f"0 changes nothing. {next_token_changes(found.effects)} A small number for “same text” with a "
            "large one for “other text” means that the receiver depends on the content of the message; equally large "
            "ones mean that the graft itself disturbs it.",
            "Read layer": "Each write layer is paired with the sender layer that predicts it best on unseen documents "
            "(the one at the same relative depth where none does).",
            LIMITS: "Whether the change is for the better.",
        }
    )


def _healing(page: Page, found: Diagnosis) -> None:
    page.heading("Does the deviation heal at later layers?")
    page.figure(
        healing_curves(
            found.healing,
            effects=found.effects,
            title="After the graft: what remains of it at each later layer",
            note=f"Median and quartiles over {found.settings['prompts']} prompts.",
        )
    )
    page.notes(
        {
            READ: "Deviation is the distance from the ungrafted state as a share of its norm; falling curves "
            "heal, rising ones grow. The percentile shows whether the state is typical of real ones again.",
            LIMITS: "Recovery. A state can be typical again and still lead to other tokens: compare the "
            "percentile with the KL above.",
        }
    )


def _cells(page: Page, found: Diagnosis) -> None:
    page.heading("Cells to try first")
    if not found.recommended:
        page.text("None qualifies; cells.csv shows each cell's numbers.")
    else:
        if found.settings["identical"]:
            page.text(
                "With one model the first two conditions hold by construction. These cells differ in how much another "
                "text's message moves the receiver."
            )
        page.findings(
            [
                (
                    f"{shown_name(one.fusion)}: read after layer {one.read}, write after layer {one.write}",
                    f"{one.reason[0].upper()}{one.reason[1:]}.",
                )
                for one in found.recommended
            ]
        )
    page.notes(
        {
            CHOSEN: "The sender's layer predicts the receiver's above its null; at most a quarter of the fused states "
            "of the same text are flagged; another text's message moves the next token by at least 0.1 nats more than "
            "the same text's, even at the lower end of the interval. Of each fusion's cells that pass, the one where "
            "that lower end is highest.",
            LIMITS: "Accuracy. A late write may simply transfer the sender's own next token, and an early one the "
            "identity of the last token. These cells are where to begin a sweep, chosen among "
            f"{len(found.cells)} on the prompts that their numbers come from.",
        }
    )


def _settings(page: Page, found: Diagnosis) -> None:
    page.heading("Settings, versions, machine")
    for caption, values in (
        ("Settings, and facts about rows and cells", plain(found.settings)),
        ("Versions", versions()),
        ("Machine", machine()),
    ):
        rows = [[name.replace("_", " "), _text_of(value)] for name, value in values.items()]
        page.table([caption, ""], rows, as_text=True)
    page.heading("Files next to this page")
    page.links(FILES)


def _text_of(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, dict):
        return "; ".join(f"{str(name).replace('_', ' ')}: {_text_of(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text_of, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _shown(key: str, model: Any) -> str:
    value = model[key]
    if key == "fingerprint":
        return value[:16]
    return _text_of(value)
