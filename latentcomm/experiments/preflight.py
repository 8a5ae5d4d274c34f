"""The checks of a run before the first weight is read: what all experiments share, and what comes out.

Each experiment's own check is in its package (`_check.py`), named with its function in `run.EXPERIMENTS`; what it
parsed is what the experiment then runs with.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any, TypeVar

import torch

from latentcomm import models
from latentcomm._core.files import readable
from latentcomm._core.progress import duration
from latentcomm.channels.catalogue import TOGETHER
from latentcomm.experiments.capacity import free_disk, free_memory, multiply_adds_a_second, n_gpus
from latentcomm.experiments.cost import MULTIPLY_ADD, ModelSize, pass_flops, ridge_flops, staircase_flops
from latentcomm.experiments.evaluation import ITEMS_AT_ONCE
from latentcomm.experiments.job import Job
from latentcomm.experiments.maps import MAP_FOLDS, check_widths
from latentcomm.experiments.settings import Alignment, Settings, TaskSettings, cell_of
from latentcomm.experiments.sweep.grid import UNEMBED_BYTES
from latentcomm.hooks.capture import TOKENS_PER_BATCH
from latentcomm.hooks.shared_prefix import columns_of, writes_together
from latentcomm.models import Model, ModelShape
from latentcomm.models.builtin import BUILT_IN
from latentcomm.models.devices import DTYPES, resolve_dtype
from latentcomm.models.encoding import check_template
from latentcomm.models.loading import quantized
from latentcomm.tasks.base import Task

__all__ = ["Checks", "Preflight", "Side"]

T = TypeVar("T")
PAGE = 5 * 10**6
"""Bytes of a page, which holds plotly's code, and of its tables."""
PAGES_HELD = 35 * 10**6
"""Bytes of memory in which figures, tables and pages are made; measured with the built-in model."""
TOKENIZER = 1700
"""Bytes of an entry of a vocabulary, in a tokenizer and its digest; measured with 49,152 and 151,936 tokens."""
SAMPLED = 64
"""Texts that are tokenized to estimate the length of all."""
SLOWER = 3
"""How much longer than by its products of matrices a run takes at most: statistics, choices, files and pages are not
counted. docs/commands.md has what was measured: 1.3 to 2.9 times as long in three commands."""
PASS_ROWS = 24
"""A pass costs as many rows more than it has: all weights are read once, and hooks and layers are called. Measured with
SmolLM2-135M on a CPU, where 1, 4 and 16 rows of a token take 0.08, 0.13 and 0.17 s."""
LAYER_SECONDS = 1.6e-3
"""Seconds of Python that a layer takes in a pass, on one slow core: the least time of a pass on a fast device."""
QUANTIZED = {"8bit": 1.0, "4bit": 0.5}
"""Bytes of an entry of a quantised matrix."""
CHARACTERS = 4
"""Characters of a token where there is no tokenizer."""
RAGGED = 2
"""Lengths among n texts that a model has written, over the root of n: about six among eight."""
COMPARED = 4
"""Short passes in which a model is compared with transformers' own before that runs in its place."""
TOKENIZED = 2048
"""Texts whose tokens are counted one by one."""
LONGEST = 8
"""Texts of the most characters that are tokenized to find one of too many tokens."""


@dataclass(frozen=True)
class Preflight:
    """What is known of a run before the first weight is read.

    Attributes:
        refusals: every reason why it would not run, a sentence each; none where it can.
        notes: what it does otherwise than one might think.
        work: what would run, one line each.
        memory, free_memory: bytes that it holds at least on the device (weights, caches, passes), and that are free
            there. Where the device computes in the memory of the machine, states, messages and statistics are included.
        host_memory, free_host_memory: bytes that it holds at least, and that are free, in the memory of the machine
            where the device, a CUDA one, has its own: states, messages, statistics, and weights while they are loaded.
        disk, free_disk: bytes that it writes, and that are free where it writes; 0 without a folder.
        flops: operations of the matrix products of its forward passes, every reply at its full length.
        statistics: those of its maps and similarities, in float64.
        passes: forward passes, of any number of rows.
        weights_read: bytes of weights that they read.
        seconds: an estimate of the least that it takes, from the operations that were counted and a short timing of
            this machine, which other work on it slows; None where nothing was timed or counted.
        speed: the machine that `seconds` are for where it is another one, without the statistics; "" for this one.
    """

    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    work: tuple[str, ...] = ()
    memory: int = 0
    free_memory: int | None = None
    host_memory: int = 0
    free_host_memory: int | None = None
    disk: int = 0
    free_disk: int | None = None
    flops: float | int = 0
    statistics: float | int = 0
    passes: int = 0
    weights_read: float | int = 0
    seconds: float | int | None = None
    speed: str = ""

    def check(self) -> None:
        """Return if the run can start.

        Raises:
            ValueError: with every refusal, numbered where there are several.
        """
        if len(self.refusals) == 1:
            raise ValueError(self.refusals[0])
        if self.refusals:
            listed = [f"{number}. {refusal}" for number, refusal in enumerate(self.refusals, 1)]
            raise ValueError("\n".join([f"{len(listed)} things keep this from running:", *listed]))

    def lines(self) -> list[str]:
        """The report, line by line, without the refusals."""
        found = [f"would run: {each}" for each in self.work]
        for what, needed, free in (
            ("memory", self.memory, self.free_memory),
            ("host memory", self.host_memory, self.free_host_memory),
            ("disk", self.disk, self.free_disk),
        ):
            if needed:
                found.append(f"{what}: about {readable(needed)}" + ("" if free is None else f", {readable(free)} free"))
        if self.flops:
            more = f", and {_operations(self.statistics)} of statistics in float64" if self.statistics else ""
            found.append(f"operations: about {_operations(self.flops)} in {self.passes:,} forward passes{more}")
            found.append(f"weights read: about {readable(self.weights_read)}")
        if self.seconds is not None and self.speed:
            more = ", and the statistics on its CPU" if self.statistics else ""
            found.append(
                f"time: at least {duration(max(1, self.seconds))} at {self.speed}, the time to load the models{more}"
            )
        elif self.seconds is not None:
            least, most = (duration(max(1, factor * self.seconds)) for factor in (1, SLOWER))
            found.append(f"time: about {least} to {most}, and the time to load the models")
        return found + [f"note: {each}" for each in self.notes]


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
class Checks:
    """The checks of one run, which continue after a refusal, so that all refusals are found.

    Attributes:
        settings, job: of the run.
        elsewhere: whether it is planned for another machine, whose devices and memory are not known.
        refusals, notes, work: see `Preflight`.
        on_device, on_host: bytes of memory, by what they hold: what passes of the models need, and what is computed
            from their states.
        loaded: bytes of the largest model that is loaded, which passes through the memory of the host.
        disk: bytes that are written.
        flops, statistics, passes, weights_read: see `Preflight`.
        pass_flops: operations of `PASS_ROWS` rows of every pass, which take as long.
        layers_run: layers of all passes.
        too_long: models whose prompts have been refused.
        counted: tokens of texts that were tokenized.
    """

    settings: Settings
    job: Job
    elsewhere: bool = False
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    work: list[str] = field(default_factory=list)
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
    too_long: set[str] = field(default_factory=set)
    counted: dict[Any, list[float]] = field(default_factory=dict)

    def of(self, make: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
        """What a function returns; None where it refuses its arguments, which is then a refusal of the run."""
        try:
            return make(*arguments, **options)
        except (ValueError, RuntimeError, OSError) as error:
            self.refuse(str(error))
            return None

    def refuse(self, sentence: str, *, when: bool = True) -> None:
        """Add a refusal, once."""
        if when and sentence not in self.refusals:
            self.refusals.append(sentence)

    def task(self) -> Task | None:
        """The task of the settings, or the one in memory."""
        if not isinstance(self.settings, TaskSettings):
            raise RuntimeError(f"{self.settings.command} has no task")
        return self.of(self.job.task_of, self.settings)

    def pair(self) -> tuple[Side | None, Side | None]:
        """Sender and receiver; None for one that is refused."""
        sender, receiver, settings = self.job.sender, self.job.receiver, self.settings
        first = self.named(settings.sender) if sender is None else Side.in_memory(sender)
        if receiver is not None:
            return first, first if receiver is sender else Side.in_memory(receiver)
        same = settings.receiver == "" or (sender is None and settings.receiver == settings.sender)
        return first, first if same else self.named(settings.receiver)

    def named(self, name: str, *, tokenized: bool = True) -> Side | None:
        """The model of a name; None where there is none, which is a refusal. A vision encoder has no tokenizer."""
        shape = self.of(models.shape_of, name)
        if shape is None:
            return None
        if shape.weights_bytes is not None or name in BUILT_IN:
            return Side(name, shape, self.of(models.tokenizer_of, name) if tokenized else None)
        self.notes.append(f"the weights of {name} are not on this machine; its sizes are those of its configuration")
        try:
            tokenizer = models.tokenizer_of(name) if tokenized else None
        except (ValueError, RuntimeError, OSError):
            tokenizer = None
        if tokenized and tokenizer is None:
            self.notes.append(f"{name} has no tokenizer on this machine; four characters are counted as a token")
        return Side(name, shape, tokenizer)

    def loading(self) -> None:
        """Refuse a dtype, a device or a placement that there is not."""
        settings = self.settings
        device = None if self.elsewhere else self.of(models.resolve_device, settings.device)
        dtype = self.of(resolve_dtype, settings.dtype, device=device or "cpu")
        self.refuse(
            f"device_map is {settings.device_map}, and device is {settings.device}, which is one alone; give device "
            "'auto' or 'cuda' with it",
            when=bool(settings.device_map) and settings.device not in ("auto", "cuda"),
        )
        if settings.quantization and device is not None and device.startswith("mps"):
            self.refuse(f"quantization is {settings.quantization}, and MPS has none; give a smaller dtype instead")
        elif settings.quantization and dtype is not None and not self.elsewhere:
            self.of(quantized, settings.quantization, dtype)
        if self.settings.one_at_a_time:
            self._loads_in_turn()

    def _loads_in_turn(self) -> None:
        """Refuse to load one model at a time where both are needed at once, or one is in memory already."""
        settings = self.settings
        self.refuse(
            f"one_at_a_time is true, and {settings.command} needs both models at every step; leave it out",
            when=not settings.in_turn,
        )
        named = getattr(settings, "channels", TOGETHER[:0]) or (TOGETHER if settings.command == "compare" else ())
        together = [name for name in named if name.replace("-", "_") in TOGETHER]
        self.refuse(
            f"one_at_a_time is true, and the channel {next(iter(together), '')} runs both models in turns at every "
            "step; leave out one of the two",
            when=bool(together) and settings.in_turn,
        )
        memory = [role for role in self.job.in_memory if role != "task"]
        self.refuse(
            f"one_at_a_time is true, and the {' and '.join(memory)} is in memory; name the models in the settings",
            when=bool(memory),
        )
        self.refuse(
            "one_at_a_time saves what the sender sends for the receiver; give a folder as `out`",
            when=self.job.out is None,
        )

    def template(self, template: str, *sides: Side | None) -> None:
        """Refuse a chat with a model that has no chat template."""
        for side in sides:
            if side is not None and side.tokenizer is not None:
                self.of(check_template, side.name, side.tokenizer, template)

    def widths(self, alignment: Alignment, sender: Side | None, receiver: Side | None) -> None:
        """Refuse unequal widths that nothing matches."""
        if sender is not None and receiver is not None and None not in (sender.shape.d_model, receiver.shape.d_model):
            self.of(check_widths, sender.shape, receiver.shape, alignment)

    def layers(self, option: str, side: Side | None) -> None:
        """Refuse layers of an option beyond a model's depth, or given twice."""
        value = getattr(self.settings, option)
        layers = [value] if isinstance(value, int) else list(value or ())
        if repeated := [layer for number, layer in enumerate(layers) if layer in layers[:number]]:
            self.refuse(f"{option} names layer {repeated[0]} twice; name each once")
        n_layers = None if side is None else side.shape.n_layers
        if side is not None and n_layers is not None and (outside := [each for each in layers if each >= n_layers]):
            what = option if isinstance(value, int) else f"{option}: layer"
            self.refuse(f"{what} {outside[0]} is outside {side.name}, whose layers are 0 to {n_layers - 1}")

    def prompts(self, side: Side | None, texts: Sequence[str], *, n_new: int = 1) -> None:
        """Refuse prompts that exceed a model's context with the `n_new` tokens written after them.

        The longest texts are tokenized, without a chat around them; the last token that is written is not read.
        """
        if side is None or side.tokenizer is None or side.shape.n_ctx is None or not texts:
            return
        if side.name in self.too_long:
            return
        longest = sorted(texts, key=len)[-LONGEST:]
        most = max(len(ids) for ids in side.tokenizer(longest).input_ids)
        if most + n_new - 1 > side.shape.n_ctx:
            self.too_long.add(side.name)
            reply = f" and {n_new} more are written" if n_new > 1 else ""
            self.refuse(
                f"a prompt has {most} tokens{reply}, and {side.name} reads {side.shape.n_ctx} at most; shorten it"
            )

    def cell(self) -> tuple[int, int] | None:
        """The cell of the settings; refuses a read layer without a write layer."""
        return self.of(cell_of, *(getattr(self.settings, name) for name in ("read_layer", "write_layer")))

    def task_pair_and_cell(self) -> tuple[Task | None, Side | None, Side | None, tuple[int, int] | None]:
        """Task, sender, receiver and cell, with the template and the layers that fit them; None for what is refused."""
        task, (sender, receiver), cell = self.task(), self.pair(), self.cell()
        self.template(str(getattr(self.settings, "template", "raw")), sender, receiver)
        self.layers("read_layer", sender)
        self.layers("write_layer", receiver)
        return task, sender, receiver, cell

    def last_block(self, layers: Sequence[int], side: Side | None) -> None:
        """Note that a graft after the last block alone passes through nothing of the receiver."""
        if side is not None and side.shape.n_layers is not None and {*layers} == {side.shape.n_layers - 1}:
            self.notes.append(
                f"states are written after the last block of {side.name} alone, where no block reads them: a replaced "
                "state gives what the sender would predict by the receiver's unembedding"
            )

    def answers(self, task: Task) -> None:
        """Note a task whose prompts of the receiver name the answer of most items, and no other candidate."""
        named = 0
        for item in task.items:
            others = [each for each in item.candidates or task.candidates if each.strip() not in item.answers]
            named += _names(item.receiver, item.answers) and not _names(item.receiver, others)
        if 2 * named > len(task.items):
            self.notes.append(
                f"the receiver's own prompt names the answer in {named} of {len(task.items)} items of {task.name}: the "
                "silent channel is then no baseline"
            )

    def at_most(self, option: str, there: int, what: str, of: str = "items") -> int:
        """The number of an option, at most what there is; more is refused, unless it is the option's default.

        0 is all where the option takes 0.
        """
        value = getattr(self.settings, option)
        default = next(each.default for each in fields(self.settings) if each.name == option)
        if value > there and value != default:
            self.refuse(f"{option} is {value}, and {what} has {there} {of}; give at most {there}")
        elif value > there:
            self.notes.append(f"{what} has {there} {of}, fewer than the {value} of the default: all of them are used")
        return there if value == 0 else min(value, there)

    def split(self, task: Task) -> tuple[Task, Task] | None:
        """The tuning and the test half of a task; None where it has too few items, or too few groups of them."""
        try:
            return task.split(seed=self.settings.seed)
        except ValueError:
            n = len({item.tags[task.together] if task.together else item.id for item in task.items})
            what = f"items of {n} {task.together}" if task.together else "items"
            self.refuse(
                f"the {len(task.items)} {what} of task {task.name} cannot be split into a tuning and a test half; give "
                "more items"
            )
            return None

    def halves(self, task: Task, *, tuned: bool) -> tuple[Task, Task] | None:
        """The tuning and the test half of a task, each with as many items as the settings take.

        Where nothing is `tuned` their number of tuning items means nothing.
        """
        halves = self.split(task)
        if halves is None:
            return None
        tune, test = halves
        n_tune = self.at_most("n_tune", len(tune.items), f"the tuning half of {task.name}") if tuned else 1
        n_test = self.at_most("n_test", len(test.items), f"the test half of {task.name}")
        tune, test = (
            half if n >= len(half.items) else half.take(n, seed=self.settings.seed)
            for half, n in ((tune, n_tune), (test, n_test))
        )
        return tune, test

    # What it takes.

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the models; those of float32 for a dtype that is refused."""
        return DTYPES[self.settings.dtype].itemsize if self.settings.dtype in DTYPES else 4

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
    ) -> None:
        """Count passes over prompts and `n_tokens` that are written after each, `times` times over.

        The prompts of a chunk run by length; those of one text are read once but for the last token, if `shares`.
        `n_more` tokens are added to each, and `n_past` positions are in its cache before it. `ragged` prompts are of
        texts that are not known, so of more lengths.
        """
        counts = self.tokens(side, texts)
        for start in range(0, len(texts) * (times > 0), ITEMS_AT_ONCE):
            chunk = range(start, min(start + ITEMS_AT_ONCE, len(texts)))
            groups: dict[float, list[str]] = {}
            for row in chunk:
                groups.setdefault(counts[row] + n_more, []).append(texts[row])
            longest = max(groups) + n_past + n_tokens
            step = max(1, int(TOKENS_PER_BATCH // longest))
            for length, rows in groups.items():
                n_passes = -(-len(rows) // step)
                if ragged:
                    n_passes = max(n_passes, min(len(rows), round(RAGGED * len(rows) ** 0.5)))
                if shares and not n_past and length > 1 and len(rows) > 1 and len({*rows}) == 1:
                    self.runs(side, times * n_passes, n_new=length - 1, n_passes=times * n_passes)
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
        self, side: Side | None, texts: Sequence[str], *, n_layers: int | None = None, chunk: int | None = None
    ) -> None:
        """Count passes that end at a layer, over prompts that are padded to one length."""
        counts = self.tokens(side, texts)
        for start in range(0, len(texts), chunk or max(1, len(texts))):
            part = counts[start : start + (chunk or len(texts))]
            n_passes = -(-len(part) * max(part) // TOKENS_PER_BATCH)
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
            n_passes = -(-n_rows // TOKENS_PER_BATCH)
            self.runs(side, len(texts), n_new=n_rows / len(texts), n_unembedded=0, n_passes=n_passes)
        widths = [side.shape.d_model or 0 for side in sides]
        states = sum(4 * n_rows * (side.shape.n_layers or 0) * (side.shape.d_model or 0) for side in sides)
        self.holds_on_host("states of the maps", states)
        self.statistics += n_maps * ridge_flops(n_rows, widths[0], widths[-1], folds=MAP_FOLDS)

    def tokens(self, side: Side | None, texts: Sequence[str]) -> list[float]:
        """The number of tokens of each text; of many texts those of the first, again and again."""
        key = (None if side is None else side.name, *texts)
        if key not in self.counted:
            sample = [*texts[:TOKENIZED]]
            if side is None or side.tokenizer is None:
                found = [float(max(1, round(len(text) / CHARACTERS))) for text in sample]
            else:
                found = [float(len(ids)) for ids in side.tokenizer(sample).input_ids] if sample else []
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
        return sum(len(ids) for ids in side.tokenizer(sample).input_ids) / len(sample)

    def report(self, *, timed: bool, flops: float | int = 0, bandwidth: float | int = 0) -> Preflight:
        """All that was found, memory and disk compared with what is free here; the time at a speed that is given."""
        free_of = (lambda _: None) if self.elsewhere else free_memory
        disk = self.disk + PAGE * len(self.settings.figures) if self.job.out is not None else 0
        device = self._device()
        left = None if self.job.out is None or self.elsewhere else free_disk(self.job.out)
        spread = "gpus" if self.settings.device_map and device is not None and device.startswith("cuda") else device
        memory, free = self.on_device | self.on_host, None if spread is None else free_of(spread)
        host, host_free, where = {}, None, "memory"
        if device is not None and device.startswith("cuda"):
            memory, host, where = self.on_device, {**self.on_host}, f"memory on {device}"
            where = where if spread == device else f"memory on {n_gpus()} GPUs"
            host["weights while they are loaded"] = max(0, self.loaded - sum(host.values()))
            host_free = free_of("cpu")
            self._compare("host memory", host, host_free)
        self._compare(where, memory, free)
        at_once = disk + PAGE  # a page is written whole beside the one that it replaces
        if left is not None and disk and at_once > left:
            self.refuse(f"this run writes {readable(at_once)} to {self.job.out}, and {readable(left)} are free there")
        seconds, speed = None, ""
        if flops:
            reading = self.weights_read / bandwidth if bandwidth else 0.0
            seconds = max(self.flops / flops, reading, self.layers_run * LAYER_SECONDS)
            speed = f"{_operations(flops)}/s" + (f" and {readable(bandwidth)}/s" if bandwidth else "")
        elif timed and device is not None and self.flops and self.settings.dtype in DTYPES:
            rate = _rate(device, DTYPES[self.settings.dtype])
            seconds = (self.flops + self.statistics + self.pass_flops) / MULTIPLY_ADD / rate
        return Preflight(
            refusals=tuple(self.refusals),
            notes=tuple(dict.fromkeys(self.notes)),
            work=tuple(self.work),
            memory=sum(memory.values()),
            free_memory=free,
            host_memory=sum(host.values()),
            free_host_memory=host_free,
            disk=disk,
            free_disk=left,
            flops=self.flops,
            statistics=self.statistics,
            passes=round(self.passes),
            weights_read=self.weights_read,
            seconds=seconds,
            speed=speed,
        )

    def _compare(self, where: str, needed: Mapping[str, int], free: int | None) -> None:
        """Refuse to need more memory than is free; the parts are named, largest first."""
        if free is not None and (total := sum(needed.values())) > free:
            most = sorted((what for what in needed if needed[what]), key=lambda what: -needed[what])
            parts = ", ".join(f"{what} {readable(needed[what])}" for what in most)
            self.refuse(
                f"this run needs {readable(total)} of {where} ({parts}), and {readable(free)} are free: "
                f"{readable(total - free)} are missing; give smaller models, sizes or numbers"
            )

    def _device(self) -> str | None:
        if self.elsewhere:
            return "cuda" if self.settings.device == "auto" else self.settings.device
        try:
            return models.resolve_device(self.settings.device)
        except ValueError:  # which is a refusal already
            return None


def _operations(n: float | int) -> str:
    """A number of operations.

    >>> _operations(1.5e15), _operations(2e7)
    ('1.5 PFLOP', '0.02 GFLOP')
    """
    unit, name = next((each for each in ((1e15, "PFLOP"), (1e12, "TFLOP")) if n >= each[0]), (1e9, "GFLOP"))
    return f"{n / unit:.3g} {name}"


@cache
def _rate(device: str, dtype: torch.dtype) -> float:
    return multiply_adds_a_second(device, dtype, width=1024)


def _names(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers is in a text, as whole words in any case."""
    return any(re.search(rf"(?<!\w){re.escape(each.strip())}(?!\w)", text, re.IGNORECASE) for each in answers)
