"""Messages: what they hold, weigh and say of themselves, in memory and in a file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numerics import assert_same_bits, same_bits
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import files_in, model, states
from toys import toy

from latentcomm._core.files import write_tensors
from latentcomm.channels import Message
from latentcomm.channels.message import join, made_by

VECTORS = states(3, 4)
TEXTS = ("Petra", "", "Málaga\n")
PARTS = tuple({"h": states(n + 1, 4, seed=n).float(), "ids": torch.arange(n)} for n in range(3))
FACTS = {"model": "tiny", "layer": 3}
FULL = Message(
    VECTORS, "by hand", texts=TEXTS, parts=PARTS, meant_for="tiny", made_by=FACTS, items=("a", "b", "c")
)  # fmt: skip
KINDS = {
    "vectors": Message(VECTORS, "by hand"),
    "senders": Message(states(2, 3, 4), "by hand"),
    "texts": Message(None, "by hand", texts=TEXTS),
    "parts": Message(None, "by hand", parts=PARTS),
    "all": FULL,
    "half": Message(VECTORS.to(torch.bfloat16), "by hand", is_own=True),
}


SEARCH = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)  # fmt: skip


def same(a: Message, b: Message) -> bool:
    plain = [(m.texts, m.origin, m.is_own, m.meant_for, dict(m.made_by), m.items) for m in (a, b)]
    tensors = [[*([m.vectors] if m.vectors is not None else [])] for m in (a, b)]
    for message, found in zip((a, b), tensors, strict=True):
        found += [tensor for part in message.parts or () for _, tensor in sorted(part.items())]
    names = [[sorted(part) for part in m.parts or ()] for m in (a, b)]
    return (
        plain[0] == plain[1]
        and names[0] == names[1]
        and (a.parts is None) == (b.parts is None)
        and len(tensors[0]) == len(tensors[1])
        and all(map(same_bits, *tensors))
    )


XYZ = replace(
    toy(),
    name="letters",
    items=tuple(replace(item, id=letter) for item, letter in zip(toy().items, "xyz", strict=False)),
)


class TestWhatItHolds:
    @pytest.mark.parametrize(
        ("kind", "weights"),
        [
            ("vectors", [32, 32, 32]),
            ("senders", [64, 64, 64]),
            ("texts", [5, 0, 8]),
            ("parts", [16, 32 + 8, 48 + 16]),
            ("all", [32 + 5 + 16, 32 + 0 + 40, 32 + 8 + 64]),
            ("half", [8, 8, 8]),
        ],
    )
    def test_weighs_its_numbers_and_its_letters(self, kind: str, weights: list[int]) -> None:
        assert KINDS[kind].nbytes() == weights

    def test_nothing_at_all_is_silence(self) -> None:
        silence = Message(None, "nothing")
        assert silence.is_silent and not silence.has_tensors
        assert silence.nbytes() == [] and len(silence) == 0
        assert Message(None, "nothing", parts=({}, {})).is_silent
        assert not any(message.is_silent for message in KINDS.values())
        assert not Message(None, "ids", parts=({"ids": torch.arange(2)},)).is_silent

    def test_contents_of_different_numbers_of_items_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"contents for \[2, 3\] items"):
            Message(VECTORS, "by hand", texts=("a", "b"))
        with pytest.raises(ValueError, match=r"contents for \[1, 3\] items"):
            Message(None, "by hand", texts=TEXTS, parts=PARTS[:1])

    def test_ids_of_another_number_of_items_are_refused(self) -> None:
        with pytest.raises(ValueError, match="items are 2 ids for a message of 3 items; give one an item"):
            Message(VECTORS, "by hand", items=("a", "b"))

    def test_the_ids_of_its_items_go_with_them(self) -> None:
        assert FULL.select([2, 0]).items == ("c", "a") and KINDS["vectors"].select([2, 0]).items is None
        assert join([FULL.select([2]), FULL.select([0, 1])]).items == ("c", "a", "b")
        assert FULL.addressed(XYZ).items == ("x", "y", "z")
        FULL.addressed(XYZ).check_items(XYZ)
        for task, message in ((XYZ, "is for item 'a' where task 'letters' has 'x'"), (toy(), "for 3 items and")):
            with pytest.raises(ValueError, match=message):
                FULL.check_items(task)
        with pytest.raises(ValueError, match="is for 3 items and task 'toy' has 8"):
            FULL.addressed(toy())

    @pytest.mark.parametrize("kind", KINDS)
    def test_some_items_are_taken_in_the_order_asked_for(self, kind: str) -> None:
        message = KINDS[kind]
        found = message.select([2, 0])
        assert found.nbytes() == [message.nbytes()[2], message.nbytes()[0]]
        assert same(found.select([1, 0]), message.select([0, 2]))
        if message.vectors is not None and found.vectors is not None:
            assert_same_bits(found.vectors[..., 0, :], message.vectors[..., 2, :])

    @pytest.mark.parametrize("kind", KINDS)
    def test_only_numbers_are_mapped_and_nothing_given_changes(self, kind: str) -> None:
        message = KINDS[kind]
        twice = message.map_tensors(lambda tensor: 2 * tensor)
        assert twice.texts == message.texts and twice.nbytes() == message.nbytes()
        assert same(twice.map_tensors(lambda tensor: tensor / 2), message)
        if twice.parts is not None and message.parts is not None:
            assert_same_bits(twice.parts[2]["ids"], message.parts[2]["ids"])
            assert_same_bits(twice.parts[2]["h"], 2 * message.parts[2]["h"])

    def test_parts_stand_in_the_order_of_their_names_however_they_were_given(self) -> None:
        given = Message(None, "by hand", parts=({"b": torch.ones(1), "a": torch.zeros(1)},))
        assert given.parts is not None and list(given.parts[0]) == ["a", "b"]

    def test_only_the_receiver_that_it_is_meant_for_reads_it(self) -> None:
        tiny = model("llama")
        FULL.select([0]).map_tensors(torch.clone)
        replace(FULL, meant_for=tiny.name).check_receiver(tiny)
        replace(FULL, meant_for=None).check_receiver(tiny)
        with pytest.raises(
            ValueError, match=r"\(by hand\) is meant for tiny and tiny-llama cannot read it; send again with receiver="
        ):
            FULL.check_receiver(tiny)

    def test_the_facts_about_a_sender(self) -> None:
        assert made_by(model("gpt2"), site="blocks.1.hook_resid_post", position="last") == {
            "model": "tiny-gpt2",
            "revision": None,
            "dtype": "float64",
            "site": "blocks.1.hook_resid_post",
            "position": "last",
        }


class TestJoining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_parts_of_a_message_make_the_message(self, kind: str) -> None:
        message = KINDS[kind]
        assert same(join([message.select([0, 1]), message.select([2])]), message)
        assert not same(join([message.select([2]), message.select([0, 1])]), message)

    def test_silence_joined_is_silence(self) -> None:
        assert join([Message(None, "nothing")] * 2).is_silent

    def test_none_at_all_and_different_kinds_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no messages to join"):
            join([])
        others = (KINDS["texts"], replace(KINDS["vectors"], is_own=True), replace(KINDS["vectors"], meant_for="b"))
        for other in others:
            with pytest.raises(ValueError, match="different kinds, or for different receivers"):
                join([KINDS["vectors"], other])


class TestFiles:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_message_comes_back_bit_for_bit(self, kind: str, tmp_path: Path) -> None:
        KINDS[kind].save(tmp_path / "deep" / "message.safetensors")
        assert same(Message.load(tmp_path / "deep" / "message.safetensors"), KINDS[kind])
        assert files_in(tmp_path) == ["deep", "deep/message.safetensors"]  # no draft is left

    def test_empty_parts_and_silence_come_back(self, tmp_path: Path) -> None:
        for message in (
            Message(None, "nothing"),
            Message(None, "by hand", parts=({"h": torch.zeros(0, 4)}, {})),
            Message(None, "by hand", texts=()),
        ):
            message.save(tmp_path / "m")
            assert same(Message.load(tmp_path / "m"), message)

    def test_the_manifest_says_what_it_is_and_what_it_holds(self, tmp_path: Path) -> None:
        FULL.save(tmp_path / "m")
        with safe_open(tmp_path / "m", framework="pt") as file:
            manifest = json.loads(file.metadata()["manifest"])
        assert manifest == {
            "format": "latentcomm message 1",
            "origin": "by hand",
            "is_own": False,
            "texts": list(TEXTS),
            "n_parts": 3,
            "meant_for": "tiny",
            "made_by": {"model": "tiny", "layer": 3},
            "items": ["a", "b", "c"],
            "dtypes": ["torch.float32", "torch.float64", "torch.int64"],
        }

    @pytest.mark.parametrize("change", ["vectors", "a part", "a text", "a name", "whom it is for", "the layer"])
    def test_a_file_that_was_changed_is_not_read(self, change: str, tmp_path: Path) -> None:
        FULL.save(tmp_path / "m")
        with safe_open(tmp_path / "m", framework="pt") as file:
            facts = file.metadata()
            manifest = json.loads(facts["manifest"])
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if change == "vectors":
            tensors["vectors"][1, 2] += 1e-12
        elif change == "a part":
            tensors["2/ids"][0] = 7
        elif change == "a name":
            tensors["1/other"] = tensors.pop("1/h")
        elif change == "a text":
            manifest["texts"][0] = "Petri"
        elif change == "whom it is for":
            manifest["meant_for"] = None
        else:
            manifest["made_by"]["layer"] = 4
        save_file(tensors, tmp_path / "m", metadata=facts | {"manifest": json.dumps(manifest)})
        with pytest.raises(ValueError, match="does not match its checksum; it was changed"):
            Message.load(tmp_path / "m")

    def test_what_is_no_message_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"gone is no saved message \("):
            Message.load(tmp_path / "gone")
        (tmp_path / "text").write_text("hello")
        with pytest.raises(ValueError, match=r"text is no saved message \("):
            Message.load(tmp_path / "text")
        save_file({"a": torch.ones(1)}, tmp_path / "weights")
        with pytest.raises(ValueError, match=r"weights is no message of this package; write one with Message\.save"):
            Message.load(tmp_path / "weights")
        FULL.save(tmp_path / "m")
        whole = (tmp_path / "m").read_bytes()
        (tmp_path / "cut").write_bytes(whole[: len(whole) - 9])
        with pytest.raises(ValueError, match=r"cut is no saved message \("):
            Message.load(tmp_path / "cut")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
SHAPES = ((), (3,), (3, 0), (2, 2), (1, 1, 1, 1))
TENSORS = st.sampled_from([*map(torch.zeros, SHAPES), torch.zeros(3, 4).long()])
LIKELY = ("vectors", "0/h", "7/h", "-1/h", "/", "0/", "h", "1e3/h", "\u0663/h", "9" * 5000 + "/h")
NAMES = st.sampled_from(LIKELY) | st.text(max_size=4)


def answers(path: Path) -> Message | None:
    """The message in a file, or None where it is refused in one sentence."""
    try:
        return Message.load(path)
    except ValueError as error:
        said = str(error)
        assert str(path) in said and "\n" not in said and len(said) < len(str(path)) + 200
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole message in a file."""
    folder = tmp_path_factory.mktemp("messages")
    FULL.save(folder / "whole")
    return folder


class TestAnyFile:
    """Whatever a file holds, reading it gives a message or one sentence."""

    @given(content=st.binary(max_size=300))
    @SEARCH
    def test_of_any_bytes_is_answered(self, folder: Path, content: bytes) -> None:
        (folder / "bytes").write_bytes(content)
        assert answers(folder / "bytes") is None

    @given(data=st.data())
    @SEARCH
    def test_with_a_byte_changed_cut_off_or_put_in_is_refused_or_as_it_was(
        self, folder: Path, data: st.DataObject
    ) -> None:
        whole = bytearray((folder / "whole").read_bytes())
        at, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
        edit = data.draw(st.sampled_from(["change", "cut", "insert", "drop"]))
        changed = {
            "change": whole[:at] + bytes([byte]) + whole[at + 1 :],
            "cut": whole[:at],
            "insert": whole[:at] + bytes([byte]) + whole[at:],
            "drop": whole[:at] + whole[at + 1 :],
        }[edit]
        (folder / "edited").write_bytes(changed)
        found = answers(folder / "edited")
        assert found is None or same(found, FULL)

    @given(
        entries=st.dictionaries(
            st.sampled_from(["origin", "is_own", "texts", "n_parts", "meant_for", "made_by", "items", "more"]), VALUES
        ),
        dropped=st.sets(st.sampled_from(["origin", "is_own", "texts", "n_parts", "meant_for", "made_by", "items"])),
        tensors=st.dictionaries(NAMES, TENSORS, max_size=3),
        lost=st.sampled_from([(), ("vectors",), ("0/h", "1/ids")]),
    )
    @example({"n_parts": 10**12}, set(), {}, ())
    @example({"n_parts": True}, set(), {}, ())
    @example({"texts": "abc"}, set(), {}, ())
    @example({}, {"origin"}, {}, ())
    @example({}, set(), {"vectors": torch.zeros(3)}, ())
    @example({}, set(), {"vectors": torch.zeros(3, 4).long()}, ())
    @SEARCH
    def test_written_by_another_hand_is_answered(
        self, folder: Path, entries: dict[str, Any], dropped: set[str], tensors: dict[str, Any], lost: tuple[str, ...]
    ) -> None:
        with safe_open(folder / "whole", framework="pt") as file:
            manifest = json.loads(file.metadata()["manifest"])
            saved: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        manifest = {name: value for name, value in (manifest | entries).items() if name not in dropped}
        saved = {name: tensor for name, tensor in (saved | tensors).items() if name not in lost}
        write_tensors(folder / "by hand", saved, {"manifest": json.dumps(manifest)})
        found = answers(folder / "by hand")
        assert found is None or len(found.nbytes()) == len(found)

    @pytest.mark.parametrize("manifest", ["", "[]", "null", "7", "{", "[" * 100_000, '{"format": []}', "\u2028"])
    def test_whose_manifest_is_no_manifest_is_refused(self, manifest: str, tmp_path: Path) -> None:
        write_tensors(tmp_path / "m", {"vectors": torch.ones(2, 3)}, {"manifest": manifest})
        assert answers(tmp_path / "m") is None

    def test_that_is_a_folder_or_of_a_type_torch_lacks_is_refused(self, tmp_path: Path) -> None:
        assert answers(tmp_path) is None
        header = json.dumps({"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 1]}}).encode()
        (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header + b"0")
        assert answers(tmp_path / "m") is None
