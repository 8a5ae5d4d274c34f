"""What a graft does afterwards, against grafted runs of the whole prompt, one a cell."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from tiny import BACKENDS, EVERY_MODEL, ids, model, states
from torch import Tensor
from toys import WRONG_FUSIONS

from latentcomm.drift import COMBINED, DriftReference, fit_drift_reference
from latentcomm.experiments import effects as effects_module
from latentcomm.experiments.effects import Effects, measure_effects
from latentcomm.fusion import Mean, Replace, RightAligned, Sum, Weighted
from latentcomm.hooks.shared_prefix import can_pack
from latentcomm.models import Model
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

IDS = ids(7, 4, 7, seed=3)
IDS.insert(2, IDS[0])  # two items of one prompt with another between them, and two prompts of one length
PROMPTS = Prompts.from_ids(IDS)
MESSAGES = states(4, 32, seed=5)


def run(receiver: Model, tokens: Tensor, hooks: list[Any]) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits and every layer's state of a plain forward pass under hooks."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> tuple[str, Callable[..., None]]:
        def at(value: Tensor, hook: Any) -> None:
            seen[layer] = value[0].clone()

        return f"blocks.{layer}.hook_resid_post", at

    logits = receiver.forward(tokens[None], hooks=[*hooks, *(keep(layer) for layer in range(receiver.n_layers))])
    return logits[0, -1], seen


def one_by_one(receiver: Model, writes: list[int], fuse: Any, *, position: int = -1) -> list[list[dict[str, Any]]]:
    """The oracle: for each item and write layer a run of the whole prompt with the state overwritten by hand."""
    table = []
    for tokens, message in zip(IDS, MESSAGES, strict=True):
        plain_logits, plain = run(receiver, tokens, [])
        p = plain_logits.softmax(-1)
        row = []
        for write in writes:

            def put(value: Tensor, hook: Any, incoming: Tensor = message) -> Tensor:
                value = value.clone()
                value[0, position] = fuse(value[0, position], incoming.to(value.dtype))
                return value

            logits, grafted = run(receiver, tokens, [(f"blocks.{write}.hook_resid_post", put)])
            q = logits.softmax(-1)
            entropies = [float(scipy.stats.entropy(d.double().numpy())) for d in (q, p)]
            row.append(
                {
                    "kl": float(scipy.stats.entropy(p.double().numpy(), q.double().numpy())),
                    "entropy": entropies[0] - entropies[1],
                    "agrees": bool(p.argmax() == q.argmax()),
                    "states": [grafted[layer][position] for layer in range(write, receiver.n_layers)],
                    "plain": [plain[layer][position] for layer in range(write, receiver.n_layers)],
                }
            )
        table.append(row)
    return table


def assert_same(found: Effects, expected: list[list[dict[str, Any]]], *, atol: float = 1e-11) -> None:
    for item, row in enumerate(expected):
        for column, cell in enumerate(row):
            assert float(found.kl[item, column]) == pytest.approx(cell["kl"], rel=0, abs=atol)
            assert float(found.entropy_change[item, column]) == pytest.approx(cell["entropy"], rel=0, abs=atol)
            assert bool(found.top1_agreement[item, column]) is cell["agrees"]
            write = found.write_layers[column]
            assert found.deviation[item, column, :write].isnan().all()
            pairs = zip(cell["states"], cell["plain"], strict=True)
            off = torch.stack([(after - before).norm() / before.norm() for after, before in pairs])
            torch.testing.assert_close(found.deviation[item, column, write:], off.double(), atol=atol, rtol=0)


@pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
def test_every_effect_is_that_of_a_grafted_run_of_the_whole_prompt(architecture: str, backend: str) -> None:
    receiver = model(architecture, backend)
    found = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Mean())
    assert_same(found, one_by_one(receiver, [0, 1, 2], lambda own, incoming: (own + incoming) / 2))
    assert float(found.kl.min()) > 1e-3
    assert found.growth.shape == (4, 3)
    for write in range(3):
        grown = found.deviation[:, write, 2] / found.deviation[:, write, write]
        assert_same_bits(found.growth[:, write], grown)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_in_the_batch_give_what_packed_rows_give(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = model("llama", backend)
    packed = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Sum(), write_layers=[0, 2])
    assert can_pack(receiver, 6, 1) is (backend == "bridge")
    monkeypatch.setattr(effects_module, "can_pack", lambda *given: False)
    batched = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Sum(), write_layers=[0, 2])
    assert_equal_to_rounding(packed.kl, batched.kl, terms=forward_terms(receiver))
    assert_equal_to_rounding(packed.deviation, batched.deviation, terms=forward_terms(receiver))


def test_a_write_before_the_last_token_is_seen_where_it_was_written() -> None:
    receiver = model("llama")
    found = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Replace(), write_layers=[1], write_position=-3)
    assert_same(found, one_by_one(receiver, [1], lambda own, incoming: incoming, position=-3))
    at_last = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Replace(), write_layers=[1])
    assert (found.kl - at_last.kl).abs().min() > 1e-4


def test_each_write_layer_may_have_its_own_messages() -> None:
    receiver = model("llama")
    own = {0: MESSAGES, 2: states(4, 32, seed=8)}
    found = measure_effects(receiver, PROMPTS, own, fusion=Replace(), write_layers=[0, 2])
    for column, layer in enumerate((0, 2)):
        alone = measure_effects(receiver, PROMPTS, own[layer], fusion=Replace(), write_layers=[layer])
        assert_equal_to_rounding(found.kl[:, column], alone.kl[:, 0], terms=forward_terms(receiver))


def test_a_graft_that_changes_nothing_has_no_effect() -> None:
    receiver = model("llama")
    found = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Weighted(0.0))
    assert found.kl.abs().max() < 1e-12
    assert found.entropy_change.abs().max() < 1e-12
    assert found.top1_agreement.all()
    deviation = found.deviation[~found.deviation.isnan()]
    assert_equal_to_rounding(deviation, torch.zeros_like(deviation), terms=forward_terms(receiver), scale=1)
    assert found.growth.isnan().all()
    assert measure_effects(receiver, PROMPTS, MESSAGES, fusion=Weighted(0.1)).kl.min() > 1e-8


def test_many_items_of_one_prompt_split_into_passes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = model("llama")
    together = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Sum())
    monkeypatch.setattr(effects_module, "columns_per_pass", lambda *given: 1)
    monkeypatch.setattr(effects_module, "UNEMBED_BYTES", 1)
    apart = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Sum())
    assert_equal_to_rounding(together.kl, apart.kl, terms=forward_terms(receiver))
    assert_equal_to_rounding(together.deviation, apart.deviation, terms=forward_terms(receiver))


def test_the_receivers_own_soft_cap_and_dtype_are_kept() -> None:
    capped = model("gemma2")
    assert capped.softcap > 0
    found = measure_effects(capped, PROMPTS, MESSAGES, fusion=Mean())
    assert_same(found, one_by_one(capped, [0, 1, 2], lambda own, incoming: (own + incoming) / 2))
    single = model("llama", dtype=torch.float32)
    found = measure_effects(single, PROMPTS, MESSAGES, fusion=Mean())
    assert found.kl.dtype == torch.float64
    assert_same(found, one_by_one(single, [0, 1, 2], lambda own, incoming: (own + incoming) / 2), atol=1e-4)


# --- drift on the way up ---


def reference_of(layer: int, **options: Any) -> DriftReference:
    """A reference on states that look like those of the tiny model's layer only in their width."""
    return fit_drift_reference(states(150, 32, seed=40 + layer) + 1, site=Site(layer), **options)


def test_the_percentiles_are_those_of_the_states_that_a_grafted_run_has(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = model("llama")
    references = {layer: reference_of(layer, model=receiver.fingerprint) for layer in (1, 2)}
    found = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Mean(), references=references)
    expected = one_by_one(receiver, [0, 1, 2], lambda own, incoming: (own + incoming) / 2)
    for item, row in enumerate(expected):
        for write, cell in enumerate(row):
            for layer in range(max(write, 1), 3):
                asked = torch.stack([cell["states"][layer - write], cell["plain"][layer - write]])
                for name, values in references[layer].percentile(asked).items():
                    assert float(found.percentile[name][item, write, layer]) == pytest.approx(float(values[0]))
                    assert float(found.own_percentile[name][item, layer]) == pytest.approx(float(values[1]))
    monkeypatch.setattr(effects_module, "STATES_BYTES", 0)  # the references are asked after every pass
    apart = measure_effects(receiver, PROMPTS, MESSAGES, fusion=Mean(), references=references)
    for name, values in found.percentile.items():
        torch.testing.assert_close(apart.percentile[name], values, equal_nan=True)
        torch.testing.assert_close(apart.own_percentile[name], found.own_percentile[name], equal_nan=True)
    assert found.percentile[COMBINED][:, 2, :2].isnan().all()
    assert found.percentile[COMBINED][..., 0].isnan().all()  # no reference there
    assert measure_effects(receiver, PROMPTS, MESSAGES, fusion=Mean()).percentile == {}


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({1: reference_of(2)}, r"fitted for Site\(layer=2, .* but the states are of Site\(layer=1"),
        ({1: reference_of(1, model="another")}, "fitted for 'another' but the states are of"),
        ({7: reference_of(7)}, "7"),
    ],
)
def test_a_reference_of_another_layer_or_model_is_refused(references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_effects(model("llama"), PROMPTS, MESSAGES, fusion=Mean(), references=references)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": MESSAGES[:3]}, "3 messages for 4 prompts; give one each"),
        ({"messages": {0: MESSAGES}}, r"there are no messages for the write layers \[1, 2\]"),
        ({"write_layers": []}, r"write layers \[\] must be at least one"),
        ({"write_layers": [1, 0]}, r"write layers \[1, 0\] must be at least one, each once, ascending"),
        ({"write_layers": [1, 1]}, "each once"),
        ({"write_layers": [9]}, "9"),
        ({"write_position": -5}, "write position -5 is outside prompt 1, which has 4 tokens"),
        ({"messages": MESSAGES[:, :8]}, "own is 32 wide but incoming 8"),
        ({"messages": MESSAGES / 0}, "incoming holds NaN or infinity"),
    ],
)
def test_what_cannot_be_grafted_is_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    given = {"messages": MESSAGES, "fusion": Mean()} | options
    with pytest.raises(ValueError, match=message):
        measure_effects(model("llama"), PROMPTS, given.pop("messages"), **given)


@pytest.mark.parametrize(("wrong", "message"), WRONG_FUSIONS.values(), ids=WRONG_FUSIONS)
def test_a_fusion_that_returns_no_states_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        measure_effects(model("llama"), PROMPTS, MESSAGES, fusion=wrong)


def test_a_narrower_sender_is_grafted_where_the_fusion_says() -> None:
    narrow = MESSAGES[:, :8]
    found = measure_effects(model("llama"), PROMPTS, narrow, fusion=RightAligned(Replace()), write_layers=[1])
    padded = lambda own, incoming: torch.cat((own[:24], incoming[:8]))  # noqa: E731
    assert_same(found, one_by_one(model("llama"), [1], padded))
