"""Parts: shares of one run's records, made apart and in any order, give the undivided run's table to the bit."""

import itertools
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from toys import Counter

import latentcomm as lc
from latentcomm._core.records import Part, Records, ordered, scheduled_by
from latentcomm.experiments.job import Job
from latentcomm.experiments.join import join_records
from latentcomm.experiments.settings import Settings

COMPARE = lc.CompareSettings(
    channels=("silent", "replace", "kv"), read_layer=1, write_layer=1, n_test=34, controls=("shuffled",)
)
SWEEP = lc.SweepSettings(n_tune=3, n_test=34, fusion=("replace", "mean"))
CASCADE = lc.CascadeSettings(
    task="kv-math", n=(0, 2), n_items=20, reply_tokens=4, stop=("sentence-end",), hand_off=("text", "kv")
)
RUNS = pytest.mark.parametrize("settings", [COMPARE, SWEEP, CASCADE], ids=lambda each: each.command)


def without_seconds(trials: pd.DataFrame) -> list[dict[str, object]]:
    return json.loads(trials.drop(columns="seconds", errors="ignore").to_json(orient="records", double_precision=15))


def same(found: lc.Result, expected: lc.Result) -> bool:
    tables = [each.table.drop(columns="seconds", errors="ignore") for each in (found, expected)]
    return tables[0].equals(tables[1]) and without_seconds(found.trials) == without_seconds(expected.trials)


def unmade(what: str) -> Callable[..., object]:
    def refuse(*_: object, **__: object) -> object:
        raise AssertionError(f"{what} was run again")

    return refuse


@RUNS
def test_three_parts_and_a_plain_run_give_the_undivided_result(
    settings: Settings, tiny: lc.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lc.run(settings, tiny, tiny)
    reports = [lc.run_part(settings, f"{number}/3", tiny, tiny, out=tmp_path) for number in (3, 1, 2)]
    assert all(each.n_made for each in reports) and [each.n_left > 0 for each in reports] == [
        True,
        True,
        settings is CASCADE,
    ]
    if settings is COMPARE:  # a sweep reads its messages again, a cascade votes
        monkeypatch.setattr(lc.Model, "forward", unmade("a pass"))
    assert same(lc.run(settings, tiny, tiny, out=tmp_path), whole)


def test_a_map_is_fitted_by_one_part_and_read_by_the_others(tiny: lc.Model, other: lc.Model, tmp_path: Path) -> None:
    settings = lc.CompareSettings(channels=("replace",), read_layer=1, write_layer=1, n_test=6, audit=False)
    maps = import_module("latentcomm.experiments.maps")
    with pytest.MonkeyPatch.context() as patch:
        fit = Counter(maps.fit_ridge)
        patch.setitem(maps.__dict__, "ALIGNMENTS", {"ridge": fit})
        for part in ("2/2", "1/2"):
            lc.run_part(settings, part, tiny, other, out=tmp_path)
        result = lc.run(settings, tiny, other, out=tmp_path)
    assert fit.calls == 1 and same(result, lc.run(settings, tiny, other))
    assert len(list(tmp_path.glob(".latentcomm/*/conditions-*"))) == 1


def test_a_part_that_fails_leaves_the_claim_to_those_that_go_on(tiny: lc.Model, tmp_path: Path) -> None:
    settings = lc.CompareSettings(channels=("silent",), n_test=6)
    (claim,) = Job(sender=tiny, out=tmp_path).claims(settings, "compare")
    with claim.held():
        with pytest.raises(KeyboardInterrupt), claim.held():
            raise KeyboardInterrupt
        assert claim.path.exists()


def test_parts_in_folders_of_their_own_are_joined(tiny: lc.Model, tmp_path: Path) -> None:
    whole = lc.run(COMPARE, sender=tiny)
    folders = [tmp_path / str(number) for number in (1, 2)]
    for number, folder in enumerate(folders, 1):
        lc.run_part(COMPARE, f"{number}/2", tiny, out=folder)
    join_records(tmp_path / "all", folders)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lc.Model, "forward", unmade("a pass"))
        assert same(lc.run(COMPARE, sender=tiny, out=tmp_path / "all"), whole)


def test_folders_of_other_settings_are_not_joined(tiny: lc.Model, tmp_path: Path) -> None:
    for seed in (0, 1):
        settings = lc.CompareSettings(channels=("silent",), n_test=6, seed=seed)
        lc.run_part(settings, "1/1", tiny, out=tmp_path / str(seed))
    with pytest.raises(
        ValueError, match=r"1 is of another run than .*0: 'compare' differs in `seed` \(1 there, 0 here"
    ):
        join_records(tmp_path / "0", [tmp_path / "1"])
    with pytest.raises(ValueError, match="holds no saved work"):
        join_records(tmp_path / "0", [tmp_path / "nowhere"])


@pytest.mark.parametrize("part", ["0/4", "5/4", "1/0", "a/b", "3", "1/2/3", "-1/2", ""])
def test_a_part_that_there_is_not_is_refused(part: str, tiny: lc.Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give"):
        lc.run_part(COMPARE, part, tiny, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [lc.DiagnoseSettings(), lc.TrainSettings()], ids=lambda each: each.command)
def test_an_experiment_without_parts_is_refused(settings: Settings, tiny: lc.Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{settings.command} does not run in parts"):
        lc.run_part(settings, "1/2", tiny, out=tmp_path)


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_the_parts_of_all_loops_hold_each_record_once(of: int, tmp_path: Path) -> None:
    loops = [
        [(Records(tmp_path / str(loop)), str(number)) for number in range(size)]
        for loop, size in enumerate([1, 5, 2, 9])
    ]
    owned = []
    for number in range(1, of + 1):
        with scheduled_by(Part(number, of)):
            owned.append([(loop, index) for loop, each in enumerate(loops) for index in ordered(each, needed=False)])
    assert sorted(itertools.chain.from_iterable(owned)) == [
        (loop, index) for loop, each in enumerate(loops) for index in range(len(each))
    ]
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_all_that_is_needed_comes_own_first_then_from_the_end(tmp_path: Path) -> None:
    pieces = [(Records(tmp_path), str(number)) for number in range(7)]
    with scheduled_by(Part(1, 2)):
        assert list(ordered(pieces)) == [0, 2, 4, 6, 5, 3, 1]
