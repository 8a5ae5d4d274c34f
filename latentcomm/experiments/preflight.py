"""The checks of a run before the first weight is read: what all experiments share, and what comes out.

Each experiment's own check is in its package (`_check.py`), named with its function in `run.EXPERIMENTS`; what it
parsed is what the experiment then runs with.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

import torch

from latentcomm import models
from latentcomm._core.files import readable
from latentcomm._core.progress import duration
from latentcomm.channels.catalogue import TOGETHER
from latentcomm.experiments._demand import Demand, Side
from latentcomm.experiments.capacity import free_disk, free_memory, multiply_adds_a_second, n_gpus
from latentcomm.experiments.cost import MULTIPLY_ADD
from latentcomm.experiments.maps import check_widths
from latentcomm.experiments.settings import Alignment, TaskSettings, cell_of
from latentcomm.models.builtin import BUILT_IN
from latentcomm.models.chat import ChatFormat, check_template
from latentcomm.models.devices import DTYPES, resolve_dtype
from latentcomm.models.loading import quantized
from latentcomm.tasks.base import Task

__all__ = ["Checks", "Preflight", "together"]

T = TypeVar("T")
PAGE = 5 * 10**6
"""Bytes of a page, which holds plotly's code, and of its tables."""
SLOWER = 3
"""How much longer than by its products of matrices a run takes at most: statistics, choices, files and pages are not
counted. docs/commands.md has what was measured: 1.3 to 2.9 times as long in three commands."""
LAYER_SECONDS = 1.6e-3
"""Seconds of Python that a layer takes in a pass, on one slow core: the least time of a pass on a fast device."""
SHOWN = 3
"""Runs that are named with what they all refuse."""
SUMMED = ("flops", "statistics", "passes", "weights_read")
"""What a report of several runs sums up, besides time and disk."""
KNOWN = 64
"""Models, tasks and halves of tasks that the checks of a list of runs remember."""
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


def together(names: Sequence[str], reports: Sequence[Preflight]) -> Preflight:
    """The report of runs one after the other: sums, of memory the largest, and refusals with the names of their runs.

    The time is the sum over the runs that have one. Disk that is free is compared with what all of them write.
    """
    of: dict[str, list[str]] = {}
    for name, report in zip(names, reports, strict=True):
        for sentence in report.refusals:
            of.setdefault(sentence, []).append(name)
    refusals = [f"{', '.join(found[:SHOWN])}{_more(found)}: {sentence}" for sentence, found in of.items()]
    frees = {
        name: min((free for each in reports if (free := getattr(each, name)) is not None), default=None)
        for name in ("free_memory", "free_host_memory", "free_disk")
    }
    disk, left = sum(each.disk for each in reports), frees["free_disk"]
    if left is not None and disk > left and not any(each.disk > left for each in reports):
        refusals.append(f"all runs write {readable(disk)}, and {readable(left)} are free there")
    seconds = [each.seconds for each in reports if each.seconds is not None]
    return Preflight(
        refusals=tuple(refusals),
        notes=tuple(dict.fromkeys(note for each in reports for note in each.notes)),
        work=(f"{len(reports)} runs",),
        memory=max(each.memory for each in reports),
        host_memory=max(each.host_memory for each in reports),
        disk=disk,
        **frees,
        **{name: sum(getattr(each, name) for each in reports) for name in SUMMED},
        seconds=sum(seconds) if seconds else None,
        speed=reports[0].speed,
    )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""


@dataclass(eq=False)
class Checks(Demand):
    """The checks of one run, which continue after a refusal, so that all refusals are found.

    Attributes:
        elsewhere: whether it is planned for another machine, whose devices and memory are not known.
        refusals, notes, work: see `Preflight`.
        too_long: models whose prompts have been refused.
        sides: sender and receiver, once they are known.
        known: models and tasks that the runs of a list share, each with the checks that found it.
    """

    elsewhere: bool = False
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    work: list[str] = field(default_factory=list)
    too_long: set[str] = field(default_factory=set)
    sides: tuple[Side | None, Side | None] = (None, None)
    known: dict[Any, tuple[Any, "Checks"]] = field(default_factory=dict)

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

    def once(self, key: Any, make: "Callable[[Checks], T]") -> T:
        """What is made for a key once for all runs of a list; what was refused and noted meanwhile is so of each."""
        if (remembered := self.known.pop(key, None)) is None:
            alone = Checks(self.settings, self.job, elsewhere=self.elsewhere)
            remembered = make(alone), alone
        self.known[key] = remembered  # the last
        if len(self.known) > KNOWN:
            self.known.pop(next(iter(self.known)))
        found, alone = remembered
        for sentence in alone.refusals:
            self.refuse(sentence)
        self.notes += alone.notes
        return found

    def task(self) -> Task | None:
        """The task of the settings, or the one in memory."""
        settings = self.settings
        if not isinstance(settings, TaskSettings):
            raise RuntimeError(f"{settings.command} has no task")
        chat = settings.prompted
        self.refuse(
            f"the task is in memory, and its prompts are not a {chat}; give it this `ChatFormat` as its template",
            when=self.job.task is not None and isinstance(chat, ChatFormat) and self.job.task.template != chat,
        )
        return self.once(self._of_task("task"), lambda alone: alone.of(alone.job.task_of, settings))

    def _of_task(self, *what: Any) -> Any:
        """The key of something that the task decides."""
        options = self.settings.task_options().items() if isinstance(self.settings, TaskSettings) else ()
        return *what, self.settings.command, getattr(self.settings, "task", ""), self.settings.seed, *options

    def pair(self) -> tuple[Side | None, Side | None]:
        """Sender and receiver; None for one that is refused."""
        sender, receiver, settings = self.job.sender, self.job.receiver, self.settings
        first = self.named(settings.sender) if sender is None else Side.in_memory(sender)
        if receiver is not None:
            second = first if receiver is sender else Side.in_memory(receiver)
        else:
            same = settings.receiver == "" or (sender is None and settings.receiver == settings.sender)
            second = first if same else self.named(settings.receiver)
        self.sides = first, second
        return self.sides

    def named(self, name: str, *, tokenized: bool = True) -> Side | None:
        """The model of a name; None where there is none, which is a refusal. A vision encoder has no tokenizer."""
        return self.once(("model", name, tokenized), lambda alone: alone._read(name, tokenized))

    def _read(self, name: str, tokenized: bool) -> Side | None:
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

    def template(self, *sides: Side | None) -> None:
        """Refuse a chat that the chat template of a model does not write; note what one does otherwise."""
        for side in sides:
            if side is not None and side.tokenizer is not None:
                self.notes += self.of(check_template, side.name, side.tokenizer, self.prompted) or ()

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

        The longest texts are tokenized, without a chat around them unless a system prompt or a history is given; the
        last token that is written is not read.
        """
        if side is None or side.name in self.too_long:
            return
        if most := self.exceeds(side, texts, n_new=n_new):
            self.too_long.add(side.name)
            reply = f" and {n_new} more are written" if n_new > 1 else ""
            self.refuse(
                f"a prompt has {most} tokens{reply}, and {side.name} reads {side.shape.n_ctx} at most; shorten it"
            )

    def exceeds(self, side: Side | None, texts: Sequence[str], *, n_new: int = 1) -> int:
        """The tokens of the longest prompt where a model's context does not hold it with `n_new` more, else 0."""
        if side is None or side.tokenizer is None or side.shape.n_ctx is None or not texts:
            return 0
        most = max(len(ids) for ids in side.tokenizer(sorted(texts, key=len)[-LONGEST:]).input_ids) + self.around(side)
        return most if most + n_new - 1 > side.shape.n_ctx else 0

    def cell(self) -> tuple[int, int] | None:
        """The cell of the settings; refuses a read layer without a write layer."""
        return self.of(cell_of, *(getattr(self.settings, name) for name in ("read_layer", "write_layer")))

    def task_pair_and_cell(self) -> tuple[Task | None, Side | None, Side | None, tuple[int, int] | None]:
        """Task, sender, receiver and cell, with the template and the layers that fit them; None for what is refused."""
        task, (sender, receiver), cell = self.task(), self.pair(), self.cell()
        self.template(sender, receiver)
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
        key = self._of_task("halves", tuned, *(getattr(self.settings, name) for name in ("n_tune", "n_test")))
        halves = self.once(key, lambda alone: alone._taken(task, tuned))
        if halves is not None:
            self.plans(*self.sides, halves[1])
        return halves

    def _taken(self, task: Task, tuned: bool) -> tuple[Task, Task] | None:
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

    def report(self, *, timed: bool, flops: float | int = 0, bandwidth: float | int = 0) -> Preflight:
        """All that was found, memory and disk compared with what is free here; the time at a speed that is given."""

        def free_of(device: str) -> int | None:  # of a list of runs when it begins: models then stay in memory
            return None if self.elsewhere else self.once(("free memory", device), lambda _: free_memory(device))

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
