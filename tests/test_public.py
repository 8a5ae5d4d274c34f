"""The public names: what they are, that each is there, and that the paths of the release before still lead to them."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import latentcomm as lc
from latentcomm._core.moved import MOVED

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = [
    "load_model",
    "wrap_model",
    "Site",
    "encode",
    "capture",
    "Graft",
    "grafted",
    "generate",
    "sweep_layers",
    "fusion",
    "alignment",
    "similarity",
    "redundancy",
    "drift",
    "evaluate",
    "to_table",
    "compare",
    "diagnose",
    "measure_effects",
    "learn",
    "load_learned",
    "plots",
    "crossmodal",
    "cascade",
    "channels",
    "tasks",
    "corpus",
    "__version__",
    "run",
    "run_all",
    "Result",
    *(f"{name}Settings" for name in ("Sweep", "Compare", "Diagnose", "Cascade", "CrossModal", "Train")),
]


@pytest.mark.parametrize("name", sorted({*lc.__all__, *CONTRACT}))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lc, name) is not None
    assert name in dir(lc) or name == "__version__"


def test_a_misspelt_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="load_modle"):
        lc.load_modle  # noqa: B018


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_path_leads_to_the_module_itself_and_warns(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert importlib.import_module(old) is importlib.import_module(new)


def test_what_is_below_an_old_path_is_no_second_copy() -> None:
    lines = (
        "from latentcomm.cascade.stops import FixedTokens as old; from latentcomm.experiments.cascade.stops import"
        " FixedTokens as new; print(old is new)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
