"""A command for an experiment: options from its settings class through tyro, from a file by --config."""

import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from latentcomm._core.names import check_name
from latentcomm._core.progress import quiet, say
from latentcomm._core.version import __version__
from latentcomm.experiments._prepared import EXPERIMENTS, Experiment
from latentcomm.experiments.run import plan, run, run_part
from latentcomm.experiments.settings import Settings, listed

__all__ = ["command_of", "read_config"]

ALIASES: Mapping[str, Mapping[str, str]] = {
    "cascade": {"--large": "--sender", "--small": "--receiver"},
    "crossmodal": {"--vision": "--sender"},
}
"""Options of release 0.1 that have another name in every other command."""
POSITIONAL: Mapping[str, tuple[str, ...]] = {"diagnose": ("--sender", "--receiver"), "train": ("--channels",)}
"""The options of the leading arguments of a command without a name, as in release 0.1."""
SWITCHES: Mapping[str, bool] = {"--enable-thinking": True, "--no-enable-thinking": False}
"""Of an option that is on, off or left to the model: on and off, without a value."""
WIDTH = 150
"""Characters of a table where the output is no terminal."""


@dataclass(frozen=True)
class Files:
    """Where a command reads options and writes results.

    Attributes:
        config: Options from a TOML file, or from the .meta.json of an earlier result, which then repeats that run;
            options on the command line win.
        out: Folder of the results and of saved work.
        name: What the files are called.
        overwrite: Write over results and unfinished work of other options in the folder.
        dry_run: Run nothing: print what would run, memory, disk, operations and about the time that it takes.
        flops: Of a dry run: operations a second of the machine that the time is estimated for; by default this one.
        bandwidth: Of a dry run: bytes a second that its memory reads.
        part: I/N makes every N-th record of the run from the I-th on and writes no result; the command without it
            then finds them and does.
        quiet: Print errors alone.
        json: Print the result's table, settings and files as one JSON object, and all else on standard error.
        threads: Processor threads that torch computes with; 0 leaves its own choice.
    """

    config: Path | None = None
    out: Path = Path("figures")
    name: str = ""
    overwrite: bool = False
    dry_run: bool = False
    flops: float = 0.0
    bandwidth: float = 0.0
    part: str = ""
    quiet: bool = False
    json: bool = False
    threads: int = 0


class ConfigError(ValueError):
    """A configuration file cannot be used: the names in the sentence are those of the file, and no flags."""


def command_of(experiment: Experiment) -> Callable[[Sequence[str]], None]:
    """The function that runs an experiment from the arguments of its command line."""

    def command(arguments: Sequence[str]) -> None:
        try:
            settings, files = parse(experiment.settings, arguments)
            with quiet(on=files.quiet), redirect_stdout(sys.stderr) if files.json else nullcontext():
                use_threads(files.threads)
                check_part(files)
                if files.dry_run:
                    given = {"overwrite": files.overwrite, "flops": files.flops, "bandwidth": files.bandwidth}
                    found = plan(settings, out=files.out, name=files.name, **given)
                    for line in found.lines():  # of which notes alone name settings
                        print(in_flags(line, experiment.settings) if line.startswith("note: ") else line)
                    found.check()
                    return
                if files.flops or files.bandwidth:
                    raise ValueError("flops and bandwidth are of another machine, which runs nothing; give dry_run too")
                if files.part:
                    made = run_part(settings, files.part, out=files.out, name=files.name, progress=not files.quiet)
                    say(f"part {files.part}: {made.n_made} records made, {made.n_left} of other parts missing")
                    return
                given = {"overwrite": files.overwrite, "progress": not files.quiet}
                result = run(settings, out=files.out, name=files.name, **given)
                if not files.quiet:
                    print_result(result)
        except ConfigError:
            raise
        except ValueError as error:
            raise ValueError(in_flags(str(error), experiment.settings)) from error
        except RuntimeError as error:
            raise RuntimeError(in_flags(str(error), experiment.settings)) from error
        if files.json:
            print(as_json(result))

    command.__doc__ = experiment.settings.__doc__
    return command


def parse(settings: type[Settings], arguments: Sequence[str]) -> tuple[Settings, Files]:
    """The settings and files that a command line describes; tyro exits with 0 for help and 2 for a wrong option.

    Raises:
        ValueError: a configuration file that cannot be used, or a value that the settings refuse.
    """
    spelled = spelled_out(settings.command, arguments)
    config = _config_of(spelled)
    default = settings() if config is None else read_config(config, settings)
    files = Files(out=Path(settings.default_folder), name=settings.command)
    flat = tyro.conf.arg(name="")
    both = make_dataclass(
        "Options",
        [("settings", Annotated[settings, flat], default), ("files", Annotated[Files, flat], files)],
        frozen=True,
    )
    found = tyro.cli(
        both,
        args=spelled,
        prog=f"latentcomm {settings.command}",
        description=(settings.__doc__ or "").partition("Attributes:")[0].strip(),
        registry=REGISTRY,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    given = {argument.partition("=")[0] for argument in spelled}
    for field in fields(settings):
        if field.default == () == getattr(found.settings, field.name) and f"--{field.name.replace('_', '-')}" in given:
            raise ValueError(f"{field.name} names nothing; leave it out for what is usual")
    return found.settings, replace(found.files, out=found.files.out.expanduser())


def check_part(files: Files) -> None:
    """Refuse a part that there is not, or options that a part does not take.

    Raises:
        ValueError: with the first of them.
    """
    if not files.part:
        return
    from latentcomm._core.records import Part

    Part.parse(files.part)
    if given := [f"--{name}" for name in ("overwrite", "json") if getattr(files, name)]:
        raise ValueError(f"part is {files.part}, and {given[0]} is of the whole run; give it without --part")


def in_flags(message: str, settings: type[Settings]) -> str:
    """An error that names settings, with their options instead: at the begin of a line, in backticks, or in snake case.

    Elsewhere a name of one word, such as seed, is an ordinary word.

    >>> from latentcomm.experiments.sweep.settings import SweepSettings
    >>> in_flags("shots names a file, and n_shots is 0; give n_shots, another `seed` or another seed", SweepSettings)
    '--shots names a file, and --n-shots is 0; give --n-shots, another --seed or another seed'
    """
    options = [field.name for cls in (settings, Files) for field in fields(cls)]
    every, several = "|".join(options), "|".join(each for each in options if "_" in each) or "(?!)"
    for pattern in (
        rf"^((?:\d+\. |note: )?)({every})(?= )",
        rf"()`({every})(?:=True)?`",
        rf"(?<![\w./'\"`-])()({several})(?![\w/'\"=`]|\.\w)",
    ):
        message = re.sub(pattern, lambda found: found[1] + _flag(found[2]), message, flags=re.MULTILINE)
    return message


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def spelled_out(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with names of release 0.1 replaced, and with leading values under their options.

    >>> spelled_out("diagnose", ["gpt2", "--seed=1"]), spelled_out("cascade", ["--large", "gpt2"])
    (['--sender', 'gpt2', '--seed=1'], ['--sender', 'gpt2'])
    """
    given, found = list(arguments), []
    for option in POSITIONAL.get(command, ()):
        if not given or given[0].startswith("-"):
            break
        found += [option, given.pop(0)]
    aliases = ALIASES.get(command, {})
    for argument in given:
        if argument == "--right-aligned":  # of release 0.1
            found += ["--alignment", "right-aligned"]
            continue
        if argument in SWITCHES:
            found += ["--enable-thinking", str(int(SWITCHES[argument]))]
            continue
        option, equals, value = argument.partition("=")
        found.append(f"{aliases.get(option, option)}{equals}{value}")
    options = [argument.partition("=")[0] for argument in found]
    for option in ("--config", "--enable-thinking", *POSITIONAL.get(command, ()), *aliases.values()):
        if options.count(option) > 1:
            raise ValueError(f"{option} is given twice; give it once")
    return found


def read_config(path: Path, settings: type[Settings]) -> Settings:
    """The settings of a TOML file, or those with which the result of a .meta.json was made.

    Raises:
        ValueError: no such file, broken syntax, an option that the experiment does not have, or the metadata of
            another experiment or of a release that did not record settings.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"there is no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if path.suffix == ".json":
        values = _recorded(path, values, settings)
    elif empty := [name for name, value in values.items() if value == []]:
        raise ValueError(f"{path.name}: {empty[0]} names nothing; leave it out for what is usual")
    try:
        return settings.from_dict(values)
    except ValueError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _recorded(path: Path, values: Any, settings: type[Settings]) -> Mapping[str, Any]:
    record = values.get("run") if isinstance(values, dict) else None
    versions = values.get("versions") if isinstance(values, dict) else None
    release = versions.get("latentcomm") if isinstance(versions, dict) else None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict) or "experiment" not in record:
        made_by = f"latentcomm {release}" if release else "no command of latentcomm"
        raise ValueError(f"{path.name} was written by {made_by} and holds no settings to repeat; give the options")
    if record["experiment"] != settings.command:
        raise ValueError(
            f"{path.name} is of `latentcomm {record['experiment']}`, not of `latentcomm {settings.command}`"
        )
    if in_memory := record.get("in_memory"):
        raise ValueError(f"{path.name} is of a run with {' and '.join(in_memory)} in memory, which no command repeats")
    if release != __version__:
        say(
            f"note: {path.name} was written by latentcomm {release}, and this is {__version__}; "
            "an option may mean something else"
        )
    return record["settings"]


def _config_of(arguments: Sequence[str]) -> Path | None:
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--config":
            return Path(value) if equals else Path(arguments[number + 1]) if number + 1 < len(arguments) else None
    return None


def use_threads(n: int) -> None:
    """Let torch compute with n threads; 0 leaves its own choice.

    Raises:
        ValueError: a negative number.
    """
    if n < 0:
        raise ValueError(f"threads is {n}; give at least 1, or 0 to leave torch its own choice")
    if n:
        import torch

        torch.set_num_threads(n)


def as_json(result: Any) -> str:
    """The table, the settings and the files of a result, and what the metadata record of it, as one JSON object."""
    from latentcomm.reporting.publish import plain

    record = {
        "command": result.settings.command,
        "settings": result.settings.to_dict(),
        "table": [
            {str(name): _number(value) for name, value in row.items()} for row in result.table.to_dict("records")
        ],
        "files": [str(path) for path in result.files],
        **plain(result.provenance),
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)


def _number(value: Any) -> Any:
    """A table's value as JSON has it: where there is no number, null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_result(result: Any) -> None:
    """Print a result's table, then the files that were written and how long it took."""
    from latentcomm.reporting.terminal import console

    result.summary(console(WIDTH))
    pages = [path for path in result.files if path.suffix == ".html"]
    for page in pages:
        print(f"wrote {page} (open it in a browser)")
    if others := [path.name for path in result.files if path.suffix != ".html"]:
        print(f"wrote {', '.join(others)} in {result.files[0].parent}")
    print(f"took {result.seconds:.0f} s")


REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _one_of(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """One of several names; the nearest one is named where it is none of them."""
    if get_origin(info.type) is not Literal:
        return None
    names = [str(each) for each in get_args(info.type)]
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(names) + "}",
        instance_from_str=lambda given: check_name("such choice", given[0], names),
        is_instance=lambda value: value in names,
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def _comma_separated(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """One argument for a tuple: names, or numbers and ranges of numbers."""
    if get_origin(info.type) is not tuple and info.type is not tuple:
        return None
    if get_origin(get_args(info.type)[0]) is tuple:
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=lambda given: pairs(given[0]),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [json.dumps(value)] if value else [],
        )
    is_numbers = int in get_args(info.type)
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N-N,..." if is_numbers else "NAME,NAME,...",
        instance_from_str=lambda given: numbers(given[0]) if is_numbers else listed(given[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


@REGISTRY.primitive_rule
def _on_off_or_left(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """What `SWITCHES` spell out."""
    if {*get_args(info.type)} != {bool, type(None)}:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="",
        instance_from_str=lambda given: bool(numbers(given[0])[0]),
        is_instance=lambda value: value in (None, True, False),
        str_from_instance=lambda value: [str(value)],
    )


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """The pairs of texts of a JSON list.

    Raises:
        ValueError: it is none.

    >>> pairs('[["user", "Hi"]]')
    (('user', 'Hi'),)
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair) for pair in found
    ):
        raise ValueError(f'{text!r} is no list of pairs; write JSON such as [["user", "Hi"], ["assistant", "Hello."]]')
    return tuple(tuple(pair) for pair in found)


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a list with ranges.

    Raises:
        ValueError: it is none.

    >>> numbers("0-3,8"), numbers("")
    ((0, 1, 2, 3, 8), ())
    """
    found: list[int] = []
    for part in text.split(",") if text.strip() else ():
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and int(high) < int(low)):
            raise ValueError(f"{text!r} is no list of numbers; write 20,24,28 or a range such as 20-28")
        found += range(int(low), int(high or low) + 1)
    return tuple(found)


if set(ALIASES) - set(EXPERIMENTS) or set(POSITIONAL) - set(EXPERIMENTS):
    raise RuntimeError("an alias is of no command")
