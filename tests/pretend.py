"""Devices that are not there: tensors in memory that say they lie on `pretend:0`, `pretend:1` and so on.

An operation on tensors of two devices raises, as it would on real ones. The fixture `pretend` is one device without
float64, as Apple's MPS; `pretended` is as many as are wanted, with every dtype.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from latentcomm._core import linalg
from latentcomm.models import Model, wrap_model

KIND = "pretend"
aten = torch.ops.aten
MOVES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}


class DeviceMixError(RuntimeError):
    """Tensors of two devices met in one operation."""


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def current_device(self) -> int:
        return 0


_setup_privateuseone_for_python_backend(KIND, backend_module=Backend())


class Pretend(torch.Tensor):
    """A tensor in memory that says it is elsewhere."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls: Any, inner: torch.Tensor, device: torch.device) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.inner = inner.detach()

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r} on {self.device}"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    found: list[torch.Tensor] = []
    tree_map(lambda a: found.append(a) if isinstance(a, torch.Tensor) else None, (args, kwargs))
    met = [each for each in found if each.dim()]  # a number of the CPU may meet anybody
    if func in INDEXING:  # the CPU's indices may index anybody
        met = [args[0], *(i for i in args[1] if i is not None and i.device.type != "cpu"), *args[2:3]]
        met = [each for each in met if each is args[0] or each.dim()]
    if len({each.device for each in met}) > 1 and func not in MOVES:
        raise DeviceMixError(f"{func} met tensors on {sorted({str(each.device) for each in met})}")
    places = [each.device for each in met or found] or [torch.device("cpu")]
    chosen = args[0].device if func is aten.copy_.default else max(places, key=lambda place: place.type == KIND)
    target = torch.device(kwargs.get("device") or chosen)
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    mine = {id(each.inner): each for each in found if isinstance(each, Pretend)}

    def bare(value: Any) -> Any:
        return value.inner if isinstance(value, Pretend) else value

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or target.type != KIND:
            return value
        if value.dtype == torch.float64 and KIND in linalg.WITHOUT_FLOAT64:
            raise TypeError(f"{func} gives float64, which this device does not have")
        return mine.get(id(value)) if id(value) in mine else Pretend(value, target)

    out = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    if func is aten._to_copy.default and target.type == KIND and any(out is each for each in found):
        out = out.clone()
    return tree_map(placed, out)


class PretendDevice(TorchDispatchMode):
    """A block in which `device="pretend:0"` works: for what is made from nothing, such as torch.zeros."""

    def __enter__(self) -> Any:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor([..], device=..) is made on the CPU and then moved
        return super().__enter__()

    def __exit__(self, *how: Any) -> Any:
        torch._C._set_only_lift_cpu_tensors(self.before)
        return super().__exit__(*how)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


@pytest.fixture
def pretend() -> Iterator[torch.device]:
    """The device, for one test."""
    linalg.WITHOUT_FLOAT64.add(KIND)
    with PretendDevice():
        yield torch.device(KIND, 0)
    linalg.WITHOUT_FLOAT64.remove(KIND)


@pytest.fixture
def pretended() -> Iterator[None]:
    """Any number of devices, for one test."""
    with PretendDevice():
        yield


def on(device: torch.device, raw: Any, tokenizer: Any) -> Model:
    """A transformers model on the device, wrapped."""
    _move(raw, {"": device})
    return wrap_model(raw, tokenizer, name="pretend")


def dispatched(raw: Any, device_map: dict[str, str]) -> Any:
    """A transformers model whose modules lie where the map says, with the hooks by which accelerate moves states."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    _move(raw, {name: torch.device(device) for name, device in device_map.items()})
    for name, device in device_map.items():
        add_hook_to_module(raw.get_submodule(name), AlignDevicesHook(device, io_same_device=False), append=True)
    entry = next(iter(device_map.values()))
    add_hook_to_module(raw, AlignDevicesHook(entry, io_same_device=True), append=True)
    raw.hf_device_map = dict(device_map)
    return raw


def halves(raw: Any, lower: str = f"{KIND}:0", upper: str = f"{KIND}:1") -> dict[str, str]:
    """A map of the embeddings and the lower half of the blocks to one device, and of the rest to another.

    A head that shares its weights with the embedding stays with it, as accelerate has it.
    """
    out = {}
    for stem, part in raw.base_model.named_children():
        name = f"{raw.base_model_prefix}.{stem}"
        blocks = list(part.named_children()) if isinstance(part, torch.nn.ModuleList) else []
        out |= {f"{name}.{at}": upper if 2 * int(at) >= len(blocks) else lower for at, _ in blocks}
        if not blocks:
            out[name] = upper if stem in ("norm", "ln_f") else lower
    tied = raw.get_output_embeddings().weight is raw.get_input_embeddings().weight
    return out | {"lm_head": lower if tied else upper}


def _move(raw: Any, device_of: dict[str, torch.device]) -> None:
    """Put the weights and buffers of modules on devices; those that modules share stay shared."""
    moved: dict[int, torch.nn.Parameter] = {}
    for name, device in device_of.items():
        for module in raw.get_submodule(name).modules():
            for key, value in list(module._parameters.items()):
                if value is not None and not isinstance(value, Pretend):
                    there = torch.nn.Parameter(Pretend(value.detach(), device), requires_grad=False)
                    module._parameters[key] = moved.setdefault(id(value), there)
            for key, value in list(module._buffers.items()):
                if value is not None:
                    module._buffers[key] = Pretend(value, device)
