"""Tiny random vision encoders and pictures of noise, built in memory."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny import COUNTRIES

from latentcomm.alignment import AffineMap
from latentcomm.crossmodal.messages import Eye
from latentcomm.crossmodal.pictures import Picture, PictureSet
from latentcomm.crossmodal.preprocessing import Preprocessing
from latentcomm.crossmodal.vision import VisionSender, VisionSite

KINDS = ("vit", "dinov2", "clip", "siglip")
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
TO_16 = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def encoder(kind: str, *, seed: int = 0) -> Any:
    import transformers as hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match kind:
            case "vit":
                model = hf.ViTModel(hf.ViTConfig(**SIZES, intermediate_size=32), add_pooling_layer=False)
            case "dinov2":
                model = hf.Dinov2Model(hf.Dinov2Config(**SIZES, mlp_ratio=2))
            case "clip":
                model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES, intermediate_size=32))
            case "siglip":
                model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES, intermediate_size=32))
            case _:
                raise ValueError(f"there is no tiny {kind}")
        for weight in model.parameters():  # the usual draw is so small that every picture looks alike
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def sender(kind: str = "vit", *, seed: int = 0, preprocessing: Preprocessing = TO_16) -> VisionSender:
    return VisionSender(encoder(kind, seed=seed), preprocessing, f"tiny-{kind}")


def noise(seed: int, width: int = 20, height: int = 12, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, *channels), dtype=np.uint8), mode)


def seen_by(task: Any, *, seed: int = 0) -> Eye:
    """Somebody who looks at a picture of noise for each text that a task's senders read."""
    texts = list(dict.fromkeys(item.sender for item in task.items))
    pictures = tuple(Picture(text, noise(place), task.items[0].answers[0]) for place, text in enumerate(texts))
    return Eye(sender(seed=seed), PictureSet("noise", pictures), VisionSite(1))


def drawn_map(d_in: int, d_out: int, *, seed: int = 0) -> AffineMap:
    draw = torch.Generator().manual_seed(seed)
    return AffineMap(torch.randn(d_out, d_in, generator=draw), torch.randn(d_out, generator=draw))


def country_pictures(n: int = 24, *, kind: str = "RGB") -> PictureSet:
    """Pictures of noise that are called after the countries of the tiny vocabulary, in turn."""
    return PictureSet(
        "countries",
        tuple(
            Picture(
                str(place), noise(place, mode=kind), COUNTRIES[place % 8],
                {"identity": COUNTRIES[place % 8], "category": COUNTRIES[place % 2]},
            )
            for place in range(n)
        ),
    )  # fmt: skip
