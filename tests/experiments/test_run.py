"""`run` and `run_all`: one way to run every experiment, from settings and models in memory."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
from toys import Counter, countries_folder

import latentcomm as lc
from latentcomm.experiments import job
from latentcomm.experiments._prepared import EXPERIMENTS

SETTINGS = lc.CompareSettings(channels=("silent", "replace"), read_layer=1, write_layer=1, n_test=6, audit=False)


class TestRun:
    def test_models_in_memory_give_a_result_and_no_files(
        self, tiny: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = lc.run(SETTINGS, sender=tiny)
        assert isinstance(result, lc.Result) and result.settings is SETTINGS
        assert set(result.table["channel"]) == {"silent", "replace"}
        assert len(result.trials) == 18 and list(result.figures) == [""]
        assert result.provenance["models"]["sender"]["fingerprint"] == tiny.fingerprint
        assert not list(tmp_path.iterdir()) and result.files == ()

    def test_a_stated_memory_bounds_what_runs_together(self, tiny: lc.Model, tmp_path: Path) -> None:
        assert "memory" not in SETTINGS.decisive()  # the keys of runs without one are those of before
        settings = dataclasses.replace(SETTINGS, channels=("silent",), memory="1kB")
        assert settings.budget == 1000 and settings.decisive()["memory"] == "1kB"
        result = lc.run(settings, sender=tiny, out=tmp_path)
        assert len(list(tmp_path.rglob("trials-*/*.json"))) == len(result.trials) == 6  # one at a time
        with pytest.raises(ValueError, match="memory is 'much'; give a size such as 2GB"):
            dataclasses.replace(SETTINGS, memory="much")

    def test_it_is_the_comparison_of_the_library(self, tiny: lc.Model) -> None:
        result = lc.run(SETTINGS, sender=tiny)
        compare_named = importlib.import_module("latentcomm.experiments.compare.run").compare_named
        found, _ = compare_named(["silent", "replace"], tiny, tiny, lc.tasks.countries(), settings=SETTINGS)
        columns = ["channel", "condition", "metric", "accuracy", "low", "high"]
        assert result.table[columns].equals(found.table[columns])

    def test_a_task_in_memory_takes_the_place_of_the_named_one(self, tiny: lc.Model) -> None:
        task = lc.tasks.countries(fame="famous")
        result = lc.run(SETTINGS, sender=tiny, task=task)
        assert set(result.trials["item"]) <= {item.id for item in task.items}

    def test_files_are_written_and_a_second_run_is_read_back(self, tiny: lc.Model, tmp_path: Path) -> None:
        first = lc.run(SETTINGS, sender=tiny, out=tmp_path, name="c")
        assert {path.name for path in first.files} == {
            "c.html", "c.csv", "c.json", "c.meta.json", "c_trials.csv"
        }  # fmt: skip
        assert all(path.exists() for path in first.files)
        evaluation = importlib.import_module("latentcomm.experiments.evaluation")
        with pytest.MonkeyPatch.context() as patch:
            again = Counter(evaluation.decode)
            patch.setattr(evaluation, "decode", again)
            lc.run(SETTINGS, sender=tiny, out=tmp_path, name="c")
        assert again.calls == 0

    def test_a_model_in_memory_is_not_taken_for_a_receiver_that_is_named(
        self, tiny: lc.Model, other: lc.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job.models, "load_model", lambda name, **options: other)
        settings = lc.CompareSettings(channels=("silent",), receiver=SETTINGS.sender, n_test=6)
        result = lc.run(settings, sender=tiny)
        assert result.models["receiver"]["fingerprint"] == other.fingerprint != tiny.fingerprint

    def test_the_record_says_what_was_in_memory(self, tiny: lc.Model, tmp_path: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out=tmp_path, name="c")
        record = json.loads((tmp_path / "c.meta.json").read_text("utf-8"))["run"]
        assert record["in_memory"] == ["sender"] and record["settings"]["n_test"] == 6

    def test_two_folders_of_one_name_are_told_apart_and_no_path_is_recorded(self, tmp_path: Path) -> None:
        folders = [countries_folder(tmp_path / place / "model", seed=seed) for seed, place in enumerate("ab")]
        settings = lc.SweepSettings(sender=str(folders[0]), receiver=str(folders[1]), n_tune=2, n_test=2)
        result = lc.run(settings, out=tmp_path / "out")
        assert [result.models[role]["name"] for role in ("sender", "receiver")] == ["a/model", "b/model"]
        meta = (tmp_path / "out" / "sweep.meta.json").read_text()
        assert [json.loads(meta)["run"]["settings"][role] for role in ("sender", "receiver")] == ["a/model", "b/model"]
        in_memory = lc.run(settings, *(lc.load_model(folder) for folder in folders))
        assert [in_memory.models[role]["name"] for role in ("sender", "receiver")] == ["a/model", "b/model"]
        assert str(tmp_path) not in meta

    def test_two_snapshots_of_one_id_are_told_apart_by_their_revisions(self, tmp_path: Path) -> None:
        snapshots = tmp_path / "models--someone--tiny" / "snapshots"
        folders = [countries_folder(snapshots / (each * 40), seed=seed) for seed, each in enumerate("0a")]
        settings = lc.SweepSettings(sender=str(folders[0]), receiver=str(folders[1]), n_tune=2, n_test=2)
        result = lc.run(settings, out=tmp_path / "out")
        expected = ["someone/tiny@00000000", "someone/tiny@aaaaaaaa"]
        assert [result.models[role]["name"] for role in ("sender", "receiver")] == expected
        run = json.loads((tmp_path / "out" / "sweep.meta.json").read_text())["run"]
        assert [run["settings"][role] for role in ("sender", "receiver")] == expected

    @pytest.mark.parametrize("name", ["", "a/b", "my run", ".."])
    def test_a_name_that_is_no_file_name_is_refused(self, name: str, tiny: lc.Model, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="give a plain file name"):
            lc.run(SETTINGS, sender=tiny, out=tmp_path, name=name)


class TestRunAll:
    def test_each_model_is_loaded_once_and_each_result_has_a_folder(
        self, tiny: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loads: list[str] = []

        def load(name: str, **options: str) -> lc.Model:
            loads.append(name)
            return tiny

        monkeypatch.setattr(job.models, "load_model", load)
        other = lc.CompareSettings(channels=("silent",), n_test=6)
        found = lc.run_all([SETTINGS, other], out=tmp_path)
        assert loads == [SETTINGS.sender]
        assert [list(dict.fromkeys(result.table["channel"])) for result in found] == [["silent", "replace"], ["silent"]]
        assert len({result.files[0].parent for result in found}) == 2

    def test_the_same_settings_twice_are_refused(self) -> None:
        with pytest.raises(ValueError, match="are given twice"):
            lc.run_all([SETTINGS, SETTINGS])


@pytest.mark.parametrize("name", EXPERIMENTS)
class TestSettings:
    def test_they_survive_a_dictionary(self, name: str) -> None:
        cls = EXPERIMENTS[name].settings
        assert cls.from_dict(cls(seed=3).to_dict()) == cls(seed=3)

    def test_their_function_is_there(self, name: str) -> None:
        assert callable(EXPERIMENTS[name].function)

    def test_a_negative_seed_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="seed is -1; give at least 0"):
            EXPERIMENTS[name].settings(seed=-1)
