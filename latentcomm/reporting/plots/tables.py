"""Tables as figures read them: the columns that must be there, their numbers, their rows by a column, their names."""

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


def full_records(table: pd.DataFrame, names: Sequence[str], numbers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a table that has these columns, the latter with a finite number in every row."""
    rows = records(table, names, numbers)
    require_numbers(rows, numbers)
    return rows


def require_numbers(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Refuse rows in which one of these columns has no number."""
    for column in columns:
        if gaps := [index for index, row in enumerate(rows) if math.isnan(row[column])]:
            first = ", ".join(f"{name} {what}" for name, what in rows[gaps[0]].items() if name not in columns)
            raise ValueError(
                f"column {column} has no number in {len(gaps)} of {len(rows)} rows, first at {first}; "
                "leave such rows out of the table"
            )


def require_once(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Refuse a table in which two rows are about the same thing."""
    met: set[tuple[Any, ...]] = set()
    for row in rows:
        key = tuple(row[column] for column in columns)
        if key in met:
            what = ", ".join(f"{column} {value}" for column, value in zip(columns, key, strict=True))
            raise ValueError(f"{what} is in the table more than once; give it one row")
        met.add(key)


def rows_of(rows: Sequence[dict[str, Any]], column: str, value: str) -> list[dict[str, Any]]:
    """The rows with this value in a column."""
    found = [row for row in rows if row[column] == value]
    if not found:
        raise ValueError(
            f"no row of the table has the {column} {value!r}; it has {', '.join(map(str, seen(rows, column)))}"
        )
    return found


def layers_in(rows: Sequence[Mapping[str, Any]], column: str) -> list[int]:
    """The layers in a column, ascending."""
    found = {row[column] for row in rows}
    if wrong := [layer for layer in found if not isinstance(layer, int) or layer < 0]:
        raise ValueError(f"column {column} has {wrong[0]!r}; layers are whole numbers, counted from 0")
    return sorted(found)


def some_layers(layers: Sequence[int], requested: Sequence[int] | None, most: int) -> list[int]:
    """The layers requested, or at most `most` of those there are, from the first to the last in even steps."""
    if requested is not None:
        if missing := sorted(set(requested) - set(layers)):
            raise ValueError(f"write layer {missing[0]} is not in the table; it has {list(layers)}")
        return sorted(set(requested))
    if len(layers) <= most:
        return list(layers)
    return [layers[round(at * (len(layers) - 1) / max(1, most - 1))] for at in range(most)]


def seen(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The values of a column, in the order of their first rows."""
    return list(dict.fromkeys(row[column] for row in rows))


def split_by(rows: Sequence[Mapping[str, Any]], column: str | None) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by the values of a column, in the order of their first rows."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault("" if column is None else str(row[column]), []).append(row)
    return parts


def spoken(name: str) -> str:
    """A column's or method's name as text for a label.

    >>> spoken("local_pca_residual"), spoken("debiased_cka")
    ('local PCA residual', 'debiased CKA')
    """
    return " ".join(_SPOKEN.get(word, word) for word in str(name).replace("_", " ").split(" "))


_SPOKEN = {"cka": "CKA", "knn": "kNN", "kl": "KL", "pca": "PCA", "mahalanobis": "Mahalanobis", "gaussian": "Gaussian"}
