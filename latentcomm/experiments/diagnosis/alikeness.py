"""How alike two models are layer by layer: similarity and predictability, each beside what unrelated texts give."""

from collections.abc import Sequence
from itertools import product

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.progress import track
from latentcomm._core.records import Records
from latentcomm.alignment import row_folds
from latentcomm.experiments.diagnosis.rows import Rows, rms_layers, sample
from latentcomm.similarity import MinibatchPairs, NullMaps, Pairing, exchanged_documents
from latentcomm.similarity.layer_maps.ridge import TargetSums, cross_sums, factor_source, fold_sums, r_squared_chosen

__all__ = ["NULL_QUANTILE", "NULL_ROWS", "predictability_table", "r_squared_map", "similarity_table"]

NULL_QUANTILE = 0.975
"""Of unrelated pairs, one in forty is more alike than this: the upper end of a two-sided 95 %."""
NULL_ROWS = 2048
"""Rows of one draw of the similarity's null at most: fewer rows spread it wider, which errs on the safe side."""
RIDGE_ROWS, RIDGE_ROWS_A_WIDTH = 6144, 8
"""Rows that predictability is measured on at most, of all documents, or so many a dimension where that is more: its
cost grows with them, and R^2 by folds of documents hardly does, since tokens of one document repeat each other."""


def similarity_table(
    rows: Rows,
    *,
    sender_layers: Sequence[int],
    receiver_layers: Sequence[int],
    draws: int,
    seed: int,
    kept: Records,
    progress: bool,
) -> pd.DataFrame:
    """Return the debiased CKA of each pair of layers, with its null of exchanged documents and that of the maximum.

    RMS view. `null_mean` and `null_high` (97.5 %) are over draws at that pair of layers, `null_max` is the 97.5 % of
    the largest value anywhere on the map: what the best pair must exceed.
    """
    x = rms_layers(rows.x, sender_layers)
    y = x if rows.one_model and tuple(sender_layers) == tuple(receiver_layers) else rms_layers(rows.y, receiver_layers)
    pairings = exchanged_documents(rows.document, rows.receiver_position, draws=draws, seed=seed)

    def measured(number: int) -> dict[str, Tensor]:
        if number < 0:
            return {"map": MinibatchPairs(seed=seed).update(x, y).debiased_cka()}
        pairing = _thinned(pairings[number], NULL_ROWS, seed + number)
        return {"map": MinibatchPairs(seed=seed).update(x[:, pairing.rows], y[:, pairing.partners]).debiased_cka()}

    steps = track(range(-1, draws), "similarity", total=draws + 1, shown=progress)
    found = [kept.tensors(f"similarity-{number + 1:03d}", lambda n=number: measured(n))["map"] for number in steps]
    widths, fewest = (x.shape[2], y.shape[2]), min(NULL_ROWS, *(len(pairing.rows) for pairing in pairings))
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
    kept: Records,
    progress: bool,
) -> pd.DataFrame:
    """Return held-out R^2 by ridge regression of each pair of layers, both ways, with that of exchanged documents.

    RMS view, folds by document, penalty chosen inside the folds. `forward` predicts the receiver's state from the
    sender's; `backward` the sender's from the receiver's, which is how much of a message the receiver already holds.
    One model with itself is measured one way and turned: both ways are then the same numbers.
    """
    x = rms_layers(rows.x, sender_layers)
    turned = rows.one_model and tuple(sender_layers) == tuple(receiver_layers)
    y = x if turned else rms_layers(rows.y, receiver_layers)
    most = max(RIDGE_ROWS, RIDGE_ROWS_A_WIDTH * max(x.shape[2], y.shape[2]))
    drawn = sample(torch.arange(len(rows)), most, seed)
    as_they_are = Pairing(drawn, drawn)
    (exchange,) = exchanged_documents(rows.document, rows.receiver_position, draws=1, seed=seed)
    exchange = _thinned(exchange, most, seed)
    jobs = [("forward", as_they_are, (x, y)), ("forward_null", exchange, (x, y))]
    if not turned:
        back = Pairing(exchange.partners, exchange.rows)
        jobs += [("backward", as_they_are, (y, x)), ("backward_null", back, (y, x))]
    total = sum(len(source) for _, _, (source, _) in jobs)
    bar = track(range(total), "predictability", total=total, shown=progress)
    maps: dict[str, Tensor] = {}
    for name, pairing, (source, target) in jobs:
        lines = []
        for line in range(len(source)):
            next(bar)
            lines.append(
                kept.tensors(
                    f"{name}-{line:03d}",
                    lambda s=source[line], t=target, p=pairing: {
                        "line": r_squared_map(
                            s[None, p.rows], t, partners=p.partners, documents=rows.document[p.rows],
                            folds=folds, seed=seed,
                        )[0]
                    },
                )["line"]
            )  # fmt: skip
        maps[name] = torch.stack(lines)
    next(bar, None)
    if turned:
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
                "null_rows": len(exchange.rows),
            }
            for (row, k), (column, j) in product(enumerate(sender_layers), enumerate(receiver_layers))
        ]
    )


def r_squared_map(
    sources: Float[Tensor, "layer_x row d_x"],
    targets: Float[Tensor, "layer_y all d_y"],
    *,
    partners: Int[Tensor, " row"],
    documents: Int[Tensor, " row"],
    folds: int,
    seed: int,
) -> Float[Tensor, "layer_x layer_y"]:
    """Return the held-out R^2 of predicting `targets[:, partners]` from each source layer, row by row.

    The numbers of `latentcomm.similarity.linear_predictability`; each source layer is factored once for all targets.

    Raises:
        ValueError: fewer documents than folds, or training rows that are all equal.
    """
    fold = torch.empty(len(documents), dtype=torch.int64)
    for number, held_out in enumerate(row_folds(len(documents), folds=folds, groups=documents, seed=seed)):
        fold[held_out] = number
    lines = []
    for layer in sources:
        x = _centred(layer)
        source = factor_source(fold_sums(x, fold, folds), choosing=True)
        line = []
        for y in (_centred(target[partners]) for target in targets):
            parts = [y[fold == number] for number in range(folds)]
            sums = torch.stack([part.sum(0) for part in parts])
            sizes = torch.stack([part.square().sum() for part in parts])
            line.append(r_squared_chosen(source, TargetSums(sums, sizes), cross_sums(x, y, fold, folds)))
        lines.append(torch.stack(line))
    return torch.stack(lines)


def _centred(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    wide = rows.to(torch.float64)
    return wide - wide.mean(0)


def _thinned(pairing: Pairing, most: int, seed: int) -> Pairing:
    """Return a pairing of so many rows at most."""
    drawn = sample(torch.arange(len(pairing.rows)), most, seed)
    return Pairing(pairing.rows[drawn], pairing.partners[drawn])
