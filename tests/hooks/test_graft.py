"""Grafts against what the blocks' own arithmetic must make of them, and against hooks written out by hand."""

import re
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, equal_to_rounding, forward_terms, same_bits
from tiny import (
    BACKENDS,
    EVERY_MODEL,
    build,
    hooks_left,
    ids,
    left_padded,
    model,
    states,
    tokenizer,
    transformers_model,
)
from torch import Tensor
from toys import WRONG_FUSIONS

from latentcomm.alignment import AffineMap
from latentcomm.fusion import Linear, Mean, Replace, RightAligned, Sum, TaskArithmetic
from latentcomm.hooks.capture import capture
from latentcomm.hooks.decode import generate, next_token_logits
from latentcomm.hooks.graft import LAST, Graft, grafted, is_grafted, span
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, wrap_model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import STREAMS, Site

TOKENS = torch.stack(ids(7, 7, 7, seed=6))
PROMPTS = Prompts.from_ids(list(TOKENS))
NAMES = [Site(layer, stream).hook_name for layer in range(3) for stream in STREAMS]


def all_states(model: Model, hooks: Any = (), tokens: Tensor = TOKENS) -> dict[str, Tensor]:
    """Every site's states, by plain TransformerLens hooks that come after the given ones, and the logits."""
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        seen[name] = value.detach().clone()

    keepers = [
        (name, lambda value, hook, name=name: keep(value, hook, name)) for name in NAMES if name in model.hook_names
    ]
    seen["logits"] = model.forward(tokens, hooks=[*hooks, *keepers])
    return seen


def streams_of(architecture: str) -> list[str]:
    return [stream for stream in STREAMS if (architecture, stream) != ("neox", "resid_mid")]


class TestTheFiveStreams:
    @pytest.mark.parametrize(("architecture", "backend"), [*EVERY_MODEL, ("mistral", "bridge"), ("gemma2", "bridge")])
    def test_what_is_written_goes_through_the_block_as_its_arithmetic_says(
        self, architecture: str, backend: str
    ) -> None:
        tiny, vector, name = model(architecture, backend), states(32, seed=8), "blocks.1.hook_{}".format
        plain = all_states(tiny)
        for stream in streams_of(architecture):
            found = all_states(tiny, Graft(Site(1, stream), LAST, vector).fwd_hooks())
            own = {key: value[:, -1] for key, value in found.items()}
            assert same_bits(own[name(stream)], vector.expand(3, -1)), stream
            middle = own[name("resid_pre")] + own[name("attn_out")]
            if architecture == "neox":  # its blocks run attention and MLP side by side
                after = middle + own[name("mlp_out")]
            else:
                middle = vector if stream == "resid_mid" else middle
                assert float((own[name("resid_mid")] - middle).abs().max()) < 1e-12
                after = own[name("resid_mid")] + own[name("mlp_out")]
            after = vector if stream == "resid_post" else after
            assert float((own[name("resid_post")] - after).abs().max()) < 1e-12
            assert_same_bits(own["blocks.2.hook_resid_pre"], own[name("resid_post")])
            # What the block computed before, and every other position, is as it was, bit for bit.
            before = {"attn_out": ["resid_pre"], "resid_mid": ["resid_pre", "attn_out"], "mlp_out": ["attn_out"]}
            for earlier in before.get(stream, []):
                assert same_bits(found[name(earlier)], plain[name(earlier)]), (stream, earlier)
            for key, value in found.items():
                assert same_bits(value[:, :-1], plain[key][:, :-1]), key
            assert float((found["logits"][:, -1] - plain["logits"][:, -1]).abs().max()) > 0.1
        assert hooks_left(tiny) == 0

    def test_a_stream_that_parallel_blocks_lack_is_refused(self) -> None:
        message = r"tiny-neox has no hook point blocks\.1\.hook_resid_mid; its blocks do not compute resid_mid"
        graft = Graft(Site(1, "resid_mid"), LAST, states(32))
        with pytest.raises(ValueError, match=message), grafted(model("neox"), [graft]):
            pytest.fail("the block must not run")
        with pytest.raises(ValueError, match=message):
            next_token_logits(model("neox"), ReceiverInput(PROMPTS, (graft,)))

    def test_a_site_beyond_the_model_is_refused(self) -> None:
        message = "layer 3 is outside tiny-llama, whose layers are 0 to 2"
        graft = Graft(Site(3), LAST, states(32))
        with pytest.raises(ValueError, match=message), grafted(model("llama"), [graft]):
            pytest.fail("the block must not run")
        with pytest.raises(ValueError, match=message):
            generate(model("llama"), ReceiverInput(PROMPTS, (graft,)), max_new_tokens=2)


class TestPositions:
    """Which entries of a value of three rows of seven positions are written; the rest stays bit for bit."""

    VALUE = states(3, 7, 5, seed=1)

    @pytest.mark.parametrize(
        ("position", "written"),
        [
            (LAST, [[6]] * 3),
            (0, [[0]] * 3),
            (-7, [[0]] * 3),
            (range(2, 5), [[2, 3, 4]] * 3),
            (range(-3, 0), [[4, 5, 6]] * 3),
            (slice(None), [list(range(7))] * 3),
            (slice(-2, None), [[5, 6]] * 3),
            (slice(1, 100, 3), [[1, 4]] * 3),
            (torch.tensor([1, -1, 3]), [[1], [6], [3]]),
            (torch.tensor([[0, 1], [5, 3], [-1, 2]]), [[0, 1], [5, 3], [6, 2]]),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("vectors", ["one", "one a row", "one a row and position"])
    def test_by_hand(self, position: Any, written: list[list[int]], vectors: str) -> None:
        n = len(written[0])
        vector = {"one": states(5), "one a row": states(3, 5), "one a row and position": states(3, n, 5)}[vectors]
        before = self.VALUE.clone()
        expected = self.VALUE.clone()
        for row, places in enumerate(written):
            for number, place in enumerate(places):
                message = {1: vector, 2: vector[row], 3: vector[row, number] if vector.ndim == 3 else vector}[
                    vector.ndim
                ]
                expected[row, place] = (expected[row, place] + message) / 2
        found = Graft(Site(0), position, vector, Mean()).write(self.VALUE)
        assert_same_bits(found, expected)
        assert_same_bits(self.VALUE, before)

    def test_one_row_of_vectors_serves_every_row(self) -> None:
        one = Graft(Site(0), torch.tensor([1, 2, 3]), states(1, 5)).write(self.VALUE)
        assert_same_bits(one, Graft(Site(0), torch.tensor([1, 2, 3]), states(1, 5)[0]).write(self.VALUE))

    @pytest.mark.parametrize(
        ("senders", "place", "position"),
        [
            (states(2, 3, 1, 5), LAST, [6, 6, 6]),
            (states(2, 1, 1, 5), LAST, [6, 6, 6]),
            (states(2, 3, 1, 5), torch.tensor([0, 4, 2]), [0, 4, 2]),
        ],
        ids=str,
    )
    def test_several_senders_are_merged_row_by_row(self, senders: Tensor, place: Any, position: list[int]) -> None:
        graft = Graft(Site(0), place, senders, TaskArithmetic(0.5))
        found, expected = graft.write(self.VALUE), self.VALUE.clone()
        for row, column in enumerate(position):
            own = self.VALUE[row, column]
            messages = senders[:, min(row, senders.shape[1] - 1), 0]
            expected[row, column] = own + 0.5 * ((messages[0] - own) + (messages[1] - own))
        assert float((found - expected).abs().max()) < 1e-12
        assert_same_bits(graft.select([2, 0]).write(self.VALUE[[2, 0]]), found[[2, 0]])

    @pytest.mark.parametrize(
        ("position", "message"),
        [
            (7, "position 7 is outside a prompt of 7 tokens at blocks.0.hook_resid_post"),
            (-8, "position -8 is outside a prompt of 7 tokens at blocks.0.hook_resid_post"),
            (range(5, 9), "position 7 is outside a prompt of 7 tokens"),
            (torch.tensor([0, 0, 9]), "position 9 is outside a prompt of 7 tokens"),
            (torch.tensor([0, 1]), "2 rows of positions for 3 prompts at blocks.0.hook_resid_post"),
            (slice(5, 5), "the graft at blocks.0.hook_resid_post names no position of a prompt of 7 tokens"),
            (range(0), "the graft at blocks.0.hook_resid_post names no position of a prompt of 7 tokens"),
        ],
        ids=str,
    )
    def test_positions_that_are_not_there_are_refused(self, position: Any, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            Graft(Site(0), position, states(5)).write(self.VALUE)

    def test_vectors_that_fit_no_rows_or_positions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="2 rows of vectors for 3 prompts; give one a prompt, or one for all"):
            Graft(Site(0), LAST, states(2, 5)).write(self.VALUE)
        with pytest.raises(ValueError, match="2 vectors a row for 3 positions a row; they must agree"):
            Graft(Site(0), range(3), states(3, 2, 5)).write(self.VALUE)
        with pytest.raises(ValueError, match="3 rows of positions but 2 rows of vectors"):
            Graft(Site(0), torch.tensor([0, 1, 2]), states(2, 5))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_message_that_is_not_finite_is_refused(self, value: float) -> None:
        vector = states(3, 5)
        vector[1, 4] = value
        message = r"the message for blocks\.2\.hook_mlp_out is not finite at index \[1, 4\]; it was not grafted"
        with pytest.raises(ValueError, match=message):
            Graft(Site(2, "mlp_out"), LAST, vector)

    def test_a_fused_state_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"the fused state at blocks\.0\.hook_resid_post is not finite; .* does not fit"
        ):
            Graft(Site(0), LAST, states(5), lambda own, incoming: own / 0).write(self.VALUE)

    @pytest.mark.parametrize(("wrong", "message"), WRONG_FUSIONS.values(), ids=WRONG_FUSIONS)
    def test_what_a_fusion_returns_is_checked_at_the_write(self, wrong: Any, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            Graft(Site(0), LAST, states(5), wrong).write(self.VALUE)

    @pytest.mark.parametrize("written", ["own", "incoming"])
    @torch.inference_mode()
    def test_one_that_writes_in_place_is_refused_in_inference_mode_too(self, written: str) -> None:
        def wrong(own: torch.Tensor, incoming: torch.Tensor) -> torch.Tensor:
            return (own if written == "own" else incoming).add_(1.0)

        value, vector = self.VALUE.clone(), states(len(self.VALUE), 5).clone()
        assert value.is_inference() and vector.is_inference()
        value[:, -1, 0] = torch.nan
        with pytest.raises(ValueError, match=r"wrote into the states that it was given; let it return new ones$"):
            Graft(Site(0), LAST, vector, wrong).write(value)
        graft = Graft(Site(0), LAST, vector, lambda own, incoming: incoming + own.nan_to_num(0.0))
        assert_same_bits(graft.write(value)[:, -1, 0], vector[:, 0])

    def test_a_fusion_that_is_a_class_is_refused_at_the_write(self) -> None:
        with pytest.raises(ValueError, match=r"^Replace is a class; pass an instance, such as Replace\(\)$"):
            Graft(Site(0), LAST, states(5), Replace).write(self.VALUE)

    def test_a_fused_state_in_another_float_is_rounded_once(self) -> None:
        value = self.VALUE.float()
        found = Graft(Site(0), LAST, states(5).float(), lambda own, incoming: own.double() / 3).write(value)
        assert_same_bits(found[:, -1], (value[:, -1].double() / 3).float())
        with pytest.raises(ValueError, match=r"is not finite; fusion <lambda> does not fit it in torch\.float16"):
            Graft(Site(0), LAST, states(5).half(), lambda own, _: own.double() * 0 + 1e5).write(self.VALUE.half())

    def test_rows_are_selected_with_their_positions_and_vectors(self) -> None:
        position, vector = torch.tensor([[0, 1], [2, 3], [4, 5]]), states(3, 2, 5)
        whole = Graft(Site(0), position, vector, Sum()).write(self.VALUE)
        part = Graft(Site(0), position, vector, Sum()).select([2, 0]).write(self.VALUE[[2, 0]])
        assert_same_bits(part, whole[[2, 0]])
        for other in (states(5), states(1, 5), states(1, 1, 5)):
            for place in (-2, torch.tensor([4, 1, 0]), position):
                graft = Graft(Site(0), place, other, Sum())
                whole = graft.write(self.VALUE)
                assert_same_bits(graft.select([1, 2]).write(self.VALUE[[1, 2]]), whole[[1, 2]])

    def test_a_span_counts_from_the_first_token_and_gives_row_indices(self) -> None:
        prompts = left_padded(ids(5, 3, 7))
        assert span(prompts, [1, 0, 4], [3, 2, 6]).tolist() == [[3, 4], [4, 5], [4, 5]]
        with pytest.raises(ValueError, match=r"spans have the lengths \[1, 2\]; a batch of grafts needs one length"):
            span(prompts, [0, 0, 0], [1, 2, 2])
        with pytest.raises(ValueError, match=r"spans have the lengths \[0\]; a batch of grafts needs one length"):
            span(prompts, [1, 1, 1], [1, 1, 1])
        with pytest.raises(ValueError, match=r"span 2\.\.4 is outside prompt 1, which has 3 tokens"):
            span(prompts, [2, 2, 2], [4, 4, 4])
        with pytest.raises(ValueError, match=r"span -1\.\.1 is outside prompt 0, which has 5 tokens"):
            span(prompts, [-1, 0, 0], [1, 2, 2])

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_span_of_unequal_prompts_is_what_each_prompt_gets_alone(self, backend: str) -> None:
        tiny, rows, vectors = model("llama", backend), ids(5, 3, 7), states(3, 2, 32)
        for prompts in (left_padded(rows), Prompts.from_ids(rows)):
            graft = Graft(Site(0), span(prompts, [1, 0, 4], [3, 2, 6]), vectors, Mean())
            together = next_token_logits(tiny, ReceiverInput(prompts, (graft,)))
            for number, (row, start) in enumerate(zip(rows, (1, 0, 4), strict=True)):
                own = vectors[number]

                def fuse(value: Tensor, hook: Any, start: int = start, own: Tensor = own) -> Tensor:
                    value = value.clone()
                    value[0, start : start + 2] = (value[0, start : start + 2] + own) / 2
                    return value

                alone = tiny.forward(row[None], hooks=[(Site(0).hook_name, fuse)])[0, -1]
                assert float((together[number] - alone).abs().max()) < 1e-12


class TestTrapsOfTheLiterature:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_ones_own_state_replaced_by_itself_changes_no_bit(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        plain = tiny.forward(TOKENS)
        for layer in range(3):
            for stream in streams_of(architecture):
                site = Site(layer, stream)
                message = capture(tiny, PROMPTS, [site]).last(site)
                with grafted(tiny, [Graft(site, LAST, message, Replace())]):
                    assert_same_bits(tiny.forward(TOKENS), plain)
        other = capture(tiny, PROMPTS, [Site(0)]).last(Site(0))
        with grafted(tiny, [Graft(Site(1), LAST, other)]):
            assert not equal_to_rounding(tiny.forward(TOKENS), plain, terms=forward_terms(tiny))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_identity_map_equals_replacing(self, backend: str) -> None:
        tiny, message = model("gpt2", backend), states(3, 32)
        identity = AffineMap(torch.eye(32).double(), torch.zeros(32).double())
        found = []
        for fusion in (Replace(), Linear(identity), Linear(identity, Replace())):
            with grafted(tiny, [Graft(Site(1), LAST, message, fusion)]):
                found.append(tiny.forward(TOKENS))
        for mapped in found[1:]:
            assert_equal_to_rounding(mapped, found[0], terms=forward_terms(tiny))

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(("d_sender", "d_receiver"), [(3, 5), (5, 3)])
    def test_unequal_widths_are_aligned_on_the_right(self, backend: str, d_sender: int, d_receiver: int) -> None:
        sender = model("gpt2", backend, d_model=d_sender, n_heads=1)
        receiver = model("gpt2", backend, d_model=d_receiver, n_heads=1, seed=1)
        a = capture(sender, PROMPTS, [Site(0)]).last(Site(0))
        b = all_states(receiver)["blocks.1.hook_resid_post"][:, -1]
        found = all_states(receiver, Graft(Site(1), LAST, a, RightAligned(Sum())).fwd_hooks())
        written = found["blocks.1.hook_resid_post"][:, -1]
        if (d_sender, d_receiver) == (3, 5):
            by_hand = torch.stack([b[:, 0], b[:, 1], b[:, 2] + a[:, 0], b[:, 3] + a[:, 1], b[:, 4] + a[:, 2]], 1)
        else:
            by_hand = torch.stack([b[:, 0] + a[:, 2], b[:, 1] + a[:, 3], b[:, 2] + a[:, 4]], 1)
        assert_same_bits(written, by_hand)
        with pytest.raises(
            ValueError, match=f"own is {d_receiver} wide but incoming {d_sender}; wrap the fusion in Right"
        ):
            receiver.forward(TOKENS, hooks=Graft(Site(1), LAST, a, Sum()).fwd_hooks())

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_a_write_copies_what_two_names_share(self, architecture: str, backend: str) -> None:
        tiny, before = model(architecture, backend), []
        plain = all_states(tiny)["blocks.0.hook_resid_post"]

        def hold(value: Tensor, hook: Any) -> None:
            before.append(value)  # the very tensor, not a copy

        for site in (Site(0), Site(1, "resid_pre")):
            before.clear()
            graft = Graft(site, LAST, states(32))
            tiny.forward(TOKENS, hooks=[(Site(0).hook_name, hold), (site.hook_name, hold), *graft.fwd_hooks()])
            assert len(before) == 2
            assert all(same_bits(value, plain) for value in before)

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    @pytest.mark.parametrize("with_cache", [True, False])
    def test_under_generation_it_writes_into_the_prompt_alone(
        self, architecture: str, backend: str, with_cache: bool
    ) -> None:
        tiny, message = model(architecture, backend), 9 * states(1, 32, seed=2)
        graft = Graft(Site(1), LAST, message, Sum())
        passes: list[int] = []

        def count(value: Tensor, hook: Any) -> None:
            passes.append(value.shape[1])

        options = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
        with grafted(tiny, [graft]), tiny.hooked.hooks(fwd_hooks=[(Site(0).hook_name, count)]):
            found = tiny.hooked.generate(TOKENS[:1], use_past_kv_cache=with_cache, return_type="tokens", **options)
        assert passes == ([7, 1, 1, 1, 1] if with_cache else [7, 8, 9, 10, 11])

        # By hand: the whole text is read again at every step, and position 6 of it is written each time.
        def fuse(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, 6] += message
            return value

        row = TOKENS[:1]
        for _ in range(5):
            row = torch.cat([row, tiny.forward(row, hooks=[(Site(1).hook_name, fuse)])[:, -1:].argmax(-1)], 1)
        assert found.tolist() == row.tolist()
        plain = tiny.hooked.generate(TOKENS[:1], use_past_kv_cache=with_cache, return_type="tokens", **options)
        assert plain.tolist() != row.tolist()
        assert hooks_left(tiny) == 0


class TestGrafted:
    def test_a_graft_that_never_fired_is_an_error(self) -> None:
        tiny = model("llama")
        with (
            pytest.raises(
                RuntimeError, match=r"the graft at blocks\.1\.hook_resid_post never fired; run the model inside"
            ),
            grafted(tiny, [Graft(Site(1), LAST, states(32))]),
        ):
            pass
        assert hooks_left(tiny) == 0 and not is_grafted(tiny)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_second_prompt_needs_a_second_block(self, backend: str) -> None:
        tiny = model("llama", backend)

        def two_prompts() -> None:
            with grafted(tiny, [Graft(Site(1), LAST, states(32))]):
                tiny.forward(TOKENS)
                tiny.forward(TOKENS[:, :4])

        def two_replies() -> None:
            with grafted(tiny, [Graft(Site(1), LAST, states(32))]):
                generate(tiny, PROMPTS, max_new_tokens=2)
                generate(tiny, PROMPTS, max_new_tokens=2)

        with pytest.raises(
            ValueError, match="a second prompt of 4 tokens ran in a `grafted` block whose first has 7; open"
        ):
            two_prompts()
        with pytest.raises(ValueError, match="a prompt has run in this `grafted` block already; open another block"):
            two_replies()
        assert hooks_left(tiny) == 0 and not is_grafted(tiny)

    def test_every_graft_must_fire(self) -> None:
        tiny = model("llama")
        grafts = [Graft(Site(0), LAST, states(32)), Graft(Site(2), LAST, states(32))]

        def only_the_first_block() -> None:
            with grafted(tiny, grafts):
                capture(tiny, PROMPTS, [Site(0)])  # stops behind block 0

        with pytest.raises(RuntimeError, match=r"the graft at blocks\.2\.hook_resid_post never fired"):
            only_the_first_block()

    def test_what_goes_wrong_inside_is_what_comes_out(self) -> None:
        tiny = model("llama")
        with pytest.raises(ZeroDivisionError), grafted(tiny, [Graft(Site(1), LAST, states(32))]):
            raise ZeroDivisionError
        assert hooks_left(tiny) == 0 and not is_grafted(tiny)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_grafts_at_one_site_act_in_their_order(self, backend: str) -> None:
        tiny, first, second = model("llama", backend), states(32, seed=1), states(32, seed=2)
        grafts = [Graft(Site(1), LAST, first, Replace()), Graft(Site(1), LAST, second, Mean())]
        hooks = [hook for graft in grafts for hook in graft.fwd_hooks()]
        written = all_states(tiny, hooks)["blocks.1.hook_resid_post"][:, -1]
        assert_same_bits(written, ((first + second) / 2).expand(3, -1))
        with grafted(tiny, grafts):
            logits = tiny.forward(TOKENS)
        assert_same_bits(logits, tiny.forward(TOKENS, hooks=hooks))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_it_composes_with_anyones_hooks(self, backend: str) -> None:
        tiny, message = model("llama", backend), states(32)
        graft, seen = Graft(Site(1), LAST, message, Mean()), []

        def double(value: Tensor, hook: Any) -> Tensor:
            return 2 * value

        def keep(value: Tensor, hook: Any) -> None:
            seen.append(value.clone())

        name = Site(1).hook_name
        tiny.hooked.run_with_hooks(TOKENS, fwd_hooks=[(name, double), *graft.fwd_hooks(), (name, keep)])
        with tiny.hooked.hooks(fwd_hooks=[(name, double)]), grafted(tiny, [graft]):
            tiny.hooked.run_with_hooks(TOKENS, fwd_hooks=[(name, keep)])
        own = all_states(tiny)[name]
        for value in seen:
            assert_same_bits(value[:, :-1], 2 * own[:, :-1])
            assert_same_bits(value[:, -1], (2 * own[:, -1] + message) / 2)
        assert len(seen) == 2

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_run_with_cache_inside_sees_what_was_written(self, backend: str) -> None:
        tiny, message = model("llama", backend), states(32)
        with grafted(tiny, [Graft(Site(1), LAST, message)]):
            _, cache = tiny.hooked.run_with_cache(TOKENS)
        assert_same_bits(cache["blocks.2.hook_resid_pre"][:, -1], message.expand(3, -1))

    def test_blocks_of_two_models_do_not_disturb_each_other(self) -> None:
        one, other = build("llama"), build("llama")
        plain, graft = one.forward(TOKENS), Graft(Site(1), LAST, states(32))
        with grafted(one, [graft]):
            assert is_grafted(one) and not is_grafted(other)
            assert_same_bits(other.forward(TOKENS), plain)
            with grafted(other, [graft]):
                assert is_grafted(one) and is_grafted(other)
                assert_same_bits(other.forward(TOKENS), one.forward(TOKENS))
            assert is_grafted(one) and not is_grafted(other)

    def test_a_message_of_another_dtype_is_written_in_the_receivers(self) -> None:
        raw = transformers_model("llama", dtype=torch.float32)
        tiny = wrap_model(raw, tokenizer())
        message = states(32)
        found = all_states(tiny, Graft(Site(1), LAST, message).fwd_hooks())["blocks.1.hook_resid_post"][:, -1]
        assert found.dtype == torch.float32
        assert_same_bits(found, message.float().expand(3, -1))
