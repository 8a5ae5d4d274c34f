"""The maps between two models' states that a run fits before it sends a state: on the packaged corpus, by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from latentcomm._core.linalg import with_float64
from latentcomm._core.progress import track
from latentcomm._core.records import Records, made_once
from latentcomm.alignment import AffineMap, fit_cca, fit_procrustes, fit_ridge
from latentcomm.experiments.settings import Alignment
from latentcomm.experiments.sweep.grid import Cell
from latentcomm.hooks.paired_text import capture_paired, pair_tokens
from latentcomm.models import Model, fingerprints, one_model
from latentcomm.tasks.corpus import read_corpus

MAP_DOCUMENTS, MAP_TOKENS, MAP_FOLDS = 64, 128, 3
"""Documents of the packaged corpus, tokens of each, and folds for the penalty, of maps between models."""
CCA_RANK = 256
"""Canonical pairs of a map by CCA at most, as in figure 10; it has no penalty, and all pairs are least squares."""
DEPTHS = (0.5, 0.65, 0.8, 0.9, 0.97)
"""Relative depths, in blocks from the first, of the cells that are swept where every cell needs its own map."""


@runtime_checkable
class Sized(Protocol):
    """A model, or what is known of one before it is loaded."""

    @property
    def name(self) -> str:
        """What it is loaded as."""
        ...

    @property
    def n_layers(self) -> int | None:
        """Its blocks."""
        ...

    @property
    def d_model(self) -> int | None:
        """The width of its residual stream."""
        ...


def check_widths(sender: Sized, receiver: Sized, alignment: Alignment) -> None:
    """Refuse unequal widths that nothing matches.

    Raises:
        ValueError: the widths differ, and `alignment` is "none".
    """
    if alignment == "none" and sender.d_model != receiver.d_model:
        raise ValueError(
            f"alignment is 'none', but {sender.name} is {sender.d_model} wide and {receiver.name} {receiver.d_model}; "
            f"give {', '.join(ALIGNMENTS)} or right-aligned"
        )


def is_mapped(sender: Model, receiver: Model, alignment: Alignment) -> bool:
    """Whether a map is fitted between these two models; a model with itself needs none.

    Raises:
        ValueError: what `check_widths` refuses.
    """
    check_widths(sender, receiver, alignment)
    return alignment in ALIGNMENTS and not one_model(sender, receiver)


def fit_maps(
    sender: Model,
    receiver: Model,
    cells: Sequence[Cell],
    seed: int,
    *,
    alignment: Alignment = "ridge",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> dict[Cell, AffineMap]:
    """For every cell the map from the sender's states to the receiver's on the packaged corpus, without sinks.

    With `checkpoint` they are saved: what is sent through them is then the same, to the bit, in every process that
    reads them, whatever order its threads add in. They are fitted on the receiver's device and are on the CPU.

    Raises:
        ValueError: an alignment that is no map, or what its fit refuses.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment is {alignment!r}, which fits no map; give one of {', '.join(ALIGNMENTS)}")
    fitted = partial(_fitted, sender, receiver, cells, seed, alignment, progress)
    if checkpoint is None:
        return fitted()
    decisive = [*fingerprints(sender, receiver), str(sender.dtype), str(receiver.dtype), cells, seed, alignment]
    records = Records.of(checkpoint, "maps", 1, decisive, MAP_DOCUMENTS, MAP_TOKENS, MAP_FOLDS)

    def made() -> dict[str, Tensor]:
        named = {f"{read}-{write}": each for (read, write), each in fitted().items()}
        return {f"{cell} {part}": getattr(each, part) for cell, each in named.items() for part in ("weight", "bias")}

    found = made_once(records, "maps", partial(records.tensors, "maps", made))
    return {
        (read, write): AffineMap(found[f"{read}-{write} weight"], found[f"{read}-{write} bias"])
        for read, write in cells
    }


def _fitted(
    sender: Model, receiver: Model, cells: Sequence[Cell], seed: int, alignment: Alignment, progress: bool
) -> dict[Cell, AffineMap]:
    """The maps of all cells, from one capture of the layers that they are between."""
    tokens = pair_tokens(sender, receiver, map_documents(), max_tokens=map_tokens(sender, receiver))
    reads, writes = sorted({read for read, _ in cells}), sorted({write for _, write in cells})
    states = capture_paired(sender, receiver, tokens, sender_layers=reads, receiver_layers=writes)
    rows = states.after_first
    x, y = dict(zip(reads, states.x, strict=True)), dict(zip(writes, states.y, strict=True))
    options = {"folds": MAP_FOLDS, "groups": states.document[rows], "seed": seed}
    fit = partial(fitted_on, with_float64(receiver.device), ALIGNMENTS[alignment], **options)
    return {
        (read, write): fit(x[read][rows], y[write][rows])
        for read, write in track(cells, "maps", total=len(cells), shown=progress and len(cells) > 1)
    }


def fitted_on(
    device: torch.device, fit: Callable[..., AffineMap], source: Tensor, target: Tensor, **options: Any
) -> AffineMap:
    """The map from source to target rows that `fit` fits on a device, on the CPU."""
    found = fit(source.to(device), target.to(device), **options)
    return AffineMap(found.weight.cpu(), found.bias.cpu())


def map_documents() -> list[str]:
    """The texts that maps are fitted on, spaced evenly over the packaged corpus."""
    texts = read_corpus().documents
    return list(texts)[:: max(1, len(texts) // MAP_DOCUMENTS)][:MAP_DOCUMENTS]


def map_tokens(sender: Model, receiver: Model) -> int:
    """Tokens of a text that maps are fitted on, at most the context of either model."""
    return min(MAP_TOKENS, sender.n_ctx, receiver.n_ctx)


def depths(n_layers: int) -> list[int]:
    """Blocks at the relative depths `DEPTHS`, without duplicates and without the last block.

    >>> depths(30), depths(1)
    ([15, 19, 24, 27, 28], [0])
    """
    return sorted({min(n_layers - 2, int(depth * n_layers)) for depth in DEPTHS} - {-1}) or [0]


def procrustes(source: Tensor, target: Tensor, **_: Any) -> AffineMap:
    """`fit_procrustes`, which has nothing to choose held-out."""
    return fit_procrustes(source, target)


def cca(source: Tensor, target: Tensor, **_: Any) -> AffineMap:
    """`fit_cca` with `CCA_RANK` canonical pairs, or as many as the narrower model is wide."""
    return fit_cca(source, target, rank=min(CCA_RANK, source.shape[1], target.shape[1]))


ALIGNMENTS: Mapping[str, Callable[..., AffineMap]] = MappingProxyType(
    {"ridge": fit_ridge, "procrustes": procrustes, "cca": cca}
)
"""The alignments that fit a map, each called with the options `folds`, `groups` and `seed` of `fit_ridge`."""
