"""Two models for worked sums: the same options give the same weights, which another process can load."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import files_in
from tiny import transformers_model as unlike
from worked_models import Size, WorkedPair, worked_pair

import latentcomm as lc
from latentcomm.channels.training import trainer as training
from latentcomm.models import load_model, wrap_model
from latentcomm.models.small import save_model, small_model
from latentcomm.tasks import kv_math_worked
from latentcomm.tasks.kv_math_worked import worked_out, worked_table

OPTIONS = {"n_keys": 5, "highest": 5, "n_terms": (2,)}
TINY = {
    "large": Size(n_layers=2, d_model=32, n_heads=2, n_texts=400, steps=90, batch_size=32, learning_rate=1e-2),
    "small": Size(n_layers=1, d_model=24, n_heads=2, n_texts=400, steps=90, batch_size=32, learning_rate=1e-2),
}
SHORT = {role: replace(size, steps=4, n_texts=40) for role, size in TINY.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worked")


@pytest.fixture(scope="module")
def pair(folder: Path) -> WorkedPair:
    return worked_pair(folder, **OPTIONS, **TINY)


def replies(model: lc.Model, prompts: list[str]) -> list[str]:
    return lc.generate(model, lc.encode(model, prompts), max_new_tokens=8)


class TestThePair:
    def test_only_the_large_model_knows_the_numbers_of_keys(self, pair: WorkedPair) -> None:
        """On sums that were trained on: so few updates teach the table, and not what was never met."""
        task = kv_math_worked(n=10, part="train", **OPTIONS)
        table = worked_table(n_keys=5, highest=5)
        right = [worked_out([table[key] for key in item.tags["keys"].split()]) for item in task.items]
        begun = [line.split(" = ")[0] for line in right]
        prompts = [item.receiver for item in task.items]
        told = [
            [reply.startswith(b) for reply, b in zip(replies(model, prompts), begun, strict=True)] for model in pair
        ]
        assert sum(told[0]) >= 8 and sum(told[1]) <= 4

    def test_they_are_of_one_vocabulary_and_unequal_widths(self, pair: WorkedPair) -> None:
        assert lc.models.one_vocabulary(pair.large, pair.small) and pair.large.d_model > pair.small.d_model

    def test_the_folders_load_as_the_same_models(self, pair: WorkedPair, folder: Path) -> None:
        prompts = ["<k1> + <k3> =", "1 + 2 ="]
        for role in ("large", "small"):
            loaded = load_model(folder / role)
            assert loaded.fingerprint == getattr(pair, role).fingerprint
            assert replies(loaded, prompts) == replies(getattr(pair, role), prompts)

    def test_a_second_call_reads_the_trainings_back(
        self, pair: WorkedPair, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "_update", lambda *given: pytest.fail("it was trained again"))
        again = worked_pair(folder, **OPTIONS, **TINY)
        assert [model.fingerprint for model in again] == [model.fingerprint for model in pair]

    def test_a_seed_fixes_the_weights_and_another_changes_them(self, tmp_path: Path) -> None:
        made = [worked_pair(tmp_path / str(run), **OPTIONS, **SHORT, seed=run // 2) for run in range(3)]
        prints = [[model.fingerprint for model in each] for each in made]
        assert prints[0] == prints[1] and prints[0] != prints[2]

    def test_a_folder_of_other_options_is_refused(self, pair: WorkedPair, folder: Path) -> None:
        with pytest.raises(ValueError, match="of another training"):
            worked_pair(folder, **OPTIONS, **TINY, seed=1)


class TestSaving:
    @pytest.mark.parametrize("tied", [False, True])
    def test_a_small_model_loads_as_it_was(self, tied: bool, tmp_path: Path) -> None:
        model = small_model(["a", "b"], name="one", n_layers=2, d_model=16, n_heads=2, tied=tied)
        save_model(model, tmp_path / "one")
        with torch.no_grad():
            next(model.hooked.parameters()).add_(1.0)
        later = model.fingerprint
        save_model(model, tmp_path / "two")
        first, second = (load_model(tmp_path / name) for name in ("one", "two"))
        assert second.fingerprint == later != first.fingerprint
        assert files_in(tmp_path / "one") == files_in(tmp_path / "two")

    def test_another_model_and_another_folder_are_refused(self, tmp_path: Path) -> None:
        other = wrap_model(unlike("gpt2"), name="other")
        with pytest.raises(ValueError, match="not made by small_model"):
            save_model(other, tmp_path / "one")
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.txt").write_text("mine", encoding="utf-8")
        with pytest.raises(ValueError, match="is no model"):
            save_model(small_model(["a"], name="one", d_model=16), tmp_path / "notes")
        assert files_in(tmp_path / "notes") == ["a.txt"]
