"""What each channel gives the receiver: silence its own prompt, the skyline both texts, activations one fused state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from numerics import assert_equal_to_rounding, forward_terms
from tiny import CHOICES, build, model
from torch import Tensor
from toys import ASKED, planted_pair, planted_task, toy

from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation, Channel, Message, Silent, Skyline
from latentcomm.channels.base import label
from latentcomm.fusion import Linear, Mean, Replace, RightAligned, Sum
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model
from latentcomm.models.sites import Site
from latentcomm.tasks import Task

ARCHITECTURES = ("llama", "gpt2")
TASK = toy()


def plain_logits(tiny: Model, texts: Sequence[str]) -> Tensor:
    """What a model says after each text, one at a time, by TransformerLens alone."""
    rows = [torch.tensor([tiny.tokenizer(text).input_ids]) for text in texts]
    with torch.no_grad():
        return torch.stack([tiny.hooked(row, return_type="logits")[0, -1] for row in rows])


def plain_states(tiny: Model, texts: Sequence[str], layer: int) -> Tensor:
    """The state after a layer at each text's last token, one text at a time, by TransformerLens alone."""
    rows = [torch.tensor([tiny.tokenizer(text).input_ids]) for text in texts]
    with torch.no_grad():
        return torch.stack(
            [tiny.hooked.run_with_cache(row)[1][f"blocks.{layer}.hook_resid_post"][0, -1] for row in rows]
        )


def replies(channel: Channel, sender: Model, receiver: Model, task: Task = TASK) -> Tensor:
    return next_token_logits(receiver, channel.receive(receiver, task, channel.send(sender, task)))


def far_apart(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs().amax(-1) > 0.01).all())


@dataclass(frozen=True)
class AddRamp:
    """An alignment that shows whether it was applied, and below a fusion that shows whether it came after it."""

    def __call__(self, rows: Tensor) -> Tensor:
        return rows + torch.arange(rows.shape[-1])


@dataclass(frozen=True)
class TwiceIncoming:
    def __call__(self, own: Tensor, incoming: Tensor) -> Tensor:
        return 2 * incoming


@pytest.mark.parametrize("channel", [Silent(), Skyline(), Activation("a", Site(1), Site(1), Replace())], ids=repr)
def test_every_channel_keeps_the_protocol(channel: object) -> None:
    assert isinstance(channel, Channel)


def test_the_label_of_an_item_is_its_canonical_answer() -> None:
    assert label(replace(TASK.items[0], answers=("Hellas", "Greece"))) == "Hellas"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestSilenceAndTheSkyline:
    def test_a_silent_receiver_reads_its_own_prompt_and_no_more(self, architecture: str) -> None:
        tiny = model(architecture)
        found = replies(Silent(), tiny, tiny)
        expected = plain_logits(tiny, [item.receiver for item in TASK.items])
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)
        # one prompt for all: it cannot know the items apart
        assert_equal_to_rounding(found, found[:1].expand_as(found), terms=forward_terms(tiny))

    def test_the_skyline_reads_both_texts(self, architecture: str) -> None:
        tiny = model(architecture)
        found = replies(Skyline(), tiny, tiny)
        assert torch.allclose(found, plain_logits(tiny, [item.skyline for item in TASK.items]), rtol=0, atol=1e-9)
        assert far_apart(found, plain_logits(tiny, [item.receiver for item in TASK.items]))

    @pytest.mark.parametrize("channel", [Silent(), Skyline()], ids=["silent", "skyline"])
    def test_neither_sends_a_vector_or_grafts_one(self, architecture: str, channel: Channel) -> None:
        tiny = model(architecture)
        message = channel.send(tiny, TASK)
        assert message.vectors is None and channel.receive(tiny, TASK, message).grafts == ()

    @pytest.mark.parametrize("channel", [Silent(), Skyline()], ids=["silent", "skyline"])
    def test_the_template_of_the_task_makes_the_prompts(self, architecture: str, channel: Channel) -> None:
        tiny, chat = model(architecture), replace(TASK, template="chat")
        texts = [item.receiver if channel.name == "silent" else item.skyline for item in TASK.items]
        found = replies(channel, tiny, tiny, chat)
        expected = plain_logits(tiny, [f"<user>{text}<end><assistant>" for text in texts])
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)
        assert far_apart(found, plain_logits(tiny, texts))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestActivations:
    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_the_message_is_the_state_after_the_read_layer_at_the_last_token(
        self, architecture: str, layer: int
    ) -> None:
        tiny = model(architecture)
        message = Activation("a", Site(layer), Site(0), Replace()).send(tiny, TASK)
        assert message.vectors is not None
        expected = plain_states(tiny, [item.sender for item in TASK.items], layer)
        assert torch.allclose(message.vectors, expected, rtol=0, atol=1e-9)
        assert message.origin == f"{tiny.name} blocks.{layer}.hook_resid_post"

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_a_message_of_what_the_receiver_reads_is_as_good_as_silence(self, architecture: str, layer: int) -> None:
        tiny = model(architecture)
        same = replace(TASK, items=tuple(replace(item, sender=item.receiver) for item in TASK.items))
        silent = replies(Silent(), tiny, tiny, same)
        found = replies(Activation("a", Site(layer), Site(layer), Replace()), tiny, tiny, same)
        assert_equal_to_rounding(found, silent, terms=forward_terms(tiny, n_forward=2))
        other = Activation("a", Site(layer), Site((layer + 1) % 3), Replace())
        assert far_apart(replies(other, tiny, tiny, same), silent)

    @pytest.mark.parametrize("fusion", [Replace(), Mean(), Sum()], ids=repr)
    def test_a_message_moves_every_items_logits_by_its_own_content_alone(
        self, architecture: str, fusion: Replace | Mean | Sum
    ) -> None:
        tiny = model(architecture)
        found = replies(Activation("a", Site(1), Site(1), fusion), tiny, tiny)
        assert far_apart(found, replies(Silent(), tiny, tiny))
        for row in range(len(TASK.items)):
            alone = replace(TASK, items=TASK.items[row : row + 1])
            assert torch.allclose(
                replies(Activation("a", Site(1), Site(1), fusion), tiny, tiny, alone)[0], found[row], rtol=0, atol=1e-9
            )

    def test_a_graft_by_hand_says_the_same(self, architecture: str) -> None:
        sender, receiver = model(architecture), model(architecture, seed=1)
        found = replies(Activation("a", Site(2), Site(0), Mean()), sender, receiver)
        told = plain_states(sender, [item.sender for item in TASK.items], 2)
        for row, item in enumerate(TASK.items):

            def mean(value: Tensor, hook: object, row: int = row) -> Tensor:
                value = value.clone()
                value[0, -1] = (value[0, -1] + told[row]) / 2
                return value

            ids = torch.tensor([receiver.tokenizer(item.receiver).input_ids])
            with torch.no_grad():
                by_hand = receiver.hooked.run_with_hooks(
                    ids, fwd_hooks=[("blocks.0.hook_resid_post", mean)], return_type="logits"
                )
            assert torch.allclose(found[row], by_hand[0, -1], rtol=0, atol=1e-9)

    def test_the_alignment_comes_before_the_fusion(self, architecture: str) -> None:
        tiny = model(architecture)
        message = Activation("a", Site(1), Site(1), Replace()).send(tiny, TASK)
        assert message.vectors is not None

        def grafted(vectors: Tensor) -> Tensor:
            given = Activation("a", Site(1), Site(1), Replace()).receive(tiny, TASK, Message(vectors, "by hand"))
            return next_token_logits(tiny, given)

        found = replies(Activation("a", Site(1), Site(1), TwiceIncoming(), AddRamp()), tiny, tiny)
        ramp = torch.arange(tiny.d_model)
        assert torch.allclose(found, grafted(2 * (message.vectors + ramp)), rtol=0, atol=1e-9)
        assert far_apart(found, grafted(2 * message.vectors + ramp))  # the other order

    def test_the_identity_as_an_alignment_changes_nothing(self, architecture: str) -> None:
        tiny = model(architecture)
        plain = replies(Activation("a", Site(1), Site(2), Mean()), tiny, tiny)
        mapped = replies(
            Activation("a", Site(1), Site(2), Mean(), AffineMap.identity(tiny.d_model, dtype=torch.float64)), tiny, tiny
        )
        assert torch.allclose(mapped, plain, rtol=0, atol=1e-12)


def test_an_alignment_carries_a_message_between_unequal_widths() -> None:
    narrow, wide = build("llama", d_model=16), model("llama")
    weight = torch.randn(32, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mapped = Activation("a", Site(1), Site(1), Replace(), AffineMap(weight, torch.zeros(32, dtype=torch.float64)))
    assert far_apart(replies(mapped, narrow, wide), replies(Silent(), narrow, wide))
    with pytest.raises(ValueError, match=r"16.*32|32.*16"):
        replies(Activation("a", Site(1), Site(1), Replace()), narrow, wide)


class TestTheReceiversOwnState:
    def test_is_that_of_its_own_prompt_after_its_own_layer_of_that_number(self) -> None:
        tiny = model("llama", seed=1)
        own = Activation("a", Site(1), Site(2), Replace()).own(tiny, TASK)
        assert own.vectors is not None and own.is_own
        expected = plain_states(tiny, [item.receiver for item in TASK.items], 1)
        assert torch.allclose(own.vectors, expected, rtol=0, atol=1e-9)
        assert own.origin == "tiny-llama blocks.1.hook_resid_post"

    def test_is_that_of_its_last_layer_where_it_has_fewer_than_the_sender(self) -> None:
        tiny = model("llama")
        own = Activation("a", Site(27), Site(2), Replace()).own(tiny, TASK)
        assert own.vectors is not None
        expected = plain_states(tiny, [item.receiver for item in TASK.items], 2)
        assert torch.allclose(own.vectors, expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("layer", [0, 2])
    def test_writing_back_at_the_read_layer_changes_nothing_under_alignment(self, layer: int) -> None:
        tiny = model("llama")
        channel = Activation("a", Site(layer), Site(layer), Replace(), AddRamp())
        silent = replies(Silent(), tiny, tiny)
        own = channel.own(tiny, TASK)
        found = next_token_logits(tiny, channel.receive(tiny, TASK, own))
        assert_equal_to_rounding(found, silent, terms=forward_terms(tiny, n_forward=2))
        taken_for_the_senders = replace(own, is_own=False)
        found = next_token_logits(tiny, channel.receive(tiny, TASK, taken_for_the_senders))
        assert far_apart(found, silent)

    def test_is_carried_unless_the_fusion_maps_from_another_width(self) -> None:
        tiny = model("llama")
        between = AffineMap(torch.zeros(32, 16, dtype=torch.float64), torch.zeros(32, dtype=torch.float64))
        for fusion, carried in (
            (Replace(), True),
            (Mean(), True),
            (RightAligned(Sum()), True),
            (Linear(AffineMap.identity(32, dtype=torch.float64)), True),
            (Linear(between), False),
        ):
            assert Activation("a", Site(1), Site(1), fusion).carries_own(tiny) is carried

    @pytest.mark.parametrize("channel", [Silent(), Skyline()], ids=["silent", "skyline"])
    def test_is_nothing_for_a_channel_that_sends_nothing(self, channel: Channel) -> None:
        tiny = model("llama")
        assert not channel.carries_own(tiny) and channel.own(tiny, TASK).vectors is None


def test_a_message_without_vectors_is_refused() -> None:
    tiny = model("llama")
    channel = Activation("replace", Site(1), Site(1), Replace())
    with pytest.raises(ValueError, match="the channel replace needs a message with vectors and got nothing"):
        channel.receive(tiny, TASK, Silent().send(tiny, TASK))


def test_a_message_that_was_read_at_another_site_is_refused() -> None:
    tiny = model("llama")
    message = Activation("replace", Site(0), Site(1), Replace()).send(tiny, TASK)
    with pytest.raises(ValueError, match=r"was read at blocks\.0\..*, and the channel replace reads at blocks\.1\."):
        Activation("replace", Site(1), Site(1), Replace()).receive(tiny, TASK, message)


def test_the_sender_stops_at_the_layer_that_is_read() -> None:
    tiny = build("llama")
    seen: list[int] = []
    for layer in range(tiny.n_layers):
        tiny.hooked.add_hook(f"blocks.{layer}.hook_resid_pre", lambda value, hook, layer=layer: seen.append(layer))
    Activation("a", Site(1), Site(1), Replace()).send(tiny, TASK)
    assert set(seen) == {0, 1}


def test_the_planted_code_reaches_the_answer_through_its_own_cell_alone() -> None:
    sender, receiver = planted_pair()
    task = planted_task()
    right = torch.tensor([receiver.first_token(item.choice) for item in task.items])
    for read in range(sender.n_layers):
        for write in range(receiver.n_layers):
            said = replies(Activation("a", Site(read), Site(write), Replace()), sender, receiver, task).argmax(-1)
            carried = said == right
            assert carried.all() if (read, write) == (2, 1) else not carried.any()


def test_the_toy_task_asks_every_item_the_same_and_tells_each_another() -> None:
    assert {item.receiver for item in TASK.items} == {ASKED}
    assert len({item.sender for item in TASK.items}) == len(TASK.items) == len(CHOICES)
