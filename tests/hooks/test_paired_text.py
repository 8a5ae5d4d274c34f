"""Rows at which two models have read the same text, against bytes counted by hand and each document run alone."""

import errno
import importlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from numerics import assert_same_bits, equal_to_rounding, forward_terms, same_bits
from subwords import TEXTS, byte_level, metaspace
from tiny import BACKENDS, build, files_in, hooks_left, transformers_model
from torch import Tensor
from toys import PIECES, Counter

from latentcomm._core import files
from latentcomm._core.budget import within
from latentcomm.hooks.paired_text import PairedStates, PairedTokens, capture_paired, capture_paired_to_disk, pair_tokens
from latentcomm.models import Model, encode, wrap_model
from latentcomm.models.sites import Site

pairing = importlib.import_module("latentcomm.hooks.paired_text")

N_WORDS = 700


def word_ends(tokenizer: Any, text: str) -> list[int]:
    """The characters read after each token of the word-level tokenizer, from the rule it splits by."""
    return list(itertools.accumulate(len(piece) for piece in PIECES.findall(text)))


def byte_ends(tokenizer: Any, text: str) -> list[int | None]:
    """The characters read after each token of the byte-level tokenizer, from its tokens' bytes; None inside one."""
    whole = {len(text[:end].encode()): end for end in range(len(text) + 1)}
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    return [whole.get(read) for read in itertools.accumulate(map(len, tokens))]  # a letter a byte


def piece_ends(tokenizer: Any, text: str) -> list[int | None]:
    """The same of the SentencePiece kind, from the letters of its pieces; the first mark stands for no character."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)
    read = list(itertools.accumulate((1 if token == "<unk>" else len(token)) for token in tokens))
    return [None, *(end - 1 for end in read), None]


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any, str], list[Any]]]] = {
    "words": (lambda: tiny.tokenizer(chat=False), word_ends),
    "bytes": (byte_level, byte_ends),
    "pieces": (metaspace, piece_ends),
}


def with_tokenizer(tokenizer: Any, *, seed: int = 0, **options: Any) -> Model:
    raw = transformers_model("llama", n_vocabulary=N_WORDS, n_layers=2, seed=seed, **options)
    return wrap_model(raw, tokenizer, name=f"tiny-{seed}")


def rows_of(tokens: PairedTokens) -> list[tuple[int, int, int]]:
    return list(
        zip(tokens.document.tolist(), tokens.sender_position.tolist(), tokens.receiver_position.tolist(), strict=True)
    )


class TestPairingTokens:
    @pytest.mark.parametrize(("mine", "theirs"), list(itertools.permutations(KINDS, 2)))
    @pytest.mark.parametrize("max_tokens", [256, 9])
    def test_a_row_is_where_tokens_of_both_end_at_the_same_character(
        self, mine: str, theirs: str, max_tokens: int
    ) -> None:
        texts = [text for text in TEXTS if "pieces" not in (mine, theirs) or "\u0301" not in text]
        texts = [text for text in texts if "pieces" not in (mine, theirs) or "😀" not in text]  # spaces that it merges
        tokenizers = [KINDS[kind][0]() for kind in (mine, theirs)]
        sender, receiver = (with_tokenizer(tokenizer, seed=n) for n, tokenizer in enumerate(tokenizers))
        found = pair_tokens(sender, receiver, texts, max_tokens=max_tokens)
        expected = []
        for number, text in enumerate(texts):
            ends = [KINDS[kind][1](tokenizer, text) for kind, tokenizer in zip((mine, theirs), tokenizers, strict=True)]
            expected += [
                (number, i, j)
                for i, end in enumerate(ends[0][:max_tokens])
                for j, other in enumerate(ends[1][:max_tokens])
                if end is not None and end == other and end > 0
            ]
        assert rows_of(found) == expected and len(found) == len(expected) > 8
        for model, prompts in ((sender, found.sender), (receiver, found.receiver)):
            whole = encode(model, texts)
            for row in range(len(texts)):
                assert prompts.ids(row).tolist() == whole.ids(row)[:max_tokens].tolist()

    def test_both_have_then_read_the_same_bytes(self) -> None:
        sender, receiver = with_tokenizer(byte_level()), with_tokenizer(byte_level(extra="lph Th Gre ece"), seed=1)
        found = pair_tokens(sender, receiver, TEXTS)
        assert found.sender is not found.receiver
        for number, mine, theirs in rows_of(found):
            read = [
                "".join(model.tokenizer.convert_ids_to_tokens(prompts.ids(number)[: position + 1].tolist()))
                for model, prompts, position in (
                    (sender, found.sender, mine),
                    (receiver, found.receiver, theirs),
                )
            ]
            assert read[0] == read[1]

    def test_spaces_that_a_tokenizer_trims_off_its_places_count_as_read(self) -> None:
        words, bytes_ = tiny.tokenizer(chat=False), byte_level()
        text = "so\n  so"
        trimmed = bytes_(text, return_offsets_mapping=True)
        assert bytes_.convert_ids_to_tokens(trimmed.input_ids) == ["so", "ĊĠĠ", "so"]
        assert [end for _, end in trimmed.offset_mapping] == [2, 3, 7]  # it tells 3, and has read 5
        assert word_ends(words, text) == [2, 3, 4, 7]
        assert rows_of(pair_tokens(with_tokenizer(words), with_tokenizer(bytes_, seed=1), [text])) == [
            (0, 0, 0),
            (0, 3, 2),
        ]

    def test_of_a_characters_bytes_only_the_last_is_a_row_unless_cut_off(self) -> None:
        words, bytes_ = tiny.tokenizer(chat=False), byte_level()
        text = "The ☃ is"  # its three bytes were never merged
        tokens = bytes_.convert_ids_to_tokens(bytes_(text).input_ids)
        last = max(place for place, token in enumerate(tokens) if byte_ends(bytes_, text)[place] == 5)
        assert byte_ends(bytes_, text)[last - 1] is None
        sender, receiver = with_tokenizer(words), with_tokenizer(bytes_, seed=1)
        assert (0, 1, last) in rows_of(pair_tokens(sender, receiver, [text]))
        assert [row for row in rows_of(pair_tokens(sender, receiver, [text], max_tokens=last)) if row[1] == 1] == []
        assert tokens[last] != tokens[last - 1]

    def test_special_tokens_that_a_tokenizer_adds_are_read_but_are_no_rows(self) -> None:
        plain, with_bos = tiny.tokenizer(chat=False), tiny.tokenizer(chat=False, adds_bos=True)
        found = pair_tokens(with_tokenizer(with_bos), with_tokenizer(plain, seed=1), ["The note says", "Alice is at"])
        assert rows_of(found) == [(d, n + 1, n) for d in (0, 1) for n in range(3)]
        assert found.sender.ids(0).tolist() == [tiny.BOS_ID, *found.receiver.ids(0).tolist()]

    def test_a_special_token_that_the_text_itself_spells_is_a_row(self) -> None:
        plain, with_bos = tiny.tokenizer(chat=False), tiny.tokenizer(chat=False, adds_bos=True)
        found = pair_tokens(with_tokenizer(with_bos), with_tokenizer(plain, seed=1), ["The<end> note"])
        assert rows_of(found) == [(0, 1, 0), (0, 2, 1), (0, 3, 2)]

    @pytest.mark.parametrize("adds_bos", [True, False])
    def test_with_one_tokenizer_every_token_is_a_row(self, adds_bos: bool) -> None:
        words = tiny.tokenizer(chat=False, adds_bos=adds_bos)
        sender, receiver = with_tokenizer(words), with_tokenizer(tiny.tokenizer(chat=False, adds_bos=adds_bos), seed=1)
        texts = ["The note says", "Alice ☃ is at the Colosseum."]
        for other in (receiver, sender):  # loaded twice, or the same model
            found = pair_tokens(sender, other, texts, max_tokens=5)
            lengths = [min(5, len(words(text).input_ids)) for text in texts]
            assert rows_of(found) == [(d, n, n) for d, length in enumerate(lengths) for n in range(length)]

    def test_equal_ids_of_different_vocabularies_are_not_one_tokenizer(self) -> None:
        words, renamed = tiny.tokenizer(chat=False, adds_bos=True), tiny.tokenizer(chat=False, adds_bos=True)
        renamed.add_tokens(["another"])
        found = pair_tokens(with_tokenizer(words), with_tokenizer(renamed, seed=1), ["The note"])
        assert found.sender.ids(0).tolist() == found.receiver.ids(0).tolist()
        assert rows_of(found) == [
            (0, 1, 1),
            (0, 2, 2),
        ]  # without the BOS token, whose meaning is not known to be shared

    def test_a_tokenizer_without_offsets_works_with_itself_or_is_named(self) -> None:
        slow = with_tokenizer(letters())
        assert rows_of(pair_tokens(slow, slow, ["abc", "d"])) == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 0)]
        assert len(pair_tokens(slow, with_tokenizer(letters(), seed=1), ["abc"])) == 3
        with pytest.raises(
            ValueError, match=r"the tokenizer of tiny-1 \(Letters\) does not give character offsets .* fast"
        ):
            pair_tokens(with_tokenizer(tiny.tokenizer()), with_tokenizer(letters(), seed=1), ["abc"])

    def test_the_tokenizers_are_left_as_they_were(self) -> None:
        words, bytes_ = tiny.tokenizer(chat=False), byte_level()
        before = [tokenizer.backend_tokenizer.to_str() for tokenizer in (words, bytes_)]
        pair_tokens(with_tokenizer(words), with_tokenizer(bytes_, seed=1), TEXTS)
        assert [tokenizer.backend_tokenizer.to_str() for tokenizer in (words, bytes_)] == before

    @pytest.mark.parametrize(
        ("texts", "max_tokens", "saying"),
        [
            ([], 5, "no documents were given"),
            ("The note", 5, "documents must be a list of strings, not the string 'The note'"),
            (["The", " \n"], 5, "document 1 is empty"),
            (["The"], 0, "max_tokens is 0; read at least 1"),
            (["The " * 60], 50, "tiny-0 reads 40 tokens and max_tokens is 50; lower it"),
        ],
    )
    def test_what_cannot_be_paired_is_refused(self, texts: Any, max_tokens: int, saying: str) -> None:
        model = with_tokenizer(tiny.tokenizer(chat=False))
        with pytest.raises(ValueError, match=saying):
            pair_tokens(model, model, texts, max_tokens=max_tokens)

    def test_a_document_that_fits_needs_no_lower_limit(self) -> None:
        model = with_tokenizer(tiny.tokenizer(chat=False))
        assert len(pair_tokens(model, model, ["The note"], max_tokens=256)) == 2

    def test_texts_in_which_no_tokens_end_together_are_refused(self) -> None:
        sender, receiver = with_tokenizer(tiny.tokenizer(chat=False)), with_tokenizer(byte_level(), seed=1)
        with pytest.raises(ValueError, match="no token of tiny-0 ends where one of tiny-1 does within 1 tokens"):
            pair_tokens(sender, receiver, ["Colosseum"], max_tokens=1)


def test_rows_at_the_first_token_of_either_model_are_told_from_the_others() -> None:
    document, sender, receiver = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 4])
    states = PairedStates(torch.ones(2, 4, 3), torch.ones(1, 4, 5), document, sender, receiver)
    assert states.after_first.tolist() == [False, True, False, True]
    tokens = pair_tokens(*different_pair(), TEXTS)
    pairs = zip(tokens.sender_position.tolist(), tokens.receiver_position.tolist(), strict=True)
    assert tokens.after_first.tolist() == [0 not in places for places in pairs]
    assert 0 < int(tokens.after_first.sum()) < len(tokens)


def letters() -> Any:
    """A tokenizer in plain Python, a token a letter, which cannot tell the places of its tokens."""
    from transformers import PreTrainedTokenizer

    class Letters(PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 128

        def get_vocab(self) -> dict[str, int]:
            return {chr(number): number for number in range(128)}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return ord(token) if len(token) == 1 else 0

        def _convert_id_to_token(self, index: int) -> str:
            return chr(index)

    return Letters()


def different_pair(backend: str = "bridge") -> tuple[Model, Model]:
    """Two models of other widths, depths and tokenizers."""
    raw = transformers_model("qwen2", d_model=16, n_layers=2, n_vocabulary=N_WORDS, seed=5, dtype=torch.float32)
    return build("llama", backend), wrap_model(raw, byte_level(), name="other")


DOCUMENTS = [
    "The note says Alice is in Italy.",
    "Alice is at",
    "The country of Greece is at the Colosseum?",
    "invest in",
]


def alone(model: Model, ids: Tensor) -> list[Tensor]:
    """The residual stream after every block of one document, from TransformerLens' own cache."""
    options: dict[str, Any] = {} if model.is_bridge else {"attention_mask": torch.ones(1, len(ids)).long()}
    with torch.no_grad():
        _, cache = model.hooked.run_with_cache(ids[None], **options)
    return [cache[Site(layer).hook_name][0] for layer in range(model.n_layers)]


def same_states(found: PairedStates, other: PairedStates) -> bool:
    return all(same_bits(getattr(found, name), getattr(other, name)) for name in vars(found))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "TOKENS_PER_PART", 14)


class TestCapturingPairs:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("tokens_per_part", [4096, 14, 1])
    def test_each_row_is_the_state_of_its_document_read_alone(
        self, backend: str, tokens_per_part: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pairing, "TOKENS_PER_PART", tokens_per_part)
        sender, receiver = different_pair(backend)
        tokens = pair_tokens(sender, receiver, DOCUMENTS)
        found = capture_paired(sender, receiver, tokens)
        assert found.x.shape == (3, len(tokens), 32) and found.y.shape == (2, len(tokens), 16)
        assert found.x.dtype == found.y.dtype == torch.float32 and len(found) == len(tokens) > 15
        for states, model, prompts, position in (
            (found.x, sender, tokens.sender, tokens.sender_position),
            (found.y, receiver, tokens.receiver, tokens.receiver_position),
        ):
            expected = [alone(model, prompts.ids(document)) for document in range(len(DOCUMENTS))]
            for row, (document, place) in enumerate(zip(tokens.document.tolist(), position.tolist(), strict=True)):
                for layer in range(model.n_layers):
                    apart = states[layer, row] - expected[document][layer][place].float()
                    assert float(apart.abs().max()) < 1e-4 * float(states[layer, row].abs().max())
        assert_same_bits(found.document, tokens.document)
        assert hooks_left(sender) == hooks_left(receiver) == 0

    def test_each_model_reads_each_document_once_for_all_layers(self) -> None:
        sender, receiver = different_pair()
        passes: dict[str, list[int]] = {}
        for model in (sender, receiver):
            for layer, block in enumerate(model.hooked.blocks):
                seen = passes.setdefault(f"{model.name} {layer}", [])
                block.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        capture_paired(sender, receiver, pair_tokens(sender, receiver, DOCUMENTS))
        assert len(passes) == 5 and {tuple(seen) for seen in passes.values()} == {(len(DOCUMENTS),)}

    def test_a_model_with_itself_is_captured_once_as_one_object(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counted = Counter(pairing.capture)
        monkeypatch.setattr(pairing, "capture", counted)
        model, twin, other = build("llama"), build("llama"), build("llama", seed=1)
        tokens = pair_tokens(model, model, DOCUMENTS)
        found = capture_paired(model, model, tokens)
        assert found.y is found.x and counted.calls == 1
        again = capture_paired(model, twin, pair_tokens(model, twin, DOCUMENTS))  # the same weights, loaded twice
        assert again.y is again.x and counted.calls == 2 and same_states(found, again)
        apart = capture_paired(model, other, tokens)
        assert apart.y is not apart.x and counted.calls == 4
        assert not equal_to_rounding(apart.x, apart.y, terms=forward_terms(model))

    @pytest.mark.parametrize(("reads", "writes"), [([2, 0], [0]), ([1], [0])])
    @pytest.mark.parametrize("both", ["different", "one"])
    def test_of_some_layers_these_alone_are_captured(
        self, both: str, reads: list[int], writes: list[int], tmp_path: Path
    ) -> None:
        sender, receiver = different_pair() if both == "different" else [build("llama")] * 2
        tokens = pair_tokens(sender, receiver, DOCUMENTS)
        whole = capture_paired(sender, receiver, tokens)
        ran: list[int] = []
        for layer, block in enumerate(sender.hooked.blocks):
            block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        some = {"sender_layers": reads, "receiver_layers": writes}
        found = capture_paired(sender, receiver, tokens, **some, checkpoint=tmp_path)
        assert_same_bits(found.x, whole.x[reads])
        assert_same_bits(found.y, whole.y[writes])
        assert max(ran) == max(reads + writes if both == "one" else reads)
        held = files.read_tensors(tmp_path / "sender-00000.safetensors")[1]["states"]
        assert len(held) == len({*reads, *writes} if both == "one" else reads)
        with pytest.raises(ValueError, match="differs in layers; choose another folder"):
            capture_paired(sender, receiver, tokens, checkpoint=tmp_path)

    def test_one_model_under_two_tokenizers_is_captured_twice(self) -> None:
        with_bos, plain = tiny.tokenizer(adds_bos=True), tiny.tokenizer()
        sender, receiver = (with_tokenizer(tokenizer) for tokenizer in (with_bos, plain))
        found = capture_paired(sender, receiver, pair_tokens(sender, receiver, DOCUMENTS))
        assert found.y is not found.x
        assert not equal_to_rounding(found.x, found.y, terms=forward_terms(sender))

    @pytest.mark.parametrize("interrupted_at", [1, 2, 4])
    def test_an_interrupted_run_goes_on_with_the_same_bits(
        self, small_parts: None, interrupted_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sender, receiver = different_pair()
        tokens = pair_tokens(sender, receiver, DOCUMENTS)
        whole = capture_paired(sender, receiver, tokens)
        counted, calls = Counter(pairing.capture), itertools.count(1)

        def interrupted(*given: Any, **options: Any) -> Any:
            if next(calls) == interrupted_at:
                raise KeyboardInterrupt
            return counted(*given, **options)

        monkeypatch.setattr(pairing, "capture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            capture_paired(sender, receiver, tokens, checkpoint=tmp_path / "kept")
        assert len(files_in(tmp_path / "kept")) == interrupted_at  # a manifest, and the parts before
        found = capture_paired(sender, receiver, tokens, checkpoint=tmp_path / "kept")
        n_parts = len(pairing._parts(tokens, pairing.TOKENS_PER_PART))
        assert n_parts >= 3 and counted.calls == 2 * n_parts and same_states(found, whole)
        again = capture_paired(sender, receiver, tokens, checkpoint=tmp_path / "kept")
        assert counted.calls == 2 * n_parts and same_states(again, whole)

    def test_a_checkpoint_of_other_tokens_or_models_is_refused(self, tmp_path: Path) -> None:
        sender, receiver = different_pair()
        capture_paired(sender, receiver, pair_tokens(sender, receiver, DOCUMENTS), checkpoint=tmp_path)
        fewer = pair_tokens(sender, receiver, DOCUMENTS[:2])
        with pytest.raises(ValueError, match="differs in tokens; choose another folder"):
            capture_paired(sender, receiver, fewer, checkpoint=tmp_path)
        other = build("llama", seed=1)
        with pytest.raises(ValueError, match="differs in models;"):
            capture_paired(other, receiver, pair_tokens(other, receiver, DOCUMENTS), checkpoint=tmp_path)

    def test_a_full_disk_is_said_and_what_is_done_is_kept(
        self, small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = build("llama")
        tokens = pair_tokens(model, model, DOCUMENTS)
        save, calls = files.save_file, itertools.count(1)

        def full(tensors: Any, path: Path, **options: Any) -> None:
            if next(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(tensors, path, **options)

        monkeypatch.setattr(files, "save_file", full)
        with pytest.raises(RuntimeError, match="No space left on device"):
            capture_paired(model, model, tokens, checkpoint=tmp_path)
        assert files_in(tmp_path) == ["manifest.json", "sender-00000.safetensors"]

    def test_parts_hold_the_states_of_the_budget(self, tmp_path: Path) -> None:
        sender, receiver = different_pair()
        tokens = pair_tokens(sender, receiver, DOCUMENTS)
        whole = capture_paired(sender, receiver, tokens)
        with within(14 * 3 * 32 * (8 + 4)):  # 14 tokens of 3 layers of 32, captured in float64 and saved in float32
            found = capture_paired(sender, receiver, tokens, checkpoint=tmp_path)
        n_parts = len(pairing._parts(tokens, 14))
        assert n_parts >= 3 and len(files_in(tmp_path)) == 1 + 2 * n_parts
        assert equal_to_rounding(found.x, whole.x, terms=forward_terms(sender))
        with pytest.raises(ValueError, match="differs in tokens_per_part; choose another folder"):
            capture_paired(sender, receiver, tokens, checkpoint=tmp_path)

    @pytest.mark.parametrize("both", ["different", "one"])
    def test_states_on_disk_are_those_in_memory(self, small_parts: None, both: str, tmp_path: Path) -> None:
        sender, receiver = different_pair() if both == "different" else [build("llama")] * 2
        tokens = pair_tokens(sender, receiver, DOCUMENTS)
        whole = capture_paired(sender, receiver, tokens)
        rows = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:-2]
        for _ in range(2):  # as it is written, and read back
            found = capture_paired_to_disk(sender, receiver, tokens, tmp_path)
            assert (found.y is found.x) == (both == "one") and len(found) == len(tokens)
            for states, expected in ((found.x, whole.x), (found.y, whole.y)):
                assert states.shape == expected.shape and len(states.files) > 1
                for layer in range(len(expected)):
                    assert_same_bits(states[layer, rows], expected[layer, rows])
                    assert states[layer, rows[:0]].shape == (0, states.shape[2])

    def test_a_document_without_rows_is_left_out_and_nothing_shifts(self, small_parts: None) -> None:
        sender, receiver = different_pair()
        tokens = pair_tokens(sender, receiver, DOCUMENTS)
        kept = (tokens.document != 1).nonzero().flatten()
        fewer = PairedTokens(
            tokens.sender,
            tokens.receiver,
            *(getattr(tokens, name)[kept] for name in ("document", "sender_position", "receiver_position")),
        )
        found, whole = capture_paired(sender, receiver, fewer), capture_paired(sender, receiver, tokens)
        assert_same_bits(found.x, whole.x[:, kept])
        assert_same_bits(found.y, whole.y[:, kept])

    def test_progress_is_shown_when_asked(self, capsys: pytest.CaptureFixture[str]) -> None:
        model = build("llama")
        tokens = pair_tokens(model, model, DOCUMENTS[:1])
        capture_paired(model, model, tokens)
        assert capsys.readouterr().err == ""
        capture_paired(model, model, tokens, progress=True)
        assert "capture: 1 of 1 done" in capsys.readouterr().err
