"""How much of each layer's messages each of a receiver's layers predicts: all pairs, with intervals and spectra."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.linalg import centred, require_finite, squared_size
from latentcomm.alignment import PENALTY_RATIOS, row_folds
from latentcomm.redundancy.intervals import RESAMPLES, ratio_intervals, sums_by_group
from latentcomm.redundancy.report import effective_rank
from latentcomm.redundancy.residuals import Groups, group_codes
from latentcomm.similarity.layer_maps.ridge import (
    SourceFactors,
    Split,
    TargetSums,
    check_penalty,
    cross_sums,
    factor_source,
    fold_sums,
    r_squared_at,
    target_sums,
)

__all__ = ["RedundancyMap", "redundancy_map"]

SenderLayers = Float[Tensor, "layer_sender row_a d_sender"] | Sequence[Float[Tensor, "row_a d_sender"]]
"""The same rows at each layer of the sender: the messages."""
ReceiverLayers = Float[Tensor, "layer_receiver row_b d_receiver"] | Sequence[Float[Tensor, "row_b d_receiver"]]
"""The same rows at each layer of the receiver."""
Ends = Float[Tensor, "layer_sender layer_receiver end"]
"""Low and high end of an interval."""


@dataclass(frozen=True, eq=False)
class RedundancyMap:
    """How much of the messages of each sender layer each receiver layer predicts, on documents that no fit saw.

    Attributes:
        r_squared: 1 - sum |a - p|^2 / sum |a - mean|^2, p what the ridge of the other documents makes of b, the mean
            theirs. Equal to `latentcomm.similarity.linear_predictability(b, a, groups=...)`.
        r_squared_interval: low and high, from a bootstrap over documents with the maps as they are.
        residual_covariance: sum (a - p).(p - mean) / sum |a - mean|^2; 0 where the residual has no covariance with what
            is predicted, below 0 where the map claims more than is there.
        residual_covariance_interval: its interval.
        explained_energy: 1 - sum |a - p|^2 / sum |a|^2: as R^2, with the mean counted as known.
        spectra: (sender layer, receiver layer) -> eigenvalues of the residual's covariance, largest first; of those
            pairs that were requested.
        n_rows, n_documents: how many rows, of how many documents (of rows where no groups were given).
    """

    r_squared: Float[Tensor, "layer_sender layer_receiver"]
    r_squared_interval: Ends
    residual_covariance: Float[Tensor, "layer_sender layer_receiver"]
    residual_covariance_interval: Ends
    explained_energy: Float[Tensor, "layer_sender layer_receiver"]
    spectra: dict[tuple[int, int], Float[Tensor, " d_sender"]]
    n_rows: int
    n_documents: int

    def effective_rank(self) -> Float[Tensor, "layer_sender layer_receiver"]:
        """How many directions each residual fills, (sum of the spectrum)^2 / sum of its squares; NaN without one."""
        out = torch.full_like(self.r_squared, torch.nan)
        for pair, spectrum in self.spectra.items():
            out[pair] = effective_rank(spectrum)
        return out

    def to_table(self) -> pd.DataFrame:
        """One line a pair of layers, counted from 0 in the order given."""
        n_sender, n_receiver = self.r_squared.shape
        sender, receiver = np.divmod(np.arange(n_sender * n_receiver), n_receiver)
        columns = {
            "sender_layer": sender,
            "receiver_layer": receiver,
            "r_squared": self.r_squared,
            "r_squared_low": self.r_squared_interval[..., 0],
            "r_squared_high": self.r_squared_interval[..., 1],
            "explained_energy": self.explained_energy,
            "residual_covariance": self.residual_covariance,
            "residual_covariance_low": self.residual_covariance_interval[..., 0],
            "residual_covariance_high": self.residual_covariance_interval[..., 1],
            "effective_rank": self.effective_rank(),
        }
        return pd.DataFrame({name: np.asarray(values).ravel() for name, values in columns.items()})


def redundancy_map(
    a_layers: SenderLayers,
    b_layers: ReceiverLayers,
    *,
    groups: Groups | None = None,
    spectra: Sequence[tuple[int, int]] = (),
    folds: int = 5,
    level: float = 0.95,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> RedundancyMap:
    """Return for each pair of layers how much of the messages `a` the receiver's states `b` predict, and what is left.

    The ridge is that of `LayerPairs.linear_predictability`: one eigendecomposition a receiver layer and split serves
    all sender layers and penalties, and each fold's penalty is chosen inside the other folds. The residuals of all rows
    are then formed pair by pair, so that the intervals can draw whole documents. `spectra` names the pairs (sender
    layer, receiver layer) whose residual's spectrum is wanted too; each costs one eigendecomposition more. Give the
    layers in the view that will be grafted, without sinks (`latentcomm.similarity.residual_view`), and `groups`, one
    document label a row, whenever several rows come from one document.

    Raises:
        ValueError: no layers, or rows that differ in number; fewer rows or documents than folds, or fewer than 3 folds;
            a row that is not finite, or rows that are all equal; a pair of layers that is not there.

    >>> b = torch.randn(2, 90, 3, generator=torch.Generator().manual_seed(0))
    >>> found = redundancy_map(b[:1] @ torch.ones(3, 2), b)
    >>> found.r_squared.round(decimals=2)
    tensor([[ 1.0000, -0.0100]], dtype=torch.float64)
    """
    check_penalty(None, folds)
    n_rows = _require_layers(a_layers, b_layers)
    for pair in spectra:
        if not (0 <= pair[0] < len(a_layers) and 0 <= pair[1] < len(b_layers)):
            raise ValueError(f"spectra is {pair}; layers go to {len(a_layers) - 1} and {len(b_layers) - 1}")
    codes = group_codes(groups, n_rows)
    fold = torch.empty(n_rows, dtype=torch.int64)
    for number, held_out in enumerate(row_folds(n_rows, folds=folds, groups=codes, seed=seed)):
        fold[held_out] = number
    order = fold.argsort(stable=True)  # contiguous folds need no copies
    fold, codes = fold[order], codes[order]
    targets = [target_sums(_in_order(layer, order), fold, folds) for layer in a_layers]
    empty = torch.full((len(a_layers), len(b_layers)), torch.nan, dtype=torch.float64)
    r_squared, covariance, energy = empty.clone(), empty.clone(), empty.clone()
    ends, covariance_ends = (empty[..., None].repeat(1, 1, 2) for _ in range(2))
    found_spectra = {}
    for j, b_layer in enumerate(b_layers):
        b = _in_order(b_layer, order)
        source = factor_source(fold_sums(b, fold, folds), choosing=True)
        turned = [(b[fold == split.test] - split.mean) @ split.vectors for split in source.outer]
        for i, (a_layer, target) in enumerate(zip(a_layers, targets, strict=True)):
            a = _in_order(a_layer, order)
            residual, predicted = _held_out(source, turned, target, cross_sums(b, a, fold, folds), a)
            parts = sums_by_group(torch.stack([(residual * other).sum(1) for other in (residual, predicted)]), codes)
            totals = sums_by_group((residual + predicted).square().sum(1)[None], codes)[0]
            unexplained, covariance[i, j] = parts.sum(1) / totals.sum()
            r_squared[i, j], energy[i, j] = 1 - unexplained, 1 - parts[0].sum() / squared_size(a_layer)
            left, ends_of_covariance = ratio_intervals(parts, totals, level=level, n_resamples=n_resamples, seed=seed)
            ends[i, j] = torch.tensor([1 - left[1], 1 - left[0]])
            covariance_ends[i, j] = torch.tensor(ends_of_covariance)
            if (i, j) in spectra:
                about_mean = centred(residual)[0]
                eigenvalues = torch.linalg.eigvalsh(about_mean.T @ about_mean / (n_rows - 1))
                found_spectra[i, j] = eigenvalues.flip(0).clamp(min=0.0)
    return RedundancyMap(
        r_squared, ends, covariance, covariance_ends, energy, found_spectra, n_rows, int(codes.max()) + 1
    )


def _in_order(layer: Float[Tensor, "row d_model"], order: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """The layer's rows about their mean, in float64 and in this order."""
    return centred(layer)[0].cpu()[order]


def _held_out(
    source: SourceFactors,
    turned: Sequence[Float[Tensor, "_ d_receiver"]],
    target: TargetSums,
    cross: Float[Tensor, "fold d_receiver d_sender"],
    a: Float[Tensor, "row d_sender"],
) -> tuple[Float[Tensor, "row d_sender"], Float[Tensor, "row d_sender"]]:
    """Return a - p and p - mean for each row, p the prediction and the mean by the folds that the row is not in.

    `turned` are each fold's rows of the source about the training mean, in the eigenbasis of the training rows.
    """
    predicted, residual = [], []
    for outer, inner, rows, own in zip(
        source.outer, source.inner, turned, a.split([len(rows) for rows in turned]), strict=True
    ):
        n = source.sums.n[outer.training].sum()
        mean = target.total[outer.training].sum(0) / n
        trained = cross[outer.training].sum(0) - n * torch.outer(outer.mean, mean)
        ratio = _chosen(source, inner, target, cross)
        shrunk = (outer.vectors.T @ trained) / (outer.eigenvalues + ratio * outer.eigenvalues.mean())[:, None]
        predicted.append(rows @ shrunk)
        residual.append(own - mean - predicted[-1])
    return torch.cat(residual), torch.cat(predicted)


def _chosen(
    source: SourceFactors, inner: Split, target: TargetSums, cross: Float[Tensor, "fold d_receiver d_sender"]
) -> float:
    """The penalty, as a multiple of the mean eigenvalue, that is best on a fold inside the training rows."""
    judged = r_squared_at(SourceFactors(source.sums, (inner,), ()), target, cross, PENALTY_RATIOS)
    return PENALTY_RATIOS[int(judged.argmax())]


def _require_layers(a_layers: SenderLayers, b_layers: ReceiverLayers) -> int:
    """Refuse layers whose rows cannot be compared; return how many rows there are."""
    counts = set()
    for layers, name in ((a_layers, "a"), (b_layers, "b")):
        if len(layers) == 0:
            raise ValueError(f"{name} has no layers; give at least 1")
        for number, layer in enumerate(layers):
            require_finite(layer, f"layer {number} of {name}")
            if bool((layer == layer[:1]).all()):
                raise ValueError(f"all {layer.shape[0]} rows of layer {number} of {name} are equal; give other texts")
            counts.add(layer.shape[0])
    if len(counts) > 1:
        raise ValueError(
            f"layers have {' and '.join(map(str, sorted(counts)))} rows; give the same rows at every layer"
        )
    return counts.pop()
