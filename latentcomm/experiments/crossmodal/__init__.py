"""A vision encoder's latents in a frozen language model that only reads text: channels, tasks, diagnostics."""

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
