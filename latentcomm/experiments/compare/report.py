"""The report of a comparison: a table in the terminal, and accuracy against cost."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from latentcomm.experiments.compare.channels import Comparison
from latentcomm.experiments.evaluation import MESSAGE
from latentcomm.reporting.plots import accuracy_against_cost
from latentcomm.reporting.plots.tables import p_value, spoken


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
    n = int(table["n"].iloc[0])
    shown = Table(
        title=f"{n} items; 95 % Wilson intervals; exact McNemar p against silent / text / the shuffled message",
        caption="operations and seconds are means of an item, as run; * on the front of accuracy against operations",
    )
    metrics = list(dict.fromkeys(table["metric"]))
    for head in ("channel", *metrics, "shuffled", "p", "GFLOP", "message", "seconds"):
        shown.add_column(head, justify="left" if head == "channel" else "right", no_wrap=True)
    for channel in dict.fromkeys(table["channel"]):
        rows = {(row["condition"], row["metric"]): row for row in table.to_dict("records") if row["channel"] == channel}
        last = rows[MESSAGE, metrics[-1]]
        other = [rows.get(("shuffled", metric)) for metric in metrics]
        starred = "*" if any(rows[MESSAGE, metric]["on_front"] for metric in metrics) else ""
        shown.add_row(
            f"{spoken(channel)}{starred}",
            *(_share(rows[MESSAGE, metric]) for metric in metrics),
            " / ".join("" if row is None else f"{row['accuracy']:.2f}" for row in other).strip(" /"),
            " / ".join(p_value(last[f"p_{name}"]) for name in ("silent", "text", "shuffled")),
            f"{last['flops'] / 1e9:.2f}",
            _weight(last["message_bytes"]),
            f"{last['seconds']:.2f}",
        )
    console.print(shown)
    for row in table.to_dict("records"):
        if row["condition"] != MESSAGE or row["metric"] != metrics[0] or not row["unparsed"] > 0:
            continue
        console.print(f"{spoken(row['channel'])}: no answer could be read in {row['unparsed']:.0%} of the replies")
    console.print(f"p: of {metrics[-1]}, not corrected for multiple tests.", highlight=False)


def _share(row: Mapping[Any, Any]) -> str:
    return f"{row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _weight(weight: float) -> str:
    return "-" if not weight else f"{weight:.0f} B" if weight < 1000 else f"{weight / 1000:.1f} kB"
