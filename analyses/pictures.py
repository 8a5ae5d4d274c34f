"""What the scripts about pictures share: their arguments, the sets and their encoders, and publication."""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from common import figure_arguments, replot_found, unfinished

import latentcomm as lc
from latentcomm.experiments.crossmodal import PictureSet, VisionSender
from latentcomm.experiments.crossmodal.picture_folder import counted_part, folder_parts, read_folder, recoloured_part
from latentcomm.experiments.crossmodal.questions import Question
from latentcomm.experiments.crossmodal.report import describe_vision
from latentcomm.experiments.crossmodal.small_vit import encoder_named
from latentcomm.experiments.crossmodal.splits import Part, digit_parts, pooled_for
from latentcomm.models.facts import describe
from latentcomm.reporting.publish import plain, publish

Plot = Callable[[pd.DataFrame, dict[str, Any]], go.Figure]
DATA = ("digits", "flags", "emoji")
RECEIVER = "smollm2-135m-instruct"
FLAGS = (
    Question("identity", "The country with this flag is", "name", name="country"),
    Question("identity", "The capital of the country with this flag is", "capital", name="capital"),
    Question("category", "The country with this flag lies in", "region", name="region"),
)
EMOJI = (
    Question("identity", "The picture shows a", "name", name="name"),
    Question("category", "What the picture shows is one of", "category", name="category"),
)
CAPTIONS = {"flags": "the flag of {name}", "emoji": "{name}"}
LEFT_OUT = ("Flags", "Symbols", "Component")
"""Categories of emoji whose names describe little of what is seen."""


@dataclass(frozen=True)
class PictureSettings:
    """What every figure of pictures is decided by; a figure adds its own."""

    data: str = "digits"
    n_fitting: int = 400
    n_composed: int = 240
    n_pictures: int = 250
    vision_steps: int = 1200
    receiver: str = RECEIVER
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a figure of pictures is computed from, and where finished work is saved."""

    vision: VisionSender
    receiver: lc.Model
    parts: tuple[Part, ...]
    checkpoint: Path


def parts_of(
    data: str, folder: str, *, n_fitting: int, n_composed: int, n_pictures: int, seed: int
) -> tuple[Part, ...]:
    """The parts of a set; a folder is needed for all but digits.

    Raises:
        ValueError: no such set, or no folder.
    """
    if data == "digits":
        return digit_parts(n_fitting=n_fitting, n_composed=n_composed, n_testing=200, seed=seed)
    if data not in DATA or not folder:
        raise ValueError(f"the set is {data!r} in {folder!r}; give one of {', '.join(DATA)}, and --folder for a folder")
    whole = replace(read_folder(folder, caption=CAPTIONS[data], seed=seed), name=data)
    if data == "emoji":
        chosen = [each for each in whole if _is_plain(each.facts["name"], each.facts.get("category", ""))]
        whole = replace(whole, pictures=tuple(chosen))
    parts = folder_parts(_some(whole, n_pictures, seed), questions=FLAGS if data == "flags" else EMOJI, seed=seed)
    if data == "flags":
        return parts
    return *parts, *(
        make(whole, n_fitting=n_composed, n_testing=100, seed=seed) for make in (counted_part, recoloured_part)
    )


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of a figure of pictures."""
    parser = figure_arguments(doc, smoke="few pictures")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--folder", default="", help="of flags and emoji: pictures with table.json")
    parser.add_argument("--vision", default="", help="directory or hub id of an encoder; a small one for digits")
    parser.add_argument("--pooling", choices=("class", "patches"), help="by default the class token where there is one")
    parser.add_argument("--receiver", default=RECEIVER, help="a built-in name, a folder, a .gguf file or a hub id")
    return parser


def figures_of(name: str, plot: Plot) -> dict[str, Plot]:
    """Every figure that a script can write, one a set, all drawn by the same function."""
    return {f"{name}_{data}": plot for data in DATA}


def run(
    doc: str | None, figures: Mapping[str, Plot], settings: Any, small: Any, compute: Callable[..., pd.DataFrame]
) -> None:
    """What `main` of a script does: compute and publish, or rebuild the figures from their CSVs."""
    options = arguments(doc).parse_args()
    if options.replot:
        replot_found(figures, options.out)
        return
    began = time.monotonic()
    figure = next(name for name in figures if name.endswith(f"_{options.data}"))
    settings = replace(small if options.smoke else settings, data=options.data, receiver=options.receiver)
    with unfinished(figure, options) as checkpoint:
        vision = encoder_named(
            options.vision, checkpoint, steps=settings.vision_steps, seed=settings.seed, progress=True
        )
        receiver = lc.load_model(settings.receiver)
        sizes = {key: getattr(settings, key) for key in ("n_fitting", "n_composed", "n_pictures", "seed")}
        parts = pooled_for(vision, parts_of(settings.data, options.folder, **sizes), options.pooling)
        table = compute(settings, Inputs(vision, receiver, parts, checkpoint))
        of_parts = {
            "pooling": {part.name: [part.pooling, part.grid] for part in parts},
            "left_out": parts[0].fitting.left_out,
        }
        known = plain(asdict(settings) | {"vision": vision.name, "receiver": receiver.name} | of_parts)
        publish(
            figures[figure](table, known),
            table,
            name=figure,
            folder=options.out,
            settings=known,
            measured={"wall_seconds": round(time.monotonic() - began, 1)},
            models={"vision": describe_vision(vision), "receiver": describe(receiver)},
        )


def _is_plain(name: str, category: str) -> bool:
    """Whether an emoji's name is one or two plain words of a thing."""
    return category not in LEFT_OUT and len(name.split()) <= 2 and name.replace(" ", "").isalpha()


def _some(pictures: PictureSet, n: int, seed: int) -> PictureSet:
    """At most so many of them, in seeded order."""
    drawn: Sequence[Any] = random.Random(f"some:{seed}").sample(pictures.pictures, min(n, len(pictures)))
    return replace(pictures, pictures=tuple(drawn))
