"""The table of a sweep by hand, row by row."""

from dataclasses import replace

import pytest
from cascades import TRIAL

from latentcomm._core.stats import mcnemar_exact, proportion_interval
from latentcomm.experiments.cascade.table import cascade_table


class TestTheTable:
    def test_a_row_is_what_its_trials_say(self) -> None:
        right = {"small alone": "1000", "large alone": "1111", "message": "1101", "other": "1000"}
        trials = [
            replace(
                TRIAL, item=str(number), condition=condition, free=mark == "1", n=number,
                answer_in_opening=condition == "message" and number == 0, fired=number > 0,
                hand_off="text" if condition in ("message", "other") else "none",
            )
            for condition, marks in right.items()
            for number, mark in enumerate(marks)
        ]  # fmt: skip
        decoys = [
            replace(trial, hand_off=hand_off, stop=stop, free=True)
            for hand_off, stop in (("text", "9"), ("graft", "8"))
            for trial in trials
            if trial.condition == "other"
        ]
        table = cascade_table([*decoys, *trials], seed=0)
        row = table[table["condition"] == "message"].iloc[0]
        low, high = proportion_interval(3, 4)
        assert (row["n"], row["correct"], row["accuracy"], row["low"], row["high"]) == (4, 3, 0.75, low, high)
        assert (row["tokens"], row["fired"], row["in_opening"]) == (1.5, 0.75, 0.25)
        assert (row["without_n"], row["without_accuracy"]) == (3, 2 / 3)
        assert (row["large_flops"], row["small_flops"], row["flops"]) == (2, 1, 3)
        assert row["p_small"] == mcnemar_exact([1, 1, 0, 1], [1, 0, 0, 0]).p_value
        assert row["p_large"] == mcnemar_exact([1, 1, 0, 1], [1, 1, 1, 1]).p_value
        assert row["p_other"] == mcnemar_exact([1, 1, 0, 1], [1, 0, 0, 0]).p_value
        assert row["over_small"] == 0.5
        assert (
            row["without_small"] == 0
        )  # the small model alone was right on the item that is left out, and on no other
        assert row["without_large"] == 1
        assert row["over_large"] == -0.25 and row["over_large_low"] <= -0.25 <= row["over_large_high"]
        assert row["flops_low"] == row["flops_high"] == 3
        assert table["condition"].tolist()[:2] == ["small alone", "large alone"]
        assert table[table["condition"] == "small alone"]["p_small"].isna().all()

    def test_finished_replies_are_left_out_of_what_the_small_model_continued(self) -> None:
        marks = {"message": ("11010", "10000"), "other": ("10000", "00001")}  # right, and finished, item by item
        trials = [
            replace(TRIAL, item=str(at), condition=condition, free=free == "1", finished=finished == "1")
            for condition, (right, ended) in marks.items()
            for at, (free, finished) in enumerate(zip(right, ended, strict=True))
        ]
        row = cascade_table(trials).iloc[0]
        low, high = proportion_interval(2, 4)
        assert (row["handed_n"], row["handed_accuracy"], row["handed_low"], row["handed_high"]) == (4, 0.5, low, high)
        assert row["handed_other"] == 0  # of the three that are finished under neither
        assert row["p_handed"] == mcnemar_exact([1, 0, 1], [0, 0, 0]).p_value
        assert row["p_other"] == mcnemar_exact([1, 1, 0, 1, 0], [1, 0, 0, 0, 0]).p_value

    def test_whole_groups_are_drawn_where_items_belong_together(self) -> None:
        alone = [replace(TRIAL, item=str(at), condition="small alone", hand_off="none", free=False) for at in range(8)]
        told = [replace(TRIAL, item=str(at), free=at < 4) for at in range(8)]
        row = {}
        for name, groups in (("items", None), ("pairs", {str(at): str(at // 4) for at in range(8)})):
            row[name] = cascade_table([*alone, *told], groups=groups).query("condition == 'message'").iloc[0]
        assert (row["pairs"]["over_small_low"], row["pairs"]["over_small_high"]) == (0, 1)
        assert 0 < row["items"]["over_small_low"] < row["items"]["over_small_high"] < 1
        assert row["pairs"]["low"] == row["items"]["low"]
        with pytest.raises(ValueError, match="item '0' is in no group"):
            cascade_table(told, groups={"1": "a"})

    def test_items_that_differ_or_repeat_are_refused(self) -> None:
        with pytest.raises(ValueError, match="occurs twice"):
            cascade_table([TRIAL, TRIAL])
        with pytest.raises(ValueError, match="of different items"):
            cascade_table([TRIAL, replace(TRIAL, item="b", stop="9")])
