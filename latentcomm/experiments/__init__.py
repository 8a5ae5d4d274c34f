"""What the commands do: sweep, compare, cascade, cross-modal, diagnose, train."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules={"cascade", "compare", "crossmodal", "diagnosis", "sweep"}
)
