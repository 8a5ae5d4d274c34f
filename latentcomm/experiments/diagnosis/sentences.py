"""A diagnosis in sentences: what each number means, without reference to the code."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from latentcomm.experiments.diagnosis.recommend import SHORT
from latentcomm.experiments.diagnosis.result import Diagnosis
from latentcomm.experiments.diagnosis.settings import MESSAGES

__all__ = ["FUSION_WORDS", "fusion_overview", "kl_by_layer", "next_token_changes", "shown_name", "summary", "title"]

FUSION_WORDS: Mapping[str, str] = {
    "replace": "the message replaces the receiver's own state",
    "mean": "the average of both",
    "sum": "the sum of both",
    "norm_matched": "the sum of both, rescaled to the norm of the own state",
    "orthogonal_residual": "own state plus the component of the message orthogonal to it",
    "predictability_residual": "own state plus the part of the message that a linear map of it does not predict",
}
"""The new state of the receiver, by the names of the default fusions."""


def title(found: Diagnosis) -> str:
    """The models of the page, by name."""
    sender, receiver = found.models["sender"]["name"], found.models["receiver"]["name"]
    if found.settings["identical"]:
        return f"{sender} with itself"
    return f"{sender} to {receiver}"


def summary(found: Diagnosis) -> list[tuple[str, str]]:
    """Return the findings, each as a question and its answer."""
    return [
        ("Are their layers alike?", _alike(found)),
        ("How well does one predict the other?", _predictable(found)),
        ("Are grafted states like real ones?", _drift(found)),
        ("Do grafts change the next token?", _effect(found)),
        ("Where to start?", _start(found)),
    ]


def fusion_overview(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each fusion, over all write layers, the mean share of flagged states and the median KL, by message.

    >>> cells = pd.DataFrame({"fusion": ["sum", "sum"], **{f"{what}_{message}": [0.0, 1.0]
    ...     for what in ("flagged", "kl") for message in SHORT.values()}})
    >>> fusion_overview(cells)[0]["kl_same"], fusion_overview(cells)[0]["flagged_other"]
    (0.5, 0.5)
    """
    rows = []
    for fusion, part in _by_fusion(cells).items():
        row: dict[str, Any] = {"fusion": fusion}
        for short in SHORT.values():
            row[f"flagged_{short}"] = float(np.mean([cell[f"flagged_{short}"] for cell in part]))
            row[f"kl_{short}"] = float(np.median([cell[f"kl_{short}"] for cell in part]))
        rows.append(row)
    return rows


def kl_by_layer(cells: pd.DataFrame) -> tuple[list[int], list[tuple[str, str, list[float]]]]:
    """Return the write layers, and for each fusion and message the median KL at each of them."""
    writes = sorted({int(write) for write in cells["write_layer"]})
    rows = []
    for fusion, part in _by_fusion(cells).items():
        at = {int(cell["write_layer"]): cell for cell in part}
        rows += [
            (fusion, message, [float(at[write][f"kl_{SHORT[message]}"]) for write in writes]) for message in MESSAGES
        ]
    return writes, rows


def next_token_changes(effects: pd.DataFrame) -> str:
    """Return how often the most likely next token changes, for grafts of small, middling and large KL.

    >>> effects = pd.DataFrame({"kl": [0.01, 0.05, 3.0], "top1_agreement": [True, True, False]})
    >>> print(next_token_changes(effects))
    The most likely next token changes in 0% of the grafts with a KL below 0.1 (n = 2), 100% of those above 1 (n = 1).
    """
    kl, changed = effects["kl"].to_numpy(), ~effects["top1_agreement"].to_numpy(dtype=bool)
    parts = {"below 0.1": kl < 0.1, "from 0.1 to 1": (kl >= 0.1) & (kl <= 1), "above 1": kl > 1}
    present = {label: part for label, part in parts.items() if part.any()}
    shares = [
        f"{changed[part].mean():.0%} of {'those' if index else 'the grafts with a KL'} {label} (n = {part.sum():,})"
        for index, (label, part) in enumerate(present.items())
    ]
    return f"The most likely next token changes in {', '.join(shares)}."


def _alike(found: Diagnosis) -> str:
    rows = found.similarity.to_dict("records")
    null = rows[0]["null_max"]
    above = np.mean([row["debiased_cka"] > row["null_high"] for row in rows])
    if found.settings["identical"]:
        by_distance: dict[int, list[float]] = {}
        for row in rows:
            by_distance.setdefault(abs(row["sender_layer"] - row["receiver_layer"]), []).append(row["debiased_cka"])
        steps = sorted(by_distance)
        near = np.median(by_distance[steps[min(1, len(steps) - 1)]])
        far = np.median([value for step in steps if step >= steps[-1] / 2 for value in by_distance[step]])
        start = (
            "Every layer is identical to itself, by construction. Neighbouring layers have a similarity of "
            f"{near:.2f}, layers half the model's depth or more apart one of {far:.2f} (medians; 1 is the same "
            "geometry)."
        )
    else:
        best = max(rows, key=lambda row: row["debiased_cka"])
        start = (
            f"The most alike pair is layer {best['sender_layer']} of the sender and layer {best['receiver_layer']} of "
            f"the receiver, with a similarity of {best['debiased_cka']:.2f} (1 is the same geometry)."
        )
    return (
        f"{start} With unrelated texts, even the best pair anywhere on the map reaches only {null:.2f}; "
        f"{above:.0%} of all pairs of layers lie above their null of unrelated texts."
    )


def _predictable(found: Diagnosis) -> str:
    rows = found.predictability.to_dict("records")
    null = max(0.0, *(row[name] for row in rows for name in ("forward_null", "backward_null")))
    if found.settings["identical"]:
        others = [row["forward"] for row in rows if row["sender_layer"] != row["receiver_layer"]]
        if not others:
            return "There is one layer only, which predicts itself."
        return (
            f"A linear map from one layer predicts {_range(others)} of the variance of another, on texts that it was "
            f"not fitted on (unrelated texts: {null:.1%} at most). What is predictable in this way is nothing new to "
            "the receiver."
        )
    forward = {cell["write_layer"]: cell["r_squared"] for cell in found.cells.to_dict("records")}
    backward: dict[int, list[float]] = {}
    for row in rows:
        backward.setdefault(row["sender_layer"], []).append(row["backward"])
    return (
        f"From its best sender layer, a linear map predicts {_range(list(forward.values()))} of the variance of the "
        f"receiver's state, on texts that it was not fitted on (unrelated texts: {null:.1%} at most). The other way "
        f"round, the receiver's best layer already holds {_range([max(line) for line in backward.values()])} of the "
        "sender's state; the rest is what a message could add, as far as linear maps can show."
    )


def _drift(found: Diagnosis) -> str:
    rows = sorted(fusion_overview(found.cells), key=lambda row: row["flagged_other"])
    first, last = rows[0], rows[-1]
    own = f"are flagged as unlike them; of its own at the same positions {found.settings['own_states_flagged']:.0%} are"
    if first["flagged_other"] == last["flagged_other"]:
        which = "every fusion" if len(rows) > 1 else shown_name(first["fusion"])
        start = f"{which} leaves as many states unlike the receiver's own ({first['flagged_other']:.0%} {own})"
    else:
        start = (
            f"{shown_name(first['fusion'])} remains closest to the receiver's own states ({first['flagged_other']:.0%} "
            f"{own}), {shown_name(last['fusion'])} strays furthest ({last['flagged_other']:.0%})"
        )
    return (
        f"When the message comes from another text, {start}. A message that is a random direction is flagged in "
        f"{_range([row['flagged_random'] for row in rows])} of the grafts."
    )


def _effect(found: Diagnosis) -> str:
    rows = fusion_overview(found.cells)
    same, other = ([f"{row[f'kl_{short}']:.2f}" for row in rows] for short in ("same", "other"))
    strongest = max(rows, key=lambda row: row["kl_other"])
    return (
        f"A message of the same text moves the next-token distribution by {_span(same)} nats, one of another text by "
        f"{_span(other)}, most under {shown_name(strongest['fusion'])} (KL, median, by fusion; 0 is nothing). "
        f"{next_token_changes(found.effects)} A state can be as typical as a real one and still change the entire "
        "continuation."
    )


def _start(found: Diagnosis) -> str:
    if not found.recommended:
        return (
            "No cell combines a predictable message, fused states that stay among real ones, and a next token that "
            "depends on the content of the message. The tables show which of the three fails where."
        )
    best = found.recommended[0]
    known = " (the first two hold by construction: it is one model)" if found.settings["identical"] else ""
    return (
        f"With {shown_name(best.fusion)}, reading after layer {best.read} of the sender and writing after layer "
        f"{best.write} of the receiver: {best.reason}{known}. Whether that helps at a task is a separate question, "
        "which “latentcomm sweep” answers."
    )


def shown_name(fusion: str) -> str:
    """A fusion's name as figures and text show it."""
    return fusion.replace("_", " ")


def _span(numbers: Sequence[str]) -> str:
    low, high = min(numbers, key=float), max(numbers, key=float)
    return low if low == high else f"{low} to {high}"


def _range(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"between {low} and {high}"


def _by_fusion(cells: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    by_fusion: dict[str, list[dict[Any, Any]]] = {}
    for row in cells.to_dict("records"):
        by_fusion.setdefault(row["fusion"], []).append(row)
    return by_fusion
