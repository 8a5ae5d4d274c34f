"""The sender layer read for each write layer, its maps, and drift references of the receiver's own states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.alignment import AffineMap
from latentcomm.drift import COMBINED, DETECTORS, FAMILIES, DriftReference, fit_drift_reference
from latentcomm.experiments.diagnosis.fusions import Fitted
from latentcomm.experiments.diagnosis.rows import Rows, sample
from latentcomm.experiments.maps import fitted_on
from latentcomm.fusion import Fusion, RightAligned
from latentcomm.models.sites import Site
from latentcomm.redundancy import fit_predictable

__all__ = ["ChosenCell", "Joint", "calibration_table", "choose_cells", "fit_joints", "fit_references"]

REFERENCE_ROWS = 3000
"""Most own states of a drift reference; a third of them calibrates it."""
MAP_FOLDS = 3
"""Folds in which the penalty of a fitted map is chosen: its error is flat near the best penalty."""
CALIBRATION_STATES = 400
"""Most states of another layer in the calibration, about as many as of each built-in family."""

Aligner = Callable[..., AffineMap]


@dataclass(frozen=True)
class ChosenCell:
    """A write layer with the sender layer that is read for it.

    Attributes:
        read, write: the layers, from 0.
        r_squared: held-out R^2 of a linear map from the sender's state to the receiver's.
        null: the same with permuted documents.
        by_depth: True where no sender layer predicts it above its null and the one at the same relative depth is read.
    """

    read: int
    write: int
    r_squared: float
    null: float
    by_depth: bool


@dataclass(frozen=True, eq=False)
class Joint:
    """The maps of a message at a cell.

    Attributes:
        alignment: from the sender's states to the receiver's, or None where messages are fused unchanged.
        predictable: from the receiver's own states to the (aligned) messages, for the fusions that take one.
    """

    alignment: AffineMap | None
    predictable: AffineMap | None

    def message(self, states: Float[Tensor, "row d_sender"]) -> Float[Tensor, "row _"]:
        """The message as the fusion takes it, aligned where there is a map."""
        return states if self.alignment is None else self.alignment(states)

    def fusion(self, given: Fusion | Fitted, own_width: int, message_width: int) -> Fusion:
        """The fusion with its map, on the last entries of both where the widths differ."""
        if isinstance(given, Fitted):
            if self.predictable is None:
                raise ValueError("a fitted fusion has no map; fit one at this cell")
            given = given.make(self.predictable)
        return given if own_width == message_width else RightAligned(given)


def choose_cells(predictability: pd.DataFrame, *, n_sender: int, n_receiver: int) -> list[ChosenCell]:
    """Return for each receiver layer of the table its most predictive sender layer, if any is above its null.

    Otherwise the sender layer of the table nearest to the same relative depth.

    >>> row = {"sender_layer": 0, "receiver_layer": 0, "forward": 0.5, "forward_null": 0.0}
    >>> table = pd.DataFrame([row, {**row, "sender_layer": 1, "forward": 0.7}])
    >>> choose_cells(table, n_sender=2, n_receiver=1)
    [ChosenCell(read=1, write=0, r_squared=0.7, null=0.0, by_depth=False)]
    """
    cells = []
    for write, part in predictability.groupby("receiver_layer", sort=True):
        records = part.to_dict("records")
        above = [row for row in records if row["forward"] > max(0.0, row["forward_null"])]
        depth = int(write) / max(1, n_receiver - 1) * (n_sender - 1)  # pyright: ignore[reportArgumentType]
        if above:
            best = max(above, key=lambda row: (row["forward"], -row["sender_layer"]))
        else:
            best = min(records, key=lambda row: (abs(row["sender_layer"] - depth), row["sender_layer"]))
        read, found, null = int(best["sender_layer"]), float(best["forward"]), float(best["forward_null"])
        cells.append(ChosenCell(read, int(write), found, null, not above))  # pyright: ignore[reportArgumentType]
    return cells


def fit_references(
    rows: Rows, layers: Sequence[int], *, model: str, seed: int, records: Records, progress: bool
) -> dict[int, DriftReference]:
    """Return a drift reference of the receiver's own states after each of these layers, of the fit documents.

    They are states at any token. In a causal model the state at a token depends on its prefix alone: it is the
    last-token state of the text up to there, the kind of state that grafts are compared with.

    Raises:
        ValueError: too few rows or documents for a calibrated reference.
    """
    chosen = sample(rows.fit.nonzero().flatten(), REFERENCE_ROWS, seed)
    references = {}
    saved = records.n_saved(f"reference-{layer:03d}" for layer in layers)
    for layer in track(layers, "drift references", total=len(layers), saved=saved, shown=progress):
        references[layer] = records.saved(
            f"reference-{layer:03d}",
            lambda layer=layer: fit_drift_reference(
                rows.y[layer, chosen].to(rows.device),
                seed=seed,
                site=Site(layer),
                model=model,
                kind="any token",
                groups=rows.document[chosen],
            ),
            DriftReference.load,
        )
    return references


def fit_joints(
    rows: Rows,
    cells: Sequence[ChosenCell],
    *,
    aligner: Aligner | None,
    predictable: bool,
    seed: int,
    records: Records,
    progress: bool,
) -> dict[int, Joint]:
    """Return the maps of messages at each write layer, all fitted on the fit documents by `aligner` and ridge.

    `aligner` is called with source and target rows, and with the options `folds`, `groups` and `seed` of `fit_ridge`.
    Where the widths differ and there is no aligner, the map of a fitted fusion is of the last entries of both.
    """
    document = rows.document[rows.fit]
    joints = {}
    for cell in track(cells, "maps", total=len(cells), shown=progress):
        sent, own = rows.x[cell.read, rows.fit], rows.y[cell.write, rows.fit]
        options = {"folds": MAP_FOLDS, "groups": document, "seed": seed}
        alignment = None
        if aligner is not None:
            alignment = records.saved(
                f"alignment-{cell.write:03d}",
                lambda a=sent, b=own, o=options: fitted_on(rows.device, aligner, a, b, **o),
                AffineMap.load,
            )
            sent = alignment(sent)
        predictable_map = None
        if predictable:
            shared = min(sent.shape[1], own.shape[1])
            predictable_map = records.saved(
                f"predictable-{cell.write:03d}",
                lambda a=sent[:, -shared:], b=own[:, -shared:], o=options: fitted_on(
                    rows.device, fit_predictable, b, a, **o
                ),
                AffineMap.load,
            )
        joints[cell.write] = Joint(alignment, predictable_map)
    return joints


def calibration_table(
    rows: Rows,
    references: dict[int, DriftReference],
    layers: Sequence[int],
    *,
    seed: int,
    records: Records,
    progress: bool,
) -> pd.DataFrame:
    """Return how well each detector separates known-off from real states at some layers: AUROC, one- and two-sided.

    The families are those of `latentcomm.drift.families`, and `another_layer`: real states of held-out documents from
    the next layer that has a reference (for the last: the previous one).
    """
    reference_layers = sorted(references)
    drawn = sample((~rows.fit).nonzero().flatten(), CALIBRATION_STATES, seed)
    entries = []
    saved = records.n_saved(f"calibration-{layer:03d}" for layer in layers)
    for layer in track(layers, "calibration", total=len(layers), saved=saved, shown=progress):
        index = reference_layers.index(layer)
        others = {}
        if len(reference_layers) > 1:
            neighbour = index + 1 if index + 1 < len(reference_layers) else index - 1
            others["another_layer"] = rows.y[reference_layers[neighbour], drawn]
        families, detectors = _names(others)

        def measured(layer: int = layer, others: dict[str, Tensor] = others) -> dict[str, Tensor]:
            table = references[layer].auroc_table(others, seed=seed)
            pairs = [[(one.one_sided, one.two_sided) for one in row.values()] for row in table.values()]
            return {"auroc": torch.tensor(pairs, dtype=torch.float64)}

        aurocs = records.tensors(f"calibration-{layer:03d}", measured)["auroc"]
        entries += [
            {
                "layer": layer,
                "family": family,
                "detector": detector,
                "one_sided": float(aurocs[row, column, 0]),
                "two_sided": float(aurocs[row, column, 1]),
            }
            for row, family in enumerate(families)
            for column, detector in enumerate(detectors)
        ]
    return pd.DataFrame(entries)


def _names(others: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """The families and detectors of an AUROC table, in order."""
    return [*FAMILIES, *others], [*DETECTORS, COMBINED]
