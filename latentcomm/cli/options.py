"""Options that several commands have, each with its words of help and its bounds."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

DEFAULT_MODEL = "smollm2-135m-instruct"


class TaskName(StrEnum):
    """The tasks of the command line."""

    countries = "countries"
    tip_sheets = "tip-sheets"
    biographies = "biographies"
    gsm8k = "gsm8k"
    mmlu = "mmlu"
    kv_math = "kv-math"
    kv_math_worked = "kv-math-worked"
    prosqa = "prosqa"


class TemplateName(StrEnum):
    """How prompts are made."""

    raw = "raw"
    chat = "chat"


class SenderForm(StrEnum):
    """What the sender reads."""

    primed = "primed"
    sentence = "sentence"
    entity = "entity"


class Fame(StrEnum):
    """Which landmarks."""

    all = "all"
    famous = "famous"
    obscure = "obscure"


_MODEL = "Built-in name, hub id, directory or .gguf file."
_SAME = "The same; by default the sender itself."

SenderOption = Annotated[str, Option(help=_MODEL)]
SenderArgument = Annotated[str, Argument(help=_MODEL)]
ReceiverOption = Annotated[str, Option(help=_SAME)]
ReceiverArgument = Annotated[str, Argument(help=_SAME)]

TaskOption = Annotated[TaskName, Option(help="What is asked.")]
TemplateOption = Annotated[TemplateName, Option(help="Prompts as they stand, or as a chat.")]
SenderFormOption = Annotated[SenderForm, Option(help="What the sender reads.")]
FameOption = Annotated[Fame, Option(help="Which landmarks (countries only).")]
DataOption = Annotated[
    str, Option(help="Of gsm8k, mmlu and biographies: a file or folder, a hub data set, or 'sample'.")
]
SubjectsOption = Annotated[str, Option(help="Of mmlu: comma-separated; the five of the paper by default.")]
ShotsOption = Annotated[int, Option(help="Of gsm8k and mmlu: solved examples before the question.", min=0)]

ReadLayerOption = Annotated[int, Option(help="Of the sender; chosen on the tuning half where left out.")]
WriteLayerOption = Annotated[int, Option(help="Of the receiver; the same.")]
CHOSEN = -1
"""What the two are where they are left out."""
RightAlignedOption = Annotated[bool, Option(help="Fit no map between unequal models: last entries on last.")]
TuneOption = Annotated[int, Option(help="Items that the cell is chosen on.", min=2)]

OutOption = Annotated[Path, Option(help="Where figures, data and metadata go.")]
NameOption = Annotated[str, Option(help="What the files are called.")]
SeedOption = Annotated[int, Option(help="Of the split, the choices and the controls.", min=0)]
DeviceOption = Annotated[str, Option(help="cpu, cuda, cuda:1 ...")]
DtypeOption = Annotated[str, Option(help="float32, float64, bfloat16 or float16.")]
