"""Similarity and predictability of two models layer by layer, each with its null of unrelated texts."""

from collections.abc import Sequence
from functools import partial
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.experiments.diagnosis.rows import LayerRows, Rows, rms_layers, sample
from latentcomm.similarity import MinibatchPairs, NullMaps, Pairing, exchanged_documents
from latentcomm.similarity.predictability import predictability_of_each

__all__ = ["NULL_QUANTILE", "NULL_ROWS", "predictability_table", "similarity_table"]

NULL_QUANTILE = 0.975
"""One in forty unrelated pairs exceeds this quantile: the upper end of a two-sided 95 % interval."""
NULL_ROWS = 2048
"""Most rows of one draw of the similarity's null: fewer rows widen the null, which is conservative."""
ROWS_AT_ONCE = 1024
"""Rows of all layers in memory at once, besides the buffer of the similarity."""
RIDGE_ROWS, RIDGE_ROWS_A_WIDTH = 6144, 8
"""Most rows that predictability is measured on, of all documents, or so many per dimension where that is more: the
cost grows with rows, R^2 by folds of documents hardly does, since tokens of one document are redundant."""

Side = tuple[LayerRows, Sequence[int]]
"""The states of a model, and the layers of it that are compared."""


def similarity_table(
    rows: Rows,
    *,
    sender_layers: Sequence[int],
    receiver_layers: Sequence[int],
    draws: int,
    seed: int,
    records: Records,
    progress: bool,
) -> pd.DataFrame:
    """Return the debiased CKA of each pair of layers, with its null of permuted documents and that of the maximum.

    States are RMS-normalised. `null_mean` and `null_high` (97.5 %) are over draws at that pair of layers, `null_max` is
    the 97.5 % of the largest value anywhere on the map, which the best pair must exceed.
    """
    one_side = rows.one_model and tuple(sender_layers) == tuple(receiver_layers)
    pairings = exchanged_documents(rows.document, rows.receiver_position, draws=draws, seed=seed)

    def measured(number: int) -> dict[str, Tensor]:
        everywhere = torch.arange(len(rows))
        matched = Pairing(everywhere, everywhere)
        pairing = matched if number < 0 else _thinned(pairings[number], NULL_ROWS, seed + number)
        pairs = MinibatchPairs(seed=seed, device=rows.device)
        for one, other in zip(pairing.rows.split(ROWS_AT_ONCE), pairing.partners.split(ROWS_AT_ONCE), strict=True):
            x = rms_layers(rows.x, sender_layers, one, device=rows.device)
            is_same = one_side and number < 0
            pairs.update(x, x if is_same else rms_layers(rows.y, receiver_layers, other, device=rows.device))
        return {"map": pairs.debiased_cka().cpu()}

    names = [f"similarity-{number:03d}" for number in range(draws + 1)]
    steps = track(enumerate(names, -1), "similarity", total=len(names), saved=records.n_saved(names), shown=progress)
    found = [records.tensors(name, lambda n=number: measured(n))["map"] for number, name in steps]
    widths, fewest = (rows.x.shape[2], rows.y.shape[2]), min(NULL_ROWS, *(len(pairing.rows) for pairing in pairings))
    null = NullMaps("exchanged documents", fewest, widths, torch.stack(found[1:]))
    mean, high, highest = null.mean, null.quantile(NULL_QUANTILE), null.maximum.quantiles[NULL_QUANTILE]
    return pd.DataFrame(
        [
            {
                "sender_layer": k,
                "receiver_layer": j,
                "debiased_cka": float(found[0][row, column]),
                "null_mean": float(mean[row, column]),
                "null_high": float(high[row, column]),
                "null_max": highest,
                "rows": len(rows),
                "null_rows": fewest,
            }
            for (row, k), (column, j) in product(enumerate(sender_layers), enumerate(receiver_layers))
        ]
    )


def predictability_table(
    rows: Rows,
    *,
    sender_layers: Sequence[int],
    receiver_layers: Sequence[int],
    folds: int,
    seed: int,
    records: Records,
    progress: bool,
) -> pd.DataFrame:
    """Return held-out R^2 by ridge regression of each pair of layers, both ways, with its null of permuted documents.

    States are RMS-normalised, folds are by document, and the penalty is chosen inside the folds. `forward` predicts the
    receiver's state from the sender's; `backward` the sender's from the receiver's, which is how much of a message the
    receiver already holds. One model with itself is measured one way: both directions are then the same numbers,
    transposed. A layer of each side is in memory at a time.
    """
    symmetric = rows.one_model and tuple(sender_layers) == tuple(receiver_layers)
    x, y = (rows.x, sender_layers), (rows.y, receiver_layers)
    most = max(RIDGE_ROWS, RIDGE_ROWS_A_WIDTH * max(rows.x.shape[2], rows.y.shape[2]))
    drawn = sample(torch.arange(len(rows)), most, seed)
    matched = Pairing(drawn, drawn)
    (permuted,) = exchanged_documents(rows.document, rows.receiver_position, draws=1, seed=seed)
    permuted = _thinned(permuted, most, seed)
    maps_to_fit = [("forward", matched, x, y), ("forward_null", permuted, x, y)]
    if not symmetric:
        back = Pairing(permuted.partners, permuted.rows)
        maps_to_fit += [("backward", matched, y, x), ("backward_null", back, y, x)]

    def line_of(side: LayerRows, layer: int, targets: Side, pairing: Pairing) -> dict[str, Tensor]:
        (source,) = rms_layers(side, [layer], pairing.rows, device=rows.device)
        paired = (rms_layers(targets[0], [each], pairing.partners, device=rows.device)[0] for each in targets[1])
        options = {"folds": folds, "seed": seed, "groups": rows.document[pairing.rows]}
        return {"line": predictability_of_each(source, paired, **options).cpu()}

    steps = [
        (name, number, partial(line_of, side, layer, targets, pairing))
        for name, pairing, (side, layers), targets in maps_to_fit
        for number, layer in enumerate(layers)
    ]
    lines: dict[str, list[Tensor]] = {name: [] for name, *_ in maps_to_fit}
    saved = records.n_saved(f"{name}-{number:03d}" for name, number, _ in steps)
    for name, number, measure in track(steps, "predictability", total=len(steps), saved=saved, shown=progress):
        lines[name].append(records.tensors(f"{name}-{number:03d}", measure)["line"])
    maps = {name: torch.stack(each) for name, each in lines.items()}
    if symmetric:
        maps |= {"backward": maps["forward"], "backward_null": maps["forward_null"]}
    return pd.DataFrame(
        [
            {
                "sender_layer": k,
                "receiver_layer": j,
                "forward": float(maps["forward"][row, column]),
                "backward": float(maps["backward"][column, row]),
                "forward_null": float(maps["forward_null"][row, column]),
                "backward_null": float(maps["backward_null"][column, row]),
                "rows": len(drawn),
                "null_rows": len(permuted.rows),
            }
            for (row, k), (column, j) in product(enumerate(sender_layers), enumerate(receiver_layers))
        ]
    )


def _thinned(pairing: Pairing, most: int, seed: int) -> Pairing:
    """Return a pairing of at most `most` rows."""
    drawn = sample(torch.arange(len(pairing.rows)), most, seed)
    return Pairing(pairing.rows[drawn], pairing.partners[drawn])
