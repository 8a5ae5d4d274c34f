"""The check of every annotated argument, and one sentence about the one that does not fit."""

import collections.abc
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from beartype import beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import AbstractArray, AnnotationError, TypeCheckError

__all__ = ["ArgumentTypeError", "checked"]

F = TypeVar("F", bound=Callable[..., Any])
LONGEST = 60
"""Characters of a value, and of a type, in a message."""
SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


class ArgumentTypeError(TypeCheckError, AnnotationError):
    """An argument, or what a function returned, is of another type or shape than its annotation.

    A `TypeError`. It is an `AnnotationError` because jaxtyping passes those on as they are: any other would become a
    page about all arguments of the call.
    """


def checked(function: F) -> F:
    """Check the arguments and the result of a function by beartype, and refuse them in one sentence.

    >>> @checked
    ... def double(number: int): ...
    >>> double("two")
    Traceback (most recent call last):
    ...
    latentcomm._core.typed.ArgumentTypeError: number is 'two'; double takes int
    """
    hints = dict(getattr(function, "__annotations__", {}))
    inner = beartype(function)

    def check(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            message = _sentence(function, hints, args, kwargs) or str(error).splitlines()[0][:199]
        raise ArgumentTypeError(message)

    return check if hints and inner is not function else function  # pyright: ignore[reportReturnType]


def _sentence(function: Callable[..., Any], hints: Mapping[str, Any], args: Any, kwargs: Any) -> str | None:
    """The argument that does not fit, what it is, and what is taken."""
    who = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
    sizes: dict[str, int] = {}
    for name, value, hint in _arguments(function, hints, args, kwargs):
        if (found := _culprit(name, value, hint)) is not None:
            where, value, hint = found
            wanted = _hint_shown(hint)
            fixed = [f"{axis} {sizes[axis]}" for axis in getattr(hint, "dim_str", "").split() if axis in sizes]
            verb = "returns" if name == "return" else "takes"
            given = f"what {who} returned" if where == "return" else where
            return f"{given} is {_shown(value)}; {who} {verb} {wanted}" + (f" with {', '.join(fixed)}" if fixed else "")
        axes = getattr(hint, "dim_str", "").split() if isinstance(hint, type) else []
        if len(axes) == getattr(value, "ndim", -1):
            sizes |= {axis: size for axis, size in zip(axes, value.shape, strict=True) if axis.isidentifier()}
    return None


def _arguments(
    function: Callable[..., Any], hints: Mapping[str, Any], args: Any, kwargs: Any
) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and annotation of each argument, and of what is returned: jaxtyping hands that over as the last."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        hint, kind = hints.get(name, Any), bound.signature.parameters[name].kind
        if kind == inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}[{number}]", each, hint) for number, each in enumerate(value))
        elif kind == inspect.Parameter.VAR_KEYWORD:
            yield from ((key, each, hint) for key, each in value.items())
        else:
            yield name, value, hint
    if "return" in hints and kwargs:
        yield "return", [*kwargs.values()][-1], hints["return"]


def _culprit(where: str, value: Any, hint: Any) -> tuple[str, Any, Any] | None:
    """The innermost part of a value that does not fit, with its path; None if the value fits."""
    if get_origin(hint) in (Union, types.UnionType):
        others = [each for each in get_args(hint) if each is not type(None)]
        hint = others[0] if len(others) == 1 and value is not None else hint
    origin, inner = get_origin(hint), get_args(hint)
    parts: list[tuple[str, Any, Any]] = []
    if origin in SEQUENCES and isinstance(value, list | tuple) and (len(inner) == 1 or inner[1:] == (...,)):
        parts = [(f"{where}[{number}]", each, inner[0]) for number, each in enumerate(value)]
    elif origin in (dict, collections.abc.Mapping) and isinstance(value, Mapping):
        parts = [(f"{where}[{key!r}]"[:LONGEST], each, inner[1]) for key, each in value.items()]
    whole = is_bearable(value, origin if parts else hint)
    return (where, value, hint) if not whole else next(filter(None, (_culprit(*part) for part in parts)), None)


def _shown(value: Any) -> str:
    """A value in a few words: dtype and shape of an array, a plain value as it is, the kind of anything else."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        made_by = "" if type(value).__module__ == "torch" else f" {type(value).__name__}"
        return f"{str(value.dtype).removeprefix('torch.')}{made_by} [{' '.join(map(str, value.shape))}]"
    if value is None or isinstance(value, str | bool | int | float):
        return _cut(repr(value))
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return _cut(f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}")


def _hint_shown(hint: Any) -> str:
    """An annotation in words."""
    return _cut(_in_words(hint))


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return f"{hint.__name__.partition('[')[0].lower()} {hint.array_type.__name__.lower()} [{hint.dim_str}]"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Annotated:
        return _in_words(inner[0])
    if origin is collections.abc.Callable:
        return "a function"
    if origin in SEQUENCES and inner and (len(inner) == 1 or inner[1:] == (...,)):
        return f"a {origin.__name__.lower()} of {_in_words(inner[0])}"
    if origin in (dict, collections.abc.Mapping):
        return f"a {origin.__name__.lower()} of {_in_words(inner[0])} to {_in_words(inner[1])}"
    if hint is None or hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
