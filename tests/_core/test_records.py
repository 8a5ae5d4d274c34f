"""Records: a piece is read where it is whole, made where it is not, and named where it is damaged."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numerics import assert_same_bits
from tiny import files_in, states
from toys import Counter

from latentcomm._core.files import read_tensors, write_tensors
from latentcomm._core.records import Records
from latentcomm.alignment import AffineMap

ROOT = Path(__file__).resolve().parents[2]
VALUE = {"text": "Ünïcode", "numbers": [1, 0.1, None, True]}
Piece = Callable[[Records, Counter], object]


def tensors(records: Records, make: Counter) -> object:
    return records.tensors("0001", lambda: (make(), {"x": states(3, 4)})[1])["x"]


def values(records: Records, make: Counter) -> object:
    return records.values("0001", lambda: (make(), VALUE)[1])


def saved(records: Records, make: Counter) -> object:
    return records.saved("0001", lambda: (make(), AffineMap(states(2, 2), states(2)))[1], AffineMap.load).weight


KINDS = pytest.mark.parametrize("piece", [tensors, values, saved], ids=lambda each: each.__name__)


def alike(x: object, y: object) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        assert_same_bits(x, y)
        return True
    return x == y


@KINDS
def test_a_piece_is_made_once_and_read_from_then_on(piece: Piece, tmp_path: Path) -> None:
    make, records = Counter(lambda: None), Records(tmp_path)
    first = piece(records, make)
    assert alike(piece(records, make), first) and make.calls == 1
    assert len(files_in(tmp_path)) == 1


@KINDS
def test_without_a_folder_every_piece_is_made(piece: Piece) -> None:
    make = Counter(lambda: None)
    assert alike(piece(Records(None), make), piece(Records(None), make)) and make.calls == 2


@KINDS
@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "another file"])
def test_a_damaged_piece_is_named_set_aside_and_made_again(
    piece: Piece, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, records = Counter(lambda: None), Records(tmp_path)
    first = piece(records, make)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    broken = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "changed": whole[:-12] + bytes(byte ^ 1 for byte in whole[-12:-8]) + whole[-8:],
        "another file": b'{"a": 1}\n',
    }[damage]
    path.write_bytes(broken)
    assert alike(piece(records, make), first) and make.calls == 2
    assert f"{path.name} is damaged" in capsys.readouterr().err.replace("\n", " ")
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.read_bytes() == broken
    assert alike(piece(records, make), first) and make.calls == 2


@KINDS
def test_an_interruption_while_a_piece_is_made_leaves_nothing(piece: Piece, tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        piece(Records(tmp_path / "of"), Counter(interrupted))
    assert files_in(tmp_path) == []


def test_the_folder_is_named_by_all_that_decides_and_by_the_version(tmp_path: Path) -> None:
    one = Records.of(tmp_path, "sweep", 1, "model", [1, 2], torch.ones(2))
    assert one.folder is not None and one.folder.parent == tmp_path and one.folder.name.startswith("sweep-")
    assert one == Records.of(tmp_path, "sweep", 1, "model", [1, 2], torch.ones(2))
    others = [
        Records.of(tmp_path, "sweep", 2, "model", [1, 2], torch.ones(2)),
        Records.of(tmp_path, "trials", 1, "model", [1, 2], torch.ones(2)),
        Records.of(tmp_path, "sweep", 1, "model", [1, 3], torch.ones(2)),
        Records.of(tmp_path, "sweep", 1, "model", [1, 2], torch.zeros(2)),
    ]
    assert len({one.folder, *(other.folder for other in others)}) == 5
    assert Records.of(None, "sweep", 1, "model") == Records(None)


def test_several_processes_may_write_the_same_pieces(tmp_path: Path) -> None:
    lines = (
        "import sys; from pathlib import Path; from latentcomm._core.records import Records\n"
        "records = Records(Path(sys.argv[1]))\n"
        "found = [records.values(f'{n:03d}', lambda n=n: [n, n * n]) for n in range(60)]\n"
        "print(found == [[n, n * n] for n in range(60)])"
    )
    command = [sys.executable, "-c", lines, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["True"] * 3
    assert len(files_in(tmp_path)) == 60


def test_a_damaged_record_that_another_process_sets_aside_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path)
    records.values("0001", lambda: VALUE)
    (tmp_path / "0001.json").write_text("{")

    def gone(self: Path, target: Path) -> None:
        self.unlink()
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "replace", gone)
    with pytest.raises(RuntimeError, match="could not be written"):  # the piece was made; here no file can be renamed
        records.values("0001", lambda: VALUE)
    monkeypatch.undo()
    assert records.values("0001", lambda: VALUE) == VALUE


def test_a_piece_that_cannot_be_read_for_the_disk_s_sake_is_left(tmp_path: Path) -> None:
    records = Records(tmp_path)
    AffineMap.identity(2).save(tmp_path / "0001.safetensors")

    def load(path: Path) -> AffineMap:
        try:
            raise PermissionError(13, "Permission denied", str(path))
        except OSError as error:
            raise ValueError(f"{path} is no saved map ({error})") from error

    with pytest.raises(ValueError, match="Permission denied"):
        records.saved("0001", lambda: AffineMap.identity(2), load)
    assert files_in(tmp_path) == ["0001.safetensors"]


def test_parts_written_apart_are_found_by_a_run_of_the_whole(tmp_path: Path) -> None:
    make, records = Counter(lambda n: n * n), Records(tmp_path)
    for part in (0, 1, 2):
        for number in range(part, 10, 3):  # part i of 3
            records.values(f"{number:03d}", lambda n=number: make(n))
    assert [records.values(f"{n:03d}", lambda n=n: make(n)) for n in range(10)] == [n * n for n in range(10)]
    assert make.calls == 10


class TestFilesOfTensors:
    def test_come_back_with_every_bit_and_their_metadata(self, tmp_path: Path) -> None:
        given = {"x": states(4, 3).T, "n": torch.arange(3), "nan": torch.tensor([float("nan"), -0.0])}
        write_tensors(tmp_path / "file", given, {"note": "ü"})
        facts, found = read_tensors(tmp_path / "file")
        assert facts == {"note": "ü"} and found.keys() == given.keys()
        for name, tensor in given.items():
            assert_same_bits(found[name], tensor)

    def test_whose_metadata_were_changed_are_refused(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "file", {"x": states(3)}, {"note": "one"})
        text = (tmp_path / "file").read_bytes()
        (tmp_path / "file").write_bytes(text.replace(b'"note":"one"', b'"note":"two"'))
        with pytest.raises(ValueError, match="does not match its checksum; it was changed or damaged"):
            read_tensors(tmp_path / "file")

    def test_of_before_there_were_checksums_are_read(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"x": states(3)}, tmp_path / "file", metadata={"note": "one"})
        assert read_tensors(tmp_path / "file")[0] == {"note": "one"}


def test_a_record_of_values_is_plain_json(tmp_path: Path) -> None:
    Records(tmp_path).values("0001", lambda: VALUE)
    assert json.loads((tmp_path / "0001.json").read_text("utf-8"))["value"] == VALUE
