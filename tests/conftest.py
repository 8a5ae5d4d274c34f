"""Settings every test runs under: one thread a worker, no model hub, and a package index that may be asked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: nothing here may need a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already uses every core
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PIP_NO_INDEX", None)  # the built-in model comes from the package index

from collections.abc import Iterator

import pytest
import torch
from double import stay_in_float64
from other_kernels import OtherKernels
from tiny import transformers_model
from toys import countries_folder

import latentcomm as lc
from latentcomm.models import load_model, wrap_model

torch.set_num_threads(1)
stay_in_float64()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--other-kernels", action="store_true", help="sum in another order, as another processor would")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--other-kernels"):
        OtherKernels().__enter__()


@pytest.fixture(scope="session", autouse=True)
def fingerprints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fingerprints of the tests' models are not saved in the user's cache."""
    folder = tmp_path_factory.mktemp("fingerprints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentcomm.models._hashed.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> lc.Model:
    """A small Llama that reads the words of Countries."""
    return load_model(countries_folder(tmp_path_factory.mktemp("models") / "tiny-countries"))


@pytest.fixture(scope="session")
def other(tiny: lc.Model) -> lc.Model:
    """A model of another width and depth that reads the same words."""
    size = len(tiny.require_tokenizer())
    raw = transformers_model("llama", d_model=12, n_layers=2, n_heads=2, n_vocabulary=size, dtype=torch.float32, seed=5)
    return wrap_model(raw, tiny.require_tokenizer(), name="/somewhere/else/tiny-other")


@pytest.fixture
def load(tiny: lc.Model, other: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads a model loads one of these two."""
    monkeypatch.setattr(lc, "load_model", lambda name: other if "tiny-other" in name else tiny)
