"""What is fitted once and read again: maps, states and numbers in a folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import write_json
from latentcomm.alignment import AffineMap
from latentcomm.channels.training.trainer import load_weights, save_weights

KIND = "states of pictures"


@dataclass(frozen=True)
class KeptMaps:
    """What is made once and read again, where there is a folder for it.

    Attributes:
        folder: of one configuration; None keeps nothing.
    """

    folder: Path | None

    def number(self, name: str, make: Callable[[], int]) -> int:
        """A whole number."""
        return self.facts(name, lambda: {name: make()})[name]

    def facts(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Facts that JSON can hold."""
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is not None and path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        made = make()
        if path is not None:
            write_json(path, made)
        return made

    def states(
        self, name: str, make: Callable[[], Float[Tensor, "layer item d_read"]]
    ) -> Float[Tensor, "layer item d_read"]:
        """What an encoder saw after every block."""
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is not None and path.exists():
            return load_weights(path, kind=KIND)[0][name]
        made = make()
        if path is not None:
            save_weights(path, {name: made}, kind=KIND, configuration={})
        return made

    def map(self, name: str, make: Callable[[], AffineMap]) -> AffineMap:
        """One map."""
        return self.maps(name, [name], lambda: {name: make()})[name]

    def maps(
        self, name: str, parts: Sequence[str], make: Callable[[], Mapping[str, AffineMap]]
    ) -> Mapping[str, AffineMap]:
        """A map a part, all of them or none."""
        if self.folder is None:
            return make()
        paths = {part: self.folder / f"{name}-{number}.safetensors" for number, part in enumerate(parts)}
        if all(path.exists() for path in paths.values()):
            return {part: AffineMap.load(path) for part, path in paths.items()}
        made = make()
        for part, path in paths.items():
            made[part].save(path)
        return made
