"""Channels by name, as the command line and the analyses build them: the one place where a name becomes a channel."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentcomm.channels import (
    Activation,
    Channel,
    Cipher,
    CipherDebate,
    Coconut,
    Debate,
    KeyValues,
    Merged,
    OfEach,
    Silent,
    Skyline,
    StateDeltas,
    Text,
)
from latentcomm.fusion import (
    Fusion,
    Mean,
    NormMatched,
    OrthogonalResidual,
    PredictabilityResidual,
    Replace,
    RightAligned,
    Sum,
    TaskArithmetic,
    Ties,
    VectorMap,
)
from latentcomm.models.sites import Site


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


def check_names(names: Sequence[str], learned: Collection[str] = ()) -> None:
    """Refuse names that are not those of channels, the trained ones given included.

    Raises:
        ValueError: none, a name that is not in `CHANNELS` and not of a trained channel, or one given twice.
    """
    if not names:
        raise ValueError(f"name at least one channel, of {', '.join(CHANNELS)}")
    if untrained := [name for name in names if name in LEARNED and name not in learned]:
        raise ValueError(
            f"the channel {untrained[0]!r} has parts that must be trained first: `latentcomm train {untrained[0]}` "
            "does, and --weights takes the folder it writes"
        )
    if unknown := [name for name in names if name not in CHANNELS and name not in learned]:
        raise ValueError(f"there is no channel {unknown[0]!r}; choose among {', '.join([*CHANNELS, *LEARNED])}")
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"the channel {repeated[0]!r} is named twice; name each once")


def build(names: Sequence[str], recipe: Recipe) -> list[Channel]:
    """The channels of these names.

    Raises:
        ValueError: a name that is unknown, given twice, or whose map or trained channel the recipe lacks.

    >>> [channel.name for channel in build(["silent", "replace"], Recipe(Site(26), Site(26)))]
    ['silent', 'replace']
    """
    check_names(names, recipe.learned)
    return [recipe.learned[name] if name in recipe.learned else CHANNELS[name](name, recipe) for name in names]


def needs_cell(name: str) -> bool:
    """Whether a channel of this name reads and writes at a cell that has to be chosen."""
    return name in FUSED or name in MERGED or name == PREDICTABILITY


def _fused(name: str, recipe: Recipe) -> Channel:
    fusion = FUSED[name]
    fusion = RightAligned(fusion) if recipe.right_aligned else fusion
    return Activation(name, recipe.read, recipe.write, fusion, recipe.alignment)


def _merged(name: str, recipe: Recipe) -> Channel:
    content, merge = MERGED[name]
    if recipe.right_aligned:
        fusion = RightAligned(OfEach(content, merge))
        return Activation(name, recipe.read, recipe.write, fusion, recipe.alignment)
    return Merged(name, recipe.read, recipe.write, content, merge, recipe.alignment)


def _predictability(name: str, recipe: Recipe) -> Channel:
    if recipe.predictable is None:
        raise ValueError(f"{name} needs a map of what the receiver predicts; fit one with channels.fit_predictability")
    fusion = PredictabilityResidual(recipe.predictable)
    return Activation(name, recipe.read, recipe.write, fusion, recipe.alignment)


def _text(name: str, recipe: Recipe) -> Channel:
    return Text(name, max_tokens=recipe.message_tokens, request=recipe.request, allow_empty=True)


def _debate(name: str, recipe: Recipe) -> Channel:
    return Debate(name, request=recipe.request, allow_empty=True)


def _cipher(name: str, recipe: Recipe) -> Channel:
    return Cipher(name, max_tokens=recipe.message_tokens, request=recipe.request, allow_empty=True)


def _cipher_debate(name: str, recipe: Recipe) -> Channel:
    return CipherDebate(name, rounds=2, request=recipe.request, allow_empty=True)


def _coconut(name: str, recipe: Recipe) -> Channel:
    return Coconut(name, recipe.n_thoughts, *recipe.markers)


def _deltas(name: str, recipe: Recipe) -> Channel:
    length = recipe.message_tokens
    return StateDeltas(recipe.delta_layers, name, max_tokens=length, request=recipe.request, allow_empty=True)


PREDICTABILITY = "predictability_residual"
FUSED: Mapping[str, Fusion] = {
    "replace": Replace(),
    "mean": Mean(),
    "sum": Sum(),
    "norm_matched": NormMatched(Sum()),
    "orthogonal_residual": OrthogonalResidual(),
}
"""Channels that fuse one state into another, by the fusion's name."""
MERGED: Mapping[str, tuple[Fusion, Fusion]] = {
    "task_arithmetic": (Replace(), TaskArithmetic()),
    "ties": (Replace(), Ties(0.2, 1.0)),
    "orthogonal_ties": (OrthogonalResidual(), Ties(0.2, 1.0)),
}
"""Channels that merge messages as task vectors: the content of a state, and the merge. With one sender,
task arithmetic at scale 1 is replace."""
CHANNELS: Mapping[str, Callable[[str, Recipe], Channel]] = {
    "silent": lambda name, _: Silent(name),
    "skyline": lambda name, _: Skyline(name),
    "text": _text,
    "debate": _debate,
    "cipher": _cipher,
    "cipher_debate": _cipher_debate,
    **dict.fromkeys(FUSED, _fused),
    PREDICTABILITY: _predictability,
    **dict.fromkeys(MERGED, _merged),
    "coconut": _coconut,
    "deltas": _deltas,
    "kv": lambda name, _: KeyValues(name),
}
"""All channels that can run without training, by name."""
LEARNED = ("learned_linear", "gated", "concatenated", "interlat", "calm")
"""Channels with parts that are trained first, by name; `experiments.train.learn` trains them."""
OF_ONE_VOCABULARY = ("cipher", "cipher_debate", "deltas")
"""Channels whose messages are made of tokens that must mean the same in both models."""
OF_ONE_WIDTH = ("deltas",)
"""Channels whose tensors are added unmapped: those of the catalogue have no map."""
OF_ONE_LAYOUT = ("kv", "coconut")
"""Channels whose messages only a model of the sender's own layout can read."""
