"""A folder belongs to the runs that write to it: what another run may do there, and what is kept for the next one."""

import contextlib
import errno
import json
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import cascades
import pytest
from commands import last_line, run
from small_commands import published
from tiny import files_in
from toys import Counter, countries_folder, interrupted

import latentcomm as lc
from latentcomm.experiments import evaluation, train
from latentcomm.experiments.cascade import run as cascade
from latentcomm.experiments.cascade.openings import openings_of
from latentcomm.experiments.folder import Claim, forget, large_work, note_large
from latentcomm.experiments.job import Job
from latentcomm.experiments.settings import SAVED, Settings

SETTINGS = lc.CompareSettings(channels=("silent", "replace"), read_layer=1, write_layer=1, n_test=6, audit=False)
MORE = replace(SETTINGS, channels=("silent", "replace", "mean"))
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

    def test_is_one_with_an_option_that_the_first_had_and_this_has_not(self, tiny: lc.Model, tmp_path: Path) -> None:
        chat = replace(SETTINGS, template="chat")
        lc.run(replace(chat, system="Alice is"), sender=tiny, out=tmp_path)
        record = json.loads((tmp_path / "compare.meta.json").read_text("utf-8"))
        assert record["settings"]["system"] == record["run"]["settings"]["system"] == "Alice is"
        with pytest.raises(ValueError, match=r"differ in `system` \(Alice is there, none here\)"):
            lc.run(chat, sender=tiny, out=tmp_path)
        lc.run(chat, sender=tiny, out=tmp_path / "other")
        found = json.loads((tmp_path / "other" / "compare.meta.json").read_text("utf-8"))
        assert "system" not in found["settings"]
        assert {"system", "history", "enable_thinking", "date"}.isdisjoint(chat.decisive())

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

    def test_how_often_a_training_is_saved_makes_no_other_run(self, tmp_path: Path) -> None:
        often = lc.TrainSettings(channels=("gated",), save_every=1.0)
        with claim_of(replace(often, save_every=60.0), tmp_path).held():
            assert claim_of(often, tmp_path).refusal() is None
            assert "differs in `steps`" in str(claim_of(replace(often, steps=3), tmp_path).refusal())
        assert often.to_dict()["save_every"] == 1.0 and "save_every" not in often.decisive()

    @pytest.mark.parametrize(
        ("settings", "file"),
        [
            (lc.TrainSettings(channels=("gated",)), "gated.safetensors"),
            (lc.CompareSettings(), "compare_trials.csv"),
            (lc.CascadeSettings(), "cascade_trials.jsonl"),
            (lc.CascadeSettings(), "cascade_tokens.csv"),
            (lc.CascadeSettings(), "cascade_front.html"),
            (lc.SweepSettings(), "sweep_conditions.csv"),
            (lc.DiagnoseSettings(), "cells.csv"),
        ],
    )
    def test_every_file_that_it_would_write_over_counts(self, settings: Settings, file: str, tmp_path: Path) -> None:
        (tmp_path / file).write_text("mine")
        refusal = str(claim_of(settings, tmp_path).refusal())
        assert refusal.startswith(f"{tmp_path} holds a {file} that names no settings; `overwrite=True` writes over it")

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


def claim_of(settings: Settings, out: Path, name: str = "") -> Claim:
    (claim,) = Job(out=out).claims(settings, name or settings.command)
    return claim


class TestAtOnce:
    def test_of_different_runs_that_start_at_once_one_runs(self, tmp_path: Path) -> None:
        claims = [claim_of(replace(SETTINGS, seed=seed), tmp_path / "new") for seed in range(4)]
        together, ended = Barrier(len(claims), timeout=20), Barrier(len(claims), timeout=20)
        found: list[str] = []

        def start(claim: Claim) -> None:
            refusal = claim.refusal()  # as before the first weight is read
            together.wait()
            try:
                with claim.held():
                    found.append(f"started {refusal}")
                    ended.wait()
            except ValueError as error:
                found.append(str(error))
                ended.wait()

        threads = [Thread(target=start, args=(claim,)) for claim in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found)[-1] == "started None" and len(found) == 4
        assert all("differs in `seed`" in refusal for refusal in sorted(found)[:-1])

    def test_with_overwrite_both_run_and_so_do_two_equal_ones(self, tmp_path: Path) -> None:
        one, other = claim_of(SETTINGS, tmp_path), claim_of(MORE, tmp_path)
        with one.held(), one.held(), other.held(overwrite=True):
            assert one.refusal() and not other.refusal()

    def test_where_the_file_system_has_no_locks_a_run_starts_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unsupported(*given: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", unsupported)
        other = claim_of(MORE, tmp_path).held()
        with claim_of(SETTINGS, tmp_path).held(), pytest.raises(ValueError, match="differs in `channels`"):
            other.__enter__()


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {path.as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def ended_with(error: BaseException, claim: Claim, *, saves: Path | None = None) -> None:
    """A run that has saved a file, or nothing, and ended so."""
    with contextlib.suppress(type(error)), claim.held(overwrite=True):
        if saves is not None:
            saves.write_text("{}")
        raise error


class TestAClaim:
    def test_stays_where_the_run_has_saved_something_and_else_goes(self, tmp_path: Path) -> None:
        claim, theirs = claim_of(SETTINGS, tmp_path), tmp_path / SAVED / "of-another-run" / "0.json"
        theirs.parent.mkdir(parents=True)
        theirs.write_text("{}")
        ended_with(KeyboardInterrupt(), claim)
        assert not claim.path.exists() and theirs.exists()
        ended_with(KeyboardInterrupt(), claim, saves=theirs.with_name("1.json"))
        assert claim.path.exists()

    def test_refuses_nothing_once_the_results_are_deleted(self, tmp_path: Path) -> None:
        claim, other = claim_of(SETTINGS, tmp_path), claim_of(MORE, tmp_path)
        (tmp_path / "compare.csv").write_text("a")
        with claim.held(overwrite=True):
            claim.finish([tmp_path / "compare.csv"])
        assert "differ in `channels`" in str(other.refusal())
        (tmp_path / "compare.csv").unlink()
        assert other.refusal() is None
        with claim.held():  # while it runs there are no results either
            assert "differs in `channels`" in str(other.refusal())

    def test_files_that_only_the_older_run_wrote_go_and_no_others(self, tmp_path: Path) -> None:
        grid, cell = lc.SweepSettings(), lc.SweepSettings(read_layer=1, write_layer=1)
        older = [tmp_path / name for name in ("sweep.csv", "sweep_conditions.csv")]
        for path in (*older, tmp_path / "sweep_notes.csv", tmp_path / "sweep_trials.csv"):
            path.write_text("a")
        with claim_of(grid, tmp_path).held(overwrite=True):
            claim_of(grid, tmp_path).finish(older)
        claim = claim_of(cell, tmp_path)
        ended_with(RuntimeError(), claim, saves=tmp_path / SAVED / "0.safetensors")
        assert all(path.exists() for path in older)  # until another result has replaced them
        with claim.held():
            claim.finish(older[:1])
        assert {path.name for path in tmp_path.iterdir()} == {SAVED, "sweep.csv", "sweep_notes.csv", "sweep_trials.csv"}

    def test_that_is_damaged_is_set_aside_by_a_run_and_not_by_a_preflight(self, tmp_path: Path) -> None:
        claim = claim_of(SETTINGS, tmp_path)
        claim.path.parent.mkdir()
        claim.path.write_text("{")
        before = everything_in(tmp_path)
        assert claim.refusal() is None and everything_in(tmp_path) == before
        with claim.held():
            assert claim.path.with_name("compare.json.damaged").read_text() == "{"

    def test_of_a_refused_run_leaves_no_folder_but_what_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "made").mkdir()
        for folder in (tmp_path / "made", tmp_path / "new" / "deep"):
            ended_with(ValueError(), claim_of(SETTINGS, folder))
        assert [path.name for path in tmp_path.rglob("*")] == ["made"]

    def test_of_a_channel_is_finished_when_it_is_published(
        self, tiny: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learn = train.learn

        def failing(name: str, *given: Any, **options: Any) -> Any:
            if name == "concatenated":
                raise ValueError("refused late")
            return learn(name, *given, **options)

        monkeypatch.setattr(train, "learn", failing)
        settings = lc.TrainSettings(channels=("gated", "concatenated"), **TRAIN)
        with pytest.raises(ValueError, match="refused late"):
            lc.run(settings, sender=tiny, out=tmp_path)
        record = json.loads((tmp_path / SAVED / "gated.json").read_text("utf-8"))
        assert record["finished"] and "gated.safetensors" in record["files"]
        assert not (tmp_path / SAVED / "concatenated.json").exists()

    def test_of_a_task_without_a_digest_is_refused_in_a_sentence(self, tiny: lc.Model, tmp_path: Path) -> None:
        task = lc.tasks.countries()
        mine = replace(task, judge=lambda reply, answers: task.judge(reply, answers))
        assert lc.preflight(SETTINGS, tiny, task=mine).refusals == ()
        (refusal,) = lc.preflight(SETTINGS, tiny, task=mine, out=tmp_path).refusals
        assert refusal.startswith("work with this task cannot be saved, since function has no digest")


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

    def test_a_finished_cascade_is_read_back_and_no_state_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = lc.CascadeSettings(
            hand_off=("kv",), n=(2,), stop=("confident",), controls=("shuffled", "self"), reply_tokens=5
        )
        given = {"sender": cascades.large(), "receiver": cascades.small(), "task": cascades.task()}
        first = lc.run(settings, **given, out=tmp_path)
        before = published(tmp_path)
        assert not [name for name in files_in(tmp_path / SAVED) if "openings-" in name]
        again = Counter(cascade.write_openings)
        monkeypatch.setattr(cascade, "write_openings", again)
        second = lc.run(settings, **given, out=tmp_path)
        assert again.calls == 0 and published(tmp_path) == before
        assert first.found.trials == second.found.trials == lc.run(settings, **given).found.trials
        assert again.calls == 2  # without a folder
        assert len(openings_of(second.found.openings)) == 5 and "keys" not in second.found.openings.parts[0]

    def test_what_another_run_still_needs_stays_until_that_has_ended(self, tmp_path: Path) -> None:
        message = tmp_path / "work" / "message-1"
        with large_work() as of_one:
            note_large(message)
            with large_work() as of_another:
                note_large(message)
                message.mkdir()
                (message / "00000.safetensors").touch()
                forget(of_another)
                assert files_in(message) == ["00000.safetensors"]
            forget(of_one)
            assert not message.exists()
        assert list(tmp_path.iterdir()) == []

    def test_what_is_large_is_listed_by_the_run_in_whose_thread_it_is(self, tmp_path: Path) -> None:
        with large_work() as large:
            other = Thread(target=note_large, args=(tmp_path / "theirs",))
            other.start()
            other.join()
            note_large(tmp_path / "mine")
            assert list(large) == [tmp_path / "mine"]

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
