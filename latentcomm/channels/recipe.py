"""What a channel named on the command line is built from, and between which models its message can pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from latentcomm.channels.base import Channel
from latentcomm.fusion import VectorMap
from latentcomm.models.sites import Site

__all__ = ["Entry", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """All that a named channel is built from.

    Attributes:
        read, write: the cell (k, j) of the channels that graft a state.
        alignment: the map from the sender's space to the receiver's; None within one model.
        predictable: the map from the receiver's states to what they predict of the (aligned) sender's, for
            predictability_residual.
        right_aligned: fuse the last entries of states of unequal width, where nothing is aligned.
        message_tokens: tokens or steps of a generated message at most.
        request: appended to the text of a sender that generates a message.
        delta_layers: the layers whose state deltas are sent with a text.
        n_thoughts, markers: the number of continuous thoughts, and the tokens around them.
        learned: trained channels, by name; see `experiments.train`.
    """

    read: Site
    write: Site
    alignment: Callable[..., Any] | None = None
    predictable: VectorMap | None = None
    right_aligned: bool = False
    message_tokens: int = 16
    request: str = ""
    delta_layers: tuple[int, ...] = (0,)
    n_thoughts: int = 4
    markers: tuple[str, str] = ("(", ")")
    learned: Mapping[str, Channel] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A channel of the catalogue.

    Attributes:
        make: the channel of a name, from a recipe.
        needs_cell: whether it reads and writes at the recipe's cell, which then has to be chosen.
        same: what sender and receiver must share for its message to pass: the vocabulary, where it is made of tokens
            that must mean the same; the width, where it is added without a map; the layout, where only a model of the
            sender's own layers and width can read it.
        about: one line for `latentcomm list channels`.
    """

    make: Callable[[str, Recipe], Channel]
    needs_cell: bool = False
    same: tuple[Literal["vocabulary", "width", "layout"], ...] = ()
    about: str = ""
