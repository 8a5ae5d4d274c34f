"""Merged activations: the difference of one or several senders' states to the receiver's, added to its own state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from latentcomm._core.linalg import mapped
from latentcomm.alignment import AffineMap
from latentcomm.channels.activation import Activation
from latentcomm.channels.message import Message
from latentcomm.channels.several_senders import FurtherSender, OfEach
from latentcomm.fusion import Fusion, OrthogonalResidual, Replace, TaskArithmetic, Ties
from latentcomm.hooks.capture import capture
from latentcomm.hooks.paired_text import MAX_TOKENS, pair_tokens
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model
from latentcomm.models.sites import Site
from latentcomm.redundancy import fit_predictable
from latentcomm.tasks.base import Task


@dataclass(frozen=True)
class Merged:
    """b <- b + scale * merge(m_1, .., m_n) after the write site: the senders' messages m_i, merged as task vectors are.

    b is the receiver's own state at its last prompt token, a_i a sender's at the read site, aligned. `content`
    defines the message m_i:

    - `Replace()`: m_i = a_i - b; with an alignment W a_i - b.
    - `OrthogonalResidual()`: m_i = a_i less its component along b.
    - `PredictabilityResidual(map)`: m_i = a_i - (M b + c), the part that b does not predict (`fit_predictability`).
    - `Linear(Drop(projection), Sum())`: m_i = the part of a_i outside a subspace of the receiver's states.

    `merge` is `TaskArithmetic(scale)` or `Ties(density, scale)`, in `NormMatched` to preserve the norm of the
    receiver's state. With one sender and task arithmetic this is what Activation does with `content` alone.

    Source: Ilharco et al. 2022 (arXiv:2212.04089) and Yadav et al. 2023 (arXiv:2306.01708), both for weights; nobody
    has published them for messages.

    Attributes:
        name: the name in tables.
        read, write: where states are read and written.
        content: the message in a sender's state; a tuple has one for each sender.
        merge: merges the senders' messages.
        alignment: the map from the sender's space to the receiver's.
        others: further senders.

    Raises:
        ValueError: a merge that does not take several senders.

    >>> Merged("ties", Site(3), Site(3), OrthogonalResidual(), Ties(density=0.2)).name
    'ties'
    """

    name: str
    read: Site
    write: Site
    content: Fusion | tuple[Fusion, ...] = field(default_factory=Replace)
    merge: Fusion = field(default_factory=TaskArithmetic)
    alignment: Callable[..., Any] | None = None
    others: tuple[FurtherSender, ...] = ()

    def __post_init__(self) -> None:
        OfEach(self.content, self.merge)

    @property
    def activation(self) -> Activation:
        """The same channel as an `Activation` with a fusion."""
        fusion = OfEach(self.content, self.merge)
        return Activation(self.name, self.read, self.write, fusion, self.alignment, self.others)

    @property
    def message_key(self) -> tuple[Any, ...]:
        """The values that determine the message: the read site and the further senders."""
        return self.activation.message_key

    def send(self, sender: Model, task: Task, *, receiver: Model | None = None) -> Message:
        """Every sender's state after the read site, at its prompt's last token."""
        return self.activation.send(sender, task, receiver=receiver)

    def carries_own(self, receiver: Model) -> bool:
        """Whether the receiver's own state can be merged into it."""
        return self.activation.carries_own(receiver)

    def own(self, receiver: Model, task: Task) -> Message:
        """The receiver's state after its own block of the read layer's number."""
        return self.activation.own(receiver, task)

    def receive(self, receiver: Model, task: Task, message: Message) -> ReceiverInput:
        """The receiver's prompts with one graft.

        Raises:
            ValueError: as `Activation.receive`.
        """
        return self.activation.receive(receiver, task, message)


def fit_predictability(
    sender: Model,
    receiver: Model,
    documents: Sequence[str],
    *,
    read: Site,
    write: Site,
    alignment: Callable[..., Any] | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> AffineMap:
    """The ridge map b -> M b + c that predicts a sender's (aligned) states from the receiver's over documents.

    Rows are the positions where a token of both models ends at the same character, without each document's first token
    (the attention sink); the penalty is chosen by held-out error over whole documents. Its `.r_squared` on rows of
    other documents shows how much is predictable, and `PredictabilityResidual(map)` sends the rest.

    Raises:
        ValueError: a site that a model lacks, or as `pair_tokens` and `fit_predictable`.
    """
    tokens = pair_tokens(sender, receiver, documents, max_tokens=max_tokens)
    rows = tokens.after_first
    document = tokens.document[rows]
    incoming = capture(sender, tokens.sender, [read]).values[read][document, tokens.sender_position[rows]]
    own = capture(receiver, tokens.receiver, [write]).values[write][document, tokens.receiver_position[rows]]
    incoming = incoming.to(own.dtype)
    incoming = incoming if alignment is None else mapped(alignment, incoming)
    found = fit_predictable(own, incoming, groups=document, seed=seed)
    device = receiver.device_of(write.layer)
    return AffineMap(found.weight.to(device), found.bias.to(device))  # it maps in the receiver's pass


MERGES: Mapping[str, tuple[Fusion, Fusion]] = MappingProxyType(
    {
        "task_arithmetic": (Replace(), TaskArithmetic()),
        "ties": (Replace(), Ties()),
        "orthogonal_residual": (OrthogonalResidual(), TaskArithmetic()),
        "orthogonal_ties": (OrthogonalResidual(), Ties()),
    }
)
"""Content and merge of the merged channels that need nothing fitted."""
