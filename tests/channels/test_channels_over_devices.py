"""Models whose blocks lie on two devices: everything gives the bits that one device gives."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend import DeviceMixError, dispatched, halves, pretended  # noqa: F401 (a fixture)
from test_channel_contract import CHANNELS
from tiny import CHOICES, COUNTRIES, VOCABULARY, tokenizer, transformers_model
from toys import toy

import latentcomm as lc
from latentcomm.alignment import AffineMap
from latentcomm.channels import Channel, CipherDebate, Debate, KeyValues, catalogue
from latentcomm.channels.kv import measure_attention
from latentcomm.channels.merged import fit_predictability
from latentcomm.channels.recipe import Recipe
from latentcomm.channels.training.answers import answer_ids, answer_logits
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.evaluation import evaluate
from latentcomm.fusion import Linear, Replace
from latentcomm.hooks.capture import capture, capture_positions
from latentcomm.hooks.decode import decode
from latentcomm.hooks.logit_lens import logit_lens
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, wrap_model
from latentcomm.models.sites import Site

pytestmark = pytest.mark.usefixtures("pretended")
ARCHITECTURES = ("llama", "qwen2", "gpt2")
N_LAYERS = 2
TASK = toy(COUNTRIES[:2])
MAP = AffineMap(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(16))


@functools.cache
def pair(architecture: str, *, placed: bool, tied: bool = False) -> tuple[Model, Model]:
    """A sender and a receiver, on one device or with the blocks of each on two, in opposite order."""
    models = []
    for seed, devices in enumerate((("pretend:0", "pretend:1"), ("pretend:1", "pretend:0"))):
        raw = transformers_model(architecture, n_layers=N_LAYERS, d_model=16, n_vocabulary=len(VOCABULARY), seed=seed)
        if not tied:  # a tied head lies with the embedding, and what is copied to it has another layout, so other bits
            raw.lm_head.weight = torch.nn.Parameter(raw.lm_head.weight.detach().clone())
        raw.requires_grad_(False)  # by which torch chooses between kernels
        raw = dispatched(raw, halves(raw, *devices)) if placed else raw
        models.append(wrap_model(raw, tokenizer(), name=f"tiny-{architecture}-{seed}"))
    return models[0], models[1]


def named(name: str, **options: Any) -> Callable[[Model, Model], Channel]:
    """A channel of the catalogue."""
    options = options | {"message_tokens": 2, "n_thoughts": 2, "markers": (".", "?"), "delta_layers": (0, 1)}
    recipe = Recipe(Site(0), Site(1), **options)
    return lambda _, __: catalogue.build([name], recipe)[0]


def trained(name: str) -> Callable[[Model, Model], Channel]:
    """A channel whose parts are trained, before any training."""
    return CHANNELS[name].make


EVERY: dict[str, Callable[[Model, Model], Channel]] = {
    **{name: named(name) for name in catalogue.CHANNELS if name not in ("debate", "cipher_debate")},
    "predictability_residual": named("predictability_residual", predictable=MAP),
    "aligned": named("replace", alignment=MAP),
    "aligned deltas": named("deltas", alignment=MAP),
    "aligned thoughts": named("coconut", alignment=MAP),
    "debate": lambda _, __: Debate(max_tokens=1, heard="{answer}", allow_empty=True),
    "cipher_debate": lambda _, __: CipherDebate(max_tokens=1, allow_empty=True),
    "learned_linear": lambda _, __: lc.channels.Activation("linear", Site(0), Site(1), Linear(MAP)),
    **{
        name: trained(name)
        for name in (
            "two senders", "merged residuals", "gated", "interlat", "calm",
            "keys and values of a layer", "soft prompt of a picture", "graft of a picture",
        )
    },
}  # fmt: skip
OF_OTHER_KINDS = ("cipher", "replace", "coconut", "deltas", "kv", "calm")
CASES = [("llama", name) for name in EVERY] + [(kind, name) for kind in ARCHITECTURES[1:] for name in OF_OTHER_KINDS]


@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_a_channel_sends_and_is_read_over_two_devices(architecture: str, name: str) -> None:
    found = []
    for placed in (False, True):
        sender, receiver = pair(architecture, placed=placed)
        channel = EVERY[name](sender, receiver)
        message = channel.send(sender, TASK, receiver=receiver)
        reply = decode(receiver, channel.receive(receiver, TASK, message), max_new_tokens=2)
        parts = [{key: value.tolist() for key, value in part.items()} for part in message.parts or ()]
        vectors = None if message.vectors is None else message.vectors.tolist()
        found.append((vectors, message.texts, parts, reply.first_logits.tolist(), reply.ids))
    assert found[0] == found[1]


def texts(model: Model) -> lc.Prompts:
    return lc.encode(model, [item.sender for item in TASK.items])


def swept(sender: Model, receiver: Model, **options: Any) -> Any:
    grid = lc.sweep_layers(sender, receiver, texts(sender), texts(receiver), choices=[CHOICES] * 2, **options)
    assert grid.logits is not None and grid.top_token is not None
    return grid.logits.tolist(), grid.top_token.tolist()


def effects(sender: Model, receiver: Model) -> Any:
    messages = capture_positions(sender, texts(sender), [Site(0)], -1)[Site(0)]
    found = lc.measure_effects(receiver, texts(receiver), messages, fusion=Replace())
    return found.kl.tolist(), found.deviation.nan_to_num(-1.0).tolist()


def lens(_: Model, receiver: Model) -> Any:
    states = torch.stack(list(capture_positions(receiver, texts(receiver), SITES, -1).values()), 1)
    names = [[choice] for choice in CHOICES[:2]]
    hits = logit_lens(receiver, states, answers=names, right=[row[0] for row in names], choices=[CHOICES] * 2)
    unembedded = [receiver.unembed(receiver.final_norm(row)).tolist() for row in states.unbind(1)]
    return hits.top_token.tolist(), hits.choice.tolist(), unembedded


def opened(sender: Model, _: Model) -> Any:
    message = write_openings(sender, TASK, longest=2, layers=(-1, 0, 1), keep_cache=True)
    return [{key: value.tolist() for key, value in part.items()} for part in message.parts or ()]


def predicted(sender: Model, receiver: Model) -> Any:
    documents = [item.skyline for item in TASK.items] * 4
    map = fit_predictability(sender, receiver, documents, read=Site(0), write=Site(1))
    assert map.weight.device == receiver.device_of(1)
    return map.weight.tolist()


def answered(_: Model, receiver: Model) -> Any:
    given, answers = ReceiverInput(texts(receiver)), answer_ids(receiver, [" Greece", " Peru"])
    return [row.tolist() for row in answer_logits(receiver, given, answers, with_grad=False)]


CELLS = {(read, write): Replace() for read in range(N_LAYERS) for write in range(N_LAYERS)}
SITES = [Site(layer) for layer in range(N_LAYERS)]
WORK: dict[str, Callable[[Model, Model], Any]] = {
    "a sweep": lambda a, b: swept(a, b, fusion=Replace(), alignment=MAP),
    "a sweep of cells of their own": lambda a, b: swept(a, b, fusion=CELLS, write_position=0),
    "captured states": lambda a, _: [rows.tolist() for rows in capture(a, texts(a), SITES).values.values()],
    "effects": effects,
    "the logit lens": lens,
    "a reply": lambda _, b: lc.generate(b, texts(b), max_new_tokens=4, temperature=1.0),
    "openings": opened,
    "attention": lambda a, _: measure_attention(a, a, TASK).tolist(),
    "fingerprints": lambda a, b: (a.fingerprint, b.fingerprint),
    "embeddings": lambda a, b: (a.embedding_table.tolist(), b.embedding_table.tolist()),
    "trials": lambda a, b: evaluate(KeyValues(), a, b, TASK, reply_tokens=2),
    "predictability": predicted,
    "logits of answers": answered,
}
PAIRED = ("a sweep", "effects", "captured states", "the logit lens", "openings", "fingerprints")
JOBS = [("llama", name) for name in WORK] + [(kind, name) for kind in ARCHITECTURES[1:] for name in PAIRED]


@pytest.mark.parametrize(("architecture", "name"), JOBS)
def test_what_runs_over_two_devices_gives_the_bits_of_one(architecture: str, name: str) -> None:
    found = [WORK[name](*pair(architecture, placed=placed)) for placed in (False, True)]
    assert found[0] == found[1]


def test_blocks_lie_where_the_map_says() -> None:
    for model, (lower, upper) in zip(pair("gpt2", placed=True), ((0, 1), (1, 0)), strict=True):
        assert [model.device_of(layer).index for layer in range(N_LAYERS)] == [lower, upper]
        assert model.device.index == lower


def test_a_head_that_is_tied_lies_with_the_embedding() -> None:
    (one, _), (two, _) = (pair("gpt2", placed=placed, tied=True) for placed in (False, True))
    found = [torch.tensor(decode(each, texts(each), max_new_tokens=2).first_logits.tolist()) for each in (one, two)]
    assert torch.allclose(*found, rtol=1e-12)
    assert two.hooked.W_U.device.index == 0 and two.fingerprint == one.fingerprint
    columns = torch.tensor([7, 3])
    normed = one.final_norm(torch.ones(2, 16, dtype=one.dtype))
    assert two.unembed_columns(normed, columns).tolist() == one.unembed_columns(normed, columns).tolist()


def test_a_wrong_placement_is_seen() -> None:
    """A state that goes to another device than the block it is written into: the tests above can fail."""
    _, receiver = pair("llama", placed=True)
    wrong = torch.ones(16, dtype=receiver.dtype).to(receiver.device_of(0))

    def write(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value + wrong

    prompts = texts(receiver)
    receiver.forward(prompts.tokens, hooks=[(Site(0).hook_name, write)])
    with pytest.raises(DeviceMixError, match=r"met tensors on \['pretend:0', 'pretend:1'\]"):
        receiver.forward(prompts.tokens, hooks=[(Site(1).hook_name, write)])
