"""Accuracy against cost: every channel at its place, the front, the controls, and what is refused."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from figures import axes_of, heads, overlaps, parsed, untitled
from latentcomm.reporting.plots import accuracy_against_cost
from latentcomm.reporting.plots.costs import EDGE, PANEL, STEP, set_apart


def table() -> pd.DataFrame:
    rows = [
        ("silent", "message", 0.1, 1e9, True),
        ("replace", "message", 0.6, 2e9, True),
        ("text", "message", 0.5, 9e9, False),
        ("replace", "shuffled", 0.2, 2e9, False),
        ("replace", "zero", 0.3, 2e9, False),
    ]
    one = pd.DataFrame(rows, columns=["channel", "condition", "accuracy", "flops", "on_front"])
    one = one.assign(low=one["accuracy"] - 0.05, high=one["accuracy"] + 0.05, n=40)
    return pd.concat([one.assign(metric=metric) for metric in ("free", "choices")], ignore_index=True)


def test_a_channel_stands_at_its_cost_and_accuracy_with_its_interval() -> None:
    figure = accuracy_against_cost(table(), title="T")
    dots = {trace.name: trace for trace in figure.data if trace.error_y.array is not None}
    assert {name: (trace.x[0], trace.y[0]) for name, trace in dots.items()} == {
        "silent": (1e9, 0.1),
        "replace": (2e9, 0.6),
        "text": (9e9, 0.5),
    }
    assert dots["text"].error_y.array[0] == pytest.approx(0.05)


def test_the_front_steps_through_what_nothing_beats() -> None:
    front = next(trace for trace in accuracy_against_cost(table(), title="T").data if trace.name == "front")
    assert front.x[:2] == (1e9, 2e9) and front.y == (0.1, 0.6, 0.6) and front.line.shape == "hv"


def test_the_shuffled_message_is_shown_and_other_controls_are_not() -> None:
    figure = accuracy_against_cost(table(), title="T")
    open_dots = [trace for trace in figure.data if trace.name == "the same, shuffled"]
    assert [(trace.x, trace.y) for trace in open_dots] == [((2e9,), (0.2,))] * 2  # one a panel
    assert not any(0.3 in (trace.y or ()) for trace in figure.data)
    zeroed = accuracy_against_cost(table(), title="T", control="zero")
    assert any(0.3 in (trace.y or ()) for trace in zeroed.data)


def crowded(n: int = 9) -> pd.DataFrame:
    """As many channels of one cost, between a cheap one and a dear one."""
    names = ["cheap", *(f"channel {number}" for number in range(n)), "dear"]
    one = pd.DataFrame({"channel": names, "flops": [2e9, *([6e9] * n), 2.4e10], "condition": "message", "n": 100})
    one = one.assign(accuracy=0.3, low=0.2, high=0.4, on_front=False)
    return pd.concat([one.assign(metric=metric) for metric in ("free", "choices")], ignore_index=True)


def test_dots_of_one_cost_do_not_cover_each_other_and_lead_to_their_cost() -> None:
    figure = accuracy_against_cost(crowded(), title="T", unit="operations")
    axes = axes_of(figure)
    lowest = axes["xaxis3"]  # the strip below two panels
    per_px = (lowest["range"][1] - lowest["range"][0]) / PANEL[0]
    shown = {}
    for trace in figure.data:
        if trace.error_y.array is not None:
            assert shown.setdefault(trace.name, trace.x[0]) == trace.x[0]  # at one place in every panel
    places = sorted(math.log10(at) for at in shown.values())
    assert len(places) == 11
    assert min(after - before for before, after in itertools.pairwise(places)) > 0.9 * STEP * per_px
    leads = {trace.x[1]: trace.x[0] for trace in figure.data if trace.xaxis == "x3"}
    assert {name: leads[at] for name, at in shown.items()} == dict(
        zip(crowded()["channel"], crowded()["flops"], strict=False)
    )
    assert (shown["cheap"], shown["dear"]) == (2e9, 2.4e10)
    assert lowest["range"][0] < places[0] - 0.5 * EDGE * per_px and lowest["range"][1] > places[-1]


def test_every_channel_is_named_above_its_dots_and_nowhere_twice() -> None:
    figure = accuracy_against_cost(crowded(), title="T", unit="operations")
    assert [head for head in heads(figure) if not head.endswith("(n = 100)")] == [
        *("cheap", *(f"channel {number}" for number in range(9)), "dear")
    ]
    named = [note for note in parsed(figure)["layout"]["annotations"] if note["text"] == "dear"]
    assert named[0]["x"] == pytest.approx(math.log10(2.4e10)) and named[0]["textangle"] == -90
    assert [trace.name for trace in accuracy_against_cost(table(), title="T").data if trace.showlegend] == [
        "front",
        "the same, shuffled",
    ]
    assert [pair for pair in overlaps(figure) if None in pair] == [] and not untitled(figure)


def test_the_front_goes_through_the_dots_where_they_are_shown() -> None:
    every = crowded()
    every["on_front"] = every["channel"].isin(["cheap", "channel 4"])
    figure = accuracy_against_cost(every, title="T")
    dots = {trace.name: trace.x[0] for trace in figure.data if trace.error_y.array is not None}
    front = next(trace for trace in figure.data if trace.name == "front")
    assert front.x[:2] == (dots["cheap"], dots["channel 4"]) and dots["channel 4"] != 6e9


@given(st.lists(st.floats(0, 2), min_size=2, max_size=6))
def test_places_are_the_nearest_that_keep_their_distance(logs: list[float]) -> None:
    """Against a general solver of the same least-squares problem."""
    step, width = 12, 100
    costs = {str(number): 10**log for number, log in enumerate(logs)}
    shown = set_apart(costs, width=width, step=step)
    order = sorted(costs, key=lambda name: costs[name])
    per_px = max(max(logs) - min(logs), 0.2) / width
    true = np.array([math.log10(costs[name]) for name in order]) / per_px
    found = np.array([math.log10(shown[name]) for name in order]) / per_px
    assert np.diff(found).min() > step - 1e-6
    rules = [{"type": "ineq", "fun": lambda at, i=i: at[i + 1] - at[i] - step} for i in range(len(order) - 1)]
    start = true[0] + np.arange(len(order)) * 2.0 * step
    best = minimize(lambda at: ((at - true) ** 2).sum(), start, constraints=rules, method="SLSQP")
    assert ((found - true) ** 2).sum() <= best.fun + 1e-3 * (1 + best.fun)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops": 0.0}, "needs costs above 0"),
        ({"accuracy": 0.99}, "is outside"),
        ({"low": float("nan")}, "no number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_against_cost(table().assign(**change), title="T")
