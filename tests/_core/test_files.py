"""Files that are written whole or not at all, and digests against hashlib."""

import dataclasses
import errno
import hashlib
import json
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_same_bits
from safetensors.torch import save_file
from tiny import files_in, states

from latentcomm._core.files import (
    ALIGNMENT,
    digest,
    laid_out,
    read_sealed,
    read_tensors,
    told_apart,
    write_json,
    write_sealed,
    write_text,
    written_whole,
)
from latentcomm.fusion import Mean, RightAligned, Weighted


def strange_layouts() -> dict[str, torch.Tensor]:
    """The same numbers as `states(5, 4)`, lying otherwise in memory."""
    x = states(5, 4)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view_as(x).copy_(x)
    return {"transposed": x.T.contiguous().T, "unaligned": shifted, "a slice": torch.cat([x, x], 1)[:, :4]}


class TestLaidOut:
    @pytest.mark.parametrize("kind", strange_layouts())
    def test_what_lies_strangely_is_copied_to_lie_as_a_new_tensor(self, kind: str) -> None:
        given = strange_layouts()[kind]
        found = laid_out(given)
        assert found.stride() == (4, 1) and found.data_ptr() % ALIGNMENT == 0
        assert_same_bits(found, states(5, 4))
        assert found.data_ptr() != given.data_ptr()

    def test_strides_of_axes_of_one_entry_are_the_usual_too(self) -> None:
        column = states(5, 4).T[:, :1]  # a BLAS may look at a stride that leads nowhere
        assert column.is_contiguous() and column.stride() == (1, 4)
        assert laid_out(column).stride() == (1, 1)

    def test_what_lies_as_a_new_tensor_is_left(self) -> None:
        x = states(5, 4)
        assert laid_out(x) is x

    def test_gradients_go_through(self) -> None:
        x = states(5, 4).requires_grad_()
        laid_out(x.T).sum().backward()
        assert x.grad is not None and bool((x.grad == 1).all())

    def test_a_file_s_tensors_lie_so_whatever_its_header(self, tmp_path: Path) -> None:
        for length in range(16):  # the tensors begin behind the header
            save_file({"x": states(5, 4), "y": states(3)}, tmp_path / "file", metadata={"note": "n" * length})
            facts, tensors = read_tensors(tmp_path / "file")
            assert facts == {"note": "n" * length} and tensors.keys() == {"x", "y"}
            assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors.values())
            assert_same_bits(tensors["x"], states(5, 4))


class TestWrittenWhole:
    def test_the_draft_takes_the_place_of_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "er" / "note.txt"
        with written_whole(path) as draft:
            draft.write_text("first")
            assert not path.exists()
            assert draft.parent == path.parent  # on the same disk, or replacing it would not be one step
        with written_whole(path) as draft:
            draft.write_text("second")
            assert path.read_text() == "first"
        assert path.read_text() == "second"
        assert files_in(path.parent) == ["note.txt"]

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
    def test_an_interruption_leaves_what_was_there_and_nothing_else(
        self, tmp_path: Path, stop: type[BaseException]
    ) -> None:
        path = tmp_path / "note.txt"
        path.write_text("before")

        def interrupted() -> None:
            with written_whole(path) as draft:
                draft.write_text("half")
                raise stop

        with pytest.raises(stop):
            interrupted()
        assert path.read_text() == "before"
        assert files_in(tmp_path) == ["note.txt"]

    @pytest.mark.parametrize("step", ["writing", "replacing"])
    def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        path = tmp_path / "note.txt"

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if step == "replacing":
            monkeypatch.setattr(os, "replace", full)
        message = r"note\.txt could not be written \(No space left on device\); free some space and run again; finished"

        def write() -> None:
            with written_whole(path) as draft:
                draft.write_text("half")
                if step == "writing":
                    full()

        with pytest.raises(RuntimeError, match=message):
            write()
        assert files_in(tmp_path) == []

    def test_tensors_that_do_not_fit_on_the_disk_say_the_same(self, tmp_path: Path) -> None:
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with (
                pytest.raises(
                    RuntimeError, match=r"states\.safetensors could not be written .*free some space and run again"
                ),
                written_whole(tmp_path / "states.safetensors") as draft,
            ):
                save_file({"states": torch.zeros(100_000)}, draft)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert files_in(tmp_path) == []

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(RuntimeError, match=r"file/note\.txt could not be written"),
            written_whole(tmp_path / "file" / "note.txt"),
        ):
            pytest.fail("the block must not run")

    def test_the_file_is_readable_by_whom_the_umask_lets(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            write_text(tmp_path / "note.txt", "text")
        finally:
            os.umask(before)
        assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o640

    def test_json_keeps_its_order_and_its_letters(self, tmp_path: Path) -> None:
        value = {"b": 1, "a": "Österreich", "list": [1, 2.5, None]}
        write_json(tmp_path / "value.json", value)
        text = (tmp_path / "value.json").read_text(encoding="utf-8")
        assert json.loads(text) == value
        assert text.index('"b"') < text.index('"a"')
        assert "Österreich" in text


@dataclass(frozen=True)
class Record:
    number: int
    weights: torch.Tensor


@dataclass(frozen=True)
class OtherRecord:
    number: int
    weights: torch.Tensor


ONES = torch.ones(2, 3)
DIFFERENT = [
    1,
    2,
    1.0,
    True,
    None,
    "1",
    "",
    [],
    [1],
    [1, 1],
    [[1], 1],
    [[1, 1]],
    {},
    {"a": 1},
    {"a": 2},
    {"b": 1},
    {1: "a"},
    Path("1"),
    ONES,
    ONES.T.contiguous(),
    ONES.double(),
    ONES * 2,
    ONES.bool(),
    torch.tensor(1.0),
    torch.tensor([]),
    torch.ones(6).bfloat16(),
    Record(1, ONES),
    Record(2, ONES),
    Record(1, ONES * 2),
    OtherRecord(1, ONES),
    Mean(),
    Weighted(0.5),
    Weighted(0.25),
    RightAligned(Mean()),
]


class TestDigest:
    def test_a_plain_value_is_the_sha256_of_its_type_and_repr(self) -> None:
        assert digest(1) == hashlib.sha256(b"int 1;").hexdigest()
        assert digest(1, "a") == hashlib.sha256(b"int 1;str 'a';").hexdigest()

    def test_different_values_have_different_digests(self) -> None:
        assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)

    @given(st.lists(st.lists(st.text(max_size=3) | st.integers(), max_size=3), max_size=4))
    def test_equal_values_have_equal_digests_and_no_nesting_is_lost(self, value: list[list[object]]) -> None:
        assert digest(*value) == digest(*[list(inner) for inner in value])
        assert digest(value) != digest([*value, []])
        assert digest(value) != digest([value])

    def test_what_a_tensor_holds_counts_and_not_how_it_lies_in_memory(self) -> None:
        transposed = torch.arange(6.0).reshape(2, 3).T
        assert digest(transposed) == digest(transposed.contiguous())
        assert digest(Record(1, torch.ones(2, 3))) == digest(Record(1, ONES))

    def test_a_record_is_its_name_its_fields_and_its_version(self) -> None:
        def rule(name: str = "Rule", *, version: int | None = None, module: str = "one") -> object:
            space = {"__module__": module} | ({} if version is None else {"VERSION": version})
            return dataclasses.make_dataclass(name, [("scale", float, 1.0)], namespace=space)()

        assert digest(rule()) == digest(rule(module="another"))  # moving its code makes it no other
        assert digest(rule()) == digest(rule(version=1)) != digest(rule(version=2))
        assert digest(rule()) != digest(rule("Other"))

    @pytest.mark.parametrize("value", [lambda: 0, {1, 2}, object(), [print], Mean])
    def test_what_has_no_stable_content_is_refused(self, value: object) -> None:
        with pytest.raises(TypeError, match="has no digest; give plain values, tensors or dataclasses"):
            digest(value)


def test_a_seal_covers_what_json_holds_and_not_how_it_is_written(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", {"n": 3, "text": "Rome"})
    held = json.loads((tmp_path / "a.json").read_text("utf-8"))
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(held.items()))), "utf-8")
    assert read_sealed(tmp_path / "a.json") == {"n": 3, "text": "Rome"}
    (tmp_path / "a.json").write_text(json.dumps(held | {"n": 4}), "utf-8")
    with pytest.raises(ValueError, match="does not match its checksum"):
        read_sealed(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("gpt2", "gpt2"), ["gpt2", "gpt2"]),
        (("/runs/one/model", ""), ["model", ""]),
        (("/runs/one/model", "/runs/two/model"), ["one/model", "two/model"]),
        (("/one/x/model", "/two/x/model", "/three/other"), ["one/x/model", "two/x/model", "other"]),
        (("/runs/one/model", "/runs/one/model/"), ["model", "model"]),
        (("~/one/model", "model"), ["one/model", "model"]),
        (("C:\\one\\model", "C:\\two\\model"), ["one/model", "two/model"]),
        (("models--a--m/snapshots/" + "0" * 40, "/x/models--b--m/snapshots/1f/"), ["a/m", "b/m"]),
        (("/models--m/snapshots/0a", "/models--a--b--c/snapshots/0a"), ["m", "a/b--c"]),
        (("/h/models--a--m/snapshots/" + "0a" * 20, "/h/models--a--m/snapshots/2c"), ["a/m@0a0a0a0a", "a/m@2c"]),
        (("a/m", "/h/models--a--m/snapshots/2c"), ["a/m", "a/m@2c"]),
        (("/h/models--a--m/snapshots/2c", "/h/models--a--m/snapshots/2c"), ["a/m", "a/m"]),
        (("/x/models--a--m/snapshots", "/y/models--a--m/snapshots/0a/onnx"), ["snapshots", "onnx"]),
    ],
)
def test_names_are_told_apart_by_as_little_of_their_paths_as_does_it(names: tuple[str, ...], told: list[str]) -> None:
    assert told_apart(*names) == told
