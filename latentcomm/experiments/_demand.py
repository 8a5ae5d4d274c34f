"""What a run takes, counted from the sizes of its models: memory, disk, operations, passes and tokens."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from latentcomm._core.budget import at_most, budget
from latentcomm.experiments.cost import MULTIPLY_ADD, ModelSize, pass_flops, ridge_flops, staircase_flops
from latentcomm.experiments.evaluation import ITEMS_AT_ONCE
from latentcomm.experiments.job import Job
from latentcomm.experiments.maps import MAP_FOLDS
from latentcomm.experiments.settings import Settings
from latentcomm.experiments.sweep.grid import UNEMBED_BYTES
from latentcomm.hooks.capture import TOKENS_PER_BATCH, numbers_of_a_row
from latentcomm.hooks.paired_text import TOKENS_PER_PART
from latentcomm.hooks.shared_prefix import columns_of, writes_together
from latentcomm.models import Model, ModelShape
from latentcomm.models.chat import AnyTemplate, ChatFormat, as_turn
from latentcomm.models.devices import DTYPES
from latentcomm.tasks.base import Task

__all__ = ["Demand", "Side"]

PAGES_HELD = 35 * 10**6
"""Bytes of memory in which figures, tables and pages are made; measured with the built-in model."""
TOKENIZER = 1700
"""Bytes of an entry of a vocabulary, in a tokenizer and its digest; measured with 49,152 and 151,936 tokens."""
SAMPLED = 64
"""Texts that are tokenized to estimate the length of all."""
PASS_ROWS = 24
"""A pass costs as many rows more than it has: all weights are read once, and hooks and layers are called. Measured with
SmolLM2-135M on a CPU, where 1, 4 and 16 rows of a token take 0.08, 0.13 and 0.17 s."""
QUANTIZED = {"8bit": 1.0, "4bit": 0.5}
"""Bytes of an entry of a quantised matrix."""
CHARACTERS = 4
"""Characters of a token where there is no tokenizer."""
RAGGED = 2
"""Lengths among n texts that a model has written, over the root of n: about six among eight."""
COMPARED = 4
"""Short passes in which a model is compared with transformers' own before that runs in its place."""
COUNTED = 256
"""Lists of texts whose tokens are remembered."""
TOKENIZED = 2048
"""Texts whose tokens are counted one by one."""


@dataclass(frozen=True, eq=False)
class Side:
    """A language model of a run, as far as it is known without its weights.

    Attributes:
        name: as it is loaded or wrapped.
        shape: its sizes; one is None where it cannot be known before the model is loaded.
        tokenizer: its tokenizer; None where it cannot be known, or the model has none.
        model: the model where it is in memory.
    """

    name: str
    shape: ModelShape
    tokenizer: Any
    model: Model | None = None

    @classmethod
    def in_memory(cls, model: Model) -> "Side":
        """A model in memory."""
        size = ModelSize.of(model)
        weights = list(model.hooked.parameters())
        shape = ModelShape(
            name=model.name,
            n_layers=size.n_layers,
            d_model=size.d_model,
            n_heads=size.n_heads,
            n_key_value_heads=size.n_key_value_heads,
            d_head=size.d_head,
            d_mlp=size.d_mlp,
            d_vocab=size.d_vocab,
            n_ctx=model.n_ctx,
            n_parameters=sum(each.numel() for each in weights),
            weights_bytes=None,
        )
        return cls(model.name, shape, model.tokenizer, model)

    def size(self) -> ModelSize | None:
        """The sizes that operations are counted by; feed-forward layers have a gate where that is not known."""
        if self.model is not None:
            return ModelSize.of(self.model)
        names = [each.name for each in fields(ModelSize) if each.name != "gated"]
        sizes = {name: getattr(self.shape, name) for name in names}
        return None if None in sizes.values() else ModelSize(**sizes, gated=self.shape.gated is not False)

    def shares_vocabulary(self, other: "Side") -> bool:
        """Whether an id is the same token in both, as far as that is known."""
        mine, theirs = self._vocabulary, other._vocabulary
        return self is other or mine is None or theirs is None or mine == theirs

    @cached_property
    def _vocabulary(self) -> Mapping[str, int] | None:
        """Its tokens and their ids."""
        return None if self.tokenizer is None else self.tokenizer.get_vocab()


@dataclass(eq=False)
class Demand:
    """What one run takes, counted piece by piece.

    Attributes:
        settings, job: of the run.
        on_device, on_host: bytes of memory, by what they hold: what passes of the models need, and what is computed
            from their states.
        loaded: bytes of the largest model that is loaded, which passes through the memory of the host.
        disk: bytes that are written.
        flops, statistics, passes, weights_read: see `Preflight`.
        pass_flops: operations of `PASS_ROWS` rows of every pass, which take as long.
        layers_run: layers of all passes.
        counted: tokens of texts that were tokenized.
        items_at_once: items of a task that run together.
    """

    settings: Settings
    job: Job
    on_device: dict[str, int] = field(default_factory=dict)
    on_host: dict[str, int] = field(default_factory=dict)
    loaded: int = 0
    disk: int = 0
    flops: float = 0.0
    statistics: float = 0.0
    passes: float = 0.0
    weights_read: float = 0.0
    pass_flops: float = 0.0
    layers_run: float = 0.0
    counted: dict[Any, list[float]] = field(default_factory=dict)
    items_at_once: int = ITEMS_AT_ONCE

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the models; those of float32 for a dtype that is refused."""
        return DTYPES[self.settings.dtype].itemsize if self.settings.dtype in DTYPES else 4

    @property
    def prompted(self) -> AnyTemplate:
        """How the texts of the task become prompts."""
        return getattr(self.settings, "prompted", "raw") if self.job.task is None else self.job.task.template

    def around(self, side: Side | None) -> int:
        """Tokens of a chat besides those of its last text, where a `ChatFormat` is given; else none are counted."""
        if side is None or side.tokenizer is None or not isinstance(self.prompted, ChatFormat):
            return 0
        with contextlib.suppress(ValueError):  # which is a refusal already
            return len(side.tokenizer(as_turn(side.name, side.tokenizer, "", self.prompted)).input_ids)
        return 0

    def holds(self, what: str, n_bytes: float | int) -> None:
        """Count memory of the device; the most of what is counted under one name, which is there one after another."""
        self.on_device[what] = max(self.on_device.get(what, 0), round(n_bytes))

    def holds_on_host(self, what: str, n_bytes: float | int) -> None:
        """The same of the memory of the host."""
        self.on_host[what] = max(self.on_host.get(what, 0), round(n_bytes))

    def weights(self, *sides: Side | None, itemsize: int | None = None) -> None:
        """Count the weights of models that are loaded; at least their files where only these are known."""
        shapes = {side.name: side.shape for side in sides if side is not None and side.model is None}
        sizes = [self._bytes_of(shape, itemsize or self.itemsize) for shape in shapes.values()]
        self.holds_on_host("tokenizers", TOKENIZER * sum(shape.d_vocab or 0 for shape in shapes.values()))
        if self.job.out is not None:
            self.holds_on_host("pages", PAGES_HELD)
        for side in dict.fromkeys(sides):
            self.runs(side, COMPARED, n_new=1, n_passes=COMPARED)
        if sizes:
            self.holds("weights", max(sizes) if self.settings.one_at_a_time else sum(sizes))
            self.loaded = max(self.loaded, *sizes)

    def _bytes_of(self, shape: ModelShape, itemsize: int) -> int:
        """Bytes of the weights of a model; those in its blocks may be quantised."""
        if shape.n_parameters is None:
            return shape.weights_bytes or 0
        in_blocks = shape.n_in_blocks
        if in_blocks is None:  # of a file whose header names no matrices: all but the embedding and the unembedding
            in_blocks = max(0, shape.n_parameters - 2 * (shape.d_vocab or 0) * (shape.d_model or 0))
        rest = shape.n_parameters - in_blocks
        return round(in_blocks * QUANTIZED.get(self.settings.quantization, itemsize) + rest * itemsize)

    def plans(self, sender: Side | None, receiver: Side | None, task: Task) -> None:
        """Set how many items run together as `evaluate` does: fewer where they do not fit into the stated memory."""
        if budget() is not None:
            texts = ((sender, [item.sender for item in task.items]), (receiver, [item.receiver for item in task.items]))
            n_tokens = sum(max(self.tokens(*each)) for each in texts) + task.reply_tokens
            of_token = max(self.cached(side) for side, _ in texts)
            self.items_at_once = at_most(ITEMS_AT_ONCE, round(n_tokens * of_token))

    def tokens_at_once(self, side: Side | None, longest: float | int, *, n_sites: int = 1) -> int:
        """Tokens of a pass in which a capture runs, of prompts of at most `longest` tokens, as `capture` plans it."""
        size = None if side is None else side.size()
        if size is None:
            return TOKENS_PER_BATCH
        scores = 3 * size.n_heads * max(4, self.itemsize) * longest
        numbers = numbers_of_a_row(size) + n_sites * size.d_model
        return at_most(TOKENS_PER_BATCH, round(self.itemsize * numbers + scores))

    def part(self, sides: Sequence[Side], n_layers: int | None = None) -> int:
        """Tokens of both models whose states at so many layers, or at all, are captured and saved together."""
        layers = [n_layers or side.shape.n_layers or 1 for side in sides]
        sizes = [n * (side.shape.d_model or 0) for n, side in zip(layers, sides, strict=True)]
        return at_most(TOKENS_PER_PART, max(sizes, default=0) * (self.itemsize + 4))

    def runs(
        self,
        side: Side | None,
        n_rows: float | int,
        *,
        n_new: float | int,
        n_past: float | int = 0,
        n_unembedded: float | int = 1,
        at_once: float | int = ITEMS_AT_ONCE,
        n_passes: float | int | None = None,
        n_layers: float | int | None = None,
    ) -> None:
        """Count forward passes over rows, in `n_passes` or of at most `at_once` rows each; `n_layers` of all blocks."""
        size = None if side is None else side.size()
        if size is None or not n_rows:
            return
        depth = size.n_layers if n_layers is None else n_layers
        n_passes = n_rows / max(1, min(at_once, n_rows)) if n_passes is None else n_passes
        row = pass_flops(size, n_new=n_new, n_past=n_past, n_layers=depth, n_unembedded=n_unembedded)
        self.counts(size, n_rows * row, n_passes=n_passes, n_layers=depth, unembeds=n_unembedded > 0)
        tokens = min(n_rows / max(n_passes, 1) * n_new, max(n_new, TOKENS_PER_BATCH))
        width = 8 * size.d_model + 3 * size.d_mlp
        scores = 3 * size.n_heads * max(4, self.itemsize) * (n_new + n_past)  # transformers' softmax is in float32
        logits = max(1, n_unembedded) * n_rows / max(n_passes, 1) * size.d_vocab * (4 + self.itemsize)
        self.holds("passes", tokens * (width * self.itemsize + scores) + logits * (n_unembedded > 0))

    def counts(
        self,
        size: ModelSize,
        n_flops: float | int,
        *,
        n_passes: float | int,
        n_layers: float | int,
        unembeds: bool = True,
    ) -> None:
        """Count the operations of passes, and the weights that each of them reads."""
        self.flops += n_flops
        self.passes += n_passes
        self.layers_run += n_passes * n_layers
        block = size.block * QUANTIZED.get(self.settings.quantization, self.itemsize)
        table = size.d_model * size.d_vocab * self.itemsize * unembeds
        self.weights_read += n_passes * (n_layers * block + table)
        self.pass_flops += n_passes * PASS_ROWS * pass_flops(size, n_new=1, n_unembedded=1)

    def reads(
        self,
        side: Side | None,
        texts: Sequence[str],
        *,
        n_more: float | int = 0,
        n_past: float | int = 0,
        n_tokens: float | int = 1,
        times: float | int = 1,
        shares: bool = True,
        ragged: bool = False,
        grafted: bool = False,
    ) -> None:
        """Count passes over prompts and `n_tokens` that are written after each, `times` times over.

        The prompts of a chunk run by length; those of one text are read once but for the last token, if `shares`.
        `n_more` tokens are added to each, and `n_past` positions are in its cache before it. `ragged` prompts are of
        texts that are not known, so of more lengths. `grafted` ones are read once, but for the last token.
        """
        counts = self.tokens(side, texts)
        for start in range(0, len(texts) * (times > 0), self.items_at_once):
            chunk = range(start, min(start + self.items_at_once, len(texts)))
            groups: dict[float, list[str]] = {}
            for row in chunk:
                groups.setdefault(counts[row] + n_more, []).append(texts[row])
            longest = max(groups) + n_past + n_tokens
            step = max(1, int(TOKENS_PER_BATCH // longest))
            for length, rows in groups.items():
                n_passes = -(-len(rows) // step)
                if ragged:
                    n_passes = max(n_passes, min(len(rows), round(RAGGED * len(rows) ** 0.5)))
                alike = shares and len(rows) > 1 and len({*rows}) == 1
                if (alike or grafted) and not n_past and length > 1:
                    n_rows, n_times = n_passes if alike else len(rows), 1 if grafted else times
                    self.runs(side, n_times * n_rows, n_new=length - 1, n_passes=n_times * n_passes)
                    self.runs(side, times * len(rows), n_new=1, n_past=length - 1, n_passes=times * n_passes)
                else:
                    self.runs(side, times * len(rows), n_new=length, n_past=n_past, n_passes=times * n_passes)
            past = n_past + sum(length * len(rows) for length, rows in groups.items()) / len(chunk)
            n_steps = times * max(0, n_tokens - 1)
            self.runs(
                side,
                len(chunk) * n_steps,
                n_new=1,
                n_past=past + n_tokens / 2,
                n_passes=-(-len(chunk) // step) * n_steps,
            )
            self.holds("caches", min(len(chunk), step) * longest * self.cached(side))

    def captures(
        self,
        side: Side | None,
        texts: Sequence[str],
        *,
        n_layers: int | None = None,
        n_sites: int = 1,
        chunk: int | None = None,
    ) -> None:
        """Count passes that end at a layer, over prompts that are padded to one length; of a chunk or of all."""
        counts = self.tokens(side, texts)
        chunk = min(chunk, self.items_at_once) if chunk else max(1, len(texts))
        for start in range(0, len(texts), chunk):
            part = counts[start : start + chunk]
            n_passes = -(-len(part) // max(1, self.tokens_at_once(side, max(part), n_sites=n_sites) // max(part)))
            self.runs(side, len(part), n_new=max(part), n_unembedded=0, n_passes=n_passes, n_layers=n_layers)

    def unembeds(self, side: Side | None, n_rows: float | int) -> None:
        """Count rows that pass the unembedding outside a forward pass."""
        size = None if side is None else side.size()
        if size is not None:
            n_flops = n_rows * pass_flops(size, n_new=0, n_unembedded=1)
            self.flops += n_flops
            step = max(1, UNEMBED_BYTES // (4 * size.d_vocab))
            self.weights_read += -(-n_rows // step) * size.d_model * size.d_vocab * self.itemsize
            self.holds("logits of a pass", min(n_rows, step) * size.d_vocab * self.itemsize)

    def mixes(self, side: Side | None, n_rows: float | int, *, n_tables: int) -> None:
        """Count averages of embeddings: each a product with so many tables."""
        size = None if side is None else side.size()
        if size is not None:
            self.flops += MULTIPLY_ADD * n_rows * n_tables * size.d_vocab * size.d_model

    def staircase(
        self,
        side: Side | None,
        n_messages: int,
        write_layers: Sequence[int],
        *,
        n_past: float | int,
        splits: bool = True,
    ) -> None:
        """Count the passes in which messages join one prompt after every write layer, and its own pass."""
        size = None if side is None else side.size()
        if size is None or not n_messages:
            return
        past, n_writes = round(n_past), len(write_layers)
        self.runs(side, 1, n_new=past + 1, n_passes=1)
        step = columns_of(size, self.itemsize, past, 1, n_writes, packed=True)
        together = writes_together(size, self.itemsize, past, n_writes) if splits else n_writes
        parts = [[*write_layers][start : start + together] for start in range(0, n_writes, together)]
        for start in range(0, n_messages, step):
            n_rows = min(step, n_messages - start)
            for part in parts:
                n_flops = staircase_flops(size, n_rows=n_rows, write_layers=part, n_past=past)
                n_flops += pass_flops(size, n_new=0, n_unembedded=1)
                self.counts(size, n_flops, n_passes=1, n_layers=size.n_layers)
            self.unembeds(side, n_rows * n_writes)
            width = 8 * size.d_model + 3 * size.d_mlp + 2 * size.n_layers * size.n_key_value_heads * size.d_head
            scores = 3 * size.n_heads * max(4, self.itemsize) * (past + n_rows + 1)
            self.holds("passes", (1 + n_rows * n_writes) * (width * self.itemsize + scores))

    def maps(
        self, sender: Side | None, receiver: Side | None, texts: Sequence[str], n_tokens: int, n_maps: int
    ) -> None:
        """Count the states and the products of maps between two models that are fitted on texts."""
        sides = [side for side in (sender, receiver) if side is not None]
        n_rows = sum(min(n_tokens, n) for n in self.tokens(receiver, texts))
        for side in sides:
            mean, n_layers = n_rows / len(texts), round(n_maps**0.5)  # of cells in a square
            at_once = min(self.part(sides, n_layers), self.tokens_at_once(side, mean, n_sites=n_layers))
            self.runs(side, len(texts), n_new=mean, n_unembedded=0, n_passes=-(-n_rows // max(mean, at_once)))
        widths = [side.shape.d_model or 0 for side in sides]
        states = sum(4 * n_rows * (side.shape.n_layers or 0) * (side.shape.d_model or 0) for side in sides)
        self.holds_on_host("states of the maps", states)
        self.statistics += n_maps * ridge_flops(n_rows, widths[0], widths[-1], folds=MAP_FOLDS)

    def tokens(self, side: Side | None, texts: Sequence[str]) -> list[float]:
        """The number of tokens of each text; of many texts those of the first, again and again."""
        key = (None if side is None else side.name, *texts)
        if key not in self.counted:
            if len(self.counted) >= COUNTED:
                self.counted.pop(next(iter(self.counted)))
            sample = [*texts[:TOKENIZED]]
            if side is None or side.tokenizer is None:
                found = [float(max(1, round(len(text) / CHARACTERS))) for text in sample]
            else:
                around = self.around(side)
                found = [float(around + len(ids)) for ids in side.tokenizer(sample).input_ids] if sample else []
            self.counted[key] = [found[number % len(found)] for number in range(len(texts))]
        return self.counted[key]

    def writes(
        self,
        side: Side | None,
        n_rows: float | int,
        *,
        prompt: float | int,
        n_tokens: float | int,
        at_once: int = ITEMS_AT_ONCE,
    ) -> None:
        """Count rows that read a prompt whose text is not known and write tokens, at most `at_once` in a batch."""
        at_once = min(at_once, ITEMS_AT_ONCE)
        self.runs(side, n_rows, n_new=prompt, at_once=at_once)
        self.runs(side, n_rows * max(0, n_tokens - 1), n_new=1, n_past=prompt + n_tokens / 2, at_once=at_once)
        self.holds("caches", min(n_rows, at_once) * (prompt + n_tokens) * self.cached(side))

    def cached(self, side: Side | None) -> int:
        """Bytes of the keys and values of one token."""
        size = None if side is None else side.size()
        return 0 if size is None else 2 * self.itemsize * size.n_layers * size.n_key_value_heads * size.d_head

    def length(self, side: Side | None, texts: Sequence[str]) -> float:
        """The mean number of tokens of texts, of a sample; four characters are one where there is no tokenizer."""
        step = max(1, len(texts) // SAMPLED)
        sample = [*texts[::step]]
        if side is None or side.tokenizer is None or not sample:
            return sum(map(len, sample)) / CHARACTERS / max(1, len(sample))
        return self.around(side) + sum(len(ids) for ids in side.tokenizer(sample).input_ids) / len(sample)
