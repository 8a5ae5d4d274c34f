"""Helpers of several commands: print errors, load a pair, make a task, save unfinished work."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from latentcomm._core.files import digest
from latentcomm.cli.options import Fame, SenderForm, TaskName, TemplateName
from latentcomm.models import Model
from latentcomm.tasks.base import Task

WITH_DATA = (TaskName.gsm8k, TaskName.mmlu, TaskName.biographies)
WITH_SHOTS = (TaskName.gsm8k, TaskName.mmlu)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error that a user can fix as one sentence on standard error."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nlatentcomm: interrupted; finished work is saved, and the same command resumes it", file=sys.stderr)
        raise typer.Exit(130) from None
    except (ValueError, RuntimeError, OSError) as error:
        print(f"latentcomm: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@contextmanager
def unfinished(out: Path, *settings: Any) -> Iterator[Path]:
    """A folder in `out` for the unfinished work of these settings, removed when the block ends without an error.

    Each setting has its own, so that another interrupted run in `out` does not lose its work when this one is done.
    """
    folder = out / ".unfinished" / digest(*settings)[:16]
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # another interrupted run's work is in it
        folder.parent.rmdir()


def console(width: int) -> Console:
    """The console of tables: as wide as the terminal, or of this width without one."""
    return Console(width=None if sys.stdout.isatty() else width)


def check_file_name(name: str) -> None:
    """Refuse a `--name` that is no plain file name.

    Raises:
        ValueError: it is empty or has a folder in it.
    """
    if not name or Path(name).name != name:
        raise ValueError(f"--name is {name!r}; give a plain file name, and the folder by --out")


def listed(text: str) -> list[str]:
    """The entries of a comma-separated list.

    >>> listed("replace, norm-matched,")
    ['replace', 'norm-matched']
    """
    return [each.strip() for each in text.split(",") if each.strip()]


def names(text: str) -> list[str]:
    """The entries of a comma-separated list as the library's names, which have no dashes.

    >>> names("replace, norm-matched,")
    ['replace', 'norm_matched']
    """
    return [each.replace("-", "_") for each in listed(text)]


def layer_or_none(layer: int) -> int | None:
    """A layer, or None where it is to be chosen: for any negative number, `options.CHOSEN` by default."""
    return None if layer < 0 else layer


def load_pair(sender: str, receiver: str, *, device: str, dtype: str = "float32") -> tuple[Model, Model]:
    """Both models; one model twice where the receiver is empty or named as the sender.

    Raises:
        ValueError: a name or option that `load_model` refuses.
    """
    from latentcomm.models import load_model

    first = load_model(sender, dtype=dtype, device=device)
    return first, first if receiver in ("", sender) else load_model(receiver, dtype=dtype, device=device)


def make_task(
    task: TaskName,
    template: TemplateName,
    sender_form: SenderForm,
    fame: Fame,
    seed: int,
    data: str = "",
    subjects: str = "",
    n_shots: int = 0,
    shots: str = "",
) -> Task:
    """The task that the options of a command describe; `shots` is the file that gsm8k's solved examples come from.

    Raises:
        ValueError: an option that the task does not have, or refuses.
    """
    from latentcomm.tasks import biographies, countries, gsm8k, kv_math, kv_math_worked, mmlu, prosqa, tip_sheets
    from latentcomm.tasks.mmlu import SUBJECTS

    if data and task not in WITH_DATA:
        raise ValueError(f"the task {task.value} makes its own items; leave --data out")
    if (subjects and task is not TaskName.mmlu) or (n_shots and task not in WITH_SHOTS):
        raise ValueError(f"--subjects is for mmlu and --n-shots for gsm8k and mmlu; leave them out for {task.value}")
    if shots and (task is not TaskName.gsm8k or not n_shots):
        raise ValueError("--shots names a file of solved examples for gsm8k; give --n-shots with it, or leave it out")
    source = data or None
    if task is TaskName.countries:
        which = None if fame is Fame.all else fame.value
        return countries(template=template.value, sender_form=sender_form.value, fame=which)
    if fame is not Fame.all or sender_form is SenderForm.entity:
        raise ValueError(f"--fame and --sender-form entity are for the task countries; leave them out for {task.value}")
    if task is TaskName.gsm8k:
        return gsm8k(source, template=template.value, n_shots=n_shots, shots=shots or None, seed=seed)
    if task is TaskName.mmlu:
        chosen = listed(subjects) or SUBJECTS
        return mmlu(source, subjects=chosen, template=template.value, n_shots=n_shots, seed=seed)
    if task is TaskName.biographies:
        return biographies(source, template=template.value)
    if task is TaskName.kv_math:
        return kv_math(template=template.value, seed=seed)
    if task is TaskName.kv_math_worked:
        return kv_math_worked(template=template.value, seed=seed)
    if task is TaskName.prosqa:
        return prosqa(seed=seed, template=template.value)
    return tip_sheets(n=200, seed=seed, template=template.value, sender_form=sender_form.value)
