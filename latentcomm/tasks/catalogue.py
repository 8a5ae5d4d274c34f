"""Tasks by name, as the command line and the analyses make them: names become tasks here alone."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from latentcomm._core.names import Named
from latentcomm.models.chat import ChatFormat
from latentcomm.tasks.base import Task

__all__ = ["TASKS", "make_task"]

TASKS: Named[Callable[..., Task]] = Named(
    "task",
    {
        "countries": "latentcomm.tasks.countries:countries",
        "tip_sheets": "latentcomm.tasks.tip_sheets:tip_sheets",
        "biographies": "latentcomm.tasks.biographies:biographies",
        "gsm8k": "latentcomm.tasks.gsm8k:gsm8k",
        "mmlu": "latentcomm.tasks.mmlu:mmlu",
        "kv_math": "latentcomm.tasks.kv_math:kv_math",
        "kv_math_worked": "latentcomm.tasks.kv_math_worked:kv_math_worked",
        "prosqa": "latentcomm.tasks.prosqa:prosqa",
        "bindings": "latentcomm.tasks.bindings:bindings",
        "bindings_two_hop": "latentcomm.tasks.bindings:bindings_two_hop",
        "bindings_keyed": "latentcomm.tasks.bindings:bindings_keyed",
    },
    group="latentcomm.tasks",
)
"""Every task by its name. All take `template`; gsm8k and mmlu need a source, a file or a hub data set. A package that
declares an entry point of the group `latentcomm.tasks` adds its own."""


AS_COMMANDED: Mapping[str, Mapping[str, Any]] = {"tip_sheets": {"n": 200, "sender_form": "primed"}}
"""What `make_task` gives a task's function by default, where the function's own default is another."""

PARAMETERS: Mapping[str, str] = {"data": "source"}
"""Parameters whose option has another name."""


def make_task(name: str, *, seed: int = 0, **options: Any) -> Task:
    """The task of this name, with these options of its function and, where the function takes one, this seed.

    Args:
        name: a name of `TASKS`, with dashes or underscores.
        seed: of what the task draws.
        options: by the names of the function's parameters, `data` for `source`; a `template` may be a `ChatFormat`.

    Raises:
        ValueError: an unknown name, an option that the task does not have, or one that it refuses.

    >>> make_task("countries", template="chat").template
    'chat'
    >>> make_task("countries", n_shots=2)
    Traceback (most recent call last):
    ...
    ValueError: n_shots is no option of the task countries; leave it out
    """
    if isinstance(chat := options.get("template"), ChatFormat):
        return replace(make_task(name, seed=seed, **options | {"template": "chat"}), template=chat)
    own_name = name.replace("-", "_")
    make = TASKS[own_name]
    taken = inspect.signature(make).parameters
    given = {PARAMETERS.get(option, option): value for option, value in options.items()}
    if unknown := [option for option, parameter in zip(options, given, strict=True) if parameter not in taken]:
        raise ValueError(f"{unknown[0]} is no option of the task {name}; leave it out")
    for option, (parameter, value) in zip(options, given.items(), strict=True):
        choices = get_args(taken[parameter].annotation)
        if get_origin(taken[parameter].annotation) is Literal and value not in choices:
            raise ValueError(f"{option} is {value!r}; the task {name} takes {' or '.join(map(str, choices))}")
    seeded = {"seed": seed} if "seed" in taken else {}
    return make(**{**AS_COMMANDED.get(own_name, {}), **seeded, **given})
