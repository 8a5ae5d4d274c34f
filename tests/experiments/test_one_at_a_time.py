"""One model at a time: the result of both in memory, with one of them there at any moment."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from toys import countries_folder

import latentcomm as lc
from latentcomm import models
from latentcomm.experiments.settings import Settings

COMPARE = {"channels": ("silent", "text", "replace", "kv"), "read_layer": 1, "write_layer": 1, "n_test": 8}
RUNS = [
    (lc.CompareSettings, COMPARE, 4),
    (lc.SweepSettings, {"n_tune": 3, "n_test": 6, "alignment": "none"}, 4),
    (
        lc.CascadeSettings,
        {"task": "kv-math", "n": (0, 2), "n_items": 4, "reply_tokens": 4, "stop": ("sentence-end",)},
        3,
    ),
    (lc.DiagnoseSettings, {"documents": 24, "tokens": 16, "prompts": 2, "layers": 2}, 2),
]


class Loads:
    """Stands in for `load_model`: counts, and lets no model be loaded while another is in memory."""

    def __init__(self) -> None:
        self.load, self.n, self.there = models.load_model, 0, []

    def __call__(self, name: str, **options: Any) -> lc.Model:
        gc.collect()
        assert not [each for each in self.there if each() is not None], "another model is in memory"
        self.n += 1
        model = self.load(name, **options)
        self.there.append(weakref.ref(model.hooked.original_model))
        return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folders = [countries_folder(tmp_path_factory.mktemp(name) / name, seed=seed) for seed, name in enumerate("ab")]
    return dict(zip(("sender", "receiver"), map(str, folders), strict=True))


@pytest.mark.parametrize(("kind", "options", "most"), RUNS, ids=lambda value: getattr(value, "command", ""))
def test_the_result_is_that_of_both_in_memory(
    kind: type[Settings], options: dict[str, Any], most: int, pair: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    both = lc.run(kind(**pair, **options), out=tmp_path / "both")
    loads = Loads()
    monkeypatch.setattr(models, "load_model", loads)
    one = lc.run(kind(**pair, **options, one_at_a_time=True), out=tmp_path / "one")
    assert 2 <= loads.n <= most
    tables = [each.table.drop(columns="seconds", errors="ignore") for each in (one, both)]
    assert tables[0].equals(tables[1])
    saved = [
        {path.name for path in (tmp_path / each / ".latentcomm").iterdir() if path.is_dir()} for each in ("one", "both")
    ]
    assert saved[0] == saved[1]


def test_one_model_with_itself_is_loaded_once(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads()
    monkeypatch.setattr(models, "load_model", loads)
    lc.run(lc.CompareSettings(sender=pair["sender"], **COMPARE, one_at_a_time=True), out=tmp_path)
    assert loads.n == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (lc.TrainSettings(one_at_a_time=True), "train needs both models at every step"),
        (
            lc.CompareSettings(one_at_a_time=True, channels=("silent", "cipher-debate")),
            "the channel cipher-debate runs",
        ),
        (lc.CompareSettings(one_at_a_time=True), "the channel debate runs both models"),
    ],
    ids=["train", "debate", "all channels"],
)
def test_what_needs_both_at_once_is_refused(settings: Settings, sentence: str, tmp_path: Path) -> None:
    assert any(sentence in refusal for refusal in lc.preflight(settings, out=tmp_path).refusals)


def test_models_in_memory_and_no_folder_are_refused(tiny: lc.Model) -> None:
    settings = lc.SweepSettings(one_at_a_time=True)
    assert "the receiver is in memory" in " ".join(lc.preflight(settings, receiver=tiny).refusals)
    assert "give a folder as `out`" in " ".join(lc.preflight(settings).refusals)


def test_the_memory_is_that_of_the_larger_model(pair: dict[str, str], tmp_path: Path) -> None:
    both, one = (
        lc.preflight(lc.CompareSettings(**pair, **COMPARE, one_at_a_time=turn), out=tmp_path).memory
        for turn in (False, True)
    )
    shape = models.shape_of(pair["sender"])
    assert shape.n_parameters is not None and both - one == 4 * shape.n_parameters
