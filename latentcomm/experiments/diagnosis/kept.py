"""What is done of a long computation, kept as files written whole, so that a stopped run goes on to the same bits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from latentcomm._core.files import read_tensors, written_whole
from latentcomm.alignment import AffineMap
from latentcomm.drift import DriftReference

__all__ = ["Kept"]


@dataclass(frozen=True)
class Kept:
    """A folder of finished parts; without one nothing is kept and every part is computed.

    The folder must belong to one set of inputs (`latentcomm._core.files.digest`): a part found there is taken as it is.
    """

    folder: Path | None

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a part: those kept, else what `make` gives, kept from now on.

        Raises:
            RuntimeError: the part cannot be written.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            part = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
            with written_whole(path) as draft:
                save_file(part, draft)
        return read_tensors(path)[1]

    def reference(self, name: str, make: Callable[[], DriftReference]) -> DriftReference:
        """The same for a drift reference."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            make().save(path)
        return DriftReference.load(path)

    def map(self, name: str, make: Callable[[], AffineMap]) -> AffineMap:
        """The same for a fitted map."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            make().save(path)
        return AffineMap.load(path)
