from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmtrain.data.document import Document
from llmtrain.data.formats.text import decode_python
from llmtrain.data.reading import ReadOptions, read_documents, source_file
from llmtrain.errors import DataError

_BOM = b"\xef\xbb\xbf"


def documents(path: Path, data: bytes, *, text_field: str = "text") -> list[Document]:
    """What a file at `path` that holds `data` is read as."""
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return list(read_documents(source_file(path), ReadOptions(text_field), nobody))


def nobody(_position: int) -> None:
    """Does not care how far reading has come."""


@contextmanager
def data_error(*parts: str) -> Iterator[None]:
    """The block raises DataError, whose message or hint has every one of `parts`."""
    with pytest.raises(DataError) as caught:
        yield
    assert "\n" not in caught.value.message
    for part in parts:
        assert part in f"{caught.value.message}\n{caught.value.hint}"


def test_json_lines(tmp_path: Path) -> None:
    lines = b'{"text": "a\\nb", "id": 1}\r\n\n{"text": ""}\n{"text": "\\ud83d\\ude00"}'
    found = documents(tmp_path / "a.jsonl", _BOM + lines)
    assert [document.text for document in found] == ["a\nb", "😀"]
    assert [document.origin[-2:] for document in found] == [":1", ":4"]


def test_another_text_field(tmp_path: Path) -> None:
    line = b'{"body": "here", "text": 1}\n'
    (document,) = documents(tmp_path / "a.jsonl", line, text_field="body")
    assert document.text == "here"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"{broken", ["not JSON"]),
        (b"[1, 2]", ["not an object"]),
        (b'{"body": "x", "id": 1}', ["'text'", "'body', 'id'", "data.text_field="]),
        (b"{}", ["no fields"]),
        (b'{"text": 5}', ["not a string", "5"]),
        (b'{"text": null}', ["not a string", "null"]),
        (b'{"text": "\\ud800"}', ["surrogate"]),
        (b"[" * 100_000, ["not JSON"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: bytes, parts: list[str]) -> None:
    with data_error("a.jsonl:2", *parts):
        documents(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b"\n")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_invalid_utf8_names_file_and_offset(tmp_path: Path, suffix: str) -> None:
    with data_error("a.txt", "0xe9", "offset 9"):
        documents(tmp_path / f"a.txt{suffix}", b"caf\xc3\xa9 caf\xe9")
    with data_error("a.jsonl", ":2", "0xff", "offset 27"):
        lines = b'{"text": "a"}\n{"text": "\xff"}\n'
        documents(tmp_path / f"a.jsonl{suffix}", _BOM + lines)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_damaged_gzip_is_named(tmp_path: Path, name: str) -> None:
    data = gzip.compress(b'{"text": "' + os.urandom(50_000).hex().encode() + b'"}')
    flipped = bytearray(data)
    flipped[-8] ^= 1  # the checksum
    path = tmp_path / name
    for bad in (data[: len(data) // 2], data[:-4], bytes(flipped), b"not gzip at all"):
        path.write_bytes(bad)
        with data_error(name, "gzip"):
            list(read_documents(source_file(path), ReadOptions(), nobody))


def test_python_sources_are_decoded_as_they_declare() -> None:
    assert decode_python("# coding: latin-1\né".encode("latin-1")) == "# coding: latin-1\né"
    assert decode_python("\ufeffé\r\n".encode()) == "é\r\n"
    for bad in (b"# coding: nothing\n", b"\xff", b"# coding: hex\n", b"# coding: utf-7\n+2AA-"):
        with pytest.raises((SyntaxError, LookupError, UnicodeError)):
            decode_python(bad)
