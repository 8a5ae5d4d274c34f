"""The settings of `latentcomm sweep`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from latentcomm.experiments.settings import Alignment, AtLeast, Layer, TaskSettings, cell_of

__all__ = ["SweepSettings"]


@dataclass(frozen=True, kw_only=True)
class SweepSettings(TaskSettings):
    """Graft every sender layer into every receiver layer, choose a cell on half of a task, judge it on the other half.

    Attributes:
        fusion: Comma-separated names of `latentcomm list fusions`; the first is swept, all are judged at its best cell.
        read_layer: Of the sender: judge this one cell, as `latentcomm diagnose` recommends it, without a sweep.
        write_layer: Of the receiver; the same. Give both or neither.
        alignment: Between unequal models: a map fitted on the packaged corpus; the last entries of both states; or
            neither.
        read_layers: Of the sender, such as 0-29 or 20,24,28; by default all, or five depths where maps are fitted.
        write_layers: The same, of the receiver.
        n_tune: Items that the cell is chosen on.
        n_test: Other items that it is judged on; 0 for all.
    """

    command: ClassVar[str] = "sweep"
    figures: ClassVar[tuple[str, ...]] = ("", "_conditions")

    fusion: tuple[str, ...] = ("replace", "mean", "sum")
    read_layer: Layer = None
    write_layer: Layer = None
    alignment: Alignment = "ridge"
    read_layers: tuple[int, ...] = ()
    write_layers: tuple[int, ...] = ()
    n_tune: Annotated[int, AtLeast(2)] = 40
    n_test: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if cell_of(self.read_layer, self.write_layer) is not None and (self.read_layers or self.write_layers):
            raise ValueError("read_layers and write_layers make a grid, read_layer and write_layer one cell; give one")
