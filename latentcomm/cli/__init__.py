"""The command `latentcomm`: a line of options becomes settings, and `latentcomm.run` does the rest.

Nothing here names an option: flags, help and configuration files come from the fields of the settings classes. What a
command needs besides is imported when it runs, so that help appears at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from latentcomm._core.names import check_name
from latentcomm._core.version import __version__
from latentcomm.cli.clean import clean
from latentcomm.cli.experiment import command_of
from latentcomm.cli.grid import grid
from latentcomm.cli.join import join
from latentcomm.cli.listing import list_names, models
from latentcomm.experiments._prepared import EXPERIMENTS

__all__ = ["app"]

USAGE = "usage: latentcomm [-h] [--version] COMMAND [OPTIONS]"
INTERRUPTED = "interrupted; finished work is saved, and the same command resumes it"


def app(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for an error, 2 for a line that is not understood, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.stdout, sys.stderr = (each or _nowhere() for each in (sys.stdout, sys.stderr))  # closed by whoever called
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(0 if given else 2)
    if given[0] in ("-V", "--version"):
        print(f"latentcomm {__version__}")
        raise SystemExit(0)
    try:
        command = COMMANDS[check_name("command", given[0], COMMANDS)]
    except ValueError as error:
        print(f"latentcomm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        command(given[1:])
    except KeyboardInterrupt:
        print(f"\nlatentcomm: {INTERRUPTED}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read the output has what it wanted; the files are written before it
        sys.stdout = _nowhere()
        raise SystemExit(0) from None
    except (ValueError, RuntimeError, OSError) as error:
        print(f"latentcomm: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(0)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _help() -> str:
    described = {name: (command.__doc__ or "").partition("\n")[0] for name, command in COMMANDS.items()}
    lines = [f"  {name:<12}{description}" for name, description in described.items()]
    return "\n".join(
        [
            USAGE,
            "",
            "Make two language models communicate through their activations, and measure what that does.",
            "",
            *lines,
            "",
            "latentcomm COMMAND --help shows the options of a command.",
        ]
    )


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    **{name: command_of(experiment) for name, experiment in EXPERIMENTS.items()},
    "models": models,
    "list": list_names,
    "grid": grid,
    "join": join,
    "clean": clean,
}
"""In the order of the help."""
