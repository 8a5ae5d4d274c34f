"""What is seen along the openings, token by token, against one pass by hand."""

import math

import pytest
import torch
from cascades import large, of_bytes, prompt_ids, small, task
from tiny import states

from latentcomm.alignment import AffineMap
from latentcomm.drift import fit_drift_reference
from latentcomm.experiments.cascade import KVHandOff, LatentHandOff, TextHandOff, write_openings
from latentcomm.experiments.cascade.signals import token_signals
from latentcomm.models import Model


def log_p(model: Model, ids: list[int], n_prompt: int) -> torch.Tensor:
    """Of every token behind the prompt, under one plain pass."""
    logits = model.forward(torch.tensor([ids]))[0].double().log_softmax(-1)
    return torch.stack([logits[at - 1, ids[at]] for at in range(n_prompt, len(ids))])


def test_certainty_is_the_large_models_and_surprise_the_small_ones() -> None:
    openings, reader = write_openings(large(), task()), small()
    table = token_signals(openings, reader, task(), {"text": TextHandOff()})
    assert len(table) == sum(map(len, openings.rows))
    for item, row in zip(task().items, openings.rows, strict=True):
        part = table[table["item"] == item.id]
        assert list(part["token"]) == list(range(1, len(row) + 1))
        assert "".join(part["piece"]) == row.text(len(row))
        assert list(part["entropy"]) == row.entropy.tolist() and list(part["margin"]) == row.margin.tolist()
        ids = prompt_ids(reader, item)
        assert list(part["surprise"]) == pytest.approx((-log_p(reader, [*ids, *row.ids], len(ids))).tolist(), rel=1e-4)


def test_between_two_tokenizers_surprise_is_given_where_both_tokens_end() -> None:
    openings, reader = write_openings(large(), task()), of_bytes()
    table = token_signals(openings, reader, task(), {"text": TextHandOff()})
    some_are_missing = False
    for item, row in zip(task().items, openings.rows, strict=True):
        part = table[table["item"] == item.id]["surprise"]
        ids = prompt_ids(reader, item)
        told = reader.tokenizer(row.text(len(row)), add_special_tokens=False).input_ids
        along = -log_p(reader, [*ids, *told], len(ids))
        texts = [reader.tokenizer.decode(told[: n + 1]) for n in range(len(told))]
        for token, value in enumerate(part, 1):
            if math.isnan(value):
                some_are_missing = True
                continue
            read = texts.index(row.text(token))
            upto = float(part.iloc[:token].sum(skipna=True))
            assert upto == pytest.approx(float(along[: read + 1].sum()), rel=1e-4)
    assert some_are_missing


def test_drift_is_that_of_every_mapped_state_of_latent_hand_offs_alone() -> None:
    mapped = AffineMap(0.3 * states(16, 32), states(16, seed=1))
    reference = fit_drift_reference(mapped(3 * states(400, 32, seed=4)).float(), seed=0)
    soft = LatentHandOff(1, alignment=mapped, reference=reference)
    openings = write_openings(large(), task(), layers=(1,))
    hand_offs = {"soft": soft, "plain": LatentHandOff(1, alignment=mapped), "kv": KVHandOff()}
    table = token_signals(openings, of_bytes(), task(), hand_offs)
    assert set(table.columns) - {"item", "token", "piece", "entropy", "margin", "surprise"} == {"drift_soft"}
    assert table["surprise"].isna().all()
    for name, row in zip(openings.items, openings.rows, strict=True):
        expected = reference.percentile(mapped(row.states[1]))["combined"]
        found = torch.tensor(list(table[table["item"] == name]["drift_soft"]), dtype=expected.dtype)
        torch.testing.assert_close(found, expected)
    assert table["drift_soft"].nunique() > 1
