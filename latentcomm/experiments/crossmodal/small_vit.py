"""A small vision transformer trained on scanned digits in minutes on a CPU: the built-in encoder."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.files import digest, expanded
from latentcomm._core.records import read_whole
from latentcomm.channels.training.saved import load_weights, save_weights
from latentcomm.channels.training.trainer import Schedule, train
from latentcomm.experiments.crossmodal.digits import CELLS, EDGE, INKS, WORDS, digit_halves, four_cells, one_digit
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.models import resolve_device
from latentcomm.models.vision import VisionSender, load_vision
from latentcomm.models.vision_preprocessing import IMAGENET, Preprocessing

KIND = "small vision encoder"
PIXELS = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
N_PICTURES = 4000
STEPS, BATCH, RATE = 1200, 64, 1e-3
NOTHING = len(WORDS)
"""The class of an empty cell."""


@dataclass(frozen=True, eq=False)
class SeeingLearner:
    """The training of a ViT, and of linear heads that are discarded, to classify digits and inks.

    The class token predicts the digit and the ink of a picture of one digit; the mean of the patches of each quarter of
    a composed picture predicts which digit is there, if any. The loss is the sum of the cross-entropies.

    Attributes:
        encoder: a transformers ViT without a pooling layer, changed in place.
        heads: weights of the heads, changed in place.
        pixels: of all pictures.
        targets: digit, ink, and the digit of each quarter; -100 where a picture has no such target.
    """

    encoder: Any
    heads: Mapping[str, Tensor]
    pixels: Float[Tensor, "item 3 height width"]
    targets: Int[Tensor, "item 6"]

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """All weights."""
        return {**dict(self.encoder.named_parameters()), **{f"heads.{name}": each for name, each in self.heads.items()}}

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The sizes, and a digest of the pictures."""
        return {"what": KIND, "sizes": dict(SIZES), "examples": digest(self.pixels, self.targets)}

    def __len__(self) -> int:
        return len(self.pixels)

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: ARG002
        """The cross-entropies, each over the pictures of the batch that have such a target."""
        rows = list(batch)
        states = self.encoder(pixel_values=self.pixels[rows]).last_hidden_state
        plane = rearrange(states[:, 1:], "item (row column) d -> item d row column", row=4)
        cells = rearrange(F.avg_pool2d(plane, 2), "item d row column -> item (row column) d")
        wanted = self.targets[rows]
        logits = (states[:, 0] @ self.heads["digit"].T, states[:, 0] @ self.heads["ink"].T)
        losses = [F.cross_entropy(given, wanted[:, index]) for index, given in enumerate(logits)]
        quarters = rearrange(cells @ self.heads["cell"].T, "item cell digit -> (item cell) digit")
        losses.append(F.cross_entropy(quarters, rearrange(wanted[:, 2:], "item cell -> (item cell)")))
        return torch.stack([loss for loss in losses if not loss.isnan()]).sum()


def small_vit(
    *,
    seed: int = 0,
    steps: int = STEPS,
    n_pictures: int = N_PICTURES,
    path: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> VisionSender:
    """A ViT of 4 blocks and width 64, trained on digits, inks and positions in the fitting half of the scanned digits.

    It takes pictures of 16 x 16 pixels in patches of 4. With `path`, the weights of a finished training are read from
    there, and a training that was stopped resumes.

    Raises:
        ValueError: a file that holds something else.
    """
    file = None if path is None else expanded(path)
    numbers = digit_halves(seed=seed).fitting
    sets = (
        one_digit(numbers, n=n_pictures // 2, seed=seed + 1_000),  # not the pictures that maps are fitted on
        four_cells(numbers, n=n_pictures - n_pictures // 2, seed=seed + 1_000),
    )
    wanted = {"seed": seed, "steps": steps, "n_pictures": n_pictures, "sizes": dict(SIZES)}
    wanted |= {"batch": BATCH, "rate": RATE, "pictures": digest(list(sets))}
    encoder = _untrained(seed)
    name = f"small-vit-{seed}"
    saved = None if file is None else read_whole(file, partial(load_weights, kind=KIND))
    if file is not None and saved is not None:
        weights, facts = saved[0]
        if facts != wanted:
            raise ValueError(f"{file.name} holds the encoder of {facts} and not of {wanted}; give another path")
        encoder.load_state_dict(weights)
        return VisionSender(encoder, PIXELS, name)
    draw = torch.Generator().manual_seed(seed)
    sizes = {"digit": len(WORDS), "ink": len(INKS), "cell": len(WORDS) + 1}
    heads = {head: 0.02 * torch.randn(n, SIZES["hidden_size"], generator=draw) for head, n in sizes.items()}
    pixels = torch.cat([PIXELS([picture.image for picture in each]) for each in sets])
    learner = SeeingLearner(encoder.train(), heads, pixels, torch.cat([_targets(each) for each in sets]))
    schedule = Schedule(
        steps=steps, batch_size=BATCH, learning_rate=RATE, warmup=max(1, steps // 20), final_rate=0.05, seed=seed
    )
    checkpoint = None if file is None else file.with_name(f"{file.name}.training")
    train(learner, schedule, checkpoint=checkpoint, progress=progress, name=name)
    encoder.eval()
    for weight in encoder.parameters():
        weight.requires_grad_(False)
    if file is not None:
        save_weights(file, encoder.state_dict(), kind=KIND, configuration=wanted)
    return VisionSender(encoder, PIXELS, name)


def encoder_named(
    vision: str,
    folder: Path | None,
    *,
    steps: int = STEPS,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    progress: bool = False,
) -> VisionSender:
    """The encoder of a directory or a hub id, or, without a name, `small_vit`, trained once and saved in the folder.

    A directory that states no preprocessing gets ImageNet's.

    Raises:
        ValueError: what `vision.load_vision` or `small_vit` refuses.
    """
    if vision:
        local = expanded(vision)
        stated = (local / "preprocessor_config.json").exists() or not local.is_dir()
        return load_vision(
            local if local.is_dir() else vision,
            preprocessing=None if stated else IMAGENET,
            dtype=dtype,
            device=device,
        )
    path = None if folder is None else folder / f"small-vit-{seed}-{steps}.safetensors"
    sender = small_vit(seed=seed, steps=steps, path=path, progress=progress)
    sender.encoder.to(resolve_device(device))
    return sender


def _untrained(seed: int) -> Any:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        **SIZES,
        image_size=EDGE,
        patch_size=4,
        num_channels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTModel(config, add_pooling_layer=False)


def _targets(pictures: PictureSet) -> Int[Tensor, "item 6"]:
    rows = []
    for picture in pictures:
        row = [-100] * 6
        if "identity" in picture.facts:
            row[:2] = [WORDS.index(picture.facts["identity"]), list(INKS).index(picture.facts["colour"])]
        else:
            word_of = dict(each.rsplit(" ", 1) for each in picture.caption.split(", "))
            row[2:] = [WORDS.index(word_of[cell]) if word_of[cell] in WORDS else NOTHING for cell in CELLS]
        rows.append(row)
    return torch.tensor(rows)
