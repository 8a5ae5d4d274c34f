"""Hand-offs against the small model run by hand on what it should read, and against one model that goes on."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
from cascades import LIMIT, continued, greedy, large, of_bytes, opened_by, prompt_ids, single, small, task
from tiny import EVERY_MODEL, model, states

from latentcomm.alignment import AffineMap
from latentcomm.channels.base import Channel, Deciding
from latentcomm.experiments.cascade import KVHandOff, LatentHandOff, TextHandOff, write_openings
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.openings import EMBEDDING, openings_of
from latentcomm.experiments.cascade.resume import ReadPrefix, after_prefixes, continue_rows
from latentcomm.fusion import Mean, Replace, Sum
from latentcomm.hooks.decode import EMBEDDED
from latentcomm.models.sites import Site


def written(vectors: dict[int, torch.Tensor], fusion: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A hook that fuses vectors into places of the one row, whatever else it holds."""

    def write(value: torch.Tensor, hook: object) -> torch.Tensor:
        value = value.clone()
        for at, vector in vectors.items():
            value[0, at] = fusion(value[0, at], vector)
        return value

    return write


class TestOneModelWithItself:
    """The opening and what is written behind it are what the model writes alone."""

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    @pytest.mark.parametrize(
        "hand_off",
        [TextHandOff(), KVHandOff(), LatentHandOff(1, 1), LatentHandOff(EMBEDDING)],
        ids=lambda one: one.name,
    )
    def test_every_hand_off_says_what_the_model_says_alone_at_every_n(
        self, architecture: str, backend: str, hand_off: HandOff
    ) -> None:
        alone = opened_by(model(architecture, backend))
        reader = model(architecture, backend)
        for row, each in zip(openings_of(alone), continued(hand_off, reader, alone), strict=True):
            assert [one.reply for one in each] == [reader.decode(row.ids)] * len(each)
            assert [one.ids for one in each] == [row.ids[one.n :] for one in each]
            assert {one.ended for one in each} <= {row.ended}

    def test_another_models_states_say_something_else(self) -> None:
        """The contrast: what is equal above is so because of what is handed over."""
        alone = opened_by(large())
        parts = [
            {
                name: 3 * states(*kept.shape, seed=int(name.partition(".")[2]) + 2)
                if name.startswith("states")
                else kept
                for name, kept in part.items()
            }
            for part in alone.parts or ()
        ]
        wrong = replace(alone, parts=tuple(parts))
        for hand_off in (LatentHandOff(1, 1), LatentHandOff(EMBEDDING), LatentHandOff(0, 2)):
            said = [one.reply for each in continued(hand_off, large(), wrong, (3,)) for one in each]
            assert said != [large().decode(row.ids) for row in openings_of(alone) if len(row) >= 3]


class TestByHand:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_text_is_the_prompt_and_the_opening_read_by_the_small_model(self, architecture: str, backend: str) -> None:
        openings, reader = opened_by(large(architecture, backend)), small(architecture, backend)
        for item, row, each in zip(
            task().items, openings_of(openings), continued(TextHandOff(), reader, openings), strict=True
        ):
            for one in each:
                said, ended = greedy(reader, [*prompt_ids(reader, item), *row.ids[: one.n]], LIMIT - one.n)
                assert (list(one.ids), one.ended) == (said, ended)
                assert one.reply == reader.decode([*row.ids[: one.n], *said])

    def test_text_in_another_vocabulary_is_tokenized_after_the_prompts(self) -> None:
        openings, reader = opened_by(large()), of_bytes()
        found = continued(TextHandOff(), reader, openings)
        for item, row, each in zip(task().items, openings_of(openings), found, strict=True):
            for one in each:
                told = reader.tokenizer(row.text_at(one.n), add_special_tokens=False).input_ids
                said, ended = greedy(reader, [*prompt_ids(reader, item), *told], LIMIT - one.n)
                assert (list(one.ids), one.ended) == (said, ended)
                assert one.reply.startswith(row.text_at(one.n))

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_keys_and_values_are_the_large_models_but_for_the_last_token(self, architecture: str, backend: str) -> None:
        writer, reader = large(architecture, backend), small(architecture, backend)
        openings = opened_by(writer)
        for item, row, each in zip(
            task().items, openings_of(openings), continued(KVHandOff(), reader, openings), strict=True
        ):
            for one in each:
                ids = [*prompt_ids(writer, item), *row.ids[: one.n]]
                cache = writer.new_cache(1)
                writer.forward(torch.tensor([ids[:-1]]), cache=cache)
                said = [int(reader.forward(torch.tensor([ids[-1:]]), cache=cache)[0, -1].argmax())]
                while said[-1] not in reader.stop_ids and len(said) < LIMIT - one.n:
                    said.append(int(reader.forward(torch.tensor([said[-1:]]), cache=cache)[0, -1].argmax()))
                assert list(one.ids) == [token for token in said if token not in reader.stop_ids]
                assert (one.n_prompt, one.n_past) == (1, len(ids) - 1)

    @pytest.mark.parametrize("read", [EMBEDDING, 0, 2])
    def test_soft_tokens_are_the_mapped_states_behind_the_prompt(self, read: int) -> None:
        writer, reader = large(), of_bytes()
        mapped = AffineMap(0.3 * states(16, 32), states(16, seed=1))
        openings = opened_by(writer)
        found = continued(LatentHandOff(read, alignment=mapped), reader, openings)
        for item, row, part, each in zip(task().items, openings_of(openings), openings.parts or (), found, strict=True):
            for one in each:
                ids = prompt_ids(reader, item)
                vectors = mapped(part[f"states.{read}"][: one.n])
                write = written({len(ids) + at: vector for at, vector in enumerate(vectors)}, Replace())
                said: list[int] = []
                while len(said) < LIMIT - one.n:
                    tokens = torch.tensor([[*ids, *[0] * one.n, *said]])
                    token = int(reader.forward(tokens, hooks=[(EMBEDDED, write)])[0, -1].argmax())
                    if token in reader.stop_ids:
                        break
                    said.append(token)
                assert list(one.ids) == said
                assert one.reply == row.text_at(one.n) + reader.decode(said)
                assert one.multiply_adds == one.n * 16 * 32

    @pytest.mark.parametrize("fusion", [Sum(), Mean()])
    def test_a_graft_is_fused_where_tokens_of_both_end_at_one_character(self, fusion: Sum | Mean) -> None:
        writer, reader = large(), of_bytes()
        mapped = AffineMap(0.3 * states(16, 32), states(16, seed=1))
        openings = opened_by(writer)
        found = continued(LatentHandOff(2, 1, mapped, fusion), reader, openings, (2, 6))
        n_places = []
        for item, row, part, each in zip(task().items, openings_of(openings), openings.parts or (), found, strict=True):
            for one in each:
                ids, text = prompt_ids(reader, item), row.text_at(one.n)
                told = reader.tokenizer(text, add_special_tokens=False).input_ids
                ends = {len(reader.tokenizer.decode(told[: n + 1])): n for n in range(len(told))}
                places = {
                    len(row.text_at(n + 1)): n
                    for n in range(one.n)
                    if row.token_texts[n] and len(row.text_at(n + 1)) in ends
                }
                n_places.append((len(places), len(told)))

                pairs = {len(ids) + ends[end]: mapped(part["states.2"][n]) for end, n in places.items()}
                assert one.multiply_adds == len(pairs) * 16 * 32  # the others need not be mapped
                write = written(pairs, fusion)
                said: list[int] = []
                while len(said) < LIMIT - one.n:
                    tokens = torch.tensor([[*ids, *told, *said]])
                    token = int(reader.forward(tokens, hooks=[(Site(1).hook_name, write)])[0, -1].argmax())
                    if token in reader.stop_ids:
                        break
                    said.append(token)
                assert list(one.ids) == said
        assert any(0 < few < many for few, many in n_places)  # not every token of one ends with one of the other


class TestRefusals:
    def test_unequal_widths_need_an_alignment_and_one_that_fits(self) -> None:
        with pytest.raises(ValueError, match="is 32 wide and tiny-bytes 16, and the hand-off latent has no alignment"):
            LatentHandOff(1).check(large(), of_bytes(), task())
        with pytest.raises(ValueError, match="maps 32 to 32, and tiny-llama and tiny-bytes are 32 and 16 wide"):
            LatentHandOff(1, alignment=AffineMap.identity(32)).check(large(), of_bytes(), task())
        LatentHandOff(1, alignment=AffineMap(states(16, 32), states(16))).check(large(), of_bytes(), task())
        LatentHandOff(1).check(large(), small(), task())

    def test_layers_that_are_none_are_refused(self) -> None:
        with pytest.raises(ValueError, match="read is -2"):
            LatentHandOff(-2)
        with pytest.raises(ValueError, match="write is -1"):
            LatentHandOff(0, -1)
        with pytest.raises(ValueError, match="has nothing to fuse with"):
            LatentHandOff(0, fusion=Sum())
        with pytest.raises(ValueError, match="layer 5 is outside"):
            LatentHandOff(5).check(large(), small(), task())
        with pytest.raises(ValueError, match="layer 5 is outside"):
            LatentHandOff(0, 5).check(large(), small(), task())

    def test_keys_and_values_need_one_layout_vocabulary_and_tokenization(self) -> None:
        with pytest.raises(ValueError, match="has 3 layers and tiny-bytes has 2"):
            KVHandOff().check(large(), of_bytes(), task())
        other = tiny.build("llama", seed=5)
        words = tiny.tokenizer(adds_bos=True)
        bos = replace(other, tokenizer=words)
        with pytest.raises(ValueError, match="cut the prompt of item 'item-0' into different tokens"):
            KVHandOff().check(large(), bos, task())
        KVHandOff().check(large(), small(), task())

    def test_a_tokenizer_that_changes_the_text_is_refused_by_item_and_n(self) -> None:
        writer, reader = of_bytes(), small()
        openings = write_openings(writer, task(2))
        with pytest.raises(ValueError, match=r"does not give the first 4 tokens of the opening of item 'item-0' back"):
            TextHandOff().enter(reader, single(task().items[0]), TextHandOff().content(openings.select([0])), [4])

    def test_what_was_not_kept_is_asked_for(self) -> None:
        openings = write_openings(large(), task(1))
        with pytest.raises(ValueError, match=r"write them with layers=\(1,\)"):
            LatentHandOff(1).content(openings)
        with pytest.raises(ValueError, match="write them with keep_cache=True"):
            KVHandOff().content(openings)

    def test_a_prompt_that_leaves_no_room_is_refused(self) -> None:
        reader = small()
        given = after_prefixes([ReadPrefix.read(reader, [7] * 35)], [[7] * 35])
        assert len(continue_rows(reader, given, [6])[0].ids) <= 6
        with pytest.raises(ValueError, match="35 tokens and 7 more exceed the 40"):
            continue_rows(reader, given, [7])
        with pytest.raises(ValueError, match="give at least 1 a row"):
            continue_rows(reader, given, [0])


def test_every_hand_off_keeps_the_protocol() -> None:
    from latentcomm._core.files import digest

    for hand_off in (TextHandOff(), KVHandOff(), LatentHandOff(1, 1), LatentHandOff(EMBEDDING)):
        assert isinstance(hand_off, HandOff | Channel) and isinstance(hand_off, Deciding)
        assert digest(hand_off) == digest(replace(hand_off))
