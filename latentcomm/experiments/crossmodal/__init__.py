"""A vision encoder's latents in a frozen language model that only reads text: channels, tasks, diagnostics."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet, read_pictures
    from latentcomm.models.vision import VisionSender, VisionSite, VisionStates, load_vision
    from latentcomm.models.vision_preprocessing import IMAGENET, Preprocessing, read_picture

__all__ = [
    "IMAGENET",
    "Picture",
    "PictureSet",
    "Preprocessing",
    "VisionSender",
    "VisionSite",
    "VisionStates",
    "load_vision",
    "read_picture",
    "read_pictures",
]

_HOMES = {
    "latentcomm.experiments.crossmodal.pictures": ("Picture", "PictureSet", "read_pictures"),
    "latentcomm.models.vision": ("VisionSender", "VisionSite", "VisionStates", "load_vision"),
    "latentcomm.models.vision_preprocessing": ("IMAGENET", "Preprocessing", "read_picture"),
}


def __getattr__(name: str) -> Any:
    """Load a name when it is first used: importing the settings of this package loads no torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
