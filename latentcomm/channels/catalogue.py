"""Channels by name, as the command line and the analyses build them: here alone a name becomes a channel."""

from collections.abc import Collection, Mapping, Sequence

from latentcomm._core.names import Named, check_name
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
from latentcomm.channels.recipe import Entry, Recipe
from latentcomm.fusion import (
    BY_NAME,
    Fusion,
    OrthogonalResidual,
    PredictabilityResidual,
    Replace,
    RightAligned,
    TaskArithmetic,
    Ties,
)


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
    for name in names:
        check_name("channel", name, [*CHANNELS, *LEARNED, *(each for each in learned if each not in LEARNED)])
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"the channel {repeated[0]!r} is named twice; name each once")


def build(names: Sequence[str], recipe: Recipe) -> list[Channel]:
    """The channels of these names.

    Raises:
        ValueError: a name that is unknown, given twice, or whose map or trained channel the recipe lacks.

    >>> from latentcomm.models.sites import Site
    >>> [channel.name for channel in build(["silent", "replace"], Recipe(Site(26), Site(26)))]
    ['silent', 'replace']
    """
    check_names(names, recipe.learned)
    return [recipe.learned[name] if name in recipe.learned else CHANNELS[name].make(name, recipe) for name in names]


def needs_cell(name: str) -> bool:
    """Whether a channel of this name reads and writes at a cell that has to be chosen."""
    return name in CHANNELS and CHANNELS[name].needs_cell


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
SENDER_ALONE = "sender_alone"
"""The skyline of the sender, which `compare` evaluates with the sender as the receiver."""
MERGED: Mapping[str, tuple[Fusion, Fusion]] = {
    "task_arithmetic": (Replace(), TaskArithmetic()),
    "ties": (Replace(), Ties(0.2, 1.0)),
    "orthogonal_ties": (OrthogonalResidual(), Ties(0.2, 1.0)),
}
"""Channels that merge messages as task vectors: the content of a state, and the merge. With one sender,
task arithmetic at scale 1 is replace."""
FUSED: Mapping[str, Fusion] = {name: fusion for name, fusion in BY_NAME.items() if name not in MERGED}
"""The fusions of one state into another that need no fit, by name: channels of `compare`, fusions of a diagnosis."""
CHANNELS: Named[Entry] = Named(
    "channel",
    {
        "silent": Entry(lambda name, _: Silent(name), about="the receiver alone, without a message: the floor"),
        "skyline": Entry(lambda name, _: Skyline(name), about="one model reads both texts: the ceiling"),
        SENDER_ALONE: Entry(lambda name, _: Skyline(name), about="the sender reads both texts and answers itself"),
        "text": Entry(_text, about="the sender's generated text before the receiver's own"),
        "debate": Entry(_debate, about="both models answer in text; the majority counts"),
        "cipher": Entry(_cipher, same=("vocabulary",), about="averages of token embeddings, from soft decoding"),
        "cipher_debate": Entry(_cipher_debate, same=("vocabulary",), about="a debate in averages of token embeddings"),
        **{
            name: Entry(_fused, needs_cell=True, about=f"one state into another, at one cell: {fusion!r}")
            for name, fusion in FUSED.items()
        },
        PREDICTABILITY: Entry(
            _predictability, needs_cell=True, about="one state, less what the receiver's own predicts of it"
        ),
        **{
            name: Entry(_merged, needs_cell=True, about=f"one state merged as a task vector: {content!r}, {merge!r}")
            for name, (content, merge) in MERGED.items()
        },
        "coconut": Entry(_coconut, same=("layout",), about="continuous thoughts: states fed back as embeddings"),
        "deltas": Entry(_deltas, same=("vocabulary", "width"), about="a text, and how it changed the sender's states"),
        "kv": Entry(lambda name, _: KeyValues(name), same=("layout",), about="keys and values of the sender's prompt"),
    },
    group="latentcomm.channels",
    kind=Entry,
)
"""All channels that can run without training, by name. A package that declares an entry point of the group
`latentcomm.channels`, an `Entry`, adds its own."""
TOGETHER = ("debate", "cipher_debate", "calm")
"""Channels that run both models in turns, or at every step."""
ABOUT_LEARNED: Mapping[str, str] = {
    "learned_linear": "one state through a linear map that is trained on paired text",
    "gated": "a learned gate between one state and the receiver's own",
    "concatenated": "a learned map of both states together",
    "interlat": "the sender's plan as latents, through an adapter",
    "calm": "cross-attention from the receiver's layers to the sender's",
}
LEARNED = tuple(ABOUT_LEARNED)
"""Channels with parts that are trained first, by name; `experiments.train.learn` trains them."""
