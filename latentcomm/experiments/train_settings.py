"""The settings of `latentcomm train`."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from latentcomm.experiments.settings import AtLeast, Layer, Settings, TaskSettings, listed

__all__ = ["TWIN", "TrainSettings"]

TWIN = ".deranged"
"""What follows a channel's name in that of its twin, which was trained on other items' messages."""


def refuse_short_plan(plan_tokens: int, n_steps: int | None) -> None:
    """Refuse a plan of Interlat that is shorter than what it is compressed to.

    Raises:
        ValueError: it is.
    """
    if n_steps is not None and plan_tokens < n_steps:
        raise ValueError(
            f"plan_tokens is {plan_tokens}, and n_steps compresses the plan to {n_steps}; give n_steps of at most "
            f"{plan_tokens}, or a longer plan"
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TaskSettings):
    """Train channels on the tuning half of a task, both models frozen; `compare --weights` tests them on the other.

    Attributes:
        channels: Comma-separated names of the trained channels of `latentcomm list channels`.
        read_layer: Of the sender; chosen on the tuning half by default.
        write_layer: Of the receiver; the same.
        steps: Updates; 0 for each channel's default.
        batch_size: Examples an update; 0 for the default.
        learning_rate: Of AdamW; 0 for the default.
        plan_tokens: Of Interlat: tokens of the sender's plan.
        n_steps: Of Interlat: compress the plan to this many latents; 0 for one a state.
        every: Of CALM: the step between the layers of the sender that are read.
        held_out: Share of the tuning half (of learned_linear: of the corpus) that is not trained on, so that its loss
            can be reported; 0 for none.
        deranged: Train each channel a second time, on other items' messages: a control that `compare --weights`
            reports.
        save_every: Seconds between two checkpoints: what an interrupted training loses at most.
        dtype: Of the arithmetic of training: float32 or bfloat16.
    """

    command: ClassVar[str] = "train"
    in_turn: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False
    default_folder: ClassVar[str] = "weights"
    names_files: ClassVar[str] = "train names the files after the channels"
    decides_nothing: ClassVar[tuple[str, ...]] = (*Settings.decides_nothing, "save_every")
    tables: ClassVar[tuple[str, ...]] = (".safetensors",)

    channels: tuple[str, ...] = ()
    read_layer: Layer = None
    write_layer: Layer = None
    steps: Annotated[int, AtLeast(0)] = 0
    batch_size: Annotated[int, AtLeast(0)] = 0
    learning_rate: Annotated[float, AtLeast(0)] = 0.0
    plan_tokens: Annotated[int, AtLeast(1)] = 8
    n_steps: Annotated[int, AtLeast(0)] = 0
    every: Annotated[int, AtLeast(1)] = 4
    held_out: Annotated[float, AtLeast(0)] = 0.1
    deranged: bool = False
    save_every: Annotated[float, AtLeast(0)] = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_short_plan(self.plan_tokens, self.n_steps)

    def written_as(self, name: str) -> "dict[str, TrainSettings]":  # noqa: ARG002 (a channel's file has its name)
        """Each channel, trained by itself, under its own name."""
        names = [each.replace("-", "_") for each in listed(self.channels)]
        files = {each: replace(self, channels=(each,), deranged=False) for each in names}
        if self.deranged:
            files |= {f"{each}{TWIN}": replace(self, channels=(each,)) for each in names}
        return dict(files)

    def in_float32(self) -> "TrainSettings":
        """The same with the models in float32: `dtype` is that of the arithmetic alone."""
        return replace(self, dtype="float32")
