"""Tables as figures read them: the columns that must be there, their numbers, their rows by a column."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def records(table: pd.DataFrame, names: Sequence[str], numbers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a table that has these columns, the latter with finite numbers or none."""
    if missing := [column for column in dict.fromkeys([*names, *numbers]) if column not in table.columns]:
        raise ValueError(
            f"the table lacks the column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise ValueError("the table is empty; a figure needs at least one row")
    rows: list[dict[str, Any]] = [dict(row) for row in table.to_dict("records")]
    for column in numbers:
        if wrong := [
            row[column] for row in rows if not isinstance(row[column], int | float) or math.isinf(row[column])
        ]:
            raise ValueError(f"column {column} has {wrong[0]!r}; a figure needs finite numbers there")
    return rows


def layers_in(rows: Sequence[Mapping[str, Any]], column: str) -> list[int]:
    """The layers in a column, ascending."""
    found = {row[column] for row in rows}
    if wrong := [layer for layer in found if not isinstance(layer, int) or layer < 0]:
        raise ValueError(f"column {column} has {wrong[0]!r}; layers are whole numbers, counted from 0")
    return sorted(found)


def seen(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The values of a column, in the order in which they first stand there."""
    return list(dict.fromkeys(row[column] for row in rows))


def split_by(rows: Sequence[Mapping[str, Any]], column: str | None) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by the values of a column, in the order in which these first stand there."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault("" if column is None else str(row[column]), []).append(row)
    return parts
