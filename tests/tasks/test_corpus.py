"""Corpora from files of every kind, the text that comes with the package, and every file that is none."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from latentcomm.tasks.corpus import LEAST_DOCUMENTS, PASSAGE_CHARACTERS, PUBLIC_DOMAIN, Corpus, read_corpus

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"Document {number} says that the river was wide." for number in range(LEAST_DOCUMENTS)]


def jsonl(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class TestWhatComesWithThePackage:
    def test_it_is_many_passages_of_some_hundred_tokens_from_ten_works(self) -> None:
        documents = read_corpus().documents
        works = [json.loads(line)["work"] for line in PUBLIC_DOMAIN.read_text("utf-8").splitlines()]
        assert len(documents) == len(works) > 100 and len(set(works)) >= 10
        assert 60_000 < PUBLIC_DOMAIN.stat().st_size < 100_000
        assert max(works.count(work) for work in works) <= len(works) / 8
        words = [
            len(re.findall(r"\w+|[^\w\s]", text)) for text in documents
        ]  # a token a word or mark, or a little more
        assert min(words) > 70 and max(words) < 240

    def test_passages_are_unique_and_hold_nothing_a_transcriber_added(self) -> None:
        documents = read_corpus().documents
        assert len(set(documents)) == len(documents)
        openings = [text[:60] for text in documents]
        assert len(set(openings)) == len(openings)
        assert not [
            text for text in documents if re.search(r"gutenberg|e-?book|e-?text|https?:|produced by", text, re.I)
        ]
        assert not [text for text in documents if "_" in text or "\r" in text or text != text.strip()]

    def test_the_notice_names_every_work_with_its_number_of_passages(self) -> None:
        notice = (PUBLIC_DOMAIN.parent / "NOTICE.md").read_text("utf-8")
        rows = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in notice.splitlines() if line.startswith("| ")
        ]
        named = {row[0].partition(" (")[0]: (int(row[-1]), row[2]) for row in rows[1:]}
        works = [json.loads(line)["work"] for line in PUBLIC_DOMAIN.read_text("utf-8").splitlines()]
        assert {work: works.count(work) for work in works} == {work: count for work, (count, _) in named.items()}
        assert all(1500 < int(year[-4:]) < 1928 for _, year in named.values())
        assert f"{len(works)} passages" in notice and "public domain" in notice

    def test_a_wheel_holds_it(self, tmp_path: Path) -> None:
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            ".",
        ]
        done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
        if "hatchling" in done.stderr and done.returncode != 0:
            pytest.skip("hatchling is not installed here; the wheel is built without it in continuous integration")
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
            packed = wheel.read("latentcomm/tasks/data/public_domain.jsonl")
            assert "latentcomm/tasks/data/NOTICE.md" in wheel.namelist()
        assert hashlib.sha256(packed).digest() == hashlib.sha256(PUBLIC_DOMAIN.read_bytes()).digest()


class TestReading:
    def test_each_line_of_a_jsonl_file_is_a_document_whatever_else_it_says(self, tmp_path: Path) -> None:
        lines = [json.dumps({"id": number, "text": f"  {text}\n"}) for number, text in enumerate(TEXTS)]
        found = read_corpus(jsonl(tmp_path / "mine.jsonl", [*lines[:3], "", *lines[3:]]))
        assert found.documents == tuple(TEXTS) and found.name == "mine.jsonl"

    def test_a_line_separator_inside_a_text_ends_no_line(self, tmp_path: Path) -> None:
        texts = [f"{text}\u2028It was cold.\x0bSo be it." for text in TEXTS]
        found = read_corpus(
            jsonl(tmp_path / "mine.jsonl", [json.dumps({"text": t}, ensure_ascii=False) for t in texts])
        )
        assert found.documents == tuple(texts)

    def test_each_txt_file_of_a_folder_is_a_document_in_order_of_names(self, tmp_path: Path) -> None:
        for number in reversed(range(LEAST_DOCUMENTS)):
            (tmp_path / f"{number:02d}.txt").write_text(f"\n\n{TEXTS[number]}\n\nA second paragraph.\n", "utf-8")
        (tmp_path / "notes.md").write_text("no document", "utf-8")
        (tmp_path / "zz.txt").mkdir()
        assert read_corpus(tmp_path).documents == tuple(f"{text}\n\nA second paragraph." for text in TEXTS)

    def test_plain_text_is_cut_at_the_ends_of_paragraphs_and_nothing_is_lost(self, tmp_path: Path) -> None:
        paragraphs = [f"Paragraph {number}.\n" + f"word{number} " * (20 + 7 * number) for number in range(30)]
        paragraphs.append("The end, which is too short to be a passage.")
        path = tmp_path / "book.txt"
        path.write_text("\n \n\n".join(paragraphs), "utf-8")
        documents = read_corpus(path).documents
        assert "\n\n".join(documents) == "\n\n".join(text.strip() for text in paragraphs)
        assert all(re.match(r"Paragraph \d+\.\n", text) for text in documents)
        assert all(len(text) >= PASSAGE_CHARACTERS for text in documents)
        for text in documents:  # and none is longer than it must be: without its last paragraph it would be too short
            assert len("\n\n".join(text.split("\n\n")[:-1])) < PASSAGE_CHARACTERS or text is documents[-1]

    def test_text_without_empty_lines_has_a_paragraph_a_line(self, tmp_path: Path) -> None:
        lines = [f"Line {number} " + "word " * 130 for number in range(LEAST_DOCUMENTS + 2)]
        path = tmp_path / "lines.txt"
        path.write_text("\n" + "\n".join(lines) + "\n", "utf-8")
        assert read_corpus(path).documents == tuple(line.strip() for line in lines)

    def test_line_ends_and_a_byte_order_mark_make_no_difference(self, tmp_path: Path) -> None:
        text = "\n\n".join(f"{text} " * 20 for text in TEXTS)
        plain, windows = tmp_path / "plain.txt", tmp_path / "windows.txt"
        plain.write_bytes(text.encode("utf-8"))
        windows.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode("utf-8"))
        assert read_corpus(windows).sha256 == read_corpus(plain).sha256

    def test_the_hash_is_that_of_the_documents_and_not_of_the_file(self, tmp_path: Path) -> None:
        lines = [json.dumps({"text": text}) for text in TEXTS]
        first = read_corpus(jsonl(tmp_path / "a.jsonl", lines))
        spaced = read_corpus(jsonl(tmp_path / "b.jsonl", [json.dumps({"n": 1, "text": text}) for text in TEXTS]))
        other = read_corpus(jsonl(tmp_path / "c.jsonl", [lines[1], lines[0], *lines[2:]]))
        assert first.sha256 == spaced.sha256 != other.sha256
        assert re.fullmatch(r"[0-9a-f]{64}", first.sha256)
        assert "Document" not in repr(first) and "10 documents" in repr(first)

    def test_a_path_may_be_text_with_a_tilde(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        jsonl(tmp_path / "mine.jsonl", [json.dumps({"text": text}) for text in TEXTS])
        assert isinstance(read_corpus("~/mine.jsonl"), Corpus)


class TestWhatIsNoCorpus:
    def refused(self, path: Path, saying: str) -> None:
        with pytest.raises(ValueError, match=saying):
            read_corpus(path)

    def test_a_path_that_is_not_there(self, tmp_path: Path) -> None:
        self.refused(
            tmp_path / "none.txt", r"there is no corpus .*none.txt; give a text file, a .jsonl file or a folder"
        )

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
    @pytest.mark.parametrize("content", [b"", b" \n\n\t\n", b"\xef\xbb\xbf"])
    def test_an_empty_file(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        self.refused(tmp_path / name, f"{name} is empty; a corpus needs at least 10 documents")

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.safetensors"])
    def test_a_binary_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"PK\x03\x04 text \x00\x01\x02")
        self.refused(tmp_path / name, f"{name} is no text: byte 10 is zero")

    @pytest.mark.parametrize(("encoding", "saying"), [("utf-16", "is no text|is no UTF-8"), ("latin-1", "byte 3 ")])
    def test_text_in_another_encoding(self, tmp_path: Path, encoding: str, saying: str) -> None:
        (tmp_path / "a.txt").write_bytes("Café au lait".encode(encoding))
        self.refused(tmp_path / "a.txt", saying)

    def test_too_few_documents_are_counted_and_one_more_is_enough(self, tmp_path: Path) -> None:
        lines = [json.dumps({"text": text}) for text in TEXTS]
        path = jsonl(tmp_path / "few.jsonl", lines[:-1])
        self.refused(path, "holds 9 documents, fewer than 10; give more text")
        assert len(read_corpus(jsonl(path, lines)).documents) == 10

    def test_one_long_paragraph_is_one_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("word " * 9000, "utf-8")
        self.refused(tmp_path / "a.txt", "holds 1 documents, fewer than 10; .* an empty line after each paragraph")

    @pytest.mark.parametrize(
        ("line", "saying"),
        [
            ("{'text': 'single quotes'}", r"line 4 of .* is no JSON \(.*\); give an object a line"),
            ('"only a string"', 'line 4 of .* has no "text"'),
            ('{"content": "another name"}', 'line 4 of .* has no "text"'),
            ('{"text": ["a", "list"]}', 'line 4 of .* has no "text"'),
            ('{"text": " "}', "the document in line 4 of .* is empty"),
            ('{"text": "half \\ud83d a pair"}', "the document in line 4 of .* has half a character at 5"),
        ],
    )
    def test_a_line_that_is_no_document_is_named(self, tmp_path: Path, line: str, saying: str) -> None:
        lines = [json.dumps({"text": text}) for text in TEXTS]
        self.refused(jsonl(tmp_path / "a.jsonl", [*lines[:3], line, *lines[3:]]), saying)

    def test_a_folder_without_text_or_with_an_empty_document(self, tmp_path: Path) -> None:
        (tmp_path / "notes.md").write_text("no document", "utf-8")
        self.refused(tmp_path, "holds no .txt file; put a document into each")
        for number, text in enumerate(TEXTS):
            (tmp_path / f"{number}.txt").write_text(text if number else "\n", "utf-8")
        self.refused(tmp_path, r"the document in .*0\.txt is empty; leave it out")

    def test_a_file_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(path: Path) -> bytes:
            raise PermissionError(13, os.strerror(13))

        (tmp_path / "a.txt").write_text("text", "utf-8")
        monkeypatch.setattr(Path, "read_bytes", denied)
        with pytest.raises(RuntimeError, match=r"a.txt could not be read \(Permission denied\)"):
            read_corpus(tmp_path / "a.txt")
