"""The settings of `latentcomm sweep`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from latentcomm.experiments.settings import AtLeast, TaskSettings

__all__ = ["SweepSettings"]


@dataclass(frozen=True, kw_only=True)
class SweepSettings(TaskSettings):
    """Graft every sender layer into every receiver layer, choose a cell on half of a task, judge it on the other half.

    Attributes:
        fusion: Comma-separated names of `latentcomm list fusions`; the first is swept, all are judged at its best cell.
        right_aligned: Fuse the last entries of states of unequal width.
        read_layers: Of the sender, such as 0-29 or 20,24,28; all by default.
        write_layers: The same, of the receiver.
        n_tune: Items that the cell is chosen on.
        n_test: Other items that it is judged on; 0 for all.
    """

    command: ClassVar[str] = "sweep"

    fusion: tuple[str, ...] = ("replace", "mean", "sum")
    right_aligned: bool = False
    read_layers: tuple[int, ...] = ()
    write_layers: tuple[int, ...] = ()
    n_tune: Annotated[int, AtLeast(2)] = 40
    n_test: Annotated[int, AtLeast(0)] = 0
