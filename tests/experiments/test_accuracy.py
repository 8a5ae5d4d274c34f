"""Tables of trials against counts by hand, the binomial test, Wilson's formula and the bootstrap of one pair."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from tiny import model
from toys import toy

from latentcomm._core.stats import paired_bootstrap
from latentcomm.channels import Silent
from latentcomm.experiments.accuracy import accuracy_table, in_pairs, summarise, to_table
from latentcomm.experiments.evaluation import Trial, evaluate

BY = ("channel", "condition")


def trial(channel: str, condition: str, item: str, free: bool, choices: bool) -> Trial:
    return Trial(item, "Greece", channel, condition, "a reply", free, " Greece", choices, 8)


def trials(channel: str, condition: str, free: str, choices: str) -> list[Trial]:
    """Trials of items 0, 1, ... that were right where a string has a 1."""
    return [
        trial(channel, condition, f"item {number}", a == "1", b == "1")
        for number, (a, b) in enumerate(zip(free, choices, strict=True))
    ]


@dataclass(frozen=True)
class Handed:
    """A trial with a field that no other experiment has, and without some that others have."""

    item: str
    channel: str
    condition: str
    stop: str
    free: bool
    sender_flops: float


class TestOneTableForAllTrials:
    def test_it_has_a_row_a_trial_and_a_column_a_field(self) -> None:
        found = evaluate(Silent(), model("llama"), model("llama"), toy(), n=3)
        table = to_table(found)
        assert list(table.columns) == [field.name for field in fields(Trial)]
        assert [Trial(**row) for row in table.to_dict("records")] == found

    def test_trials_of_another_kind_have_its_columns_first_and_then_their_own(self) -> None:
        table = to_table([Handed("a", "text", "message", "8", True, 7.0)], part="test")
        assert list(table.columns) == [*(field.name for field in fields(Trial)), "stop", "part"]
        row = table.iloc[0]
        assert (row["channel"], row["sender_flops"], row["stop"], row["part"]) == ("text", 7, "8", "test")
        assert row[["label", "choices", "receiver_flops"]].isna().all()


class TestGroups:
    GROUPS = in_pairs(to_table(trials("a", "message", "1100", "1010") + trials("b", "message", "0100", "0011")), BY)

    def table(self, **options: Any) -> pd.DataFrame:
        first = {"first": ("a", "message")}
        return accuracy_table(
            self.GROUPS, BY, against=("first",), baselines=lambda channel, _: first if channel == "b" else {}, **options
        )

    def test_any_group_can_be_the_baseline_and_only_where_it_is_named(self) -> None:
        table = self.table()
        gain = paired_bootstrap([0, 0, 1, 1], [1, 0, 1, 0])
        assert table["over_first"].isna().tolist() == [True, True, False, False]
        assert table.iloc[3][["over_first", "over_first_low", "over_first_high", "p_first"]].tolist() == [
            gain.difference, gain.low, gain.high, 1.0,
        ]  # fmt: skip

    def test_a_metric_that_some_trial_of_a_group_lacks_has_no_row(self) -> None:
        lacking = [replace(each, choices=None) for each in trials("b", "message", "0100", "0000")[:1]]
        some = trials("a", "message", "1100", "1010") + lacking + trials("b", "message", "0100", "0000")[1:]
        table = accuracy_table(in_pairs(to_table(some), BY), BY)
        assert table[["channel", "metric"]].to_numpy().tolist() == [["a", "free"], ["a", "choices"], ["b", "free"]]

    def test_means_are_of_the_trials_that_have_a_number(self) -> None:
        groups = {key: rows.assign(size=[1.0, None, 4.0, None]) for key, rows in self.GROUPS.items()}
        assert accuracy_table(groups, BY, means=("size",))["size"].tolist() == [2.5] * 4

    def test_one_unit_has_a_difference_and_no_interval(self) -> None:
        alone = self.table(units={f"item {number}": "all" for number in range(4)})
        assert alone["over_first"].tolist()[2:] == [-0.25, 0.0]
        assert alone[["over_first_low", "over_first_high"]].isna().all(axis=None)

    def test_an_item_without_a_unit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'item 3' is in no group"):
            self.table(units={f"item {number}": "x" for number in range(3)})


class TestSummaries:
    SILENT = trials("silent", "message", "0000000000", "1000100000")
    MESSAGE = trials("replace", "message", "1111100000", "1111011100")
    SHUFFLED = trials("replace", "shuffled", "0000100001", "0010111000")
    ALL = SILENT + MESSAGE + SHUFFLED

    def row(self, found: pd.DataFrame, channel: str, condition: str, metric: str) -> dict[str, Any]:
        (row,) = found[
            (found["channel"] == channel) & (found["condition"] == condition) & (found["metric"] == metric)
        ].to_dict("records")
        return row

    def test_no_trials_have_none(self) -> None:
        with pytest.raises(ValueError, match=r"^trials are empty; give those of at least one channel$"):
            summarise([])

    def test_counts_and_accuracies_are_those_made_by_hand(self) -> None:
        found = summarise(self.ALL)
        table = [tuple(row) for row in found[["channel", "condition", "metric", "n", "correct", "accuracy"]].to_numpy()]
        assert table == [
            ("silent", "message", "free", 10, 0, 0.0),
            ("silent", "message", "choices", 10, 2, 0.2),
            ("replace", "message", "free", 10, 5, 0.5),
            ("replace", "message", "choices", 10, 7, 0.7),
            ("replace", "shuffled", "free", 10, 2, 0.2),
            ("replace", "shuffled", "choices", 10, 4, 0.4),
        ]

    def test_intervals_are_wilsons(self) -> None:
        z = 1.959963984540054
        for row in summarise(self.ALL).to_dict("records"):
            p, n = row["accuracy"], row["n"]
            middle, half = (p + z * z / 2 / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
            low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
            assert (row["low"], row["high"]) == pytest.approx((max(low, 0.0), min(high, 1.0)), abs=1e-12)

    def test_the_gain_over_silence_is_the_paired_bootstrap_of_the_same_items(self) -> None:
        found = summarise(self.ALL, seed=3)
        row = self.row(found, "replace", "message", "choices")
        gain = paired_bootstrap([1, 1, 1, 1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0, 0, 0], seed=3)
        assert (row["over_silent"], row["over_silent_low"], row["over_silent_high"]) == (
            pytest.approx(0.5),
            gain.low,
            gain.high,
        )
        assert self.row(summarise(self.ALL, seed=3), "replace", "message", "choices") == pytest.approx(row, nan_ok=True)

    @pytest.mark.parametrize(
        ("condition", "metric", "only_this", "only_silent"),
        [("message", "free", 5, 0), ("message", "choices", 6, 1), ("shuffled", "free", 2, 0)],
    )
    def test_the_test_against_silence_is_mcnemars_exact_one(
        self, condition: str, metric: str, only_this: int, only_silent: int
    ) -> None:
        row = self.row(summarise(self.ALL), "replace", condition, metric)
        assert row["p_silent"] == pytest.approx(binomtest(only_this, only_this + only_silent).pvalue, abs=1e-12)

    def test_the_test_against_the_shuffled_message_is_paired_by_item(self) -> None:
        row = self.row(summarise(self.ALL), "replace", "message", "choices")
        assert row["p_shuffled"] == pytest.approx(binomtest(4, 5).pvalue, abs=1e-12)  # 4 only true, 1 only shuffled

    def test_what_does_not_apply_is_not_a_number(self) -> None:
        found = summarise(self.ALL)
        silent, shuffled = self.row(found, "silent", "message", "free"), self.row(found, "replace", "shuffled", "free")
        for column in ("over_silent", "over_silent_low", "over_silent_high", "p_silent", "p_shuffled"):
            assert math.isnan(silent[column])
        assert math.isnan(shuffled["p_shuffled"]) and not math.isnan(shuffled["p_silent"])
        alone = summarise(self.MESSAGE)
        assert alone[["over_silent", "p_silent", "p_shuffled"]].isna().all(axis=None)

    def test_trials_are_paired_by_item_whatever_their_order(self) -> None:
        generator = np.random.default_rng(0)
        mixed = [self.ALL[place] for place in generator.permutation(len(self.ALL))]
        found, expected = (
            some.sort_values(["channel", "condition", "metric"]).reset_index(drop=True)
            for some in (summarise(mixed), summarise(self.ALL))
        )
        exact = [column for column in found if column not in ("over_silent_low", "over_silent_high")]
        pd.testing.assert_frame_equal(found[exact], expected[exact])

    @pytest.mark.parametrize("change", ["fewer", "others"])
    def test_channels_on_different_items_are_refused(self, change: str) -> None:
        some = self.MESSAGE[:-1]
        if change == "others":
            some = [*some, replace(self.MESSAGE[-1], item="item 99")]
        with pytest.raises(ValueError, match="different items"):
            summarise(self.SILENT + some)

    def test_two_channels_of_one_name_are_refused(self) -> None:
        with pytest.raises(ValueError, match="item 'item 0' occurs twice under replace, message"):
            summarise([*self.ALL, *trials("replace", "message", "1", "0")])
