"""What every experiment's settings have: models, seed and, for most, a task. Plain values alone, and no torch.

A settings class is the only definition of an option: the command line and its help, a configuration file, the
metadata of a result and the key of saved work are made from its fields.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from beartype.door import is_bearable

from latentcomm._core.budget import parse_bytes
from latentcomm._core.names import check_name

if TYPE_CHECKING:
    from latentcomm.models.chat import AnyTemplate

__all__ = [
    "DEFAULT_MODEL",
    "SAVED",
    "Alignment",
    "AtLeast",
    "ChatSettings",
    "Layer",
    "Settings",
    "TaskSettings",
    "cell_of",
    "listed",
]

S = TypeVar("S", bound="Settings")
DEFAULT_MODEL = "smollm2-135m-instruct"
SAVED = ".latentcomm"
"""The folder in a run's folder that holds all that is saved for a later run; removing it costs only time."""


@dataclass(frozen=True)
class AtLeast:
    """The smallest number that a field takes, as the metadata of its annotation."""

    least: int


Layer = Annotated[int | None, AtLeast(0)]
"""A block counted from 0, as in TransformerLens; None where it is chosen or has a default."""
Alignment = Literal["ridge", "procrustes", "cca", "right-aligned", "none"]
"""How a state of one model enters another: through a map of that kind; the last entries of both fused, without a map;
or as it is. A model with itself needs none."""
CHAT = ("system", "history", "enable_thinking", "date")
"""The options of a chat besides its template."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an experiment with a sender and a receiver.

    Attributes:
        sender: The sender: built-in name, hub id, directory or .gguf file.
        receiver: The receiver, given the same way; by default the sender itself.
        seed: Of splits, choices, controls and training.
        device: cpu, cuda, cuda:1, mps, or auto (cuda where there is one, then mps, then cpu).
        dtype: float32, float64, bfloat16 or float16.
        device_map: auto spreads the blocks of each model over all GPUs, in place of a device.
        quantization: 8bit or 4bit stores the matrices of the blocks as integers; by default they are of the dtype.
        attention: sdpa computes passes under no hook with torch's fused attention, which is faster for long prompts and
            differs in the last digits; passes under hooks are eager, so that every hook point is computed.
        one_at_a_time: Whether to have the weights of one of two models in memory at a time: the same result, in the
            memory of the larger one.
        memory: Of one piece of work besides the weights, such as 2GB: how much is captured, swept and sent at once. By
            default fixed numbers of rows and items, and 512 MiB for a pass of a sweep.

    Raises:
        ValueError: a number below the least that its field takes, or a memory that is no size.
    """

    command: ClassVar[str]
    """The name of the experiment on the command line."""
    default_folder: ClassVar[str] = "figures"
    """The folder that the command writes to by default."""
    names_files: ClassVar[str] = ""
    """Why the files cannot be given a name, where the experiment names them itself."""
    in_parts: ClassVar[bool] = True
    """Whether several processes can each run a part of its records."""
    in_turn: ClassVar[bool] = True
    """Whether it can have one of two models in memory at a time."""
    decides_nothing: ClassVar[tuple[str, ...]] = ("one_at_a_time", "device_map")
    """The options that change no result, such as how often it is saved."""
    decides_unless_default: ClassVar[tuple[str, ...]] = ("quantization", "attention", "memory")
    """Options that decide a result where they are given: without them its key is that of releases that lack them."""
    figures: ClassVar[tuple[str, ...]] = ("",)
    """The suffixes of the figures that may be written; the main one has none."""
    tables: ClassVar[tuple[str, ...]] = ("_trials.csv",)
    """The endings of the other files that may be written."""

    sender: str = DEFAULT_MODEL
    receiver: str = ""
    seed: Annotated[int, AtLeast(0)] = 0
    device: str = "cpu"
    dtype: str = "float32"
    device_map: Literal["", "auto"] = ""
    quantization: Literal["", "8bit", "4bit"] = ""
    attention: Literal["eager", "sdpa"] = "eager"
    one_at_a_time: bool = False
    memory: str = ""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            bounds = [
                each.least for each in getattr(hints[field.name], "__metadata__", ()) if isinstance(each, AtLeast)
            ]
            value = getattr(self, field.name)
            if bounds and value is not None and not value >= bounds[0]:
                raise ValueError(f"{field.name} is {value}; give at least {bounds[0]}")
        _ = self.budget

    @property
    def budget(self) -> int | None:
        """The bytes of `memory`, or None."""
        return parse_bytes(self.memory) if self.memory else None

    def written_as(self: S, name: str) -> dict[str, S]:
        """What is written, by the names of the files: of most experiments one result under the name of the run."""
        return {name: self}

    def files_of(self, name: str) -> tuple[str, ...]:
        """All files that may be written under a name.

        >>> from latentcomm.experiments.train_settings import TrainSettings
        >>> TrainSettings(channels=("gated",)).files_of("gated")
        ('gated.csv', 'gated.json', 'gated.html', 'gated.meta.json', 'gated.safetensors')
        """
        endings = (".csv", ".json", ".html", ".meta.json")
        figures = [f"{name}{suffix}{ending}" for suffix in self.figures for ending in endings]
        return (*figures, *(f"{name}{ending}" for ending in self.tables))

    def to_dict(self) -> dict[str, Any]:
        """All fields in order, tuples as lists: what JSON and TOML hold.

        >>> from latentcomm.experiments.sweep.settings import SweepSettings
        >>> SweepSettings(fusion=("sum",)).to_dict()["fusion"]
        ['sum']
        """
        return {name: _lists(value) for name, value in asdict(self).items()}

    def decisive(self) -> dict[str, Any]:
        """What decides a result: `to_dict` without the options that change none."""
        left_out = {*self.decides_nothing, *self._at_defaults}
        return {name: value for name, value in self.to_dict().items() if name not in left_out}

    @property
    def _at_defaults(self) -> set[str]:
        return {each for each in self.decides_unless_default if getattr(self, each) == getattr(type(self), each)}

    @property
    def placement(self) -> dict[str, Any]:
        """The options of `load_model`."""
        given = {"dtype": self.dtype, "device": None if self.device_map else self.device}
        given |= {"device_map": self.device_map} if self.device_map else {}
        given |= {"attention": self.attention} if self.attention != "eager" else {}
        return given | ({"quantization": self.quantization} if self.quantization else {})

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Settings with these values of their fields, as `to_dict` gives them; the others are the defaults.

        Raises:
            ValueError: a name that is no field, a value of another type, or one that the settings refuse.

        >>> from latentcomm.experiments.sweep.settings import SweepSettings
        >>> SweepSettings.from_dict({"fusion": ["sum"], "n-tune": 8}).n_tune
        8
        """
        known = {field.name: field for field in fields(cls)}
        hints = get_type_hints(cls)
        given = {}
        for key, value in values.items():
            if key.replace("-", "_") == "right_aligned" and "alignment" in known:  # its name in release 0.1
                if not isinstance(value, bool):
                    raise ValueError(f"{key} is {value!r}; give true or false, or alignment instead")
                key, value = "alignment", "right-aligned" if value else "ridge"
            name = check_name(f"option of {cls.command}", key.replace("-", "_"), known)
            if name in given:
                raise ValueError(f"{key} is given twice; give it once")
            entry = _tuples(value)
            if not _fits(entry, hints[name]):
                shown = re.sub(r"<class '(\w+)'>", r"\1", str(hints[name]).replace("typing.", ""))
                raise ValueError(f"{key} is {value!r}; give a value of type {shown}")
            given[name] = float(entry) if hints[name] is float and isinstance(entry, int) else entry
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class ChatSettings(Settings):
    """The settings of an experiment whose prompts may be chats: what these hold besides the text, for both models.

    Attributes:
        system: Of a chat: the system prompt; by default what the model's template has. Without a turn for it there, it
            is written into the user's.
        history: Of a chat: earlier turns, a JSON list such as [["user", "Hi"], ["assistant", "Hello."]].
        enable_thinking: Of a chat with a model that can reason first: whether it may (--enable-thinking,
            --no-enable-thinking); by default what its template has.
        date: Of a chat whose template writes the date: that day, such as 2024-07-26, which it is by default where the
            template has a clock.

    Raises:
        ValueError: one of them for prompts that are no chats, or what `ChatFormat` refuses.
    """

    decides_unless_default: ClassVar[tuple[str, ...]] = (*Settings.decides_unless_default, *CHAT)

    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    enable_thinking: bool | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (given := self._of_a_chat) and getattr(self, "template", "raw") == "raw":
            raise ValueError(f"{next(iter(given))} is of a chat, and template is raw; give template 'chat' with it")
        _ = self.prompted

    @property
    def prompted(self) -> "AnyTemplate":
        """The template with the options of its chat: what `encode` and a task take."""
        if not self._of_a_chat:
            return getattr(self, "template", "raw")
        from latentcomm.models.chat import ChatFormat

        return ChatFormat(**self._of_a_chat)

    @property
    def _of_a_chat(self) -> dict[str, Any]:
        """The options of a chat that are given."""
        return {name: value for name in CHAT if (value := getattr(self, name)) != getattr(ChatSettings, name)}


@dataclass(frozen=True, kw_only=True)
class TaskSettings(ChatSettings):
    """The settings of an experiment that judges answers to a task.

    Attributes:
        task: A name of `latentcomm list tasks`.
        template: Prompts as they are, or as a chat.
        sender_form: What the sender reads: the text and the receiver's prompt, a sentence, or (countries) the name
            alone; by default the task's own.
        fame: Of countries: which landmarks.
        data: Of gsm8k, mmlu and biographies: a file or folder, a hub data set, or 'sample'.
        subjects: Of mmlu, comma-separated; by default the five of Ramesh and Li.
        n_shots: Of gsm8k and mmlu: solved examples before the question.
        shots: Of gsm8k: the file of solved examples to draw from.
    """

    task: str = "countries"
    template: Literal["raw", "chat"] = "raw"
    sender_form: Literal["", "primed", "sentence", "entity"] = ""
    fame: Literal["all", "famous", "obscure"] = "all"
    data: str = ""
    subjects: tuple[str, ...] = ()
    n_shots: Annotated[int, AtLeast(0)] = 0
    shots: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots and not self.n_shots:
            raise ValueError("shots names a file of solved examples, and n_shots is 0; give n_shots with it")

    def task_options(self) -> dict[str, Any]:
        """The options of the task that differ from their defaults.

        >>> from latentcomm.experiments.sweep.settings import SweepSettings
        >>> SweepSettings(data="people.jsonl", fame="famous").task_options()
        {'fame': 'famous', 'data': 'people.jsonl'}
        """
        options = [name for name in TaskSettings.__annotations__ if name != "task"]
        given = {name: getattr(self, name) for name in options}
        return {
            name: self.prompted if name == "template" else value
            for name, value in given.items()
            if value != getattr(TaskSettings, name)
        }


def cell_of(read_layer: int | None, write_layer: int | None) -> tuple[int, int] | None:
    """The cell of a read and a write layer; None without either, where it is chosen.

    Raises:
        ValueError: one without the other, or a negative layer.

    >>> cell_of(3, 4), cell_of(None, None)
    ((3, 4), None)
    """
    for name, layer in (("read_layer", read_layer), ("write_layer", write_layer)):
        if layer is not None and layer < 0:
            raise ValueError(f"{name} is {layer}; layers count from 0, and without one the cell is chosen")
    if read_layer is None and write_layer is None:
        return None
    if read_layer is None or write_layer is None:
        missing, given = ("read_layer", "write_layer") if read_layer is None else ("write_layer", "read_layer")
        raise ValueError(f"{missing} is not given, but {given} is; give both, or neither to have the cell chosen")
    return read_layer, write_layer


def listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """The entries of a comma-separated list.

    >>> listed("replace, norm-matched,")
    ('replace', 'norm-matched')
    """
    entries = names.split(",") if isinstance(names, str) else names
    return tuple(entry.strip() for entry in entries if entry.strip())


def _lists(value: Any) -> Any:
    return [_lists(entry) for entry in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, tuple):
        return get_origin(hint) is tuple and all(is_bearable(entry, get_args(hint)[0]) for entry in value)
    if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
        return False
    return is_bearable(value, hint) or (hint is float and isinstance(value, int) and not isinstance(value, bool))
