"""The settings, size and files of a diagnosis, each choice with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, ClassVar

from latentcomm.experiments.settings import Alignment, AtLeast, Settings

__all__ = ["FILES", "MESSAGES", "PAGE", "RECORD", "DiagnoseSettings", "Size", "layers_in_steps"]

SAME, OTHER, RANDOM = "same text", "other text", "random"
MESSAGES = (SAME, OTHER, RANDOM)
"""The messages: the sender's state at the end of the receiver's own text; the sender's state at the end of another
document's text; a random direction with the norm of the first."""


@dataclass(frozen=True)
class Size:
    """How much is measured; the defaults take under five minutes for a model of 135M parameters on two cores.

    Attributes:
        documents: most documents of the corpus that are read; half of them fit, half are held out.
        tokens: most tokens of each document.
        prompts: held-out texts for grafts, truncated at a random token.
        layers: most layers per model for maps, references and grafts, in even steps from the first.
        map_layers: the same for the similarity map, which is cheap.
        draws: permutations of documents for the null of the similarity map.
        folds: of documents, for predictability.

    Raises:
        ValueError: a number below the minimum that the statistics need.
    """

    documents: int = 96
    tokens: int = 128
    prompts: int = 24
    layers: int = 10
    map_layers: int = 32
    draws: int = 20
    folds: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < LEAST[field.name]:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; give at least {LEAST[field.name]}")


@dataclass(frozen=True, kw_only=True)
class DiagnoseSettings(Settings):
    """Measure a pair before grafting: how alike the layers are, what the receiver lacks, where a graft drifts.

    Attributes:
        corpus: Text file, .jsonl or folder of .txt; by default the public-domain text of the package.
        fusion: Comma-separated names of `FUSIONS`; all of them by default.
        alignment: Between unequal models: a map fitted on the fit documents; the last entries of both states; or
            neither.
        documents: Of the corpus at most; half fit, half are held out.
        tokens: Of each document at most.
        prompts: Held-out texts that are grafted into.
        layers: A side at most, in even steps; more take longer.
    """

    command: ClassVar[str] = "diagnose"
    in_parts: ClassVar[bool] = False
    default_folder: ClassVar[str] = "diagnosis"
    names_files: ClassVar[str] = "diagnose writes report.html"

    corpus: str = ""
    fusion: tuple[str, ...] = ()
    alignment: Alignment = "ridge"
    documents: Annotated[int, AtLeast(24)] = 96
    tokens: Annotated[int, AtLeast(8)] = 128
    prompts: Annotated[int, AtLeast(2)] = 24
    layers: Annotated[int, AtLeast(1)] = 10

    def written_as(self, name: str) -> "dict[str, DiagnoseSettings]":  # noqa: ARG002 (a folder holds one report)
        """The report."""
        return {REPORT: self}

    def files_of(self, name: str) -> tuple[str, ...]:  # noqa: ARG002 (the same)
        """The report and its tables."""
        return (PAGE, *FILES)


def layers_in_steps(n_layers: int, most: int) -> tuple[int, ...]:
    """Return at most `most` layers in even steps from the first.

    >>> layers_in_steps(30, 10), layers_in_steps(3, 10)
    ((0, 3, 6, 9, 12, 15, 18, 21, 24, 27), (0, 1, 2))
    """
    return tuple(range(0, n_layers, -(-n_layers // most)))


REPORT = "report"
PAGE, RECORD = f"{REPORT}.html", f"{REPORT}.meta.json"
FILES: Mapping[str, str] = MappingProxyType(
    {
        "cells.csv": "one row per fusion and write layer, with the basis of the recommendation",
        "similarity.csv": "debiased CKA of every pair of layers, with its nulls",
        "predictability.csv": "held-out R² of every pair of layers, both ways, with its nulls",
        "calibration.csv": "how well each drift detector separates states that are known to be off",
        "drift.csv": "percentile of every fused state by every detector",
        "effects.csv": "the effect of every graft on the next token",
        "healing.csv": "deviation and percentile at later layers, as quartiles",
        RECORD: "settings, models, versions and machine for a program to read",
    }
)
"""The files next to the page, and their contents."""

LEAST = {"documents": 24, "tokens": 8, "prompts": 2, "layers": 1, "map_layers": 1, "draws": 1, "folds": 3}
"""Half of 24 documents are the 12 that a calibrated drift reference needs."""
