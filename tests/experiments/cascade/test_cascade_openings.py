"""Openings against greedy writing by hand, each prompt alone, with every signal from the logits of a whole pass."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cascades import LIMIT, greedy, large, of_bytes, prompt_ids, single, small, task
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from tiny import EVERY_MODEL, files_in, hooks_left, model
from toys import interrupted

from latentcomm.channels.kv import swapped
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade import KVHandOff, TextHandOff
from latentcomm.experiments.cascade import generate as module
from latentcomm.experiments.cascade.generate import write_openings
from latentcomm.experiments.cascade.openings import EMBEDDING, characters_of, openings_of
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
    for item, row, part in zip(task().items, openings_of(found), found.parts or (), strict=True):
        ids = prompt_ids(writer, item)
        said, ended = greedy(writer, ids, LIMIT)
        assert (list(row.ids), row.ended, list(row.prompt)) == (said, ended, ids)
        logits = writer.forward(torch.tensor([ids + said]))[0, len(ids) - 1 : -1].double()
        p = logits.softmax(-1)
        best = p.sort(descending=True).values
        assert_equal_to_rounding(row.entropy, -(p * p.log()).sum(-1), terms=terms)
        assert_equal_to_rounding(row.margin, best[:, 0] - best[:, 1], terms=terms)
        seen = capture(writer, Prompts.from_ids([ids + said]), [Site(0), Site(2)])
        for layer in (0, 2):
            wanted = seen.values[Site(layer)][0, len(ids) :]
            assert_equal_to_rounding(part[f"states.{layer}"], wanted, terms=terms)
    assert hooks_left(writer) == 0


def test_the_texts_are_those_of_generate_and_some_openings_end_early() -> None:
    endings = []
    for seed in range(4):
        writer = model("llama", seed=seed)
        found = write_openings(writer, task())
        prompts = encode(writer, [item.receiver for item in task().items])
        rows = openings_of(found)
        assert [writer.decode(row.ids) for row in rows] == generate(writer, prompts, max_new_tokens=LIMIT)
        endings += [row.ended for row in rows]
    assert True in endings
    assert False in endings


@pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
def test_keys_and_values_are_those_of_one_pass_over_prompt_and_opening(architecture: str, backend: str) -> None:
    writer = model(architecture, backend)
    terms = forward_terms(writer, n_forward=LIMIT)
    found = write_openings(writer, task(3), keep_cache=True)
    message = KVHandOff().content(found)
    entered = KVHandOff().enter(writer, task(3), message, [2] * 3).given
    assert entered.past is not None
    assert entered.past.length == tuple(len(prompt_ids(writer, item)) + 1 for item in task(3).items)
    for item, row, part in zip(task(3).items, openings_of(found), message.parts or (), strict=True):
        ids = [*prompt_ids(writer, item), *row.ids]
        cache = writer.new_cache(1)
        writer.forward(torch.tensor([ids[: max(len(ids) - 1, len(row.prompt))]]), cache=cache)
        for layer, (keys, values) in enumerate(writer.cache_layers(cache)):
            assert_equal_to_rounding(part["keys"][layer], swapped(writer, keys)[0], terms=terms)
            assert_equal_to_rounding(part["values"][layer], swapped(writer, values)[0], terms=terms)


def test_the_embedding_is_a_layer_that_can_be_kept() -> None:
    writer = large()
    (part,) = write_openings(writer, task(1), layers=(EMBEDDING,)).parts or ()
    assert_same_bits(part["states.-1"], writer.embedding_table[part["ids"]])


def test_a_longer_opening_begins_as_a_shorter_one() -> None:
    whole, early = write_openings(large(), task()), write_openings(large(), task(), longest=4)
    for long, short in zip(openings_of(whole), openings_of(early), strict=True):
        assert long.cut(4).ids == short.ids
        assert_same_bits(long.cut(4).entropy, short.entropy)
        assert long.text_at(4) == short.text_at(4)


def test_a_character_of_several_tokens_comes_with_its_last_one() -> None:
    reader = of_bytes()
    ids = reader.tokenizer("Café 日本 ok", add_special_tokens=False).input_ids
    text, ends, whole = characters_of(reader, ids)
    assert text == "Café 日本 ok"
    held = [len(text[:end].encode()) for end in ends.tolist()]
    read = [len(b"".join(_bytes(reader, token) for token in ids[:n])) for n in range(1, len(ids) + 1)]
    assert whole.tolist() == [mine == theirs for mine, theirs in zip(held, read, strict=True)]
    assert not all(whole)
    assert all(mine <= theirs < mine + 4 for mine, theirs in zip(held, read, strict=True))


def _bytes(reader: Model, token: int) -> bytes:
    """The bytes of a byte-level token: a letter a byte."""
    return b"?" * len(reader.tokenizer.convert_ids_to_tokens(token))


def test_openings_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    found = write_openings(large(), task(3), layers=(1,), keep_cache=True)
    found.save(tmp_path / "openings.safetensors")
    again = Message.load(tmp_path / "openings.safetensors")
    assert (again.texts, again.made_by, again.origin) == (found.texts, found.made_by, found.origin)
    for mine, theirs in zip(openings_of(again), openings_of(found), strict=True):
        assert (mine.ids, mine.ended, mine.prompt, mine.token_texts) == (
            theirs.ids, theirs.ended, theirs.prompt, theirs.token_texts,
        )  # fmt: skip
        assert "".join(mine.token_texts) == mine.text
    for mine, theirs in zip(again.parts or (), found.parts or (), strict=True):
        assert list(mine) == list(theirs)
        for name, tensor in theirs.items():
            assert_same_bits(mine[name], tensor)
    with pytest.raises(ValueError, match="a message of by hand holds no opening"):
        openings_of(Message(None, "by hand", texts=("Petra",)))
    with pytest.raises(ValueError, match="has no entropy, margin, prompt; give that of write_openings"):
        openings_of(TextHandOff().content(found))


def test_what_was_written_before_a_stop_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ITEMS_AT_ONCE", 2)
    whole = write_openings(large(), task(5), layers=(1,))
    writes = interrupted(monkeypatch, module, "_write", at=3)
    with pytest.raises(KeyboardInterrupt):
        write_openings(large(), task(5), layers=(1,), checkpoint=tmp_path)
    assert len(files_in(tmp_path)) == 3  # two parts and their folder
    again = write_openings(large(), task(5), layers=(1,), checkpoint=tmp_path)
    assert writes.calls == 3
    for mine, theirs in zip(again.parts or (), whole.parts or (), strict=True):
        assert_same_bits(mine["ids"], theirs["ids"])
        assert_same_bits(mine["states.1"], theirs["states.1"])
    write_openings(small(), task(5), layers=(1,), checkpoint=tmp_path)
    assert writes.calls == 6  # another model's are others


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="longest is 0; let the large model write at least 1 token"):
        write_openings(large(), task(), longest=0)
    with pytest.raises(ValueError, match="layer 7 is outside"):
        write_openings(large(), task(), layers=(7,))
    with pytest.raises(ValueError, match=r"and an opening of 35 exceed the 40 of tiny-llama; lower longest or"):
        write_openings(large(), task(), longest=35)
    item = replace(task().items[0], receiver="Alice")
    assert len(openings_of(write_openings(large(), single(item), longest=39))[0]) <= 39
