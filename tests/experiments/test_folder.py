"""A folder belongs to the runs that write to it: what another run may do there, and what is kept for the next one."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import last_line, run
from tiny import files_in
from toys import Counter, countries_folder, interrupted

import latentcomm as lc
from latentcomm.experiments import evaluation
from latentcomm.experiments.settings import SAVED

SETTINGS = lc.CompareSettings(channels=("silent", "replace"), read_layer=1, write_layer=1, n_test=6)
MORE = lc.CompareSettings(channels=("silent", "replace", "mean"), read_layer=1, write_layer=1, n_test=6)
TRAIN: dict[str, Any] = {"read_layer": 1, "write_layer": 1, "steps": 1, "batch_size": 2}


def stopped(settings: lc.CompareSettings, model: lc.Model, out: Path) -> None:
    """Interrupt a run when it has done the first part of its trials."""
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, evaluation, "decode", at=2)
        with pytest.raises(KeyboardInterrupt):
            lc.run(settings, sender=model, out=out)


class TestAnotherRun:
    def test_is_refused_before_it_starts_and_told_what_differs(self, tiny: lc.Model, tmp_path: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out=tmp_path)
        before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path) if (tmp_path / name).is_file()}
        with pytest.raises(
            ValueError, match=r"differ in `channels` \(silent,replace there, silent,replace,mean here\)"
        ):
            lc.run(MORE, sender=tiny, out=tmp_path)
        assert all((tmp_path / name).read_bytes() == content for name, content in before.items())

    def test_is_refused_where_only_the_published_record_is_left(self, tiny: lc.Model, tmp_path: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out=tmp_path)
        (tmp_path / SAVED / "compare.json").unlink()
        with pytest.raises(ValueError, match="differ in `channels`"):
            lc.run(MORE, sender=tiny, out=tmp_path)
        lc.run(SETTINGS, sender=tiny, out=tmp_path)

    def test_of_another_model_in_memory_is_another_run(self, tiny: lc.Model, other: lc.Model, tmp_path: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out=tmp_path)
        with pytest.raises(ValueError, match=r"`sender` \(another one in memory\)"):
            lc.run(SETTINGS, sender=other, out=tmp_path)

    def test_goes_on_without_an_unfinished_one_whose_work_stays(self, tiny: lc.Model, tmp_path: Path) -> None:
        stopped(SETTINGS, tiny, tmp_path)
        kept = {name for name in files_in(tmp_path / SAVED) if "trials-" in name}
        with pytest.raises(
            ValueError, match=r"an unfinished run of 'compare' in .* `overwrite=True` goes on without it"
        ):
            lc.run(MORE, sender=tiny, out=tmp_path)
        after = Counter(evaluation.decode)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "decode", after)
            lc.run(MORE, sender=tiny, out=tmp_path, overwrite=True)
        assert after.calls == 4  # silence had been run, and two channels under two messages each had not
        assert kept and kept <= set(files_in(tmp_path / SAVED))

    def test_is_not_refused_for_one_that_was_refused_itself(self, tiny: lc.Model, tmp_path: Path) -> None:
        def refuse(*given: Any, **options: Any) -> None:
            raise ValueError("refused late")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "decode", refuse)
            with pytest.raises(ValueError, match="refused late"):
                lc.run(MORE, sender=tiny, out=tmp_path / "new")
        assert not (tmp_path / "new" / SAVED / "compare.json").exists()
        lc.run(SETTINGS, sender=tiny, out=tmp_path / "new")

    def test_under_another_name_has_files_of_its_own(self, tiny: lc.Model, tmp_path: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out=tmp_path)
        lc.run(MORE, sender=tiny, out=tmp_path, name="more")
        assert {"compare.csv", "more.csv"} <= set(files_in(tmp_path))

    def test_a_file_of_another_program_is_not_written_over(self, tiny: lc.Model, tmp_path: Path) -> None:
        (tmp_path / "compare.csv").write_text("mine")
        with pytest.raises(ValueError, match=r"holds a compare\.csv that names no settings"):
            lc.run(SETTINGS, sender=tiny, out=tmp_path)
        assert (tmp_path / "compare.csv").read_text() == "mine"

    def test_a_record_of_fewer_options_is_read_with_their_defaults(self, tiny: lc.Model, tmp_path: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out=tmp_path)
        path = tmp_path / SAVED / "compare.json"
        record = json.loads(path.read_text("utf-8"))
        del record["settings"]["n_thoughts"]
        path.write_text(json.dumps(record), "utf-8")
        lc.run(SETTINGS, sender=tiny, out=tmp_path)

    def test_two_channels_are_trained_into_one_folder_and_one_not_in_two_ways(
        self, tiny: lc.Model, tmp_path: Path
    ) -> None:
        lc.run(lc.TrainSettings(channels=("gated",), **TRAIN), sender=tiny, out=tmp_path)
        lc.run(lc.TrainSettings(channels=("concatenated",), **TRAIN), sender=tiny, out=tmp_path)
        with pytest.raises(ValueError, match=r"the results of 'gated' in .* differ in `steps` \(1 there, 2 here\)"):
            lc.run(lc.TrainSettings(channels=("gated",), **{**TRAIN, "steps": 2}), sender=tiny, out=tmp_path)


class TestOnTheCommandLine:
    def test_the_refusal_speaks_of_flags_and_overwrite_is_the_way(self, tmp_path: Path) -> None:
        model = countries_folder(tmp_path / "tiny-countries")
        options = ("compare", "--sender", model, "--channels", "silent", "--n-test", "6", "--out", tmp_path / "out")
        assert run(*options).exit_code == 0
        refused = run(*options, "--seed", "1")
        assert refused.exit_code == 1
        assert "differ in --seed (0 there, 1 here); --overwrite writes over them, or give another --out or --name" in (
            last_line(refused.stderr)
        )
        assert run(*options, "--seed", "1", "--overwrite").exit_code == 0


class TestWhatIsKept:
    def test_records_stay_and_messages_of_this_run_alone_are_forgotten(self, tiny: lc.Model, tmp_path: Path) -> None:
        stopped(lc.CompareSettings(channels=("replace",), read_layer=0, write_layer=1, n_test=6), tiny, tmp_path)
        theirs = [name for name in files_in(tmp_path / SAVED) if "message-" in name]
        lc.run(SETTINGS, sender=tiny, out=tmp_path, overwrite=True)
        assert theirs and [name for name in files_in(tmp_path / SAVED) if "message-" in name] == theirs
        assert [name for name in files_in(tmp_path / SAVED) if "trials-" in name]

    def test_messages_are_forgotten_only_once_the_result_is_published(
        self, tiny: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*given: Any, **options: Any) -> None:
            raise RuntimeError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("latentcomm.experiments.job.publish", full)
            with pytest.raises(RuntimeError, match="the disk is full"):
                lc.run(SETTINGS, sender=tiny, out=tmp_path)
        assert [name for name in files_in(tmp_path / SAVED) if "message-" in name]
        lc.run(SETTINGS, sender=tiny, out=tmp_path)
        assert not [name for name in files_in(tmp_path / SAVED) if "message-" in name]

    def test_nothing_else_is_hidden_in_the_folder(self, tiny: lc.Model, tmp_path: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out=tmp_path)
        assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == {SAVED}


class TestTheHomeFolder:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path))
        return tmp_path

    def test_of_results_and_saved_work(self, tiny: lc.Model, home: Path) -> None:
        lc.run(SETTINGS, sender=tiny, out="~/results")
        lc.evaluate(lc.Silent(), tiny, tiny, lc.tasks.countries(), n=4, checkpoint="~/saved")
        assert (home / "results" / "compare.csv").exists() and files_in(home / "saved")
        assert not Path("~").exists()

    def test_of_maps_and_references(self, home: Path) -> None:
        made = lc.alignment.AffineMap.identity(3)
        made.save("~/map.safetensors")
        assert (home / "map.safetensors").exists()
        assert lc.alignment.AffineMap.load("~/map.safetensors").d_in == 3

    def test_of_trained_channels_and_a_corpus(self, tiny: lc.Model, home: Path) -> None:
        lc.run(lc.TrainSettings(channels=("gated",), **TRAIN), sender=tiny, out="~/weights")
        assert lc.load_learned("~/weights/gated.safetensors", tiny, tiny).channel.name == "gated"
        given = {"channels": ("silent", "gated"), "n_test": 6}
        assert lc.preflight(lc.CompareSettings(weights="~/weights", **given), tiny).refusals == ()
        assert "nowhere" in lc.preflight(lc.DiagnoseSettings(corpus="~/nowhere"), tiny).refusals[0]
