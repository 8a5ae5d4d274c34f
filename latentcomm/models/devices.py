"""Devices and dtypes by name: checked, and chosen where the name is "auto"."""

import torch

from latentcomm._core.names import check_name

__all__ = ["DTYPES", "resolve_device", "resolve_dtype"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
