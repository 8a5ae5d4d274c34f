"""A vision encoder's latents in a frozen language model that only reads text: channels, tasks, diagnostics."""

from latentcomm.crossmodal.pictures import Picture, PictureSet, read_picture, read_pictures
from latentcomm.crossmodal.preprocessing import IMAGENET, Preprocessing
from latentcomm.crossmodal.vision import VisionSender, VisionSite, VisionStates, load_vision

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
