"""Soft tokens, pasts and standing hooks: against plain transformers, which reads embeddings and whole prompts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, equal_to_rounding, forward_terms, same_bits
from tiny import BACKENDS, EVERY_MODEL, build, ids, left_padded, model, states, transformers_model
from torch import Tensor

from latentcomm.fusion import Mean
from latentcomm.hooks.decode import decode, next_token_logits
from latentcomm.hooks.graft import LAST, Graft
from latentcomm.hooks.receiver_input import Past, PersistentHooks, ReceiverInput, SoftTokens
from latentcomm.models import Hook, Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

ROWS = ids(6, 3, 6, 1, seed=5)
PROMPTS = Prompts.from_ids(ROWS)
PLACES = tuple(torch.tensor(places).long() for places in ([0, 2], [1], [], [0]))
VECTORS = tuple(3 * states(len(places), 32, seed=20 + n) for n, places in enumerate(PLACES))
SOFT = SoftTokens(PLACES, VECTORS)
STEPS = 4


def embeddings(raw: Any, row: Tensor) -> Tensor:
    with torch.no_grad():
        return raw.get_input_embeddings()(row[None])[0].clone()


def hf_greedy(raw: Any, entering: Tensor, steps: int) -> tuple[Tensor, list[int]]:
    """transformers alone: first logits and greedy ids, everything read again at every step, from embeddings."""
    first, said = None, []
    for _ in range(steps):
        with torch.no_grad():
            logits = raw(inputs_embeds=entering[None], use_cache=False).logits[0, -1]
        first = logits if first is None else first
        token = int(logits.argmax())
        if token == raw.config.eos_token_id:
            break
        said.append(token)
        entering = torch.cat([entering, embeddings(raw, torch.tensor([token]))])
    assert first is not None
    return first, said


def agree(tiny: Model, found: Tensor, expected: Tensor) -> bool:
    """Equal to rounding; TransformerLens rounds the weights of a HookedTransformer to single precision."""
    if tiny.is_bridge:
        return equal_to_rounding(found, expected, terms=forward_terms(tiny))
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


def written(raw: Any, row: int) -> Tensor:
    """What a prompt's embeddings are with its soft tokens in them."""
    entering = embeddings(raw, ROWS[row])
    entering[PLACES[row]] = VECTORS[row]
    return entering


class TestSoftTokens:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_are_read_as_transformers_reads_embeddings(self, architecture: str, backend: str) -> None:
        tiny, raw = model(architecture, backend), transformers_model(architecture)
        plain = next_token_logits(tiny, PROMPTS)
        for prompts in (PROMPTS, left_padded(ROWS)):  # places count from the first real token
            found = decode(tiny, ReceiverInput(prompts, soft=SOFT), max_new_tokens=STEPS)
            for row in range(len(ROWS)):
                first, said = hf_greedy(raw, written(raw, row), STEPS)
                assert agree(tiny, found.first_logits[row], first)
                assert found.ids[row] == said
                assert agree(tiny, first, plain[row]) == (len(PLACES[row]) == 0)

    def test_are_on_the_scale_of_the_table_where_the_model_scales_it(self) -> None:
        tiny = model("gemma2")
        table, raw = tiny.embedding_table, transformers_model("gemma2")
        scaled = raw.get_input_embeddings().weight.detach() * 32**0.5
        assert torch.allclose(table, scaled, rtol=1e-6) and not torch.allclose(table, tiny.hooked.W_E)
        same = SoftTokens(PLACES, tuple(table[row[places]] for row, places in zip(ROWS, PLACES, strict=True)))
        found = next_token_logits(tiny, ReceiverInput(PROMPTS, soft=same))
        assert_equal_to_rounding(found, next_token_logits(tiny, PROMPTS), terms=forward_terms(tiny))

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_that_are_the_rows_of_the_tokens_change_nothing(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        assert_same_bits(tiny.embedding_table, tiny.hooked.W_E)
        table = tiny.embedding_table
        same = SoftTokens(PLACES, tuple(table[row[places]] for row, places in zip(ROWS, PLACES, strict=True)))
        found = next_token_logits(tiny, ReceiverInput(PROMPTS, soft=same))
        assert_same_bits(found, next_token_logits(tiny, PROMPTS))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_ids_in_their_places_do_not_matter(self, backend: str) -> None:
        tiny, other = model("gpt2", backend), [row.clone() for row in ROWS]
        for row, places in zip(other, PLACES, strict=True):
            row[places] = 9
        given = [ReceiverInput(Prompts.from_ids(rows), soft=SOFT) for rows in (ROWS, other)]
        assert_same_bits(*(next_token_logits(tiny, each) for each in given))
        plain = [next_token_logits(tiny, each.prompts) for each in given]
        assert not equal_to_rounding(*plain, terms=forward_terms(tiny))

    def test_a_graft_comes_on_top_of_them(self) -> None:
        tiny, message = model("llama"), states(4, 32, seed=3)
        graft = Graft(Site(1), LAST, message, Mean())
        both = next_token_logits(tiny, ReceiverInput(PROMPTS, (graft,), SOFT))
        for row in range(len(ROWS)):
            hooks = graft.select([row]).fwd_hooks()

            def write(value: Tensor, hook: object, row: int = row) -> Tensor:
                value = value.clone()
                value[0, PLACES[row]] = VECTORS[row]
                return value

            by_hand = tiny.forward(ROWS[row][None], hooks=[("hook_embed", write), *hooks])[0, -1]
            assert_equal_to_rounding(both[row], by_hand, terms=forward_terms(tiny))
        assert not torch.allclose(both, next_token_logits(tiny, ReceiverInput(PROMPTS, soft=SOFT)), atol=1e-3)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_let_gradients_through(self, architecture: str) -> None:
        raw, fired, gradients = transformers_model(architecture), [0], []
        for ours in (True, False):
            vectors = VECTORS[0].clone().requires_grad_()
            if ours:
                soft = SoftTokens((PLACES[0],), (vectors,))
                logits = build(architecture).forward(ROWS[0][None], hooks=[soft.hook(fired)], with_grad=True)
            else:
                entering = embeddings(raw, ROWS[0]).index_put((PLACES[0],), vectors)
                logits = raw(inputs_embeds=entering[None], use_cache=False).logits
            logits[0, -1].square().sum().backward()
            gradients.append(vectors.grad)
        assert fired == [1] and gradients[0].abs().max() > 0.1
        assert_equal_to_rounding(*gradients, terms=forward_terms(model(architecture), n_forward=2))

    def test_that_cannot_be_written_are_refused(self) -> None:
        with pytest.raises(ValueError, match="prompt 1 has 1 positions for 2 soft tokens"):
            SoftTokens(PLACES[:2], (VECTORS[0], VECTORS[0]))
        with pytest.raises(ValueError, match="the soft tokens of prompt 0 are not finite"):
            SoftTokens(PLACES[:1], (VECTORS[0] * torch.inf,))
        with pytest.raises(ValueError, match="positions are of 4 prompts and vectors of 3; give both of each"):
            SoftTokens(PLACES, VECTORS[:3])
        with pytest.raises(ValueError, match="positions of prompt 0 are negative; count from its first token"):
            SoftTokens((torch.tensor([-1]),), (states(1, 32),))
        outside = SoftTokens((torch.tensor([6]),), (states(1, 32),))
        with pytest.raises(ValueError, match="soft has a token at position 6 of prompt 0, which has 6 tokens"):
            ReceiverInput(PROMPTS.select([0]), soft=outside)
        ReceiverInput(PROMPTS.select([0]), soft=replace(outside, positions=(torch.tensor([5]),)))


def past_of(tiny: Model, rows: Sequence[Tensor]) -> Past:
    """What a model keeps of having read some rows."""
    kept = []
    for row in rows:
        cache = tiny.new_cache(1)
        tiny.forward(row[None], cache=cache)
        kept.append(tiny.cache_layers(cache))
    return Past(tuple(kept), tuple(len(row) for row in rows))


class TestPasts:
    BEFORE = ids(2, 5, 2, 4, seed=9)

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_ones_own_keys_and_values_are_the_concatenated_prompt(self, architecture: str, backend: str) -> None:
        tiny, raw = model(architecture, backend), transformers_model(architecture)
        given = ReceiverInput(PROMPTS, past=past_of(tiny, self.BEFORE))
        assert given.lengths.tolist() == [8, 8, 8, 5]
        assert given.groups_of_equal_length() == [[0, 2], [1], [3]]  # one length together, but not one past
        found = decode(tiny, given, max_new_tokens=STEPS)
        for row in range(len(ROWS)):
            whole = torch.cat([self.BEFORE[row], ROWS[row]])
            first, said = hf_greedy(raw, embeddings(raw, whole), STEPS)
            assert agree(tiny, found.first_logits[row], first)
            assert found.ids[row] == said
        assert not torch.allclose(found.first_logits, next_token_logits(tiny, PROMPTS), atol=1e-3)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_are_not_written_to_and_go_with_their_rows(self, backend: str) -> None:
        tiny = model("qwen2", backend)
        past = past_of(tiny, self.BEFORE)
        before = [[tensor.clone() for layer in row for tensor in layer] for row in past.layers]
        given = ReceiverInput(PROMPTS, past=past)
        first = decode(tiny, given, max_new_tokens=STEPS)
        again = decode(tiny, given.select([2, 1]), max_new_tokens=STEPS)
        assert [first.ids[2], first.ids[1]] == again.ids
        after = [[tensor for layer in row for tensor in layer] for row in past.layers]
        assert all(same_bits(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_stand_before_soft_tokens_and_grafts(self, backend: str) -> None:
        tiny, raw = model("llama", backend), transformers_model("llama")
        found = next_token_logits(tiny, ReceiverInput(PROMPTS, soft=SOFT, past=past_of(tiny, self.BEFORE)))
        for row in range(len(ROWS)):
            entering = torch.cat([embeddings(raw, self.BEFORE[row]), written(raw, row)])
            assert agree(tiny, found[row], hf_greedy(raw, entering, 1)[0])

    def test_and_a_reply_beyond_the_context_are_refused(self) -> None:
        tiny = model("llama")
        given = ReceiverInput(PROMPTS.select([0]), past=past_of(tiny, ids(30)))
        decode(tiny, given, max_new_tokens=5)
        with pytest.raises(ValueError, match="36 prompt tokens and 6 new ones exceed the 40"):
            decode(tiny, given, max_new_tokens=6)


@dataclass(frozen=True, eq=False)
class Bias:
    """Adds a vector of each row to the state after a layer, at every position of every pass."""

    vectors: Tensor
    seen: list[tuple[int, ...]]

    def select(self, rows: Sequence[int]) -> "Bias":
        return Bias(self.vectors[list(rows)], self.seen)

    def __len__(self) -> int:
        return len(self.vectors)

    def fwd_hooks(self) -> list[Hook]:
        def add(value: Tensor, hook: object) -> Tensor:
            self.seen.append(tuple(value.shape[:2]))
            return value + self.vectors[:, None]

        return [("blocks.1.hook_resid_post", add)]


class TestStandingHooks:
    VECTORS = states(4, 32, seed=7)

    def test_keep_their_protocol(self) -> None:
        assert isinstance(Bias(self.VECTORS, []), PersistentHooks)

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_act_on_the_prompt_and_on_every_token_of_the_reply(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        found = decode(tiny, ReceiverInput(PROMPTS, persistent=(Bias(self.VECTORS, []),)), max_new_tokens=STEPS)
        for row in range(len(ROWS)):
            said, first = ROWS[row].tolist(), None
            for _ in range(STEPS):  # everything is read again, without a cache, under the hook
                hooks = Bias(self.VECTORS[row : row + 1], []).fwd_hooks()
                logits = tiny.forward(torch.tensor([said]), hooks=hooks)[0, -1]
                first = logits if first is None else first
                if int(logits.argmax()) in tiny.stop_ids:
                    break
                said.append(int(logits.argmax()))
            assert first is not None
            assert_equal_to_rounding(found.first_logits[row], first, terms=forward_terms(tiny))
            assert found.ids[row] == said[len(ROWS[row]) :]
        assert not torch.allclose(found.first_logits, next_token_logits(tiny, PROMPTS), atol=1e-3)

    def test_are_there_in_every_pass_with_the_rows_that_run(self) -> None:
        tiny, bias = build("llama"), Bias(self.VECTORS, [])
        tiny.__dict__["stop_ids"] = frozenset()
        decode(tiny, ReceiverInput(PROMPTS, persistent=(bias,)), max_new_tokens=3)
        assert bias.seen == [(2, 6), (2, 1), (2, 1), (1, 3), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]

    def test_leave_equal_prompts_unshared(self) -> None:
        tiny, bias = model("llama"), Bias(self.VECTORS[:3], [])
        same = Prompts.from_ids([ROWS[0]] * 3)
        found = next_token_logits(tiny, ReceiverInput(same, persistent=(bias,)))
        assert bias.seen == [(3, 6)]
        for row in range(3):
            alone = next_token_logits(tiny, ReceiverInput(same.select([0]), persistent=(bias.select([row]),)))
            assert_equal_to_rounding(alone[0], found[row], terms=forward_terms(tiny))


class TestOneRowAPrompt:
    """Anything else was cut to the prompts there are, or failed as an index deep inside a pass."""

    @pytest.mark.parametrize("n", [1, 3, 5])
    @pytest.mark.parametrize("kind", ["graft", "positions", "soft", "past", "length", "persistent"])
    def test_other_numbers_of_rows_are_refused_where_it_is_built(self, kind: str, n: int) -> None:
        rows = states(n, 32)
        soft = SoftTokens((torch.tensor([0]),) * n, tuple(rows[:, None]))
        given: dict[str, dict[str, Any]] = {
            "graft": {"grafts": (Graft(Site(0), LAST, rows[0]), Graft(Site(1), LAST, rows))},
            "positions": {"grafts": (Graft(Site(1), torch.zeros(n).long(), rows[0]),)},
            "soft": {"soft": soft},
            "past": {"past": Past(([],) * n, (0,) * 4)},
            "length": {"past": Past(([],) * 4, (0,) * n)},
            "persistent": {"persistent": (Bias(rows, []),)},
        }
        what = {
            "graft": "grafts[1] at blocks.1.hook_resid_post",
            "positions": "the position of grafts[0] at blocks.1.hook_resid_post",
            "length": "the length of past",
            "persistent": "persistent[0] (Bias)",
        }.get(kind, kind)
        if (kind, n) == ("graft", 1):  # one for all
            ReceiverInput(PROMPTS, **given[kind])
            return
        with pytest.raises(
            ValueError, match=re.escape(f"{what} has {n} {'rows' if n > 1 else 'row'} for 4 prompts; give")
        ):
            ReceiverInput(PROMPTS, **given[kind])

    def test_as_many_are_taken(self) -> None:
        rows = states(4, 32)
        grafts = (Graft(Site(1), LAST, rows), Graft(Site(1), PROMPTS.last, rows[0]))
        given = ReceiverInput(PROMPTS, grafts, SOFT, Past(([],) * 4, (0,) * 4), (Bias(rows, []),))
        assert len(given.select([1, 2]).grafts[0].vector) == 2


def test_a_seed_for_each_row_makes_its_reply_independent_of_other_rows() -> None:
    tiny, options = model("llama"), {"max_new_tokens": 8, "temperature": 2.0}
    together = decode(tiny, PROMPTS, seeds=[5, 6, 7, 8], **options)
    alone = [decode(tiny, PROMPTS.select([row]), seeds=[5 + row], **options).ids[0] for row in range(4)]
    assert together.ids == alone
    assert together.ids != decode(tiny, PROMPTS, seeds=[8, 7, 6, 5], **options).ids
    with pytest.raises(ValueError, match="3 seeds for 4 prompts"):
        decode(tiny, PROMPTS, seeds=[1, 2, 3], **options)
