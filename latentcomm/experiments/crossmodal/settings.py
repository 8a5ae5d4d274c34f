"""The settings of `latentcomm crossmodal`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from latentcomm.experiments.settings import DEFAULT_MODEL, AtLeast, ChatSettings, Layer

__all__ = ["DIGITS", "CrossModalSettings"]

DIGITS = "digits"
"""The pictures that come with the package."""


@dataclass(frozen=True, kw_only=True)
class CrossModalSettings(ChatSettings):
    """Test a language model on pictures: through an encoder's states, and through captions from the same states.

    Attributes:
        sender: Directory or hub id of a vision encoder (alias: --vision); for digits a small one, trained here.
        receiver: The receiver: built-in name, hub id, directory or .gguf file.
        template: Prompts as they are, or as a chat.
        data: 'digits', or a folder of pictures with table.csv or table.json: file, name and facts.
        channels: Comma-separated; by default all that need no training through the receiver.
        pooling: What is read from the encoder: its class token where it has one, else its patches.
        block: Of the encoder; chosen on fitting pictures by default.
        write_layer: Of the receiver; the same.
        n_fitting: Pictures of digits that maps are fitted on.
        n_test: Test pictures of each part.
        n_pictures: Pictures of a folder at most; 0 for all.
        composed: For a folder, also test how many of a thing are shown, and in what ink.
        reply_tokens: Tokens of a free reply.
        train_steps: Updates of soft-prompt-trained.
        vision_steps: Updates of the small encoder of digits.
        skip_unreadable: Leave out pictures that cannot be read.
    """

    command: ClassVar[str] = "crossmodal"
    in_turn: ClassVar[bool] = False

    sender: str = ""
    receiver: str = DEFAULT_MODEL
    template: Literal["raw", "chat"] = "raw"
    data: str = DIGITS
    channels: tuple[str, ...] = ()
    pooling: Literal["auto", "class", "patches"] = "auto"
    block: Layer = None
    write_layer: Layer = None
    n_fitting: Annotated[int, AtLeast(8)] = 400
    n_test: Annotated[int, AtLeast(2)] = 60
    n_pictures: Annotated[int, AtLeast(0)] = 250
    composed: bool = False
    reply_tokens: Annotated[int, AtLeast(1)] = 4
    train_steps: Annotated[int, AtLeast(1)] = 200
    vision_steps: Annotated[int, AtLeast(1)] = 1200
    skip_unreadable: bool = False
