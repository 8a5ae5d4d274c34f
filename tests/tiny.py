"""Tiny random models and a word-level tokenizer, built in memory: what the tests of everything that runs a model run.

Every weight is drawn, biases and norms too, and large enough that a graft in any layer moves the logits.
"""

import copy
import functools
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentcomm.models import Model, wrap_model
from latentcomm.models.prompts import Prompts

ARCHITECTURES = ("llama", "qwen2", "gpt2", "neox")
HAS_HOOKED_TRANSFORMER = importlib.metadata.version("transformer-lens").startswith("3.")
needs_hooked_transformer = pytest.mark.skipif(
    not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer"
)
BACKENDS = ("bridge", pytest.param("hooked", marks=needs_hooked_transformer))
EVERY_MODEL = [
    pytest.param(architecture, backend, id=f"{architecture}-{backend}", marks=marks)
    for architecture in ARCHITECTURES
    for backend, marks in (("bridge", ()), ("hooked", needs_hooked_transformer))
]
"""Values of (architecture, backend) for a test that must hold on all of them."""

COUNTRIES = ("Greece", "Italy", "Peru", "Chile", "Egypt", "Oman", "Niger", "Japan")
CHOICES = tuple(f" {name}" for name in COUNTRIES)
WORDS = ("Alice", "The", "is", "at", "in", "of", "the", "country", "Colosseum", "note", "says", "invest", ".", "?")
SPECIAL = ("<unk>", "<bos>", "<eos>", "<user>", "<end>", "<assistant>")
VOCABULARY = {
    token: number
    for number, token in enumerate(
        [*SPECIAL, " ", "\n", *(name for word in (*WORDS, *COUNTRIES) for name in (word, f" {word}"))]
    )
}
N_VOCABULARY = 64
PAD = " of"
PAD_ID = VOCABULARY[PAD]
BOS_ID, EOS_ID = VOCABULARY["<bos>"], VOCABULARY["<eos>"]
N_CTX = 40

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(*, adds_bos: bool = False, chat: bool = True, bos: bool = True) -> Any:
    """A fast tokenizer whose words carry the space before them, and whose padding token is a word of the texts."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s.?]+| ?[.?]|\s"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS_ID)])
    out = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<bos>" if bos else None,
        eos_token="<eos>",
        pad_token=PAD,
        additional_special_tokens=["<user>", "<end>", "<assistant>"],
    )
    out.chat_template = CHAT_TEMPLATE if chat else None
    return out


def transformers_model(
    architecture: str,
    *,
    d_model: int = 32,
    n_layers: int = 3,
    n_heads: int = 4,
    n_vocabulary: int = N_VOCABULARY,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    sliding_window: int = 4096,
) -> Any:
    """A transformers causal language model with drawn weights and eager attention."""
    import transformers as hf

    common: dict[str, Any] = {
        "vocab_size": n_vocabulary,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "attn_implementation": "eager",
    }
    llama_like = common | {
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": N_CTX,
    }
    grouped = llama_like | {"num_key_value_heads": max(1, n_heads // 2)}
    match architecture:
        case "llama":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**grouped))
        case "qwen2":
            model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped))
        case "mistral":
            model = hf.MistralForCausalLM(hf.MistralConfig(**grouped, sliding_window=sliding_window))
        case "gemma2":
            caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5, "query_pre_attn_scalar": 8}
            config = hf.Gemma2Config(**grouped, **caps, head_dim=d_model // n_heads, sliding_window=sliding_window)
            model = hf.Gemma2ForCausalLM(config)
        case "neox":
            model = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**llama_like, rotary_pct=0.5))
        case "gpt2":
            sizes = {"n_embd": d_model, "n_layer": n_layers, "n_head": n_heads, "n_positions": N_CTX, "n_ctx": N_CTX}
            model = hf.GPT2LMHeadModel(hf.GPT2Config(**common, **sizes))
        case "gpt_neo":
            sizes = {"hidden_size": d_model, "num_layers": n_layers, "num_heads": n_heads}
            reach = {"attention_types": [[["global"], n_layers]], "max_position_embeddings": N_CTX}
            model = hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**common, **sizes, **reach))
        case _:
            raise ValueError(f"there is no tiny {architecture}")
    model = model.to(dtype).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            if parameter.ndim == 1:  # a bias, or a norm's scale
                parameter.add_((0.3 * noise).to(dtype))
            else:
                scale = 1.0 if "emb" in name or "wte" in name or "wpe" in name else 1.5 / parameter.shape[-1] ** 0.5
                parameter.copy_((scale * noise).to(dtype))
    return model


def hooked_transformer(model: Any, tokenizer: Any = None, **processing: bool) -> Any:
    """The same model as a raw HookedTransformer of TransformerLens 3.9; name a step of processing to have it done."""
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading
    from transformers.utils import logging

    steps = dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices"),
        False,
    )
    dtype = next(model.parameters()).dtype
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="tiny-") as folder:  # its name decides: TransformerLens looks for "llama"
        model.save_pretrained(folder)
        config = loading.get_pretrained_model_config(
            folder,
            hf_cfg=model.config.to_dict(),
            dtype=dtype,
            device="cpu",
            fold_ln=processing.get("fold_ln", False),
        )
        weights = loading.get_pretrained_state_dict(folder, config, copy.deepcopy(model), dtype=dtype)
    if tokenizer is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.init_kwargs |= {"name_or_path": "tiny", "add_bos_token": True}
    hooked = HookedTransformer(config, tokenizer, move_to_device=False)
    hooked.load_and_process_state_dict(weights, **(steps | processing))
    return hooked


GGUF_WORDS = ("<unk>", "<bos>", "<eos>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "Ġc")


def write_gguf(model: Any, path: Path) -> None:
    """A tiny Llama as a .gguf file with a byte-level tokenizer of the letters, as llama.cpp's converter writes it."""
    import gguf

    config, file = model.config, gguf.GGUFWriter(path, "llama")
    words = [*GGUF_WORDS, *(f"unused{n}" for n in range(config.vocab_size - len(GGUF_WORDS)))]
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(10000.0)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("default")
    file.add_token_list(words)
    file.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(words) - 3))
    file.add_token_merges(["a b", "Ġ c"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"} | {
        f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}"
        for layer in range(config.num_hidden_layers)
        for theirs, ours in (
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        )
    }
    for name, weight in model.state_dict().items():
        weight = weight.float()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp rotates neighbouring entries, transformers the two halves of a head
                weight = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)
        file.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", weight.contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def broken_gguf(path: Path, kept: int) -> Path:
    """The first bytes of such a file, written there."""
    write_gguf(transformers_model("llama", dtype=torch.float32), path)
    path.write_bytes(path.read_bytes()[:kept])
    return path


def build(architecture: str, backend: str = "bridge", **options: Any) -> Model:
    """A fresh tiny model behind the seam: for a test that changes it."""
    raw = transformers_model(architecture, **options)
    words = tokenizer()
    if backend == "hooked":
        return wrap_model(hooked_transformer(raw, words), words, name=f"tiny-{architecture}")
    return wrap_model(raw, words, name=f"tiny-{architecture}")


@functools.cache
def model(architecture: str, backend: str = "bridge", **options: Any) -> Model:
    """A tiny model behind the seam, built once: for a test that only runs it."""
    return build(architecture, backend, **options)


def ids(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Random prompts of the given lengths, without special tokens."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(len(SPECIAL), N_VOCABULARY, (length,), generator=draw) for length in lengths]


def left_padded(rows: list[Tensor], *, pad_id: int = PAD_ID) -> Prompts:
    """The prompts of some rows of ids, padded on the left."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :] = row
        mask[number, width - len(row) :] = True
    return Prompts(tokens, mask)


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random vectors."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def block_counter(model: Model) -> list[int]:
    """How many forward passes have entered each block."""
    seen = [0] * model.n_layers

    def counter(layer: int) -> Any:
        def count(*_: object) -> None:
            seen[layer] += 1

        return count

    for layer, block in enumerate(model.hooked.blocks):
        block.register_forward_pre_hook(counter(layer))
    return seen


def hooks_left(model: Model) -> int:
    """How many forward hooks are attached to a model's hook points."""
    points = {id(point): point for point in model.hooked.hook_dict.values()}
    return sum(len(point.fwd_hooks) for point in points.values())


def files_in(folder: Path) -> list[str]:
    """The names of all that lies in a folder, hidden files and folders of folders too, but for a run's saved work."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")] if folder.exists() else []
    return sorted(name for name in names if not name.startswith(".latentcomm"))
