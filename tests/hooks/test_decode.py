"""Decoding against transformers' own generation, against each prompt alone, and against distributions by hand."""

from collections import Counter
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, equal_to_rounding, forward_terms
from tiny import (
    BACKENDS,
    EOS_ID,
    EVERY_MODEL,
    N_CTX,
    PAD_ID,
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
from toys import little_memory

from latentcomm.experiments.cost import flops
from latentcomm.fusion import Mean, Replace, Sum
from latentcomm.hooks import decode as decoding
from latentcomm.hooks.capture import capture, run_to_deepest
from latentcomm.hooks.decode import (
    Choice,
    Reply,
    Run,
    _choose,
    decode,
    generate,
    next_token_logits,
    read_prompts,
    runs,
    write_replies,
)
from latentcomm.hooks.graft import LAST, Graft, grafted
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode, recorded_passes, wrap_model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

ROWS = ids(6, 2, 9, 6, 1, seed=5)
ROWS[0][-1] = PAD_ID
ROWS[1][:] = PAD_ID
PROMPTS = Prompts.from_ids(ROWS)
STEPS = 6
MESSAGES = 6 * states(len(ROWS), 32, seed=11)


def their_reply(architecture: str, row: Tensor) -> str:
    """transformers' own greedy reply, through its own generate and cache."""
    plain = transformers_model(architecture)
    options: dict[str, Any] = {"attention_mask": torch.ones(1, len(row)).long(), "do_sample": False}
    found = plain.generate(row[None], max_new_tokens=STEPS, **options)[0, len(row) :].tolist()
    if EOS_ID in found:
        found = found[: found.index(EOS_ID)]
    return model(architecture).decode(found)


def reply_by_hand(model: Model, row: Tensor, message: Tensor, *, layer: int, place: int) -> list[int]:
    """Greedy tokens when the whole text is read again at every step, written at one place of the prompt each time."""

    def fuse(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[0, place] = (value[0, place] + message) / 2
        return value

    text = row[None]
    for _ in range(STEPS):
        logits = model.forward(text, hooks=[(Site(layer).hook_name, fuse)])
        text = torch.cat([text, logits[:, -1:].argmax(-1)], 1)
    return text[0, len(row) :].tolist()


def greedy_ids(model: Model, given: Prompts | ReceiverInput) -> list[list[int]]:
    """The ids of the replies, which the text of a tiny model would hide; nothing stops them."""
    endless = wrap_model(model.hooked, model.tokenizer, name=model.name)
    endless.__dict__["stop_ids"] = frozenset()
    return decode(endless, given, max_new_tokens=STEPS).ids


class Watcher:
    """Stands and does nothing, without a word of what it would do in replies."""

    def select(self, rows: Any) -> "Watcher":
        return self

    def fwd_hooks(self) -> list[Any]:
        return []


class TestLittleMemory:
    @pytest.mark.parametrize(
        ("n_rows", "n_past", "temperature"), [(2, 0, 1.0), (1, 4, 1.0), (2, 8, 0.0)]
    )  # out of memory in a prompt, or as replies grow
    def test_batches_that_do_not_fit_give_the_same_replies_at_the_same_cost(
        self, n_rows: int, n_past: int, temperature: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny = build("llama")
        tiny.__dict__["stop_ids"] = frozenset(range(40))  # rows end at different steps
        prompts = Prompts.from_ids([ROWS[0], ROWS[0], *ROWS, ROWS[2], ROWS[2]])
        equal = Prompts.from_ids([ROWS[2]] * 5)  # their prefix is shared
        graft = Graft(Site(1), LAST, 6 * states(5, 32, seed=11), Mean())

        def decoded() -> list[Any]:
            with recorded_passes() as passes:
                found = [
                    decode(tiny, given, max_new_tokens=STEPS, temperature=temperature, seed=3)
                    for given in (prompts, equal, ReceiverInput(equal, (graft,)))
                ]
            return [flops(passes), *found]

        expected = decoded()
        failed = little_memory(monkeypatch, n_rows=n_rows, n_past=n_past)
        found = decoded()
        assert failed and found[0] == expected[0] > 0
        assert len({n for each in expected[1:] for n in each.n_tokens}) > 1
        for one, other in zip(found[1:], expected[1:], strict=True):
            assert one.ids == other.ids
            assert_equal_to_rounding(one.first_logits, other.first_logits, terms=forward_terms(tiny))

    def test_rows_that_other_hooks_may_mix_are_not_split(self, monkeypatch: pytest.MonkeyPatch) -> None:
        little_memory(monkeypatch, n_rows=1)
        with pytest.raises(torch.OutOfMemoryError):
            decode(model("llama"), ReceiverInput(PROMPTS, persistent=(Watcher(),)), max_new_tokens=1)


class TestGreedy:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_a_reply_is_that_of_transformers_own_generate(self, architecture: str, backend: str) -> None:
        found = generate(model(architecture, backend), PROMPTS, max_new_tokens=STEPS)
        assert found == [their_reply(architecture, row) for row in ROWS]
        assert any(found)

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_a_batch_gives_what_each_prompt_gives_alone(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        together = decode(tiny, PROMPTS, max_new_tokens=STEPS)
        padded_on_the_left = decode(tiny, left_padded(ROWS), max_new_tokens=STEPS)
        assert padded_on_the_left.texts == together.texts
        assert_same_bits(padded_on_the_left.first_logits, together.first_logits)
        for number, row in enumerate(ROWS):
            alone = decode(tiny, Prompts.from_ids([row]), max_new_tokens=STEPS)
            assert together.texts[number] == alone.texts[0]
            assert float((together.first_logits[number] - alone.first_logits[0]).abs().max()) < 1e-12
            plain = tiny.forward(row[None])[0, -1]
            assert float((together.first_logits[number] - plain).abs().max()) < 1e-12

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "neox"])
    def test_replies_of_all_lengths_pass_the_weights_together(
        self, architecture: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny, steps = build(architecture), []
        tiny.__dict__["stop_ids"] = frozenset()
        step = Run.step

        def watched(run: Run, *given: Any) -> Tensor:
            steps.append((run.rows, step(run, *given)))
            return steps[-1][1]

        monkeypatch.setattr(Run, "step", watched)
        decode(tiny, PROMPTS, max_new_tokens=STEPS)
        assert [sorted(rows) for rows, _ in steps] == [[0, 1, 2, 3, 4]] * (STEPS - 1)
        together = {row: [logits[place] for rows, logits in steps for place in [rows.index(row)]] for row in range(5)}
        for row in range(5):
            steps.clear()
            decode(tiny, PROMPTS.select([row]), max_new_tokens=STEPS)
            for (_, alone), joined in zip(steps, together[row], strict=True):
                assert_equal_to_rounding(alone[0], joined, terms=forward_terms(tiny, n_forward=STEPS))

    @pytest.mark.parametrize("why", ["a window", "somebody's hooks", "something standing that cannot"])
    def test_what_cannot_go_on_together_goes_length_by_length(self, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny, rows = build("gemma2" if why == "a window" else "llama"), []
        tiny.__dict__["stop_ids"] = frozenset()
        step = Run.step
        monkeypatch.setattr(Run, "step", lambda run, *given: (rows.append(run.rows), step(run, *given))[1])
        given = ReceiverInput(PROMPTS, persistent=(Watcher(),) if "standing" in why else ())
        if "hooks" in why:
            tiny.hooked.add_hook("hook_embed", lambda value, hook: value)
        decode(tiny, given, max_new_tokens=2)
        assert rows == [[0, 3], [1], [2], [4]]
        tiny.hooked.reset_hooks()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_next_tokens_logits_alone(self, backend: str) -> None:
        tiny = model("gpt2", backend)
        found = next_token_logits(tiny, left_padded(ROWS))
        assert float((found - decode(tiny, PROMPTS, max_new_tokens=3).first_logits).abs().max()) < 1e-12

    def test_a_reply_ends_before_the_token_that_stops_it(self) -> None:
        tiny = build("llama")
        free = greedy_ids(tiny, PROMPTS)
        stop = free[0][2]
        tiny.__dict__["stop_ids"] = frozenset([stop])
        found = generate(tiny, PROMPTS, max_new_tokens=STEPS)
        expected = [reply[: reply.index(stop)] if stop in reply else reply for reply in free]
        assert len(expected[0]) <= 2
        assert found == [tiny.decode(reply) for reply in expected]

    def test_no_token_is_computed_once_all_replies_have_ended(self) -> None:
        tiny = build("llama")
        passes: list[int] = []
        stop_at_once = greedy_ids(tiny, PROMPTS.select([0]))[0][0]
        tiny.hooked.blocks[0].register_forward_pre_hook(lambda *_: passes.append(0))
        tiny.__dict__["stop_ids"] = frozenset([stop_at_once])
        assert generate(tiny, PROMPTS.select([0]), max_new_tokens=STEPS) == [""]
        assert len(passes) == 1

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_rows_that_run_together_are_bounded_and_change_nothing(
        self, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny, prompts, sizes = model("llama", backend), Prompts.from_ids([ROWS[0], ROWS[3], ROWS[0], ROWS[1]]), []
        given = ReceiverInput(prompts, (Graft(Site(1), prompts.last, MESSAGES[:4], Mean()),))
        whole = decode(tiny, given, max_new_tokens=STEPS)
        forward = Model.forward

        def counted(self: Model, tokens: Tensor, **options: Any) -> Tensor:
            sizes.append(len(tokens))
            return forward(self, tokens, **options)

        monkeypatch.setattr(Model, "forward", counted)
        monkeypatch.setattr(decoding, "TOKENS_PER_BATCH", 2 * (6 + STEPS))
        parts = decode(tiny, given, max_new_tokens=STEPS)
        assert max(sizes) == 2
        assert parts.texts == whole.texts
        assert float((parts.first_logits - whole.first_logits).abs().max()) < 1e-12

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_a_row_that_has_ended_leaves_the_batch(self, architecture: str, backend: str) -> None:
        tiny, endless = build(architecture, backend), greedy_ids(model(architecture, backend), PROMPTS)
        stop = endless[2][1]
        tiny.__dict__["stop_ids"] = frozenset([stop])
        expected = [reply[: reply.index(stop)] if stop in reply else reply for reply in endless]
        with recorded_passes() as passes:
            assert decode(tiny, PROMPTS, max_new_tokens=STEPS).ids == expected
        assert len({len(reply) for reply in expected}) > 1
        steps = [min(len(reply), STEPS - 1) for reply in expected]  # the last token of all is not read
        assert sum(each.rows for each in passes) == len(ROWS) + sum(steps)

    @pytest.mark.parametrize("why", ["somebody's hooks", "something standing that cannot"])
    def test_rows_under_hooks_that_cannot_follow_stay(self, why: str) -> None:
        tiny, seen = build("llama"), []
        prompts = Prompts.from_ids([ROWS[0], ROWS[3]])
        endless = greedy_ids(tiny, prompts)
        stop = next(token for token in endless[0] if token not in endless[1])
        tiny.__dict__["stop_ids"] = frozenset([stop])
        given = ReceiverInput(prompts, persistent=(Watcher(),) if "standing" in why else ())
        if "hooks" in why:
            tiny.hooked.add_hook("hook_embed", lambda value, hook: seen.append(len(value)))
        with recorded_passes() as passes:
            found = decode(tiny, given, max_new_tokens=STEPS).ids
        assert found == [endless[0][: endless[0].index(stop)], endless[1]]
        assert {each.rows for each in passes} == {2}
        assert set(seen) <= {2}
        tiny.hooked.reset_hooks()

    def test_rows_to_limits_of_their_own_with_states_at_every_token(self) -> None:
        tiny, points, limits = build("llama"), ["hook_embed", "blocks.1.hook_resid_post"], [3, 1, 2, 4, 2]
        tiny.__dict__["stop_ids"] = frozenset()
        left: list[int] = []
        replies: dict[int, Reply] = {}
        for run in runs(tiny, ReceiverInput(PROMPTS), max(limits), read_prompts):
            replies |= write_replies(
                run,
                lambda logits, _: Choice(logits.argmax(-1), values={"best": logits.amax(-1)}),
                limits,
                points=points,
                leave=lambda run, row: left.append(row),
            )
        assert left == [1, 2, 4, 0, 3]
        for row, (prompt, limit) in enumerate(zip(ROWS, limits, strict=True)):
            whole = torch.cat([prompt, torch.tensor(replies[row].ids)])
            assert len(replies[row].ids) == limit and not replies[row].ended
            seen = run_to_deepest(tiny, whole[None], points)
            for point in points:
                found = torch.stack(replies[row].states[point])
                assert_equal_to_rounding(found, seen[point][0, -limit:], terms=forward_terms(tiny))
            best = tiny.forward(whole[None])[0, len(prompt) - 1 : -1].amax(-1)
            assert_equal_to_rounding(torch.stack(replies[row].values["best"]), best, terms=forward_terms(tiny))

    def test_special_tokens_are_left_out_of_a_reply(self) -> None:
        assert model("llama").decode([EOS_ID, 9, PAD_ID]) == " Alice"


class TestGrafts:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_the_prompt_is_computed_once_and_replies_read_it_from_the_cache(
        self, architecture: str, backend: str
    ) -> None:
        tiny, prompts = model(architecture, backend), left_padded(ROWS)
        graft = Graft(Site(1), LAST, MESSAGES, Mean())
        found = greedy_ids(tiny, ReceiverInput(prompts, (graft,)))
        expected = [
            reply_by_hand(tiny, row, message, layer=1, place=len(row) - 1)
            for row, message in zip(ROWS, MESSAGES, strict=True)
        ]
        assert found == expected
        assert found != greedy_ids(tiny, prompts)  # the message does change what is said
        assert hooks_left(tiny) == 0

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_equal_prompts_share_their_prefix_and_say_what_each_says_alone(
        self, architecture: str, backend: str
    ) -> None:
        tiny, prompts = model(architecture, backend), Prompts.from_ids([ROWS[2]] * 3)
        seen: list[tuple[int, ...]] = []

        def count(value: Tensor, hook: Any) -> None:
            seen.append(tuple(value.shape[:2]))

        graft = Graft(Site(0), LAST, MESSAGES[:3], Mean())
        found = greedy_ids(tiny, ReceiverInput(prompts, (graft,)))
        assert found == [reply_by_hand(tiny, ROWS[2], message, layer=0, place=8) for message in MESSAGES[:3]]
        together = next_token_logits(tiny, ReceiverInput(prompts, (graft,)))
        for number, message in enumerate(MESSAGES[:3]):
            alone = ReceiverInput(prompts.select([0]), (Graft(Site(0), LAST, message, Mean()),))
            assert float((next_token_logits(tiny, alone)[0] - together[number]).abs().max()) < 1e-12
        with tiny.hooked.hooks(fwd_hooks=[(Site(1).hook_name, count)]):  # and nobody else's hooks miss a token
            again = next_token_logits(tiny, ReceiverInput(prompts, (graft,)))
        assert seen == [(3, 9)]
        assert float((again - together).abs().max()) < 1e-12

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(
        "position", [0, -2, range(1, 3), slice(None), torch.tensor([[0, 1], [3, 5], [2, 2]])], ids=str
    )
    def test_equal_prompts_that_are_written_earlier_share_nothing_wrongly(self, backend: str, position: Any) -> None:
        tiny, prompts = model("qwen2", backend), Prompts.from_ids([ROWS[0]] * 3)
        graft = Graft(Site(0), position, MESSAGES[:3], Sum())
        together = next_token_logits(tiny, ReceiverInput(prompts, (graft,)))
        for number in range(3):
            plain = tiny.forward(ROWS[0][None], hooks=graft.select([number]).fwd_hooks())[0, -1]
            assert float((together[number] - plain).abs().max()) < 1e-12

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_positions_named_by_a_tensor_are_those_of_the_prompts_tokens(self, backend: str) -> None:
        tiny, found = model("llama", backend), []
        for prompts in (PROMPTS, left_padded(ROWS)):
            for places in (prompts.last, prompts.first, torch.full((5,), -1), torch.stack([prompts.first] * 2, 1)):
                graft = Graft(Site(0), places, MESSAGES, Mean())
                found.append(next_token_logits(tiny, ReceiverInput(prompts, (graft,))))
        for right, left in zip(found[:4], found[4:], strict=True):
            assert_same_bits(right, left)
        assert_same_bits(found[0], found[2])  # the last token, by its index or from the end
        assert not equal_to_rounding(found[0], found[1], terms=forward_terms(tiny))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_several_grafts_at_several_sites(self, backend: str) -> None:
        tiny = model("gpt2", backend)
        grafts = (
            Graft(Site(0), LAST, MESSAGES, Sum()),
            Graft(Site(2, "mlp_out"), 0, MESSAGES[0], Replace()),
            Graft(Site(1, "resid_mid"), PROMPTS.last, MESSAGES, Mean()),
        )
        together = next_token_logits(tiny, ReceiverInput(PROMPTS, grafts))
        for number, row in enumerate(ROWS):
            hooks = [hook for graft in grafts for hook in graft.select([number]).fwd_hooks()]
            alone = tiny.forward(row[None], hooks=hooks)[0, -1]
            assert float((together[number] - alone).abs().max()) < 1e-12

    def test_ones_own_state_changes_no_bit_of_a_reply(self) -> None:
        tiny, site = model("llama"), Site(1)
        for rows in ([ROWS[2]], [ROWS[2]] * 3, ROWS):
            prompts = Prompts.from_ids(rows)
            own = capture(tiny, prompts, [site], batch_tokens=1).last(site)
            plain = decode(tiny, prompts, max_new_tokens=STEPS)
            found = decode(tiny, ReceiverInput(prompts, (Graft(site, LAST, own),)), max_new_tokens=STEPS)
            assert found.texts == plain.texts
            if len(rows) == 1:
                assert_same_bits(found.first_logits, plain.first_logits)
            else:  # a prompt read in two parts, or captured alone and run beside another
                assert_equal_to_rounding(found.first_logits, plain.first_logits, terms=forward_terms(tiny))

    def test_a_graft_outside_a_shorter_prompt_is_refused(self) -> None:
        graft = Graft(Site(1), 3, MESSAGES[0])
        with pytest.raises(
            ValueError, match=r"position 3 is outside a prompt of \d tokens at blocks\.1\.hook_resid_post"
        ):
            generate(model("llama"), ReceiverInput(PROMPTS, (graft,)), max_new_tokens=2)

    def test_a_graft_that_never_fired_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        graft = Graft(Site(1), LAST, MESSAGES[0])
        monkeypatch.setattr(Model, "forward", lambda self, tokens, **_: torch.zeros(*tokens.shape, 64).double())
        with pytest.raises(RuntimeError, match=r"the graft at blocks\.1\.hook_resid_post never fired"):
            generate(model("llama"), ReceiverInput(PROMPTS, (graft,)), max_new_tokens=2)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_one_grafted_block_serves_prompts_of_one_length(self, backend: str) -> None:
        tiny, graft = model("llama", backend), Graft(Site(1), LAST, MESSAGES[:2], Mean())
        same = PROMPTS.select([0, 3])
        expected = generate(tiny, ReceiverInput(same, (graft,)), max_new_tokens=STEPS)
        with grafted(tiny, [graft]):
            assert generate(tiny, same, max_new_tokens=STEPS) == expected

        def of_two_lengths() -> None:
            with grafted(tiny, [graft]):
                generate(tiny, PROMPTS.select([0, 1]), max_new_tokens=STEPS)

        message = "prompts of 2 lengths cannot run in one `grafted` block; give the grafts in a ReceiverInput"
        with pytest.raises(ValueError, match=message):
            of_two_lengths()


class TestSampling:
    def test_a_seed_gives_the_same_replies_and_another_gives_others(self) -> None:
        tiny = model("llama")
        options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 2.0}
        first = generate(tiny, PROMPTS, seed=1, **options)
        assert generate(tiny, PROMPTS, seed=1, **options) == first
        assert generate(tiny, left_padded(ROWS), seed=1, **options) == first
        assert generate(tiny, PROMPTS, seed=2, **options) != first

    def test_the_rows_of_equal_prompts_draw_each_for_itself(self) -> None:
        replies = generate(model("llama"), Prompts.from_ids([ROWS[2]] * 8), max_new_tokens=8, temperature=2.0)
        assert len(set(replies)) > 4

    def test_a_temperature_near_nought_is_greedy(self) -> None:
        tiny = model("llama")
        cold = generate(tiny, PROMPTS, max_new_tokens=STEPS, temperature=1e-6)
        assert cold == generate(tiny, PROMPTS, max_new_tokens=STEPS)

    @pytest.mark.parametrize(
        ("top_p", "kept"),
        [
            (1.0, [0.05, 0.5, 0.15, 0.3]),
            (0.81, [0, 0.5, 0.15, 0.3]),
            (0.79, [0, 0.5, 0, 0.3]),
            (0.5, [0, 1, 0, 0]),
            (0.01, [0, 1, 0, 0]),
        ],
    )
    def test_top_p_keeps_the_smallest_set_of_that_mass(self, top_p: float, kept: list[float]) -> None:
        n = 4000
        logits = torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64).log()
        generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
        counts = Counter(_choose(logits.expand(n, -1), 1.0, top_p, generators).tolist())
        for token, weight in enumerate(kept):
            share = weight / sum(kept)
            deviation = (share * (1 - share) / n) ** 0.5
            assert abs(counts[token] / n - share) <= 4 * deviation  # exactly nought where nothing is kept

    @pytest.mark.parametrize("temperature", [0.5, 2.0])
    def test_a_temperature_divides_the_logits(self, temperature: float) -> None:
        n = 4000
        logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
        weights = [2.718281828459045 ** (value / temperature) for value in (0, 1, 2)]
        generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
        counts = Counter(_choose(logits.expand(n, -1), temperature, 1.0, generators).tolist())
        for token, weight in enumerate(weights):
            share = weight / sum(weights)
            assert abs(counts[token] / n - share) <= 4 * (share * (1 - share) / n) ** 0.5


class TestBadInput:
    def test_options_out_of_range(self) -> None:
        tiny = model("llama")
        with pytest.raises(ValueError, match="max_new_tokens is 0; give at least 1"):
            generate(tiny, PROMPTS, max_new_tokens=0)
        for options in (
            {"temperature": -1.0},
            {"top_p": 0.0},
            {"top_p": 1.5},
            {"temperature": float("nan")},
            {"temperature": float("inf")},
        ):
            with pytest.raises(
                ValueError, match=r"temperature .* must be at least 0 and finite, and top_p .* in \(0, 1\]"
            ):
                generate(tiny, PROMPTS, max_new_tokens=1, **options)

    @pytest.mark.parametrize(("architecture", "backend"), [("gpt2", "bridge"), ("llama", "bridge")])
    def test_a_reply_over_the_context(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        room = N_CTX - 9 + 1
        message = f"9 prompt tokens and {room + 1} new ones exceed the 40 of tiny-{architecture}"
        with pytest.raises(ValueError, match=message):
            generate(tiny, PROMPTS, max_new_tokens=room + 1)
        tiny = wrap_model(tiny.hooked, tiny.tokenizer)
        tiny.__dict__["stop_ids"] = frozenset()
        generate(tiny, PROMPTS.select([2]), max_new_tokens=room)

    def test_a_model_without_a_tokenizer_has_logits_and_no_replies(self) -> None:
        silent = wrap_model(transformers_model("llama"))
        assert_same_bits(next_token_logits(silent, PROMPTS), next_token_logits(model("llama"), PROMPTS))
        with pytest.raises(ValueError, match="LlamaForCausalLM has no tokenizer; pass one to wrap_model"):
            generate(silent, PROMPTS, max_new_tokens=2)

    def test_a_text_prompt_is_read_as_encoded(self) -> None:
        tiny = wrap_model(transformers_model("llama"), tokenizer())
        prompts = encode(tiny, ["Alice is at the Colosseum.", "The country"])
        assert generate(tiny, prompts, max_new_tokens=3) == [
            generate(tiny, encode(tiny, [text]), max_new_tokens=3)[0]
            for text in ("Alice is at the Colosseum.", "The country")
        ]
