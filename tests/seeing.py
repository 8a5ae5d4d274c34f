"""Tiny random vision encoders and pictures of noise, built in memory; a tiny reader that knows their words."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny import COUNTRIES
from toys import PIECES, words_folder

from latentcomm.alignment import AffineMap
from latentcomm.experiments.crossmodal import digits
from latentcomm.experiments.crossmodal.channels import Eye
from latentcomm.experiments.crossmodal.picture_folder import COLUMN_QUESTIONS
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import picture_task, told
from latentcomm.experiments.crossmodal.splits import digit_parts
from latentcomm.models.vision import VisionSender, VisionSite
from latentcomm.models.vision_preprocessing import Preprocessing

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


NAMES = (
    "Peru", "Italy", "Greece", "Japan", "Egypt", "France", "Spain", "India",
    "Chile", "Kenya", "Nepal", "Ghana", "Cuba", "Laos", "Malta", "Togo",
)  # fmt: skip
NAMED = [
    {
        "file": f"{place}.png",
        "name": name,
        "capital": [f"{name} city", f"{name} town"],
        "region": ("north", "south")[place % 2],
    }
    for place, name in enumerate(NAMES)
]


def picture_folder(path: Path, rows: list[dict[str, Any]] = NAMED, *, table: str = "table.json") -> Path:
    """A folder of pictures of noise with a table of what they are called."""
    (path / "pictures").mkdir(parents=True)
    for place, row in enumerate(rows):
        noise(place, 24, 16).save(path / "pictures" / row["file"])
    if table.endswith(".json"):
        (path / table).write_text(json.dumps(rows), "utf-8")
    else:
        with (path / table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({key: "|".join(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows)
    return path


def encoder_folder(path: Path) -> Path:
    """A folder with a tiny ViT and its preprocessing."""
    encoder("vit").save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(TO_16.written()), "utf-8")
    return path


def reader_folder(path: Path) -> Path:
    """A folder with a tiny Llama that knows the words of digits and of the pictures of `picture_folder`."""
    texts = [f" {answer}" for answer in (*digits.WORDS, *digits.INKS, "even", "odd", "north", "south")]
    texts += [f" {row['name']}" for row in NAMED]
    for part in digit_parts(n_fitting=60, n_composed=60, n_testing=20):
        texts += [item.skyline for question in part.questions for item in picture_task(part.fitting, question).items]
    texts += [told(row["name"], question.ask) for row in NAMED for question in COLUMN_QUESTIONS.values()]
    return words_folder(path, [piece for text in texts for piece in PIECES.findall(text)])
