"""The report of a comparison: a table in the terminal, and accuracy against cost."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.experiments.audit import EFFECTS, effect
from latentcomm.experiments.compare.channels import Comparison
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.reporting.plots import accuracy_against_cost, audit_effects
from latentcomm.reporting.plots.tables import spoken
from latentcomm.reporting.terminal import Console, accuracy, interval, p_value, parts, print_table


def comparison_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Accuracy with its interval against the operations of an item, a panel a metric."""
    note = (
        f"{settings['n_items']} items on which nothing was tuned; 95 % Wilson intervals over items. Operations of both "
        "models, as run with a cache; open dots: the same channel with another item's message."
    )
    return accuracy_against_cost(
        table,
        title=f"What does the message buy? {settings['sender']} to {settings['receiver']}, {settings['task']}",
        note=note,
        unit="floating-point operations an item",
        chance={"choices": 1 / settings["n_choices"]} if settings["n_choices"] else None,
    )


def print_comparison(comparison: Comparison, console: Console) -> None:
    """One row a channel: both accuracies with intervals, the shuffled message's, tests, and the cost."""
    table = comparison.table
    metrics = list(dict.fromkeys(table["metric"]))
    shown = []
    for channel in dict.fromkeys(table["channel"]):
        rows = {(row["condition"], row["metric"]): row for row in table.to_dict("records") if row["channel"] == channel}
        last = rows[MESSAGE, metrics[-1]]
        starred = "*" if any(rows[MESSAGE, metric]["on_front"] for metric in metrics) else ""
        shown.append(
            {"channel": f"{spoken(channel)}{starred}"}
            | {metric: interval(rows[MESSAGE, metric]) for metric in metrics}
            | {
                "shuffled": parts([accuracy(rows.get(("shuffled", metric))) for metric in metrics]),
                "p": parts([p_value(last[f"p_{name}"]) for name in ("silent", "text", "shuffled")]),
                "GFLOP": f"{last['flops'] / 1e9:.2f}",
                "message": _weight(last["message_bytes"]),
                "seconds": f"{last['seconds']:.2f}",
            }
        )
    print_table(
        shown,
        console,
        title=f"{int(table['n'].iloc[0])} items; 95 % Wilson intervals; exact McNemar p against silent / text / the "
        "shuffled message",
        caption="operations and seconds are means of an item, as run; * on the front of accuracy against operations",
    )
    for row in table.to_dict("records"):
        if row["condition"] != MESSAGE or row["metric"] != metrics[0] or not row["unparsed"] > 0:
            continue
        console.print(f"{spoken(row['channel'])}: no answer could be read in {row['unparsed']:.0%} of the replies")
    console.print(f"p: of {metrics[-1]}, not corrected for multiple tests.", highlight=False)


def audit_figure(table: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """Content, presence and their sum, a row a channel."""
    note = (
        "content: the message less another item's message; presence: another item's message less none; total: their "
        "sum. Paired differences with 95 % bootstrap intervals over items."
    )
    return audit_effects(
        table,
        title=f"Content or presence? {settings['sender']} to {settings['receiver']}, {settings['task']}",
        note=note,
    )


def print_audit(table: pd.DataFrame, console: Console) -> None:
    """One row a channel and metric: the effects with their intervals; then a sentence a channel."""
    shown = [
        {"channel": spoken(row["channel"]), "by": row["metric"]}
        | {name: "-" if pd.isna(row[name]) else effect(row, name) for name in ("total", "presence", "content")}
        | {name.replace("over_", "over "): _alone(row, name) for name in EFFECTS if name.startswith("over_")}
        | {"follows": parts([_share(row["follow"]), _share(row["chance"])])}
        for row in table.to_dict("records")
    ]
    empty = [head for head in shown[0] if all(row[head] in ("-", "") for row in shown)]
    print_table(
        [{head: cell for head, cell in row.items() if head not in empty} for row in shown],
        console,
        text=("channel", "by"),
        title="presence: with another item's message, less silent; content: the message, less another item's",
        caption="paired differences with 95 % bootstrap intervals; follows: how often the answer of the wrong message "
        "is given / by chance",
    )
    last = table["metric"].iloc[-1]
    for row in table.to_dict("records"):
        if row["metric"] == last:
            console.print(f"{spoken(row['channel'])}, {last}: {row['verdict']}", highlight=False)


def _alone(row: Mapping[Any, Any], name: str) -> str:
    return "-" if pd.isna(row[name]) else effect(row, name).partition(" ")[0]


def _share(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2f}"


def _weight(weight: float) -> str:
    return "-" if not weight else f"{weight:.0f} B" if weight < 1000 else f"{weight / 1000:.1f} kB"
