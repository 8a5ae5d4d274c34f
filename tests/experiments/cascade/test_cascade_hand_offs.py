"""Hand-offs against the small model run by hand on what it should read, and against one model that goes on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from cascades import LIMIT, greedy, large, of_bytes, prompt_ids, single, small, task
from numerics import assert_equal_to_rounding, forward_terms
from tiny import EVERY_MODEL, model, states

from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.channels.base import Channel, Deciding, receiver_prompts
from latentcomm.channels.message import Message
from latentcomm.experiments.cascade import KVHandOff, LatentHandOff, TextHandOff, fit_hand_off, fitting, write_openings
from latentcomm.experiments.cascade.continuations import Continued, Request, continue_openings
from latentcomm.experiments.cascade.hand_offs import HandOff
from latentcomm.experiments.cascade.openings import EMBEDDING, openings_of
from latentcomm.experiments.cascade.resume import Continuation, ReadPrefix, after_prefixes, continue_rows
from latentcomm.experiments.compare.run import map_tokens
from latentcomm.fusion import Mean, Replace, Sum
from latentcomm.hooks.capture import capture
from latentcomm.hooks.decode import EMBEDDED
from latentcomm.hooks.paired_text import pair_tokens
from latentcomm.models import Model
from latentcomm.models.sites import Site

NS = (1, 2, 3, 6, 9)
EVERYTHING = (0, 1, 2, EMBEDDING)


def opened_by(writer: Model, layers: tuple[int, ...] = EVERYTHING) -> Message:
    return write_openings(writer, task(), layers=layers, keep_cache=True)


def handed(hand_off: HandOff, reader: Model, openings: Message, ns: tuple[int, ...] = NS) -> list[list[Continued]]:
    """The continuations behind the openings' own items, of each every n that its opening has."""
    wanted = [[n for n in ns if n <= len(row)] for row in openings_of(openings)]
    return continue_openings(hand_off, reader, Request(task(), hand_off.content(openings), wanted, None, LIMIT))


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
        for row, each in zip(openings_of(alone), handed(hand_off, reader, alone), strict=True):
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
            said = [one.reply for each in handed(hand_off, large(), wrong, (3,)) for one in each]
            assert said != [large().decode(row.ids) for row in openings_of(alone) if len(row) >= 3]


class TestByHand:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_text_is_the_prompt_and_the_opening_read_by_the_small_model(self, architecture: str, backend: str) -> None:
        openings, reader = opened_by(large(architecture, backend)), small(architecture, backend)
        for item, row, each in zip(
            task().items, openings_of(openings), handed(TextHandOff(), reader, openings), strict=True
        ):
            for one in each:
                said, ended = greedy(reader, [*prompt_ids(reader, item), *row.ids[: one.n]], LIMIT - one.n)
                assert (list(one.ids), one.ended) == (said, ended)
                assert one.reply == reader.decode([*row.ids[: one.n], *said])

    def test_text_in_another_vocabulary_is_tokenized_after_the_prompts(self) -> None:
        openings, reader = opened_by(large()), of_bytes()
        found = handed(TextHandOff(), reader, openings)
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
            task().items, openings_of(openings), handed(KVHandOff(), reader, openings), strict=True
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
        found = handed(LatentHandOff(read, alignment=mapped), reader, openings)
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
        found = handed(LatentHandOff(2, 1, mapped, fusion), reader, openings, (2, 6))
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


class TestSharing:
    def test_what_is_behind_a_prefix_is_what_a_whole_pass_says(self) -> None:
        reader, ids = small(), list(range(6, 20))
        prefix = ReadPrefix.read(reader, ids)
        log_p = reader.forward(torch.tensor([ids]))[0].double().log_softmax(-1)
        surprise = torch.stack([-log_p[at, token] for at, token in enumerate(ids[1:])])
        assert_equal_to_rounding(prefix.surprise, surprise, terms=forward_terms(reader))
        other = [*ids[:5], 30, 31]
        said = continue_rows(reader, after_prefixes([prefix, prefix], [ids[:8], other]), [4, 6])
        assert [list(one.ids) for one in said] == [greedy(reader, ids[:8], 4)[0], greedy(reader, other, 6)[0]]
        assert prefix.shared(other) == 5
        assert prefix.mean_surprise(other, 5) is None
        assert prefix.mean_surprise(ids[:8], 5) == pytest.approx(float(prefix.surprise[4:7].mean()))

    def test_a_continuation_that_writes_the_opening_is_not_written_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from latentcomm.experiments.cascade import continuations as handing

        runs: list[int] = []

        def counted(reader: Model, given: object, limits: list[int]) -> object:
            runs.append(len(limits))
            return continue_rows(reader, given, limits)  # type: ignore[arg-type]

        monkeypatch.setattr(handing, "continue_rows", counted)
        alone = opened_by(large())
        handed(TextHandOff(), large(), alone)
        assert runs == [len(alone)]  # behind the first token, and never again
        runs.clear()
        rows = openings_of(alone)
        known = [Continuation(row.ids, row.ended) for row in rows]
        wanted = [[n for n in NS if n <= len(row)] for row in rows]
        message = TextHandOff().content(alone)
        found = continue_openings(TextHandOff(), large(), Request(task(), message, wanted, known, LIMIT))
        assert runs == []
        assert [[one.reply for one in each] for each in found] == [
            [large().decode(row.ids)] * len(ns) for row, ns in zip(rows, wanted, strict=True)
        ]
        handed(TextHandOff(), small(), alone)
        assert len(runs) > 1  # another model goes its own way

    def test_the_rest_of_a_continuation_is_only_that_of_what_it_begins_with(self) -> None:
        said = Continuation((1, 2, 3), True)
        assert said.rest([1, 2]) == Continuation((3,), True)
        assert said.rest([1, 2, 3]) == Continuation((), True)
        assert said.rest([1, 3]) is None
        assert said.rest([1, 2, 3, 4]) is None

    def test_every_row_goes_on_to_its_own_limit(self) -> None:
        reader = small()
        prompts = receiver_prompts(reader, task())
        limits = [1, 3, 5, 7, 9]
        ids = [prompts.ids(row).tolist() for row in range(5)]
        said = continue_rows(reader, after_prefixes([ReadPrefix.read(reader, each) for each in ids], ids), limits)
        for row, (one, limit) in enumerate(zip(said, limits, strict=True)):
            assert (list(one.ids), one.ended) == greedy(reader, prompts.ids(row).tolist(), limit)


class TestFitting:
    DOCUMENTS = tuple(
        f"{who} says {a} is in {b}. The {c} is at the note of {a}." for who in ("Alice", "The note")
        for a in tiny.COUNTRIES for b in tiny.COUNTRIES[:3] for c in ("country", "Colosseum")
    )  # fmt: skip

    def test_a_model_is_mapped_to_itself_as_it_is(self) -> None:
        fitted = fit_hand_off(large(), large(), self.DOCUMENTS, read=1, write=1, measures_drift=False)
        assert fitted.alignment is not None
        kept = torch.cat([part["states.1"] for part in write_openings(large(), task(), layers=(1,)).parts or ()])
        seen = fit_hand_off(large(), small(), self.DOCUMENTS, read=1, write=1, measures_drift=False)
        assert seen.alignment is not None
        assert fitted.alignment.r_squared(kept, kept) > 0.9
        assert seen.alignment.r_squared(kept, kept) < 0.5

    def test_embeddings_are_mapped_to_the_row_of_the_token_that_ends_there(self) -> None:
        fitted = fit_hand_off(large(), of_bytes(), self.DOCUMENTS, read=EMBEDDING, max_tokens=16, measures_drift=False)
        assert fitted.alignment is not None
        assert (fitted.alignment.d_in, fitted.alignment.d_out) == (32, 16)
        own = fitted.to_itself()
        assert own is not None
        assert own.alignment is not None
        assert own.read == EMBEDDING
        table = of_bytes().embedding_table.float()
        ids = sorted({i for text in self.DOCUMENTS for i in of_bytes().tokenizer(text).input_ids[1:16]})
        assert own.alignment.r_squared(table[ids], table[ids]) > 0.9  # to itself it is the identity, shrunk

    @pytest.mark.parametrize("write", ["embeddings", 2])
    def test_the_small_models_own_states_pass_through_a_map_of_its_own(self, write: Any) -> None:
        own = fit_hand_off(large(), of_bytes(), self.DOCUMENTS, read=0, write=min(write, 1) if write == 2 else write,
                           max_tokens=16, measures_drift=False).to_itself()  # fmt: skip
        assert own is not None
        assert own.alignment is not None
        assert own.read == 0  # never the embedding, however few blocks there are
        assert (own.alignment.d_in, own.alignment.d_out) == (16, 16)

    def test_the_map_goes_from_read_to_write_layer_without_attention_sinks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def spy(x: torch.Tensor, y: torch.Tensor, **options: Any) -> AffineMap:
            seen.append((x, y, options["groups"]))
            return fit_ridge(x, y, **options)

        monkeypatch.setattr(fitting, "fit_ridge", spy)
        fit_hand_off(large(), small(), self.DOCUMENTS, read=0, write=2, measures_drift=False)
        tokens = pair_tokens(large(), small(), list(self.DOCUMENTS), max_tokens=map_tokens(large(), small()))
        places = zip(tokens.document.tolist(), tokens.sender_position.tolist(), tokens.receiver_position.tolist(),
                     strict=True)  # fmt: skip
        kept = [place for place in places if place[1] > 0 and place[2] > 0]
        assert len(kept) < len(tokens)
        source = capture(large(), tokens.sender, [Site(0)]).values[Site(0)]
        target = capture(small(), tokens.receiver, [Site(2)]).values[Site(2)]
        torch.testing.assert_close(seen[0][0], torch.stack([source[row, at] for row, at, _ in kept]).float())
        torch.testing.assert_close(seen[0][1], torch.stack([target[row, at] for row, _, at in kept]).float())
        assert list(seen[0][2]) == [row for row, _, _ in kept]

    def test_drift_is_small_for_the_models_own_states_and_large_for_others(self) -> None:
        fitted = fit_hand_off(small(), small(), self.DOCUMENTS, read=1, write=1)
        assert fitted.reference is not None
        plain = replace(fitted, alignment=None)
        openings = opened_by(small())
        own = [one.drift for each in handed(plain, small(), openings, (6,)) for one in each]
        far = replace(fitted, alignment=AffineMap(5 * states(32, 32).float(), states(32).float()))
        other = [one.drift for each in handed(far, small(), openings, (6,)) for one in each]
        assert max(own) < min(other)
        assert all(0 <= value <= 1 for value in [*own, *other])

    def test_layers_that_are_none_are_refused_before_anything_is_read(self) -> None:
        with pytest.raises(ValueError, match="layer 9 is outside"):
            fit_hand_off(large(), small(), self.DOCUMENTS, read=9)
        with pytest.raises(ValueError, match="layer 9 is outside"):
            fit_hand_off(large(), small(), self.DOCUMENTS, read=1, write=9)


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
