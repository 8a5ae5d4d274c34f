"""A task in the words of the tiny tokenizer for cascades, and models to hand over between."""

from dataclasses import replace

import tiny
from subwords import byte_level
from tiny import transformers_model
from toys import toy

from latentcomm.channels.message import Message
from latentcomm.experiments.cascade import (
    CascadeTrial,
    Confident,
    EntropyDrop,
    FixedTokens,
    KVHandOff,
    LatentHandOff,
    Oracle,
    TextHandOff,
    write_openings,
)
from latentcomm.experiments.cascade.continuations import Continued, Request, continue_openings
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.openings import EMBEDDING, openings_of
from latentcomm.models import Model, encode, wrap_model
from latentcomm.models.prompts import Prompts
from latentcomm.tasks import Item, Task

LIMIT = 10
HAND_OFFS: dict[str, HandOff] = {
    "text": TextHandOff(),
    "graft": LatentHandOff(1, 1),
    "soft": LatentHandOff(EMBEDDING, itself=LatentHandOff(EMBEDDING)),
    "kv": KVHandOff(),
}
NS = (0, 2, 5, LIMIT)
SHORT = (1, 2, 3, 6, 9)
"""Numbers of tokens at which a hand-off is made, where both models write."""
STOPS = {"drop": EntropyDrop(0.9, 2, 3), "never": Confident(1.0, 9), "first": FixedTokens(2), "oracle": Oracle()}
TRIAL = CascadeTrial(
    item="", channel="text", stop="8", condition="message", n=8, fired=True, finished=False, opening="", reply="",
    free=True, parsed=True, found="", answer_in_opening=False, sender_flops=2.0, receiver_flops=1.0, reply_tokens=3,
)  # fmt: skip


def task(n: int = 5) -> Task:
    """Prompts of several lengths, which sender and receiver read alike; replies of ten tokens."""
    made = toy(openings=("Alice is", "The note says", "Alice is at the Colosseum."))
    items = tuple(replace(item, receiver=item.sender, candidates=None, choice="") for item in made.items[:n])
    return Task("opened", items, (), "raw", reply_tokens=LIMIT)


def single(item: Item) -> Task:
    """A task of one item."""
    return Task("one", (item,), (), "raw", reply_tokens=LIMIT)


def large(architecture: str = "llama", backend: str = "bridge") -> Model:
    """A tiny model, the same weights at every call."""
    return tiny.model(architecture, backend)


def small(architecture: str = "llama", backend: str = "bridge") -> Model:
    """Another one of the same layout and vocabulary."""
    return tiny.model(architecture, backend, seed=3)


def of_bytes(*, seed: int = 1, d_model: int = 16) -> Model:
    """A narrower model whose tokens are bytes and what was merged of them."""
    words = byte_level(extra="Alice is at the Colosseum. The note says Greece")
    raw = transformers_model("llama", n_vocabulary=len(words), n_layers=2, n_heads=2, d_model=d_model, seed=seed)
    raw.config.max_position_embeddings = raw.generation_config.max_length = 200
    model = wrap_model(raw, words, name="tiny-bytes")
    model.__dict__["stop_ids"] = frozenset([5])
    return model


def prompt_ids(model: Model, item: Item) -> list[int]:
    """What a model reads of an item."""
    return encode(model, [item.receiver]).ids(0).tolist()


def greedy(model: Model, ids: list[int], limit: int) -> tuple[list[int], bool]:
    """A reply by hand, the whole text read again for every token, and whether it ended by itself."""
    said: list[int] = []
    while len(said) < limit:
        token = int(model.forward(Prompts.from_ids([[*ids, *said]]).tokens)[0, -1].argmax())
        if token in model.stop_ids:
            return said, True
        said.append(token)
    return said, False


def opened_by(writer: Model, layers: tuple[int, ...] = (0, 1, 2, EMBEDDING)) -> Message:
    return write_openings(writer, task(), layers=layers, keep_cache=True)


def continued(
    hand_off: HandOff, reader: Model, openings: Message, ns: tuple[int, ...] = SHORT
) -> list[list[Continued]]:
    """The continuations after the openings' own items, of each every n that its opening has."""
    wanted = [[n for n in ns if n <= len(row)] for row in openings_of(openings)]
    return continue_openings(hand_off, reader, Request(task(), hand_off.content(openings), wanted, None, LIMIT))
