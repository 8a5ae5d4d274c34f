"""Several senders and merged activations, against sums by hand and planted directions, each with its contrast."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from test_channels import AddRamp, far_apart, plain_states, replies
from tiny import COUNTRIES, EVERY_MODEL, build, model, states
from torch import Tensor
from toys import toy

from latentcomm import fusion as fusions
from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation, Channel, FurtherSender, Merged, Message, OfEach, Silent
from latentcomm.channels.merged import MERGES, fit_predictability
from latentcomm.channels.several_senders import takes_several
from latentcomm.experiments.evaluation import evaluate
from latentcomm.fusion import Fusion, NormMatched, OrthogonalResidual, Replace, Sum, TaskArithmetic, Ties
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model, recorded_passes
from latentcomm.models.sites import Site
from latentcomm.redundancy import principal_subspace
from latentcomm.redundancy.projection import Drop
from latentcomm.tasks import Item, Task

READ, WRITE = Site(1), Site(2)


@dataclass(frozen=True)
class TwoSenders(Item):
    """An item that has texts for further senders, whether or not the class of items has the field yet."""

    more_senders: tuple[str, ...] = ()


def told_twice(task: Task | None = None) -> Task:
    """The toy task with a second text an item, that names the next country, for a second sender."""
    task = task or toy()
    items = []
    for number, item in enumerate(task.items):
        fields = {name: getattr(item, name) for name in Item.__dataclass_fields__ if name != "more_senders"}
        text = f"The note says {COUNTRIES[(number + 1) % len(COUNTRIES)]}."
        items.append(TwoSenders(**fields, more_senders=(text,)))
    return replace(task, items=tuple(items))


TASK = told_twice()
SECOND = FurtherSender(text=1)


def own_states(tiny: Model, layer: int, task: Task = TASK) -> Tensor:
    return plain_states(tiny, [item.receiver for item in task.items], layer)


def grafted_by_hand(tiny: Model, fused: Tensor, layer: int, task: Task = TASK) -> Tensor:
    """Logits after each receiver prompt when the state at its last token is written over, by a hook of ours."""
    found = []
    for row, item in enumerate(task.items):
        tokens = torch.tensor([tiny.tokenizer(item.receiver).input_ids])

        def write(value: Tensor, hook: object, row: int = row) -> Tensor:
            value = value.clone()
            value[0, -1] = fused[row]
            return value

        with torch.no_grad():
            name = f"blocks.{layer}.hook_resid_post"
            found.append(tiny.hooked.run_with_hooks(tokens, fwd_hooks=[(name, write)], return_type="logits")[0, -1])
    return torch.stack(found)


def ties_by_hand(own: Tensor, senders: list[Tensor], *, n_kept: int, scale: float) -> Tensor:
    """METHODS' words, entry by entry."""
    out = own.clone()
    for row in range(len(own)):
        kept = []
        for sender in senders:
            change = (sender[row] - own[row]).tolist()
            largest = sorted(range(len(change)), key=lambda index, change=change: -abs(change[index]))[:n_kept]
            kept.append([change[index] if index in largest else 0.0 for index in range(len(change))])
        for index, values in enumerate(zip(*kept, strict=True)):
            sign = (sum(values) > 0) - (sum(values) < 0)
            agreeing = [value for value in values if value * sign > 0]
            if agreeing:
                out[row, index] += scale * sum(agreeing) / len(agreeing)
    return out


class TestSeveralSenders:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_every_sender_says_its_own_state_of_its_own_text(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        message = Activation("a", READ, WRITE, TaskArithmetic(), others=(SECOND,)).send(tiny, TASK)
        assert message.vectors is not None and message.vectors.shape == (2, len(TASK.items), 32)
        first = plain_states(tiny, [item.sender for item in TASK.items], 1)
        second = plain_states(tiny, [f"The note says {item}." for item in (*COUNTRIES[1:], COUNTRIES[0])], 1)
        assert torch.allclose(message.vectors, torch.stack([first, second]), rtol=0, atol=1e-9)
        assert message.nbytes() == [2 * 32 * 8] * len(TASK.items)

    def test_a_further_model_reads_the_senders_text_at_a_site_of_its_own(self) -> None:
        tiny, other = model("llama"), model("qwen2")
        channel = Activation("a", READ, WRITE, TaskArithmetic(), others=(FurtherSender(model=other, read=Site(0)),))
        message = channel.send(tiny, TASK)
        expected = plain_states(other, [item.sender for item in TASK.items], 0)
        assert message.vectors is not None
        assert torch.allclose(message.vectors[1], expected, rtol=0, atol=1e-9)
        assert [said["model"] for said in message.made_by["senders"]] == ["tiny-llama", "tiny-qwen2"]
        assert message.made_by["senders"][1]["site"] == "blocks.0.hook_resid_post"

    @pytest.mark.parametrize("fusion", [Replace(), fusions.Mean(), Sum()], ids=repr)
    def test_a_fusion_of_one_state_gets_the_mean_of_all(self, fusion: Fusion) -> None:
        tiny = model("llama")
        channel = Activation("a", READ, WRITE, fusion, others=(SECOND,))
        message = channel.send(tiny, TASK)
        assert message.vectors is not None
        found = next_token_logits(tiny, channel.receive(tiny, TASK, message))
        mean = (message.vectors[0] + message.vectors[1]) / 2
        expected = grafted_by_hand(tiny, fusion(own_states(tiny, 2), mean), 2)
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)
        alone = grafted_by_hand(tiny, fusion(own_states(tiny, 2), message.vectors[0]), 2)
        assert far_apart(found, alone)

    @pytest.mark.parametrize("fusion", [TaskArithmetic(0.5), NormMatched(TaskArithmetic(0.5))], ids=repr)
    def test_a_fusion_that_merges_gets_them_apart(self, fusion: Fusion) -> None:
        tiny = model("llama")
        channel = Activation("a", READ, WRITE, fusion, others=(SECOND,))
        message, own = channel.send(tiny, TASK), own_states(tiny, 2)
        assert message.vectors is not None
        added = own + 0.5 * ((message.vectors[0] - own) + (message.vectors[1] - own))
        if isinstance(fusion, NormMatched):
            added = added / added.norm(dim=-1, keepdim=True) * own.norm(dim=-1, keepdim=True)
        found = next_token_logits(tiny, channel.receive(tiny, TASK, message))
        assert torch.allclose(found, grafted_by_hand(tiny, added, 2), rtol=0, atol=1e-9)

    def test_each_state_goes_through_its_own_alignment(self) -> None:
        tiny = model("llama")
        doubled = AffineMap(2 * torch.eye(32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64))
        others = (FurtherSender(text=1), FurtherSender(text=1, alignment=doubled), FurtherSender(model=model("qwen2")))
        channel = Activation("a", READ, WRITE, TaskArithmetic(), AddRamp(), others)
        message = channel.send(tiny, TASK)
        assert message.vectors is not None
        a, b, c, d = message.vectors
        expected = torch.stack([AddRamp()(a), AddRamp()(b), 2 * c, d])  # the sender's own map, its own, none
        ((graft,), own) = channel.receive(tiny, TASK, message).grafts, own_states(tiny, 2)
        assert torch.allclose(graft.vector[:, :, 0], expected, rtol=0, atol=1e-12)
        assert torch.allclose(graft.fusion(own, expected), own + (expected - own).sum(0), rtol=0, atol=1e-12)

    def test_senders_of_other_widths_travel_as_parts_and_need_alignments(self, tmp_path: Path) -> None:
        narrow, tiny = build("llama", d_model=16), model("llama")
        widen = AffineMap(states(32, 16), states(32))
        channel = Activation("a", READ, WRITE, TaskArithmetic(), others=(FurtherSender(model=narrow, alignment=widen),))
        message = channel.send(tiny, TASK)
        assert message.vectors is None and message.nbytes() == [(32 + 16) * 8] * len(TASK.items)
        message.save(tmp_path / "m.safetensors")
        found = next_token_logits(tiny, channel.receive(tiny, TASK, Message.load(tmp_path / "m.safetensors")))
        a, b = (plain_states(m, [item.sender for item in TASK.items], 1) for m in (tiny, narrow))
        own = own_states(tiny, 2)
        expected = grafted_by_hand(tiny, own + (a - own) + (widen(b) - own), 2)
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)
        unaligned = replace(channel, others=(FurtherSender(model=narrow),))
        with pytest.raises(ValueError, match="states are 32, 16 wide in the channel a; give each of them an alignment"):
            unaligned.receive(tiny, TASK, message)

    def test_the_receivers_own_state_is_one_sender_and_is_not_aligned(self) -> None:
        tiny = model("llama")
        channel = Activation("a", READ, READ, TaskArithmetic(), AddRamp(), (SECOND,))
        own = channel.own(tiny, TASK)
        assert channel.carries_own(tiny) and own.vectors is not None and own.vectors.ndim == 2
        found = next_token_logits(tiny, channel.receive(tiny, TASK, own))
        assert torch.allclose(found, replies(Silent(), tiny, tiny, TASK), rtol=0, atol=1e-9)

    def test_a_batch_says_what_each_item_says_alone(self) -> None:
        tiny = model("llama")
        channel = Activation("a", READ, WRITE, Ties(0.5), others=(SECOND,))
        together = replies(channel, tiny, tiny, TASK)
        for row in range(len(TASK.items)):
            alone = replies(channel, tiny, tiny, replace(TASK, items=TASK.items[row : row + 1]))
            assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-9)
        message = channel.send(tiny, TASK).select([2, 0])
        part = replace(TASK, items=(TASK.items[2], TASK.items[0]))
        found = next_token_logits(tiny, channel.receive(tiny, part, message))
        assert torch.allclose(found, together[[2, 0]], rtol=0, atol=1e-9)

    def test_every_senders_pass_is_counted_and_ends_at_its_site(self) -> None:
        tiny, other = model("llama"), model("qwen2")
        others = (SECOND, FurtherSender(model=other, read=Site(0)))
        with recorded_passes() as passes:
            Activation("a", READ, WRITE, TaskArithmetic(), others=others).send(tiny, TASK)
        assert {(each.model.name, each.n_layers, each.n_unembedded) for each in passes} == {
            ("tiny-llama", 2, 0),
            ("tiny-qwen2", 1, 0),
        }
        rows = {
            name: sum(each.rows for each in passes if each.model.name == name) for name in ("tiny-llama", "tiny-qwen2")
        }
        assert rows == {"tiny-llama": 2 * len(TASK.items), "tiny-qwen2": len(TASK.items)}

    def test_a_message_of_another_number_of_senders_is_refused(self) -> None:
        tiny = model("llama")
        two, one = (Activation("a", READ, WRITE, TaskArithmetic(), others=others) for others in ((SECOND,), ()))
        with pytest.raises(ValueError, match=r"the channel a has 1 senders and the message .* is from 2"):
            one.receive(tiny, TASK, two.send(tiny, TASK))
        with pytest.raises(ValueError, match=r"the channel a has 2 senders and the message .* is from 1"):
            two.receive(tiny, TASK, one.send(tiny, TASK))

    def test_an_item_without_the_text_is_refused_by_name(self) -> None:
        channel = Activation("a", READ, WRITE, TaskArithmetic(), others=(FurtherSender(text=2),))
        with pytest.raises(ValueError, match="item 'item-0' has 1 texts for further senders and text 2 was requested"):
            channel.send(model("llama"), TASK)
        with pytest.raises(ValueError, match="text is -1; 0 is the sender's own text"):
            FurtherSender(text=-1)

    def test_a_message_for_another_model_is_refused(self) -> None:
        tiny = model("llama")
        channel = Activation("a", READ, WRITE, Replace())
        message = replace(channel.send(tiny, TASK), meant_for="tiny-gpt2")
        with pytest.raises(ValueError, match="is meant for tiny-gpt2 and tiny-llama cannot read it"):
            channel.receive(tiny, TASK, message)

    @pytest.mark.parametrize(
        ("fusion", "several"),
        [
            (TaskArithmetic(), True),
            (Ties(), True),
            (fusions.RightAligned(NormMatched(Ties())), True),
            (fusions.Linear(AffineMap.identity(2), TaskArithmetic()), True),
            (OfEach(OrthogonalResidual(), Ties()), True),
            (Replace(), False),
            (NormMatched(Sum()), False),
            (OrthogonalResidual(), False),
        ],
        ids=repr,
    )
    def test_which_fusions_merge_is_known_through_what_wraps_them(self, fusion: object, several: bool) -> None:
        assert takes_several(fusion) is several


class TestMergedIsWhatItSays:
    def test_ties_of_one_sender_at_density_1_equals_task_arithmetic(self) -> None:
        tiny = model("llama")
        whole = replies(Merged("t", READ, WRITE, merge=Ties(density=1, scale=0.7)), tiny, tiny, TASK)
        plain = replies(Merged("a", READ, WRITE, merge=TaskArithmetic(0.7)), tiny, tiny, TASK)
        assert torch.allclose(whole, plain, rtol=0, atol=1e-9)
        trimmed = replies(Merged("t", READ, WRITE, merge=Ties(density=0.2, scale=0.7)), tiny, tiny, TASK)
        assert far_apart(trimmed, plain)

    def test_task_arithmetic_of_one_sender_at_scale_1_replaces(self) -> None:
        tiny = model("llama")
        merged = replies(Merged("a", READ, WRITE), tiny, tiny, TASK)
        assert torch.allclose(
            merged, replies(Activation("r", READ, WRITE, Replace()), tiny, tiny, TASK), rtol=0, atol=1e-9
        )

    @pytest.mark.parametrize("content", [OrthogonalResidual(), OrthogonalResidual(0.5)], ids=repr)
    def test_one_sender_under_task_arithmetic_is_its_content_fused_alone(self, content: Fusion) -> None:
        tiny = model("llama")
        merged = replies(Merged("m", READ, WRITE, content), tiny, tiny, TASK)
        assert torch.allclose(
            merged, replies(Activation("a", READ, WRITE, content), tiny, tiny, TASK), rtol=0, atol=1e-9
        )

    @pytest.mark.parametrize("scale", [1.0, 0.3])
    def test_ties_of_three_senders_is_the_rule_entry_by_entry(self, scale: float) -> None:
        tiny = model("llama")
        others = (SECOND, FurtherSender(model=model("qwen2")))
        channel = Merged("t", READ, WRITE, merge=Ties(density=0.25, scale=scale), others=others)
        message = channel.send(tiny, TASK)
        assert message.vectors is not None
        fused = ties_by_hand(own_states(tiny, 2), list(message.vectors), n_kept=8, scale=scale)
        found = next_token_logits(tiny, channel.receive(tiny, TASK, message))
        assert torch.allclose(found, grafted_by_hand(tiny, fused, 2), rtol=0, atol=1e-9)

    def test_residuals_of_two_senders_add_up(self) -> None:
        tiny = model("llama")
        channel = Merged("o", READ, WRITE, OrthogonalResidual(), TaskArithmetic(0.5), others=(SECOND,))
        message, own = channel.send(tiny, TASK), own_states(tiny, 2)
        assert message.vectors is not None
        fused = own.clone()
        for row in range(len(own)):
            b = own[row]
            for a in message.vectors[:, row]:
                fused[row] += 0.5 * (a - (a @ b) / (b @ b) * b)
        found = next_token_logits(tiny, channel.receive(tiny, TASK, message))
        assert torch.allclose(found, grafted_by_hand(tiny, fused, 2), rtol=0, atol=1e-9)

    @pytest.mark.parametrize(("content", "merge"), MERGES.values(), ids=MERGES)
    def test_a_norm_matched_merge_keeps_the_length_of_the_receivers_state(self, content: Fusion, merge: Fusion) -> None:
        own, incoming = states(5, 32), states(2, 5, 32, seed=1)
        fused = OfEach(content, NormMatched(merge))(own, incoming)
        assert torch.allclose(fused.norm(dim=-1), own.norm(dim=-1), rtol=1e-12)
        assert not torch.allclose(OfEach(content, merge)(own, incoming).norm(dim=-1), own.norm(dim=-1), rtol=1e-3)

    def test_each_sender_may_have_a_content_of_its_own(self) -> None:
        own, incoming = states(5, 4), states(2, 5, 4, seed=1)
        fused = OfEach((Replace(), OrthogonalResidual()), TaskArithmetic())(own, incoming)
        expected = incoming[0] + OrthogonalResidual()(own, incoming[1]) - own
        assert torch.allclose(fused, expected, rtol=0, atol=1e-12)
        with pytest.raises(ValueError, match="1 senders for 2 contents"):
            OfEach((Replace(), OrthogonalResidual()), TaskArithmetic())(own, incoming[:1])

    def test_what_does_not_merge_is_refused_when_the_channel_is_made(self) -> None:
        with pytest.raises(ValueError, match=r"Replace\(\) does not merge senders; give TaskArithmetic"):
            Merged("m", READ, WRITE, merge=Replace())
        with pytest.raises(ValueError, match="content is an empty tuple"):
            Merged("m", READ, WRITE, content=())


class TestWhatTheReceiverHasAlready:
    """A message of what the receiver knows changes nothing; what it does not know arrives whole."""

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    @pytest.mark.parametrize(("content", "merge"), MERGES.values(), ids=MERGES)
    def test_the_residual_of_one_model_with_one_prompt_is_zero(
        self, content: Fusion, merge: Fusion, architecture: str, backend: str
    ) -> None:
        tiny = model(architecture, backend)
        same = replace(TASK, items=tuple(replace(item, sender=item.receiver) for item in TASK.items))
        channel, silent = Merged("m", READ, READ, content, merge), replies(Silent(), tiny, tiny, same)
        assert torch.allclose(replies(channel, tiny, tiny, same), silent, rtol=0, atol=1e-9)
        assert far_apart(replies(channel, tiny, tiny, TASK), silent)

    def test_a_planted_new_direction_arrives_and_a_planted_shared_one_not(self) -> None:
        """The receiver's states vary along the first 4 axes; senders hold what it has there and news on axis 9."""
        corpus = torch.zeros(300, 32, dtype=torch.float64)
        corpus[:, :4] = states(300, 4)
        shared = states(4, 4, seed=2)
        told = torch.zeros_like(corpus)
        told[:, :4] = corpus[:, :4] @ shared
        told[:, 9] = states(300, seed=3)  # unrelated to what the receiver has
        predictable = fusions.PredictabilityResidual(fit_ridge_on(corpus, told))
        subspace = fusions.Linear(Drop(principal_subspace(corpus, rank=4)), Sum())
        own, news = corpus[:5], torch.zeros(5, 32, dtype=torch.float64)
        news[:, 9] = torch.tensor([3.0, -2.0, 1.0, 4.0, -1.0])
        known = torch.zeros_like(news)
        known[:, :4] = own[:, :4] @ shared
        for content in (predictable, subspace):
            channel = OfEach(content, TaskArithmetic())
            assert torch.allclose(channel(own, known)[:, :9], own[:, :9], rtol=0, atol=0.1)
            arrived = channel(own, known + news) - channel(own, known)
            assert torch.allclose(arrived, news, rtol=0, atol=1e-9)
        plain = OfEach(Replace(), TaskArithmetic())  # the contrast: what is shared arrives too
        assert (plain(own, known) - own).abs().max() > 1

    def test_predictability_is_fitted_over_documents_without_first_tokens(self) -> None:
        sender, receiver = model("llama"), model("qwen2")
        documents = [f"Alice is at the Colosseum. {a} The note says {b}." for a in COUNTRIES for b in COUNTRIES]
        fitted = fit_predictability(sender, receiver, documents, read=Site(0), write=Site(0))
        rows = [tiny.tokenizer(text).input_ids for tiny in (sender,) for text in documents]
        held = []
        for tiny in (receiver, sender):
            states_ = [
                tiny.hooked.run_with_cache(torch.tensor([row]))[1]["blocks.0.hook_resid_post"][0, 1:] for row in rows
            ]
            held.append(torch.cat(states_))
        # The map predicts better than the mean does, and its residual is nearly uncorrelated with the receiver's state.
        assert fitted.r_squared(held[0], held[1]) > 0.5
        residual = held[1] - fitted(held[0])
        assert residual.mean(0).abs().max() < 1e-6
        assert fitted.r_squared(held[0], held[1].roll(1, 0)) < 0


def fit_ridge_on(own: Tensor, told: Tensor) -> AffineMap:
    """Least squares by the normal equations, with the constant, on rows of full rank alone."""
    x = torch.cat([own, torch.ones(len(own), 1, dtype=own.dtype)], 1)
    solution = torch.linalg.pinv(x) @ told
    return AffineMap(solution[:-1].T.contiguous(), solution[-1].contiguous())


def test_merged_keeps_the_protocol_and_has_a_stable_digest() -> None:
    channel = Merged("m", READ, WRITE, others=(FurtherSender(model=model("llama")),))
    assert isinstance(channel, Channel)
    same = replace(channel, others=(FurtherSender(model=build("llama")),))
    assert digest(channel) == digest(same)
    assert digest(channel) != digest(replace(channel, others=(FurtherSender(model=build("llama", seed=1)),)))


def test_a_run_with_every_control_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    tiny = model("llama")
    channel = Merged("m", READ, WRITE, OrthogonalResidual(), Ties(), others=(SECOND,))
    trials = evaluate(channel, tiny, tiny, TASK, checkpoint=tmp_path)
    assert {trial.condition for trial in trials} == {"message", "shuffled", "zero", "random", "self"}
    with recorded_passes() as passes:
        again = evaluate(channel, tiny, tiny, TASK, checkpoint=tmp_path)
    assert passes == [] and [trial.reply for trial in again] == [trial.reply for trial in trials]
    assert {trial.message_bytes for trial in trials if trial.condition == "message"} == {2 * 32 * 8}
