"""The main job on models in which one cell alone carries the answer; and that the test half never chooses the cell."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_same_bits, equal_to_rounding, forward_terms
from tiny import CHOICES, COUNTRIES, model
from toys import DEFAULT, N_RECEIVER, N_SENDER, PLANTED_CELL, Counter, interrupted, planted_pair, planted_task, toy

from latentcomm.alignment import AffineMap
from latentcomm.channels import Activation
from latentcomm.experiments import evaluation
from latentcomm.experiments.accuracy import summarise
from latentcomm.experiments.sweep import grid as layer_sweep
from latentcomm.experiments.sweep import run as sweeps
from latentcomm.experiments.sweep.grid import LayerSweep, sweep_layers
from latentcomm.experiments.sweep.run import (
    LENS,
    UNEMBEDDED,
    SweepReport,
    best_cell,
    cell_table,
    first_token_answers,
    sweep_and_judge,
    tune_sweep,
)
from latentcomm.fusion import Mean, Replace
from latentcomm.hooks import capture as capture_module
from latentcomm.hooks.capture import capture, run_to_deepest
from latentcomm.hooks.logit_lens import logit_lens
from latentcomm.models import Model, encode, recorded_passes
from latentcomm.models.sites import Site
from latentcomm.tasks import Task, draw_choices

REPLACE = {"replace": Replace()}


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    return planted_pair()


@pytest.fixture(scope="module")
def report(pair: tuple[Model, Model]) -> SweepReport:
    return sweep_and_judge(*pair, planted_task(), fusions={**REPLACE, "mean": Mean()})


def accuracy(report: SweepReport, channel: str, condition: str, metric: str) -> float:
    rows = report.conditions.set_index(["channel", "condition", "metric"])
    return float(rows.loc[(channel, condition, metric), "accuracy"])


def cells(rows: Sequence[tuple[int, int, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["read_layer", "write_layer", "choices_accuracy", "first_token_accuracy"])


def halves(task: Task, seed: int = 0) -> tuple[set[str], set[str]]:
    tune, test = task.split(seed=seed)
    return {item.id for item in tune.items}, {item.id for item in test.items}


def answered(task: Task, ids: set[str], country: str) -> Task:
    """The task with another right answer for some items; their canonical labels stay apart."""
    items = tuple(
        replace(item, answers=(f"nowhere {item.id}", country), choice=f" {country}") if item.id in ids else item
        for item in task.items
    )
    return replace(task, items=items)


class TestThePlantedCell:
    def test_is_the_only_one_that_answers_anything(self, report: SweepReport) -> None:
        for row in report.cells.to_dict("records"):
            right = float((row["read_layer"], row["write_layer"]) == PLANTED_CELL)
            assert (row["choices_accuracy"], row["first_token_accuracy"]) == (right, right)
        assert len(report.cells) == N_SENDER * N_RECEIVER

    def test_is_chosen_and_not_its_mirror_image(self, report: SweepReport) -> None:
        assert report.chosen == PLANTED_CELL == (2, 1)
        assert report.n_cells == N_SENDER * (N_RECEIVER - 1)  # the last write layer is not chosen from

    @pytest.mark.parametrize("metric", ["free", "choices"])
    def test_answers_every_test_item_and_only_by_its_own_message(self, report: SweepReport, metric: str) -> None:
        assert accuracy(report, "replace", "message", metric) == 1
        for condition in ("shuffled", "zero", "self"):
            assert accuracy(report, "replace", condition, metric) == 0
        for channel in ("silent", "skyline"):  # this receiver understands the code and not the words
            assert accuracy(report, channel, "message", metric) == 0
        assert accuracy(report, LENS, UNEMBEDDED, metric) == 0  # and the code is not the answer

    def test_is_the_same_one_where_the_grid_is_given_in_another_order(self, pair: tuple[Model, Model]) -> None:
        found = sweep_and_judge(
            *pair, planted_task(), fusions=REPLACE, read_layers=[3, 2, 0], write_layers=[2, 1], n_tune=6, n_test=6
        )
        assert (found.chosen, found.n_cells) == (PLANTED_CELL, 3)
        assert accuracy(found, "replace", "message", "free") == 1

    def test_of_the_last_write_layer_is_chosen_among_all_that_there_are(self, pair: tuple[Model, Model]) -> None:
        found = sweep_and_judge(*pair, planted_task(), fusions=REPLACE, write_layers=[2], n_tune=4, n_test=4)
        assert (found.chosen[1], found.n_cells) == (2, N_SENDER)

    def test_is_lost_where_an_alignment_takes_the_code_away(self, pair: tuple[Model, Model]) -> None:
        nothing = AffineMap(torch.zeros(32, 32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64))
        found = sweep_and_judge(*pair, planted_task(), fusions=REPLACE, alignment=nothing, n_tune=4, n_test=4)
        assert found.cells["choices_accuracy"].max() < 1
        assert accuracy(found, "replace", "message", "free") == 0
        kept = AffineMap.identity(32, dtype=torch.float64)
        found = sweep_and_judge(*pair, planted_task(), fusions=REPLACE, alignment=kept, n_tune=4, n_test=4)
        assert accuracy(found, "replace", "message", "free") == 1


class TestTheTwoHalves:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_the_cell_is_chosen_on_one_half_and_judged_on_the_other(
        self, seed: int, pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Task] = []

        def watched(sender: Model, receiver: Model, tune: Task, **options: Any) -> LayerSweep:
            asked.append(tune)
            return tune_sweep(sender, receiver, tune, **options)

        monkeypatch.setattr(sweeps, "tune_sweep", watched)
        task = planted_task()
        found = sweep_and_judge(*pair, task, fusions=REPLACE, seed=seed)
        tuned = {item.id for item in asked[0].items}
        tested = {trial.item for trial in found.trials}
        assert (tuned, tested) == halves(task, seed)
        assert tuned.isdisjoint(tested) and len(tuned | tested) == len(task.items)
        for channel, condition in {(trial.channel, trial.condition) for trial in found.trials}:
            mine = [t.item for t in found.trials if (t.channel, t.condition) == (channel, condition)]
            assert sorted(mine) == sorted(tested)

    def test_the_answers_of_the_test_half_do_not_move_the_cell(
        self, pair: tuple[Model, Model], report: SweepReport
    ) -> None:
        task = planted_task()
        tune, test = halves(task)
        default = COUNTRIES[DEFAULT]  # the right answer in every cell but the planted one
        leaked = sweep_and_judge(*pair, answered(task, test, default), fusions=REPLACE)
        assert leaked.chosen == PLANTED_CELL
        pd.testing.assert_frame_equal(leaked.cells, report.cells)
        assert (
            accuracy(leaked, "replace", "message", "free") == 0 and accuracy(leaked, "silent", "message", "free") == 1
        )
        # The answers of the tuning half do move it: the cells of the other test would not have been the same anyway.
        moved = sweep_and_judge(*pair, answered(task, tune, default), fusions=REPLACE)
        assert moved.chosen != PLANTED_CELL and accuracy(moved, "replace", "message", "free") == 0

    def test_as_many_items_as_asked_for_are_drawn_of_each(self, pair: tuple[Model, Model]) -> None:
        found = sweep_and_judge(*pair, planted_task(), fusions=REPLACE, n_tune=3, n_test=4)
        assert set(found.cells["n"]) == {3} and set(found.conditions["n"]) == {4}
        assert {trial.item for trial in found.trials} < halves(planted_task())[1]

    @pytest.mark.parametrize("option", ["n_tune", "n_test"])
    def test_more_than_a_half_has_are_refused_and_not_cut_down(self, option: str, pair: tuple[Model, Model]) -> None:
        with pytest.raises(ValueError, match=r"cannot take 99 of the 1[01] items"):
            sweep_and_judge(*pair, planted_task(), fusions=REPLACE, **{option: 99})


class TestWhatIsJudged:
    def test_the_first_fusion_has_every_control_and_the_others_only_shuffled(self, report: SweepReport) -> None:
        found = list(dict.fromkeys((trial.channel, trial.condition) for trial in report.trials))
        assert found == [
            ("silent", "message"),
            ("skyline", "message"),
            *(("replace", condition) for condition in ("message", "shuffled", "zero", "random", "self")),
            ("mean", "message"),
            ("mean", "shuffled"),
            (LENS, UNEMBEDDED),
        ]
        pd.testing.assert_frame_equal(report.conditions, summarise(report.trials, seed=0))
        assert len(report.trial_table()) == len(report.trials)

    def test_the_first_fusion_is_the_one_that_is_swept(self, pair: tuple[Model, Model]) -> None:
        found = sweep_and_judge(*pair, planted_task(), fusions={"mean": Mean(), **REPLACE}, n_tune=5, n_test=5)
        task = planted_task().split(seed=0)[0].take(5, seed=0)
        grid = tune_sweep(*pair, task, fusion=Mean(), seed=0).accuracy([item.choice for item in task.items])
        assert found.cells["choices_accuracy"].tolist() == grid.flatten().tolist()

    def test_every_fusion_is_judged_at_the_chosen_cell(self) -> None:
        tiny, task = model("llama"), toy(COUNTRIES * 2, openings=("The", " The note says", "Alice", "note", " is"))
        found = sweep_and_judge(tiny, tiny, task, fusions={**REPLACE, "mean": Mean()}, seed=1)
        test = task.split(seed=1)[1]
        for name, fusion in (("replace", Replace()), ("mean", Mean())):
            channel = Activation(name, Site(found.chosen[0]), Site(found.chosen[1]), fusion)
            alone = evaluation.evaluate(channel, tiny, tiny, test, seed=1, controls=("shuffled",))
            mine = [t for t in found.trials if t.channel == name and t.condition in ("message", "shuffled")]
            assert mine == alone

    def test_the_lens_is_in_the_table_as_the_senders_own_output(self) -> None:
        tiny, task = model("llama"), toy(COUNTRIES * 2, openings=("The", " The note says", "Alice", "note", " is"))
        found = sweep_and_judge(tiny, tiny, task, fusions=REPLACE, seed=1)
        test = task.split(seed=1)[1]
        site = Site(found.chosen[0])
        states = capture(tiny, encode(tiny, [item.sender for item in test.items]), [site]).last(site)
        spelled = [[f" {item.answers[0]}"] for item in test.items]
        right, options = [item.choice for item in test.items], draw_choices(test, tiny.first_token, seed=1)
        mine = [trial for trial in found.trials if trial.channel == LENS]
        lens = logit_lens(tiny, states[:, None], answers=spelled, right=right, choices=options)
        assert [trial.free for trial in mine] == lens.top_token[:, 0].tolist()
        assert [trial.choices for trial in mine] == lens.choice[:, 0].tolist()

    def test_the_sender_reads_a_prompt_once_to_tune_and_twice_to_judge(
        self, pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[list[int]] = []

        def counted(model: Model, tokens: torch.Tensor, *given: Any, **options: Any) -> Any:
            if model is pair[0]:
                read.extend(tokens.tolist())
            return run_to_deepest(model, tokens, *given, **options)

        monkeypatch.setattr(capture_module, "run_to_deepest", counted)
        task = planted_task()
        sweep_and_judge(*pair, task, fusions={**REPLACE, "mean": Mean()})
        for half, times in zip(task.split(seed=0), (1, 2), strict=True):  # the message of both fusions, and the lens
            prompts = encode(pair[0], [item.sender for item in half.items])
            assert all(read.count(row) == times for row in prompts.tokens.tolist())

    @pytest.mark.parametrize("name", ["silent", "skyline", "logit lens"])
    def test_a_fusion_may_not_have_the_name_of_another_channel(self, name: str, pair: tuple[Model, Model]) -> None:
        with pytest.raises(ValueError, match=f"a fusion is named '{name}'"):
            sweep_and_judge(*pair, planted_task(), fusions={name: Replace()})

    def test_a_task_without_choices_is_refused_before_anything_runs(self, pair: tuple[Model, Model]) -> None:
        free = tuple(replace(item, choice="", candidates=None) for item in toy().items)
        task = replace(toy(), name="free answers", items=free, candidates=())
        message = "^task 'free answers' has no answer choices, and a sweep chooses its cell by choices; give read_layer"
        with recorded_passes() as passes:
            with pytest.raises(ValueError, match=message):
                sweep_and_judge(*pair, task, fusions={"replace": Replace()})
            with pytest.raises(ValueError, match=message):
                tune_sweep(*pair, task, fusion=Replace(), seed=0)
        assert passes == []

    def test_no_fusion_is_refused(self, pair: tuple[Model, Model]) -> None:
        with pytest.raises(ValueError, match="at least one fusion"):
            sweep_and_judge(*pair, planted_task(), fusions={})

    def test_messages_that_cannot_be_shuffled_are_refused_before_the_sweep(
        self, pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweeps, "tune_sweep", lambda *given, **options: pytest.fail("the sweep ran"))
        with pytest.raises(ValueError, match="items share the answer"):
            sweep_and_judge(*pair, planted_task(), fusions=REPLACE, n_test=1)

    def test_the_same_seed_gives_the_same_report(self, pair: tuple[Model, Model], report: SweepReport) -> None:
        again = sweep_and_judge(*pair, planted_task(), fusions={**REPLACE, "mean": Mean()})
        assert again.trials == report.trials
        pd.testing.assert_frame_equal(again.cells, report.cells, check_exact=True)
        pd.testing.assert_frame_equal(again.conditions, report.conditions, check_exact=True)


class TestTheCheckpoint:
    def test_what_was_done_before_an_interruption_is_not_done_again(
        self, tmp_path: Path, pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = sweep_and_judge(*pair, planted_task(), fusions=REPLACE)
        passes, decodes = Counter(layer_sweep.run_staircase), interrupted(monkeypatch, evaluation, "decode", at=4)
        with pytest.raises(KeyboardInterrupt):
            sweep_and_judge(*pair, planted_task(), fusions=REPLACE, checkpoint=tmp_path)
        assert len(list(tmp_path.glob("trials-*/*.json"))) == 3
        monkeypatch.setattr(layer_sweep, "run_staircase", passes)
        found = sweep_and_judge(*pair, planted_task(), fusions=REPLACE, checkpoint=tmp_path)
        assert (passes.calls, decodes.calls) == (0, 7)  # silent, skyline, the message and four controls
        assert found.trials == whole.trials
        pd.testing.assert_frame_equal(found.cells, whole.cells, check_exact=True)


class TestTheTableOfCells:
    READS, WRITES = (0, 2), (0, 1, 2)

    @pytest.fixture
    def task(self) -> Task:
        return toy(COUNTRIES[:4])

    @pytest.fixture
    def sweep(self, task: Task) -> LayerSweep:
        """Of four items, choices right in 3 at (2, 0) and in 1 at (0, 1); the top token in 2 at (2, 0), 4 at (0, 2)."""
        tiny = model("llama")
        right = [CHOICES.index(item.choice) for item in task.items]
        logits = torch.zeros(4, 2, 3, len(CHOICES))
        logits[..., DEFAULT] = 0.5  # wrong, unless the right one is higher
        top = torch.full((4, 2, 3), tiny.first_token(" Japan"))
        for item, place in enumerate(right):
            logits[item, 1, 0, place] = float(item < 3)
            logits[item, 0, 1, place] = float(item == 3)
            top[item, 0, 2] = tiny.first_token(task.items[item].choice)
            top[item, 1, 0] = tiny.first_token(task.items[item].choice) if item < 2 else top[item, 1, 0]
        return LayerSweep(
            self.READS,
            self.WRITES,
            torch.zeros(4, 2, tiny.d_model, dtype=tiny.dtype),
            logits,
            top,
            (CHOICES,) * 4,
            tiny.first_token,
        )

    def test_says_of_each_cell_what_happened_in_it(self, sweep: LayerSweep, task: Task) -> None:
        found = cell_table(sweep, model("llama"), task)
        rows = [
            (row["read_layer"], row["write_layer"], row["choices_accuracy"], row["first_token_accuracy"])
            for row in found.to_dict("records")
        ]
        assert rows == [
            (0, 0, 0.0, 0.0),
            (0, 1, 0.25, 0.0),
            (0, 2, 0.0, 1.0),
            (2, 0, 0.75, 0.5),
            (2, 1, 0.0, 0.0),
            (2, 2, 0.0, 0.0),
        ]
        assert set(found["n"]) == {4}

    def test_an_alias_counts_as_a_top_token_as_it_would_follow_the_prompt(self, sweep: LayerSweep, task: Task) -> None:
        renamed = replace(
            task, items=tuple(replace(item, answers=("Alice", *item.answers, "Japan")) for item in task.items)
        )
        found = cell_table(sweep, model("llama"), renamed)
        assert found["first_token_accuracy"].tolist() == [1.0] * 6
        assert (
            found["choices_accuracy"].tolist() == cell_table(sweep, model("llama"), task)["choices_accuracy"].tolist()
        )

    def test_the_lens_is_the_senders_at_each_read_layer(self, sweep: LayerSweep, task: Task) -> None:
        sender = model("llama", seed=3)
        sites = [Site(read) for read in self.READS]
        at = capture(sender, encode(sender, [item.sender for item in task.items]), sites)
        found = cell_table(replace(sweep, messages=torch.stack([at.last(site) for site in sites], 1)), sender, task)
        right = [item.choice for item in task.items]
        for place, read in enumerate(self.READS):
            rows = found[found["read_layer"] == read]
            answers = [[choice] for choice in right]
            states = at.last(sites[place])[:, None]
            lens = logit_lens(sender, states, answers=answers, right=right, choices=[CHOICES] * 4)
            assert rows["lens_choices_accuracy"].tolist() == [float(lens.choice.double().mean())] * 3
            assert rows["lens_first_token_accuracy"].tolist() == [float(lens.top_token.double().mean())] * 3

    def test_a_sweep_without_choices_is_refused(self, sweep: LayerSweep, task: Task) -> None:
        bare = replace(sweep, logits=None, choices=None)
        with pytest.raises(ValueError, match="no choices"):
            cell_table(bare, model("llama"), task)

    def test_a_real_sweep_of_a_task_is_that_of_its_prompts_and_choices(self, task: Task) -> None:
        tiny = model("llama")
        found = tune_sweep(tiny, tiny, task, fusion=Mean(), seed=7, read_layers=[1], write_layers=[0, 2])
        by_hand = sweep_layers(
            tiny,
            tiny,
            encode(tiny, [item.sender for item in task.items]),
            encode(tiny, [item.receiver for item in task.items]),
            fusion=Mean(),
            read_layers=[1],
            write_layers=[0, 2],
            choices=draw_choices(task, tiny.first_token, seed=7),
        )
        assert found.logits is not None and by_hand.logits is not None
        assert_same_bits(found.logits, by_hand.logits)
        assert found.choices == by_hand.choices
        chat = tune_sweep(tiny, tiny, replace(task, template="chat"), fusion=Mean(), seed=7, read_layers=[1])
        assert chat.logits is not None
        assert not equal_to_rounding(chat.logits[:, :, [0, 2]], by_hand.logits, terms=forward_terms(tiny))


class TestTheFirstTokensOfAnswers:
    def test_are_those_of_the_choice_and_every_alias_as_after_the_prompt(self) -> None:
        task = toy(COUNTRIES[:3])
        items = (replace(task.items[0], answers=("Greece", "Alice")), *task.items[1:])
        found = first_token_answers(replace(task, items=items), model("llama").first_token)
        assert [set(names) for names in found] == [{" Greece", " Alice"}, {" Italy"}, {" Peru"}]

    def test_an_alias_that_begins_like_another_answer_counts_for_neither(self) -> None:
        task = toy(COUNTRIES[:3])
        aliases = (("Greece", "Alice is"), ("Italy", "Alice at"), ("Peru", "note"))
        items = tuple(replace(item, answers=answers) for item, answers in zip(task.items, aliases, strict=True))
        found = first_token_answers(replace(task, items=items), model("llama").first_token)
        assert [set(names) for names in found] == [{" Greece"}, {" Italy"}, {" Peru", " note"}]

    def test_two_items_of_one_answer_do_not_stand_in_each_others_way(self) -> None:
        task = toy(("Greece", "Greece"))
        items = tuple(replace(item, answers=("Greece", "Alice")) for item in task.items)
        found = first_token_answers(replace(task, items=items), model("llama").first_token)
        assert [set(names) for names in found] == [{" Greece", " Alice"}] * 2

    def test_a_choice_without_a_space_has_aliases_without_one(self) -> None:
        task = toy(COUNTRIES[:2])
        items = tuple(
            replace(item, choice=item.choice.strip(), candidates=COUNTRIES, answers=(*item.answers, alias))
            for item, alias in zip(task.items, ("Alice", "note"), strict=True)
        )
        found = first_token_answers(replace(task, items=items), model("llama").first_token)
        assert [set(names) for names in found] == [{"Greece", "Alice"}, {"Italy", "note"}]


class TestTheBestCell:
    def test_has_the_highest_accuracy_by_choices(self) -> None:
        assert best_cell(cells([(0, 0, 0.2, 0.9), (1, 2, 0.6, 0.0), (2, 1, 0.5, 1.0)])) == (1, 2)

    def test_of_equals_its_top_token_is_right_more_often(self) -> None:
        assert best_cell(cells([(0, 0, 0.5, 0.1), (2, 1, 0.5, 0.3), (1, 0, 0.5, 0.2)])) == (2, 1)

    def test_of_complete_equals_it_writes_then_reads_shallower(self) -> None:
        rows = [(0, 2, 0.5, 0.1), (3, 1, 0.5, 0.1), (2, 1, 0.5, 0.1), (1, 2, 0.5, 0.1)]
        assert best_cell(cells(rows)) == best_cell(cells(rows[::-1])) == (2, 1)

    def test_is_not_of_the_last_write_layer_where_there_is_another(self) -> None:
        rows = [(0, 0, 0.1, 0.0), (1, 1, 0.2, 0.0), (2, 2, 1.0, 1.0), (2, 3, 1.0, 1.0)]
        assert best_cell(cells(rows), n_layers=4) == (2, 2)
        assert best_cell(cells(rows), n_layers=3) == (2, 3)  # only the layer itself is passed over, wherever it stands
        assert best_cell(cells(rows[:3]), n_layers=3) == (1, 1)
        assert best_cell(cells(rows[:3])) == (2, 2)

    def test_a_deep_read_layer_is_no_reason_to_pass_over(self) -> None:
        assert best_cell(cells([(3, 0, 1.0, 0.0), (0, 0, 0.5, 0.0)]), n_layers=4) == (3, 0)

    def test_is_of_the_last_write_layer_where_that_is_all_there_is(self) -> None:
        assert best_cell(cells([(0, 3, 0.1, 0.0), (1, 3, 0.3, 0.0)]), n_layers=4) == (1, 3)

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=16, unique=True),
        st.data(),
    )
    def test_is_never_worse_than_any_that_may_be_chosen(
        self, places: list[tuple[int, int]], data: st.DataObject
    ) -> None:
        shares = st.sampled_from([0.0, 0.25, 0.5])
        rows = [(read, write, data.draw(shares), data.draw(shares)) for read, write in places]
        allowed = [row for row in rows if row[1] != 3] or rows
        found = best_cell(cells(rows), n_layers=4)
        (mine,) = [row for row in allowed if row[:2] == found]
        for row in allowed:
            assert (mine[2], mine[3], -mine[1], -mine[0]) >= (row[2], row[3], -row[1], -row[0])
