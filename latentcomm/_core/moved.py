"""Import paths that the guides of release 0.1 named: each leads to the module's new path, for one release."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "latentcomm.cascade": "latentcomm.experiments.cascade",
    "latentcomm.catalogue": "latentcomm.channels.catalogue",
    "latentcomm.channels.latent": "latentcomm.channels.interlat",
    "latentcomm.channels.latent_training": "latentcomm.channels.training.interlat",
    "latentcomm.comparison": "latentcomm.experiments.compare.channels",
    "latentcomm.corpus": "latentcomm.tasks.corpus",
    "latentcomm.crossmodal": "latentcomm.experiments.crossmodal",
    "latentcomm.crossmodal.parts": "latentcomm.experiments.crossmodal.splits",
    "latentcomm.diagnosis": "latentcomm.experiments.diagnosis",
    "latentcomm.learning": "latentcomm.experiments.train",
    "latentcomm.plots": "latentcomm.reporting.plots",
    "latentcomm.training": "latentcomm.channels.training.trainer",
}
"""Old path to new; what is below an old package is below the new one, under its own name."""


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name, warns with its new path, and returns it."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 (a finder is called with all three)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """A spec for an old name; None for every other."""
        return importlib.util.spec_from_loader(fullname, self) if new_name(fullname) else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Nothing is made."""

    def exec_module(self, module: ModuleType) -> None:
        """The new module is loaded under the old name."""
        new = new_name(module.__name__)
        warnings.warn(f"{module.__name__} is now {new}; this name goes in the next release", DeprecationWarning, 2)
        sys.modules[module.__name__] = importlib.import_module(str(new))


def new_name(name: str) -> str | None:
    """The new path of a module that has moved, or None.

    >>> new_name("latentcomm.corpus"), new_name("latentcomm.cascade.stops"), new_name("latentcomm.fusion")
    ('latentcomm.tasks.corpus', 'latentcomm.experiments.cascade.stops', None)
    """
    if name in MOVED:
        return MOVED[name]
    parent, _, last = name.rpartition(".")
    return f"{MOVED[parent]}.{last}" if parent in MOVED else None
