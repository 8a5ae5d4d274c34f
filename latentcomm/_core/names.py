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
    """A table of names whose values are imported when they are looked up: those given, and those of other packages.

    Args:
        what: what a name stands for, for errors.
        built_in: name to "module:attribute".
        group: entry points of this group, which other packages declare, are found under their names as well.

    Raises:
        ValueError: on look-up, an unknown name, with the nearest one.

    >>> Named("number", {"pi": "math:pi"})["pi"]
    3.141592653589793
    """

    def __init__(self, what: str, built_in: Mapping[str, str], *, group: str = "") -> None:
        self.what = what
        self._points = {name: EntryPoint(name, value, group) for name, value in built_in.items()}
        self._group = group

    @property
    def _all(self) -> dict[str, EntryPoint]:
        others = entry_points(group=self._group) if self._group else ()
        return {point.name: point for point in others} | self._points

    def __getitem__(self, name: str) -> T:
        found: Any = self._all[check_name(self.what, name, [*self])].load()
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter([*self._points, *sorted(self._all.keys() - self._points.keys())])

    def __len__(self) -> int:
        return len(self._all)
