"""The settings of `latentcomm compare`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from latentcomm.experiments.settings import Alignment, AtLeast, Layer, TaskSettings

__all__ = ["CompareSettings"]


@dataclass(frozen=True, kw_only=True)
class CompareSettings(TaskSettings):
    """Run several channels on the same items: accuracy with interval, controls, and what each costs.

    Attributes:
        channels: Comma-separated names of `latentcomm list channels`; by default all that need no training and can
            pass between the two models, and those of `weights`.
        read_layer: Of the sender, for channels that graft a state; chosen on the tuning half by default.
        write_layer: Of the receiver; the same. Give both or neither.
        alignment: Between unequal models: a map fitted on the packaged corpus; the last entries of both states; or
            neither.
        message_tokens: Tokens of a generated message at most.
        request: Appended to the text of a sender that generates.
        n_tune: Items that the cell is chosen on.
        n_test: Other items that channels are compared on; 0 for all.
        n_thoughts: Of Coconut: how many times a state is fed back.
        weights: Folder of channels that `latentcomm train` wrote.
        controls: Comma-separated names of `latentcomm list controls`; each costs as much as the message.
        audit: Whether to tell content from presence: with the silent receiver, the sender alone, and each channel with
            another item's message, with the receiver's own reading and with a message about nothing.
    """

    command: ClassVar[str] = "compare"
    figures: ClassVar[tuple[str, ...]] = ("", "_audit")

    channels: tuple[str, ...] = ()
    read_layer: Layer = None
    write_layer: Layer = None
    alignment: Alignment = "ridge"
    message_tokens: Annotated[int, AtLeast(1)] = 16
    request: str = ""
    n_tune: Annotated[int, AtLeast(2)] = 40
    n_test: Annotated[int, AtLeast(0)] = 100
    n_thoughts: Annotated[int, AtLeast(0)] = 4
    weights: str = ""
    controls: tuple[str, ...] = ("shuffled",)
    audit: bool = True
