"""The command `latentcomm`: names become objects here, errors become sentences.

Each command is a file of this folder; a new one is imported here and named in `COMMANDS`.
"""

from collections.abc import Callable

import typer

from latentcomm.cli.cascade import cascade
from latentcomm.cli.compare import compare
from latentcomm.cli.crossmodal import crossmodal
from latentcomm.cli.diagnose import diagnose
from latentcomm.cli.models import models
from latentcomm.cli.sweep import sweep
from latentcomm.cli.train import train

COMMANDS: tuple[Callable[..., None], ...] = (sweep, diagnose, compare, cascade, crossmodal, train, models)
"""In the order of the help."""

app = typer.Typer(
    help="Make two language models communicate through their activations, and measure what that does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)
