"""Channels on the same items: the table against counts by hand and scipy; names; and how the job chooses a cell."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from numerics import assert_same_bits
from scipy.stats import binomtest
from tiny import model
from toys import N_RECEIVER, PLANTED_CELL, planted_pair, planted_task

from latentcomm.alignment import AffineMap, fit_procrustes
from latentcomm.channels import Activation, Channel, Silent, Skyline
from latentcomm.channels.catalogue import CHANNELS, Recipe, build, needs_cell
from latentcomm.experiments import maps
from latentcomm.experiments.compare import run as comparing
from latentcomm.experiments.compare.channels import compare, compare_trials
from latentcomm.experiments.compare.run import compare_named, names_for
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.cost import ModelSize, paper_activation_flops, paper_forward_flops
from latentcomm.experiments.evaluation import Trial
from latentcomm.fusion import Replace
from latentcomm.hooks.paired_text import capture_paired, pair_tokens
from latentcomm.models import Model, encode, recorded_passes
from latentcomm.models.sites import Site
from latentcomm.tasks import Task


def trial(
    item: int, channel: str, condition: str, *, free: bool, choices: bool | None = None, cost: float = 1.0
) -> Trial:
    return Trial(
        item=str(item),
        label="x",
        channel=channel,
        condition=condition,
        reply="",
        free=free,
        pick="",
        choices=choices,
        n_choices=0 if choices is None else 4,
        parsed=item % 2 == 0,
        message_bytes=10 * item,
        reply_tokens=3,
        sender_flops=cost,
        receiver_flops=2 * cost,
        seconds=0.5,
    )


def trials(right: dict[tuple[str, str], Sequence[bool]], cost: dict[str, float] | None = None) -> list[Trial]:
    costs = cost or {}
    return [
        trial(item, channel, condition, free=free, choices=not free, cost=costs.get(channel, 1.0))
        for (channel, condition), every in right.items()
        for item, free in enumerate(every)
    ]


RIGHT = {
    ("silent", "message"): [False, False, True, False, False, False, False, False],
    ("text", "message"): [True, True, True, False, False, False, True, False],
    ("graft", "message"): [True, True, True, True, True, True, False, True],
    ("graft", "shuffled"): [False, True, False, False, False, False, False, False],
}


def row(table: pd.DataFrame, channel: str, condition: str = "message", metric: str = "free") -> pd.Series:
    chosen = table[(table["channel"] == channel) & (table["condition"] == condition) & (table["metric"] == metric)]
    assert len(chosen) == 1
    return chosen.iloc[0]


class TestTheTable:
    def test_counts_shares_and_costs_are_those_made_by_hand(self) -> None:
        table = compare_trials(trials(RIGHT, {"graft": 7.0}))
        graft = row(table, "graft")
        assert (graft["n"], graft["correct"], graft["accuracy"]) == (8, 7, 7 / 8)
        assert graft["unparsed"] == 0.5 and graft["message_bytes"] == 35 and graft["reply_tokens"] == 3
        assert (graft["sender_flops"], graft["receiver_flops"], graft["flops"]) == (7, 14, 21)
        assert row(table, "graft", metric="choices")["correct"] == 1

    def test_p_values_are_the_exact_binomial_test_of_the_discordant_items(self) -> None:
        graft = row(compare_trials(trials(RIGHT)), "graft")
        against = {"silent": ("silent", "message"), "text": ("text", "message"), "shuffled": ("graft", "shuffled")}
        for name, key in against.items():
            own, other = RIGHT["graft", "message"], RIGHT[key]
            won = sum(a and not b for a, b in zip(own, other, strict=True))
            lost = sum(b and not a for a, b in zip(own, other, strict=True))
            assert graft[f"p_{name}"] == pytest.approx(binomtest(won, won + lost).pvalue, abs=1e-12)
            assert graft[f"over_{name}"] == pytest.approx((won - lost) / 8)
            assert graft[f"over_{name}_low"] <= graft[f"over_{name}"] <= graft[f"over_{name}_high"]

    def test_what_does_not_apply_is_not_a_number(self) -> None:
        table = compare_trials(trials(RIGHT))
        assert math.isnan(row(table, "silent")["p_silent"]) and math.isnan(row(table, "text")["p_text"])
        assert math.isnan(row(table, "graft", "shuffled")["p_shuffled"])
        assert not math.isnan(row(table, "graft", "shuffled")["p_silent"])
        without = compare_trials(trials({key: value for key, value in RIGHT.items() if key[0] != "text"}))
        assert math.isnan(row(without, "graft")["p_text"])

    def test_a_task_without_choices_has_no_rows_for_them(self) -> None:
        free = [replace(each, choices=None, n_choices=0) for each in trials(RIGHT)]
        assert set(compare_trials(free)["metric"]) == {"free"}

    def test_the_front_holds_what_nothing_cheaper_reaches_and_no_control(self) -> None:
        table = compare_trials(trials(RIGHT, {"silent": 1.0, "text": 9.0, "graft": 2.0}))
        free = table[table["metric"] == "free"]
        assert free[free["on_front"]]["channel"].tolist() == ["silent", "graft"]
        assert set(free[free["on_front"]]["condition"]) == {"message"}

    def test_a_control_that_is_cheap_and_right_keeps_nobody_from_the_front(self) -> None:
        right = RIGHT | {("graft", "shuffled"): [True] * 8}
        made = trials(right, {"silent": 1.0, "text": 9.0, "graft": 2.0})
        made = [
            replace(each, sender_flops=0.1, receiver_flops=0.1) if each.condition == "shuffled" else each
            for each in made
        ]
        free = compare_trials(made).query("metric == 'free'")
        assert free[free["on_front"]]["channel"].tolist() == ["silent", "graft"]
        assert set(free[free["on_front"]]["condition"]) == {"message"}

    def test_channels_on_other_items_or_of_one_name_are_refused(self) -> None:
        some = trials(RIGHT)
        with pytest.raises(ValueError, match="different items"):
            compare_trials(some[:-1])
        with pytest.raises(ValueError, match="occurs twice"):
            compare_trials([*some, some[0]])
        with pytest.raises(ValueError, match="each a name of its own"):
            compare([Silent(), Silent()], *planted_pair(), planted_task())


class TestNames:
    def test_every_name_makes_a_channel_of_that_name(self) -> None:
        maps = Recipe(Site(1), Site(1), predictable=AffineMap.identity(4))
        channels = build(list(CHANNELS), maps)
        assert [channel.name for channel in channels] == list(CHANNELS)
        assert all(isinstance(channel, Channel) for channel in channels)

    def test_those_that_graft_a_state_read_and_write_at_the_recipes_cell(self) -> None:
        for name in (each for each in CHANNELS if needs_cell(each)):
            (channel,) = build([name], Recipe(Site(2), Site(1), predictable=AffineMap.identity(4)))
            assert (channel.read, channel.write) == (Site(2), Site(1))  # pyright: ignore

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "name at least one"),
            (["telepathy"], "no channel 'telepathy'; choose among silent"),
            (["text", "silent", "text"], "'text' is named twice"),
        ],
    )
    def test_other_names_are_refused(self, names: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build(names, Recipe(Site(0), Site(0)))

    def test_predictability_without_a_map_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needs a map"):
            build(["predictability_residual"], Recipe(Site(0), Site(0)))

    def test_unequal_models_get_the_channels_that_can_pass_between_them(self) -> None:
        same = names_for(model("llama"), model("llama"))
        assert same == list(CHANNELS)
        apart = names_for(model("llama"), model("llama", seed=1))
        assert set(same) - set(apart) == {"kv", "coconut"}  # the tiny models share their words


class TestTheJob:
    def test_the_planted_cell_is_found_and_the_message_is_worth_all(self) -> None:
        sender, receiver = planted_pair()
        found, cell = compare_named(
            ["silent", "replace"],
            sender,
            receiver,
            planted_task(),
            settings=CompareSettings(alignment="right-aligned", n_tune=1000),
        )
        assert cell == PLANTED_CELL
        assert row(found.table, "replace", metric="choices")["accuracy"] == 1.0
        assert row(found.table, "silent", metric="choices")["accuracy"] == 0.0
        assert row(found.table, "replace", "shuffled", "choices")["accuracy"] == 0.0

    def test_the_cell_is_chosen_without_an_item_that_is_asked_about(self, monkeypatch: pytest.MonkeyPatch) -> None:
        swept: list[Task] = []
        real = comparing.tune_sweep

        def watched(sender: Model, receiver: Model, task: Task, **options: Any) -> Any:
            swept.append(task)
            return real(sender, receiver, task, **options)

        monkeypatch.setattr(comparing, "tune_sweep", watched)
        found, _ = compare_named(
            ["replace"],
            *planted_pair(),
            planted_task(),
            settings=CompareSettings(alignment="right-aligned", n_tune=1000),
        )
        tune, test = planted_task().split(seed=0)
        assert [item.id for item in swept[0].items] == [item.id for item in tune.items]
        assert {trial.item for trial in found.trials} == {item.id for item in test.items}

    def test_the_papers_count_without_a_cache_stands_beside_the_cost_as_run(self) -> None:
        sender, receiver = model("llama"), model("llama", seed=1)
        plan = CompareSettings(
            read_layer=1, write_layer=1, alignment="right-aligned", n_test=6, message_tokens=3, controls=(), audit=False
        )
        found, _ = compare_named(
            ["silent", "text", "replace", "debate"], sender, receiver, planted_task(), settings=plan
        )
        test = planted_task().split(seed=0)[1].take(6, seed=0)
        size = ModelSize.of(sender)
        read, asked = (
            round(float(encode(sender, [getattr(item, side) for item in test.items]).lengths.double().mean()))
            for side in ("sender", "receiver")
        )
        reply = {
            name: sum(trial.reply_tokens for trial in found.trials if trial.channel == name) / 6
            for name in ("silent", "text", "replace")
        }
        expected = {
            "silent": reply["silent"] * paper_forward_flops(size, asked),
            "text": 3 * paper_forward_flops(size, read) + reply["text"] * paper_forward_flops(size, asked + 3),
            "replace": paper_activation_flops(size, size, prompt=read, read=1, reply=0)
            + reply["replace"] * paper_forward_flops(size, asked),
        }
        for name, value in expected.items():
            assert row(found.table, name)["paper_flops"] == pytest.approx(value)
        assert math.isnan(row(found.table, "debate")["paper_flops"])

    def test_it_is_what_the_parts_give(self) -> None:
        sender, receiver = planted_pair()
        task = planted_task()
        cell = {"read_layer": PLANTED_CELL[0], "write_layer": PLANTED_CELL[1]}
        plan = CompareSettings(**cell, alignment="right-aligned", audit=False)
        found, _ = compare_named(["silent", "skyline", "replace"], sender, receiver, task, settings=plan)
        test = task.split(seed=0)[1]
        channels = [Silent(), Skyline(), Activation("replace", Site(PLANTED_CELL[0]), Site(PLANTED_CELL[1]), Replace())]
        by_hand = compare(channels, sender, receiver, test, controls=("shuffled",))
        costs = {"seconds", "sender_flops", "receiver_flops"}
        assert [{k: v for k, v in vars(a).items() if k not in costs} for a in found.trials] == [
            {k: v for k, v in vars(b).items() if k not in costs} for b in by_hand.trials
        ]

    def test_what_was_stopped_goes_on_and_nothing_is_run_twice(self, tmp_path: Path) -> None:
        sender, receiver = planted_pair()
        options = {"settings": CompareSettings(alignment="right-aligned", n_tune=8), "checkpoint": tmp_path}
        first, cell = compare_named(["silent", "replace"], sender, receiver, planted_task(), **options)
        with recorded_passes() as passes:
            again, same_cell = compare_named(["silent", "replace"], sender, receiver, planted_task(), **options)
        assert same_cell == cell and again.trials == first.trials
        assert sum(each.n_unembedded > 0 for each in passes) == 0 or len(passes) < 10  # the lens of the choice alone

    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            (CompareSettings(read_layer=1), "give both, or neither"),
            (CompareSettings(read_layer=1, write_layer=N_RECEIVER), "layer 3 is outside"),
        ],
    )
    def test_a_cell_that_is_none_is_refused(self, plan: CompareSettings, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare_named(["replace"], *planted_pair(), planted_task(), settings=plan)

    def test_a_task_without_choices_needs_a_cell(self) -> None:
        free = replace(
            planted_task(),
            candidates=(),
            items=tuple(replace(item, choice="", candidates=None) for item in planted_task().items),
        )
        with pytest.raises(ValueError, match="no choices to choose a cell by"):
            compare_named(["replace"], *planted_pair(), free)
        found, cell = compare_named(["silent"], *planted_pair(), free)
        assert cell is None and set(found.table["metric"]) == {"free"}


def test_maps_are_fitted_without_attention_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = model("llama", dtype=torch.float32), model("llama", seed=1, dtype=torch.float32)
    rows: list[int] = []
    real = maps.fit_ridge

    def watched(source: torch.Tensor, target: torch.Tensor, **options: Any) -> Any:
        rows.append(len(source))
        return real(source, target, **options)

    monkeypatch.setattr(maps, "ALIGNMENTS", {"ridge": watched})
    maps.fit_maps(sender, receiver, [(1, 1)], 0)
    tokens = pair_tokens(sender, receiver, maps.map_documents(), max_tokens=maps.map_tokens(sender, receiver))
    first = int(((tokens.sender_position == 0) | (tokens.receiver_position == 0)).sum())
    assert first >= len(maps.map_documents()) // 2 and rows == [len(tokens) - first]


def test_maps_take_the_states_of_the_layers_of_their_cells() -> None:
    sender, receiver = model("llama", dtype=torch.float32), model("llama", seed=1, dtype=torch.float32)
    cells = [(2, 0), (0, 1), (2, 1)]
    tokens = pair_tokens(sender, receiver, maps.map_documents(), max_tokens=maps.map_tokens(sender, receiver))
    states = capture_paired(sender, receiver, tokens)
    rows, found = states.after_first, maps.fit_maps(sender, receiver, cells, 0, alignment="procrustes")
    for read, write in cells:
        expected = fit_procrustes(states.x[read, rows], states.y[write, rows])
        assert_same_bits(found[read, write].weight, expected.weight)


def test_unequal_models_are_mapped_where_nothing_else_is_asked() -> None:
    sender, receiver = model("llama", dtype=torch.float32), model("llama", seed=1, dtype=torch.float32)
    task = planted_task()
    found, _ = compare_named(
        ["replace"], sender, receiver, task, settings=CompareSettings(read_layer=1, write_layer=1, n_test=6)
    )
    plain, _ = compare_named(
        ["replace"],
        sender,
        receiver,
        task,
        settings=CompareSettings(read_layer=1, write_layer=1, n_test=6, alignment="right-aligned"),
    )
    assert [each.reply for each in found.trials] != [each.reply for each in plain.trials]
