"""The effects of every fusion and message at every cell, as tables: drift, next token, and later layers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.drift import COMBINED, DETECTORS, DriftReference
from latentcomm.drift.families import partners
from latentcomm.experiments.diagnosis.cells import ChosenCell, Joint
from latentcomm.experiments.diagnosis.fusions import Fitted
from latentcomm.experiments.diagnosis.rows import Rows
from latentcomm.experiments.diagnosis.settings import MESSAGES, OTHER, RANDOM, SAME
from latentcomm.experiments.effects import Effects, measure_effects
from latentcomm.fusion import Fusion, Replace, fuse
from latentcomm.hooks.paired_text import PairedTokens
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

__all__ = ["Items", "choose_items", "drift_table", "effects_table", "graft_items", "healing_table", "own_percentiles"]

Variant = tuple[str, str]
"""A fusion and a message, by name."""


@dataclass(frozen=True, eq=False)
class Items:
    """Held-out texts for grafts, each truncated at one of its tokens.

    Attributes:
        row: its row of the paired states.
        partner: the item of another document whose message is "other text".
        prompts: the receiver's tokens up to and including the row's.
    """

    row: Int[Tensor, " item"]
    partner: Int[Tensor, " item"]
    prompts: Prompts

    def __len__(self) -> int:
        return len(self.row)


def choose_items(rows: Rows, tokens: PairedTokens, *, n: int, seed: int) -> Items:
    """Return `n` held-out positions (or all, if fewer), of as many documents as possible.

    Raises:
        ValueError: the held-out half has rows of one document only.
    """
    generator = torch.Generator().manual_seed(seed)
    held = (~rows.fit).nonzero().flatten()
    held = held[torch.randperm(len(held), generator=generator)]
    seen: Counter[int] = Counter()
    ranks = []
    for label in rows.document[held].tolist():  # how many positions of the same document precede it
        ranks.append(seen[label])
        seen[label] += 1
    if len(seen) < 2:
        raise ValueError(f"{len(seen)} held-out documents have rows; give a corpus of more and longer documents")
    chosen = held[torch.tensor(ranks).argsort(stable=True)[:n]].sort().values
    positions = zip(rows.document[chosen].tolist(), rows.receiver_position[chosen].tolist(), strict=True)
    prompts = Prompts.from_ids([tokens.receiver.ids(document)[: index + 1] for document, index in positions])
    return Items(chosen, partners(rows.document[chosen], seed=seed), prompts)


def graft_items(
    rows: Rows,
    items: Items,
    receiver: Model,
    *,
    cells: Sequence[ChosenCell],
    joints: Mapping[int, Joint],
    fusions: Mapping[str, Fusion | Fitted],
    references: Mapping[int, DriftReference],
    seed: int,
    records: Records,
    progress: bool,
) -> tuple[list[Variant], list[Effects]]:
    """Return the variants, and for each item the effects of all of them at all write layers (a row a variant).

    The fused state of every variant is made from the receiver's captured own state and written over it, so that
    all variants of a prompt run in one batch (`latentcomm.experiments.effects.measure_effects`).
    """
    variants: list[Variant] = [(fusion, message) for fusion in fusions for message in MESSAGES]
    fused = {cell.write: _fused(rows, items, cell, joints[cell.write], fusions, seed) for cell in cells}

    def measured(item: int) -> dict[str, Tensor]:
        effects = measure_effects(
            receiver,
            items.prompts.select([item] * len(variants)),
            {write: states[:, item] for write, states in fused.items()},
            fusion=Replace(),
            write_layers=list(fused),
            references=dict(references),
        )
        parts = {"kl": effects.kl, "entropy_change": effects.entropy_change, "top1": effects.top1_agreement}
        parts |= {"deviation": effects.deviation}
        parts |= {f"percentile.{name}": values for name, values in effects.percentile.items()}
        return parts | {f"own.{name}": values for name, values in effects.own_percentile.items()}

    all_effects = []
    saved = records.n_saved(f"graft-{item:04d}" for item in range(len(items)))
    for item in track(range(len(items)), "grafts", total=len(items), saved=saved, shown=progress):
        part = records.tensors(f"graft-{item:04d}", lambda item=item: measured(item))
        all_effects.append(
            Effects(
                write_layers=tuple(fused),
                kl=part["kl"],
                entropy_change=part["entropy_change"],
                top1_agreement=part["top1"],
                deviation=part["deviation"],
                percentile=_named(part, "percentile."),
                own_percentile=_named(part, "own."),
            )
        )
    return variants, all_effects


def drift_table(variants: Sequence[Variant], effects: Sequence[Effects], cells: Sequence[ChosenCell]) -> pd.DataFrame:
    """Return the two-sided percentile of each fused state at its write layer, by each detector and "combined"."""
    return pd.DataFrame(
        [
            graft | {"detector": detector, "percentile": float(one.percentile[detector][number, index, write])}
            for graft, one, number, index, write in _each_graft(variants, effects, cells)
            for detector in (COMBINED, *DETECTORS)
        ]
    )


def effects_table(variants: Sequence[Variant], effects: Sequence[Effects], cells: Sequence[ChosenCell]) -> pd.DataFrame:
    """Return the effect of each graft on the next token."""
    return pd.DataFrame(
        [
            graft
            | {
                "kl": float(one.kl[number, index]),
                "entropy_change": float(one.entropy_change[number, index]),
                "top1_agreement": bool(one.top1_agreement[number, index]),
            }
            for graft, one, number, index, _ in _each_graft(variants, effects, cells)
        ]
    )


def _each_graft(
    variants: Sequence[Variant], effects: Sequence[Effects], cells: Sequence[ChosenCell]
) -> Iterator[tuple[dict[str, Any], Effects, int, int, int]]:
    """Yield the columns that name each graft, the effects on its item, and its variant, cell and write layer there."""
    for number, (fusion, message) in enumerate(variants):
        for index, cell in enumerate(cells):
            named = {"fusion": fusion, "message": message, "read_layer": cell.read, "write_layer": cell.write}
            for item, one in enumerate(effects):
                yield named | {"item": item}, one, number, index, cell.write


def own_percentiles(effects: Sequence[Effects], cells: Sequence[ChosenCell]) -> dict[int, Float[np.ndarray, " item"]]:
    """Return the combined percentile of the receiver's own state, without a graft, at each write layer."""
    return {
        cell.write: np.array([float(one.own_percentile[COMBINED][0, cell.write]) for one in effects]) for cell in cells
    }


def healing_table(
    variants: Sequence[Variant], effects: Sequence[Effects], cells: Sequence[ChosenCell], layers: Sequence[int]
) -> pd.DataFrame:
    """Return deviation and combined percentile at the write layer and each later one with a reference: quartiles."""
    deviation = torch.stack([one.deviation for one in effects]).numpy()
    percentile = torch.stack([one.percentile[COMBINED] for one in effects]).numpy()
    own = torch.stack([one.own_percentile[COMBINED][0] for one in effects]).numpy()
    return pd.DataFrame(
        [
            {
                "fusion": fusion,
                "message": message,
                "write_layer": cell.write,
                "layer": layer,
                **_quartiles("deviation", deviation[:, number, index, layer]),
                **_quartiles("percentile", percentile[:, number, index, layer]),
                "own_percentile_median": float(np.median(own[:, layer])),
            }
            for number, (fusion, message) in enumerate(variants)
            for index, cell in enumerate(cells)
            for layer in layers
            if layer >= cell.write
        ]
    )


def _fused(
    rows: Rows, items: Items, cell: ChosenCell, joint: Joint, fusions: Mapping[str, Fusion | Fitted], seed: int
) -> Float[Tensor, "variant item d_receiver"]:
    """Return the state of every fusion and message at a cell, in the order of the variants."""
    own = rows.y[cell.write, items.row]
    sent = joint.message(rows.x[cell.read, items.row])
    draw = torch.randn(sent.shape, generator=torch.Generator().manual_seed(seed + cell.write), dtype=torch.float64)
    length = torch.linalg.vector_norm(sent.to(torch.float64), dim=1, keepdim=True)
    random = draw / torch.linalg.vector_norm(draw, dim=1, keepdim=True) * length
    messages = {SAME: sent, OTHER: sent[items.partner], RANDOM: random.to(sent.dtype)}
    return torch.stack(list(_each(own, messages, joint, fusions, Site(cell.write))))


def _each(
    own: Float[Tensor, "item d_receiver"],
    messages: Mapping[str, Float[Tensor, "item _"]],
    joint: Joint,
    fusions: Mapping[str, Fusion | Fitted],
    site: Site,
) -> Iterator[Float[Tensor, "item d_receiver"]]:
    for given in fusions.values():
        for name in MESSAGES:
            message = messages[name]
            fusion = joint.fusion(given, own.shape[1], message.shape[1])
            yield fuse(fusion, own, message, at=site.hook_name)


def _named(part: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in part.items() if name.startswith(prefix)}


def _quartiles(name: str, values: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {f"{name}_median": median, f"{name}_low": low, f"{name}_high": high}
