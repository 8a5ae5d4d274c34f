"""A corpus: documents of plain text, the user's own or the public-domain passages that come with the package."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentcomm._core.files import digest
from latentcomm.tasks.files import half_character, read_bytes

LEAST_DOCUMENTS = 10
"""A null permutes documents and a fold holds them out: fewer than two for each of five folds show nothing."""
PASSAGE_CHARACTERS = 600
"""Paragraphs of a plain text file are gathered to passages of at least this length, some 130 tokens."""
PUBLIC_DOMAIN = Path(__file__).parent / "data" / "public_domain.jsonl"
"""The text that comes with the package; the folder's `NOTICE.md` names each work and why it is in the public domain."""


@dataclass(frozen=True)
class Corpus:
    """Documents of plain text.

    Attributes:
        name: what it was read from, without its folder.
        documents: the texts. Tokens of one document are not independent; documents are taken to be.
        sha256: SHA-256 over the documents in order: the same texts have the same sum, from any file.
    """

    name: str
    documents: tuple[str, ...]
    sha256: str

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self.documents)} documents, sha256 {self.sha256[:12]}...)"


def read_corpus(path: str | os.PathLike[str] | None = None) -> Corpus:
    """The documents of a file or folder; without one, the public-domain English text that comes with the package.

    A `.jsonl` file holds an object a line whose "text" is a document. Of a folder, each `.txt` file is a document, in
    the order of their names. Any other file is plain text, cut into passages at the ends of paragraphs: a paragraph
    ends at an empty line (in a text without empty lines, at the end of each line), and a passage once it has
    `PASSAGE_CHARACTERS`. Text is UTF-8; white space around a document is dropped, and line ends become line feeds.

    Raises:
        ValueError: the path is missing, is no UTF-8 text, has no text in it or a document without, is not the JSON that
            its name promises, or holds fewer than `LEAST_DOCUMENTS` documents.
        RuntimeError: the path cannot be read.

    >>> corpus = read_corpus()
    >>> corpus.name, len(corpus.documents) > 100
    ('public_domain.jsonl', True)
    """
    source = PUBLIC_DOMAIN if path is None else Path(path).expanduser()
    if not source.exists():
        raise ValueError(f"there is no corpus {source}; give a text file, a .jsonl file or a folder of .txt files")
    if source.is_dir():
        files = sorted(file for file in source.glob("*.txt") if file.is_file())
        if not files:
            raise ValueError(f"the folder {source} holds no .txt file; put a document into each, or give one file")
        documents = [_document(_read(file), str(file)) for file in files]
    elif source.suffix == ".jsonl":
        documents = list(_jsonl_documents(_read(source), str(source)))
    else:
        documents = list(_passages(_read(source)))
    if not documents:
        raise ValueError(f"{source} is empty; a corpus needs at least {LEAST_DOCUMENTS} documents")
    if len(documents) < LEAST_DOCUMENTS:
        raise ValueError(
            f"{source} holds {len(documents)} documents, fewer than {LEAST_DOCUMENTS}; give more text, "
            "with an empty line after each paragraph where it is a plain text file"
        )
    return Corpus(source.name, tuple(documents), digest(documents))


def _read(path: Path) -> str:
    """The text of a file, line ends as line feeds."""
    content = read_bytes(path)
    if (offset := content.find(b"\0")) >= 0:
        raise ValueError(f"{path} is no text: byte {offset} is zero; give a file of UTF-8 text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: byte {error.start} does not belong there; convert it") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _document(text: str, where: str) -> str:
    """A text without the white space around it, refused where nothing is left or it is no text."""
    if not text.strip():
        raise ValueError(f"the document in {where} is empty; leave it out, or give it text")
    if (start := half_character(text)) is not None:
        raise ValueError(f"the document in {where} has half a character at {start}; write it anew")
    return text.strip()


def _jsonl_documents(content: str, where: str) -> Iterator[str]:
    """The "text" of each line that is not empty."""
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {where} is no JSON ({error.msg}); give an object a line") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise ValueError(f'line {number} of {where} has no "text"; give each line an object with a text in it')
        yield _document(entry["text"], f"line {number} of {where}")


def _passages(content: str) -> Iterator[str]:
    """Paragraphs gathered until they are long enough; what is left at the end joins the last passage."""
    by_line = not re.search(r"\n[^\S\n]*\n", content.strip())
    paragraphs = [part for part in re.split(r"\n" if by_line else r"\n(?:[^\S\n]*\n)+", content) if part.strip()]
    joint, passages, gathered = ("\n" if by_line else "\n\n"), [], ""
    for paragraph in paragraphs:
        gathered = joint.join(filter(None, (gathered, paragraph.strip())))
        if len(gathered) >= PASSAGE_CHARACTERS:
            passages.append(gathered)
            gathered = ""
    if gathered and passages:
        passages[-1] = joint.join((passages[-1], gathered))
    elif gathered:
        passages.append(gathered)
    yield from passages
