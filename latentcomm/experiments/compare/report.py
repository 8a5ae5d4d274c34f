"""The report of a comparison: a table in the terminal, and accuracy against cost."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from latentcomm.experiments.compare.channels import Comparison
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.reporting.plots import accuracy_against_cost
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


def _weight(weight: float) -> str:
    return "-" if not weight else f"{weight:.0f} B" if weight < 1000 else f"{weight / 1000:.1f} kB"
