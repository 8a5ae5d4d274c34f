"""Names that a user writes: looked up, refused with the nearest one, and loaded from where they are defined."""

import difflib
import functools
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

__all__ = ["Named", "check_name"]

T = TypeVar("T")


def check_name(what: str, name: str, names: Collection[str]) -> str:
    """Return `name` if it is one of `names`.

    Raises:
        ValueError: it is not; the nearest one is named, then all.

    >>> check_name("fusion", "men", ["replace", "mean"])
    Traceback (most recent call last):
    ...
    ValueError: there is no fusion 'men'; did you mean 'mean'? choose among replace, mean
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no {what} {name!r}; {guess}choose among {', '.join(names)}")


class Named(Mapping[str, T], Generic[T]):
    """A table of names: those given, and those that other packages declare; imported when they are looked up.

    Args:
        what: what a name stands for, for errors.
        built_in: name to value, or to "module:attribute" for a value that is imported when it is looked up.
        group: entry points of this group, which other packages declare, are found under their names as well.
        kind: the type of what other packages declare; any where None.

    Raises:
        ValueError: on look-up, an unknown name, with the nearest one; or what another package declares cannot be
            imported, or is no `kind`.

    >>> Named("number", {"pi": "math:pi"})["pi"]
    3.141592653589793
    """

    def __init__(self, what: str, built_in: Mapping[str, Any], *, group: str = "", kind: type | None = None) -> None:
        self.what = what
        self._built_in = {
            name: EntryPoint(name, value, group) if isinstance(value, str) else value
            for name, value in built_in.items()
        }
        self._group = group
        self._kind = kind

    @property
    def _all(self) -> dict[str, Any]:
        return (_entry_points(self._group, tuple(sys.path)) if self._group else {}) | self._built_in

    def __getitem__(self, name: str) -> T:
        found = self._all[check_name(self.what, name, [*self])]
        if not isinstance(found, EntryPoint):
            return found
        return found.load() if found.dist is None else self._declared(found)

    def _declared(self, point: EntryPoint) -> T:
        """What another package declares under a name."""
        package = point.dist.name if point.dist is not None else point.module
        where = f"the {self.what} {point.name!r} of the package {package}"
        try:
            found = point.load()
        except Exception as error:  # a foreign package may raise anything when it is imported
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{where} cannot be loaded from {point.value} ({reason}); mend or remove it") from error
        if self._kind is not None and not isinstance(found, self._kind):
            kinds = f"{type(found).__name__} and no {self._kind.__name__}"
            raise ValueError(f"{where} is a {kinds}; let its entry point name one")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter([*self._built_in, *sorted(self._all.keys() - self._built_in.keys())])

    def __len__(self) -> int:
        return len(self._all)


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:  # noqa: ARG001 (what is installed follows it)
    """The entry points of a group, by name, scanned once for a search path: a scan takes ten milliseconds.

    What is installed afterwards in a folder of that path is found by the next process.
    """
    return {point.name: point for point in entry_points(group=group)}
