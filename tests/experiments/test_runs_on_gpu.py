"""Runs on a GPU give the tables of the CPU up to rounding."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from toys import countries_folder

import latentcomm as lc
from latentcomm.experiments.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
OTHER = {"device": "cuda"}
RUNS = [
    (lc.SweepSettings(n_tune=3, n_test=6), 1e-3),
    (lc.CompareSettings(channels=("silent", "text", "replace", "kv"), read_layer=1, write_layer=1, n_test=8), 1e-3),
    (lc.DiagnoseSettings(documents=24, tokens=16, prompts=2, layers=2), 0.1),  # ranks: unknown words have equal states
]


@pytest.mark.parametrize(("settings", "most"), RUNS, ids=lambda each: getattr(each, "command", ""))
def test_the_table_is_that_of_the_cpu(settings: Settings, most: float, tmp_path: Path) -> None:
    sender, receiver = (str(countries_folder(tmp_path / name, seed=ord(name))) for name in "ab")
    settings = replace(settings, sender=sender, receiver=receiver)
    here, there = (
        lc.run(each).table.drop(columns="seconds", errors="ignore") for each in (settings, replace(settings, **OTHER))
    )
    pd.testing.assert_frame_equal(here, there, rtol=1e-2, atol=most)
