"""Names that a user writes: looked up, refused with the nearest one, and loaded from where they are defined."""

import difflib
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

    Raises:
        ValueError: on look-up, an unknown name, with the nearest one.

    >>> Named("number", {"pi": "math:pi"})["pi"]
    3.141592653589793
    """

    def __init__(self, what: str, built_in: Mapping[str, Any], *, group: str = "") -> None:
        self.what = what
        self._built_in = {
            name: EntryPoint(name, value, group) if isinstance(value, str) else value
            for name, value in built_in.items()
        }
        self._group = group

    @property
    def _all(self) -> dict[str, Any]:
        others = entry_points(group=self._group) if self._group else ()
        return {point.name: point for point in others} | self._built_in

    def __getitem__(self, name: str) -> T:
        found = self._all[check_name(self.what, name, [*self])]
        return found.load() if isinstance(found, EntryPoint) else found

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter([*self._built_in, *sorted(self._all.keys() - self._built_in.keys())])

    def __len__(self) -> int:
        return len(self._all)
