"""The settings of `latentcomm cascade`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from latentcomm.experiments.settings import DEFAULT_MODEL, AtLeast, Layer, TaskSettings

__all__ = ["CascadeSettings"]


@dataclass(frozen=True, kw_only=True)
class CascadeSettings(TaskSettings):
    """Let a large model generate n tokens and a small one finish: accuracy against n and against cost, with controls.

    Attributes:
        sender: The large model, which generates the opening (alias: --large).
        receiver: The small model, which continues it (alias: --small).
        n: Comma-separated: tokens by the large model; 0 is the small model alone.
        stop: Comma-separated names of `latentcomm list stops`, or prefixes of them.
        hand_off: Comma-separated: text, latent, graft, kv.
        read_layer: Of latent and graft: the block of the large model to read after; by default at 2/3 of its depth.
        write_layer: Of graft: the block of the small model to write after; the same.
        corpus: Documents to fit maps on: a text file, .jsonl or folder of .txt; by default the packaged corpus.
        n_items: Items that are run; 0 for all.
        reply_tokens: Of opening and continuation at most; 0 for the task's own.
        controls: Comma-separated; both models alone are always run.
    """

    command: ClassVar[str] = "cascade"
    figures: ClassVar[tuple[str, ...]] = ("", "_front", "_signals")
    tables: ClassVar[tuple[str, ...]] = ("_trials.jsonl", "_tokens.csv")

    sender: str = ""
    receiver: str = DEFAULT_MODEL
    task: str = "gsm8k"
    n: tuple[int, ...] = (0, 8, 16, 32, 64, 128)
    stop: tuple[str, ...] = ("entropy-drop",)
    hand_off: tuple[str, ...] = ("text",)
    read_layer: Layer = None
    write_layer: Layer = None
    corpus: str = ""
    n_items: Annotated[int, AtLeast(0)] = 100
    reply_tokens: Annotated[int, AtLeast(0)] = 0
    controls: tuple[str, ...] = ("shuffled", "zero", "random", "self", "self-consistency")
