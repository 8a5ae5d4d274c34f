"""Tokenizers of subwords, trained in memory: byte-level BPE as GPT-2 and Qwen have it, and SentencePiece's kind."""

from typing import Any

TEXTS = (
    "Alice is in Greece. The note says so.",
    "Café “naïve” €5, 日本 😀 the end.\nNext  line?\n\n Two.",
    "e\u0301 The",
    "Is\tit at the Colosseum ?",
)


def byte_level(*, extra: str = "") -> Any:
    """A byte-level BPE tokenizer as GPT-2 has it, which trims white space off the places it tells."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [  # as Qwen splits: a mark takes the line feeds behind it along
            pre_tokenizers.Split(tiny_regex(r" ?\w+| ?[^\s\w]+[\n]*|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    backend.train_from_iterator([*TEXTS * 3, *["so\n  so"] * 9, extra], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    fast.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # transformers 5 sets its own
    return fast


def metaspace(*, special: str = "<s> $A </s>") -> Any:
    """A tokenizer of the SentencePiece kind: pieces of words that carry a mark for the space before them, with BOS."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False, min_frequency=1
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single=special, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tiny_regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)
