"""Devices and dtypes by name: checked, and chosen where the name is "auto"."""

from collections.abc import Mapping

import torch

from latentcomm._core.names import check_name

__all__ = ["DTYPES", "resolve_device", "resolve_dtype", "resolve_placement"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
OFFLOADED = {"cpu", "disk"}
"""Where accelerate puts what has no room on a GPU; TransformerLens takes no map of such places and GPUs."""

DeviceMap = Mapping[str, str | int | torch.device]
"""The device of each module of a transformers model, by its name: a block, an embedding, "" for all of it."""


def resolve_device(device: str | torch.device) -> str:
    """The name of a device that is there; "auto" is cuda where there is one, else mps, else cpu.

    Raises:
        ValueError: no such name (the nearest is named), or no such device on this machine.

    >>> resolve_device("cpu")
    'cpu'
    """
    name = str(device)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, is_there in there.items() if is_there)
    kind, colon, index = name.partition(":")
    if kind not in there or (colon and not index.isdecimal()):
        check_name("device", name, ["auto", *there])
    if not there[kind]:
        raise ValueError(f"device is {name!r}, but torch sees no {kind.upper()} device here; use 'cpu' or 'auto'")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    return name


def resolve_placement(
    device: str | torch.device | None,
    device_map: str | DeviceMap | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
) -> str | dict[str, str]:
    """The one device of a model, "auto" for transformers to choose among all, or the device of each module.

    Without any it is the CPU. `device` "auto" leaves the choice to a `device_map`.

    Raises:
        ValueError: a device or map and another, a bound of memory without `device_map="auto"`, a device that is not
            there, or a map of GPUs together with the CPU or disk.

    >>> resolve_placement(None), resolve_placement(None, {"model.embed_tokens": "cpu", "model.layers": "disk"})
    ('cpu', {'model.embed_tokens': 'cpu', 'model.layers': 'disk'})
    """
    if max_memory is not None and device_map != "auto":
        raise ValueError("max_memory bounds what device_map='auto' puts on each device; give both, or none")
    if device_map is None:
        return resolve_device("cpu" if device is None else device)
    if device is not None and str(device) != "auto":
        raise ValueError(f"device is {str(device)!r} and there is a device_map, which places all modules; give one")
    if isinstance(device_map, str):
        return check_name("device_map", device_map, ["auto"])
    places = {name: f"cuda:{place}" if isinstance(place, int) else str(place) for name, place in device_map.items()}
    found = {name: place if place == "disk" else resolve_device(place) for name, place in places.items()}
    check_offloading(found)
    return found


def check_offloading(device_map: Mapping[str, object]) -> None:
    """Refuse GPUs together with the CPU or disk, where TransformerLens does not run a model.

    Raises:
        ValueError: with a module that is not on a GPU.
    """
    aside = [name for name, place in device_map.items() if str(place) in OFFLOADED]
    if aside and len(aside) < len(device_map):
        raise ValueError(
            f"device_map puts {aside[0]!r} on {device_map[aside[0]]!s} and others on a GPU, which TransformerLens does "
            "not run; use GPUs alone, a smaller dtype, or quantization"
        )


def resolve_dtype(dtype: str | torch.dtype, *, device: str = "cpu") -> torch.dtype:
    """The torch dtype of a name, on a device that has it.

    Raises:
        ValueError: no such name (the nearest is named), another kind of numbers, or float64 on MPS, which has none.

    >>> resolve_dtype("bfloat16"), resolve_dtype(torch.float32)
    (torch.bfloat16, torch.float32)
    """
    found = DTYPES[check_name("dtype", str(dtype).removeprefix("torch."), DTYPES)]
    if found == torch.float64 and torch.device(device).type == "mps":
        raise ValueError("dtype is float64, which MPS does not have; use float32, or device 'cpu'")
    return found
