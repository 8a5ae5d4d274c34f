"""A vision encoder of transformers as a sender: its states of pictures after every block, class token and patches."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import first_line, without_folder
from latentcomm.models.base import PassEnded
from latentcomm.models.checkpoint import Checkpoint, locate, read_by_transformers
from latentcomm.models.devices import resolve_device, resolve_dtype
from latentcomm.models.loading import load_whole
from latentcomm.models.vision_preprocessing import PictureLike, Preprocessing

PICTURES_AT_ONCE = 16
"""Pictures per forward pass: 257 tokens of 384 a picture and block of DINOv2-small are 25 MB a block."""
ANY_SIZE = ("dinov2", "dinov2_with_registers")
"""Kinds of encoder that interpolate their position embeddings; the others take pictures of one size alone."""
DTYPES = (torch.float32, torch.bfloat16)
UNREAD = ("pooler", "vision_model.head")
"""Parts of names of weights that affect no state of a block; a checkpoint may lack them."""
TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
"""Checkpoints of two towers, and the class of the vision tower."""


@dataclass(frozen=True)
class VisionSite:
    """What of an encoder's states a message holds: after which block, and how its tokens become one vector.

    Attributes:
        block: counted from 0.
        pooling: "class" is the class token; "patches" the patches, averaged within each cell of a grid.
        grid: cells along each side, with "patches"; 1 averages all of them. The cells are ordered row by row.

    Raises:
        ValueError: a negative block, or a grid below 1.

    >>> VisionSite(3, "patches", 2).n_vectors
    4
    """

    block: int
    pooling: Literal["class", "patches"] = "patches"
    grid: int = 1

    def __post_init__(self) -> None:
        if self.block < 0 or self.grid < 1:
            raise ValueError(f"block is {self.block} and grid {self.grid}; blocks count from 0 and cells from 1")

    @property
    def n_vectors(self) -> int:
        """How many states are concatenated in the vector."""
        return 1 if self.pooling == "class" else self.grid**2

    def __str__(self) -> str:
        cells = "" if self.n_vectors == 1 else f" in {self.grid} x {self.grid}"
        return f"block {self.block}, {self.pooling}{cells}"


@dataclass(frozen=True, eq=False)
class VisionStates:
    """States of pictures after some blocks.

    Attributes:
        values: after each requested block, every token.
        tokens: what each token is: "class", "register", or "patch".
        rows, columns: of the grid of patches, which are the last `rows * columns` tokens, row by row.
    """

    values: Float[Tensor, "layer item token d"]
    tokens: tuple[str, ...]
    rows: int
    columns: int

    def class_token(self) -> Float[Tensor, "layer item d"]:
        """The class token's states.

        Raises:
            ValueError: the encoder has none, as SigLIP's.
        """
        if "class" not in self.tokens:
            raise ValueError("this encoder has no class token; pool its patches")
        return self.values[:, :, self.tokens.index("class")]

    def patches(self) -> Float[Tensor, "layer item patch d"]:
        """The patches' states."""
        return self.values[:, :, len(self.tokens) - self.rows * self.columns :]

    def pooled(self, pooling: Literal["class", "patches"], grid: int = 1) -> Float[Tensor, "layer item d_read"]:
        """One vector a picture: the class token, or the means of the patches of the cells, concatenated.

        Raises:
            ValueError: a grid of no cell or of more cells than patches, or no class token.
        """
        if pooling == "class":
            return self.class_token()
        if not 1 <= grid <= min(self.rows, self.columns):
            raise ValueError(
                f"{self.rows} x {self.columns} patches cannot be cut into {grid} x {grid} cells; give a grid from 1 to "
                f"{min(self.rows, self.columns)}"
            )
        plane = rearrange(
            self.patches(), "layer item (row column) d -> (layer item) d row column", row=self.rows, column=self.columns
        )
        cells = F.adaptive_avg_pool2d(plane.double(), grid).to(plane.dtype)
        return rearrange(cells, "(layer item) d row column -> layer item (row column d)", layer=len(self.values))


@dataclass(frozen=True, eq=False)
class VisionSender:
    """A frozen vision encoder that sends its states of pictures.

    Attributes:
        encoder: the transformers model; it is put into evaluation mode and never changed.
        preprocessing: of pictures, before the encoder.
        name: in tables and on messages.

    Raises:
        ValueError: a model in which no list of blocks is found.
    """

    encoder: Any
    preprocessing: Preprocessing
    name: str

    def __post_init__(self) -> None:
        _ = self.blocks
        self.encoder.eval()

    def __repr__(self) -> str:
        return f"VisionSender({self.name}, n_blocks={self.n_blocks}, d_model={self.d_model})"

    @property
    def n_blocks(self) -> int:
        """How many blocks it has."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """The width of its states."""
        return int(self.encoder.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.encoder.parameters()).dtype

    @cached_property
    def blocks(self) -> Any:
        """Its blocks, in order."""
        depth = getattr(self.encoder.config, "num_hidden_layers", None)
        lists = [
            each for each in self.encoder.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == depth
        ]
        if len(lists) != 1:
            raise ValueError(
                f"{self.name} has {len(lists)} lists of {depth} blocks and not one; give a vision encoder of "
                "transformers, such as ViTModel, Dinov2Model, CLIPVisionModel or SiglipVisionModel"
            )
        return lists[0]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights that make its states, at first access, and the preprocessing."""
        state = hashlib.sha256(repr(self.preprocessing).encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            if any(part in name for part in UNREAD):
                continue
            state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return state.hexdigest()

    def width(self, site: VisionSite) -> int:
        """How wide the vector of a site is."""
        return self.d_model * site.n_vectors

    def states(self, pictures: Sequence[PictureLike], *, blocks: Sequence[int] | None = None) -> VisionStates:
        """The states of pictures after blocks (by default all of them), on the CPU in the encoder's dtype.

        Raises:
            ValueError: no picture, one that cannot be read or is of a size that the encoder does not take, or a block
                that it does not have.
        """
        parts = list(self._batches(pictures, self._checked(blocks)))
        return VisionStates(
            torch.cat([part.values for part in parts], 1), parts[0].tokens, parts[0].rows, parts[0].columns
        )

    def pooled(
        self,
        pictures: Sequence[PictureLike],
        *,
        blocks: Sequence[int] | None = None,
        pooling: Literal["class", "patches"] = "patches",
        grid: int = 1,
    ) -> Float[Tensor, "layer item d_read"]:
        """The vectors of pictures after blocks, without all states in memory at once; see `states`."""
        parts = [part.pooled(pooling, grid) for part in self._batches(pictures, self._checked(blocks))]
        return torch.cat(parts, 1)

    def read(self, pictures: Sequence[PictureLike], site: VisionSite) -> Float[Tensor, "item d_read"]:
        """The vector of each picture at a site; blocks above it do not run."""
        return self.pooled(pictures, blocks=[site.block], pooling=site.pooling, grid=site.grid)[0]

    def randomised(self, *, seed: int = 0) -> "VisionSender":
        """The same architecture with new random weights, initialised as transformers does: the untrained control."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self.encoder)(self.encoder.config)
        fresh = fresh.to(self.device, self.dtype)
        return VisionSender(fresh, self.preprocessing, f"{self.name} (random weights)")

    def multiply_adds(self, picture: PictureLike, block: int) -> int:
        """Multiply-adds of the matrix products of one picture up to and including a block, without patch embedding."""
        pixels = self.preprocessing([picture])
        rows, columns = self._grid(pixels)
        n = rows * columns + 1
        per_token = sum(weight.numel() for weight in self.blocks[0].parameters() if weight.ndim == 2)
        return (block + 1) * (n * per_token + 2 * n * n * self.d_model)

    def check_block(self, block: int) -> None:
        """Check that this encoder has a block.

        Raises:
            ValueError: it is outside the encoder.
        """
        if not 0 <= block < self.n_blocks:
            raise ValueError(f"block {block} is outside {self.name}, whose blocks are 0 to {self.n_blocks - 1}")

    def _checked(self, blocks: Sequence[int] | None) -> list[int]:
        chosen = list(range(self.n_blocks)) if blocks is None else list(blocks)
        for block in chosen:
            self.check_block(block)
        if not chosen:
            raise ValueError("name at least one block")
        return chosen

    def _grid(self, pixels: Float[Tensor, "item channel height width"]) -> tuple[int, int]:
        """Patches along each side.

        Raises:
            ValueError: a size that the encoder does not take.
        """
        config = self.encoder.config
        patch, native = _pair(config.patch_size), _pair(config.image_size)
        size = (pixels.shape[2], pixels.shape[3])
        if size != native and config.model_type not in ANY_SIZE:
            raise ValueError(
                f"{self.name} takes pictures of {native[1]} x {native[0]} pixels and these come to "
                f"{size[1]} x {size[0]}; preprocess them to that size"
            )
        if any(edge % part or edge < part for edge, part in zip(size, patch, strict=True)):
            raise ValueError(
                f"{size[1]} x {size[0]} pixels cannot be cut into patches of {patch[1]} x {patch[0]} of {self.name}; "
                "preprocess pictures to a multiple of that"
            )
        return size[0] // patch[0], size[1] // patch[1]

    def _batches(self, pictures: Sequence[PictureLike], blocks: list[int]) -> Iterator[VisionStates]:
        if not pictures:
            raise ValueError("there is no picture; give at least one")
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            pixels = self.preprocessing(pictures[start : start + PICTURES_AT_ONCE])
            rows, columns = self._grid(pixels)
            states = self._run(pixels.to(self.device, self.dtype), blocks)
            n_before = states.shape[2] - rows * columns
            names = ("class", *("register",) * max(0, n_before - 1))[:n_before]
            yield VisionStates(states, (*names, *("patch",) * (rows * columns)), rows, columns)

    @torch.no_grad()
    def _run(
        self, pixels: Float[Tensor, "item channel height width"], blocks: list[int]
    ) -> Float[Tensor, "layer item token d"]:
        """One forward pass that ends after the deepest requested block."""
        states: dict[int, Tensor] = {}

        def capture_of(block: int) -> Any:
            def capture(_module: Any, _given: Any, output: Any) -> None:
                states[block] = (output[0] if isinstance(output, tuple) else output).detach().cpu()
                if block == max(blocks):
                    raise PassEnded

            return capture

        handles = [self.blocks[block].register_forward_hook(capture_of(block)) for block in set(blocks)]
        try:
            with contextlib.suppress(PassEnded):
                self.encoder(pixel_values=pixels)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([states[block] for block in blocks])


def load_vision(
    name_or_path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
) -> VisionSender:
    """The vision encoder of a local directory or a hub id, with the preprocessing that its checkpoint states.

    Of checkpoints with two towers (CLIP, SigLIP) the vision tower is loaded. Neither torchvision nor a multimodal
    bridge is needed.

    Raises:
        ValueError: no such model, no vision encoder, weights that are missing, another dtype, or no preprocessing in
            the checkpoint and none given.
        RuntimeError: the hub cannot be reached.
    """
    import transformers

    where, numbers = resolve_device(device), resolve_dtype(dtype)
    if numbers not in DTYPES:
        raise ValueError(
            f"dtype is {dtype}; encoders run in {' or '.join(str(each).removeprefix('torch.') for each in DTYPES)}"
        )
    name = os.fspath(name_or_path)
    files = locate(name, "vision encoder")
    with read_by_transformers(name, "vision encoder"):
        config = transformers.AutoConfig.from_pretrained(files.folder)
    kind = str(config.model_type)
    if preprocessing is None:
        preprocessing = Preprocessing.read(_stated_in(name, files))
    tower = TOWERS.get(kind, TOWERS.get(kind.removesuffix("_vision_model"), "AutoModel"))
    encoder = load_whole(getattr(transformers, tower), name, files, dtype=numbers, optional=UNREAD)
    if not hasattr(encoder.config, "patch_size"):
        raise ValueError(f"{name} is of the kind {kind}, which does not cut pictures into patches; give a ViT")
    return VisionSender(encoder.to(where), preprocessing, without_folder(name))


def _stated_in(name: str, files: Checkpoint) -> str:
    """The directory, or the file of the hub that states the preprocessing."""
    if Path(files.folder).is_dir():
        return files.folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError

    try:
        return hf_hub_download(files.folder, "preprocessor_config.json")
    except (OSError, EntryNotFoundError) as error:
        raise ValueError(
            f"{name} states no preprocessing ({first_line(error)}); give preprocessing=, such as IMAGENET"
        ) from error


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
