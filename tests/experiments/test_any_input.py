"""Settings and files drawn at random are taken, or refused in one sentence: never another error, never a hang."""

import faulthandler
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_saved_files import SAVED, Saved

from latentcomm._core.files import write_tensors
from latentcomm._core.records import Records
from latentcomm.alignment import FILE_KIND as MAP
from latentcomm.alignment import AffineMap
from latentcomm.channels.message import FORMAT, Message
from latentcomm.cli.experiment import read_config
from latentcomm.drift import DriftReference
from latentcomm.drift.reference import FILE_KIND as REFERENCE
from latentcomm.experiments._prepared import EXPERIMENTS
from latentcomm.experiments.settings import Settings

HANGS_AFTER = 20
"""Seconds after which a case is a hang: the process ends with the stack of where it was."""
CLASSES = [experiment.settings for experiment in EXPERIMENTS.values()]
WORDS = st.sampled_from(
    ["", "replace", "countries", "~/x", "cpu", "float16", "3", "nan", "../..", "\x00", "a\nb", "é,"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3))
OF_EACH_CLASS = pytest.mark.parametrize("cls", CLASSES, ids=[cls.command for cls in CLASSES])
OF_EACH_FILE = pytest.mark.parametrize("saved", SAVED, ids=[saved.name for saved in SAVED])
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def ends() -> Iterator[None]:
    """A block that ends within `HANGS_AFTER` seconds."""
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def answered(ask: Callable[[], object]) -> object | None:
    """What comes out, or None where it is refused in one sentence."""
    try:
        with ends():
            return ask()
    except (ValueError, TypeError) as refused:
        kind, sentence = type(refused).__name__, str(refused)
    if (
        kind not in ("ValueError", "UnreadableError", "ArgumentTypeError", "ConfigError")
        or not sentence
        or "\n" in sentence
    ):
        pytest.fail(f"{kind}: {sentence}")
    return None


def drawn(cls: type[Settings]) -> st.SearchStrategy[dict[str, Any]]:
    """Values of some of the fields, right ones and wrong ones, and now and then of none of them."""
    names = st.sampled_from([field.name for field in fields(cls)]) | WORDS
    return st.dictionaries(names, VALUES, max_size=5)


@OF_EACH_CLASS
@MANY
@given(data=st.data())
def test_settings_of_any_values_are_taken_or_refused_in_a_sentence(cls: type[Settings], data: st.DataObject) -> None:
    values = data.draw(drawn(cls))
    found = answered(lambda: cls.from_dict(values))
    if isinstance(found, Settings):  # what was taken is written and read back as it is
        again = cls.from_dict(found.to_dict())
        assert repr(again) == repr(found)


@OF_EACH_CLASS
@MANY
@given(data=st.data())
def test_a_constructor_takes_values_or_refuses_them_in_a_sentence(cls: type[Settings], data: st.DataObject) -> None:
    known = {field.name for field in fields(cls)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.draw(drawn(cls)).items()}
    answered(lambda: cls(**{name: value for name, value in values.items() if name in known}))


@OF_EACH_CLASS
@MANY
@given(data=st.data())
def test_a_configuration_of_any_text_is_read_or_refused(
    cls: type[Settings], data: st.DataObject, tmp_path: Path
) -> None:
    ending = data.draw(st.sampled_from([".toml", ".json", ".meta.json"]))
    path = tmp_path / f"config{ending}"
    values = data.draw(drawn(cls))
    json_text = json.dumps(data.draw(st.sampled_from([values, {"run": {"settings": values}}, [values]])))
    lines = "\n".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in values.items())
    text = data.draw(st.sampled_from([json_text, lines]) | st.text(max_size=60))
    path.write_bytes(data.draw(st.just(text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60)))
    answered(lambda: read_config(path, cls))


@OF_EACH_FILE
@MANY
@given(data=st.data())
def test_a_file_of_any_bytes_is_read_or_refused(saved: Saved, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "saved-file"
    written = tmp_path / "whole"
    if not written.exists():
        saved.write(written)
    whole = written.read_bytes()
    start, length = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 40))
    edited = whole[:start] + data.draw(st.binary(max_size=40)) + whole[start + length :]
    path.write_bytes(data.draw(st.just(edited) | st.binary(max_size=200)))
    answered(lambda: saved.read(path))


SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16])
TENSORS = st.dictionaries(
    st.sampled_from(["weight", "bias", "held_out", "mean", "vectors", "0/h", "9/h", "x"]),
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), SHAPES, DTYPES),
    max_size=4,
)


LOADS = {"map": AffineMap.load, "reference": DriftReference.load, "message": Message.load}


@pytest.mark.parametrize("kind", LOADS)
@MANY
@given(data=st.data())
def test_tensors_of_any_kind_with_the_right_mark_are_read_or_refused(
    kind: str, data: st.DataObject, tmp_path: Path
) -> None:
    facts = {"kind": data.draw(st.sampled_from([MAP, REFERENCE, "x"]))}
    manifest = data.draw(st.dictionaries(st.sampled_from(["format", "texts", "n_parts", "origin"]), VALUES, max_size=4))
    facts |= {"manifest": json.dumps({"format": FORMAT, **manifest})}
    facts |= {name: json.dumps(data.draw(VALUES)) for name in data.draw(st.sets(st.sampled_from(["site", "seed"])))}
    write = data.draw(st.sampled_from([write_tensors, lambda path, tensors, facts: save_file(tensors, path, facts)]))
    write(tmp_path / "saved-file", data.draw(TENSORS), facts)
    answered(lambda: LOADS[kind](tmp_path / "saved-file"))


@MANY
@given(content=st.binary(max_size=80) | st.builds(lambda value: json.dumps(value).encode(), VALUES))
def test_a_record_of_any_bytes_is_made_again(content: bytes, tmp_path: Path) -> None:
    records = Records(tmp_path)
    for name in ("0001.json", "0001.safetensors"):
        (tmp_path / name).write_bytes(content)
    with ends():
        assert records.values("0001", lambda: [1]) == [1] == records.values("0001", lambda: [2])
        found = records.tensors("0001", lambda: {"x": torch.ones(2)})
    assert found.keys() == {"x"}
