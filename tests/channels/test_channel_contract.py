"""What every channel keeps, whatever it sends: one table of channels, one table of tiny models, one list of claims."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from seeing import drawn_map, seen_by
from tiny import PAD, VOCABULARY, build, files_in, hooks_left, tokenizer, transformers_model
from torch import Tensor
from toys import toy

from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap
from latentcomm.channels import (
    Activation,
    Calm,
    Channel,
    Cipher,
    CipherDebate,
    Coconut,
    Debate,
    FurtherSender,
    Interlat,
    KeyValues,
    Merged,
    Message,
    Silent,
    Skyline,
    StateDeltas,
    Text,
)
from latentcomm.channels.calm import Bridge, new_bridge
from latentcomm.channels.interlat import new_adapter
from latentcomm.experiments import evaluation
from latentcomm.experiments.controls import Sending, shuffled
from latentcomm.experiments.crossmodal.captions import Caption, NearestPicture
from latentcomm.experiments.crossmodal.channels import SoftPrompt, VisionGraft
from latentcomm.experiments.evaluation import evaluate
from latentcomm.fusion import Gated, OrthogonalResidual, Replace, Sum, TaskArithmetic, Ties
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model, recorded_passes, wrap_model
from latentcomm.models.sites import Site
from latentcomm.tasks import Task


@dataclass(frozen=True)
class Row:
    """A channel and what is known of it.

    Attributes:
        make: the channel, from sender and receiver (what must be fitted or trained is made here, once a test).
        other: the same with another option: its digest must differ.
        hush: what turns a message into one that says nothing; None where the channel has no such message.
        speaks: whether its message depends on the sender's text; silent and skyline send nothing.
        same_model: whether sender and receiver are one model.
    """

    make: Callable[[Model, Model], Channel]
    other: Callable[[Model, Model], Channel]
    hush: Callable[[Message], Message] | None = None
    speaks: bool = True
    same_model: bool = False


def zeroed(message: Message) -> Message:
    return message.map_tensors(torch.zeros_like)


def wordless(message: Message) -> Message:
    assert message.texts is not None
    return replace(message, texts=tuple("\x1e" * text.count("\x1e") for text in message.texts))


def no_steps(message: Message) -> Message:
    """Every part keeps its name, and loses all of its steps."""
    assert message.parts is not None
    return replace(message, parts=tuple({name: part[:0] for name, part in each.items()} for each in message.parts))


CHANNELS: dict[str, Row] = {
    "silent": Row(
        make=lambda sender, receiver: Silent(),
        other=lambda sender, receiver: Silent("mute"),
        hush=lambda message: message,
        speaks=False,
    ),
    "skyline": Row(
        make=lambda sender, receiver: Skyline(),
        other=lambda sender, receiver: Skyline("both"),
        speaks=False,
    ),
    "replace": Row(
        make=lambda sender, receiver: Activation("replace", Site(1), Site(1), Replace()),
        other=lambda sender, receiver: Activation("replace", Site(2), Site(1), Replace()),
    ),
    "sum": Row(
        make=lambda sender, receiver: Activation("sum", Site(2), Site(0), Sum()),
        other=lambda sender, receiver: Activation("sum", Site(2), Site(0), Replace()),
        hush=zeroed,
    ),
    "text": Row(
        make=lambda sender, receiver: Text(max_tokens=3, allow_empty=True),
        other=lambda sender, receiver: Text(max_tokens=3, allow_empty=True, between="."),
        hush=wordless,
    ),
    "sampled text": Row(
        make=lambda sender, receiver: Text(max_tokens=3, allow_empty=True, temperature=2.0),
        other=lambda sender, receiver: Text(max_tokens=3, allow_empty=True, temperature=2.0, seed=1),
        hush=wordless,
    ),
    "debate": Row(
        make=lambda sender, receiver: Debate(max_tokens=2, heard="{answer}", allow_empty=True),
        other=lambda sender, receiver: Debate(max_tokens=2, heard=" says{answer}", allow_empty=True),
        hush=wordless,
    ),
    "debate of four": Row(
        make=lambda sender, receiver: Debate(n_agents=4, max_tokens=2, heard="{answer}", allow_empty=True),
        other=lambda sender, receiver: Debate(n_agents=4, max_tokens=2, heard="{answer}", allow_empty=True, seed=1),
        hush=wordless,
    ),
    "cipher": Row(
        make=lambda sender, receiver: Cipher(max_tokens=3, allow_empty=True),
        other=lambda sender, receiver: Cipher(max_tokens=3, allow_empty=True, temperature=1.0),
        hush=no_steps,
    ),
    "partial cipher": Row(
        make=lambda sender, receiver: Cipher(max_tokens=3, allow_empty=True, entropy_threshold=1.0),
        other=lambda sender, receiver: Cipher(max_tokens=3, allow_empty=True, entropy_threshold=2.0),
        hush=no_steps,
    ),
    "cipher debate": Row(
        make=lambda sender, receiver: CipherDebate(max_tokens=2, allow_empty=True),
        other=lambda sender, receiver: CipherDebate(max_tokens=2, allow_empty=True, temperatures=(0.25, 0.5)),
        hush=no_steps,
    ),
    "two senders": Row(
        make=lambda sender, receiver: Activation(
            "two", Site(1), Site(1), TaskArithmetic(), others=(FurtherSender(model=receiver),)
        ),
        other=lambda sender, receiver: Activation(
            "two", Site(1), Site(1), TaskArithmetic(), others=(FurtherSender(model=sender),)
        ),
    ),
    "merged residuals": Row(
        make=lambda sender, receiver: Merged(
            "merged",
            Site(1),
            Site(1),
            OrthogonalResidual(),
            Ties(0.5),
            others=(FurtherSender(model=receiver, read=Site(0)),),
        ),
        other=lambda sender, receiver: Merged(
            "merged",
            Site(1),
            Site(1),
            OrthogonalResidual(),
            Ties(0.6),
            others=(FurtherSender(model=receiver, read=Site(0)),),
        ),
        hush=zeroed,
    ),
    "deltas": Row(
        make=lambda sender, receiver: StateDeltas(layers=(0, 1), max_tokens=3, allow_empty=True),
        other=lambda sender, receiver: StateDeltas(layers=(0, 1), max_tokens=3, allow_empty=True, scale=0.5),
        hush=wordless,
    ),
    "keys and values": Row(
        make=lambda sender, receiver: KeyValues(),
        other=lambda sender, receiver: KeyValues(layers=(0, 1)),
    ),
    "keys and values of a layer": Row(
        make=lambda sender, receiver: KeyValues(layers=(1,)),
        other=lambda sender, receiver: KeyValues(layers=(2,)),
    ),
}
"""To add a channel: one row here."""


def bridge(sender: Model, receiver: Model, *, seed: int = 0) -> Bridge:
    """One that says something: a new one adds nothing."""
    new = new_bridge(sender, receiver, every=1, seed=seed)
    out = {name: torch.eye(len(weight)) if name.endswith(".out") else weight for name, weight in new.weights.items()}
    return Bridge(new.shape, out)


def gate(receiver: Model, *, seed: int = 0) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    return AffineMap(
        torch.randn(receiver.d_model, 2 * receiver.d_model, generator=generator), torch.zeros(receiver.d_model)
    )


CHANNELS |= {
    "gated": Row(
        make=lambda sender, receiver: Activation("gated", Site(1), Site(1), Gated(gate(receiver))),
        other=lambda sender, receiver: Activation("gated", Site(1), Site(1), Gated(gate(receiver, seed=1))),
    ),
    "interlat": Row(
        make=lambda sender, receiver: Interlat("interlat", new_adapter(sender, receiver), plan_tokens=3),
        other=lambda sender, receiver: Interlat("interlat", new_adapter(sender, receiver, seed=1), plan_tokens=3),
    ),
    "compressed interlat": Row(
        make=lambda sender, receiver: Interlat("short", new_adapter(sender, receiver, n_steps=2), plan_tokens=3),
        other=lambda sender, receiver: Interlat("short", new_adapter(sender, receiver, n_steps=2), plan_tokens=2),
    ),
    "coconut": Row(
        make=lambda sender, receiver: Coconut("coconut", 2, ".", "?"),
        other=lambda sender, receiver: Coconut("coconut", 3, ".", "?"),
    ),
    "calm": Row(
        make=lambda sender, receiver: Calm("calm", bridge(sender, receiver)),
        other=lambda sender, receiver: Calm("calm", bridge(sender, receiver, seed=1)),
        hush=zeroed,
    ),
}
SEEN = NearestPicture(drawn_map(16, 2).weight, ("Greece", "Italy"))
CHANNELS |= {
    "soft prompt of a picture": Row(
        make=lambda sender, receiver: SoftPrompt("soft", seen_by(TASK), drawn_map(16, 2 * receiver.d_model), 2),
        other=lambda sender, receiver: SoftPrompt(
            "soft", seen_by(TASK, seed=1), drawn_map(16, 2 * receiver.d_model), 2
        ),
    ),
    "graft of a picture": Row(
        make=lambda sender, receiver: VisionGraft(
            "graft", seen_by(TASK), Site(1), {"": drawn_map(16, receiver.d_model)}
        ),
        other=lambda sender, receiver: VisionGraft(
            "graft", seen_by(TASK), Site(1), {"": drawn_map(16, receiver.d_model, seed=1)}
        ),
    ),
    "caption of a picture": Row(
        make=lambda sender, receiver: Caption("caption", seen_by(TASK), SEEN),
        other=lambda sender, receiver: Caption("caption", seen_by(TASK), replace(SEEN, captions=("Greece", "Peru"))),
        hush=wordless,
    ),
}
ARCHITECTURES = ("llama", "gpt2", "qwen2")
TASK = toy()


@functools.cache
def speaker(architecture: str, seed: int) -> Model:
    """A tiny model that says words only, each with its space, so that a reader has the very tokens that were said."""
    raw = transformers_model(architecture, n_vocabulary=len(VOCABULARY), seed=seed)
    words = [token[:1] == " " and token[1:].isalpha() and token != PAD for token in VOCABULARY]
    with torch.no_grad():
        raw.get_output_embeddings().weight[~torch.tensor(words)] = 0
    return wrap_model(raw, tokenizer(), name=f"tiny-{architecture}-{seed}")


def pair(architecture: str, row: Row) -> tuple[Model, Model]:
    sender = speaker(architecture, 0)
    return (sender, sender) if row.same_model else (sender, speaker(architecture, 1))


def heard(channel: Channel, receiver: Model, message: Message, task: Task = TASK) -> Tensor:
    return next_token_logits(receiver, channel.receive(receiver, task, message))


def only(row: int) -> Task:
    return replace(TASK, items=TASK.items[row : row + 1])


@dataclass(frozen=True)
class Case:
    """A channel between two models, and its message of the toy task."""

    row: Row
    channel: Channel
    sender: Model
    receiver: Model
    message: Message

    def heard(self, message: Message | None = None) -> Tensor:
        return heard(self.channel, self.receiver, self.message if message is None else message)


_CASES: dict[tuple[str, str], Case] = {}


@pytest.fixture(params=[(name, architecture) for architecture in ARCHITECTURES for name in CHANNELS], ids=" ".join)
def case(request: pytest.FixtureRequest) -> Case:
    name, architecture = request.param
    if (name, architecture) not in _CASES:  # made once: nothing may change it
        row = CHANNELS[name]
        sender, receiver = pair(architecture, row)
        channel = row.make(sender, receiver)
        _CASES[name, architecture] = Case(row, channel, sender, receiver, channel.send(sender, TASK, receiver=receiver))
    return _CASES[name, architecture]


def speaking(case: Case) -> Case:
    if not case.row.speaks:
        pytest.skip("this channel sends nothing")
    return case


def test_a_channel_keeps_the_protocol(case: Case) -> None:
    assert isinstance(case.channel, Channel) and case.channel.name
    assert case.message.is_silent != case.row.speaks
    assert len(case.message) == (len(TASK.items) if case.row.speaks else 0)


def test_silence_changes_nothing(case: Case) -> None:
    if case.row.hush is None:
        pytest.skip("this channel has no message that says nothing")
    alone = heard(Silent(), case.receiver, Message(None, "nothing"))
    assert_equal_to_rounding(case.heard(case.row.hush(case.message)), alone, terms=forward_terms(case.receiver))
    if case.row.speaks:
        assert ((case.heard() - alone).abs().amax(-1) > 0.01).all()  # and the message itself changes every item


def test_the_same_message_read_twice_gives_the_same_answer(case: Case) -> None:
    assert_same_bits(case.heard(), case.heard())


def test_the_same_items_are_told_the_same_twice(case: Case) -> None:
    again = case.channel.send(case.sender, TASK, receiver=case.receiver)
    assert contents(again) == contents(case.message)


def test_a_message_survives_a_file(case: Case, tmp_path: Path) -> None:
    case.message.save(tmp_path / "message.safetensors")
    loaded = Message.load(tmp_path / "message.safetensors")
    assert contents(loaded) == contents(case.message)
    assert (loaded.origin, loaded.meant_for, loaded.is_own) == (
        case.message.origin,
        case.message.meant_for,
        case.message.is_own,
    )
    assert_same_bits(case.heard(loaded), case.heard())


def test_a_message_weighs_what_it_holds(case: Case) -> None:
    message, by_hand = case.message, []
    for row in range(len(message)):
        weight = 0
        if message.vectors is not None:
            for state in message.vectors.reshape(-1, *message.vectors.shape[-2:])[:, row]:
                weight += len(state.tolist()) * size_of(state)
        if message.texts is not None:
            weight += sum(len(letter.encode()) for letter in message.texts[row])
        for tensor in (message.parts[row] if message.parts is not None else {}).values():
            weight += len(tensor.flatten().tolist()) * size_of(tensor)
        by_hand.append(weight)
    assert message.nbytes() == by_hand
    assert all(weight > 0 for weight in by_hand)


def test_items_together_are_told_and_answered_as_each_alone(case: Case) -> None:
    together = case.heard()
    for row in (0, 4, 5):  # of three lengths; the first and the last are told in the same batch
        message = case.channel.send(case.sender, only(row), receiver=case.receiver)
        alone = heard(case.channel, case.receiver, message, only(row))
        if isinstance(case.channel, Calm | SoftPrompt | VisionGraft):  # their weights and pictures are in float32
            assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-5)
        else:  # the sender's three tokens, each from those before it, and the receiver's pass
            assert_equal_to_rounding(alone[0], together[row], terms=forward_terms(case.receiver, n_forward=4))
        if case.row.speaks:
            assert message.nbytes() == case.message.select([row]).nbytes()


def test_a_message_for_another_model_is_refused(case: Case) -> None:
    for_another = replace(case.message, meant_for="somebody else")
    with pytest.raises(ValueError, match="is meant for somebody else and tiny-"):
        case.heard(for_another)
    case.heard(replace(case.message, meant_for=case.receiver.name))


def test_a_message_for_other_items_is_refused_unless_addressed_to_them(case: Case) -> None:
    given = speaking(case)
    others, fewer = replace(TASK, items=TASK.items[::-1]), replace(TASK, items=TASK.items[:7])
    with pytest.raises(ValueError, match="is for item 'item-0' where task 'toy' has 'item-7' in row 0"):
        heard(given.channel, given.receiver, given.message, others)
    for message in (given.message, replace(given.message, items=None)):
        with pytest.raises(ValueError, match="is for 8 items and task 'toy' has 7; send it for this task"):
            heard(given.channel, given.receiver, message, fewer)
        assert heard(given.channel, given.receiver, message.addressed(others), others).isfinite().all()


def test_a_message_of_no_kind_that_the_channel_knows_is_refused(case: Case) -> None:
    strange = Message(None, "by hand", parts=tuple({"noise": torch.ones(1)} for _ in TASK.items))
    if case.row.speaks:
        with pytest.raises(ValueError, match="needs a message"):
            case.heard(strange)
    else:
        assert_same_bits(case.heard(strange), case.heard())


def test_the_models_are_left_as_they_were(case: Case) -> None:
    before = [one.fingerprint for one in (case.sender, case.receiver)]
    trials = evaluate(case.channel, case.sender, case.receiver, TASK, n=2, reply_tokens=1)
    assert trials
    assert [one.fingerprint for one in (case.sender, case.receiver)] == before
    assert [hooks_left(one) for one in (case.sender, case.receiver)] == [0, 0]
    assert contents(case.channel.send(case.sender, TASK, receiver=case.receiver)) == contents(case.message)


def test_shuffled_messages_change_what_is_heard(case: Case) -> None:
    given = speaking(case)
    exchange = Sending(given.channel, given.sender, given.receiver, TASK, given.message, 0)
    other = shuffled(exchange)
    apart = (given.heard(other) - given.heard()).abs().amax(-1) > 1e-3
    told_another = [contents(other.select([row])) != contents(given.message.select([row])) for row in range(8)]
    assert apart.any()
    assert all(told for told, moved in zip(told_another, apart.tolist(), strict=True) if moved)


def test_what_the_receiver_says_to_itself_is_marked_so_and_can_be_heard(case: Case) -> None:
    own = case.channel.own(case.receiver, TASK)
    assert own.is_own
    if case.channel.carries_own(case.receiver):
        assert torch.isfinite(case.heard(own)).all()
        assert len(own) == len(TASK.items)
    else:
        assert own.is_silent


def test_the_digest_of_a_channel_is_stable_and_tells_its_options_apart(case: Case) -> None:
    again, other = (make(case.sender, case.receiver) for make in (case.row.make, case.row.other))
    assert digest(again) == digest(case.channel)
    assert digest(other) != digest(case.channel)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "ITEMS_AT_ONCE", 2)


@pytest.mark.parametrize("stopped_at", [1, 4])
@pytest.mark.parametrize("case", [(name, "llama") for name in CHANNELS], ids=" ".join, indirect=True)
def test_a_run_that_was_stopped_goes_on_where_it_was(
    case: Case, stopped_at: int, tmp_path: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**options: Any) -> Any:
        return evaluate(
            case.channel,
            case.sender,
            case.receiver,
            TASK,
            n=3,
            reply_tokens=1,
            controls=("shuffled", "self"),
            **options,
        )

    with recorded_passes() as whole:
        expected = run()
    decode, calls = evaluation.decode, []

    def stopping(*given: Any, **options: Any) -> Any:
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        calls.append(given)
        return decode(*given, **options)

    monkeypatch.setattr(evaluation, "decode", stopping)
    n_replies = 2 * (1 + case.row.speaks * (1 + case.channel.carries_own(case.receiver)))
    if stopped_at >= n_replies:
        pytest.skip("this channel is done before")
    with recorded_passes() as first, pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path)
    monkeypatch.setattr(evaluation, "decode", decode)
    kept = files_in(tmp_path)
    with recorded_passes() as rest:
        assert run(checkpoint=tmp_path) == expected
    assert shapes(first) + shapes(rest) == shapes(whole)
    assert all(name in files_in(tmp_path) for name in kept)
    with recorded_passes() as nothing:
        assert run(checkpoint=tmp_path) == expected
    assert nothing == []


def test_what_is_said_costs_what_was_run() -> None:
    """The sender's share of a trial is the cost of the passes of `send`, the receiver's that of the rest."""
    from latentcomm.experiments.cost import flops

    sender, receiver = build("llama"), build("llama", seed=1)
    for name, row in CHANNELS.items():
        channel = row.make(sender, receiver)
        with recorded_passes() as sending:
            message = channel.send(sender, TASK, receiver=receiver)
        with recorded_passes() as all_of_it:
            found = evaluate(channel, sender, receiver, TASK, controls=(), reply_tokens=2)
        assert found[0].sender_flops == pytest.approx(flops(sending) / 8, rel=1e-12), name
        assert found[0].receiver_flops == pytest.approx((flops(all_of_it) - flops(sending)) / 8, rel=1e-12), name
        assert [one.message_bytes for one in found] == (message.nbytes() or [0] * 8), name


def contents(message: Message) -> str:
    parts = None if message.parts is None else [dict(part) for part in message.parts]
    return digest(message.vectors, message.texts, parts)


def size_of(tensor: Tensor) -> int:
    return {torch.float64: 8, torch.float32: 4, torch.int64: 8, torch.int32: 4, torch.bool: 1, torch.uint8: 1}[
        tensor.dtype
    ]


def shapes(passes: list[Any]) -> list[tuple[int, ...]]:
    """Of the models' passes alone: what a receiver was given is made anew by the run that reads it."""
    return [(each.rows, each.n_new, each.n_past, each.n_layers, each.n_unembedded) for each in passes if each.n_new]
