"""Devices and dtypes by name: the nearest of a misspelt one, what "auto" is, and what a machine does not have."""

import re

import pytest
import torch

from latentcomm.models import load_model, resolve_device
from latentcomm.models.devices import DTYPES, resolve_dtype


def machine(monkeypatch: pytest.MonkeyPatch, *, n_cuda: int = 0, mps: bool = False) -> None:
    """A machine with these devices, as torch would see it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("n_cuda", "mps", "chosen"), [(1, True, "cuda"), (2, False, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_is_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch, n_cuda: int, mps: bool, chosen: str) -> None:
    machine(monkeypatch, n_cuda=n_cuda, mps=mps)
    assert resolve_device("auto") == chosen


def test_a_device_that_is_there_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, n_cuda=2, mps=True)
    for name in ("cpu", "mps", "cuda", "cuda:0", "cuda:1"):
        assert resolve_device(name) == resolve_device(torch.device(name)) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device is 'cuda', but torch sees no CUDA device here; use 'cpu' or 'auto'"),
        ("cuda:1", "device is 'cuda:1', but torch sees no CUDA device here; use 'cpu' or 'auto'"),
        ("mps", "device is 'mps', but torch sees no MPS device here; use 'cpu' or 'auto'"),
        ("cdua", "there is no device 'cdua'; did you mean 'cuda'? choose among auto, cuda, mps, cpu"),
        ("", "there is no device ''; choose among auto, cuda, mps, cpu"),
        ("cuda:x", "there is no device 'cuda:x'; did you mean 'cuda'? choose among auto, cuda, mps, cpu"),
        ("meta", "there is no device 'meta'; choose among auto, cuda, mps, cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    machine(monkeypatch)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_model("./nowhere", device=name)


def test_the_number_of_a_cuda_device_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, n_cuda=2)
    with pytest.raises(ValueError, match=r"^device is 'cuda:2', but torch sees 2 CUDA devices, from cuda:0 on$"):
        resolve_device("cuda:2")


def test_a_dtype_is_given_by_name_or_as_torch_has_it() -> None:
    for name, dtype in DTYPES.items():
        assert resolve_dtype(name) == resolve_dtype(dtype) == dtype


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (
            "floa32",
            "there is no dtype 'floa32'; did you mean 'float32'? choose among float32, float64, bfloat16, float16",
        ),
        (torch.int64, "there is no dtype 'int64'; "),
    ],
)
def test_another_dtype_is_refused(dtype: str | torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load_model("./nowhere", dtype=dtype)


def test_mps_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    for device in ("mps", "auto"):
        with pytest.raises(ValueError, match=r"^dtype is float64, which MPS does not have; use float32, or device"):
            load_model("./nowhere", device=device, dtype="float64")
    assert resolve_dtype(torch.float64, device="cuda") == torch.float64
