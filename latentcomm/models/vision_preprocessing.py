"""The preprocessing of pictures that a vision encoder's checkpoint states, with Pillow and torch alone."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

PictureLike = Image.Image | str | os.PathLike[str]
"""A picture in memory, or the path of one."""
BACKGROUND = (255, 255, 255)
"""The background colour of transparent pixels: white."""

FILE = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF: Mapping[str, Any] = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resample": Image.Resampling.BICUBIC}
_SQUARE, _EDGE = {"height": 224, "width": 224}, {"shortest_edge": 224}
_CLIP: Mapping[str, Any] = {
    "size": _EDGE, "do_center_crop": True, "crop_size": _SQUARE, "resample": Image.Resampling.BICUBIC,
    "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {**_HALF, "size": _SQUARE, "resample": Image.Resampling.BILINEAR},
    "DeiT": {**_HALF, "size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": _SQUARE},
    "Beit": {**_HALF, "size": _SQUARE, "crop_size": _SQUARE},
    "Siglip": {**_HALF, "size": _SQUARE},
    "CLIP": _CLIP,
    "Bit": _CLIP,
}
"""The defaults of transformers' image processors (5.23), by the name before "ImageProcessor"."""
SQUARES = ("ViT", "DeiT", "Beit")
"""Processors to which a size of one number is both edges; to the others it is the shorter one."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop, rescale, normalise, in this order, as transformers' image processors do.

    Attributes:
        size: (height, width) of the resized picture; one number for its shorter edge, the other in proportion (its
            fraction cut); None leaves it.
        resample: Pillow's filter, by its number (2 bilinear, 3 bicubic).
        crop: (height, width) of a centre crop; None leaves it.
        rescale: what whole numbers from 0 to 255 are multiplied by.
        mean, std: of each channel, subtracted and divided by; () leaves the values.

    Raises:
        ValueError: a size or crop below 1, an unknown filter, or a standard deviation of 0.

    >>> Preprocessing(size=(4, 4), mean=(0.5,) * 3, std=(0.5,) * 3)([Image.new("RGB", (8, 8), "white")]).shape
    torch.Size([1, 3, 4, 4])
    """

    size: tuple[int, int] | int | None = None
    resample: int = 2
    crop: tuple[int, int] | None = None
    rescale: float | int = 1 / 255
    mean: tuple[float | int, ...] = ()
    std: tuple[float | int, ...] = ()

    def __post_init__(self) -> None:
        edges = [*(self.size if isinstance(self.size, tuple) else (self.size,)), *(self.crop or ())]
        if any(edge is not None and edge < 1 for edge in edges):
            raise ValueError(f"size is {self.size} and crop {self.crop}; give whole numbers of pixels from 1")
        if self.resample not in [each.value for each in Image.Resampling]:
            raise ValueError(f"resample is {self.resample}; give the number of a filter of Pillow, such as 2 or 3")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 3) or not all(self.std):
            raise ValueError(f"mean is {self.mean} and std {self.std}; give three numbers each, no std of 0, or none")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Preprocessing":
        """The preprocessing of a preprocessor_config.json, or of the folder that has one.

        Raises:
            ValueError: there is none, or it states an unsupported preprocessing.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{file.name} cannot be read ({getattr(error, 'strerror', None) or error}), so the preprocessing"
                " is unknown; give preprocessing=, such as IMAGENET"
            ) from error
        return cls.of(facts)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing of a preprocessor_config.json's fields; missing ones are those of its named processor.

        Raises:
            ValueError: a size of no known form; or no mean and standard deviation, or one number for the size of the
                whole picture, and no known processor that resolves it.
        """
        named = str(facts.get("image_processor_type") or facts.get("feature_extractor_type") or "")
        processor = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
        facts = {**PROCESSORS.get(processor, {}), **facts}
        who = f"its processor {named} is not known here" if named else "it names no processor"
        size = _size(facts.get("size"), shortest=True) if facts.get("do_resize", True) else None
        if isinstance(facts.get("size"), int) and size is not None:
            if processor in SQUARES:
                size = (int(facts["size"]), int(facts["size"]))
            elif processor not in PROCESSORS and not facts.get("do_center_crop", False):
                raise ValueError(
                    f"{FILE} gives the size {size}, which may be both edges or the shorter one, and {who}; give "
                    "preprocessing="
                )
        crop = _size(facts.get("crop_size"), shortest=False) if facts.get("do_center_crop", False) else None
        if isinstance(crop, int):
            crop = (crop, crop)
        normalised = facts.get("do_normalize", True)
        if normalised and not {"image_mean", "image_std"} <= set(facts):
            raise ValueError(f"{FILE} normalises by no stated image_mean and image_std, and {who}; give preprocessing=")
        return cls(
            size=size,
            resample=int(facts.get("resample", Image.Resampling.BILINEAR)),
            crop=crop,
            rescale=facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0,
            mean=tuple(facts["image_mean"]) if normalised else (),
            std=tuple(facts["image_std"]) if normalised else (),
        )

    def written(self) -> dict[str, Any]:
        """The fields of a preprocessor_config.json with this preprocessing."""
        facts: dict[str, Any] = {"do_resize": self.size is not None, "do_center_crop": self.crop is not None}
        facts |= {"do_rescale": True, "rescale_factor": self.rescale, "do_normalize": bool(self.mean)}
        if isinstance(self.size, tuple):
            facts["size"] = {"height": self.size[0], "width": self.size[1]}
        elif self.size is not None:
            facts["size"] = {"shortest_edge": self.size}
        if self.crop is not None:
            facts["crop_size"] = {"height": self.crop[0], "width": self.crop[1]}
        return facts | {"resample": self.resample, "image_mean": list(self.mean), "image_std": list(self.std)}

    def __call__(self, pictures: Sequence[PictureLike]) -> Float[Tensor, "item 3 height width"]:
        """The pixels that the encoder reads, in float32.

        Raises:
            ValueError: a picture that cannot be read, is smaller than the crop, or is of another size than the others.
        """
        pixels = [self._pixels(read_picture(picture)) for picture in pictures]
        if len({tuple(each.shape) for each in pixels}) > 1:
            sizes = sorted({(each.shape[2], each.shape[1]) for each in pixels})
            raise ValueError(
                f"the pictures are {sizes} pixels (width, height) and no resizing makes them equal; give a size or crop"
            )
        return torch.stack(pixels)

    def _pixels(self, picture: Image.Image) -> Float[Tensor, "3 height width"]:
        if self.size is not None:
            height, width = self._resized(picture)
            picture = picture.resize((width, height), resample=Image.Resampling(self.resample))
        if self.crop is not None:
            height, width = self.crop
            if picture.height < height or picture.width < width:
                raise ValueError(
                    f"a picture of {picture.width} x {picture.height} pixels is smaller than the crop of "
                    f"{width} x {height}; resize to at least that"
                )
            top, left = (picture.height - height) // 2, (picture.width - width) // 2
            picture = picture.crop((left, top, left + width, top + height))
        values = np.asarray(picture).astype(np.float64) * self.rescale
        pixels = rearrange(torch.from_numpy(values), "height width channel -> channel height width").float()
        if self.mean:
            pixels = (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
        return pixels

    def _resized(self, picture: Image.Image) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        shorter, longer = sorted(picture.size)
        edge = self.size or shorter
        other = int(edge * longer / shorter)
        return (edge, other) if picture.height <= picture.width else (other, edge)


IMAGENET = Preprocessing(size=256, resample=3, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""The preprocessing of DINOv2 and most encoders trained on ImageNet: shorter edge 256, centre crop 224, bicubic."""


def _size(value: Any, *, shortest: bool) -> tuple[int, int] | int | None:
    """A size as any version of transformers writes it."""
    if value is None:
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping) and {"height", "width"} <= set(value):
        return int(value["height"]), int(value["width"])
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"} and shortest:
        return int(value["shortest_edge"])
    raise ValueError(f"the size {value!r} is not one of height and width, or of the shortest edge; give preprocessing=")


def read_picture(picture: PictureLike) -> Image.Image:
    """The picture in RGB; where it is transparent, on white.

    Raises:
        ValueError: there is no such file, or it cannot be read as a picture.

    >>> read_picture(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if isinstance(picture, Image.Image):
        loaded = picture
    else:
        try:
            with Image.open(picture) as opened:
                opened.load()
                loaded: Image.Image = opened
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"the picture {os.fspath(picture)} cannot be read ({error or type(error).__name__}); "
                "replace it, or skip unreadable pictures (skip_unreadable)"
            ) from error
    if loaded.mode == "P" and "transparency" in loaded.info:
        loaded = loaded.convert("RGBA")
    if loaded.mode in ("RGBA", "LA", "PA"):
        sheet = Image.new("RGBA", loaded.size, (*BACKGROUND, 255))
        loaded = Image.alpha_composite(sheet, loaded.convert("RGBA"))
    return loaded.convert("RGB")
