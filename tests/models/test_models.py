"""The seam against transformers itself: the same logits, the same weights, and a clear word for every wrong input."""

import copy
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, equal_to_rounding, forward_terms, same_bits
from safetensors.torch import load_file, save_file
from tiny import (
    ARCHITECTURES,
    BACKENDS,
    BOS_ID,
    CHOICES,
    EOS_ID,
    EVERY_MODEL,
    GGUF_WORDS,
    HAS_HOOKED_TRANSFORMER,
    N_CTX,
    PAD,
    PAD_ID,
    VOCABULARY,
    broken_gguf,
    build,
    files_in,
    hooked_transformer,
    hooks_left,
    ids,
    model,
    needs_hooked_transformer,
    tokenizer,
    transformers_model,
    write_gguf,
)
from toys import Counter

from latentcomm.models import Model, check_pair, encode, load_model, wrap_model
from latentcomm.models import builtin as weights
from latentcomm.models.checkpoint import Checkpoint, locate
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import STREAMS, Site

TOKENS = torch.stack(ids(9, 9, seed=3))
TOKENS[0, -1] = PAD_ID  # a last token that equals the padding token is still a token
TOKENS[1, :2] = PAD_ID


def their_logits(architecture: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    with torch.no_grad():
        return transformers_model(architecture, dtype=dtype)(TOKENS).logits


def assert_loaded_from(raw: Any, loaded: Model) -> None:
    """The same weights to the last bit, and so the same logits; what lies in a file is aligned otherwise in memory."""
    with torch.no_grad():
        logits = raw(TOKENS).logits
    assert_equal_to_rounding(loaded.forward(TOKENS), logits, terms=forward_terms(loaded))
    assert loaded.fingerprint == wrap_model(raw).fingerprint


class TestLogits:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gemma2"])
    def test_a_bridge_gives_transformers_logits_to_the_last_bit(self, architecture: str, dtype: torch.dtype) -> None:
        assert_same_bits(model(architecture, dtype=dtype).forward(TOKENS), their_logits(architecture, dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("architecture", ["gpt2", "neox"])  # it splits their joint projection in three
    def test_where_transformer_lens_computes_otherwise_it_is_only_rounding(
        self, architecture: str, dtype: torch.dtype
    ) -> None:
        tiny = model(architecture, dtype=dtype)
        assert_equal_to_rounding(tiny.forward(TOKENS), their_logits(architecture, dtype), terms=forward_terms(tiny))

    @needs_hooked_transformer
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_hooked_transformer_gives_them_to_1e_4(self, architecture: str) -> None:
        difference = model(architecture, "hooked").forward(TOKENS) - their_logits(architecture)
        assert float(difference.abs().max()) < 1e-4

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_wrapping_leaves_the_wrapped_models_own_logits_and_weights(self, architecture: str) -> None:
        mine = transformers_model(architecture)
        before = {name: weight.clone() for name, weight in mine.state_dict().items()}
        with torch.no_grad():
            plain = mine(TOKENS).logits
            wrap_model(mine, tokenizer()).forward(TOKENS)
            again = mine(TOKENS).logits
        if architecture in ("llama", "qwen2"):
            assert_same_bits(again, plain)
        else:
            assert_equal_to_rounding(again, plain, terms=forward_terms(model(architecture)))
        held = list(mine.state_dict().values())  # under other names: the bridge has moved the modules
        for name, weight in before.items():
            assert any(same_bits(one, weight) for one in held), name

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_a_prompt_read_in_two_parts_over_a_cache_gives_the_same(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        whole, cache = tiny.forward(TOKENS), tiny.new_cache(len(TOKENS))
        first = tiny.forward(TOKENS[:, :4], cache=cache)
        second = tiny.forward(TOKENS[:, 4:], cache=cache)
        assert_equal_to_rounding(torch.cat([first, second], 1), whole, terms=forward_terms(tiny))
        assert float((whole[0] - whole[1]).abs().max()) > 0.1

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_a_cache_of_given_keys_and_values_does_not_write_to_them(self, architecture: str, backend: str) -> None:
        tiny, cache = model(architecture, backend), model(architecture, backend).new_cache(1)
        tiny.forward(TOKENS[:1, :6], cache=cache)
        layers = tiny.cache_layers(cache)
        before = [(keys.clone(), values.clone()) for keys, values in layers]
        one = tiny.forward(TOKENS[:1, 6:], cache=tiny.cache_from_layers(layers))
        many = tiny.forward(TOKENS[:1, 6:].repeat(3, 1), cache=tiny.cache_from_layers(layers, batch=3))
        assert_equal_to_rounding(one, tiny.forward(TOKENS[:1])[:, 6:], terms=forward_terms(tiny))
        assert float((many - one).abs().max()) < 1e-12
        for (keys, values), (old_keys, old_values) in zip(layers, before, strict=True):
            assert_same_bits(keys, old_keys)
            assert_same_bits(values, old_values)

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_the_last_position_alone_says_what_it_says_among_all(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        alone = tiny.forward(TOKENS, last_only=True)
        assert alone.shape == (2, 1, 64)
        assert float((alone - tiny.forward(TOKENS)[:, -1:]).abs().max()) < 1e-12
        assert hooks_left(tiny) == 0

    @pytest.mark.parametrize(("architecture", "backend"), [*EVERY_MODEL, ("gemma2", "bridge")])
    def test_norm_and_unembedding_of_the_last_state_are_the_logits(self, architecture: str, backend: str) -> None:
        tiny, seen = model(architecture, backend), {}

        def keep(value: torch.Tensor, hook: Any) -> None:
            seen["last"] = value.clone()

        logits = tiny.forward(TOKENS, hooks=[(Site(tiny.n_layers - 1).hook_name, keep)])[0]
        normed = tiny.final_norm(seen["last"][0])
        columns = torch.tensor([40, 3, 3, 17])
        parts = tiny.unembed_columns(normed, columns)
        assert float((tiny.unembed(normed)[:, columns] - parts).abs().max()) < 1e-12
        assert (tiny.softcap > 0) == (architecture == "gemma2")
        if tiny.softcap:
            parts = tiny.softcap * torch.tanh(parts / tiny.softcap)
        assert_equal_to_rounding(logits[:, columns], parts, terms=forward_terms(tiny))


class TestWhatAModelSaysOfItself:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_its_size_and_kind(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend, d_model=16, n_layers=2)
        assert (tiny.n_layers, tiny.d_model, tiny.n_ctx) == (2, 16, N_CTX)
        assert (tiny.dtype, tiny.device) == (torch.float64, torch.device("cpu"))
        assert tiny.is_bridge == (backend == "bridge")
        assert not tiny.processed
        assert tiny.stop_ids == {EOS_ID}
        kind = "TransformerBridge" if backend == "bridge" else "HookedTransformer"
        assert repr(tiny) == f"Model(tiny-{architecture}, {kind}, n_layers=2, d_model=16)"

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_its_fingerprint_is_that_of_its_weights(self, backend: str) -> None:
        first, again = build("gpt2", backend), build("gpt2", backend)
        assert first.fingerprint == again.fingerprint
        with torch.no_grad():
            next(again.hooked.parameters()).flatten()[0].add_(1e-9)
        assert again.fingerprint != first.fingerprint  # as the weights are now
        assert build("gpt2", backend, dtype=torch.float32).fingerprint != first.fingerprint

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_its_weights_are_hashed_once_while_they_are_as_they_were(
        self, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny = build("gpt2", backend)
        hashed = Counter(hashlib.sha256)
        monkeypatch.setattr(hashlib, "sha256", hashed)
        first = tiny.fingerprint
        assert (tiny.fingerprint, hashed.calls) == (first, 1)
        weight = next(tiny.hooked.parameters())
        weight.data.neg_()  # passes the version counter by
        assert tiny.fingerprint != first and hashed.calls == 2
        weight.data.neg_()
        assert (tiny.fingerprint, hashed.calls) == (first, 3)
        flipped = weight.data.flip(0)
        weight.data.copy_(flipped)  # the same entries in other rows
        assert tiny.fingerprint != first and hashed.calls == 4
        weight.data.copy_(flipped.flip(0))
        assert (tiny.fingerprint, hashed.calls) == (first, 5)
        with torch.no_grad():
            weight.add_(1e-9)
        assert tiny.fingerprint != first and hashed.calls == 6

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_weights_of_eight_bits_have_a_fingerprint(self, dtype: torch.dtype) -> None:
        raw = transformers_model("llama")
        packed = raw.model.layers[1].mlp.down_proj.weight.detach().to(dtype)
        raw.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
        tiny = wrap_model(raw)
        before = tiny.fingerprint
        assert tiny.fingerprint == before != build("llama").fingerprint
        packed.view(torch.uint8)[3, 5] ^= 0x80  # the sign of one weight
        assert tiny.fingerprint != before

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_model_in_training_mode_is_refused(self, backend: str) -> None:
        tiny = build("gpt2", backend)
        tiny.hooked.train()
        with pytest.raises(ValueError, match=r"^tiny-gpt2 is in training mode, .* call its eval\(\) first$"):
            tiny.forward(TOKENS)
        tiny.hooked.eval()
        assert tiny.forward(TOKENS).shape[-1] == tiny.hooked.cfg.d_vocab

    def test_a_transformers_model_without_an_unembedding_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^LlamaModel is no causal language model; load it by"):
            wrap_model(transformers_model("llama").model, tokenizer())

    def test_a_tokenizer_of_more_tokens_than_are_embedded_is_refused(self) -> None:
        wide = tokenizer()
        wide.add_tokens([f"new{number}" for number in range(100)])
        tiny = wrap_model(transformers_model("llama"), wide)
        with pytest.raises(ValueError, match=r"^prompt 1 has the token id \d+, and .* embeds \d+ tokens; give it the"):
            encode(tiny, ["Greece", "new99"])

    def test_its_vocabulary_is_hashed_once_for_a_tokenizer_of_one_length(self) -> None:
        tiny = build("gpt2")
        first = tiny.vocabulary
        assert first == model("llama").vocabulary == tiny.vocabulary  # other weights, the same tokens
        tiny.require_tokenizer().add_tokens(["another"])
        assert tiny.vocabulary != first

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_what_transformer_lens_runs_is_reached_through_it(self, backend: str) -> None:
        tiny = model("gpt2", backend)
        logits, cache = tiny.run_with_cache(TOKENS)
        assert_same_bits(logits, tiny.hooked.run_with_cache(TOKENS)[0])
        assert "blocks.1.hook_resid_post" in cache
        flipped = tiny.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_post", lambda value, hook: -value)])
        assert not equal_to_rounding(flipped, logits, terms=forward_terms(tiny))

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_which_sites_it_has(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        for layer in range(3):
            for stream in STREAMS:
                if (architecture, stream) == ("neox", "resid_mid"):
                    with pytest.raises(
                        ValueError, match=f"tiny-neox has no hook point blocks.{layer}.hook_resid_mid; its"
                    ):
                        tiny.check_site(Site(layer, stream))
                else:
                    tiny.check_site(Site(layer, stream))
        with pytest.raises(ValueError, match=r"layer 3 is outside tiny-.*, whose layers are 0 to 2"):
            tiny.check_site(Site(3))

    def test_a_hook_point_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"tiny-llama has no hook point 'blocks\.1\.hook_resid_pots'"):
            model("llama").forward(TOKENS, hooks=[("blocks.1.hook_resid_pots", lambda value, hook: None)])

    def test_several_tokens_may_stop_a_reply(self) -> None:
        raw = transformers_model("llama")
        raw.generation_config.eos_token_id = [EOS_ID, 7]
        assert wrap_model(raw, tokenizer()).stop_ids == {EOS_ID, 7}
        raw.generation_config.eos_token_id = None
        assert wrap_model(transformers_model("llama"), None).stop_ids == {EOS_ID}

    def test_a_text_and_its_ids(self) -> None:
        tiny = model("llama")
        assert tiny.first_token(" Greece") == VOCABULARY[" Greece"]
        assert tiny.first_token("Greece is") == VOCABULARY["Greece"]
        assert tiny.decode([VOCABULARY["The"], VOCABULARY[" country"], EOS_ID]) == "The country"

    @pytest.mark.parametrize("text", ["", " ", "\nGreece", "  Greece"])
    def test_a_choice_without_a_first_token_of_its_own_is_refused(self, text: str) -> None:
        with pytest.raises(
            ValueError, match="has no single first token for choice scoring in the tokenizer of tiny-llama"
        ):
            model("llama").first_token(text)

    def test_a_tokenizer_that_prefixes_a_space_gives_the_same_first_tokens(self) -> None:
        from tokenizers import Tokenizer, decoders, pre_tokenizers
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        words = {word: n for n, word in enumerate(("<unk>", "\u2581", "\u2581Greece", "\u2581is"))}
        backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        like_llama_2 = wrap_model(transformers_model("llama"), PreTrainedTokenizerFast(tokenizer_object=backend))
        assert like_llama_2.first_token("Greece is") == words["\u2581Greece"]
        assert like_llama_2.first_token(" Greece is") == words["\u2581Greece"]

    def test_a_first_token_never_counts_a_bos(self) -> None:
        with_bos = wrap_model(transformers_model("llama"), tokenizer(adds_bos=True))
        assert [with_bos.first_token(choice) for choice in CHOICES] == [VOCABULARY[choice] for choice in CHOICES]


class TestEncode:
    def test_a_raw_text_is_taken_as_it_stands(self) -> None:
        prompts = encode(model("llama"), ["Alice is at the Colosseum.", "The country"])
        words = ["Alice", " is", " at", " the", " Colosseum", "."]
        assert prompts.ids(0).tolist() == [VOCABULARY[word] for word in words]
        assert prompts.ids(1).tolist() == [VOCABULARY["The"], VOCABULARY[" country"]]
        assert prompts.first.tolist() == [0, 0]

    def test_a_text_that_ends_in_the_padding_token_keeps_it(self) -> None:
        prompts = encode(model("llama"), [f"The country{PAD}", "Alice is at the Colosseum."])
        assert prompts.ids(0).tolist() == [VOCABULARY["The"], VOCABULARY[" country"], PAD_ID]

    def test_the_tokenizer_decides_about_its_bos_unless_told(self) -> None:
        plain = model("llama")
        adding = wrap_model(transformers_model("llama"), tokenizer(adds_bos=True))
        alice = [VOCABULARY["Alice"]]
        for given, default in ((plain, alice), (adding, [BOS_ID, *alice])):
            assert encode(given, ["Alice"]).ids(0).tolist() == default
            assert encode(given, ["Alice"], prepend_bos=True).ids(0).tolist() == [BOS_ID, *alice]
            assert encode(given, ["Alice"], prepend_bos=False).ids(0).tolist() == alice

    @pytest.mark.parametrize("adds_bos", [False, True])
    def test_a_chat_template_opens_the_assistants_turn(self, adds_bos: bool) -> None:
        tiny = wrap_model(transformers_model("llama"), tokenizer(adds_bos=adds_bos))
        expected = [VOCABULARY[token] for token in ("<user>", "Alice", " is", "<end>", "<assistant>")]
        assert encode(tiny, ["Alice is"], template="chat").ids(0).tolist() == expected

    def test_a_model_whose_bridge_adds_a_bos_encodes_no_differently(self) -> None:
        # TransformerLens' own to_tokens puts a BOS before a string by default; encode never goes through it.
        tiny = model("llama")
        assert tiny.hooked.to_tokens("Alice").tolist()[0] == [BOS_ID, VOCABULARY["Alice"]]
        assert encode(tiny, ["Alice"]).tokens.tolist() == [[VOCABULARY["Alice"]]]

    @pytest.mark.parametrize("empty", ["", "  ", "\n"])
    def test_an_empty_prompt_is_refused(self, empty: str) -> None:
        with pytest.raises(ValueError, match="prompt 1 is empty; give every prompt at least one word"):
            encode(model("llama"), ["Alice", empty])

    def test_no_prompts_and_a_bare_string_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no prompts were given"):
            encode(model("llama"), [])
        with pytest.raises(ValueError, match="texts must be a list of strings, not the string 'Alice'"):
            encode(model("llama"), "Alice")

    def test_a_prompt_over_the_context_is_refused(self) -> None:
        encode(model("llama"), ["Alice" + " is" * (N_CTX - 1)])
        with pytest.raises(ValueError, match="prompt 0 has 41 tokens and tiny-llama reads 40 at most; shorten it"):
            encode(model("llama"), ["Alice" + " is" * N_CTX])

    def test_a_missing_chat_template_or_bos_is_refused(self) -> None:
        bare = wrap_model(transformers_model("llama"), tokenizer(chat=False, bos=False))
        with pytest.raises(ValueError, match="has no chat template; use template='raw'"):
            encode(bare, ["Alice"], template="chat")
        for prepend in (True, False):
            with pytest.raises(ValueError, match="has no BOS token; leave prepend_bos out"):
                encode(bare, ["Alice"], prepend_bos=prepend)


class TestWrapModel:
    def test_a_bridge_may_be_handed_in(self) -> None:
        bridge = build("llama").hooked
        wrapped = wrap_model(bridge)
        assert wrapped.hooked is bridge and wrapped.is_bridge
        assert wrapped.tokenizer is bridge.tokenizer
        assert_same_bits(wrapped.forward(TOKENS), model("llama").forward(TOKENS))

    @needs_hooked_transformer
    def test_a_hooked_transformer_may_be_handed_in_and_keeps_its_tokenizer(self) -> None:
        hooked = hooked_transformer(transformers_model("llama"), tokenizer())
        wrapped = wrap_model(hooked)
        assert wrapped.hooked is hooked and not wrapped.is_bridge
        assert encode(wrapped, ["Alice is"]).tokens.tolist() == encode(model("llama"), ["Alice is"]).tokens.tolist()

    def test_a_model_needs_no_tokenizer_and_asks_nobody_for_one(self) -> None:
        silent = wrap_model(transformers_model("llama"))
        assert silent.tokenizer is None
        assert_same_bits(silent.forward(TOKENS), model("llama").forward(TOKENS))
        for use in (
            lambda: encode(silent, ["Alice"]),
            lambda: silent.first_token(" Greece"),
            lambda: silent.decode([9]),
        ):
            with pytest.raises(ValueError, match="LlamaForCausalLM has no tokenizer; pass one to wrap_model"):
                use()

    def test_the_tokenizer_given_is_not_changed(self) -> None:
        from transformers import PreTrainedTokenizerFast

        bare = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(tokenizer().backend_tokenizer), unk_token="<unk>")
        before = bare.special_tokens_map, len(bare), dict(bare.init_kwargs)
        wrapped = wrap_model(transformers_model("llama"), bare)
        assert wrapped.tokenizer is bare
        assert (bare.special_tokens_map, len(bare), dict(bare.init_kwargs)) == before
        assert bare.bos_token is None and bare.pad_token is None

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_dropout_is_off_in_whatever_comes_in(self, backend: str) -> None:
        hooked = build("gpt2", backend).hooked.train()
        assert not wrap_model(hooked).hooked.training
        raw = transformers_model("gpt2").train()
        assert not wrap_model(raw).hooked.training

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_bos_that_transformer_lens_added_to_a_tokenizer_is_dropped(self, backend: str, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer(chat=False).save_pretrained(tmp_path)
        plain = AutoTokenizer.from_pretrained(tmp_path)
        adding = AutoTokenizer.from_pretrained(tmp_path)
        adding.backend_tokenizer.post_processor = tokenizer(adds_bos=True).backend_tokenizer.post_processor
        hooked = build("llama", backend).hooked
        hooked.tokenizer = adding  # as TransformerLens leaves it behind
        assert encode(wrap_model(hooked, adding), ["Alice"]).tokens.tolist() == [[BOS_ID, VOCABULARY["Alice"]]]
        for own in (plain, adding):
            hooked.tokenizer = own
            assert encode(wrap_model(hooked), ["Alice"]).tokens.tolist() == [[VOCABULARY["Alice"]]]
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(
            ValueError, match=r"adds a BOS token and is not on this machine.*pass the tokenizer you mean"
        ):
            wrap_model(hooked)

    def test_anything_else_is_refused(self) -> None:
        for thing in (torch.nn.Linear(2, 2), "gpt2"):
            with pytest.raises(
                ValueError, match=f"{type(thing).__name__} is no model that can be wrapped; pass a Hooked"
            ):
                wrap_model(thing)
        with pytest.raises(ValueError, match="tiny-llama is wrapped already; pass it as it is"):
            wrap_model(model("llama"))

    def test_booting_leaves_the_package_index_setting_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import os

        monkeypatch.delenv("PIP_NO_INDEX", raising=False)
        build("gpt2")
        assert "PIP_NO_INDEX" not in os.environ
        monkeypatch.setenv("PIP_NO_INDEX", "0")
        build("gpt2")
        assert os.environ["PIP_NO_INDEX"] == "0"


class TestProcessedWeights:
    def folded_bridge(self) -> Model:
        tiny = build("gpt2")
        tiny.hooked.enable_compatibility_mode(disable_warnings=True)
        return wrap_model(tiny.hooked, tiny.tokenizer, name="folded")

    def test_a_bridge_in_compatibility_mode_never_mixes_with_a_raw_one(self) -> None:
        folded, raw = self.folded_bridge(), model("gpt2")
        assert folded.processed
        message = "folded has processed weights .folded or centred. and tiny-gpt2 has raw ones.*load both raw"
        for pair in ((folded, raw), (raw, folded)):
            with pytest.raises(ValueError, match=message):
                check_pair(*pair)
        check_pair(raw, raw)
        check_pair(folded, folded)

    def test_processing_after_wrapping_is_seen(self) -> None:
        tiny = build("gpt2")
        assert not tiny.processed
        tiny.hooked.enable_compatibility_mode(disable_warnings=True)
        assert tiny.processed

    def test_the_streams_of_the_two_do_differ(self) -> None:
        seen = {}
        for tiny in (self.folded_bridge(), model("gpt2")):

            def keep(value: torch.Tensor, hook: Any, name: str = tiny.name) -> None:
                seen[name] = value.clone()

            tiny.forward(TOKENS, hooks=[(Site(1).hook_name, keep)])
        assert float((seen["folded"] - seen["tiny-gpt2"]).abs().max()) > 0.1

    @needs_hooked_transformer
    @pytest.mark.parametrize("architecture", ["gpt2", "neox"])
    @pytest.mark.parametrize(
        ("step", "changes_the_stream"),
        [
            ("fold_ln", True),
            ("center_writing_weights", True),
            ("center_unembed", False),
            ("fold_value_biases", False),
            (None, False),
        ],
    )
    def test_a_hooked_transformer_shows_by_its_weights_what_was_done(
        self, architecture: str, step: str | None, changes_the_stream: bool
    ) -> None:
        steps = {} if step is None else {step: True}
        hooked = hooked_transformer(transformers_model(architecture), tokenizer(), **steps)
        assert wrap_model(hooked).processed == changes_the_stream


class TestLoadModel:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path_factory.mktemp("cache")))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "tiny"
        transformers_model("llama", dtype=torch.float32).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_local_directory(self, folder: Path, dtype: str) -> None:
        loaded = load_model(folder, dtype=dtype)
        assert loaded.name == str(folder)
        assert loaded.dtype == getattr(torch, dtype)
        raw = transformers_model("llama", dtype=torch.float32).to(getattr(torch, dtype))
        assert_loaded_from(raw, loaded)
        assert encode(loaded, ["Alice is"]).tokens.tolist() == encode(model("llama"), ["Alice is"]).tokens.tolist()
        assert load_model(str(folder), dtype=dtype).fingerprint == loaded.fingerprint

    def test_a_torch_dtype_and_the_device_that_is_there(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        loaded = load_model(folder, dtype=torch.bfloat16, device="auto")
        assert (loaded.dtype, loaded.device) == (torch.bfloat16, torch.device("cpu"))

    def test_a_snapshot_of_the_hub_has_its_id_for_a_name(self, folder: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("a" * 40)
        snapshot.parent.mkdir(parents=True)
        folder.rename(snapshot)
        assert load_model(snapshot).name == "someone/tiny"

    def test_a_gguf_file(self, tmp_path: Path) -> None:
        raw = transformers_model("llama", dtype=torch.float32)
        write_gguf(raw, tmp_path / "tiny.gguf")
        loaded = load_model(tmp_path / "tiny.gguf")
        assert_loaded_from(raw, loaded)
        assert encode(loaded, ["ab c"]).tokens.tolist() == [[GGUF_WORDS.index("ab"), GGUF_WORDS.index("Ġc")]]
        assert loaded.stop_ids == {2}
        assert files_in(tmp_path) == ["tiny.gguf"]

    def test_a_built_in_name(self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = weights.BuiltIn("tiny-built-in", "tiny==1", "tiny.gguf", "0" * 64, "1k", 1, "MIT", "here")
        monkeypatch.setattr(weights, "BUILT_IN", {entry.name: entry})
        monkeypatch.setenv("LATENTCOMM_CACHE", str(tmp_path / "cache"))
        weights.folder_of(entry).parent.mkdir(parents=True)
        folder.rename(weights.folder_of(entry))
        assert load_model("tiny-built-in").n_layers == 3

    def test_a_name_nobody_knows_is_refused_with_near_matches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(self: Any, name: str, **_: Any) -> None:
            response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=response)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
        message = "there is no model 'smollm2-135m-instuct' here or on the hub; did you mean smollm2-135m-instruct"
        with pytest.raises(ValueError, match=message):
            load_model("smollm2-135m-instuct")
        with pytest.raises(ValueError, match="there is no model 'qqq' here or on the hub; give a built-in name"):
            load_model("qqq")

    @pytest.mark.parametrize("error", [ConnectionError("no route to host"), TimeoutError("too slow")])
    def test_an_unreachable_hub_is_said_to_be_unreachable(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        asked = []

        def unreachable(self: Any, name: str, *, timeout: float, **_: Any) -> None:
            asked.append((name, timeout))
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
        with pytest.raises(RuntimeError) as caught:
            load_model("someone/some-model")
        assert str(caught.value) == (
            "there is no model 'someone/some-model' on this machine, and the model hub could not be reached "
            f"({error}); give a built-in name (smollm2-135m-instruct), a local directory or a .gguf file"
        )
        assert asked == [("someone/some-model", 10.0)]

    def test_the_hub_is_queried_once_for_what_it_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = iter([ConnectionError("no route to host"), None])
        queried = []

        def model_info(self: Any, name: str, *, timeout: float) -> None:
            queried.append(name)
            if (error := next(answers)) is not None:
                raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        with pytest.raises(RuntimeError, match="no route to host"):
            locate("someone/sometimes-there")
        for _ in range(3):  # sizes, tokenizer and weights
            assert locate("someone/sometimes-there") == Checkpoint("someone/sometimes-there")
        assert queried == ["someone/sometimes-there"] * 2

    def test_offline_mode_is_an_unreachable_hub(self) -> None:
        with pytest.raises(RuntimeError, match=r"'SmolLM2-135M' on this machine.*did you mean smollm2-135m-instruct"):
            load_model("SmolLM2-135M")

    @pytest.mark.parametrize("name", ["two words", "a--b", "a:b", "x" * 200])
    def test_a_name_that_cannot_be_one_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"there is no model '{name}' here or on the hub; give a built-in name"):
            load_model(name)

    @pytest.mark.parametrize("name", ["./nowhere", "nowhere.gguf", "/a/b/c", "~/nowhere", "a/b/c"])
    def test_a_path_that_is_not_there_is_refused_as_one(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"there is no file or directory {name}"):
            load_model(name)

    def test_a_file_or_folder_of_something_else_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"0")
        with pytest.raises(
            ValueError, match=r"model\.bin is a file but not a \.gguf; give a \.gguf file or a directory"
        ):
            load_model(tmp_path / "model.bin")
        with pytest.raises(ValueError, match="holds no model that transformers can load: "):
            load_model(tmp_path)

    @pytest.mark.parametrize("kept", [0, 3, 4, 500, 20_000, 60_000])
    def test_a_file_that_breaks_off_is_refused(self, tmp_path: Path, kept: int) -> None:
        path = broken_gguf(tmp_path / "tiny.gguf", kept)
        with pytest.raises(ValueError, match=r"tiny\.gguf holds no model that transformers can load: "):
            load_model(path)

    def test_a_dtype_or_device_that_is_not_there_is_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="there is no dtype 'int3'; choose among float32, float64, "):
            load_model(folder, dtype="int3")
        with pytest.raises(ValueError, match=r"there is no device 'gpu'; .*choose among auto, cuda, mps, cpu"):
            load_model(folder, device="gpu")


@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="TransformerLens 3.9 has a HookedTransformer")
def test_without_a_hooked_transformer_in_the_package_wrapping_still_works() -> None:
    assert wrap_model(transformers_model("gpt2")).is_bridge


def test_prompts_run_the_same_whatever_they_are_padded_with() -> None:
    tiny, rows = model("llama"), ids(5, 3)
    for pad in (0, PAD_ID):
        prompts = Prompts.from_ids(rows, pad_id=pad)
        assert_same_bits(prompts.select([1]).tokens[0], rows[1])
        assert float((tiny.forward(prompts.tokens)[1, :3] - tiny.forward(rows[1][None])[0]).abs().max()) < 1e-12


class TestCheckpointsThatAreNotWhole:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        transformers_model("llama", dtype=torch.float32).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        return tmp_path

    def changed(self, folder: Path, *, without: str = "", extra: dict[str, torch.Tensor] | None = None) -> None:
        path = folder / "model.safetensors"
        held = {name: value for name, value in load_file(path).items() if name != without}
        save_file(held | (extra or {}), path, metadata={"format": "pt"})

    def test_loading_says_nothing(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        load_model(folder)
        assert capfd.readouterr().err == ""

    def test_a_weight_that_is_missing_is_named(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        load_model(folder)
        self.changed(folder, without="model.layers.1.mlp.up_proj.weight")
        with pytest.raises(ValueError, match=r" lacks 1 of the weights that config\.json describes: model\.layers\.1"):
            load_model(folder)
        assert "MISSING" not in caplog.text

    def test_so_is_one_too_many(self, folder: Path) -> None:
        self.changed(folder, extra={"model.layers.3.mlp.up_proj.weight": torch.zeros(64, 32)})
        with pytest.raises(ValueError, match=r" holds weights that config\.json does not describe \(1\): model"):
            load_model(folder)

    def test_a_configuration_of_other_sizes_is_not_the_checkpoints(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
        with pytest.raises(
            ValueError, match=r" lacks 9 of .*: model\.layers\.3\.\S+, model\.layers\.3\.\S+ \.\.\.; get"
        ):
            load_model(folder)
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 65}))
        with pytest.raises(
            ValueError, match=r"lm_head\.weight .*\[64, 32\] in the file and \[65, 32\] by config\.json"
        ):
            load_model(folder)

    def test_an_output_table_is_missing_unless_it_is_the_input_table(self, folder: Path) -> None:
        self.changed(folder, without="lm_head.weight")
        with pytest.raises(ValueError, match=r"lacks 1 of the weights that config\.json describes: lm_head\."):
            load_model(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        assert load_model(folder).n_layers == 3

    @pytest.mark.parametrize(
        ("architecture", "attention", "buffers"),
        [
            ("llama", "model.layers.{}.self_attn", ("rotary_emb.inv_freq", "rotary_emb.cos_cached")),
            ("gpt_neo", "transformer.h.{}.attn.attention", ("bias", "masked_bias")),
            ("gpt2", "transformer.h.{}.attn", ("bias", "masked_bias")),
            ("neox", "gpt_neox.layers.{}.attention", ("bias", "masked_bias", "rotary_emb.inv_freq")),
        ],
    )
    def test_buffers_of_old_checkpoints_are_no_weights_too_many(
        self, tmp_path: Path, architecture: str, attention: str, buffers: tuple[str, ...]
    ) -> None:
        raw = transformers_model(architecture, dtype=torch.float32)
        raw.save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        mask = torch.ones(N_CTX, N_CTX).tril().bool()[None, None]
        held = {"bias": mask, "masked_bias": torch.tensor(-1e9)}
        names = {f"{attention.format(layer)}.{name}": name for layer in range(3) for name in buffers}
        self.changed(tmp_path, extra={name: held.get(own, torch.ones(4)).clone() for name, own in names.items()})
        assert_loaded_from(raw, load_model(tmp_path))
        self.changed(tmp_path, extra={f"{attention.format(0)}.gate.weight": torch.ones(4)})
        with pytest.raises(ValueError, match=r"holds weights that config\.json does not describe \(1\): \S+\.gate"):
            load_model(tmp_path)

    @pytest.mark.parametrize("damage", ["cut", "gone"])
    def test_a_shard_that_is_cut_off_or_gone(self, tmp_path: Path, damage: str) -> None:
        transformers_model("llama", dtype=torch.float32).save_pretrained(tmp_path, max_shard_size="20KB")
        tokenizer().save_pretrained(tmp_path)
        shard = sorted(tmp_path.glob("*.safetensors"))[1]
        whole = shard.read_bytes()
        shard.unlink()
        if damage == "cut":
            shard.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"holds no model that transformers can load: "):
            load_model(tmp_path)

    def test_weights_in_torchs_own_format_that_are_cut_off(self, folder: Path) -> None:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        load_model(folder)
        stored = (folder / "pytorch_model.bin").read_bytes()
        (folder / "pytorch_model.bin").write_bytes(stored[: len(stored) // 2])
        with pytest.raises(ValueError, match=r"holds no model that transformers can load: "):
            load_model(folder)

    def test_a_gguf_file_without_a_weight(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = transformers_model("llama", dtype=torch.float32)
        held = raw.state_dict()
        held.pop("model.layers.1.mlp.up_proj.weight")
        monkeypatch.setattr(raw, "state_dict", lambda: held)
        write_gguf(raw, tmp_path / "tiny.gguf")
        with pytest.raises(ValueError, match=r"lacks 1 of the weights that the header of the file describes: model"):
            load_model(tmp_path / "tiny.gguf")
