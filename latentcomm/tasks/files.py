"""Rows of a task's data, from a local file or a hub data set, each with its location for error messages."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentcomm._core.files import first_line
from latentcomm.models.checkpoint import check_hub

Source = str | os.PathLike[str]
"""A file, or the id of a hub data set as owner/name."""

SUFFIXES = (".jsonl", ".csv", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Row:
    """One record of a data file.

    Attributes:
        where: its location as error messages name it, such as "line 3 of train.jsonl".
        fields: what it holds.

    >>> Row("line 3 of train.jsonl", {"question": " How many? "}).text("question")
    'How many?'
    """

    where: str
    fields: dict[str, Any]

    def value(self, name: str) -> Any:
        """A field.

        Raises:
            ValueError: there is none of this name, or it is null.
        """
        if self.fields.get(name) is None:
            named = ", ".join(map(repr, self.fields)) or "nothing"
            raise ValueError(f"{self.where} has no {name!r}, only {named}; add it")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A field that must be a text with something in it, without the white space around it.

        Raises:
            ValueError: it is missing, no text, empty, or has half a character in it.
        """
        return _text(self.value(name), name, self.where)

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that must be a list of texts, at least one and none empty or twice.

        Raises:
            ValueError: it is anything else.
        """
        value = self.value(name)
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"{self.where} has the {name} {_shown(value)}; give a list with at least one text")
        texts = tuple(_text(each, name, self.where) for each in value)
        if repeated := [text for number, text in enumerate(texts) if text in texts[:number]]:
            raise ValueError(f"{self.where} has {repeated[0]!r} twice in its {name}; give it once")
        return texts


def is_file(source: Source) -> bool:
    """Whether a source is a file or folder here rather than a data set of the hub."""
    return Path(source).expanduser().exists()


def source_name(source: Source) -> str:
    """What a source is recorded as: a file by its name without the folder, which is another on every machine.

    >>> source_name("openai/gsm8k")
    'openai/gsm8k'
    """
    return Path(source).name if is_file(source) else str(source)


def read_rows(
    source: Source, *, split: str = "test", subset: str | None = None, headless: Sequence[str] = ()
) -> list[Row]:
    """The records of a .jsonl, .csv or .parquet file, or of one split of a hub data set (owner/name).

    A `.jsonl` file holds an object a line, in UTF-8; empty lines are passed over. A `.csv` file has its column names in
    the first line; where `headless` is given and its first name is not there, these are the columns. `split` and
    `subset` (a configuration) are of the hub alone; the hub is not contacted where a file of that name exists.

    Raises:
        ValueError: there is no such file and the name is no hub id, or the file is empty, binary, or broken at a line.
        RuntimeError: the file cannot be read, or the hub not be reached or has no such data set, subset or split.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one of its files ({', '.join(SUFFIXES)})")
    if is_file(path):
        rows = _file_rows(path, headless)
    elif isinstance(source, str) and _HUB_ID.fullmatch(source) and path.suffix not in SUFFIXES:
        rows = _hub_rows(source, split, subset)
    else:
        raise ValueError(f"there is no file {path}; give a {' or '.join(SUFFIXES)} file, or a hub data set owner/name")
    if not rows:
        raise ValueError(f"{source} is empty; give a file with at least one record")
    return rows


def refuse_repeats(rows: Sequence[Row], keys: Sequence[str], what: str) -> None:
    """Refuse two rows of the same key.

    Raises:
        ValueError: two rows share one.
    """
    seen: dict[str, str] = {}
    for row, key in zip(rows, keys, strict=True):
        if key in seen:
            raise ValueError(f"{row.where} repeats the {what} of {seen[key]}, {_shown(key)}; remove one of them")
        seen[key] = row.where


def half_character(text: str) -> int | None:
    """Where a text has a surrogate without its other half, which no encoding holds; None where it has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        RuntimeError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RuntimeError(f"{path} could not be read ({error.strerror})") from error


def _file_rows(path: Path, headless: Sequence[str]) -> list[Row]:
    match path.suffix.lower():
        case ".jsonl":
            return list(_jsonl_rows(_read_text(path), path.name))
        case ".csv":
            return list(_csv_rows(_read_text(path), path.name, headless))
        case ".parquet":
            return list(_parquet_rows(path))
    raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")


def _read_text(path: Path) -> str:
    """The text of a file, line ends as they are."""
    content = read_bytes(path)
    if (offset := content.find(b"\0")) >= 0:
        raise ValueError(f"line {_line(content, offset)} of {path.name} has a zero byte; give a file of UTF-8 text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line(content, error.start)
        raise ValueError(f"line {line} of {path.name} is no UTF-8 text ({error.reason}); convert the file") from error


def _line(content: bytes, offset: int) -> int:
    return content.count(b"\n", 0, offset) + 1


def _jsonl_rows(content: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), 1):
        where = f"line {number} of {name}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise ValueError(f"{where} is no JSON ({reason}); give an object a line") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{where} is {_shown(entry)}; give an object a line")
        yield Row(where, entry)


def _csv_rows(content: str, name: str, headless: Sequence[str]) -> Iterator[Row]:
    """Records of a CSV file; one that runs over several lines is named by its first."""
    records = csv.reader(io.StringIO(content, newline=""), strict=True)
    columns: list[str] = []
    begins = 1
    try:
        for cells in records:
            begins, where = records.line_num + 1, f"line {begins} of {name}"
            if not cells:
                continue
            if not columns:
                is_header = not headless or headless[0] in (cell.strip() for cell in cells)
                columns = [cell.strip() for cell in cells] if is_header else list(headless)
                if len(set(columns)) < len(columns):
                    raise ValueError(f"{where} names a column twice; give each a name of its own")
                if is_header:
                    continue
            if len(cells) != len(columns):
                raise ValueError(f"{where} has {len(cells)} cells for {len(columns)} columns; quote cells with commas")
            yield Row(where, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(f"line {begins} of {name} is no CSV ({error}); quote cells with line breaks") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path.name} is no Parquet file that can be read ({first_line(error)}); write it anew"
        ) from error
    return (Row(f"row {number} of {path.name}", record) for number, record in enumerate(records, 1))


def _hub_rows(name: str, split: str, subset: str | None) -> list[Row]:
    from datasets import config, load_dataset
    from datasets.naming import camelcase_to_snakecase

    *owner, own = name.split("/")
    cached = Path(config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(own)]))
    if not (config.HF_HUB_OFFLINE or cached.is_dir()):
        check_hub(name, "data set")
    try:
        records = load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        which = f"the split {split!r}" + (f" of its subset {subset!r}" if subset else "")
        raise RuntimeError(
            f"there is no file {name} here, and {which} of the data set could not be had from the hub "
            f"({first_line(error)}); check the name, or give a file"
        ) from error
    return [Row(f"row {number} of {name} ({split})", dict(record)) for number, record in enumerate(records, 1)]


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} has the {name} {_shown(value)}, which is no text; write it as one")
    if not value.strip():
        raise ValueError(f"{where} has an empty {name}; fill it in, or leave the record out")
    if (start := half_character(value)) is not None:
        raise ValueError(f"{where} has half a character at {start} of its {name}; write it anew")
    return value.strip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
