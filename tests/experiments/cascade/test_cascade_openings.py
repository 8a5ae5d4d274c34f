"""Openings against greedy writing by hand, each prompt alone, with every signal from the logits of a whole pass."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cascades import LIMIT, greedy, large, of_bytes, prompt_ids, single, small, task
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from tiny import EVERY_MODEL, files_in, hooks_left, model
from toys import Counter

from latentcomm.channels.kv import swapped
from latentcomm.experiments.cascade import generate as module
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.cascade.openings import EMBEDDING, Openings, pieces_of
from latentcomm.hooks.capture import capture
from latentcomm.hooks.decode import generate
from latentcomm.models import Model, encode
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site


@pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
def test_an_opening_is_the_models_own_text_with_every_tokens_signals(architecture: str, backend: str) -> None:
    writer = model(architecture, backend)
    terms = forward_terms(writer, n_forward=LIMIT)
    found = write_openings(writer, task(), layers=(0, 2))
    for item, row in zip(task().items, found.rows, strict=True):
        ids = prompt_ids(writer, item)
        said, ended = greedy(writer, ids, LIMIT)
        assert (list(row.ids), row.ended, row.n_prompt) == (said, ended, len(ids))
        logits = writer.forward(torch.tensor([ids + said]))[0, len(ids) - 1 : -1].double()
        p = logits.softmax(-1)
        best = p.sort(descending=True).values
        assert_equal_to_rounding(row.entropy, -(p * p.log()).sum(-1), terms=terms)
        assert_equal_to_rounding(row.margin, best[:, 0] - best[:, 1], terms=terms)
        seen = capture(writer, Prompts.from_ids([ids + said]), [Site(0), Site(2)])
        for layer in (0, 2):
            wanted = seen.values[Site(layer)][0, len(ids) :]
            assert_equal_to_rounding(row.states[layer], wanted, terms=terms)
    assert hooks_left(writer) == 0


def test_the_texts_are_those_of_generate_and_some_openings_end_early() -> None:
    endings = []
    for seed in range(4):
        writer = model("llama", seed=seed)
        found = write_openings(writer, task())
        prompts = encode(writer, [item.receiver for item in task().items])
        assert [row.written for row in found.rows] == generate(writer, prompts, max_new_tokens=LIMIT)
        endings += [row.ended for row in found.rows]
    assert True in endings
    assert False in endings


@pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
def test_keys_and_values_are_those_of_one_pass_over_prompt_and_opening(architecture: str, backend: str) -> None:
    writer = model(architecture, backend)
    terms = forward_terms(writer, n_forward=LIMIT)
    found = write_openings(writer, task(3), keep_cache=True)
    for item, row in zip(task(3).items, found.rows, strict=True):
        ids = [*prompt_ids(writer, item), *row.ids]
        cache = writer.new_cache(1)
        writer.forward(torch.tensor([ids[: max(len(ids) - 1, row.n_prompt)]]), cache=cache)
        assert row.cache is not None
        for layer, (keys, values) in enumerate(writer.cache_layers(cache)):
            assert_equal_to_rounding(row.cache[0][layer], swapped(writer, keys)[0], terms=terms)
            assert_equal_to_rounding(row.cache[1][layer], swapped(writer, values)[0], terms=terms)
        early = row.cut(2)
        assert early.cache is not None
        assert early.cache[0].shape[2] == row.n_prompt + 1


def test_the_embedding_is_a_layer_that_can_be_kept() -> None:
    writer = large()
    row = write_openings(writer, task(1), layers=(EMBEDDING,)).rows[0]
    assert_same_bits(row.states[EMBEDDING], writer.embedding_table[list(row.ids)])


def test_a_longer_opening_begins_as_a_shorter_one() -> None:
    whole, early = write_openings(large(), task()), write_openings(large(), task(), longest=4)
    for long, short in zip(whole.rows, early.rows, strict=True):
        assert long.cut(4).ids == short.ids
        assert_same_bits(long.cut(4).entropy, short.entropy)
        assert long.text(4) == short.text(4)


def test_a_character_of_several_tokens_comes_with_its_last_one() -> None:
    reader = of_bytes()
    ids = reader.tokenizer("Café 日本 ok", add_special_tokens=False).input_ids
    pieces, whole = pieces_of(reader, ids)
    assert "".join(pieces) == "Café 日本 ok"
    held = [len("".join(pieces[:n]).encode()) for n in range(1, len(ids) + 1)]
    read = [len(b"".join(_bytes(reader, token) for token in ids[:n])) for n in range(1, len(ids) + 1)]
    assert list(whole) == [mine == theirs for mine, theirs in zip(held, read, strict=True)]
    assert not all(whole)
    assert all(mine <= theirs < mine + 4 for mine, theirs in zip(held, read, strict=True))


def _bytes(reader: Model, token: int) -> bytes:
    """The bytes of a byte-level token: a letter a byte."""
    return b"?" * len(reader.tokenizer.convert_ids_to_tokens(token))


def test_openings_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    found = write_openings(large(), task(3), layers=(1,), keep_cache=True)
    found.save(tmp_path / "openings.safetensors")
    again = Openings.load(tmp_path / "openings.safetensors")
    assert (again.items, again.longest, again.large, again.vocabulary) == (
        found.items, found.longest, found.large, found.vocabulary,
    )  # fmt: skip
    for mine, theirs in zip(again.rows, found.rows, strict=True):
        assert (mine.ids, mine.ended, mine.n_prompt, mine.pieces, mine.whole, mine.written) == (
            theirs.ids, theirs.ended, theirs.n_prompt, theirs.pieces, theirs.whole, theirs.written,
        )  # fmt: skip
        assert_same_bits(mine.entropy, theirs.entropy)
        assert_same_bits(mine.states[1], theirs.states[1])
        assert mine.cache is not None
        assert theirs.cache is not None
        assert_same_bits(mine.cache[1], theirs.cache[1])
    assert found.select([2, 0]).items == (found.items[2], found.items[0])
    torch.save({}, tmp_path / "other.pt")
    large_file = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, large_file)
    with pytest.raises(ValueError, match="give a file of Openings"):
        Openings.load(large_file)


def test_what_was_written_before_a_stop_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ITEMS_AT_ONCE", 2)
    whole = write_openings(large(), task(5), layers=(1,))
    counter = Counter(module._write)
    monkeypatch.setattr(module, "_write", counter)

    def interrupted(*given: object) -> object:
        if counter.calls == 2:
            raise KeyboardInterrupt
        return counter(*given)

    monkeypatch.setattr(module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_openings(large(), task(5), layers=(1,), checkpoint=tmp_path)
    assert len(files_in(tmp_path)) == 3  # two parts and their folder
    monkeypatch.setattr(module, "_write", counter)
    counter.calls = 0
    again = write_openings(large(), task(5), layers=(1,), checkpoint=tmp_path)
    assert counter.calls == 1
    for mine, theirs in zip(again.rows, whole.rows, strict=True):
        assert mine.ids == theirs.ids
        assert_same_bits(mine.states[1], theirs.states[1])
    write_openings(small(), task(5), layers=(1,), checkpoint=tmp_path)
    assert counter.calls == 4  # another model's are others


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="longest is 0; let the large model write at least 1 token"):
        write_openings(large(), task(), longest=0)
    with pytest.raises(ValueError, match="layer 7 is outside"):
        write_openings(large(), task(), layers=(7,))
    with pytest.raises(ValueError, match=r"and an opening of 35 exceed the 40 of tiny-llama; lower longest or"):
        write_openings(large(), task(), longest=35)
    item = replace(task().items[0], receiver="Alice")
    assert len(write_openings(large(), single(item), longest=39).rows[0]) <= 39
