"""What a sweep keeps: it goes on where it was stopped, and takes nothing for what it is not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from cascades import HAND_OFFS, LIMIT, NS, STOPS, large, small, task

from latentcomm.experiments.cascade import (
    Cascade,
    CascadeSweep,
    CascadeTrial,
    FixedTokens,
    KVHandOff,
    TextHandOff,
    sweep_cascade,
    write_openings,
)
from latentcomm.experiments.cascade import continuations as handing
from latentcomm.experiments.cascade.runner import Setting, Side
from latentcomm.models import Model, recorded_passes
from latentcomm.tasks import Task


def sweep(kept: Path | None) -> CascadeSweep:
    return sweep_cascade(large(), small(), task(), hand_offs=HAND_OFFS, ns=NS, stops=STOPS, checkpoint=kept)


def test_a_stopped_sweep_resumes_and_a_finished_one_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, kept_in = sweep(None), tmp_path / "kept"
    done = handing.continue_openings
    calls = [0]

    def interrupted(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return done(*given)

    monkeypatch.setattr(handing, "continue_openings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(kept_in)
    first = calls[0]
    assert sweep(kept_in).trials == swept.trials
    whole = calls[0] - first
    assert whole == 4 * 3 + 2 * 2 - 3  # four hand-offs under three conditions, two under two more; three were kept
    with recorded_passes() as passes:
        again = sweep(kept_in)
    assert passes == []
    assert again.trials == swept.trials
    pd.testing.assert_frame_equal(again.signals, swept.signals)
    again.save_trials(tmp_path / "trials.jsonl")
    lines = (tmp_path / "trials.jsonl").read_text("utf-8").splitlines()
    assert [CascadeTrial(**json.loads(line)) for line in lines] == list(swept.trials)
    for damaged in ("votes-*/*.json", "signals-*/*.json", "openings-*/*.safetensors", "handed-*/*.json"):
        path = next(kept_in.glob(damaged))
        path.write_bytes(path.read_bytes()[:60])
        assert sweep(kept_in).trials == swept.trials
        assert path.with_name(f"{path.name}.damaged").exists()


def test_records_of_equal_openings_of_two_items_are_not_mixed_up(tmp_path: Path) -> None:
    openings = write_openings(large(), task(3), keep_cache=True)
    assert openings.parts is not None
    alike = replace(openings, parts=tuple(part | {"ids": openings.parts[0]["ids"]} for part in openings.parts))

    def said(rows: tuple[int, ...], kept: Path | None) -> list[CascadeTrial]:
        side = Side.of(alike, KVHandOff(), is_small=False).shuffled(rows)
        setting = Setting.of(large(), small(), task(3), kept)
        return setting.trials(side, "shuffled", "kv", {"3": [(3, True)] * 3}, {})

    assert said((1, 2, 0), tmp_path) == said((1, 2, 0), None)
    assert said((2, 0, 1), tmp_path) == said((2, 0, 1), None)
    assert said((2, 0, 1), None) != said((1, 2, 0), None)


def test_another_small_model_is_not_given_what_was_kept_of_the_first(tmp_path: Path) -> None:
    def replies(reader: Model, kept: Path | None) -> list[str]:
        found = Cascade(large(), reader, TextHandOff(), FixedTokens(3)).run(task(3), checkpoint=kept)
        return [trial.reply for trial in found]

    assert replies(small(), tmp_path) == replies(small(), None)
    another = tiny.model("llama", seed=4)
    assert replies(another, tmp_path) == replies(another, None) != replies(small(), None)


def said(writer: Model, reader: Model, asked: Task, kept: Path | None) -> list[str]:
    """All that a sweep wrote, votes among it."""
    controls = ("shuffled", "self", "self-consistency")
    found = sweep_cascade(
        writer, reader, asked, hand_offs={"text": TextHandOff()}, ns=(0, 2), controls=controls, checkpoint=kept
    )
    return [trial.reply for trial in found.trials]


@pytest.mark.parametrize("which", ["large", "small"])
def test_a_model_that_stops_elsewhere_is_not_given_what_was_kept_before(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = said(large(), small(), task(), tmp_path)
    writer, reader = large(), small()
    model = {"large": writer, "small": reader}[which]
    half = frozenset(range(len(model.embedding_table) // 2))
    monkeypatch.setitem(model.__dict__, "stop_ids", half)  # the model is that of other tests, too
    assert said(writer, reader, task(), tmp_path) == said(writer, reader, task(), None) != before


@pytest.mark.parametrize(
    "changed",
    [
        lambda asked: replace(asked, reply_tokens=LIMIT - 4),
        lambda asked: replace(asked, template="chat"),
        lambda asked: replace(
            asked, items=tuple(replace(item, receiver=f"{item.receiver} Alice") for item in asked.items)
        ),
    ],
    ids=["reply tokens", "template", "prompt"],
)
def test_a_task_that_is_asked_otherwise_is_not_given_what_was_kept_before(changed: Any, tmp_path: Path) -> None:
    before = said(large(), small(), task(), tmp_path)
    other = changed(task())
    assert said(large(), small(), other, tmp_path) == said(large(), small(), other, None) != before
